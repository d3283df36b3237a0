"""Where compiled relays live: their slots, terms and deadlines. See relay_slots.pyx."""

cimport cython
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from gateway.engine.linux cimport CLOCK_MONOTONIC, clock_gettime, timespec
from gateway.engine.relay cimport Relay, Rules
from gateway.engine.secure_leg cimport TlsCalls

cdef enum:
    UNWATCHED = 0xFFFFFFFF
    CHUNK = 256                 # slots that are allocated together

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
    uint8_t large               # much came from here at once: what comes next may be spliced
    uint8_t no_pipe             # a splice was wanted and no pipe could be had
    uint8_t receiving           # these five are of ring_completions.pyx: a receive is in flight
    uint8_t hungry              # it found no buffer
    uint8_t polling             # a poll is in flight, or it is watched apart
    uint32_t polled             # what for
    uint32_t sending            # bytes of the send that is in flight; 0: none
    uint8_t tail_size
    uint8_t *tail               # what is not whole yet; TAIL_MAX bytes, or NULL
    uint8_t *queue              # what the socket did not take, or NULL
    size_t queue_room
    size_t queue_start
    size_t queue_end
    size_t before               # bytes at its start that are older than the relay
    size_t ahead                # bytes at its start that go before what is in the pipe
    void *tls                   # these five are of relay_sealed.pyx: NULL where there is no TLS
    const TlsCalls *calls
    size_t clear                # clear bytes that the queue stands for, behind `before`
    uint8_t kernel              # its TLS is the kernel's, see relay_kernel.pyx
    uint8_t notified            # close_notify was said
    uint8_t truncated           # the far end's was not, and the relay ended by that

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
    uint8_t sealed              # a side of it has TLS


cdef inline double clock() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return at.tv_sec + at.tv_nsec * 1e-9


cdef class RelaySlots:
    cdef Slot **_chunks
    cdef uint32_t _chunk_count
    cdef uint32_t _free              # first free slot, or UNWATCHED
    cdef uint32_t *_heap             # slots by armed_at
    cdef uint32_t _heap_size
    cdef uint32_t *_ended
    cdef uint32_t ended_size
    cdef Rules *_rules
    cdef uint32_t *_rules_used       # how many relays obey each
    cdef uint32_t _rules_room
    cdef dict _rules_index
    cdef list _rules_free
    cdef readonly uint32_t live      # relays that run

    @cython.final
    cdef inline Slot *slot(self, uint32_t index) noexcept nogil:
        return &self._chunks[index // CHUNK][index % CHUNK]

    @cython.final
    cdef inline const Rules *_terms(self, Slot *slot) noexcept nogil:
        return &self._rules[slot.relay.rules]

    cdef uint32_t _rules_of(self, object terms) except? UNWATCHED
    cdef int _make_rules_room(self) except -1
    cdef uint32_t _take_slot(self) except? UNWATCHED
    cdef void _free_slot(self, uint32_t index) noexcept nogil
    cdef void _arm(self, uint32_t index) noexcept nogil
    cdef void _unarm(self, uint32_t index) noexcept nogil
    cdef void _sift_down(self, uint32_t place) noexcept nogil
    cdef void _sift_up(self, uint32_t place) noexcept nogil
