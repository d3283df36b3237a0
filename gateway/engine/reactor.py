"""A turn, for engines over non-blocking sockets and a poller: who is ready, what is due, the news.

A turn: ask the poller, do what is ready, take the timers that are due, deliver what was found,
then tell the poller what changed. Laws of this file:

- Verbs and readiness only post news; `_deliver_news` alone calls `deliver`. News stay with their
  link, so that a verb can take back what was not delivered (`close`, `relay`, `clear_timer`).
- A turn is bounded in time, since relays move between turns: whoever is ready, due or has news
  beyond that is first in the next.
- What the poller watches is changed once, at the end of a turn, however often it flips in one.
- The poller is told before a descriptor is closed: a listening socket lives on in others, and
  epoll would go on telling of it.
- An exception ends the turn and loses nothing: what was not delivered is delivered by the next.

What is ready, due and posted means is said in `core.py`.
"""

import contextlib
import select
import socket
import struct
from collections import deque
from typing import Protocol

from gateway.engine import contract
from gateway.engine.contract import Deliver
from gateway.engine.link_state import UNWATCHED, Endpoint, LinkState, ListenerState
from gateway.engine.relay_driver import RelayDriver
from gateway.engine.timers import Timer, Timers
from gateway.events import Closed, Event

RELAY_TIMER = "relay"
LINGER_RESET = struct.pack("ii", 1, 0)

TimerOwner = LinkState | ListenerState | RelayDriver


class Poller(Protocol):
    """The part of `select.epoll` that is used."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch `fd`, level-triggered."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch it for this from now on; EPOLLERR and EPOLLHUP always count."""

    def unregister(self, fd: int, /) -> None:
        """Forget it."""

    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        """Who is ready, and for what."""


