"""Relays by completions: buffers, their want, sends in flight, receives that come too late.

What holds for both forms of relays in a ring is in `test_uring.py`, which also runs on this one.
"""

import contextlib
import dataclasses
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.rig import MEBIBYTE, SocketFar, SocketRig, noise
from engine.test_uring import QUIET, engine_of, frame, relayed, rigged, ring_of
from gateway import frames
from gateway.engine.ring_completions import RingCompletions
from gateway.engine.uring_buffers import RingBuffers
from gateway.engine.uring_ring import Ring, RingRefused
from gateway.events import Cause, RelayEnded, RelayRules

ROOT = Path(__file__).parents[2]
BUFFER = 64 * 1024                 # of uring_buffers.pyx
BUFFERS = 16
RAW = dataclasses.replace(QUIET, raw=True)
Coder = Callable[[bytes], bytes]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[SocketRig]:
    """An engine; behind it no buffer is out, and nothing else is left (`rigged`)."""
    with rigged(tmp_path, "completions", buffers=BUFFERS) as made:
        yield made


def completions_of(rig: SocketRig) -> RingCompletions:
    """The engine's loop."""
    ring = ring_of(rig)
    assert isinstance(ring, RingCompletions)
    return ring


def out(rig: SocketRig) -> int:
    """Buffers that are not in the kernel's ring."""
    return completions_of(rig).stats()["buffers"]


def has(far: SocketFar, data: bytes) -> bool:
    """Exactly this came so far."""
    return far.received == data


# --- Buffers ------------------------------------------------------------------------------------


def test_an_idle_link_holds_no_buffer(rig: SocketRig) -> None:
    """Before its first byte, and behind its last."""
    four = [relayed(rig) for _ in range(100)]
    rig.settle(0.01)
    assert out(rig) == 0
    for *_, browser, server in four:
        browser.send(frame())
        server.send(frames.build_header(frames.BINARY, 64) + noise(64))
    rig.until(lambda: all(len(b.received) and len(s.received) for *_, b, s in four))
    assert all(has(server, frame()) for *_, server in four)
    assert out(rig) == 0


def test_without_buffers_links_wait_and_cost_nothing(rig: SocketRig) -> None:
    """A thousand sides have bytes and there are 16 buffers, none of which comes back. Those who
    got none sleep; when the buffers are back, all proceed."""
    four = [relayed(rig) for _ in range(500)]
    ring = completions_of(rig)
    rig.settle(0.01)
    ring.withhold(True)
    down = frames.build_header(frames.BINARY, 64) + noise(64)
    for *_, browser, server in four:
        browser.send(frame())
        server.send(down)
    rig.until(lambda: ring.hungry == 1000 - BUFFERS)
    assert out(rig) == BUFFERS
    enters, cpu = ring.ring.enters, time.process_time()
    rig.sleep(0.3)
    assert ring.ring.enters - enters <= 10
    assert time.process_time() - cpu < 0.1
    assert sum(len(b.received) + len(s.received) > 0 for *_, b, s in four) <= BUFFERS
    ring.withhold(False)
    rig.until(lambda: all(has(b, down) and has(s, frame()) for *_, b, s in four))
    assert ring.hungry == 0


def test_hungry_links_that_end_are_forgotten(rig: SocketRig) -> None:
    """Reset, or ended from above, while they wait for a buffer; their places are others' then."""
    ring = completions_of(rig)
    ring.withhold(True)
    four = [relayed(rig) for _ in range(100)]
    for *_, browser, server in four:
        browser.send(frame())
        server.send(frames.build_header(frames.BINARY, 64) + noise(64))
    rig.until(lambda: ring.hungry == 200 - BUFFERS)
    for number, (client, *_) in enumerate(four):
        if number % 2:
            rig.engine.reset(client)
        else:
            rig.engine.end(client, Cause.KILLED)
    rig.until(lambda: all(rig.has(client, RelayEnded) for client, *_ in four))
    later = [relayed(rig) for _ in range(100)]
    ring.withhold(False)
    rig.settle(0.01)
    assert ring.hungry == 0
    for *_, browser, _ in later:
        browser.send(frame(seed=2))
    rig.until(lambda: all(has(server, frame(seed=2)) for *_, server in later))


