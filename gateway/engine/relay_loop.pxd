"""Compiled relays over sockets: what a class that waits has to do.

A subclass owns the waiting. It overrides `watch` and `forget`, calls `ready` for who is ready and
`fire` when `next_at` is due, and keeps `now` current. See relay_loop.pyx.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from gateway.engine.linux cimport EPOLLIN, EPOLLOUT
from gateway.engine.pipes cimport NO_PIPE
from gateway.engine.relay cimport OPEN, Leg
from gateway.engine.relay_kernel cimport KernelCarriage
from gateway.engine.relay_slots cimport Far, Slot

cdef enum:
    ENDS_MAX = 8192                  # ends that are put off; more are done at once
    ENDS = 0x2018                    # EPOLLRDHUP | EPOLLERR | EPOLLHUP

cdef struct PutOff:
    # What the class that waits was told, in its own words.
    uint64_t data
    uint32_t mask


cdef class RelayLoop(KernelCarriage):
    cdef readonly uint64_t turns     # waits that found something
    cdef PutOff *_put_off            # a ring of ENDS_MAX
    cdef uint32_t _first_put_off
    cdef readonly uint32_t put_off_size
    cdef double _ends_limit

    @cython.final
    cdef inline bint _is_calm(self, Slot *slot, int side) noexcept nogil:
        """Nothing waits for this side or in it, and what is watched is right: as mostly."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        return (
            far.mask == EPOLLIN and leg.reading and leg.fate == OPEN and far.queue == NULL
            and far.pipe == NO_PIPE
            and not (far.again or far.blocked or far.fault or far.sending) and far.fd >= 0
        )

    @cython.final
    cdef inline uint32_t _wanted(self, Slot *slot, int side) noexcept nogil:
        """What this side is to be watched for."""
        cdef uint32_t mask = EPOLLOUT if slot.far[side].blocked else 0
        if slot.relay.legs[side].reading and not self._pipe_is_stuck(slot, side):
            mask |= EPOLLIN
        return mask

    cdef bint _pump_leg(self, Slot *slot, int side) noexcept nogil
    cdef object _fault_of(self, Slot *slot, int side)
    cdef tuple _counts(self, Slot *slot)
    cdef void _check(self, Slot *slot, int side) noexcept nogil
    cdef void _check_close(self, Slot *slot, int side) noexcept nogil
    cdef void _finish(self, uint32_t index) noexcept nogil
    cdef void _pump(self, uint32_t index) noexcept nogil
    cdef void _watch(self, uint32_t index, int side) noexcept nogil
    cdef bint put_off(self, uint64_t data, uint32_t mask) noexcept nogil
    cdef void do_ends(self) noexcept nogil
    cdef void resume(self, uint64_t data, uint32_t mask) noexcept nogil
    cdef void fire(self) noexcept nogil
    cdef void _ask_kernel(self, Slot *slot) noexcept nogil
    cdef void look_again(self, uint32_t index, int side) noexcept nogil
    cdef void ready(self, uint32_t index, int side, uint32_t mask) noexcept nogil
    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil
