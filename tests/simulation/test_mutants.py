"""The test of the test: each small fault is caught within a bounded number of lives."""

import pytest

from simulation import lives
from simulation.mutants import MUTANTS

LIVES_MAX = 1500


def test_there_are_enough() -> None:
    """Of relays, sessions and engines."""
    relays = [cast for cast in MUTANTS.values() if cast.relay is not lives.CASTS["python"].relay]
    assert len(relays) >= 14
    assert len(MUTANTS) - len(relays) >= 5


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_caught(name: str) -> None:
    """See `mutants.py` for what each does wrong."""
    caught = lives.hunt(name, LIVES_MAX)
    assert caught is not None, f"{name} was not caught in {LIVES_MAX} lives"
    count, what = caught
    print(f"{name}: caught after {count} lives: {what.splitlines()[-1]}")
