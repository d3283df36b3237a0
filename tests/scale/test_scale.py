"""The scale run in small: that it measures what it says, and that a storm loses nobody else."""

from scale.run import Plan, scene


def test_a_small_storm_loses_nobody_who_stayed() -> None:
    plan = Plan(
        stayers=60, storm=150, fill_rate=2000.0, storm_seconds=0.5, probes=20, every=0.05,
        before=0.5, cut_seconds=0.5, handshakes="60/s",
    )
    with scene(plan) as run:
        figures = run.run(lambda _: None)
    assert figures["held"]["sessions"] == 210
    assert figures["fill"]["opened"] == 60
    assert figures["storm"]["opened"] == 150, "who was refused came back until it was let in"
    assert figures["storm"]["failed"] == 0
    assert figures["before"]["count"] > 0
    assert figures["cut"]["count"] > 0
    assert figures["during"]["count"] > 0
    assert figures["stayers"] == {"lost": 0, "open": 60}
    assert figures["returned"] == {"lost": 0, "open": 150}
