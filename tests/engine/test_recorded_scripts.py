"""The simulation's recorded scripts on real sockets, through every compiled driver.

A script is what one relay of a simulated life was told. Here its bytes and ends come from real far
ends, one fact after the other, each when the one before has been done; clocks are left out. What
both far ends got, how it ended and what was counted is what the rules in Python say of the same
facts. Facts behind a side's end, and what a broken stream leaves unread, are not told.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.rig import SocketRig, rig_of
from gateway.events import Cause, LegCounts, RelayEnded, RelayRules, Side
from gateway.leg import Fate
from gateway.relaying import Relay
from simulation import recorded
from simulation.lives import predictable
from simulation.recorded import Script

LIVES = range(500, 560)
SCRIPTS = 50
Counts = tuple[LegCounts, LegCounts]
TOLD = frozenset({"received", "finished", "end"})
KINDS = ["uvloop", "io_uring", "io_uring-completions"]


def timeless(rules: RelayRules) -> RelayRules:
    """The same rules, without what clocks decide."""
    return replace(rules, heartbeat=0.0, idle_timeout=0.0, write_timeout=0.0, session_timeout=0.0,
                   close_timeout=5.0)


class Reference:
    """The rules in Python, told one fact after the other; sockets take everything at once."""

    def __init__(self, rules: RelayRules):
        self.relay = Relay(rules, 0.0, recorded.counting)
        self.out = [bytearray(), bytearray()]

    def tell(self, verb: str, *arguments: object) -> None:
        """One fact, and all that it makes a driver send."""
        getattr(self.relay, verb)(*arguments, 0.0)
        moved = True
        while moved:
            moved = False
            for side in Side:
                leg = self.relay.legs[side]
                waiting = b"".join(leg.queue)
                if waiting:
                    moved = True
                    self.out[side] += waiting
                    self.relay.sent(side, len(waiting), 0.0)
        if self.relay.deadline <= 0.0:
            self.relay.tick(0.0)                       # KILLED: at once

    def reads(self, side: Side) -> bool:
        """This side is still heard."""
        leg = self.relay.legs[side]
        return leg.reading and leg.fate in (Fate.OPEN, Fate.FINISH)


def facts_of(script: Script) -> Iterator[tuple[str, list[object]]]:
    """What can be told to sockets: bytes, FIN, orders; without their times."""
    for verb, *arguments in script.facts:
        if verb in TOLD:
            yield verb, arguments[:-1]


class Replay:
    """A script, on one engine."""

    def __init__(self, rig: SocketRig, script: Script):
        self.rig = rig
        self.reference = Reference(timeless(script.rules))
        nears = [rig.inherited() for _ in Side]
        self.links = [rig.engine.adopt(near) for near, _ in nears]
        self.fars = [far for _, far in nears]
        rig.engine.relay(self.links[0], self.links[1], timeless(script.rules))

    def play(self, script: Script) -> None:
        """Every fact, each done before the next; then whatever still runs is killed."""
        for verb, arguments in facts_of(script):
            if self.reference.relay.over:
                return
            if verb == "end":
                cause = arguments[0]
                assert isinstance(cause, Cause)
                self.reference.tell(verb, cause)
                self.rig.engine.end(self.links[0], cause)
            else:
                self._say(verb, arguments)
            self.rig.until(self._is_done)
        if not self.reference.relay.over:
            self.reference.tell("end", Cause.KILLED)
            self.rig.engine.end(self.links[0], Cause.KILLED)
            self.rig.until(self._is_done)

    def _say(self, verb: str, arguments: list[object]) -> None:
        side = arguments[0]
        assert isinstance(side, Side)
        if not self.reference.reads(side):
            return
        self.reference.tell(verb, *arguments)
        far = self.fars[side]
        if verb == "finished":
            far.finish()
            self.rig.settle(0.002)             # a FIN may change nothing that can be seen
        else:
            data = arguments[1]
            assert isinstance(data, bytes)
            far.send(data)

    def _is_done(self) -> bool:
        """The driver has come as far as the rules."""
        relay = self.reference.relay
        if relay.over:
            return self.rig.has(self.links[0], RelayEnded)
        if self.rig.has(self.links[0], RelayEnded):
            return True                                # too early: `check` says so
        counts = self.rig.engine.inspect(self.links[0])
        assert counts is not None
        return same_counts(counts, relay.counts()) and self._have_all()

    def _have_all(self) -> bool:
        return all(len(self.fars[side].received) >= len(self.reference.out[side]) for side in Side)

    def check(self) -> None:
        """The same end, the same bytes, the same counts."""
        relay = self.reference.relay
        (ended,) = self.rig.of(self.links[0], RelayEnded)
        assert (ended.cause, ended.side, ended.detail) == (relay.cause, relay.side, relay.detail)
        self.rig.until(self._have_all)
        for side in Side:
            assert self.fars[side].received == self.reference.out[side], side
        assert same_counts(ended.counts, relay.counts())


def same_counts(ones: Counts, others: Counts) -> bool:
    """But for how bytes were carried."""
    return all(
        replace(one, copied=0, spliced=0, not_spliced="")
        == replace(other, copied=0, spliced=0, not_spliced="")
        for one, other in zip(ones, others, strict=True)
    )


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    """The scripts of some lives."""
    made = recorded.record(LIVES)
    assert len(made) >= SCRIPTS
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_scripts(kind: str, scripts: list[Script], tmp_path: Path) -> None:
    """Each of them, on one engine; its seed is told where it fails."""
    with predictable(), rig_of(kind, tmp_path) as rig:
        assert isinstance(rig, SocketRig)
        for number, script in enumerate(scripts):
            print(f"seed {script.seed}, script {number}")
            replay = Replay(rig, script)
            replay.play(script)
            replay.check()
            for far in replay.fars:
                far.close()
