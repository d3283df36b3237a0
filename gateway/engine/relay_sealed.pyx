# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How a compiled relay's legs with TLS are carried: opened behind the read, sealed before the send.

The rules, the queues and the waiting are those of all compiled relays, and so are the counters:
clear bytes. What differs is this, and it needs no TLS library (secure_leg.pxd):

- One read takes many records. They are opened into the same memory, a little before where they
  were received: clear bytes are fewer, so they never catch up, and the cache holds one buffer.
- What the rules give for a side in one call is sealed in as few records as can be, and sent with
  one call. A header and its payload are put into one record.
- All that is sealed is on its way: what the socket does not take is queued sealed. Its clear bytes
  count as taken in proportion, and the last of them with the last sealed one, so that a leg is not
  done before its queue is empty.
- No pipe goes through TLS: nothing is spliced in a relay that has such a leg.

Must never: seal for a leg that is reset; send bytes in another order than they were sealed in.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from gateway.engine.codes cimport C_TRUNCATED
from gateway.engine.ledger cimport L_SECURED, count_freed, count_made, law
from gateway.engine.linux cimport MSG_NOSIGNAL, recv, send
from gateway.engine.relay cimport (
    OWN_MAX,
    RESET,
    TAIL_MAX,
    Span,
    relay_sent,
    relay_truncated,
)
from gateway.engine.relay_carriage cimport HOT, SEALED_AT
from gateway.engine.relay_slots cimport Far, Slot
from gateway.engine.secure_leg cimport (
    TLS_BROKEN,
    TLS_ENDED,
    TLS_HELD,
    TLS_MORE,
    TLS_OVERHEAD,
    TLS_RECORD,
    SecureLeg,
    TlsIo,
)

from gateway.engine.relay_report import FAULTS
from gateway.errors import Fault

