"""How links come to speak TLS: the part of `SocketEngine` that does handshakes.

A link that is being secured is the engine's own: it reads and sends what the handshake needs, and
nothing of it is news but how it came out. After that it is a link like any other, with another
socket (`secure.py`). Laws of this file:

- What was received before is the handshake's, and what comes with its last bytes is the stream's:
  nothing is lost between the two, whether or not the link is read.
- Who fails is told why by an alert. A close with unread bytes is an RST that may destroy it, so
  what has come already is thrown away before.
- There is no clock in here: who waits for a handshake sets a timer, as for all else.
"""

from gateway.engine.arrivals import Arrivals
from gateway.engine.contract import READ_MAX
from gateway.engine.link_state import OPEN, SECURING, LinkState
from gateway.engine.reactor import Poller
from gateway.engine.relay_driver import undelivered
from gateway.engine.secure import SEALED_READ_MAX, MachineFactory, SecureSocket, TlsFault
from gateway.errors import Fault, Handshake, fault_of
from gateway.events import Closed, Link, Secured, TlsClient, TlsServer


class Securing(Arrivals):
    """`machines` makes the TLS machine of each link. `buffer` and the one for sealed bytes are hot:
    all links receive into them."""

    def __init__(self, poller: Poller, machines: MachineFactory):
        super().__init__(poller)
        self.buffer = memoryview(bytearray(READ_MAX))
        self._sealed = memoryview(bytearray(SEALED_READ_MAX))
        self._machines = machines

    def _living(self, link: Link, *, closing: bool = False) -> LinkState | None:
        """The link, unless it is gone or (but for `closing`) ordered to go."""
        raise NotImplementedError

    def _receive(self, link: LinkState) -> None:
        """Read once, and post what came of it."""
        raise NotImplementedError

    def secure(
        self, link: Link, settings: TlsServer | TlsClient, received: bytes = b""
    ) -> None:
        """See contract.Engine.secure."""
        state = self._living(link)
        if state is None:
            return
        assert state.state is OPEN and state.secured is None and state.sock is not None
        assert state.queue is None and not state.finishing
        machine = self._machines(settings)
        for data in (received, *undelivered(state)):
            if data:
                machine.feed(data)
        far = "client" if isinstance(settings, TlsServer) else "upstream"
        state.secure(SecureSocket(state.sock, machine, self._sealed, far))
        state.state = SECURING
        state.clogged = False
        if state.fault is not None:
            self._fail_handshake(state, OSError(0, "lost before it"))
        else:
            self._shake(state)

    def _shake(self, link: LinkState) -> None:
        """Go on with a handshake as far as it goes."""
        assert link.secured is not None
        try:
            is_done = link.secured.shake()
        except OSError as error:
            self._fail_handshake(link, error)
            return
        self.touch(link)
        if not is_done:
            return
        link.state = OPEN
        # A FIN that was seen already comes again: the kernel tells it at each look.
        link.finished = link.blocked = False
        facts = link.secured.machine.facts()
        self.post(
            link,
            Secured(
                self.now(),
                link.number,
                server_name=facts.server_name,
                protocol=facts.protocol,
                version=facts.version,
                cipher=facts.cipher,
                resumed=facts.resumed,
                certificate=facts.certificate,
            ),
        )
        if link.reading and link.secured.pending:
            self._receive(link)

    def _fail_handshake(self, link: LinkState, error: OSError) -> None:
        """It comes to nothing."""
        assert link.secured is not None
        if isinstance(error, TlsFault):
            fault, detail, kind = error.fault, error.detail, error.handshake
            link.secured.hear_out()
        else:
            fault, detail, kind = fault_of(error.errno or 0), "", Handshake.LEFT
        fault = link.fault or fault
        self.bury(link, abort=fault is not Fault.TLS)
        link.fault = fault
        self.post(link, Closed(self.now(), link.number, fault, detail, kind))
