# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""Drives compiled relays over sockets: reads, splices, sends, ends; without the GIL.

`RelayLoop` is told who is ready (`ready`), and says who is to be watched (`watch`); epoll and the
ring are classes on top of it (`epoll_relays.pyx`), which own the waiting.

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

Must never: block, take the GIL per event, close a descriptor while its number may be looked up.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from gateway.engine.relay cimport (
    CLIENT,
    CLOSE,
    D_FAULT,
    FINISH,
    KILLED,
    OPEN,
    RESET,
    TAIL_MAX,
    UPSTREAM,
    Leg,
    Output,
    Relay,
    Rules,
    leg_is_done,
    relay_end,
    relay_finished,
    relay_init,
    relay_is_over,
    relay_lost,
    relay_peeked,
    relay_received,
    relay_sent,
    relay_spliced,
    relay_tick,
)
from gateway.engine.relay_report cimport cause_number, counts_of, outcome_of, rules_from

from gateway.engine.linux cimport (
    CLOCK_MONOTONIC,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    MSG_NOSIGNAL,
    MSG_PEEK,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SOL_SOCKET,
    SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK,
    clock_gettime,
    close_fd,
    getsockopt,
    iovec,
    linger,
    msghdr,
    recv,
    send,
    sendmsg,
    setsockopt,
    shutdown,
    splice,
    timespec,
)
from gateway.engine.ledger cimport *
from gateway.engine.pipes cimport NO_PIPE, PIPES_MAX, Pipe, Pipes

from gateway.engine.relay_report import FAULTS
from gateway.errors import fault_of

cdef enum:
    HOT = 256 * 1024            # bytes of one read
    CHUNK = 256                 # slots that are allocated together
    SPLICE_MIN = 32 * 1024      # bytes still to come from which a splice is cheaper than a copy
    PEEK = 14                   # bytes: a header, whatever its length
    PIECES = 16                 # splices of one relay in a row, so that others get their turn

# Why a direction was not spliced, worst reason first.
NOT_SPLICED = ["", "no large frame came", "no pipe was free", "text is checked",
               "payloads are unmasked", "bytes are put into frames"]
cdef enum:
    W_SMALL = 1
    W_NO_PIPE = 2

