"""The worker between a scripted engine and scripted sessions: who gets which event, which verb is
called for which command, admission, bugs, drains and what the supervisor says."""

from typing import Any

import pytest

from control.stage import CLIENT, ECHO, LOCAL, OUTWARD, UPSTREAM, Stage, record
from gateway import events
from gateway.control.channel import encode
from gateway.errors import Fault
from gateway.events import Accepted, Cause, Command, Event, RelayRules, Side
from gateway.limits import SPARE_CONNECTIONS
from gateway.table import Listener
from gateway.upstreams import News

# --- Events and commands ----------------------------------------------------------------------


def test_an_accepted_client_gets_a_session(stage: Stage) -> None:
    """It knows its listener as it is bound, has an id, and its first commands are done."""
    link, session = stage.accept()
    assert stage.engine.calls == [("read", link)]
    assert session.listener == Listener(address=LOCAL, max_head=9999)
    _, second = stage.accept()
    assert session.number != second.number
    prefix, _, count = second.number.rpartition("-")
    assert session.number.startswith(prefix)
    assert (len(prefix), count) == (8, "2")
    assert stage.desk.limits.connections == 2


def test_each_side_gets_its_events_in_order(stage: Stage) -> None:
    link, session = stage.accept()
    upstream = stage.connect(link, session)
    stage.deliver(
        events.Connected(1.0, upstream),
        events.Received(1.0, link, b"a"),
        events.Received(1.0, upstream, b"b"),
        events.TimedOut(1.0, link, "head"),
        events.Finished(1.0, upstream),
    )
    assert [(side, type(event)) for side, event in session.seen[1:]] == [
        (Side.UPSTREAM, events.Connected),
        (Side.CLIENT, events.Received),
        (Side.UPSTREAM, events.Received),
        (Side.CLIENT, events.TimedOut),
        (Side.UPSTREAM, events.Finished),
    ]


def test_every_command_is_its_verb(stage: Stage) -> None:
    link, session = stage.accept()
    up = stage.connect(link, session)
    rules = RelayRules()
    expected: list[tuple[Command, tuple[Any, ...]]] = [
        (events.Read(Side.UPSTREAM), ("read", up)),
        (events.Hold(Side.CLIENT), ("hold", link)),
        (events.Send(Side.CLIENT, b"x"), ("send", link, b"x")),
        (events.Send(Side.UPSTREAM, b"y"), ("send", up, b"y")),
        (events.Secure(Side.UPSTREAM, OUTWARD, b"z"), ("secure", up, OUTWARD, b"z")),
        (events.Relay(rules, b"c", b"u"), ("relay", link, up, b"c", b"u")),
        (events.End(Cause.KILLED), ("end", link, Cause.KILLED)),
        (events.Finish(Side.UPSTREAM), ("finish", up)),
        (events.Close(Side.CLIENT), ("close", link)),
        (events.Close(Side.UPSTREAM), ("close", up)),
        (events.SetTimer("head", 7.0), ("set_timer", link, "head", 7.0)),
        (events.ClearTimer("head"), ("clear_timer", link, "head")),
        (events.Reset(Side.CLIENT), ("reset", link)),
        (events.Reset(Side.UPSTREAM), ("reset", up)),
    ]
    calls = stage.order(link, session, *(command for command, _ in expected))
    assert calls == [call for _, call in expected]
    known = {command for command in vars(events).values()
             if isinstance(command, type) and issubclass(command, Command)}
    tested = {type(command) for command, _ in expected}
    assert known - tested == {Command, events.Connect, events.Record}, "a command has no test"


def test_a_record_is_written(stage: Stage) -> None:
    link, session = stage.accept()
    stage.order(link, session, events.Record(record("abc-1")))
    assert "session=abc-1" in stage.recorded()


def test_after_reset_the_old_upstream_reaches_nobody_and_another_may_follow(stage: Stage) -> None:
    link, session = stage.accept()
    first = stage.connect(link, session)
    calls = stage.order(link, session, events.Reset(Side.UPSTREAM), events.Connect(UPSTREAM))
    second = calls[1][1]
    assert calls == [("reset", first), ("connect", second, UPSTREAM)]
    stage.deliver(
        events.Received(1.0, first, b"late"),
        events.Closed(1.0, first, None),
        events.Connected(1.0, second),
    )
    assert session.types(Side.UPSTREAM) == [events.Connected]


