"""Looks over the engine's and the relay's shoulders: who was paired, what was told, what was kept.

The watched engine counts links and their ends, and knows which far end is behind which link. The
watched relay has the face of `gateway.relaying.Relay`, keeps every fact that it is told (these are
the recorded scripts), and looks after each at what the relay has queued.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.engine.contract import READ_MAX, Deliver
from gateway.engine.memory import FarEnd, MemoryEngine, Network
from gateway.engine.relay_driver import RelayFactory
from gateway.errors import Fault
from gateway.events import (
    Accepted,
    Address,
    Cause,
    Closed,
    ConnectFailed,
    Event,
    LegCounts,
    Link,
    RelayEnded,
    RelayRules,
    Side,
)
from gateway.leg import Fate, Leg
from gateway.relaying import Relay

Fact = tuple[Any, ...]                 # the verb, its arguments, and the time
SLACK = 1024                           # bytes of our own: headers, pings, a Close
LATE = 0.6                             # seconds: a ping that met an open frame is tried again
INSTANT = 1e-6                         # seconds: what happened at once has happened before


class BrokenInvariantError(AssertionError):
    """What must hold in every life did not."""


def hold(condition: object, what: str) -> None:
    """Assert an invariant, by name."""
    if not condition:
        raise BrokenInvariantError(what)


@dataclass
class Trace:
    """What is known of one relay from outside."""

    client: Link
    upstream: Link
    rules: RelayRules
    began: float
    client_far: FarEnd | None = None
    upstream_far: FarEnd | None = None
    early: tuple[int, int] = (0, 0)
    facts: list[Fact] = field(default_factory=list)
    settled: float | None = None       # when its cause was there
    ended: RelayEnded | None = None
    held: list[float] = field(default_factory=lambda: [0.0, 0.0])  # seconds each was not read
    dropped: list[bool] = field(default_factory=lambda: [False, False])  # bytes for each, by reset
    outcome: tuple[Any, ...] = ()
    is_made: bool = False              # the engine began it: neither link was gone


class WatchedRelay:
    """One relay that is watched. `inner` is the real one, or a broken one."""

    def __init__(self, inner: Relay, trace: Trace, now: float):
        self.inner, self.trace = inner, trace
        rules = trace.rules
        self.limit = rules.max_queue + READ_MAX + max(trace.early) + SLACK
        self._moved = [now, now]       # since when a side has taken nothing
        self._emptied = [now, now]     # when a side had taken all that waited for it
        self._told_at = now            # the last fact
        self._silent = [False, False]  # FIN or a loss was told
        self._is_hurried = False       # KILLED was ordered

    # --- What the driver looks at -------------------------------------------------------------

    @property
    def legs(self) -> tuple[Leg, Leg]:
        """See Relay."""
        return self.inner.legs

    @property
    def deadline(self) -> float:
        """See Relay."""
        return self.inner.deadline

    @property
    def active_at(self) -> float:
        """See Relay."""
        return self.inner.active_at

    @property
    def is_open(self) -> bool:
        """See Relay."""
        return self.inner.is_open

    @property
    def over(self) -> bool:
        """See Relay."""
        return self.inner.over

    @property
    def cause(self) -> Cause | None:
        """See Relay."""
        return self.inner.cause

    @property
    def side(self) -> Side | None:
        """See Relay."""
        return self.inner.side

    @property
    def detail(self) -> str:
        """See Relay."""
        return self.inner.detail

    def counts(self) -> tuple[LegCounts, LegCounts]:
        """See Relay."""
        counts = self.inner.counts()
        inner = self.inner
        self.trace.outcome = (inner.cause, inner.side, inner.detail, counts)
        return counts

    # --- Facts --------------------------------------------------------------------------------

    def received(self, side: Side, data: bytes, now: float) -> None:
        """See Relay."""
        self._tell("received", side, data, now)

    def finished(self, side: Side, now: float) -> None:
        """See Relay."""
        self._silent[side] = True
        self._tell("finished", side, now)

    def truncated(self, side: Side, now: float) -> None:
        """See Relay."""
        self._silent[side] = True
        self._tell("truncated", side, now)

    def lost(self, side: Side, detail: str, now: float) -> None:
        """See Relay."""
        self._silent[side] = True
        self._tell("lost", side, detail, now)

    def sent(self, side: Side, count: int, now: float) -> None:
        """See Relay."""
        self._moved[side] = now
        self._tell("sent", side, count, now)
        if not self.inner.legs[side].queued:
            self._emptied[side] = now

    def acknowledged(self, side: Side, waiting: int, now: float) -> None:
        """See Relay."""
        self._tell("acknowledged", side, waiting, now)

    def end(self, cause: Cause, now: float, rules: RelayRules | None = None) -> None:
        """See Relay. No life is told a farewell of its own yet."""
        assert rules is None
        self._is_hurried = self._is_hurried or cause is Cause.KILLED
        self._tell("end", cause, now)

    def tick(self, now: float) -> None:
        """See Relay."""
        self._tell("tick", now)

    def _tell(self, verb: str, *arguments: Any) -> None:
        now, trace = arguments[-1], self.trace
        trace.facts.append((verb, *arguments))
        was_open = self.inner.cause is None
        waited = [leg.queued for leg in self.inner.legs]
        was_read = [leg.reading for leg in self.inner.legs]
        fates = [leg.fate for leg in self.inner.legs]
        getattr(self.inner, verb)(*arguments)
        timeout = trace.rules.write_timeout
        for side, leg in zip(Side, self.inner.legs, strict=True):
            hold(leg.queued <= self.limit, f"memory: {leg.queued} bytes wait for {side.name}")
            if not waited[side]:
                self._moved[side] = now
            elif leg.queued and was_open and timeout:
                late = now - self._moved[side] - timeout
                hold(late < LATE, f"write_timeout: {side.name} has taken nothing for too long")
            if was_open and not self._silent[side] and not was_read[side]:
                trace.held[side] += now - self._told_at
            lost = (verb, arguments[0]) == ("lost", side)
            if leg.fate is Fate.RESET > fates[side] and waited[side] and not lost:
                trace.dropped[side] = True
        self._told_at = now
        if was_open and self.inner.cause is not None:
            trace.settled = now
            self._check_asked(now, waited)
        if verb == "tick" and self.inner.cause is not Cause.SILENT:
            self._check_patience(now, waited, fates)

    def _check_asked(self, now: float, waited: list[int]) -> None:
        """Who is said not to have answered a Close has had it for `close_timeout`."""
        side = self.inner.side
        if self.inner.cause is Cause.UNANSWERED:
            assert side is not None
            late = now - self._emptied[side] >= self.trace.rules.close_timeout - INSTANT
            hold(late and not waited[side], f"patience: {side.name} had no time to answer")

    def _check_patience(self, now: float, waited: list[int], fates: list[Fate]) -> None:
        """Nobody is reset by the clock who goes on taking what waits for it."""
        rules = self.trace.rules
        patience = rules.write_timeout or rules.close_timeout
        limit = self.trace.began + rules.session_timeout + patience - INSTANT
        if self._is_hurried or (rules.session_timeout and now >= limit):
            return
        changed = [leg.fate > before for leg, before in zip(self.inner.legs, fates, strict=True)]
        for side, leg in zip(Side, self.inner.legs, strict=True):
            if changed[side] and leg.fate is Fate.RESET and waited[side] and not changed[1 - side]:
                hold(now - self._moved[side] >= patience - INSTANT,
                     f"patience: {side.name} was reset, and had taken bytes a moment ago")


class WatchedEngine(MemoryEngine):
    """The memory engine, watched."""

    def __init__(self, network: Network, factory: RelayFactory):
        super().__init__(network, self._make_relay)  # type: ignore[arg-type]
        self._factory = factory
        self.traces: list[Trace] = []
        self.made: set[Link] = set()   # links that came to be
        self.ended: dict[Link, float] = {}   # those whose Closed was delivered, and when
        self.socks: dict[Link, Any] = {}
        self.on_event: Callable[[Event], None] = lambda _: None

    @property
    def is_stopped(self) -> bool:
        """`stop` was ordered."""
        return self._stopping

    def watched(self, deliver: Deliver) -> Deliver:
        """The same, with an eye on what is delivered."""

        def look(batch: list[Event]) -> None:
            hold(batch, "an empty batch")
            for event in batch:
                self._look(event)
            deliver(batch)

        return look

    def _look(self, event: Event) -> None:
        self.on_event(event)
        link = event.link
        hold(link not in self.ended, f"link {link} is said again after its Closed: {event}")
        if isinstance(event, Accepted):
            self.made.add(link)
            self.socks[link] = self._links[link].sock
        elif isinstance(event, Closed):
            hold(link in self.made, f"link {link} was never made: {event}")
            hold(event.fault is not Fault.OVERFLOW, f"link {link} overflowed")
            self.ended[link] = event.at
        elif isinstance(event, RelayEnded):
            trace = next(one for one in self.traces if one.client == link)
            hold(trace.ended is None, "a relay ended twice")
            trace.ended = event
        elif isinstance(event, ConnectFailed):
            hold(link in self.made, f"link {link} was never made: {event}")

    def connect(self, address: Address, source: str = "") -> Link:
        """See contract.Engine.connect."""
        link = super().connect(address, source)
        self.made.add(link)
        self.socks[link] = self._links[link].sock
        return link

    def pair(self) -> tuple[Link, Link]:
        """See contract.Engine.pair."""
        links = super().pair()
        self.made.update(links)
        for link in links:
            self.socks[link] = self._links[link].sock
        return links

    def relay(
        self,
        client: Link,
        upstream: Link,
        rules: RelayRules,
        from_client: bytes = b"",
        from_upstream: bytes = b"",
    ) -> None:
        """See contract.Engine.relay."""
        early = (len(from_client), len(from_upstream))
        trace = Trace(client, upstream, rules, self.now(), early=early)
        trace.client_far = self._far(client)
        trace.upstream_far = self._far(upstream)
        self.traces.append(trace)
        super().relay(client, upstream, rules, from_client, from_upstream)

    def _far(self, link: Link) -> FarEnd | None:
        sock = self.socks.get(link)
        far = sock.peer if sock is not None else None
        return far if isinstance(far, FarEnd) else None

    def _make_relay(
        self, rules: RelayRules, now: float, random_bytes: Callable[[int], bytes]
    ) -> WatchedRelay:
        self.traces[-1].is_made = True
        return WatchedRelay(self._factory(rules, now, random_bytes), self.traces[-1], now)
