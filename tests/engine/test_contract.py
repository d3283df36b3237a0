"""The contract, on every engine: each verb and each promise of `gateway/engine/contract.py`.

Timers and running are in `test_contract_running.py`, the relay is in `test_contract_relay.py`; what
takes a process of its own (signals, no free descriptor, a stopped process on the same listener)
is in `test_processes.py`.
"""

import pytest

from engine.rig import MEBIBYTE, Rig, noise
from gateway.engine import contract
from gateway.engine.contract import ACCEPTS_PER_TURN, QUEUE_HIGH, QUEUE_MAX, Engine
from gateway.engine.memory import MemoryEngine
from gateway.engine.uring import UringEngine
from gateway.engine.uv import UvEngine
from gateway.errors import Fault
from gateway.events import (
    Accepted,
    Address,
    Cleared,
    Clogged,
    Closed,
    Connected,
    ConnectFailed,
    Event,
    Finished,
    Received,
    TimedOut,
)


def test_engines_have_the_verbs() -> None:
    """Each is an Engine, which is for mypy to see."""
    engines: list[type[Engine]] = [MemoryEngine, UringEngine, UvEngine]
    assert [engine.name for engine in engines] == ["memory", "io_uring", "uvloop"]


class TestListening:
    """`listen`, `unlisten`, `Accepted`."""

    @pytest.mark.parametrize("family", ["tcp", "tcp6", "unix"])
    def test_a_client_is_accepted_with_both_addresses(self, rig: Rig, family: str) -> None:
        address = rig.listen(family=family)
        far = rig.client(address)
        rig.until(lambda: rig.events)
        event = rig.events[0]
        assert isinstance(event, Accepted)
        assert event.local == address
        assert event.client.is_unix == (family == "unix")
        if family != "unix":
            assert event.client.host == address.host
            assert event.client.port not in (0, address.port)
        rig.engine.read(event.link)
        far.send(b"hello")
        rig.until(lambda: rig.data(event.link) == b"hello")

    def test_every_client_is_accepted_once(self, rig: Rig) -> None:
        address = rig.listen()
        count = 2 * ACCEPTS_PER_TURN + 20
        for _ in range(count):
            rig.client(address)
        rig.until(lambda: len(rig.events) >= count)
        rig.settle()
        assert len({event.link for event in rig.events}) == len(rig.events) == count
        assert rig.engine.stats().accepted == count

    def test_what_came_before_accept_is_received_after_read_and_in_order(self, rig: Rig) -> None:
        address = rig.listen()
        far = rig.client(address)
        far.send(b"early")
        far.finish()
        rig.until(lambda: rig.events)
        link = rig.events[0].link
        rig.settle()
        assert rig.kinds(link) == [Accepted]
        rig.engine.read(link)
        rig.until(lambda: rig.has(link, Finished))
        assert rig.kinds(link) == [Accepted, Received, Finished]
        assert rig.data(link) == b"early"

    def test_a_held_listener_leaves_clients_to_others_who_share_it(self, rig: Rig) -> None:
        listening, address = rig.listening()
        listener = rig.engine.listen(listening)
        rig.settle()
        rig.engine.hold(listener)
        rig.engine.hold(listener)
        far = rig.client(address)
        rig.settle()
        assert not rig.events
        assert not far.was_reset
        other, _ = rig.listening(shared_with=address)
        second = rig.engine.listen(other)
        rig.until(lambda: rig.events)
        assert isinstance(rig.events[0], Accepted)
        assert rig.events[0].listener == second

    def test_a_listener_that_was_held_accepts_again(self, rig: Rig) -> None:
        listening, address = rig.listening()
        listener = rig.engine.listen(listening)
        rig.engine.hold(listener)
        for _ in range(3):
            rig.client(address)
        rig.settle()
        assert not rig.events
        rig.engine.read(listener)
        rig.engine.read(listener)
        rig.until(lambda: len(rig.events) == 3)
        rig.client(address)
        rig.until(lambda: len(rig.events) == 4)

    def test_holding_from_inside_takes_effect_with_the_next_turn(self, rig: Rig) -> None:
        """What was accepted already is delivered; more is not."""
        listening, address = rig.listening()
        listener = rig.engine.listen(listening)
        rig.on_event = lambda _: rig.engine.hold(listener)
        for _ in range(2 * ACCEPTS_PER_TURN):
            rig.client(address)
        rig.until(lambda: rig.events)
        rig.settle()
        assert 1 <= len(rig.events) <= ACCEPTS_PER_TURN

    def test_a_held_listener_may_be_given_up(self, rig: Rig) -> None:
        listening, address = rig.listening()
        listener = rig.engine.listen(listening)
        rig.engine.hold(listener)
        rig.engine.unlisten(listener)
        rig.engine.read(listener)
        rig.client(address)
        rig.settle()
        assert not rig.events

    @pytest.mark.parametrize(("limit", "value"), [
        ("BATCHES_PER_TURN", 2), ("TURN_LIMIT", 0.0), ("READY_PER_TURN", 2),
    ])
    def test_what_is_too_much_for_a_turn_is_delivered_in_the_next(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
    ) -> None:
        """All of it, in order, and no link is read again before."""
        monkeypatch.setattr(contract, limit, value)
        pairs = [rig.accepted() for _ in range(7)]
        for number, (link, far) in enumerate(pairs):
            rig.engine.read(link)
            far.send(bytes([number]) * 1000)
            far.finish()
        rig.until(lambda: all(rig.has(link, Finished) for link, _ in pairs))
        for number, (link, _) in enumerate(pairs):
            assert rig.data(link) == bytes([number]) * 1000

    def test_after_unlisten_clients_wait_for_others_who_share_the_socket(self, rig: Rig) -> None:
        listening, address = rig.listening()
        listener = rig.engine.listen(listening)
        rig.settle()
        rig.engine.unlisten(listener)
        far = rig.client(address)
        far.send(b"still here")
        rig.settle()
        assert not rig.events
        assert not far.was_reset
        other, _ = rig.listening(shared_with=address)
        second = rig.engine.listen(other)
        rig.until(lambda: rig.events)
        event = rig.events[0]
        assert isinstance(event, Accepted)
        assert event.listener == second != listener
        rig.engine.read(event.link)
        rig.until(lambda: rig.data(event.link) == b"still here")
        assert rig.engine.stats().listeners == 1

    def test_who_is_still_to_come_is_known(self, rig: Rig) -> None:
        """In the backlog, also while the listener is held, and until the last is delivered."""
        listening, address = rig.listening()
        listener = rig.engine.listen(listening)
        rig.settle()
        assert not rig.engine.waits(listener)
        rig.engine.hold(listener)
        for _ in range(3):
            rig.client(address)
        rig.settle()
        assert rig.engine.waits(listener)
        told: list[bool] = []
        rig.on_event = lambda _: told.append(rig.engine.waits(listener))
        rig.engine.read(listener)
        rig.until(lambda: len(rig.events) == 3)
        assert told == [True, True, False]
        assert not rig.engine.waits(listener)
        rig.engine.unlisten(listener)
        assert not rig.engine.waits(listener)
        assert not rig.engine.waits(4711)

    def test_unlisten_twice_and_of_nobody_is_harmless(self, rig: Rig) -> None:
        listening, _ = rig.listening()
        listener = rig.engine.listen(listening)
        rig.engine.unlisten(listener)
        rig.engine.unlisten(listener)
        rig.engine.unlisten(4711)


