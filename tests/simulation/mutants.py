"""Small faults, one each, that the simulation must find: the test of the test.

Each is the real code but for one thing that somebody might get wrong. `MUTANTS` has them by
name; what each does wrong is its docstring.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from gateway import events, frames, heartbeat
from gateway.errors import Fault
from gateway.events import Cause, LegCounts, Link, RelayRules, Side
from gateway.frames import Kind, Step
from gateway.leg import Fate, Leg
from gateway.protocol.asking import CLIENT_GONE
from gateway.protocol.life import State
from gateway.protocol.session import Session
from gateway.relaying import Relay
from simulation.watch import WatchedEngine
from simulation.world import Cast

MUTANTS: dict[str, Cast] = {}


def _relay(kind: type[Relay]) -> type[Relay]:
    MUTANTS[_name(kind)] = Cast(relay=kind, name=_name(kind))
    return kind


def _session(kind: type[Session]) -> type[Session]:
    MUTANTS[_name(kind)] = Cast(session=kind, name=_name(kind))
    return kind


def _engine(kind: type[WatchedEngine]) -> type[WatchedEngine]:
    MUTANTS[_name(kind)] = Cast(engine=kind, name=_name(kind))
    return kind


def _name(kind: type) -> str:
    return "".join(f"_{one.lower()}" if one.isupper() else one for one in kind.__name__)[1:]


# --- Bytes --------------------------------------------------------------------------------------


@_relay
class DropsAByte(Relay):
    """The last byte of a piece that fills the queue."""

    def _put(self, leg: Leg, data: bytes, now: float) -> None:
        if leg.queued > 2000:
            data = data[:-1]
        if data:
            super()._put(leg, data, now)


@_relay
class DoublesAChunk(Relay):
    """What comes while something waits goes out twice."""

    def _put(self, leg: Leg, data: bytes, now: float) -> None:
        super()._put(leg, data, now)
        if leg.queued > len(data) and len(data) > 500:
            super()._put(leg, data, now)


@_relay
class SwapsTwo(Relay):
    """The last two pieces of a queue change places."""

    def _put(self, leg: Leg, data: bytes, now: float) -> None:
        super()._put(leg, data, now)
        if len(leg.queue) > 2:
            leg.queue[-1], leg.queue[-2] = leg.queue[-2], leg.queue[-1]


@_relay
class AltersAByte(Relay):
    """One bit of a long piece."""

    def _put(self, leg: Leg, data: bytes, now: float) -> None:
        if len(data) > 300:
            data = data[:200] + bytes([data[200] ^ 1]) + data[201:]
        super()._put(leg, data, now)


@_relay
class LeaksToStrangers(Relay):
    """What waited in one relay goes out in another."""

    scratch: ClassVar[list[tuple["LeaksToStrangers", bytes]]] = []

    def _put(self, leg: Leg, data: bytes, now: float) -> None:
        if len(data) == 1:
            self.scratch.append((self, data))
        elif self.scratch and self.scratch[-1][0] is not self and self.scratch[-1][0].cause is None:
            data = data[:-1] + self.scratch.pop()[1]
        super()._put(leg, data, now)


@_relay
class MasksOnce(Relay):
    """An unmasked payload, where the mask's turn at the cut of a frame is forgotten."""

    def received(self, side: Side, data: bytes, now: float) -> None:
        self.legs[side].cursor._mask_at = 0
        super().received(side, data, now)


@_relay
class CutsCharacters(Relay):
    """Text frames of a raw upstream end where its bytes happened to be cut."""

    def _wrap(self, data: bytes, now: float) -> None:
        wrapper, self._wrapper = self._wrapper, None
        opcode = frames.TEXT if wrapper is not None else frames.BINARY
        self.legs[Side.UPSTREAM].wrapped += 1
        header = frames.build_header(opcode, len(data))
        self._put(self.legs[Side.CLIENT], header + data, now)
        self._wrapper = wrapper


# --- Frames -------------------------------------------------------------------------------------


