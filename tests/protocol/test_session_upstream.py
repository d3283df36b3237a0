"""Conversations on the way to an upstream's answer: connecting, early bytes, asking, the 101.

What comes behind a 101 is in test_session_relay.py, a refusal that is passed on in
test_session_pass.py.
"""

from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import Blame, Fault
from gateway.events import (
    Address,
    Cause,
    ClearTimer,
    Close,
    Command,
    Connect,
    Hold,
    Read,
    Relay,
    Reset,
    Send,
    SetTimer,
)
from gateway.protocol.asking import EARLY_MAX, INTERIM_MAX
from gateway.protocol.desk import rules_of
from gateway.protocol.life import State
from gateway.table import EndpointEntry
from gateway.upstreams import Endpoint
from protocol.playbook import (
    ACCEPT,
    C,
    Play,
    Stage,
    U,
    accepted,
    asked,
    endpoint,
    head,
    hole,
    refusal,
    upgrade,
)

ROUTED: dict[str, Any] = {"method": "GET", "host": "a.test", "path": "/chat", "route": "chat"}
NO_ROOM = refusal(
    b"503 Service Unavailable", "The gateway has no room for this request now.", b"Retry-After: 1"
)
UNREACHABLE = refusal(
    b"502 Bad Gateway", "The upstream could not be reached, or gave no usable answer."
)
TOO_LATE = refusal(b"504 Gateway Timeout", "The upstream did not answer in time.")
ANSWERS = {502: UNREACHABLE, 503: NO_ROOM, 504: TOO_LATE}
GOING = refusal(b"503 Service Unavailable", "The gateway is going away.", b"Retry-After: 1")


def connecting(play: Play, number: int = 1) -> tuple[Command, ...]:
    """An attempt with this endpoint begins."""
    return Connect(endpoint(number)), SetTimer("connect", play.now + 2.0)


def connect(play: Play, data: bytes | None = None) -> None:
    """An upgrade that is let in."""
    play.received(C, data or upgrade()).says(ClearTimer("head"), *connecting(play))


def ask(play: Play, seconds: float = 15.0) -> None:
    """As far as the gateway's own handshake."""
    connect(play)
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + seconds)
    )


def failed(
    play: Play, status: int, detail: str, *phases: tuple[str, float], timer: str = "",
    blame: Blame = Blame.UPSTREAM, resets: bool = False, number: int = 1, **more: Any,
) -> tuple[Command, ...]:
    """The client is told `status`, and the record why."""
    ends = (("head", 0.0), *phases)
    record = play.record(
        **ROUTED | {"endpoint": f"10.0.0.{number}:9000"} | more, status=status, blame=blame,
        detail=detail, phase=ends[-1][0], phases=ends,
    )
    return (
        *((Reset(U),) if resets else ()), Send(C, ANSWERS[status]), record,
        *((ClearTimer(timer),) if timer else ()), *play.last_word(),
    )


def pool(play: Play) -> list[Endpoint]:
    """The endpoints of the service."""
    return play.desk.pools["app"].endpoints


# --- Connecting -----------------------------------------------------------------------------------


def test_the_next_endpoint_is_tried(begin: Stage) -> None:
    """While no byte of the handshake is out; who failed rests, and the other's answer counts."""
    play = begin(endpoints=2)
    connect(play)
    play.wait(0.5)
    play.connect_failed(Fault.REFUSED).says(ClearTimer("connect"), *connecting(play, 2))
    assert [one.active for one in pool(play)] == [0, 1]
    assert [one.rests_until for one in pool(play)] == [play.now + 1.0, 0.0]
    play.wait(0.25)
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0)
    )
    play.lost(C).says(
        play.record(
            **ROUTED, endpoint="10.0.0.2:9000", status=499, blame=Blame.CLIENT,
            detail="the client went before the answer", phase="ask",
            phases=(("head", 0.0), ("connect", 0.75), ("ask", 0.0)),
        ),
        Reset(U),
    )
    play.ends()


CONNECT_FAULTS = [
    (Fault.REFUSED, 502), (Fault.RESET, 502), (Fault.UNREACHABLE, 502), (Fault.NOT_FOUND, 502),
    (Fault.NOT_PERMITTED, 502), (Fault.TIMED_OUT, 502),
]


