"""What only the engine on io_uring can show: operations in flight, old completions, whose it is.

The contract itself is run on it by the other files; where the kernel refuses it, by
`test_uring_setup.py`; splicing by `test_uring_splice.py`.
"""

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.rig import Rig, SocketFar, SocketRig, noise, open_descriptors
from gateway import frames
from gateway.engine import uring
from gateway.engine.ring_completions import RingCompletions
from gateway.engine.ring_relays import RingRelays
from gateway.engine.uring import UringEngine
from gateway.events import (
    Accepted,
    Cause,
    Closed,
    Event,
    Finished,
    Link,
    Received,
    RelayEnded,
    RelayRules,
    TimedOut,
)

QUIET = RelayRules(heartbeat=0.0, write_timeout=0.0, close_timeout=5.0)
LINGER_RESET = struct.pack("ii", 1, 0)
PATIENCE_S = 20.0


@pytest.fixture(params=["readiness", "completions"])
def form(request: pytest.FixtureRequest) -> str:
    """How relays move."""
    return str(request.param)


@pytest.fixture
def rig(form: str, tmp_path: Path) -> Iterator[SocketRig]:
    """An engine; behind it no operation is in flight, no buffer out, and no descriptor left."""
    with rigged(tmp_path, form) as made:
        yield made


@contextlib.contextmanager
def rigged(
    folder: Path, form: str, *, entries: int = 256, completions: int = 4096, buffers: int = 16
) -> Iterator[SocketRig]:
    """A rig whose ring has these sizes."""
    before = open_descriptors()
    made = SocketRig(
        UringEngine(form, entries=entries, completions=completions, buffers=buffers), folder
    )
    engine = engine_of(made)
    try:
        yield made
    finally:
        made.finish()
    assert engine.left_behind == 0
    assert ring_of(made).ring.pending == 0
    assert not any(ring_of(made).stats().values())
    assert not open_descriptors().keys() - before.keys()


def engine_of(rig: Rig) -> UringEngine:
    """The rig's engine."""
    assert isinstance(rig.engine, UringEngine)
    return rig.engine


def ring_of(rig: Rig) -> RingRelays:
    """Its loop."""
    return engine_of(rig)._ring


def relayed(rig: SocketRig, rules: RelayRules = QUIET) -> tuple[Link, Link, SocketFar, SocketFar]:
    """A relay over two socketpairs: links, and far ends."""
    client_sock, browser = rig.inherited()
    upstream_sock, server = rig.inherited()
    client, upstream = rig.engine.adopt(client_sock), rig.engine.adopt(upstream_sock)
    rig.engine.relay(client, upstream, rules)
    assert isinstance(browser, SocketFar)
    assert isinstance(server, SocketFar)
    return client, upstream, browser, server


def frame(size: int = 64, seed: int = 1) -> bytes:
    """A frame from a client; its payload is masked with zeros."""
    return frames.build_header(frames.BINARY, size, b"\0\0\0\0") + noise(size, seed)


# --- Whose it is ------------------------------------------------------------------------------


def test_every_verb_of_another_thread_is_refused(rig: SocketRig) -> None:
    """Before it touches the ring: nothing is queued, and the engine goes on."""
    engine = engine_of(rig)
    listening, _ = rig.listening()
    one, two = engine.pair()
    arguments: dict[str, tuple[Any, ...]] = {
        "listen": (listening,), "unlisten": (1,), "adopt": (listening,), "pair": (),
        "connect": (rig.nowhere(),), "send": (one, b"x"), "relay": (one, two, QUIET),
        "end": (one, Cause.DRAIN), "set_timer": (one, "name", 0.0), "clear_timer": (one, "name"),
        "run": (lambda _: None,), "stop": (),
    }
    refused = []

    def other() -> None:
        for verb in (*uring.VERBS, "run", "stop"):
            with pytest.raises(RuntimeError, match="thread"):
                getattr(engine, verb)(*arguments.get(verb, (one,)))
            refused.append(verb)

    before = ring_of(rig).ring.enters, ring_of(rig).ring.pending, engine.stats()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(refused) == len(uring.VERBS) + 2
    assert (ring_of(rig).ring.enters, ring_of(rig).ring.pending, engine.stats()) == before
    listening.close()
    rig.settle(0.01)


