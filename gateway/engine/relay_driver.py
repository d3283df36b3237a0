"""Drives the rules of one relay (`gateway.relaying`) over two links of an engine on sockets.

After each fact the driver pumps: it sends what is queued for each side as far as the kernel takes
it, half-closes, closes or resets as the leg's fate says, until nothing more changes; then it
tells the poller whom to read, and sets the timer.

Laws of this file:

- Bytes that were queued for a link before the relay leave before the relay's.
- Early bytes are told before any that come later, a FIN behind them, a loss behind both.
- When a side no longer takes bytes, what it sent before that is still read (its Close may say
  why), as far as back-pressure allows.
- `RelayEnded` and both `Closed` are posted once, together, when both legs are done.
"""

import math
import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.engine.link_state import DEAD, LinkState
from gateway.engine.secure import verdict_of
from gateway.engine.timers import Timer
from gateway.errors import Fault
from gateway.events import (
    Cause,
    Closed,
    Event,
    Received,
    RelayEnded,
    RelayRules,
    Side,
    TimedOut,
)
from gateway.leg import Fate
from gateway.relaying import Relay

if TYPE_CHECKING:
    from gateway.engine.core import SocketEngine
    from gateway.engine.reactor import TimerOwner

RelayFactory = Callable[[RelayRules, float, Callable[[int], bytes]], Relay]

# The kernel's own limit for bytes that nobody acknowledges lies a little behind `write_timeout`,
# so that where both apply the relay's verdict (stalled, and a farewell) comes first.
USER_TIMEOUT_SLACK = 1.0

# A raw link has no pings: the kernel asks in their place (tcp(7), SO_KEEPALIVE). So many of its
# probes, none of them sent again, share `heartbeat_timeout`: losing one or two proves nothing.
PROBES = 4
KEEP_SECONDS_MAX = 32_767                # the kernel's limit for both times, MAX_TCP_KEEPIDLE
KEEP_COUNT_MAX = 127                     # and for their number, MAX_TCP_KEEPCNT


