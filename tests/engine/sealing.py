"""What the tests of TLS in compiled relays run on: far ends that speak TLS by Python's `ssl`.

A `SealedFar` is the face of a far end (rig.Far) around one on a socket; the near end's machine is
OpenSSL's, and its handshake was done in memory before a relay takes it.
"""

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.authority import Authority
from engine.rig import SocketFar
from engine.splicing import CALM, Road, Roads
from engine.tls_ends import NAME, FarTls
from gateway.engine.openssl import Contexts, OpensslMachine
from gateway.events import KeyPair, RelayRules, Side, TlsClient, TlsServer

WHOLE = 65536


@dataclass(frozen=True)
class Parties:
    """Settings of both sides of the gateway, and contexts for the far ends of both."""

    server: TlsServer              # toward clients
    client: TlsClient              # toward upstreams
    far_client: ssl.SSLContext
    far_server: ssl.SSLContext
    contexts: Contexts


def parties(authority: Authority, pair: KeyPair, version: str = "TLSv1_3") -> Parties:
    """All that trust this authority, and speak this version."""
    far_client = ssl.create_default_context(cadata=authority.pem.decode())
    far_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        Path(file.name).write_bytes(pair.key + pair.chain)
        far_server.load_cert_chain(file.name)
    for context in (far_client, far_server):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return Parties(
        TlsServer(certificates=(pair,)),
        TlsClient(server_name=NAME, ca=authority.pem),
        far_client,
        far_server,
        Contexts(),
    )


def shake_in_memory(near: OpensslMachine, far: FarTls) -> None:
    """Both handshakes, to their ends; tickets that the near end sends are taken, too."""
    done = [False, False]
    while not all(done):
        done[1] = done[1] or far.shake()
        near.feed(far.outgoing.read())
        done[0] = done[0] or near.shake()
        far.incoming.write(near.take())
    with contextlib.suppress(ssl.SSLWantReadError):
        far.ssl.read(1)


class SealedFar(SocketFar):
    """A far end that speaks TLS. `finished` is close_notify, `truncated` a FIN without it, `alert`
    what came instead of records."""

    def __init__(self, raw: SocketFar, tls: FarTls):
        assert raw.sock is not None
        super().__init__(raw.sock)
        self.tls = tls
        self.truncated = False
        self.alert = ""
        self._fin = False

    def send(self, data: bytes) -> None:
        """See rig.Far."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.tls.ssl.write(rest) :]
        self.send_sealed(self.tls.outgoing.read())

    def send_sealed(self, data: bytes) -> None:
        """Bytes as they are."""
        super().send(data)

    def notify(self) -> None:
        """close_notify, and no FIN."""
        with contextlib.suppress(ssl.SSLError):    # it also looks for ours, which has not come
            self.tls.ssl.unwrap()
        self.send_sealed(self.tls.outgoing.read())

    def finish(self) -> None:
        """See rig.Far: close_notify, then FIN."""
        self.move()
        self.notify()
        self.truncate()

    def truncate(self) -> None:
        """FIN alone."""
        super().finish()

    def move(self) -> None:
        """See rig.Far."""
        clear, notified = self.received, self.finished
        self.received, self.finished = bytearray(), self._fin
        super().move()
        if self.received:
            self.tls.incoming.write(bytes(self.received))
        self._fin = self.finished
        self.received, self.finished = clear, notified
        self._open()
        self.truncated = self._fin and not self.finished

    def _open(self) -> None:
        try:
            while not self.finished and not self.alert:
                data = self.tls.ssl.read(WHOLE)
                self.received += data
                self.finished = not data
        except ssl.SSLZeroReturnError:
            self.finished = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.alert = error.reason


class SealedRoad(Road):
    """A relay with TLS on some sides. `roads` says which."""

    def begin(self, nears: list[socket.socket], rules: RelayRules) -> int:
        """Shake hands, then hand over."""
        assert isinstance(self.roads, SealedRoads)
        fars: list[SocketFar] = list(self.fars)
        legs: list[OpensslMachine | None] = [None, None]
        for side in self.roads.sealed:
            legs[side], fars[side] = self.roads.secure(side, self.fars[side])
        self.browser, self.server = self.fars = fars[0], fars[1]
        return self.roads.driver.begin(
            2 * self.number, 2 * self.number + 1, nears[0].detach(), nears[1].detach(), rules, [],
            (b"", b""), (False, False), tuple(legs),
        )

    def sealed_far(self, side: Side) -> SealedFar:
        """The far end, which has TLS."""
        far = self.fars[side]
        assert isinstance(far, SealedFar)
        return far


class SealedRoads(Roads):
    """One driver, of relays with TLS on these sides."""

    def __init__(self, all_parties: Parties, sealed: tuple[Side, ...]):
        super().__init__()
        self.parties = all_parties
        self.sealed = sealed

    def one(self, rules: RelayRules = CALM, *, small: bool | Side = False) -> SealedRoad:
        """A new relay."""
        road = self.open(rules, small=small)
        assert isinstance(road, SealedRoad)
        return road

    def secure(self, side: Side, raw: SocketFar) -> tuple[OpensslMachine, SealedFar]:
        """The near end's machine and the far end, behind their handshake."""
        if side is Side.CLIENT:
            near = self.parties.contexts(self.parties.server)
            far = FarTls(self.parties.far_client, is_server=False)
        else:
            near = self.parties.contexts(self.parties.client)
            far = FarTls(self.parties.far_server, is_server=True)
        shake_in_memory(near, far)
        return near, SealedFar(raw, far)

    def road(
        self, rules: RelayRules, fars: list[socket.socket], nears: list[socket.socket]
    ) -> SealedRoad:
        """One over these."""
        return SealedRoad(self, len(self.roads), rules, fars, nears)


@contextlib.contextmanager
def driving_sealed(all_parties: Parties, sealed: tuple[Side, ...]) -> Iterator[SealedRoads]:
    """A driver, and that it leaves nothing behind."""
    roads = SealedRoads(all_parties, sealed)
    try:
        yield roads
    finally:
        roads.finish()
