"""The door: what is refused there, to the byte, and what is left to a session."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import Blame
from gateway.events import CLIENT, Accepted, AccessRecord, Address, Close, Record
from gateway.protocol.desk import Desk
from gateway.protocol.door import TOO_MANY, turn_away
from protocol.playbook import (
    LISTENER,
    NUMBER,
    START,
    make_desk,
    refusal,
    request,
    upgrade,
)

PLAYED = Accepted(START, 1, 1, Address(host="192.0.2.7", port=4242), LISTENER.address)
NOW = START + 0.125
RATE = 4.0


def flooded(**more: Any) -> Desk:
    """Somebody was refused on the route chat just now; the others are free."""
    desk = make_desk({"handshakes": RATE}, 1, **more)
    while desk.governor.turn(START, ("route chat", RATE)) is not None:
        pass
    desk.random_bytes = bytes
    return desk


def look(
    desk: Desk, data: bytes, now: float = NOW, accepted: Accepted = PLAYED
) -> tuple[Close, Record] | None:
    """What the door says of these first bytes."""
    return turn_away(desk, LISTENER, accepted, NUMBER, data, now)


def test_who_is_over_the_rate_is_told_so_with_the_end_of_the_connection() -> None:
    """The answer is that of a session, byte for byte, and the record, too."""
    answer = look(flooded(), upgrade(path=b"/chat?a=1"))
    assert answer == (
        Close(CLIENT, refusal(b"503 Service Unavailable", TOO_MANY, b"Retry-After: 1")),
        Record(AccessRecord(
            session=NUMBER, client=PLAYED.client.host, peer=PLAYED.client.host,
            listener=str(LISTENER.address), method="GET", host="a.test", path="/chat",
            query="a=1", route="chat", phase="head", status=503, blame=Blame.GATEWAY,
            detail=TOO_MANY, started=START, ended=NOW, phases=(("head", NOW - START),),
        )),
    )


@pytest.mark.parametrize(("drawn", "seconds"), [(0, 1), (4, 5), (5, 1), (255, 1)])
def test_they_are_told_to_come_back_at_different_times(drawn: int, seconds: int) -> None:
    desk = flooded()
    desk.random_bytes = lambda count: bytes([drawn] * count)
    answer = look(desk, upgrade())
    assert answer is not None
    assert b"\r\nRetry-After: %d\r\n" % seconds in answer[0].last


def test_the_rate_of_a_listener_counts_for_all_its_routes() -> None:
    desk = make_desk({}, 1)
    listener = replace(LISTENER, handshakes=RATE)
    while desk.governor.turn(START, (f"listener {listener.address}", RATE)) is not None:
        pass
    for path in (b"/chat", b"/raw", b"/echo"):
        assert turn_away(desk, listener, PLAYED, NUMBER, upgrade(path=path), NOW) is not None
    assert turn_away(desk, LISTENER, PLAYED, NUMBER, upgrade(), NOW) is None


@pytest.mark.parametrize("data", [
    upgrade()[:-1],
    upgrade() + b"x",
    upgrade() + upgrade(),
    request(start=b"GET /chat HTTP/1.1"),
    upgrade(path=b"/echo"),
    upgrade(path=b"/nowhere"),
    upgrade(path=b"/../chat"),
    upgrade(path=b"\xff"),
    upgrade(method=b"POST"),
    upgrade(b"Content-Length: 1"),
    upgrade(b"Transfer-Encoding: chunked"),
    upgrade(b"Host: b.test"),
    upgrade(protocol=b"Upgrade: h2c"),
    upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
    upgrade().replace(b"Host: a.test\r\n", b""),
    upgrade().replace(b"a.test", b"\xe4.test"),
    b"\r\n\r\n",
    b"\x16\x03\x01",
], ids=range(18))
def test_what_is_not_plainly_such_a_request_is_left_to_a_session(data: bytes) -> None:
    assert look(flooded(), data) is None


def test_whose_turn_is_near_is_left_to_a_session() -> None:
    """And uses up no turn here."""
    desk = flooded()
    later = START + 2.0
    assert look(desk, upgrade(), later) is None
    assert desk.governor.turn(later, ("route chat", RATE)) == later


def test_the_record_names_whom_a_trusted_proxy_speaks_for() -> None:
    desk = flooded(trusted=f"{PLAYED.client.host}/32")
    answer = look(desk, upgrade(b"X-Forwarded-For: 198.51.100.7"))
    assert answer is not None
    record = answer[1].record
    assert (record.client, record.peer) == ("198.51.100.7", PLAYED.client.host)
