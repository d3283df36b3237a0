"""The governor: how many pass in which time, who waits, who is refused."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.governor import AHEAD, NAMES_MAX, WAIT_MAX, Governor

CHAT = ("route chat", 100.0)


class Workers:
    """The other workers."""

    def __init__(self, serving: int = 1) -> None:
        self.count = serving
        self.told = [0, 0]               # delayed, turned away

    def serving(self) -> int:
        """See governor.Elsewhere."""
        return self.count

    def delayed(self) -> None:
        """See governor.Elsewhere."""
        self.told[0] += 1

    def turned_away(self) -> None:
        """See governor.Elsewhere."""
        self.told[1] += 1


def test_a_rate_of_zero_is_off() -> None:
    governor = Governor()
    assert all(governor.turn(5.0, ("route chat", 0.0)) == 5.0 for _ in range(1000))


def test_a_storm_passes_evenly_and_what_is_too_much_is_refused() -> None:
    workers = Workers()
    governor = Governor(workers)
    turns = [governor.turn(10.0, CHAT) for _ in range(500)]
    given = [turn for turn in turns if turn is not None]
    assert turns == given + [None] * (500 - len(given)), "who comes later is no better off"
    assert len(given) == pytest.approx((WAIT_MAX + AHEAD) * 100, abs=2)
    at_once = [turn for turn in given if turn == 10.0]
    assert len(at_once) == pytest.approx(1 + AHEAD * 100, abs=1)
    steps = [b - a for a, b in itertools.pairwise(given)]
    assert max(steps) == pytest.approx(0.01)
    assert max(given) <= 10.0 + WAIT_MAX
    assert workers.told == [len(given) - len(at_once), 500 - len(given)]


def test_each_worker_has_its_share() -> None:
    workers = Workers(4)
    governor = Governor(workers)
    given = [turn for _ in range(500) if (turn := governor.turn(0.0, CHAT)) is not None]
    assert len(given) == pytest.approx((WAIT_MAX + AHEAD) * 25, abs=2)
    workers.count = 1
    later = [turn for _ in range(500) if (turn := governor.turn(2.0, CHAT)) is not None]
    assert len(later) == pytest.approx((WAIT_MAX + AHEAD) * 100, abs=2)


def test_the_slower_of_two_rates_decides() -> None:
    """And what it refuses uses up no turn of the other."""
    governor = Governor()
    slow = ("route slow", 2.0)
    given = [governor.turn(0.0, ("listener", 1000.0), slow) for _ in range(50)]
    assert [turn for turn in given if turn is not None] == [
        0.0, 0.5 - AHEAD, 1.0 - AHEAD
    ]
    assert governor.turn(0.0, ("listener", 1000.0)) == 0.0, "three of its twenty were used"


def test_names_whose_time_has_passed_are_forgotten() -> None:
    governor = Governor()
    for number in range(10 * NAMES_MAX):
        assert governor.turn(number, (f"route {number}", 100.0)) == number
    assert len(governor._due) <= NAMES_MAX + 1


@given(st.integers(0, 2**32), st.sampled_from([0.5, 7.0, 300.0]), st.integers(1, 5))
def test_no_window_has_more_than_the_rate(seed: int, rate: float, workers: int) -> None:
    """Of any time: the share of it, what may pass ahead, and the one that it begins with. Turns
    come in order, never before their question, never more than `WAIT_MAX` behind it."""
    chance = random.Random(seed)
    governor = Governor(Workers(workers))
    now, given = 0.0, []
    for _ in range(200):
        now += chance.expovariate(rate * chance.choice([0.2, 1.0, 5.0]))
        turn = governor.turn(now, ("route chat", rate))
        if turn is not None:
            assert now <= turn <= now + WAIT_MAX
            given.append(turn)
    assert given == sorted(given)
    share = rate / workers
    for first in range(0, len(given), 7):
        for last in range(first, len(given)):
            allowed = (given[last] - given[first] + AHEAD) * share + 1
            assert last - first + 1 <= allowed + 1e-6


def test_a_steady_stream_below_the_rate_never_waits() -> None:
    governor = Governor(Workers(2))
    assert all(
        governor.turn(step / 49, CHAT) == step / 49 for step in range(1000)
    )


def test_that_it_refuses_is_known_for_a_while_and_asking_uses_up_nothing() -> None:
    workers = Workers()
    governor = Governor(workers)
    assert not governor.is_refusing(10.0)
    while governor.turn(10.0, CHAT) is not None:
        assert not governor.is_refusing(10.0), "who waits is not refused"
    assert governor.is_refusing(10.0)
    assert governor.is_refusing(10.0 + WAIT_MAX)
    assert not governor.is_refusing(10.0 + 2 * WAIT_MAX)
    told = workers.told[1]
    assert governor.refuses(10.0, CHAT)
    assert workers.told[1] == told + 1
    assert not governor.refuses(10.0, ("route other", 100.0))
    assert not governor.refuses(10.5, CHAT)
    assert workers.told[1] == told + 1
    assert governor.turn(10.5, CHAT) is not None


def test_a_rate_that_refuses_is_enough() -> None:
    governor = Governor()
    while governor.turn(10.0, CHAT) is not None:
        pass
    assert governor.refuses(10.0, ("listener a", 0.0), CHAT)
    assert not governor.refuses(10.0, ("listener a", 0.0))
    assert not governor.refuses(10.0)
