# cython: language_level=3
"""Between the compiled rules and Python: terms in, counters and outcomes out. Needs the GIL."""

from libc.stdint cimport int32_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from gateway.engine.codes cimport D_BY_ORDER, sentence
from gateway.engine.relay cimport D_FAULT, NO_CLOSE, NO_SIDE, Leg, Relay, Rules

from gateway.errors import Fault
from gateway.events import Cause, LegCounts, Side

CAUSES = [None, *Cause]         # by their numbers in codes.pxd
SIDES = list(Side)
FAULTS = list(Fault)            # by their numbers from D_FAULT


cdef void rules_from(Rules *rules, object terms) except *:
    """A copy of a `RelayRules`."""
    cdef bytes reason = terms.drain_reason.encode()[:123].decode("utf-8", "ignore").encode()
    memset(rules, 0, sizeof(Rules))
    rules.raw = terms.raw
    rules.raw_text = terms.raw_text
    rules.deflate = terms.deflate
    rules.max_message = terms.max_message
    rules.max_frame = terms.max_frame
    rules.max_queue = terms.max_queue
    rules.idle_timeout = terms.idle_timeout
    rules.write_timeout = terms.write_timeout
    rules.close_timeout = terms.close_timeout
    rules.session_timeout = terms.session_timeout
    rules.session_code = terms.session_code
    rules.heartbeat = terms.heartbeat
    rules.heartbeat_timeout = terms.heartbeat_timeout
    rules.drain_code = terms.drain_code
    rules.drain_reason_size = <uint8_t>len(reason)
    memcpy(rules.drain_reason, <const char *>reason, len(reason))


cdef object counts_of(const Relay *relay, int side, str not_spliced):
    """A `LegCounts`."""
    cdef const Leg *leg = &relay.legs[side]
    return LegCounts(
        bytes_in=leg.bytes_in,
        bytes_out=leg.bytes_out,
        frames=leg.wrapped if leg.raw else leg.cursor.frames,
        messages=leg.wrapped if leg.raw else leg.cursor.messages,
        payload=leg.bytes_in if leg.raw else leg.cursor.payload,
        copied=leg.bytes_in - leg.spliced,
        spliced=leg.spliced,
        not_spliced=not_spliced,
        close_received=None if leg.close_received == NO_CLOSE else leg.close_received,
        close_sent=None if leg.close_sent == NO_CLOSE else leg.close_sent,
        cut=bool(leg.cut),
        pings_sent=leg.pings_sent,
        round_trip=None if leg.round_trip < 0 else leg.round_trip,
    )


cdef tuple outcome_of(const Relay *relay):
    """Cause, side and detail, as `RelayEnded` has them."""
    cdef char text[160]
    cause = CAUSES[relay.cause]
    side = None if relay.side == NO_SIDE else SIDES[relay.side]
    if relay.detail >= D_FAULT:
        return cause, side, FAULTS[relay.detail - D_FAULT].value
    if relay.detail == D_BY_ORDER:
        return cause, side, cause.value
    snprintf(
        text, sizeof(text), sentence(relay.detail),
        <unsigned long long>relay.detail_size, <unsigned long long>relay.detail_limit,
    )
    return cause, side, (<bytes>text).decode()


cdef int cause_number(object cause) except -1:
    return CAUSES.index(cause)


cdef int fault_detail(object fault) except -1:
    """The detail of a loss, for `relay_lost`."""
    return D_FAULT + FAULTS.index(fault)
