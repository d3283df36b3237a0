"""Conversations about requests: how heads are read, and which refusal an upgrade gets.

The order of judgement is 408, 414, 431; 400, 501, 505; 400 for content; 404; 405; 426; 400 for the
key; 403; 429; 503. Each refusal is compared to the byte, with its record.
"""

from http import HTTPStatus
from typing import Any

import pytest

from gateway.errors import Blame, Fault
from gateway.events import Address as At
from gateway.events import ClearTimer, Close, Connect, Read, Reset, Send, SetTimer
from gateway.protocol.life import State
from gateway.table import Listener
from protocol.playbook import (
    KEY,
    LISTENER,
    MAX_SESSIONS,
    NUMBER,
    PAGE,
    PEER,
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

GET = b"GET /chat HTTP/1.1"
UPGRADING = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13")
ASKED: dict[str, Any] = {"method": "GET", "host": "a.test", "path": "/chat"}
ON_ROUTE = ASKED | {"route": "chat"}
LONG = b"x" * 9000
NO_KEY = "There must be exactly one Sec-WebSocket-Key of 16 bytes."
ONE_ADDRESS = "Too many sessions from this client's address."


def is_refused(
    play: Play, said: bytes, data: bytes, *, seconds: float = 5.0, **record: Any
) -> None:
    """These bytes get this answer and record; then the client leaves."""
    __tracebackhide__ = True
    # The timer stops before a whole head is judged, and after a broken one was answered.
    stop = (ClearTimer("head"),)
    before, after = (stop, ()) if "method" in record else ((), stop)
    play.received(C, data).says(
        *before, Send(C, said), play.record(blame=record.pop("blame", Blame.CLIENT), **record),
        *after, *play.last_word(seconds),
    )
    play.leaves()


def in_head(**fields: Any) -> dict[str, Any]:
    """What a record has that was written in the first moment of a session."""
    return {"phase": "head", "phases": (("head", 0.0),)} | fields


# --- How a head comes ---------------------------------------------------------------------------


def test_a_head_may_come_in_pieces(begin: Stage) -> None:
    """Nothing is said before it is whole; its time runs from accept on, and is not extended."""
    play = begin()
    data = upgrade()
    for at in range(len(data) - 1):
        play.received(C, data[at : at + 1]).says_nothing()
    play.wait(9.0)
    assert play.timers == {"head": START + 10.0}
    play.received(C, data[-1:]).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.lost(C).says(
        play.record(
            **ON_ROUTE, endpoint="10.0.0.1:9000", status=499, blame=Blame.CLIENT,
            detail="the client went before the answer", phase="connect",
            phases=(("head", 9.0), ("connect", 0.0)),
        ),
        Reset(U),
    )
    play.ends()


def test_a_client_that_says_nothing_is_told_408(begin: Stage) -> None:
    """After the listener's head_timeout, whether it had begun or not."""
    for begun in (b"", b"GET /chat HT"):
        play = begin(listener=Listener(address=LISTENER.address, head_timeout=3.0))
        if begun:
            play.received(C, begun).says_nothing()
        sentence = "The request took too long to arrive."
        play.timed_out("head").says(
            Send(C, refusal(b"408 Request Timeout", sentence)),
            play.record(status=408, blame=Blame.CLIENT, detail=sentence, phase="head",
                        phases=(("head", 3.0),)),
            *play.last_word(),
        )
        play.leaves()


def test_a_client_that_goes_before_its_head_is_whole_gets_a_record_alone(begin: Stage) -> None:
    """Nobody is left to answer."""
    for begun, detail in ((b"", "closed before a request"), (b"GET", "closed inside a head")):
        play = begin()
        if begun:
            play.received(C, begun).says_nothing()
        play.wait(0.5)
        play.finished(C).says(
            play.record(blame=Blame.CLIENT, detail=detail, phase="head", phases=(("head", 0.5),)),
            Close(C),
        )
        play.ends()


def test_a_client_that_is_lost_in_its_head_gets_a_record_alone(begin: Stage) -> None:
    """The record says what the kernel said."""
    play = begin()
    play.received(C, b"GET").says_nothing()
    play.lost(C, Fault.TIMED_OUT).says(
        play.record(**in_head(blame=Blame.CLIENT, detail="the client was lost: timed out"))
    )
    play.ends()


def test_a_client_on_a_unix_socket_has_no_address(begin: Stage) -> None:
    """Its records say so."""
    play = begin(peer=At())
    play.finished(C).says(
        play.record(**in_head(blame=Blame.CLIENT, detail="closed before a request")), Close(C)
    )
    assert play.records[0].client == play.records[0].peer == "unix"
    play.ends()


# --- Heads that are refused -----------------------------------------------------------------------

BROKEN = [
    (f"414 {HTTPStatus(414).phrase}", b"GET /" + LONG, "The request line is too long."),
    (f"431 {HTTPStatus(431).phrase}", head(GET, b"X: " + LONG, b"Y: " + LONG),
     "The head is too large."),
    ("400 Bad Request", head(b"GET  /chat HTTP/1.1", b"Host: a.test"),
     "The request line is malformed."),
    ("400 Bad Request", head(GET, b"Host : a.test"), "There is a space before a field's colon."),
    ("400 Bad Request", head(GET), "There must be exactly one Host field."),
    ("400 Bad Request", upgrade(b"Content-Length: 1", b"Transfer-Encoding: chunked"),
     "Both Content-Length and Transfer-Encoding were sent."),
    ("501 Not Implemented", upgrade(b"Transfer-Encoding: gzip, chunked"),
     "Only the transfer coding chunked is known here."),
    ("505 HTTP Version Not Supported", head(b"GET /chat HTTP/2.0", b"Host: a.test"),
     "Only HTTP/1.1 and HTTP/1.0 are spoken here."),
]


@pytest.mark.parametrize(("status", "data", "sentence"), BROKEN)
def test_a_broken_head_is_refused(begin: Stage, status: str, data: bytes, sentence: str) -> None:
    """To the byte; it is the client's doing, and what comes behind is thrown away."""
    play = begin()
    is_refused(
        play, refusal(status.encode(), sentence), data,
        **in_head(status=int(status[:3]), detail=sentence),
    )


def test_what_comes_behind_a_refusal_is_thrown_away(begin: Stage) -> None:
    """It is read, so that no RST destroys the answer (RFC 9112 9.6), for a while."""
    play = begin()
    sentence = "There must be exactly one Host field."
    play.received(C, head(GET)).says(
        Send(C, refusal(b"400 Bad Request", sentence)),
        play.record(**in_head(status=400, blame=Blame.CLIENT, detail=sentence)),
        ClearTimer("head"), *play.last_word(),
    )
    play.received(C, upgrade()).says_nothing()
    play.clogged().says_nothing()
    play.cleared().says_nothing()
    play.timed_out("linger").says(Close(C))
    assert play.now == START + 5.0
    play.ends()


# --- The order of judgement -----------------------------------------------------------------------

WRONG_ORIGIN = b"Origin: https://evil.test"
JUDGED = [
    ("400 Bad Request", upgrade(b"Content-Length: 1", path=b"/none"), ASKED | {"path": "/none"},
     "A request for an upgrade has no content.", ()),
    ("400 Bad Request", upgrade(b"Transfer-Encoding: chunked"), ASKED,
     "A request for an upgrade has no content.", ()),
    ("400 Bad Request", upgrade(path=b"/../chat"), ASKED | {"path": "/../chat"},
     "The path has a dot segment.", ()),
    ("404 Not Found", upgrade(WRONG_ORIGIN, path=b"/none", key=b""), ASKED | {"path": "/none"},
     "No route takes this request.", ()),
    ("426 Upgrade Required", upgrade(WRONG_ORIGIN, version=b"", key=b""), ON_ROUTE,
     "Only version 13 of the protocol is spoken here.", UPGRADING),
    ("426 Upgrade Required", upgrade(version=b"Sec-WebSocket-Version: 8"), ON_ROUTE,
     "Only version 13 of the protocol is spoken here.", UPGRADING),
    ("400 Bad Request", upgrade(WRONG_ORIGIN, key=b""), ON_ROUTE, NO_KEY, ()),
    ("400 Bad Request", upgrade(b"Sec-WebSocket-Key: " + KEY), ON_ROUTE, NO_KEY, ()),
    ("400 Bad Request", upgrade(WRONG_ORIGIN, b"Sec-WebSocket-Protocol: a, a"), ON_ROUTE,
     "Sec-WebSocket-Protocol is malformed.", ()),
    ("403 Forbidden", upgrade(WRONG_ORIGIN), ON_ROUTE, "This origin may not connect here.", ()),
]


@pytest.mark.parametrize(("status", "data", "asked_for", "sentence", "fields"), JUDGED)
def test_the_first_rule_that_applies_decides(
    begin: Stage,
    status: str,
    data: bytes,
    asked_for: dict[str, Any],
    sentence: str,
    fields: tuple[bytes, ...],
) -> None:
    """Each of these requests is wrong in several ways, of which only the first is told. The limit
    of one session for a client is used up, too, and all endpoints are away."""
    play = begin(endpoints=0, route={"max_sessions_per_client": 1})
    assert play.desk.limits.enter("chat", 0, PEER, 0) is None
    is_refused(
        play, refusal(status.encode(), sentence, *fields), data,
        **in_head(status=int(status[:3]), detail=sentence, **asked_for),
    )
    play.desk.limits.leave("chat", PEER)


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"PUT"])
def test_another_method_is_refused_before_its_upgrade_is_looked_at(
    begin: Stage, method: bytes
) -> None:
    """405 with Allow; that is a plain exchange, which keeps the connection."""
    play = begin()
    sentence = "This method is not allowed here."
    answer = refusal(b"405 Method Not Allowed", sentence, b"Allow: GET", closes=False)
    if method == b"HEAD":
        answer = answer[: answer.index(b"\r\n\r\n") + 4]
    play.received(C, upgrade(method=method, version=b"", key=b"")).says(
        ClearTimer("head"), Send(C, answer),
        play.record(**in_head(
            **ON_ROUTE | {"method": method.decode()}, status=405, blame=Blame.CLIENT,
            detail=sentence,
        )),
        SetTimer("idle", play.now + 60.0),
    )
    play.finished(C).says(Close(C))
    play.ends()


