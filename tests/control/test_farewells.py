"""The order and the times of farewells, and the worker that says them."""

import pytest

from control.stage import Stage
from gateway import events
from gateway.control.draining import FAREWELLS_AT_ONCE
from gateway.control.farewells import spread
from gateway.events import Cause, Link
from gateway.table import Route

# mypy: disable-error-code="arg-type"


def test_nobody_and_one() -> None:
    assert spread([], 10.0, 5.0) == []
    assert spread([(3.0, "a")], 10.0, 5.0) == [(10.0, "a")]


def test_the_idle_come_first_and_the_times_are_even() -> None:
    sessions = [(0.1, "busy"), (60.0, "idle"), (5.0, "slow"), (1.0, "soon")]
    assert spread(sessions, 100.0, 8.0) == [
        (100.0, "idle"), (102.0, "slow"), (104.0, "soon"), (106.0, "busy"),
    ]


def test_where_there_is_no_time_all_are_told_at_once() -> None:
    assert {at for at, _ in spread([(1.0, 1), (2.0, 2)], 7.0, -3.0)} == {7.0}


def relayed(stage: Stage, idle: float) -> Link:
    link, _ = stage.accept()
    stage.engine.idles[link] = idle
    return link


@pytest.fixture
def stage() -> Stage:
    """A worker with a route whose clients may take 2 s for the answer to a Close."""
    made = Stage(routes=(Route(name="r", close_timeout=2.0),))
    made.start()
    return made


def test_a_worker_says_them_one_after_another(stage: Stage) -> None:
    """Who is not relayed is told at once; who ended meanwhile is not told."""
    head, _ = stage.accept()
    busy, gone, idle = relayed(stage, 0.0), relayed(stage, 5.0), relayed(stage, 50.0)
    calls = stage.ordered("drain", at=100.0, seconds=8.0)
    assert [call for call in calls if call[0] == "end"] == [
        ("end", head, Cause.DRAIN), ("end", idle, Cause.DRAIN),
    ]
    assert ("set_timer", stage.own, "farewell", 102.0) in calls
    stage.deliver(events.Closed(101.0, gone, None))
    calls = stage.deliver(events.TimedOut(102.0, stage.own, "farewell"))
    assert calls == [("set_timer", stage.own, "farewell", 104.0)]
    calls = stage.deliver(events.TimedOut(104.0, stage.own, "farewell"))
    assert calls == [("end", busy, Cause.DRAIN)]
    stage.close()


def test_a_kill_does_not_wait_for_them(stage: Stage) -> None:
    first, second = relayed(stage, 9.0), relayed(stage, 1.0)
    stage.ordered("drain", at=100.0, seconds=8.0)
    calls = stage.ordered("kill", at=101.0)
    assert ("clear_timer", stage.own, "farewell") in calls
    assert {("reset", first), ("reset", second)} <= set(calls)
    assert stage.deliver(events.TimedOut(103.0, stage.own, "farewell")) == []
    stage.close()


def test_where_there_is_no_time_they_are_told_in_portions(stage: Stage) -> None:
    """A turn of a worker holds up all that it relays; so thousands are not told in one."""
    links = {relayed(stage, 1.0) for _ in range(2 * FAREWELLS_AT_ONCE + 1)}
    told: set[Link] = set()
    calls = stage.ordered("drain", seconds=0.0)
    for portion in (FAREWELLS_AT_ONCE, FAREWELLS_AT_ONCE, 1):
        now = {call[1] for call in calls if call[0] == "end"}
        assert len(now) == portion
        assert not now & told
        told |= now
        calls = stage.deliver(events.TimedOut(stage.engine.time, stage.own, "farewell"))
    assert told == links
    stage.close()
