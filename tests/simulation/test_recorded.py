"""The simulation's recorded scripts run on every relay, and all do the same after each fact."""

from pathlib import Path

from gateway.engine.compiled import CompiledRelay
from gateway.relaying import Relay
from simulation import recorded
from simulation.lives import predictable
from simulation.mutants import MiscountsMessages, SaysTheWrongCode

LIVES = range(300, 460)
SCRIPTS = 200


def test_recorded_scripts_run_on_both_relays() -> None:
    """What was told to relays in Python is told to compiled ones."""
    scripts = recorded.record(LIVES)
    assert len(scripts) >= SCRIPTS
    with predictable():
        assert recorded.compare(scripts, [Relay, CompiledRelay]) == []


def test_a_difference_is_seen() -> None:
    """The test of the test: a broken relay does something else."""
    scripts = recorded.record(range(300, 330))
    assert recorded.compare(scripts, [Relay, SaysTheWrongCode])
    assert recorded.compare(scripts, [Relay, MiscountsMessages])
    assert recorded.compare(scripts, [Relay, Relay]) == []


def test_scripts_are_kept_in_files(tmp_path: Path) -> None:
    """What is written is read again."""
    scripts = recorded.record(range(310, 316))
    recorded.dump(scripts, tmp_path / "scripts.jsonl")
    assert recorded.load(tmp_path / "scripts.jsonl") == scripts