NO_UPGRADES = [
    request(start=GET),
    upgrade(connection=b""),
    upgrade(protocol=b"Upgrade: h2c"),
    upgrade(connection=b"Connection: keep-alive"),
]


@pytest.mark.parametrize("data", NO_UPGRADES)
def test_no_upgrade_is_told_what_is_served(begin: Stage, data: bytes) -> None:
    """426 with what to upgrade to (RFC 9110 15.5.22), as a plain exchange."""
    play = begin()
    sentence = "Only WebSockets are served here."
    answer = refusal(b"426 Upgrade Required", sentence, *UPGRADING, closes=False)
    play.received(C, data).says(
        ClearTimer("head"), Send(C, answer),
        play.record(**in_head(**ON_ROUTE, status=426, blame=Blame.CLIENT, detail=sentence)),
        SetTimer("idle", play.now + 60.0),
    )
    play.timed_out("idle").says(*play.last_word())
    play.leaves()


def test_http_1_0_has_no_upgrade(begin: Stage) -> None:
    """RFC 9110 7.8: 426, and the connection closes."""
    play = begin()
    sentence = "Only WebSockets are served here."
    data = upgrade().replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = hole()
    play.received(C, data).says(
        ClearTimer("head"), Send(C, answer),
        play.record(**in_head(**ON_ROUTE, status=426, blame=Blame.CLIENT, detail=sentence)),
        *play.last_word(),
    )
    assert b"\r\nConnection: close\r\nConnection: upgrade\r\n" in answer.value
    play.leaves()


