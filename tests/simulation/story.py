"""One relay as its far ends saw it: the ground on which the oracle stands.

A `View` is one side: what it said and heard, judged, and when. A `Story` is both, with the
record that the gateway wrote of it. Nothing in here decides what is right.
"""

import math
import socket
from dataclasses import dataclass
from functools import cached_property

from gateway.engine.memory_tls import SecureFarEnd
from gateway.events import AccessRecord, Side
from gateway.table import Route
from simulation.codec import Judge, Verdict
from simulation.ends import Actor, Client, RawUpstream, Upstream
from simulation.watch import Trace
from simulation.world import DRAIN, World

GRAIN = 0.02                           # seconds that make no difference


class View:
    """One side of a relay. `sent` is the verdict on what it said, `heard` on what it heard."""

    def __init__(self, actor: Actor, side: Side, route: Route, *, deflate: bool, raw: bool):
        self.actor, self.side, self.name = actor, side, side.name.lower()
        self.is_raw = raw and side is Side.UPSTREAM
        left = max((total for total, _ in actor.shipped), default=0)
        self.said, self.got = bytes(actor.sent[: max(left, 0)]), actor.got
        masked = side is Side.CLIENT
        self.sent = Verdict() if self.is_raw else Judge(
            self.said, is_masked=masked, deflate=deflate, message_max=route.max_message,
            frame_max=route.max_frame, unwrap=raw,
        ).judge()
        self.heard = Verdict() if self.is_raw else Judge(
            self.got, is_masked=not masked, deflate=deflate,
        ).judge()

    @property
    def deeds(self) -> dict[str, float]:
        """See Actor."""
        return self.actor.deeds

    def when(self, count: int) -> float:
        """When so many bytes of its stream had left; infinite if never."""
        return next((at for total, at in self.actor.shipped if total >= count), math.inf)

    def left_by(self, at: float) -> int:
        """Bytes of its stream that had left by then."""
        return max((total for total, when in self.actor.shipped if when <= at), default=0)

    def spoke_between(self, begin: float, end: float) -> bool:
        """Whether a byte of its stream left then."""
        return any(begin < when < end for total, when in self.actor.shipped if total > 0)

    def is_gagged(self, at: float) -> bool:
        """It had more to say then than the gateway read."""
        wanted = max((total for total, when in self.actor.said if when <= at), default=0)
        return wanted > self.left_by(at)

    @cached_property
    def last_byte_at(self) -> float:
        """When the last byte of its stream left; before all time if none did."""
        return max((when for total, when in self.actor.shipped if total > 0), default=-math.inf)

    def last_byte_by(self, at: float) -> float:
        """When the last byte of its stream had left by then; before all time if none had."""
        return max((when for total, when in self.actor.shipped if total > 0 and when <= at),
                   default=-math.inf)

    @cached_property
    def close_at(self) -> float:
        """When its Close had left."""
        return self.when(self.sent.closed.end) if self.sent.closed else math.inf

    @cached_property
    def fault_at(self) -> float:
        """When the first byte of what breaks a rule left."""
        return self.when(self.sent.fault_at + 1) if self.sent.fault else math.inf

    @property
    def went_at(self) -> float:
        """When it did the first of what ends its side."""
        return self.actor.went_at

    @property
    def finished_at(self) -> float:
        """When it said FIN."""
        deeds = ["fin", "close"]
        if self.actor.far.family == socket.AF_UNIX:
            deeds.append("reset")      # there is no RST: it looks like FIN
        return min(self.deeds.get(deed, math.inf) for deed in deeds)

    @property
    def truncates(self) -> bool:
        """Its FIN comes without close_notify of the TLS that it speaks. On a Unix socket, which has
        no RST, that is what a reset looks like."""
        actor = self.actor
        is_unix = actor.far.family == socket.AF_UNIX
        has_tls = isinstance(actor.far, SecureFarEnd)
        finishes = self.deeds.get("fin", math.inf) <= self.deeds.get("close", math.inf)
        return (actor.truncates and finishes) or (
            has_tls and is_unix and "reset" in self.deeds
        )

    @property
    def is_stalled_for_ever(self) -> bool:
        """It stopped reading, and never went on."""
        return any(math.isinf(end) for _, end in self.actor.stalls)

    @property
    def in_a_frame(self) -> bool:
        """What it said ends inside a frame, or inside a header."""
        return self.sent.part_at is not None or self.sent.holds

    @property
    def finishes_well(self) -> bool:
        """FIN behind a whole frame, and no Close."""
        sent = self.sent
        return (
            "fin" in self.deeds and not self.truncates and not sent.fault and sent.closed is None
            and not self.in_a_frame
        )

    def trouble_at(self) -> float:
        """When it first did anything that may end the relay or slow it down."""
        begins = [begin for begin, _ in self.actor.stalls]
        return min([self.close_at, self.fault_at, self.went_at, *begins])

    @property
    def sees_clean_end(self) -> bool:
        """It heard FIN and no RST."""
        return "heard fin" in self.deeds and "was reset" not in self.deeds

    @property
    def sees_to_the_end(self) -> bool:
        """It read all that came, and was there to see how it ended."""
        return self.actor.listens_well


