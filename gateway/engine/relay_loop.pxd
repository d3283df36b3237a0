"""Compiled relays over sockets: the state, and what a class that waits has to do.

A subclass owns the waiting. It overrides `watch` and `forget`, calls `ready` for who is ready and
`fire` when `next_at` is due, and keeps `now` current. See relay_loop.pyx.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from gateway.engine.linux cimport CLOCK_MONOTONIC, clock_gettime, timespec
from gateway.engine.pipes cimport Pipes
from gateway.engine.relay cimport Output, Relay, Rules

cdef enum:
    UNWATCHED = 0xFFFFFFFF

cdef struct Far:
    # One socket of a relay, and what waits for it.
    int fd                      # -1: closed
    uint32_t mask               # what is watched
    int32_t pipe                # index of the pipe that carries what came from here
    uint8_t fault               # number in FAULTS + 1; 0: none
    uint8_t shut
    uint8_t aside               # watched apart, see ring_relays.pyx
    uint8_t hung                # both ways shut: watched no more while there is nothing to do
    uint8_t blocked
    uint8_t again               # it may be ready still, though no new edge will say so
    uint8_t large               # the last frame from here was large: read the next header alone
    uint8_t no_pipe             # a splice was wanted and no pipe could be had
    uint8_t tail_size
    uint8_t *tail               # what is not whole yet; TAIL_MAX bytes, or NULL
    uint8_t *queue              # what the socket did not take, or NULL
    size_t queue_room
    size_t queue_start
    size_t queue_end
    size_t before               # bytes at its start that are older than the relay
    size_t ahead                # bytes at its start that go before what is in the pipe

cdef struct Slot:
    Relay relay
    Far far[2]
    double armed_at             # in the heap by this time
    uint64_t links[2]
    uint32_t index              # its own place
    uint32_t generation
    uint32_t heap_at            # place in the heap, or UNWATCHED
    uint32_t next_free
    uint8_t used
    uint8_t ended


cdef inline double clock() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return at.tv_sec + at.tv_nsec * 1e-9


cdef class RelayLoop:
    cdef uint8_t *_hot
    cdef Output *_out
    cdef Slot **_chunks
    cdef uint32_t _chunk_count
    cdef uint32_t _free              # first free slot, or UNWATCHED
    cdef uint32_t *_heap             # slots by armed_at
    cdef uint32_t _heap_size
    cdef uint32_t *_ended
    cdef uint32_t ended_size
    cdef Rules *_rules
    cdef uint32_t _rules_size
    cdef uint32_t _rules_room
    cdef dict _rules_index
    cdef Pipes pipes
    cdef double now
    cdef readonly uint32_t live      # relays that run
    cdef readonly uint64_t turns     # waits that found something
    cdef readonly uint64_t queues    # buffers that are allocated now
    cdef readonly uint64_t tails

    cdef Slot *slot(self, uint32_t index) noexcept nogil
    cdef bint _may_splice(self, Slot *slot, int side) noexcept nogil
    cdef bint _pipe_before(self, Slot *slot, int side) noexcept nogil
    cdef bint _pipe_is_stuck(self, Slot *slot, int side) noexcept nogil
    cdef bint _pump_leg(self, Slot *slot, int side) noexcept nogil
    cdef bint _read_last(self, Slot *slot, int side) noexcept nogil
    cdef bint _splice_in(self, Slot *slot, int side) noexcept nogil
    cdef bint _splice_out(self, Slot *slot, int side) noexcept nogil
    cdef bint _take_pipe(self, Slot *slot, int side) noexcept nogil
    cdef const Rules *_terms(self, Slot *slot) noexcept nogil
    cdef int _fault_index(self, int number) noexcept nogil
    cdef tuple _counts(self, Slot *slot)
    cdef uint32_t _rules_of(self, object terms) except? UNWATCHED
    cdef uint32_t _take_slot(self) except? UNWATCHED
    cdef void _arm(self, uint32_t index) noexcept nogil
    cdef void _begin_output(self) noexcept nogil
    cdef void _begin_splice(self, Slot *slot, int side) noexcept nogil
    cdef void _check(self, Slot *slot, int side) noexcept nogil
    cdef void _close_far(self, Slot *slot, int side, bint abort) noexcept nogil
    cdef void _drop_queue(self, Far *far) noexcept nogil
    cdef void _feed(self, Slot *slot, int side, const uint8_t *data, size_t size) noexcept nogil
    cdef void _feed_hot(self, Slot *slot, int side, size_t size) noexcept nogil
    cdef void _finish(self, uint32_t index) noexcept nogil
    cdef void _finish_side(self, Slot *slot, int side) noexcept nogil
    cdef void _flush(self, Slot *slot, int side) noexcept nogil
    cdef void _free_slot(self, uint32_t index) noexcept nogil
    cdef void _give_pipe_back(self, Slot *slot, int side) noexcept nogil
    cdef void _keep(self, Slot *slot, int side, const uint8_t *data, size_t size) noexcept nogil
    cdef void _keep_tail(
        self, Slot *slot, int side, const uint8_t *data, size_t size
    ) noexcept nogil
    cdef void _lose(self, Slot *slot, int side, int number) noexcept nogil
    cdef void _lose_with_fault(self, Slot *slot, int side) noexcept nogil
    cdef void _pump(self, uint32_t index) noexcept nogil
    cdef void _put_out(self, Slot *slot) noexcept nogil
    cdef void _receive(self, Slot *slot, int side) noexcept nogil
    cdef void _send_failed(self, Slot *slot, int side, int number) noexcept nogil
    cdef void _send_spans(self, Slot *slot, int side, int flags, bint ahead) noexcept nogil
    cdef void _sift_down(self, uint32_t place) noexcept nogil
    cdef void _sift_up(self, uint32_t place) noexcept nogil
    cdef void _splice(self, Slot *slot, int side) noexcept nogil
    cdef void _unarm(self, uint32_t index) noexcept nogil
    cdef void _watch(self, uint32_t index, int side) noexcept nogil
    cdef void fire(self) noexcept nogil
    cdef void forget(self, Slot *slot, int side) noexcept nogil
    cdef void look_again(self, uint32_t index, int side) noexcept nogil
    cdef void ready(self, uint32_t index, int side, uint32_t mask) noexcept nogil
    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil
