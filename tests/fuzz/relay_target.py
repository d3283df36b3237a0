"""The target for `gateway.relaying`: a script of facts, told as a driver of an engine tells them.

The first byte of an input chooses the rules; then come facts: bytes from a side (as they stand in
the input, or a sound frame of a length that it gives), FIN, loss, what the kernel took, time,
orders. Facts that no driver could tell (bytes while `reading` is off, or after FIN) are left out.
At the end everything is taken, and time runs until the relay is over.

Laws:

- nothing is raised, whatever the sides do, and it comes to an end;
- what goes out is sound: frames that the rules themselves let through, at most one Close, nothing
  behind it or behind FIN, and no FIN inside a frame (a cut stream is reset);
- data goes out as it came in: nothing is lost before the end, nothing doubled or reordered;
- what is queued is bounded, and counted right; a fate only grows;
- the answer to a ping of our own is swallowed.

All of it holds for the reference, and for the compiled rules where they are built.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.events import Cause, RelayRules, Side
from gateway.frames import CLOSE, PING, PONG, TEXT, Cursor, Kind, build_frame, unmask
from gateway.leg import Fate
from gateway.relaying import Relay

ORDERS = (Cause.DRAIN, Cause.SESSION_TIMEOUT, Cause.POLICY, Cause.KILLED)
READ_MAX = 255                         # bytes in one read here
OWN_MAX = 2 * 131                      # own frames: a ping and a Close
ROUNDS_MAX = 60                        # of time running on, until the relay must be over
Frame = tuple[int, bytes, bytes]       # opcode, the frame as it is, its payload unmasked
MakeRelay = Callable[[RelayRules, float, Callable[[int], bytes]], Any]


def relays() -> list[MakeRelay]:
    """The reference, and the compiled rules behind the same face, if they are built."""
    if importlib.util.find_spec("gateway.engine.compiled") is None:
        return [Relay]
    return [Relay, importlib.import_module("gateway.engine.compiled").CompiledRelay]


def split(stream: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames of a stream, and the rest. It judges nothing."""
    found: list[Frame] = []
    at = 0
    while len(stream) - at >= 2:
        masked, length, size = stream[at + 1] & 128, stream[at + 1] & 127, 2
        if length > 125:
            size = 4 if length == 126 else 10
            length = int.from_bytes(stream[at + 2 : at + size], "big")
        size += 4 if masked else 0
        if len(stream) - at < size + length:
            break
        frame = stream[at : at + size + length]
        payload = unmask(frame[size:], frame[size - 4 : size]) if masked else frame[size:]
        found.append((frame[0] & 0x0F, frame, payload))
        at += size + length
    return found, stream[at:]


@dataclass
class Wire:
    """What a driver did with one side's socket, and what it carried."""

    came: bytearray = field(default_factory=bytearray)
    went: bytearray = field(default_factory=bytearray)
    heard_end: bool = False            # FIN came
    finished: bool = False             # FIN was sent
    closed: bool = False               # close(2) after all that was queued
    reset: bool = False
    gone: bool = False                 # lost
    fate: Fate = Fate.OPEN

    @property
    def ended(self) -> bool:
        """There is no socket any more."""
        return self.closed or self.reset or self.gone


def rules_for(choice: int) -> RelayRules:
    """The rules that the first byte of an input means."""
    raw = bool(choice & 1)
    return RelayRules(
        raw=raw,
        raw_text=raw and bool(choice & 2),
        deflate=not raw and bool(choice & 2),
        max_message=400 if choice & 4 else 0,
        max_frame=200 if choice & 8 else 0,
        max_queue=300 if choice & 16 else 256 * 1024,
        idle_timeout=7.0 if choice & 32 else 0.0,
        heartbeat=3.0 if choice & 64 else 0.0,
        heartbeat_timeout=2.0,
        session_timeout=20.0 if choice & 128 else 0.0,
        close_timeout=5.0,
        write_timeout=4.0,
    )