@_relay
class ForgetsToMask(Relay):
    """Its own Close toward an upstream."""

    def _say(self, leg: Leg, code: int | None, reason: str, now: float) -> None:
        if code is not None and leg.close_sent is None and leg.fate is Fate.OPEN:
            leg.put(frames.build_close(code, reason), now)
            leg.close_sent = code
        self._after_farewell(leg)


@_relay
class PingsInsideAFrame(Relay):
    """It does not look whether a frame is under way."""

    def _is_silent(self, leg: Leg, now: float) -> bool:
        source = self.legs[1 - leg.side].cursor
        remaining, source.remaining = source.remaining, 0
        silent = super()._is_silent(leg, now)
        source.remaining = remaining
        return silent


@_relay
class ClosesInsideAFrame(Relay):
    """A farewell does not wait for the end of a frame."""

    def _bid(self, leg: Leg, code: int | None, reason: str, now: float) -> None:
        if not leg.gone and leg.fate < Fate.CLOSE:
            self._say(leg, code, reason, now)


@_relay
class PassesABrokenFrame(Relay):
    """The reserved bit of an extension that nobody agreed on."""

    def __init__(self, rules: RelayRules, now: float, random_bytes: Callable[[int], bytes]):
        super().__init__(replace(rules, deflate=True), now, random_bytes)


@_relay
class PassesWhatIsTooBig(Relay):
    """It knows no `max_message`."""

    def __init__(self, rules: RelayRules, now: float, random_bytes: Callable[[int], bytes]):
        super().__init__(replace(rules, max_message=0), now, random_bytes)


@_relay
class ClosesTwice(Relay):
    """A side that was sent the other's Close is told another."""

    def _say(self, leg: Leg, code: int | None, reason: str, now: float) -> None:
        leg.close_sent = None
        super()._say(leg, code, reason, now)


@_relay
class TalksBehindAClose(Relay):
    """What a side says behind its own Close passes."""

    def received(self, side: Side, data: bytes, now: float) -> None:
        leg = self.legs[side]
        if self.cause is None and leg.close_received is not None:
            self._put(self.legs[1 - side], data, now)
        super().received(side, data, now)


@_relay
class SwallowsAForeignPong(Relay):
    """One that came without a ping of our own."""

    def _control(self, leg: Leg, other: Leg, step: Step, now: float) -> bool:
        if step.opcode == frames.PONG and not heartbeat.is_own_pong(leg, step.payload, now):
            return False
        return super()._control(leg, other, step, now)


@_relay
class PassesItsOwnPong(Relay):
    """The answer to a ping of our own."""

    def _control(self, leg: Leg, other: Leg, step: Step, now: float) -> bool:
        if step.opcode == frames.PONG and step.payload == leg.ping_payload and not other.raw:
            self._put(other, step.data, now)
        return super()._control(leg, other, step, now)


@_relay
class AnswersNoPing(Relay):
    """Toward raw bytes it is the endpoint."""

    def _control(self, leg: Leg, other: Leg, step: Step, now: float) -> bool:
        if step.opcode == frames.PING and other.raw:
            return False
        return super()._control(leg, other, step, now)


@_relay
class PingsTooEagerly(Relay):
    """It does not heed a foreign ping that is unanswered."""

    def _is_silent(self, leg: Leg, now: float) -> bool:
        leg.foreign_ping_at = None
        return super()._is_silent(leg, now)


# --- Ends ---------------------------------------------------------------------------------------


@_relay
class ForgetsFin(Relay):
    """FIN between two frames is not passed on."""

    def _finished_between_frames(self, leg: Leg, other: Leg, now: float) -> None:
        fate = other.fate
        super()._finished_between_frames(leg, other, now)
        if self.cause is None:
            other.fate = fate


@_relay
class ForgetsTheLastFin(Relay):
    """Behind a farewell to the client."""

    def _after_farewell(self, leg: Leg) -> None:
        if leg.finished or leg.raw:
            super()._after_farewell(leg)


@_relay
class DestroysItsFarewell(Relay):
    """It closes right behind it, whatever still comes."""

    def _after_farewell(self, leg: Leg) -> None:
        leg.raise_fate(Fate.CLOSE)