@pytest.mark.parametrize(("fault", "status"), CONNECT_FAULTS)
def test_where_no_endpoint_can_be_had_it_is_502(
    begin: Stage, fault: Fault, status: int
) -> None:
    """After each was tried once. The record has the last one's fault; the client does not."""
    play = begin(endpoints=2)
    connect(play)
    play.connect_failed(Fault.REFUSED).says(ClearTimer("connect"), *connecting(play, 2))
    play.connect_failed(fault).says(
        ClearTimer("connect"),
        *failed(play, status, f"connect: {fault.value}", ("connect", 0.0), number=2),
    )
    assert [one.rest for one in pool(play)] == [1.0, 1.0]
    play.leaves()


def test_an_endpoint_that_does_not_accept_in_time_is_left(begin: Stage) -> None:
    """connect_timeout, for each of them anew; then 504."""
    play = begin(endpoints=2, route={"connect_timeout": 0.5})
    play.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 0.5)
    )
    play.timed_out("connect").says(
        Reset(U), Connect(endpoint(2)), SetTimer("connect", play.now + 0.5)
    )
    play.timed_out("connect").says(
        Reset(U), *failed(play, 504, "connect: connect_timeout", ("connect", 1.0), number=2)
    )
    assert [one.rest for one in pool(play)] == [1.0, 1.0]
    play.leaves()


def test_a_rest_doubles_and_ends_with_success(begin: Stage) -> None:
    """As the pool has it: the session tells it each time, at its own time."""
    desk = None
    for rest in (1.0, 2.0, 4.0):
        play = begin(desk=desk)
        desk = play.desk
        (only,) = pool(play)
        if only.rests_until > play.now:
            play.wait(only.rests_until - play.now)
        connect(play)
        play.connect_failed().says(ClearTimer("connect"), hole(), hole(), *play.last_word())
        assert (only.rest, only.rests_until) == (rest, play.now + rest)
        play.leaves()
    play = begin(desk=desk)
    connect(play)
    play.connected().says(ClearTimer("connect"), hole(), Read(U), hole())
    assert (only.rest, only.rests_until) == (0.0, 0.0)
    play.lost(C).says(hole(), Reset(U))


@pytest.mark.parametrize("fault", [Fault.NO_DESCRIPTORS, Fault.NO_MEMORY])
def test_what_we_lack_is_no_fault_of_the_endpoint(begin: Stage, fault: Fault) -> None:
    """503 at once: another endpoint would not help, and none is blamed or rests."""
    play = begin(endpoints=2)
    connect(play)
    play.connect_failed(fault).says(
        ClearTimer("connect"),
        *failed(play, 503, f"connect: {fault.value}", ("connect", 0.0), blame=Blame.GATEWAY),
    )
    assert [one.rest for one in pool(play)] == [0.0, 0.0]
    play.leaves()


def test_an_address_that_this_machine_cannot_reach_is_passed_over(begin: Stage) -> None:
    """"localhost" is ::1 as well, also where IPv6 is off: the other address serves."""
    play = begin(endpoints=2)
    connect(play)
    play.connect_failed(Fault.NO_ADDRESS).says(
        ClearTimer("connect"), Connect(pool(play)[1].address),
        SetTimer("connect", play.now + 2.0),
    )
    assert [one.rest for one in pool(play)] == [1.0, 0.0]
    play.connect_failed(Fault.NO_ADDRESS).says(
        ClearTimer("connect"),
        *failed(play, 503, "connect: no free address", ("connect", 0.0), number=2),
    )
    play.leaves()


def test_one_value_leads_to_one_endpoint(begin: Stage) -> None:
    """Of four, with `balance = "hash"`; thirty values do not all lead to the same one, and what
    failed is passed over."""
    play = begin(endpoints=4, hash_on="cookie:sid")
    found: list[list[Address]] = []
    for _ in range(2):
        found.append([])
        for user in range(30):
            one = begin(desk=play.desk)
            one.received(C, upgrade(b"Cookie: sid=user-%d" % user)).says(
                ClearTimer("head"), hole(), hole()
            )
            assert one.session.endpoint is not None
            found[-1].append(one.session.endpoint.address)
            one.lost(C).says(hole(), Reset(U))
    assert found[0] == found[1]
    assert len(set(found[0])) > 1
    play.received(C, upgrade(b"Cookie: sid=user-0")).says(
        ClearTimer("head"), Connect(found[0][0]), SetTimer("connect", play.now + 2.0)
    )
    second = hole()
    play.connect_failed().says(
        ClearTimer("connect"), Connect(second), SetTimer("connect", play.now + 2.0)
    )
    assert second.value != found[0][0]
    play.lost(C).says(hole(), Reset(U))


