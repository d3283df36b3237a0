"""The state machine of one client connection: events in, commands out, no socket in sight.

Read `TRANSITIONS` first: every pair of a state and an event that may be is there, with the
method that handles it and the states that this may lead to. A pair that is not there is a bug and
asserted, and so is a state that is not. The drawing in docs/life-of-a-connection.md is made from
it by tools/draw_states.py.

The states are in `life.py`, with what all of them need; the client's TLS is in `securing.py`,
connecting and asking an upstream in `asking.py`; here are requests, routes and the relay's end.
"""

from collections.abc import Callable, Mapping
from sys import intern
from typing import NamedTuple

from gateway import events
from gateway.errors import Blame, ClientError
from gateway.events import CLIENT, UPSTREAM, Cause, Command, Event, RelayEnded, Side
from gateway.protocol import forwarding, http1, websocket
from gateway.protocol.asking import Asking
from gateway.protocol.door import TOO_MANY, later, shown
from gateway.protocol.life import (
    ASKING,
    CLOSING,
    CONNECTING,
    EXCHANGE,
    HEAD,
    LINGER,
    LINGERING,
    OVER,
    PASSING,
    RELAYING,
    RETRY_AFTER,
    SECURING,
    TOO_SLOW,
    WAITING,
    WRITE,
    RequestInHand,
    State,
)
from gateway.routing import Match, origin_allowed
from gateway.table import Route

# The built-in page runs its own script and style, talks to any WebSocket, and nothing else.
PAGE_FIELDS = [
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
]