def test_who_is_hungry_and_held_takes_no_buffer_from_others(tmp_path: Path) -> None:
    """A client has bytes for which no buffer is left, and is held before there is one, since it
    takes nothing itself. The one that comes back is for who waits behind it, in the same turn."""
    rules = dataclasses.replace(RAW, max_queue=32_768)
    with rigged(tmp_path, "completions", buffers=1) as rig:
        ring = completions_of(rig)
        client, browser = rig.accepted(small=True)
        upstream, server = rig.connected(small=True)
        rig.engine.relay(client, upstream, rules)
        *_, second, beyond = relayed(rig, RAW)
        browser.stall()
        while ring.stats()["queued"] < 20_000:
            server.send(noise(2000))
            rig.settle(0.001)
        rig.settle(0.01)
        ring.withhold(True)
        for far, data in ((server, noise(16_000)), (browser, frame()), (second, frame())):
            assert isinstance(far, SocketFar)
            far.send(data)
            far.move()
        rig.until(lambda: ring.hungry == 2)
        assert ring.stats()["queued"] > rules.max_queue
        ring.withhold(False)
        assert ring.hungry == 0
        rig.until(lambda: has(beyond, noise(64)))
        browser.resume()
        assert isinstance(server, SocketFar)
        rig.until(lambda: has(server, noise(64)))


@pytest.mark.parametrize("buffers", [1, 2])
def test_few_buffers_lose_nothing(tmp_path: Path, buffers: int) -> None:
    """A hundred busy links share one or two of them."""
    with rigged(tmp_path, "completions", buffers=buffers) as rig:
        four = [relayed(rig) for _ in range(100)]
        for turn in range(10):
            for *_, browser, server in four:
                browser.send(frame(3000, turn))
                server.send(frames.build_header(frames.BINARY, 500) + noise(500, turn))
            rig.settle(0.001)
        up = b"".join(frame(3000, turn) for turn in range(10))
        rig.until(lambda: all(len(s.received) == len(up) and len(b.received) == 10 * 504
                              for *_, b, s in four))
        assert all(has(server, up) for *_, server in four)


def test_a_buffer_of_a_relay_that_is_over_comes_back(rig: SocketRig) -> None:
    """It is cut when bytes have come for it that nobody has looked at, a thousand times in one
    place; the next tenant of the place gets its own bytes, and nobody else's."""
    for turn in range(1000):
        pairs = [socket.socketpair() for _ in range(2)]
        client, upstream = (rig.engine.adopt(near) for near, _ in pairs)
        rig.engine.relay(client, upstream, QUIET)
        completions_of(rig).wait(rig.engine.now())
        data = frame(100, turn)
        pairs[0][1].send(data)
        if turn % 3 == 0:                                  # its receive is armed and nothing more
            rig.engine.reset(client)
        elif turn % 3 == 1:                                # and completes with its cancellation
            rig.engine.end(client, Cause.KILLED)
        else:
            completions_of(rig).wait(rig.engine.now())
            pairs[1][1].settimeout(20.0)
            assert pairs[1][1].recv(4096) == data
            rig.engine.reset(client)
        for _, far in pairs:
            far.close()
    rig.settle(0.01)
    assert out(rig) == 0


def test_a_number_of_buffers_is_a_power_of_two() -> None:
    """As the kernel wants it."""
    for wrong in (0, 3, 65_536):
        with pytest.raises(ValueError, match="power of two"):
            RingBuffers(wrong)
    made = RingBuffers(4)
    assert (made.count, made.out) == (4, 0)


def test_a_ring_is_restricted_to_what_it_uses() -> None:
    """With buffers too; and it uses no multishots, links, or accepts."""
    ring = Ring(8, 16, 4)
    assert ring.is_restricted
    assert ring.buffers is not None
    assert ring.buffers.out == 0
    assert ring.close() == 0
    declared = (ROOT / "gateway/engine/liburing.pxd").read_text().lower()
    for word in ("multishot", "io_link", "accept", "splice", "bundle", "_zc", "send_zc"):
        assert not re.search(word, declared), word
    with pytest.raises(RingRefused):
        Ring(1 << 20, 16, 4)


