"""Turns of the engine on io_uring: a few who are always ready keep nobody else waiting.

Counted in turns, not in time: a turn here does a set number of completions (`limit_turns`).
"""

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.rig import SocketRig
from engine.test_uring import frame, relayed, rigged, ring_of
from gateway.engine.ring_relays import RingRelays

ALWAYS_READY = 60                  # descriptors; a turn does 16 of them
TURNS_MAX = 8                      # what 60 of them may have in the queue, and what is deferred


@pytest.fixture(params=["readiness", "completions"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SocketRig]:
    """An engine whose turns are short."""
    with rigged(tmp_path, str(request.param)) as made:
        ring_of(made).limit_turns(0.0)
        yield made


@contextlib.contextmanager
def crowd(rig: SocketRig) -> Iterator[RingRelays]:
    """Descriptors that are always ready are watched, more than a turn serves."""
    ring = ring_of(rig)
    pairs = [socket.socketpair() for _ in range(ALWAYS_READY)]
    for near, far in pairs:
        far.send(b"never read")
        ring.register(near.fileno(), select.EPOLLIN)
    for _ in range(2 * TURNS_MAX):
        ring.wait(rig.engine.now() + 5.0)
        assert ring.poll()
    yield ring
    for near, far in pairs:
        ring.unregister(near.fileno())
        near.close()
        far.close()


def test_who_becomes_ready_beside_a_crowd_is_found(rig: SocketRig) -> None:
    """A listener, the bell, the supervisor's channel, an idle link: Python's descriptors."""
    near, far = socket.socketpair()
    ring_of(rig).register(near.fileno(), select.EPOLLIN)
    with crowd(rig) as ring:
        far.send(b"x")
        found = []
        for _ in range(TURNS_MAX):
            ring.wait(rig.engine.now() + 5.0)
            found += [fd for fd, _ in ring.poll()]
        assert near.fileno() in found
    ring.unregister(near.fileno())
    near.close()
    far.close()


def test_all_of_a_crowd_are_served_alike(rig: SocketRig) -> None:
    """What is left by one turn is first in the next."""
    with crowd(rig) as ring:
        found: dict[int, int] = {}
        for _ in range(10 * TURNS_MAX):
            ring.wait(rig.engine.now() + 5.0)
            for fd, _ in ring.poll():
                found[fd] = found.get(fd, 0) + 1
        assert len(found) >= ALWAYS_READY
        assert max(found.values()) - min(found.values()) <= 1


def test_a_crowd_that_ends_keeps_nobody_waiting_who_speaks(rig: SocketRig) -> None:
    """Ends are found first, and done last, in portions."""
    crowd = [relayed(rig) for _ in range(ALWAYS_READY)]
    *_, browser, server = relayed(rig)
    rig.settle(0.01)
    ring = ring_of(rig)
    ring.limit_turns(1.0)
    ring.limit_ends(0.0)
    for *_, far, _ in crowd:
        far.close()
    assert browser.sock is not None
    browser.sock.send(frame())
    ring.wait(rig.engine.now())
    server.move()
    assert server.received == frame()
    assert ring.put_off_size >= ALWAYS_READY // 2
    rig.until(lambda: not ring.put_off_size)
    for *_, far in crowd:
        far.move()
        assert far.finished, "it is told of its client's end"


def test_a_relay_moves_beside_a_crowd(rig: SocketRig) -> None:
    """Its bytes come in while the queue is never empty, and leave."""
    *_, browser, server = relayed(rig)
    rig.settle(0.01)
    with crowd(rig) as ring:
        assert browser.sock is not None
        browser.sock.send(frame())
        for _ in range(2 * TURNS_MAX):
            ring.wait(rig.engine.now() + 5.0)
        server.move()
        assert server.received == frame()
