"""A scripted engine and scripted sessions, and a worker between them."""

import os
import socket
from collections.abc import Callable
from typing import Any, cast

from gateway import events
from gateway.control.channel import Lines, Message, encode
from gateway.control.counters import Counters
from gateway.control.listening import Bound
from gateway.control.report import Report
from gateway.control.worker import Worker
from gateway.engine.contract import Deliver, Stats
from gateway.events import (
    Accepted,
    AccessRecord,
    Address,
    Cause,
    Command,
    Event,
    LegCounts,
    Link,
    RelayRules,
    Side,
    TlsClient,
    TlsServer,
)
from gateway.limits import Limits
from gateway.protocol.desk import Desk
from gateway.protocol.session import Session
from gateway.routing import RouteTable
from gateway.table import GatewaySettings, Listener, Route, Table

CLIENT = Address(host="192.0.2.1", port=5000)
LOCAL = Address(host="127.0.0.1", port=8080)
UPSTREAM = Address(host="10.0.0.1", port=9000)
ECHO = Address(builtin="echo")
OUTWARD = TlsClient(server_name="app.test")


class ScriptedEngine:
    """Notes every verb; events are delivered by the test."""

    name = "scripted"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.time = 100.0
        self.idles: dict[Link, float] = {}       # of those that are relayed
        self.crowded = False                     # somebody waits in the backlog
        self.pair_error: OSError | None = None
        self.deliver_when_run: Callable[[Deliver], None] = lambda _: None
        self._number = 0

    def _new(self) -> int:
        self._number += 1
        return self._number

    def now(self) -> float:
        return self.time

    def listen(self, listening: socket.socket) -> int:
        listening.close()
        return self._new()

    def unlisten(self, listener: int) -> None:
        self.calls.append(("unlisten", listener))

    def waits(self, _listener: int) -> bool:
        return self.crowded

    def adopt(self, inherited: socket.socket) -> Link:
        self.adopted = inherited
        return self._new()

    def pair(self) -> tuple[Link, Link]:
        if self.pair_error:
            raise self.pair_error
        made = self._new(), self._new()
        self.calls.append(("pair", *made))
        return made

    def connect(self, address: Address, source: str = "") -> Link:
        link = self._new()
        self.calls.append(("connect", link, address, source) if source else
                          ("connect", link, address))
        return link

    def read(self, link: Link) -> None:
        self.calls.append(("read", link))

    def hold(self, link: Link) -> None:
        self.calls.append(("hold", link))

    def send(self, link: Link, data: bytes) -> None:
        self.calls.append(("send", link, data))

    def secure(
        self, link: Link, settings: TlsServer | TlsClient, received: bytes = b""
    ) -> None:
        self.calls.append(("secure", link, settings, received))

    def finish(self, link: Link) -> None:
        self.calls.append(("finish", link))

    def close(self, link: Link, last: bytes = b"") -> None:
        self.calls.append(("close", link, last) if last else ("close", link))

    def reset(self, link: Link) -> None:
        self.calls.append(("reset", link))

    def relay(
        self,
        client: Link,
        upstream: Link,
        rules: RelayRules,
        from_client: bytes = b"",
        from_upstream: bytes = b"",
    ) -> None:
        self.calls.append(("relay", client, upstream, from_client, from_upstream))

    def end(self, client: Link, cause: Cause, rules: RelayRules | None = None) -> None:
        self.calls.append(("end", client, cause, *([rules] if rules else [])))

    def inspect(self, client: Link) -> tuple[LegCounts, LegCounts] | None:
        return None

    def idle(self, client: Link) -> float | None:
        return self.idles.get(client)

    def set_timer(self, link: Link, name: str, at: float) -> None:
        self.calls.append(("set_timer", link, name, at))

    def clear_timer(self, link: Link, name: str) -> None:
        self.calls.append(("clear_timer", link, name))

    def run(self, deliver: Deliver) -> None:
        self.deliver_when_run(deliver)

    def stop(self) -> None:
        self.calls.append(("stop",))

    def stats(self) -> Stats:
        return Stats()


class ScriptedSession:
    """Answers events, by side and type, with the commands that the test wrote down."""

    def __init__(self, *, number: str, accepted: Accepted, listener: Listener, desk: Desk) -> None:
        self.number = number
        self.listener = listener
        self.seen: list[tuple[Side, Event]] = []
        self.script: dict[tuple[Side, type[Event]], list[Command]] = {}
        self.record: AccessRecord | None = None
        self.over = False
        self.started: list[Command] = [events.Read(Side.CLIENT)]
        self.on_drain: list[Command] = [events.End(Cause.DRAIN)]
        self.on_kill: list[Command] = [events.Reset(Side.CLIENT)]
        self.bug: type[Event] | None = None

    def start(self) -> list[Command]:
        return self.started

    def handle(self, side: Side, event: Event) -> list[Command]:
        self.seen.append((side, event))
        if self.bug is type(event):
            self.bug = None
            raise RuntimeError("a bug\nof two lines")
        if isinstance(event, events.Closed) and side is Side.CLIENT:
            self.over = True
        return self.script.get((side, type(event)), [])

    def drain(self, now: float) -> list[Command]:
        self.drained = now
        return self.on_drain

    def kill(self, now: float) -> list[Command]:
        self.killed = now
        return self.on_kill

    def types(self, side: Side) -> list[type[Event]]:
        return [type(event) for seen, event in self.seen if seen is side]


