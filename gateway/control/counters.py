"""A worker's face of the memory that all share: what it writes, and what it asks of the others.

A total is added to, a gauge is stored whole; each only in this worker's own region (shared.py).

Never called per byte, nor per message: a handful of stores when a session comes and when it goes.
"""

from hashlib import blake2b

from gateway.balance import Load
from gateway.control.shared import (
    BUCKET_CELLS,
    BUCKETS,
    CAUSE_CELLS,
    CLIENTS_AT,
    ENDPOINTS_AT,
    HANDSHAKE_CELLS,
    ROUTE_BEGUN,
    ROUTE_CELLS,
    ROUTE_OPEN,
    ROUTE_REFUSED,
    ROUTES_AT,
    STATUS_CELLS,
    Cell,
    SharedMemory,
    Slots,
    endpoint_name,
    region_of,
)
from gateway.errors import Handshake
from gateway.events import CLIENT, AccessRecord, Cause, LegCounts, Side

# Plain numbers, since an enum's member is slow to reach and to add.
_CONNECTIONS, _SESSIONS = Cell.CONNECTIONS.value, Cell.SESSIONS.value
_SERVING, _HELD, _BEAT = Cell.SERVING.value, Cell.HELD.value, Cell.BEAT.value

# What relays move, in one tuple: numbers that each live session keeps are to be few.
Moved = tuple[int, int, int, int, int, int]
_MOVED = tuple(cell.value for cell in (
    Cell.BYTES_UP, Cell.BYTES_DOWN, Cell.MESSAGES_UP, Cell.MESSAGES_DOWN, Cell.BYTES_COPIED,
    Cell.BYTES_SPLICED,
))
NOTHING_MOVED: Moved = (0, 0, 0, 0, 0, 0)


class Counters:
    """What one worker writes, and what it asks of the others.

    It is the `Elsewhere` of limits.py, upstreams.py and governor.py, which know nothing of this.
    """

    def __init__(self, memory: SharedMemory, worker: int, slots: Slots):
        self._memory = memory
        self._cells = memory.cells
        self._base = region_of(worker)
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
            self._cells[self._route_cell(slot) + ROUTE_BEGUN] += 1

    def record(self, record: AccessRecord, counted: Moved = NOTHING_MOVED) -> None:
        """A record is written: what it says is counted, but its 101, and what is `counted`."""
        slot = self._routes.get(record.route)
        if record.handshake is not None:
            self.handshake_failed(CLIENT, record.handshake)
        if record.status != 101:
            self._cells[self._base + _status_cell(record.status)] += 1
            if slot is not None:
                self._cells[self._route_cell(slot) + ROUTE_REFUSED] += 1
            return
        if slot is not None:
            # Without a cause: its client was gone before the relay ran, or a bug has ended it.
            cause = record.cause if record.cause in CAUSE_CELLS else Cause.LOST.value
            self._cells[self._route_cell(slot) + CAUSE_CELLS[cause]] += 1
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
        self._cells[self._base + HANDSHAKE_CELLS[side, why]] += 1

    # --- For the limits ---

    def connections_are(self, count: int) -> None:
        """See limits.Elsewhere."""
        self._cells[self._base + _CONNECTIONS] = count

    def sessions_are(self, count: int, route: str, on_route: int) -> None:
        """See limits.Elsewhere."""
        self._cells[self._base + _SESSIONS] = count
        slot = self._routes.get(route)
        if slot is not None:
            self._cells[self._route_cell(slot) + ROUTE_OPEN] = on_route

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
        for cell in range(bucket, bucket + BUCKET_CELLS, 2):
            if not self._cells[cell]:
                self._cells[cell + 1] = count
                self._cells[cell] = int.from_bytes(key, "big")
                self._clients[key] = cell
                return

    def on_route(self, route: str) -> int:
        """See limits.Elsewhere."""
        slot = self._routes.get(route)
        return 0 if slot is None else self._sum_elsewhere(
            ROUTES_AT + slot * ROUTE_CELLS + ROUTE_OPEN
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
            bucket = region_of(worker) + at
            for cell in range(bucket, bucket + BUCKET_CELLS, 2):
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
        return 0 if slot is None else self._sum_elsewhere(ENDPOINTS_AT + slot)

    def serving(self) -> int:
        """See governor.Elsewhere."""
        others = (
            base for base in map(region_of, range(self._memory.workers)) if base != self._base
        )
        return 1 + sum(self._cells[base + _SERVING] for base in others)

    def delayed(self) -> None:
        """See governor.Elsewhere."""
        self.add(Cell.HANDSHAKES_DELAYED)

    def turned_away(self) -> None:
        """See governor.Elsewhere."""
        self.add(Cell.HANDSHAKES_TURNED_AWAY)

    def loads(self, since_ns: int) -> list[Load]:
        """What every other worker has now that serves, and has said so since then."""
        cells = self._cells
        return [
            Load(cells[base + _CONNECTIONS], held=bool(cells[base + _HELD]))
            for base in map(region_of, range(self._memory.workers))
            if base != self._base and cells[base + _SERVING] and cells[base + _BEAT] >= since_ns
        ]

    def _sum_elsewhere(self, offset: int) -> int:
        return sum(
            self._cells[region_of(worker) + offset]
            for worker in range(self._memory.workers)
            if worker != self._worker
        )

    def _route_cell(self, slot: int) -> int:
        return self._base + ROUTES_AT + slot * ROUTE_CELLS

    def _endpoint_cell(self, slot: int) -> int:
        return self._base + ENDPOINTS_AT + slot


def _status_cell(status: int | None) -> int:
    if status is None:
        return STATUS_CELLS["none"]
    cell = STATUS_CELLS.get(str(status))
    return STATUS_CELLS.get(f"{status // 100}xx", STATUS_CELLS["none"]) if cell is None else cell


def _client_hash(route: str, client: bytes) -> bytes:
    """What stands for a client on a route: 64 bits that are not zero. Two that are equal would
    be counted as one, which chance brings about once in 2**64 pairs."""
    digest = blake2b(route.encode() + b"\0" + client, digest_size=8).digest()
    return digest if any(digest) else b"\0" * 7 + b"\1"


def _bucket(key: bytes) -> int:
    """Where in a region a client's bucket begins."""
    return CLIENTS_AT + int.from_bytes(key, "big") % BUCKETS * BUCKET_CELLS
