"""Which name has which cells of the shared counters.

A name keeps its slot over reloads; one that went leaves it to others only when nobody is on it. No
more is known of a slot here than its number.
"""

from collections.abc import Callable, Iterable, Mapping


class SlotBook:
    """Who has which slot, of at most `limit`."""

    def __init__(self, limit: int):
        self._limit = limit
        self._slots: dict[str, int] = {}
        self._leaving: set[str] = set()
        self._free: list[int] = []
        self._next = 0
        self.fresh: list[int] = []               # given to a new name by the last `assign`
        self.left_out: list[str] = []            # names that got none by the last `assign`

    def assign(self, names: Iterable[str]) -> dict[str, int]:
        """Slots for these names, as far as there are any."""
        self.fresh = []
        given: dict[str, int] = {}
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            slot = self._slots.get(name)
            if slot is None:
                slot = self._take()
                if slot is None:
                    continue
                self._slots[name] = slot
                self.fresh.append(slot)
            given[name] = slot
        self.left_out = [name for name in wanted if name not in given]
        return given

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop()
        if self._next == self._limit:
            return None
        self._next += 1
        return self._next - 1

    def keep(self, names: Mapping[str, int]) -> None:
        """Only these are in the table now."""
        self._leaving = set(self._slots) - set(names)

    def release(self, wanted: Iterable[str], is_empty: Callable[[int], bool]) -> None:
        """Free the slots of names that went and are not wanted again, where they are empty."""
        for name in sorted(self._leaving.difference(wanted)):
            if is_empty(self._slots[name]):
                self._free.append(self._slots.pop(name))
                self._leaving.remove(name)

    def named(self) -> list[tuple[str, int]]:
        """Every name and its slot."""
        return list(self._slots.items())

    def in_use(self) -> list[int]:
        """The slots that have a name."""
        return list(self._slots.values())
