"""Conversations about plain exchanges: content, keep-alive, pipelining, slow clients, drains."""

from typing import Any

import pytest

from gateway.errors import Blame, Fault
from gateway.events import ClearTimer, Close, Connect, Hold, Read, Record, Reset, Send, SetTimer
from gateway.protocol.exchange import CONTENT_MAX
from gateway.protocol.life import TOO_SLOW, State
from gateway.table import Listener
from protocol.playbook import (
    LISTENER,
    PAGE,
    START,
    C,
    Play,
    Stage,
    U,
    endpoint,
    head,
    hole,
    refusal,
    request,
    upgrade,
)

PAGE_HEAD = head(
    b"HTTP/1.1 200 OK", b"Content-Type: text/html; charset=utf-8", b"Cache-Control: no-store",
    b"X-Content-Type-Options: nosniff", b"Referrer-Policy: no-referrer",
    b"Content-Length: %d" % len(PAGE),
)
SHOWN = PAGE_HEAD + PAGE
SHOWN_CLOSING = SHOWN.replace(b"no-referrer\r\n", b"no-referrer\r\nConnection: close\r\n")
SHOWN_LAST = SHOWN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")   # as was asked for
POST = b"POST / HTTP/1.1"
ONLY_READING = "This page is only for reading."
REFUSED = refusal(b"405 Method Not Allowed", ONLY_READING, b"Allow: GET, HEAD", closes=False)
GOING = refusal(b"503 Service Unavailable", "The gateway is going away.", b"Retry-After: 1")
REFUSED_CLOSING = refusal(b"405 Method Not Allowed", ONLY_READING, b"Allow: GET, HEAD")


def page_record(play: Play, **changes: Any) -> Record:
    """The record of a page that was shown."""
    fields: dict[str, Any] = {
        "method": "GET", "host": "a.test", "path": "/", "route": "page", "status": 200,
        "phase": "head", "phases": (("head", 0.0),), "started": play.now,
    }
    return play.record(**(fields | changes))


def refused_record(play: Play, **changes: Any) -> Record:
    """The record of a page that somebody wanted to write."""
    refused = {"method": "POST", "status": 405, "blame": Blame.CLIENT, "detail": ONLY_READING}
    return page_record(play, **(refused | changes))


def show_page(play: Play) -> None:
    """One exchange on a fresh connection."""
    play.received(C, request()).says(
        ClearTimer("head"), Send(C, SHOWN), page_record(play),
        SetTimer("idle", play.now + 60.0),
    )


def pipeline(play: Play, *behind: bytes) -> None:
    """One request that is answered, with these behind it, which wait."""
    play.received(C, request() + b"".join(behind)).says(
        ClearTimer("head"), Send(C, SHOWN), page_record(play), Hold(C),
        SetTimer("next", play.now),
    )


# --- Keep-alive ---------------------------------------------------------------------------------


def test_a_connection_is_kept_for_the_next_request(begin: Stage) -> None:
    """It has a head's time from its first byte on, and a record of its own from then on. Where
    none comes we close, and read on: a request that crosses with our FIN meets no RST."""
    play = begin()
    show_page(play)
    play.wait(20.0)
    play.received(C, request()[:9]).says(
        ClearTimer("idle"), SetTimer("head", play.now + 10.0)
    )
    play.wait(0.5)
    play.received(C, request()[9:]).says(
        ClearTimer("head"), Send(C, SHOWN),
        page_record(play, started=START + 20.0, phases=(("head", 0.5),)),
        SetTimer("idle", play.now + 60.0),
    )
    play.timed_out("idle").says(*play.last_word())
    play.received(C, request()).says_nothing()
    play.leaves()


