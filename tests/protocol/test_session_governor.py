"""Conversations where handshakes are over their rate: some wait for their turn, others are refused.

The rate is four a second, and one handshake has just passed: the next one's turn is a quarter of a
second later, less what may pass ahead of its time.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from gateway.errors import Blame
from gateway.events import ClearTimer, Close, Command, Connect, Hold, Read, Send, SetTimer
from gateway.governor import AHEAD
from gateway.protocol.asking import EARLY_MAX
from gateway.protocol.life import State
from protocol.playbook import (
    LISTENER,
    PAGE,
    START,
    C,
    Play,
    Stage,
    endpoint,
    hole,
    make_desk,
    refusal,
    request,
    upgrade,
)

ROUTED: dict[str, Any] = {"method": "GET", "host": "a.test", "path": "/chat", "route": "chat"}
RATE = 4.0
TURN = START + 1 / RATE - AHEAD
GOING = refusal(b"503 Service Unavailable", "The gateway is going away.", b"Retry-After: 1")
LISTENS = replace(LISTENER, handshakes=RATE)


def on_stage(begin: Stage, passed: int = 1, endpoints: int = 1) -> Play:
    """A client's turn comes behind so many others' on the route."""
    desk = make_desk({"handshakes": RATE}, endpoints)
    for _ in range(passed):
        assert desk.governor.turn(START, ("route chat", RATE)) is not None
    return begin(desk=desk)


def waiting(begin: Stage, endpoints: int = 1) -> Play:
    """A client that waits for its turn."""
    play = on_stage(begin, endpoints=endpoints)
    play.received(C, upgrade()).says(ClearTimer("head"), SetTimer("turn", TURN))
    assert play.state is State.WAITING
    assert play.desk.limits.sessions == 1, "a client that waits is counted"
    return play


def waited(play: Play, **fields: Any) -> Command:
    """The record of one that got no farther; the answer's fields come on top."""
    seconds = play.now - START
    return play.record(
        **ROUTED | fields, phase="wait", phases=(("head", 0.0), ("wait", seconds))
    )


def repeated(drawn: int, count: int) -> bytes:
    """Random bytes that are all the same."""
    return bytes([drawn] * count)


def goes(play: Play) -> None:
    """The client is lost while its upstream is connected, which ends the play."""
    play.lost(C).says(hole(), hole())
    play.ends()


def test_below_the_rate_nobody_waits(begin: Stage) -> None:
    play = on_stage(begin, passed=0)
    play.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", START + 2.0)
    )
    goes(play)


def test_over_the_rate_a_client_waits_for_its_turn(begin: Stage) -> None:
    """Nothing is done for it meanwhile; then it goes on as if it had just come."""
    play = waiting(begin)
    play.timed_out("turn").says(Connect(endpoint(1)), SetTimer("connect", TURN + 2.0))
    assert play.state is State.CONNECTING
    goes(play)
    assert play.records[0].phases[1] == ("wait", TURN - START)


def test_a_listener_has_a_rate_of_its_own(begin: Stage) -> None:
    """Over all its routes."""
    desk = make_desk({}, 1)
    name = f"listener {LISTENER.address}"
    assert desk.governor.turn(START, (name, RATE)) == START
    play = begin(desk=desk, listener=LISTENS)
    play.received(C, upgrade()).says(ClearTimer("head"), SetTimer("turn", TURN))
    play.lost(C).says(waited(play, status=499, blame=Blame.CLIENT,
                             detail="the client went before the answer"))
    play.ends()


def test_one_that_would_wait_too_long_is_told_to_come_later(begin: Stage) -> None:
    """Not all at the same time: the seconds are drawn. The desk's random bytes begin with 0."""
    play = on_stage(begin, passed=5)
    sentence = "Too many handshakes at once."
    play.received(C, upgrade()).says(
        ClearTimer("head"),
        Send(C, refusal(b"503 Service Unavailable", sentence, b"Retry-After: 1")),
        play.record(
            **ROUTED, status=503, blame=Blame.GATEWAY, detail=sentence, phase="head",
            phases=(("head", 0.0),),
        ),
        *play.last_word(),
    )
    assert play.desk.limits.sessions == 0
    play.leaves()