class Session(Asking):
    """One client connection. Feed `start` and `handle`; obey what they return, in order."""

    __slots__ = ()

    @property
    def over(self) -> bool:
        """Both links are gone and all is recorded: forget it."""
        return self.state is OVER


    def handle(self, side: Side, event: Event) -> list[Command]:
        """One event of this session's links; timers come with the client's side."""
        self.now = event.at
        before = self.state
        way = TRANSITIONS.get((before, side, type(event)))
        if way is None:
            way = ALWAYS.get((side, type(event)))
        assert way is not None, f"{type(event).__name__} of {side.name} in {before.name}"
        way.handler(self, event)
        assert self.state in (way.to or (before,)), f"{before.name} to {self.state.name}"
        return self.take()

    def drain(self, now: float) -> list[Command]:
        """Finish what runs, begin nothing new; a relay is told goodbye."""
        return self._tell(ON_DRAIN, now)

    def kill(self, now: float) -> list[Command]:
        """Cut it now; a relay is told goodbye where a frame boundary allows."""
        return self._tell(ON_KILL, now)

    def dismiss(self, now: float, code: int, reason: str) -> list[Command]:
        """End this one by order: a relay is told this code and reason; before that it is a kill."""
        if self.state is not State.RELAYING:
            return self.kill(now)
        self.order(events.End(Cause.DISMISSED, code, reason))
        return self.take()

    def _tell(self, ways: "Mapping[State, Way]", now: float) -> list[Command]:
        self.now = now
        way = ways.get(self.state)
        if way is not None:
            way.handler(self)
            assert self.state in way.to, f"to {self.state.name}"
        return self.take()

    # --- Requests ----------------------------------------------------------------------------

    @property
    def _has_request(self) -> bool:
        """In `HEAD`: one has begun, or waits for its turn."""
        return bool(self.rest) or (self.reader is not None and not self.reader.is_empty)

    def on_head_received(self, event: events.Received) -> None:
        """Bytes of a request's head."""
        if self.rest or self.clogged:
            self.rest += event.data              # read before `Hold` was heard: not out of turn
        else:
            self._read_head(event.data)

    def _read_head(self, data: bytes) -> bool:
        """False if these bytes begin no request: an empty line before it changes nothing."""
        reader = self.reader
        assert reader is not None
        try:
            head = reader.feed(data)
        except ClientError as error:
            self._begin_request()
            self.refuse_client(error)
            return True
        if head is None and reader.is_empty:
            return False
        self._begin_request()
        if head is not None:
            self.order(events.ClearTimer("head"))
            self._judge(head)
        return True

    def _begin_request(self) -> None:
        """It is not idle any more; its head has its time, the first one's since it was accepted."""
        if self.record is None:
            self._begin_record()
            self.order(events.ClearTimer("idle"))
            self.order(events.SetTimer("head", self.now + self.listener.head_timeout))
        elif self.desk.draining:
            self.order(events.ClearTimer("idle"))

    def _begin_record(self) -> None:
        """A further request on this connection: nothing of the one before it is its own."""
        self.phases = []
        self.phase_at = self.now
        self.client = self.peer
        self.linger_time, self.write_time = LINGER, WRITE
        self.record = self.new_record(self.now)

    def on_head_finished(self, event: Event) -> None:
        """FIN before a whole head: nobody is left to answer, but for requests in hand."""
        self.finished = True
        if self.rest:
            return
        assert self.reader is not None
        whole = self.record is None or self.reader.is_empty
        self.write_record(blame=Blame.CLIENT, detail="closed before a request" if whole
                           else "closed inside a head")
        self.close("")

    def on_head_timed_out(self, event: events.TimedOut) -> None:
        """The head took too long, no further one came, or the next one waits in hand."""
        if event.name == "head":
            self.refuse(408, http1.SENTENCES[408], Blame.CLIENT)
        elif event.name == "idle":
            if not self._has_request:
                # A request may cross with our FIN: it is thrown away, and no RST is the answer.
                self.write_record(blame=Blame.GATEWAY, detail="drain")
                self.linger()
        elif event.name == "write":
            self.abort(TOO_SLOW, Blame.CLIENT)
        elif not self.clogged:
            assert event.name == "next", event.name
            self._read_next(event)

    def _read_next(self, event: Event) -> None:
        """The next of the requests in hand."""
        rest, self.rest = self.rest, b""
        self.order(events.Read(CLIENT))
        if not self._read_head(rest):
            self.await_request()
        if self.finished and not self.rest and self.state is not CLOSING:
            # The client's FIN came behind these bytes, and counts wherever they led to.
            TRANSITIONS[self.state, CLIENT, events.Finished].handler(self, event)

    def _judge(self, head: http1.Request) -> None:
        """A whole head: the first rule that applies decides (the order is issue and RFC)."""
        request = self.request = RequestInHand(head)
        self.client = forwarding.believed_client(
            self.peer, head, self.desk.table.gateway.trusted_proxies
        )
        record = self.record
        assert record is not None
        record.client = shown(self.client)
        record.method = intern(head.method.decode("ascii"))  # an idle WebSocket shares what it can
        record.host = intern(head.host)
        record.path, record.query = head.path, head.query
        try:
            if self.listener.redirect:
                self.redirect(head)
                return
            self.check_direction(head)
            match = self._find_route(request)
            assert request.upstream is not None
            if request.upstream.builtin == "page":
                self._show_page(head)
                return
            websocket.check_handshake(head)
            if not origin_allowed(match.route, head.get_all(b"origin")):
                raise ClientError(403, "This origin may not connect here.")
            self._check_limits(match.route)
            turn = self._turn(match.route)
        except ClientError as error:
            self.refuse_client(error)
            return
        request.key = websocket.new_key(self.desk.random_bytes)
        request.pool = self.desk.pools[match.route.upstream]
        request.early += head.rest
        head.rest = b""
        self.bound_early()
        if turn > self.now:
            self.enter(WAITING)
            self.order(events.SetTimer("turn", turn))
        else:
            self.connect_next()

    def _find_route(self, request: RequestInHand) -> Match:
        """Route, upstream and request-target, or ClientError 400 or 404."""
        head = request.head
        if websocket.is_upgrade(head):
            websocket.check_content(head)
        sni = self.secured.server_name if self.secured is not None else ""
        match = self.desk.routes.match(head.host, head.path, head.query, head.lower_fields, sni)
        if match is None:
            raise ClientError(404, http1.SENTENCES[404])
        request.match = match
        request.upstream = self.desk.table.upstreams[match.route.upstream]
        self.linger_time = match.route.close_timeout
        self.write_time = match.route.write_timeout
        self.note(route=match.route.name)
        return match

    def _check_limits(self, route: Route) -> None:
        """Count the session, or ClientError 429 or 503."""
        if self.desk.draining:
            raise ClientError(503, "The gateway is going away.", (RETRY_AFTER,))
        refusal = self.desk.limits.enter(
            route.name, route.max_sessions, self.client, route.max_sessions_per_client
        )
        if refusal is not None:
            raise ClientError(refusal.status, refusal.value, (RETRY_AFTER,))
        self.entered = route

    def _turn(self, route: Route) -> float:
        """When this handshake may go on, or ClientError 503. Who comes after the first that is
        refused is mostly told so at the door (door.py)."""
        rates = self.desk.rates_of(self.listener, route)
        if not rates:
            return self.now
        turn = self.desk.governor.turn(self.now, *rates)
        if turn is None:
            raise ClientError(503, TOO_MANY, (later(self.desk.random_bytes),))
        return turn

    def on_turn(self, event: events.TimedOut) -> None:
        """It may go on."""
        assert event.name == "turn", event.name
        self.connect_next()

    def _show_page(self, head: http1.Request) -> None:
        if head.method in (b"GET", b"HEAD"):
            fields = [(b"Content-Type", b"text/html; charset=utf-8"), *PAGE_FIELDS]
            self.answer(200, fields, self.desk.page, None, "")
        else:
            error = ClientError(405, "This page is only for reading.", ((b"Allow", b"GET, HEAD"),))
            self.refuse_client(error)

    # --- Back-pressure and the end -----------------------------------------------------------

    def on_clogged_client(self, event: Event) -> None:
        """The client does not take our answers: it may not ask for more of them. Where the route
        has no write_timeout it is given no more time than between two requests."""
        self.clogged = True
        self.order(events.Hold(CLIENT))
        seconds = self.write_time or self.listener.keepalive_timeout
        self.order(events.SetTimer("write", self.now + seconds))

    def on_cleared_client(self, event: Event) -> None:
        """It took them: go on."""
        self.clogged = False
        self.order(events.ClearTimer("write"))
        if self.rest:
            self.order(events.SetTimer("next", self.now))
        else:
            self.order(events.Read(CLIENT))

    def on_clogged_early(self, event: Event) -> None:
        """By answers to earlier requests; it counts where an answer is passed on."""
        self.clogged = True

    def on_cleared_early(self, event: Event) -> None:
        """It took them."""
        self.clogged = False

    def on_client_finished(self, event: Event) -> None:
        """It has nothing more to say, but listens."""
        self.finished = True

    def on_relay_ended(self, event: RelayEnded) -> None:
        """Both links are closed in this very batch; only the record is left to write."""
        blame = event.side.blame if event.side is not None else Blame.GATEWAY
        self.write_record(
            cause=event.cause.value, blame=blame, detail=event.detail, counts=event.counts
        )
        self.upstream_open = False
        self.release()
        self.enter(CLOSING)                # both links are closed in this batch

    def on_nothing(self, event: Event) -> None:
        """Harmless here."""

    # --- What the worker says ----------------------------------------------------------------

    def on_drain_in_head(self) -> None:
        """A request that has begun is answered, and its answer closes; so is one that was sent
        already. Then the connection ends."""
        if not self._has_request:
            self.await_request()

    def on_drain_unanswered(self) -> None:
        """Nothing has been promised yet."""
        self.refuse(503, "The gateway is going away.", Blame.GATEWAY, (RETRY_AFTER,))

    def on_drain_in_relay(self) -> None:
        """Both sides are told goodbye; `RelayEnded` follows."""
        self.order(events.End(Cause.DRAIN))

    def on_kill_in_head(self) -> None:
        """Whoever has begun a request is told; others lose nothing."""
        if self._has_request:
            if self.record is None:              # requests in hand wait their turn
                self._begin_record()
            self.on_kill_unanswered()
        else:
            self.close("")

    def on_kill_unanswered(self) -> None:
        """The client is told, but its end is not waited for."""
        self.on_drain_unanswered()
        if self.state is LINGERING:
            self.close("")

    def on_kill_answered(self) -> None:
        """The answer is out: content that nobody wants is not waited for."""
        self.close("")

    def on_kill(self) -> None:
        """What is under way must not look whole."""
        self.abort("cut: the gateway ends", Blame.GATEWAY)

    def on_kill_in_relay(self) -> None:
        """As above, but with a farewell where a frame boundary allows."""
        self.order(events.End(Cause.KILLED))

    def on_kill_lingering(self) -> None:
        """The last word is said: no more is waited for."""
        self.close("")


