"""What workers count, where all may read it: cells in memory that outlives each of them.

One memfd, made by the supervisor and inherited by every worker. Each worker index has a region of
its own: unsigned 64-bit cells for the worker itself, for each route, for each endpoint, and a table
of clients. `Counters` is a worker's face of it, `Board` the supervisor's.

Laws of this file:

- One writer for each cell: the worker whose region it is. So nothing is locked, and nothing is
  lost. The supervisor writes only where that worker is dead (`bury`): what was open there is not,
  and a relay that had no end yet has ended with its worker.
- Totals go on over a worker's end, since its successor adds to the same cells. Gauges are numbers
  that the worker knows itself and stores whole.
- An aligned cell is stored and loaded at once. Two cells are not: a reader that comes between two
  stores sees one of them. Nothing here needs more than that.
- Names get their cells (`Slots`) from the supervisor. One without a cell is counted nowhere; for
  the limits this means that it holds in each worker alone.
- The memory is sparse: what nobody ever touched takes no page, and a table of clients that died is
  given back to the system.

Never called per byte, nor per message: a handful of stores when a session comes and when it goes.
"""

import enum
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from gateway.balance import Load
from gateway.control.slot_book import SlotBook
from gateway.errors import Handshake
from gateway.events import CLIENT, AccessRecord, Cause, LegCounts, Side

WORKERS_MAX = 256             # regions; more than one for each CPU that a machine has today
ROUTES_MAX = 2048             # with cells of their own
ENDPOINTS_MAX = 4096
BUCKETS = 4096                # of clients; 8 in each, so 32,768 where chance spreads them well
BUCKET_SIZE = 8

VERSION = 2                   # of all that is laid out below
_VERSION_AT, _WORKERS_AT = 0, 1          # cells of the header
_PAGE = mmap.PAGESIZE // 8    # cells
_HEADER = _PAGE               # regions begin with a page, so that no two writers share one

