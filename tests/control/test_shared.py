"""The counters in shared memory: what one worker writes, all read; names keep their cells."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.balance import Load
from gateway.control import shared
from gateway.control.board import Board, RouteCounts
from gateway.control.counters import Counters
from gateway.control.shared import Cell, SharedMemory, Slots, endpoint_name
from gateway.errors import Handshake
from gateway.events import AccessRecord, Address, LegCounts, Side
from gateway.limits import Limits, Refusal
from gateway.table import EndpointEntry, Upstream
from gateway.upstreams import REFRESH, Pool

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Address(host="192.0.2.1", port=1000)
ENDPOINT = Address(host="192.0.2.9", port=9000)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """Fresh memory, unmapped at the end."""
    mapped = SharedMemory(SharedMemory.create())
    yield mapped
    mapped.close()


@pytest.fixture
def board(memory: SharedMemory) -> Board:
    """The supervisor's face, with two workers."""
    board = Board(memory)
    board.begin(0)
    board.begin(1)
    return board


def record(**fields: object) -> AccessRecord:
    """An access record with these fields."""
    made = AccessRecord(session="s", client="c", peer="c", listener="l")
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_totals_are_the_sums_and_survive_a_worker(board: Board, memory: SharedMemory) -> None:
    one, two = Counters(memory, 0, Slots()), Counters(memory, 1, Slots())
    one.add(Cell.ACCEPTED, 3)
    two.add(Cell.ACCEPTED, 4)
    two.connections_are(9)
    assert board.totals()["accepted"] == 7
    assert board.totals()["connections"] == 9
    assert board.of_worker(1)["accepted"] == 4
    board.bury(1)
    assert board.totals()["accepted"] == 7
    assert board.totals()["connections"] == 0
    Counters(memory, 1, Slots()).add(Cell.ACCEPTED)
    assert board.totals()["accepted"] == 8


def test_handshakes_that_fail_are_counted_by_side_and_reason(
    board: Board, memory: SharedMemory
) -> None:
    one, two = Counters(memory, 0, Slots()), Counters(memory, 1, Slots())
    one.record(record(status=None, handshake=Handshake.NOT_TLS))
    two.record(record(status=None, handshake=Handshake.NOT_TLS))
    two.handshake_failed(Side.UPSTREAM, Handshake.UNTRUSTED)
    counted = {labels: count for labels, count in board.handshakes().items() if count}
    assert counted == {("client", "not tls"): 2, ("upstream", "untrusted"): 1}
    assert board.statuses()["none"] == 2
    assert len(board.handshakes()) == 2 * len(Handshake)


def test_a_record_is_counted_once_under_each_of_its_labels(
    board: Board, memory: SharedMemory
) -> None:
    counters = Counters(memory, 1, board.slots(["chat"], []))
    up = LegCounts(bytes_in=100, messages=3, copied=60, spliced=40, round_trip=0.002)
    down = LegCounts(bytes_in=7, messages=1, copied=7)
    counters.began("chat")
    assert board.statuses()["101"] == board.routes()["chat"].begun == 1
    counters.record(record(status=101, route="chat", cause="closed", counts=(up, down)))
    counters.record(record(status=429, route="chat"))
    counters.record(record(status=404))
    counters.record(record(status=418, route="chat"))
    counters.record(record(status=None))
    counters.record(record(status=999))
    statuses = {label: count for label, count in board.statuses().items() if count}
    assert statuses == {"101": 1, "429": 1, "404": 1, "4xx": 1, "none": 2}
    chat = board.routes()["chat"]
    assert (chat.refused, chat.ended) == (2, {"closed": 1})
    totals = board.totals()
    assert (totals["bytes_up"], totals["bytes_down"]) == (100, 7)
    assert (totals["messages_up"], totals["messages_down"]) == (3, 1)
    assert (totals["bytes_copied"], totals["bytes_spliced"]) == (67, 40)
    assert (totals["round_trips_client"], totals["round_trip_client_us"]) == (1, 2000)
    assert totals["round_trips_upstream"] == 0


