"""How a session's TLS goes over to the kernel: what was counted since its keys, and when it may.

A kernel that takes keys must be told the number of the next record, each way, and may be given no
half of one. Nobody tells these numbers, so the records that pass are counted here, by their
headers. Laws of this file:

- Until the handshake is done the machine is fed one record at a time: so it is known which was the
  last under the keys of the handshake. All that comes later counts from there (RFC 8446 5.3).
- What a server says with its last step are tickets, under the new keys; what a client says with
  it is the end of the handshake, under the old ones.
- In TLS 1.2 each direction counts from its ChangeCipherSpec (RFC 5246 6.1).
- Where the link is not at a boundary of records, or not all that was sealed is out, it stays as it
  is: in user space, and the record says why.

- A KeyUpdate that the far end asks for goes out under the old keys, and before any data
  (RFC 8446 4.6.3).

Never: guess a number. One that is wrong ends the session.
"""

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.engine import ktls
from gateway.engine.ktls import TLS_1_3, TLS_RX, TLS_TX, Keys, Suite, Support

CLIENT_RANDOM = "CLIENT_RANDOM"                     # labels of the keylog, as NSS has named them
CLIENT_TRAFFIC = "CLIENT_TRAFFIC_SECRET_0"
SERVER_TRAFFIC = "SERVER_TRAFFIC_SECRET_0"

ON = "on"                                           # of a link: see events.LegCounts.ktls

HEADER = 5
CHANGE_CIPHER_SPEC, HANDSHAKE, DATA = 20, 22, 23
CIPHERTEXT_MAX = 16 * 1024 + 2048                   # RFC 5246 6.2.3; less in RFC 8446
CLIENT_HELLO, SERVER_HELLO = 1, 2

Secrets = dict[str, bytes]                          # by the labels of the keylog


def secrets_of(lines: Iterable[bytes]) -> Secrets:
    """What a keylog tells in lines of label, client's random, secret. CLIENT_RANDOM (TLS 1.2) is
    the master secret: the random goes before it, since keys are made of both."""
    told = {}
    for line in lines:
        if line and not line.startswith(b"#"):      # a comment opens a file
            label, client_random, secret = line.decode().split()
            before = client_random if label == CLIENT_RANDOM else ""
            told[label] = bytes.fromhex(before + secret)
    return told


class Records:
    """Counts the records of one direction; bytes may come in any pieces."""

    __slots__ = ("_head", "_left", "count", "nonce")

    def __init__(self) -> None:
        self.count = 0                              # since the last ChangeCipherSpec
        self.nonce = b""                            # the first bytes of the last one, if they came
        self._head = b""
        self._left = 0

    @property
    def missing(self) -> int:
        """Bytes to the next boundary, as far as it is known; 0 if this is one."""
        return self._left or (HEADER - len(self._head) if self._head else 0)

    def saw(self, data: bytes | memoryview) -> None:
        """These have passed."""
        at, size = 0, len(data)
        while at < size:
            if not self._left:
                step = HEADER - len(self._head)
                self._head += bytes(data[at : at + step])
                at += step
                if len(self._head) < HEADER:
                    return
                self._left = struct.unpack("!H", self._head[3:])[0]
                self.nonce = bytes(data[at : at + 8])
            step = min(self._left, size - at)
            at += step
            self._left -= step
            if not self._left:
                self.count = 0 if self._head[0] == CHANGE_CIPHER_SPEC else self.count + 1
                self._head = b""


@dataclass(slots=True)
class KernelLeg:
    """What is kept of a link whose records the kernel seals and opens: the secrets that follow at a
    KeyUpdate, where the kernel takes new keys; else nothing."""

    suite: Suite
    ours: bytes = field(default=b"", repr=False)
    theirs: bytes = field(default=b"", repr=False)


