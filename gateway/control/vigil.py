"""Which workers do not turn any more, by the beat that each writes into shared memory every second.

Laws of this file:

- Pure: the clock and the beats are passed in. Times are of CLOCK_MONOTONIC, in seconds.
- Who looks late may itself have been stopped, and the workers with it (a debugger, a suspended
  machine, SIGSTOP to the group): then nobody is accused before he had his time again.
"""

from collections.abc import Iterable
from typing import TypeVar

LOOK = 1.0                    # seconds between two looks
LATE = 3.0                    # seconds after the last look: we were stopped ourselves
SILENT = 10.0                 # seconds without a beat: a worker that turns writes ten
START_LIMIT = 30.0            # seconds until the first one: a busy machine takes its time to import

_Worker = TypeVar("_Worker")


class Vigil:
    """Ask `hung` each `LOOK` seconds."""

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self._excused_at = now

    def hung(
        self, now: float, workers: Iterable[tuple[_Worker, float, float]]
    ) -> list[tuple[_Worker, float]]:
        """Of (worker, when it was born, its last beat or 0): those that hang, and for how long."""
        if now - self._looked_at > LATE:
            self._excused_at = now
        self._looked_at = now
        found = []
        for worker, born, beat in workers:
            limit = SILENT if beat else START_LIMIT
            since = now - max(born, beat, self._excused_at)
            if since > limit:
                found.append((worker, since))
        return found