def test_what_a_worker_had_open_has_ended_with_it(board: Board, memory: SharedMemory) -> None:
    slots = board.slots(["chat", "late"], [])
    counters = Counters(memory, 1, slots)
    for _ in range(4):
        counters.began("chat")
    counters.record(record(status=101, route="chat", cause="closed"))
    counters.record(record(status=101, route="chat"))        # by a bug: without a cause
    counters.record(record(status=101, route="late", cause="cut"))   # began without cells
    for _ in range(2):                           # it is buried again before its successor begins
        board.bury(1)
    assert board.routes()["chat"].ended == {"closed": 1, "lost": 1, "worker died": 2}
    assert board.routes()["late"].ended == {"cut": 1}
    assert board.statuses()["101"] == board.routes()["chat"].begun == 4
    Counters(memory, 1, slots).began("chat")
    assert board.routes()["chat"].ended["worker died"] == 2, "this one lives"


def test_a_beat_says_when_and_how_late(board: Board, memory: SharedMemory) -> None:
    counters = Counters(memory, 0, Slots())
    assert board.beat(0) == 0
    counters.beat(5_000_000_000, 120)
    counters.beat(6_000_000_000, 80)
    assert board.beat(0) == 6_000_000_000
    worker = board.of_worker(0)
    assert (worker["lag_us"], worker["lag_sum_us"], worker["beats"]) == (80, 200, 2)


def test_the_others_are_those_that_serve(board: Board, memory: SharedMemory) -> None:
    one, two = Counters(memory, 0, Slots()), Counters(memory, 1, Slots())
    two.connections_are(5)
    two.beat(7, 0)
    assert one.loads(7) == []
    assert one.serving() == two.serving() == 1
    two.store(Cell.SERVING, 1)
    two.store(Cell.HELD, 1)
    assert one.loads(7) == [Load(5, held=True)]
    assert one.loads(8) == [], "it has not turned since"
    assert two.loads(0) == []
    assert (one.serving(), two.serving()) == (2, 1)
    board.bury(1)
    assert one.serving() == 1


# --- Limits -----------------------------------------------------------------------------------


def test_a_route_s_limit_holds_over_all_workers(board: Board, memory: SharedMemory) -> None:
    slots = board.slots(["chat"], [])
    one, two = (Limits(100, Counters(memory, worker, slots)) for worker in (0, 1))
    assert one.enter("chat", 2, CLIENT, 0) is None
    assert two.enter("chat", 2, CLIENT, 0) is None
    assert one.enter("chat", 2, CLIENT, 0) is Refusal.ROUTE
    assert two.enter("chat", 2, CLIENT, 0) is Refusal.ROUTE
    assert board.routes()["chat"].open == 2
    one.leave("chat", CLIENT)
    assert two.enter("chat", 2, CLIENT, 0) is None
    assert board.routes()["chat"].open == 2
    assert board.totals()["sessions"] == 2


def test_a_client_s_limit_holds_over_all_workers(board: Board, memory: SharedMemory) -> None:
    slots = board.slots(["chat", "news"], [])
    one, two = (Limits(100, Counters(memory, worker, slots)) for worker in (0, 1))
    assert one.enter("chat", 0, CLIENT, 2) is None
    assert two.enter("chat", 0, CLIENT, 2) is None
    assert one.enter("chat", 0, CLIENT, 2) is Refusal.CLIENT
    assert one.enter("news", 0, CLIENT, 2) is None
    assert one.enter("chat", 0, Address(host="192.0.2.2", port=1), 2) is None
    two.leave("chat", CLIENT)
    assert one.enter("chat", 0, CLIENT, 2) is None
    assert two.enter("chat", 0, CLIENT, 2) is Refusal.CLIENT


def test_a_dead_worker_s_sessions_count_no_more(board: Board, memory: SharedMemory) -> None:
    slots = board.slots(["chat"], [])
    one, two = (Limits(100, Counters(memory, worker, slots)) for worker in (0, 1))
    assert one.enter("chat", 1, CLIENT, 1) is None
    assert two.enter("chat", 1, CLIENT, 1) is Refusal.CLIENT
    board.bury(0)
    assert two.enter("chat", 1, CLIENT, 1) is None
    assert board.routes()["chat"].open == 1


