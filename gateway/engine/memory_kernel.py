"""The simulated kernel's face: sockets, listeners, a poller; see memory_network.

They look like `socket.socket` and `select.epoll` as far as the engine uses those, and fail with
the same OSErrors. Nothing here ever waits. The poller is level-triggered like epoll, and looks
only at descriptors where something was, so that idle links cost nothing.
"""

import errno
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

from gateway.engine.addresses import family_of, target_of
from gateway.engine.memory_wire import End, FarEnd
from gateway.engine.reactor import LINGER_RESET
from gateway.events import Address

if TYPE_CHECKING:
    from gateway.engine.memory_network import Network

Target = str | tuple[str, int]
LOCALHOST = "127.0.0.1"


class SimSocket(End):
    """What the engine holds: a stream socket, with the face of `socket.socket`."""

    def __init__(self, network: "Network", family: int):
        super().__init__(network, family)
        self.fd = -1                        # none while it waits in a backlog
        self.poller: SimPoller | None = None
        self.local: Target = "" if family == socket.AF_UNIX else (LOCALHOST, 0)
        self.connecting = False
        self._abort = False
        self._user_timeout = 0.0

    # --- The face ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self.fd

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""
        assert not flag

    def getsockname(self) -> Target:
        """Its own address."""
        return self.local

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """SO_LINGER with 0 makes close an RST; TCP_USER_TIMEOUT is kept; others mean nothing."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            assert value == LINGER_RESET
            self._abort = True
        elif (level, option) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
            assert isinstance(value, int)
            self._user_timeout = value / 1000

    def getsockopt(self, level: int, option: int) -> int:
        """SO_ERROR, which is taken back by being told."""
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        number, self.error = self.error, 0
        return number

    def bind(self, address: tuple[str, int]) -> None:
        """This is its host; the port comes with `connect_ex`."""
        if address[0] not in self.network.hosts:
            raise OSError(errno.EADDRNOTAVAIL, "not an address of this machine")
        self.local = address

    def unacknowledged(self) -> int:
        """As SIOCOUTQ; there are no bytes that wait for the window here."""
        peer = self.peer
        if peer is None:
            return 0
        return peer.under_way + (len(peer.inbox) if self.family == socket.AF_UNIX else 0)

    def connect_ex(self, target: Target) -> int:
        """As connect(2)."""
        if self.family != socket.AF_UNIX:
            assert isinstance(self.local, tuple)
            self.local = (self.local[0], self.network.port())
        return self.network.connect(self, target)

    def recv_into(self, buffer: memoryview) -> int:
        """As recv(2): as much as there is and fits, or less."""
        assert not self.closed
        count = min(len(self.inbox), len(buffer))
        if count:
            count = self._perhaps_less(count, self.network.weather.short_reads)
            buffer[:count] = self.inbox[:count]
            del self.inbox[:count]
            if self.peer is not None:
                self.peer.room_grew()
            return count
        self._raise_error()
        if self.fin_received or self.dead:
            return 0
        raise BlockingIOError(errno.EAGAIN, "no bytes")

    def send(self, data: bytes | memoryview, _flags: int = 0) -> int:
        """Take as much as fits, or less."""
        return self.sendmsg([data])

    def sendmsg(self, pieces: list[bytes | memoryview]) -> int:
        """Take as much of the pieces as fits, or less."""
        assert not self.closed and not self.connecting
        self._raise_error()
        peer = self.peer
        gone = peer is not None and peer.closed and self.family == socket.AF_UNIX
        if self.dead or self.fin_sent or gone:
            raise BrokenPipeError(errno.EPIPE, "broken pipe")
        data = b"".join(pieces)
        count = min(len(data), self.room())
        if not count:
            raise BlockingIOError(errno.EAGAIN, "full")
        count = self._perhaps_less(count, self.network.weather.short_sends)
        self.ship(data[:count])
        return count

    def shutdown(self, how: int) -> None:
        """Send FIN; only the sending side can be shut."""
        assert how == socket.SHUT_WR and not self.fin_sent
        if self.dead:
            raise OSError(errno.ENOTCONN, "not connected")
        self.ship_fin()

    def close(self) -> None:
        """Give the descriptor back; FIN or RST goes out."""
        if not self.closed:
            self.network.give_back(self.fd)
            self.end(abort=self._abort)
            self.fd = -1

    # --- What moves it ----------------------------------------------------------------------

    def readiness(self) -> int:
        """What epoll would tell, of everything."""
        if self.connecting:
            return 0
        mask = 0
        if self.inbox or self.fin_received or self.dead or self.error:
            mask |= select.EPOLLIN
        if self.error or self.dead or (self.peer is not None and self.room()):
            mask |= select.EPOLLOUT
        if self.error:
            mask |= select.EPOLLERR
        gone = self.family == socket.AF_UNIX and self.peer is not None and self.peer.closed
        if self.dead or (self.fin_received and (self.fin_sent or gone)):
            mask |= select.EPOLLHUP
        return mask

    def established(self, peer: End) -> None:
        """It has another end now."""
        self.peer, peer.peer = peer, self
        self.connecting = False
        self.changed()

    def failed(self, number: int) -> None:
        """connect(2) came to nothing, or the kernel gave up."""
        if not self.closed and not self.dead:
            self.connecting = False
            self.dead = True
            self.error = number
            self.changed()

    def unanswered(self) -> None:
        """See End."""
        if self._user_timeout:
            self.network.later(self._user_timeout, self.failed, errno.ETIMEDOUT)

    def changed(self) -> None:
        """See End."""
        if self.poller is not None:
            self.poller.changed(self.fd)

    room_grew = changed

    def _raise_error(self) -> None:
        if self.error:
            number, self.error = self.error, 0
            raise OSError(number, errno.errorcode[number])

    def _perhaps_less(self, count: int, probability: float) -> int:
        if probability and count > 1 and self.network.random.random() < probability:
            return self.network.random.randrange(1, count)
        return count


class SimListener:
    """What the engine listens on. Several may share one backlog, as processes do."""

    def __init__(self, network: "Network", address: Address, backlog: deque[SimSocket]):
        self.network = network
        self.address = address
        self.backlog = backlog
        self.family = family_of(address)
        self.fd = -1
        self.poller: SimPoller | None = None

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self.fd

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""
        assert not flag

    def getsockname(self) -> Target:
        """The address that is listened on."""
        return target_of(self.address)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """TCP_NODELAY, which means nothing here."""

    def accept(self) -> tuple[socket.socket, Target]:
        """Take the first who waits."""
        if self.network.accept_errors:
            raise OSError(self.network.accept_errors.popleft(), "injected")
        fd = self.network.take_fd()                 # first, as the kernel has it: EMFILE even if
        if not self.backlog:                        # nobody waits
            self.network.give_back(fd)
            raise BlockingIOError(errno.EAGAIN, "nobody waits")
        sock = self.backlog.popleft()
        sock.fd = fd
        self.network.bind_fd(fd, sock)
        far = sock.peer
        assert isinstance(far, FarEnd)
        return cast(socket.socket, sock), target_of(far.address)

    def readiness(self) -> int:
        """What epoll would tell."""
        return select.EPOLLIN if self.backlog or self.network.accept_errors else 0

    def changed(self) -> None:
        """Somebody came."""
        if self.poller is not None:
            self.poller.changed(self.fd)

    def close(self) -> None:
        """Give this descriptor back; the backlog lives on."""
        if self.fd >= 0:
            self.network.give_back(self.fd)
            self.fd = -1


class SimPoller:
    """The face of `select.epoll`, level-triggered. It looks only at those where something was."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._masks: dict[int, tuple[int, SimSocket | SimListener]] = {}
        self._candidates: dict[int, None] = {}

    def register(self, fd: int, eventmask: int, /) -> None:
        """See reactor.Poller."""
        assert fd not in self._masks
        sock = self._network.socket_of(fd)
        sock.poller = self
        self._masks[fd] = eventmask, sock
        self._candidates[fd] = None

    def modify(self, fd: int, eventmask: int, /) -> None:
        """See reactor.Poller."""
        self._masks[fd] = eventmask, self._masks[fd][1]
        self._candidates[fd] = None

    def unregister(self, fd: int, /) -> None:
        """See reactor.Poller."""
        self._masks.pop(fd)[1].poller = None
        self._candidates.pop(fd, None)

    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        """See reactor.Poller. It never waits."""
        assert timeout == 0 and maxevents > 0
        ready = []
        for fd in list(self._candidates):
            mask = self._mask_of(fd)
            if mask:
                ready.append((fd, mask))
        if self._network.weather.shuffle:
            self._network.random.shuffle(ready)
        return ready[:maxevents]

    def any_ready(self) -> bool:
        """True if `poll` would tell of somebody."""
        return any(self._mask_of(fd) for fd in list(self._candidates))

    def changed(self, fd: int) -> None:
        """Something was there."""
        self._candidates[fd] = None

    def _mask_of(self, fd: int) -> int:
        eventmask, sock = self._masks[fd]
        mask = sock.readiness() & (eventmask | select.EPOLLERR | select.EPOLLHUP)
        if not mask:
            del self._candidates[fd]
        return mask
