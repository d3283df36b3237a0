"""What differs between the table that runs and the one that is to run: said before it is done.

Laws of this file:

- Pure: two tables in, words out. Nothing is opened, asked or changed here, so `gateway reload
  --plan` and the reload itself cannot disagree.
- A route is known by its name, an upstream by its own, a listener by its address. A route has
  changed if its own keys have, or its upstream's: where it stands in the file is no change, and
  neither are `reload_drain` and `resolve`, which no session obeys. Who writes `reload_drain` for
  the first time does not mean to drain everybody.
- What a running program cannot change is refused, a sentence for each key. A reload with a refusal
  does nothing at all.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from gateway.control.vault import alike
from gateway.table import GatewaySettings, Listener, Route, Table

FIXED = ("engine", "ring", "admin", "control")   # keys of [gateway] that a running program keeps

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")
ListenerKey = tuple[str, int]            # its address, and which of those with that address


@dataclass(frozen=True, slots=True)
class RouteChange:
    """One route that comes, goes, or has other terms. `drain` is over which time its sessions are
    told to come back (the new table's word, or of a route that goes the old one's); 0: they stay on
    the terms that they began with."""

    name: str
    what: str                            # added | removed | changed
    drain: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload would do. Names are in the order of the new table, those that go last."""

    routes: tuple[RouteChange, ...] = ()
    listeners_added: tuple[Listener, ...] = ()
    listeners_removed: tuple[Listener, ...] = ()
    listeners_changed: tuple[Listener, ...] = ()  # as they will be
    settings: tuple[str, ...] = ()       # "log of [gateway]", "resolve of [upstream.rooms]"
    refusals: tuple[str, ...] = ()       # sentences: why it cannot be done by a reload

    @property
    def is_empty(self) -> bool:
        """True where the two tables say the same."""
        return self == Plan()

    def touched(self) -> dict[str, RouteChange]:
        """Routes whose sessions began on terms that are no longer in the table."""
        return {one.name: one for one in self.routes if one.what != "added"}


def compare(old: Table, new: Table) -> Plan:
    """What it takes to come from the old table to the new one."""
    before, after = keyed_listeners(old.listeners), keyed_listeners(new.listeners)
    return Plan(
        routes=tuple(_route_changes(old, new)),
        listeners_added=tuple(after[key] for key in after if key not in before),
        listeners_removed=tuple(before[key] for key in before if key not in after),
        listeners_changed=tuple(_changed_values(before, after)),
        settings=tuple(_changed_settings(old, new)),
        refusals=tuple(_refusals(old.gateway, new.gateway)),
    )


def keyed_listeners(listeners: Iterable[Listener]) -> dict[ListenerKey, Listener]:
    """Listeners by what stays the same over a reload. Port 0 may be listed more than once: each
    is another port, and they are told apart by their order."""
    keyed: dict[ListenerKey, Listener] = {}
    for listener in listeners:
        address = str(listener.address)
        number = sum(1 for known, _ in keyed if known == address)
        keyed[address, number] = listener
    return keyed


def as_data(plan: Plan, sessions: Mapping[str, int], total: int) -> dict[str, object]:
    """The plan for machines; `sessions` are the live ones of each route, `total` all of them."""
    return {
        "routes": [
            {"name": one.name, "change": one.what, "sessions": sessions.get(one.name, 0),
             "drain": one.drain}
            for one in plan.routes
        ],
        "listeners_added": [str(one.address) for one in plan.listeners_added],
        "listeners_removed": [str(one.address) for one in plan.listeners_removed],
        "listeners_changed": [str(one.address) for one in plan.listeners_changed],
        "settings": list(plan.settings),
        "refusals": list(plan.refusals),
        "sessions": total,
        "sessions_touched": sum(sessions.get(name, 0) for name in plan.touched()),
        "sessions_drained": sum(
            sessions.get(name, 0) for name, one in plan.touched().items() if one.drain
        ),
    }


# --- Inside ------------------------------------------------------------------------------------


def _route_changes(old: Table, new: Table) -> Iterable[RouteChange]:
    before = {route.name: route for route in old.routes}
    names = set()
    for route in new.routes:
        names.add(route.name)
        known = before.get(route.name)
        if known is None:
            yield RouteChange(route.name, "added")
        elif _terms(known, old) != _terms(route, new):
            yield RouteChange(route.name, "changed", route.reload_drain)
    for name, route in before.items():
        if name not in names:
            yield RouteChange(name, "removed", route.reload_drain)


def _terms(route: Route, table: Table) -> tuple[object, ...]:
    """All that a session of this route obeys."""
    upstream = table.upstreams[route.upstream]
    return replace(route, reload_drain=0.0), replace(upstream, resolve=0.0)


def _changed_values(
    before: Mapping[_Key, _Value], after: Mapping[_Key, _Value]
) -> Iterable[_Value]:
    for key, value in after.items():
        if key in before and before[key] != value:
            yield value


def _changed_settings(old: Table, new: Table) -> Iterable[str]:
    for one in fields(GatewaySettings):
        if one.name not in FIXED and getattr(old.gateway, one.name) != getattr(
            new.gateway, one.name
        ):
            yield f"{one.name} of [gateway]"
    drains = {route.name: route.reload_drain for route in old.routes}
    for route in new.routes:
        if drains.get(route.name, route.reload_drain) != route.reload_drain:
            yield f"reload_drain of [[route]] {route.name}"
    for name, upstream in new.upstreams.items():
        if name in old.upstreams and old.upstreams[name].resolve != upstream.resolve:
            yield f"resolve of [upstream.{name}]"
    yield from _changed_files(old, new)


def _changed_files(old: Table, new: Table) -> Iterable[str]:
    """What TLS files hold is no key, but it counts for who comes from now on."""
    before = keyed_listeners(old.listeners)
    for key, listener in keyed_listeners(new.listeners).items():
        if key in before and not alike(before[key].secure, listener.secure):
            yield f"certificates of [[listener]] {listener.address}"
    for name, upstream in new.upstreams.items():
        if name in old.upstreams and not all(
            alike(one.secure, other.secure)
            for one, other in zip(old.upstreams[name].entries, upstream.entries, strict=False)
        ):
            yield f"certificates of [upstream.{name}]"


def _refusals(old: GatewaySettings, new: GatewaySettings) -> Iterable[str]:
    for key in FIXED:
        runs, wanted = getattr(old, key), getattr(new, key)
        if runs != wanted:
            yield (
                f"[gateway], {key}: it is {_shown(key, runs)} and cannot become "
                f"{_shown(key, wanted)} by a reload; replace the program (SIGUSR2), or restart it"
            )


def _shown(key: str, value: object) -> str:
    if value is None or value == "":
        return "the usual place" if key == "control" and value == "" else "off"
    return f'"{value}"'
