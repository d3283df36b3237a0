"""The simulated network that tests script: the clock, the wire, who listens where, the faults.

    network = Network(seed=7, weather=Weather(latency=0.001, cuts=0.3))
    network.on_connect(Address(host="10.0.0.1", port=80), behaviour)    # upstreams: behaviour(far)
    client = network.connect_client(address)                            # clients: a FarEnd
    network.later(3.0, client.reset)

Laws of this file:

- One seed gives one run: all chance comes from `random`, and there is no wall clock, no set, no
  order by address.
- Descriptors are numbered from the lowest free one, so a number is soon another's.
- It costs what happens, never what is open.
"""

import errno
import heapq
import math
import random
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from gateway.engine.addresses import family_of, target_of
from gateway.engine.memory_kernel import SimListener, SimSocket, Target
from gateway.engine.memory_wire import FarEnd, Weather
from gateway.events import Address

EPHEMERAL = 32768                  # the first port that is given out
FIRST_FD = 3

Behaviour = Callable[[FarEnd], None]
FarMaker = Callable[["Network", int, Address], FarEnd]   # FarEnd, or a kind of it


@dataclass(frozen=True, slots=True)
class _Upstream:
    behaviour: Behaviour | None
    error: int
    silent: bool
    full_until: float
    delay: float
    make: FarMaker


