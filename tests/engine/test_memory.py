"""What only the memory engine has: a clock that jumps, seeds that repeat, faults on order.

The simulation relies on each of these; where TCP is modelled, the test says what TCP does.
"""

import errno
import random

import pytest

from engine.rig import MEBIBYTE, noise
from gateway import frames
from gateway.engine.memory import FarEnd, MemoryEngine, Network, Weather
from gateway.errors import Fault
from gateway.events import (
    Accepted,
    AcceptPaused,
    AcceptResumed,
    Address,
    Cause,
    Closed,
    Connected,
    ConnectFailed,
    Event,
    Finished,
    Link,
    Received,
    RelayEnded,
    RelayRules,
    TimedOut,
)
from gateway.relaying import Relay

HERE = Address(host="127.0.0.1", port=8080)
THERE = Address(host="10.0.0.1", port=9000)
STORM = Weather(
    latency=0.001, jitter=0.01, cuts=0.5, short_reads=0.5, short_sends=0.5, rough_resets=0.5,
    shuffle=True, window=5000,
)  # fmt: skip


class World:
    """An engine, its network, and all events."""

    def __init__(
        self, seed: int = 0, weather: Weather | None = None, descriptors_max: int | None = None
    ):
        self.network = Network(seed, weather, descriptors_max)
        self.engine = MemoryEngine(self.network)
        self.events: list[Event] = []

    def go(self, seconds: float = 1.0) -> None:
        """Let time pass."""
        self.engine.advance(self.events.extend, self.network.now + seconds)

    def of(self, kind: type[Event]) -> list[Event]:
        """All events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def accepted(self) -> tuple[Link, FarEnd]:
        """A client's link and far end."""
        self.engine.listen(self.network.listener(HERE))
        far = self.network.connect_client(HERE)
        self.go()
        return self.of(Accepted)[-1].link, far


def story(seed: int) -> tuple[list[Event], bytes, int]:
    """A life in bad weather: what was reported, what arrived, how many turns it took."""
    world = World(seed, STORM)
    engine, network = world.engine, world.network
    chance = random.Random(seed)
    sizes = [chance.randrange(1, 9000) for _ in range(6)]

    def upstream(far: FarEnd) -> None:
        far.on_received = lambda f: f.send(frames.build_frame(2, b"x" * (len(f.received) % 300)))
        if seed % 2:
            network.later(0.3, far.reset)

    network.on_connect(THERE, upstream)
    engine.listen(network.listener(HERE))
    client = network.connect_client(HERE)
    for number, size in enumerate(sizes):
        frame = frames.build_frame(2, noise(size), b"mask")
        network.later(number / 20, client.send, frame)
    network.later(0.5, client.finish)
    accepted: list[Link] = []

    def deliver(batch: list[Event]) -> None:
        world.events += batch
        for event in batch:
            if isinstance(event, Accepted):
                accepted.append(event.link)
                engine.connect(THERE)
            elif isinstance(event, Connected):
                engine.relay(accepted[0], event.link, RelayRules(heartbeat=0.2))

    engine.advance(deliver, 30.0)
    engine.stop()
    return world.events, bytes(client.received), engine.turns


def test_one_seed_is_one_run() -> None:
    """All of it: events with their times, bytes, turns. Another seed gives another run."""
    told = [story(seed) for seed in range(6)]
    assert told == [story(seed) for seed in range(6)]
    assert len({repr(each) for each in told}) == 6
    assert all(any(isinstance(event, RelayEnded) for event in each[0]) for each in told)


def test_time_jumps_to_what_comes_next() -> None:
    """An hour costs nothing, and timers fire at their very time."""
    world = World()
    link, _ = world.engine.pair()
    world.engine.set_timer(link, "late", 3600.0)
    world.go(7200)
    assert world.events == [TimedOut(3600.0, link, "late")]
    assert world.engine.now() == 7200
    assert world.engine.turns < 5


def test_to_sleep_for_ever_is_a_bug() -> None:
    """`run` is for lives that end."""
    world = World()
    world.engine.pair()
    with pytest.raises(AssertionError, match="for ever"):
        world.engine.run(world.events.extend)
    world.engine.stop()