class Script:
    """Reads an input as facts, and plays the driver."""

    def __init__(self, data: bytes, make_relay: MakeRelay) -> None:
        self.data, self.at = data, 1
        self.now = 100.0
        self.count = 0
        self.rules = rules_for(data[0])
        self.relay = make_relay(self.rules, self.now, self._random_bytes)
        self.wires = (Wire(), Wire())
        self.biggest_read = 0

    def _random_bytes(self, count: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(count, "big")

    def own_pings(self, side: Side) -> list[bytes]:
        """Payloads of the pings to this side that no one sent from the other."""
        wires, queue = self.wires, self.relay.legs[side].queue
        told, _ = split(bytes(wires[side].went) + b"".join(queue))
        read, _ = split(bytes(wires[side.other].came))
        foreign = {payload for opcode, _, payload in read if opcode == PING}
        return [p for opcode, _, p in told if opcode == PING and p not in foreign]

    def _next(self) -> int:
        byte = self.data[self.at] if self.at < len(self.data) else 0
        self.at += 1
        return byte

    def run(self) -> None:
        """The whole script; then time runs on until the relay is over."""
        while self.at < len(self.data) and not self.relay.over:
            self._fact(self._next())
            self._look()
        for number in range(ROUNDS_MAX):
            if self.relay.over:
                break
            self._take(1.0)
            self._look()
            if self.relay.over:
                break
            if not math.isfinite(self.relay.deadline) or number == ROUNDS_MAX // 2:
                self.relay.end(Cause.DRAIN, self.now)
            self._pass_time(self.relay.deadline - self.now)
            self._look()
        assert self.relay.over, "it never ends"
        assert self.relay.cause is not None
        for side in Side:
            self._pump(side)
            assert self.wires[side].ended

    # --- Facts ----------------------------------------------------------------------------

    def _fact(self, byte: int) -> None:
        """Tell the fact that this byte means, if a driver could."""
        side = Side(byte >> 3 & 1)
        kind = byte & 7
        if kind == 0:
            data = self.data[self.at + 1 : self.at + 1 + self._next()]
            self.at += len(data)
            self._receive(side, data)
        elif kind in (1, 2):
            self._receive(side, self._sound_frame(side))
        elif kind == 3:
            self._take((1 + self._next()) / 256)
        elif kind == 4:
            self._pass_time(self._next() / 16)
        elif kind == 5:
            self._finish(side)
        elif kind == 6:
            self._lose(side)
        elif byte >= 192:              # orders are rare
            self.relay.end(ORDERS[byte >> 4 & 3], self.now)
        else:
            self._pass_time(self.relay.deadline - self.now)

    def _sound_frame(self, side: Side) -> bytes:
        """A frame that this side may send; for a raw upstream, bytes."""
        first, length = self._next(), self._next()
        opcode = (TEXT, 2, 2, 2, PING, PING, PONG, CLOSE)[first & 7]
        payload = bytes(33 + number % 90 for number in range(length))
        if opcode >= CLOSE:
            payload = payload[:125]
        if opcode == CLOSE:
            payload = b"\x03\xe8" + payload[:50] if length else b""
        if first & 128 and not (side is Side.UPSTREAM and self.rules.raw):
            own = self.own_pings(side)
            opcode, payload = (PONG, own[-1]) if own else (opcode, payload)
        mask = bytes((first, length, 7, 9)) if side is Side.CLIENT else b""
        if side is Side.UPSTREAM and self.rules.raw:
            return payload
        return build_frame(opcode, payload, mask)

    def _receive(self, side: Side, data: bytes) -> None:
        if data and self.relay.legs[side].reading and not self.wires[side].ended:
            self.wires[side].came += data
            self.biggest_read = max(self.biggest_read, len(data))
            self.relay.received(side, data, self.now)

    def _finish(self, side: Side) -> None:
        wire = self.wires[side]
        if self.relay.legs[side].reading and not (wire.heard_end or wire.ended):
            wire.heard_end = True
            self.relay.finished(side, self.now)

    def _lose(self, side: Side) -> None:
        if not self.wires[side].ended:
            self.wires[side].gone = True
            self.relay.lost(side, "reset", self.now)

    def _take(self, part: float) -> None:
        """The kernel takes a part of what waits, on both sides."""
        for side in Side:
            leg, wire = self.relay.legs[side], self.wires[side]
            count = math.ceil(leg.queued * part)
            if count and not wire.ended:
                queued = b"".join(leg.queue)
                wire.went += queued[:count]
                self.relay.sent(side, count, self.now)
                assert b"".join(leg.queue) == queued[count:]

    def _pass_time(self, seconds: float) -> None:
        """Time goes on, but never past the deadline without a tick."""
        if math.isfinite(seconds):
            self.now = max(self.now, min(self.now + max(seconds, 0.0), self.relay.deadline))
        if self.now >= self.relay.deadline:
            self.relay.tick(self.now)

    # --- What a driver looks at -----------------------------------------------------------

    def _look(self) -> None:
        """Check what must hold after each fact, and pump as a driver does."""
        assert not math.isnan(self.relay.deadline)
        for side in Side:
            leg, wire = self.relay.legs[side], self.wires[side]
            assert leg.queued == sum(map(len, leg.queue))
            assert all(leg.queue)
            assert leg.fate >= wire.fate
            wire.fate = leg.fate
            self._pump(side)
            if not self.rules.raw:
                # One read brings at most what it brought; what is held back comes with the next.
                assert leg.queued < self.rules.max_queue + self.biggest_read + 139 + OWN_MAX

    def _pump(self, side: Side) -> None:
        """What the fate asks for."""
        leg, wire = self.relay.legs[side], self.wires[side]
        if wire.gone:
            assert not leg.queue
        elif leg.fate is Fate.RESET:
            assert not leg.queue, "RESET drops the queue"
            wire.reset = not wire.closed
        elif wire.finished or wire.closed:
            assert not leg.queue, "bytes behind FIN"
        if not leg.queue and not wire.ended:
            wire.finished = wire.finished or leg.fate >= Fate.FINISH
            wire.closed = leg.fate is Fate.CLOSE


# --- What went out ----------------------------------------------------------------------------


def _check_sound(script: Script, side: Side) -> None:
    """What went to a side that reads frames is what the rules themselves let through."""
    wire = script.wires[side]
    rules = script.rules
    cursor = Cursor(masked=side is Side.UPSTREAM, deflate=rules.deflate)
    for step in cursor.feed(bytes(wire.went)) if wire.went else []:
        assert step.kind is not Kind.BROKEN, step.detail
    sent, rest = split(bytes(wire.went))
    if cursor.closed:
        assert [opcode for opcode, _, _ in sent].index(CLOSE) == len(sent) - 1
        assert not rest, "something behind a Close"
    # Toward a side that has cut its own stream a FIN inside a frame deceives nobody.
    if wire.finished and not (wire.reset or wire.heard_end):
        assert not cursor.in_frame, "FIN inside a frame"
        assert not cursor.holds, "FIN inside a header or a control frame"


def _data(frames: list[Frame]) -> bytes:
    return b"".join(frame for opcode, frame, _ in frames if opcode < CLOSE)


def _payload(frames: list[Frame]) -> bytes:
    return b"".join(payload for opcode, _, payload in frames if opcode < CLOSE)


def _check_carried(script: Script, source: Side) -> None:
    """What went out is the beginning of what came in, to the byte."""
    rules = script.rules
    came = bytes(script.wires[source].came)
    went = bytes(script.wires[source.other].went)
    if not rules.raw:
        sent, rest = split(went)
        read, last = split(came)
        assert (_data(read) + last).startswith(_data(sent))
        if rest and rest[0] & 0x0F < CLOSE:
            assert (_data(read) + last).startswith(_data(sent) + rest)
        foreign = [p for opcode, _, p in read if opcode == PING]
        pings = [p for opcode, _, p in sent if opcode == PING and p in set(foreign)]
        assert pings == foreign[: len(pings)]
        # The answer to our latest ping is ours; said again, it is a pong like others.
        for own in script.own_pings(source)[-1:]:
            answers = sum(opcode == PONG and payload == own for opcode, _, payload in read)
            passed = sum(opcode == PONG and payload == own for opcode, _, payload in sent)
            assert not answers or passed < answers, "the answer to our own ping passed"
    elif source is Side.UPSTREAM:
        sent, rest = split(went)
        assert came.startswith(_payload(sent))
    else:
        read, last = split(came)
        # The payload under way passes as it comes; its header is not needed to compare.
        whole = _payload(read)
        assert went[: len(whole)] == whole[: len(went)]
        assert len(went) <= len(whole) + len(last)


def fuzz_relay(data: bytes) -> None:
    """One life of a relay, by the same script for each form of the rules."""
    for make_relay in relays() if data else []:
        script = Script(data, make_relay)
        script.run()
        _check(script)


def _check(script: Script) -> None:
    """What holds for a life that is over."""
    for side in Side:
        if not (script.rules.raw and side is Side.UPSTREAM):
            _check_sound(script, side)
        _check_carried(script, side)
        counts = script.relay.counts()[side]
        assert counts.bytes_in == len(script.wires[side].came)
        assert counts.bytes_out == len(script.wires[side].went)
