"""What a worker does by the clock: its beat, and how it holds back for the others."""

import os
from collections.abc import Iterator

import pytest

from gateway.control.board import Board
from gateway.control.counters import Counters
from gateway.control.metering import LOOKS
from gateway.control.parties import Echo, Party
from gateway.control.pulse import BEAT, LOOK, SILENT, Pulse
from gateway.control.report import Report
from gateway.control.shared import Cell, SharedMemory, Slots
from gateway.events import AccessRecord, LegCounts
from gateway.limits import Limits

OWN = 1
LISTENERS = (7, 8)


class Engine:
    """Takes the engine's place: its time is set, its verbs are noted."""

    def __init__(self) -> None:
        self.time = 50.0
        self.timers: dict[str, float] = {}
        self.calls: list[tuple[str, int]] = []
        self.relays: dict[int, tuple[LegCounts, LegCounts]] = {}

    def now(self) -> float:
        """See contract.Engine."""
        return self.time

    def set_timer(self, link: int, name: str, at: float) -> None:
        """See contract.Engine."""
        assert link == OWN
        self.timers[name] = at

    def hold(self, link: int) -> None:
        """See contract.Engine."""
        self.calls.append(("hold", link))

    def read(self, link: int) -> None:
        """See contract.Engine."""
        self.calls.append(("read", link))

    def inspect(self, link: int) -> tuple[LegCounts, LegCounts] | None:
        """See contract.Engine."""
        self.calls.append(("inspect", link))
        return self.relays.get(link)


class Stage:
    """One worker's pulse, and what another worker says of itself."""

    def __init__(self, memory: SharedMemory, report: Report, max_sessions: int = 1000) -> None:
        self.board = Board(memory)
        self.board.begin(0)
        self.board.begin(1)
        self.engine = Engine()
        self.parties: list[Party] = []
        self.limits = Limits(max_sessions)
        self.counters = Counters(memory, 0, Slots())
        self.other = Counters(memory, 1, Slots())
        self.pulse = Pulse(
            self.engine,  # type: ignore[arg-type]
            OWN, LISTENERS, self.limits, self.counters, report, self.parties,
        )

    def other_has(self, connections: int, *, serving: bool = True) -> None:
        """The other worker's count, and its beat."""
        self.other.beat(round(self.engine.time * 1e9), 0)
        self.other.connections_are(connections)
        self.other.store(Cell.SERVING, serving)

    def fire(self, name: str) -> None:
        """A timer is due."""
        self.engine.time = self.engine.timers.pop(name)
        self.pulse.timed_out(name, self.engine.time)

    def calls(self) -> list[tuple[str, int]]:
        """The verbs since the last time."""
        calls, self.engine.calls = self.engine.calls, []
        return calls


