"""How long a relay waits for whom at its end: slow sides, late answers, and what bounds them.

Conversations as in `test_relaying.py`, through the reference and through the compiled rules.
"""

import pytest

from gateway import frames
from gateway.events import Cause, Side
from gateway.leg import Fate
from words.test_relaying import C, Line, U, close, ours, rules_in, theirs

__all__ = ["rules_in"]                 # the fixture: each test runs through both


class SlowLine(Line):
    """A line whose far ends take bytes as the test says."""

    def take(self, side: Side, count: int) -> None:
        """The kernel takes so many bytes for this side."""
        leg = self.relay.legs[side]
        while count:
            piece = min(count, len(leg.queue[0]))
            self.got[side] += leg.queue[0][:piece]
            self.relay.sent(side, piece, self.now)
            count -= piece

    def pass_time(self, seconds: float) -> None:
        """Let time pass, ticking at each deadline; nobody takes anything."""
        until = self.now + seconds
        while self.relay.deadline <= until:
            self.now = max(self.now, self.relay.deadline)
            self.relay.tick(self.now)
        self.now = until

    def cuts(self) -> tuple[bool, bool]:
        client, upstream = self.relay.counts()
        return client.cut, upstream.cut


def test_a_slow_side_gets_all_and_its_farewell() -> None:
    """However long it takes, as long as it goes on taking."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.relay.end(Cause.DRAIN, line.now)
    line.pump(U)
    for _ in range(10):
        line.pass_time(3.0)
        line.take(C, 100)
    assert not line.over
    line.pump()

    assert line.sent(C) == [(frames.BINARY, bytes(1000)), (frames.CLOSE, b"\x03\xe9")]
    assert line.relay.legs[C].fate is Fate.FINISH
    assert line.cuts() == (False, False)


@pytest.mark.parametrize(("write_timeout", "given"), [(4.0, 4.0), (0.0, 1.0)])
def test_a_side_that_takes_nothing_is_cut(write_timeout: float, given: float) -> None:
    """Within write_timeout; where that is off, an end comes to an end by close_timeout."""
    line = SlowLine(write_timeout=write_timeout, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.pass_time(2.0)
    line.take(C, 100)
    line.relay.end(Cause.DRAIN, line.now)
    line.pass_time(given - 0.1)
    assert line.relay.legs[C].fate is Fate.FINISH
    line.pass_time(0.2)

    assert line.relay.legs[C].fate is Fate.RESET
    assert (line.relay.cause, line.relay.side) == (Cause.DRAIN, None)
    assert line.cuts()[C]


def test_the_time_for_last_words_begins_when_ours_has_left() -> None:
    """Else a slow side would be reset right behind its farewell (RFC 6455 7.1.1)."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.relay.end(Cause.DRAIN, line.now)
    line.pass_time(3.0)
    line.pump()
    line.pass_time(0.9)
    assert not line.over
    line.pass_time(0.2)

    assert line.over
    assert line.fates() == (Fate.CLOSE, Fate.CLOSE)
    assert line.cuts() == (False, False)


def test_the_time_to_answer_a_close_begins_when_it_has_left() -> None:
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(C, ours(frames.BINARY, bytes(100)) + ours(frames.CLOSE, b"\x03\xe8"))
    line.pass_time(3.0)
    assert not line.settled
    line.pump()
    line.pass_time(0.9)
    assert not line.settled
    line.pass_time(0.2)

    assert (line.relay.cause, line.relay.side) == (Cause.UNANSWERED, U)


def test_an_answer_that_is_held_back_is_not_overdue() -> None:
    """Who closed is slow, so the other is not read; and has its time when it is read again."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0, max_queue=1000)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.receive(C, ours(frames.CLOSE, b"\x03\xe8"))
    line.pump(U)
    line.pass_time(3.0)
    assert not line.settled
    line.take(C, 600)
    line.pass_time(0.9)
    line.receive(U, close(1000))
    line.pump()

    assert line.relay.cause is Cause.CLOSED
    assert line.codes(C) == [1000]


def test_an_answer_has_only_the_time_in_which_it_is_read() -> None:
    """One that talks on instead of answering gains nothing by being held back now and then."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0, max_queue=1000)
    line.receive(C, ours(frames.CLOSE, b"\x03\xe8"))
    line.pump(U)
    for _ in range(2):
        line.pass_time(0.4)
        line.receive(U, theirs(frames.BINARY, bytes(1000)))
        line.pass_time(2.0)
        line.pump(C)
    line.pass_time(0.1)
    assert not line.settled
    line.pass_time(0.2)

    assert (line.relay.cause, line.relay.side) == (Cause.UNANSWERED, U)


