"""Far ends that speak TLS, and certificates for them and for the engine.

`SecureFar` puts a TLS machine over any far end, so that what a test says and sees is clear text. On
real sockets the machine is Python's `ssl`, on the simulated wire the one without cryptography; so
the far end of a compiled engine is not the code that it tests.
"""

import functools
import ssl

from engine.authority import Authority
from engine.rig import Far, MemoryRig, Rig
from gateway.engine.memory_tls import SimMachine
from gateway.engine.secure import Machine, TlsFault
from gateway.engine.tls import Contexts
from gateway.events import KeyPair, Link, Secured, TlsClient, TlsServer

NAME = "a.example"
TAKE = memoryview(bytearray(256 * 1024))


@functools.cache
def authority() -> Authority:
    """The one that all trust, made once."""
    return Authority()


@functools.cache
def pair(*names: str) -> KeyPair:
    """A good one, made once."""
    return authority().issue(*names, subject=names[0])


@functools.cache
def server_settings() -> TlsServer:
    """For a.example and any host below b.example, by two certificates."""
    return TlsServer(certificates=(pair("a.example"), pair("*.b.example", "b.example")))


@functools.cache
def client_settings(server_name: str = "a.example") -> TlsClient:
    """Trusts the CA."""
    return TlsClient(server_name=server_name, ca=authority().pem)


class FarTls:
    """The far end's TLS by Python's `ssl`, without a socket."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(
            self.incoming, self.outgoing,
            server_side=is_server, server_hostname=None if is_server else NAME,
        )

    def shake(self) -> bool:
        """Go on with the handshake; True once it is done."""
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


# --- Far ends ---------------------------------------------------------------------------------


class SecureFar:
    """A far end whose bytes go through a TLS machine; `plain` is the end below. `fault` is what it
    found wrong, `finished` that close_notify came, and `is_secured` that its handshake is done."""

    def __init__(self, plain: Far, machine: Machine):
        self.plain = plain
        self.machine = machine
        self.received = bytearray()
        self.finished = False
        self.is_secured = False
        self.fault: TlsFault | None = None
        self._seen = 0
        self._unsealed = bytearray()
        self._finishing = False

    @property
    def was_reset(self) -> bool:
        """RST came."""
        return self.plain.was_reset

    def send(self, data: bytes) -> None:
        """Seal and send, once the handshake is done."""
        self._unsealed += data
        self.move()

    def finish(self) -> None:
        """close_notify and FIN, behind what waits."""
        self._finishing = True
        self.move()

    def close(self) -> None:
        """close_notify, and close."""
        if self.is_secured and not self._finishing:
            self.machine.say_close()
            self.plain.send(self.machine.take())
        self.plain.close()

    def truncate(self) -> None:
        """FIN, and no close_notify."""
        self.plain.finish()

    def reset(self) -> None:
        """RST."""
        self.plain.reset()

    def stall(self) -> None:
        """Read no more."""
        self.plain.stall()

    def resume(self) -> None:
        """Read on."""
        self.plain.resume()

    def move(self) -> None:
        """Take what came, and send what waits."""
        came = bytes(self.plain.received[self._seen :])
        self._seen += len(came)
        if came:
            self.machine.feed(came)
        if self.fault is None and not self.finished:
            try:
                self._take()
            except TlsFault as fault:
                self.fault = fault
        self._give(self.machine.take())
        if not self.is_secured or self.fault is not None:
            return
        if self._unsealed:
            self.machine.seal(bytes(self._unsealed))
            self._unsealed.clear()
            self._give(self.machine.take())
        if self._finishing:
            self._finishing = False
            self.machine.say_close()
            self._give(self.machine.take())
            self.plain.finish()

    def _take(self) -> None:
        if not self.is_secured:
            self.is_secured = self.machine.shake()
        while self.is_secured and not self.finished:
            count = self.machine.open_into(TAKE)
            self.received += TAKE[:count]
            self.finished = self.machine.finished
            if not count:
                break

    def _give(self, sealed: bytes) -> None:
        if sealed:
            self.plain.send(sealed)


class SecureEnds:
    """All links of a rig speak TLS."""

    def __init__(self, rig: Rig):
        self._rig = rig

    def plainly_accepted(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """See rig.Ends."""
        link, far = accepted(self._rig, family=family, small=small)
        return link, far

    def plainly_connected(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """See rig.Ends."""
        link, far = connected(self._rig, family=family, small=small)
        return link, far


def machine_for(rig: Rig, settings: TlsServer | TlsClient) -> Machine:
    """What speaks TLS at the far end of this rig's links."""
    return SimMachine(settings) if isinstance(rig, MemoryRig) else Contexts()(settings)


def over(rig: Rig, far: Far, settings: TlsServer | TlsClient) -> SecureFar:
    """This far end speaks TLS from here on."""
    secure = SecureFar(far, machine_for(rig, settings))
    rig.movers.append(secure.move)
    return secure


def accepted(
    rig: Rig,
    server: TlsServer | None = None,
    client: TlsClient | None = None,
    *,
    family: str = "tcp",
    small: bool = False,
) -> tuple[Link, SecureFar]:
    """A client's link, secured, and the client."""
    plain = rig.plainly_accepted(family=family, small=small)
    return _secured(rig, plain, server or server_settings(), client or client_settings())


def connected(
    rig: Rig,
    client: TlsClient | None = None,
    server: TlsServer | None = None,
    *,
    family: str = "tcp",
    small: bool = False,
) -> tuple[Link, SecureFar]:
    """An upstream's link, secured, and the upstream."""
    plain = rig.plainly_connected(family=family, small=small)
    return _secured(rig, plain, client or client_settings(), server or server_settings())


def _secured(
    rig: Rig, ends: tuple[Link, Far], near: TlsServer | TlsClient, other: TlsServer | TlsClient
) -> tuple[Link, SecureFar]:
    """Both handshakes, to their ends."""
    link, plain = ends
    far = over(rig, plain, other)
    rig.engine.secure(link, near)
    rig.until(lambda: rig.has(link, Secured) and far.is_secured)
    return link, far
