"""Back-pressure crosses the gateway: a reader that stalls stops the sender, and costs no memory."""

import contextlib
import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.kit import Gateway, Starter, head, open_raw, open_ws, route, stopped
from end_to_end.wire import BINARY, PING, Upstream, Wire, frame, upgrade, wait_for

pytestmark = pytest.mark.forms

MEBIBYTE = 1024 * 1024
GROWTH = 4 * MEBIBYTE  # that the process may grow by: queues, and what Python does as it goes
FLOOD = 48 * MEBIBYTE  # more than all kernel buffers on the way hold
CLIENT, SERVICE = "client", "service"


@pytest.fixture(scope="module")
def narrow() -> Iterator[Upstream]:
    """An upstream whose connections have small kernel buffers."""
    with Upstream() as listening:
        listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        yield listening


@pytest.fixture(scope="module")
def wide() -> Iterator[Upstream]:
    """An upstream as the kernel makes them."""
    with Upstream() as listening:
        yield listening


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, narrow: Upstream, wide: Upstream) -> Gateway:
    """Routes on which nothing times out."""
    calm = 'write_timeout = "off"', 'heartbeat = "off"'
    return start_shared(
        head()
        + route("ws", narrow.url("ws"), *calm)
        + route("raw", narrow.url("tcp"), *calm)
        + route("wide", wide.url("ws"), *calm)
        + route("wide-raw", wide.url("tcp"), *calm)
        + route("echo", "builtin:echo", *calm)
    )