class Handover:
    """One link on its way there. `refused` says why it stays in user space; "" while it may go."""

    __slots__ = (
        "_held", "_is_server", "_mark", "_received", "_secrets", "_sent", "_server_random",
        "_suite", "_support", "_version", "refused",
    )

    def __init__(self, support: Support, *, is_server: bool):
        self.refused = support.missing
        self._support = support
        self._is_server = is_server
        self._held = b""                            # received, and not fed yet
        self._received, self._sent = Records(), Records()
        self._mark = 0                              # records sent before the last step
        self._server_random = b""
        self._secrets: Secrets = {}
        self._version = ""
        self._suite = ktls.AES_128

    # --- The handshake ----------------------------------------------------------------------

    def hold(self, data: bytes | memoryview) -> None:
        """These came before the handshake was done: they are fed by `next_record`."""
        self._held += data

    def next_record(self) -> bytes:
        """What the machine is to be fed next; nothing if no record is whole. Whatever is no record
        is the machine's to refuse, and is given as it came."""
        if self.refused or not self._is_record():
            record, self._held = self._held, b""
            return record
        if len(self._held) < HEADER:
            return b""
        size = HEADER + int(struct.unpack("!H", self._held[3:HEADER])[0])
        if len(self._held) < size:
            return b""
        record, self._held = self._held[:size], self._held[size:]
        self.received(record)
        self._look_for_random(record, SERVER_HELLO if not self._is_server else 0)
        return record

    def _is_record(self) -> bool:
        """Whether what is held may begin with a record; else there is no handover."""
        head = self._held[:HEADER]
        odd = head and not CHANGE_CIPHER_SPEC <= head[0] <= DATA
        odd = odd or (len(head) > 1 and head[1] != 3)
        odd = odd or (len(head) == HEADER and head[3] << 8 | head[4] > CIPHERTEXT_MAX)
        if odd:
            self.refused = "its handshake has something that is no record"
        return not odd

    def step(self) -> None:
        """The machine is about to go on with the handshake."""
        self._mark = self._sent.count

    def begin(self, version: str, cipher: str, secrets: Secrets) -> bytes:
        """The handshake is done. Returns what came behind it, which is to be fed."""
        rest, self._held = self._held, b""
        suite = ktls.suite_of(cipher)
        if self.refused:
            return rest
        if suite is None or not self._support.has(version, cipher):
            self.refused = f"the kernel does not have {cipher} in {version}"
            return rest
        self._version, self._suite, self._secrets = version, suite, secrets
        if version == TLS_1_3:
            self._received.count = 0
            self._sent.count = self._sent.count - self._mark if self._is_server else 0
        wanted = (CLIENT_TRAFFIC, SERVER_TRAFFIC) if version == TLS_1_3 else (CLIENT_RANDOM,)
        if not all(label in secrets for label in wanted):
            self.refused = "the keys are not told"
        self.received(rest)
        return rest

    # --- What passes ------------------------------------------------------------------------

    def received(self, sealed: bytes | memoryview) -> None:
        """The machine was fed these."""
        self._received.saw(sealed)

    def sent(self, sealed: bytes) -> None:
        """The machine gave these to send: whole records."""
        self._look_for_random(sealed, SERVER_HELLO if self._is_server else 0)
        self._sent.saw(sealed)

    def _look_for_random(self, record: bytes, kind: int) -> None:
        """Keep the server's random (RFC 5246 7.4.1.3): TLS 1.2 makes keys of it."""
        at = HEADER + 4 + 2                         # of the record, of the message; the version
        if (
            kind and not self._server_random and len(record) >= at + 32
            and record[0] == HANDSHAKE and record[HEADER] == kind
        ):
            self._server_random = record[at : at + 32]

    @property
    def missing(self) -> int:
        """Bytes that are still to come of a record that was begun, as far as that is known."""
        return self._received.missing

    @property
    def counted(self) -> tuple[int, int]:
        """Records received and sent: that these are what they were means that nothing passed."""
        return self._received.count, self._sent.count

    # --- Going over -------------------------------------------------------------------------

    def give(self, sock: socket.socket) -> KernelLeg:
        """Give the kernel all that it needs; from then on the socket speaks TLS by itself. Raises
        OSError: where that is of the second direction, the link is of no use any more."""
        assert not self.refused
        assert not self.missing
        theirs, ours = self._keys()
        nonce = b""
        if self._sent.nonce and self._version != TLS_1_3:
            # One more than that of our last record: none was used twice (RFC 5288 3).
            nonce = struct.pack("!Q", (int.from_bytes(self._sent.nonce) + 1) % (1 << 64))
        sock.setsockopt(socket.IPPROTO_TCP, ktls.TCP_ULP, ktls.ULP)
        version, suite = self._version, self._suite
        for direction, info in (
            (TLS_TX, ktls.crypto_info(version, suite, ours, self._sent.count, nonce)),
            (TLS_RX, ktls.crypto_info(version, suite, theirs, self._received.count)),
        ):
            ktls.give(sock, direction, info)
        leg = KernelLeg(suite)
        if version == TLS_1_3 and self._support.rekeys:
            leg.theirs, leg.ours = self._by_side(
                self._secrets[CLIENT_TRAFFIC], self._secrets[SERVER_TRAFFIC]
            )
        self._secrets = {}
        return leg

    def _keys(self) -> tuple[Keys, Keys]:
        """Of what comes, and of what goes."""
        if self._version == TLS_1_3:
            client, server = (
                ktls.traffic_keys(self._suite, self._secrets[label])
                for label in (CLIENT_TRAFFIC, SERVER_TRAFFIC)
            )
        else:
            told = self._secrets[CLIENT_RANDOM]     # the client's random, then the master secret
            client, server = ktls.key_block(
                self._suite, told[32:], told[:32], self._server_random
            )
        return (client, server) if self._is_server else (server, client)

    def _by_side(self, client: bytes, server: bytes) -> tuple[bytes, bytes]:
        return (client, server) if self._is_server else (server, client)


KEY_UPDATE_NOT_ASKED = b"\x18\0\0\1\0"             # RFC 8446 4.6.3


def follow(fd: int, leg: KernelLeg, asked: bool) -> bool:
    """The far end has announced new keys, and perhaps asked for ours: give them to the kernel.
    False if it does not take them, or our own KeyUpdate; the link is of no use then."""
    sock = socket.socket(fileno=fd)
    try:
        leg.theirs = ktls.next_secret(leg.suite, leg.theirs)
        ktls.give(sock, TLS_RX, fresh_keys(leg.suite, leg.theirs))
        if asked:
            kind = [(ktls.SOL_TLS, ktls.TLS_SET_RECORD_TYPE, bytes([HANDSHAKE]))]
            sock.sendmsg([KEY_UPDATE_NOT_ASKED], kind)
            leg.ours = ktls.next_secret(leg.suite, leg.ours)
            ktls.give(sock, TLS_TX, fresh_keys(leg.suite, leg.ours))
    except OSError:
        return False
    finally:
        sock.detach()
    return True


def fresh_keys(suite: Suite, secret: bytes) -> bytes:
    """What the kernel is given of a secret that follows another: records count from 0 again
    (RFC 8446 5.3)."""
    return ktls.crypto_info(TLS_1_3, suite, ktls.traffic_keys(suite, secret), 0)
