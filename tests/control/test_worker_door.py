"""Who stands at the door: no session is made of him before his first bytes, and none if those are
answered there. The sessions are scripted; the door is the real one."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from control.stage import CLIENT, LOCAL, Stage
from gateway import events
from gateway.errors import Fault
from gateway.events import Accepted, Event, Link, TlsServer
from gateway.routing import RouteTable
from gateway.table import Route

RATE = 4.0
CHAT = Route(name="chat", path="/chat", upstream="x", handshakes=RATE)
HEAD = (
    b"GET %b HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
AT = 100.0


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A worker that refuses whoever comes to the route chat."""
    yield from refusing()


def refusing(secure: TlsServer | None = None) -> Iterator[Stage]:
    """The same, where the listener may have TLS."""
    made = Stage(routes=(CHAT,), secure=secure)
    made.desk.routes = RouteTable((CHAT,))
    made.start()
    while made.desk.governor.turn(AT, ("route chat", RATE)) is not None:
        pass
    yield made
    made.close()


def comes(stage: Stage) -> Link:
    """A client is accepted, and stands at the door."""
    link = stage.engine._new()
    calls = stage.deliver(Accepted(AT, link, stage.listening, CLIENT, LOCAL))
    assert calls == [("read", link), ("set_timer", link, "head", AT + 10.0)]
    assert not stage.sessions
    return link


def test_who_is_over_the_rate_is_turned_away_without_a_session(stage: Stage) -> None:
    link = comes(stage)
    assert stage.desk.limits.connections == 1
    (call,) = stage.deliver(events.Received(AT, link, HEAD % b"/chat"))
    assert call[:2] == ("close", link)
    assert call[2].startswith(b"HTTP/1.1 503 ")
    assert b"Session " + stage.worker._name.encode() + b"-1\n" in call[2]
    assert not stage.sessions
    assert stage.desk.limits.connections == 0
    assert stage.deliver(events.Closed(AT, link, None)) == []
    assert "status=503" in stage.recorded()


def test_who_wants_something_else_gets_a_session_with_all_that_came(stage: Stage) -> None:
    link = comes(stage)
    received = events.Received(AT, link, b"GET / HTTP/1.1\r\n")
    assert stage.deliver(received)[0] == ("read", link)
    (session,) = stage.sessions
    assert [event for _, event in session.seen] == [received]
    assert stage.desk.limits.connections == 1


@pytest.mark.parametrize("event", [
    events.Finished(AT, 0), events.Closed(AT, 0, Fault.RESET), events.TimedOut(AT, 0, "head"),
], ids=["finished", "closed", "timed out"])
def test_who_says_nothing_is_a_session_s_business(stage: Stage, event: Event) -> None:
    link = comes(stage)
    event = replace(event, link=link)
    stage.deliver(event)
    (session,) = stage.sessions
    assert [seen for _, seen in session.seen] == [event]
    closed = isinstance(event, events.Closed)
    assert stage.desk.limits.connections == (0 if closed else 1)
    assert len(stage.worker._sessions) == (0 if closed else 1)


def test_at_a_listener_with_tls_nobody_stands_at_the_door() -> None:
    """Nobody could read an answer before the handshake, which is a session's to order."""
    with contextlib.contextmanager(refusing)(TlsServer(certificates=())) as stage:
        stage.deliver(Accepted(AT, stage.engine._new(), stage.listening, CLIENT, LOCAL))
        assert len(stage.sessions) == 1


def test_when_nobody_is_refused_any_more_nobody_stands_at_the_door(stage: Stage) -> None:
    link = stage.engine._new()
    stage.deliver(Accepted(AT + 10.0, link, stage.listening, CLIENT, LOCAL))
    assert len(stage.sessions) == 1


@pytest.mark.parametrize("order", ["drain", "kill"])
def test_the_end_finds_them_as_sessions(stage: Stage, order: str) -> None:
    """They are told like all others; and who comes then is no more kept at the door."""
    links = [comes(stage) for _ in range(3)]
    stage.ordered(order, AT)
    assert len(stage.sessions) == len(links)
    told = [one.drained if order == "drain" else one.killed for one in stage.sessions]
    assert told == [AT] * len(links)
    link = stage.engine._new()
    stage.deliver(Accepted(AT, link, stage.listening, CLIENT, LOCAL))
    assert len(stage.sessions) == len(links) + 1