class Way(NamedTuple):
    """A handler, and the states that it may lead to; none where it changes nothing."""

    handler: Callable[..., None]
    to: tuple[State, ...]


def _way(handler: Callable[..., None], *to: State) -> Way:
    return Way(handler, to)


_C, _U = CLIENT, UPSTREAM

# Every pair of a state and an event that may be. The timers of a state are told apart by name in
# its handler.
TRANSITIONS: Mapping[tuple[State, Side, type[Event]], Way] = {
    (SECURING, _C, events.Secured): _way(Session.on_client_secured, HEAD),
    (SECURING, _C, events.TimedOut): _way(Session.on_securing_timed_out, CLOSING),

    (HEAD, _C, events.Received): _way(
        Session.on_head_received, HEAD, EXCHANGE, WAITING, CONNECTING, LINGERING
    ),
    (HEAD, _C, events.Finished): _way(Session.on_head_finished, HEAD, CLOSING),
    (HEAD, _C, events.TimedOut): _way(
        Session.on_head_timed_out, HEAD, EXCHANGE, WAITING, CONNECTING, LINGERING, CLOSING
    ),
    (HEAD, _C, events.Clogged): _way(Session.on_clogged_client, HEAD),
    (HEAD, _C, events.Cleared): _way(Session.on_cleared_client, HEAD),

    (EXCHANGE, _C, events.Received): _way(
        Session.on_exchange_received, EXCHANGE, HEAD, LINGERING
    ),
    (EXCHANGE, _C, events.Finished): _way(Session.on_exchange_finished, CLOSING),
    (EXCHANGE, _C, events.TimedOut): _way(Session.on_exchange_timed_out, LINGERING, CLOSING),
    (EXCHANGE, _C, events.Clogged): _way(Session.on_clogged_client, EXCHANGE),
    (EXCHANGE, _C, events.Cleared): _way(Session.on_cleared_client, EXCHANGE),

    (WAITING, _C, events.Received): _way(Session.on_early_received, WAITING),
    (WAITING, _C, events.Finished): _way(Session.on_client_left, CLOSING),
    (WAITING, _C, events.TimedOut): _way(Session.on_turn, CONNECTING, LINGERING),
    (WAITING, _C, events.Closed): _way(Session.on_client_left, OVER),

    (CONNECTING, _C, events.Received): _way(Session.on_early_received, CONNECTING),
    (CONNECTING, _C, events.Finished): _way(Session.on_client_left, CLOSING),
    (CONNECTING, _C, events.TimedOut): _way(Session.on_connect_timed_out, CONNECTING, LINGERING),
    (CONNECTING, _C, events.Closed): _way(Session.on_client_left, OVER),
    (CONNECTING, _U, events.Connected): _way(
        Session.on_connected, CONNECTING, ASKING, RELAYING
    ),
    (CONNECTING, _U, events.Secured): _way(Session.on_upstream_secured, ASKING, RELAYING),
    (CONNECTING, _U, events.ConnectFailed): _way(
        Session.on_connect_failed, CONNECTING, LINGERING
    ),
    (CONNECTING, _U, events.Closed): _way(Session.on_connect_lost, CONNECTING, LINGERING),

    (ASKING, _C, events.Received): _way(Session.on_early_received, ASKING),
    (ASKING, _C, events.Finished): _way(Session.on_client_left, CLOSING),
    (ASKING, _C, events.TimedOut): _way(Session.on_answer_timed_out, LINGERING),
    (ASKING, _C, events.Closed): _way(Session.on_client_left, OVER),
    (ASKING, _U, events.Received): _way(
        Session.on_answer_received, ASKING, PASSING, RELAYING, LINGERING
    ),
    (ASKING, _U, events.Finished): _way(Session.on_answer_finished, LINGERING),
    (ASKING, _U, events.Closed): _way(Session.on_upstream_lost, LINGERING),

    (PASSING, _C, events.Received): _way(Session.on_nothing, PASSING),
    (PASSING, _C, events.Finished): _way(Session.on_client_finished, PASSING),
    (PASSING, _C, events.TimedOut): _way(Session.on_pass_timed_out, CLOSING),
    (PASSING, _C, events.Clogged): _way(Session.on_pass_clogged, PASSING),
    (PASSING, _C, events.Cleared): _way(Session.on_pass_cleared, PASSING),
    (PASSING, _U, events.Received): _way(
        Session.on_pass_received, PASSING, LINGERING, CLOSING
    ),
    (PASSING, _U, events.Finished): _way(Session.on_pass_finished, LINGERING, CLOSING),
    (PASSING, _U, events.Closed): _way(Session.on_pass_lost, CLOSING),

    (RELAYING, _C, RelayEnded): _way(Session.on_relay_ended, CLOSING),

    (LINGERING, _C, events.Received): _way(Session.on_nothing, LINGERING),
    (LINGERING, _C, events.Finished): _way(Session.on_linger_over, CLOSING),
    (LINGERING, _C, events.TimedOut): _way(Session.on_linger_over, CLOSING),

    (CLOSING, _U, events.Closed): _way(Session.on_nothing, CLOSING),
    (OVER, _U, events.Closed): _way(Session.on_nothing, OVER),
}

