"""The scale run in small: that it measures what it says, and that a storm loses nobody else."""

import pytest

from scale.run import Plan, scene


@pytest.mark.parametrize("engine", ["uvloop", "io_uring"])
def test_a_small_storm_loses_nobody_who_stayed(engine: str) -> None:
    plan = Plan(
        engine=engine, stayers=60, storm=150, refused=40, fill_rate=2000.0, storm_seconds=0.5,
        probes=20, every=0.05, before=0.5, cut_seconds=0.5, handshakes="60/s",
    )
    with scene(plan) as run:
        figures = run.run(lambda _: None)
    assert figures["held"]["sessions"] == 210
    assert figures["fill"]["opened"] == 60
    assert figures["refused"]["refused"] + figures["refused"]["opened"] == 40
    assert figures["refused"]["refused"] >= 30, "one a second is let in by each worker, and waits"
    assert figures["storm"]["opened"] == 150, "who was refused came back until it was let in"
    assert figures["storm"]["failed"] == 0
    assert figures["before"]["count"] > 0
    assert figures["cut"]["count"] > 0
    assert figures["during"]["count"] > 0
    assert figures["stayers"] == {"lost": 0, "open": 60}
    assert figures["returned"] == {"lost": 0, "open": 150}