# --- Sends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_short_sends_lose_and_repeat_no_byte(rig: SocketRig, seed: int) -> None:
    """Socket buffers of 4 KiB, readers that stall and go on, frames of all sizes, both ways."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    client, browser = rig.accepted(small=True)
    upstream, server = rig.connected(small=True)
    rig.engine.relay(client, upstream, QUIET)
    sent = [b"", b""]
    stalled = [False, False]
    waited = False
    for turn in range(60):
        for way, (far, mask) in enumerate(((browser, b"\0\0\0\0"), (server, b""))):
            size = chance.choice((0, 1, 125, 2000, 9000, 30_000, 70_000))
            data = frames.build_header(frames.BINARY, size, mask) + noise(size, turn)
            far.send(data)
            sent[way] += data
            if chance.random() < 0.2:
                (far.resume if stalled[way] else far.stall)()
                stalled[way] = not stalled[way]
        rig.settle(0.001)
        waited = waited or completions_of(rig).queues > 0
    browser.resume()
    server.resume()
    rig.until(lambda: (len(server.received), len(browser.received)) == tuple(map(len, sent)))
    assert server.received == sent[0]
    assert browser.received == sent[1]
    assert waited, "something was sent short"


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_raw_upstream_says_is_wrapped_in_its_buffer(
    rig: SocketRig, is_text: bool, seed: int
) -> None:
    """Whatever its size, and wherever in a character it was cut; before a reader that stalls and
    goes on too. The frames' payloads are what it said, and no header lies over other bytes."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    rules = dataclasses.replace(RAW, raw_text=is_text)
    client, browser = rig.accepted(small=True)
    upstream, server = rig.connected()
    rig.engine.relay(client, upstream, rules)
    *_, other, beside = relayed(rig)
    said = ("aä€𝄞" * 30_000).encode() if is_text else noise(300_000, seed)
    at, turn, passed, queued = 0, 0, b"", False
    while at < len(said):
        size = chance.choice((1, 2, 125, 126, 127, 2000, 20_000))
        server.send(said[at : at + size])
        at, turn = at + size, turn + 1
        browser.stall() if chance.random() < 0.2 else browser.resume()
        other.send(frame(size, turn))                      # neighbours in the ring of buffers
        passed += frame(size, turn)
        rig.settle(0.001)
        queued = queued or completions_of(rig).queues > 0
    browser.resume()
    rig.until(lambda: payloads(browser.received) == said)
    rig.until(lambda: has(beside, passed))
    assert queued, "something was sent short"


def payloads(data: bytes | bytearray) -> bytes:
    """Of unmasked frames, as far as they are whole."""
    at, found = 0, b""
    while at < len(data):
        size, first = data[at + 1], at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, first = int.from_bytes(data[first : first + width]), first + width
        found += data[first : first + size]
        at = first + size
    return found


