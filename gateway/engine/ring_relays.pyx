# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Compiled relays that wait in a ring, and the poller of an engine whose loop that ring is.

One wait serves both: `wait` stays in C, without the GIL, moves relays and ticks them, and comes
back only when there is something for Python. Bytes are moved by plain non-blocking calls on one
hot buffer; the ring tells who is ready. Facts and laws:

- Polls are one-shot, hence level-triggered: each is armed anew when its owner was looked after, at
  the price of a place in the next submission, not of a system call.
- At most one poll is in flight for one side of a relay and for one descriptor of Python's; `mask`
  is UNWATCHED when none is. To watch for more, what is armed is changed in place; to watch for
  less, nothing is done: it completes once too often, and nobody is told.
- A poll in a ring always completes for RDHUP too, so one that waits for anything but reading would
  complete for ever once FIN has come. Who is found so is put aside: into an epoll descriptor,
  which knows better, and which the ring polls.
- User data are operation, place and generation. A completion of an older generation is nobody's.
- A turn's work in C is bounded in time, so that neither Python nor timers starve. What is left in
  the queue is first in the next turn, before what was armed since: nobody waits for more than
  what was there before him. But who has ended is put off behind those who speak.

Must never: tell Python of a descriptor that it unregistered meanwhile.
"""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from gateway.engine.ledger cimport DEBUG, law
from gateway.engine.linux cimport (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLERR,
    EPOLLIN,
    EPOLLOUT,
    close_fd,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from gateway.engine.relay_loop cimport ENDS, RelayLoop
from gateway.engine.relay_slots cimport CHUNK, UNWATCHED, Far, Slot, clock
from gateway.engine.uring_ring cimport Completion, Ring

cdef enum:
    LOOK_EVERY = 16                  # completions of little between two looks at the clock
    ASIDE_BATCH = 64
    CHECK_EVERY = 16                 # turns between two looks at all relays, of a debug build
    LEAVE_TRIES = 100                # waits of a millisecond in vain for what was cancelled

cdef double TURN_LIMIT = 0.002       # seconds of relaying before Python and timers have their turn


cdef class RingRelays(RelayLoop):
    """See the module's docstring, and RelayLoop. `register`, `modify`, `unregister` and `poll` are
    as of `select.epoll`; `poll` gives what the last `wait` found. Raises `RingRefused`."""

    def __cinit__(self, *args, unsigned entries=256, unsigned completions=4096,
                  unsigned buffers=0, **named):
        self._aside = -1
        self._turn_limit = TURN_LIMIT
        self.ring = Ring(entries, completions, buffers)
        self._aside = epoll_create1(EPOLL_CLOEXEC)
        if self._aside < 0:
            raise OSError(errno, "epoll_create1")

    def __dealloc__(self):
        free(self._watched)
        if self._aside >= 0:
            close_fd(self._aside)

    def close_ring(self):
        """Cancel what is armed and leave the ring. Returns how many operations would not end."""
        cdef Completion completion
        cdef int tries = 0
        if self._aside >= 0:
            close_fd(self._aside)
            self._aside = -1
        self._aside_armed = False
        if self.ring.pending:
            self.ring.cancel_all()
        while self.ring.pending and tries < LEAVE_TRIES:
            tries += 1
            self.ring.wait(0.001)
            while self.ring.take(&completion):
                self._complete(&completion)
                self._found_count = 0
                tries = 0
        return self.ring.close()

    @property
    def waits(self):
        """System calls into the ring, ever."""
        return self.ring.enters

    # --- The poller of the engine in Python ------------------------------------------------------

    def register(self, int fd, uint32_t mask):
        """Watch `fd`, as if level-triggered."""
        cdef int room = self._watched_room or 256
        cdef Watched *watched
        if fd >= self._watched_room:
            while room <= fd:
                room *= 2
            watched = <Watched *>realloc(self._watched, room * sizeof(Watched))
            if watched == NULL:
                raise MemoryError
            memset(watched + self._watched_room, 0, (room - self._watched_room) * sizeof(Watched))
            for i in range(self._watched_room, room):
                watched[i].mask = UNWATCHED
            self._watched, self._watched_room = watched, room
        assert self._watched[fd].mask == UNWATCHED
        self._watched[fd].mask = mask
        self._arm_descriptor(fd)

    def modify(self, int fd, uint32_t mask):
        """Watch it for this from now on."""
        cdef Watched *watched = &self._watched[fd]
        assert watched.mask != UNWATCHED
        if watched.aside:
            self._change_aside(fd, mask, key(DESCRIPTOR, fd, watched.generation))
        elif watched.armed and mask & ~watched.mask:
            self.ring.rearm(key(DESCRIPTOR, fd, watched.generation), mask)
        watched.mask = mask

    def unregister(self, int fd):
        """Forget it; nothing holds its file any more, and it may be closed."""
        cdef Watched *watched = &self._watched[fd]
        assert watched.mask != UNWATCHED
        if watched.aside:
            self._take_back(fd)
        elif watched.armed:
            self.ring.cancel(key(DESCRIPTOR, fd, watched.generation))
        watched.mask = UNWATCHED
        watched.armed = watched.aside = 0
        watched.generation = (watched.generation + 1) & 0xFFFFFF

    def poll(self, timeout=None, maxevents=-1):
        """What the last `wait` found, unless it was unregistered since."""
        cdef int i
        cdef Found *found
        result = []
        for i in range(self._found_count):
            found = &self._found[i]
            if self._watched[found.fd].generation == found.generation:
                result.append((found.fd, found.mask))
        return result

    cdef void _arm_descriptor(self, int fd) noexcept nogil:
        cdef Watched *watched = &self._watched[fd]
        watched.armed = 1
        self.ring.arm(fd, watched.mask, key(DESCRIPTOR, fd, watched.generation))

    cdef void _arm_found(self) noexcept nogil:
        """What was found last time, and looked after or not, is watched again. Level-triggered, so
        that nothing is lost where an exception came between."""
        cdef int i
        cdef Watched *watched
        for i in range(self._found_count):
            watched = &self._watched[self._found[i].fd]
            if watched.mask != UNWATCHED and not watched.armed:
                self._arm_descriptor(self._found[i].fd)
        self._found_count = 0

    # --- Waiting -----------------------------------------------------------------------------

    def wait(self, double until):
        """Move relays until that time, or until there is something for Python: descriptors that
        are ready, relays that ended, a signal. Raises OSError if the ring fails."""
        with nogil:
            self._loop(until)
        if self.ring.error:
            raise OSError(self.ring.error, "waiting in the ring")

    cdef void _loop(self, double until) noexcept nogil:
        cdef double latest
        cdef bint interrupted
        self._arm_found()
        self.now = clock()
        while True:
            if self._heap_size and self.slot(self._heap[0]).armed_at <= self.now:
                self.fire()
            latest = until
            if self.ended_size or self.put_off_size:
                latest = self.now
            elif self._heap_size and self.slot(self._heap[0]).armed_at < until:
                latest = self.slot(self._heap[0]).armed_at
            interrupted = self.ring.wait(latest - self.now)
            self.now = clock()
            self._reap(self.now + self._turn_limit)
            if DEBUG and (self._chunk_count == 1 or self.turns % CHECK_EVERY == 0):
                self._check_all()
            if (
                self._found_count or self.ended_size or interrupted or self.ring.error
                or self.now >= until
            ):
                return

    cdef void _reap(self, double limit) noexcept nogil:
        """Do what completed, for a bounded time; the rest stays in the queue."""
        cdef Completion completion
        cdef uint32_t count = 0
        while self._found_count < FOUND_MAX and self.ring.take(&completion):
            self._complete(&completion)
            count += 1
            if count % LOOK_EVERY == 0 or self.took_long:
                self.took_long = False
                self.now = clock()
                if self.now >= limit:
                    break
        if self.put_off_size:
            self.do_ends()
            count += 1
        if count:
            self.turns += 1
            self.now = clock()

    cdef void _check_all(self) noexcept nogil:
        """Between two turns nobody sleeps for whom nothing will come; for a debug build."""
        cdef uint64_t expected = 0
        cdef uint32_t index
        cdef Slot *slot
        cdef int side
        for index in range(self._chunk_count * CHUNK):
            slot = self.slot(index)
            if not slot.used or slot.ended:
                continue
            for side in range(2):
                if slot.far[side].fd >= 0:
                    self._check(slot, side)
                    expected += self._in_flight(&slot.far[side])
        law(expected <= self.ring.pending + self.put_off_size, b"what is awaited is in flight")

    cdef uint32_t _in_flight(self, const Far *far) noexcept nogil:
        """Operations of this side whose completion is awaited."""
        return far.mask != UNWATCHED and not far.aside

    cdef void _complete(self, const Completion *completion) noexcept nogil:
        cdef uint32_t mask, generation = <uint32_t>(completion.data >> 40)
        cdef uint64_t place = (completion.data << 24) >> 28
        cdef int operation = completion.data & 0xF
        # A poll that fails, as where no memory is: the plain calls will find out what is.
        mask = EPOLLIN | EPOLLOUT | EPOLLERR
        if completion.result >= 0:
            mask = completion.result
        if operation == RELAY:
            if not (mask & ENDS and self.put_off(completion.data, mask)):
                self.resume(completion.data, mask)
        elif operation == DESCRIPTOR:
            self._complete_descriptor(<int>place, generation, mask)
        elif operation == ASIDE and self._aside_armed:
            self._look_aside()

    cdef void resume(self, uint64_t data, uint32_t mask) noexcept nogil:
        cdef Slot *slot = self._slot_of((data << 24) >> 28, <uint32_t>(data >> 40))
        if slot != NULL:
            self._complete_relay(slot, (data >> 4) & 1, mask)

    # --- Who is watched apart ------------------------------------------------------------------

    cdef bint _put_aside(self, int fd, uint32_t mask, uint64_t data) noexcept nogil:
        """Watch it by epoll, which tells of RDHUP only who asks for it. False if there is no
        memory for that."""
        cdef epoll_event event
        event.events, event.data.u64 = mask, data
        if epoll_ctl(self._aside, EPOLL_CTL_ADD, fd, &event) < 0:
            return False
        self._aside_count += 1
        if not self._aside_armed:
            self._aside_armed = True
            self.ring.arm(self._aside, EPOLLIN, ASIDE)
        return True

    cdef void _change_aside(self, int fd, uint32_t mask, uint64_t data) noexcept nogil:
        cdef epoll_event event
        event.events, event.data.u64 = mask, data
        epoll_ctl(self._aside, EPOLL_CTL_MOD, fd, &event)

    cdef void _take_back(self, int fd) noexcept nogil:
        epoll_ctl(self._aside, EPOLL_CTL_DEL, fd, NULL)
        self._aside_count -= 1

    cdef void _look_aside(self) noexcept nogil:
        """Some of those who were put aside are ready: they come back, as if a poll completed."""
        cdef epoll_event events[ASIDE_BATCH]
        cdef Completion completion
        cdef int i, room = FOUND_MAX - self._found_count
        cdef int count = epoll_wait(
            self._aside, events, room if room < ASIDE_BATCH else ASIDE_BATCH, 0
        )
        for i in range(count):
            completion.data = events[i].data.u64
            completion.result = events[i].events
            self._complete(&completion)
        self._aside_armed = self._aside_count > 0
        if self._aside_armed:
            self.ring.arm(self._aside, EPOLLIN, ASIDE)

    cdef void _complete_descriptor(
        self, int fd, uint32_t generation, uint32_t mask
    ) noexcept nogil:
        cdef Watched *watched
        cdef Found *found
        if fd >= self._watched_room:
            return
        watched = &self._watched[fd]
        if not watched.armed or watched.generation != generation:
            return
        if watched.aside:
            self._take_back(fd)
            watched.aside = 0
        if not mask & (watched.mask | ALWAYS):
            watched.aside = mask & EPOLLRDHUP and self._put_aside(
                fd, watched.mask, key(DESCRIPTOR, fd, generation)
            )
            if not watched.aside:
                self._arm_descriptor(fd)
            return
        mask &= watched.mask | ALWAYS
        watched.armed = 0
        found = &self._found[self._found_count]
        found.fd, found.generation, found.mask = fd, generation, mask
        self._found_count += 1

    cdef Slot *_slot_of(self, uint64_t place, uint32_t generation) noexcept nogil:
        """The relay that is meant; NULL if it is over, and its place perhaps another's."""
        cdef Slot *slot
        if place >> 1 >= self._chunk_count * CHUNK:
            return NULL
        slot = self.slot(<uint32_t>(place >> 1))
        if not slot.used or slot.ended or slot.generation != generation:
            return NULL
        return slot

    cdef void _complete_relay(self, Slot *slot, int side, uint32_t mask) noexcept nogil:
        """A poll of this side completed."""
        cdef Far *far = &slot.far[side]
        cdef uint64_t data
        if far.mask == UNWATCHED:
            return
        if far.aside:
            self._take_back(far.fd)
            far.aside = 0
        if not mask & (far.mask | ALWAYS):
            data = key_of_side(RELAY, slot, side)
            far.aside = mask & EPOLLRDHUP and self._put_aside(far.fd, far.mask, data)
            if not far.aside:
                self.ring.arm(far.fd, far.mask, data)
            return
        mask &= far.mask | ALWAYS
        far.mask = UNWATCHED
        self.ready(slot.index, side, mask)

    # --- What relays ask for -------------------------------------------------------------------

    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        cdef Far *far = &slot.far[side]
        cdef uint64_t data = key_of_side(RELAY, slot, side)
        if mask == UNWATCHED:
            return                       # only ever asked for after its poll completed
        if far.mask == UNWATCHED:
            self.ring.arm(far.fd, mask, data)
        elif far.aside:
            self._change_aside(far.fd, mask, data)
        elif mask & ~far.mask:
            self.ring.rearm(data, mask)

    cdef void forget(self, Slot *slot, int side) noexcept nogil:
        cdef Far *far = &slot.far[side]
        if far.aside:
            self._take_back(far.fd)
            far.aside = 0
        elif far.mask != UNWATCHED:
            self.ring.cancel(key_of_side(RELAY, slot, side))
        far.mask = UNWATCHED

    # --- For tests -------------------------------------------------------------------------------

    def limit_turns(self, double seconds):
        """Let a turn's work in C take so long; with 0, it is LOOK_EVERY completions."""
        self._turn_limit = seconds

    def key_of(self, uint32_t index, int side):
        """The user data of what is armed for this side of a relay."""
        return key_of_side(RELAY, self.slot(index), side)

    def key_of_descriptor(self, int fd):
        """The user data of what is armed for a registered descriptor."""
        return key(DESCRIPTOR, fd, self._watched[fd].generation)

    def inject(self, uint64_t data, int32_t result):
        """As if the kernel completed this, late."""
        cdef Completion completion
        completion.data, completion.result, completion.flags = data, result, 0
        self.now = clock()
        self._complete(&completion)