# --- Limits ---------------------------------------------------------------------------------------

FULL = [
    ({"max_sessions_per_client": 1}, "429 Too Many Requests", ONE_ADDRESS, Blame.CLIENT),
    ({"max_sessions_per_client": 1, "max_sessions": 1}, "429 Too Many Requests", ONE_ADDRESS,
     Blame.CLIENT),
    ({"max_sessions": 1}, "503 Service Unavailable", "Too many sessions on this route.",
     Blame.GATEWAY),
]


@pytest.mark.parametrize(("route", "status", "sentence", "blame"), FULL)
def test_above_a_limit_the_client_is_told_when_to_come_again(
    begin: Stage, route: dict[str, Any], status: str, sentence: str, blame: Blame
) -> None:
    """429 where it can help it, and first; 503 else; both with Retry-After."""
    one = begin(route=route)
    one.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", one.now + 2.0)
    )
    two = begin(desk=one.desk)
    is_refused(
        two, refusal(status.encode(), sentence, b"Retry-After: 1"), upgrade(),
        **in_head(**ON_ROUTE, status=int(status[:3]), blame=blame, detail=sentence),
    )
    one.finished(C).says(hole(), Reset(U), Close(C))
    one.ends()
    three = begin(desk=one.desk)          # there is room again
    three.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", three.now + 2.0)
    )
    three.lost(C).says(hole(), Reset(U))