def test_every_verb_of_a_forked_child_is_refused(rig: SocketRig) -> None:
    """It would move the parent's queue. The parent goes on."""
    engine = engine_of(rig)
    one, two = engine.pair()
    rig.settle(0.01)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            for verb in (lambda: engine.send(one, b"no"), engine.stop, lambda: engine.close(one)):
                try:
                    verb()
                except RuntimeError as error:
                    assert "process" in str(error)
                else:
                    os._exit(2)
            del verb
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.read(two)
    engine.send(one, b"yes")
    rig.until(lambda: rig.data(two) == b"yes")


# --- What is in flight ------------------------------------------------------------------------


def test_one_poll_at_most_is_in_flight_for_a_descriptor(rig: SocketRig) -> None:
    """Over traffic, holds and blocked sends, of relays and of links in Python."""
    four = [relayed(rig) for _ in range(20)]
    links = [rig.inherited() for _ in range(20)]
    numbers = [rig.engine.adopt(sock) for sock, _ in links]
    rig.settle(0.01)
    ring, descriptors = ring_of(rig).ring, 20 * 2 + 20 + 2 + 1       # 2: the rig's clock; 1: bell
    for turn in range(10):
        for _, _, browser, _ in four:
            browser.send(frame(seed=turn))
        for number, (_, far) in zip(numbers, links, strict=True):
            rig.engine.read(number)
            far.send(b"x")
        rig.settle(0.005)
        for number in numbers:
            rig.engine.hold(number)
        rig.settle(0.005)
        assert ring.pending <= descriptors
    assert all(bytes(server.received) == b"".join(frame(seed=n) for n in range(10))
               for *_, server in four)


def test_polls_for_less_or_more_than_is_armed(rig: SocketRig) -> None:
    """What is armed is changed in place, or completes once and nobody is told."""
    ring = ring_of(rig)
    near, far = socket.socketpair()
    fd = near.fileno()
    now = rig.engine.now

    def found(seconds: float = 0.0) -> list[tuple[int, int]]:
        ring.wait(now() + seconds)
        return [(number, mask) for number, mask in ring.poll() if number == fd]

    ring.register(fd, select.EPOLLIN)
    assert found() == []
    ring.modify(fd, 0)                       # still armed for more
    far.send(b"x")
    assert found(0.02) == []
    ring.modify(fd, select.EPOLLIN)
    assert found(0.5) == [(fd, select.EPOLLIN)]
    assert found(0.5) == [(fd, select.EPOLLIN)], "level-triggered"
    near.recv(1)
    ring.modify(fd, select.EPOLLIN | select.EPOLLOUT)
    assert found(0.5) == [(fd, select.EPOLLOUT)]
    ring.modify(fd, 0)
    assert found(0.02) == []
    far.close()
    assert found(0.5) == [(fd, select.EPOLLHUP)], "also where nothing is asked for"
    ring.unregister(fd)
    near.close()


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_who_is_held_and_has_sent_fin_costs_nothing(rig: SocketRig, family: str) -> None:
    """A poll in the ring would complete for RDHUP again and again; such are watched apart, where
    a reset, or what is asked for later, is told all the same."""
    held, far = rig.accepted(family=family)
    lost, lost_far = rig.accepted(family=family)
    later, later_far = rig.accepted(family=family)
    for one in (far, lost_far, later_far):
        one.send(b"unread")
        one.finish()
    client, upstream, browser, server = relayed(rig, QUIET)
    browser.stall()
    server.send(b"".join(frames.build_header(frames.BINARY, 60_000) + noise(60_000)
                         for _ in range(20)))
    browser.finish()
    rig.settle(0.05)
    enters, cpu = ring_of(rig).ring.enters, time.process_time()
    rig.sleep(0.3)
    assert ring_of(rig).ring.enters - enters <= 10
    assert time.process_time() - cpu < 0.1
    lost_far.reset()
    rig.engine.read(later)
    rig.until(lambda: rig.has(later, Finished))
    assert rig.data(later) == b"unread"
    if family == "tcp":
        rig.until(rig.closed(lost))
    browser.resume()
    rig.until(lambda: len(browser.received) == 20 * 60_004)
    rig.engine.close(held)
    rig.until(rig.closed(held))
    assert not rig.has(client, Closed)
    assert not rig.has(upstream, Closed)


