"""Conversations with a session: an event in, the exact commands out.

    play = begin(route={"connect_timeout": 3.0})
    play.received(C, UPGRADE).says(Connect(A), SetTimer("connect", play.now + 3.0))
    play.lost(C).says(play.record(status=499, ...), Reset(U))
    play.ends()

A play stands where worker and engine stand, and keeps their promises (gateway/engine/contract.py):

- It refuses to report what no engine may: bytes of a held link, an event behind a FIN, a timer
  that is not set. And it refuses commands that a worker may not be given: to send behind a FIN, to
  connect twice, to relay with a timer of the session's still running.
- What a session says must be looked at before the next event, each command of it, in order. Only
  `ClearTimer` for a timer that is not set is left out: it does nothing.
- A conversation goes on to its end: both links gone, nothing counted any more. `Stage.check`
  demands it, after the test.
"""

import dataclasses
import difflib
import random
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Any

from gateway import events
from gateway.errors import Fault, Handshake
from gateway.events import (
    Accepted,
    AccessRecord,
    Address,
    Cause,
    Command,
    Event,
    KeyPair,
    LegCounts,
    Side,
    TlsClient,
    TlsServer,
)
from gateway.limits import Limits
from gateway.protocol.desk import Desk
from gateway.protocol.life import State
from gateway.protocol.session import ALWAYS, TRANSITIONS, Session
from gateway.routing import RouteTable
from gateway.table import EndpointEntry, GatewaySettings, Listener, Origin, Route, Table, Upstream
from gateway.upstreams import Pool

C, U = Side.CLIENT, Side.UPSTREAM
START = 1000.0                          # of each play; times are chosen to be exact in binary
PEER = Address(host="192.0.2.7", port=50001)
LISTENER = Listener(address=Address(host="127.0.0.1", port=8080))
# With TLS: the certificates, and what an upstream is told.
SERVER = TlsServer(certificates=(
    KeyPair(chain=b"a", key=b"", names=("a.test", "*.a.test")),
    KeyPair(chain=b"b", key=b"", names=("b.test",)),
))
SECURED = Listener(address=Address(host="127.0.0.1", port=8443), secure=SERVER)
OUTWARD = TlsClient(server_name="app.test")
PAGE = b"<p>a page</p>"
NUMBER = "play-1"
MAX_SESSIONS = 5

KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="     # RFC 6455 1.3
OUR_KEY, OUR_ACCEPT = b"AAECAwQFBgcICQoLDA0ODw==", b"Bz3qJYTGdOe8gUSpLosEdiLKDrk="

# Where each play went: a state, what happened there, the state that it led to. And what was handled
# by `ALWAYS`.
WENT: set[tuple[State, str, State]] = set()
WENT_ALWAYS: set[tuple[Side, type[Event]]] = set()


def way_name(side: Side, event: type[Event]) -> str:
    """What happens, in words: "client Received"."""
    return f"{side.name.lower()} {event.__name__}"


def endpoint(number: int) -> Address:
    """Where the upstream's endpoint of this number is, from 1 on."""
    return Address(host=f"10.0.0.{number}", port=9000)


# --- What is said on the wire ------------------------------------------------------------------


def head(start: bytes, *lines: bytes) -> bytes:
    """A head."""
    return b"\r\n".join([start, *lines, b"", b""])


def request(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"a.test") -> bytes:
    """A request that asks for no upgrade."""
    return head(start, b"Host: " + host, *lines)


def upgrade(
    *more: bytes,
    path: bytes = b"/chat",
    method: bytes = b"GET",
    connection: bytes = b"Connection: Upgrade",
    protocol: bytes = b"Upgrade: websocket",
    version: bytes = b"Sec-WebSocket-Version: 13",
    key: bytes = b"Sec-WebSocket-Key: " + KEY,
) -> bytes:
    """A request that does. Give what is wrong in it; b"" leaves the field away."""
    lines = [b"Host: a.test", connection, protocol, version, key, *more]
    return head(b"%b %b HTTP/1.1" % (method, path), *[line for line in lines if line])


def asked(*more: bytes, path: bytes = b"/chat", client: bytes = b"192.0.2.7") -> bytes:
    """The gateway's own handshake with an upstream; `more` is what passes of the client's."""
    return head(
        b"GET %b HTTP/1.1" % path, b"Host: a.test", b"Upgrade: websocket", b"Connection: Upgrade",
        b"Sec-WebSocket-Key: " + OUR_KEY, b"Sec-WebSocket-Version: 13", *more,
        b"X-Forwarded-For: " + client, b"X-Forwarded-Proto: http", b"X-Forwarded-Host: a.test",
        b"Forwarded: for=%b;host=a.test;proto=http" % client,
    )


def accepted(*more: bytes, accept: bytes = OUR_ACCEPT) -> bytes:
    """A 101; the upstream's own, or with `accept=ACCEPT` ours to the client."""
    return head(
        b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept, *more,
    )


def refusal(status: bytes, sentence: str, *more: bytes, closes: bool = True) -> bytes:
    """An answer of the gateway's own with a sentence in it."""
    body = status + f"\n{sentence}\nSession {NUMBER}\n".encode()
    lines = [b"Content-Type: text/plain; charset=utf-8", *more]
    if closes:
        options = [line.removeprefix(b"Connection: ") for line in lines if line[:4] == b"Conn"]
        lines = [line for line in lines if line[:4] != b"Conn"]
        lines.append(b"Connection: " + b", ".join([*options, b"close"]))
    lines.append(b"Content-Length: %d" % len(body))
    return head(b"HTTP/1.1 " + status, *lines) + body


# --- Placeholders ------------------------------------------------------------------------------


class Hole:
    """Stands for a value that a test does not know before; equals anything once, and keeps it."""

    def __init__(self) -> None:
        self.value: Any = None
        self._is_filled = False

    def __eq__(self, other: object) -> bool:
        if not self._is_filled:
            self.value, self._is_filled = other, True
        return bool(self.value == other)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<hole: {self.value!r}>" if self._is_filled else "<hole>"


def hole() -> Any:
    """A `Hole` that the type checker lets stand anywhere."""
    return Hole()


# --- How it is shown ---------------------------------------------------------------------------


def shown(command: object) -> list[str]:
    """A command or event, a line for each field that says something; bytes line by line."""
    assert dataclasses.is_dataclass(command)
    lines = [type(command).__name__]
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if field.name in ("link", "at") and isinstance(command, Event):
            continue
        if value == field.default and not isinstance(value, Hole):
            continue
        if isinstance(value, bytes):
            pieces = value.split(b"\r\n")
            ended = [piece + b"\r\n" for piece in pieces[:-1]]
            lines += [f"    {field.name} {piece!r}" for piece in (*ended, pieces[-1]) if piece]
        elif dataclasses.is_dataclass(value) and not isinstance(value, Address):
            lines += [f"    {line}" for line in shown(value)]
        else:
            lines.append(f"    {field.name}={getattr(value, 'name', value)!r}")
    return lines


def difference(expected: Iterable[Command], said: Iterable[Command]) -> str:
    """What was expected (-) and what was said (+), side by side."""
    one = [line for command in expected for line in shown(command)]
    two = [line for command in said for line in shown(command)]
    return "\n".join(line.rstrip() for line in difflib.ndiff(one, two) if line[:1] != "?")


class Said:
    """What a session said to one event."""

    def __init__(self, play: "Play", commands: list[Command]) -> None:
        self._play = play
        self.commands = commands
        self.looked_at = not commands

    def says(self, *expected: Command) -> None:
        """It said exactly this."""
        __tracebackhide__ = True
        self.looked_at = True
        if list(expected) != self.commands:
            self._play.fail("\n" + difference(expected, self.commands))

    def says_nothing(self) -> None:
        """It said nothing."""
        __tracebackhide__ = True
        self.says()


# --- The stage ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Wire:
    """One of the two links, as the engine has it."""

    state: str = "none"                  # none, connecting, open, closing (ordered), gone
    reading: bool = False
    finished: bool = False               # its FIN was delivered
    finishing: bool = False              # ours was ordered
    clogged: bool = False
    securing: bool = False               # its handshake is under way
    sent: bytes = b""

    @property
    def is_open(self) -> bool:
        """It is there, and no end of it was ordered."""
        return self.state == "open"


class Play:
    """One client connection; see the module's docstring. Its verbs are what may happen to it."""

    def __init__(self, desk: Desk, listener: Listener, peer: Address) -> None:
        self.desk = desk
        self.now = START
        self.wires = {C: Wire("open"), U: Wire()}
        self.timers: dict[str, float] = {}
        self.records: list[AccessRecord] = []
        self.relayed: events.Relay | None = None
        self.broken = False
        self.story: list[str] = []
        self._said: Said | None = None
        self._peer = peer
        self._listener = listener
        assert desk.limits.opened()
        accepted = Accepted(START, 1, 1, peer, LISTENER.address)
        self.session = Session(number=NUMBER, accepted=accepted, listener=listener, desk=desk)

    # --- What may happen ----------------------------------------------------------------------

    def starts(self) -> Said:
        """The worker has made the session."""
        return self._take("start", self.session.start)

    def wait(self, seconds: float) -> None:
        """Time goes by; no timer may be due by then."""
        self.now += seconds
        late = [name for name, at in self.timers.items() if at < self.now]
        assert not late, f"due before: {late}"

    def received(self, side: Side, data: bytes, *, held: bool = False) -> Said:
        """Bytes; `held` says that they were read in the very turn in which they were held."""
        wire = self._reads(side, held)
        assert data
        del wire
        return self._event(side, events.Received(self.now, side, data))

    def finished(self, side: Side, *, held: bool = False) -> Said:
        """FIN."""
        self._reads(side, held).finished = True
        return self._event(side, events.Finished(self.now, side))

    def lost(
        self, side: Side, fault: Fault = Fault.RESET, detail: str = "",
        handshake: Handshake | None = None,
    ) -> Said:
        """The link is gone, and nobody ordered it."""
        assert self.wires[side].is_open and self.relayed is None
        assert self.wires[side].securing or handshake is None
        return self._gone(side, fault, detail, handshake)

    def secured(self, side: Side, **facts: Any) -> Said:
        """Its handshake is done."""
        assert self.wires[side].is_open and self.wires[side].securing
        self.wires[side].securing = False
        return self._event(side, events.Secured(self.now, side, **facts))

    def clogged(self, side: Side = C) -> Said:
        """Too much is queued for this link."""
        wire = self.wires[side]
        assert wire.is_open and not wire.clogged and wire.sent
        wire.clogged = True
        return self._event(side, events.Clogged(self.now, side))

    def cleared(self, side: Side = C) -> Said:
        """It took most of that."""
        wire = self.wires[side]
        assert wire.is_open and wire.clogged
        wire.clogged = False
        return self._event(side, events.Cleared(self.now, side))

    def timed_out(self, name: str) -> Said:
        """This timer's time has come."""
        assert name in self.timers, f"no timer {name}, but {sorted(self.timers)}"
        at = self.timers.pop(name)
        self.wait(max(0.0, at - self.now))
        return self._event(C, events.TimedOut(self.now, C, name))

    def connected(self) -> Said:
        """The upstream's link is there."""
        assert self.wires[U].state == "connecting"
        self.wires[U].state = "open"
        return self._event(U, events.Connected(self.now, U))

    def connect_failed(self, fault: Fault = Fault.REFUSED) -> Said:
        """It will never be. Its `Closed` reaches no session: the worker forgets it."""
        assert self.wires[U].state == "connecting"
        self.wires[U] = Wire()
        return self._event(U, events.ConnectFailed(self.now, U, fault))

    def connect_lost(self, fault: Fault = Fault.RESET) -> Said:
        """A link that is open at once, as a pair's is, is gone before it was said to be there."""
        assert self.wires[U].state == "connecting"
        return self._gone(U, fault)

    def relay_ended(
        self,
        cause: Cause,
        side: Side | None = None,
        detail: str = "",
        counts: tuple[LegCounts, LegCounts] = (LegCounts(), LegCounts()),
    ) -> Said:
        """The engine has ended the relay; both links are gone with it: see `ends`."""
        assert self.relayed is not None
        self.relayed = None
        for wire in self.wires.values():
            wire.state = "closing"
        ended = events.RelayEnded(
            self.now, C, upstream=U, cause=cause, side=side, detail=detail, counts=counts
        )
        return self._event(C, ended)

    def closed(self, side: Side) -> Said:
        """The end that was ordered."""
        assert self.wires[side].state == "closing"
        return self._gone(side, None)

    def drains(self) -> Said:
        """The worker begins a drain."""
        self.desk.draining = True
        before = self.session.state
        said = self._take("drain", lambda: self.session.drain(self.now))
        WENT.add((before, "drain", self.session.state))
        return said

    def is_killed(self) -> Said:
        """The worker ends all at once."""
        self.desk.draining = True
        before = self.session.state
        said = self._take("kill", lambda: self.session.kill(self.now))
        WENT.add((before, "kill", self.session.state))
        return said

    def is_dismissed(self, code: int, reason: str) -> Said:
        """The worker ends this one by order."""
        return self._take("dismiss", lambda: self.session.dismiss(self.now, code, reason))

    def ends(self) -> None:
        """The ends that were ordered come, and that is all."""
        __tracebackhide__ = True
        for side in (C, U):
            if self.wires[side].state == "closing":
                self.closed(side).says_nothing()
        assert self.session.over

    # --- What is expected -----------------------------------------------------------------------

    def record(self, **fields: Any) -> events.Record:
        """The access record that is written now: these fields, and what all records have."""
        common: dict[str, Any] = {
            "session": NUMBER, "client": self._peer.host or "unix",
            "peer": self._peer.host or "unix", "listener": str(self._listener.address),
            "started": START, "ended": self.now,
        }
        return events.Record(AccessRecord(**(common | fields)))

    @property
    def cut(self) -> tuple[LegCounts, LegCounts]:
        """What the record of an answer that was cut has for `counts`."""
        return LegCounts(cut=True), LegCounts()

    def last_word(self, seconds: float = 5.0) -> tuple[Command, ...]:
        """Half-close, and read on for so long: what follows a last word."""
        return events.Finish(C), events.Read(C), events.SetTimer("linger", self.now + seconds)

    def leaves(self) -> None:
        """The client has read the last word, and closes too."""
        __tracebackhide__ = True
        assert self.state is State.LINGERING
        self.finished(C).says(events.Close(C))
        self.ends()

    @property
    def state(self) -> State:
        """Where the session is."""
        return self.session.state

    def fail(self, why: str) -> None:
        """Say what is wrong, and what came before."""
        __tracebackhide__ = True
        self.broken = True
        raise AssertionError("\n".join([why, "", "after:", *self.story[-12:]]))

    # --- Inside ---------------------------------------------------------------------------------

    def _reads(self, side: Side, held: bool) -> Wire:
        wire = self.wires[side]
        assert wire.is_open and not wire.finished and self.relayed is None
        assert not wire.securing
        assert wire.reading is not held, "is it read?"
        return wire

    def _gone(
        self, side: Side, fault: Fault | None, detail: str = "",
        handshake: Handshake | None = None,
    ) -> Said:
        self.wires[side].state = "gone"
        if side is C:
            self.timers.clear()
            self.desk.limits.closed()
        return self._event(side, events.Closed(self.now, side, fault, detail, handshake))

    def _event(self, side: Side, event: Event) -> Said:
        before = self.session.state
        line = " ".join(line.strip() for line in shown(event))
        said = self._take(f"{side.name} {line[:150]}", lambda: self.session.handle(side, event))
        if (before, side, type(event)) in TRANSITIONS:
            WENT.add((before, way_name(side, type(event)), self.session.state))
        else:
            assert (side, type(event)) in ALWAYS, "it is in no table"
            WENT_ALWAYS.add((side, type(event)))
        return said

    def _take(self, what: str, act: Callable[[], list[Command]]) -> Said:
        if self._said is not None and not self._said.looked_at:
            self.fail("nobody looked at:\n" + difference((), self._said.commands))
        self.story.append(f"{self.now - START:8.3f}  {what}")
        kept = [one for one in act() if self._obey(one)]
        self.story += [f"{'':8}      {' '.join(map(str.strip, shown(one)))[:150]}" for one in kept]
        self._said = Said(self, kept)
        return self._said

    def _obey(self, command: Command) -> bool:
        """Do as worker and engine do. False for what does nothing."""
        if isinstance(command, events.SetTimer):
            assert self.wires[C].is_open and command.at >= self.now
            self.timers[command.name] = command.at
        elif isinstance(command, events.ClearTimer):
            return self.timers.pop(command.name, None) is not None
        elif isinstance(command, events.Record):
            self.records.append(command.record)
        elif isinstance(command, events.Connect):
            assert self.wires[U].state in ("none", "gone"), "a second upstream link"
            self.wires[U] = Wire("connecting")
        elif isinstance(command, events.Relay):
            assert all(wire.is_open and not wire.finishing for wire in self.wires.values())
            assert not self.timers, f"left in a relay: {self.timers}"
            self.relayed = command
        elif isinstance(command, events.End):
            assert self.relayed is not None
        else:
            self._obey_link(command)
        return True

    def _obey_link(self, command: Command) -> None:
        """What concerns one link."""
        side: Side = getattr(command, "side")  # noqa: B009 - all that are left have one
        wire = self.wires[side]
        if isinstance(command, events.Reset):
            assert wire.state in ("connecting", "open", "closing"), "nothing to reset"
            wire.state = "closing" if side is C else "none"
            if side is C:
                self.timers.clear()
            return
        assert wire.is_open, f"{command} of a link that is {wire.state}"
        if isinstance(command, events.Secure):
            assert not wire.sent and not wire.securing
            wire.securing = True
        elif isinstance(command, events.Send):
            assert command.data and not wire.finishing and not wire.securing
            wire.sent += command.data
        elif isinstance(command, events.Read | events.Hold):
            wire.reading = isinstance(command, events.Read)
        elif isinstance(command, events.Finish):
            assert not wire.finishing
            wire.finishing = True
        else:
            assert isinstance(command, events.Close)
            wire.state = "closing"
            self.timers.clear()

    def check(self) -> None:
        """It was driven to its end, and nothing is left."""
        if self.broken:
            return
        assert self._said is None or self._said.looked_at, "nobody looked at the last commands"
        assert self.session.over, f"left in {self.session.state.name}"
        assert self.wires[C].state == "gone"
        assert self.wires[U].state in ("none", "gone"), "the upstream's link was left open"
        assert not self.timers