cdef class RelayLoop:
    """All compiled relays of one engine. Every method is for the engine's thread.

    `begin` takes descriptors over; each relay is reported once, in what `drain`, `tick`, `end` or
    `begin` leave for `take_ended`.
    """

    def __cinit__(self, pipes_max=PIPES_MAX, **_subclass):
        self._hot = <uint8_t *>malloc(TAIL_MAX + HOT)
        self._out = <Output *>malloc(sizeof(Output))
        if self._hot == NULL or self._out == NULL:
            raise MemoryError
        self._free = UNWATCHED
        self._rules_index = {}
        self.pipes = Pipes(pipes_max)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self._chunk_count):
            free(self._chunks[i])
        free(self._chunks)
        free(self._heap)
        free(self._ended)
        free(self._rules)
        free(self._hot)
        free(self._out)

    def close(self):
        """Give back what is shared. No relay runs any more."""
        assert not (self.live or self.queues or self.tails or self._heap_size)
        self.pipes.close()

    def stats(self):
        """What exists now: created and not freed."""
        cdef uint64_t queued = 0
        cdef uint32_t i
        cdef Slot *slot
        for i in range(self._chunk_count * CHUNK):
            slot = self.slot(i)
            if slot.used:
                queued += slot.relay.legs[0].queued + slot.relay.legs[1].queued
        return {
            "relays": self.live, "queues": self.queues, "tails": self.tails, "queued": queued,
            "pipes_in_use": self.pipes.in_use, "timers": self._heap_size,
        }

    # --- Slots ---------------------------------------------------------------------------------

    cdef inline Slot *slot(self, uint32_t index) noexcept nogil:
        return &self._chunks[index // CHUNK][index % CHUNK]

    cdef uint32_t _take_slot(self) except? UNWATCHED:
        """A free slot; grows by a chunk, and what goes with the number of slots."""
        cdef uint32_t first, i, total
        cdef Slot **chunks
        if self._free == UNWATCHED:
            total = (self._chunk_count + 1) * CHUNK
            chunks = <Slot **>realloc(self._chunks, (self._chunk_count + 1) * sizeof(Slot *))
            if chunks == NULL:
                raise MemoryError
            self._chunks = chunks
            self._heap = <uint32_t *>realloc(self._heap, total * sizeof(uint32_t))
            self._ended = <uint32_t *>realloc(self._ended, total * sizeof(uint32_t))
            chunks[self._chunk_count] = <Slot *>calloc(CHUNK, sizeof(Slot))
            if self._heap == NULL or self._ended == NULL or chunks[self._chunk_count] == NULL:
                raise MemoryError
            first = self._chunk_count * CHUNK
            self._chunk_count += 1
            for i in range(CHUNK):
                self.slot(first + i).next_free = first + i + 1 if i + 1 < CHUNK else UNWATCHED
            self._free = first
        i = self._free
        self._free = self.slot(i).next_free
        return i

    cdef uint32_t _rules_of(self, object terms) except? UNWATCHED:
        """The index of these terms; relays of one route share them."""
        found = self._rules_index.get(terms)
        if found is not None:
            return found
        cdef Rules *rules
        if self._rules_size == self._rules_room:
            self._rules_room = self._rules_room * 2 or 16
            rules = <Rules *>realloc(self._rules, self._rules_room * sizeof(Rules))
            if rules == NULL:
                raise MemoryError
            self._rules = rules
        rules_from(&self._rules[self._rules_size], terms)
        self._rules_index[terms] = self._rules_size
        self._rules_size += 1
        return self._rules_size - 1

    # --- What the engine asks for --------------------------------------------------------------

    def begin(self, uint64_t client, uint64_t upstream, int client_fd, int upstream_fd, terms,
              list early, tuple queued, tuple finished):
        """Take two connected sockets over, and move the stream. Returns the slot's number.

        early: (side, bytes) in order of arrival; queued: what is older than the relay and waits
        for each side; finished: whether FIN came from each.
        """
        cdef uint32_t rules = self._rules_of(terms)
        cdef uint32_t index = self._take_slot()
        cdef Slot *slot = self.slot(index)
        cdef uint32_t generation = slot.generation
        cdef int side
        cdef const uint8_t[::1] view
        memset(slot, 0, sizeof(Slot))
        slot.index = index
        slot.generation = generation
        slot.used = 1
        slot.heap_at = UNWATCHED
        slot.links[CLIENT], slot.links[UPSTREAM] = client, upstream
        slot.far[CLIENT].fd, slot.far[UPSTREAM].fd = client_fd, upstream_fd
        self.now = clock()
        relay_init(&slot.relay, &self._rules[rules], rules, self.now)
        self.live += 1
        count_made(L_RELAYS)
        for side in range(2):
            count_made(L_DESCRIPTORS)
            slot.far[side].pipe = NO_PIPE
            slot.far[side].mask = UNWATCHED
            if len(queued[side]):
                view = queued[side]
                self._keep(slot, side, &view[0], view.shape[0])
                slot.far[side].before = view.shape[0]
        for side, data in early:
            view = data
            self._feed(slot, side, &view[0], view.shape[0])
        for side in range(2):
            if finished[side]:
                self._begin_output()
                relay_finished(&slot.relay, self._terms(slot), side, self.now, self._out)
                self._put_out(slot)
        self._pump(index)
        return index

    def end(self, uint32_t index, cause):
        """As ordered from above."""
        cdef Slot *slot = self.slot(index)
        cdef int number = cause_number(cause)
        self.now = clock()
        with nogil:
            self._begin_output()
            relay_end(&slot.relay, self._terms(slot), number, self.now, self._out)
            self._put_out(slot)
            self._pump(index)

    def cut(self, uint32_t index):
        """Reset both sides, without a farewell."""
        cdef Slot *slot = self.slot(index)
        cdef int side
        self.now = clock()
        with nogil:
            self._begin_output()
            relay_end(&slot.relay, self._terms(slot), KILLED, self.now, self._out)
            for side in range(2):
                self._out.count[side] = 0
                slot.relay.legs[side].fate = RESET
                slot.relay.legs[side].queued = 0
            self._pump(index)

    def counts(self, uint32_t index):
        """Counters of a running relay, from the client and from the upstream."""
        return self._counts(self.slot(index))

    cdef tuple _counts(self, Slot *slot):
        cdef const Rules *rules = self._terms(slot)
        result = []
        for side in range(2):
            why = ""
            if not slot.relay.legs[side].spliced:
                if rules.raw and side == CLIENT:
                    why = NOT_SPLICED[4]
                elif rules.raw:
                    why = NOT_SPLICED[3 if rules.raw_text else 5]
                else:
                    why = NOT_SPLICED[W_NO_PIPE if slot.far[side].no_pipe else W_SMALL]
            result.append(counts_of(&slot.relay, side, why))
        return result[0], result[1]

    def take_ended(self):
        """The relays that ended since the last time: (client, upstream, outcome, counts, faults);
        their slots are free again."""
        cdef uint32_t i, index
        cdef Slot *slot
        result = []
        for i in range(self.ended_size):
            index = self._ended[i]
            slot = self.slot(index)
            faults = tuple([
                FAULTS[slot.far[side].fault - 1] if slot.far[side].fault else None
                for side in range(2)
            ])
            result.append((
                slot.links[CLIENT], slot.links[UPSTREAM], outcome_of(&slot.relay),
                self._counts(slot), faults,
            ))
            self._free_slot(index)
        self.ended_size = 0
        return result

    @property
    def ended_waiting(self):
        """How many `take_ended` would give."""
        return self.ended_size

    def abandon_all(self):
        """The engine stops: every relay is cut, without a report."""
        cdef uint32_t index
        cdef Slot *slot
        for index in range(self._chunk_count * CHUNK):
            slot = self.slot(index)
            if slot.used:
                for side in range(2):
                    if not slot.ended:
                        self._close_far(slot, side, True)
                if not slot.ended:
                    self._unarm(index)
                    self.live -= 1
                self._free_slot(index)
        self.ended_size = 0

    def next_at(self):
        """When `tick` has something to do; infinite if never."""
        return self.slot(self._heap[0]).armed_at if self._heap_size else INFINITY

    def tick(self):
        """Tell the relays whose deadline is due. Returns True if relays ended."""
        with nogil:
            self.now = clock()
            self.fire()
        return self.ended_size > 0

    # --- Who is ready, and who is watched --------------------------------------------------------

    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil:
        """Watch this side for `mask` from now on: EPOLLIN, EPOLLOUT, both, or 0, which still tells
        of RST. UNWATCHED: not at all. `far.mask` says what was watched before."""

    cdef void look_again(self, uint32_t index, int side) noexcept nogil:
        """This side may be ready without becoming so anew. For who is told of edges only."""

    cdef void forget(self, Slot *slot, int side) noexcept nogil:
        """This side's descriptor is about to be closed."""

    cdef void ready(self, uint32_t index, int side, uint32_t mask) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef int number = 0
        cdef unsigned int size = sizeof(int)
        if far.fd < 0:
            return
        if mask & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            far.blocked = 0
        if mask & (EPOLLRDHUP | EPOLLERR | EPOLLHUP):
            far.again = 1                       # an end stands behind what is read now
        if leg.reading and not self._pipe_is_stuck(slot, side):
            if mask & (EPOLLIN | EPOLLERR | EPOLLHUP):
                self._receive(slot, side)
        elif mask & EPOLLERR:
            getsockopt(far.fd, SOL_SOCKET, SO_ERROR, &number, &size)
            if number:
                # What came before that goes behind the pipe, as far as back-pressure lets it.
                while leg.reading and far.fd >= 0 and self._read_last(slot, side):
                    pass
                if far.fd >= 0:
                    self._lose(slot, side, number)
        elif mask & EPOLLHUP:
            # Both ways shut, and nothing to read or send: it would be told for ever.
            far.hung = 1
            self.watch(index, side, UNWATCHED)
            far.mask = UNWATCHED
        self._pump(index)

    cdef inline const Rules *_terms(self, Slot *slot) noexcept nogil:
        return &self._rules[slot.relay.rules]

    # --- Reading -------------------------------------------------------------------------------

    cdef void _receive(self, Slot *slot, int side) noexcept nogil:
        """Read once, or splice on."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef ssize_t count
        if far.large and not leg.cursor.remaining and not far.tail_size:
            count = recv(far.fd, self._hot, PEEK, MSG_PEEK)
            if count < 0 and errno != EAGAIN and errno != EINTR:
                self._lose(slot, side, errno)   # the kernel tells an error once: not twice
                return
            far.large = count > 0 and relay_peeked(
                &slot.relay, self._terms(slot), side, self._hot, count, SPLICE_MIN
            )
        if far.pipe != NO_PIPE or self._may_splice(slot, side):
            self._splice(slot, side)
            return
        if far.tail_size:
            memcpy(self._hot, far.tail, far.tail_size)
        count = recv(far.fd, self._hot + far.tail_size, HOT, 0)
        if count > 0:
            if count == HOT:
                far.again = 1
            self._feed_hot(slot, side, far.tail_size + <size_t>count)
        elif count == 0:
            self._finish_side(slot, side)
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
            self._feed_hot(slot, side, far.tail_size + piece)
            data += piece
            size -= piece

    cdef void _feed_hot(self, Slot *slot, int side, size_t size) noexcept nogil:
        """Walk `size` bytes of the hot buffer and send what passes."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef uint8_t *at = self._hot
        cdef size_t used
        cdef bint more = True
        while more:
            self._begin_output()
            used = relay_received(
                &slot.relay, self._terms(slot), side, at, size, self.now, self._out
            )
            at += used
            size -= used
            more = self._out.more
            if not more and self._may_splice(slot, side):
                self._begin_splice(slot, side)
                continue
            self._put_out(slot)
        far.large = leg.cursor.frame_size >= SPLICE_MIN
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

    # --- Splicing ------------------------------------------------------------------------------

    cdef bint _may_splice(self, Slot *slot, int side) noexcept nogil:
        """Whether the kernel had better move the rest of this side's frame, and can."""
        cdef Leg *leg = &slot.relay.legs[side]
        return (
            leg.cursor.remaining >= SPLICE_MIN
            and slot.far[side].pipe == NO_PIPE
            and not slot.relay.cause
            and leg.reading
            and not self._terms(slot).raw
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
            self._send_spans(slot, other, 0, True)
            slot.far[other].ahead = slot.far[other].queue_end - slot.far[other].queue_start
        self._splice(slot, side)

    cdef bint _splice_in(self, Slot *slot, int side) noexcept nogil:
        """Socket to pipe, as much of the frame as both have; True if bytes moved."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef Pipe *pipe
        cdef ssize_t count
        cdef size_t want
        if far.pipe == NO_PIPE or not leg.reading or slot.relay.cause or not leg.cursor.remaining:
            return False
        pipe = &self.pipes.pipes[far.pipe]
        want = pipe.size - pipe.held
        if want > leg.cursor.header_left + leg.cursor.remaining:
            want = leg.cursor.header_left + leg.cursor.remaining
        if not want:
            return False
        count = splice(far.fd, NULL, pipe.in_fd, NULL, want, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if count > 0:
            pipe.held += count
            far.again = 1
            relay_spliced(&slot.relay, self._terms(slot), side, count, self.now)
            return True
        if count == 0:
            self._finish_side(slot, side)
        elif errno != EAGAIN and errno != EINTR:
            self._lose(slot, side, errno)
        return False

    cdef bint _splice_out(self, Slot *slot, int side) noexcept nogil:
        """Pipe to the other socket; True if bytes moved."""
        cdef Far *other = &slot.far[1 - side]
        cdef Pipe *pipe
        cdef ssize_t count
        if slot.far[side].pipe == NO_PIPE or other.fd < 0 or other.blocked or other.fault:
            return False
        if other.ahead or slot.relay.legs[1 - side].fate == RESET:
            return False
        pipe = &self.pipes.pipes[slot.far[side].pipe]
        if not pipe.held:
            return False
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
        for piece in range(PIECES):
            moved_out = self._splice_out(slot, side)
            moved_in = self._splice_in(slot, side)
            if not moved_in and not moved_out:
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

    cdef inline void _begin_output(self) noexcept nogil:
        self._out.count[0] = self._out.count[1] = 0
        self._out.own_used = 0

    cdef inline void _put_out(self, Slot *slot) noexcept nogil:
        """Send what the rules gave; what a socket does not take is kept for it."""
        cdef int side
        for side in range(2):
            if self._out.count[side]:
                self._send_spans(slot, side, 0, False)

    cdef void _send_spans(self, Slot *slot, int side, int flags, bint ahead) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef iovec pieces[64]
        cdef msghdr message
        cdef int i, count = self._out.count[side]
        cdef ssize_t sent = 0
        cdef size_t skip
        self._out.count[side] = 0
        if slot.relay.legs[side].fate == RESET or far.fd < 0:
            return
        if (
            far.queue == NULL and not far.blocked and not far.fault
            and (ahead or not self._pipe_before(slot, side))
        ):
            if count == 1:
                sent = send(
                    far.fd, self._out.spans[side][0].data, self._out.spans[side][0].size,
                    MSG_NOSIGNAL | flags,
                )
            else:
                for i in range(count):
                    pieces[i].iov_base = <void *>self._out.spans[side][i].data
                    pieces[i].iov_len = self._out.spans[side][i].size
                memset(&message, 0, sizeof(message))
                message.msg_iov = pieces
                message.msg_iovlen = count
                sent = sendmsg(far.fd, &message, MSG_NOSIGNAL | flags)
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
        if far.queue != NULL and (ahead or not self._pipe_before(slot, side)):
            far.blocked = 1

    cdef inline bint _pipe_before(self, Slot *slot, int side) noexcept nogil:
        """Spliced bytes for this side wait in a pipe: they come first."""
        cdef int index = slot.far[1 - side].pipe
        return index != NO_PIPE and self.pipes.pipes[index].held > 0

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
        cdef size_t own
        if slot.relay.legs[side].fate == RESET:
            return
        while (
            far.queue != NULL and not far.blocked and not far.fault
            and (far.ahead or not self._pipe_before(slot, side))
        ):
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
            far.queue_start += sent
            if far.ahead:
                far.ahead -= sent
            own = far.before if far.before < <size_t>sent else <size_t>sent
            far.before -= own
            if <size_t>sent > own:
                relay_sent(&slot.relay, self._terms(slot), side, sent - own, self.now)
            if far.queue_start == far.queue_end:
                self._drop_queue(far)

    cdef void _drop_queue(self, Far *far) noexcept nogil:
        if far.queue != NULL:
            free(far.queue)
            far.queue = NULL
            self.queues -= 1
            count_freed(L_QUEUES)
        far.queue_room = far.queue_start = far.queue_end = far.before = far.ahead = 0

    # --- Ends ----------------------------------------------------------------------------------

    cdef int _fault_index(self, int number) noexcept nogil:
        with gil:
            return FAULTS.index(fault_of(number))

    cdef void _send_failed(self, Slot *slot, int side, int number) noexcept nogil:
        """It takes nothing more. `_pump` reads what it said before, then gives it up."""
        slot.far[side].fault = <uint8_t>(1 + self._fault_index(number))

    cdef void _lose(self, Slot *slot, int side, int number) noexcept nogil:
        """The link is gone."""
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

    cdef void _pump(self, uint32_t index) noexcept nogil:
        """Do all that the legs ask for, until they ask for nothing more."""
        cdef Slot *slot = self.slot(index)
        cdef int side
        cdef bint again = True
        while again:
            again = False
            for side in range(2):
                if self._pump_leg(slot, side):
                    again = True
        if relay_is_over(&slot.relay):
            self._finish(index)
            return
        for side in range(2):
            if DEBUG:
                self._check(slot, side)
            self._watch(index, side)
        self._arm(index)

    cdef void _check(self, Slot *slot, int side) noexcept nogil:
        """Laws of a side that was pumped; for a debug build."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef int pipe = slot.far[1 - side].pipe
        cdef size_t piped = self.pipes.pipes[pipe].held if pipe != NO_PIPE else 0
        cdef size_t queued = far.queue_end - far.queue_start
        if far.fd < 0 or leg.fate == RESET:
            return
        law(leg.queued + far.before == queued + piped, b"what is queued is counted")
        law((far.queue != NULL) == (queued > 0), b"an empty queue is freed")
        law(far.blocked or not (queued or piped), b"what waits for a side waits for its socket")
        law(far.ahead <= queued, b"what goes ahead is in the queue")
        law(far.tail_size == 0 or far.tail != NULL, b"a tail has its buffer")

    cdef bint _pump_leg(self, Slot *slot, int side) noexcept nogil:
        """Send and end as this leg asks; True if the rules were told something by it."""
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        if far.fd < 0:
            return False
        if leg.fate == RESET:
            self._close_far(slot, side, True)
            return False
        if far.ahead and not far.fault:
            self._flush(slot, side)
        if slot.far[1 - side].pipe != NO_PIPE and far.fd >= 0 and not far.fault:
            self._splice(slot, 1 - side)
        if far.fd >= 0 and not far.fault:
            self._flush(slot, side)
        if far.fd < 0:
            return True
        if far.fault:
            # Its last words may say why: read them, as far as back-pressure lets us.
            while leg.reading and far.fd >= 0 and self._read_last(slot, side):
                pass
            if far.fd >= 0:
                self._lose_with_fault(slot, side)
            return True
        if far.queue == NULL and not self._pipe_before(slot, side):
            if leg.fate == CLOSE:
                self._close_far(slot, side, False)
            elif leg.fate == FINISH and not far.shut:
                far.shut = 1
                if shutdown(far.fd, SHUT_WR) < 0:
                    self._send_failed(slot, side, errno)
                    return True
        return False

    cdef bint _read_last(self, Slot *slot, int side) noexcept nogil:
        """Read once from a side that takes nothing more; True if there were bytes."""
        cdef Far *far = &slot.far[side]
        cdef ssize_t count
        if far.tail_size:
            memcpy(self._hot, far.tail, far.tail_size)
        count = recv(far.fd, self._hot + far.tail_size, HOT, 0)
        if count <= 0:
            return False
        self._feed_hot(slot, side, far.tail_size + <size_t>count)
        return True

    cdef void _finish(self, uint32_t index) noexcept nogil:
        """Both legs are done: close what is open, and keep the slot until it was reported."""
        cdef Slot *slot = self.slot(index)
        cdef int side
        for side in range(2):
            self._close_far(slot, side, slot.relay.legs[side].fate == RESET)
        self._unarm(index)
        slot.ended = 1
        self.live -= 1
        self._ended[self.ended_size] = index
        self.ended_size += 1

    cdef void _free_slot(self, uint32_t index) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        slot.used = 0
        count_freed(L_RELAYS)
        slot.generation = (slot.generation + 1) & 0xFFFFFF
        slot.next_free = self._free
        self._free = index

    # --- Watching and time ---------------------------------------------------------------------

    cdef void _watch(self, uint32_t index, int side) noexcept nogil:
        """Say what this side waits for, if that changed."""
        cdef Slot *slot = self.slot(index)
        cdef Far *far = &slot.far[side]
        cdef Leg *leg = &slot.relay.legs[side]
        cdef uint32_t mask = 0
        if far.fd < 0:
            return
        if leg.reading and not self._pipe_is_stuck(slot, side):
            mask |= EPOLLIN
        if far.blocked:
            mask |= EPOLLOUT
        if mask != far.mask and (mask or not far.hung):
            self.watch(index, side, mask)       # which looks whether it is ready already
            far.mask = mask
        elif far.again and mask:
            self.look_again(index, side)
        far.again = 0

    cdef inline bint _pipe_is_stuck(self, Slot *slot, int side) noexcept nogil:
        """What came from here waits in its pipe for the other, who takes nothing now: nothing more
        is read until it does. (How much a pipe takes is told in segments, not in bytes: whether
        it is full cannot be known, and asking would spin.)"""
        cdef int index = slot.far[side].pipe
        return index != NO_PIPE and self.pipes.pipes[index].held > 0 and slot.far[1 - side].blocked

    cdef void _arm(self, uint32_t index) noexcept nogil:
        """Put it into the heap, unless it stands there at its time or sooner: deadlines mostly move
        away, and then one early tick every so often costs less than moving it each time."""
        cdef Slot *slot = self.slot(index)
        cdef double deadline = slot.relay.deadline
        if deadline == INFINITY:
            return
        if slot.heap_at == UNWATCHED:
            slot.heap_at = self._heap_size
            self._heap[self._heap_size] = index
            self._heap_size += 1
            count_made(L_TIMERS)
        elif slot.armed_at <= deadline:
            return
        slot.armed_at = deadline
        self._sift_up(slot.heap_at)

    cdef void _unarm(self, uint32_t index) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        cdef uint32_t place = slot.heap_at, last
        if place == UNWATCHED:
            return
        slot.heap_at = UNWATCHED
        self._heap_size -= 1
        count_freed(L_TIMERS)
        if place == self._heap_size:
            return
        last = self._heap[self._heap_size]
        self._heap[place] = last
        self.slot(last).heap_at = place
        self._sift_up(place)
        self._sift_down(self.slot(last).heap_at)

    cdef void _sift_up(self, uint32_t place) noexcept nogil:
        cdef uint32_t index = self._heap[place], parent
        cdef double at = self.slot(index).armed_at
        while place:
            parent = (place - 1) // 2
            if self.slot(self._heap[parent]).armed_at <= at:
                break
            self._heap[place] = self._heap[parent]
            self.slot(self._heap[place]).heap_at = place
            place = parent
        self._heap[place] = index
        self.slot(index).heap_at = place

    cdef void _sift_down(self, uint32_t place) noexcept nogil:
        cdef uint32_t index = self._heap[place], child
        cdef double at = self.slot(index).armed_at, child_at, sibling_at
        while True:
            child = 2 * place + 1
            if child >= self._heap_size:
                break
            child_at = self.slot(self._heap[child]).armed_at
            if child + 1 < self._heap_size:
                sibling_at = self.slot(self._heap[child + 1]).armed_at
                if sibling_at < child_at:
                    child += 1
                    child_at = sibling_at
            if child_at >= at:
                break
            self._heap[place] = self._heap[child]
            self.slot(self._heap[place]).heap_at = place
            place = child
        self._heap[place] = index
        self.slot(index).heap_at = place

    cdef void fire(self) noexcept nogil:
        """Tick what is due; what is not really due yet is put back at its deadline."""
        cdef uint32_t index
        cdef Slot *slot
        while self._heap_size and self.slot(self._heap[0]).armed_at <= self.now:
            index = self._heap[0]
            slot = self.slot(index)
            self._unarm(index)
            if slot.relay.deadline <= self.now:
                self._begin_output()
                relay_tick(&slot.relay, self._terms(slot), self.now, self._out)
                self._put_out(slot)
                self._pump(index)
            else:
                self._arm(index)
