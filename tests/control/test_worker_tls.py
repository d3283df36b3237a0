"""The worker and TLS: who is let in to a handshake, and how handshakes are counted."""

from collections.abc import Iterator

import pytest

from control.stage import CLIENT, LOCAL, OUTWARD, Stage
from gateway import events
from gateway.control.board import Board
from gateway.control.counters import Counters
from gateway.control.shared import SharedMemory, Slots
from gateway.errors import Fault, Handshake
from gateway.events import Accepted, KeyPair, Side, TlsServer

SECURE = TlsServer(certificates=(KeyPair(chain=b"", key=b"", names=()),))


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """What workers count in."""
    mapped = SharedMemory(SharedMemory.create())
    yield mapped
    mapped.close()


def test_where_no_session_can_begin_there_is_no_handshake() -> None:
    """It would be for nothing: such a client is cut at once, and counted."""
    stage = Stage(max_sessions=1, secure=SECURE)
    stage.start()
    stage.accept()
    assert stage.desk.limits.enter("chat", 0, CLIENT, 0) is None
    calls = stage.deliver(Accepted(100.0, 5000, stage.listening, CLIENT, LOCAL))
    assert calls == [("reset", 5000)]
    assert stage.worker.counts.refused == 1
    assert "a TLS handshake would be for nothing" in stage.said()
    stage.desk.limits.leave("chat", CLIENT)
    stage.accept()
    assert len(stage.sessions) == 2
    stage.close()


def test_handshakes_are_counted(memory: SharedMemory) -> None:
    """With clients those that succeed, full or resumed; toward upstreams those that fail."""
    board = Board(memory)
    board.begin(0)
    stage = Stage(secure=SECURE, counters=Counters(memory, 0, Slots()))
    stage.start()
    for resumed in (False, True, True):
        link, session = stage.accept()
        stage.deliver(events.Secured(100.0, link, resumed=resumed))
        assert session.types(Side.CLIENT) == [events.Secured]
    upstream = stage.connect(link, session)
    stage.order(link, session, events.Secure(Side.UPSTREAM, OUTWARD))
    stage.deliver(
        events.Closed(101.0, upstream, Fault.TLS, "It has expired.", Handshake.UNTRUSTED)
    )
    assert session.types(Side.UPSTREAM) == [events.Closed]
    totals = board.totals()
    assert (totals["tls_full"], totals["tls_resumed"]) == (1, 2)
    assert board.handshakes()["upstream", "untrusted"] == 1
    stage.close()