def test_close_with_everything_armed(rig: SocketRig) -> None:
    """A poll holds the file. FIN or RST goes out all the same, at once, and the number is free."""
    for end, was_reset in ((rig.engine.close, False), (rig.engine.reset, True)):
        link, far = rig.accepted()
        assert isinstance(far, SocketFar)
        rig.engine.read(link)
        rig.settle(0.01)
        before = open_descriptors()
        end(link)
        assert len(open_descriptors()) == len(before) - 1
        assert far.sock is not None
        far.sock.settimeout(0.05)
        if was_reset:
            with pytest.raises(ConnectionResetError):
                far.sock.recv(1)
        else:
            assert far.sock.recv(1) == b""
        far.close()
        rig.until(rig.closed(link))


def test_a_relay_that_is_cut_with_everything_armed(rig: SocketRig) -> None:
    """The same in C: both far ends see it before the engine waits again."""
    client, upstream, browser, server = relayed(rig)
    rig.settle(0.01)
    rig.engine.reset(client)
    for far in (browser, server):
        assert far.sock is not None
        far.sock.settimeout(0.05)
        with contextlib.suppress(ConnectionResetError):
            assert far.sock.recv(1) == b""
    rig.until(rig.closed(client, upstream))


# --- Completions that come late -----------------------------------------------------------------


def test_late_completions_reach_nobody(rig: SocketRig) -> None:
    """A slot is used a thousand times, and each time the completions of all its former tenants
    come again, saying that everything is ready."""
    ring = ring_of(rig)
    assert rig.engine.compiled is not None  # type: ignore[attr-defined]
    slots = rig.engine.compiled.slots  # type: ignore[attr-defined]
    keys: set[int] = set()
    everything = select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
    for turn in range(1000):
        pairs = [socket.socketpair() for _ in range(2)]
        client, upstream = (rig.engine.adopt(near) for near, _ in pairs)
        rig.engine.relay(client, upstream, QUIET)
        slot = slots[client]
        assert slot == 0
        turns = ring.turns
        for key in list(keys)[-50:]:
            ring.inject(key, everything)
            ring.inject(key, -errno.ECANCELED)
            ring.inject(key, 0)
        assert ring.turns == turns
        keys |= {ring.key_of(slot, side) for side in range(2)}
        if isinstance(ring, RingCompletions):
            keys |= {ring.key_of_receive(slot, side) for side in range(2)}
        data = frame(100, turn)
        pairs[0][1].send(data)
        pairs[1][1].settimeout(PATIENCE_S)
        ring.wait(rig.engine.now())
        assert pairs[1][1].recv(4096) == data
        rig.engine.reset(client)
        for _, far in pairs:
            far.close()
    assert len(keys) == (4000 if isinstance(ring, RingCompletions) else 2000)
    rig.until(lambda: len([e for e in rig.events if isinstance(e, RelayEnded)]) == 1000)


def test_late_completions_of_a_descriptor_reach_nobody(rig: SocketRig) -> None:
    """Its number is another's by then."""
    ring = ring_of(rig)
    keys: list[int] = []
    for _ in range(1000):
        near, far = socket.socketpair()
        fd = near.fileno()
        ring.register(fd, select.EPOLLIN)
        for key in keys[-20:]:
            ring.inject(key, select.EPOLLIN)
        keys.append(ring.key_of_descriptor(fd))
        assert ring.poll() == []
        ring.unregister(fd)
        near.close()
        far.close()
    assert len(set(keys)) == 1000
    ring.inject(0xFFFFFFFFFFFFFFFF, 1)
    ring.inject(1 | 100_000 << 4, 1)
    ring.inject(2 | 100_000 << 4, 1)


