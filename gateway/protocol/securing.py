"""TLS in a session's life: the client's handshake before its first head, and what follows from it.

Laws of this file:

- A handshake that fails has no HTTP answer: nobody could read it. It is counted, and written down.
- It has its time within `head_timeout`, which begins with the accept: TLS gives a slow client no
  more of it.
- A request comes in by the certificate that is for its host, where there is one: else what a client
  has verified would not be what it talks to (RFC 9110 15.5.20).
- A listener that redirects does nothing else: no route is looked for.
"""

from sys import intern

from gateway import events
from gateway.errors import Blame, ClientError, Handshake
from gateway.events import CLIENT, Command
from gateway.protocol import http1
from gateway.protocol.life import HEAD, Life
from gateway.routing import DEFAULT_PORTS, normalise_host
from gateway.servernames import is_for, pick


class Securing(Life):
    """A session before its first head, and what its TLS has to say later."""

    __slots__ = ()

    def start(self) -> list[Command]:
        """The first commands."""
        if self.listener.secure is not None:
            self.order(events.Secure(CLIENT, self.listener.secure))
        self.order(events.Read(CLIENT))
        self.order(events.SetTimer("head", self.now + self.listener.head_timeout))
        return self.take()

    def on_client_secured(self, event: events.Secured) -> None:
        """The handshake is done: a head may come."""
        self.secured = event
        # An idle WebSocket keeps its record, and shares of it what it can.
        self.note(tls=intern(event.version), sni=intern(event.server_name))
        self.enter(HEAD)
        if self.desk.draining:
            self.await_request()

    def on_securing_timed_out(self, event: events.TimedOut) -> None:
        """The hello never ended, or a drain does not wait for more of it."""
        if event.name == "idle":
            self.abort("drain", Blame.GATEWAY, loses=False)
            return
        assert event.name == "head", event.name
        self.note(handshake=Handshake.TIMED_OUT)
        self.abort("head_timeout inside the TLS handshake", Blame.CLIENT, loses=False)

    def on_drain_in_securing(self) -> None:
        """Whoever is in the middle of it may be about to ask: it has a moment, as others have."""
        self.await_request()

    def on_kill_in_securing(self) -> None:
        """Nothing was asked, so nothing is lost."""
        self.abort("cut: the gateway ends", Blame.GATEWAY, loses=False)

    def check_direction(self, head: http1.Request) -> None:
        """ClientError 421 for a host that another certificate of this listener is for."""
        secure, secured = self.listener.secure, self.secured
        if secure is None or secured is None or not secured.server_name or not head.host:
            return
        host = normalise_host(head.host)
        shown = pick(secure.certificates, secured.server_name)
        if not is_for(shown, host) and pick(secure.certificates, host) is not shown:
            raise ClientError(421, "This connection is not for that host; connect to it anew.")

    def redirect(self, head: http1.Request) -> None:
        """Send it to the same place by https. 308 keeps the method (RFC 9110 15.4.9)."""
        if not head.host:                        # HTTP/1.0
            raise ClientError(400, "The request has no Host, so it cannot be redirected.")
        host, port = normalise_host(head.host), self.listener.redirect
        authority = host if port == DEFAULT_PORTS["https"] else f"{host}:{port}"
        query = f"?{head.query}" if head.has_query else ""
        location = f"https://{authority}{head.path}{query}".encode("ascii")
        fields, body = http1.refusal(308, "This service is at https.", self.number)
        self.answer(308, [*fields, (b"Location", location)], body, None, "redirected to https")
