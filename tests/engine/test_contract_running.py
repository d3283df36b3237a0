"""The contract, on every engine, continued: timers, links of our own, running and stopping."""

import time

import pytest

from engine.rig import Rig, noise
from gateway.engine.core import SocketEngine
from gateway.engine.memory import MemoryEngine
from gateway.events import (
    Clogged,
    Closed,
    Event,
    Finished,
    TimedOut,
)


class TestTimers:
    """`set_timer`, `clear_timer`, `TimedOut`."""

    def test_fires_once_at_its_time_or_after(self, rig: Rig) -> None:
        link, _ = rig.engine.pair()
        at = rig.engine.now() + 0.02
        rig.engine.set_timer(link, "a", at)
        assert rig.engine.stats().timers == 1
        rig.until(lambda: rig.has(link, TimedOut))
        rig.settle()
        (event,) = rig.of(link, TimedOut)
        assert event.name == "a"
        assert event.at >= at

    def test_a_time_in_the_past_fires_soon_but_not_inside(self, rig: Rig) -> None:
        link, _ = rig.engine.pair()
        rig.engine.set_timer(link, "a", rig.engine.now() - 5)
        assert not rig.events
        rig.until(lambda: rig.has(link, TimedOut))

    def test_one_of_a_name_is_replaced(self, rig: Rig) -> None:
        link, other = rig.engine.pair()
        now = rig.engine.now()
        rig.engine.set_timer(link, "a", now + 0.01)
        rig.engine.set_timer(link, "a", now + 0.05)
        rig.engine.set_timer(other, "a", now + 0.01)
        rig.engine.set_timer(link, "b", now + 0.01)
        rig.until(lambda: len(rig.events) == 3)
        rig.settle()
        assert [(e.link, e.name) for e in rig.events if isinstance(e, TimedOut)] == [
            (other, "a"),
            (link, "b"),
            (link, "a"),
        ]
        assert rig.of(link, TimedOut)[1].at >= now + 0.05

    def test_cleared_is_not_fired(self, rig: Rig) -> None:
        link, _ = rig.engine.pair()
        rig.engine.set_timer(link, "a", rig.engine.now())
        rig.engine.clear_timer(link, "a")
        rig.engine.clear_timer(link, "a")
        rig.settle()
        assert not rig.events
        assert rig.engine.stats().timers == 0

    def test_cleared_when_already_due_is_not_delivered(self, rig: Rig) -> None:
        link, other = rig.engine.pair()
        now = rig.engine.now()

        def clear(event: Event) -> None:
            if event.link == link:
                rig.engine.clear_timer(link, "second")
                rig.engine.clear_timer(other, "third")

        rig.on_event = clear
        for owner, name in ((link, "first"), (link, "second"), (other, "third"), (other, "4")):
            rig.engine.set_timer(owner, name, now)
        rig.settle()
        assert [e.name for e in rig.events if isinstance(e, TimedOut)] == ["first", "4"]

    def test_replaced_when_already_due_is_delivered_later_only(self, rig: Rig) -> None:
        link, _ = rig.engine.pair()
        now = rig.engine.now()

        def replace(event: Event) -> None:
            if isinstance(event, TimedOut) and event.name == "first":
                rig.engine.set_timer(link, "second", now + 0.05)

        rig.on_event = replace
        rig.engine.set_timer(link, "first", now)
        rig.engine.set_timer(link, "second", now)
        rig.until(lambda: len(rig.events) == 2)
        rig.settle()
        first, second = rig.of(link, TimedOut)
        assert (first.name, second.name) == ("first", "second")
        assert second.at >= now + 0.05

    def test_none_after_closed(self, rig: Rig) -> None:
        link, other = rig.engine.pair()
        rig.engine.set_timer(link, "a", rig.engine.now() + 0.01)
        rig.engine.reset(link)
        rig.engine.read(other)
        rig.settle(0.05)
        assert rig.kinds(link) == [Closed]
        assert rig.engine.stats().timers == 0

    def test_many_thousands_are_cheap(self, rig: Rig) -> None:
        """Each of 20,000 timers is moved twice; all fire in order."""
        link, _ = rig.engine.pair()
        now = rig.engine.now()
        began = time.process_time()
        for turn in range(3):
            for number in range(20_000):
                rig.engine.set_timer(link, str(number), now + 0.5 + turn + number / 40_000)
        assert rig.engine.stats().timers == 20_000
        for number in range(20_000):
            if number % 100:
                rig.engine.clear_timer(link, str(number))
        assert rig.engine.stats().timers == 200
        assert time.process_time() - began < 5
        for number in range(0, 20_000, 100):
            rig.engine.set_timer(link, str(number), now + number / 400_000)
        rig.until(lambda: len(rig.of(link, TimedOut)) == 200)
        names = [int(event.name) for event in rig.of(link, TimedOut)]
        assert names == sorted(names)


