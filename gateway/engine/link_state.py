"""What an engine on sockets keeps of one link and of one listener: data, and what follows from it.

Laws of this file:

- Small when idle: slots, and None where there is nothing (queue, news, timers).
- No system call, and no decision that takes one.
"""

import enum
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from gateway.engine.timers import Timer
from gateway.errors import Fault
from gateway.events import Address, Event, Link

if TYPE_CHECKING:
    from gateway.engine.ktls_handover import KernelLeg
    from gateway.engine.reactor import TimerOwner
    from gateway.engine.relay_driver import RelayDriver
    from gateway.engine.secure import SecureSocket

UNWATCHED = -1                     # the poller does not know this descriptor


class State(enum.Enum):
    """Of a link. DEAD: its descriptor is closed, its `Closed` not delivered yet."""

    CONNECTING = enum.auto()
    SECURING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    DEAD = enum.auto()


# Up to Python 3.11 `State.OPEN` takes ten times as long as a name of its own: the class of an enum
# has a `__getattr__` there. Each verb asks for some.
CONNECTING: Final = State.CONNECTING
SECURING: Final = State.SECURING
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
DEAD: Final = State.DEAD


class Endpoint:
    """What links and listeners share: a descriptor that is watched, and news to deliver."""

    __slots__ = ("fd", "is_unix", "mask", "news", "number", "sock", "timer", "touched")

    def __init__(self, number: int):
        self.number = number
        self.sock: socket.socket | None = None
        self.fd = -1
        self.is_unix = False
        self.mask = UNWATCHED                       # what the poller was told
        self.touched = False                        # what it is to be told may be another
        self.news: list[list[Event]] | None = None  # a list while the engine's queue names us
        self.timer: Timer[TimerOwner] | None = None    # the engine's own

    def attach(self, sock: socket.socket, *, is_unix: bool) -> None:
        """This is the socket. (`sock.family` makes an enum of a number at each look.)"""
        self.sock = sock
        self.fd = sock.fileno()
        self.is_unix = is_unix

    def forget_news(self) -> None:
        """Take back what was not delivered."""
        if self.news:
            self.news.clear()

    def wanted(self) -> int:
        """The mask that the poller is to have."""
        raise NotImplementedError


class ListenerState(Endpoint):
    """One listening socket."""

    __slots__ = ("held", "latest", "local", "paused")

    def __init__(self, number: int, sock: socket.socket):
        super().__init__(number)
        self.attach(sock, is_unix=sock.family == socket.AF_UNIX)
        self.paused = False                         # nothing is free to accept with
        self.held = False                           # by order
        self.latest: Link = -1                      # who was accepted last
        self.local: Address | None = None           # None: bound to all addresses

    def wanted(self) -> int:
        """Level-triggered and never EPOLLEXCLUSIVE: a stopped process that shares the socket would
        keep the only wake-up."""
        return UNWATCHED if self.paused or self.held else select.EPOLLIN


class LinkState(Endpoint):
    """One link."""

    __slots__ = (
        "address",
        "blocked",
        "clogged",
        "fault",
        "finished",
        "finishing",
        "hung",
        "kernel",
        "ktls",
        "queue",
        "queued",
        "reading",
        "relay",
        "secured",
        "shut",
        "state",
        "timers",
        "wants",
    )

    def __init__(self, number: int, state: State, wants: int = 0):
        super().__init__(number)
        self.state = state
        self.wants = wants         # descriptors: 1 for a client, and -1 for its upstream's link
        self.address: Address | None = None         # while connecting
        self.reading = False
        self.finished = False                       # FIN came
        self.finishing = False                      # FIN was ordered
        self.shut = False                           # FIN is out
        self.blocked = False                        # the kernel is full: wait until it is writable
        self.clogged = False
        self.hung = False                           # both ways shut: HUP would be told for ever
        self.fault: Fault | None = None             # lost; if not DEAD yet, reading to the end
        self.queue: deque[bytes | memoryview] | None = None
        self.queued = 0
        self.timers: dict[str, Timer[TimerOwner]] | None = None
        self.relay: RelayDriver | None = None
        self.secured: SecureSocket | None = None    # `sock`, where that speaks TLS

        self.kernel: KernelLeg | None = None        # the kernel speaks TLS on `sock`
        self.ktls = ""                              # that it does, or why not: see LegCounts.ktls

    def secure(self, secured: "SecureSocket") -> None:
        """From here on this is the socket, as far as the engine goes."""
        self.secured = secured
        self.sock = cast(socket.socket, secured)

    def skip(self, count: int) -> None:
        """So many bytes at the front of the queue are out already."""
        assert count <= self.queued
        self.queued -= count
        while count:
            assert self.queue is not None
            first = self.queue.popleft()
            if len(first) > count:
                self.queue.appendleft(memoryview(first)[count:])
            count -= min(count, len(first))
        self.queue = self.queue or None

    def drop_queue(self) -> None:
        """Nothing of it will leave."""
        self.queue = None
        self.queued = 0

    def wanted(self) -> int:
        """The mask that the poller is to have. 0 still tells of RST."""
        if self.state is CONNECTING:
            return UNWATCHED if self.timer is not None else select.EPOLLOUT
        if self.secured is not None and self.state is SECURING:
            return select.EPOLLIN | (select.EPOLLOUT if self.secured.unsent else 0)
        reading = self.reading if self.relay is None else self.relay.reads(self)
        mask = select.EPOLLIN if reading and not self.finished else 0
        if self.blocked:
            mask |= select.EPOLLOUT
        return UNWATCHED if self.hung and not mask else mask
