"""The kept inputs, through every target: what was found once is never found again."""

import pytest

from . import targets
from .targets import TARGETS, corpus_of

SIZE_MAX = 8192


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_no_law(name: str) -> None:
    """Each kept input, and each of its beginnings, in the target that it is kept for."""
    paths = corpus_of(name)
    assert paths
    for path in paths:
        data = path.read_bytes()
        step = max(1, len(data) // 40)
        for end in (*range(0, len(data), step), len(data)):
            try:
                TARGETS[name](data[:end])
            except Exception as error:
                raise AssertionError(f"{path.name}, its first {end} bytes") from error


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_kept_for_others_break_no_law_either(name: str) -> None:
    """Heads as frames, frames as tables: a target takes any bytes."""
    for other in TARGETS:
        for path in corpus_of(other):
            TARGETS[name](path.read_bytes())


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    """It is read by people, and replayed in each run of the tests."""
    folders = sorted(path.name for path in targets.CORPUS.iterdir())
    assert folders == sorted(TARGETS)
    sizes = [path.stat().st_size for name in TARGETS for path in corpus_of(name)]
    assert max(sizes) <= SIZE_MAX