class TestOwnLinks:
    """`adopt` and `pair`."""

    def test_an_adopted_socket_is_open_and_held(self, rig: Rig) -> None:
        sock, far = rig.inherited()
        link = rig.engine.adopt(sock)
        far.send(b"hello")
        rig.settle()
        assert rig.kinds(link) == []
        rig.engine.read(link)
        rig.engine.send(link, b"there")
        rig.until(lambda: rig.data(link) == b"hello" and far.received == b"there")

    def test_a_pair_is_each_others_far_end(self, rig: Rig) -> None:
        one, two = rig.engine.pair()
        rig.engine.read(one)
        rig.engine.read(two)
        rig.engine.send(one, b"to two")
        rig.engine.send(two, b"to one")
        rig.engine.finish(one)
        rig.until(lambda: rig.data(one) == b"to one" and rig.has(two, Finished))
        assert rig.data(two) == b"to two"
        rig.engine.close(two)
        rig.until(lambda: rig.has(one, Finished))
        rig.engine.close(one)
        rig.until(rig.closed(one, two))


class TestRunning:
    """`run`, `stop`, exceptions, and an idle engine."""

    def test_stop_from_deliver_closes_many_links_without_events(self, rig: Rig) -> None:
        address = rig.listen()
        fars = [rig.client(address) for _ in range(100)]
        pairs = [rig.engine.pair() for _ in range(20)]
        link, stalled = rig.accepted(small=True)
        stalled.stall()
        rig.engine.send(link, noise(200_000))
        rig.until(lambda: rig.has(link, Clogged) and len(rig.events) == 102)
        for one, two in pairs:
            rig.engine.set_timer(one, "later", rig.engine.now() + 3600)
            rig.engine.read(two)
        rig.engine.connect(rig.full()[0])

        def stop(event: Event) -> None:
            if isinstance(event, TimedOut):
                rig.engine.stop()

        rig.on_event = stop
        rig.engine.set_timer(link, "stop", rig.engine.now() + 0.01)
        rig.engine.set_timer(pairs[0][0], "never", rig.engine.now() + 0.01)
        before = len(rig.events)
        rig.engine.run(rig._take)
        assert [type(event) for event in rig.events[before:]] == [TimedOut]
        stats = rig.engine.stats()
        assert (stats.links, stats.listeners, stats.timers, stats.queued) == (0, 0, 0, 0)
        assert stats.closed == stats.accepted + stats.connected + 2 * 21 + 1
        if not isinstance(rig.engine, MemoryEngine):
            for _ in range(1000):
                rig.move()
            assert all(far.finished for far in fars)

    def test_stop_without_run_and_twice(self, rig: Rig) -> None:
        rig.listen()
        rig.engine.pair()
        rig.engine.stop()
        rig.engine.stop()
        assert rig.engine.stats().links == 0

    def test_an_exception_out_of_deliver_is_raised_and_loses_nothing_else(self, rig: Rig) -> None:
        links = [rig.engine.pair()[0] for _ in range(5)]
        now = rig.engine.now()
        for link in links:
            rig.engine.set_timer(link, "a", now)

        class Bug(Exception):
            pass

        seen: list[Event] = []

        def deliver(batch: list[Event]) -> None:
            seen.extend(batch)
            raise Bug

        for count in range(1, 6):
            with pytest.raises(Bug):
                rig.engine.run(deliver)
            assert len(seen) == count
        assert [event.link for event in seen] == links

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, AssertionError])
    def test_also_one_that_is_no_plain_exception(
        self, rig: Rig, kind: type[BaseException]
    ) -> None:
        link, _ = rig.engine.pair()
        rig.engine.set_timer(link, "a", rig.engine.now())

        def deliver(_: list[Event]) -> None:
            raise kind

        with pytest.raises(kind):
            rig.engine.run(deliver)

    def test_an_idle_engine_makes_no_turn(self, rig: Rig) -> None:
        """With held links that have unread bytes, FIN or both, and read ones that are quiet."""
        address = rig.listen()
        fars = [rig.client(address) for _ in range(20)]
        rig.until(lambda: len(rig.events) == 20)
        links = [event.link for event in rig.events]
        for number, (link, far) in enumerate(zip(links, fars, strict=True)):
            if number % 2:
                rig.engine.read(link)
            else:
                far.send(b"unread")
            if number % 4 >= 2:
                far.finish()
            if number % 8 >= 4:
                rig.engine.finish(link)
        unix, far = rig.accepted(family="unix")
        far.close()
        rig.settle(0.05)
        assert not rig.has(unix, Closed)
        assert isinstance(rig.engine, SocketEngine)
        before = rig.engine.turns
        rig.sleep(0.2)
        assert rig.engine.turns - before <= 5

    def test_the_clock_is_monotonic_and_in_seconds(self, rig: Rig) -> None:
        before = rig.engine.now()
        rig.sleep(0.02)
        assert 0.02 <= rig.engine.now() - before < 5