cdef enum:
    # What one call of the rules gives for a side, in records, and answers of TLS to what it read.
    CLEAR_MAX = TLS_HELD + HOT + TAIL_MAX + OWN_MAX
    SEALED_ROOM = CLEAR_MAX + (CLEAR_MAX // TLS_RECORD + 2) * TLS_OVERHEAD + HOT

cdef uint8_t TLS_FAULT = 1 + FAULTS.index(Fault.TLS)


cdef class SealedCarriage(RelayCarriage):
    """The part of `RelayLoop` that has to do with TLS."""

    def __dealloc__(self):
        free(self._sealed)
        free(self._record)

    cdef int take_leg(self, Slot *slot, int side, SecureLeg leg, bytes queued) except -1:
        """This side has TLS; its state is ours from here on. `queued`: clear bytes that are older
        than the relay, and wait for it."""
        cdef Far *far = &slot.far[side]
        cdef size_t at = leg.owed, take
        cdef TlsIo io
        if self._sealed == NULL:
            self._sealed = <uint8_t *>malloc(SEALED_ROOM)
        if self._record == NULL:
            self._record = <uint8_t *>malloc(TLS_RECORD)
        if self._sealed == NULL or self._record == NULL:
            raise MemoryError
        far.tls, far.calls = leg.state, leg.calls
        leg.state = NULL
        count_made(L_SECURED)
        slot.sealed = 1
        if leg.unsent:
            self._keep(slot, side, <const uint8_t *><char *>leg.unsent, len(leg.unsent))
        while at < <size_t>len(queued) and not far.fault:
            take = min(<size_t>len(queued) - at, <size_t>HOT)
            self._begin_io(&io, NULL, 0)
            if not far.calls.seal(far.tls, &io, <const uint8_t *><char *>queued + at, take):
                far.fault = TLS_FAULT
            self._keep(slot, side, io.out, io.out_used)
            at += take
        far.before = far.queue_end - far.queue_start
        return 0

    cdef int open_first(self, Slot *slot, int side, SecureLeg leg) except -1:
        """Open and walk what of the stream was received before, and nobody has seen yet."""
        cdef size_t at = 0, take
        cdef const uint8_t *data = <const uint8_t *><char *>leg.unopened
        while True:
            take = min(<size_t>len(leg.unopened) - at, <size_t>HOT)
            if slot.far[side].fd < 0 or slot.relay.legs[side].finished:
                return 0
            self.open_sealed(slot, side, data + at, take, self._hot, False)
            at += take
            if at == <size_t>len(leg.unopened):
                return 0

    # --- Reading -------------------------------------------------------------------------------

    cdef bint receive_sealed(self, Slot *slot, int side, bint last) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef ssize_t count
        self.calls += 1
        count = recv(far.fd, self._hot + SEALED_AT, HOT, 0)
        if count > 0:
            if count == HOT:
                far.again = 1
            self.open_sealed(slot, side, self._hot + SEALED_AT, count, self._hot, last)
            return True
        if last:
            return False
        if count == 0:
            self.end_of(slot, side)
        elif errno != EAGAIN and errno != EINTR:
            self._lose(slot, side, errno)
        return False

    cdef void open_sealed(
        self, Slot *slot, int side, const uint8_t *data, size_t size, uint8_t *into, bint last
    ) noexcept nogil:
        """Open what was received, and walk it. `into` has room for a tail, and for what is opened:
        see `TlsCalls.open`."""
        cdef Far *far = &slot.far[side]
        cdef TlsIo io
        cdef size_t count
        cdef int ended
        self._begin_io(&io, data, size)
        ended = far.calls.open(
            far.tls, &io, into + far.tail_size, size + TLS_HELD, &count
        )
        law(ended != TLS_MORE or not io.size, b"all that was received is opened")
        if io.out_used:
            self._send_io(slot, side, &io, 0)
        if count:
            if far.tail_size:
                memcpy(into, far.tail, far.tail_size)
            self._feed_at(slot, side, into, far.tail_size + count)
        if last or far.fd < 0 or far.fault:
            return
        if ended == TLS_ENDED:
            self._end_sealed(slot, side, True)
        elif ended == TLS_BROKEN:
            far.fault = TLS_FAULT
            self._lose_with_fault(slot, side)

    cdef void end_of(self, Slot *slot, int side) noexcept nogil:
        if slot.far[side].tls == NULL:
            self._finish_side(slot, side)
        else:
            self._end_sealed(slot, side, False)

    cdef void _end_sealed(self, Slot *slot, int side, bint notified) noexcept nogil:
        """The far end's close_notify came, or FIN without one, which may be anybody's doing
        (RFC 8446 6.1)."""
        cdef Far *far = &slot.far[side]
        if slot.relay.legs[side].finished or far.fault:
            return
        if notified:
            self._finish_side(slot, side)
            return
        self._begin_output()
        relay_truncated(&slot.relay, self._terms(slot), side, self.now, self._out)
        far.truncated = slot.relay.cause == C_TRUNCATED and slot.relay.side == side
        self._put_out(slot)

    # --- Sending -------------------------------------------------------------------------------

    cdef inline void _begin_io(
        self, TlsIo *io, const uint8_t *sealed, size_t size
    ) noexcept nogil:
        io.sealed, io.size = sealed, size
        io.out, io.out_used, io.out_room = self._sealed, 0, SEALED_ROOM

    cdef void send_sealed(self, Slot *slot, int side) noexcept nogil:
        cdef TlsIo io
        cdef size_t clear = 0
        self._begin_io(&io, NULL, 0)
        if self._seal_spans(slot, side, &io, &clear):
            self._send_io(slot, side, &io, clear)
        elif not slot.far[side].fault:
            slot.far[side].fault = TLS_FAULT
        self._out.count[side] = 0

    cdef bint _seal_spans(
        self, Slot *slot, int side, TlsIo *io, size_t *clear
    ) noexcept nogil:
        """Seal all pieces for this side, small ones together; False if it failed."""
        cdef Far *far = &slot.far[side]
        cdef Span *span
        cdef size_t held = 0, at, take
        cdef int i, count = self._out.count[side]
        for i in range(count):
            span = &self._out.spans[side][i]
            clear[0] += span.size
            at = 0
            if held or (i + 1 < count and span.size < TLS_RECORD):
                at = min(span.size, TLS_RECORD - held)
                memcpy(self._record + held, span.data, at)
                held += at
                if held < TLS_RECORD and i + 1 < count:
                    continue
                if not far.calls.seal(far.tls, io, self._record, held):
                    return False
                held = 0
            take = span.size - at
            if i + 1 < count:
                take -= take % TLS_RECORD       # the rest goes with what follows
            if take and not far.calls.seal(far.tls, io, span.data + at, take):
                return False
            at += take
            held = span.size - at
            memcpy(self._record, span.data + at, held)
        return True

    cdef void _send_io(self, Slot *slot, int side, TlsIo *io, size_t clear) noexcept nogil:
        """Send what was sealed, behind what is queued; `clear` bytes of the rules' are in it."""
        cdef Far *far = &slot.far[side]
        cdef ssize_t sent = 0
        cdef size_t left
        if slot.relay.legs[side].fate == RESET or far.fd < 0 or far.fault:
            return
        law(not far.sending, b"a side with TLS has no send in flight")
        if far.queue == NULL and not far.blocked:
            self.calls += 1
            sent = send(far.fd, io.out, io.out_used, MSG_NOSIGNAL)
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    far.fault = <uint8_t>(1 + self._fault_index(errno))
                    return
                sent = 0
            far.blocked = <size_t>sent < io.out_used
        left = share(clear, io.out_used, io.out_used - sent)
        if clear > left:
            relay_sent(&slot.relay, self._terms(slot), side, clear - left, self.now)
        if <size_t>sent < io.out_used:
            far.clear += left
            self._keep(slot, side, io.out + sent, io.out_used - sent)

    cdef void count_sent(self, Slot *slot, int side, size_t sent) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef size_t own, before, left
        if far.tls == NULL:
            RelayCarriage.count_sent(self, slot, side, sent)
            return
        own = far.before if far.before < sent else sent
        before = far.queue_end - far.queue_start - far.before
        far.queue_start += sent
        far.before -= own
        left = share(far.clear, before, before - (sent - own))
        if far.clear > left:
            own = far.clear - left
            far.clear = left
            relay_sent(&slot.relay, self._terms(slot), side, own, self.now)

    # --- Ends ----------------------------------------------------------------------------------

    cdef bint notify(self, Slot *slot, int side) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef TlsIo io
        if far.tls != NULL and not far.notified:
            far.notified = 1
            self._begin_io(&io, NULL, 0)
            far.calls.notify(far.tls, &io)
            if io.out_used:
                self._send_io(slot, side, &io, 0)
        return far.queue == NULL and not far.fault

    cdef void unsecure(self, Slot *slot, int side, bint abort) noexcept nogil:
        """Say close_notify where the end is an orderly one, as far as the socket takes it."""
        cdef Far *far = &slot.far[side]
        if far.fd >= 0 and not abort and not far.fault and far.queue == NULL:
            self.notify(slot, side)
        far.calls.free(far.tls)
        count_freed(L_SECURED)
        far.tls = NULL


cdef inline size_t share(size_t clear, size_t whole, size_t left) noexcept nogil:
    """How many of the clear bytes are in the part that is left of what was sealed from them: one
    at least, while there is any."""
    cdef size_t part
    if not left or not clear:
        return 0
    part = <size_t>(<uint64_t>clear * left // whole)
    return part if part else 1
