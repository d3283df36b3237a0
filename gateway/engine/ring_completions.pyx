# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Relays whose bytes the ring receives and sends: fewer system calls than messages.

For machines on which a system call is dear. The rules and the carriage are those of all compiled
relays; what differs is how bytes come in, and how they go out first:

- A side that is read has one receive armed, which takes a buffer when bytes have come. What
  arrived is walked in that buffer, and sent from it by one operation, submitted together with all
  that others have to send and to receive; the header around what a raw upstream said is written
  right before it. Then the buffer is the kernel's again.
- The next receive of a side is armed when the send of what came before has completed: that is its
  back-pressure, and its order. A side that closes has no send any more.
- A send is done inside the submission and never waits in the kernel. What the socket did not take
  is queued, and goes on by polls and plain calls, as do pieces, frames of the gateway's own, and
  all that is spliced.
- Where no buffer is left, a side is hungry: it is armed again when one has come back.

Laws: one receive and one send at most are in flight for a side. Who is to be read has a receive, a
poll, hunger, or a send of his before him. While a receive is armed, nothing
else reads from that socket: its bytes may be ours already. While a send is in flight, nothing else
is sent to that socket. A buffer is dropped once by whoever walks it and once for each send.

Must never: close a descriptor before what was asked for it is submitted.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from gateway.engine.ledger cimport law
from gateway.engine.liburing cimport IORING_CQE_BUFFER_SHIFT, IORING_CQE_F_BUFFER
from gateway.engine.linux cimport EPOLLIN, EPOLLOUT
from gateway.engine.pipes cimport NO_PIPE
from gateway.engine.relay cimport CLOSE, RESET, Leg, Span, relay_sent
from gateway.engine.relay_slots cimport UNWATCHED, Far, Slot
from gateway.engine.ring_relays cimport (
    ALWAYS,
    EPOLLRDHUP,
    RECEIVE,
    RELAY,
    SEND,
    RingRelays,
    key,
    key_of_side,
)
from gateway.engine.uring_buffers cimport NO_BUFFER, Lent
from gateway.engine.uring_ring cimport Completion

cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED


@cython.final
cdef class RingCompletions(RingRelays):
    """See the module's docstring, and RingRelays. buffers: how many, a power of two; twice as many
    as links that are busy at once are enough."""

    cdef uint32_t _walked            # the buffer that is being walked, or NO_BUFFER
    cdef const uint8_t *_walked_at   # where in it that began
    cdef uint64_t _asked_at          # `ring.enters` when the last send was asked for, and 1
    cdef uint64_t *_hungry           # keys of receives that found no buffer, in their order
    cdef uint32_t _hungry_room
    cdef uint32_t _hungry_start
    cdef uint32_t _hungry_end

    def __cinit__(self, *args, unsigned buffers, **named):
        assert buffers
        self._walked = NO_BUFFER

    def __dealloc__(self):
        free(self._hungry)

    def stats(self):
        """See RelayLoop; and buffers that are out of the kernel's ring."""
        return {**RingRelays.stats(self), "buffers": self.ring.buffers.out}

    @property
    def hungry(self):
        """Sides that found no buffer and wait for one; those that went since, included."""
        return self._hungry_end - self._hungry_start

    # --- What completes --------------------------------------------------------------------------

    cdef void _complete(self, const Completion *completion) noexcept nogil:
        cdef int operation = completion.data & 0xF
        cdef uint64_t place = (completion.data << 24) >> 28
        if operation == RECEIVE:
            if not (self._is_end(completion) and self.put_off(
                completion.data, <uint32_t>completion.result
            )):
                self._complete_receive(place, <uint32_t>(completion.data >> 40), completion)
        elif operation == SEND:
            self._complete_send(<uint32_t>(place >> 1), place & 1, completion.result)
        else:
            RingRelays._complete(self, completion)

    cdef bint _is_end(self, const Completion *completion) noexcept nogil:
        """A receive that found the end of its stream, or an error, and took no buffer."""
        cdef int32_t result = completion.result
        return (
            result <= 0 and not completion.flags & IORING_CQE_F_BUFFER and result != -ENOBUFS
            and result != -ECANCELED and result != -EAGAIN and result != -EINTR
        )

    cdef void resume(self, uint64_t data, uint32_t mask) noexcept nogil:
        cdef Completion completion
        if data & 0xF == RECEIVE:
            completion.data, completion.result, completion.flags = data, <int32_t>mask, 0
            self._complete_receive((data << 24) >> 28, <uint32_t>(data >> 40), &completion)
        else:
            RingRelays.resume(self, data, mask)

    cdef void _loop(self, double until) noexcept nogil:
        RingRelays._loop(self, until)
        if self._asked_at == self.ring.enters + 1:
            self.ring.flush()                   # no send waits for Python's turn

    cdef void _reap(self, double limit) noexcept nogil:
        RingRelays._reap(self, limit)
        if self._hungry_start != self._hungry_end:
            self._feed_hungry()

    cdef void _complete_receive(
        self, uint64_t place, uint32_t generation, const Completion *completion
    ) noexcept nogil:
        """Bytes, an end, an error, or no buffer."""
        cdef Slot *slot = self._slot_of(place, generation)
        cdef int side = place & 1
        cdef int32_t result = completion.result
        cdef uint32_t number = NO_BUFFER
        cdef uint8_t *at = NULL
        cdef Far *far
        if completion.flags & IORING_CQE_F_BUFFER:
            number = completion.flags >> IORING_CQE_BUFFER_SHIFT
            at = self.ring.buffers.take(
                number, <uint32_t>(place >> 1), generation
            )
        if slot != NULL and slot.far[side].fd >= 0 and slot.far[side].receiving:
            far = &slot.far[side]
            far.receiving = 0
            far.mask = UNWATCHED
            if number != NO_BUFFER and result > 0:
                self._walk(slot, side, number, at, <size_t>result)
            elif result == 0:
                self.end_of(slot, side)
            elif result == -ENOBUFS:
                self._starve(slot, side)
            elif result != -ECANCELED and result != -EAGAIN and result != -EINTR:
                self._lose(slot, side, -result)
            self._pump(slot.index)
        if number != NO_BUFFER:
            self.ring.buffers.drop(number)

    cdef void _walk(
        self, Slot *slot, int side, uint32_t number, uint8_t *at, size_t size
    ) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        if leg.finished or leg.fate >= CLOSE:
            return                              # nothing was to be read any more
        if far.tls != NULL:
            self._walk_sealed(slot, side, number, at, size)
            return
        if far.tail_size:
            at -= far.tail_size
            size += far.tail_size
            memcpy(at, far.tail, far.tail_size)
        self._walked, self._walked_at = number, at
        self._feed_at(slot, side, at, size)
        self._walked = NO_BUFFER

    cdef void _walk_sealed(
        self, Slot *slot, int side, uint32_t number, uint8_t *at, size_t size
    ) noexcept nogil:
        """Opened in its buffer, and sent from there; but elsewhere where TLS holds the beginning of
        a record, for which there is no room before it."""
        cdef Far *far = &slot.far[side]
        if far.calls.holds(far.tls):
            self.open_sealed(slot, side, at, size, self._hot, False)
            return
        self._walked, self._walked_at = number, at - far.tail_size
        self.open_sealed(slot, side, at, size, at - far.tail_size, False)
        self._walked = NO_BUFFER

    cdef void _complete_send(self, uint32_t number, int side, int32_t result) noexcept nogil:
        """As much of what was walked in this buffer is out as the socket took."""
        cdef Lent *lent = self.ring.buffers.lent(number)
        cdef Slot *slot = self._slot_of(<uint64_t>lent.index << 1, lent.generation)
        cdef size_t sent = result if result > 0 else 0
        cdef Far *far
        if slot != NULL and slot.far[side].fd >= 0 and slot.far[side].sending:
            far = &slot.far[side]
            law(far.sending == lent.size[side], b"one send is in flight for a side")
            far.sending = 0
            if sent:
                relay_sent(&slot.relay, self._terms(slot), side, sent, self.now)
            if sent < lent.size[side]:
                if result < 0 and result != -EAGAIN and result != -EINTR:
                    self._send_failed(slot, side, -result)
                else:
                    far.blocked = 1
                self._keep_first(slot, side, lent.data[side] + sent, lent.size[side] - sent)
            slot.far[1 - side].mask = UNWATCHED     # its next receive has waited for this
            self._pump(slot.index)
        self.ring.buffers.drop(number)

    cdef void _keep_first(
        self, Slot *slot, int side, const uint8_t *data, size_t size
    ) noexcept nogil:
        """Queue what the socket did not take before what was queued since."""
        cdef Far *far = &slot.far[side]
        cdef size_t held = far.queue_end - far.queue_start
        if slot.relay.legs[side].fate == RESET:
            return
        self._keep(slot, side, data, size)
        if far.fault or far.queue == NULL:
            return
        if held:
            # Room is there now: what is older moves to the front.
            memmove(
                far.queue + far.queue_start + size, far.queue + far.queue_start, held
            )
            memcpy(far.queue + far.queue_start, data, size)
        if slot.far[1 - side].pipe != NO_PIPE:
            far.ahead += size                   # older than what is in the pipe

    # --- Hunger ----------------------------------------------------------------------------------

    cdef void _starve(self, Slot *slot, int side) noexcept nogil:
        """Bytes have come, and no buffer was left for them."""
        cdef uint32_t room
        cdef uint64_t *hungry
        if self._hungry_end == self._hungry_room:
            room = self._hungry_room * 2 or 256
            hungry = <uint64_t *>realloc(self._hungry, room * sizeof(uint64_t))
            if hungry == NULL:
                self._lose(slot, side, ENOMEM)
                return
            self._hungry, self._hungry_room = hungry, room
        slot.far[side].hungry = 1
        self._hungry[self._hungry_end] = key_of_side(RECEIVE, slot, side)
        self._hungry_end += 1

    cdef void _feed_hungry(self) noexcept nogil:
        """Arm as many as there are buffers for, those first that wait longest."""
        cdef uint32_t free_now = self.ring.buffers.count - self.ring.buffers.out
        cdef uint64_t data
        cdef Slot *slot
        cdef int side
        while self._hungry_start < self._hungry_end and free_now:
            data = self._hungry[self._hungry_start]
            self._hungry_start += 1
            slot = self._slot_of((data << 24) >> 28, <uint32_t>(data >> 40))
            side = (data >> 4) & 1
            if slot != NULL and slot.far[side].fd >= 0 and slot.far[side].hungry:
                slot.far[side].hungry = 0
                slot.far[side].mask = UNWATCHED
                self._watch(slot.index, side)
                free_now -= slot.far[side].receiving    # who is held meanwhile takes none
        if self._hungry_start == self._hungry_end:
            self._hungry_start = self._hungry_end = 0
        elif self._hungry_start > self._hungry_room // 2:
            memmove(
                self._hungry, self._hungry + self._hungry_start,
                (self._hungry_end - self._hungry_start) * sizeof(uint64_t),
            )
            self._hungry_end -= self._hungry_start
            self._hungry_start = 0

    # --- What relays ask for ---------------------------------------------------------------------

    cdef bint send_later(self, Slot *slot, int side, int count) noexcept nogil:
        cdef Span *span = &self._out.spans[side][count - 1]
        cdef Far *far = &slot.far[side]
        cdef Lent *lent
        if self._walked == NO_BUFFER or not self.ring.buffers.has(self._walked, span.data):
            return False                        # not what came just now: the gateway's own
        if count != 1 and not (count == 2 and self._put_before(span, &self._out.spans[side][0])):
            return False
        lent = self.ring.buffers.lent(self._walked)
        law(not far.sending and not lent.size[side], b"one send is in flight for a side")
        far.sending = <uint32_t>span.size
        lent.data[side] = span.data
        lent.size[side] = <uint32_t>span.size
        lent.users += 1
        self._asked_at = self.ring.enters + 1
        self.ring.send(
            far.fd, span.data, span.size, key(SEND, <uint64_t>self._walked << 1 | side, 0)
        )
        return True

    cdef bint _put_before(self, Span *span, const Span *header) noexcept nogil:
        """Make one piece of the first that was walked and of what goes out before it: the header
        around what a raw upstream said. False where there is no room before it."""
        cdef const uint8_t *at = span.data - header.size
        if span.data != self._walked_at or not self.ring.buffers.has(self._walked, at):
            return False
        memcpy(<uint8_t *>at, header.data, header.size)
        span.data = at
        span.size += header.size
        return True

    cdef bint may_read(self, Slot *slot, int side) noexcept nogil:
        """What was received already comes first: its receive is called back for that."""
        if slot.far[side].receiving:
            self.ring.take_back(key_of_side(RECEIVE, slot, side))
            return False
        return True

    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil:
        """A receive where reading means taking all that is there; else polls, as RingRelays."""
        cdef Slot *slot = self.slot(index)
        cdef Far *far = &slot.far[side]
        if mask == UNWATCHED or far.fault:
            return
        if (
            mask & EPOLLIN and self._copies(slot, side)
            and not (far.receiving or far.hungry or slot.far[1 - side].sending)
        ):
            far.receiving = 1
            self.ring.receive(far.fd, key_of_side(RECEIVE, slot, side))
        mask = self._left_to_polls(slot, side, mask)
        if mask != UNWATCHED:
            self._poll(slot, side, mask)

    cdef uint32_t _left_to_polls(self, Slot *slot, int side, uint32_t mask) noexcept nogil:
        """What of this a poll is to wait for; UNWATCHED if for nothing. A receive, armed or to be
        armed soon, tells of a reset too."""
        if mask == UNWATCHED:
            return UNWATCHED
        if mask & EPOLLIN and self._copies(slot, side):
            mask &= ~<uint32_t>EPOLLIN
            return mask if mask else UNWATCHED
        return UNWATCHED if not mask and slot.far[side].receiving else mask

    cdef void _poll(self, Slot *slot, int side, uint32_t mask) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef uint64_t data = key_of_side(RELAY, slot, side)
        if far.aside:
            self._change_aside(far.fd, mask, data)
        elif not far.polling:
            self.ring.arm(far.fd, mask, data)
        elif mask & ~far.polled:
            self.ring.rearm(data, mask)
        else:
            return
        far.polling, far.polled = 1, mask

    cdef void _complete_relay(self, Slot *slot, int side, uint32_t mask) noexcept nogil:
        """A poll completed. While a receive is armed, it alone tells what came, and of ends."""
        cdef Far *far = &slot.far[side]
        cdef uint32_t wanted = self._left_to_polls(slot, side, far.mask)
        if not far.polling or far.fd < 0:
            return
        if far.aside:
            self._take_back(far.fd)
            far.aside = 0
        far.polling = 0
        if not mask & ALWAYS and (wanted == UNWATCHED or not mask & wanted):
            if wanted != UNWATCHED:
                self._wait_apart(slot, side, wanted, mask)
            else:
                far.mask = UNWATCHED            # it was spliced from; now a receive will do
                self._watch(slot.index, side)
            return
        far.mask = UNWATCHED
        if far.receiving:
            far.blocked = 0
            self._pump(slot.index)
        else:
            self.ready(slot.index, side, mask & (wanted | ALWAYS))

    cdef void _wait_apart(
        self, Slot *slot, int side, uint32_t wanted, uint32_t mask
    ) noexcept nogil:
        """It completed for RDHUP alone, and would do so for ever."""
        cdef Far *far = &slot.far[side]
        if mask & EPOLLRDHUP and self._put_aside(far.fd, wanted, key_of_side(RELAY, slot, side)):
            far.aside = far.polling = 1
            far.polled = wanted
        else:
            self._poll(slot, side, wanted)

    cdef void forget(self, Slot *slot, int side) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef bint must_go = far.receiving or far.sending
        if far.receiving:
            self.ring.take_back(key_of_side(RECEIVE, slot, side))
        if far.aside:
            self._take_back(far.fd)
        elif far.polling:
            self.ring.cancel(key_of_side(RELAY, slot, side))
            must_go = False                     # that has submitted all
        if must_go:
            self.ring.flush()
        if far.sending:
            slot.far[1 - side].mask = UNWATCHED     # its receive waited for this, which is over
        far.receiving = far.hungry = far.aside = far.polling = 0
        far.sending = 0
        far.mask = UNWATCHED

    cdef void _check(self, Slot *slot, int side) noexcept nogil:
        cdef Far *far = &slot.far[side]
        RingRelays._check(self, slot, side)
        law(
            far.fd < 0 or far.fault or far.mask == UNWATCHED or not far.mask & EPOLLIN
            or far.receiving or far.hungry or slot.far[1 - side].sending
            or (far.polling and far.polled & EPOLLIN),
            b"who is to be read has a receive, a poll, hunger, or a send before it",
        )
        law(
            far.fd < 0 or far.fault or not far.blocked
            or (far.polling and far.polled & EPOLLOUT),
            b"who takes nothing now has a poll",
        )
        law(
            not far.fault or far.fd < 0 or far.receiving,
            b"who takes nothing any more is read for the last time, or given up",
        )
        law(
            not far.hungry or self._hungry_start < self._hungry_end,
            b"who is hungry stands in the queue",
        )

    cdef uint32_t _in_flight(self, const Far *far) noexcept nogil:
        cdef uint32_t count = far.receiving
        if far.sending:
            count += 1
        if far.polling and not far.aside:
            count += 1
        return count

    # --- For tests -------------------------------------------------------------------------------

    def withhold(self, bint withholding):
        """Keep buffers that come back from the kernel, until this is called again."""
        self.ring.buffers.withhold(withholding)
        with nogil:
            self._feed_hungry()

    def key_of_receive(self, uint32_t index, int side):
        """The user data of the receive that is armed for this side of a relay."""
        return key_of_side(RECEIVE, self.slot(index), side)