@_relay
class EndsACutStreamWell(Relay):
    """A raw upstream whose client went without a Close sees FIN."""

    def _finished_raw(self, leg: Leg, now: float) -> None:
        if leg is not self.legs[0]:
            super()._finished_raw(leg, now)
            return
        self._settle(Cause.FINISHED, leg.side, "FIN without Close", now)
        self.legs[1].raise_fate(Fate.CLOSE)
        leg.raise_fate(Fate.CLOSE)


@_relay
class EndsACutFrameWell(Relay):
    """FIN in the middle of a payload is passed on."""

    def finished(self, side: Side, now: float) -> None:
        leg = self.legs[side]
        remaining, leg.cursor.remaining = leg.cursor.remaining, 0
        super().finished(side, now)
        leg.cursor.remaining = remaining


@_relay
class FinishesInsideAFrame(Relay):
    """A side that cut its own frame sees FIN, though one is under way toward it."""

    def _end(self, cause: Cause, side: Side | None, detail: str, now: float) -> None:
        super()._end(cause, side, detail, now)
        if cause is Cause.CUT and side is not None:
            self.legs[side].pending = None
            self.legs[side].raise_fate(Fate.CLOSE)


@_relay
class ForgetsWhatIsPending(Relay):
    """A side that finishes is closed, though a farewell to it waits behind a frame."""

    def finished(self, side: Side, now: float) -> None:
        super().finished(side, now)
        if self.cause is not None:
            self.legs[side].raise_fate(Fate.CLOSE)


@_relay
class SaysTheWrongCode(Relay):
    """1001 to a client whose upstream failed."""

    def _bid(self, leg: Leg, code: int | None, reason: str, now: float) -> None:
        super()._bid(leg, frames.GOING_AWAY if code == frames.BAD_GATEWAY else code, reason, now)


@_relay
class ResetsTheOffender(Relay):
    """One that broke the framing is not told 1002."""

    def _end(self, cause: Cause, side: Side | None, detail: str, now: float) -> None:
        super()._end(cause, side, detail, now)
        if cause is Cause.FRAMING and side is not None:
            self.legs[side].raise_fate(Fate.RESET)


@_relay
class TellsNobody(Relay):
    """At a drain both are closed without a word."""

    def _end_by_order(self, cause: Cause, now: float) -> None:
        for leg in self.legs:
            self._bid(leg, None, "", now)


@_relay
class BlamesTheOther(Relay):
    """The side that broke a rule is taken for the other."""

    def _end(self, cause: Cause, side: Side | None, detail: str, now: float) -> None:
        super()._end(cause, side, detail, now)
        if cause in (Cause.FRAMING, Cause.LOST) and side is not None:
            self.side = side.other


# --- Time and pressure --------------------------------------------------------------------------


@_relay
class NeverTimesOut(Relay):
    """A side that takes nothing is waited for."""

    def _stalled_at(self, leg: Leg) -> float:
        return math.inf


@_relay
class WaitsForACloseForEver(Relay):
    """`close_timeout` is forgotten."""

    def _answer_at(self) -> float:
        return math.inf


@_relay
class BlamesWhoCannotAnswer(Relay):
    """A Close is not answered since the answer is not read."""

    def _answer_at(self) -> float:
        assert self._first is not None
        other = self.legs[1 - self._first]
        reading, other.reading = other.reading, True
        at = super()._answer_at()
        other.reading = reading
        return at


@_relay
class BlamesWhoIsNotAsked(Relay):
    """The time to answer begins while the Close still waits in the queue."""

    def _answer_at(self) -> float:
        assert self._first is not None
        other = self.legs[1 - self._first]
        queued, other.queued = other.queued, 0
        at = super()._answer_at()
        other.queued = queued
        return at


@_relay
class CutsTheSlow(Relay):
    """While ending it is `close_timeout` that a side has for its queue, however it takes it."""

    def _leg_at(self, leg: Leg) -> float:
        return min(super()._leg_at(leg), self._since + self._rules.close_timeout)