@pytest.mark.parametrize("pieces", [(b"\r\n",), (b"\r", b"\n")])
def test_an_empty_line_is_no_request(begin: Stage, pieces: tuple[bytes, ...]) -> None:
    """RFC 9112 2.2: one is ignored. It neither ends the time that is left nor begins it anew."""
    play = begin()
    show_page(play)
    play.wait(20.0)
    for piece in pieces:
        play.received(C, piece).says_nothing()
    play.received(C, request()[:9]).says(
        ClearTimer("idle"), SetTimer("head", play.now + 10.0)
    )
    play.received(C, request()[9:]).says(
        ClearTimer("head"), Send(C, SHOWN),
        page_record(play, started=START + 20.0, phases=(("head", 0.0),)),
        SetTimer("idle", play.now + 60.0),
    )
    play.received(C, b"\r\n").says_nothing()
    play.wait(60.0)
    play.timed_out("idle").says(*play.last_word())
    play.leaves()


def test_an_empty_line_behind_a_request_holds_nobody(begin: Stage) -> None:
    """It came with the request before it, and its turn leads to no other: then the time for one
    begins."""
    play = begin()
    play.received(C, request() + b"\r\n").says(
        ClearTimer("head"), Send(C, SHOWN), page_record(play), Hold(C), SetTimer("next", play.now),
    )
    play.timed_out("next").says(Read(C), SetTimer("idle", play.now + 60.0))
    play.finished(C).says(Close(C))
    play.ends()


def test_keepalive_timeout_is_the_listeners(begin: Stage) -> None:
    """And who closes in between gets no record: nothing was asked."""
    play = begin(listener=Listener(address=LISTENER.address, keepalive_timeout=7.0))
    play.received(C, request()).says(
        ClearTimer("head"), Send(C, SHOWN), page_record(play), SetTimer("idle", START + 7.0)
    )
    play.lost(C, Fault.RESET).says_nothing()
    play.ends()


def test_the_next_head_may_take_too_long(begin: Stage) -> None:
    """408, with a record that begins with its first byte."""
    play = begin()
    show_page(play)
    play.wait(1.0)
    play.received(C, b"G").says(ClearTimer("idle"), SetTimer("head", play.now + 10.0))
    sentence = "The request took too long to arrive."
    play.timed_out("head").says(
        Send(C, refusal(b"408 Request Timeout", sentence)),
        play.record(started=START + 1.0, status=408, blame=Blame.CLIENT, detail=sentence,
                    phase="head", phases=(("head", 10.0),)),
        *play.last_word(),
    )
    play.leaves()


def test_an_upgrade_may_follow_on_the_same_connection(begin: Stage) -> None:
    """Its record tells of it alone."""
    play = begin()
    show_page(play)
    play.wait(1.0)
    play.received(C, upgrade()).says(
        ClearTimer("idle"), SetTimer("head", play.now + 10.0), ClearTimer("head"),
        Connect(endpoint(1)), SetTimer("connect", play.now + 2.0),
    )
    play.wait(0.5)
    play.finished(C).says(
        play.record(
            started=START + 1.0, method="GET", host="a.test", path="/chat", route="chat",
            endpoint="10.0.0.1:9000", status=499, blame=Blame.CLIENT,
            detail="the client went before the answer", phase="connect",
            phases=(("head", 0.0), ("connect", 0.5)),
        ),
        Reset(U), Close(C),
    )
    play.ends()


@pytest.mark.parametrize("closing", [b"Connection: close", b"Connection: x, Close"])
def test_who_says_close_is_closed(begin: Stage, closing: bytes) -> None:
    """And told so (RFC 9112 9.6)."""
    play = begin()
    play.received(C, request(closing)).says(
        ClearTimer("head"), Send(C, SHOWN_LAST), page_record(play), *play.last_word()
    )
    play.leaves()