def test_a_failed_connect_is_followed_by_another_in_the_same_batch(stage: Stage) -> None:
    """The Closed of the link that never came to be must not end the next one."""
    link, session = stage.accept()
    first = stage.connect(link, session)
    session.script[(Side.UPSTREAM, events.ConnectFailed)] = [events.Connect(UPSTREAM)]
    calls = stage.deliver(
        events.ConnectFailed(1.0, first, Fault.REFUSED), events.Closed(1.0, first, Fault.REFUSED)
    )
    assert [call[0] for call in calls] == ["connect"]
    assert session.types(Side.UPSTREAM) == [events.ConnectFailed]
    stage.deliver(events.Connected(1.0, calls[0][1]))
    assert session.types(Side.UPSTREAM) == [events.ConnectFailed, events.Connected]


def test_commands_for_links_that_are_gone_are_dropped(stage: Stage) -> None:
    link, session = stage.accept()
    up = stage.connect(link, session)
    gone = [
        events.Send(Side.UPSTREAM, b"x"), events.Read(Side.UPSTREAM), events.Hold(Side.UPSTREAM),
        events.Finish(Side.UPSTREAM), events.Close(Side.UPSTREAM), events.Reset(Side.UPSTREAM),
        events.Relay(RelayRules()),
    ]
    session.script[(Side.UPSTREAM, events.Closed)] = list(gone)
    assert stage.deliver(events.Closed(1.0, up, Fault.RESET)) == []
    session.script[(Side.CLIENT, events.Closed)] = [
        events.Connect(UPSTREAM), events.Send(Side.CLIENT, b"x"), events.SetTimer("a", 1.0),
        events.ClearTimer("a"), events.Reset(Side.CLIENT), events.End(Cause.DRAIN),
    ]
    assert stage.deliver(events.Closed(1.0, link, None)) == []


def test_a_session_that_is_over_is_forgotten(stage: Stage) -> None:
    """With everything that was kept for it; an upstream that it left open is closed."""
    link, session = stage.accept()
    up = stage.connect(link, session)
    assert stage.deliver(events.Closed(1.0, link, None)) == [("close", up)]
    stage.deliver(events.Received(1.0, up, b"late"), events.Closed(1.0, up, None))
    assert session.types(Side.UPSTREAM) == []
    worker = stage.worker
    assert (worker._clients, worker._upstreams, worker._sessions) == ({}, {}, {})
    assert stage.desk.limits.connections == 0


def test_events_of_strangers_reach_nobody(stage: Stage) -> None:
    stage.accept()
    assert stage.deliver(events.Received(1.0, 999, b"x"), events.Closed(1.0, 999, None)) == []


# --- The built-in echo ------------------------------------------------------------------------


def test_echo_is_connected_in_the_next_batch(stage: Stage) -> None:
    """A session must never be entered from inside its own command."""
    link, session = stage.accept()
    calls = stage.order(link, session, events.Connect(ECHO))
    pair = next(call for call in calls if call[0] == "pair")
    near, far = pair[1:]
    timer = next(call for call in calls if call[0] == "set_timer")
    assert timer[1] == near
    assert timer[3] <= stage.engine.time
    assert session.types(Side.UPSTREAM) == []
    stage.deliver(events.TimedOut(1.0, near, timer[2]))
    assert session.types(Side.UPSTREAM) == [events.Connected]
    assert ("read", far) in calls, "the endpoint at the far end reads"


def test_echo_ends_with_its_link(stage: Stage) -> None:
    link, session = stage.accept()
    calls = stage.order(link, session, events.Connect(ECHO))
    near, far = next(call for call in calls if call[0] == "pair")[1:]
    stage.deliver(events.Closed(1.0, link, None))
    stage.deliver(events.Closed(1.0, near, None), events.Closed(1.0, far, Fault.RESET))
    assert (stage.worker._clients, stage.worker._upstreams) == ({}, {})


def test_no_descriptor_for_a_pair_is_a_failed_connect(stage: Stage) -> None:
    stage.engine.pair_error = OSError(24, "Too many open files")
    link, session = stage.accept()
    calls = stage.order(link, session, events.Connect(ECHO))
    assert [call[:2] for call in calls] == [("set_timer", link)]
    stage.deliver(events.TimedOut(1.0, link, calls[0][2]))
    assert session.types(Side.CLIENT) == [events.Cleared]
    failed = session.seen[-1]
    assert failed[0] is Side.UPSTREAM
    assert isinstance(failed[1], events.ConnectFailed)
    assert failed[1].fault is Fault.NO_DESCRIPTORS