def test_4_mib_both_ways_through_buffers_of_4_kib(rig: SocketRig) -> None:
    """In frames that are too small to be spliced."""
    client, browser = rig.accepted(small=True)
    upstream, server = rig.connected(small=True)
    rig.engine.relay(client, upstream, QUIET)
    up = b"".join(frame(20_000, turn) for turn in range(4 * MEBIBYTE // 20_000))
    down = b"".join(frames.build_header(frames.BINARY, 20_000) + noise(20_000, turn)
                    for turn in range(4 * MEBIBYTE // 20_000))
    browser.send(up)
    server.send(down)
    rig.until(lambda: (len(server.received), len(browser.received)) == (len(up), len(down)))
    assert server.received == up
    assert browser.received == down


def test_one_who_does_not_read_stops_the_other_within_one_buffer(rig: SocketRig) -> None:
    """Beyond `max_queue`, which is where reading stops."""
    rules = RelayRules(heartbeat=0.0, write_timeout=0.0, close_timeout=5.0, max_queue=64 * 1024)
    nears = [rig.inherited() for _ in range(2)]
    nears[1][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client, upstream = (rig.engine.adopt(near) for near, _ in nears)
    browser, server = (far for _, far in nears)
    rig.engine.relay(client, upstream, rules)
    server.stall()
    browser.send(b"".join(frame(10_000, turn) for turn in range(400)))

    def waiting() -> int:
        counts = rig.engine.inspect(client)
        assert counts is not None
        return counts[0].bytes_in - counts[1].bytes_out

    rig.until(lambda: waiting() >= rules.max_queue)
    rig.settle(0.05)
    assert waiting() <= rules.max_queue + BUFFER
    assert out(rig) == 0, "what waits for a slow side is in its queue"
    server.resume()
    rig.until(lambda: len(server.received) == 400 * len(frame(10_000)))


def test_sides_that_are_stalled_hold_nobody_up(rig: SocketRig) -> None:
    """Full sockets, full pipes, readers that read nothing: a call that waited for one of them would
    wait for ever, and what goes on beside them would not."""
    for size in (10_000, MEBIBYTE):
        client, browser = rig.accepted(small=True)
        upstream, server = rig.connected(small=True)
        rig.engine.relay(client, upstream, QUIET)
        browser.stall()
        server.stall()
        browser.send(b"".join(frame(size, turn) for turn in range(2 * MEBIBYTE // size)))
        server.send(b"".join(frames.build_header(frames.BINARY, size) + noise(size, turn)
                             for turn in range(2 * MEBIBYTE // size)))
    rig.settle(0.05)
    *_, one, two = relayed(rig)
    for turn in range(100):
        one.send(frame(seed=turn))
        rig.until(lambda turn=turn: has(two, frame(seed=turn)))  # type: ignore[misc]
        two.received.clear()


def test_own_frames_stand_behind_what_is_in_flight(rig: SocketRig) -> None:
    """A drain comes at any moment of a stream; the farewell is between two frames, at its end."""
    for turn in range(50):
        client, _, browser, server = relayed(rig)
        sent = b"".join(frame(1000, number) for number in range(turn % 7 + 1))
        browser.send(sent)
        for _ in range(turn % 4):
            completions_of(rig).wait(rig.engine.now())
        rig.engine.end(client, Cause.DRAIN)
        browser.finish()
        server.finish()
        rig.until(lambda client=client: rig.has(client, RelayEnded))  # type: ignore[misc]
        rig.move()
        arrived = bytes(server.received)
        whole = len(arrived) // len(frame(1000)) * len(frame(1000))
        assert sent.startswith(arrived[:whole])
        assert len(arrived) - whole in (0, 6 + 2)
        assert arrived[whole : whole + 1] in (b"", b"\x88")


# --- What it is for -------------------------------------------------------------------------------


def from_client(data: bytes) -> bytes:
    """A frame; its mask is zeros."""
    return frames.build_header(frames.BINARY, len(data), b"\0\0\0\0") + data


def from_upstream(data: bytes) -> bytes:
    """A frame without a mask."""
    return frames.build_header(frames.BINARY, len(data)) + data


@pytest.mark.parametrize("size", [64, 4096])
@pytest.mark.parametrize(
    ("sent", "got", "rules", "is_up"),
    [
        (from_client, from_client, QUIET, True),
        (from_upstream, from_upstream, QUIET, False),
        (from_client, bytes, RAW, True),
        (bytes, from_upstream, RAW, False),
    ],
    ids=["up", "down", "up to raw", "down from raw"],
)
def test_many_messages_share_a_system_call(
    rig: SocketRig, sent: Coder, got: Coder, rules: RelayRules, is_up: bool, size: int
) -> None:
    """At most 0.2 for a relayed message, under load: the ring's own counter, and every plain call
    that tried to move bytes. Load means that 64 links have something each time it looks."""
    ends = [pair[2:] if is_up else pair[:1:-1] for pair in (relayed(rig, rules) for _ in range(64))]
    rig.settle(0.01)
    ring, before, rounds = completions_of(rig), rig.engine.stats().calls, 30
    for turn in range(rounds):
        for sender, _ in ends:
            sender.send(sent(noise(size, turn)))
        while not all(waits(reader) for _, reader in ends):
            ring.wait(rig.engine.now() + 0.005)
        for _, reader in ends:
            reader.move()
            assert has(reader, got(noise(size, turn)))
            reader.received.clear()
    taken = (rig.engine.stats().calls - before) / (rounds * len(ends))
    print(f"{taken:.3f} system calls for a relayed message")
    assert taken <= 0.2


def waits(far: SocketFar) -> bool:
    """Bytes have come to this far end."""
    assert far.sock is not None
    with contextlib.suppress(BlockingIOError):
        return bool(far.sock.recv(1, socket.MSG_PEEK))
    return False


def test_large_payloads_are_spliced_all_the_same(rig: SocketRig) -> None:
    """They never walk through the buffers."""
    client, browser = rig.accepted()
    upstream, server = rig.connected()
    rig.engine.relay(client, upstream, QUIET)
    data = frame(MEBIBYTE)
    for _ in range(3):
        browser.send(data)
    rig.until(lambda: len(server.received) == 3 * len(data))
    assert server.received == 3 * data
    counts = rig.engine.inspect(client)
    assert counts is not None
    assert counts[0].spliced > 2 * MEBIBYTE
    assert engine_of(rig).form == "completions"


# --- Ends beside a send ---------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["upstream", "client"])
def test_who_sent_to_one_that_is_reset_is_read_on(rig: SocketRig, lost: str) -> None:
    """Its bytes and the other's reset come in one turn: its next receive waits for a send that is
    forgotten. It is told, and its answer is read, not waited for until `close_timeout`."""
    rules = RelayRules(heartbeat=0.0, write_timeout=0.0, close_timeout=600.0)
    for _ in range(8):
        client, browser = rig.accepted()
        upstream, server = rig.connected()
        rig.engine.relay(client, upstream, rules)
        rig.settle(0.01)
        teller, other, mask = (
            (browser, server, b"\0\0\0\0") if lost == "upstream" else (server, browser, b"")
        )
        assert isinstance(teller, SocketFar)
        assert teller.sock is not None
        teller.sock.send(frames.build_header(frames.BINARY, 100, mask) + noise(100))
        other.reset()
        rig.until(lambda teller=teller: b"\x88" in teller.received)  # type: ignore[misc]
        code = b"\x03\xf6" if lost == "upstream" else b"\x03\xe9"
        teller.send(frames.build_header(frames.CLOSE, 2, mask) + code)
        teller.finish()
        rig.until(lambda client=client: rig.has(client, RelayEnded))  # type: ignore[misc]