def test_an_upstream_without_endpoints_is_503(begin: Stage) -> None:
    """Its names did not resolve. Waiting will not help, and the operator is who can; the record
    has the name."""
    play = begin(endpoints=0)
    entry = EndpointEntry(url="ws://app.internal", host="app.internal", port=80)
    service = play.desk.pools["app"]
    service.upstream = replace(service.upstream, entries=(entry,))
    play.received(C, upgrade()).says(
        ClearTimer("head"),
        Send(C, refusal(b"503 Service Unavailable", "This service has no address now.")),
        play.record(
            **ROUTED, endpoint="", status=503, blame=Blame.OPERATOR,
            detail="no address is known of app.internal", phase="head", phases=(("head", 0.0),),
        ),
        *play.last_word(),
    )
    play.leaves()


def test_an_echo_that_goes_before_it_is_there_is_a_failed_connect(begin: Stage) -> None:
    """A pair is open at once, so it may be lost before `Connected` is said."""
    play = begin()
    play.received(C, upgrade(path=b"/echo")).says(
        ClearTimer("head"), Connect(Address(builtin="echo")), SetTimer("connect", play.now + 2.0)
    )
    play.connect_lost(Fault.RESET).says(
        ClearTimer("connect"),
        *failed(play, 502, "connect: reset", ("connect", 0.0), path="/echo", route="echo",
                endpoint="builtin:echo"),
    )
    play.leaves()
    play = begin(endpoints=2)
    connect(play)
    play.connect_lost(Fault.RESET).says(ClearTimer("connect"), *connecting(play, 2))
    play.lost(C).says(hole(), Reset(U))


def test_a_reload_takes_no_pool_from_who_connects(begin: Stage) -> None:
    """The upstream has gone from the table: this session still tries the endpoints it had."""
    play = begin(endpoints=2)
    connect(play)
    before, play.desk.pools = play.desk.pools, {}
    play.connect_failed().says(ClearTimer("connect"), *connecting(play, 2))
    play.connect_failed().says(
        ClearTimer("connect"), *failed(play, 502, "connect: refused", ("connect", 0.0), number=2)
    )
    play.leaves()
    play.desk.pools = before


# --- Early bytes ----------------------------------------------------------------------------------


def test_early_bytes_wait_for_the_relay(begin: Stage) -> None:
    """Those behind the head, those while it connects, those while it asks: in order."""
    play = begin()
    connect(play, upgrade() + b"\x81\x81")
    play.received(C, b"mask").says_nothing()
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0)
    )
    play.received(C, b"!").says_nothing()
    play.received(U, accepted() + b"\x81\x01x").says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)),
        Relay(hole(), b"\x81\x81mask!", b"\x81\x01x"),
    )
    play.is_killed().says(hole())
    end_relay(play)


def end_relay(play: Play) -> None:
    """The engine ends it, for a reason that is not what the test is about."""
    play.relay_ended(Cause.KILLED).says(hole())
    play.ends()


@pytest.mark.parametrize("phase", ["head", "connect", "ask"])
def test_a_client_that_says_too_much_too_early_is_held(begin: Stage, phase: str) -> None:
    """At 64 KiB; what the engine has read by then is kept all the same."""
    play = begin()
    early = b"x" * EARLY_MAX
    if phase == "head":
        play.received(C, upgrade() + early).says(ClearTimer("head"), Hold(C), *connecting(play))
    else:
        connect(play, upgrade() + early[:9])
        if phase == "connect":
            play.received(C, early[9:-1]).says_nothing()
            play.received(C, early[-1:]).says(Hold(C))
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0)
    )
    if phase == "ask":
        play.received(C, early[9:]).says(Hold(C))
    play.received(C, b"y", held=True).says(Hold(C))
    play.received(U, accepted()).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)), Relay(hole(), early + b"y", b"")
    )
    end_relay(play)