def test_a_failed_pair_is_forgotten_with_a_reset(stage: Stage) -> None:
    stage.engine.pair_error = OSError(24, "Too many open files")
    link, session = stage.accept()
    timer = stage.order(link, session, events.Connect(ECHO))[0]
    calls = stage.order(link, session, events.Reset(Side.UPSTREAM))
    assert calls == [("clear_timer", link, timer[2])]


# --- Bugs -------------------------------------------------------------------------------------


def test_a_session_that_raises_ends_loudly_and_alone(stage: Stage) -> None:
    link, session = stage.accept()
    other_link, other = stage.accept()
    up = stage.connect(link, session)
    session.bug = events.Received
    session.script[(Side.CLIENT, events.Closed)] = [
        events.Record(record(session.number)), events.Close(Side.CLIENT),
    ]
    calls = stage.deliver(
        events.Received(1.0, link, b"x"),
        events.Received(1.0, other_link, b"y"),
        events.Received(1.0, up, b"late"),
        events.Closed(1.0, link, None),
        events.Closed(1.0, up, None),
    )
    assert calls == [("reset", up), ("reset", link)]
    said = stage.said()
    assert "RuntimeError: a bug" in said
    assert all(f"session={session.number}" in line for line in said.splitlines())
    assert f"session={session.number}" in stage.recorded(), "its record is written all the same"
    assert session.types(Side.CLIENT)[1:] == [events.Received, events.Closed]
    assert other.types(Side.CLIENT) == [events.Received]
    assert stage.worker.counts.crashed == 1
    assert stage.desk.limits.connections == 1


def test_an_impossible_command_is_a_bug_of_the_session(stage: Stage) -> None:
    """A second upstream link would leave the first one without an owner."""
    link, session = stage.accept()
    up = stage.connect(link, session)
    calls = stage.order(link, session, events.Connect(UPSTREAM))
    assert calls == [("reset", up), ("reset", link)]
    assert "a second upstream link" in stage.said()


def test_a_session_that_outlives_its_client_is_a_bug(stage: Stage) -> None:
    link, session = stage.accept()

    def stay(side: Side, event: Event) -> list[Command]:
        return []

    session.handle = stay  # type: ignore[method-assign]
    stage.deliver(events.Closed(1.0, link, None))
    assert "alive without its client" in stage.said()
    assert stage.worker._sessions == {}


def test_a_bug_while_starting_and_draining(stage: Stage) -> None:
    def raising(*_: object) -> list[Command]:
        raise RuntimeError("early")

    stage.prepare = lambda session: setattr(session, "start", raising)
    link, _ = stage.accept()
    assert ("reset", link) in stage.engine.calls
    stage.prepare = lambda session: setattr(session, "drain", raising)
    second, _ = stage.accept()
    calls = stage.drained()
    assert ("reset", second) in calls
    assert calls[-1] == ("stop",), "nobody is left"
    assert stage.worker.counts.crashed == 2
    assert stage.desk.limits.connections == 0


def test_a_bug_of_a_bug_is_told_too(stage: Stage) -> None:
    link, session = stage.accept()

    def raising(side: Side, event: Event) -> list[Command]:
        raise RuntimeError(type(event).__name__)

    session.handle = raising  # type: ignore[method-assign]
    stage.deliver(events.Received(1.0, link, b"x"))
    said = stage.said()
    assert "RuntimeError: Received" in said
    assert "RuntimeError: Closed" in said


# --- Admission --------------------------------------------------------------------------------


def test_far_too_many_connections_are_cut_at_accept() -> None:
    """Up to the limit and some more they get a session, which can refuse; then they are cut."""
    stage = Stage(max_sessions=1)
    stage.start()
    for _ in range(1 + SPARE_CONNECTIONS):
        stage.accept()
    calls = stage.deliver(
        Accepted(100.0, 5000, stage.listening, CLIENT, LOCAL),
        Accepted(101.0, 5001, stage.listening, CLIENT, LOCAL),
    )
    assert calls == [("reset", 5000), ("reset", 5001)]
    assert stage.worker.counts.refused == 2
    assert stage.said().count("connections are cut") == 1, "a flood is not logged line by line"
    stage.deliver(events.Closed(101.0, 5000, None))
    assert stage.desk.limits.connections == 1 + SPARE_CONNECTIONS
    stage.close()


