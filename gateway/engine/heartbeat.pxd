"""The heartbeat of one leg in C: what gateway/heartbeat.py says, which has the reasons.

Inline, for relay.pyx, which puts the ping and ends what is silent.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

from gateway.engine.relay cimport Leg, Rules

cdef enum:
    PING_PAYLOAD = 8
    # What `heartbeat_look` found.
    WELL = 0
    QUIET = 1
    SILENT = 2


cdef inline bint is_probed(const Leg *leg) noexcept nogil:
    return leg.probe_at != 0 and leg.heard_at < leg.probe_at


cdef inline int heartbeat_look(Leg *leg, const Rules *rules, double now) noexcept nogil:
    """Look at a side whose deadline has come."""
    if not leg.reading:
        leg.probe_at = 0                        # back-pressure: nothing that it says is heard
        return WELL
    if is_probed(leg):
        return SILENT if now >= leg.probe_at + rules.heartbeat_timeout else WELL
    leg.probe_at = 0
    if now < leg.heard_at + rules.heartbeat:
        return WELL
    if leg.foreign_ping_at < leg.heard_at:
        leg.foreign_ping_at = 0                 # it spoke since then, and not to answer
    if leg.foreign_ping_at != 0:
        leg.probe_at = leg.foreign_ping_at if leg.foreign_ping_at > leg.heard_at else now
        return WELL
    return QUIET


cdef inline void note_ping(Leg *leg, size_t size, double now) noexcept nogil:
    """A ping of `size` bytes, header included, was put."""
    leg.pings_sent += 1
    leg.pings_waiting += 1
    leg.ping_at = leg.probe_at = now
    leg.acknowledged += <int64_t>size           # that it arrives is no sign of a slow reader


cdef inline bint is_own_pong(
    Leg *leg, const uint8_t *payload, size_t size, double now
) noexcept nogil:
    """Whether this answers a ping of ours: as many do as we sent, and no more."""
    if not leg.pings_waiting or size != PING_PAYLOAD:
        return False
    if memcmp(payload, leg.ping_payload, PING_PAYLOAD - 1) != 0:
        return False
    leg.pings_waiting -= 1
    if payload[PING_PAYLOAD - 1] == leg.ping_payload[PING_PAYLOAD - 1]:
        leg.round_trip = now - leg.ping_at
    return True


cdef inline void note_taken(Leg *leg, uint64_t waiting, double now) noexcept nogil:
    """`waiting` bytes that left for the kernel are not with the far end: has it taken any since the
    last time, of those that waited?"""
    cdef int64_t taken = <int64_t>leg.bytes_out - <int64_t>waiting
    cdef bint behind = leg.queued + waiting > 0
    if taken > leg.acknowledged and (behind or leg.behind):
        if not leg.queued:
            leg.taken_at = now
        if is_probed(leg):
            leg.probe_at = now
    leg.acknowledged = max(leg.acknowledged, taken)
    leg.behind = behind


cdef inline double heartbeat_at(
    const Leg *leg, const Rules *rules, double retry, double now
) noexcept nogil:
    """When to look at this side again."""
    cdef double at
    if not leg.reading:
        return now + rules.heartbeat
    if is_probed(leg):
        return min(leg.probe_at + rules.heartbeat_timeout, now + rules.heartbeat)
    at = leg.heard_at + rules.heartbeat
    return at if at > now else now + min(retry, rules.heartbeat)
