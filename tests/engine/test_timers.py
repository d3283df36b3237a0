"""The timers' heap: against a list, and that cancelled entries do not pile up."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.timers import Timer, Timers

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("take"), st.integers(0, 20)),
    ),
    max_size=200,
)


@given(STEPS)
def test_as_a_sorted_list_would_do(steps: list[tuple[str, int]]) -> None:
    """Adding, cancelling (also twice, also what was given out) and taking, in any order."""
    timers: Timers[str] = Timers()
    made: list[Timer[str]] = []
    model: list[tuple[int, int]] = []
    for step, value in steps:
        if step == "add":
            model.append((value, len(made)))
            made.append(timers.add(value, "owner", str(len(made))))
        elif step == "cancel" and value < len(made):
            timers.cancel(made[value])
            model = [entry for entry in model if entry[1] != value]
        elif step == "take":
            model.sort()
            taken = timers.take(value)
            if model and model[0][0] <= value:
                assert taken == ("owner", str(model.pop(0)[1]))
            else:
                assert taken is None
        assert len(timers) == len(model)
        assert timers.next_at() == min((at for at, _ in model), default=float("inf"))


def test_moving_one_timer_for_ever_takes_no_memory() -> None:
    """Each of a thousand links moves its timer a hundred times."""
    timers: Timers[int] = Timers()
    latest = [timers.add(0.0, link, "idle") for link in range(1000)]
    for turn in range(1, 101):
        for link, timer in enumerate(latest):
            timers.cancel(timer)
            latest[link] = timers.add(float(turn), link, "idle")
    assert len(timers) == 1000
    assert len(timers._heap) <= 2 * 1000 + 100
