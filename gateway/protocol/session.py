"""The state machine of one client connection: events in, commands out, no socket in sight.

Read `TRANSITIONS` first: every pair of a state and an event that may be is there, with the
method that handles it; a pair that is not there is a bug and asserted. The drawing in
docs/life-of-a-connection.md is made from it.

The states are in `life.py`, with what all of them need; connecting and asking an upstream are in
`asking.py`; here are requests, routes and the relay's end.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gateway import events
from gateway.errors import Blame, ClientError
from gateway.events import Cause, Command, Event, RelayEnded, Side
from gateway.protocol import forwarding, http1, websocket
from gateway.protocol.asking import Asking
from gateway.protocol.life import RETRY_AFTER, RequestInHand, State, shown
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
        return self.state is State.OVER

    @property
    def is_busy(self) -> bool:
        """Something would be lost if it were cut now; not so between two exchanges, or behind the
        last word."""
        if self.state is State.HEAD:
            return self.reader is not None and not self.reader.is_empty
        return self.state not in (State.LINGERING, State.CLOSING, State.OVER)

    def start(self) -> list[Command]:
        """The first commands."""
        self.order(events.Read(Side.CLIENT))
        self.order(events.SetTimer("head", self.now + self.listener.head_timeout))
        return self.take()

    def handle(self, side: Side, event: Event) -> list[Command]:
        """One event of this session's links; timers come with the client's side."""
        self.now = event.at
        handler = TRANSITIONS.get((self.state, side, type(event)))
        if handler is None:
            handler = ALWAYS.get((side, type(event)))
        assert handler is not None, f"{type(event).__name__} of {side.name} in {self.state.name}"
        handler(self, event)
        return self.take()

    def drain(self, now: float) -> list[Command]:
        """Finish what runs, begin nothing new; a relay is told goodbye."""
        self.now = now
        if self.state is State.RELAYING:
            self.order(events.End(Cause.DRAIN))
        elif self.state is State.HEAD and (self.reader is None or self.reader.is_empty):
            self.close("drain")
        elif self.state in (State.CONNECTING, State.ASKING):
            self.refuse(503, "The gateway is going away.", Blame.GATEWAY, (RETRY_AFTER,))
        return self.take()

    def kill(self, now: float) -> list[Command]:
        """Cut it now; a relay is told goodbye where a frame boundary allows."""
        self.now = now
        if self.state is State.RELAYING:
            self.order(events.End(Cause.KILLED))
        elif self.state is State.LINGERING:
            self.close("")
        elif self.state is not State.OVER:
            self.abort("cut by the end of the drain", Blame.GATEWAY)
        return self.take()

    # --- Requests ----------------------------------------------------------------------------

    def on_head_received(self, event: events.Received) -> None:
        """Bytes of a request's head."""
        self._read_head(event.data)

    def _read_head(self, data: bytes) -> None:
        reader = self.reader
        assert reader is not None
        if self.record is None:                  # the first byte of a further request
            self.phases = []
            self.phase_at = self.now
            self.record = self.new_record(self.now)
            self.order(events.ClearTimer("idle"))
            self.order(events.SetTimer("head", self.now + self.listener.head_timeout))
        try:
            head = reader.feed(data)
        except ClientError as error:
            self.refuse_client(error)
            return
        if head is not None:
            self.order(events.ClearTimer("head"))
            self._judge(head)

    def on_head_finished(self, event: Event) -> None:
        """FIN before a whole head: nobody is left to answer."""
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
            self.close("")
        elif event.name == "next" and not self.clogged:
            rest, self.rest = self.rest, b""
            self.order(events.Read(Side.CLIENT))
            self._read_head(rest)

    def _judge(self, head: http1.Request) -> None:
        """A whole head: the first rule that applies decides (the order is issue and RFC)."""
        request = self.request = RequestInHand(head)
        self.client = forwarding.believed_client(
            self.peer, head, self.desk.table.gateway.trusted_proxies
        )
        self.note(
            client=shown(self.client),
            method=head.method.decode("ascii"),
            host=head.host,
            path=head.path,
            query=head.query,
        )
        try:
            match = self._find_route(request)
            if self.desk.table.upstreams[match.route.upstream].builtin == "page":
                self._show_page(head)
                return
            websocket.check_method(head)
            websocket.check_upgrade(head)
            websocket.check_version(head)
            websocket.check_key(head)
            websocket.check_offers(head)
            if not origin_allowed(match.route, head.get_all(b"origin")):
                raise ClientError(403, "This origin may not connect here.")
            self._check_limits(match.route)
        except ClientError as error:
            self.refuse_client(error)
            return
        request.key = websocket.new_key(self.desk.random_bytes)
        self.connect_next()

    def _find_route(self, request: RequestInHand) -> Match:
        """Route, upstream and request-target, or ClientError 400 or 404."""
        head = request.head
        if websocket.is_upgrade(head):
            websocket.check_content(head)
        match = self.desk.routes.match(head.host, head.path, head.query, head.lower_fields)
        if match is None:
            raise ClientError(404, http1.SENTENCES[404])
        request.match = match
        request.upstream = self.desk.table.upstreams[match.route.upstream]
        self.linger_time = match.route.close_timeout
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

    def _show_page(self, head: http1.Request) -> None:
        if head.method in (b"GET", b"HEAD"):
            fields = [(b"Content-Type", b"text/html; charset=utf-8"), *PAGE_FIELDS]
            self.answer(200, fields, self.desk.page, None, "")
        else:
            error = ClientError(405, "This page is only for reading.", ((b"Allow", b"GET, HEAD"),))
            self.refuse_client(error)

    # --- Back-pressure and the end -----------------------------------------------------------

    def on_clogged_client(self, event: Event) -> None:
        """The client does not take our answers: it may not ask for more of them."""
        self.clogged = True
        self.order(events.Hold(Side.CLIENT))

    def on_cleared_client(self, event: Event) -> None:
        """It took them: go on."""
        self.clogged = False
        if self.rest:
            self.order(events.SetTimer("next", self.now))
        else:
            self.order(events.Read(Side.CLIENT))

    def on_relay_ended(self, event: RelayEnded) -> None:
        """Both links are closed in this very batch; only the record is left to write."""
        blame = event.side.blame if event.side is not None else Blame.GATEWAY
        self.write_record(
            cause=event.cause.value, blame=blame, detail=event.detail, counts=event.counts
        )
        self.release()
        self.enter(State.CLOSING)                # both links are closed in this batch

    def on_nothing(self, event: Event) -> None:
        """Harmless here."""