@dataclass
class Story:
    """One relay."""

    world: World
    trace: Trace
    client: View
    upstream: View | None              # None for the built-in echo
    record: AccessRecord
    route: Route

    @property
    def sides(self) -> list[View]:
        """The far ends."""
        return [self.client] + ([self.upstream] if self.upstream else [])

    def other(self, view: View) -> View | None:
        """The far end across."""
        return self.upstream if view is self.client else self.client

    @property
    def cause(self) -> str:
        """As the record has it."""
        return self.record.cause

    def is_offender(self, view: View) -> bool:
        """Whether the record says that it was this side's doing."""
        return self.record.blame is view.side.blame

    @property
    def settled(self) -> float:
        """When the relay gave its verdict."""
        assert self.trace.settled is not None
        return self.trace.settled

    @property
    def ended(self) -> float:
        """When its end was reported."""
        assert self.trace.ended is not None
        return self.trace.ended.at

    @property
    def is_unix(self) -> bool:
        """The upstream is on a Unix socket, which has no RST."""
        return (
            self.upstream is not None and self.upstream.actor.far.family == socket.AF_UNIX
        )

    @cached_property
    def transit(self) -> float:
        """Seconds within which bytes get through, where nobody is slow."""
        weather = self.world.network.weather
        hop = weather.latency + weather.jitter
        total = sum(len(view.said) + len(view.got) for view in self.sides)
        return GRAIN + 4 * hop * (3 + total / weather.window)

    @property
    def patience(self) -> float:
        """Seconds that a side may take nothing of what waits for it, once the end has begun."""
        return self.route.write_timeout or self.route.close_timeout

    @property
    def is_hurried(self) -> bool:
        """It was cut by the end of the drain, by a kill, or by what bounds `session_timeout`."""
        limit = math.inf
        if self.route.session_timeout:
            limit = self.trace.began + self.route.session_timeout + self.patience
        drained = self.world.drain_at + DRAIN
        return self.ended >= min(limit, drained, self.world.kill_at) - GRAIN

    def is_only_slow(self, view: View) -> bool:
        """It read all that came, if by fits and starts, and was there to see how it ended."""
        return not (
            view.deeds.keys() & {"reset", "close", "vanish"} or self.is_hurried
            or view.actor.far.reset_why == "late"     # it spoke when all had been said
            or any(end - at >= self.patience - self.transit for at, end in view.actor.stalls)
        )

    @property
    def ordered_at(self) -> float:
        """When the gateway was first told to end."""
        return min(self.world.drain_at, self.world.kill_at)

    def due(self, view: View) -> int:
        """How many bytes that this side said must have arrived, come what may."""
        before = self.trouble_at() - self.transit
        return view.left_by(before) if before > self.trace.began else 0

    def trouble_at(self) -> float:
        """When anything first happened that may end the relay or slow it down."""
        return min(
            self.ordered_at, self.settled, *(view.trouble_at() for view in self.sides)
        )


def stories_of(world: World) -> list[Story]:
    """All relays of a life. That each has one client, one record and a fitting upstream is held
    by `accounts`."""
    stories = []
    actors = {id(actor.far): actor for actor in (*world.clients, *world.upstreams)}
    routes = {route.name: route for route in world.desk.table.routes}
    names = {accepted.link: number for number, accepted in world.accepted.items()}
    for trace in world.engine.traces:
        if not trace.is_made or trace.ended is None:
            continue
        (record,) = [
            one for one in world.notes.records
            if one.session == names[trace.client] and one.cause
        ]
        client = actors[id(trace.client_far)]
        upstream = actors[id(trace.upstream_far)] if trace.upstream_far else None
        assert isinstance(client, Client)
        route = routes[record.route]
        raw = isinstance(upstream, RawUpstream)
        deflate = upstream.deflate if isinstance(upstream, Upstream) else (
            upstream is None and trace.rules.deflate
        )
        stories.append(Story(
            world, trace,
            View(client, Side.CLIENT, route, deflate=deflate, raw=raw),
            View(upstream, Side.UPSTREAM, route, deflate=deflate, raw=raw) if upstream else None,
            record, route,
        ))
    return stories
