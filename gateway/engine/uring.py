"""The engine on io_uring.

The ring is its loop, in C and without the GIL: relays are moved there, and Python is entered once
a turn, with all that was found, only when there is something for it (`ring_relays.pyx`). Heads,
handshakes and connections take the verbs that engines on sockets share (`core.py`), with the ring
as their poller. Facts and laws:

- A ring belongs to the thread and the process that made it: DEFER_TASKRUN lets nobody else in, and
  a forked child would move the parent's queue. Each verb looks, before it touches anything.
- A wait ends with EINTR at a signal. One that comes between the last look and the wait would be
  slept over; so Python's own handler in C writes to a socket that is polled (`set_wakeup_fd`,
  which takes no eventfd), where this is the main thread.
- Relays move by the ring's own receives and sends (completions), or by polls in it and plain calls
  (readiness): which is cheaper depends on what a system call costs (`control/choice.py`). All else
  is the same in both.
- SIGPIPE is ignored from the first ring on: splice(2) to a socket that was reset raises it.

Must never: use the ring before `_check`; block but in the wait.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from gateway.engine import descriptors
from gateway.engine.compiled_relays import CompiledRelays
from gateway.engine.contract import Deliver
from gateway.engine.core import SocketEngine
from gateway.engine.link_state import Endpoint
from gateway.engine.ring_completions import RingCompletions
from gateway.engine.ring_relays import RingRelays

RANDOM_STOCK = 4096                # random bytes fetched at once; a mask takes 4
BUFFERS = 128                      # of 64 KiB; twice the links that are busy in one turn
SOON = 0.0                         # a time that has passed: look, and do not wait

_F = TypeVar("_F", bound=Callable[..., Any])


class UringEngine(SocketEngine):
    """See gateway.engine.contract.Engine. Belongs to the thread that makes it.

    form: "completions" or "readiness". entries, completions, buffers: sizes of the ring's queues,
    and how many buffers completions have. Raises `uring_ring.RingRefused`.
    """

    name = "io_uring"

    def __init__(
        self, form: str = "readiness", *, entries: int = 256, completions: int = 4096,
        buffers: int = BUFFERS,
    ) -> None:
        assert form in ("completions", "readiness")
        self.form = form
        pipes = descriptors.pipes_max()
        self._ring = (
            RingCompletions(pipes, entries=entries, completions=completions, buffers=buffers)
            if form == "completions"
            else RingRelays(pipes, entries=entries, completions=completions)
        )
        super().__init__(self._ring)
        self.compiled = CompiledRelays(self, self._ring)
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._bell, self._bell_end = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_end.setblocking(False)
        self._ring.register(self._bell_end.fileno(), select.EPOLLIN)
        self._bell_owner = _Bell(self._bell_end)
        self._by_fd[self._bell_end.fileno()] = self._bell_owner
        self._random = b""
        self._running = False
        self._woken = False
        self._is_closed = False
        self.left_behind = 0       # operations that would not end, when it was stopped

    def now(self) -> float:
        """See contract.Engine.now."""
        return time.monotonic()

    def run(self, deliver: Deliver) -> None:
        """See contract.Engine.run. May be called again after it raised."""
        self._check()
        assert not self._running
        if self._is_closed:
            return
        self._deliver = deliver
        self._running = True
        previous = self._hear_signals()
        try:
            while not self._stopping:
                self._once_round()
        finally:
            self._running = False
            if previous is not None:
                signal.set_wakeup_fd(previous)
            if self._stopping:
                self._shut_down()

    def _once_round(self) -> None:
        """Wait, then a turn. A signal's handler may raise anywhere in here."""
        if self._woken or self._news or self._stopping:
            self._woken = False
            until = SOON
        else:
            until = self.timers.next_at()
        self._ring.wait(until)
        assert self.compiled is not None
        self.compiled.report()
        self._turn()

    def stop(self) -> None:
        """See contract.Engine.stop. While it runs, also from a signal handler and any thread."""
        if os.getpid() != self._process:
            self._check()
        self._stopping = True
        if self._running:
            self._ring_bell()
        else:
            self._check()
            self._shut_down()

    def random_bytes(self, count: int) -> bytes:
        """`os.urandom`, fetched in stock: a system call for each mask would be dear."""
        if len(self._random) < count:
            self._random = os.urandom(max(RANDOM_STOCK, count))
        taken, self._random = self._random[:count], self._random[count:]
        return taken

    # --- What the reactor asks for ----------------------------------------------------------

    def _open_socket(self, family: int) -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def _open_pair(self) -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    def _free_for_links(self) -> float:
        return descriptors.free_for_links()

    def _wake(self) -> None:
        self._woken = True

    def _on_ready(self, owner: Endpoint, mask: int) -> None:
        if owner is self._bell_owner:
            self._empty_bell()
        else:
            super()._on_ready(owner, mask)

    # --- Waking -----------------------------------------------------------------------------

    def _hear_signals(self) -> int | None:
        """Let a signal end the wait also if it comes just before it. Returns what was set."""
        if threading.current_thread() is not threading.main_thread():
            return None                             # handlers run in the main thread only
        return signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)

    def _ring_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rings already
            self._bell.send(b"\0")

    def _empty_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._bell_end.recv(4096):
                pass

    # --- The end ----------------------------------------------------------------------------

    def _shut_down(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        fd = self._bell_end.fileno()
        self._ring.unregister(fd)
        del self._by_fd[fd]
        self._close_all()
        self.left_behind = self._ring.close_ring()
        self._bell.close()
        self._bell_end.close()

    # --- Whose it is ------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises RuntimeError for a forked child and for another thread, which would damage it."""
        if os.getpid() != self._process:
            raise RuntimeError("the engine belongs to the process that made it")
        if threading.get_ident() != self._thread:
            raise RuntimeError("the engine belongs to the thread that made it")


class _Bell(Endpoint):
    """What a signal's handler and other threads write to."""

    __slots__ = ()

    def __init__(self, sock: socket.socket):
        super().__init__(0)
        self.attach(sock, is_unix=True)
        self.mask = select.EPOLLIN

    def wanted(self) -> int:
        """Always watched."""
        return select.EPOLLIN


def _checked(verb: _F) -> _F:
    """The verb, which looks whose engine it is before anything else."""

    def checked(self: UringEngine, *args: Any, **named: Any) -> Any:
        self._check()
        return verb(self, *args, **named)

    checked.__doc__ = verb.__doc__
    checked.__name__ = verb.__name__
    return cast("_F", checked)


VERBS = (
    "listen", "unlisten", "waits", "adopt", "pair", "connect", "secure", "read", "hold", "send",
    "finish", "close", "reset", "relay", "end", "inspect", "set_timer", "clear_timer",
)
for _verb in VERBS:
    setattr(UringEngine, _verb, _checked(getattr(SocketEngine, _verb)))
