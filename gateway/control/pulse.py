"""What a worker does for the others by the clock: it says that it lives, and holds back.

- Each second it writes its beat, and how late that was: the supervisor ends a worker that is
  silent, and a loop that is full shows itself.
- Each second it counts what some of its live relays have moved (see metering.py).
- Where it has clearly more than the others (see balance.py) it holds its listeners, so that who
  comes goes to them. That is looked at with each client, and by a timer while it holds.

Laws of this file:

- Held listeners are read again before a drain: who waits in their queues may have nobody else.
- Nobody holds for a worker that does not turn. A stopped one has the fewest connections soon, and
  all others would hold for it until it is killed: nobody would be accepted.
- Between two looks it accepts `ACCEPTS_PER_TURN` clients at the most. So no worker ever has more
  than is allowed, and that many.
"""

from collections.abc import Collection

from gateway.balance import Load, holds
from gateway.control.counters import Counters
from gateway.control.metering import Metering
from gateway.control.parties import Party
from gateway.control.report import Report
from gateway.control.shared import Cell
from gateway.engine.contract import Engine
from gateway.events import Link
from gateway.limits import Limits

BEAT = 1.0            # seconds
LOOK = 0.02           # seconds between two looks at the others while it holds
SILENT = 2.0          # seconds without another's beat: it is not reckoned with until the next one

# Names of timers, of the worker's own link.
_BEAT = "beat"
_LOOK = "look"


class Pulse:
    """One worker's. `own` is the link that its timers hang on, `listeners` those that it has."""

    def __init__(
        self, engine: Engine, own: Link, listeners: Collection[int], limits: Limits,
        counters: Counters, report: Report, parties: Collection[Party],
    ) -> None:
        self._engine = engine
        self._own = own
        self._listeners = listeners
        self._limits = limits
        self._counters = counters
        self._report = report
        self._metering = Metering(engine, parties, counters)
        self._due = engine.now()
        self._dropped = 0             # lines of the report that were counted
        self._held = False
        self._over = False            # a drain has begun: nothing is held any more

    def start(self) -> None:
        """From here on this worker serves."""
        self._counters.store(Cell.SERVING, 1)
        self._beat(self._due)

    def stop(self) -> None:
        """It accepts the last that wait, if anybody, and nobody reckons with it any more."""
        self._over = True
        self._counters.store(Cell.SERVING, 0)
        self._hold(hold=False)

    def timed_out(self, name: str, at: float) -> None:
        """A timer of the own link is due, which may be another's."""
        if name == _BEAT:
            self._beat(at)
        elif name == _LOOK:
            self.look(at)

    def look(self, at: float) -> None:
        """Hold or read, as things stand with the others."""
        if self._over:
            return
        own = Load(self._limits.connections)
        others = self._counters.loads(round((at - SILENT) * 1_000_000_000))
        hold = holds(own, others, self._limits.max_sessions)
        if hold or self._held:
            self._hold(hold=hold)              # again and again: a listener may have been added
        if hold:
            self._engine.set_timer(self._own, _LOOK, at + LOOK)

    def _hold(self, *, hold: bool) -> None:
        self._held = hold
        self._counters.store(Cell.HELD, hold)
        for listener in self._listeners:
            if hold:
                self._engine.hold(listener)
            else:
                self._engine.read(listener)

    def _beat(self, at: float) -> None:
        late = max(0.0, at - self._due)
        self._counters.beat(round(at * 1_000_000_000), round(late * 1_000_000))
        dropped = self._report.dropped
        self._counters.add(Cell.DROPPED_LINES, dropped - self._dropped)
        self._dropped = dropped
        self._metering.turn()
        self._due = at + BEAT
        self._engine.set_timer(self._own, _BEAT, self._due)
