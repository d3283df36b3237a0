"""What every part of a session's life rests on: its state, orders, record, answers and ends.

`securing.py` adds the client's TLS, `asking.py` the way to an upstream's answer, `session.py` the
requests and the table of all transitions. Laws of this file:

- Commands are collected by `order` and given back by `take`; nothing else goes out.
- What was counted (limits) and begun (an endpoint) is given back by `release`, once.
- A record is written once; after the last word the connection lingers, so that no RST can
  destroy that word.
"""

import enum
from sys import intern
from typing import Final

from gateway import events
from gateway.errors import Blame, ClientError
from gateway.events import CLIENT, UPSTREAM, Accepted, AccessRecord, Command, Event, LegCounts
from gateway.protocol import http1, websocket
from gateway.protocol.desk import Desk
from gateway.protocol.door import shown
from gateway.protocol.exchange import Exchange, ExchangeState
from gateway.protocol.pass_on import PassOn
from gateway.routing import Match
from gateway.table import Listener, Route, Upstream
from gateway.upstreams import Endpoint, Pool

ANSWER_HEAD_MAX = 32 * 1024    # of an upstream: twice the client's, since Set-Cookie is long
LINGER = 5.0                   # seconds, where no route's close_timeout applies
WRITE = 30.0                   # seconds, where no route's write_timeout applies
LAST_CALL = 1.0                # seconds of a drain for a request that is on its way: a round trip
RETRY_AFTER = (b"Retry-After", b"1")
TOO_SLOW = "write_timeout: the client takes the answer too slowly"


class State(enum.Enum):
    """Where a session is."""

    SECURING = "secure"        # the client's TLS handshake is under way
    HEAD = "head"              # a request's head is awaited, or not whole
    EXCHANGE = "exchange"      # a plain request was answered; its unwanted content is read
    WAITING = "wait"           # a route is chosen, and handshakes are over their rate
    CONNECTING = "connect"     # a route is chosen, an endpoint is being connected, and secured
    ASKING = "ask"             # the handshake is out, the upstream's answer is awaited
    PASSING = "pass"           # the upstream's refusal is passed on
    RELAYING = "relay"         # silent: the engine moves the stream
    LINGERING = "linger"       # the last word is said; what still comes is thrown away
    CLOSING = "close"          # closing is ordered
    OVER = "over"              # the client's link is gone, everything is recorded

    __hash__ = object.__hash__  # Enum's own is slow; the table of transitions is looked up often


# Names of their own: up to Python 3.11 `State.HEAD` takes ten times as long (see events.CLIENT).
SECURING: Final = State.SECURING
HEAD: Final = State.HEAD
EXCHANGE: Final = State.EXCHANGE
WAITING: Final = State.WAITING
CONNECTING: Final = State.CONNECTING
ASKING: Final = State.ASKING
PASSING: Final = State.PASSING
RELAYING: Final = State.RELAYING
LINGERING: Final = State.LINGERING
CLOSING: Final = State.CLOSING
OVER: Final = State.OVER

STATE_NAMES = {state: state.value for state in State}   # `.value` is slow, too


class RequestInHand:
    """What a session knows of its request until the relay begins; then it is dropped."""

    __slots__ = (
        "answers",
        "early",
        "head",
        "interim",
        "key",
        "match",
        "passing",
        "pool",
        "tried",
        "upstream",
    )

    def __init__(self, head: http1.Request):
        self.head = head
        self.match: Match | None = None
        self.upstream: Upstream | None = None
        self.pool: Pool | None = None            # as it was then: a reload may replace it
        self.early = bytearray()                 # of the client, for the relay
        self.key = b""                           # ours, toward the upstream
        self.tried: list[Endpoint] = []
        self.answers = http1.ResponseReader(ANSWER_HEAD_MAX)
        self.interim = 0
        self.passing: PassOn | None = None


