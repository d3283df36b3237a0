"""The supervisor's face of the memory that all share: what it reads, and who gets which cells.

It writes only where a worker is dead: what was open there is not, and a relay that had no end yet
has ended with it (shared.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.control.shared import (
    CAUSE_CELLS,
    ENDPOINTS_AT,
    ENDPOINTS_MAX,
    HANDSHAKE_CELLS,
    ROUTE_BEGUN,
    ROUTE_CELLS,
    ROUTE_OPEN,
    ROUTE_REFUSED,
    ROUTES_AT,
    ROUTES_MAX,
    STATUS_CELLS,
    WORKER_DIED,
    WORKERS_AT,
    Cell,
    SharedMemory,
    Slots,
    region_of,
)
from gateway.control.slot_book import SlotBook

GAUGES = (
    Cell.BEAT, Cell.CONNECTIONS, Cell.SESSIONS, Cell.SERVING, Cell.HELD, Cell.LAG_US,
)


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
            routes, lambda slot: not self._sum(ROUTES_AT + slot * ROUTE_CELLS + ROUTE_OPEN)
        )
        self._endpoints.release(endpoints, lambda slot: not self._sum(ENDPOINTS_AT + slot))
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
        self._cells[WORKERS_AT] = max(self._cells[WORKERS_AT], worker + 1)

    def bury(self, worker: int) -> None:
        """The worker with this index is dead: nothing is open in it. Its totals stay; relays that
        it has begun and not ended, it has taken with it."""
        base = region_of(worker)
        for cell in GAUGES:
            self._cells[base + cell] = 0
        for slot in self._routes.in_use():
            route = base + ROUTES_AT + slot * ROUTE_CELLS
            ended = sum(self._cells[route + cell] for cell in CAUSE_CELLS.values())
            self._cells[route + ROUTE_OPEN] = 0
            # More ended than begun where the name got its cells in between.
            lost = max(0, self._cells[route + ROUTE_BEGUN] - ended)
            self._cells[route + CAUSE_CELLS[WORKER_DIED]] += lost
        for slot in self._endpoints.in_use():
            self._cells[base + ENDPOINTS_AT + slot] = 0
        self.memory.forget_clients(worker)

    def cut(self, worker: int, sessions: int) -> None:
        """The worker with this index is dead, and so many sessions were cut with it: nobody else
        writes into its cells now."""
        self._cells[region_of(worker) + Cell.CUT] += sessions

    def beat(self, worker: int) -> int:
        """When it last said that it lives, on CLOCK_MONOTONIC in ns; 0 before the first time."""
        return self._cells[region_of(worker) + Cell.BEAT]

    # --- What is counted ---

    def of_worker(self, worker: int) -> dict[str, int]:
        """Every cell of one worker by its name."""
        base = region_of(worker)
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
        return {label: self._sum(cell) for label, cell in STATUS_CELLS.items()}

    def handshakes(self) -> dict[tuple[str, str], int]:
        """TLS that came to nothing, by side and reason."""
        return {
            (side.name.lower(), why.value): self._sum(cell)
            for (side, why), cell in HANDSHAKE_CELLS.items()
        }

    def routes(self) -> dict[str, RouteCounts]:
        """Every route that has cells; also one that went while sessions are open on it."""
        counts = {}
        for name, slot in self._routes.named():
            sums = self._route_sums(slot)
            before = self._before.get(slot, [0] * ROUTE_CELLS)
            sums = [now - then for now, then in zip(sums, before, strict=True)]
            ended = {cause: sums[cell] for cause, cell in CAUSE_CELLS.items() if sums[cell]}
            counts[name] = RouteCounts(
                sums[ROUTE_OPEN], sums[ROUTE_BEGUN], sums[ROUTE_REFUSED], ended
            )
        return counts

    def endpoints(self) -> dict[str, int]:
        """What is active on each endpoint, by `endpoint_name`."""
        return {
            name: self._sum(ENDPOINTS_AT + slot) for name, slot in self._endpoints.named()
        }

    @property
    def left_out(self) -> tuple[list[str], list[str]]:
        """Routes, and endpoints, for which no cells are left: they are counted in each worker
        alone. Of the table that was prepared last."""
        return self._routes.left_out, self._endpoints.left_out

    def _sum(self, offset: int) -> int:
        return sum(self._cells[region_of(one) + offset] for one in range(self.memory.workers))

    def _route_sums(self, slot: int) -> list[int]:
        sums = [0] * ROUTE_CELLS
        for worker in range(self.memory.workers):
            at = region_of(worker) + ROUTES_AT + slot * ROUTE_CELLS
            for place, value in enumerate(self._cells[at : at + ROUTE_CELLS].tolist()):
                sums[place] += value
        return sums
