"""Conversations about an upstream's refusal: passed on whole, with back-pressure, or cut."""

from typing import Any

import pytest

from gateway.errors import Blame
from gateway.events import (
    ClearTimer,
    Close,
    Command,
    Connect,
    Hold,
    Read,
    Record,
    Reset,
    Send,
    SetTimer,
)
from gateway.protocol.life import TOO_SLOW, State
from protocol.playbook import (
    C,
    Play,
    Stage,
    U,
    asked,
    endpoint,
    head,
    hole,
    request,
    upgrade,
)

ROUTED: dict[str, Any] = {
    "method": "GET", "host": "a.test", "path": "/chat", "route": "chat",
    "endpoint": "10.0.0.1:9000",
}
FORBIDDEN = head(
    b"HTTP/1.1 403 Forbidden", b"Set-Cookie: a=b", b"Connection: X-Hop", b"X-Hop: 1",
    b"Content-Length: 6",
)
PASSED = head(
    b"HTTP/1.1 403 Forbidden", b"Set-Cookie: a=b", b"Content-Length: 6", b"Connection: close"
)
CHUNKED = head(b"HTTP/1.1 401 Unauthorized", b"Transfer-Encoding: chunked")
UNTIL_FIN = head(b"HTTP/1.1 503 Busy", b"Retry-After: 9")
ASKED = (("head", 0.0), ("connect", 0.0))


def ask(play: Play, data: bytes | None = None) -> None:
    """As far as the gateway's own handshake, and then half a second."""
    play.received(C, data or upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0)
    )
    play.wait(0.5)


def passes(play: Play, answer: bytes = FORBIDDEN, passed: bytes = PASSED) -> None:
    """The answer begins to be passed on."""
    ask(play)
    play.received(U, answer).says(Send(C, passed), SetTimer("answer", play.now + 15.0))
    assert play.state is State.PASSING


def refused(play: Play, status: int = 403, seconds: float = 0.0, **more: Any) -> Record:
    """The record of a refusal; `seconds` is how long it took to pass it on."""
    fields: dict[str, Any] = {
        "status": status, "blame": Blame.UPSTREAM, "detail": "the upstream refused",
        "phase": "pass", "phases": (*ASKED, ("ask", 0.5), ("pass", seconds)),
    }
    return play.record(**(ROUTED | fields | more))


def over(play: Play, record: Record, seconds: float = 5.0) -> tuple[Command, ...]:
    """The last piece was sent: record, and the last word."""
    return record, Reset(U), ClearTimer("answer"), *play.last_word(seconds)


# --- Whole --------------------------------------------------------------------------------------


def test_a_refusal_is_passed_on_whole(begin: Stage) -> None:
    """Status, fields, content; not what was for one connection alone. Ours closes behind it."""
    play = begin(route={"close_timeout": 3.0})
    ask(play)
    play.received(U, FORBIDDEN + b"secret, and more").says(
        Send(C, PASSED + b"secret"), *over(play, refused(play), 3.0)
    )
    play.leaves()


def test_a_refusal_is_passed_on_as_it_comes(begin: Stage) -> None:
    """Each piece leaves at once, and gives the upstream its time anew."""
    play = begin()
    passes(play)
    play.wait(14.0)
    play.received(U, b"sec").says(Send(C, b"sec"), SetTimer("answer", play.now + 15.0))
    play.wait(14.0)
    play.received(U, b"ret").says(Send(C, b"ret"), *over(play, refused(play, seconds=28.0)))
    play.leaves()


def test_chunks_stay_chunks(begin: Stage) -> None:
    """A piece that gives nothing to pass on is a sign of life all the same."""
    play = begin()
    passes(play, CHUNKED, head(
        b"HTTP/1.1 401 Unauthorized", b"Connection: close", b"Transfer-Encoding: chunked"
    ))
    play.received(U, b"3").says(SetTimer("answer", play.now + 15.0))
    play.received(U, b"\r\nabc\r\n0\r\n").says(
        Send(C, b"3\r\nabc\r\n"), SetTimer("answer", play.now + 15.0)
    )
    play.received(U, b"\r\n").says(Send(C, b"0\r\n\r\n"), *over(play, refused(play, 401)))
    play.leaves()


def test_an_answer_may_end_with_the_connection(begin: Stage) -> None:
    """RFC 9112 6.3: then the FIN is its end."""
    play = begin()
    passes(play, UNTIL_FIN, head(
        b"HTTP/1.1 503 Busy", b"Retry-After: 9", b"Connection: close",
        b"Transfer-Encoding: chunked",
    ))
    play.received(U, b"abc").says(
        Send(C, b"3\r\nabc\r\n"), SetTimer("answer", play.now + 15.0)
    )
    play.finished(U).says(Send(C, b"0\r\n\r\n"), *over(play, refused(play, 503)))
    play.leaves()


def test_what_the_client_says_meanwhile_is_thrown_away(begin: Stage) -> None:
    """A refused upgrade is its last request. If it half-closes it still gets the answer, and
    nothing is waited for behind it."""
    play = begin()
    passes(play)
    play.received(C, b"frames").says_nothing()
    play.finished(C).says_nothing()
    play.received(U, b"secret").says(Send(C, b"secret"), refused(play), Reset(U), Close(C))
    play.ends()


def test_a_200_is_a_refusal_too(begin: Stage) -> None:
    """Whatever is no 101 is no WebSocket."""
    play = begin()
    ask(play)
    play.received(U, head(b"HTTP/1.1 200 OK", b"Content-Length: 0")).says(
        Send(C, head(b"HTTP/1.1 200 OK", b"Content-Length: 0", b"Connection: close")),
        *over(play, refused(play, 200)),
    )
    play.leaves()


