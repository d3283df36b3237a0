"""Splicing, on relays that wait in a ring, in both of its forms: the tests of `test_splice.py`,
`test_splice_ends.py` and `test_splice_raw.py`, all of them."""

import time
from collections.abc import Iterator

import pytest

from engine import test_splice, test_splice_ends, test_splice_raw
from engine.rig import open_descriptors
from engine.splicing import Roads
from gateway.engine.ring_completions import RingCompletions
from gateway.engine.ring_relays import RingRelays


class RingRoads(Roads):
    """One driver, whose loop is a ring."""

    def __init__(self, pipes_max: int = 32):
        self.before = open_descriptors()
        self.ring = self.made(pipes_max)
        self.driver = self.ring  # type: ignore[assignment]
        self.roads = []
        self.ended = {}

    def made(self, pipes_max: int) -> RingRelays:
        """The driver."""
        return RingRelays(pipes_max)

    def turn(self, wait_ms: int = 0) -> None:
        """See Roads."""
        self.ring.wait(time.monotonic() + wait_ms / 1000)
        self.collect()

    def is_quiet(self, seconds: float = 0.05) -> bool:
        """See Roads. What completes is work."""
        self.turn()
        self.turn()
        turns = self.ring.turns
        self.turn(int(seconds * 1000))
        return self.ring.turns == turns

    def finish(self) -> None:
        """See Roads; nothing is in flight either."""
        self.driver.abandon_all()
        assert self.ring.close_ring() == 0
        super().finish()


class CompletionRoads(RingRoads):
    """The ring receives and sends."""

    def made(self, pipes_max: int) -> RingRelays:
        """See RingRoads."""
        return RingCompletions(pipes_max, buffers=16)


FORMS = [RingRoads, CompletionRoads]


@pytest.fixture(params=FORMS, autouse=True)
def form(request: pytest.FixtureRequest) -> type[RingRoads]:
    """Which kind of driver."""
    made: type[RingRoads] = request.param
    return made


@pytest.fixture
def roads(form: type[RingRoads]) -> Iterator[Roads]:
    """A driver, which leaves nothing behind."""
    made = form()
    try:
        yield made
    finally:
        made.finish()


@pytest.fixture(autouse=True)
def rings(monkeypatch: pytest.MonkeyPatch, form: type[RingRoads]) -> None:
    """Tests that make a driver of their own get a ring too."""
    monkeypatch.setattr("engine.splicing.Roads", form)
    in_a_ring = IN_A_RING.replace("RingRoads", form.__name__)
    child = test_splice_ends.CHILD.replace("{body}", in_a_ring + "{body}")
    monkeypatch.setattr(test_splice_ends, "CHILD", child)


IN_A_RING = """
import engine.splicing
from engine.test_uring_splice import RingRoads
engine.splicing.Roads = RingRoads
"""
AT_DEFAULT = """
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
"""

for _file in (test_splice, test_splice_ends, test_splice_raw):
    for _name, _test in vars(_file).items():
        if _name.startswith(("Test", "test_")):
            globals()[f"{_name}OfRing" if _name[0] == "T" else f"{_name}_of_ring"] = _test


def test_a_ring_ignores_sigpipe_itself() -> None:
    """Also where somebody set the signal back to its default, which ends the process."""
    first, rest = test_splice_ends.RESET_WHILE_SPLICING.split("with driving", 1)
    test_splice_ends.child(f"{first}{AT_DEFAULT}with driving{rest}")
