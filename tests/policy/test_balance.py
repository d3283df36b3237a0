"""The balance: who holds, that never all do, and the spread that it keeps."""

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.balance import ALLOWANCE, ALLOWANCE_MIN, Load, allowed, holds

BATCH = 16            # what a worker accepts before it looks again
MAX = 10**9


def test_one_worker_never_holds() -> None:
    assert not holds(Load(10**6), [], 1)


def test_few_connections_are_no_imbalance() -> None:
    assert not holds(Load(32), [Load(0)], MAX), "16 more than the mean of 16"
    assert holds(Load(33), [Load(0)], MAX)


def test_clearly_more_than_the_mean_is_an_eighth() -> None:
    others = [Load(1000)] * 3
    most = next(n for n in range(1000, 2000) if holds(Load(n), others, MAX))
    mean = (3000 + most) / 4
    assert most > mean * (1 + ALLOWANCE)
    assert not holds(Load(most - 1), others, MAX)


def test_who_is_full_holds_for_one_that_has_room() -> None:
    full = Load(100)
    assert holds(full, [Load(90)], 100)
    assert not holds(full, [full], 100), "503 is said where all are full"
    assert not holds(full, [Load(90, held=True)], 100), "else nobody accepted"


@given(
    st.lists(st.builds(Load, st.integers(0, 400)), min_size=1, max_size=6), st.integers(1, 300),
    st.integers(0, 99),
)
def test_somebody_always_accepts_in_the_end(
    loads: list[Load], max_sessions: int, seed: int
) -> None:
    """Each looks at the others in any order, again and again: it comes to rest, or goes on, but
    never rests with all of them holding."""
    dice = random.Random(seed)
    held = [False] * len(loads)
    for _ in range(50 * len(loads)):
        if not all(held):
            one = dice.randrange(len(loads))
        else:
            one = next(
                n for n in range(len(loads)) if not look(loads, held, n, max_sessions)
            )
        held[one] = look(loads, held, one, max_sessions)


def look(loads: list[Load], held: list[bool], one: int, max_sessions: int) -> bool:
    """What this worker decides as things stand."""
    others = [
        Load(load.connections, held=held[n])
        for n, load in enumerate(loads) if n != one
    ]
    return holds(loads[one], others, max_sessions)


@given(st.integers(2, 8), st.integers(0, 2**32))
def test_the_spread_is_as_stated(workers: int, seed: int) -> None:
    """However the kernel wakes them, of connections that stay: nobody ever has more than is
    allowed and a batch. One that begins anew, behind a crash, catches up."""
    dice = random.Random(seed)
    counts = [0] * workers
    favour = [dice.random() ** 3 for _ in counts]        # whom the kernel likes
    for turn in range(600):
        if turn == 300:
            counts[dice.randrange(workers)] = 0
        ready = [
            n for n in range(workers)
            if not look([Load(count) for count in counts], [False] * workers, n, MAX)
        ]
        taker = dice.choices(ready, [favour[n] + 1e-6 for n in ready])[0]
        before = sum(counts) / workers
        counts[taker] += dice.randint(1, BATCH)
        if turn < 300:
            assert counts[taker] <= allowed(before) + BATCH
    mean = sum(counts) / workers
    for _ in range(10 * workers):
        # As many come as are open: who has too few is the only one that accepts.
        ready = [
            n for n in range(workers)
            if not look([Load(count) for count in counts], [False] * workers, n, MAX)
        ]
        counts[dice.choice(ready)] += max(1, round(mean / 8))
    end = sum(counts) / workers
    assert max(counts) <= allowed(end) + max(BATCH, mean / 8)
    assert ALLOWANCE_MIN >= BATCH
