# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""Drives compiled relays over sockets: who is ready, who is watched, what ends; without the GIL.

`RelayLoop` is told who is ready (`ready`), and says who is to be watched (`watch`); epoll and the
ring are classes on top of it (`epoll_relays.pyx`, `ring_relays.pyx`), which own the waiting. Where
relays live is `relay_slots.pyx`, how their bytes are carried `relay_carriage.pyx` and, where a leg
has TLS, `relay_sealed.pyx`.

To end a relay costs ten times what it costs to move a message, and thousands may end at one
instant. So ends are put off until those who have something to say were served, and are done in
portions, between which the others have their turn.

Must never: block, take the GIL per event, close a descriptor while its number may be looked up.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from gateway.engine.ledger cimport DEBUG, L_DESCRIPTORS, L_RELAYS, count_made, law
from gateway.engine.linux cimport (
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    SHUT_WR,
    SIOCOUTQ,
    SO_ERROR,
    SOL_SOCKET,
    getsockopt,
    ioctl,
    shutdown,
)
from gateway.engine.pipes cimport NO_PIPE
from gateway.engine.relay cimport (
    CLIENT,
    CLOSE,
    FINISH,
    KILLED,
    RESET,
    UPSTREAM,
    Leg,
    Rules,
    relay_acknowledged,
    relay_end,
    relay_finished,
    relay_init,
    relay_is_over,
    relay_tick,
)
from gateway.engine.relay_report cimport cause_number, counts_of, outcome_of
from gateway.engine.relay_slots cimport CHUNK, UNWATCHED, Far, Slot, clock
from gateway.engine.secure_leg cimport SecureLeg

from gateway.engine.relay_report import FAULTS
from gateway.errors import Fault

# Why a direction was not spliced, worst reason first.
NOT_SPLICED = ["", "no large frame came", "no pipe was free", "text is checked",
               "payloads are unmasked", "little came at once", "tls"]
cdef enum:
    W_SMALL = 1
    W_NO_PIPE = 2
    W_TEXT = 3
    W_UNMASKED = 4
    W_LITTLE = 5
    W_TLS = 6


cdef double ENDS_LIMIT = 0.0005      # seconds that one portion of ends may take
cdef enum:
    ENDS_MIN = 4                     # of them are in each portion, however long they take


