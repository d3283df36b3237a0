"""The difference of two tables: what is named, and what is not because no session minds it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.plan import Plan, RouteChange, as_data, compare, keyed_listeners
from gateway.events import Address, KeyPair, TlsClient, TlsServer
from gateway.table import EndpointEntry, GatewaySettings, Listener, Route, Table, Upstream

LISTENER = Listener(address=Address(host="127.0.0.1", port=80))
OTHER = Listener(address=Address(path="/run/x.sock"))
ROUTES = tuple(Route(name=name, upstream=f"to-{name}") for name in ("a", "b", "c"))
UPSTREAMS = {
    f"to-{name}": Upstream(
        name=f"to-{name}", scheme="ws", entries=(EndpointEntry(url=f"ws://{name}", host=name),)
    )
    for name in ("a", "b", "c", "d")
}
TABLE = Table(listeners=(LISTENER,), routes=ROUTES, upstreams=UPSTREAMS)


def gateway(**changed: Any) -> Table:
    """The table with other settings."""
    return replace(TABLE, gateway=replace(TABLE.gateway, **changed))


def test_equal_tables_have_no_difference() -> None:
    """An empty plan says so."""
    assert compare(TABLE, TABLE).is_empty
    assert compare(TABLE, TABLE) == Plan()


def test_routes_are_known_by_name() -> None:
    """One comes, one goes, one changes; the order of the file is no change."""
    routes = (ROUTES[1], replace(ROUTES[0], max_message=9), Route(name="d", upstream="to-d"))
    plan = compare(TABLE, replace(TABLE, routes=routes))
    assert plan.routes == (
        RouteChange("a", "changed"), RouteChange("d", "added"), RouteChange("c", "removed"),
    )
    assert set(plan.touched()) == {"a", "c"}


def test_a_route_has_changed_if_its_upstream_has() -> None:
    """Those of other upstreams have not."""
    changed = UPSTREAMS | {"to-b": replace(UPSTREAMS["to-b"], balance="hash")}
    plan = compare(TABLE, replace(TABLE, upstreams=changed))
    assert plan.routes == (RouteChange("b", "changed"),)


def test_what_no_session_obeys_is_no_change_of_a_route() -> None:
    """To write `reload_drain` for the first time drains nobody, nor does another `resolve`."""
    routes = tuple(replace(route, reload_drain=60.0) for route in ROUTES)
    changed = {name: replace(one, resolve=5.0) for name, one in UPSTREAMS.items()}
    plan = compare(TABLE, replace(TABLE, routes=routes, upstreams=changed))
    assert plan.routes == ()
    assert plan.settings == (
        *(f"reload_drain of [[route]] {name}" for name in "abc"),
        *(f"resolve of [upstream.to-{name}]" for name in "abcd"),
    )


def test_the_drain_is_the_new_tables_or_of_a_route_that_goes_its_last() -> None:
    """Whoever changes a route may say with it how its sessions are moved."""
    old = replace(TABLE, routes=tuple(replace(route, reload_drain=9.0) for route in ROUTES))
    new = replace(TABLE, routes=(replace(ROUTES[0], max_message=9, reload_drain=60.0),))
    assert compare(old, new).routes == (
        RouteChange("a", "changed", 60.0), RouteChange("b", "removed", 9.0),
        RouteChange("c", "removed", 9.0),
    )


def test_listeners_are_known_by_address() -> None:
    """One comes, one goes, one has other terms."""
    slow = replace(LISTENER, head_timeout=1.0)
    before = replace(TABLE, listeners=(LISTENER, OTHER))
    third = Listener(address=Address(host="::1", port=80))
    plan = compare(before, replace(TABLE, listeners=(slow, third)))
    assert plan.listeners_added == (third,)
    assert plan.listeners_removed == (OTHER,)
    assert plan.listeners_changed == (slow,)


def test_listeners_on_any_port_are_told_apart_by_their_order() -> None:
    """Two on port 0 are two; the one that goes is the last."""
    free = Listener(address=Address(host="127.0.0.1", port=0))
    slow = replace(free, head_timeout=1.0)
    assert list(keyed_listeners((free, slow)).values()) == [free, slow]
    plan = compare(replace(TABLE, listeners=(free, slow)), replace(TABLE, listeners=(free,)))
    assert plan.listeners_removed == (slow,)
    assert not plan.listeners_added + plan.listeners_changed


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"engine": "io_uring"}, '[gateway], engine: it is "auto" and cannot become "io_uring"'),
        ({"admin": Address(host="127.0.0.1", port=9)},
         '[gateway], admin: it is off and cannot become "127.0.0.1:9"'),
        ({"control": None}, "[gateway], control: it is the usual place and cannot become off"),
        ({"control": "/x"}, '[gateway], control: it is the usual place and cannot become "/x"'),
    ],
)
def test_what_a_running_program_keeps_is_refused(changed: dict[str, Any], sentence: str) -> None:
    """A sentence says what it is, what was wanted, and what to do instead."""
    (refusal,) = compare(TABLE, gateway(**changed)).refusals
    assert refusal == (
        f"{sentence} by a reload; replace the program (SIGUSR2), or restart it"
    )
    assert not compare(TABLE, gateway(**changed)).settings


def test_other_settings_change() -> None:
    """Each is named; the others are not."""
    plan = compare(TABLE, gateway(workers=3, log="json", drain=1.0))
    assert plan.settings == ("workers of [gateway]", "drain of [gateway]", "log of [gateway]")
    assert not plan.refusals


def test_data_has_the_sessions_of_what_changes() -> None:
    """Sessions of routes that are not touched count in the total alone."""
    routes = (replace(ROUTES[0], max_message=9, reload_drain=60.0), ROUTES[1])
    data = as_data(
        compare(TABLE, replace(TABLE, routes=routes)), {"a": 3, "b": 100, "c": 4}, 107
    )
    assert data["routes"] == [
        {"name": "a", "change": "changed", "sessions": 3, "drain": 60.0},
        {"name": "c", "change": "removed", "sessions": 4, "drain": 0.0},
    ]
    assert (data["sessions"], data["sessions_touched"], data["sessions_drained"]) == (107, 7, 3)


sides = st.dictionaries(
    st.sampled_from("abcd"), st.integers(0, 2), max_size=4
).map(lambda found: replace(TABLE, gateway=GatewaySettings(), routes=tuple(
    Route(name=name, upstream=f"to-{name}", max_message=limit) for name, limit in found.items()
)))


@given(sides, sides)
def test_there_and_back(old: Table, new: Table) -> None:
    """What one way adds, the other removes; what changes, changes both ways."""
    there, back = compare(old, new), compare(new, old)

    def names(plan: Plan, what: str) -> set[str]:
        return {one.name for one in plan.routes if one.what == what}

    assert names(there, "added") == names(back, "removed")
    assert names(there, "changed") == names(back, "changed")
    assert names(there, "added") == {r.name for r in new.routes} - {r.name for r in old.routes}


def test_what_tls_files_hold_is_told_apart_from_their_names() -> None:
    """A certificate that was renewed is a setting that changed: no session minds it."""

    def secure(listener: bytes, upstream: bytes) -> Table:
        pair = KeyPair(chain=listener, key=b"", names=())
        entry = replace(
            UPSTREAMS["to-a"].entries[0], secure=TlsClient(server_name="a", ca=upstream)
        )
        return replace(
            TABLE,
            listeners=(replace(LISTENER, secure=TlsServer(certificates=(pair,))),),
            upstreams=UPSTREAMS | {"to-a": replace(UPSTREAMS["to-a"], entries=(entry,))},
        )

    assert compare(secure(b"1", b"1"), secure(b"1", b"1")).is_empty
    plan = compare(secure(b"1", b"1"), secure(b"2", b"2"))
    assert plan.settings == (
        "certificates of [[listener]] 127.0.0.1:80", "certificates of [upstream.to-a]",
    )
    assert not plan.routes
    assert not plan.listeners_changed
