"""What TLS needs from time to time: new keys for tickets, and a word before a certificate ends.

Laws of this file:

- A certificate that ends within `WARN_DAYS` is warned of once a day, and at once when it comes.
- What a reload changes is seen at the next look, `LOOK` seconds later at most.

Never: a change of the table's own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.control.report import Report
from gateway.control.terms import Terms
from gateway.control.tickets import ROTATE
from gateway.control.vault import expiries

WARN_DAYS = 21                # most are renewed 30 days ahead: from here on something is wrong
LOOK = 60.0                   # seconds
DAY = 86400.0


class Asked(Protocol):
    """The supervisor, as far as this goes."""

    terms: Terms
    report: Report


class Renewing:
    """`run` it while workers serve. `renew` gives them new keys for tickets."""

    def __init__(
        self, renew: Callable[[], Awaitable[None]], asked: Asked,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._renew = renew
        self._asked = asked
        self._clock = clock
        self._said: dict[tuple[str, str, float], float] = {}  # a certificate: when it was said

    async def run(self) -> None:
        """Until it is cancelled."""
        rotated = time.monotonic()
        while True:
            self.look()
            await asyncio.sleep(LOOK)
            if time.monotonic() - rotated >= ROTATE:
                rotated = time.monotonic()
                await self._renew()

    def look(self) -> None:
        """Warn of what ends soon, or has ended."""
        now = self._clock()
        for one in expiries(self._asked.terms.table):
            key = (one.place, one.file, one.until)
            if one.until - now > WARN_DAYS * DAY or now - self._said.get(key, -DAY) < DAY:
                continue
            self._said[key] = now
            ended = one.until <= now
            self._asked.report.warning(
                "a certificate has ended; whoever is shown it goes away" if ended
                else "a certificate ends soon; renew it, the new file is read by itself",
                place=one.place, file=one.file,
                until=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.until)),
                days=int((one.until - now) // DAY),
            )
            self._asked.report.flush()
