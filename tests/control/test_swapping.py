"""A worker's end of a reload: prepared whole, swapped in at once, given back if it is forgotten."""

import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.control import channel
from gateway.control.accepting import Told
from gateway.control.counters import Counters
from gateway.control.report import Report
from gateway.control.shared import SharedMemory, Slots
from gateway.control.swapping import Swapping
from gateway.events import Address
from gateway.limits import Limits
from gateway.protocol.desk import Desk
from gateway.routing import RouteTable
from gateway.table import EndpointEntry, GatewaySettings, Listener, Route, Table, Upstream
from gateway.upstreams import Pool

HERE = Address(host="127.0.0.1", port=1)
THERE = Address(host="10.0.0.1", port=9)
ELSEWHERE = Address(host="10.0.0.2", port=9)
ENTRY = EndpointEntry(url="ws://room", host="room", port=9)
ROOM = Upstream(name="room", scheme="ws", entries=(ENTRY,))
CHAT = Route(name="chat", upstream="room", path="/chat")
TABLE = Table(listeners=(Listener(address=HERE),), routes=(CHAT,), upstreams={"room": ROOM})


class Host:
    """Notes what a worker would do."""

    def __init__(self) -> None:
        self.listening: set[int] = {0}
        self.listeners: dict[int, Listener] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.drains: dict[str, float] = {}

    def listen_on(
        self, listeners: dict[int, Listener], sockets: dict[int, socket.socket], at: float,
        told: Told,
    ) -> None:
        self.listeners, self.sockets = listeners, sockets
        self.listening = set(listeners)
        self.closed = told

    def drain_routes(self, seconds: dict[str, float], at: float) -> None:
        self.drains = seconds


class Rig:
    """A worker's desk, its swapping, and the supervisor's end of the lane."""

    def __init__(self) -> None:
        self.host = Host()
        self.memory = SharedMemory(SharedMemory.create())
        self.counters = Counters(self.memory, 0, Slots())
        pool = self.make_pool(ROOM)
        pool.set_endpoints([(ENTRY, THERE)])
        self.desk = Desk(
            table=TABLE, routes=RouteTable(TABLE.routes), pools={"room": pool},
            limits=Limits(10), random_bytes=bytes,
        )
        self.report = Report()
        self.said: list[dict[str, Any]] = []
        self.lane, self.far_lane = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far_lane.setblocking(False)
        self.orders = Swapping(
            self.host, self.desk, self.report, self.far_lane, self.counters, self.make_pool,
            self.said.append,
        ).orders

    def make_pool(self, upstream: Upstream) -> Pool:
        """A pool of its own."""
        return Pool(upstream, random.Random(1), [], self.counters)

    def send(self, number: int) -> None:
        """A listening socket of this number comes down the lane."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            channel.send_sockets(self.lane, {number: listening})

    def prepare(
        self, table: Table, *where: Address, numbers: tuple[int, ...] = (0,)
    ) -> dict[str, Any]:
        """Order to prepare this table, with the room at these addresses."""
        table = replace(table, listeners=table.listeners * len(numbers))
        endpoints = {"room": [(table.upstreams["room"].entries[0], one) for one in where]}
        answer = self.orders["prepare"]({
            "table": channel.pack_table(table),
            "endpoints": channel.pack_endpoints(table, endpoints),
            "listeners": [{"index": number, "address": channel.pack_address(HERE)}
                          for number in numbers],
            "slots": {"routes": {}, "endpoints": {}}, "max_sessions": 7,
        }, 0.0)
        assert answer is not None
        return answer

    def commit(self) -> None:
        """Order what was prepared; it is answered when the listeners that went are closed."""
        assert self.orders["commit"]({"id": 5}, 0.0) is None
        assert self.said == []
        self.host.closed()
        assert self.said == [{"is": "committed", "id": 5}]
        self.said.clear()

    def close(self) -> None:
        """Give everything back."""
        for each in (self.lane, self.far_lane, *self.host.sockets.values()):
            each.close()
        self.report.close()
        self.memory.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """See `Rig`."""
    one = Rig()
    yield one
    one.close()


def changed(**route: Any) -> Table:
    """The table with another chat."""
    return replace(TABLE, routes=(replace(CHAT, **route),))


def test_prepare_changes_nothing_and_commit_all(rig: Rig) -> None:
    """The desk is the old one until then."""
    table = replace(changed(max_message=9), gateway=GatewaySettings(log="json"))
    assert rig.prepare(table, THERE, ELSEWHERE) == {"is": "prepared"}
    assert rig.desk.table == TABLE
    assert [one.address for one in rig.desk.pools["room"].endpoints] == [THERE]
    rig.commit()
    assert rig.desk.table == table
    match = rig.desk.routes.match("x", "/chat", "", [])
    assert match is not None
    assert match.route.max_message == 9
    assert [one.address for one in rig.desk.pools["room"].endpoints] == [THERE, ELSEWHERE]
    assert rig.desk.limits.max_sessions == 7
    assert rig.report.style == "json"
    assert rig.host.drains == {}


@pytest.mark.parametrize("balance", ["least-connections", "hash"])
def test_an_address_that_stays_keeps_its_endpoint(rig: Rig, balance: str) -> None:
    """With its counts and its rest, also where the upstream around it is another."""
    (before,) = rig.desk.pools["room"].endpoints
    before.begin()
    before.failed(0.0)
    table = replace(TABLE, upstreams={"room": replace(ROOM, balance=balance)})
    rig.prepare(table, THERE)
    rig.commit()
    (after,) = rig.desk.pools["room"].endpoints
    assert after is before
    assert (after.active, after.rest) == (1, 1.0)
    assert rig.desk.pools["room"].upstream.balance == balance
    before.ended()


def test_what_is_forgotten_leaves_nothing(rig: Rig) -> None:
    """The sockets that came are closed; the next reload brings its own."""
    rig.send(1)
    assert rig.prepare(TABLE, THERE, numbers=(0, 1)) == {"is": "prepared"}
    rig.orders["forget"]({}, 0.0)
    assert rig.prepare(TABLE, THERE, numbers=(0, 1))["is"] == "refused"
    assert rig.desk.table is TABLE


def test_a_socket_that_has_not_come_is_a_refusal(rig: Rig) -> None:
    """And those that have come are given back."""
    rig.send(5)
    answer = rig.prepare(TABLE, THERE, numbers=(0, 1))
    assert answer == {"is": "refused", "error": "listening sockets have not come: [1]"}


def test_listeners_are_handed_over(rig: Rig) -> None:
    """New ones with their sockets, under the addresses where they really are."""
    rig.send(1)
    rig.prepare(replace(TABLE, listeners=(Listener(address=HERE, head_timeout=1.0),)), THERE,
                numbers=(1,))
    rig.commit()
    assert list(rig.host.listeners) == list(rig.host.sockets) == [1]
    assert rig.host.listeners[1] == Listener(address=HERE, head_timeout=1.0)


def test_only_routes_that_say_so_are_drained(rig: Rig) -> None:
    """Over the time that the new table says, or of one that goes the old one's."""
    rig.prepare(changed(max_message=9, reload_drain=60.0), THERE)
    rig.commit()
    assert rig.host.drains == {"chat": 60.0}
    rig.prepare(changed(name="other", path="/other"), THERE)
    rig.commit()
    assert rig.host.drains == {"chat": 60.0}
    rig.prepare(changed(name="other", path="/elsewhere"), THERE)
    rig.host.drains = {}
    rig.commit()
    assert rig.host.drains == {}
