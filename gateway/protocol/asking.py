"""The way from a chosen route to an upstream's answer: connect, ask, and pass a refusal on.

Laws of this file:

- Until the relay begins nothing has been promised to the client, so every refusal is safe.
- Another endpoint is tried only while no byte of the handshake is out.
- A passed-on answer that breaks off resets the client: it must not look whole.
- When the relay begins, the head and all that served it are dropped: an idle WebSocket keeps the
  record that will be written, and little else.
"""

from gateway import events
from gateway.errors import Blame, Fault, UpstreamError
from gateway.events import CLIENT, UPSTREAM, Event
from gateway.protocol import forwarding, http1, websocket
from gateway.protocol.desk import hash_key
from gateway.protocol.life import (
    ASKING,
    CONNECTING,
    PASSING,
    RELAYING,
    RETRY_AFTER,
    TOO_SLOW,
)
from gateway.protocol.pass_on import PassOn
from gateway.protocol.securing import Securing
from gateway.routing import DEFAULT_PORTS, rewrite_target
from gateway.table import EndpointEntry

EARLY_MAX = 64 * 1024          # bytes behind the request that wait for the relay, then held
INTERIM_MAX = 8                # 1xx answers that are stepped over (RFC 9110 15.2)
NO_ADDRESS = "This service has no address now."
CLIENT_GONE = 499              # nginx's status for the record: the client went before the answer