# --- Small queues, many links -------------------------------------------------------------------


def test_a_completion_queue_of_16_loses_nothing(form: str, tmp_path: Path) -> None:
    """A thousand links become ready at once, four times."""
    with rigged(tmp_path, form, entries=8, completions=16) as rig:
        pairs = [socket.socketpair() for _ in range(1000)]
        links = [rig.engine.adopt(near) for near, _ in pairs]
        for link in links:
            rig.engine.read(link)
        for turn in range(4):
            for _, far in pairs:
                far.send(bytes([turn]))
            rig.until(lambda turn=turn: all(  # type: ignore[misc]
                len(rig.data(link)) == turn + 1 for link in links[-1:]
            ) and sum(isinstance(e, Received) for e in rig.events) == 1000 * (turn + 1))
        assert all(rig.data(link) == b"\0\1\2\3" for link in links[::100])
        assert ring_of(rig).ring.overflows > 0
        for _, far in pairs:
            far.close()
        rig.until(lambda: sum(isinstance(e, Finished) for e in rig.events) == 1000)


def test_a_small_ring_accepts_a_thousand(form: str, tmp_path: Path) -> None:
    """Nobody is lost, none taken twice."""
    with rigged(tmp_path, form, entries=8, completions=16) as rig:
        address = rig.listen()
        fars = []
        for _ in range(1000):
            fars.append(rig.client(address))
            if len(fars) % 200 == 0:
                rig.until(lambda: len(rig.events) == len(fars))
        links = {event.link for event in rig.events if isinstance(event, Accepted)}
        assert len(links) == 1000


def test_relays_through_a_small_ring(form: str, tmp_path: Path) -> None:
    """Bytes both ways through 200 relays, exactly."""
    with rigged(tmp_path, form, entries=8, completions=16) as rig:
        four = [relayed(rig) for _ in range(200)]
        for turn in range(3):
            data = frame(3000, turn)
            down = frames.build_header(frames.BINARY, 500) + noise(500, turn)
            sizes = len(down), len(data)
            for _, _, browser, server in four:
                browser.send(data)
                server.send(down)
            rig.until(lambda sizes=sizes: all(  # type: ignore[misc]
                (len(b.received), len(s.received)) == sizes for *_, b, s in four
            ))
            for *_, browser, server in four:
                assert browser.received == down
                assert server.received == data
                browser.received.clear()
                server.received.clear()


def test_stop_with_4000_links(form: str, tmp_path: Path) -> None:
    """Operations, queues, pipes and timers are zero within 50 ms of our own time."""
    with rigged(tmp_path, form) as rig:
        pairs = [socket.socketpair() for _ in range(4000)]
        links = [rig.engine.adopt(near) for near, _ in pairs]
        beating = RelayRules(heartbeat=30.0, close_timeout=5.0)
        for one, two in zip(links[::2], links[1::2], strict=True):
            rig.engine.relay(one, two, beating)
        rig.settle(0.02)
        ring = ring_of(rig)
        assert rig.engine.stats().links == 4002
        assert ring.ring.pending >= 4000
        gc.collect()
        began, began_cpu = time.monotonic(), time.process_time()
        rig.engine.stop()
        taken, taken_cpu = time.monotonic() - began, time.process_time() - began_cpu
        assert ring.ring.pending == 0
        assert not any(ring.stats().values())
        assert taken_cpu < 0.05, f"{taken_cpu * 1000:.0f} ms of CPU, {taken * 1000:.0f} in all"
        for _, far in pairs:
            far.settimeout(1.0)
            with contextlib.suppress(ConnectionResetError):
                assert far.recv(1) == b""
            far.close()


