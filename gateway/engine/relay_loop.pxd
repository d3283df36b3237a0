"""Compiled relays over sockets: what a class that waits has to do.

A subclass owns the waiting. It overrides `watch` and `forget`, calls `ready` for who is ready and
`fire` when `next_at` is due, and keeps `now` current. See relay_loop.pyx.
"""

from libc.stdint cimport uint32_t, uint64_t

from gateway.engine.relay_carriage cimport RelayCarriage
from gateway.engine.relay_slots cimport Slot

cdef class RelayLoop(RelayCarriage):
    cdef readonly uint64_t turns     # waits that found something

    cdef bint _pump_leg(self, Slot *slot, int side) noexcept nogil
    cdef tuple _counts(self, Slot *slot)
    cdef void _check(self, Slot *slot, int side) noexcept nogil
    cdef void _finish(self, uint32_t index) noexcept nogil
    cdef void _pump(self, uint32_t index) noexcept nogil
    cdef void _watch(self, uint32_t index, int side) noexcept nogil
    cdef void fire(self) noexcept nogil
    cdef void look_again(self, uint32_t index, int side) noexcept nogil
    cdef void ready(self, uint32_t index, int side, uint32_t mask) noexcept nogil
    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil
