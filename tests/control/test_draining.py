"""How a worker ends: who is told when, who is still accepted, who is cut and counted."""

import os
from dataclasses import replace

import pytest

from control.stage import CLIENT, LOCAL, Stage, record
from gateway import events
from gateway.events import Accepted, Cause, LegCounts, Side


def test_a_drain_ends_when_all_are_over(stage: Stage) -> None:
    link, session = stage.accept()
    calls = stage.drained(at=200.0)
    assert calls == [
        ("set_timer", stage.own, "drain", 207.0), ("end", link, Cause.DRAIN),
        ("set_timer", stage.own, "unlisten", 200.0), ("unlisten", stage.listening),
    ]
    assert session.drained == 200.0
    assert stage.desk.draining
    assert stage.deliver(events.Closed(201.0, link, None))[-1] == ("stop",)
    assert stage.told() == [{"is": "ended", "accepted": 1, "cut": 0, "dropped": 0}]
    assert "draining worker=0 cause=SIGTERM sessions=1 seconds=7.0" in stage.said()


def test_the_end_tells_of_lost_lines(stage: Stage) -> None:
    """Who reads the log later knows that records are missing."""
    link, session = stage.accept()
    os.close(stage.out)
    stage.order(link, session, events.Record(record()), events.Record(record()))
    stage.deliver(events.Closed(101.0, link, None))
    stage.drained()
    assert stage.told() == [{"is": "ended", "accepted": 1, "cut": 0, "dropped": 2}]
    stage.out = os.dup(stage._out)      # for `close`


def test_a_drain_with_nobody_there_stops_at_once(stage: Stage) -> None:
    assert stage.drained()[-1] == ("stop",)
    assert ("stop",) not in stage.ordered("drain"), "and once"


def test_who_waits_in_the_backlog_is_accepted_before_it_is_closed(stage: Stage) -> None:
    """And told that we are going away, as long as somebody does."""
    stage.engine.crowded = True
    stage.ordered("drain", at=100.0)
    link, session = stage.accept()
    assert session.drained == 100.0
    calls = stage.deliver(events.TimedOut(100.0, stage.own, "unlisten"))
    assert calls == [("set_timer", stage.own, "unlisten", 100.005)]
    assert ("stop",) not in stage.deliver(events.Closed(100.0, link, None))
    stage.engine.crowded = False
    calls = stage.deliver(events.TimedOut(100.005, stage.own, "unlisten"))
    assert calls[0] == ("unlisten", stage.listening)
    assert calls[-1] == ("stop",)


def test_where_others_accept_handshakes_may_finish_first(stage: Stage) -> None:
    """A client that we took would be refused, and the next worker would have served it; one that
    is in the middle of it has us alone."""
    link, session = stage.accept()
    calls = stage.ordered("drain", others=True)
    assert calls == [
        ("unlisten", stage.listening), ("set_timer", stage.own, "handshakes", 101.0),
    ]
    assert not stage.desk.draining
    calls = stage.deliver(events.TimedOut(101.0, stage.own, "handshakes"))
    assert ("end", link, Cause.DRAIN) in calls
    assert ("set_timer", stage.own, "drain", 108.0) in calls
    assert session.drained == 101.0
    assert stage.desk.draining


def test_the_end_of_the_drain_cuts(stage: Stage) -> None:
    """Whoever is left; what of it counts, their records say."""
    first, one = stage.accept()
    second, other = stage.accept()
    stage.ordered("drain", at=100.0)
    calls = stage.deliver(events.TimedOut(130.0, stage.own, "drain"))
    assert ("reset", first) in calls
    assert ("reset", second) in calls
    assert (one.killed, other.killed) == (130.0, 130.0)
    assert ("stop",) not in calls, "links still close"
    killed = replace(record(), cause=Cause.KILLED.value)
    stage.order(first, one, events.Record(killed))
    stage.order(second, other, events.Record(replace(record(), cause=Cause.DRAIN.value)))
    calls = stage.deliver(events.Closed(130.0, first, None), events.Closed(130.0, second, None))
    assert calls[-1] == ("stop",)
    assert stage.told() == [{"is": "ended", "accepted": 2, "cut": 1, "dropped": 0}]
    assert "sessions were cut: the drain's time is over worker=0 sessions=1" in stage.said()


def test_where_nobody_is_cut_nothing_is_said_of_it(stage: Stage) -> None:
    link, session = stage.accept()
    stage.ordered("kill")
    stage.order(link, session, events.Record(record()))
    stage.deliver(events.Closed(100.0, link, None))
    assert stage.worker.counts.cut == 0
    assert "cut" not in stage.said()


@pytest.mark.parametrize("when", ["before", "in the drain", "at its end"])
@pytest.mark.parametrize("how", ["killed", "client", "upstream", "both"])
def test_a_session_that_was_cut_is_counted_once(stage: Stage, when: str, how: str) -> None:
    """Its record says so; before the end has begun it is no business of the exit code."""
    link, session = stage.accept()
    sides = LegCounts(cut=how in ("client", "both")), LegCounts(cut=how in ("upstream", "both"))
    cause = Cause.KILLED if how == "killed" else Cause.LOST
    if when != "before":
        stage.ordered("drain", at=100.0)
    if when == "at its end":
        stage.deliver(events.TimedOut(130.0, stage.own, "drain"))
    written = events.Record(replace(record(), cause=cause.value, counts=sides))
    stage.order(link, session, written)
    assert stage.worker.counts.cut == (when != "before")


@pytest.mark.parametrize("is_recorded", [True, False])
def test_links_that_do_not_close_do_not_keep_us(stage: Stage, is_recorded: bool) -> None:
    """And a session without a record will never have one: it was cut."""
    _, session = stage.accept()
    session.record = None if is_recorded else record()
    calls = stage.ordered("kill", at=100.0)
    assert ("set_timer", stage.own, "cut", 101.0) in calls
    assert stage.deliver(events.TimedOut(101.0, stage.own, "cut"))[-1] == ("stop",)
    assert stage.told()[-1]["cut"] == (not is_recorded)


@pytest.mark.parametrize("orders", [["kill"], ["drain", "kill"]])
def test_a_kill_cuts_also_in_a_drain(stage: Stage, orders: list[str]) -> None:
    link, session = stage.accept()
    for order in orders:
        stage.ordered(order, at=100.0)
    assert session.killed == 100.0
    assert ("reset", link) in stage.engine.calls
    assert stage.ordered("kill") == [], "once is enough"


def test_who_comes_while_draining_is_drained_too(stage: Stage) -> None:
    """It was accepted in the same batch as the order came."""
    stage.accept()
    stage.prepare = lambda session: setattr(session, "on_drain", [events.Close(Side.CLIENT)])
    calls = stage.deliver(
        stage.order_of("drain"), Accepted(100.0, 77, stage.listening, CLIENT, LOCAL)
    )
    assert calls[-2:] == [("read", 77), ("close", 77)]
