"""Far ends that speak TLS, and certificates for them and for the engine.

`SecureFar` puts a TLS machine over any far end, so that what a test says and sees is clear text. On
real sockets the machine is Python's `ssl`, on the simulated wire the one without cryptography; so
the far end of a compiled engine is not the code that it tests.
"""

import datetime
import functools
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.rig import Far, MemoryRig, Rig
from gateway.engine.memory_tls import SimMachine
from gateway.engine.secure import Machine, TlsFault
from gateway.engine.tls import Contexts
from gateway.events import KeyPair, Link, Secured, TlsClient, TlsServer

DAY = datetime.timedelta(days=1)
TAKE = memoryview(bytearray(256 * 1024))


@dataclass(frozen=True)
class Authority:
    """Signs certificates."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def pair(self, *names: str, since: int = -1, days: int = 30, subject: str = "") -> KeyPair:
        """A certificate for these names, from `since` days before today for so many."""
        key = ec.generate_private_key(ec.SECP256R1())
        begin = datetime.datetime.now(datetime.UTC) + since * DAY
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(subject or names[0]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + days * DAY)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
            .sign(self.key, hashes.SHA256())
        )
        return KeyPair(
            chain=certificate.public_bytes(serialization.Encoding.PEM), key=_pem(key), names=names
        )


def _general(name: str) -> x509.GeneralName:
    if name.startswith("spiffe:"):
        return x509.UniformResourceIdentifier(name)
    if "@" in name:
        return x509.RFC822Name(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Widgets, Inc."),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@functools.cache
def authority(name: str = "the CA") -> Authority:
    """One that is made once."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 100 * DAY)
        .not_valid_after(now + 100 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    return Authority(name, key, certificate)


@functools.cache
def pair(*names: str) -> KeyPair:
    """A good one, made once."""
    return authority().pair(*names)


@functools.cache
def server_settings() -> TlsServer:
    """For a.example and any host below b.example, by two certificates."""
    return TlsServer(certificates=(pair("a.example"), pair("*.b.example", "b.example")))


@functools.cache
def client_settings(server_name: str = "a.example") -> TlsClient:
    """Trusts the CA."""
    return TlsClient(server_name=server_name, ca=authority().pem)


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
    link, plain = rig.plainly_accepted(family=family, small=small)
    far = over(rig, plain, client or client_settings())
    rig.engine.secure(link, server or server_settings())
    rig.until(lambda: rig.has(link, Secured) and far.is_secured)
    return link, far


def connected(
    rig: Rig,
    client: TlsClient | None = None,
    server: TlsServer | None = None,
    *,
    family: str = "tcp",
    small: bool = False,
) -> tuple[Link, SecureFar]:
    """An upstream's link, secured, and the upstream."""
    link, plain = rig.plainly_connected(family=family, small=small)
    far = over(rig, plain, server or server_settings())
    rig.engine.secure(link, client or client_settings())
    rig.until(lambda: rig.has(link, Secured) and far.is_secured)
    return link, far