def test_descriptors_run_out_and_nobody_is_dropped() -> None:
    """EMFILE even if nobody waits, as the kernel has it; a link that closes makes room."""
    world = World(descriptors_max=4)
    engine = world.engine
    engine.listen(world.network.listener(HERE))
    clients = [world.network.connect_client(HERE) for _ in range(5)]
    world.go(0.05)
    assert len(world.of(Accepted)) == 3
    assert [event.fault for event in world.of(AcceptPaused)] == [  # type: ignore[attr-defined]
        Fault.NO_DESCRIPTORS
    ]
    assert world.network.waiting(HERE) == 2
    failed = engine.connect(THERE)
    world.go(5)
    assert ConnectFailed(0.05, failed, Fault.NO_DESCRIPTORS) in world.events
    assert len(world.of(AcceptPaused)) == 1
    assert not world.of(AcceptResumed)
    engine.close(world.of(Accepted)[0].link)
    world.go(0.001)
    assert world.of(AcceptResumed)
    assert len(world.of(Accepted)) == 4
    for event in world.of(Accepted):
        engine.close(event.link)
    world.go()
    assert len(world.of(Accepted)) == 5
    assert not any(client.was_reset for client in clients)
    engine.stop()
    assert world.network.open_descriptors == 0


def test_accept_errors() -> None:
    """Those of one connection are passed over; others pause until the retry."""
    world = World()
    world.engine.listen(world.network.listener(HERE))
    world.network.accept_errors.extend([errno.ECONNABORTED, errno.EPROTO, errno.ENFILE])
    world.network.connect_client(HERE)
    world.go()
    kinds = [type(event) for event in world.events]
    assert kinds == [AcceptPaused, AcceptResumed, Accepted]
    assert world.events[1].at - world.events[0].at == pytest.approx(0.1)


def test_a_number_of_a_descriptor_is_soon_anothers() -> None:
    """And nothing that was meant for the one reaches the other."""
    world = World()
    one, far = world.accepted()
    world.engine.read(one)
    far.send(b"for one")
    world.engine.reset(one)
    world.engine.pair()
    world.go()
    assert not world.of(Received)
    assert world.network.open_descriptors == 3


def test_bytes_wait_while_the_window_is_full() -> None:
    """Both ways: the far end's are unsent, the engine's are queued."""
    world = World(weather=Weather(window=1000))
    link, far = world.accepted()
    far.stall()
    far.send(noise(5000))
    world.engine.send(link, noise(5000, 2))
    world.go()
    assert len(far.unsent) == 4000
    assert world.engine.stats().queued == 4000
    world.engine.read(link)
    far.resume()
    world.go()
    assert b"".join(event.data for event in world.of(Received)) == noise(5000)  # type: ignore[attr-defined]
    assert far.received == noise(5000, 2)


def test_close_with_unread_bytes_is_reset_and_says_why() -> None:
    """So a test can tell a farewell that was destroyed by a hasty close(2)."""
    world = World()
    link, far = world.accepted()
    far.send(b"unread")
    world.go()
    world.engine.close(link)
    world.go()
    assert (far.was_reset, far.reset_why) == (True, "unread")


def test_bytes_for_a_closed_link_are_answered_with_reset() -> None:
    """The far end gets FIN, goes on talking, and learns that nobody hears it."""
    world = World()
    link, far = world.accepted()
    world.engine.close(link)
    world.go()
    assert far.finished
    assert not far.was_reset
    far.send(b"hello?")
    world.go()
    assert (far.was_reset, far.reset_why) == (True, "late")


def test_an_ordered_reset_says_so() -> None:
    """The third cause of RST."""
    world = World()
    link, far = world.accepted()
    world.engine.reset(link)
    world.go()
    assert (far.was_reset, far.reset_why) == (True, "abort")


def test_a_reset_destroys_a_farewell_in_rough_weather() -> None:
    """RFC 9293 3.10.7.4: what the far end has not read yet is gone."""
    for rough, expected in ((0.0, b"farewell"), (1.0, b"")):
        world = World(weather=Weather(latency=0.01, rough_resets=rough))
        link, far = world.accepted()
        far.stall()
        far.send(b"unread")
        world.go()
        world.engine.send(link, b"farewell")
        world.engine.close(link)
        world.go()
        far.resume()
        assert far.was_reset
        assert far.received == expected


