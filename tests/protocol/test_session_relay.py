"""Conversations about relays: how they begin toward each kind of upstream, how they end."""

from typing import Any

import pytest

from gateway.errors import Blame
from gateway.events import (
    Address,
    Cause,
    ClearTimer,
    Connect,
    End,
    LegCounts,
    Read,
    Relay,
    RelayRules,
    Send,
    SetTimer,
    Side,
)
from gateway.protocol.life import State
from protocol.playbook import (
    ACCEPT,
    OUR_ACCEPT,
    C,
    Play,
    Stage,
    U,
    accepted,
    asked,
    endpoint,
    hole,
    upgrade,
)

COUNTS = (LegCounts(bytes_in=9, messages=1), LegCounts(bytes_in=7, close_received=1000))
RULES: dict[str, Any] = {
    "max_message": 1, "max_frame": 2, "max_queue": 3, "idle_timeout": 4.0, "write_timeout": 5.0,
    "close_timeout": 6.0, "session_timeout": 7.0, "session_code": 4001, "heartbeat": 8.0,
    "heartbeat_timeout": 9.0, "drain_code": 1012, "drain_reason": "later",
}
ROUTED: dict[str, Any] = {
    "method": "GET", "host": "a.test", "path": "/chat", "route": "chat",
    "endpoint": "10.0.0.1:9000", "status": 101,
}


def relay(play: Play) -> None:
    """A WebSocket is open to the service, one second after the client came."""
    play.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.wait(0.25)
    play.connected().says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0)
    )
    play.wait(0.75)
    play.received(U, accepted()).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)), Relay(hole())
    )
    assert play.state is State.RELAYING


def phases(seconds: float) -> tuple[tuple[str, float], ...]:
    """Of such a session, `seconds` after the relay began."""
    return ("head", 0.0), ("connect", 0.25), ("ask", 0.75), ("relay", seconds)


# --- How they begin -----------------------------------------------------------------------------


def test_a_relay_obeys_its_route(begin: Stage) -> None:
    """Every rule of it."""
    play = begin(route=RULES)
    play.received(C, upgrade()).says(ClearTimer("head"), hole(), hole())
    play.connected().says(ClearTimer("connect"), hole(), Read(U), hole())
    play.received(U, accepted()).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)),
        Relay(RelayRules(raw=False, deflate=False, **RULES)),
    )
    play.relay_ended(Cause.LOST, C).says(hole())
    play.ends()


@pytest.mark.parametrize("frames", ["binary", "text"])
def test_a_tcp_upstream_is_asked_nothing(begin: Stage, frames: str) -> None:
    """The gateway is the endpoint: it answers the handshake as soon as it is connected, and the
    first bytes of the client go up in the relay."""
    play = begin(route={"frames": frames, "origins": None})
    offers = b"Sec-WebSocket-Protocol: soap, mqtt"
    deflate = b"Sec-WebSocket-Extensions: permessage-deflate"
    play.received(C, upgrade(offers, deflate, path=b"/raw") + b"early").says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.wait(0.25)
    relayed = hole()
    play.connected().says(
        ClearTimer("connect"),
        Send(C, accepted(b"Sec-WebSocket-Protocol: mqtt", accept=ACCEPT)),
        Relay(relayed, b"early", b""),
    )
    rules = relayed.value
    assert (rules.raw, rules.raw_text, rules.deflate) == (True, frames == "text", False)
    play.wait(1.0)
    play.relay_ended(Cause.FINISHED, U, "the upstream finished", COUNTS).says(play.record(
        **ROUTED | {"path": "/raw", "route": "raw"}, subprotocol="mqtt", cause="finished",
        blame=Blame.UPSTREAM, detail="the upstream finished", counts=COUNTS, phase="relay",
        phases=(("head", 0.0), ("connect", 0.25), ("relay", 1.0)),
    ))
    play.ends()


def test_without_a_subprotocol_of_ours_none_is_chosen(begin: Stage) -> None:
    """RFC 6455 4.2.2: the client then decides."""
    play = begin()
    play.received(C, upgrade(b"Sec-WebSocket-Protocol: soap", path=b"/raw")).says(
        ClearTimer("head"), hole(), hole()
    )
    play.connected().says(
        ClearTimer("connect"), Send(C, accepted(accept=ACCEPT)), Relay(hole())
    )
    play.relay_ended(Cause.CLOSED, C).says(hole())
    assert play.records[0].subprotocol == ""
    play.ends()


