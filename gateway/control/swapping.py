"""A worker's end of a reload: a new table is prepared whole, then swapped in between two events.

Laws of this file:

- `prepare` changes nothing that a session sees. What it takes is there afterwards, so that `commit`
  cannot fail; `forget` gives it back.
- A session goes on with what it has taken from the old table: its route, its pool, its listener's
  terms. Nothing of a running relay is touched.
- An address that stays keeps its endpoint, with its counts and its health, also where the upstream
  around it has changed.
- Sessions on a route that changed or went are told goodbye only where that route says so.
- A commit is answered once the listeners that went are closed, so that their addresses are free
  then. Who waits on them is accepted before.
"""

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.control import channel
from gateway.control.accepting import Told
from gateway.control.channel import Endpoints, Message
from gateway.control.counters import Counters
from gateway.control.orders import Order
from gateway.control.plan import compare
from gateway.control.report import Report
from gateway.control.shared import Slots
from gateway.control.vault import reused
from gateway.protocol.desk import Desk
from gateway.routing import RouteTable
from gateway.table import Listener, Table, Upstream
from gateway.upstreams import Pool

PoolMaker = Callable[[Upstream], Pool]


class Host(Protocol):
    """The worker, as far as a swap knows it."""

    @property
    def listening(self) -> Collection[int]:
        """The numbers of the listeners that it accepts from."""

    def listen_on(
        self, listeners: dict[int, Listener], sockets: dict[int, socket.socket], at: float,
        told: Told,
    ) -> None:
        """Accept from these and no others; of those that are new here are the sockets. It is told
        when those that went are closed."""

    def drain_routes(self, seconds: dict[str, float], at: float) -> None:
        """Tell the sessions of these routes goodbye, over so many seconds."""


@dataclass(slots=True)
class _Prepared:
    """What a commit swaps in."""

    table: Table
    routes: RouteTable
    endpoints: Endpoints
    listeners: dict[int, Listener]
    sockets: dict[int, socket.socket]
    max_sessions: int
    slots: Slots


class Swapping:
    """Obeys the orders of a reload. `lane` brings listening sockets; `make_pool` makes a pool;
    `say` answers what takes its time."""

    def __init__(
        self, host: Host, desk: Desk, report: Report, lane: socket.socket, counters: Counters,
        make_pool: PoolMaker, say: Callable[[Message], None],
    ) -> None:
        self._host = host
        self._desk = desk
        self._report = report
        self._lane = lane
        self._counters = counters
        self._make_pool = make_pool
        self._say = say
        self._next: _Prepared | None = None

    @property
    def orders(self) -> dict[str, Order]:
        """What is done for each word of the supervisor."""
        return {
            "prepare": self._prepare,
            "commit": self._commit,
            "forget": self._forget,
        }

    def _prepare(self, message: Message, at: float) -> Message:
        self._forget(message, at)
        try:
            sockets = channel.receive_sockets(self._lane)
        except OSError as error:
            return {"is": "refused", "error": error.strerror or str(error)}
        table = reused(channel.unpack_table(message["table"]), self._desk.table)
        listeners = listeners_of(table, message)
        wanted = set(listeners) - set(self._host.listening)
        _close({number: each for number, each in sockets.items() if number not in wanted})
        sockets = {number: each for number, each in sockets.items() if number in wanted}
        missing = sorted(wanted - set(sockets))
        if missing:
            _close(sockets)
            return {"is": "refused", "error": f"listening sockets have not come: {missing}"}
        self._next = _Prepared(
            table, RouteTable(table.routes),
            channel.unpack_endpoints(table, message["endpoints"]), listeners, sockets,
            message["max_sessions"], Slots.from_json(message["slots"]),
        )
        return {"is": "prepared"}

    def _commit(self, message: Message, at: float) -> None:
        desk, prepared = self._desk, self._next
        assert prepared is not None, "nothing is prepared"
        self._next = None
        touched = compare(desk.table, prepared.table).touched()
        self._counters.use(prepared.slots)
        desk.pools = self._pools(prepared)
        desk.routes = prepared.routes
        desk.table = prepared.table
        desk.limits.max_sessions = prepared.max_sessions
        gateway = prepared.table.gateway
        self._report.change(style=gateway.log, log_query=gateway.log_query)
        answer = {"is": "committed", "id": message["id"]}
        self._host.listen_on(
            prepared.listeners, prepared.sockets, at, lambda: self._say(answer)
        )
        drains = {name: one.drain for name, one in touched.items() if one.drain}
        if drains:
            self._host.drain_routes(drains, at)

    def _forget(self, _message: Message, _at: float) -> None:
        """What was prepared is not wanted."""
        if self._next is not None:
            _close(self._next.sockets)
            self._next = None

    def _pools(self, prepared: _Prepared) -> dict[str, Pool]:
        pools: dict[str, Pool] = {}
        for name, upstream in prepared.table.upstreams.items():
            known = self._desk.pools.get(name)
            if known is not None and known.upstream == upstream:
                pool = known
            else:
                pool = self._make_pool(upstream)
                if known is not None:
                    pool.endpoints = list(known.endpoints)
            pool.set_endpoints(prepared.endpoints[name])
            pools[name] = pool
        return pools


def listeners_of(table: Table, message: Message) -> dict[int, Listener]:
    """The listeners that a message speaks of, by their numbers; each with the address where it
    really is, which records name, where the table says port 0."""
    return {
        said["index"]: replace(listener, address=channel.unpack_address(said["address"]))
        for listener, said in zip(table.listeners, message["listeners"], strict=True)
    }


def _close(sockets: dict[int, socket.socket]) -> None:
    for each in sockets.values():
        each.close()
