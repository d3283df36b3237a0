"""What the contract tests run on: an engine, far ends, and a way to wait, the same for each kind.

A test is one thread: `until(condition)` runs the engine and moves the far ends by a timer of the
engine's own, until the condition holds; then an exception out of `deliver` interrupts `run`, which
the contract allows. So only the contract is used, and a new engine needs one more rig, or, with
real sockets, one more line in `RIGS`.
"""

import contextlib
import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.engine.contract import Engine
from gateway.engine.memory import FarEnd, MemoryEngine, Network, Weather
from gateway.engine.memory_kernel import SimSocket
from gateway.engine.uring import UringEngine
from gateway.engine.uv import UvEngine
from gateway.events import Accepted, Address, Closed, Connected, Event, Link, Received, TimedOut

TICK_S = 0.001                     # how often far ends are moved
PATIENCE_S = 20.0                  # how long a condition is waited for
FAR_CHUNK = 64 * 1024
MEBIBYTE = 1024 * 1024


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes in which a lost, doubled or moved one shows."""
    return random.Random(seed).randbytes(size)


class Far(Protocol):
    """The other end of a link, moved by the test."""

    received: bytearray
    finished: bool

    @property
    def was_reset(self) -> bool:
        """RST came."""

    def send(self, data: bytes) -> None:
        """Send behind what waits."""

    def finish(self) -> None:
        """FIN behind what waits."""

    def close(self) -> None:
        """Close; bytes that still come are answered with RST."""

    def reset(self) -> None:
        """RST at once."""

    def stall(self) -> None:
        """Read no more."""

    def resume(self) -> None:
        """Read on."""


class Ends(Protocol):
    """Makes links and their far ends."""

    def plainly_accepted(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """A client's."""

    def plainly_connected(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """An upstream's."""


class _Enough(Exception):
    """The condition holds."""


_E = TypeVar("_E", bound=Event)


class Rig:
    """One engine under test. `events` has all that was delivered, in order. Where `is_calm`,
    things arrive in the order in which they were sent, over all links."""

    is_calm = True

    def __init__(self, engine: Engine):
        self.engine = engine
        self.events: list[Event] = []
        self.batches: list[list[Event]] = []
        self.on_event: Callable[[Event], None] | None = None
        self.movers: list[Callable[[], None]] = []      # of far ends over far ends
        self.ends: Ends = self                          # who makes a link and its far end
        self.ticker, self.ticker_end = engine.pair()

    # --- Waiting ----------------------------------------------------------------------------

    def until(self, condition: Callable[[], object]) -> None:
        """Run until the condition holds; fail if it does not in a long time."""
        if condition():
            return
        self._run(condition, self.engine.now() + PATIENCE_S, must=True)

    def settle(self, seconds: float = 0.03) -> None:
        """Run on for a while: what is not to happen has its chance."""
        self._run(lambda: False, self.engine.now() + seconds, must=False)

    def sleep(self, seconds: float) -> None:
        """Run on without moving anything: an idle engine makes no turn in it."""
        self.engine.set_timer(self.ticker, "sleep", self.engine.now() + seconds)

        def deliver(batch: list[Event]) -> None:
            self._take([event for event in batch if event.link != self.ticker])
            if any(isinstance(event, TimedOut) and event.name == "sleep" for event in batch):
                raise _Enough

        with contextlib.suppress(_Enough):
            self.engine.run(deliver)

    def _run(self, condition: Callable[[], object], deadline: float, *, must: bool) -> None:
        engine = self.engine
        engine.set_timer(self.ticker, "tick", engine.now())

        def deliver(batch: list[Event]) -> None:
            if batch[0].link == self.ticker:
                self.move()
                for mover in self.movers:
                    mover()
                engine.set_timer(self.ticker, "tick", engine.now() + TICK_S)
            else:
                self._take(batch)
            if condition():
                raise _Enough
            if engine.now() >= deadline:
                assert not must, f"waited in vain; so far: {self.events[-5:]}"
                raise _Enough

        with contextlib.suppress(_Enough):
            engine.run(deliver)
        if engine.stats().links:
            engine.clear_timer(self.ticker, "tick")

    def _take(self, batch: list[Event]) -> None:
        assert isinstance(batch, list)
        if batch:
            self.batches.append(batch)
        for event in batch:
            self.events.append(event)
            if self.on_event is not None:
                self.on_event(event)

    def move(self) -> None:
        """Let the far ends do what they can."""

    def settle_far(self) -> None:
        """From inside of deliver: what the far ends have sent is there."""
        self.move()

    # --- What was delivered -----------------------------------------------------------------

    def of(self, link: Link, kind: type[_E]) -> list[_E]:
        """Events of this kind for this link."""
        return [event for event in self.events if event.link == link and isinstance(event, kind)]

    def has(self, link: Link, kind: type[Event]) -> bool:
        """True if there was such an event."""
        return bool(self.of(link, kind))

    def kinds(self, link: Link) -> list[type[Event]]:
        """Kinds of all events for a link, in order; `Received` in a row count once."""
        kinds: list[type[Event]] = []
        for event in self.events:
            if event.link == link and not (
                kinds and kinds[-1] is Received and isinstance(event, Received)
            ):
                kinds.append(type(event))
        return kinds

    def data(self, link: Link) -> bytes:
        """All bytes that were delivered for a link."""
        return b"".join(event.data for event in self.of(link, Received))

    def closed(self, *links: Link) -> Callable[[], bool]:
        """A condition: all of them are closed."""
        return lambda: all(self.has(link, Closed) for link in links)

    # --- Links ------------------------------------------------------------------------------

    def accepted(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """A client's link and its far end."""
        return self.ends.plainly_accepted(family=family, small=small)

    def connected(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """An upstream's link and its far end."""
        return self.ends.plainly_connected(family=family, small=small)

    def plainly_accepted(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """The same, and without TLS wherever that is."""
        address = self.listen(family=family, small=small)
        far = self.client(address, small=small)
        found: list[Accepted] = []

        def came() -> bool:
            found[:] = [
                event
                for event in self.events
                if isinstance(event, Accepted) and event.local == address
            ]
            return bool(found)

        self.until(came)
        return found[0].link, far

    def plainly_connected(self, *, family: str = "tcp", small: bool = False) -> tuple[Link, Far]:
        """The same, and without TLS wherever that is."""
        upstream = self.upstream(family=family, small=small)
        link = self.engine.connect(upstream.address)
        self.until(lambda: self.has(link, Connected) and upstream.fars)
        return link, upstream.fars[0]

    def listen(self, *, family: str = "tcp", small: bool = False) -> Address:
        """The engine listens; `small` makes its and the clients' buffers small."""
        listening, address = self.listening(family=family, small=small)
        self.engine.listen(listening)
        return address

    def listening(
        self, *, family: str = "tcp", small: bool = False, shared_with: Address | None = None
    ) -> tuple[socket.socket, Address]:
        """A listening socket, or another descriptor for one."""
        raise NotImplementedError

    def client(self, address: Address, *, small: bool = False) -> Far:
        """Connect to the engine."""
        raise NotImplementedError

    def upstream(self, *, family: str = "tcp", small: bool = False) -> "Upstream":
        """A server for the engine to connect to."""
        raise NotImplementedError

    def source_of(self, far: Far) -> str:
        """The host that an upstream's far end was connected from."""
        raise NotImplementedError

    def nowhere(self, *, family: str = "tcp") -> Address:
        """An address where nothing listens."""
        raise NotImplementedError

    def full(self) -> tuple[Address, Callable[[], None]]:
        """A Unix address whose queue is full, and a way to make room in it."""
        raise NotImplementedError

    def inherited(self) -> tuple[socket.socket, Far]:
        """A connected socket to adopt."""
        raise NotImplementedError

    def finish(self) -> None:
        """Stop, and assert that nothing is left."""
        self.engine.stop()
        stats = self.engine.stats()
        assert (stats.links, stats.relays, stats.listeners, stats.timers, stats.queued) == (0,) * 5


class Upstream:
    """A server: who came to it."""

    def __init__(self, address: Address):
        self.address = address
        self.fars: list[Far] = []


# --- Memory -----------------------------------------------------------------------------------

SMALL_WINDOW = 3000
ROUGH = Weather(latency=0.0002, jitter=0.0005, cuts=0.2, short_reads=0.2, short_sends=0.2)


class MemoryRig(Rig):
    """The memory engine, in calm or bad weather."""

    def __init__(self, weather: Weather):
        self.network = Network(seed=1, weather=weather)
        self._serial = 0
        self.is_calm = weather == Weather()
        super().__init__(MemoryEngine(self.network))

    def settle_far(self) -> None:
        """See Rig."""
        if self.is_calm:
            self.network.go_to(self.network.now)

    def listening(
        self, *, family: str = "tcp", small: bool = False, shared_with: Address | None = None
    ) -> tuple[socket.socket, Address]:
        """See Rig."""
        del small
        address = shared_with or self.nowhere(family=family)
        return self.network.listener(address), address

    def client(self, address: Address, *, small: bool = False) -> Far:
        """See Rig."""
        far = self.network.connect_client(address)
        if small:
            self._make_small(far)
        return far

    def upstream(self, *, family: str = "tcp", small: bool = False) -> Upstream:
        """See Rig."""
        upstream = Upstream(self.nowhere(family=family))

        def came(far: FarEnd) -> None:
            if small:
                self._make_small(far)
            upstream.fars.append(far)

        self.network.on_connect(upstream.address, came)
        return upstream

    def source_of(self, far: Far) -> str:
        """See Rig."""
        assert isinstance(far, FarEnd) and isinstance(far.peer, SimSocket)
        return str(far.peer.local[0])

    def nowhere(self, *, family: str = "tcp") -> Address:
        """See Rig."""
        self._serial += 1
        if family == "unix":
            return Address(path=f"/run/{self._serial}.sock")
        host = "::1" if family == "tcp6" else "127.0.0.1"
        return Address(host=host, port=5000 + self._serial)

    def full(self) -> tuple[Address, Callable[[], None]]:
        """See Rig."""
        address = self.nowhere(family="unix")
        self.network.on_connect(address, silent=True)
        return address, lambda: self.network.on_connect(address, lambda _: None)

    def inherited(self) -> tuple[socket.socket, Far]:
        """See Rig."""
        return self.network.inherited()

    def finish(self) -> None:
        """See Rig."""
        super().finish()
        assert self.network.open_descriptors == 0

    @staticmethod
    def _make_small(far: FarEnd) -> None:
        assert far.peer is not None
        far.window = far.peer.window = SMALL_WINDOW


# --- Real sockets -------------------------------------------------------------------------------


class SocketFar:
    """A far end on a real socket."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:           # behind a handshake Nagle's wait is 40 ms
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: socket.socket | None = sock
        self.received = bytearray()
        self.finished = False
        self.was_reset = False
        self._stalled = False
        self._unsent = bytearray()
        self._finishing = False
        self._shut = False

    def send(self, data: bytes) -> None:
        """See Far."""
        self._unsent += data
        self.move()

    def finish(self) -> None:
        """See Far."""
        self._finishing = True
        self.move()

    def close(self) -> None:
        """See Far."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def reset(self) -> None:
        """See Far."""
        if self.sock is not None:
            if self.sock.family != socket.AF_UNIX:
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close()

    def stall(self) -> None:
        """See Far."""
        self._stalled = True

    def resume(self) -> None:
        """See Far."""
        self._stalled = False

    def move(self) -> None:
        """Send and read what goes."""
        if self.sock is None or self.was_reset:
            return
        try:
            self._move(self.sock)
        except BlockingIOError:
            pass
        except ConnectionError:
            self.was_reset = True

    def _move(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: sock.send(self._unsent[:FAR_CHUNK])]
        if self._finishing and not self._unsent and not self._shut:
            self._shut = True
            sock.shutdown(socket.SHUT_WR)
        while not self._stalled and not self.finished:
            data = sock.recv(FAR_CHUNK)
            self.received += data
            self.finished = not data
        if self.finished and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.was_reset = True


class SocketRig(Rig):
    """A real engine, with far ends on loopback."""

    def __init__(self, engine: Engine, folder: Path):
        self._folder = folder
        self._serial = 0
        self._fars: list[SocketFar] = []
        self._servers: list[tuple[socket.socket, Upstream]] = []
        self._listening: dict[Address, socket.socket] = {}
        self._open: list[socket.socket] = []
        super().__init__(engine)

    def listening(
        self, *, family: str = "tcp", small: bool = False, shared_with: Address | None = None
    ) -> tuple[socket.socket, Address]:
        """See Rig."""
        if shared_with is not None:
            return self._listening[shared_with].dup(), shared_with
        sock, address = self._bound(family, small=small)
        self._listening[address] = sock
        return sock.dup(), address

    def client(self, address: Address, *, small: bool = False) -> Far:
        """See Rig."""
        sock = _socket_for(address)
        if small:
            _make_small(sock)
        sock.connect(address.path or (address.host, address.port))
        return self._far(sock)

    def upstream(self, *, family: str = "tcp", small: bool = False) -> Upstream:
        """See Rig."""
        sock, address = self._bound(family, small=small)
        sock.setblocking(False)
        upstream = Upstream(address)
        self._servers.append((sock, upstream))
        return upstream

    def source_of(self, far: Far) -> str:
        """See Rig."""
        assert isinstance(far, SocketFar) and far.sock is not None
        return str(far.sock.getpeername()[0])

    def nowhere(self, *, family: str = "tcp") -> Address:
        """See Rig. The port is bound and not listened on, so that nobody else gets it."""
        if family == "unix":
            return Address(path=str(self._folder / "nobody.sock"))
        sock = socket.socket(socket.AF_INET)
        self._open.append(sock)
        sock.bind(("127.0.0.1", 0))
        return Address(host="127.0.0.1", port=sock.getsockname()[1])

    def full(self) -> tuple[Address, Callable[[], None]]:
        """See Rig."""
        sock, address = self._bound("unix", backlog=0)
        waiting = []
        for _ in range(4):
            one = _socket_for(address)
            one.setblocking(False)
            self._open.append(one)
            if one.connect_ex(address.path) == errno.EAGAIN:
                break
            waiting.append(one)
        else:
            raise AssertionError("the queue does not fill")

        def make_room() -> None:
            for _ in waiting:
                self._open.append(sock.accept()[0])

        return address, make_room

    def inherited(self) -> tuple[socket.socket, Far]:
        """See Rig."""
        near, far = socket.socketpair()
        return near, self._far(far)

    def move(self) -> None:
        """See Rig."""
        for sock, upstream in self._servers:
            with contextlib.suppress(BlockingIOError):
                while True:
                    upstream.fars.append(self._far(sock.accept()[0]))
        for far in self._fars:
            far.move()

    def finish(self) -> None:
        """See Rig."""
        super().finish()
        for far in self._fars:
            far.close()
        for sock in self._open:
            sock.close()

    def _far(self, sock: socket.socket) -> SocketFar:
        far = SocketFar(sock)
        self._fars.append(far)
        return far

    def _bound(
        self, family: str, *, small: bool = False, backlog: int = 512
    ) -> tuple[socket.socket, Address]:
        """A listening socket of the rig's own. What is accepted inherits its buffer sizes."""
        self._serial += 1
        if family == "unix":
            address = Address(path=str(self._folder / f"{self._serial}.sock"))
        else:
            address = Address(host="::1" if family == "tcp6" else "127.0.0.1")
        sock = _socket_for(address)
        self._open.append(sock)
        if small:
            _make_small(sock)
        sock.bind(address.path or (address.host, 0))
        sock.listen(backlog)
        if not address.is_unix:
            address = Address(host=address.host, port=sock.getsockname()[1])
        return sock, address


def _socket_for(address: Address) -> socket.socket:
    if address.is_unix:
        return socket.socket(socket.AF_UNIX)
    return socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)


def _make_small(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


RIGS: dict[str, Callable[[Path], Rig]] = {
    "memory": lambda _: MemoryRig(Weather()),
    "memory-rough": lambda _: MemoryRig(ROUGH),
    "uvloop": lambda folder: SocketRig(UvEngine(), folder),
    "io_uring": lambda folder: SocketRig(UringEngine("readiness"), folder),
    "io_uring-completions": lambda folder: SocketRig(UringEngine("completions"), folder),
    "uvloop-python": lambda folder: SocketRig(UvEngine(compiled=False), folder),
}


def open_descriptors() -> dict[str, str]:
    """What this process has open, by number."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):       # the folder's own
            found[entry.name] = str(entry.readlink())
    return found


@contextlib.contextmanager
def rig_of(kind: str, folder: Path) -> Iterator[Rig]:
    """A rig, and that it leaves nothing behind. (What went meanwhile was another test's: a socket
    in a cycle of garbage is closed when the collector comes by.)"""
    before = open_descriptors()
    rig = RIGS[kind](folder)
    try:
        yield rig
    finally:
        rig.finish()
    after = open_descriptors()
    left = {number: name for number, name in after.items() if number not in before}
    assert not left