def test_later_is_within_five_seconds(begin: Stage) -> None:
    seen = set()
    for drawn in range(10):
        play = on_stage(begin, passed=5)
        play.desk.random_bytes = partial(repeated, drawn)
        play.received(C, upgrade()).says(hole(), hole(), hole(), hole(), hole(), hole())
        seen.add(play.wires[C].sent.partition(b"Retry-After: ")[2][:1])
        play.leaves()
    assert seen == {b"1", b"2", b"3", b"4", b"5"}


def test_what_is_no_handshake_has_no_turn(begin: Stage) -> None:
    """The page is shown, and a request without an upgrade refused, at any rate."""
    desk = make_desk({"handshakes": RATE}, 1)
    for _ in range(5):
        desk.governor.turn(START, ("route chat", RATE), (f"listener {LISTENER.address}", RATE))
    play = begin(desk=desk, listener=LISTENS)
    play.received(C, request()).says(ClearTimer("head"), hole(), hole(), hole())
    assert PAGE in play.wires[C].sent
    play.finished(C).says(Close(C))
    play.ends()


def test_early_bytes_wait_too_and_are_bounded(begin: Stage) -> None:
    play = waiting(begin)
    play.received(C, b"x" * 100).says_nothing()
    play.received(C, b"x" * EARLY_MAX).says(Hold(C))
    play.timed_out("turn").says(Connect(endpoint(1)), SetTimer("connect", TURN + 2.0))
    goes(play)


def test_a_client_that_leaves_is_recorded_as_such(begin: Stage) -> None:
    play = waiting(begin)
    play.wait(0.125)
    play.finished(C).says(
        waited(play, status=499, blame=Blame.CLIENT, detail="the client went before the answer"),
        Close(C),
    )
    play.ends()


def test_a_client_that_is_lost_likewise(begin: Stage) -> None:
    play = waiting(begin)
    play.wait(0.125)
    play.lost(C).says(
        waited(play, status=499, blame=Blame.CLIENT, detail="the client went before the answer")
    )
    play.ends()


def test_when_its_turn_comes_there_may_be_nothing_to_connect(begin: Stage) -> None:
    play = waiting(begin, endpoints=0)
    said = play.timed_out("turn")
    said.says(
        Send(C, refusal(b"503 Service Unavailable", "This service has no address now.")),
        waited(play, status=503, blame=Blame.OPERATOR, detail="no address is known of "),
        *play.last_word(),
    )
    play.leaves()


def test_a_drain_refuses_who_waits(begin: Stage) -> None:
    play = waiting(begin)
    play.drains().says(
        Send(C, GOING),
        waited(play, status=503, blame=Blame.GATEWAY, detail="The gateway is going away."),
        ClearTimer("turn"), *play.last_word(),
    )
    play.leaves()


def test_a_kill_tells_and_cuts(begin: Stage) -> None:
    play = waiting(begin)
    play.is_killed().says(
        Send(C, GOING),
        waited(play, status=503, blame=Blame.GATEWAY, detail="The gateway is going away."),
        ClearTimer("turn"), *play.last_word(), Close(C),
    )
    play.ends()


def test_a_pipelined_upgrade_waits_likewise(begin: Stage) -> None:
    """It came behind a request for the page."""
    play = on_stage(begin)
    play.received(C, request() + upgrade()).says(
        ClearTimer("head"), hole(), hole(), Hold(C), SetTimer("next", START)
    )
    play.timed_out("next").says(
        Read(C), SetTimer("head", START + 10.0), ClearTimer("head"), SetTimer("turn", TURN)
    )
    play.timed_out("turn").says(Connect(endpoint(1)), SetTimer("connect", TURN + 2.0))
    goes(play)


def test_an_upgrade_and_its_end_at_once(begin: Stage) -> None:
    """The client's FIN came behind the upgrade that waited its turn behind the page."""
    play = on_stage(begin)
    play.received(C, request() + upgrade()).says(
        ClearTimer("head"), hole(), hole(), Hold(C), SetTimer("next", START)
    )
    play.finished(C, held=True).says_nothing()
    play.timed_out("next").says(
        Read(C), SetTimer("head", START + 10.0), ClearTimer("head"), SetTimer("turn", TURN),
        waited(play, status=499, blame=Blame.CLIENT, detail="the client went before the answer"),
        Close(C),
    )
    play.ends()
