"""When a quiet side is pinged, and when it counts as dead: the rules of the heartbeat, for one leg.

`relaying.py` asks, and does what is found; `engine/heartbeat.pxd` is the same in C.

Laws:

- A side that has been quiet for `heartbeat` since its last sign of life, which any byte is, is
  pinged between two frames; or a foreign ping that it has not answered stands for ours.
- It has `heartbeat_timeout` for a sign of life. That time begins anew while it takes what waited
  before the ping, since one that reads slowly cannot know of it yet.
- No clock is moved by a byte: deadlines are never later than a byte could make them, and what is
  due is worked out when they come.

Must never: put bytes, or end anything.
"""

import enum
from collections.abc import Callable

from gateway import frames
from gateway.events import RelayRules, Side
from gateway.leg import Leg

PING_PAYLOAD = 8                   # bytes; random, so that no foreign pong is taken for ours
PING_RETRY = 0.25                  # seconds until a ping is tried again that met an open frame


class Found(enum.Enum):
    """What `look` found."""

    WELL = 0
    QUIET = 1                      # ping it
    SILENT = 2                     # it gave no sign of life


def look(leg: Leg, rules: RelayRules, now: float) -> Found:
    """Look at a side whose deadline has come."""
    if not leg.reading:
        leg.probe_at = None                     # back-pressure: nothing that it says is heard
        return Found.WELL
    if leg.probe_at is not None:
        if leg.heard_at < leg.probe_at:
            due = now >= leg.probe_at + rules.heartbeat_timeout
            return Found.SILENT if due else Found.WELL
        leg.probe_at = None
    if now < leg.heard_at + rules.heartbeat:
        return Found.WELL
    foreign = leg.foreign_ping_at
    if foreign is not None and foreign < leg.heard_at:
        foreign = leg.foreign_ping_at = None    # it spoke since then, and not to answer
    if foreign is not None:
        # RFC 6455 5.5.3: it may answer the latest ping only, so ours would hide the other's.
        leg.probe_at = foreign if foreign > leg.heard_at else now
        return Found.WELL
    return Found.QUIET


def build_ping(leg: Leg, random_bytes: Callable[[int], bytes], now: float) -> bytes:
    """The next ping to this side; put it. Its payload differs from the one before in the last byte
    alone, so that a late answer is known for ours."""
    before = leg.ping_payload
    if before:
        leg.ping_payload = before[:-1] + bytes([(before[-1] + 1) & 0xFF])
    else:
        leg.ping_payload = random_bytes(PING_PAYLOAD)
    mask = random_bytes(4) if leg.side is Side.UPSTREAM else b""
    frame = frames.build_frame(frames.PING, leg.ping_payload, mask)
    leg.pings_sent += 1
    leg.pings_waiting += 1
    leg.ping_at = leg.probe_at = now
    leg.acknowledged += len(frame)              # that it arrives is no sign of a slow reader
    return frame


def is_own_pong(leg: Leg, payload: bytes, now: float) -> bool:
    """Whether this answers a ping of ours: as many do as we sent, and no more."""
    if not leg.pings_waiting or len(payload) != PING_PAYLOAD:
        return False
    if payload[:-1] != leg.ping_payload[:-1]:
        return False
    leg.pings_waiting -= 1
    if payload == leg.ping_payload:             # else it answers one before
        leg.round_trip = now - leg.ping_at
    return True


def note_taken(leg: Leg, waiting: int, now: float) -> None:
    """`waiting` bytes that left for the kernel are not with the far end: has it taken any since the
    last time, of those that waited?"""
    taken = leg.bytes_out - waiting
    behind = leg.queued + waiting > 0
    if taken > leg.acknowledged and (behind or leg.behind):
        if not leg.queued:
            leg.taken_at = now
        if leg.probe_at is not None and leg.heard_at < leg.probe_at:
            leg.probe_at = now
    leg.acknowledged = max(leg.acknowledged, taken)
    leg.behind = behind


def look_at(leg: Leg, rules: RelayRules, now: float) -> float:
    """When to look at this side again. A byte that comes later makes no ping due before that."""
    if not leg.reading:
        return now + rules.heartbeat
    if leg.probe_at is not None and leg.heard_at < leg.probe_at:
        return min(leg.probe_at + rules.heartbeat_timeout, now + rules.heartbeat)
    at = leg.heard_at + rules.heartbeat
    return at if at > now else now + min(PING_RETRY, rules.heartbeat)