def test_head_gets_no_content(begin: Stage) -> None:
    """RFC 9110 9.3.2."""
    play = begin()
    play.received(C, request(start=b"HEAD / HTTP/1.1")).says(
        ClearTimer("head"), Send(C, PAGE_HEAD), page_record(play, method="HEAD"),
        SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


# --- Content ------------------------------------------------------------------------------------


def test_content_that_nobody_wants_is_read(begin: Stage) -> None:
    """Within the head's time; the answer does not wait for it, and the next request follows."""
    play = begin()
    play.received(C, request(b"Content-Length: 8", start=POST) + b"12").says(
        ClearTimer("head"), Send(C, REFUSED), refused_record(play),
        SetTimer("head", play.now + 10.0),
    )
    assert play.state is State.EXCHANGE
    play.received(C, b"345").says_nothing()
    play.received(C, b"678").says(ClearTimer("head"), SetTimer("idle", play.now + 60.0))
    play.received(C, request()).says(
        ClearTimer("idle"), SetTimer("head", play.now + 10.0), ClearTimer("head"),
        Send(C, SHOWN), page_record(play), SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


def test_content_that_is_too_large_closes(begin: Stage) -> None:
    """Announced or not; it is never taken for a request."""
    play = begin()
    play.received(C, request(b"Content-Length: %d" % (CONTENT_MAX + 1), start=POST)).says(
        ClearTimer("head"), Send(C, REFUSED_CLOSING), refused_record(play), *play.last_word()
    )
    play.received(C, request()).says_nothing()
    play.leaves()
    play = begin()
    play.received(C, request(b"Transfer-Encoding: chunked", start=POST)).says(
        ClearTimer("head"), Send(C, REFUSED), refused_record(play),
        SetTimer("head", play.now + 10.0),
    )
    play.received(C, b"%x\r\n" % (CONTENT_MAX + 1) + bytes(CONTENT_MAX)).says_nothing()
    play.received(C, b"\0").says(ClearTimer("head"), *play.last_word())
    play.leaves()


def test_content_that_does_not_come_closes(begin: Stage) -> None:
    """Its time is over, or FIN came, or the client is lost. The record was written long since."""
    ends = ("head", "FIN", "RST")
    for end in ends:
        play = begin()
        play.received(C, request(b"Content-Length: 8", start=POST)).says(
            ClearTimer("head"), Send(C, REFUSED), refused_record(play),
            SetTimer("head", play.now + 10.0),
        )
        if end == "head":
            play.timed_out("head").says(*play.last_word())
            play.leaves()
        elif end == "FIN":
            play.finished(C).says(Close(C))
            play.ends()
        else:
            play.lost(C).says_nothing()


# --- Pipelining ---------------------------------------------------------------------------------


def test_pipelined_requests_are_served_one_a_turn(begin: Stage) -> None:
    """In order (RFC 9112 9.3.2); the client is held meanwhile."""
    play = begin()
    pipeline(play, request(), request(start=b"HEAD / HTTP/1.1"))
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN),
        page_record(play), Hold(C), SetTimer("next", play.now),
    )
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, PAGE_HEAD),
        page_record(play, method="HEAD"), SetTimer("idle", play.now + 60.0),
    )
    assert play.wires[C].reading
    play.finished(C).says(Close(C))
    play.ends()


def test_a_part_of_a_head_may_wait(begin: Stage) -> None:
    """The rest of it is read on."""
    play = begin()
    pipeline(play, request()[:12])
    play.timed_out("next").says(Read(C), SetTimer("head", play.now + 10.0))
    play.wait(2.0)
    play.received(C, request()[12:]).says(
        ClearTimer("head"), Send(C, SHOWN),
        page_record(play, started=START, phases=(("head", 2.0),)),
        SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


def test_content_may_wait(begin: Stage) -> None:
    """A part of it; the rest is read on, within the head's time."""
    play = begin()
    pipeline(play, request(b"Content-Length: 3", start=POST), b"12")
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, REFUSED),
        refused_record(play), SetTimer("head", play.now + 10.0),
    )
    assert play.state is State.EXCHANGE
    play.received(C, b"3").says(ClearTimer("head"), SetTimer("idle", play.now + 60.0))
    play.finished(C).says(Close(C))
    play.ends()


