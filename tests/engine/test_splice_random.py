"""Random lives on real sockets: through compiled relays, and through the driver in Python.

Both directions at once, payloads up to a mebibyte, readers that stall and go on, pieces cut at
random places, and an end of each kind. Both must give the far ends the same bytes, the same codes,
and tell the same of it. A failure prints the seed; `test_lives[SEED]` replays it.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.rig import MEBIBYTE, Far, Rig, rig_of
from engine.tls_ends import SecureEnds, SecureFar
from gateway import frames
from gateway.events import Cause, RelayEnded, RelayRules, Side

LIVES = 30
RINGS = ["io_uring", "io_uring-completions"]
SIZES = (0, 1, 125, 126, 1000, 32_767, 32_768, 65_535, 65_536, 100_000, 262_144, MEBIBYTE)
STREAM_MAX = 2 * MEBIBYTE
ENDS = ("close", "fin", "cut by fin", "cut by rst", "bad frame", "too big", "drain", "killed")
UNKNOWN = frozenset({"cut by fin", "cut by rst", "killed"})   # how much arrives before the end


@dataclasses.dataclass
class Plan:
    """What one life is to be, drawn from its seed alone."""

    rules: RelayRules
    streams: tuple[list[bytes], list[bytes]]     # in the pieces that they are sent in
    sound: tuple[int, int]                       # bytes of them that break no rule
    ender: Side
    end: str
    small: bool
    stalls: list[tuple[int, Side]]               # after which piece who stalls or goes on


def header(side: Side, opcode: int, size: int) -> bytes:
    """Of a frame from this side; the mask is nothing, so payloads pass as they are."""
    return frames.build_header(opcode, size, bytes(4) if side is Side.CLIENT else b"")


def stream_of(chance: random.Random, side: Side, *, raw: bool) -> bytes:
    """Sound frames; for a raw upstream, bytes."""
    data = b""
    while len(data) < STREAM_MAX * chance.random():
        size = chance.choice(SIZES)
        opcode = chance.choice((frames.BINARY, frames.BINARY, frames.TEXT, frames.PING))
        payload = chance.randbytes(size)
        if opcode == frames.PING:
            payload = payload[:125]
        elif opcode == frames.TEXT:
            payload = (b"a\xc3\x9f\xe2\x82\xac" * (size // 6 + 1))[: size // 6 * 6]
        if not (raw and side is Side.UPSTREAM):
            data += header(side, opcode, len(payload))
        data += payload
    return data


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """In up to 20 pieces, some of them tiny."""
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(10)))
    places += [place + chance.randrange(16) for place in places]
    places = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(places) if end > begin]


def plan_of(seed: int) -> Plan:
    """See Plan."""
    chance = random.Random(seed)
    raw = chance.random() < 0.25
    end = chance.choice(ENDS)
    ender = chance.choice(list(Side))
    if raw and end in ("close", "bad frame", "too big", "cut by fin"):
        ender = Side.CLIENT
    rules = RelayRules(
        raw=raw,
        max_message=MEBIBYTE,
        max_queue=chance.choice((16 * 1024, 256 * 1024)),
        write_timeout=0.0,
        close_timeout=0.1,
    )
    streams = [stream_of(chance, side, raw=raw) for side in Side]
    sound = (len(streams[0]), len(streams[1]))
    if end.startswith("cut"):
        streams[ender] += header(ender, frames.BINARY, 400_000) + chance.randbytes(
            chance.choice((0, 1, 40_000, 399_999))
        )
    elif end == "bad frame":
        streams[ender] += b"\xff" * 30
    elif end == "too big":
        streams[ender] += header(ender, frames.BINARY, MEBIBYTE + 1) + bytes(50_000)
    pieces = (cut(chance, streams[0]), cut(chance, streams[1]))
    stalls = [
        (chance.randrange(12), chance.choice(list(Side))) for _ in range(chance.randrange(4))
    ]
    return Plan(rules, pieces, sound, ender, end, chance.random() < 0.3, stalls)


def payloads(data: bytes) -> bytes:
    """What is in the data frames of a stream."""
    found, at = b"", 0
    while len(data) - at >= 2:
        length, size = data[at + 1], 2
        if length > 125:
            size = 4 if length == 126 else 10
            length = int.from_bytes(data[at + 2 : at + size], "big")
        if data[at] & 0x0F < frames.CLOSE:
            found += data[at + size : at + size + length]
        at += size + length
    return found


def heard_end(far: Far) -> Callable[[], bool]:
    """A condition: this far end has seen FIN, with close_notify or (a stream that breaks off)
    without, or RST."""
    below = far.plain if isinstance(far, SecureFar) else far
    return lambda: far.finished or below.finished or below.was_reset


class Life:
    """A plan, lived on one engine."""

    def __init__(self, rig: Rig, plan: Plan):
        self.rig, self.plan = rig, plan
        self.client, browser = rig.accepted(small=plan.small)
        self.upstream, server = rig.connected(small=plan.small)
        self.fars: tuple[Far, Far] = (browser, server)
        rig.engine.relay(self.client, self.upstream, plan.rules)
        self.sent = [b"".join(plan.streams[side]) for side in Side]

    def live(self) -> RelayEnded:
        """From the first piece to the end."""
        plan, rig, ender = self.plan, self.rig, self.plan.ender
        stalled: set[Side] = set()
        for turn in range(max(len(plan.streams[0]), len(plan.streams[1]), 1)):
            for side in Side:
                if turn < len(plan.streams[side]) and not self.over():
                    self.fars[side].send(plan.streams[side][turn])
            for _, side in (stall for stall in plan.stalls if stall[0] == turn):
                (self.fars[side].resume if side in stalled else self.fars[side].stall)()
                stalled ^= {side}
            rig.settle(0.002)
        for far in self.fars:
            far.resume()
        if plan.end not in UNKNOWN and plan.end not in ("bad frame", "too big"):
            rig.until(lambda: self.over() or all(self.has_all(side) for side in Side))
        if plan.end == "close":
            self.fars[ender].send(self.close_frame(ender))
            rig.until(lambda: self.over() or self.counts_closed())
            self.fars[ender.other].send(
                b"" if plan.rules.raw else self.close_frame(ender.other)
            )
        elif plan.end in ("fin", "cut by fin"):
            self.fars[ender].finish()
        elif plan.end == "cut by rst":
            self.fars[ender].reset()
        elif plan.end in ("drain", "killed"):
            rig.engine.end(self.client, Cause.DRAIN if plan.end == "drain" else Cause.KILLED)
        rig.until(self.over)
        (ended,) = rig.of(self.client, RelayEnded)
        for far in self.fars:
            if plan.end != "cut by rst" or far is not self.fars[ender]:
                rig.until(heard_end(far))
        return ended

    def over(self) -> bool:
        """RelayEnded was delivered."""
        return self.rig.has(self.client, RelayEnded)

    def has_all(self, side: Side) -> bool:
        """The other far end has all that came from this one."""
        counts = self.rig.engine.inspect(self.client)
        if counts is None:
            return True
        leg = counts[side.other]
        own = 14 * leg.pings_sent
        if self.plan.rules.raw:
            return counts[side].bytes_in == len(self.sent[side]) and not self.waits()
        return leg.bytes_out - own >= len(self.sent[side])

    def waits(self) -> bool:
        """Something is still to be sent."""
        return self.rig.engine.stats().queued > 0

    def counts_closed(self) -> bool:
        """The Close has passed to the other side."""
        counts = self.rig.engine.inspect(self.client)
        return counts is None or counts[self.plan.ender.other].close_sent == 1000

    @staticmethod
    def close_frame(side: Side) -> bytes:
        """A Close with 1000."""
        return header(side, frames.CLOSE, 2) + b"\x03\xe8"


def told(plan: Plan, life: Life, ended: RelayEnded) -> dict[str, object]:
    """All of a life that has to be the same on both drivers."""
    result: dict[str, object] = {"cause": ended.cause, "side": ended.side}
    broken = plan.end in ("bad frame", "too big")
    if plan.end in UNKNOWN or (plan.rules.raw and broken):
        return result                  # an RST destroys what is on its way
    result["codes"] = [(leg.close_received, leg.close_sent) for leg in ended.counts]
    for side in Side:
        far, counts = life.fars[side], ended.counts[side.other]
        data = bytes(far.received)
        if plan.rules.raw and side is Side.CLIENT:
            result["payload to client"] = payloads(data)
            result["bytes from upstream"] = counts.bytes_in
        elif side is not plan.ender or plan.end in ("close", "fin"):
            # Own frames toward the upstream have masks that nobody can foresee.
            size = plan.sound[side.other]
            result[f"to {side.name}"] = data[:size]
            result[f"behind, to {side.name}"] = len(data[size:])
            result[f"counts {side.name}"] = (counts.frames, counts.messages, counts.payload)
    return result


def check_sound(plan: Plan, life: Life, ended: RelayEnded) -> None:
    """What holds whatever the rest: each byte as it came, in order; counters that add up."""
    for side in Side:
        counts = ended.counts[side]
        assert counts.copied + counts.spliced == counts.bytes_in
        received = bytes(life.fars[side.other].received)
        if not plan.rules.raw:
            common = min(len(received), len(life.sent[side]), ended.counts[side.other].bytes_out)
            if plan.end in UNKNOWN or plan.end in ("bad frame", "too big"):
                common = min(common, max(0, len(received) - 200))     # a farewell may be in it
            assert received[:common] == life.sent[side][:common]


@pytest.mark.parametrize("seed", range(LIVES))
def test_lives(seed: int, tmp_path: Path, ring_refused: str) -> None:
    """One seed, four drivers; two where io_uring cannot be had."""
    live_alike(seed, tmp_path, ring_refused, secure=False)


@pytest.mark.parametrize("seed", range(LIVES))
def test_lives_over_tls(seed: int, tmp_path: Path, ring_refused: str) -> None:
    """The same with TLS on both legs."""
    live_alike(seed, tmp_path, ring_refused, secure=True)


def live_alike(seed: int, tmp_path: Path, ring_refused: str, *, secure: bool) -> None:
    """A life on each driver; the driver in Python says what is right."""
    plan = plan_of(seed)
    if secure:                         # sealing by Python's `ssl` takes the far ends their time
        plan.rules = dataclasses.replace(plan.rules, close_timeout=0.5)
    print(f"seed {seed}: {plan.end} by {plan.ender.name}, {plan.rules}")
    results = []
    for kind in ("uvloop", *([] if ring_refused else RINGS), "uvloop-python"):
        folder = tmp_path / kind
        folder.mkdir()
        with rig_of(kind, folder) as rig:
            if secure:
                rig.ends = SecureEnds(rig)
            life = Life(rig, plan)
            ended = life.live()
            check_sound(plan, life, ended)
            results.append(told(plan, life, ended))
    *compiled, reference = results
    for one in compiled:
        for key, value in reference.items():
            assert one[key] == value, key
