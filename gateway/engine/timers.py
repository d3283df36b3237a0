"""Timers for an engine: a heap, with cancelled entries left in it until they are many.

Laws of this file:

- Setting and cancelling cost O(log n) and O(1), so that each of many thousands of links may move
  its timer often.
- A cancelled timer is never given out; the heap holds at most twice what lives, and a little.
- Equal times come out in the order in which they were set, so that runs can be repeated.
- It knows no clock: the engine asks what is due.
"""

import heapq
import math
from typing import Generic, TypeVar

_Owner = TypeVar("_Owner")

_SPARE = 64                        # cancelled entries that are not worth a clean-up


class Timer(Generic[_Owner]):
    """One timer; `owner` is None once it was given out or cancelled."""

    __slots__ = ("at", "name", "owner")

    def __init__(self, at: float, owner: _Owner, name: str):
        self.at = at
        self.owner: _Owner | None = owner
        self.name = name


class Timers(Generic[_Owner]):
    """All timers of one engine. `len()` counts those that live."""

    __slots__ = ("_heap", "_live", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer[_Owner]]] = []
        self._live = 0
        self._serial = 0

    def __len__(self) -> int:
        return self._live

    def add(self, at: float, owner: _Owner, name: str) -> Timer[_Owner]:
        """A timer for the time `at`, in seconds of the engine's clock."""
        timer = Timer(at, owner, name)
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, timer))
        self._live += 1
        return timer

    def cancel(self, timer: Timer[_Owner]) -> None:
        """Forget it; harmless if it was given out or cancelled before."""
        if timer.owner is None:
            return
        timer.owner = None
        self._live -= 1
        if len(self._heap) > 2 * self._live + _SPARE:
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapq.heapify(self._heap)

    def next_at(self) -> float:
        """When the earliest is due; infinite if there is none."""
        heap = self._heap
        while heap and heap[0][2].owner is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def take(self, now: float) -> tuple[_Owner, str] | None:
        """The earliest timer that is due, which is then no more; None if none is."""
        if self.next_at() > now:
            return None
        timer = heapq.heappop(self._heap)[2]
        owner, timer.owner = timer.owner, None
        self._live -= 1
        assert owner is not None
        return owner, timer.name