def test_an_idle_relay_is_small(form: str, tmp_path: Path) -> None:
    """It owns no buffer; at most 2.5 KiB of resident memory for each, Python's part included."""
    with rigged(tmp_path, form) as rig:
        def add(count: int) -> list[socket.socket]:
            pairs = [socket.socketpair() for _ in range(2 * count)]
            gc.collect()
            before = resident()
            for (one, _), (two, _) in zip(pairs[::2], pairs[1::2], strict=True):
                rig.engine.relay(rig.engine.adopt(one), rig.engine.adopt(two), QUIET)
            rig.settle(0.02)
            sizes.append((resident() - before) / count)
            return [far for _, far in pairs]

        sizes: list[float] = []
        fars = add(100)                              # what is made once
        fars += add(2000)
        stats = ring_of(rig).stats()
        assert (stats["relays"], stats["queued"], stats["pipes_in_use"]) == (2100, 0, 0)
        assert (ring_of(rig).queues, ring_of(rig).tails) == (0, 0)
        assert sizes[1] <= 2560, f"{sizes[1]:.0f} bytes for each"
        rig.engine.stop()
        for far in fars:
            far.close()


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- Bytes ----------------------------------------------------------------------------------------


def test_a_reset_in_the_middle_repeats_no_byte(rig: SocketRig) -> None:
    """What arrived before it is a beginning of what was sent, whoever is reset, and when."""
    data = frames.build_header(frames.BINARY, 400_000, b"\0\0\0\0") + noise(400_000)
    rules = RelayRules(heartbeat=0.0, write_timeout=0.0, close_timeout=0.1)
    for after in (0, 1, 5_000, 200_000):
        for who in range(2):
            client, browser = rig.accepted(small=True)
            upstream, server = rig.connected(small=True)
            rig.engine.relay(client, upstream, rules)
            browser.send(data)
            rig.until(lambda server=server, after=after: len(server.received) >= after)  # type: ignore[misc]
            (browser, server)[who].reset()
            rig.until(rig.closed(client, upstream))
            assert data.startswith(bytes(server.received))
            ended = rig.of(client, RelayEnded)[0]
            assert ended.cause is Cause.LOST, ended


def test_every_socket_is_non_blocking(rig: SocketRig) -> None:
    """In Python's hands and in C's."""
    before = open_descriptors()
    client, _ = rig.accepted()
    upstream, _ = rig.connected()
    pair = rig.engine.pair()
    mine = {
        int(fd) for fd, name in open_descriptors().items()
        if fd not in before and name.startswith("socket:")
    }
    fars = {far.sock.fileno() for far in rig._fars if far.sock is not None}
    servers = {sock.fileno() for sock in rig._open}
    rig.engine.relay(client, upstream, QUIET)
    rig.settle(0.01)
    checked = mine - fars - servers
    assert len(checked) >= 4
    assert all(not os.get_blocking(fd) for fd in checked)
    assert len(pair) == 2


# --- Signals and waking -----------------------------------------------------------------------


def test_a_signal_that_does_not_interrupt_the_wait_is_heard(rig: SocketRig) -> None:
    """As one that comes between the last look and the wait: nothing ends the wait but the byte
    that Python's handler in C writes. Here another thread takes it while the engine sleeps."""
    heard: list[float] = []
    sent: list[float] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(time.monotonic()))
    sleeps = threading.Event()

    def kick() -> None:
        for _ in range(5):
            sleeps.wait(PATIENCE_S)
            time.sleep(0.03)                        # it is to be asleep
            sent.append(time.monotonic())
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Thread(target=kick)
    thread.start()
    sleeps.set()
    while len(heard) < 5:
        rig.sleep(0.5)
    thread.join()
    signal.signal(signal.SIGUSR1, before)
    delays = [two - one for one, two in zip(sent, heard, strict=True)]
    assert min(delays) < 0.01, delays


def test_stop_by_a_signal_just_before_the_wait(tmp_path: Path) -> None:
    """The handler calls `stop` when the time to wait is already computed."""
    engine = UringEngine()
    engine.pair()
    waits = engine._ring

    class Late:
        def wait(self, until: float) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            waits.wait(until)

        def __getattr__(self, name: str) -> Any:
            return getattr(waits, name)

    before = signal.signal(signal.SIGUSR1, lambda *_: engine.stop())
    engine._woken = False
    engine._touched.clear()
    engine._ring = Late()  # type: ignore[assignment]
    began = time.monotonic()
    engine.run(lambda _: None)
    signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 1.0
    assert engine.stats().links == 0