def test_what_arrived_before_a_reset_is_still_read() -> None:
    """As Linux has it, in calm weather."""
    world = World()
    link, far = world.accepted()
    world.engine.read(link)
    far.send(b"last words")
    far.reset()
    world.go()
    assert [type(event) for event in world.events] == [Accepted, Received, Closed]


def test_a_far_end_that_closes_and_is_spoken_to_resets() -> None:
    """FIN first, then RST as the answer to our bytes."""
    world = World()
    link, far = world.accepted()
    world.engine.read(link)
    far.close()
    world.go()
    assert world.of(Finished)
    world.engine.send(link, b"hello?")
    world.go()
    assert [event.fault for event in world.of(Closed)] == [Fault.RESET]  # type: ignore[attr-defined]


def test_a_machine_that_vanishes_is_noticed_by_the_kernels_timeout() -> None:
    """Nothing comes back; in a relay TCP_USER_TIMEOUT is set, and gives the link up."""
    world = World()
    network, engine = world.network, world.engine
    servers: list[FarEnd] = []
    network.on_connect(THERE, servers.append)
    client, browser = world.accepted()
    upstream = engine.connect(THERE)
    world.go()
    engine.relay(client, upstream, RelayRules(write_timeout=10))
    servers[0].vanish()
    browser.send(frames.build_frame(2, b"hello", b"mask"))
    world.go(60)
    (ended,) = world.of(RelayEnded)
    assert isinstance(ended, RelayEnded)
    assert ended.cause is Cause.LOST
    closed = [event for event in world.of(Closed) if event.link == upstream]
    assert [event.fault for event in closed] == [Fault.TIMED_OUT]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (errno.ETIMEDOUT, Fault.TIMED_OUT),
        (errno.EHOSTUNREACH, Fault.UNREACHABLE),
        (errno.ECONNREFUSED, Fault.REFUSED),
    ],
)
def test_connects_fail_as_ordered(number: int, fault: Fault) -> None:
    """With the error and after the delay that the test says."""
    world = World()
    world.network.on_connect(THERE, error=number, delay=3)
    link = world.engine.connect(THERE)
    world.go(10)
    assert world.events == [ConnectFailed(3.0, link, fault), Closed(3.0, link, fault)]


def test_a_silent_upstream_answers_nothing() -> None:
    """Until the caller gives it up."""
    world = World()
    world.network.on_connect(THERE, silent=True)
    link = world.engine.connect(THERE)
    world.go(100)
    assert not world.events
    world.engine.reset(link)
    world.go()
    assert world.events == [Closed(100.0, link, None)]


def test_a_full_unix_queue_has_room_in_the_end() -> None:
    """EAGAIN until then; tried again by timer."""
    world = World()
    path = Address(path="/run/app.sock")
    world.network.on_connect(path, lambda _: None, full_until=2.0)
    world.engine.connect(path)
    world.go(5)
    (event,) = world.events
    assert isinstance(event, Connected)
    assert 2.0 <= event.at < 2.1


def test_another_relay_takes_the_place_of_the_rules() -> None:
    """So that broken ones can be shown to be caught."""

    class Deaf(Relay):
        def received(self, *_: object) -> None:
            pass

    network = Network()
    engine = MemoryEngine(network, relay_factory=Deaf)
    servers: list[FarEnd] = []
    network.on_connect(THERE, servers.append)
    engine.listen(network.listener(HERE))
    browser = network.connect_client(HERE)
    events: list[Event] = []
    upstream = engine.connect(THERE)
    engine.advance(events.extend, 1)
    (accepted,) = [event for event in events if isinstance(event, Accepted)]
    engine.relay(accepted.link, upstream, RelayRules())
    browser.send(frames.build_frame(2, b"hello", b"mask"))
    engine.advance(events.extend, 2)
    assert servers[0].received == b""
    engine.stop()


def test_a_megabyte_through_a_storm_arrives_bit_for_bit() -> None:
    """Cut, late, short and out of turn, but in order."""
    world = World(3, STORM)
    link, far = world.accepted()
    world.engine.read(link)
    data = noise(MEBIBYTE)
    far.send(data)
    far.finish()
    world.go(1000)
    assert b"".join(event.data for event in world.of(Received)) == data  # type: ignore[attr-defined]
    assert world.of(Finished)