cdef class RelayLoop(KernelCarriage):
    """All compiled relays of one engine. Every method is for the engine's thread.

    `begin` takes descriptors over; each relay is reported once, in what `drain`, `tick`, `end` or
    `begin` leave for `take_ended`.
    """

    def __cinit__(self, *_subclass, **_named):
        self._ends_limit = ENDS_LIMIT
        self._put_off = <PutOff *>malloc(ENDS_MAX * sizeof(PutOff))
        if self._put_off == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._put_off)

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

    # --- What the engine asks for --------------------------------------------------------------

    def begin(self, uint64_t client, uint64_t upstream, int client_fd, int upstream_fd, terms,
              list early, tuple queued, tuple finished, tuple secure=(None, None)):
        """Take two connected sockets over, and move the stream. Returns the slot's number.

        early: (side, bytes) in order of arrival; queued: what is older than the relay and waits
        for each side; finished: whether FIN came from each; secure: a `SecureLeg`, whose state is
        taken over too, a `KernelLeg`, or None. Early bytes and what is queued are clear text.
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
        self._rules_used[rules] += 1
        self.live += 1
        count_made(L_RELAYS)
        for side in range(2):
            count_made(L_DESCRIPTORS)
            slot.far[side].pipe = NO_PIPE
            slot.far[side].mask = UNWATCHED
            if isinstance(secure[side], SecureLeg):
                self.take_leg(slot, side, secure[side], queued[side])
                continue
            if secure[side] is not None:
                self.take_kernel_leg(slot, side, secure[side])
            if len(queued[side]):
                view = queued[side]
                self._keep(slot, side, &view[0], view.shape[0])
                slot.far[side].before = view.shape[0]
        for side, data in early:
            view = data
            self._feed(slot, side, &view[0], view.shape[0])
        for side in range(2):
            if isinstance(secure[side], SecureLeg):
                self.open_first(slot, side, secure[side])
        for side in range(2):
            if finished[side]:
                self._begin_output()
                relay_finished(&slot.relay, self._terms(slot), side, self.now, self._out)
                self._put_out(slot)
        self._pump(index)
        return index

    def end(self, uint32_t index, cause, terms=None):
        """As ordered from above; `terms` have other farewells, where they are given."""
        cdef Slot *slot = self.slot(index)
        cdef int number = cause_number(cause)
        if terms is not None:
            self._rules_used[slot.relay.rules] -= 1
            slot.relay.rules = self._rules_of(terms)
            self._rules_used[slot.relay.rules] += 1
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

    def active_at(self, uint32_t index):
        """When the last byte of the stream came from either side, but for answers to our pings."""
        return self.slot(index).relay.active_at

    cdef tuple _counts(self, Slot *slot):
        cdef const Rules *rules = self._terms(slot)
        result = []
        for side in range(2):
            why = ""
            if not slot.relay.legs[side].spliced:
                if slot.sealed:
                    why = NOT_SPLICED[W_TLS]
                elif rules.raw and side == CLIENT:
                    why = NOT_SPLICED[W_UNMASKED]
                elif rules.raw_text:
                    why = NOT_SPLICED[W_TEXT]
                elif slot.far[side].no_pipe:
                    why = NOT_SPLICED[W_NO_PIPE]
                else:
                    why = NOT_SPLICED[W_LITTLE if rules.raw else W_SMALL]
            result.append(counts_of(&slot.relay, side, why))
        return result[0], result[1]

    cdef object _fault_of(self, Slot *slot, int side):
        """What `Closed` is to say of this side."""
        cdef Far *far = &slot.far[side]
        if far.fault:
            return FAULTS[far.fault - 1]
        return Fault.TRUNCATED if far.truncated else None

    def take_ended(self):
        """The relays that ended since the last time: (client, upstream, outcome, counts, faults);
        their slots are free again."""
        cdef uint32_t i, index
        cdef Slot *slot
        result = []
        for i in range(self.ended_size):
            index = self._ended[i]
            slot = self.slot(index)
            faults = self._fault_of(slot, CLIENT), self._fault_of(slot, UPSTREAM)
            result.append((
                slot.links[CLIENT], slot.links[UPSTREAM], outcome_of(&slot.relay),
                self._counts(slot), faults,
            ))
            self.drop_keys(index)
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
                self.drop_keys(index)
                self._free_slot(index)
        self.ended_size = self.put_off_size = 0

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

    # --- Ends, in portions -----------------------------------------------------------------------

    cdef bint put_off(self, uint64_t data, uint32_t mask) noexcept nogil:
        """Keep what says that a side has ended for `resume`; False where there is no room."""
        cdef PutOff *place
        if self.put_off_size == ENDS_MAX:
            return False
        place = &self._put_off[(self._first_put_off + self.put_off_size) % ENDS_MAX]
        place.data, place.mask = data, mask
        self.put_off_size += 1
        return True

    cdef void do_ends(self) noexcept nogil:
        """Those that wait longest, for a bounded time."""
        cdef double until = clock() + self._ends_limit
        cdef PutOff *first
        cdef int count = 0
        while self.put_off_size:
            first = &self._put_off[self._first_put_off]
            self._first_put_off = (self._first_put_off + 1) % ENDS_MAX
            self.put_off_size -= 1
            self.resume(first.data, first.mask)
            count += 1
            if count >= ENDS_MIN:
                self.now = clock()
                if self.now >= until:
                    break

    cdef void resume(self, uint64_t data, uint32_t mask) noexcept nogil:
        """Do now what was put off, if its relay still runs."""

    cdef void _pump(self, uint32_t index) noexcept nogil:
        """Do all that the legs ask for, until they ask for nothing more."""
        cdef Slot *slot = self.slot(index)
        cdef int side
        cdef bint again = True
        if self._is_calm(slot, CLIENT) and self._is_calm(slot, UPSTREAM):
            self._arm(index)
            return
        while again:
            again = False
            for side in range(2):
                if self._pump_leg(slot, side):
                    again = True
        if relay_is_over(&slot.relay):
            self._finish(index)
            return
        for side in range(2):
            self._watch(index, side)
        if DEBUG:
            for side in range(2):
                self._check(slot, side)
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
        if far.tls == NULL:
            law(leg.queued + far.before == queued + piped + far.sending,
                b"what is queued is counted")
        else:
            law(far.fault or leg.queued == far.clear, b"what is queued sealed is counted clear")
            law(not far.clear or queued > far.before, b"clear bytes stand for sealed ones")
        law((far.queue != NULL) == (queued > 0), b"an empty queue is freed")
        law(far.blocked or far.sending or far.fault or not (queued or piped),
            b"what waits for a side waits for its socket")
        law(far.ahead <= queued, b"what goes ahead is in the queue")
        law(far.tail_size == 0 or far.tail != NULL, b"a tail has its buffer")
        law(leg.reading or leg.finished or leg.gone or leg.fate >= CLOSE
            or slot.relay.legs[1 - side].clogged or (slot.relay.legs[1 - side].raw and leg.clogged),
            b"who is not read is held, or has nothing to say")
        law(not leg.clogged or leg.gone or leg.queued > self._terms(slot).max_queue // 2,
            b"who is held is released at half")
        law(far.fault or far.mask == self._wanted(slot, side)
            or (far.hung and far.mask == UNWATCHED), b"what is wanted of a side is watched")

    cdef void _check_close(self, Slot *slot, int side) noexcept nogil:
        """The law of a close; for a debug build. With bytes unread it would be an RST, which may
        destroy the farewell on its way (RFC 6455 7.1.1): nothing is unread behind FIN, and who
        has sent none has had its time."""
        cdef Leg *leg = &slot.relay.legs[side]
        cdef double since = max(leg.taken_at, slot.relay.since)
        law(leg.finished or self.now >= slot.relay.limit_at
            or self.now >= since + self._terms(slot).close_timeout,
            b"a side is closed when it has finished, or when its time is over")

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
            if not self.may_read(slot, side):
                return False
            # Its last words may say why: read them, as far as back-pressure lets us.
            while leg.reading and far.fd >= 0 and self._read_last(slot, side):
                pass
            if far.fd >= 0:
                self._lose_with_fault(slot, side)
            return True
        if far.queue == NULL and not far.sending and not self._pipe_before(slot, side):
            if leg.fate == CLOSE:
                if DEBUG:
                    self._check_close(slot, side)
                self._close_far(slot, side, False)
            elif leg.fate == FINISH and not far.shut:
                if not self.notify(slot, side):
                    return far.fault > 0
                far.shut = 1
                if shutdown(far.fd, SHUT_WR) < 0:
                    self._send_failed(slot, side, errno)
                    return True
        return False

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

    # --- Watching and time ---------------------------------------------------------------------

    cdef void _watch(self, uint32_t index, int side) noexcept nogil:
        """Say what this side waits for, if that changed."""
        cdef Far *far = &self.slot(index).far[side]
        cdef uint32_t mask
        if far.fd < 0:
            return
        mask = self._wanted(self.slot(index), side)
        if mask != far.mask and (mask or not far.hung):
            self.watch(index, side, mask)       # which looks whether it is ready already
            far.mask = mask
        elif far.again and mask:
            self.look_again(index, side)
        far.again = 0

    cdef void fire(self) noexcept nogil:
        """Tick what is due; what is not really due yet is put back at its deadline."""
        cdef uint32_t index
        cdef Slot *slot
        while self._heap_size and self.slot(self._heap[0]).armed_at <= self.now:
            index = self._heap[0]
            slot = self.slot(index)
            self._unarm(index)
            if slot.relay.deadline <= self.now:
                self._ask_kernel(slot)
            if slot.relay.deadline <= self.now:
                self._begin_output()
                relay_tick(&slot.relay, self._terms(slot), self.now, self._out)
                self._put_out(slot)
                self._pump(index)
            else:
                self._arm(index)

    cdef void _ask_kernel(self, Slot *slot) noexcept nogil:
        """Before time is judged: a side may still be taking what the kernel has for it (some
        hundred KiB, and what is under way)."""
        cdef int side, size
        for side in range(2):
            if slot.far[side].fd >= 0 and ioctl(slot.far[side].fd, SIOCOUTQ, &size) == 0:
                relay_acknowledged(&slot.relay, self._terms(slot), side, size, self.now)

    # --- For tests -------------------------------------------------------------------------------

    def limit_ends(self, double seconds):
        """Let a portion of ends take so long; with 0, it is ENDS_MIN of them."""
        self._ends_limit = seconds
