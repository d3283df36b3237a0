"""The limits: who is refused and with what, and that counts vanish at zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Address
from gateway.limits import SPARE_CONNECTIONS, Limits, Refusal

A = Address(host="192.0.2.1", port=1000)
B = Address(host="192.0.2.2", port=1000)


def test_no_limit_refuses_nobody() -> None:
    limits = Limits(max_sessions=1000)
    for _ in range(500):
        assert limits.enter("chat", 0, A, 0) is None


def test_the_client_limit_is_429_and_per_route() -> None:
    limits = Limits(max_sessions=1000)
    assert limits.enter("chat", 0, A, 2) is None
    assert limits.enter("chat", 0, Address(host=A.host, port=2000), 2) is None
    assert limits.enter("chat", 0, A, 2) is Refusal.CLIENT
    assert limits.enter("chat", 0, B, 2) is None
    assert limits.enter("news", 0, A, 2) is None
    limits.leave("chat", A)
    assert limits.enter("chat", 0, A, 2) is None
    assert Refusal.CLIENT.status == 429


def test_the_route_limit_is_503() -> None:
    limits = Limits(max_sessions=1000)
    assert limits.enter("chat", 1, A, 0) is None
    assert limits.enter("chat", 1, B, 0) is Refusal.ROUTE
    assert limits.enter("news", 1, B, 0) is None
    assert Refusal.ROUTE.status == 503


def test_the_process_limit_is_503() -> None:
    limits = Limits(max_sessions=2)
    assert limits.enter("chat", 0, A, 0) is None
    assert limits.enter("news", 0, B, 0) is None
    assert limits.enter("news", 0, A, 0) is Refusal.PROCESS
    limits.leave("chat", A)
    assert limits.enter("news", 0, A, 0) is None
    assert Refusal.PROCESS.status == 503


def test_the_client_is_told_of_its_own_limit_first() -> None:
    limits = Limits(max_sessions=1)
    limits.enter("chat", 1, A, 1)
    assert limits.enter("chat", 1, A, 1) is Refusal.CLIENT
    assert limits.enter("chat", 1, B, 1) is Refusal.ROUTE


def test_a_refusal_counts_nothing() -> None:
    limits = Limits(max_sessions=10)
    limits.enter("chat", 1, A, 1)
    for client in (A, B):
        limits.enter("chat", 1, client, 1)
    limits.leave("chat", A)
    assert (limits.sessions, limits.entries) == (0, 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_who_is_one_client(one: str, other: str, same: bool) -> None:
    """IPv4 by address, IPv6 by /64, a mapped address is the IPv4 client it is."""
    limits = Limits(max_sessions=10)
    assert limits.enter("chat", 0, Address(host=one, port=1), 1) is None
    refusal = limits.enter("chat", 0, Address(host=other, port=2), 1)
    assert refusal is (Refusal.CLIENT if same else None)


def test_unix_clients_cannot_be_told_apart() -> None:
    limits = Limits(max_sessions=10)
    assert limits.enter("chat", 0, Address(), 1) is None
    assert limits.enter("chat", 0, Address(), 1) is None
    limits.leave("chat", Address())
    limits.leave("chat", Address())
    assert limits.entries == 0


def test_connections_have_room_to_be_refused() -> None:
    """Beyond `max_sessions` some connections are let in to be told; then they are cut."""
    limits = Limits(max_sessions=3)
    for _ in range(3 + SPARE_CONNECTIONS):
        assert limits.opened()
    assert not limits.opened()
    limits.closed()
    assert limits.opened()


def test_leaving_without_entering_is_a_bug() -> None:
    limits = Limits(max_sessions=3)
    with pytest.raises(AssertionError):
        limits.leave("chat", A)
    with pytest.raises(AssertionError):
        limits.closed()


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["a", "b"]), st.integers(1, 4), st.integers(0, 3)),
        max_size=80,
    )
)
def test_counts_are_those_of_a_plain_list(steps: list[tuple[bool, str, int, int]]) -> None:
    """Against a list of who is in: the same refusals, the same counts, nothing left at the end."""
    limits = Limits(max_sessions=8)
    inside: list[tuple[str, Address]] = []
    for enters, route, number, limit in steps:
        client = Address(host=f"192.0.2.{number}", port=1)
        if not enters:
            if inside:
                limits.leave(*inside.pop(0))
            continue
        of_client = inside.count((route, client))
        on_route = sum(1 for name, _ in inside if name == route)
        expected = None
        if limit and of_client >= limit:
            expected = Refusal.CLIENT
        elif limit and on_route >= limit * 2:
            expected = Refusal.ROUTE
        elif len(inside) >= 8:
            expected = Refusal.PROCESS
        assert limits.enter(route, limit * 2, client, limit) is expected
        if expected is None:
            inside.append((route, client))
    for route, client in inside:
        limits.leave(route, client)
    assert (limits.sessions, limits.entries) == (0, 0)