def test_above_the_limit_of_the_process_it_is_503(begin: Stage) -> None:
    """Whatever the route lets in."""
    first = begin()
    for number in range(MAX_SESSIONS):
        assert first.desk.limits.enter(f"other {number}", 0, PEER, 0) is None
    sentence = "Too many sessions on this gateway."
    is_refused(
        first, refusal(b"503 Service Unavailable", sentence, b"Retry-After: 1"), upgrade(),
        **in_head(**ON_ROUTE, status=503, blame=Blame.GATEWAY, detail=sentence),
    )
    for number in range(MAX_SESSIONS):
        first.desk.limits.leave(f"other {number}", PEER)


def test_while_the_gateway_drains_nothing_begins(begin: Stage) -> None:
    """An upgrade whose head was under way is told 503."""
    play = begin()
    play.received(C, upgrade()[:-1]).says_nothing()
    play.drains().says_nothing()
    sentence = "The gateway is going away."
    is_refused(
        play, refusal(b"503 Service Unavailable", sentence, b"Retry-After: 1"), upgrade()[-1:],
        **in_head(**ON_ROUTE, status=503, blame=Blame.GATEWAY, detail=sentence),
    )


def test_the_client_is_who_a_trusted_proxy_says(begin: Stage) -> None:
    """Its limit and its records are its own; the next request's on that connection are not."""
    play = begin(trusted="192.0.2.0/24", route={"max_sessions_per_client": 1})
    other = At(host="198.51.100.9")
    assert play.desk.limits.enter("chat", 0, other, 0) is None
    play.received(C, request(b"X-Forwarded-For: 198.51.100.9")).says(
        ClearTimer("head"), Send(C, hole()), hole(),
        SetTimer("idle", play.now + 60.0),
    )
    assert (play.records[0].client, play.records[0].peer) == ("198.51.100.9", "192.0.2.7")
    play.received(C, b"GET").says(ClearTimer("idle"), SetTimer("head", play.now + 10.0))
    play.finished(C).says(
        play.record(**in_head(blame=Blame.CLIENT, detail="closed inside a head")), Close(C)
    )
    again = begin(desk=play.desk)
    again.received(C, upgrade(b"X-Forwarded-For: 198.51.100.9")).says(
        ClearTimer("head"), Send(C, refusal(b"429 Too Many Requests", ONE_ADDRESS,
                                            b"Retry-After: 1")),
        again.record(**in_head(
            **ON_ROUTE, client="198.51.100.9", status=429, blame=Blame.CLIENT, detail=ONE_ADDRESS
        )),
        *again.last_word(),
    )
    again.leaves()
    play.ends()
    play.desk.limits.leave("chat", other)


def test_a_route_sets_how_long_its_refusals_linger(begin: Stage) -> None:
    """close_timeout; where no route was found, five seconds."""
    play = begin(route={"close_timeout": 2.0})
    is_refused(
        play, refusal(b"403 Forbidden", "This origin may not connect here."),
        upgrade(WRONG_ORIGIN), seconds=2.0,
        **in_head(**ON_ROUTE, status=403, detail="This origin may not connect here."),
    )


def test_the_page_is_shown(begin: Stage) -> None:
    """With what a page of our own needs, and no more; also to who asks for an upgrade there."""
    fields = (
        b"Content-Type: text/html; charset=utf-8", b"Cache-Control: no-store",
        b"X-Content-Type-Options: nosniff", b"Referrer-Policy: no-referrer",
    )
    page = {"method": "GET", "host": "a.test", "path": "/", "route": "page", "status": 200}
    for data, closes in ((request(), False), (upgrade(path=b"/"), True)):
        play = begin()
        more = (b"Connection: close",) if closes else ()
        answer = head(b"HTTP/1.1 200 OK", *fields, *more, b"Content-Length: %d" % len(PAGE)) + PAGE
        said = play.received(C, data)
        after = play.last_word() if closes else (SetTimer("idle", play.now + 60.0),)
        said.says(ClearTimer("head"), Send(C, answer), play.record(**in_head(**page)), *after)
        assert (play.state is State.LINGERING) is closes
        play.finished(C).says(Close(C))
        play.ends()


def test_every_refusal_names_the_session(begin: Stage) -> None:
    """And every record, so that the one is found by the other."""
    play = begin()
    said = play.timed_out("head")
    sent = said.commands[0]
    assert isinstance(sent, Send)
    assert f"\nSession {NUMBER}\n".encode() in sent.data
    said.says(Send(C, hole()), hole(), *play.last_word())
    assert play.records[0].session == NUMBER
    assert Read(C) in said.commands
    play.leaves()
