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

import socket

from gateway.engine import ktls
from gateway.engine.arrivals import Arrivals
from gateway.engine.contract import READ_MAX
from gateway.engine.ktls_handover import ON, Handover
from gateway.engine.link_state import OPEN, SECURING, LinkState
from gateway.engine.reactor import Poller
from gateway.engine.relay_driver import undelivered
from gateway.engine.secure import SEALED_READ_MAX, MachineFactory, SecureSocket, TlsFault
from gateway.errors import Fault, Handshake, fault_of
from gateway.events import Closed, Link, Received, Secured, TlsClient, TlsServer


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
        is_server = isinstance(settings, TlsServer)
        secured = SecureSocket(
            state.sock, self._machines(settings), self._sealed,
            "client" if is_server else "upstream", self._handover(state, is_server=is_server),
        )
        for data in (received, *undelivered(state)):
            if data:
                secured.feed(data)
        state.secure(secured)
        state.state = SECURING
        state.clogged = False
        if state.fault is not None:
            self._fail_handshake(state, OSError(0, "lost before it"))
        else:
            self._shake(state)

    def _handover(self, link: LinkState, *, is_server: bool) -> Handover | None:
        """For a link whose TLS may go over to the kernel."""
        if link.is_unix or type(link.sock) is not socket.socket or ktls.support().missing:
            return None
        return Handover(ktls.support(), is_server=is_server)

    def hand_to_kernel(self, links: tuple[LinkState, LinkState]) -> None:
        """Before a relay: from here on the kernel speaks TLS on these, where it can. What it is
        stands in each link's `ktls`; a link may be lost by it."""
        going = [link for link in links if self._may_go(link)]
        if any(
            link.secured is not None and link not in going and not link.secured.machine.is_compiled
            for link in links
        ):
            for link in going:              # the relay will run in Python, which reads no socket
                link.ktls = "the other side's TLS runs in Python"      # whose TLS is the kernel's
            return
        for link in going:
            assert link.secured is not None and link.secured.handover is not None
            sock, owed = link.secured.sock, link.secured.owed
            try:
                link.kernel = link.secured.handover.give(sock)
            except OSError as error:
                link.ktls = f"the kernel did not take its keys ({error.strerror})"
                self.bury(link, abort=True)
                link.fault = Fault.TLS
                continue
            link.ktls = ON
            link.sock, link.secured = sock, None
            link.skip(owed)

    def _may_go(self, link: LinkState) -> bool:
        """Whether the kernel can take over; what was opened on the way there is news."""
        if link.secured is None or link.state is not OPEN:
            return False
        handover = link.secured.handover
        if handover is None:
            link.ktls = ktls.support().missing or "a Unix socket has none"
            return False
        if not handover.refused:
            clear = link.secured.settle(self.buffer)
            if clear:
                self.post(link, Received(self.now(), link.number, clear))
        link.ktls = handover.refused
        return not handover.refused

    def bury(self, link: LinkState, *, abort: bool = False) -> None:
        """Close the descriptor, drop what the link owns; its `Closed` is the caller's to post."""
        raise NotImplementedError

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
