"""The rules of one relay, in Python and without a socket: what passes, what is said, how it ends.

A driver (in an engine) tells the facts: bytes, FIN, loss, what the kernel took, time. After each
fact it looks at the two legs: what is queued for them, whether to read from them, and their
fate. `engine/relay.pyx` is to be the same in C; this file is the reference, and it is what the
memory engine runs on, and uvloop where nothing is compiled.

Three stages, each only once, in this order:

- open: frames pass both ways.
- closing: one side has sent Close or FIN, and the other's answer is awaited.
- ending: the cause is settled, the farewells are said or wait for the end of a frame, and what
  still comes is thrown away, until both sides have finished or their time is over.

Two clocks, the same in closing and ending. While something waits for a side, its clock is
`write_timeout`: so long it may take no byte. `close_timeout` begins when the last word has left
its queue, or the far end took what the kernel had of it (`acknowledged`), and stands while the
side that is to answer is held back by the other. So a side that is slow is not cut; what bounds
one that takes a byte now and then is `session_timeout`, and the order KILLED, which ends a drain.

Laws:

- Bytes of the gateway's own enter only between two frames. Where the frame under way will never
  be whole, nothing is put in, and that leg is reset: a cut stream never looks whole.
- A leg gets at most one Close, and nothing behind it.
- A leg that is reset while bytes or a farewell wait for it is `cut`, and says so in its counts.
- What is queued for a leg is bounded: `max_queue`, and what one read brought.
- Nothing raises because of what the sides do. A fact that cannot be (bytes after FIN) is asserted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gateway import frames, heartbeat
from gateway.events import Cause, LegCounts, RelayRules, Side
from gateway.frames import Kind, Step, TextWrapper
from gateway.heartbeat import Found
from gateway.leg import Fate, Leg


@dataclass(frozen=True, slots=True)
class Farewell:
    """What a cause tells the side whose doing it was, and the other; None is nothing."""

    offender: int | None
    other: bool                    # the other gets 1014 (client) or 1001 (upstream)
    reset: bool = False            # the offender is given up at once


# How things end, where one side is to blame. A raw upstream that is "the other" is always reset:
# a cut stream must not look whole.
FAREWELLS = {
    Cause.CUT: Farewell(None, True),
    Cause.LOST: Farewell(None, True, reset=True),
    Cause.TRUNCATED: Farewell(None, True),
    Cause.SILENT: Farewell(None, True, reset=True),
    Cause.STALLED: Farewell(None, True, reset=True),
    Cause.UNANSWERED: Farewell(None, True, reset=True),
    Cause.FRAMING: Farewell(frames.PROTOCOL_ERROR, True),
    Cause.TEXT: Farewell(frames.INVALID_DATA, True),
    Cause.TOO_BIG: Farewell(frames.TOO_BIG, True),
    Cause.POLICY: Farewell(frames.POLICY_VIOLATION, True),
}
LOST_CODE = {Side.CLIENT: frames.BAD_GATEWAY, Side.UPSTREAM: frames.GOING_AWAY}
LOST_REASON = {Side.CLIENT: "upstream failed", Side.UPSTREAM: "client failed"}
KILLED = "ended at once"


class Relay:
    """One relay. Tell facts, then look at `legs`, `deadline` and `over`.

    random_bytes(n) gives n unpredictable bytes: masks of own frames, payloads of pings.
    """

    __slots__ = (
        "active_at",
        "_first",
        "_held_at",
        "_limit_at",
        "_random_bytes",
        "_rules",
        "_session_at",
        "_since",
        "_wrapper",
        "cause",
        "deadline",
        "detail",
        "legs",
        "side",
    )

    def __init__(self, rules: RelayRules, now: float, random_bytes: Callable[[int], bytes]):
        self._rules = rules
        self._random_bytes = random_bytes
        self.legs = (Leg(Side.CLIENT, rules, now), Leg(Side.UPSTREAM, rules, now))
        self.cause: Cause | None = None         # settled: the relay is ending
        self.side: Side | None = None
        self.detail = ""
        self._first: Side | None = None         # who sent the first Close or FIN
        self._since = now                       # close_timeout counts from then, or later
        self._held_at = math.inf                # since then the answer is not read
        self._session_at = now + rules.session_timeout if rules.session_timeout else math.inf
        self._limit_at = self._session_at + (rules.write_timeout or rules.close_timeout)
        self.active_at = now                   # last byte but for our own pongs
        self._wrapper = TextWrapper() if rules.raw_text else None
        self.deadline = math.inf
        self._set_deadline(now)

    # --- What the driver looks at ---------------------------------------------------------

    @property
    def over(self) -> bool:
        """Both legs are done: close their sockets and report the end."""
        return self.legs[0].done and self.legs[1].done

    @property
    def is_open(self) -> bool:
        """Frames pass both ways: neither closing nor ending."""
        return self.cause is None and self._first is None

    def counts(self) -> tuple[LegCounts, LegCounts]:
        """Snapshots, from the client and from the upstream."""
        return self.legs[0].counts(), self.legs[1].counts()

    # --- Facts ----------------------------------------------------------------------------

    def received(self, side: Side, data: bytes, now: float) -> None:
        """`data` (not empty) was read from `side`."""
        leg, other = self.legs[side], self.legs[1 - side]
        assert data
        assert not (leg.finished or leg.gone)
        leg.bytes_in += len(data)
        leg.heard_at = now
        if self.cause is not None:
            self._received_while_ending(leg, other, data, now)
        elif leg.close_received is None:
            active_at, self.active_at = self.active_at, now
            if leg.raw:
                self._wrap(data, now)
            elif self._walk(leg, data, now):
                self.active_at = active_at     # nothing came but the answer to our ping
        self._look(now)

    def finished(self, side: Side, now: float) -> None:
        """FIN came from `side`."""
        leg, other = self.legs[side], self.legs[1 - side]
        assert not (leg.finished or leg.gone)
        leg.finished = True
        if self.cause is not None:
            if other.pending is not None:
                other.raise_fate(Fate.RESET)
            if leg.pending is None:             # else it still gets the rest of a frame
                leg.raise_fate(Fate.CLOSE)
        elif leg.close_received is not None:
            # After its Close a client may go at once; the upstream's answer is still due, to
            # count it. An upstream that goes has let us close first no longer: pass it on.
            if side is Side.UPSTREAM:
                other.raise_fate(Fate.FINISH)
        elif self._rules.raw:
            self._finished_raw(leg, now)
        elif leg.cursor.in_frame or leg.cursor.holds:
            self._end(Cause.CUT, side, "FIN inside a frame", now)
        else:
            self._finished_between_frames(leg, other, now)
        self._look(now)

    def truncated(self, side: Side, now: float) -> None:
        """FIN came from `side`, which speaks TLS, without close_notify: more may have been on its
        way. Behind its Close nothing counts, and where the end is settled nothing is awaited."""
        leg = self.legs[side]
        if self.cause is not None or leg.close_received is not None:
            self.finished(side, now)
            return
        assert not (leg.finished or leg.gone)
        leg.finished = True
        self._end(Cause.TRUNCATED, side, "FIN without close_notify (RFC 8446 6.1)", now)
        self._look(now)

    def lost(self, side: Side, detail: str, now: float) -> None:
        """The link of `side` is gone (RST, or the kernel gave up); the driver has closed it."""
        leg, other = self.legs[side], self.legs[1 - side]
        assert not leg.gone
        leg.gone = True
        leg.drop()
        if self.cause is None:
            self._end(Cause.LOST, side, detail, now)
        elif other.pending is not None:
            other.raise_fate(Fate.RESET)
        self._look(now)

    def sent(self, side: Side, count: int, now: float) -> None:
        """The kernel took `count` bytes from the front of this side's queue."""
        leg = self.legs[side]
        queue = leg.queue
        leg.bytes_out += count
        leg.queued -= count
        leg.taken_at = now
        while count:
            first = queue[0]
            if len(first) > count:
                queue[0] = first[count:]
                break
            count -= len(first)
            queue.popleft()
        if leg.clogged and leg.queued <= self._rules.max_queue // 2:
            leg.clogged, self.active_at = False, now    # who was held back was not idle
            self._set_reading()
        if not self.is_open:
            self._look(now)

    def acknowledged(self, side: Side, waiting: int, now: float) -> None:
        """Of what left this side's queue the kernel has `waiting` bytes that the far end has not
        taken. Tell it when the deadline has come, and look at the deadline again."""
        heartbeat.note_taken(self.legs[side], waiting, now)
        if not self.is_open:
            self._set_deadline(now)

    def end(self, cause: Cause, now: float, rules: RelayRules | None = None) -> None:
        """End it by order: DRAIN, SESSION_TIMEOUT, POLICY..., or KILLED, which also hurries, and
        is what a drain becomes in which a side had not ended yet. With `rules`, which differ in
        their farewell at most, it obeys them from here on."""
        self._rules = rules or self._rules
        if cause is Cause.KILLED:
            if self.cause is None:
                self._end(cause, None, KILLED, now)
            elif self.cause is Cause.DRAIN and any(leg.is_awaited for leg in self.legs):
                self.cause, self.detail = cause, KILLED
            self._limit_at = now
            for leg in self.legs:
                leg.raise_fate(Fate.CLOSE if leg.pending is None else Fate.RESET)
        elif self.is_open:
            self._end(cause, None, cause.value, now)
        self._look(now)

    def tick(self, now: float) -> None:
        """Call it at `deadline` or later; earlier is harmless."""
        if self.cause is not None:
            self._tick_ending(now)
        elif self._first is None and now >= self._session_at:
            self._end(Cause.SESSION_TIMEOUT, None, "session_timeout", now)
        elif not self._is_stalled(now):
            if self._first is None:
                self._tick_open(now)
            else:
                self._tick_closing(now)
        self._set_reading()
        self._set_deadline(now)

    # --- Bytes ----------------------------------------------------------------------------

    def _walk(self, leg: Leg, data: bytes, now: float) -> bool:
        """Walk on; True if nothing came but the answer to our own ping, or part of a header."""
        other = self.legs[1 - leg.side]
        cursor = leg.cursor
        before = cursor.frames
        passed, pongs = False, 0
        for step in cursor.feed(data):
            if step.kind is Kind.PASS:
                self._put(other, step.data, now)
                passed = True
            elif step.kind is Kind.CONTROL:
                pongs += self._control(leg, other, step, now)
                if leg.close_received is not None:
                    break                       # behind a Close nothing counts (RFC 6455 1.4)
            else:
                self._end(step.cause, leg.side, step.detail, now)
                passed = True
        # A frame without payload passes nothing toward raw bytes, but it is something that came.
        return not passed and cursor.frames - before == pongs

    def _received_while_ending(self, leg: Leg, other: Leg, data: bytes, now: float) -> None:
        """Thrown away, but for the rest of a frame behind which a farewell waits."""
        if other.pending is None:
            return
        data = data[: leg.cursor.remaining]
        for step in leg.cursor.feed(data):
            if step.kind is Kind.PASS:
                other.put(step.data, now)
            else:                               # text of a raw leg that is not UTF-8
                other.raise_fate(Fate.RESET)
                return
        if not leg.cursor.in_frame:
            code, reason = other.pending
            other.pending = None
            self._since = now                   # the time for last words begins with ours
            self._say(other, code, reason, now)

    def _control(self, leg: Leg, other: Leg, step: Step, now: float) -> bool:
        """A whole control frame from `leg`; True if it was the answer to our own ping."""
        if step.opcode == frames.CLOSE:
            self._closed(leg, other, step, now)
            return False
        if step.opcode == frames.PONG:
            if heartbeat.is_own_pong(leg, step.payload, now):
                return True
            leg.foreign_ping_at = None
        if not other.raw:
            if step.opcode == frames.PING:
                other.foreign_ping_at = now
            self._put(other, step.data, now)
        elif step.opcode == frames.PING:        # toward raw bytes we are the endpoint
            self._put(leg, frames.build_frame(frames.PONG, step.payload), now)
        return False

    def _wrap(self, data: bytes, now: float) -> None:
        """Bytes of a raw upstream become one frame."""
        opcode = frames.BINARY
        if self._wrapper is not None:
            opcode = frames.TEXT
            data = self._wrapper.feed(data)
        if data:
            self.legs[Side.UPSTREAM].wrapped += 1
            self._put(self.legs[Side.CLIENT], frames.build_header(opcode, len(data)) + data, now)
        if self._wrapper is not None and self._wrapper.broken:
            self._end(Cause.TEXT, Side.UPSTREAM, "bytes that are not UTF-8", now)

    def _put(self, leg: Leg, data: bytes, now: float) -> None:
        """Queue bytes for a leg that can still be told things."""
        if leg.fate is not Fate.OPEN or leg.gone:
            return                              # its far end is gone, or has been told the end
        if not leg.queued and self._rules.write_timeout:
            self.deadline = min(self.deadline, now + self._rules.write_timeout)
        leg.put(data, now)

    def _look(self, now: float) -> None:
        """After a fact: who is to be read, and, unless the relay is open, what is due when."""
        self._set_reading()
        if self.is_open:
            return
        if self._first is not None and self.cause is None:
            # While back-pressure keeps the answer from being read, its clock stands.
            other = self.legs[1 - self._first]
            if not other.reading:
                self._held_at = min(self._held_at, now)
            elif self._held_at < math.inf:
                self._since = max(self._since, other.taken_at) + now - self._held_at
                self._held_at = math.inf
        self._set_deadline(now)

    def _set_reading(self) -> None:
        """Back-pressure crosses the relay; what is only thrown away is always read."""
        limit = self._rules.max_queue
        client, upstream = self.legs
        for leg in self.legs:
            if leg.queued >= limit:
                leg.clogged = True
        for leg, other in ((client, upstream), (upstream, client)):
            if leg.gone or leg.finished or leg.fate >= Fate.CLOSE:
                leg.reading = False
            elif (self.cause is not None and other.pending is None) or (
                leg.close_received is not None
            ):
                leg.reading = True
            else:
                # Toward raw bytes we answer pings ourselves: a flood of them holds its sender.
                leg.reading = not (other.clogged or (other.raw and leg.clogged))

    # --- Ends -----------------------------------------------------------------------------

    def _closed(self, leg: Leg, other: Leg, step: Step, now: float) -> None:
        """A valid Close came from `leg`."""
        code = int.from_bytes(step.payload[:2], "big") if step.payload else frames.NO_CODE
        leg.close_received = code
        if other.raw:
            # RFC 6455 5.5.1: the endpoint, which we are here, answers as soon as it can.
            self._settle(Cause.CLOSED, leg.side, "", now)
            self._say(leg, code, "", now)
            other.raise_fate(Fate.FINISH)
            return
        if other.fate is Fate.OPEN and not other.gone:
            self._put(other, step.data, now)
            other.close_sent = code
        if other.close_received is not None or other.finished:
            first = self._first
            closed = other.close_received is not None
            self._settle(Cause.CLOSED if closed else Cause.FINISHED, first, "", now)
            for each in self.legs:
                self._after_farewell(each)
        elif self._first is None:
            self._first, self._since = leg.side, now

    def _finished_raw(self, leg: Leg, now: float) -> None:
        """FIN without Close where the upstream is raw."""
        client, upstream = self.legs
        if leg is client:
            cause = Cause.CUT if leg.cursor.in_frame or leg.cursor.holds else Cause.FINISHED
            self._settle(cause, leg.side, "FIN without Close", now)
            upstream.raise_fate(Fate.RESET)
            client.raise_fate(Fate.CLOSE)
        elif self._wrapper is not None and self._wrapper.holds:
            self._end(Cause.TEXT, leg.side, "the stream ends inside a character", now)
        else:
            self._settle(Cause.FINISHED, leg.side, "", now)
            self._bid(client, frames.NORMAL, "", now)
            self._bid(upstream, None, "", now)

    def _finished_between_frames(self, leg: Leg, other: Leg, now: float) -> None:
        """FIN without Close: passed on, and what the other still says is delivered."""
        other.raise_fate(Fate.FINISH)
        if self._first is None:
            self._first, self._since = leg.side, now
        if other.finished or other.close_received is not None:
            side = self._first if other.close_received is None else leg.side
            self._settle(Cause.FINISHED, side, "FIN without Close", now)
            for each in self.legs:
                self._after_farewell(each)

    def _unanswered(self, now: float) -> None:
        """A Close or a FIN was not answered in time."""
        assert self._first is not None
        first, other = self.legs[self._first], self.legs[1 - self._first]
        if first.close_received is not None:
            self._end(Cause.UNANSWERED, other.side, "Close was not answered", now)
        else:
            self._settle(Cause.FINISHED, first.side, "the other side did not finish in time", now)
            other.give_up()
            first.raise_fate(Fate.RESET if other.cursor.in_frame else Fate.CLOSE)

    def _settle(self, cause: Cause, side: Side | None, detail: str, now: float) -> None:
        """The cause is settled; from here on the relay is ending."""
        assert self.cause is None
        self.cause, self.side, self.detail = cause, side, detail
        self._since = now
        rules = self._rules
        self._limit_at = max(self._limit_at, now + (rules.write_timeout or rules.close_timeout))

    def _end(self, cause: Cause, side: Side | None, detail: str, now: float) -> None:
        """Settle the cause and tell both sides, by the table of ends."""
        self._settle(cause, side, detail, now)
        if side is None:
            self._end_by_order(cause, now)
            return
        farewell = FAREWELLS[cause]
        offender, other = self.legs[side], self.legs[1 - side]
        if farewell.reset:
            offender.give_up()
        if other.raw:
            other.raise_fate(Fate.RESET)
        else:
            self._bid(other, LOST_CODE[other.side], LOST_REASON[other.side], now)
        if offender.raw:
            offender.raise_fate(Fate.RESET)
        elif farewell.offender is None:
            self._bid(offender, None, "", now)   # it has finished: at most a frame is under way
        else:
            self._bid(offender, farewell.offender, detail, now)

    def _end_by_order(self, cause: Cause, now: float) -> None:
        """Nobody's fault: the gateway's own order or the route's."""
        rules = self._rules
        code, reason = frames.GOING_AWAY, cause.value
        if cause is Cause.SESSION_TIMEOUT:
            code = rules.session_code
        elif cause in (Cause.DRAIN, Cause.KILLED, Cause.DISMISSED):
            code, reason = rules.drain_code, rules.drain_reason
        elif cause is Cause.POLICY:
            code = frames.POLICY_VIOLATION
        client, upstream = self.legs
        self._bid(client, code, reason, now)
        self._bid(upstream, None if upstream.raw else frames.GOING_AWAY, reason, now)

    def _bid(self, leg: Leg, code: int | None, reason: str, now: float) -> None:
        """Say farewell now, or at the end of the frame under way, or never if that is cut."""
        source = self.legs[1 - leg.side]
        if leg.gone or leg.fate >= Fate.CLOSE:
            return
        if not source.cursor.in_frame:
            self._say(leg, code, reason, now)
            return
        leg.pending = (code, reason)
        if source.cursor.broken or source.finished or source.gone or source.fate >= Fate.CLOSE:
            leg.raise_fate(Fate.RESET)

    def _say(self, leg: Leg, code: int | None, reason: str, now: float) -> None:
        """Put the farewell behind what is queued. Toward raw bytes it is FIN alone."""
        if code is not None and leg.close_sent is None and leg.fate is Fate.OPEN:
            mask = self._random_bytes(4) if leg.side is Side.UPSTREAM else b""
            frame = frames.build_close(code, reason, mask)
            leg.put(frame, now)
            leg.close_sent = code
        self._after_farewell(leg)

    def _after_farewell(self, leg: Leg) -> None:
        """Half-close toward the client and linger; let a `ws` upstream close first (7.1.1)."""
        if leg.finished:
            leg.raise_fate(Fate.CLOSE)
        elif leg.side is Side.CLIENT or leg.raw:
            leg.raise_fate(Fate.FINISH)

    # --- Time -----------------------------------------------------------------------------

    def _is_stalled(self, now: float) -> bool:
        """End it if a side has taken nothing of what waits for it."""
        for leg in self.legs:
            if now >= self._stalled_at(leg):
                key = "write_timeout" if self._rules.write_timeout else "close_timeout"
                self._end(Cause.STALLED, leg.side, f"{key}: it took no byte", now)
                return True
        return False

    def _tick_closing(self, now: float) -> None:
        """The answer to the first Close or FIN is awaited."""
        if now >= self._answer_at():
            self._unanswered(now)
        elif now >= self._limit_at:
            self._end(Cause.SESSION_TIMEOUT, None, "session_timeout", now)

    def _tick_ending(self, now: float) -> None:
        """Give up the legs whose time is over."""
        due = [leg for leg in self.legs if now >= min(self._leg_at(leg), self._limit_at)]
        for leg in due:
            leg.raise_fate(Fate.RESET if leg.queued or leg.pending is not None else Fate.CLOSE)
            other = self.legs[1 - leg.side]
            if other.pending is not None:
                other.raise_fate(Fate.RESET)    # the frame under way will never be whole

    def _tick_open(self, now: float) -> None:
        """Idle, silent; heartbeats."""
        rules = self._rules
        if rules.idle_timeout and now >= self.active_at + rules.idle_timeout:
            if not any(leg.queued for leg in self.legs):
                self._end(Cause.IDLE, None, "idle_timeout", now)
                return
            self.active_at = now               # a slow side is not idle: see write_timeout
        if rules.heartbeat:
            for leg in self.legs:
                if not leg.raw and self._is_silent(leg, now):
                    self._end(Cause.SILENT, leg.side, "no sign of life after a ping", now)
                    return

    def _is_silent(self, leg: Leg, now: float) -> bool:
        """Ping a leg that is quiet; True if it gave no sign of life after that."""
        found = heartbeat.look(leg, self._rules, now)
        if found is Found.QUIET and not self.legs[1 - leg.side].cursor.in_frame:
            self._put(leg, heartbeat.build_ping(leg, self._random_bytes, now), now)
        return found is Found.SILENT

    def _stalled_at(self, leg: Leg) -> float:
        """When a side is given up unless it takes a byte. Where `write_timeout` is off that is
        never while the relay is open, and `close_timeout` else: an end must come to an end."""
        if not leg.queued or (self.is_open and not self._rules.write_timeout):
            return math.inf
        if self._rules.write_timeout:
            return leg.taken_at + self._rules.write_timeout
        return max(leg.taken_at, self._since) + self._rules.close_timeout

    def _answer_at(self) -> float:
        """When the answer to the first Close or FIN is overdue. It is not as long as that Close
        or FIN has not left, or back-pressure keeps the answer from being read."""
        assert self._first is not None
        other = self.legs[1 - self._first]
        if other.queued or not other.reading:
            return math.inf
        return max(other.taken_at, self._since) + self._rules.close_timeout

    def _leg_at(self, leg: Leg) -> float:
        """When a leg is given up while ending."""
        if leg.done:
            return math.inf
        if leg.queued:
            return self._stalled_at(leg)
        if leg.pending is None and self.legs[1 - leg.side].pending is not None:
            return math.inf                     # the other waits for the rest of its frame
        return max(leg.taken_at, self._since) + self._rules.close_timeout

    def _set_deadline(self, now: float) -> None:
        """The earliest time at which `tick` may have something to do."""
        rules = self._rules
        if self.cause is not None:
            at = min(self._limit_at, *map(self._leg_at, self.legs))
            self.deadline = math.inf if self.over else at
            return
        deadline = min(map(self._stalled_at, self.legs))
        if self._first is not None:
            deadline = min(deadline, self._answer_at(), self._limit_at)
        else:
            deadline = min(deadline, self._session_at)
            if rules.idle_timeout:
                deadline = min(deadline, self.active_at + rules.idle_timeout)
            if rules.heartbeat:
                for leg in self.legs:
                    if not leg.raw:
                        deadline = min(deadline, self._heartbeat_at(leg, now))
        self.deadline = deadline

    def _heartbeat_at(self, leg: Leg, now: float) -> float:
        """When this leg is to be looked at for its heartbeat."""
        return heartbeat.look_at(leg, self._rules, now)
