"""Compiled relays that wait in a ring. See ring_relays.pyx; `ring_completions.pyx` builds on it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gateway.engine.relay_loop cimport RelayLoop
from gateway.engine.relay_slots cimport Far, Slot
from gateway.engine.uring_ring cimport Completion, Ring

cdef enum:
    FOUND_MAX = 64                   # descriptors that Python is told of in one turn
    # User data, from the lowest bit: operation (4), place (36), generation (24).
    DESCRIPTOR = 1
    RELAY = 2
    ASIDE = 3
    RECEIVE = 4                      # place: as of RELAY
    SEND = 5                         # place: a buffer and a side; no generation
    ALWAYS = 0x18                    # EPOLLERR | EPOLLHUP
    EPOLLRDHUP = 0x2000

cdef struct Watched:
    # One descriptor of Python's, by its number.
    uint32_t generation
    uint32_t mask                    # UNWATCHED: not registered
    uint8_t armed
    uint8_t aside

cdef struct Found:
    int fd
    uint32_t generation
    uint32_t mask


cdef inline uint64_t key(int operation, uint64_t place, uint32_t generation) noexcept nogil:
    return <uint64_t>generation << 40 | place << 4 | operation


cdef inline uint64_t key_of_side(int operation, const Slot *slot, int side) noexcept nogil:
    return key(operation, <uint64_t>slot.index << 1 | side, slot.generation)


cdef class RingRelays(RelayLoop):
    cdef readonly Ring ring
    cdef Watched *_watched
    cdef int _watched_room
    cdef Found _found[FOUND_MAX]
    cdef int _found_count
    cdef double _turn_limit
    cdef int _aside
    cdef uint32_t _aside_count
    cdef bint _aside_armed

    cdef void _loop(self, double until) noexcept nogil
    cdef void _check_all(self) noexcept nogil
    cdef uint32_t _in_flight(self, const Far *far) noexcept nogil
    cdef void _reap(self, double limit) noexcept nogil
    cdef void _complete(self, const Completion *completion) noexcept nogil
    cdef Slot *_slot_of(self, uint64_t place, uint32_t generation) noexcept nogil
    cdef void _complete_relay(self, Slot *slot, int side, uint32_t mask) noexcept nogil
    cdef void _complete_descriptor(
        self, int fd, uint32_t generation, uint32_t mask
    ) noexcept nogil
    cdef void _arm_descriptor(self, int fd) noexcept nogil
    cdef void _arm_found(self) noexcept nogil
    cdef bint _put_aside(self, int fd, uint32_t mask, uint64_t data) noexcept nogil
    cdef void _change_aside(self, int fd, uint32_t mask, uint64_t data) noexcept nogil
    cdef void _take_back(self, int fd) noexcept nogil
    cdef void _look_aside(self) noexcept nogil