class Stage:
    """Makes plays, and checks after a test that each was played to its end."""

    def __init__(self) -> None:
        self._plays: list[Play] = []

    def __call__(
        self,
        *,
        route: dict[str, Any] | None = None,
        endpoints: int = 1,
        listener: Listener = LISTENER,
        peer: Address = PEER,
        trusted: str = "",
        hash_on: str = "",
        desk: Desk | None = None,
        outward: TlsClient | None = None,
    ) -> Play:
        """A client that was accepted; its session has said its first commands.

        `route` changes the routes `chat` and `raw`; `endpoints` is how many their upstreams have;
        `trusted` is a network of proxies that are believed, `hash_on` what their choice goes by;
        `desk` is another play's, to share it; `outward` gives the upstreams TLS.
        """
        desk = desk or make_desk(route or {}, endpoints, trusted, hash_on, outward)
        play = Play(desk, listener, peer)
        self._plays.append(play)
        first = () if listener.secure is None else (events.Secure(C, listener.secure),)
        play.starts().says(
            *first, events.Read(C), events.SetTimer("head", START + listener.head_timeout)
        )
        return play

    def check(self) -> None:
        """All were played to their end, and what they shared counts nothing any more."""
        for play in self._plays:
            play.check()
        if any(play.broken for play in self._plays):
            return
        for play in self._plays:
            limits = play.desk.limits
            assert (limits.connections, limits.sessions, limits.entries) == (0, 0, 0)
            for pool in play.desk.pools.values():
                assert [one.name for one in pool.endpoints if one.active] == []