def test_a_held_client_is_read_again_behind_a_refusal(begin: Stage) -> None:
    """Else its FIN would never be seen."""
    play = begin()
    connect(play)
    play.received(C, b"x" * EARLY_MAX).says(Hold(C))
    play.connect_failed().says(
        ClearTimer("connect"), *failed(play, 502, "connect: refused", ("connect", 0.0))
    )
    assert play.wires[C].reading
    play.leaves()


# --- The client goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["connect", "ask"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_goes_ends_the_attempt(begin: Stage, phase: str, how: str) -> None:
    """The upstream's link is reset, the record says 499, and nobody else is blamed."""
    play = begin()
    if phase == "connect":
        connect(play)
        phases: tuple[tuple[str, float], ...] = (("head", 0.0), ("connect", 0.25))
    else:
        ask(play)
        phases = (("head", 0.0), ("connect", 0.0), ("ask", 0.25))
    play.wait(0.25)
    said = play.finished(C) if how == "FIN" else play.lost(C)
    said.says(
        play.record(
            **ROUTED, endpoint="10.0.0.1:9000", status=499, blame=Blame.CLIENT,
            detail="the client went before the answer", phase=phase, phases=phases,
        ),
        Reset(U), *((Close(C),) if how == "FIN" else ()),
    )
    assert [one.rest for one in pool(play)] == [0.0]
    play.ends()


# --- Asking ---------------------------------------------------------------------------------------


def test_an_upstream_that_does_not_answer_is_504(begin: Stage) -> None:
    """answer_timeout, which interim answers do not extend."""
    play = begin(route={"answer_timeout": 3.0})
    ask(play, 3.0)
    play.wait(2.0)
    hints = head(b"HTTP/1.1 103 Early Hints", b"Link: </x>")
    play.received(U, hints + b"HTTP/1.1 1").says_nothing()
    play.timed_out("answer").says(
        *failed(play, 504, "answer_timeout", ("connect", 0.0), ("ask", 3.0), resets=True)
    )
    play.leaves()


def test_an_upstream_that_is_slow_to_read_the_handshake(begin: Stage) -> None:
    """A handshake is small: nothing is to be held for it."""
    play = begin()
    ask(play)
    play.clogged(U).says_nothing()
    play.cleared(U).says_nothing()
    play.lost(C).says(hole(), Reset(U))


def test_an_upstream_that_goes_without_an_answer_is_502(begin: Stage) -> None:
    """FIN or RST; it accepted the connection, so it does not rest."""
    play = begin()
    ask(play)
    play.received(U, b"HTTP/1.1 10").says_nothing()
    play.finished(U).says(*failed(
        play, 502, "the upstream closed before its answer", ("connect", 0.0), ("ask", 0.0),
        timer="answer", resets=True,
    ))
    play.leaves()
    play = begin()
    ask(play)
    play.lost(U).says(*failed(
        play, 502, "the upstream was lost before its answer: reset", ("connect", 0.0),
        ("ask", 0.0), timer="answer",
    ))
    assert [one.rest for one in pool(play)] == [0.0]
    play.leaves()


def test_interim_answers_are_stepped_over(begin: Stage) -> None:
    """In pieces or together; but not for ever."""
    interim = head(b"HTTP/1.1 100 Continue")
    play = begin()
    ask(play)
    play.received(U, interim[:9]).says_nothing()
    play.received(U, interim[9:] + interim * (INTERIM_MAX - 1) + accepted()[:5]).says_nothing()
    play.received(U, accepted()[5:]).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)), Relay(hole())
    )
    end_relay(play)
    play = begin()
    ask(play)
    for _ in range(INTERIM_MAX):
        play.received(U, interim).says_nothing()
    play.received(U, interim + accepted()).says(*failed(
        play, 502, "too many interim answers", ("connect", 0.0), ("ask", 0.0), timer="answer",
        resets=True,
    ))
    play.leaves()


