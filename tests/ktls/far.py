"""Far ends that say what no library would: records of any type, and halves of records.

Their handshake is made by the gateway's own machines, in the other role; what they send after it is
sealed by the kernel, or by the test itself.
"""

import select
import socket
from pathlib import Path

from end_to_end.wire import PATIENCE
from gateway.engine import ktls
from gateway.engine.ktls_handover import Handover, KernelLeg, fresh_keys
from gateway.engine.machines import contexts
from gateway.engine.secure import SecureSocket
from gateway.events import KeyPair, TlsClient, TlsServer

ALERT, HANDSHAKE = 21, 22
KEY_UPDATE = b"\x18\0\0\1\0"
SCRATCH = memoryview(bytearray(46_000))
BUFFER = memoryview(bytearray(65_536))


def as_client(ca: Path) -> TlsClient:
    """Settings of one that trusts this authority."""
    return TlsClient(server_name="localhost", ca=ca.read_bytes())


def as_server(pair: KeyPair) -> TlsServer:
    """Settings of one that shows this pair, without tickets."""
    return TlsServer(certificates=(pair,))


class Far:
    """A far end behind its handshake. Until `go_over` it seals by itself, and blocks never."""

    def __init__(self, sock: socket.socket, settings: TlsClient | TlsServer):
        sock.setblocking(False)
        self.sock = sock
        self._leg: KernelLeg | None = None
        handover = Handover(ktls.support(), is_server=isinstance(settings, TlsServer))
        self.secured = SecureSocket(sock, contexts()(settings), SCRATCH, "far end", handover)
        while not self.secured.shake():
            self._wait()

    def _wait(self) -> None:
        assert select.select([self.sock], [], [], PATIENCE)[0], "nothing came"

    def read(self, until: bytes) -> bytes:
        """What comes, as far as these bytes."""
        got = b""
        while until not in got:
            try:
                count = self.secured.recv_into(BUFFER)
            except BlockingIOError:
                self._wait()
                continue
            assert count, got
            got += bytes(BUFFER[:count])
        return got

    def sealed(self, data: bytes) -> bytes:
        """A record with these bytes."""
        self.secured.machine.seal(data)
        return self.secured.machine.take()

    def go_over(self) -> socket.socket:
        """The kernel seals from here on; the socket, which blocks now."""
        handover = self.secured.handover
        assert handover is not None
        assert self.secured.settle(BUFFER) == b""
        assert not handover.refused, handover.refused
        self._leg = handover.give(self.sock)
        self.sock.settimeout(PATIENCE)
        return self.sock

    def say(self, kind: int, content: bytes) -> None:
        """A record of any type."""
        told = [(ktls.SOL_TLS, ktls.TLS_SET_RECORD_TYPE, bytes([kind]))]
        self.sock.sendmsg([content], told)

    def hear(self) -> tuple[int, bytes]:
        """The next record that is no data, or the next that is: its type, its content."""
        content, told, _, _ = self.sock.recvmsg(65_536, 64)
        return told[0][2][0] if told else 0, content

    def update_keys(self) -> None:
        """KeyUpdate, and the keys that follow, where this kernel takes them."""
        self.say(HANDSHAKE, KEY_UPDATE)
        if ktls.support().rekeys:
            assert self._leg is not None
            self._leg.ours = ktls.next_secret(self._leg.suite, self._leg.ours)
            ktls.give(self.sock, ktls.TLS_TX, fresh_keys(self._leg.suite, self._leg.ours))
