# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""How bytes of a compiled relay are carried: read, spliced, sent, queued; without the GIL.

Facts that shape it:

- A relay that flows costs recv, send, recv, send an echo, and a share of a wait.
- One hot buffer for all: what is read is sent at once. An idle relay owns no buffer; what a
  socket did not take is copied to a queue that is freed when it is empty.
- splice(2) moves the rest of a large frame socket, pipe, socket: exactly the payload, so that the
  next header is read here again. `SPLICE_F_NONBLOCK` covers the pipe alone; sockets are
  O_NONBLOCK. EAGAIN from a socket is "empty" or "pipe full": the bytes in the pipe are counted.
- After a large frame the next header is only peeked at. If it is another large one, header and
  payload are spliced together; so a stream of large frames costs three calls a piece.
- The first large frame's header was read with what came with it, and leaves before its payload.
- Bytes of a raw upstream become frames: what is there is spliced into the pipe, then a header that
  promises just that much is sent, then the pipe. Text is checked, hence copied. The header goes
  without MSG_MORE, with which 64 KiB echoes cost 1.3 to 1.8 of a copy on Linux 6.18, instead of 0.9
  to 1.0; why was not found. Where memory is fast this saves nothing: 256 KiB and 1 MiB cost 1.0 to
  1.1 of a copy.

Must never: block, take the GIL per event, close a descriptor while its number may be looked up.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from gateway.engine.ledger cimport (
    L_DESCRIPTORS,
    L_QUEUES,
    L_TAILS,
    count_freed,
    count_made,
)
from gateway.engine.linux cimport (
    MSG_NOSIGNAL,
    MSG_PEEK,
    SO_LINGER,
    SOL_SOCKET,
    SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK,
    close_fd,
    iovec,
    linger,
    msghdr,
    recv,
    send,
    sendmsg,
    setsockopt,
    splice,
)
from gateway.engine.pipes cimport NO_PIPE, PIPES_MAX, Pipe, Pipes
from gateway.engine.relay cimport (
    CLIENT,
    D_FAULT,
    OPEN,
    RESET,
    TAIL_MAX,
    UPSTREAM,
    Leg,
    Output,
    Rules,
    relay_finished,
    relay_lost,
    relay_peeked,
    relay_received,
    relay_sent,
    relay_spliced,
    relay_wrapped,
)
from gateway.engine.relay_report import FAULTS
from gateway.errors import fault_of

cdef enum:
    SPLICE_MIN = 32 * 1024      # bytes still to come from which a splice is cheaper than a copy
    PEEK = 14                   # bytes: a header, whatever its length
    PIECES = 16                 # splices of one relay in a row, so that others get their turn


cdef class RelayCarriage(RelaySlots):
    """The part of `RelayLoop` that moves bytes."""

    def __cinit__(self, pipes_max=PIPES_MAX, **_subclass):
        self._hot = <uint8_t *>malloc(SEALED_AT + HOT)
        self._out = <Output *>malloc(sizeof(Output))
        if self._hot == NULL or self._out == NULL:
            raise MemoryError
        self.pipes = Pipes(pipes_max)

    def __dealloc__(self):
        free(self._hot)
        free(self._out)

    cdef void forget(self, Slot *slot, int side) noexcept nogil:
        """This side's descriptor is about to be closed."""

    cdef bint may_read(self, Slot *slot, int side) noexcept nogil:
        """Whether plain calls may read from this side now; if not, `_pump` is called again as soon
        as they may."""
        return True

    cdef bint send_later(self, Slot *slot, int side, int count) noexcept nogil:
        """Take so many pieces in the output over to send them for this side, before all that
        follows. True if that was done: their bytes are in `far.sending` until they are out or
        queued."""
        return False

    # --- What `relay_sealed.pyx` brings --------------------------------------------------------

    cdef bint receive_sealed(self, Slot *slot, int side, bint last) noexcept nogil:
        """`_receive` from a side that has TLS, or `_read_last`; True if there were bytes."""
        return False

    cdef void send_sealed(self, Slot *slot, int side) noexcept nogil:
        """`_send_spans` to a side that has TLS."""

    cdef void end_of(self, Slot *slot, int side) noexcept nogil:
        """FIN came."""
        self._finish_side(slot, side)

    cdef bint notify(self, Slot *slot, int side) noexcept nogil:
        """A side is about to get FIN; True if nothing has to leave before it."""
        return True

    cdef void unsecure(self, Slot *slot, int side, bint abort) noexcept nogil:
        """A side that has TLS is about to be closed."""

    # --- What `relay_kernel.pyx` brings --------------------------------------------------------

    cdef bint heard(self, Slot *slot, int side, int number) noexcept nogil:
        """Reading failed by this error where the kernel has TLS; True if that was no loss, but
        something that TLS had to say. (Else `far.fault` may say what it was.)"""
        return False

    # --- Reading -------------------------------------------------------------------------------

    cdef void _receive(self, Slot *slot, int side) noexcept nogil:
        """Read once, or splice on."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef ssize_t count
        cdef bint large
        if far.tls != NULL:
            self.receive_sealed(slot, side, False)
            return
        if self._peeks(slot, side) and not leg.raw:
            self.calls += 1
            count = recv(far.fd, self._hot, PEEK, MSG_PEEK)
            if count < 0 and errno != EAGAIN and errno != EINTR:
                self._lose(slot, side, errno)   # the kernel tells an error once: not twice
                return
            far.large = count > 0 and relay_peeked(
                &slot.relay, self._terms(slot), side, self._hot, count, SPLICE_MIN
            )
        large = leg.cursor.remaining >= SPLICE_MIN or (leg.raw and far.large)
        if far.pipe != NO_PIPE or (large and self._may_splice(slot, side)):
            self._splice(slot, side)
            return
        if far.tail_size:
            memcpy(self._hot, far.tail, far.tail_size)
        self.calls += 1
        count = recv(far.fd, self._hot + far.tail_size, HOT, 0)
        if count > 0:
            if count == HOT:
                far.again = 1
            self._feed_at(slot, side, self._hot, far.tail_size + <size_t>count)
        elif count == 0:
            self.end_of(slot, side)
        elif errno != EAGAIN and errno != EINTR:
            self._lose(slot, side, errno)

    cdef void _feed(self, Slot *slot, int side, const uint8_t *data, size_t size) noexcept nogil:
        """Early bytes, by way of the hot buffer, since payloads may be unmasked in place."""
        cdef size_t piece
        cdef Far *far = &slot.far[side]
        while size:
            piece = size if size < HOT else HOT
            if far.tail_size:
                memcpy(self._hot, far.tail, far.tail_size)
            memcpy(self._hot + far.tail_size, data, piece)
            self._feed_at(slot, side, self._hot, far.tail_size + piece)
            data += piece
            size -= piece

    cdef void _feed_at(self, Slot *slot, int side, uint8_t *at, size_t size) noexcept nogil:
        """Walk `size` bytes that came, and send what passes."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef const Rules *rules = self._terms(slot)
        cdef size_t used, whole = size
        cdef bint more = True
        while more:
            self._begin_output()
            used = relay_received(&slot.relay, rules, side, at, size, self.now, self._out)
            at += used
            size -= used
            more = self._out.more
            if (
                not more and leg.cursor.remaining >= SPLICE_MIN and self._may_splice(slot, side)
            ):
                self._begin_splice(slot, side)
                continue
            self._put_out(slot)
        self.took_long = self.took_long or whole >= SPLICE_MIN
        if slot.sealed:
            far.large = 0                           # no pipe goes through TLS
        elif leg.raw:
            far.large = whole >= SPLICE_MIN and not rules.raw_text
        else:
            far.large = leg.cursor.frame_size >= SPLICE_MIN and not rules.raw
        self._keep_tail(slot, side, at, size)

    cdef void _keep_tail(
        self, Slot *slot, int side, const uint8_t *data, size_t size
    ) noexcept nogil:
        """What is not whole waits for the next read, in a buffer that lives only so long."""
        cdef Far *far = &slot.far[side]
        if size:
            if far.tail == NULL:
                far.tail = <uint8_t *>malloc(TAIL_MAX)
                if far.tail == NULL:
                    self._lose(slot, side, ENOMEM)
                    return
                self.tails += 1
                count_made(L_TAILS)
            memcpy(far.tail, data, size)
        elif far.tail != NULL:
            free(far.tail)
            far.tail = NULL
            self.tails -= 1
            count_freed(L_TAILS)
        far.tail_size = <uint8_t>size

    cdef void _finish_side(self, Slot *slot, int side) noexcept nogil:
        if slot.far[side].fault:
            return                                  # behind a failed send comes only its loss
        self._begin_output()
        relay_finished(&slot.relay, self._terms(slot), side, self.now, self._out)
        self._put_out(slot)

    cdef bint _read_last(self, Slot *slot, int side) noexcept nogil:
        """Read once from a side that takes nothing more; True if there were bytes."""
        cdef Far *far = &slot.far[side]
        cdef ssize_t count
        if far.tls != NULL:
            return self.receive_sealed(slot, side, True)
        if far.tail_size:
            memcpy(self._hot, far.tail, far.tail_size)
        self.calls += 1
        count = recv(far.fd, self._hot + far.tail_size, HOT, 0)
        if count <= 0:
            return False
        self._feed_at(slot, side, self._hot, far.tail_size + <size_t>count)
        return True

    # --- Splicing ------------------------------------------------------------------------------

    cdef bint _may_splice(self, Slot *slot, int side) noexcept nogil:
        """Whether the kernel can move a large piece that comes from this side, which is not looked
        into; then a pipe is taken."""
        cdef Leg *leg = &slot.relay.legs[side]
        cdef const Rules *rules = self._terms(slot)
        return (
            slot.far[side].pipe == NO_PIPE
            and not slot.sealed
            and not slot.relay.cause
            and leg.reading
            and (not rules.raw or (leg.raw and not rules.raw_text))
            and slot.relay.legs[1 - side].fate == OPEN
            and self._take_pipe(slot, side)
        )

    cdef bint _take_pipe(self, Slot *slot, int side) noexcept nogil:
        cdef Far *other = &slot.far[1 - side]
        slot.far[side].pipe = self.pipes.take()
        if slot.far[side].pipe == NO_PIPE:
            slot.far[side].no_pipe = 1
            return False
        other.ahead = other.queue_end - other.queue_start       # older than what the pipe will hold
        return True

    cdef void _give_pipe_back(self, Slot *slot, int side) noexcept nogil:
        if slot.far[side].pipe != NO_PIPE:
            self.pipes.give_back(slot.far[side].pipe)
            slot.far[side].pipe = NO_PIPE

    cdef void _begin_splice(self, Slot *slot, int side) noexcept nogil:
        """The header waits in the output: it leaves first, and what of it the socket does not take
        goes ahead of the pipe. (An end that a splice finds would throw the output away.)"""
        cdef int other = 1 - side
        if self._out.count[other]:
            self._send_spans(slot, other, True)
            slot.far[other].ahead = slot.far[other].queue_end - slot.far[other].queue_start
        self._splice(slot, side)

    cdef bint _splice_in(self, Slot *slot, int side) noexcept nogil:
        """Socket to pipe; True if bytes moved."""
        cdef Leg *leg = &slot.relay.legs[side]
        if slot.far[side].pipe == NO_PIPE or not leg.reading or slot.relay.cause:
            return False
        return self._splice_raw(slot) if leg.raw else self._splice_frame(slot, side)

    cdef bint _splice_raw(self, Slot *slot) noexcept nogil:
        """Bytes of a raw upstream, as many as there are: they are a frame. One at a time is in the
        pipe, since each header goes ahead of it."""
        cdef Far *far = &slot.far[UPSTREAM]
        cdef Far *client = &slot.far[CLIENT]
        cdef Pipe *pipe = &self.pipes.pipes[far.pipe]
        cdef ssize_t count
        if pipe.held or not far.large:
            return False
        self.calls += 1
        count = splice(
            far.fd, NULL, pipe.in_fd, NULL, pipe.size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK
        )
        if count > 0:
            pipe.held = count
            far.again = 1
            far.large = count >= SPLICE_MIN
            self._begin_output()
            relay_wrapped(&slot.relay, self._terms(slot), count, self.now, self._out)
            self._send_spans(slot, CLIENT, True)
            client.ahead = client.queue_end - client.queue_start
            return True
        if count == 0:
            self.end_of(slot, UPSTREAM)
        elif errno == EAGAIN:
            far.again = 0                       # the pipe was empty, so it is the socket
        elif errno != EINTR:
            self._lose(slot, UPSTREAM, errno)
        return False

    cdef bint _splice_frame(self, Slot *slot, int side) noexcept nogil:
        """As much of the frame under way as socket and pipe have."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef Pipe *pipe
        cdef ssize_t count
        cdef size_t want
        if not leg.cursor.remaining:
            return False
        pipe = &self.pipes.pipes[far.pipe]
        want = pipe.size - pipe.held
        if want > leg.cursor.header_left + leg.cursor.remaining:
            want = leg.cursor.header_left + leg.cursor.remaining
        if not want:
            return False
        self.calls += 1
        count = splice(far.fd, NULL, pipe.in_fd, NULL, want, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if count > 0:
            pipe.held += count
            far.again = 1
            relay_spliced(&slot.relay, self._terms(slot), side, count, self.now)
            return True
        if count == 0:
            self.end_of(slot, side)
        elif errno != EAGAIN and errno != EINTR:
            self._lose(slot, side, errno)
        return False

    cdef bint _splice_out(self, Slot *slot, int side) noexcept nogil:
        """Pipe to the other socket; True if bytes moved."""
        cdef Far *other = &slot.far[1 - side]
        cdef Pipe *pipe
        cdef ssize_t count
        if slot.far[side].pipe == NO_PIPE or slot.relay.legs[1 - side].fate == RESET:
            return False
        pipe = &self.pipes.pipes[slot.far[side].pipe]
        if not pipe.held:
            return False
        if other.ahead and other.fd >= 0:
            self._flush(slot, 1 - side)
        if other.fd < 0 or other.blocked or other.fault or other.ahead or other.sending:
            return False
        self.calls += 1
        count = splice(
            pipe.out_fd, NULL, other.fd, NULL, pipe.held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK
        )
        if count > 0:
            pipe.held -= count
            relay_sent(&slot.relay, self._terms(slot), 1 - side, count, self.now)
            return True
        if count < 0 and (errno == EAGAIN or errno == EINTR):
            other.blocked = 1
            if errno == EINTR:
                other.again = 1
        elif count < 0:
            self._send_failed(slot, 1 - side, errno)
        return False

    cdef void _splice(self, Slot *slot, int side) noexcept nogil:
        """In and out by turns, until neither moves or it is another's turn."""
        cdef int piece
        cdef bint moved_in, moved_out
        self.took_long = True
        for piece in range(PIECES):
            moved_out = self._splice_out(slot, side)
            moved_in = self._splice_in(slot, side)
            if not moved_in and not (moved_out and self._pipe_before(slot, 1 - side)):
                break
        else:
            # Others have their turn; what is in the pipe goes on as soon as the loop comes round.
            if slot.far[side].pipe != NO_PIPE and self.pipes.pipes[slot.far[side].pipe].held:
                slot.far[1 - side].blocked = slot.far[1 - side].again = 1
        if (
            slot.far[side].pipe != NO_PIPE and not self.pipes.pipes[slot.far[side].pipe].held
            and (not slot.relay.legs[side].cursor.remaining or slot.relay.cause)
        ):
            self._give_pipe_back(slot, side)

    # --- Sending -------------------------------------------------------------------------------

    cdef void _send_spans(self, Slot *slot, int side, bint ahead) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef iovec pieces[64]
        cdef msghdr message
        cdef int i, count = self._out.count[side]
        cdef ssize_t sent = 0
        cdef size_t skip
        cdef bint tried = False
        if slot.relay.legs[side].fate == RESET or far.fd < 0:
            self._out.count[side] = 0
            return
        if far.tls != NULL:
            self.send_sealed(slot, side)
            return
        self._out.count[side] = 0
        if (
            far.queue == NULL and not far.blocked and not far.fault and not far.sending
            and (ahead or not self._pipe_before(slot, side))
        ):
            if not ahead and self.send_later(slot, side, count):
                return
            tried = True
            self.calls += 1
            if count == 1:
                sent = send(
                    far.fd, self._out.spans[side][0].data, self._out.spans[side][0].size,
                    MSG_NOSIGNAL,
                )
            else:
                for i in range(count):
                    pieces[i].iov_base = <void *>self._out.spans[side][i].data
                    pieces[i].iov_len = self._out.spans[side][i].size
                memset(&message, 0, sizeof(message))
                message.msg_iov = pieces
                message.msg_iovlen = count
                sent = sendmsg(far.fd, &message, MSG_NOSIGNAL)
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    far.fault = <uint8_t>(1 + self._fault_index(errno))
                sent = 0
            if sent:
                relay_sent(&slot.relay, self._terms(slot), side, sent, self.now)
        skip = <size_t>sent
        for i in range(count):
            if skip >= self._out.spans[side][i].size:
                skip -= self._out.spans[side][i].size
                continue
            self._keep(
                slot, side, self._out.spans[side][i].data + skip,
                self._out.spans[side][i].size - skip,
            )
            skip = 0
        if tried and far.queue != NULL:
            # Only who was tried is waited for: a socket with room, whose queue stood behind a pipe
            # until now, would never tell of it. That queue is `_pump`'s, or `_splice_out`'s.
            far.blocked = 1

    cdef void _keep(self, Slot *slot, int side, const uint8_t *data, size_t size) noexcept nogil:
        """Queue bytes that the socket did not take."""
        cdef Far *far = &slot.far[side]
        cdef size_t held = far.queue_end - far.queue_start
        cdef size_t room
        cdef uint8_t *queue
        if far.queue == NULL:
            self.queues += 1
            count_made(L_QUEUES)
        if far.queue_end + size > far.queue_room:
            if held + size <= far.queue_room:
                memmove(far.queue, far.queue + far.queue_start, held)
            else:
                room = 4096
                while room < held + size:
                    room *= 2
                queue = <uint8_t *>malloc(room)
                if queue == NULL:
                    if far.queue == NULL:
                        self.queues -= 1
                        count_freed(L_QUEUES)
                    far.fault = <uint8_t>(1 + self._fault_index(ENOMEM))
                    return
                if held:
                    memcpy(queue, far.queue + far.queue_start, held)
                free(far.queue)
                far.queue = queue
                far.queue_room = room
            far.queue_start = 0
            far.queue_end = held
        memcpy(far.queue + far.queue_end, data, size)
        far.queue_end += size

    cdef void _flush(self, Slot *slot, int side) noexcept nogil:
        """Send what is queued, as far as the socket takes it."""
        cdef Far *far = &slot.far[side]
        cdef ssize_t sent
        if slot.relay.legs[side].fate == RESET:
            return
        while (
            far.queue != NULL and not far.blocked and not far.fault and not far.sending
            and (far.ahead or not self._pipe_before(slot, side))
        ):
            self.calls += 1
            sent = send(
                far.fd, far.queue + far.queue_start,
                far.ahead if far.ahead else far.queue_end - far.queue_start, MSG_NOSIGNAL,
            )
            if sent < 0:
                if errno == EAGAIN or errno == EINTR:
                    far.blocked = 1
                    far.again = far.again or errno == EINTR
                else:
                    self._send_failed(slot, side, errno)
                return
            self.count_sent(slot, side, sent)
            if far.queue_start == far.queue_end:
                self._drop_queue(far)

    cdef void count_sent(self, Slot *slot, int side, size_t sent) noexcept nogil:
        """The socket took so many bytes of the queue."""
        cdef Far *far = &slot.far[side]
        cdef size_t own = far.before if far.before < sent else sent
        far.queue_start += sent
        far.before -= own
        if far.ahead:
            far.ahead -= sent
        if sent > own:
            relay_sent(&slot.relay, self._terms(slot), side, sent - own, self.now)

    cdef void _drop_queue(self, Far *far) noexcept nogil:
        if far.queue != NULL:
            free(far.queue)
            far.queue = NULL
            self.queues -= 1
            count_freed(L_QUEUES)
        far.queue_room = far.queue_start = far.queue_end = 0
        far.before = far.ahead = far.clear = 0

    # --- Ends ----------------------------------------------------------------------------------

    cdef int _fault_index(self, int number) noexcept nogil:
        with gil:
            return FAULTS.index(fault_of(number))

    cdef void _send_failed(self, Slot *slot, int side, int number) noexcept nogil:
        """It takes nothing more. `_pump` reads what it said before, then gives it up."""
        slot.far[side].fault = <uint8_t>(1 + self._fault_index(number))

    cdef void _lose(self, Slot *slot, int side, int number) noexcept nogil:
        """The link is gone."""
        if slot.far[side].kernel and self.heard(slot, side, number):
            return
        if not slot.far[side].fault:
            slot.far[side].fault = <uint8_t>(1 + self._fault_index(number))
        self._lose_with_fault(slot, side)

    cdef void _lose_with_fault(self, Slot *slot, int side) noexcept nogil:
        self._close_far(slot, side, True)
        self._begin_output()
        relay_lost(
            &slot.relay, self._terms(slot), side, D_FAULT + slot.far[side].fault - 1, self.now,
            self._out,
        )
        self._put_out(slot)

    cdef void _close_far(self, Slot *slot, int side, bint abort) noexcept nogil:
        """Close the descriptor, drop what waits for it and what it left behind."""
        cdef Far *far = &slot.far[side]
        cdef linger now
        if far.tls != NULL or far.kernel:
            self.unsecure(slot, side, abort)
        if far.fd >= 0:
            self.forget(slot, side)
            if abort:
                now.l_onoff, now.l_linger = 1, 0
                setsockopt(far.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))
            close_fd(far.fd)
            count_freed(L_DESCRIPTORS)
            far.fd = -1
        self._drop_queue(far)
        self._keep_tail(slot, side, NULL, 0)
        # What it sent, and is on its way to the other, still arrives; what is for it does not.
        self._give_pipe_back(slot, 1 - side)