def make_desk(
    route: dict[str, Any], endpoints: int, trusted: str = "", hash_on: str = "",
    outward: TlsClient | None = None,
) -> Desk:
    """Routes to the page (`/`), a `ws` service (`/chat`), a `tcp` one (`/raw`), the echo."""
    origins = (Origin(scheme="https", host="a.test", port=443),)
    balance = "hash" if hash_on else "round-robin"
    routes = (
        Route(name="page", path="/", upstream="page"),
        Route(name="chat", path="/chat", upstream="app", **({"origins": origins} | route)),
        Route(name="raw", path="/raw", upstream="mud", subprotocols=("mqtt",), **route),
        Route(name="echo", path="/echo", upstream="echo"),
    )
    upstreams = {
        "page": Upstream(name="page", scheme="builtin", builtin="page"),
        "app": Upstream(
            name="app", scheme="wss" if outward else "ws", balance=balance, hash_on=hash_on
        ),
        "mud": Upstream(name="mud", scheme="tls" if outward else "tcp", balance="round-robin"),
        "echo": Upstream(name="echo", scheme="builtin", builtin="echo"),
    }
    pools = {name: Pool(upstream, random.Random(1)) for name, upstream in upstreams.items()}
    addresses = [endpoint(number + 1) for number in range(endpoints)]
    found = [
        (EndpointEntry(url="", host=one.host, port=one.port, secure=outward), one)
        for one in addresses
    ]
    pools["app"].set_endpoints(found)
    pools["mud"].set_endpoints(found)
    pools["echo"].set_endpoints([(EndpointEntry(url="builtin:echo"), Address(builtin="echo"))])
    networks = (ip_network(trusted),) if trusted else ()
    table = Table(
        gateway=GatewaySettings(trusted_proxies=networks), listeners=(LISTENER,),
        routes=routes, upstreams=upstreams,
    )
    return Desk(
        table=table, routes=RouteTable(routes), pools=pools, limits=Limits(MAX_SESSIONS),
        random_bytes=lambda count: bytes(range(count)), page=PAGE,
    )
