"""A worker's way out: nobody is accepted, everybody is told, what is left at the end is cut.

Laws of this file:

- Who is connected already is accepted (accepting.py), unless others go on with the same sockets.
- A drain ends when every session has; at the latest when its time is over, and the rest is cut.
- Who was cut is what records say: where one is written once the end has begun, and has the cause
  `killed` or a side that is `cut`. So the exit code, the counters and the log agree with them. One
  that has no record when all is over was cut, too.
- It decides when a session is told, never what: that is the session's own business.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from gateway.control.accepting import Accepting
from gateway.control.channel import Message
from gateway.control.counters import Counters
from gateway.control.farewells import spread
from gateway.control.orders import Order
from gateway.control.parties import Counts, Party
from gateway.control.report import Report
from gateway.control.shared import Cell
from gateway.events import AccessRecord, Cause, Command
from gateway.protocol.desk import Desk
from gateway.protocol.session import Session

LAST_HANDSHAKES = 1.0         # seconds for those under way before a drain in which others accept
FAREWELLS_AT_ONCE = 64        # where there is no time to spread them: the others' bytes move on
CUT_LIMIT = 1.0               # seconds that links may take to close once all sessions are cut

# Names of timers, of the worker's own link.
_DRAIN = "drain"
_FAREWELL = "farewell"
_HANDSHAKES = "handshakes"
_CUT = "cut"


class Host(Protocol):
    """The worker, as far as its end knows it."""

    counts: Counts

    def tell(self, party: Party, order: Callable[[float], list[Command]], at: float) -> None:
        """Have a session do something that no event of its links asks for."""

    def idle(self, party: Party) -> float | None:
        """Seconds since a byte passed in its relay; None where it has none."""

    def last_call(self) -> None:
        """Others reckon with us no more."""

    def set_timer(self, name: str, at: float) -> None:
        """One of the worker's own."""

    def clear_timer(self, name: str) -> None:
        """Likewise."""

    def stop(self) -> None:
        """All is over."""


class Draining:
    """The end of one worker, from the order to drain, or to kill, on; before that it tells
    sessions of single routes goodbye. `accepting` and `sessions` are the worker's."""

    def __init__(
        self, host: Host, accepting: Accepting, desk: Desk, report: Report,
        sessions: Mapping[Party, Session], number: int, counters: Counters | None,
    ) -> None:
        self.has_begun = False
        self._host = host
        self._accepting = accepting
        self._desk = desk
        self._report = report
        self._sessions = sessions
        self._number = number
        self._counters = counters
        self._postponed: Message = {}   # the order to drain, as long as handshakes may finish
        self._farewells: deque[tuple[float, Party]] = deque()  # when, and whom
        self._killed = False
        self._why = "a side took nothing of what waited for it"

    @property
    def orders(self) -> dict[str, Order]:
        """What is done for each word of the supervisor."""
        return {"drain": self.drain, "kill": lambda order, at: self._kill(at, order["why"])}

    # --- Orders ------------------------------------------------------------------------------

    def drain(self, message: Message, at: float) -> None:
        """Accept nobody but who is connected already, unless "others" go on accepting; every
        session finishes, within so many seconds."""
        if self.has_begun:
            return
        if message["others"]:
            # They take who comes. Who is in the middle of a handshake here may finish it first.
            self._host.last_call()
            self._accepting.leave(at, message.get("alone", ()))
            self._postponed = message | {"others": False}
            self._host.set_timer(_HANDSHAKES, at + LAST_HANDSHAKES)
            return
        self._begin()
        seconds: float = message["seconds"]
        self._report.info(
            "draining", worker=self._number, cause=message["cause"],
            sessions=len(self._sessions), seconds=seconds,
        )
        self._host.set_timer(_DRAIN, at + seconds)
        self._host.last_call()
        idle: list[tuple[float, Party]] = []    # of those that are relayed
        for party, session in list(self._sessions.items()):
            since = self._host.idle(party)
            if since is None:
                self._host.tell(party, session.drain, at)
            else:
                idle.append((since, party))
        answer = max((one.close_timeout for one in self._desk.table.routes), default=0.0)
        self._farewells = deque(spread(idle, at, seconds - answer))
        self._say_farewells(at)
        self._accepting.go(at)

    def orphaned(self, at: float) -> None:
        """The supervisor is gone: nobody would take our place."""
        seconds, cause = self._desk.table.gateway.drain, "the supervisor is gone"
        self.drain({"seconds": seconds, "cause": cause, "others": False}, at)

    def drain_routes(self, seconds: dict[str, float], at: float) -> None:
        """Tell the sessions of these routes goodbye, over so many seconds."""
        for name, span in seconds.items():
            leaving = [
                (self._host.idle(party) or 0.0, party)
                for party, session in self._sessions.items()
                if session.entered is not None and session.entered.name == name
            ]
            self._farewells.extend(spread(leaving, at, span))
        self._farewells = deque(sorted(self._farewells, key=lambda one: one[0]))
        self._say_farewells(at)

    # --- What the worker tells ---------------------------------------------------------------

    def timed_out(self, name: str, at: float) -> None:
        """A timer of the own link is due, which may be another's."""
        if name == _DRAIN:
            self._kill(at, "the drain's time is over")
        elif name == _HANDSHAKES:
            self.drain(self._postponed, at)
        elif name == _FAREWELL:
            self._say_farewells(at)
        elif name == _CUT:
            self._host.stop()

    def admitted(self, party: Party, at: float) -> None:
        """A client came, maybe in the very batch that brought the order."""
        session = self._sessions.get(party)
        if self.has_begun and session is not None:
            self._host.tell(party, session.kill if self._killed else session.drain, at)

    def recorded(self, record: AccessRecord) -> None:
        """A session's record. A relay may end badly before the drain is over, too: one that takes
        nothing is cut after its `write_timeout`."""
        if self.has_begun and (
            record.cause == Cause.KILLED.value or any(counts.cut for counts in record.counts)
        ):
            self._count_cut()

    def over(self) -> None:
        """All is over: who has no record will get none."""
        for session in self._sessions.values():
            if session.record is not None:
                self._count_cut()
        if self._host.counts.cut:
            self._report.warning(
                f"sessions were cut: {self._why}", worker=self._number,
                sessions=self._host.counts.cut,
            )

    # --- The end -----------------------------------------------------------------------------

    def _begin(self) -> None:
        self.has_begun = self._desk.draining = True

    def _say_farewells(self, at: float) -> None:
        """Tell those whose time has come, a turn's worth; those that ended meanwhile need no
        farewell."""
        for _ in range(FAREWELLS_AT_ONCE):
            if not self._farewells or self._farewells[0][0] > at:
                break
            _, party = self._farewells.popleft()
            session = self._sessions.get(party)
            if session is not None:
                self._host.tell(party, session.drain, at)
        if self._farewells:
            self._host.set_timer(_FAREWELL, self._farewells[0][0])

    def _kill(self, at: float, why: str) -> None:
        """Cut what is there."""
        if self._killed:
            return
        self._begin()
        self._why = why
        self._host.last_call()
        self._accepting.end()
        self._killed = True
        self._farewells.clear()
        for name in (_FAREWELL, _DRAIN):
            self._host.clear_timer(name)
        self._host.set_timer(_CUT, at + CUT_LIMIT)
        for party, session in list(self._sessions.items()):
            self._host.tell(party, session.kill, at)

    def _count_cut(self) -> None:
        self._host.counts.cut += 1
        if self._counters is not None:
            self._counters.add(Cell.CUT)
