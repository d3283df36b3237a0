"""How bytes of a compiled relay are carried. See relay_carriage.pyx."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from gateway.engine.pipes cimport NO_PIPE, Pipes
from gateway.engine.relay cimport Output
from gateway.engine.relay_slots cimport Far, RelaySlots, Slot
from gateway.engine.secure_leg cimport TLS_HELD

cdef enum:
    HOT = 256 * 1024                 # bytes of one read
    SEALED_AT = 192 + TLS_HELD       # where one of TLS begins: it is opened to before that

cdef class RelayCarriage(RelaySlots):
    cdef uint8_t *_hot
    cdef Output *_out
    cdef Pipes pipes
    cdef double now
    cdef bint took_long              # much was moved since the clock was last looked at
    cdef readonly uint64_t queues    # buffers that are allocated now
    cdef readonly uint64_t tails
    cdef readonly uint64_t calls     # plain system calls that moved, or tried to move, bytes

    @cython.final
    cdef inline void _begin_output(self) noexcept nogil:
        self._out.count[0] = self._out.count[1] = 0
        self._out.own_used = 0

    @cython.final
    cdef inline void _put_out(self, Slot *slot) noexcept nogil:
        """Send what the rules gave; what a socket does not take is kept for it."""
        cdef int side
        for side in range(2):
            if self._out.count[side]:
                self._send_spans(slot, side, False)

    @cython.final
    cdef inline bint _pipe_before(self, Slot *slot, int side) noexcept nogil:
        """Spliced bytes for this side wait in a pipe: they come first."""
        cdef int index = slot.far[1 - side].pipe
        return index != NO_PIPE and self.pipes.pipes[index].held > 0

    @cython.final
    cdef inline bint _pipe_is_stuck(self, Slot *slot, int side) noexcept nogil:
        """What came from here waits in its pipe for the other, who takes nothing now: nothing more
        is read until it does. (How much a pipe takes is told in segments, not in bytes: whether
        it is full cannot be known, and asking would spin.)"""
        cdef int index = slot.far[side].pipe
        return index != NO_PIPE and self.pipes.pipes[index].held > 0 and slot.far[1 - side].blocked

    @cython.final
    cdef inline bint _copies(self, Slot *slot, int side) noexcept nogil:
        """The next read takes all that is there: nothing is peeked at or spliced first, and no pipe
        is under way."""
        return slot.far[side].pipe == NO_PIPE and not self._peeks(slot, side)

    @cython.final
    cdef inline bint _peeks(self, Slot *slot, int side) noexcept nogil:
        """Much came from here at once: a header may be that of another large frame, and what a raw
        upstream has to say next is to be spliced."""
        return (
            slot.far[side].large and not slot.relay.legs[side].cursor.remaining
            and not slot.far[side].tail_size
        )

    cdef bint _may_splice(self, Slot *slot, int side) noexcept nogil
    cdef bint _read_last(self, Slot *slot, int side) noexcept nogil
    cdef bint _splice_in(self, Slot *slot, int side) noexcept nogil
    cdef bint _splice_frame(self, Slot *slot, int side) noexcept nogil
    cdef bint _splice_out(self, Slot *slot, int side) noexcept nogil
    cdef bint _take_pipe(self, Slot *slot, int side) noexcept nogil
    cdef int _fault_index(self, int number) noexcept nogil
    cdef bint _splice_raw(self, Slot *slot) noexcept nogil
    cdef void _begin_splice(self, Slot *slot, int side) noexcept nogil
    cdef void _close_far(self, Slot *slot, int side, bint abort) noexcept nogil
    cdef void _drop_queue(self, Far *far) noexcept nogil
    cdef void _feed(self, Slot *slot, int side, const uint8_t *data, size_t size) noexcept nogil
    cdef void _feed_at(self, Slot *slot, int side, uint8_t *at, size_t size) noexcept nogil
    cdef void _finish_side(self, Slot *slot, int side) noexcept nogil
    cdef void _flush(self, Slot *slot, int side) noexcept nogil
    cdef void _give_pipe_back(self, Slot *slot, int side) noexcept nogil
    cdef void _keep(self, Slot *slot, int side, const uint8_t *data, size_t size) noexcept nogil
    cdef void _keep_tail(
        self, Slot *slot, int side, const uint8_t *data, size_t size
    ) noexcept nogil
    cdef void _lose(self, Slot *slot, int side, int number) noexcept nogil
    cdef void _lose_with_fault(self, Slot *slot, int side) noexcept nogil
    cdef void _receive(self, Slot *slot, int side) noexcept nogil
    cdef void _send_failed(self, Slot *slot, int side, int number) noexcept nogil
    cdef void _send_spans(self, Slot *slot, int side, bint ahead) noexcept nogil
    cdef void _splice(self, Slot *slot, int side) noexcept nogil
    cdef bint may_read(self, Slot *slot, int side) noexcept nogil
    cdef bint send_later(self, Slot *slot, int side, int count) noexcept nogil
    cdef void forget(self, Slot *slot, int side) noexcept nogil
    cdef void count_sent(self, Slot *slot, int side, size_t sent) noexcept nogil
    cdef bint heard(self, Slot *slot, int side, int number) noexcept nogil
    cdef void end_of(self, Slot *slot, int side) noexcept nogil
    cdef bint notify(self, Slot *slot, int side) noexcept nogil
    cdef bint receive_sealed(self, Slot *slot, int side, bint last) noexcept nogil
    cdef void send_sealed(self, Slot *slot, int side) noexcept nogil
    cdef void unsecure(self, Slot *slot, int side, bint abort) noexcept nogil
