"""What a worker warns of, though not each time: trouble comes in floods.

Laws of this file:

- The same is said of the same at most once in `SAY_AGAIN` seconds.
- That trouble is over is said only where the trouble was.
"""

from gateway.control.report import Report
from gateway.errors import Fault
from gateway.upstreams import News

SAY_AGAIN = 10.0              # seconds between two warnings of one kind


class Trouble:
    """One worker's."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._said: dict[tuple[str, str], float] = {}  # message and what it is about: when
        self._resting: set[str] = set()  # endpoints of which it was said
        self._paused: set[str] = set()   # listeners whose pause was said

    def warn(self, at: float, message: str, *, about: str = "", **fields: str | float) -> bool:
        """Warn, unless the same was said of the same a moment ago; True if it was said."""
        key = (message, about)
        if at - self._said.get(key, -SAY_AGAIN) < SAY_AGAIN:
            return False
        self._said[key] = at
        self._report.warning(message, **fields)
        return True

    def accept_paused(self, at: float, listener: str, fault: Fault) -> None:
        """Nothing is free to accept with."""
        message = f"accepting is paused: {fault.value}; clients wait in the backlog"
        if self.warn(at, message, listener=listener):
            self._paused.add(listener)

    def accept_resumed(self, listener: str) -> None:
        """There is again."""
        if listener in self._paused:
            self._paused.remove(listener)
            self._report.warning("accepting is resumed", listener=listener)

    def endpoints(self, at: float, news: list[News]) -> None:
        """Which endpoints rest, and which work again. One that comes and goes does not fill the
        log. The list is emptied."""
        for one in news:
            key = f"{one.upstream} {one.endpoint}"
            if one.error:
                said = self.warn(
                    at, "an endpoint cannot be connected; it rests, and others are taken meanwhile",
                    about=key, endpoint=one.endpoint, upstream=one.upstream, error=one.error,
                    seconds=one.rest,
                )
                if said:
                    self._resting.add(key)
            elif key in self._resting:
                self._resting.remove(key)
                self._report.info(
                    "an endpoint is connected again", endpoint=one.endpoint, upstream=one.upstream
                )
        news.clear()