class RelayDriver:
    """One running relay. `relay` is its rules' state."""

    __slots__ = ("_engine", "_links", "_timer", "relay")

    def __init__(
        self, engine: "SocketEngine", client: LinkState, upstream: LinkState, rules: RelayRules
    ):
        self._engine = engine
        self._links = (client, upstream)
        self._timer: Timer[TimerOwner] | None = None
        self.relay = engine.relay_factory(rules, engine.now(), engine.random_bytes)
        engine.relays += 1
        for link in self._links:
            link.relay = self
            link.clogged = False
        set_kernel_limits(client, upstream, rules)

    def begin(self, from_client: bytes, from_upstream: bytes) -> None:
        """Tell the early bytes, those that are read but not delivered too, and what ended.

        What passes of the bytes is sent before an end is told: behind it a side may be reset, and
        what waits for that side would be lost.
        """
        now = self._engine.now()
        for side, early in ((Side.CLIENT, from_client), (Side.UPSTREAM, from_upstream)):
            link = self._links[side]
            for data in (early, *undelivered(link)):
                if data:
                    self.relay.received(side, data, now)
        finished, lost = zip(*((link.finished, link.fault) for link in self._links), strict=True)
        for side in Side:
            while lost[side] is None and self._pump_leg(side):
                pass
        for side, link in zip(Side, self._links, strict=True):
            if finished[side] and link.sock is not None:      # else its sends have just failed
                self.relay.finished(side, now)
        for side in Side:
            if lost[side] is not None:
                self._lost(side, lost[side], "the link was lost before the relay began")
        self._pump()

    # --- What the engine asks ----------------------------------------------------------------

    def reads(self, link: LinkState) -> bool:
        """True if this link is to be read now."""
        return self.relay.legs[self._side(link)].reading

    def queued_for(self, link: LinkState) -> int:
        """Bytes that wait for this link."""
        return self.relay.legs[self._side(link)].queued

    # --- What the engine tells ---------------------------------------------------------------

    def on_ready(self, link: LinkState, mask: int) -> None:
        """The poller says this of one of the two links."""
        side = self._side(link)
        if self.reads(link) and not link.finished:
            if mask & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                self._receive(side)
        elif mask & select.EPOLLERR:
            fault = self._engine.error_of(link)
            if fault is not None:
                self._lost(side, fault, fault.value)
        elif mask & select.EPOLLHUP:
            link.hung = True
        self._pump()

    def tick(self) -> None:
        """The timer is due; the deadline may have moved on since it was set."""
        self._timer = None
        now = self._engine.now()
        if self.relay.deadline <= now:
            self._ask_kernel(now)
        if self.relay.deadline <= now:
            self.relay.tick(now)
        self._pump()

    def _ask_kernel(self, now: float) -> None:
        """Before time is judged: a side may still be taking what the kernel has for it (some
        hundred KiB, and what is under way)."""
        for side, link in zip(Side, self._links, strict=True):
            if link.sock is not None:
                self.relay.acknowledged(side, self._engine.unacknowledged(link), now)

    def end(self, cause: Cause, rules: RelayRules | None) -> None:
        """Ordered from above."""
        self.relay.end(cause, self._engine.now(), rules)
        self._pump()

    def cut(self) -> None:
        """End it now, without a farewell."""
        self.relay.end(Cause.KILLED, self._engine.now())
        for link in self._links:
            self._engine.release(link, abort=True)
            link.drop_queue()
        self._finish()

    def abandon(self) -> None:
        """The engine stops and closes the links itself."""
        self._cancel_timer()
        if self._links[0].relay is self:
            self._engine.relays -= 1
            for link in self._links:
                link.relay = None
                self._engine.bury(link, abort=True)

    # --- Bytes -------------------------------------------------------------------------------

    def _side(self, link: LinkState) -> Side:
        return Side.CLIENT if link is self._links[0] else Side.UPSTREAM

    def _receive(self, side: Side) -> bool:
        """Read once; True if there were bytes."""
        link = self._links[side]
        buffer = self._engine.buffer
        assert link.sock is not None
        try:
            count = link.sock.recv_into(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            fault, detail = verdict_of(error)
            if fault is not Fault.TRUNCATED:
                self._lost(side, fault, detail or os.strerror(error.errno or 0).lower())
            elif link.fault is None:        # else nothing is behind a failed send but its loss
                self._truncated(side)
            return False
        now = self._engine.now()
        if count:
            self.relay.received(side, bytes(buffer[:count]), now)
            return True
        if link.fault is not None:
            return False                            # nothing behind a failed send but its loss
        link.finished = True
        self.relay.finished(side, now)
        return False

    def _truncated(self, side: Side) -> None:
        """FIN came, and no close_notify of TLS before it."""
        link = self._links[side]
        link.finished = True
        self.relay.truncated(side, self._engine.now())
        if self.relay.cause is Cause.TRUNCATED and self.relay.side is side:
            link.fault = Fault.TRUNCATED

    def _pump(self) -> None:
        """Do all that the legs ask for, until they ask for nothing more."""
        while any([self._pump_leg(Side.CLIENT), self._pump_leg(Side.UPSTREAM)]) or (
            self._open_pending(Side.CLIENT) or self._open_pending(Side.UPSTREAM)
        ):
            pass
        if self.relay.over:
            self._finish()
            return
        for link in self._links:
            if link.sock is not None:
                self._engine.touch(link)
        deadline = self.relay.deadline
        if self._timer is not None and self._timer.at > deadline:
            self._cancel_timer()
        if self._timer is None and deadline < math.inf:
            self._timer = self._engine.add_timer(deadline, self)

    def _pump_leg(self, side: Side) -> bool:
        """Send and end as this leg asks; True if the rules were told something by it."""
        link, leg = self._links[side], self.relay.legs[side]
        if link.sock is None:
            return False
        if leg.fate is Fate.RESET:
            self._engine.release(link, abort=True)
            link.drop_queue()
            return False
        told = False
        try:
            self._engine.flush_queue(link)
            while leg.queue and not link.blocked:
                count = self._engine.send_some(link, leg.queue)
                if count:
                    self.relay.sent(side, count, self._engine.now())
                    told = True
            if not leg.queue and link.queue is None:
                if leg.fate is Fate.CLOSE:
                    self._close(link)
                elif leg.fate is Fate.FINISH and not link.shut:
                    self._engine.shut(link)
        except OSError as error:
            self._send_failed(side, error)
            return True
        return told

    def _open_pending(self, side: Side) -> bool:
        """Read what a secured link has though its descriptor does not say so; True if the rules may
        have been told something by it."""
        link = self._links[side]
        secured = link.secured
        if secured is None or not secured.pending or link.sock is None or link.finished:
            return False
        if not self.reads(link):
            return False
        self._receive(side)
        return True

    def _close(self, link: LinkState) -> None:
        """Close it; raises OSError. A secured link says its close_notify before: once it can."""
        if link.secured is not None and not link.shut:
            self._engine.shut(link)
            if not link.shut:
                return
        self._engine.release(link)

    def _send_failed(self, side: Side, error: OSError) -> None:
        """It takes nothing more; read what it said before, then give it up."""
        link, leg = self._links[side], self.relay.legs[side]
        link.fault, detail = verdict_of(error)
        while leg.reading and not link.finished and link.sock is not None and self._receive(side):
            pass
        if link.sock is not None:
            self._lost(side, link.fault, detail or os.strerror(error.errno or 0).lower())

    def _lost(self, side: Side, fault: Fault, detail: str) -> None:
        link = self._links[side]
        link.fault = fault
        self._engine.release(link, abort=True)
        link.drop_queue()
        self.relay.lost(side, detail, self._engine.now())

    # --- The end -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Both legs are done: close what is open, report once."""
        relay, engine = self.relay, self._engine
        self._cancel_timer()
        engine.relays -= 1
        assert relay.cause is not None
        now = engine.now()
        client, upstream = self._links
        for link in self._links:
            link.relay = None
            engine.bury(link, abort=relay.legs[self._side(link)].fate is Fate.RESET)
        ended = RelayEnded(
            now,
            client.number,
            upstream=upstream.number,
            cause=relay.cause,
            side=relay.side,
            detail=relay.detail,
            counts=relay.counts(),
        )
        engine.post(
            client,
            ended,
            Closed(now, client.number, client.fault),
            Closed(now, upstream.number, upstream.fault),
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._engine.timers.cancel(self._timer)
            self._timer = None


def set_kernel_limits(client: LinkState, upstream: LinkState, rules: RelayRules) -> None:
    """Let the kernel give up a link that acknowledges nothing, by `write_timeout`, and a raw
    upstream that is silent and answers no keep-alive either, by the heartbeat's times.

    TCP_USER_TIMEOUT decides in place of TCP_KEEPCNT where both are set (Linux 2.6.37, tcp(7)):
    the link is given up at the first probe's turn after it. As short as `write_timeout` may be,
    the first lost probe would end the session; so toward a raw upstream it is not shorter than
    the keep-alive. It must not be shorter than `write_timeout` either: it ends a closed window,
    too, however well that is answered.
    """
    write_limit = rules.write_timeout + USER_TIMEOUT_SLACK if rules.write_timeout else 0.0
    _set_user_timeout(client, write_limit)
    if rules.raw and rules.heartbeat and upstream.sock is not None and not upstream.is_unix:
        keep_limit = _set_keepalive(upstream.sock, rules.heartbeat, rules.heartbeat_timeout)
        write_limit = max(write_limit, keep_limit) if write_limit else 0.0
    _set_user_timeout(upstream, write_limit)


def _set_user_timeout(link: LinkState, seconds: float) -> None:
    if seconds and link.sock is not None and not link.is_unix:
        limit_ms = int(seconds * 1000)
        link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)


def _set_keepalive(sock: socket.socket, heartbeat: float, heartbeat_timeout: float) -> int:
    """Have the kernel ask a side that is quiet; returns after how many seconds it gives up. It
    knows whole seconds only, so that none of the times is less than one."""
    idle = min(KEEP_SECONDS_MAX, math.ceil(heartbeat))
    wait = max(1, int(heartbeat_timeout))
    interval = min(KEEP_SECONDS_MAX, max(1, wait // PROBES))
    count = min(KEEP_COUNT_MAX, wait // interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return idle + interval * count


def undelivered(link: LinkState) -> list[bytes]:
    """Bytes that were read from the link and not delivered; takes back all news of its stream.

    `finished` and `fault` of the link say the rest. News of a caller's timer stay.
    """
    data: list[bytes] = []
    kept: list[list[Event]] = []
    for batch in link.news or ():
        event = batch[0]
        if isinstance(event, Received):
            data.append(event.data)
        elif isinstance(event, TimedOut):
            kept.append(batch)
    if link.news:
        link.news[:] = kept
    if link.state is DEAD:
        link.finished = False                       # its loss is told instead
    return data