def test_the_echo_is_an_upstream_like_others(begin: Stage) -> None:
    """But for its address; it is asked by a handshake."""
    play = begin()
    play.received(C, upgrade(path=b"/echo")).says(
        ClearTimer("head"), Connect(Address(builtin="echo")), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(
        ClearTimer("connect"), Send(U, asked(path=b"/echo")), Read(U),
        SetTimer("answer", play.now + 15.0),
    )
    play.received(U, accepted(accept=OUR_ACCEPT)).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)), Relay(hole())
    )
    play.relay_ended(Cause.CLOSED, C).says(hole())
    assert play.records[0].endpoint == "builtin:echo"
    play.ends()


def test_a_session_that_relays_has_dropped_what_it_needed_before(begin: Stage) -> None:
    """Head, reader, keys: an idle WebSocket keeps what its record needs, and little else."""
    play = begin()
    relay(play)
    session = play.session
    kept = (session.request, session.reader, session.exchange, session.accepted, session.rest)
    assert kept == (None, None, None, None, b"")
    play.relay_ended(Cause.IDLE).says(hole())
    play.ends()


# --- How they end -------------------------------------------------------------------------------

ENDS = [
    (Cause.CLOSED, C, Blame.CLIENT),
    (Cause.CLOSED, U, Blame.UPSTREAM),
    (Cause.LOST, U, Blame.UPSTREAM),
    (Cause.FRAMING, C, Blame.CLIENT),
    (Cause.SESSION_TIMEOUT, None, Blame.GATEWAY),
]


@pytest.mark.parametrize(("cause", "side", "blame"), ENDS)
def test_the_record_tells_how_it_ended(
    begin: Stage, cause: Cause, side: Side | None, blame: Blame
) -> None:
    """Cause, whose doing, what exactly, the counts of both legs, the time in each phase."""
    play = begin()
    relay(play)
    assert (play.desk.limits.sessions, play.desk.pools["app"].endpoints[0].active) == (1, 1)
    play.wait(60.0)
    play.relay_ended(cause, side, "as it was", COUNTS).says(play.record(
        **ROUTED, cause=cause.value, blame=blame, detail="as it was", counts=COUNTS,
        phase="relay", phases=phases(60.0),
    ))
    # Its place is free at once: the links are closed already.
    assert (play.desk.limits.sessions, play.desk.pools["app"].endpoints[0].active) == (0, 0)
    play.ends()


def test_the_links_may_close_in_any_order(begin: Stage) -> None:
    """The session is over with its client's."""
    play = begin()
    relay(play)
    play.relay_ended(Cause.CLOSED, C).says(hole())
    play.closed(U).says_nothing()
    assert not play.session.over
    play.ends()


def test_a_drain_tells_both_sides(begin: Stage) -> None:
    """And waits for `RelayEnded`; if that takes too long, the kill overrides."""
    play = begin()
    relay(play)
    play.wait(10.0)
    play.drains().says(End(Cause.DRAIN))
    play.wait(5.0)
    play.is_killed().says(End(Cause.KILLED))
    play.relay_ended(Cause.KILLED).says(play.record(
        **ROUTED, cause="killed", blame=Blame.GATEWAY, phase="relay", phases=phases(15.0)
    ))
    play.ends()
    play.drains().says_nothing()
    play.is_killed().says_nothing()


def test_one_session_is_dismissed(begin: Stage) -> None:
    """A relay is told the order's own code and reason."""
    play = begin()
    relay(play)
    play.is_dismissed(4001, "signed out").says(End(Cause.DISMISSED, 4001, "signed out"))
    play.relay_ended(Cause.DISMISSED).says(play.record(
        **ROUTED, cause="dismissed", blame=Blame.GATEWAY, phase="relay", phases=phases(0.0)
    ))
    play.ends()
    play.is_dismissed(4001, "").says_nothing()


def test_a_session_that_the_worker_gives_up_frees_its_place(begin: Stage) -> None:
    """A worker that caught a bug resets both links itself, and says `Closed` for the client's."""
    play = begin()
    relay(play)
    play.relayed = None
    play.wires[U].state = "gone"
    play.lost(C).says(play.record(
        **ROUTED, blame=Blame.CLIENT, detail="the client was lost: reset", phase="relay",
        phases=phases(0.0),
    ))
    play.ends()