@pytest.fixture
def report() -> Iterator[Report]:
    """A report that nobody reads."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    report = Report(output=nowhere, errors=nowhere)
    os.close(nowhere)
    yield report
    report.close()


@pytest.fixture
def stage(report: Report) -> Iterator[Stage]:
    """Two workers on fresh memory."""
    memory = SharedMemory(SharedMemory.create())
    yield Stage(memory, report)
    memory.close()


HELD = [("hold", 7), ("hold", 8)]
READ = [("read", 7), ("read", 8)]


def test_it_says_that_it_lives_each_second(stage: Stage) -> None:
    stage.pulse.start()
    assert stage.board.of_worker(0)["serving"] == 1
    assert stage.board.beat(0) == 50_000_000_000
    assert stage.engine.timers == {"beat": 50.0 + BEAT}
    stage.fire("beat")
    assert stage.board.beat(0) == 51_000_000_000
    assert stage.board.of_worker(0)["lag_us"] == 0


def test_a_late_beat_says_how_late(stage: Stage) -> None:
    stage.pulse.start()
    stage.pulse.timed_out("beat", 50.0 + BEAT + 0.25)
    assert stage.board.of_worker(0)["lag_us"] == 250_000
    assert stage.engine.timers["beat"] == 50.0 + BEAT + 0.25 + BEAT


def test_it_holds_while_it_has_clearly_more(stage: Stage) -> None:
    """And looks again by a timer, since no client may come that would make it look."""
    stage.pulse.start()
    stage.other_has(0)
    stage.limits.connections = 32
    stage.pulse.look(50.0)
    assert stage.calls() == []
    stage.limits.connections = 33
    stage.pulse.look(50.0)
    assert stage.calls() == HELD
    assert stage.board.of_worker(0)["held"] == 1
    assert stage.engine.timers["look"] == 50.0 + LOOK
    stage.fire("look")
    assert stage.calls() == HELD, "one that a reload has added would accept"
    assert "look" in stage.engine.timers
    stage.other_has(1)
    stage.fire("look")
    assert stage.calls() == READ
    assert stage.board.of_worker(0)["held"] == 0
    assert "look" not in stage.engine.timers


def test_it_goes_on_where_the_other_dies(stage: Stage) -> None:
    stage.pulse.start()
    stage.other_has(0)
    stage.limits.connections = 100
    stage.pulse.look(50.0)
    assert stage.calls() == HELD
    stage.board.bury(1)
    stage.fire("look")
    assert stage.calls() == READ


def test_it_goes_on_where_the_other_does_not_turn(stage: Stage) -> None:
    """A stopped worker has the fewest and accepts nobody: who waits for it would wait until it is
    killed. When it turns again, it is reckoned with again."""
    stage.pulse.start()
    stage.other_has(0)
    stage.limits.connections = 100
    stage.pulse.look(50.0 + SILENT)
    assert stage.calls() == HELD
    stage.engine.time = 50.0 + SILENT + LOOK
    stage.pulse.look(stage.engine.time)
    assert stage.calls() == READ
    stage.other_has(0)
    stage.pulse.look(stage.engine.time)
    assert stage.calls() == HELD


def test_one_that_is_full_holds_for_one_that_has_room(stage: Stage) -> None:
    stage.pulse.start()
    stage.limits.connections = 1000
    stage.other_has(999)
    stage.pulse.look(50.0)
    assert stage.calls() == HELD
    stage.other_has(1000)
    stage.fire("look")
    assert stage.calls() == READ, "all are full: say so"


def test_a_worker_that_drains_is_not_reckoned_with(stage: Stage) -> None:
    stage.pulse.start()
    stage.other_has(0, serving=False)
    stage.limits.connections = 500
    stage.pulse.look(50.0)
    assert stage.calls() == []


def test_before_a_drain_it_reads_again_and_stays_so(stage: Stage) -> None:
    stage.pulse.start()
    stage.other_has(0)
    stage.limits.connections = 100
    stage.pulse.look(50.0)
    assert stage.calls() == HELD
    stage.pulse.stop()
    assert stage.calls() == READ
    assert stage.board.of_worker(0)["serving"] == 0
    stage.fire("look")
    stage.pulse.look(60.0)
    assert stage.calls() == []
    stage.fire("beat")
    assert stage.board.beat(0), "it lives until it ends"


# --- What live relays move --------------------------------------------------------------------


def moved(board: Board) -> list[int]:
    """What is counted, of all workers."""
    totals = board.totals()
    names = ("bytes_up", "bytes_down", "messages_up", "messages_down", "bytes_copied",
             "bytes_spliced")
    return [totals[name] for name in names]


def test_what_a_live_relay_moves_is_counted_once(stage: Stage) -> None:
    """At each beat what came since the one before, and the rest with its record."""
    party = Party(Echo(), 90, "one")
    stage.parties.append(party)
    stage.pulse.start()
    assert moved(stage.board) == [0] * 6                 # it is not relayed yet
    stage.engine.relays[90] = (
        LegCounts(bytes_in=10, messages=1, copied=10), LegCounts(bytes_in=30, spliced=30)
    )
    for _ in range(2):
        stage.pulse.timed_out("beat", stage.engine.time)
        assert moved(stage.board) == [10, 30, 1, 0, 10, 30]
    at_the_end = (
        LegCounts(bytes_in=15, messages=2, copied=15), LegCounts(bytes_in=31, copied=1, spliced=30)
    )
    record = AccessRecord(
        session="s", client="c", peer="p", listener="l", status=101, counts=at_the_end
    )
    stage.counters.record(record, party.counted)
    assert moved(stage.board) == [15, 31, 2, 0, 16, 30]


def test_so_many_relays_are_looked_at_in_a_beat_and_then_the_others(stage: Stage) -> None:
    """In turn; one that came meanwhile is of the next round, one that has gone costs nothing."""
    stage.parties += [Party(Echo(), number, "") for number in range(LOOKS + 2)]
    stage.parties[LOOKS].client = None
    stage.pulse.start()
    seen = [link for verb, link in stage.engine.calls if verb == "inspect"]
    assert seen == list(range(LOOKS))
    stage.pulse.timed_out("beat", stage.engine.time)
    assert stage.engine.calls[-1] == ("inspect", LOOKS + 1)
    stage.pulse.timed_out("beat", stage.engine.time)
    assert stage.engine.calls[-1] == ("inspect", LOOKS - 1)
