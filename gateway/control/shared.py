"""The memory in which workers count, so that all may read it and it outlives each of them.

One memfd, made by the supervisor and inherited by every worker. Each worker index has a region of
its own: unsigned 64-bit cells for the worker itself, for each route, for each endpoint, and a table
of clients. Here is where each stands; a worker's face of it is counters.py, the supervisor's
board.py.

Laws of the three files:

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
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.errors import Handshake
from gateway.events import Cause, Side

WORKERS_MAX = 256             # regions; what a table may ask for, and the most that "auto" is
ROUTES_MAX = 2048             # with cells of their own
ENDPOINTS_MAX = 4096
BUCKETS = 4096                # of clients; 8 in each, so 32,768 where chance spreads them well
BUCKET_SIZE = 8

VERSION = 2                   # of all that is laid out below
_VERSION_AT, WORKERS_AT = 0, 1           # cells of the header
_PAGE = mmap.PAGESIZE // 8    # cells
_HEADER = _PAGE               # regions begin with a page, so that no two writers share one

ROUTE_CELLS = 32
_STATUS_AT = 64               # behind the cells of `Cell`
_HANDSHAKES_AT = 96           # behind those; TLS that failed, of each side and by reason
WORKER_CELLS = 128
ROUTES_AT = WORKER_CELLS
ENDPOINTS_AT = ROUTES_AT + ROUTES_MAX * ROUTE_CELLS
CLIENTS_AT = -(-(ENDPOINTS_AT + ENDPOINTS_MAX) // _PAGE) * _PAGE
BUCKET_CELLS = 2 * BUCKET_SIZE          # a hash and its count, eight times
_REGION = -(-(CLIENTS_AT + BUCKETS * BUCKET_CELLS) // _PAGE) * _PAGE


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


# Answers that have a cell each. Others are what an upstream said; they share one for their class.
STATUSES = (
    101, 200, 400, 401, 403, 404, 405, 408, 413, 414, 426, 429, 431, 499, 500, 501, 502, 503, 504,
    505,
)
STATUS_LABELS = (*map(str, STATUSES), "2xx", "3xx", "4xx", "5xx", "none")
STATUS_CELLS = {label: _STATUS_AT + place for place, label in enumerate(STATUS_LABELS)}
assert _STATUS_AT + len(STATUS_LABELS) <= _HANDSHAKES_AT

HANDSHAKE_CELLS = {
    key: _HANDSHAKES_AT + place
    for place, key in enumerate((side, why) for side in Side for why in Handshake)
}
assert _HANDSHAKES_AT + len(HANDSHAKE_CELLS) <= WORKER_CELLS

# Cells of a route.
ROUTE_OPEN, ROUTE_BEGUN, ROUTE_REFUSED, _CAUSES_AT = 0, 1, 2, 8
WORKER_DIED = "worker died"   # the cause that no record has: nobody was there to write it
CAUSES = (*(cause.value for cause in Cause), WORKER_DIED)
CAUSE_CELLS = {value: _CAUSES_AT + place for place, value in enumerate(CAUSES)}
assert _CAUSES_AT + len(CAUSES) <= ROUTE_CELLS


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
        try:
            self._map = mmap.mmap(fd, (_HEADER + WORKERS_MAX * _REGION) * 8)
        except (ValueError, OSError):
            os.close(fd)
            raise
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
        return self.cells[WORKERS_AT]

    def forget_clients(self, worker: int) -> None:
        """Empty a dead worker's table of clients, and give its pages back (madvise(2))."""
        start = (region_of(worker) + CLIENTS_AT) * 8
        self._map.madvise(mmap.MADV_REMOVE, start, BUCKETS * BUCKET_CELLS * 8)

    def close(self) -> None:
        """Unmap it. Whoever still has a face of it must not use that."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)


def region_of(worker: int) -> int:
    """The cell with which this worker's begin."""
    assert 0 <= worker < WORKERS_MAX
    return _HEADER + worker * _REGION