def test_what_was_read_before_it_was_held_waits_its_turn(begin: Stage) -> None:
    """Else the two halves of a request would be put together in the wrong order."""
    play = begin()
    pipeline(play, b"HEAD / HTTP/1.1\r\n")
    play.received(C, b"Host: a.test\r\n", held=True).says_nothing()
    play.received(C, b"\r\n" + request(), held=True).says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, PAGE_HEAD),
        page_record(play, method="HEAD"), Hold(C), SetTimer("next", play.now),
    )
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN),
        page_record(play), SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


def test_a_fin_behind_pipelined_requests_waits_for_their_answers(begin: Stage) -> None:
    """Who sends all it has and half-closes gets all answers (RFC 9112 9.6), then the close."""
    play = begin()
    pipeline(play, request(), request())
    play.finished(C, held=True).says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN),
        page_record(play), Hold(C), SetTimer("next", play.now),
    )
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN),
        page_record(play), SetTimer("idle", play.now + 60.0), Close(C),
    )
    play.ends()


def test_a_fin_behind_half_a_request_ends_it(begin: Stage) -> None:
    """As it would have without the requests before it."""
    play = begin()
    pipeline(play, b"GET / HT")
    play.finished(C, held=True).says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0),
        play.record(blame=Blame.CLIENT, detail="closed inside a head", phase="head",
                    phases=(("head", 0.0),)),
        Close(C),
    )
    play.ends()


def test_a_fin_behind_content_that_is_not_whole_ends_it(begin: Stage) -> None:
    """The answer is sent all the same."""
    play = begin()
    pipeline(play, request(b"Content-Length: 3", start=POST), b"12")
    play.finished(C, held=True).says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, REFUSED),
        refused_record(play), SetTimer("head", play.now + 10.0), Close(C),
    )
    play.ends()


def test_a_fin_behind_an_upgrade_ends_it(begin: Stage) -> None:
    """A client that is gone before the answer: 499."""
    play = begin()
    pipeline(play, upgrade())
    play.finished(C, held=True).says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Connect(endpoint(1)),
        SetTimer("connect", play.now + 2.0), hole(), Reset(U), Close(C),
    )
    assert play.records[-1].status == 499
    play.ends()


def test_a_fin_behind_a_request_that_closes_is_not_awaited_again(begin: Stage) -> None:
    """Neither where the request is refused."""
    for data, answer in (
        (request(b"Connection: close"), SHOWN_LAST),
        (head(b"GET / HTTP/1.1"),
         refusal(b"400 Bad Request", "There must be exactly one Host field.")),
    ):
        play = begin()
        pipeline(play, data)
        play.finished(C, held=True).says_nothing()
        said = play.timed_out("next")
        said.says(Read(C), SetTimer("head", play.now + 10.0), *said.commands[2:])
        assert Send(C, answer) in said.commands
        assert said.commands[-1] == Close(C)
        play.ends()


# --- Clients that do not read -------------------------------------------------------------------


def test_a_client_that_does_not_read_gets_no_further_answer(begin: Stage) -> None:
    """It is held, and so are the requests in hand, until it has read what is queued."""
    play = begin()
    pipeline(play, request())
    play.clogged().says(Hold(C), SetTimer("write", play.now + 30.0))
    play.timed_out("next").says_nothing()
    play.received(C, request(), held=True).says_nothing()
    play.wait(29.0)
    play.cleared().says(ClearTimer("write"), SetTimer("next", play.now))
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN),
        page_record(play), Hold(C), SetTimer("next", play.now),
    )
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN),
        page_record(play), SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


def test_a_client_that_never_reads_is_cut(begin: Stage) -> None:
    """After write_timeout; it would be held for ever else, since held clients have no other."""
    play = begin()
    pipeline(play, request())
    play.clogged().says(Hold(C), SetTimer("write", play.now + 30.0))
    play.timed_out("next").says_nothing()
    play.timed_out("write").says(Reset(C))
    play.ends()


