"""Counts what live relays move: metrics do not wait for the end of a session that lasts days.

Laws of this file:

- A look at one relay costs some microseconds; so at each turn at most `LOOKS` are taken, one
  session after another, and then from the first again.
- What was counted here is not counted again with the access record: it is kept with the party.
"""

from collections.abc import Collection

from gateway.control.counters import Counters
from gateway.control.parties import Party
from gateway.engine.contract import Engine

LOOKS = 200           # relays that are looked at in one turn


class Metering:
    """One worker's. `parties` are its sessions, as they come and go."""

    def __init__(self, engine: Engine, parties: Collection[Party], counters: Counters) -> None:
        self._engine = engine
        self._parties = parties
        self._counters = counters
        self._left: list[Party] = []             # of this round, the next one last

    def turn(self) -> None:
        """Look at the next ones; a round begins when the last is over."""
        if not self._left:
            self._left = list(self._parties)[::-1]
        for _ in range(min(LOOKS, len(self._left))):
            party = self._left.pop()
            counts = None if party.client is None else self._engine.inspect(party.client)
            if counts is not None:
                party.counted = self._counters.moved(counts, party.counted)
