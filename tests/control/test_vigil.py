"""Workers that hang are found, and only those."""

from gateway.control.vigil import LATE, LOOK, SILENT, START_LIMIT, Vigil


def look_until(vigil: Vigil, start: float, end: float, born: float, beat: float) -> float | None:
    """When the worker is found, looking each second; None if it is not."""
    now = start
    while now <= end:
        if vigil.hung(now, [("w", born, beat)]):
            return now
        now += LOOK
    return None


def test_a_worker_that_beats_is_well() -> None:
    vigil = Vigil(0.0)
    for now in range(1, 100):
        assert vigil.hung(float(now), [("w", 0.0, now - 0.9)]) == []


def test_one_that_stops_is_found_and_the_others_are_not() -> None:
    vigil = Vigil(0.0)
    for now in range(1, 30):
        found = vigil.hung(float(now), [("a", 0.0, 5.0), ("b", 0.0, float(now))])
        assert [name for name, _ in found] == (["a"] if now > 5 + SILENT else [])


def test_one_that_never_begins_has_longer() -> None:
    assert look_until(Vigil(0.0), 1.0, 100.0, born=0.0, beat=0.0) == START_LIMIT + 1


def test_who_was_stopped_himself_accuses_nobody_at_once() -> None:
    """All were, perhaps; those that do not come back are found later."""
    vigil = Vigil(0.0)
    assert vigil.hung(1.0, [("w", 0.0, 0.5)]) == []
    woken = 1000.0
    assert vigil.hung(woken, [("w", 0.0, 1.0)]) == []
    assert woken - 1.0 > LATE
    assert look_until(vigil, woken + 1, woken + 100, born=0.0, beat=1.0) == woken + SILENT + 1
