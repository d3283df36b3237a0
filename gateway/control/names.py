"""Looks the names of upstreams up again, each upstream's after its own `resolve`.

Laws of this file:

- A look-up that fails changes nothing, and is tried again soon: an answer that comes late begins to
  serve, and one that went is not missed for longer than it must be.
- That a name fails is said when it begins, and again when it resolves; not each time.
"""

import asyncio
from collections.abc import Iterable

from gateway.control.reloading import Reloader, Workers, sentence_of
from gateway.control.resolver import Failure
from gateway.table import Table, Upstream

RETRY = 5.0                   # seconds until a name that failed is asked for again, at the latest
NAP = 1.0                     # seconds after which a new table is noticed


class Names:
    """`run` is a task of its own, until it is cancelled."""

    def __init__(self, reloader: Reloader, workers: Workers) -> None:
        self._reloader = reloader
        self._workers = workers
        self._table: Table | None = None         # the one that `_due` speaks of
        self._due: dict[str, float] = {}         # by the upstream's name
        self._failing: set[str] = set()          # names

    def failed(self, failures: Iterable[Failure]) -> None:
        """These were said already, by who looked all names up: the start, or a reload."""
        self._failing = {failure.name for failure in failures}

    async def run(self) -> None:
        """Look up what is due, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            self._follow_table(loop.time())
            now = loop.time()
            due = [name for name, at in self._due.items() if at <= now]
            if due:
                table = self._table
                assert table is not None
                self._say(table, due, await self._reloader.refresh(due))
                for name in due:
                    self._due[name] = loop.time() + self._pause(table.upstreams[name])
            soon = min(self._due.values(), default=now + NAP)
            await asyncio.sleep(max(0.0, min(soon - loop.time(), NAP)))

    def _follow_table(self, now: float) -> None:
        """The names of a new table were looked up with it."""
        table = self._workers.terms.table
        if table is not self._table:
            self._table = table
            self._due = {
                name: now + self._pause(upstream) for name, upstream in table.upstreams.items()
                if _names(upstream)
            }

    def _pause(self, upstream: Upstream) -> float:
        fails = bool(_names(upstream) & self._failing)
        return min(upstream.resolve, RETRY) if fails else upstream.resolve

    def _say(self, table: Table, due: list[str], failures: list[Failure]) -> None:
        """What fails now and did not before, and what did."""
        report = self._workers.report
        asked = set().union(*(_names(table.upstreams[name]) for name in due))
        failing = {failure.name for failure in failures}
        for failure in failures:
            if failure.name not in self._failing:
                report.warning(sentence_of(failure))
        for name in sorted((self._failing & asked) - failing):
            report.info("a name resolves again", name=name)
        self._failing = (self._failing - asked) | failing
        report.flush()


def _names(upstream: Upstream) -> set[str]:
    """What a name server is asked for."""
    return {entry.host for entry in upstream.entries if entry.has_name and entry.weight}
