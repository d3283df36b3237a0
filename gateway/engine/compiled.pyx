# cython: language_level=3, boundscheck=False, wraparound=False
"""The compiled rules behind the face of `gateway.relaying.Relay`.

For tests: the same conversations, the same random streams and the same simulated lives run
through the reference and through this. Drivers use relay.pxd, and never this.
"""

from collections import deque

from gateway.engine.relay cimport (
    D_FAULT,
    D_NONE,
    NO_SIDE,
    RESET,
    Leg,
    Output,
    Relay,
    Rules,
    relay_acknowledged,
    relay_end,
    relay_finished,
    relay_init,
    relay_is_open,
    relay_is_over,
    relay_lost,
    relay_received,
    relay_sent,
    relay_tick,
    relay_truncated,
    relay_wrapped,
)
from gateway.engine.relay_report cimport cause_number, counts_of, outcome_of, rules_from
from libc.stdint cimport uint8_t, uint64_t

from gateway.engine.relay_report import CAUSES, FAULTS
from gateway.events import Side
from gateway.leg import NOT_SPLICED, Fate


class _LegView:
    """What a driver sees of a leg, and what it was told of it: the face of gateway.leg.Leg."""

    def __init__(self, relay, side):
        self._relay, self._side = relay, side
        self.queue = relay.queues[side]

    @property
    def queued(self):
        return self._relay.look(self._side)[0]

    @property
    def reading(self):
        return self._relay.look(self._side)[1]

    @property
    def fate(self):
        return self._relay.look(self._side)[2]

    @property
    def finished(self):
        return self._relay.look(self._side)[3]

    @property
    def gone(self):
        return self._relay.look(self._side)[4]

    def counts(self):
        return self._relay.counts()[self._side]


cdef class CompiledRelay:
    """The compiled rules behind the face of `gateway.relaying.Relay`: for tests, which run the
    same conversations and simulations through both."""

    cdef Relay _relay
    cdef Rules _rules
    cdef Output _out
    cdef list _tails
    cdef readonly tuple queues
    cdef readonly tuple legs

    def __init__(self, rules, double now, random_bytes=None):
        rules_from(&self._rules, rules)
        relay_init(&self._relay, &self._rules, 0, now)
        self._tails = [b"", b""]
        self.queues = (deque(), deque())
        self.legs = (_LegView(self, Side.CLIENT), _LegView(self, Side.UPSTREAM))

    @property
    def deadline(self):
        return self._relay.deadline

    @property
    def is_open(self):
        return bool(relay_is_open(&self._relay))

    @property
    def over(self):
        return bool(relay_is_over(&self._relay))

    @property
    def cause(self):
        return CAUSES[self._relay.cause]

    @property
    def side(self):
        return None if self._relay.side == NO_SIDE else Side(self._relay.side)

    @property
    def detail(self):
        return outcome_of(&self._relay)[2] if self._relay.cause else ""

    @property
    def active_at(self):
        return self._relay.active_at

    def look(self, int side):
        cdef Leg *leg = &self._relay.legs[side]
        return (
            leg.queued, bool(leg.reading), Fate(leg.fate), bool(leg.finished), bool(leg.gone)
        )

    def counts(self):
        return counts_of(&self._relay, 0, NOT_SPLICED), counts_of(&self._relay, 1, NOT_SPLICED)

    cdef void _begin(self):
        self._out.count[0] = self._out.count[1] = 0
        self._out.own_used = 0

    cdef void _collect(self):
        """Put what a call gave behind what is queued."""
        cdef int side, i
        for side in range(2):
            if self._relay.legs[side].fate == RESET or self._relay.legs[side].gone:
                self.queues[side].clear()
                continue
            for i in range(self._out.count[side]):
                self.queues[side].append(
                    (<char *>self._out.spans[side][i].data)[: self._out.spans[side][i].size]
                )

    def received(self, int side, data, double now):
        cdef bytes fresh = self._tails[side] + bytes(data)
        cdef bytearray copy = bytearray(fresh)
        cdef uint8_t *at = copy
        cdef size_t size = len(copy), used
        assert len(data) and not self._relay.legs[side].finished
        while True:
            self._begin()
            used = relay_received(&self._relay, &self._rules, side, at, size, now, &self._out)
            self._collect()
            at += used
            size -= used
            if not self._out.more:
                break
        self._tails[side] = (<char *>at)[:size]

    def wrapped(self, data, double now):
        """As `received` from a raw upstream whose bytes are no text, past user space."""
        self._begin()
        relay_wrapped(&self._relay, &self._rules, len(data), now, &self._out)
        self._collect()
        self.queues[Side.CLIENT].append(bytes(data))

    def finished(self, int side, double now):
        self._begin()
        relay_finished(&self._relay, &self._rules, side, now, &self._out)
        self._collect()

    def truncated(self, int side, double now):
        self._begin()
        relay_truncated(&self._relay, &self._rules, side, now, &self._out)
        self._collect()

    def lost(self, int side, detail, double now):
        faults = [fault.value for fault in FAULTS]
        number = D_FAULT + faults.index(detail) if detail in faults else D_NONE
        self._begin()
        relay_lost(&self._relay, &self._rules, side, number, now, &self._out)
        self._collect()

    def sent(self, int side, size_t count, double now):
        queue = self.queues[side]
        relay_sent(&self._relay, &self._rules, side, count, now)
        while count:
            first = queue[0]
            if len(first) > count:
                queue[0] = first[count:]
                break
            count -= len(first)
            queue.popleft()

    def acknowledged(self, int side, uint64_t waiting, double now):
        relay_acknowledged(&self._relay, &self._rules, side, waiting, now)

    def tick(self, double now):
        self._begin()
        relay_tick(&self._relay, &self._rules, now, &self._out)
        self._collect()

    def end(self, cause, double now, rules=None):
        if rules is not None:
            rules_from(&self._rules, rules)
        self._begin()
        relay_end(&self._relay, &self._rules, cause_number(cause), now, &self._out)
        self._collect()
