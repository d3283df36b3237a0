"""When a handshake may go on: the rate of a listener and of a route, kept smoothly.

After an outage all clients come back at once. `handshakes = "500/s"` lets so many pass, evenly; a
few more wait for their turn, and who would wait for longer than `WAIT_MAX` is told at once to come
back later. So what a storm costs is bounded, and the sessions that are open do not feel it.

It is the generic cell rate algorithm (ITU-T I.371): for each name there is one number, the time
when the next handshake would be due if all came evenly. Laws of this file:

- Pure: the clock comes in as `now`, and rates with each question, so that a reload needs nothing.
- Each worker keeps its share, the rate divided by the workers that serve. Clients that come to few
  of them get less than the whole rate.
- A turn that was given is used up, also where its client goes while it waits.
- A name whose time has passed is as good as one that was never seen, and is forgotten when many
  are known.
"""

from typing import Protocol

WAIT_MAX = 1.0        # seconds that a client waits for its turn: longer, and it would ask again
AHEAD = 0.02          # seconds' worth that may pass at once: what one turn of the loop brings
NAMES_MAX = 1024      # more, and those whose time has passed are forgotten

Rate = tuple[str, float]   # of what, and handshakes a second over all workers; 0 is off


class Elsewhere(Protocol):
    """The other workers, and who counts what happens here."""

    def serving(self, /) -> int:
        """How many workers serve, this one included: at least 1."""

    def delayed(self, /) -> None:
        """A handshake waits."""

    def turned_away(self, /) -> None:
        """A handshake was refused."""


class Governor:
    """The rates of one worker."""

    def __init__(self, elsewhere: Elsewhere | None = None) -> None:
        self._elsewhere = elsewhere
        self._due: dict[str, float] = {}
        self._refusing_until = 0.0
        self._names_max = NAMES_MAX

    def turn(self, now: float, *rates: Rate) -> float | None:
        """When this handshake may go on, which is not before `now`; None if it must be refused.

        All rates are obeyed: the slowest decides, and one that refuses uses up no other's turn.
        """
        if self.refuses(now, *rates):
            return None
        at = self._earliest(now, rates)
        workers = self._elsewhere.serving() if self._elsewhere is not None else 1
        spacing = {name: workers / rate for name, rate in rates if rate}
        for name, seconds in spacing.items():
            self._due[name] = max(self._due.get(name, 0.0), now) + seconds
        if len(self._due) > self._names_max:
            self._due = {name: due for name, due in self._due.items() if due > now}
            self._names_max = max(NAMES_MAX, 2 * len(self._due))
        if at > now and self._elsewhere is not None:
            self._elsewhere.delayed()
        return at

    def is_refusing(self, now: float) -> bool:
        """Somebody was refused within the last second or so; who comes now may be, too."""
        return now < self._refusing_until

    def refuses(self, now: float, *rates: Rate) -> bool:
        """Whether `turn` would give none. Then it is counted as if that had been asked."""
        at = self._earliest(now, rates)
        if at - now <= WAIT_MAX:
            return False
        self._refusing_until = max(self._refusing_until, at)
        if self._elsewhere is not None:
            self._elsewhere.turned_away()
        return True

    def _earliest(self, now: float, rates: tuple[Rate, ...]) -> float:
        """When the slowest of them has a turn to give."""
        at = now
        for name, rate in rates:
            if rate:
                at = max(at, self._due.get(name, 0.0) - AHEAD)
        return at
