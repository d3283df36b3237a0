"""What the tests of splicing run on: compiled relays without an engine, both far ends in hand.

`Roads` is one `EpollRelays`; a `Road` is one relay of it, over loopback TCP or Unix sockets. The
test is one thread: `until` moves the far ends, lets the driver do what is ready and due, and looks
again. `Roads.finish` asserts that nothing is left: no relay, queue, tail, pipe, timer, descriptor.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from engine.rig import SocketFar, open_descriptors
from gateway import frames
from gateway.engine.epoll_relays import EpollRelays
from gateway.errors import Fault
from gateway.events import Cause, LegCounts, RelayRules, Side

PATIENCE_S = 20.0
SPLICE_MIN = 32 * 1024         # of relay_carriage.pyx: what is left of a frame is spliced from here
PIPE = 256 * 1024                  # bytes of one pipe
HOT = 256 * 1024                   # bytes of one read
MASK = b"\x01\x02\x03\x04"
CALM = RelayRules(write_timeout=0.0, close_timeout=5.0)


def header_of(side: Side, size: int, opcode: int = frames.BINARY, *, fin: bool = True) -> bytes:
    """The header of a frame from this side."""
    return frames.build_header(opcode, size, MASK if side is Side.CLIENT else b"", fin=fin)


def frame_of(side: Side, payload: bytes, opcode: int = frames.BINARY) -> bytes:
    """A frame from this side. Payloads are noise to a relay, so they are not masked for real."""
    return header_of(side, len(payload), opcode) + payload


def close_of(side: Side, code: int) -> bytes:
    """A Close from this side."""
    return frames.build_frame(
        frames.CLOSE, code.to_bytes(2, "big"), MASK if side is Side.CLIENT else b""
    )


def close_code(data: bytes | bytearray, side: Side) -> int:
    """The code of a Close that stands first in what this side got."""
    at = 6 if side is Side.UPSTREAM else 2
    assert data[0] == frames.FIN | frames.CLOSE, data[:20]
    code = data[at : at + 2]
    if side is Side.UPSTREAM:
        code = frames.unmask(bytes(code), bytes(data[2:6]))
    return int.from_bytes(code, "big")


def tcp_pair(*, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """A connection over loopback: the relay's end, and the far end."""
    with socket.socket() as listening:
        if small:
            _shrink(listening)
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        far = socket.socket()
        if small:
            _shrink(far)
        far.connect(listening.getsockname())
        near, _ = listening.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _shrink(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


class Ended(NamedTuple):
    """How a relay ended."""

    cause: Cause
    side: Side | None
    detail: str
    counts: tuple[LegCounts, LegCounts]
    faults: tuple[Fault | None, Fault | None]


class Road:
    """One relay. `browser` and `server` are the far ends, `fars` both by side."""

    def __init__(self, roads: "Roads", number: int, rules: RelayRules, fars: list[socket.socket],
                 nears: list[socket.socket]):
        self.roads = roads
        self.number = number
        self.browser, self.server = self.fars = SocketFar(fars[0]), SocketFar(fars[1])
        for near in nears:
            near.setblocking(False)
        self.slot = self.begin(nears, rules)

    def begin(self, nears: list[socket.socket], rules: RelayRules) -> int:
        """Hand the near ends over."""
        return self.roads.driver.begin(
            2 * self.number, 2 * self.number + 1, nears[0].detach(), nears[1].detach(), rules, [],
            (b"", b""), (False, False),
        )

    def send(self, side: Side, data: bytes) -> None:
        """From the far end of this side."""
        self.fars[side].send(data)

    def arrives(self, side: Side, data: bytes) -> None:
        """Exactly this comes from `side` to the other; it is forgotten."""
        far = self.fars[side.other]
        self.roads.until(lambda: len(far.received) >= len(data))
        assert far.received == data
        far.received.clear()

    def counts(self) -> tuple[LegCounts, LegCounts]:
        """Of the running relay."""
        return self.roads.driver.counts(self.slot)

    def ended(self) -> Ended:
        """Wait for the end."""
        self.roads.until(lambda: self.number in self.roads.ended)
        return self.roads.ended[self.number]

    def end(self, cause: Cause) -> None:
        """Ordered from above."""
        self.roads.driver.end(self.slot, cause)
        self.roads.collect()


class Roads:
    """One driver."""

    def __init__(self, pipes_max: int = 32):
        self.before = open_descriptors()
        self.driver = EpollRelays(pipes_max)
        self.roads: list[Road] = []
        self.ended: dict[int, Ended] = {}
        self._poll = select.poll()
        self._poll.register(self.driver.fileno(), select.POLLIN)

    def open(
        self, rules: RelayRules = CALM, *, small: bool | Side = False, family: str = "tcp"
    ) -> Road:
        """A new relay; `small` makes the kernel's buffers small, on one side or both."""
        pairs = [
            tcp_pair(small=small is side or small is True)
            if family == "tcp" else socket.socketpair()
            for side in Side
        ]
        road = self.road(rules, [far for _, far in pairs], [near for near, _ in pairs])
        self.roads.append(road)
        return road

    def road(
        self, rules: RelayRules, fars: list[socket.socket], nears: list[socket.socket]
    ) -> Road:
        """One over these."""
        return Road(self, len(self.roads), rules, fars, nears)

    def collect(self) -> None:
        """Take what ended."""
        for client, upstream, outcome, counts, faults in self.driver.take_ended():
            assert upstream == client + 1
            assert client // 2 not in self.ended, "it was reported twice"
            self.ended[client // 2] = Ended(*outcome, counts, faults)

    def turn(self, wait_ms: int = 0) -> None:
        """Do what is ready and due, once."""
        if self._poll.poll(wait_ms):
            self.driver.drain()
        if self.driver.next_at() <= time.monotonic():
            self.driver.tick()
        self.collect()

    def until(self, condition: Callable[[], object]) -> None:
        """Go on until it holds."""
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            for road in self.roads:
                for far in road.fars:
                    far.move()
            self.turn(1)
            assert time.monotonic() < limit, f"waited in vain; {self.driver.stats()}"

    def settle(self, turns: int = 20) -> None:
        """Go on for some turns: what is not to happen has its chance."""
        for _ in range(turns):
            for road in self.roads:
                for far in road.fars:
                    far.move()
            self.turn(1)

    def is_quiet(self, seconds: float = 0.05) -> bool:
        """True if for so long the driver has nothing to do, though nobody moves."""
        self.turn()
        self.turn()
        return not self._poll.poll(int(seconds * 1000))

    def finish(self) -> None:
        """End all, and assert that nothing is left."""
        self.driver.abandon_all()
        stats = self.driver.stats()
        assert not any(stats.values()), stats
        self.driver.close()
        for road in self.roads:
            for far in road.fars:
                far.close()
        after = open_descriptors()
        left = {number: name for number, name in after.items() if number not in self.before}
        assert not left, left


@contextlib.contextmanager
def driving(pipes_max: int = 32) -> Iterator[Roads]:
    """A driver, and that it leaves nothing behind."""
    roads = Roads(pipes_max)
    try:
        yield roads
    finally:
        roads.finish()
