"""The table of transitions: it is what sessions do, no more and no less.

The conversations of the other files are played again here, and every way of the table must have
been gone. Then thousands of plays in which chance decides what an engine reports next.
"""

import importlib
import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway import events
from gateway.errors import Fault, Handshake
from gateway.events import Cause, Side
from gateway.protocol.life import State
from gateway.protocol.session import ALWAYS, ON_DRAIN, ON_KILL, TRANSITIONS
from gateway.table import Listener
from protocol.playbook import (
    LISTENER,
    OUTWARD,
    SECURED,
    WENT,
    WENT_ALWAYS,
    C,
    Said,
    Stage,
    U,
    accepted,
    head,
    request,
    upgrade,
    way_name,
)

PLAYS = 3000
STEPS = 40


# --- What the conversations show ----------------------------------------------------------------


def conversations() -> Iterator[Callable[[Stage], None]]:
    """Each test of the other files, with each set of its parameters."""
    for path in sorted(Path(__file__).parent.glob("test_session*.py")):
        if path.name != Path(__file__).name:
            module = importlib.import_module(f"protocol.{path.stem}")
            for function in plays_of(module):
                yield from with_parameters(function)


def plays_of(module: ModuleType) -> list[Callable[..., None]]:
    """Those that play."""
    found = [one for name, one in vars(module).items() if name.startswith("test_")]
    return [one for one in found if "begin" in inspect.signature(one).parameters]


