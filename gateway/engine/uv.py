"""The engine on uvloop, for where io_uring is refused.

Facts about uvloop that shape it:

- Its servers close waiting clients when descriptors run out, and its transports cannot be handed
  to a relay; so sockets are our own.
- `add_reader` per socket would not tell that a held link was reset (libuv watches nothing then),
  reports RST as EBADF, and costs a handle of 0.7 KiB for each. So one epoll descriptor of our own
  holds all sockets, and the loop watches that one, as a single reader. Mask 0 in it still reports
  RST. Compiled relays have an epoll descriptor of their own, the loop's second reader.
- It swallows what callbacks raise. So a turn catches it, stops the loop, and `run` raises it; what
  a Python signal handler raises comes by the loop's exception handler and goes the same way.
- It sets `signal.set_wakeup_fd` while it runs in the main thread, so Python's own handlers run at
  once though the loop sleeps.
- Its timers have milliseconds and may be early by one: what is not due yet is asked for again.

Must never: use a server, transport or stream of the loop; block in a turn.
"""

import asyncio
import math
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import uvloop

try:
    from gateway.engine.compiled_relays import CompiledRelays
except ImportError:                # nothing was compiled: relays run in Python
    CompiledRelays = None  # type: ignore[assignment, misc]

from gateway.engine import descriptors, tls
from gateway.engine.contract import Deliver
from gateway.engine.core import SocketEngine
from gateway.engine.relay_driver import RelayFactory
from gateway.relaying import Relay

RANDOM_STOCK = 4096                # random bytes fetched at once; a mask takes 4
LATEST_S = 3600.0                  # the loop's timer is set no further away than this


class UvEngine(SocketEngine):
    """See gateway.engine.contract.Engine. Bound to the thread that calls `run`.

    Relays and TLS are compiled where they can be, unless `compiled` is False; then `relay_factory`
    makes the rules of relays.
    """

    name = "uvloop"

    def __init__(self, relay_factory: RelayFactory = Relay, *, compiled: bool = True) -> None:
        self._epoll = select.epoll()
        super().__init__(self._epoll, relay_factory, None if compiled else tls.Contexts())
        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(self._on_loop_error)
        self._loop.add_reader(self._epoll.fileno(), self._guarded_turn)
        if compiled and CompiledRelays is not None:
            self.compiled = CompiledRelays(self)
            self._loop.add_reader(self.compiled.fileno(), self._drain, self.compiled)
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._error: BaseException | None = None
        self._random = b""
        self._running = False
        self._woken = False

    def now(self) -> float:
        """See contract.Engine.now."""
        return time.monotonic()

    def run(self, deliver: Deliver) -> None:
        """See contract.Engine.run. May be called again after it raised."""
        assert not self._running
        if self._loop.is_closed():
            return
        self._deliver = deliver
        self._running = True
        self._woken = False
        self._wake()
        try:
            self._loop.run_forever()
        finally:
            self._running = False
            if self._stopping:
                self._shut_down()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def stop(self) -> None:
        """See contract.Engine.stop. May be called from a signal handler."""
        self._stopping = True
        if self._running:
            self._loop.call_soon_threadsafe(self._loop.stop)
        else:
            self._shut_down()

    def random_bytes(self, count: int) -> bytes:
        """`os.urandom`, fetched in stock: a system call for each mask would be dear."""
        if len(self._random) < count:
            self._random = os.urandom(max(RANDOM_STOCK, count))
        taken, self._random = self._random[:count], self._random[count:]
        return taken

    def _shut_down(self) -> None:
        if self._loop.is_closed():
            return
        if self.compiled is not None:
            self._loop.remove_reader(self.compiled.fileno())
        self._close_all()
        self._loop.remove_reader(self._epoll.fileno())
        if self._alarm is not None:
            self._alarm.cancel()
        self._loop.close()
        self._epoll.close()

    def _open_socket(self, family: int) -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def _open_pair(self) -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    def _free_for_links(self) -> float:
        return descriptors.free_for_links()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._guarded_turn)

    def _guarded_turn(self) -> None:
        """A turn, whose exceptions end `run`."""
        self._woken = False
        self._guarded(self._turn)

    def _drain(self, relays: "CompiledRelays") -> None:
        """Relays are ready. It is the one path that is taken for every few messages."""
        if not self._stopping and self._error is None and relays.drain(self._alarm_at):
            self._guarded(relays.report)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do a part of a turn; see to it that what it left behind is done soon."""
        if self._stopping or self._error is not None:
            return
        try:
            work()
            if self.compiled is not None and self.compiled.next_at() <= self.now():
                self.compiled.tick()
        except BaseException as error:  # noqa: BLE001, raised again by `run`
            self._fail(error)
            return
        if self._news:
            self._wake()
        self._set_alarm()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            self._loop.stop()

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop caught something outside of a turn."""
        error = context.get("exception")
        if not isinstance(error, BaseException):
            error = RuntimeError(str(context.get("message")))
        self._fail(error)

    def _set_alarm(self) -> None:
        """One timer of the loop stands for all of ours. One that comes too early does no harm, and
        most of ours are cleared before they are due: so it is only ever moved forward."""
        at = self.timers.next_at()
        if self.compiled is not None:
            at = min(at, self.compiled.next_at())
        if self._alarm is not None:
            if self._alarm_at <= at:
                return
            self._alarm.cancel()
            self._alarm = None
            self._alarm_at = math.inf
        if at < math.inf:
            delay = min(max(0.0, at - self.now()), LATEST_S)
            self._alarm_at = at
            self._alarm = self._loop.call_later(math.ceil(delay * 1000) / 1000, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._alarm_at = math.inf
        self._guarded_turn()