def test_stop_from_another_thread_wakes_it(tmp_path: Path) -> None:
    """While it runs, and within 10 ms, the best of a few."""
    delays = []
    for _ in range(5):
        engine = UringEngine()
        engine.pair()
        asked: list[float] = []

        def stop(engine: UringEngine = engine, asked: list[float] = asked) -> None:
            time.sleep(0.03)
            asked.append(time.monotonic())
            engine.stop()

        thread = threading.Thread(target=stop)
        thread.start()
        engine.run(lambda _: None)
        delays.append(time.monotonic() - asked[0])
        thread.join()
        assert engine.stats().links == 0
    assert min(delays) < 0.01, delays


def test_the_wakeup_descriptor_is_given_back() -> None:
    """Another loop of this process may have set one."""
    one, two = socket.socketpair()
    one.setblocking(False)
    signal.set_wakeup_fd(one.fileno())
    engine = UringEngine()
    link = engine.pair()[0]
    engine.set_timer(link, "now", engine.now())
    engine.run(lambda _: engine.stop())
    assert signal.set_wakeup_fd(-1) == one.fileno()
    one.close()
    two.close()


def test_timers_are_never_early_and_need_no_turns(rig: SocketRig) -> None:
    """The wait is as long as the earliest timer of either kind is away."""
    link = rig.engine.pair()[0]
    for after in (0.0, 0.0001, 0.003, 0.02):
        at = rig.engine.now() + after
        rig.engine.set_timer(link, "it", at)
        turns = engine_of(rig).turns
        rig.sleep(after + 0.02)
        event = rig.of(link, TimedOut)[-1]
        assert at <= event.at < at + 0.5
        assert engine_of(rig).turns - turns <= 6


def test_a_relay_moves_without_turns_of_python(rig: SocketRig) -> None:
    """A hundred messages, and Python is not entered for any of them."""
    _, _, browser, server = relayed(rig)
    rig.settle(0.01)
    done = threading.Event()

    def talk() -> None:
        for end in (browser.sock, server.sock):
            assert end is not None
            end.settimeout(PATIENCE_S)
        for turn in range(100):
            data = frame(100, turn)
            assert browser.sock is not None
            assert server.sock is not None
            browser.sock.sendall(data)
            assert server.sock.recv(4096) == data
        done.set()

    turns, enters = engine_of(rig).turns, ring_of(rig).ring.enters
    thread = threading.Thread(target=talk)
    thread.start()
    while not done.is_set():
        rig.sleep(0.1)
    thread.join()
    assert ring_of(rig).ring.enters - enters >= 100
    assert engine_of(rig).turns - turns < 50


def test_a_ring_that_fails_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor was closed by a bug elsewhere: `run` raises, and does not spin."""
    engine = UringEngine()
    engine.pair()
    place = os.open(os.devnull, os.O_RDONLY)
    os.dup2(place, engine._ring.ring.fd)
    os.close(place)
    with pytest.raises(OSError, match="ring"):
        engine.run(lambda _: None)
    engine.stop()
    assert engine.left_behind > 0


@pytest.mark.parametrize("stop", [False, True])
def test_an_exception_out_of_deliver_loses_nothing(rig: SocketRig, stop: bool) -> None:
    """Descriptors that were found and not looked after are found again."""
    pairs = [rig.inherited() for _ in range(30)]
    links = [rig.engine.adopt(near) for near, _ in pairs]
    for link, (_, far) in zip(links, pairs, strict=True):
        rig.engine.read(link)
        far.send(b"x")
    got: list[Event] = []

    class Bug(Exception):
        pass

    def deliver(batch: list[Event]) -> None:
        got.extend(batch)
        raise Bug

    while len(got) < 30:
        with pytest.raises(Bug):
            rig.engine.run(deliver)
    assert sorted(event.link for event in got) == sorted(links)
    if stop:
        rig.engine.stop()
    else:
        rig.engine.close(links[0])
        rig.until(lambda: rig.has(links[0], Closed))