# What may come in (nearly) every state, where the table above has nothing else.
ALWAYS: Mapping[tuple[Side, type[Event]], Way] = {
    (_C, events.Closed): _way(Session.on_client_closed, OVER),
    (_C, events.Clogged): _way(Session.on_clogged_early),
    (_C, events.Cleared): _way(Session.on_cleared_early),
    (_U, events.Clogged): _way(Session.on_nothing),
    (_U, events.Cleared): _way(Session.on_nothing),
}

# What changes when the worker drains, and when it cuts. The other states end by themselves soon.
ON_DRAIN: Mapping[State, Way] = {
    SECURING: _way(Session.on_drain_in_securing, SECURING),
    HEAD: _way(Session.on_drain_in_head, HEAD),
    WAITING: _way(Session.on_drain_unanswered, LINGERING),
    CONNECTING: _way(Session.on_drain_unanswered, LINGERING),
    ASKING: _way(Session.on_drain_unanswered, LINGERING),
    RELAYING: _way(Session.on_drain_in_relay, RELAYING),
}
ON_KILL: Mapping[State, Way] = {
    SECURING: _way(Session.on_kill_in_securing, CLOSING),
    HEAD: _way(Session.on_kill_in_head, CLOSING),
    EXCHANGE: _way(Session.on_kill_answered, CLOSING),
    WAITING: _way(Session.on_kill_unanswered, CLOSING),
    CONNECTING: _way(Session.on_kill_unanswered, CLOSING),
    ASKING: _way(Session.on_kill_unanswered, CLOSING),
    PASSING: _way(Session.on_kill, CLOSING),
    RELAYING: _way(Session.on_kill_in_relay, RELAYING),
    LINGERING: _way(Session.on_kill_lingering, CLOSING),
}