def test_a_client_that_is_slow_between_two_requests(begin: Stage) -> None:
    """It is read again when it has read; what came before it was held is not lost."""
    play = begin()
    show_page(play)
    play.clogged().says(Hold(C), SetTimer("write", play.now + 30.0))
    play.cleared().says(ClearTimer("write"), Read(C))
    play.clogged().says(Hold(C), SetTimer("write", play.now + 30.0))
    play.received(C, request(), held=True).says_nothing()
    play.cleared().says(ClearTimer("write"), SetTimer("next", play.now))
    play.timed_out("next").says(
        Read(C), ClearTimer("idle"), SetTimer("head", play.now + 10.0), ClearTimer("head"),
        Send(C, SHOWN), page_record(play), SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


def test_a_client_that_is_slow_while_its_content_comes(begin: Stage) -> None:
    """Held, read again; or cut. The route's write_timeout goes for its answers."""
    play = begin(route={"write_timeout": 4.0, "origins": None})
    post = request(b"Content-Length: 3", start=b"POST /chat HTTP/1.1")
    play.received(C, post).says(
        ClearTimer("head"), Send(C, hole()), hole(), SetTimer("head", play.now + 10.0)
    )
    play.clogged().says(Hold(C), SetTimer("write", play.now + 4.0))
    play.cleared().says(ClearTimer("write"), Read(C))
    play.clogged().says(Hold(C), SetTimer("write", play.now + 4.0))
    play.timed_out("write").says(Reset(C))
    play.ends()


def test_write_timeout_off_is_for_relays(begin: Stage) -> None:
    """A client with requests in hand that never reads has no other timer: it gets as long as
    between two requests."""
    play = begin(route={"write_timeout": 0.0})
    play.received(C, request(start=b"GET /chat HTTP/1.1") + b"GET").says(
        ClearTimer("head"), Send(C, hole()), hole(), Hold(C), SetTimer("next", play.now)
    )
    play.clogged().says(Hold(C), SetTimer("write", play.now + 60.0))
    play.timed_out("next").says_nothing()
    play.timed_out("write").says(Reset(C))
    play.ends()


def test_a_slow_client_in_the_middle_of_a_head_is_cut(begin: Stage) -> None:
    """With a record, since a request had begun."""
    play = begin()
    show_page(play)
    play.received(C, b"GET").says(ClearTimer("idle"), SetTimer("head", play.now + 10.0))
    play.clogged().says(Hold(C), SetTimer("write", play.now + 30.0))
    sentence = "The request took too long to arrive."
    play.timed_out("head").says(
        Send(C, refusal(b"408 Request Timeout", sentence)),
        play.record(started=START, status=408, blame=Blame.CLIENT, detail=sentence, phase="head",
                    phases=(("head", 10.0),)),
        ClearTimer("write"), *play.last_word(),
    )
    play.cleared().says_nothing()
    play.leaves()
    play = begin(listener=Listener(address=LISTENER.address, head_timeout=100.0))
    play.received(C, request() + b"GET").says(hole(), hole(), hole(), Hold(C), hole())
    play.timed_out("next").says(Read(C), SetTimer("head", play.now + 100.0))
    play.clogged().says(Hold(C), SetTimer("write", play.now + 30.0))
    play.timed_out("write").says(
        play.record(blame=Blame.CLIENT, detail=TOO_SLOW, phase="head", phases=(("head", 30.0),),
                    counts=play.cut),
        Reset(C),
    )
    play.ends()


# --- Drains -------------------------------------------------------------------------------------


def test_a_drain_ends_idle_connections(begin: Stage) -> None:
    """After the time that a request takes which is on its way, by half-closing."""
    play = begin()
    play.drains().says(SetTimer("idle", play.now + 1.0))
    play.wait(1.0)
    play.timed_out("idle").says(
        play.record(blame=Blame.GATEWAY, detail="drain", phase="head", phases=(("head", 1.0),)),
        ClearTimer("head"), *play.last_word(),
    )
    play.leaves()
    play = begin()
    show_page(play)
    play.drains().says(SetTimer("idle", play.now + 1.0))
    play.timed_out("idle").says(*play.last_word())
    play.leaves()


def test_a_drain_answers_what_was_sent_already(begin: Stage) -> None:
    """Whoever sent it could not know: unread in the kernel, it would be answered by an RST."""
    play = begin()
    play.drains().says(SetTimer("idle", play.now + 1.0))
    play.received(C, request()[:4]).says(ClearTimer("idle"))
    play.received(C, request()[4:]).says(
        ClearTimer("head"), Send(C, SHOWN_CLOSING), page_record(play), *play.last_word(),
    )
    play.leaves()
    play = begin()
    show_page(play)
    play.drains().says(SetTimer("idle", play.now + 1.0))
    play.received(C, request()).says(
        ClearTimer("idle"), SetTimer("head", play.now + 10.0), ClearTimer("head"),
        Send(C, SHOWN_CLOSING), page_record(play), *play.last_word(),
    )
    play.leaves()


def test_a_drain_lets_a_head_come_and_closes_behind_its_answer(begin: Stage) -> None:
    """The answer says so."""
    play = begin()
    play.received(C, b"GET ").says_nothing()
    play.drains().says_nothing()
    play.received(C, request()[4:]).says(
        ClearTimer("head"), Send(C, SHOWN_CLOSING), page_record(play), *play.last_word()
    )
    play.leaves()


def test_a_drain_answers_the_requests_in_hand(begin: Stage) -> None:
    """The next of them; its answer closes, and those behind it were not begun."""
    play = begin()
    pipeline(play, request(), request())
    play.drains().says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", play.now + 10.0), ClearTimer("head"), Send(C, SHOWN_CLOSING),
        page_record(play), *play.last_word(),
    )
    play.leaves()