@_relay
class CountsNoCuts(Relay):
    """A side that is reset has lost nothing."""

    def counts(self) -> tuple[LegCounts, LegCounts]:
        one, two = super().counts()
        return replace(one, cut=False), replace(two, cut=False)


@_relay
class HeedsAnOldPing(Relay):
    """A foreign ping before the last sign of life keeps our own from being sent."""

    def _is_silent(self, leg: Leg, now: float) -> bool:
        if leg.foreign_ping_at is not None:
            leg.foreign_ping_at = max(leg.foreign_ping_at, leg.heard_at + 1e-9)
        return super()._is_silent(leg, now)


@_relay
class IdlesOverEmptyFrames(Relay):
    """Toward raw bytes, frames without payload are no activity."""

    def _walk(self, leg: Leg, data: bytes, now: float) -> bool:
        before = leg.cursor.payload
        only_own = super()._walk(leg, data, now)
        return only_own or (self.legs[1].raw and leg.cursor.payload == before)


@_relay
class IdlesUnderPressure(Relay):
    """A side that takes its bytes slowly is idle."""

    def _tick_open(self, now: float) -> None:
        limit = self._rules.idle_timeout
        if limit and now >= self.active_at + limit:
            self._end(Cause.IDLE, None, "idle_timeout", now)
        else:
            super()._tick_open(now)


@_relay
class NeverPings(Relay):
    """Heartbeat is forgotten."""

    def _is_silent(self, leg: Leg, now: float) -> bool:
        return False


@_relay
class PingsAtThePaceOfTheTimeout(Relay):
    """The answer to a ping does not bring the next one forward."""

    def _heartbeat_at(self, leg: Leg, now: float) -> float:
        if leg.reading and leg.probe_at is not None and leg.heard_at < leg.probe_at:
            return leg.probe_at + self._rules.heartbeat_timeout
        return super()._heartbeat_at(leg, now)


@_relay
class WaitsTwiceForALifeSign(Relay):
    """That the kernel over there has our ping is taken for a sign of life."""

    def acknowledged(self, side: Side, waiting: int, now: float) -> None:
        leg = self.legs[side]
        if not waiting and leg.probe_at == leg.ping_at > 0:
            leg.probe_at = now
        super().acknowledged(side, waiting, now)


@_relay
class PingsTheBusy(Relay):
    """A ping comes though the side spoke a moment ago."""

    def _is_silent(self, leg: Leg, now: float) -> bool:
        if leg.probe_at is None:
            leg.heard_at = -math.inf
        return super()._is_silent(leg, now)


@_relay
class FindsTheHeldSilent(Relay):
    """A side that is not read is judged all the same."""

    def _is_silent(self, leg: Leg, now: float) -> bool:
        reading, leg.reading = leg.reading, True
        silent = super()._is_silent(leg, now)
        leg.reading = reading
        return silent


@_relay
class ForgetsToResume(Relay):
    """A side that was held is held for ever."""

    def sent(self, side: Side, count: int, now: float) -> None:
        was_clogged = self.legs[side].clogged
        super().sent(side, count, now)
        self.legs[side].clogged = was_clogged
        self._set_reading()


@_relay
class NeverHolds(Relay):
    """What one side does not take is queued without a limit."""

    def _set_reading(self) -> None:
        super()._set_reading()
        for leg in self.legs:
            leg.reading = not (leg.gone or leg.finished or leg.fate >= Fate.CLOSE)


# --- Accounts -----------------------------------------------------------------------------------


@_relay
class MiscountsMessages(Relay):
    """Fragments are counted as messages."""

    def counts(self) -> tuple[LegCounts, LegCounts]:
        one, two = super().counts()
        return replace(one, messages=max(one.messages, one.frames - 1)), two


@_relay
class MiscountsBytes(Relay):
    """What a Close of our own has is not counted."""

    def sent(self, side: Side, count: int, now: float) -> None:
        super().sent(side, count, now)
        if self.legs[side].close_sent is not None:
            self.legs[side].bytes_out -= 1