class Network:
    """The clock, the wire, and who listens where. All randomness comes from `random`.

    `descriptors_max` bounds what the engine may have open; `accept_errors` are errnos that the
    next calls of accept(2) fail with; `hosts` are the machine's own addresses; `weather` may be
    changed at any time.
    """

    def __init__(
        self, seed: int = 0, weather: Weather | None = None, descriptors_max: int | None = None
    ):
        self.now = 0.0
        self.random = random.Random(seed)  # noqa: S311, a simulation is to be repeatable
        self.weather = weather or Weather()
        self.descriptors_max = descriptors_max
        self.accept_errors: deque[int] = deque()
        self.hosts = {"127.0.0.1", "127.0.0.2", "::1"}
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._sockets: dict[int, SimSocket | SimListener | None] = {}
        self._free: list[int] = []
        self._fd_next = FIRST_FD
        self._ports = EPHEMERAL
        self._backlogs: dict[Target, deque[SimSocket]] = {}
        self._listeners: dict[Target, list[SimListener]] = {}
        self._upstreams: dict[Target, _Upstream] = {}

    # --- For tests ----------------------------------------------------------------------------

    def listener(self, address: Address) -> socket.socket:
        """A listening socket for `Engine.listen`; a second one for an address shares its queue."""
        target = target_of(address)
        backlog = self._backlogs.setdefault(target, deque())
        listener = SimListener(self, address, backlog)
        listener.fd = self.take_fd(listener)
        self._listeners.setdefault(target, []).append(listener)
        return cast(socket.socket, listener)

    def connect_client(
        self, address: Address, client: Address | None = None, make: FarMaker = FarEnd
    ) -> FarEnd:
        """A client connects to a listener; `refused` is set if there was never one."""
        family = family_of(address)
        if client is None:
            client = Address() if address.is_unix else Address(host=address.host, port=self.port())
        far = make(self, family, client)
        target = target_of(address)
        if target not in self._backlogs:
            far.refused = errno.ENOENT if address.is_unix else errno.ECONNREFUSED
            return far
        near = SimSocket(self, family)
        near.local = target
        near.established(far)
        self.later(self.delay(), self._queue, target, near)
        return far

    def waiting(self, address: Address) -> int:
        """Clients in the queue of a listener."""
        return len(self._backlogs[target_of(address)])

    def on_connect(
        self,
        address: Address,
        behaviour: Behaviour | None = None,
        *,
        error: int = 0,
        silent: bool = False,
        full_until: float = 0.0,
        delay: float = 0.0,
        make: FarMaker = FarEnd,
    ) -> None:
        """Who answers there: `behaviour(far)` begins a script; or the connect fails with an errno
        (`error`), gets no answer (`silent`), or, on a Unix path, finds the queue full for a time.
        The answer takes `delay` more."""
        assert behaviour or error or silent
        upstream = _Upstream(behaviour, error, silent, full_until, delay, make)
        self._upstreams[target_of(address)] = upstream

    def inherited(self) -> tuple[socket.socket, FarEnd]:
        """A connected Unix socket for `Engine.adopt`, and its other end."""
        near = self.open(socket.AF_UNIX)
        far = FarEnd(self, socket.AF_UNIX, Address())
        near.established(far)
        return cast(socket.socket, near), far

    @property
    def open_descriptors(self) -> int:
        """How many the engine has open."""
        return len(self._sockets)

    def at(self, time: float, what: Callable[..., None], *arguments: object) -> None:
        """Call `what(*arguments)` at that time, in the order of the calls for equal times."""
        self._serial += 1
        heapq.heappush(self._agenda, (max(time, self.now), self._serial, what, arguments))

    def later(self, delay: float, what: Callable[..., None], *arguments: object) -> None:
        """The same, `delay` seconds from now."""
        self.at(self.now + delay, what, *arguments)

    # --- For the engine and the ends ----------------------------------------------------------

    def next_at(self) -> float:
        """When something happens next; infinite if nothing does."""
        return self._agenda[0][0] if self._agenda else math.inf

    def go_to(self, time: float) -> None:
        """Move the clock, and do what happens until then."""
        while self._agenda and self._agenda[0][0] <= time:
            at, _, what, arguments = heapq.heappop(self._agenda)
            self.now = at
            what(*arguments)
        self.now = max(self.now, time)

    def delay(self) -> float:
        """How long the next thing takes, one way."""
        weather = self.weather
        if not weather.jitter:
            return weather.latency
        return weather.latency + self.random.random() * weather.jitter

    def open(self, family: int) -> SimSocket:
        """socket(2)."""
        sock = SimSocket(self, family)
        sock.fd = self.take_fd(sock)
        return sock

    def open_pair(self) -> tuple[SimSocket, SimSocket]:
        """socketpair(2)."""
        one = self.open(socket.AF_UNIX)
        try:
            two = self.open(socket.AF_UNIX)
        except OSError:
            one.close()
            raise
        one.established(two)
        return one, two

    def port(self) -> int:
        """An ephemeral port."""
        self._ports += 1
        return self._ports

    def take_fd(self, sock: SimSocket | SimListener | None = None) -> int:
        """The lowest free descriptor; raises EMFILE."""
        if self.descriptors_max is not None and len(self._sockets) >= self.descriptors_max:
            raise OSError(errno.EMFILE, "too many open files")
        if self._free:
            fd = heapq.heappop(self._free)
        else:
            fd, self._fd_next = self._fd_next, self._fd_next + 1
        self._sockets[fd] = sock
        return fd

    def give_back(self, fd: int) -> None:
        """A descriptor is free again."""
        del self._sockets[fd]
        heapq.heappush(self._free, fd)

    def bind_fd(self, fd: int, sock: SimSocket) -> None:
        """This descriptor is that socket's."""
        self._sockets[fd] = sock

    def socket_of(self, fd: int) -> SimSocket | SimListener:
        """Whose descriptor it is."""
        sock = self._sockets[fd]
        assert sock is not None
        return sock

    def connect(self, sock: SimSocket, target: Target) -> int:
        """What connect_ex gives: 0, or an errno."""
        upstream = self._upstreams.get(target)
        if sock.family == socket.AF_UNIX:
            if upstream is None:
                return errno.ENOENT
            if upstream.error:
                return upstream.error
            if upstream.silent or self.now < upstream.full_until:
                return errno.EAGAIN
            self._meet(sock, target, upstream)
            return 0
        sock.connecting = True
        there_and_back = self.delay() + self.delay() + (upstream.delay if upstream else 0.0)
        if upstream is None or upstream.error:
            number = upstream.error if upstream else errno.ECONNREFUSED
            self.later(there_and_back, sock.failed, number)
        elif not upstream.silent:
            self.later(there_and_back, self._meet, sock, target, upstream)
        return errno.EINPROGRESS

    def _meet(self, sock: SimSocket, target: Target, upstream: _Upstream) -> None:
        if sock.closed:
            return
        address = (
            Address(path=target)
            if isinstance(target, str)
            else Address(host=target[0], port=target[1])
        )
        far = upstream.make(self, sock.family, address)
        sock.established(far)
        assert upstream.behaviour is not None
        upstream.behaviour(far)

    def _queue(self, target: Target, near: SimSocket) -> None:
        self._backlogs[target].append(near)
        for listener in self._listeners[target]:
            listener.changed()