def test_a_drain_ends_an_exchange_behind_its_content(begin: Stage) -> None:
    """Its answer was out before, without "close"; another request may be on its way, but the
    connection does not wait for one until the drain cuts it."""
    play = begin()
    play.received(C, request(b"Content-Length: 3", start=POST)).says(
        ClearTimer("head"), Send(C, REFUSED), refused_record(play),
        SetTimer("head", play.now + 10.0),
    )
    play.drains().says_nothing()
    play.received(C, b"123").says(ClearTimer("head"), SetTimer("idle", play.now + 1.0))
    play.timed_out("idle").says(*play.last_word())
    play.leaves()


def test_a_kill_cuts(begin: Stage) -> None:
    """Who has begun a request is told; what was answered has its record already."""
    play = begin()
    pipeline(play, request())
    play.is_killed().says(
        Send(C, GOING),
        play.record(status=503, blame=Blame.GATEWAY, detail="The gateway is going away.",
                    phase="head", phases=(("head", 0.0),)),
        ClearTimer("next"), *play.last_word(), Close(C),
    )
    assert play.session.rest == b""
    play.ends()
    play = begin()
    play.received(C, request(b"Content-Length: 3", start=POST)).says(
        ClearTimer("head"), Send(C, REFUSED), refused_record(play),
        SetTimer("head", play.now + 10.0),
    )
    play.is_killed().says(Close(C))
    play.ends()
    play = begin()
    play.received(C, b"GET").says_nothing()
    play.is_killed().says(
        Send(C, GOING),
        play.record(status=503, blame=Blame.GATEWAY, detail="The gateway is going away.",
                    phase="head", phases=(("head", 0.0),)),
        ClearTimer("head"), *play.last_word(), Close(C),
    )
    play.ends()
    play = begin()
    play.is_killed().says(play.record(phase="head", phases=(("head", 0.0),)), Close(C))
    play.ends()