def test_a_client_that_left_gives_its_cells_back(board: Board, memory: SharedMemory) -> None:
    slots = board.slots(["chat"], [])
    one, two = Limits(10**6, Counters(memory, 0, slots)), Counters(memory, 1, slots)
    count = shared.BUCKETS * shared.BUCKET_SIZE // 8
    for turn in range(3):
        clients = [
            Address(host=f"10.{turn}.{n >> 8}.{n & 255}", port=1) for n in range(count)
        ]
        for client in clients:
            assert one.enter("chat", 0, client, 5) is None
        seen = [two.of_client("chat", bytes(map(int, one.host.split(".")))) for one in clients]
        # Buckets overflow by chance: of eight places, hardly ever where one is taken on average.
        assert sum(seen) >= count - 2
        for client in clients:
            one.leave("chat", client)
    assert one.entries == 0


def test_a_full_bucket_is_counted_in_its_worker_alone(
    board: Board, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slack of the limit for clients: it holds in each worker then."""
    monkeypatch.setattr("gateway.control.counters.BUCKETS", 1)
    slots = board.slots(["chat"], [])
    one, two = (Limits(100, Counters(memory, worker, slots)) for worker in (0, 1))
    for n in range(shared.BUCKET_SIZE):
        assert one.enter("chat", 0, Address(host=f"10.0.0.{n}", port=1), 1) is None
    assert one.enter("chat", 0, CLIENT, 1) is None
    assert one.enter("chat", 0, CLIENT, 1) is Refusal.CLIENT
    assert two.enter("chat", 0, CLIENT, 1) is None
    one.leave("chat", CLIENT)
    assert one.enter("chat", 0, CLIENT, 1) is Refusal.CLIENT, "the other worker's is seen"


def test_least_connections_counts_over_all_workers(board: Board, memory: SharedMemory) -> None:
    busy, idle = ENDPOINT, Address(host="192.0.2.10", port=9000)
    names = [endpoint_name("rooms", str(address)) for address in (busy, idle)]
    slots = board.slots([], names)
    upstream = Upstream(name="rooms", scheme="ws")
    pools = []
    for worker in (0, 1):
        pool = Pool(upstream, random_of(worker), elsewhere=Counters(memory, worker, slots))
        pool.set_endpoints([(EndpointEntry(url=str(one)), one) for one in (busy, idle)])
        pools.append(pool)
    for _ in range(3):
        pools[1].endpoints[0].begin()
    assert board.endpoints() == {names[0]: 3, names[1]: 0}
    for turn in range(3):
        endpoint = pools[0].pick(b"", turn * REFRESH)
        assert endpoint is not None
        assert endpoint.address == idle
        endpoint.begin()
    pools[1].endpoints[0].ended()
    endpoint = pools[0].pick(b"", 3 * REFRESH)
    assert endpoint is not None
    assert endpoint.address == busy


def test_what_the_others_have_is_not_asked_for_each_time(
    board: Board, memory: SharedMemory
) -> None:
    name = endpoint_name("rooms", str(ENDPOINT))
    slots = board.slots([], [name])
    pool = Pool(
        Upstream(name="rooms", scheme="ws"), random_of(0), elsewhere=Counters(memory, 0, slots)
    )
    other = Address(host="192.0.2.10", port=9000)
    pool.set_endpoints([(EndpointEntry(url=str(one)), one) for one in (ENDPOINT, other)])
    assert pool.pick(b"", 100.0) is not None
    Counters(memory, 1, slots).begun_on("rooms", str(ENDPOINT))
    pool.pick(b"", 100.0 + REFRESH / 2)
    assert pool.endpoints[0].far == 0
    pool.pick(b"", 100.0 + 2 * REFRESH)
    assert pool.endpoints[0].far == 1


# --- Slots ------------------------------------------------------------------------------------


def test_a_name_keeps_its_cells_while_somebody_is_on_it(
    board: Board, memory: SharedMemory
) -> None:
    first = board.slots(["a", "b"], [])
    board.keep(first)
    counters = Counters(memory, 0, first)
    counters.sessions_are(1, "a", 1)
    second = board.slots(["b", "c"], [])
    counters.use(second)
    board.keep(second)
    assert second.routes["b"] == first.routes["b"]
    assert first.routes["a"] not in second.routes.values()
    assert board.routes()["a"].open == 1
    third = board.slots(["d"], [])
    assert first.routes["a"] not in third.routes.values(), "a session is on it still"
    counters.sessions_are(0, "a", 0)
    board.keep(third)
    fourth = board.slots(["d", "e"], [])
    counters.use(fourth)
    assert "a" not in board.routes()
    board.keep(fourth)
    assert board.slots(["a", "d", "e"], []).routes["d"] == third.routes["d"]


def test_cells_that_change_hands_begin_at_zero(board: Board, memory: SharedMemory) -> None:
    first = board.slots(["a"], [])
    board.keep(first)
    counters = Counters(memory, 0, first)
    counters.sessions_are(1, "a", 1)
    counters.began("a")
    counters.record(record(status=101, route="a", cause="closed"))
    counters.sessions_are(0, "a", 0)
    board.keep(Slots())
    second = board.slots(["z"], [])
    assert second.routes["z"] == first.routes["a"]
    assert board.routes() == {"z": RouteCounts()}
    counters.use(second)
    counters.began("z")
    assert board.routes()["z"].begun == 1


def test_a_name_that_returns_before_its_cells_were_given_away_goes_on(board: Board) -> None:
    first = board.slots(["a"], [])
    board.keep(Slots())
    assert board.slots(["a"], []) == first


def test_names_beyond_the_limit_are_left_out_and_told(
    board: Board, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"r{n}" for n in range(shared.ROUTES_MAX + 2)]
    slots = board.slots(names, [])
    assert len(slots.routes) == shared.ROUTES_MAX
    assert board.left_out == (names[-2:], [])
    one, two = (Limits(100, Counters(memory, worker, slots)) for worker in (0, 1))
    assert one.enter(names[-1], 1, CLIENT, 0) is None
    assert one.enter(names[-1], 1, CLIENT, 0) is Refusal.ROUTE
    assert two.enter(names[-1], 1, CLIENT, 0) is None


def test_slots_pass_through_a_message() -> None:
    slots = Slots({"chat": 3}, {endpoint_name("rooms", "192.0.2.9:9000"): 5})
    assert Slots.from_json(slots.to_json()) == slots


def test_other_memory_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 8 * 10**9)
    with pytest.raises(ValueError, match="not the memory"):
        SharedMemory(fd)


# --- Two processes ----------------------------------------------------------------------------

WORKER = """
import sys
from gateway.control.counters import Counters
from gateway.control.shared import Cell, SharedMemory, Slots
from gateway.events import Address
from gateway.limits import Limits

memory = SharedMemory(int(sys.argv[1]))
worker, turns = int(sys.argv[2]), int(sys.argv[3])
counters = Counters(memory, worker, Slots({"chat": 0}))
limits = Limits(10**6, counters)
clients = [Address(host=f"10.0.{worker}.{n}", port=1) for n in range(100)]
counters.beat(1, 0)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    client = clients[turn % 100]
    limits.opened()
    assert limits.enter("chat", 0, client, 1000) is None
    counters.began("chat")
    counters.add(Cell.ACCEPTED)
    if turn % 2:
        limits.leave("chat", client)
        limits.closed()
print("done", flush=True)
sys.stdin.readline()
"""


def test_two_processes_lose_nothing() -> None:
    turns = 4000
    fd = SharedMemory.create()
    memory = SharedMemory(fd)
    board = Board(memory)
    assert board.slots(["chat"], []).routes == {"chat": 0}
    children = []
    for worker in (0, 1):
        board.begin(worker)
        children.append(subprocess.Popen(
            [sys.executable, "-c", WORKER, str(fd), str(worker), str(turns)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd], text=True, cwd=ROOT,
        ))
    try:
        for word in ("ready", "done"):
            for child in children:
                assert child.stdout is not None and child.stdin is not None
                assert child.stdout.readline().strip() == word
                if word == "ready":
                    child.stdin.write("\n")
                    child.stdin.flush()
        totals = board.totals()
        assert totals["accepted"] == 2 * turns
        assert totals["connections"] == totals["sessions"] == turns
        assert board.routes()["chat"].open == turns
        assert board.routes()["chat"].begun == 2 * turns
        children[0].kill()
        children[0].wait()
        board.bury(0)
        assert board.totals()["accepted"] == 2 * turns
        assert board.routes()["chat"].open == turns // 2
    finally:
        for child in children:
            child.kill()
            child.communicate()
        memory.close()


def random_of(seed: int) -> random.Random:
    """Chance, seeded."""
    return random.Random(seed)