class TestReading:
    """`read`, `hold`, `Received`, `Finished`, and loss while reading or not."""

    def test_bytes_arrive_in_order_and_nothing_after_finished(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.read(link)
        data = noise(MEBIBYTE)
        far.send(data)
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        rig.settle()
        assert rig.data(link) == data
        assert rig.kinds(link) == [Accepted, Received, Finished]
        assert all(1 <= len(e.data) <= contract.READ_MAX for e in rig.of(link, Received))

    def test_nothing_is_delivered_while_held(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.read(link)
        far.send(b"one")
        rig.until(lambda: rig.data(link) == b"one")
        rig.engine.hold(link)
        rig.engine.hold(link)
        rig.settle()
        far.send(b"two")
        far.finish()
        rig.settle()
        assert rig.data(link) == b"one"
        assert not rig.has(link, Finished)
        rig.engine.read(link)
        rig.engine.read(link)
        rig.until(lambda: rig.has(link, Finished))
        assert rig.data(link) == b"onetwo"

    def test_hold_from_deliver_bounds_what_comes(self, rig: Rig) -> None:
        link, far = rig.accepted()

        def hold(event: Event) -> None:
            if isinstance(event, Received):
                rig.engine.hold(link)

        rig.on_event = hold
        rig.engine.read(link)
        far.send(noise(MEBIBYTE))
        rig.until(lambda: rig.has(link, Received))
        rig.settle()
        assert len(rig.data(link)) <= 2 * contract.READ_MAX

    def test_a_held_link_that_is_reset_is_reported(self, rig: Rig) -> None:
        link, far = rig.accepted()
        far.reset()
        rig.until(rig.closed(link))
        assert [event.fault for event in rig.of(link, Closed)] == [Fault.RESET]

    def test_a_held_link_is_reported_lost_also_with_unread_bytes(self, rig: Rig) -> None:
        link, far = rig.accepted()
        far.send(b"never read")
        rig.settle()
        far.reset()
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [Accepted, Closed]

    def test_a_held_link_whose_far_end_finished_stays(self, rig: Rig) -> None:
        link, far = rig.accepted()
        far.finish()
        rig.engine.finish(link)
        rig.until(lambda: far.finished)
        rig.settle()
        assert rig.kinds(link) == [Accepted]

    def test_bytes_before_a_reset_are_received_before_closed(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.read(link)
        far.send(b"last words")
        rig.until(lambda: rig.data(link) == b"last words")
        far.reset()
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [Accepted, Received, Closed]
        assert rig.of(link, Closed)[0].fault is Fault.RESET

    @pytest.mark.parametrize("hold", [False, True])
    def test_what_came_before_a_failed_send_is_received(self, rig: Rig, *, hold: bool) -> None:
        """An upstream that refuses, and closes with our bytes unread, has still answered. Who
        holds the link then has lost it at once."""
        link, far = rig.accepted(family="unix")
        answer = noise(3 * contract.READ_MAX)
        far.send(answer[:-100_000])
        rig.engine.read(link)

        def talk_on(event: Event) -> None:
            if isinstance(event, Received):
                if len(rig.data(link)) >= 3 * contract.READ_MAX // 2 and hold:
                    rig.engine.hold(link)
                elif len(rig.data(link)) == len(event.data):
                    far.send(answer[-100_000:])
                    far.close()
                    rig.settle_far()
                rig.engine.send(link, b"into nowhere")

        rig.on_event = talk_on
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [Accepted, Received, Closed]
        assert rig.of(link, Closed)[0].fault is Fault.RESET
        if hold:
            assert len(rig.data(link)) < len(answer)
        else:
            assert rig.data(link) == answer

    def test_after_finished_it_still_sends(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.read(link)
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        rig.engine.send(link, b"tail")
        rig.until(lambda: far.received == b"tail")
        assert not far.finished

    def test_a_reset_after_finished_is_reported(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.read(link)
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        far.reset()
        far.close()
        rig.engine.send(link, b"into nowhere")
        rig.settle()
        rig.engine.send(link, b"into nowhere")
        rig.until(rig.closed(link))
        assert rig.of(link, Closed)[0].fault is Fault.RESET


class TestSending:
    """`send`, `finish`, `Clogged`, `Cleared`, and the queue's limit."""

    def test_sends_leave_in_order(self, rig: Rig) -> None:
        link, far = rig.accepted()
        pieces = [noise(size, size) for size in (1, 2, 0, 3000, 70_000, 5, 1)]
        for piece in pieces:
            rig.engine.send(link, piece)
        rig.until(lambda: far.received == b"".join(pieces))

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_4_mib_both_ways_through_small_buffers(self, rig: Rig, family: str) -> None:
        link, far = rig.accepted(family=family, small=True)
        size = 4 * MEBIBYTE if "rough" not in type(rig).__name__ else MEBIBYTE
        up, down = noise(size, 2), noise(size, 3)
        far.send(up)
        far.finish()
        rig.engine.read(link)
        chunks = [down[at : at + 30_000] for at in range(0, size, 30_000)]
        clogged = False

        def feed(event: Event | None = None) -> None:
            nonlocal clogged
            if isinstance(event, Clogged):
                clogged = True
            elif isinstance(event, Cleared):
                clogged = False
            while chunks and not clogged and rig.engine.stats().queued <= QUEUE_HIGH:
                rig.engine.send(link, chunks.pop(0))
            if not chunks:
                rig.engine.finish(link)
                rig.on_event = None

        rig.on_event = feed
        feed()
        rig.until(lambda: far.finished and rig.has(link, Finished))
        assert far.received == down
        assert rig.data(link) == up

    def test_clogged_above_the_mark_and_cleared_at_half(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        far.stall()
        queued = rig.engine.stats().queued
        while not rig.engine.stats().queued > QUEUE_HIGH:
            assert not rig.has(link, Clogged)
            rig.engine.send(link, noise(10_000))
            assert rig.engine.stats().queued <= queued + QUEUE_HIGH + 10_000
        rig.engine.send(link, noise(10_000))
        rig.settle()
        assert rig.kinds(link) == [Accepted, Clogged]
        left: list[int] = []

        def look(event: Event) -> None:
            if isinstance(event, Cleared):
                left.append(rig.engine.stats().queued)

        rig.on_event = look
        far.resume()
        rig.until(lambda: rig.has(link, Cleared))
        assert left[0] <= QUEUE_HIGH // 2
        rig.until(lambda: rig.engine.stats().queued == 0)
        rig.settle()
        assert rig.kinds(link) == [Accepted, Clogged, Cleared]

    def test_more_than_the_limit_closes_the_link(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        far.stall()
        for _ in range(2 * QUEUE_MAX // 60_000):
            rig.engine.send(link, noise(60_000))
            assert rig.engine.stats().queued <= QUEUE_MAX + 60_000
        rig.until(rig.closed(link))
        assert rig.of(link, Closed)[0].fault is Fault.OVERFLOW
        far.resume()
        rig.until(lambda: far.was_reset)

    def test_finish_comes_after_what_is_queued_and_reading_goes_on(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        data = noise(200_000)
        rig.engine.read(link)
        rig.engine.send(link, data)
        rig.engine.finish(link)
        rig.until(lambda: far.finished)
        assert far.received == data
        far.send(b"tail")
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        assert rig.data(link) == b"tail"
        assert not rig.has(link, Closed)

    def test_send_after_finish_is_a_bug(self, rig: Rig) -> None:
        link, _ = rig.accepted()
        rig.engine.finish(link)
        with pytest.raises(AssertionError):
            rig.engine.send(link, b"late")

    def test_sending_to_one_who_reset_closes_with_that_fault(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.read(link)
        rig.settle()
        far.reset()
        rig.engine.send(link, b"into nowhere")
        rig.until(rig.closed(link))
        assert rig.of(link, Closed)[0].fault is Fault.RESET

    def test_a_unix_far_end_that_closed_gives_the_same_fault(self, rig: Rig) -> None:
        link, far = rig.accepted(family="unix")
        rig.settle()
        far.close()
        rig.settle()
        rig.engine.send(link, b"into nowhere")
        rig.until(rig.closed(link))
        assert rig.of(link, Closed)[0].fault is Fault.RESET


class TestEnding:
    """`close`, `reset`, and that a link ends once."""

    def test_close_sends_what_is_queued_then_fin(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        data = noise(300_000)
        rig.engine.send(link, data)
        rig.engine.close(link)
        rig.engine.close(link)
        rig.until(lambda: far.finished)
        assert far.received == data
        assert not far.was_reset
        rig.until(rig.closed(link))
        assert rig.of(link, Closed) == [Closed(rig.of(link, Closed)[0].at, link, None)]

    @pytest.mark.parametrize("queued", [0, 300_000])
    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_close_sends_its_last_bytes_behind_what_is_queued(
        self, rig: Rig, family: str, queued: int
    ) -> None:
        link, far = rig.accepted(family=family, small=True)
        data = noise(queued)
        rig.engine.send(link, data)
        rig.engine.close(link, b"the last")
        rig.engine.close(link, b"too late")
        rig.until(lambda: far.finished)
        assert far.received == data + b"the last"
        assert not far.was_reset
        rig.until(rig.closed(link))
        assert [event.fault for event in rig.of(link, Closed)] == [None]

    def test_last_bytes_for_one_that_is_gone_are_lost(self, rig: Rig) -> None:
        link, far = rig.accepted()
        far.reset()
        rig.settle_far()
        rig.engine.close(link, b"into nowhere")
        rig.until(rig.closed(link))
        assert len(rig.of(link, Closed)) == 1

    def test_nothing_is_delivered_after_close_but_closed(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        rig.engine.read(link)
        far.stall()
        rig.engine.send(link, noise(300_000))
        rig.settle()
        rig.engine.set_timer(link, "late", rig.engine.now())
        far.send(b"unheard")
        rig.engine.close(link)
        before = len(rig.events)
        rig.settle()
        assert len(rig.events) == before
        far.resume()
        rig.until(rig.closed(link))
        assert [type(event) for event in rig.events[before:]] == [Closed]

    def test_close_gives_up_after_its_limit(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contract, "CLOSE_LIMIT", 0.05)
        link, far = rig.accepted(small=True)
        far.stall()
        rig.engine.send(link, noise(300_000))
        ordered_at = rig.engine.now()
        rig.engine.close(link)
        rig.until(rig.closed(link))
        closed = rig.of(link, Closed)[0]
        assert closed.fault is None
        assert 0.05 <= closed.at - ordered_at < 1
        far.resume()
        rig.until(lambda: far.was_reset)

    def test_close_of_one_that_was_lost_is_as_ordered(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        far.stall()
        rig.engine.send(link, noise(300_000))
        rig.engine.close(link)
        rig.settle()
        far.reset()
        rig.until(rig.closed(link))
        assert [event.fault for event in rig.of(link, Closed)] == [None]

    def test_close_with_unread_bytes_is_a_reset(self, rig: Rig) -> None:
        """So TCP has it; who says a farewell must read until FIN before it closes."""
        link, far = rig.accepted()
        far.send(b"never read")
        rig.settle()
        rig.engine.close(link)
        rig.until(lambda: far.was_reset)

    def test_reset_is_seen_as_such(self, rig: Rig) -> None:
        link, far = rig.accepted()
        rig.engine.send(link, b"half a mess")
        rig.until(lambda: far.received)
        rig.engine.reset(link)
        rig.engine.reset(link)
        rig.until(lambda: far.was_reset)
        rig.settle()
        assert [event.fault for event in rig.of(link, Closed)] == [None]

    def test_reset_of_a_unix_link_is_its_end(self, rig: Rig) -> None:
        link, far = rig.accepted(family="unix")
        rig.engine.reset(link)
        rig.until(lambda: far.finished)
        rig.until(rig.closed(link))

    def test_reset_hurries_a_close(self, rig: Rig) -> None:
        link, far = rig.accepted(small=True)
        far.stall()
        rig.engine.send(link, noise(300_000))
        rig.engine.close(link)
        rig.settle()
        assert not rig.has(link, Closed)
        rig.engine.reset(link)
        rig.until(rig.closed(link))
        assert len(rig.of(link, Closed)) == 1

    @pytest.mark.parametrize("verb", ["reset", "close"])
    def test_they_take_back_what_was_not_delivered(self, rig: Rig, verb: str) -> None:
        """Two links have bytes in one turn; the first event ends both."""
        one, far_one = rig.accepted()
        two, far_two = rig.accepted()

        def end_both(event: Event) -> None:
            if isinstance(event, Received):
                for link in (one, two):
                    getattr(rig.engine, verb)(link)

        rig.on_event = end_both
        far_one.send(b"1")
        far_two.send(b"2")
        rig.settle()
        rig.engine.read(one)
        rig.engine.read(two)
        rig.until(rig.closed(one, two))
        assert sorted(rig.kinds(one) + rig.kinds(two), key=str) == sorted(
            [Accepted, Received, Closed, Accepted, Closed], key=str
        )

    def test_verbs_on_a_link_that_is_gone_or_never_was_do_nothing(self, rig: Rig) -> None:
        link, _ = rig.accepted()
        rig.engine.reset(link)
        for _ in range(2):                          # before and after `Closed`
            for number in (link, 4711):
                rig.engine.read(number)
                rig.engine.hold(number)
                rig.engine.send(number, b"x")
                rig.engine.finish(number)
                rig.engine.close(number)
                rig.engine.set_timer(number, "x", rig.engine.now())
                rig.engine.clear_timer(number, "x")
                rig.engine.reset(number)
                assert rig.engine.inspect(number) is None
            rig.until(rig.closed(link))
        rig.settle()
        assert rig.kinds(link) == [Accepted, Closed]

    def test_numbers_are_never_used_again(self, rig: Rig) -> None:
        seen: set[int] = set()
        for _ in range(40):
            link, _far = rig.accepted()
            assert link not in seen
            seen.add(link)
            rig.engine.reset(link)
            rig.until(rig.closed(link))

    def test_no_event_comes_from_inside_a_verb(self, rig: Rig) -> None:
        link, far = rig.accepted()
        depth = 0

        def nested(event: Event) -> None:
            nonlocal depth
            depth += 1
            assert depth == 1
            if isinstance(event, Received):
                rig.engine.send(link, b"x")
                rig.engine.connect(rig.nowhere(family="unix"))
                rig.engine.reset(link)
            depth -= 1

        rig.on_event = nested
        rig.engine.read(link)
        far.send(b"go")
        rig.until(rig.closed(link))


class TestConnecting:
    """`connect` and its outcomes."""

    @pytest.mark.parametrize("family", ["tcp", "tcp6", "unix"])
    def test_connected_and_bytes_both_ways(self, rig: Rig, family: str) -> None:
        link, far = rig.connected(family=family)
        assert rig.kinds(link) == [Connected]
        rig.engine.read(link)
        rig.engine.send(link, b"up")
        far.send(b"down")
        rig.until(lambda: far.received == b"up" and rig.data(link) == b"down")
        assert rig.engine.stats().connected == 1

    @pytest.mark.parametrize(
        ("family", "source"), [("tcp", "127.0.0.2"), ("tcp", "127.0.0.1"), ("tcp6", "::1")]
    )
    def test_from_an_address_of_ours(self, rig: Rig, family: str, source: str) -> None:
        upstream = rig.upstream(family=family)
        links = [rig.engine.connect(upstream.address, source) for _ in range(2)]
        rig.until(lambda: all(rig.has(link, Connected) for link in links))
        rig.until(lambda: len(upstream.fars) == 2)
        assert [rig.source_of(far) for far in upstream.fars] == [source, source]

    def test_from_an_address_that_is_not_ours(self, rig: Rig) -> None:
        link = rig.engine.connect(rig.upstream().address, "192.0.2.77")
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [ConnectFailed, Closed]
        assert rig.of(link, ConnectFailed)[0].fault is Fault.NO_ADDRESS

    @pytest.mark.parametrize(
        ("family", "fault"), [("tcp", Fault.REFUSED), ("unix", Fault.NOT_FOUND)]
    )
    def test_nobody_there(self, rig: Rig, family: str, fault: Fault) -> None:
        link = rig.engine.connect(rig.nowhere(family=family))
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [ConnectFailed, Closed]
        assert rig.of(link, ConnectFailed)[0].fault is fault
        assert len(rig.batches[-1]) == 2, "both come at once"
        assert rig.engine.stats().connected == 0

    def test_a_path_that_cannot_be_one(self, rig: Rig) -> None:
        link = rig.engine.connect(Address(path="/" + "x" * 200))
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [ConnectFailed, Closed]

    def test_a_full_unix_queue_is_tried_again(self, rig: Rig) -> None:
        address, make_room = rig.full()
        link = rig.engine.connect(address)
        rig.settle(0.06)
        assert rig.kinds(link) == []
        make_room()
        rig.until(lambda: rig.has(link, Connected))

    def test_a_full_unix_queue_is_given_up_by_reset(self, rig: Rig) -> None:
        address, _ = rig.full()
        link = rig.engine.connect(address)
        rig.settle()
        rig.engine.reset(link)
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [Closed]
        assert rig.of(link, Closed)[0].fault is None

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_reset_at_once_is_all_there_is(self, rig: Rig, family: str) -> None:
        upstream = rig.upstream(family=family)
        link = rig.engine.connect(upstream.address)
        rig.engine.reset(link)
        rig.until(rig.closed(link))
        rig.settle()
        assert rig.kinds(link) == [Closed]

    def test_a_timer_may_bound_it(self, rig: Rig) -> None:
        address, _ = rig.full()
        link = rig.engine.connect(address)
        rig.engine.set_timer(link, "connect", rig.engine.now() + 0.05)
        rig.until(lambda: rig.has(link, TimedOut))
        rig.engine.reset(link)
        rig.until(rig.closed(link))
        assert rig.kinds(link) == [TimedOut, Closed]