_ROUTE_CELLS = 32
_STATUS_AT = 64               # behind the cells of `Cell`
_HANDSHAKES_AT = 96           # behind those; TLS that failed, of each side and by reason
_WORKER_CELLS = 128
_ROUTES_AT = _WORKER_CELLS
_ENDPOINTS_AT = _ROUTES_AT + ROUTES_MAX * _ROUTE_CELLS
_CLIENTS_AT = -(-(_ENDPOINTS_AT + ENDPOINTS_MAX) // _PAGE) * _PAGE
_BUCKET_CELLS = 2 * BUCKET_SIZE          # a hash and its count, eight times
_REGION = -(-(_CLIENTS_AT + BUCKETS * _BUCKET_CELLS) // _PAGE) * _PAGE


class Cell(enum.IntEnum):
    """A worker's own cells; the names are what `Board` calls them, in lower case."""

    # Gauges.
    BEAT = 0                  # CLOCK_MONOTONIC in nanoseconds, when it last wrote this
    CONNECTIONS = 1           # clients, whatever they do
    SESSIONS = 2
    SERVING = 3               # 1 from its first accept to its drain: others reckon with it
    HELD = 4                  # 1 while it accepts nothing, for the balance
    LAG_US = 5                # how late the last beat was: what a full loop makes timers wait
    # Totals.
    BEATS = 8
    LAG_SUM_US = 9
    ACCEPTED = 10
    REFUSED = 11              # cut at accept
    CRASHED = 12              # sessions that raised
    CUT = 13                  # sessions that a drain or SIGINT cut
    DROPPED_LINES = 14
    HANDSHAKES_DELAYED = 15   # waited for their turn
    HANDSHAKES_TURNED_AWAY = 16  # were over the rate for longer than one waits
    BYTES_UP = 17             # from clients, of relays
    BYTES_DOWN = 18
    MESSAGES_UP = 19
    MESSAGES_DOWN = 20
    BYTES_COPIED = 21         # of both directions
    BYTES_SPLICED = 22
    ROUND_TRIPS_CLIENT = 23   # heartbeats that were answered; the last one of each session
    ROUND_TRIP_CLIENT_US = 24
    ROUND_TRIPS_UPSTREAM = 25
    ROUND_TRIP_UPSTREAM_US = 26
    TLS_FULL = 27             # handshakes with clients
    TLS_RESUMED = 28          # by a ticket


# Plain numbers, since an enum's member is slow to reach and to add.
_CONNECTIONS, _SESSIONS = Cell.CONNECTIONS.value, Cell.SESSIONS.value
_SERVING, _HELD = Cell.SERVING.value, Cell.HELD.value

# What relays move, in one tuple: numbers that each live session keeps are to be few.
Moved = tuple[int, int, int, int, int, int]
_MOVED = tuple(cell.value for cell in (
    Cell.BYTES_UP, Cell.BYTES_DOWN, Cell.MESSAGES_UP, Cell.MESSAGES_DOWN, Cell.BYTES_COPIED,
    Cell.BYTES_SPLICED,
))
NOTHING_MOVED: Moved = (0, 0, 0, 0, 0, 0)

GAUGES = (
    Cell.BEAT, Cell.CONNECTIONS, Cell.SESSIONS, Cell.SERVING, Cell.HELD, Cell.LAG_US,
)

# Answers that have a cell each. Others are what an upstream said; they share one for their class.
STATUSES = (
    101, 200, 400, 401, 403, 404, 405, 408, 413, 414, 426, 429, 431, 499, 500, 501, 502, 503, 504,
    505,
)
STATUS_LABELS = (*map(str, STATUSES), "2xx", "3xx", "4xx", "5xx", "none")
_STATUS_CELLS = {label: _STATUS_AT + place for place, label in enumerate(STATUS_LABELS)}
assert _STATUS_AT + len(STATUS_LABELS) <= _HANDSHAKES_AT

_HANDSHAKE_CELLS = {
    key: _HANDSHAKES_AT + place
    for place, key in enumerate((side, why) for side in Side for why in Handshake)
}
assert _HANDSHAKES_AT + len(_HANDSHAKE_CELLS) <= _WORKER_CELLS

# Cells of a route.
_OPEN, _BEGUN, _REFUSED, _CAUSES_AT = 0, 1, 2, 8
WORKER_DIED = "worker died"   # the cause that no record has: nobody was there to write it
CAUSES = (*(cause.value for cause in Cause), WORKER_DIED)
_CAUSE_CELLS = {value: _CAUSES_AT + place for place, value in enumerate(CAUSES)}
assert _CAUSES_AT + len(CAUSES) <= _ROUTE_CELLS


def endpoint_name(upstream: str, address: str) -> str:
    """The key of an endpoint's slot. No upstream's name has a space."""
    return f"{upstream} {address}"


@dataclass(frozen=True, slots=True)
class Slots:
    """Which cells a name has, as the supervisor gave them out."""

    routes: dict[str, int] = field(default_factory=dict)
    endpoints: dict[str, int] = field(default_factory=dict)   # by `endpoint_name`

    def to_json(self) -> dict[str, dict[str, int]]:
        """For a message to a worker."""
        return {"routes": self.routes, "endpoints": self.endpoints}

    @classmethod
    def from_json(cls, read: Mapping[str, dict[str, int]]) -> "Slots":
        """As it was before `to_json`."""
        return cls(dict(read["routes"]), dict(read["endpoints"]))


class SharedMemory:
    """The memory itself, mapped into this process."""

    def __init__(self, fd: int):
        """Map what `fd` is, and own it. Raises ValueError for another layout."""
        self.fd = fd                             # for those who are to share it
        self._map = mmap.mmap(fd, (_HEADER + WORKERS_MAX * _REGION) * 8)
        self.cells = memoryview(self._map).cast("Q")
        if self.cells[_VERSION_AT] != VERSION:
            self.close()
            raise ValueError("this is not the memory of this version's supervisor")

    @staticmethod
    def create() -> int:
        """A descriptor of new memory. It is closed at exec unless it is passed on by name."""
        fd = os.memfd_create("gateway-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, (_HEADER + WORKERS_MAX * _REGION) * 8)
        os.pwrite(fd, VERSION.to_bytes(8, "little"), _VERSION_AT * 8)
        return fd

    @property
    def workers(self) -> int:
        """How many regions were ever in use: those before this index."""
        return self.cells[_WORKERS_AT]

    def forget_clients(self, worker: int) -> None:
        """Empty a dead worker's table of clients, and give its pages back (madvise(2))."""
        start = (_region(worker) + _CLIENTS_AT) * 8
        self._map.madvise(mmap.MADV_REMOVE, start, BUCKETS * _BUCKET_CELLS * 8)

    def close(self) -> None:
        """Unmap it. Whoever still has a face of it must not use that."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)


def _region(worker: int) -> int:
    assert 0 <= worker < WORKERS_MAX
    return _HEADER + worker * _REGION


# --- A worker's face ----------------------------------------------------------------------------


class Counters:
    """What one worker writes, and what it asks of the others.

    It is the `Elsewhere` of limits.py, upstreams.py and governor.py, which know nothing of this.
    """

    def __init__(self, memory: SharedMemory, worker: int, slots: Slots):
        self._memory = memory
        self._cells = memory.cells
        self._base = _region(worker)
        self._worker = worker
        self._routes: dict[str, int] = {}
        self._endpoints: dict[str, int] = {}
        self._active: dict[str, int] = {}        # by endpoint; two of one name are one here
        self._clients: dict[bytes, int] = {}     # hash to the cell that it has
        self.use(slots)

    def use(self, slots: Slots) -> None:
        """Go by these slots from now on. Names that went keep theirs while something is open."""
        for mine, new, offset in (
            (self._routes, slots.routes, self._route_cell),
            (self._endpoints, slots.endpoints, self._endpoint_cell),
        ):
            for name, slot in list(mine.items()):
                if name not in new and not self._cells[offset(slot)]:
                    del mine[name]
            mine.update(new)

    def add(self, cell: Cell, count: int = 1) -> None:
        """Add to a total."""
        self._cells[self._base + cell] += count

    def store(self, cell: Cell, value: int) -> None:
        """Say a gauge."""
        self._cells[self._base + cell] = value

    def beat(self, now_ns: int, late_us: int) -> None:
        """This worker's loop turns; `late_us` after it was meant to say so."""
        self.store(Cell.BEAT, now_ns)
        self.store(Cell.LAG_US, late_us)
        self.add(Cell.LAG_SUM_US, late_us)
        self.add(Cell.BEATS)

    def moved(self, counts: tuple[LegCounts, LegCounts], before: Moved) -> Moved:
        """A relay has moved so much. Returns what is counted of it now, `before` until now."""
        up, down = counts
        now = (
            up.bytes_in, down.bytes_in, up.messages, down.messages, up.copied + down.copied,
            up.spliced + down.spliced,
        )
        if now == before:
            return before
        for cell, count, counted in zip(_MOVED, now, before, strict=True):
            if count > counted:                  # of a session that crashed no counts are left
                self._cells[self._base + cell] += count - counted
        return now

    def began(self, route: str) -> None:
        """A client got its 101, and is a session of this route. One `record` ends it."""
        self._cells[self._base + _status_cell(101)] += 1
        slot = self._routes.get(route)
        if slot is not None:
            self._cells[self._route_cell(slot) + _BEGUN] += 1

    def record(self, record: AccessRecord, counted: Moved = NOTHING_MOVED) -> None:
        """A record is written: what it says is counted, but its 101, and what is `counted`."""
        slot = self._routes.get(record.route)
        if record.handshake is not None:
            self.handshake_failed(CLIENT, record.handshake)
        if record.status != 101:
            self._cells[self._base + _status_cell(record.status)] += 1
            if slot is not None:
                self._cells[self._route_cell(slot) + _REFUSED] += 1
            return
        if slot is not None:
            # Without a cause: its client was gone before the relay ran, or a bug has ended it.
            cause = record.cause if record.cause in _CAUSE_CELLS else Cause.LOST.value
            self._cells[self._route_cell(slot) + _CAUSE_CELLS[cause]] += 1
        up, down = record.counts
        self.moved(record.counts, counted)
        if up.round_trip is not None:
            self.add(Cell.ROUND_TRIPS_CLIENT)
            self.add(Cell.ROUND_TRIP_CLIENT_US, round(up.round_trip * 1_000_000))
        if down.round_trip is not None:
            self.add(Cell.ROUND_TRIPS_UPSTREAM)
            self.add(Cell.ROUND_TRIP_UPSTREAM_US, round(down.round_trip * 1_000_000))

    def handshake_failed(self, side: Side, why: Handshake) -> None:
        """TLS with this side came to nothing."""
        self._cells[self._base + _HANDSHAKE_CELLS[side, why]] += 1

    # --- For the limits ---

    def connections_are(self, count: int) -> None:
        """See limits.Elsewhere."""
        self._cells[self._base + _CONNECTIONS] = count

    def sessions_are(self, count: int, route: str, on_route: int) -> None:
        """See limits.Elsewhere."""
        self._cells[self._base + _SESSIONS] = count
        slot = self._routes.get(route)
        if slot is not None:
            self._cells[self._route_cell(slot) + _OPEN] = on_route

    def client_is(self, route: str, client: bytes, count: int) -> None:
        """See limits.Elsewhere. Where its bucket is full the others do not see this client."""
        key = _client_hash(route, client)
        cell = self._clients.get(key)
        if cell is None:
            if count:
                self._add_client(key, count)
        elif count:
            self._cells[cell + 1] = count
        else:
            self._cells[cell] = 0                # first what makes it found, then what is found
            self._cells[cell + 1] = 0
            del self._clients[key]

    def _add_client(self, key: bytes, count: int) -> None:
        bucket = self._base + _bucket(key)
        for cell in range(bucket, bucket + _BUCKET_CELLS, 2):
            if not self._cells[cell]:
                self._cells[cell + 1] = count
                self._cells[cell] = int.from_bytes(key, "big")
                self._clients[key] = cell
                return

    def on_route(self, route: str) -> int:
        """See limits.Elsewhere."""
        slot = self._routes.get(route)
        return 0 if slot is None else self._sum_elsewhere(
            _ROUTES_AT + slot * _ROUTE_CELLS + _OPEN
        )

    def of_client(self, route: str, client: bytes) -> int:
        """See limits.Elsewhere."""
        key = _client_hash(route, client)
        wanted = int.from_bytes(key, "big")
        at = _bucket(key)
        total = 0
        for worker in range(self._memory.workers):
            if worker == self._worker:
                continue
            bucket = _region(worker) + at
            for cell in range(bucket, bucket + _BUCKET_CELLS, 2):
                if self._cells[cell] == wanted:
                    total += self._cells[cell + 1]
        return total

    # --- For the balance over endpoints, and over workers ---

    def begun_on(self, upstream: str, endpoint: str) -> None:
        """See upstreams.Elsewhere."""
        self._endpoint_changed(endpoint_name(upstream, endpoint), 1)

    def ended_on(self, upstream: str, endpoint: str) -> None:
        """See upstreams.Elsewhere."""
        self._endpoint_changed(endpoint_name(upstream, endpoint), -1)

    def _endpoint_changed(self, name: str, change: int) -> None:
        active = self._active.pop(name, 0) + change
        assert active >= 0, f"{name} was ended more often than begun"
        if active:
            self._active[name] = active
        slot = self._endpoints.get(name)
        if slot is not None:
            self._cells[self._endpoint_cell(slot)] = active

    def on_endpoint(self, upstream: str, endpoint: str) -> int:
        """See upstreams.Elsewhere."""
        slot = self._endpoints.get(endpoint_name(upstream, endpoint))
        return 0 if slot is None else self._sum_elsewhere(_ENDPOINTS_AT + slot)

    def serving(self) -> int:
        """See governor.Elsewhere."""
        others = (
            base for base in map(_region, range(self._memory.workers)) if base != self._base
        )
        return 1 + sum(self._cells[base + _SERVING] for base in others)

    def delayed(self) -> None:
        """See governor.Elsewhere."""
        self.add(Cell.HANDSHAKES_DELAYED)

    def turned_away(self) -> None:
        """See governor.Elsewhere."""
        self.add(Cell.HANDSHAKES_TURNED_AWAY)

    def loads(self) -> list[Load]:
        """What every other worker that serves has now."""
        cells = self._cells
        return [
            Load(cells[base + _CONNECTIONS], held=bool(cells[base + _HELD]))
            for base in map(_region, range(self._memory.workers))
            if base != self._base and cells[base + _SERVING]
        ]

    def _sum_elsewhere(self, offset: int) -> int:
        return sum(
            self._cells[_region(worker) + offset]
            for worker in range(self._memory.workers)
            if worker != self._worker
        )

    def _route_cell(self, slot: int) -> int:
        return self._base + _ROUTES_AT + slot * _ROUTE_CELLS

    def _endpoint_cell(self, slot: int) -> int:
        return self._base + _ENDPOINTS_AT + slot


def _status_cell(status: int | None) -> int:
    if status is None:
        return _STATUS_CELLS["none"]
    cell = _STATUS_CELLS.get(str(status))
    return _STATUS_CELLS.get(f"{status // 100}xx", _STATUS_CELLS["none"]) if cell is None else cell


def _client_hash(route: str, client: bytes) -> bytes:
    """What stands for a client on a route: 64 bits that are not zero. Two that are equal would
    be counted as one, which chance brings about once in 2**64 pairs."""
    digest = blake2b(route.encode() + b"\0" + client, digest_size=8).digest()
    return digest if any(digest) else b"\0" * 7 + b"\1"


def _bucket(key: bytes) -> int:
    """Where in a region a client's bucket begins."""
    return _CLIENTS_AT + int.from_bytes(key, "big") % BUCKETS * _BUCKET_CELLS


# --- The supervisor's face ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteCounts:
    """What all workers say of one route."""

    open: int = 0
    begun: int = 0            # relays: clients that got their 101
    refused: int = 0          # requests that did not become a relay
    ended: dict[str, int] = field(default_factory=dict)  # relays, by cause


class Board:
    """What the supervisor reads, and how names get their cells."""

    def __init__(self, memory: SharedMemory):
        self.memory = memory
        self._cells = memory.cells
        self._routes = SlotBook(ROUTES_MAX)
        self._endpoints = SlotBook(ENDPOINTS_MAX)
        self._before: dict[int, list[int]] = {}  # a route's slot to what its last owner counted

    # --- Slots ---

    def slots(self, routes: Iterable[str], endpoints: Iterable[str]) -> Slots:
        """Cells for these names (`endpoint_name` for endpoints); old ones keep theirs. For a
        table that is prepared: nothing is freed before `keep`."""
        routes, endpoints = list(routes), list(endpoints)
        self._routes.release(
            routes, lambda slot: not self._sum(_ROUTES_AT + slot * _ROUTE_CELLS + _OPEN)
        )
        self._endpoints.release(endpoints, lambda slot: not self._sum(_ENDPOINTS_AT + slot))
        given = self._routes.assign(routes)
        for slot in self._routes.fresh:
            self._before[slot] = self._route_sums(slot)
        return Slots(given, self._endpoints.assign(endpoints))

    def keep(self, slots: Slots) -> None:
        """This is the table that holds now: cells of other names are free for others, as soon as
        nobody is on them."""
        self._routes.keep(slots.routes)
        self._endpoints.keep(slots.endpoints)

    # --- Workers ---

    def begin(self, worker: int) -> None:
        """A worker with this index is about to be started."""
        self.bury(worker)
        self._cells[_WORKERS_AT] = max(self._cells[_WORKERS_AT], worker + 1)

    def bury(self, worker: int) -> None:
        """The worker with this index is dead: nothing is open in it. Its totals stay; relays that
        it has begun and not ended, it has taken with it."""
        base = _region(worker)
        for cell in GAUGES:
            self._cells[base + cell] = 0
        for slot in self._routes.in_use():
            route = base + _ROUTES_AT + slot * _ROUTE_CELLS
            ended = sum(self._cells[route + cell] for cell in _CAUSE_CELLS.values())
            self._cells[route + _OPEN] = 0
            # More ended than begun where the name got its cells in between.
            lost = max(0, self._cells[route + _BEGUN] - ended)
            self._cells[route + _CAUSE_CELLS[WORKER_DIED]] += lost
        for slot in self._endpoints.in_use():
            self._cells[base + _ENDPOINTS_AT + slot] = 0
        self.memory.forget_clients(worker)

    def cut(self, worker: int, sessions: int) -> None:
        """The worker with this index is dead, and so many sessions were cut with it: nobody else
        writes into its cells now."""
        self._cells[_region(worker) + Cell.CUT] += sessions

    def beat(self, worker: int) -> int:
        """When it last said that it lives, on CLOCK_MONOTONIC in ns; 0 before the first time."""
        return self._cells[_region(worker) + Cell.BEAT]

    # --- What is counted ---

    def of_worker(self, worker: int) -> dict[str, int]:
        """Every cell of one worker by its name."""
        base = _region(worker)
        return {cell.name.lower(): self._cells[base + cell] for cell in Cell}

    def totals(self) -> dict[str, int]:
        """The sums over all workers that ever were, by name; without BEAT and LAG_US, of which a
        sum says nothing."""
        return {
            cell.name.lower(): self._sum(cell)
            for cell in Cell
            if cell not in (Cell.BEAT, Cell.LAG_US)
        }

    def statuses(self) -> dict[str, int]:
        """Answers by status, or by class where a status has no cell of its own."""
        return {label: self._sum(cell) for label, cell in _STATUS_CELLS.items()}

    def handshakes(self) -> dict[tuple[str, str], int]:
        """TLS that came to nothing, by side and reason."""
        return {
            (side.name.lower(), why.value): self._sum(cell)
            for (side, why), cell in _HANDSHAKE_CELLS.items()
        }

    def routes(self) -> dict[str, RouteCounts]:
        """Every route that has cells; also one that went while sessions are open on it."""
        counts = {}
        for name, slot in self._routes.named():
            sums = self._route_sums(slot)
            before = self._before.get(slot, [0] * _ROUTE_CELLS)
            sums = [now - then for now, then in zip(sums, before, strict=True)]
            ended = {cause: sums[cell] for cause, cell in _CAUSE_CELLS.items() if sums[cell]}
            counts[name] = RouteCounts(sums[_OPEN], sums[_BEGUN], sums[_REFUSED], ended)
        return counts

    def endpoints(self) -> dict[str, int]:
        """What is active on each endpoint, by `endpoint_name`."""
        return {
            name: self._sum(_ENDPOINTS_AT + slot) for name, slot in self._endpoints.named()
        }

    @property
    def left_out(self) -> tuple[list[str], list[str]]:
        """Routes, and endpoints, for which no cells are left: they are counted in each worker
        alone. Of the table that was prepared last."""
        return self._routes.left_out, self._endpoints.left_out

    def _sum(self, offset: int) -> int:
        return sum(self._cells[_region(one) + offset] for one in range(self.memory.workers))

    def _route_sums(self, slot: int) -> list[int]:
        sums = [0] * _ROUTE_CELLS
        for worker in range(self.memory.workers):
            at = _region(worker) + _ROUTES_AT + slot * _ROUTE_CELLS
            for place, value in enumerate(self._cells[at : at + _ROUTE_CELLS].tolist()):
                sums[place] += value
        return sums