class Reactor:
    """See the module's docstring. `turns` counts turns, for tests: an idle engine makes none."""

    def __init__(self, poller: Poller):
        self.timers: Timers[TimerOwner] = Timers()
        self.turns = 0
        self._poller = poller
        self._links: dict[int, LinkState] = {}
        self._by_fd: dict[int, Endpoint] = {}
        self._news: deque[Endpoint] = deque()            # those with news, in order of the first
        self._touched: list[Endpoint] = []               # whose watching may have to change
        self._deliver: Deliver | None = None
        self._numbers = 0
        self._freed = False                              # a descriptor was, since the last turn
        self._turning = False
        self._behind = False               # the last turn left news that it had found
        self._until = 0.0                  # when the turn has lasted long enough
        self._stopping = False

    # --- What the kernel's side provides ----------------------------------------------------

    def now(self) -> float:
        """The clock of all events and timers."""
        raise NotImplementedError

    def _open_socket(self, family: int) -> socket.socket:
        """A new, non-blocking stream socket; raises OSError."""
        raise NotImplementedError

    def _open_pair(self) -> tuple[socket.socket, socket.socket]:
        """Two connected, non-blocking stream sockets; raises OSError."""
        raise NotImplementedError

    def _free_for_links(self) -> float:
        """Descriptors that links may yet take."""
        raise NotImplementedError

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes, for masks and pings."""
        raise NotImplementedError

    def _is_readable(self, sock: socket.socket) -> bool:
        """Whether something is there to read, or somebody to accept. The poller is not asked: it
        has its turns, and may not watch this one."""
        asking = select.poll()
        asking.register(sock, select.POLLIN)
        return bool(asking.poll(0))

    def _wake(self) -> None:
        """See to it that `_turn` is called soon. Called from verbs, outside of a turn."""
        raise NotImplementedError

    # --- What the verbs' side provides ------------------------------------------------------

    def _on_ready(self, owner: Endpoint, mask: int) -> None:
        """The poller says `mask` of an endpoint that has its socket."""
        raise NotImplementedError

    def _on_due(self, owner: TimerOwner, name: str) -> None:
        """This timer is due."""
        raise NotImplementedError

    def _on_freed(self) -> None:
        """A descriptor is free again."""
        raise NotImplementedError

    # --- A turn -----------------------------------------------------------------------------

    def _turn(self) -> None:
        """Once round. An exception is out of `deliver`, or a bug; nothing is lost by it."""
        self.turns += 1
        self._turning = True
        self._until = self.now() + contract.TURN_LIMIT
        try:
            if not self._behind:
                self._look_who_is_ready()
            self._fire_timers()
            self._deliver_news()
            if self._freed:
                self._freed = False
                self._on_freed()
        finally:
            self._flush_touched()
            self._turning = False

    def _look_who_is_ready(self) -> None:
        by_fd = self._by_fd
        # Owners first: a descriptor closed and reused within the turn is another's then.
        found = self._poller.poll(0, contract.READY_PER_TURN)
        ready = [(by_fd[fd], mask) for fd, mask in found]
        for owner, mask in ready:
            if owner.sock is not None:
                self._on_ready(owner, mask)

    def _deliver_news(self) -> None:
        """What is there now. What deliver's verbs add for others waits for the next turn. So does
        what is too much for one, and nobody is asked for more before it is delivered."""
        news = self._news
        left = len(news)
        batches = contract.BATCHES_PER_TURN
        # However long it took to find them, some are delivered.
        until = max(self._until, self.now() + contract.TURN_LIMIT / 2)
        self._behind = False
        while left and not self._stopping:
            owner = news[0]
            if not owner.news:
                owner.news = None
                news.popleft()
                left -= 1
                continue
            if not batches:
                self._behind = True
                return
            batch = owner.news.pop(0)
            batches -= 1
            for event in batch:
                if isinstance(event, Closed):
                    del self._links[event.link]
            assert self._deliver is not None
            self._deliver(batch)
            if self.now() >= until:
                batches = 0

    def _flush_touched(self) -> None:
        """Tell the poller what changed."""
        touched, self._touched = self._touched, []
        for owner in touched:
            owner.touched = False
            if owner.sock is None:
                continue
            mask = owner.wanted()
            if mask == owner.mask:
                continue
            if mask == UNWATCHED:
                self._poller.unregister(owner.fd)
                del self._by_fd[owner.fd]
            elif owner.mask == UNWATCHED:
                self._poller.register(owner.fd, mask)
                self._by_fd[owner.fd] = owner
            else:
                self._poller.modify(owner.fd, mask)
            owner.mask = mask

    def post(self, owner: Endpoint, *batch: Event) -> None:
        """News of `owner`, delivered together in the next delivery."""
        if owner.news is None:
            owner.news = []
            self._news.append(owner)
            self._wake_outside_turn()
        owner.news.append(list(batch))

    def touch(self, owner: Endpoint) -> None:
        """What is watched of `owner` may have to change at the end of the turn."""
        if not owner.touched:
            owner.touched = True
            self._touched.append(owner)
            self._wake_outside_turn()

    def _wake_outside_turn(self) -> None:
        if not self._turning:
            self._wake()

    def add_timer(self, at: float, owner: RelayDriver) -> Timer[TimerOwner]:
        """A timer for a relay."""
        self._wake_outside_turn()
        return self.timers.add(at, owner, RELAY_TIMER)

    def _fire_timers(self) -> None:
        """Those that were due when it began, a turn's worth: one that sets itself anew waits for
        the next."""
        now = self.now()
        due: list[tuple[TimerOwner, str]] = []
        while len(due) < contract.BATCHES_PER_TURN:
            timer = self.timers.take(now)
            if timer is None:
                break
            due.append(timer)
        for owner, name in due:
            self._on_due(owner, name)

    def release(self, owner: Endpoint, *, abort: bool = False) -> None:
        """Close its descriptor, with RST if `abort` and the family has it. A secured one says its
        close_notify before, unless `abort`: as far as it can, which is all there is to do."""
        sock = owner.sock
        if sock is None:
            return
        self.unwatch(owner)
        if not abort and isinstance(owner, LinkState) and owner.secured is not None:
            with contextlib.suppress(OSError):
                owner.secured.say_close()
        if abort and not owner.is_unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        owner.sock = None
        sock.close()
        self.freed()

    def unwatch(self, owner: Endpoint) -> None:
        """The poller forgets its descriptor."""
        if owner.mask != UNWATCHED:
            self._poller.unregister(owner.fd)
            del self._by_fd[owner.fd]
            owner.mask = UNWATCHED

    def freed(self) -> None:
        """A descriptor is free again: who waits for one is told at the end of the turn."""
        self._freed = True
        self._wake_outside_turn()

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