@pytest.mark.parametrize("closing", [True, False])
def test_what_the_kernel_still_has_is_waited_for(closing: bool) -> None:
    """The far end takes the last bytes, and the last word behind them, from the kernel."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    if closing:
        line.receive(U, close(1000))
    else:
        line.relay.end(Cause.DRAIN, line.now)
    line.pump()
    for waiting in (800, 600, 400, 200, 0):
        line.pass_time(0.9)
        line.relay.acknowledged(C, waiting, line.now)
    assert line.settled != closing
    assert line.relay.legs[C].fate < Fate.CLOSE
    line.pass_time(2.1)

    assert line.relay.cause is (Cause.UNANSWERED if closing else Cause.DRAIN)
    assert line.relay.legs[C].fate is (Fate.RESET if closing else Fate.CLOSE)
    assert line.cuts() == (False, False)


def test_what_the_kernel_had_for_one_that_is_given_up_is_lost() -> None:
    """It is reset, and RST drops it: it is cut."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)) + close(1000))
    line.pump()
    line.pass_time(0.9)
    line.relay.acknowledged(C, 500, line.now)
    line.pass_time(0.9)
    line.relay.acknowledged(C, 500, line.now)
    line.pass_time(0.2)

    assert (line.relay.cause, line.relay.side) == (Cause.UNANSWERED, C)
    assert line.cuts() == (True, False)


def test_one_that_closed_and_takes_nothing_is_stalled() -> None:
    line = SlowLine(write_timeout=4.0, close_timeout=1.0, max_queue=1000)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.receive(C, ours(frames.CLOSE, b"\x03\xe8"))
    line.pump(U)
    line.pass_time(4.1)

    assert (line.relay.cause, line.relay.side) == (Cause.STALLED, C)
    assert line.cuts() == (True, False)


def test_after_a_fin_what_waits_still_arrives() -> None:
    """The upstream did not finish in time; the client is slow, and no frame toward it is cut."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.finish(C)
    line.pass_time(1.1)
    assert line.relay.cause is Cause.FINISHED
    assert line.fates() == (Fate.CLOSE, Fate.RESET)
    line.pass_time(2.0)
    line.pump()

    assert line.over
    assert line.sent(C) == [(frames.BINARY, bytes(1000))]
    assert line.cuts() == (False, False)


def test_a_frame_under_way_arrives_however_slowly() -> None:
    """The farewell behind it waits, and so does the side from which the frame comes."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    whole = theirs(frames.BINARY, bytes(1000))
    line.receive(U, whole[:200])
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()
    for at in range(200, len(whole), 101):
        line.pass_time(0.9)
        line.receive(U, whole[at : at + 101])
        line.pump()
    assert line.sent(C) == [(frames.BINARY, bytes(1000)), (frames.CLOSE, b"\x03\xe9")]
    assert line.fates() == (Fate.FINISH, Fate.OPEN)
    line.pass_time(0.9)
    assert not line.over, "the upstream has its time behind its last byte"


def test_a_frame_under_way_that_stops_cuts_both() -> None:
    """Its side is not waited for any longer either, once the other has been given up."""
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000))[:200])
    line.pump()
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()
    line.pass_time(1.1)
    assert line.relay.legs[C].fate is Fate.RESET
    assert line.cuts() == (True, False)
    line.pass_time(1.0)

    assert line.over


def test_a_close_behind_bytes_for_a_raw_upstream() -> None:
    """They all arrive, then FIN."""
    line = SlowLine(raw=True, write_timeout=4.0, close_timeout=1.0)
    line.receive(C, ours(frames.BINARY, bytes(1000)) + ours(frames.CLOSE, b"\x03\xe8"))
    line.pump(C)
    for _ in range(9):
        line.pass_time(3.0)
        line.take(U, 100)
    line.pump()

    assert line.got[U] == bytes(1000)
    assert line.relay.legs[U].fate is Fate.FINISH
    assert line.cuts() == (False, False)


@pytest.mark.parametrize("closing", [False, True])
def test_session_timeout_bounds_who_takes_a_byte_now_and_then(closing: bool) -> None:
    line = SlowLine(write_timeout=4.0, close_timeout=1.0, session_timeout=20.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    if closing:
        line.receive(U, close(1000))
    for _ in range(9):
        line.pass_time(3.0)
        if not line.over and line.relay.legs[C].fate is not Fate.RESET:
            line.take(C, 1)
    line.pass_time(4.1)

    assert line.over
    assert line.relay.cause is Cause.SESSION_TIMEOUT
    assert line.cuts()[C]


def test_killed_cuts_what_still_waits() -> None:
    line = SlowLine(write_timeout=4.0, close_timeout=1.0)
    line.receive(U, theirs(frames.BINARY, bytes(1000)))
    line.relay.end(Cause.DRAIN, line.now)
    line.pump(U)
    line.pass_time(3.0)
    line.relay.end(Cause.KILLED, line.now)
    line.pass_time(0.0)

    assert line.over
    assert line.cuts() == (True, False)


def test_a_foreign_ping_before_the_last_sign_of_life_is_forgotten() -> None:
    """It was not answered, and need not be any more: we ask ourselves before we call it dead."""
    line = Line(heartbeat=30.0, heartbeat_timeout=20.0)
    line.receive(U, theirs(frames.PING, b"foreign"))
    line.wait(5.0)
    line.receive(C, ours(frames.TEXT, b"alive"))
    line.wait(30.0)
    assert [opcode for opcode, _ in line.sent(C)] == [frames.PING, frames.PING]
    line.receive(C, ours(frames.PONG, line.sent(C)[-1][1]))
    line.receive(U, theirs(frames.TEXT, b"alive"))
    line.wait(20.5)

    assert not line.settled