class Life:
    """The common part of one client connection's life."""

    __slots__ = (
        "_commands",
        "accepted",
        "client",
        "clogged",
        "desk",
        "endpoint",
        "entered",
        "exchange",
        "finished",
        "linger_time",
        "listener",
        "log",
        "now",
        "number",
        "phase_at",
        "phases",
        "reader",
        "record",
        "request",
        "rest",
        "secured",
        "state",
        "upstream_open",
        "write_time",
    )

    def __init__(self, *, number: str, accepted: Accepted, listener: Listener, desk: Desk):
        self.state = HEAD if listener.secure is None else SECURING
        self.number = number
        self.accepted: Accepted | None = accepted
        self.listener = listener
        self.desk = desk
        self._commands: list[Command] = []
        self.now = accepted.at
        self.phase_at = accepted.at              # when the phase under way began
        self.phases: list[tuple[str, float]] = []
        self.client = accepted.client           # as believed, once a head is read
        self.reader: http1.RequestReader | None = http1.RequestReader(listener.max_head)
        self.request: RequestInHand | None = None
        self.exchange: Exchange | None = None
        self.secured: events.Secured | None = None  # the client's TLS; until the relay begins
        self.rest = b""                         # of pipelined requests, which wait their turn
        self.clogged = False                    # the client does not take our answers
        self.finished = False                   # the client has sent its FIN
        self.endpoint: Endpoint | None = None
        self.entered: Route | None = None       # counted in the limits
        self.upstream_open = False
        self.linger_time = LINGER
        self.write_time = WRITE
        self.record: AccessRecord | None = self.new_record(accepted.at)

    @property
    def peer(self) -> events.Address:
        """The far end of the client's socket; known until the relay begins."""
        assert self.accepted is not None
        return self.accepted.client

    # --- Orders and records ------------------------------------------------------------------

    def order(self, command: Command) -> None:
        """Say a command."""
        self._commands.append(command)

    def take(self) -> list[Command]:
        """What was ordered since the last time."""
        commands, self._commands = self._commands, []
        return commands

    def enter(self, state: State) -> None:
        """Change the state; the time in the old one goes into the record."""
        self.phases.append((STATE_NAMES[self.state], self.now - self.phase_at))
        self.phase_at = self.now
        self.state = state

    def new_record(self, started: float) -> AccessRecord:
        """What is known of every record from the start."""
        accepted = self.accepted
        assert accepted is not None
        return AccessRecord(
            session=self.number,
            client=shown(self.client),
            peer=shown(accepted.client),
            listener=intern(str(self.listener.address)),
            tls=self.secured.version if self.secured is not None else "",
            sni=self.secured.server_name if self.secured is not None else "",
            started=started,
        )

    def note(self, **changes: object) -> None:
        """Fill in parts of the record."""
        assert self.record is not None
        for name, value in changes.items():
            setattr(self.record, name, value)

    def write_record(self, **changes: object) -> None:
        """Write the record, once."""
        record = self.record
        if record is None:
            return
        self.note(**changes)
        state = STATE_NAMES[self.state]
        record.phase = record.phase or state
        record.ended = self.now
        record.phases = (*self.phases, (state, self.now - self.phase_at))
        self.record = None
        self.order(events.Record(record))

    # --- Answers of our own ------------------------------------------------------------------

    def refuse_client(self, error: ClientError) -> None:
        """Answer with what a check raised."""
        blame = Blame.GATEWAY if error.status == 503 else Blame.CLIENT
        self.refuse(error.status, error.detail, blame, error.fields)

    def refuse(
        self,
        status: int,
        sentence: str,
        blame: Blame,
        more: tuple[tuple[bytes, bytes], ...] = (),
        detail: str = "",
    ) -> None:
        """Answer with a short sentence. `detail` is for the record, where it says more."""
        fields, body = http1.refusal(status, sentence, self.number)
        self.answer(status, [*fields, *more], body, blame, detail or sentence)

    def answer(
        self,
        status: int,
        fields: list[tuple[bytes, bytes]],
        body: bytes,
        blame: Blame | None,
        detail: str,
    ) -> None:
        """Answer; a plain exchange keeps the connection, everything else is our last word."""
        head = self.request.head if self.request is not None else None
        self.drop_upstream()
        if head is None or websocket.is_upgrade(head):
            self.order(events.Send(CLIENT, http1.build_response(status, fields, body)))
            self.write_record(status=status, blame=blame, detail=detail)
            self.linger()
            return
        close = self.desk.draining
        exchange = self.exchange = Exchange(head)
        self.order(events.Send(CLIENT, exchange.respond(status, fields, body, close=close)))
        self.write_record(status=status, blame=blame, detail=detail)
        self.enter(EXCHANGE)
        self.look_at_exchange()
        if self.state is EXCHANGE:         # content is to come, within the head's time
            self.order(events.SetTimer("head", self.now + self.listener.head_timeout))

    def on_exchange_received(self, event: events.Received) -> None:
        """Content that nobody wants, or what follows it."""
        assert self.exchange is not None
        self.exchange.feed(event.data)
        self.look_at_exchange()

    def look_at_exchange(self) -> None:
        """Is the request's content behind us, and may another request follow?"""
        exchange = self.exchange
        assert exchange is not None
        if exchange.state is ExchangeState.READING_BODY:
            return
        self.exchange = self.request = None
        self.order(events.ClearTimer("head"))
        if exchange.state is ExchangeState.DONE_CLOSE:
            self.linger()
            return
        self.enter(HEAD)
        self.reader = http1.RequestReader(self.listener.max_head)
        self.rest = exchange.rest
        if self.rest:
            # One request a turn: what is queued by then holds the next ones (`Clogged`).
            self.order(events.Hold(CLIENT))
            self.order(events.SetTimer("next", self.now))
        else:
            self.await_request()

    def await_request(self) -> None:
        """No request has begun: one may, for a time. A drain leaves it so much as one takes that
        is unread, or on its way: whoever sent it could not know, and must not meet an RST."""
        seconds = LAST_CALL if self.desk.draining else self.listener.keepalive_timeout
        self.order(events.SetTimer("idle", self.now + seconds))

    def on_exchange_finished(self, event: Event) -> None:
        """The content did not come; the answer is out long since."""
        self.finished = True
        self.linger()

    def on_exchange_timed_out(self, event: events.TimedOut) -> None:
        """Nor did it come in time; or the client does not take the answer."""
        if event.name == "write":
            self.abort(TOO_SLOW, Blame.CLIENT)
        else:
            self.linger()

    # --- Ends --------------------------------------------------------------------------------

    def linger(self) -> None:
        """Half-close and read on: a close with unread bytes would be an RST that may destroy
        our last word (RFC 9112 9.6)."""
        self.release()
        self.exchange = self.request = self.reader = None
        self.rest = b""
        if self.finished:
            self.close("")                      # nothing unread can come any more
            return
        for name in ("head", "turn", "connect", "answer", "idle", "next", "write"):
            self.order(events.ClearTimer(name))
        self.order(events.Finish(CLIENT))
        self.order(events.Read(CLIENT))
        self.order(events.SetTimer("linger", self.now + self.linger_time))
        self.enter(LINGERING)

    def on_linger_over(self, event: Event) -> None:
        """FIN, or the time is up: nothing more will come that matters."""
        self.close("")

    def close(self, detail: str) -> None:
        """Close what is open, in order."""
        self.write_record(blame=Blame.GATEWAY if detail else None, detail=detail)
        self.drop_upstream()
        self.release()
        self.order(events.Close(CLIENT))
        self.enter(CLOSING)

    def abort(self, detail: str, blame: Blame, *, loses: bool = True) -> None:
        """Reset both sides: what was under way must not look whole. The client is cut by it, unless
        it `loses` nothing."""
        self.write_record(
            blame=blame, detail=detail, counts=(LegCounts(cut=loses), LegCounts())
        )
        self.drop_upstream()
        self.release()
        self.order(events.Reset(CLIENT))
        self.enter(CLOSING)

    def drop_upstream(self) -> None:
        """Forget the upstream's link, if there is one."""
        if self.upstream_open and self.state is not RELAYING:
            self.order(events.Reset(UPSTREAM))
        self.upstream_open = False
        self.release()

    def release(self) -> None:
        """Give back what was counted."""
        if self.endpoint is not None:
            self.endpoint.ended()
            self.endpoint = None
        if self.entered is not None:
            self.desk.limits.leave(self.entered.name, self.client)
            self.entered = None

    def on_client_closed(self, event: events.Closed) -> None:
        """The client's link is gone, whatever the state: nothing more can be said to it."""
        if self.state not in (CLOSING, LINGERING):
            fault = event.fault.value if event.fault else "closed"
            detail = event.detail or f"the client was lost: {fault}"
            self.write_record(blame=Blame.CLIENT, detail=detail, handshake=event.handshake)
        self.drop_upstream()
        self.exchange = self.request = self.reader = None
        self.state = OVER