def test_paused_accepting_is_said_and_not_too_often(stage: Stage) -> None:
    paused = events.AcceptPaused(100.0, stage.listening, Fault.NO_DESCRIPTORS)
    resumed = events.AcceptResumed(100.5, stage.listening)
    again = events.AcceptPaused(101.0, stage.listening, Fault.NO_DESCRIPTORS)
    later = events.AcceptPaused(120.0, stage.listening, Fault.NO_DESCRIPTORS)
    stage.deliver(paused, resumed, again, resumed, later)
    lines = stage.said().splitlines()
    assert len(lines) == 3
    assert "warning accepting is paused: no free file descriptor" in lines[0]
    assert "listener=127.0.0.1:8080" in lines[0]
    assert "accepting is resumed" in lines[1]


def test_endpoints_that_rest_are_told_of_once_and_when_they_work_again(stage: Stage) -> None:
    """One that comes and goes is not told of each time, but another one is."""
    news = stage.desk.news
    news.append(News("chat", "10.0.0.1:9000", "connect: refused", 1.0))
    stage.deliver()
    assert news == []
    news += [News("chat", "10.0.0.1:9000"), News("chat", "10.0.0.1:9000", "again", 1.0)]
    stage.engine.time += 1
    stage.deliver()
    news += [News("chat", "10.0.0.1:9000"), News("chat", "10.0.0.2:9000", "other", 1.0)]
    stage.deliver()
    stage.engine.time += 60
    news.append(News("chat", "10.0.0.1:9000", "later", 1.0))
    stage.deliver()
    rest = "warning an endpoint cannot be connected; it rests, and others are taken meanwhile"
    assert [text.split(" ", 1)[1] for text in stage.said().splitlines()] == [
        f'{rest} endpoint=10.0.0.1:9000 upstream=chat error="connect: refused" seconds=1.0',
        "info an endpoint is connected again endpoint=10.0.0.1:9000 upstream=chat",
        f"{rest} endpoint=10.0.0.2:9000 upstream=chat error=other seconds=1.0",
        f"{rest} endpoint=10.0.0.1:9000 upstream=chat error=later seconds=1.0",
    ]


# --- The supervisor ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [events.Finished(100.0, 3), events.Closed(100.0, 3, Fault.RESET)], ids=["fin", "lost"]
)
def test_without_its_supervisor_it_drains(end: Event) -> None:
    """For as long as its table says; whoever is gone is told nothing more."""
    stage = Stage(drain=9.0)
    stage.start()
    link, _ = stage.accept()
    calls = stage.deliver(end)
    assert ("set_timer", stage.own, "drain", 109.0) in calls
    assert 'draining worker=0 cause="the supervisor is gone" sessions=1' in stage.said()
    stage.deliver(events.TimedOut(100.0, stage.own, "unlisten"))
    assert stage.deliver(events.Closed(101.0, link, None)) == [("stop",)]
    stage.close()


def test_orders_in_pieces_and_in_one(stage: Stage) -> None:
    """Bytes arrive as they please."""
    _, session = stage.accept()
    whole = encode({"do": "drain", "seconds": 1.0, "cause": "c", "others": True})
    whole += encode({"do": "kill", "why": "w"})
    assert stage.deliver(events.Received(100.0, stage.line, whole[:20])) == []
    stage.deliver(events.Received(100.0, stage.line, whole[20:]))
    assert session.killed == 100.0


def test_it_says_that_it_serves_and_obeys_what_was_said_before() -> None:
    """The supervisor may have had second thoughts while the engine was made."""
    stage = Stage()
    stage.worker.run([{"do": "drain", "seconds": 1.0, "cause": "c", "others": False}])
    stage.line = 3
    assert stage.told() == [{"is": "serving", "worker": 0}]
    timer = stage.engine.calls[-1]
    assert timer[0] == "set_timer"
    assert timer[3] <= stage.engine.time
    assert stage.deliver(events.TimedOut(100.0, *timer[1:3]))
    assert stage.deliver(events.TimedOut(100.0, 1, "unlisten"))[-1] == ("stop",)
    stage.close()


# --- The log ----------------------------------------------------------------------------------


def test_a_slow_reader_of_the_log_is_tried_again_by_a_timer(stage: Stage) -> None:
    """An idle gateway has no other event that would put the rest out."""
    link, session = stage.accept()
    many = [events.Record(record("x" * 1000))] * 200
    calls = stage.order(link, session, *many)
    timers = [call for call in calls if call[0] == "set_timer"]
    assert timers == [("set_timer", stage.own, "flush", stage.engine.time + 0.1)]
    assert stage.deliver(events.Cleared(1.0, 999)) == [], "one timer at a time"
    stage.recorded()
    written = len(stage.recorded())
    while stage.deliver(events.TimedOut(1.0, stage.own, "flush")):
        written += len(stage.recorded())
    assert not stage.report.waiting