Handler = Callable[[Session, Any], None]

_C, _U = Side.CLIENT, Side.UPSTREAM

# Every pair of a state and an event that may be. The timers of a state are told apart by name in
# its handler.
TRANSITIONS: Mapping[tuple[State, Side, type[Event]], Handler] = {
    (State.HEAD, _C, events.Received): Session.on_head_received,
    (State.HEAD, _C, events.Finished): Session.on_head_finished,
    (State.HEAD, _C, events.TimedOut): Session.on_head_timed_out,
    (State.HEAD, _C, events.Clogged): Session.on_clogged_client,
    (State.HEAD, _C, events.Cleared): Session.on_cleared_client,
    (State.EXCHANGE, _C, events.Received): Session.on_exchange_received,
    (State.EXCHANGE, _C, events.Finished): Session.on_exchange_cut,
    (State.EXCHANGE, _C, events.TimedOut): Session.on_exchange_cut,
    (State.EXCHANGE, _C, events.Clogged): Session.on_clogged_client,
    (State.EXCHANGE, _C, events.Cleared): Session.on_cleared_client,
    (State.CONNECTING, _C, events.Received): Session.on_early_received,
    (State.CONNECTING, _C, events.Finished): Session.on_client_left,
    (State.CONNECTING, _C, events.TimedOut): Session.on_connect_timed_out,
    (State.CONNECTING, _C, events.Closed): Session.on_client_left,
    (State.CONNECTING, _U, events.Connected): Session.on_connected,
    (State.CONNECTING, _U, events.ConnectFailed): Session.on_connect_failed,
    (State.ASKING, _C, events.Received): Session.on_early_received,
    (State.ASKING, _C, events.Finished): Session.on_client_left,
    (State.ASKING, _C, events.TimedOut): Session.on_answer_timed_out,
    (State.ASKING, _C, events.Closed): Session.on_client_left,
    (State.ASKING, _U, events.Received): Session.on_answer_received,
    (State.ASKING, _U, events.Finished): Session.on_answer_finished,
    (State.ASKING, _U, events.Closed): Session.on_upstream_lost,
    (State.PASSING, _C, events.Received): Session.on_nothing,
    (State.PASSING, _C, events.Finished): Session.on_nothing,
    (State.PASSING, _C, events.TimedOut): Session.on_pass_timed_out,
    (State.PASSING, _C, events.Clogged): Session.on_pass_clogged,
    (State.PASSING, _C, events.Cleared): Session.on_pass_cleared,
    (State.PASSING, _U, events.Received): Session.on_pass_received,
    (State.PASSING, _U, events.Finished): Session.on_pass_finished,
    (State.PASSING, _U, events.Closed): Session.on_pass_lost,
    (State.RELAYING, _C, RelayEnded): Session.on_relay_ended,
    (State.RELAYING, _U, events.Closed): Session.on_nothing,
    (State.LINGERING, _C, events.Received): Session.on_nothing,
    (State.LINGERING, _C, events.Finished): Session.on_linger_over,
    (State.LINGERING, _C, events.TimedOut): Session.on_linger_over,
    (State.CLOSING, _U, events.Closed): Session.on_nothing,
    (State.OVER, _U, events.Closed): Session.on_nothing,
}

# What may come in (nearly) every state, where the table above has nothing else.
ALWAYS: Mapping[tuple[Side, type[Event]], Handler] = {
    (_C, events.Closed): Session.on_client_closed,
    (_C, events.Clogged): Session.on_nothing,
    (_C, events.Cleared): Session.on_nothing,
    (_U, events.Clogged): Session.on_nothing,
    (_U, events.Cleared): Session.on_nothing,
}
