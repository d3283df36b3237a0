"""The pool: shares by weight, fairness among equals, a stable hash, rest after failure."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Address
from gateway.table import EndpointEntry, Upstream
from gateway.upstreams import REST_MAX, REST_MIN, Endpoint, News, Pool

BALANCES = ["round-robin", "least-connections", "random-two", "hash"]


def entry(number: int, weight: int = 1) -> tuple[EndpointEntry, Address]:
    host = f"10.0.0.{number}"
    return (
        EndpointEntry(url=f"ws://{host}:80", host=host, port=80, weight=weight),
        Address(host=host, port=80),
    )


def pool(balance: str, *weights: int, seed: int = 7) -> Pool:
    made = Pool(Upstream(name="up", scheme="ws", balance=balance), random.Random(seed))
    made.set_endpoints([entry(number, weight) for number, weight in enumerate(weights)])
    return made


def picked(
    asked: Pool, key: bytes = b"", now: float = 0.0, tried: tuple[Endpoint, ...] = ()
) -> int:
    """The number of the endpoint that `pick` gives."""
    endpoint = asked.pick(key, now, tried)
    assert endpoint is not None
    return asked.endpoints.index(endpoint)


def test_round_robin_is_smooth() -> None:
    """Weights 5, 1, 1 are spread over the turn, and each turn is the same."""
    asked = pool("round-robin", 5, 1, 1)
    turn = [0, 0, 1, 0, 2, 0, 0]
    assert [picked(asked) for _ in range(21)] == turn * 3


def test_round_robin_passes_over_a_resting_one_and_forgives() -> None:
    """While one rests the others share its turns; afterwards it gets its own, and no more."""
    asked = pool("round-robin", 1, 1, 1)
    asked.endpoints[1].failed(0.0)
    assert Counter(picked(asked, now=0.5) for _ in range(30)) == {0: 15, 2: 15}
    assert Counter(picked(asked, now=2.0) for _ in range(30)) == {0: 10, 1: 10, 2: 10}


def test_least_connections_goes_by_weight() -> None:
    """Live sessions end up in proportion to the weights, counted from `begin` on."""
    asked = pool("least-connections", 3, 2, 1)
    for _ in range(60):
        asked.endpoints[picked(asked)].begin()
    assert [endpoint.active for endpoint in asked.endpoints] == [30, 20, 10]


def test_least_connections_counts_what_is_connecting() -> None:
    """Two asked in one burst, before either is connected, go to different endpoints."""
    asked = pool("least-connections", 1, 1)
    first = asked.endpoints[picked(asked)]
    first.begin()
    assert asked.endpoints[picked(asked)] is not first


def test_least_connections_breaks_ties_fairly() -> None:
    """Sessions so short that all are free each time spread by weight, not to the first."""
    asked = pool("least-connections", 1, 1, 2)
    counts = Counter(picked(asked) for _ in range(4000))
    assert 850 < counts[0] < 1150
    assert 850 < counts[1] < 1150
    assert 1800 < counts[2] < 2200


def test_random_two_prefers_the_freer() -> None:
    """With two endpoints both are always drawn, so the freer one wins; with more, mostly."""
    asked = pool("random-two", 1, 1)
    asked.endpoints[0].begin()
    assert {picked(asked) for _ in range(50)} == {1}
    many = pool("random-two", 1, 1, 1, 1)
    for _ in range(400):
        many.endpoints[picked(many)].begin()
    assert max(e.active for e in many.endpoints) - min(e.active for e in many.endpoints) < 10


def test_random_two_goes_by_weight() -> None:
    asked = pool("random-two", 4, 1, 1, 1, 1)
    for _ in range(800):
        asked.endpoints[picked(asked)].begin()
    assert 350 < asked.endpoints[0].active < 450


def test_hash_is_stable_over_processes_and_versions() -> None:
    """Golden: another process, machine or release must pick the same, or rooms are split."""
    asked = pool("hash", 1, 1, 1, 1)
    keys = (b"", b"a", b"b", b"room-1", b"room-2", b"\0")
    assert [picked(asked, key) for key in keys] == [2, 0, 1, 2, 1, 3]


def test_hash_goes_by_weight() -> None:
    asked = pool("hash", 1, 2, 5)
    counts = Counter(picked(asked, b"%d" % number) for number in range(8000))
    assert 850 < counts[0] < 1150
    assert 1800 < counts[1] < 2200
    assert 4700 < counts[2] < 5300


@pytest.mark.parametrize("gone", range(5))
def test_hash_moves_only_the_keys_of_the_removed(gone: int) -> None:
    asked = pool("hash", 1, 2, 3, 1, 1)
    keys = [b"key-%d" % number for number in range(2000)]
    before = {key: asked.pick(key, 0.0) for key in keys}
    removed = asked.endpoints[gone]
    asked.set_endpoints(
        [(e.entry, e.address) for e in asked.endpoints if e is not removed]
    )
    for key in keys:
        if before[key] is removed:
            assert asked.pick(key, 0.0) is not removed
        else:
            assert asked.pick(key, 0.0) is before[key]


def test_hash_moves_only_to_the_newcomer() -> None:
    asked = pool("hash", 1, 1, 1)
    keys = [b"key-%d" % number for number in range(2000)]
    before = {key: asked.pick(key, 0.0) for key in keys}
    asked.set_endpoints([(e.entry, e.address) for e in asked.endpoints] + [entry(9)])
    moved = [key for key in keys if asked.pick(key, 0.0) is not before[key]]
    assert 400 < len(moved) < 600
    assert all(asked.pick(key, 0.0) is asked.endpoints[3] for key in moved)


def test_hash_returns_after_a_rest() -> None:
    """While its endpoint rests a key has one other home; then it comes back."""
    asked = pool("hash", 1, 1, 1)
    home = asked.pick(b"room", 0.0)
    assert home is not None
    home.failed(0.0)
    away = asked.pick(b"room", 0.5)
    assert away is not None
    assert away is not home
    assert asked.pick(b"room", 0.6) is away
    assert asked.pick(b"room", 1.0) is home


def test_that_an_endpoint_rests_is_news_once_and_that_it_works_again() -> None:
    """However long it rests; what never failed is no news."""
    news: list[News] = []
    asked = Pool(Upstream(name="up", scheme="ws"), random.Random(7), news)
    asked.set_endpoints([entry(0), entry(1)])
    first, second = asked.endpoints
    for now in (0.0, 0.5, 2.0, 9.0):
        first.failed(now, "connect: refused")
    second.connected()
    assert news == [News("up", "10.0.0.0:80", "connect: refused", REST_MIN)]
    first.connected()
    first.connected()
    assert news[1:] == [News("up", "10.0.0.0:80")]
    first.failed(100.0, "connect: reset")
    assert news[2:] == [News("up", "10.0.0.0:80", "connect: reset", REST_MIN)]


def test_rest_doubles_to_its_limit_and_a_success_resets() -> None:
    endpoint = pool("hash", 1).endpoints[0]
    now, rests = 0.0, []
    for _ in range(7):
        endpoint.failed(now)
        rests.append(endpoint.rests_until - now)
        now = endpoint.rests_until
    assert rests == [1, 2, 4, 8, 16, 30, 30]
    assert rests[0] == REST_MIN
    assert rests[-1] == REST_MAX
    endpoint.connected()
    assert endpoint.rests_until == 0.0
    endpoint.failed(now)
    assert endpoint.rests_until == now + REST_MIN


def test_a_burst_of_failures_is_one() -> None:
    """A hundred connects under way to a dead endpoint must not rest it for half a minute."""
    endpoint = pool("hash", 1).endpoints[0]
    for number in range(100):
        endpoint.failed(number / 1000)
    assert endpoint.rests_until == REST_MIN


@pytest.mark.parametrize("balance", BALANCES)
def test_all_resting_are_tried_all_the_same(balance: str) -> None:
    asked = pool(balance, 1, 1)
    for endpoint in asked.endpoints:
        endpoint.failed(0.0)
    assert {picked(asked, b"%d" % number, now=0.1) for number in range(50)} == {0, 1}


@pytest.mark.parametrize("balance", BALANCES)
def test_the_next_try_goes_elsewhere(balance: str) -> None:
    """Each endpoint is tried once, a resting one last; then there is none."""
    asked = pool(balance, 1, 1, 1)
    asked.endpoints[1].failed(0.0)
    tried: list[Endpoint] = []
    for _ in range(3):
        endpoint = asked.pick(b"k", 0.1, tried)
        assert endpoint is not None
        tried.append(endpoint)
    assert len(set(tried)) == 3
    assert tried[2] is asked.endpoints[1]
    assert asked.pick(b"k", 0.1, tried) is None


@pytest.mark.parametrize("balance", BALANCES)
def test_weight_zero_gets_nothing(balance: str) -> None:
    asked = pool(balance, 0, 1, 0)
    assert {picked(asked, b"%d" % number) for number in range(50)} == {1}
    asked.endpoints[1].failed(0.0)
    assert picked(asked, now=0.1) == 1, "not even when all others rest"
    assert pool(balance, 0, 0).pick(b"", 0.0) is None


@pytest.mark.parametrize("balance", BALANCES)
def test_an_empty_pool_has_none(balance: str) -> None:
    assert pool(balance).pick(b"", 0.0) is None


def test_endpoints_that_stay_keep_their_state() -> None:
    """New weights apply, counts and rest stay; what went is ended as ever."""
    asked = pool("least-connections", 1, 1, 1)
    kept, gone = asked.endpoints[0], asked.endpoints[2]
    kept.begin()
    kept.failed(5.0)
    gone.begin()
    asked.set_endpoints([entry(0, 7), entry(1)])
    assert asked.endpoints[0] is kept
    assert (kept.active, kept.weight, kept.rests_until) == (1, 7, 6.0)
    assert gone not in asked.endpoints
    gone.ended()
    assert gone.active == 0


def test_an_address_named_twice_is_one_endpoint() -> None:
    """Two names for one address: one endpoint, so that its live sessions are counted together."""
    asked = pool("round-robin")
    asked.set_endpoints([entry(1, 1), entry(1, 2), entry(2, 1)])
    assert [endpoint.weight for endpoint in asked.endpoints] == [3, 1]


def test_ending_more_than_began_is_a_bug() -> None:
    endpoint = pool("hash", 1).endpoints[0]
    endpoint.begin()
    endpoint.ended()
    with pytest.raises(AssertionError, match="more often"):
        endpoint.ended()


def test_an_endpoint_is_named_by_its_address() -> None:
    made = Endpoint(EndpointEntry(url="ws://[::1]:9"), Address(host="::1", port=9), 1)
    assert made.name == "[::1]:9"


@given(
    balance=st.sampled_from(BALANCES),
    weights=st.lists(st.integers(0, 5), max_size=6),
    steps=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=4)), max_size=60),
)
def test_any_life_of_a_pool(
    balance: str, weights: list[int], steps: list[tuple[int, bytes]]
) -> None:
    """Whatever happens: a pick has weight, is not tried, rests only if all do; counts balance."""
    asked = pool(balance, *weights)
    live: list[Endpoint] = []
    now = 0.0
    for action, key in steps:
        now += 0.3
        tried = live[-1:]
        endpoint = asked.pick(key, now, tried)
        able = [e for e in asked.endpoints if e.weight and e not in tried]
        if endpoint is None:
            assert not able
            continue
        assert endpoint in able
        if endpoint.rests_until > now:
            assert all(e.rests_until > now for e in able)
        endpoint.begin()
        live.append(endpoint)
        if action == 0:
            endpoint.failed(now)
            live.pop().ended()
        elif action == 1:
            endpoint.connected()
        elif action == 2 and len(live) > 1:
            live.pop(0).ended()
    assert sum(endpoint.active for endpoint in asked.endpoints) == len(live)


# --- Where from ---------------------------------------------------------------------------------


def test_source_addresses_take_turns_within_the_family() -> None:
    """Of the endpoint; where there is none of it, the kernel chooses, as it does for all others."""
    sources = ("10.0.0.7", "fd00::7", "10.0.0.8")
    pool = Pool(Upstream(name="u", scheme="ws", source_addresses=sources), random.Random(1))
    four, six, unix = (
        Endpoint(EndpointEntry(url="ws://x"), address, 1)
        for address in (Address(host="10.1.0.1", port=80), Address(host="fd00::1", port=80),
                        Address(path="/run/app.sock"))
    )
    seen = [pool.source(four) for _ in range(6)]
    assert sorted(seen) == ["10.0.0.7"] * 3 + ["10.0.0.8"] * 3
    assert all(one != other for one, other in itertools.pairwise(seen))
    assert {pool.source(six) for _ in range(3)} == {"fd00::7"}
    assert pool.source(unix) == ""
    without = Pool(Upstream(name="u", scheme="ws", source_addresses=("::1",)), random.Random(1))
    assert without.source(four) == ""


def test_workers_do_not_take_turns_in_step() -> None:
    sources = tuple(f"10.0.0.{n}" for n in range(16))
    endpoint = Endpoint(EndpointEntry(url="ws://x"), Address(host="10.1.0.1", port=80), 1)
    upstream = Upstream(name="u", scheme="ws", source_addresses=sources)
    firsts = {Pool(upstream, random.Random(seed)).source(endpoint) for seed in range(50)}
    assert len(firsts) > 8