@_relay
class MissesAViolation(Relay):
    """The step behind a control frame is not looked at."""

    def _walk(self, leg: Leg, data: bytes, now: float) -> bool:
        steps = leg.cursor.feed(data)
        for at, step in enumerate(steps):
            if step.kind is Kind.PASS:
                self._put(self.legs[1 - leg.side], step.data, now)
            elif step.kind is Kind.CONTROL:
                self._control(leg, self.legs[1 - leg.side], step, now)
            elif not at:
                self._end(step.cause, leg.side, step.detail, now)
        return False


# --- Sessions -----------------------------------------------------------------------------------


@_session
class ForgetsTheUpstream(Session):
    """The upstream is not reset when the client goes before the answer."""

    __slots__ = ()

    def order(self, command: events.Command) -> None:
        is_reset = isinstance(command, events.Reset) and command.side is Side.UPSTREAM
        if not (is_reset and self.state in (State.CONNECTING, State.ASKING)):
            super().order(command)


@_session
class KeepsTheLimit(Session):
    """What was counted for the route is not given back when no upstream can be had."""

    __slots__ = ()

    def release(self) -> None:
        if self.state is State.CONNECTING and self.endpoint is None:
            self.entered = None
        super().release()


@_session
class KeepsTheEndpoint(Session):
    """A failed connect is not counted down."""

    __slots__ = ()

    def _give_up_endpoint(self, fault: Fault, detail: str, status: int) -> None:
        assert self.endpoint is not None
        self.endpoint.begin()
        super()._give_up_endpoint(fault, detail, status)


@_session
class LosesEarlyBytes(Session):
    """What a client says before its 101."""

    __slots__ = ()

    def _begin_relay(self, answer: bytes, subprotocol: str, *, deflate: bool, rest: bytes) -> None:
        assert self.request is not None
        self.request.early.clear()
        super()._begin_relay(answer, subprotocol, deflate=deflate, rest=rest)


@_session
class PassesACutRefusal(Session):
    """An upstream's refusal that broke off ends well."""

    __slots__ = ()

    def _cut_passing(self, detail: str) -> None:
        self.close(detail)


@_session
class NeverLingers(Session):
    """It closes right behind its last word."""

    __slots__ = ()

    def linger(self) -> None:
        self.close("")


@_session
class RecordsTwice(Session):
    """The record of a relay."""

    __slots__ = ()

    def write_record(self, **changes: object) -> None:
        record = self.record
        super().write_record(**changes)
        if "cause" in changes and record is not None:
            self.record = record
            super().write_record(**changes)


@_session
class RecordsNothing(Session):
    """A client that went before the answer leaves no record."""

    __slots__ = ()

    def write_record(self, **changes: object) -> None:
        if changes.get("status") == CLIENT_GONE:
            self.record = None
        super().write_record(**changes)


@_session
class ForgetsADrain(Session):
    """A relay is not told of it."""

    __slots__ = ()

    def drain(self, now: float) -> list[events.Command]:
        if self.state is State.RELAYING:
            return []
        return super().drain(now)


# --- Engines ------------------------------------------------------------------------------------


@_engine
class ResetsWithFin(WatchedEngine):
    """RST is never sent."""

    def release(self, owner: Any, *, abort: bool = False) -> None:
        super().release(owner)


@_engine
class SendsAllAtOnce(WatchedEngine):
    """It takes for granted that the kernel took everything."""

    def send_some(self, link: Any, queue: Any) -> int:
        pieces = list(queue)[:1]
        count = super().send_some(link, queue)
        return max(count, len(pieces[0])) if count else 0


@_engine
class ForgetsEarlyBytes(WatchedEngine):
    """Bytes of the upstream that came with its 101."""

    def relay(
        self,
        client: Link,
        upstream: Link,
        rules: RelayRules,
        from_client: bytes = b"",
        from_upstream: bytes = b"",
    ) -> None:
        super().relay(client, upstream, rules, from_client, b"")


@_engine
class FiresTimersLate(WatchedEngine):
    """By so much that nothing ends in time."""

    def set_timer(self, link: Link, name: str, at: float) -> None:
        super().set_timer(link, name, at + 60.0)