# --- Cut ----------------------------------------------------------------------------------------

CUTS = [
    ("FIN", ""),
    ("RST", "the upstream was lost inside its answer"),
    ("silence", "answer_timeout inside the answer"),
]


@pytest.mark.parametrize(("how", "detail"), CUTS)
def test_an_answer_that_breaks_off_does_not_look_whole(
    begin: Stage, how: str, detail: str
) -> None:
    """The client is reset, and the record says whose doing it was."""
    play = begin()
    passes(play)
    play.wait(1.0)
    if how == "FIN":
        said = play.finished(U)
    elif how == "RST":
        said = play.lost(U)
    else:
        said = play.timed_out("answer")
    detail = detail or play.records[-1].detail
    assert detail.startswith("upstream's answer: ") or how != "FIN"
    record = refused(play, seconds=play.now - 1000.5, detail=detail, counts=play.cut)
    said.says(record, *(() if how == "RST" else (Reset(U),)), Reset(C))
    play.ends()


def test_broken_chunks_do_not_look_whole(begin: Stage) -> None:
    """What was sound before them has been passed on."""
    play = begin()
    passes(play, CHUNKED, hole())
    said = play.received(U, b"nonsense\r\n")
    said.says(
        refused(play, 401, detail=play.records[-1].detail, counts=play.cut), Reset(U), Reset(C)
    )
    assert play.records[-1].detail.startswith("upstream's answer: ")
    play.ends()


def test_a_client_that_goes_ends_it(begin: Stage) -> None:
    """The record has the upstream's status and the client's loss."""
    play = begin()
    passes(play)
    play.lost(C).says(
        refused(play, blame=Blame.CLIENT, detail="the client was lost: reset"), Reset(U)
    )
    play.ends()


# --- Back-pressure --------------------------------------------------------------------------------


def test_a_slow_client_holds_the_upstream(begin: Stage) -> None:
    """Within write_timeout, and the upstream's own time stands still."""
    play = begin(route={"write_timeout": 20.0})
    passes(play)
    play.clogged().says(Hold(U), ClearTimer("answer"), SetTimer("write", play.now + 20.0))
    play.wait(19.0)
    play.cleared().says(ClearTimer("write"), Read(U), SetTimer("answer", play.now + 15.0))
    play.received(U, b"secret").says(
        Send(C, b"secret"), *over(play, refused(play, seconds=19.0))
    )
    play.leaves()


def test_what_was_read_before_the_hold_does_not_start_the_upstreams_time(begin: Stage) -> None:
    """It is the client that is waited for: answer_timeout would blame the wrong side. If that was
    the last piece, the client's time does not run into the lingering either."""
    play = begin(route={"write_timeout": 20.0})
    passes(play)
    play.clogged().says(Hold(U), ClearTimer("answer"), SetTimer("write", play.now + 20.0))
    play.received(U, b"sec", held=True).says(Send(C, b"sec"))
    assert set(play.timers) == {"write"}
    play.received(U, b"ret", held=True).says(
        Send(C, b"ret"), refused(play), Reset(U), ClearTimer("write"), *play.last_word()
    )
    assert set(play.timers) == {"linger"}
    play.cleared().says_nothing()
    play.leaves()


def test_a_client_that_does_not_take_the_answer_is_cut(begin: Stage) -> None:
    """write_timeout; the client's doing."""
    play = begin()
    passes(play)
    play.clogged().says(Hold(U), ClearTimer("answer"), SetTimer("write", play.now + 30.0))
    play.timed_out("write").says(
        refused(play, seconds=30.0, blame=Blame.CLIENT, detail=TOO_SLOW, counts=play.cut),
        Reset(U), Reset(C),
    )
    play.ends()


def test_write_timeout_off_waits_for_ever(begin: Stage) -> None:
    """As the operator says."""
    play = begin(route={"write_timeout": 0.0})
    passes(play)
    play.clogged().says(Hold(U), ClearTimer("answer"))
    play.wait(3600.0)
    play.lost(U).says(
        refused(play, seconds=3600.0, detail="the upstream was lost inside its answer",
                counts=play.cut),
        Reset(C),
    )
    play.ends()


def test_a_client_that_was_slow_before_is_known_to_be(begin: Stage) -> None:
    """What is queued are answers to requests before this one; `Clogged` is not said twice."""
    play = begin()
    play.received(C, request() + upgrade()).says(
        ClearTimer("head"), hole(), hole(), Hold(C), SetTimer("next", play.now)
    )
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Connect(endpoint(1)),
        SetTimer("connect", play.now + 2.0),
    )
    play.clogged().says_nothing()
    play.cleared().says_nothing()
    play.clogged().says_nothing()
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0)
    )
    play.received(U, FORBIDDEN).says(
        Hold(U), ClearTimer("answer"), SetTimer("write", play.now + 30.0), Send(C, PASSED)
    )
    play.cleared().says(ClearTimer("write"), Read(U), SetTimer("answer", play.now + 15.0))
    play.lost(C).says(hole(), Reset(U))


# --- Drains and kills -----------------------------------------------------------------------------


def test_a_drain_lets_it_be_passed_on(begin: Stage) -> None:
    """It ends soon by itself."""
    play = begin()
    passes(play)
    play.drains().says_nothing()
    play.received(U, b"secret").says(Send(C, b"secret"), *over(play, refused(play)))
    play.drains().says_nothing()
    play.leaves()


def test_a_kill_cuts_it(begin: Stage) -> None:
    """So that it does not look whole."""
    play = begin()
    passes(play)
    play.is_killed().says(
        refused(play, blame=Blame.GATEWAY, detail="cut: the gateway ends", counts=play.cut),
        Reset(U), Reset(C),
    )
    play.ends()
