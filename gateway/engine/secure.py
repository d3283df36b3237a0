"""TLS on a link: a socket's face over a socket and a TLS machine that has none.

The machine (`tls.py` over `ssl`, `openssl.pyx` in C, `memory_tls.py` for simulated wires) turns
sealed bytes into clear ones and back; the `SecureSocket` here moves them, and looks to the engine
like the socket that it took the place of. Laws of this file:

- Nothing waits, and nothing raises but OSError: `BlockingIOError` where a socket would block, and
  `TlsFault` for what is TLS's own.
- Bytes that were sealed cannot be taken back, and the kernel may not take all of them at once. What
  it left is kept, and as many clear bytes count as not taken: the caller offers those again, as
  it must with any socket, and they are skipped. So queues, marks, limits and `write_timeout` are as
  true as on a plain link, and what is kept here is one batch.
- A FIN proves nothing: the end of a stream is its close_notify (RFC 8446 6.1).

- Where the kernel has TLS, records are counted on their way (`ktls_handover.py`), so that the link
  can go over to it when its relay begins.

Must never: look into clear bytes, know which machine it has.
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from gateway.engine.contract import READ_MAX
from gateway.engine.ktls_handover import Handover
from gateway.errors import Fault, Handshake, fault_of
from gateway.events import PeerCertificate, TlsClient, TlsServer

# A record is at most 16 KiB of clear bytes; sealed it has 256 bytes more at most, and a header of 5
# (RFC 8446 5.2; 2,048 more in RFC 5246 6.2.3).
RECORD_MAX = 16 * 1024 + 2048 + 5

# What is read at once: so little that it opens into one READ_MAX, with the start of a record that
# came before. Then a link that was read has nothing left in user space but the start of one.
SEALED_READ_MAX = READ_MAX - RECORD_MAX

SEAL_MAX = 64 * 1024               # clear bytes that one send seals
HEAR_OUT_MAX = 4                   # reads of what nobody wants any more

TRUNCATED_DETAIL = "FIN without close_notify (RFC 8446 6.1)"


class TlsFault(OSError):
    """What is TLS's own to raise: `fault` (TLS or TRUNCATED), a plain sentence, and what it counts
    as where a handshake fails by it."""

    def __init__(self, fault: Fault, detail: str, handshake: Handshake = Handshake.OTHER):
        super().__init__(errno.EPROTO, detail)
        self.fault = fault
        self.detail = detail
        self.handshake = handshake


def verdict_of(error: OSError) -> tuple[Fault, str]:
    """The fault for what a socket's verb raised, and a sentence if there is one to say."""
    if isinstance(error, TlsFault):
        return error.fault, error.detail
    return fault_of(error.errno or 0), ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a handshake came to; see `events.Secured`."""

    server_name: str = ""
    protocol: str = ""
    version: str = ""
    cipher: str = ""
    resumed: bool = False
    certificate: PeerCertificate | None = None


class Machine(Protocol):
    """TLS without a socket. Whatever it does may leave sealed bytes to send: `take` them."""

    finished: bool
    """ close_notify has come, and all before it is opened. """

    pending: bool
    """ `open_into` has more to tell without being fed: bytes that did not fit or came with the
    handshake, close_notify or a fault behind bytes that it gave. """

    is_compiled: bool
    """ Compiled relays go on with it: it is a `SecureLeg`. """

    def feed(self, sealed: bytes | memoryview) -> None:
        """These bytes came. They are copied."""

    def shake(self) -> bool:
        """Go on with the handshake; True once it is done. Raises TlsFault, and has an alert to
        send then."""

    def facts(self) -> Facts:
        """What the handshake came to."""

    def open_into(self, buffer: memoryview) -> int:
        """Clear bytes from what was fed, as many as are whole and fit; 0 if none are. Raises
        TlsFault for bytes that are no records of this stream, once all before them is opened."""

    def seal(self, data: bytes | memoryview) -> None:
        """Seal these, in as few records as may be. Not before the handshake is done."""

    def say_close(self) -> None:
        """close_notify, but not where the stream has failed. Nothing is sealed behind it."""

    def take(self) -> bytes:
        """What is to be sent, once."""

    def secrets(self) -> dict[str, bytes]:
        """What OpenSSL's keylog says of this link, by its labels, once: secrets, and as
        CLIENT_RANDOM the client's random with the master secret behind it. Nothing where the
        kernel has no use for them."""


# Makes a machine for a new link, and keeps what is common to those of the same settings for as
# long as these live. Raises ValueError for settings that cannot be used.
MachineFactory = Callable[[TlsServer | TlsClient], Machine]


class SecureSocket:
    """The face of `socket.socket` that engines use. `pending` says that clear bytes may be had
    though the descriptor is not readable; `unsent` are sealed bytes that the kernel did not take,
    and `owed` how many clear ones of those were told as not taken."""

    __slots__ = (
        "_ended",
        "_far",
        "_lost",
        "_said_close",
        "_scratch",
        "handover",
        "is_ready",
        "machine",
        "owed",
        "pending",
        "sock",
        "unsent",
    )

    def __init__(
        self,
        sock: socket.socket,
        machine: Machine,
        scratch: memoryview,
        far: str,
        handover: Handover | None = None,
    ):
        self.sock = sock
        self.machine = machine
        self.handover = handover                    # to the kernel, where that has TLS
        self.is_ready = False                       # the handshake is done
        self.pending = False
        self.unsent: bytes | memoryview = b""
        self.owed = 0
        self._far = far                             # "client" or "upstream", for sentences
        self._scratch = scratch                     # hot: all links of an engine receive into it
        self._ended = False                         # FIN came, or what looks like it behind a loss
        self._lost: OSError | None = None           # a send of ours failed while we read
        self._said_close = False

    # --- The handshake ----------------------------------------------------------------------

    def feed(self, sealed: bytes | memoryview) -> None:
        """These bytes came."""
        if self.handover is None:
            self.machine.feed(sealed)
        elif self.is_ready:
            self.handover.received(sealed)
            self.machine.feed(sealed)
        else:
            self.handover.hold(sealed)

    def _feed_next(self) -> bool:
        """Where records are counted, the handshake has them one by one; True if there was one."""
        record = b"" if self.handover is None else self.handover.next_record()
        if record:
            self.machine.feed(record)
        return bool(record)

    def _be_ready(self) -> None:
        """The handshake is done."""
        self.is_ready = True
        self.pending = self.machine.pending
        if self.handover is not None:
            facts = self.machine.facts()
            rest = self.handover.begin(facts.version, facts.cipher, self.machine.secrets())
            if rest:
                self.machine.feed(rest)
                self.pending = True

    def shake(self) -> bool:
        """Do of the handshake what can be done now; True once it is done. Raises OSError."""
        self._feed_next()
        while True:
            if self.handover is not None:
                self.handover.step()
            try:
                done = self.machine.shake()
            except TlsFault:
                self._collect()
                with contextlib.suppress(OSError):  # the alert
                    self._push()
                raise
            self._collect()
            self._push()
            if done:
                self._be_ready()
                return True
            if self._feed_next():
                continue
            try:
                count = self.sock.recv_into(self._scratch)
            except BlockingIOError:
                return False
            if not count:
                detail = f"the {self._far} left in the middle of the handshake"
                raise TlsFault(Fault.TLS, detail, Handshake.LEFT)
            self.feed(self._scratch[:count])
            self._feed_next()

    # --- The face ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor."""
        return self.sock.fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """The socket's."""
        self.sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        """The socket's."""
        return self.sock.getsockopt(level, option)

    def recv_into(self, buffer: memoryview) -> int:
        """Clear bytes; 0 at close_notify. Raises TlsFault for a FIN without it. Gives what is whole
        before anything that it raises."""
        self.pending = False
        while True:
            try:
                count = self.machine.open_into(buffer)
            finally:
                self._collect()                     # an alert, or new keys: see `send`
                try:
                    self._push()
                except OSError as error:            # the kernel tells it once; what came is read on
                    self._lost = self._lost or error
            self.pending = count > 0 and self.machine.pending
            if count or self.machine.finished:
                return count
            if self._ended:
                raise self._lost or TlsFault(Fault.TRUNCATED, TRUNCATED_DETAIL)
            received = self.sock.recv_into(self._scratch)
            if received:
                self.feed(self._scratch[:received])
            else:
                self._ended = True

    def send(self, data: bytes | memoryview) -> int:
        """As `sendmsg`."""
        return self.sendmsg((data,))

    def sendmsg(self, pieces: Iterable[bytes | memoryview]) -> int:
        """Seal and send from the front; how many clear bytes count as taken. What does not is to
        be offered again before anything else."""
        self._push()
        if self.unsent:
            raise BlockingIOError(errno.EAGAIN, "full")
        skipped, self.owed = self.owed, 0
        data = _front(pieces, skipped + SEAL_MAX)
        assert len(data) >= skipped
        fresh = memoryview(data)[skipped:]
        if fresh:
            self.machine.seal(fresh)
            self._collect()
            sealed = len(self.unsent)
            self._push()
            self.owed = -(-len(fresh) * len(self.unsent) // sealed)
        return len(data) - self.owed

    def shutdown(self, how: int) -> None:
        """close_notify, then FIN. Raises BlockingIOError if that could not leave: call it again."""
        self.say_close()
        if self.unsent:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.sock.shutdown(how)

    def say_close(self) -> None:
        """close_notify, as far as the kernel takes it. Raises OSError."""
        if self.is_ready and not self._said_close:
            self._said_close = True
            self.machine.say_close()
            self._collect()
        self._push()

    def keep_silent(self) -> None:
        """Say no close_notify: the stream does not end here, it breaks off."""
        self._said_close = True

    def hear_out(self) -> None:
        """Throw away what has come, so that closing destroys nothing that was said last."""
        with contextlib.suppress(OSError):
            for _ in range(HEAR_OUT_MAX):
                if not self.sock.recv_into(self._scratch):
                    break

    def close(self) -> None:
        """Give the descriptor back, and say nothing."""
        self.sock.close()

    def detach(self) -> int:
        """Give the descriptor away; the machine, `unsent` and `owed` are whose it is then."""
        return self.sock.detach()

    # --- To the kernel ----------------------------------------------------------------------

    def settle(self, buffer: memoryview) -> bytes:
        """Get to where the kernel can take over: all that was sealed is out, all that came is
        opened, and no record is half read. Returns the clear bytes of that; `handover` says whether
        it came so far. Raises nothing: what is wrong here is told again by the next read."""
        handover = self.handover
        assert handover is not None and not handover.refused
        with contextlib.suppress(OSError):
            self._push()
            while handover.missing:                 # of a header, then of its record
                count = self.sock.recv_into(self._scratch[: handover.missing])
                if not count:
                    self._ended = True
                    break
                self.feed(self._scratch[:count])
        before, clear = handover.counted, []
        with contextlib.suppress(TlsFault):
            while count := self.machine.open_into(buffer):
                clear.append(bytes(buffer[:count]))
        self._collect()
        if handover.missing:
            handover.refused = "a record was on its way"
        elif self.unsent or handover.counted != before:
            handover.refused = "what was sealed was not out"
        elif self.machine.finished or self.machine.pending or self._ended:
            handover.refused = "its end had come"
        self.pending = self.machine.finished or self.machine.pending or self._ended
        return b"".join(clear)

    # --- Sealed bytes -----------------------------------------------------------------------

    def _collect(self) -> None:
        sealed = self.machine.take()
        if sealed:
            if self.handover is not None:
                self.handover.sent(sealed)
            self.unsent = b"".join((self.unsent, sealed)) if self.unsent else sealed

    def _push(self) -> None:
        """Send what the kernel takes; raises OSError, but not that it is full."""
        while self.unsent:
            try:
                count = self.sock.send(self.unsent)
            except BlockingIOError:
                return
            self.unsent = memoryview(self.unsent)[count:] if count < len(self.unsent) else b""


def _front(pieces: Iterable[bytes | memoryview], size: int) -> bytes | memoryview:
    """The first bytes of all pieces together, at most so many."""
    taken: list[bytes | memoryview] = []
    for piece in pieces:
        part = piece if len(piece) <= size else memoryview(piece)[:size]
        taken.append(part)
        size -= len(part)
        if not size:
            break
    return taken[0] if len(taken) == 1 else b"".join(taken)