class Stage:
    """A worker with its scripted surroundings."""

    def __init__(
        self, *, max_sessions: int = 10, drain: float = 30.0, routes: tuple[Route, ...] = (),
        secure: TlsServer | None = None, counters: Counters | None = None,
    ) -> None:
        self.engine = ScriptedEngine()
        self.sessions: list[ScriptedSession] = []
        self.listener = Listener(
            address=Address(host="127.0.0.1"), max_head=9999, secure=secure
        )
        self.table = Table(
            gateway=GatewaySettings(drain=drain), listeners=(self.listener,), routes=routes
        )
        self.desk = Desk(
            table=self.table, routes=RouteTable(()), pools={}, limits=Limits(max_sessions),
            random_bytes=os.urandom,
        )
        self.out, self._out = os.pipe()
        self.err, self._err = os.pipe()
        for descriptor in (self.out, self.err):
            os.set_blocking(descriptor, False)
        self.report = Report(output=self._out, errors=self._err)
        bound = Bound(self.listener, socket.socket(), LOCAL)
        self.channel, self.supervisor = socket.socketpair()
        self.worker = Worker(
            self.engine, self.desk, self.report, {0: bound}, self.channel, counters=counters,
            make_session=cast("Callable[..., Session]", self._make),
        )
        self.prepare: Callable[[ScriptedSession], None] = lambda _: None

    def _make(self, **arguments: Any) -> ScriptedSession:
        session = ScriptedSession(**arguments)
        self.sessions.append(session)
        self.prepare(session)
        return session

    def start(self) -> None:
        self.worker.start()
        self.own, _, self.line, self.listening = 1, 2, 3, 4
        self.engine.calls.clear()

    def deliver(self, *batch: Event) -> list[tuple[Any, ...]]:
        """The verbs that this batch led to."""
        self.engine.calls.clear()
        self.worker.deliver(list(batch))
        return list(self.engine.calls)

    def accept(self, at: float = 100.0) -> tuple[Link, ScriptedSession]:
        link = self.engine._new()
        self.deliver(Accepted(at, link, self.listening, CLIENT, LOCAL))
        return link, self.sessions[-1]

    def connect(self, link: Link, session: ScriptedSession) -> Link:
        """Have the session connect an upstream."""
        calls = self.order(link, session, events.Connect(UPSTREAM))
        assert calls[0][0] == "connect"
        upstream: Link = calls[0][1]
        return upstream

    def order(
        self, link: Link, session: ScriptedSession, *commands: Command
    ) -> list[tuple[Any, ...]]:
        """Have the session give these commands."""
        session.script[(Side.CLIENT, events.Cleared)] = list(commands)
        return self.deliver(events.Cleared(self.engine.time, link))

    def ordered(self, do: str, at: float = 100.0, **more: Any) -> list[tuple[Any, ...]]:
        return self.deliver(self.order_of(do, at, **more))

    def order_of(self, do: str, at: float = 100.0, **more: Any) -> Event:
        message = {"do": do, "seconds": 7.0, "cause": "SIGTERM", "others": False, "why": "SIGINT"}
        return events.Received(at, self.line, encode(message | more))

    def told(self) -> list[Message]:
        """What the worker has just said to its supervisor."""
        said = [call[2] for call in self.engine.calls if call[:2] == ("send", self.line)]
        return Lines().feed(b"".join(said))

    def drained(self, at: float = 100.0) -> list[tuple[Any, ...]]:
        """The order, and the turn in which who waits is still accepted: nobody was."""
        calls = self.ordered("drain", at)
        return calls + self.deliver(events.TimedOut(at, self.own, "unlisten"))

    def said(self) -> str:
        self.report.flush()
        try:
            return os.read(self.err, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def recorded(self) -> str:
        self.report.flush()
        try:
            return os.read(self.out, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        self.report.close()
        self.channel.close()
        self.supervisor.close()
        for descriptor in (self.out, self._out, self.err, self._err):
            os.close(descriptor)


def record(session: str = "s") -> AccessRecord:
    return AccessRecord(session=session, client="c", peer="p", listener="l")