class Asking(Securing):
    """A session between its route and its relay."""

    __slots__ = ()

    # --- Connecting --------------------------------------------------------------------------

    def connect_next(self, failed: tuple[int, str] | None = None) -> None:
        """Try the next endpoint, or answer with what the last one failed with."""
        request = self.request
        assert request is not None
        assert request.match is not None
        route = request.match.route
        pool = request.pool
        assert pool is not None
        key = b""
        if pool.upstream.balance == "hash":
            key = hash_key(pool.upstream.hash_on, request.match, request.head, self.client)
        endpoint = pool.pick(key, self.now, request.tried)
        if endpoint is None and failed is None:
            # Nothing will change by itself, so there is no Retry-After.
            names = ", ".join(e.host or e.url for e in pool.upstream.entries if e.weight)
            self.refuse(503, NO_ADDRESS, Blame.OPERATOR, (), f"no address is known of {names}")
            return
        if endpoint is None:
            assert failed is not None
            status, detail = failed
            more = (RETRY_AFTER,) if status == 503 else ()
            self.refuse(status, http1.SENTENCES[status], Blame.UPSTREAM, more, detail)
            return
        request.tried.append(endpoint)
        endpoint.begin()
        self.endpoint = endpoint
        self.upstream_open = True
        self.note(endpoint=endpoint.name)
        if self.state is not CONNECTING:
            self.enter(CONNECTING)
        self.order(events.Connect(endpoint.address, pool.source(endpoint)))
        self.order(events.SetTimer("connect", self.now + route.connect_timeout))

    def on_connect_failed(self, event: events.ConnectFailed) -> None:
        """This endpoint cannot be had; the next one may."""
        self.upstream_open = False
        self._give_up_endpoint(event.fault, f"connect: {event.fault.value}", 502)

    def on_connect_lost(self, event: events.Closed) -> None:
        """Before or in its TLS handshake; a built-in endpoint's link may go before it is said to
        be there."""
        self.upstream_open = False
        fault = event.fault or Fault.OTHER
        why = f"tls: {event.detail}" if event.detail else f"connect: {fault.value}"
        self._give_up_endpoint(fault, why, 502)

    def on_connect_timed_out(self, event: events.TimedOut) -> None:
        """connect_timeout: as above, and the attempt is given up."""
        assert event.name == "connect", event.name
        self.order(events.Reset(UPSTREAM))
        self.upstream_open = False
        self._give_up_endpoint(Fault.TIMED_OUT, "connect: connect_timeout", 504)

    def _give_up_endpoint(self, fault: Fault, detail: str, status: int) -> None:
        """This endpoint failed, or we have nothing to connect with."""
        endpoint = self.endpoint
        assert endpoint is not None
        endpoint.ended()
        self.endpoint = None
        self.order(events.ClearTimer("connect"))
        if fault in (Fault.NO_DESCRIPTORS, Fault.NO_MEMORY):
            self.refuse(503, http1.SENTENCES[503], Blame.GATEWAY, (RETRY_AFTER,), detail)
            return
        if fault is Fault.NO_ADDRESS:
            # No port is left toward that address, or the machine has none of its family, as where
            # "localhost" is ::1 too and IPv6 is off. Another endpoint may do.
            status = 503
        endpoint.failed(self.now, detail)
        self.connect_next((status, detail))

    def on_connected(self, event: Event) -> None:
        """Ask the upstream, behind TLS where it has that; connect_timeout is for both."""
        assert self.endpoint is not None
        secure = self.endpoint.entry.secure
        if secure is not None:
            self.order(events.Secure(UPSTREAM, secure))
        else:
            self.on_upstream_secured(event)

    def on_upstream_secured(self, event: Event) -> None:
        """All is there to ask the upstream; toward `tcp` there is nothing to ask."""
        request, endpoint = self.request, self.endpoint
        assert request is not None
        assert endpoint is not None
        assert request.match is not None
        assert request.upstream is not None
        endpoint.connected()
        self.order(events.ClearTimer("connect"))
        route, head = request.match.route, request.head
        if request.upstream.kind == "tcp":
            chosen = websocket.choose_subprotocol(head, route.subprotocols)
            self._begin_relay(websocket.raw_answer(head, chosen), chosen, deflate=False, rest=b"")
            return
        target = rewrite_target(
            request.match, request.upstream, head.path, head.query, head.has_query
        )
        asked = forwarding.upstream_request(
            head,
            target=target,
            route=route,
            endpoint_host=_authority(endpoint.entry, request.upstream.scheme),
            key=request.key,
            peer=self.peer,
            trusted=self.desk.table.gateway.trusted_proxies,
            secured=self.secured,
        )
        self.order(events.Send(UPSTREAM, asked))
        self.order(events.Read(UPSTREAM))
        self.order(events.SetTimer("answer", self.now + route.answer_timeout))
        self.enter(ASKING)

    def on_early_received(self, event: events.Received) -> None:
        """The client does not wait for the answer: its bytes wait for the relay."""
        request = self.request
        assert request is not None
        request.early += event.data
        self.bound_early()

    def bound_early(self) -> None:
        """What waits is bounded; the engine may still give what it has read in this turn."""
        assert self.request is not None
        if len(self.request.early) >= EARLY_MAX:
            self.order(events.Hold(CLIENT))

    def on_client_left(self, event: Event) -> None:
        """FIN or RST of the client before the answer ends the attempt."""
        self.write_record(status=CLIENT_GONE, blame=Blame.CLIENT,
                           detail="the client went before the answer")
        self.drop_upstream()
        if isinstance(event, events.Closed):
            self.on_client_closed(event)
        else:
            self.close("")

    # --- Asking ------------------------------------------------------------------------------

    def on_answer_received(self, event: events.Received) -> None:
        """Bytes of the upstream's answer: interim heads, 101, or a refusal."""
        request = self.request
        assert request is not None
        data = event.data
        try:
            while data:
                answer = request.answers.feed(data)
                if answer is None:
                    return
                if answer.status == 101:
                    self._accept_answer(answer)
                    return
                if answer.status >= 200:
                    self._begin_passing(answer)
                    return
                request.interim += 1
                if request.interim > INTERIM_MAX:
                    raise UpstreamError(502, "too many interim answers")
                data = answer.rest
        except UpstreamError as error:
            self._fail_upstream(error.status, error.detail)

    def _accept_answer(self, answer: http1.Response) -> None:
        request = self.request
        assert request is not None
        agreed = websocket.check_answer(answer, request.key, request.head)
        data = websocket.client_answer(request.head, agreed)
        self._begin_relay(
            data, agreed.subprotocol, deflate=agreed.deflate, rest=answer.rest
        )

    def on_answer_finished(self, event: Event) -> None:
        """FIN instead of an answer."""
        self._fail_upstream(502, "the upstream closed before its answer")

    def on_upstream_lost(self, event: events.Closed) -> None:
        """RST instead of an answer; or an alert: in TLS 1.3 a client's certificate is judged behind
        the handshake (RFC 8446 4.4.2.4)."""
        self.upstream_open = False
        why = event.detail or (event.fault.value if event.fault else "closed")
        self._fail_upstream(502, f"the upstream was lost before its answer: {why}")

    def on_answer_timed_out(self, event: events.TimedOut) -> None:
        """answer_timeout."""
        assert event.name == "answer", event.name
        self._fail_upstream(504, "answer_timeout")

    def _fail_upstream(self, status: int, detail: str) -> None:
        self.refuse(status, http1.SENTENCES[status], Blame.UPSTREAM, (), detail)

    def _begin_relay(self, answer: bytes, subprotocol: str, *, deflate: bool, rest: bytes) -> None:
        """Answer 101, order the relay, and drop all that is no longer needed."""
        request = self.request
        assert request is not None
        assert request.match is not None
        assert request.upstream is not None
        self.order(events.ClearTimer("answer"))
        self.order(events.Send(CLIENT, answer))
        raw = request.upstream.kind == "tcp"
        rules = self.desk.rules_of(request.match.route, raw=raw, deflate=deflate)
        self.order(events.Relay(rules, bytes(request.early), rest))
        self.enter(RELAYING)
        self.note(status=101, subprotocol=subprotocol)
        self.request = self.reader = self.accepted = self.secured = None

    # --- Passing a refusal on ----------------------------------------------------------------

    def _begin_passing(self, answer: http1.Response) -> None:
        request = self.request
        assert request is not None
        passing = request.passing = PassOn(answer)
        data = passing.feed(answer.rest)
        self.enter(PASSING)
        self.note(status=answer.status)
        if self.clogged:                         # by answers to requests before this one
            self.on_pass_clogged(None)
        self._pass(data)

    def on_pass_received(self, event: events.Received) -> None:
        """More of the refusal."""
        assert self.request is not None
        passing = self.request.passing
        assert passing is not None
        try:
            self._pass(passing.feed(event.data))
        except UpstreamError as error:
            self._cut_passing(error.detail)

    def on_pass_finished(self, event: Event) -> None:
        """The refusal ends with the connection, or is cut."""
        assert self.request is not None
        passing = self.request.passing
        assert passing is not None
        try:
            self._pass(passing.finish())
        except UpstreamError as error:
            self._cut_passing(error.detail)

    def _pass(self, data: bytes) -> None:
        """Send a piece on; end when it was the last one."""
        request = self.request
        assert request is not None
        assert request.passing is not None
        assert request.match is not None
        if data:
            self.order(events.Send(CLIENT, data))
        if not request.passing.done:
            if not self.clogged:                 # else it is not the upstream that we wait for
                at = self.now + request.match.route.answer_timeout
                self.order(events.SetTimer("answer", at))
            return
        self.write_record(blame=Blame.UPSTREAM, detail="the upstream refused")
        self.drop_upstream()
        self.linger()

    def on_pass_clogged(self, event: Event | None) -> None:
        """The client is slow: the upstream waits, within write_timeout."""
        self.clogged = True
        self.order(events.Hold(UPSTREAM))
        self.order(events.ClearTimer("answer"))
        if self.write_time:
            self.order(events.SetTimer("write", self.now + self.write_time))

    def on_pass_cleared(self, event: Event) -> None:
        """The client took what was sent."""
        assert self.request is not None
        assert self.request.match is not None
        self.clogged = False
        self.order(events.ClearTimer("write"))
        self.order(events.Read(UPSTREAM))
        at = self.now + self.request.match.route.answer_timeout
        self.order(events.SetTimer("answer", at))

    def on_pass_timed_out(self, event: events.TimedOut) -> None:
        """write_timeout toward the client, or answer_timeout of the upstream."""
        if event.name == "write":
            self.abort(TOO_SLOW, Blame.CLIENT)
        else:
            self._cut_passing("answer_timeout inside the answer")

    def on_pass_lost(self, event: events.Closed) -> None:
        """RST inside the refusal."""
        self.upstream_open = False
        self._cut_passing("the upstream was lost inside its answer")

    def _cut_passing(self, detail: str) -> None:
        """A refusal that breaks off must not look whole."""
        self.abort(detail, Blame.UPSTREAM)


def _authority(entry: EndpointEntry, scheme: str) -> str:
    """The URL's host and port as a Host field has them: without the default port (RFC 9110 7.2).
    A Unix socket has no authority; "localhost" is what its services expect."""
    if not entry.host:
        return "localhost"
    host = f"[{entry.host}]" if ":" in entry.host else entry.host
    return host if entry.port == DEFAULT_PORTS[scheme] else f"{host}:{entry.port}"
