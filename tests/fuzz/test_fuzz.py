"""Every target under `hypothesis`: inputs near the truth, kept ones with faults, and plain bytes.

The seed is new in each run and printed where a test fails; `FUZZ_SEED=N` repeats it, and
`FUZZ_EXAMPLES=N` says how many inputs of each kind there are.
"""

import os
import secrets
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from .samples import SAMPLES, mutate
from .targets import TARGETS, corpus_of

SEED = int(os.environ.get("FUZZ_SEED") or secrets.randbelow(1 << 32))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 150)

NAMES = pytest.mark.parametrize("name", TARGETS)


def hunt(name: str, make: st.SearchStrategy[bytes]) -> None:
    """Try a target on inputs from `make`."""
    print(f"to repeat: FUZZ_SEED={SEED}")

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        print_blob=True,
        database=None,                 # the corpus is the memory of these tests
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(make)
    def run(data: bytes) -> None:
        note(f"{name}: {data!r}")
        TARGETS[name](data)

    run()


def drawn(make: Callable[[Random], bytes]) -> st.SearchStrategy[bytes]:
    """Inputs that a function makes with a Random, of which hypothesis draws the turns."""
    return st.builds(make, st.randoms(use_true_random=False))


@NAMES
def test_inputs_near_the_truth_break_no_law(name: str) -> None:
    hunt(name, drawn(SAMPLES[name]))


@NAMES
def test_kept_inputs_with_faults_break_no_law(name: str) -> None:
    kept = [path.read_bytes() for path in corpus_of(name)]
    assert kept
    hunt(name, drawn(lambda chance: mutate(chance, chance.choice(kept), 1 + chance.randrange(6))))


@NAMES
def test_plain_bytes_break_no_law(name: str) -> None:
    hunt(name, st.binary(max_size=400))
