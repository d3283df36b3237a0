"""The heartbeat: when a quiet side is pinged, whose pongs are ours, and who counts as dead.

Conversations as in `test_relaying.py`, through the reference and through the compiled rules.
"""

from typing import Any

import pytest

from gateway import frames
from gateway.events import Cause, Side
from words.test_patience import SlowLine
from words.test_relaying import C, Line, U, ours, rules_in, theirs

__all__ = ["rules_in"]                 # the fixture: each test runs through both

PONG_AFTER = 0.125


class BeatLine(SlowLine):
    """A line that notes when each side is pinged, whose far ends answer after `pong_after`."""

    def __init__(self, pong_after: float, **rules: Any):
        super().__init__(**rules)
        self.pong_after = pong_after
        self.pinged: dict[Side, list[float]] = {C: [], U: []}
        self._due: list[tuple[float, Side, bytes]] = []

    def live(self, seconds: float) -> None:
        """Let time pass: ticks and pongs, each when it is due."""
        until = self.now + seconds
        while not self.settled:
            due = min([self.relay.deadline, *(at for at, _, _ in self._due)])
            if due > until:
                break
            self.now = max(self.now, due)
            if self._due and self._due[0][0] <= self.now:
                _, side, payload = self._due.pop(0)
                self.receive(side, {C: ours, U: theirs}[side](frames.PONG, payload))
            else:
                self.relay.tick(self.now)
            for side in (C, U):
                before = len(self.sent(side))
                self.pump(side)
                for opcode, payload in self.sent(side)[before:]:
                    assert opcode == frames.PING
                    self.pinged[side].append(self.now - 100.0)
                    self._due.append((self.now + self.pong_after, side, payload))
        self.now = until


@pytest.mark.parametrize(("heartbeat", "timeout"), [(2.0, 20.0), (2.0, 2.0), (8.0, 1.0)])
def test_a_quiet_side_is_pinged_each_heartbeat(heartbeat: float, timeout: float) -> None:
    """Since its last sign of life, which is the last pong, however long it may take to answer."""
    line = BeatLine(PONG_AFTER, heartbeat=heartbeat, heartbeat_timeout=timeout)
    line.live(40.0)

    period = heartbeat + PONG_AFTER
    expected = [heartbeat + period * count for count in range(int((40.0 - heartbeat) / period) + 1)]
    assert line.pinged == {C: pytest.approx(expected), U: pytest.approx(expected)}
    assert not line.settled


def test_a_late_pong_brings_the_next_ping_forward_to_its_own_time() -> None:
    """Later than a heartbeat, sooner than the timeout."""
    line = BeatLine(3.0, heartbeat=2.0, heartbeat_timeout=20.0)
    line.live(20.0)

    assert line.pinged[C] == pytest.approx([2.0, 7.0, 12.0, 17.0])


@pytest.mark.parametrize(("heartbeat", "timeout"), [(2.0, 20.0), (30.0, 20.0), (2.0, 2.0)])
def test_one_that_answers_nothing_is_dead_in_time(heartbeat: float, timeout: float) -> None:
    """However often it is looked at between; it is asked once."""
    line = Line(heartbeat=heartbeat, heartbeat_timeout=timeout)
    line.wait(heartbeat + timeout - 0.25)
    assert not line.settled
    line.wait(0.25)

    assert line.relay.cause is Cause.SILENT
    assert [opcode for opcode, _ in line.sent(C)] == [frames.PING]


# --- Whose pong is it? --------------------------------------------------------------------------


def two_pings() -> Line:
    """The client was asked, spoke of something else, and was asked again."""
    line = Line(heartbeat=10.0, heartbeat_timeout=5.0)
    line.wait(10.0)
    line.receive(U, theirs(frames.TEXT, b"alive"))
    line.now += 1.0
    line.receive(C, ours(frames.TEXT, b"busy"))
    line.pump()
    line.got[U] = b""
    line.wait(10.0)
    return line


def test_an_answer_to_an_earlier_ping_is_ours_too() -> None:
    """Both are swallowed, and only the latest gives the round trip."""
    line = two_pings()
    first, second = [payload for opcode, payload in line.sent(C) if opcode == frames.PING]
    line.now += 0.5
    line.receive(C, ours(frames.PONG, first))
    assert line.relay.counts()[C].round_trip is None
    line.receive(C, ours(frames.PONG, second))
    line.pump()

    assert frames.PONG not in [opcode for opcode, _ in line.sent(U)]
    assert line.relay.counts()[C].round_trip == pytest.approx(0.5)


def test_as_many_pongs_are_ours_as_were_asked_for() -> None:
    """What comes beyond that is the client's own affair, and passes."""
    line = two_pings()
    second = line.sent(C)[-1][1]
    for _ in range(3):
        line.receive(C, ours(frames.PONG, second))
    line.pump()

    assert [one for one in line.sent(U) if one[0] == frames.PONG] == [(frames.PONG, second)]


def test_an_answer_may_skip_a_ping() -> None:
    """RFC 6455 5.5.3: it may answer the latest only."""
    line = two_pings()
    line.now += 0.25
    line.receive(C, ours(frames.PONG, line.sent(C)[-1][1]))

    assert line.relay.counts()[C].round_trip == pytest.approx(0.25)


# --- Slow readers -------------------------------------------------------------------------------


def slow_line() -> SlowLine:
    """The kernel has 9,000 bytes for a client that was pinged behind them."""
    line = SlowLine(heartbeat=30.0, heartbeat_timeout=20.0, write_timeout=0.0)
    line.receive(U, theirs(frames.BINARY, bytes(10_000)))
    line.pump()
    line.now = 129.0
    line.receive(U, theirs(frames.TEXT, b"alive"))
    line.pump()
    look(line, 1_000)
    assert line.sent(C)[-1][0] == frames.PING
    return line


def look(line: SlowLine, taken: int) -> None:
    """Go on to the next deadline; the client has taken so many bytes of its stream by then."""
    line.now = line.relay.deadline
    line.receive(U, theirs(frames.PONG, b"alive"))
    waiting = line.relay.counts()[C].bytes_out - taken
    line.relay.acknowledged(C, waiting, line.now)
    line.relay.tick(line.now)
    line.pump()


def look_until_settled(line: SlowLine, taken: int) -> None:
    for _ in range(20):
        if not line.settled:
            look(line, taken)
    assert line.settled


def test_one_that_takes_bytes_is_alive() -> None:
    """The ping waits behind them; its time begins when nothing moves any more."""
    line = slow_line()
    for taken in (3_000, 6_000, 9_000):
        look(line, taken)
        assert not line.settled
    stopped = line.now
    look_until_settled(line, 9_000)

    assert (line.relay.cause, line.relay.side) == (Cause.SILENT, C)
    assert line.now == pytest.approx(stopped + 20.0)
    assert line.cuts()[C], "what the kernel had is lost"


def test_one_that_takes_nothing_of_what_waits_is_dead_in_time() -> None:
    line = slow_line()
    pinged = line.now
    look_until_settled(line, 1_000)

    assert (line.relay.cause, line.relay.side) == (Cause.SILENT, C)
    assert line.now == pytest.approx(pinged + 20.0)
    assert line.cuts()[C]


def test_that_a_ping_arrives_is_no_sign_of_life() -> None:
    """The kernel takes it at once, of a program that hangs too."""
    line = SlowLine(heartbeat=30.0, heartbeat_timeout=20.0)
    line.wait(30.0)
    line.receive(U, theirs(frames.TEXT, b"alive"))
    line.pump()
    line.pass_time(19.9)
    line.relay.acknowledged(C, 0, line.now)
    line.pass_time(0.2)

    assert (line.relay.cause, line.relay.side) == (Cause.SILENT, C)
    assert not line.cuts()[C]
