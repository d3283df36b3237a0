"""The relay's rules where a side speaks TLS and its FIN comes without close_notify.

Every test runs through the reference in Python and through the compiled rules.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from gateway import frames
from gateway.engine.compiled import CompiledRelay
from gateway.events import Cause, Side
from gateway.leg import Fate
from gateway.relaying import Relay
from words.test_relaying import C, Line, U, close, ours, theirs

LOST_CODE = {C: 1014, U: 1001}     # what a side is told when the other is lost


@pytest.fixture(autouse=True, params=[Relay, CompiledRelay], ids=["reference", "compiled"])
def rules_in(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which implementation `Line` is made of."""
    before: Any = Line.factory
    Line.factory = request.param
    yield
    Line.factory = before


def frame_of(side: Side, opcode: int, payload: bytes) -> bytes:
    return ours(opcode, payload) if side is C else theirs(opcode, payload)


@pytest.mark.parametrize("side", [C, U])
def test_between_two_frames_it_is_no_end_but_a_loss(side: Side) -> None:
    line = Line()
    line.receive(side, frame_of(side, frames.BINARY, b"all that came"))
    line.relay.truncated(side, line.now)
    line.pump()
    other = Side(1 - side)
    assert (line.relay.cause, line.relay.side) == (Cause.TRUNCATED, side)
    assert "close_notify" in line.relay.detail
    assert line.sent(other)[0] == (frames.BINARY, b"all that came")
    assert line.codes(other) == [LOST_CODE[other]]
    assert line.relay.legs[side].fate is Fate.CLOSE
    assert line.codes(side) == []


@pytest.mark.parametrize("side", [C, U])
def test_inside_a_frame_the_other_is_reset(side: Side) -> None:
    line = Line()
    line.receive(side, frame_of(side, frames.BINARY, b"half of it")[:-3])
    line.relay.truncated(side, line.now)
    line.pump()
    assert line.relay.cause is Cause.TRUNCATED
    assert line.relay.legs[1 - side].fate is Fate.RESET
    assert line.codes(Side(1 - side)) == []


@pytest.mark.parametrize("side", [C, U])
def test_behind_its_close_it_harms_nothing(side: Side) -> None:
    line, other = Line(), Side(1 - side)
    line.receive(side, frame_of(side, frames.CLOSE, close(1000)[2:]))
    line.relay.truncated(side, line.now)
    assert not line.settled
    line.receive(other, frame_of(other, frames.CLOSE, close(1000)[2:]))
    line.pump()
    assert line.relay.cause is Cause.CLOSED
    assert line.codes(other) == [1000]


@pytest.mark.parametrize("side", [C, U])
def test_in_place_of_the_answer_to_a_close_it_is_a_loss(side: Side) -> None:
    """The answer, or frames before it, may have been on their way."""
    line, other = Line(), Side(1 - side)
    line.receive(other, frame_of(other, frames.CLOSE, close(1000)[2:]))
    line.pump()
    line.relay.truncated(side, line.now)
    line.pump()
    assert (line.relay.cause, line.relay.side) == (Cause.TRUNCATED, side)
    assert line.codes(other) == [LOST_CODE[other]]


def test_when_the_end_is_settled_it_is_as_good_as_a_fin() -> None:
    line = Line()
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()
    line.relay.truncated(C, line.now)
    line.relay.truncated(U, line.now)
    assert line.relay.cause is Cause.DRAIN
    assert line.over


def test_a_raw_upstream_that_may_be_cut_is_no_normal_close() -> None:
    """A clean end of it is 1000."""
    line = Line(raw=True)
    line.receive(U, b"as far as it came")
    line.relay.truncated(U, line.now)
    line.pump()
    assert line.sent(C)[0] == (frames.BINARY, b"as far as it came")
    assert line.codes(C) == [1014]
    assert line.relay.legs[U].fate is Fate.RESET


def test_a_client_that_may_be_cut_resets_a_raw_upstream() -> None:
    line = Line(raw=True)
    line.relay.truncated(C, line.now)
    assert line.relay.cause is Cause.TRUNCATED
    assert line.relay.legs[U].fate is Fate.RESET