WRONG = [
    (b"\x16\x03\x01", ""),
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "upstream's head: The status line is malformed."),
    (head(b"HTTP/1.1 200 OK", b"X: " + b"x" * 33000), "upstream's head: The head is too large."),
    (accepted(accept=ACCEPT), "upstream's Sec-WebSocket-Accept is wrong, absent or doubled"),
    (accepted(b"Sec-WebSocket-Accept: " + ACCEPT),
     "upstream's Sec-WebSocket-Accept is wrong, absent or doubled"),
    (head(b"HTTP/1.1 101 Switching Protocols", b"Upgrade: h2c", b"Connection: Upgrade"),
     "upstream's 101 upgrades to something else"),
    (accepted(b"Sec-WebSocket-Protocol: chat"),
     "upstream chose a subprotocol that was not offered"),
    (accepted(b"Sec-WebSocket-Extensions: permessage-deflate"),
     "upstream chose an extension that was not offered"),
    (accepted(b"Content-Length: 0"), "upstream's 101 has content"),
    (head(b"HTTP/1.1 404 Not Found", b"Transfer-Encoding: chunked") + b"nonsense\r\n", ""),
]


@pytest.mark.parametrize(("data", "detail"), WRONG)
def test_a_wrong_answer_is_502(begin: Stage, data: bytes, detail: str) -> None:
    """Never a tunnel. What was wrong is in the record alone."""
    play = begin()
    ask(play)
    said = play.received(U, data)
    found = play.records[-1].detail
    assert found == detail or (not detail and found.startswith("upstream's "))
    said.says(*failed(
        play, 502, found, ("connect", 0.0), ("ask", 0.0), timer="answer", resets=True
    ))
    play.leaves()


def test_what_was_agreed_comes_back(begin: Stage) -> None:
    """Subprotocol and deflate as the upstream chose, its other fields; the relay knows of both."""
    play = begin()
    offers = (b"Sec-WebSocket-Protocol: a, chat", b"Sec-WebSocket-Extensions: permessage-deflate")
    connect(play, upgrade(*offers, b"Cookie: x=1"))
    play.connected().says(
        ClearTimer("connect"), Send(U, asked(*offers, b"Cookie: x=1")), Read(U),
        SetTimer("answer", play.now + 15.0),
    )
    chosen = (
        b"Sec-WebSocket-Protocol: chat", b"Sec-WebSocket-Extensions: permessage-deflate",
        b"Set-Cookie: y=2",
    )
    play.received(U, accepted(*chosen)).says(
        ClearTimer("answer"), Send(C, accepted(*chosen, accept=ACCEPT)),
        Relay(rules_of(play.desk.table.routes[1], raw=False, deflate=True)),
    )
    play.relay_ended(Cause.CLOSED, C, "the client closed").says(play.record(
        **ROUTED, endpoint="10.0.0.1:9000", status=101, subprotocol="chat", cause="closed",
        blame=Blame.CLIENT, detail="the client closed", phase="relay",
        phases=(("head", 0.0), ("connect", 0.0), ("ask", 0.0), ("relay", 0.0)),
    ))
    play.ends()


# --- Drains and kills -----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["connect", "ask"])
def test_a_drain_refuses_what_is_not_answered(begin: Stage, phase: str) -> None:
    """Nothing has been promised to the client, which may ask elsewhere at once."""
    play = begin()
    connect(play) if phase == "connect" else ask(play)
    phases = (("head", 0.0), ("connect", 0.0), ("ask", 0.0))[: 2 if phase == "connect" else 3]
    play.drains().says(
        Reset(U), Send(C, GOING),
        play.record(
            **ROUTED, endpoint="10.0.0.1:9000", status=503, blame=Blame.GATEWAY,
            detail="The gateway is going away.", phase=phase, phases=phases,
        ),
        ClearTimer("answer" if phase == "ask" else "connect"), *play.last_word(),
    )
    play.drains().says_nothing()
    play.is_killed().says(Close(C))
    play.is_killed().says_nothing()
    play.ends()


@pytest.mark.parametrize("phase", ["connect", "ask"])
def test_a_kill_tells_and_cuts(begin: Stage, phase: str) -> None:
    """Nothing has been promised; the client is told, and its end is not waited for."""
    play = begin()
    connect(play) if phase == "connect" else ask(play)
    phases = (("head", 0.0), ("connect", 0.0), ("ask", 0.0))[: 2 if phase == "connect" else 3]
    timer = "connect" if phase == "connect" else "answer"
    record = play.record(
        **ROUTED, endpoint="10.0.0.1:9000", status=503, blame=Blame.GATEWAY,
        detail="The gateway is going away.", phase=phase, phases=phases,
    )
    play.is_killed().says(
        Reset(U), Send(C, GOING), record, ClearTimer(timer), *play.last_word(), Close(C)
    )
    assert play.state is State.CLOSING
    play.ends()