class Flood:
    """A thread that sends a known stream of frames as fast as it is let."""

    def __init__(self, wire: Wire, *, masked: bool, raw: bool = False) -> None:
        seed = random.randrange(1 << 32)
        print("seed", seed)
        self.piece = random.Random(seed).randbytes(MEBIBYTE)
        self.digest = hashlib.sha256()
        self.sent = 0
        self._wire = wire
        self._frame = self.piece if raw else frame(BINARY, self.piece, masked=masked)
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        for _ in range(FLOOD // MEBIBYTE):
            view = memoryview(self._frame)
            while view:
                try:
                    count = self._wire.socket.send(view)
                except TimeoutError:
                    continue
                except OSError:
                    return
                self.sent += count
                view = view[count:]

    def wait_stalled(self) -> int:
        """Wait until nothing moves for a while; the bytes that were sent by then."""
        seen = -1
        while seen != self.sent:
            seen = self.sent
            self._thread.join(0.4)
        return seen

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(60)
        assert not self._thread.is_alive()


def read_payload(wire: Wire, size: int) -> str:
    """The digest of so many payload bytes of frames, which are forgotten as they are read."""
    digest = hashlib.sha256()
    while size:
        got = wire.read_frame()
        digest.update(got.payload)
        size -= len(got.payload)
        del wire.received[: wire.parsed]
        wire.parsed = 0
    return digest.hexdigest()


def expected(piece: bytes) -> str:
    """The digest of the whole flood's payload."""
    digest = hashlib.sha256()
    for _ in range(FLOOD // MEBIBYTE):
        digest.update(piece)
    return digest.hexdigest()


def expect(wire: Wire, data: bytes) -> None:
    """Exactly these bytes come, and are forgotten."""
    assert wire.exactly(len(data)) == data
    wire.received.clear()
    wire.parsed = 0


@contextlib.contextmanager
def expecting(wire: Wire, data: bytes) -> Iterator[None]:
    """The same in a thread, while the block does something else."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            expect(wire, data)
        except (AssertionError, OSError) as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("stalled", [CLIENT, SERVICE])
def test_stalled_reader(gateway: Gateway, narrow: Upstream, stalled: str) -> None:
    """The sender stops, memory stays, and when the reader goes on all of it comes, in order."""
    before = gateway.memory()
    client, service = open_ws(gateway, narrow)
    with client, service:
        reader, sender = (client, service) if stalled == CLIENT else (service, client)
        flood = Flood(sender, masked=stalled == SERVICE)
        assert flood.wait_stalled() < FLOOD, "the flood did not stall"
        grown = gateway.memory() - before
        assert grown < GROWTH, f"grew by {grown} bytes"
        # The other direction is free meanwhile.
        reader.send(frame(BINARY, b"still here", masked=stalled == CLIENT))
        assert sender.read_frame().payload == b"still here"
        assert read_payload(reader, FLOOD) == expected(flood.piece)
        flood.join()
    assert gateway.memory() - before < 2 * GROWTH


@pytest.mark.parametrize("stalled", [CLIENT, SERVICE])
def test_stalled_raw_reader(gateway: Gateway, narrow: Upstream, stalled: str) -> None:
    """The same where frames become bytes."""
    before = gateway.memory()
    client, service = open_raw(gateway, narrow)
    with client, service:
        if stalled == CLIENT:
            flood = Flood(service, masked=False, raw=True)
        else:
            flood = Flood(client, masked=True)
        assert flood.wait_stalled() < FLOOD, "the flood did not stall"
        grown = gateway.memory() - before
        assert grown < GROWTH, f"grew by {grown} bytes"
        if stalled == CLIENT:
            assert read_payload(client, FLOOD) == expected(flood.piece)
        else:
            digest = hashlib.sha256()
            left = FLOOD
            while left:
                data = service.socket.recv(min(left, 262144))
                digest.update(data)
                left -= len(data)
            assert digest.hexdigest() == expected(flood.piece)
        flood.join()


@pytest.mark.parametrize("size", [100_000, 1_000_000, 10_485_760])
@pytest.mark.parametrize("pattern", ["one way", "both ways", "back and forth"])
def test_large_messages_never_stall(
    gateway: Gateway, wide: Upstream, size: int, pattern: str
) -> None:
    """Nothing but the bytes themselves keeps a stream moving: no ping, no timeout helps it."""
    rounds = max(3, 20_000_000 // size)
    up, down = (frame(BINARY, os.urandom(size), masked=masked) for masked in (True, False))
    client, service = open_ws(gateway, wide, "/wide")
    with client, service:
        for _ in range(rounds):
            if pattern == "both ways":
                with client.sending(up), service.sending(down), expecting(service, up):
                    expect(client, down)
                continue
            with client.sending(up):
                expect(service, up)
            if pattern == "back and forth":
                with service.sending(down):
                    expect(client, down)


@pytest.mark.parametrize("size", [100_000, 1_000_000, 10_485_760])
def test_large_raw_streams_never_stall(gateway: Gateway, wide: Upstream, size: int) -> None:
    """The same where frames become bytes, and bytes frames."""
    rounds = max(3, 20_000_000 // size)
    payload = os.urandom(size)
    up = frame(BINARY, payload)
    client, service = open_raw(gateway, wide, "/wide-raw")
    with client, service:
        for _ in range(rounds):
            with client.sending(up):
                expect(service, payload)
            with service.sending(payload):
                assert read_payload(client, size) == hashlib.sha256(payload).hexdigest()


def test_echo_that_nobody_reads(gateway: Gateway) -> None:
    """The built-in echo takes no more than it can give back."""
    before = gateway.memory()
    with gateway.connect() as client:
        client.send(upgrade("/echo"))
        assert client.read_head().status == 101
        flood = Flood(client, masked=True)
        assert flood.wait_stalled() < FLOOD, "the flood did not stall"
        assert gateway.memory() - before < GROWTH
        assert read_payload(client, FLOOD) == expected(flood.piece)
        flood.join()


@pytest.mark.parametrize("size", [200, 1500, 40_000])
@pytest.mark.parametrize("stalled", [CLIENT, SERVICE])
def test_stalled_reader_costs_no_cpu(
    gateway: Gateway, narrow: Upstream, stalled: str, size: int
) -> None:
    """Whatever the pieces that the sender's frame comes in: who waits does not spin."""
    client, service = open_ws(gateway, narrow)
    with client, service:
        sender, reader = (service, client) if stalled == CLIENT else (client, service)
        whole = frame(BINARY, os.urandom(FLOOD), masked=stalled == SERVICE)
        sender.socket.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(whole):
                sent += sender.socket.send(whole[sent : sent + size])
        assert sent < len(whole), "the sender did not stall"
        before = gateway.cpu()
        time.sleep(0.4)
        assert gateway.cpu() - before <= 0.1, "it spins while nobody reads"
        assert reader.exactly(sent) == whole[:sent]


def test_pings_that_nobody_takes_the_answers_of(gateway: Gateway, narrow: Upstream) -> None:
    """A flood of pings toward a raw upstream, whose pongs are not read, grows nothing."""
    before = gateway.memory()
    client, service = open_raw(gateway, narrow)
    with client, service:
        pings = frame(PING, b"x" * 125) * (FLOOD // 131)
        client.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.socket.sendall(pings)
        assert gateway.memory() - before < GROWTH
        client.reset()
        assert service.end() == "reset"


def test_memory_comes_back(gateway: Gateway) -> None:
    """Three hundred sessions come and go, a few times; the process does not grow with each."""
    def crowd() -> None:
        clients = [gateway.connect() for _ in range(300)]
        for client in clients:
            client.send(upgrade("/echo") + frame(BINARY, bytes(1000)))
        for client in clients:
            assert client.read_head().status == 101
            assert len(client.read_frame().payload) == 1000
        for client in clients:
            client.reset()

    crowd()
    before = gateway.memory()
    for _ in range(3):
        crowd()
    assert gateway.memory() - before < GROWTH


def test_a_worker_that_sleeps_in_mid_stream_loses_nothing(
    gateway: Gateway, wide: Upstream
) -> None:
    """It is stopped and goes on, five times, while frames of all sizes pass both ways; and while it
    sleeps a neighbour is reset on either side, with bytes of its own on the way."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    sizes = [chance.choice((0, 1, 125, 126, 1000, 9000, 70_000, 300_000)) for _ in range(200)]
    up = b"".join(frame(BINARY, chance.randbytes(size)) for size in sizes)
    down = b"".join(frame(BINARY, chance.randbytes(size), masked=False) for size in sizes)
    (worker,) = gateway.workers
    client, service = open_ws(gateway, wide, "/wide")
    with client, service, client.sending(up), service.sending(down):
        for turn in range(5):
            neighbour, behind = open_ws(gateway, wide, "/wide")
            first, last = len(up) * turn // 5, len(up) * (turn + 1) // 5
            assert service.exactly(last - first) == up[first:last]
            with stopped(worker):
                wait_for(lambda: " T " in Path(f"/proc/{worker}/stat").read_text())
                for wire, is_client in ((neighbour, True), (behind, False)):
                    wire.send(frame(BINARY, b"x" * 9000, masked=is_client)[: 4000 * (turn % 3) + 7])
                (neighbour if turn % 2 else behind).reset()
            first, last = len(down) * turn // 5, len(down) * (turn + 1) // 5
            assert client.exactly(last - first) == down[first:last]
            neighbour.close()
            behind.close()
    wait_for(lambda: gateway.ask("status")["workers"][0]["connections"] == 0)