def with_parameters(function: Callable[..., None]) -> Iterator[Callable[[Stage], None]]:
    """As pytest does it, for each `parametrize` above a test."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    choices: list[list[dict[str, Any]]] = []
    for mark in marks:
        names, values = mark.args
        if isinstance(names, str):
            choices.append([{names: value} for value in values])
        else:
            choices.append([dict(zip(names, value, strict=True)) for value in values])
    for chosen in itertools.product(*choices):
        keywords = {name: value for one in chosen for name, value in one.items()}

        def play(begin: Stage, keywords: dict[str, Any] = keywords) -> None:
            function(begin, **keywords)

        yield play


def ways() -> set[tuple[State, str, State]]:
    """Every way of the tables."""
    found = {
        (state, way_name(side, event), to)
        for (state, side, event), way in TRANSITIONS.items()
        for to in way.to
    }
    for name, told in (("drain", ON_DRAIN), ("kill", ON_KILL)):
        found |= {(state, name, to) for state, way in told.items() for to in way.to}
    return found


def test_every_way_of_the_table_is_gone_in_a_conversation() -> None:
    """And none but those; a drain or kill that changes nothing is in no table."""
    WENT.clear()
    WENT_ALWAYS.clear()
    played = 0
    for conversation in conversations():
        stage = Stage()
        conversation(stage)
        stage.check()
        played += 1
    assert played > 100
    told = {way for way in WENT if way[1] in ("drain", "kill") and way[0] is way[2]}
    in_words = sorted(f"{one.name}, {what}: {two.name}" for one, what, two in ways() - WENT)
    assert in_words == [], "ways that nobody went"
    assert WENT - told <= ways()
    assert set(ALWAYS) == WENT_ALWAYS


def test_what_is_not_in_the_table_is_a_bug() -> None:
    """It is asserted, whatever it is: a session must not go on where it does not know the way."""
    play = Stage()()
    with pytest.raises(AssertionError, match="Connected of UPSTREAM in HEAD"):
        play.session.handle(U, events.Connected(play.now, U))
    with pytest.raises(AssertionError, match="RelayEnded of CLIENT in HEAD"):
        play.session.handle(C, events.RelayEnded(
            play.now, C, upstream=U, cause=Cause.CLOSED, side=None, detail="",
            counts=(events.LegCounts(), events.LegCounts()),
        ))


# --- What chance shows --------------------------------------------------------------------------

PAGE, POST = request(), request(b"Content-Length: 3", start=b"POST / HTTP/1.1")
CHAT, RAW = upgrade(), upgrade(path=b"/raw")
FORBIDDEN = head(b"HTTP/1.1 403 Forbidden", b"Content-Length: 3")
CHUNKED = head(b"HTTP/1.1 401 Unauthorized", b"Transfer-Encoding: chunked")
UNTIL_FIN = head(b"HTTP/1.1 500 Oh")
# What each side likes to say, and what it may say as well.
FROM_CLIENT = {
    False: [PAGE, POST, PAGE, CHAT, CHAT, RAW, upgrade(path=b"/echo"), b"abc"],
    True: [
        request(start=b"HEAD / HTTP/1.1"), request(b"Connection: close"),
        request(b"Transfer-Encoding: chunked", start=b"POST /x HTTP/1.1"), upgrade(key=b""),
        upgrade(path=b"/none"), upgrade(b"Content-Length: 3"), head(b"GET / HTTP/1.1"),
        b"3\r\nabc\r\n0\r\n\r\n", b"\x81\x81mask!", b"\r\n", b"x" * 70000,
    ],
}
FROM_UPSTREAM = {
    False: [accepted(), FORBIDDEN, CHUNKED, UNTIL_FIN, b"abc", b"3\r\nabc\r\n0\r\n\r\n"],
    True: [
        accepted(b"Sec-WebSocket-Protocol: no"), head(b"HTTP/1.1 100 Continue"),
        head(b"HTTP/1.1 103 Early Hints") * 5, b"3\r\nabc\r\n", b"\0", b"x" * 70000,
    ],
}
READ_MAX = 64 * 1024           # bytes that an engine reads at once
FAULTS = [Fault.REFUSED, Fault.RESET, Fault.NO_DESCRIPTORS, Fault.TIMED_OUT]


class Chance:
    """One play in which a die decides what an engine reports next."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self.dice = dice
        self.play = stage(
            endpoints=dice.randint(0, 3),
            route={
                "write_timeout": dice.choice([0.0, 4.0]), "origins": None,
                "max_sessions_per_client": dice.choice([0, 1]),
                "handshakes": 4.0,
            },
            listener=dice.choice([
                LISTENER, Listener(address=LISTENER.address, max_head=300), SECURED,
            ]),
            outward=dice.choice([None, None, OUTWARD]),
        )
        self.unread: list[bytes] = []
        for _ in range(dice.choice([0, 0, 1, 2, 5])):    # others who came just before
            for route in ("route chat", "route raw"):
                self.play.desk.governor.turn(self.play.now, (route, 4.0))

    def go(self) -> None:
        """Play to the end. What is said is obeyed, and the play's own asserts watch."""
        for _ in range(STEPS):
            if self.play.session.over:
                break
            self.look(self.dice.choice(list(self.choices()))())
            self.check_bounds()
        self.end()

    def choices(self) -> Iterator[Callable[[], Said]]:
        """All that may happen now, what is likely more than once."""
        play, dice = self.play, self.dice
        if dice.random() < 0.1:
            yield play.drains
        if dice.random() < 0.1:
            yield play.is_killed
        if play.timers and (dice.random() < 0.3 or {"next", "turn"} & set(play.timers)):
            yield self.timer
        if play.relayed is not None:
            yield lambda: play.relay_ended(dice.choice(list(Cause)), dice.choice([C, U, None]))
            return
        for side in (C, U):
            wire = play.wires[side]
            if wire.state == "closing":
                yield from [self.call(play.closed, side)] * 3
            if not wire.is_open:
                continue
            if wire.securing:
                yield from [self.call(play.secured, side)] * 3
                if dice.random() < 0.2:
                    yield self.call(play.lost, side, Fault.TLS, "Why.", Handshake.OTHER)
                continue
            # Held links still give what was read in the turn in which they were held.
            if not wire.finished and (wire.reading or dice.random() < 0.2):
                yield from [
                    self.call(play.received, side, self.data(side), held=not wire.reading)
                ] * 4
                if dice.random() < 0.3:
                    yield self.call(play.finished, side, held=not wire.reading)
            if dice.random() < 0.1:
                yield self.call(play.lost, side, dice.choice(FAULTS))
            if wire.clogged:
                yield self.call(play.cleared, side)
            elif wire.sent:
                yield self.call(play.clogged, side)
        if play.wires[U].state == "connecting":
            yield from self.of_connecting()

    def of_connecting(self) -> Iterator[Callable[[], Said]]:
        """What an upstream's link may come to."""
        play, dice = self.play, self.dice
        yield from [play.connected] * 3
        yield self.call(play.connect_failed, dice.choice(FAULTS))
        if dice.random() < 0.1:
            yield self.call(play.connect_lost, dice.choice(FAULTS))

    def data(self, side: Side) -> bytes:
        """What a side says now: a few pieces, perhaps cut."""
        dice = self.dice
        pieces = (FROM_CLIENT if side is C else FROM_UPSTREAM)[dice.random() < 0.2]
        data = b"".join(dice.choices(pieces, k=dice.choice([1, 1, 1, 2, 3])))
        if dice.random() < 0.15:
            data = data[: dice.randrange(1, len(data) + 1)]
        return data[:READ_MAX]

    def timer(self) -> Said:
        """The first timer that is due."""
        return self.play.timed_out(min(self.play.timers, key=self.play.timers.__getitem__))

    @staticmethod
    def call(act: Callable[..., Said], *arguments: Any, **keywords: Any) -> Callable[[], Said]:
        """To be done later."""
        return lambda: act(*arguments, **keywords)

    @staticmethod
    def look(said: Said) -> None:
        """Whatever it said."""
        said.looked_at = True

    def check_bounds(self) -> None:
        """What is counted is so while it is, and nobody waits without a timer that ends it."""
        play, session = self.play, self.play.session
        entered = session.state in (State.CONNECTING, State.ASKING, State.PASSING, State.RELAYING)
        limits = play.desk.limits
        assert limits.sessions == (entered or session.state is State.WAITING)
        assert sum(one.active for pool in play.desk.pools.values() for one in pool.endpoints) == (
            entered
        )
        waits = session.state not in (State.RELAYING, State.CLOSING, State.OVER)
        is_off = session.state is State.PASSING and session.write_time == 0.0
        assert play.timers or not waits or is_off

    def end(self) -> None:
        """The far ends go, and so does all that is left."""
        play = self.play
        if play.relayed is not None:
            self.look(play.relay_ended(Cause.KILLED))
        if play.wires[C].is_open:
            self.look(play.lost(C))
        play.ends()


def test_whatever_an_engine_reports_a_session_knows_its_way() -> None:
    """No bug is asserted, in the session or against its commands; it ends, and counts nothing."""
    WENT.clear()
    for seed in range(PLAYS):
        stage = Stage()
        chance = Chance(stage, random.Random(f"play {seed}"))
        try:
            chance.go()
            stage.check()
        except AssertionError:
            print(f"seed {seed}")
            print("\n".join(chance.play.story))
            raise
    assert len(ways() - WENT) < len(ways()) / 10, "chance should see nearly all"
