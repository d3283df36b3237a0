# cython: language_level=3, boundscheck=False, wraparound=False
"""Compiled relays that wait in one epoll descriptor, which another loop watches as one reader.

It is the driver wherever io_uring is refused. Facts:

- Edge-triggered: a level-triggered descriptor stays in the ready list and is polled again by the
  next wait, and by the outer loop's. epoll_ctl is called only when a relay begins, a side blocks
  or is held, or it is not proven that a side is drained (`look_again`); each time the kernel looks
  whether it is ready already, so no edge is lost.
- A batch is done to its end, whatever ends in it: its edges are told once. Where its time is over
  before, the rest is kept, and is first in the next drain.
- Who has ended is put off behind those who speak; so a crowd that ends is found in one drain, and
  ended in many.
- The epoll descriptor itself is readable while anybody in it is ready, so the outer loop comes
  back by itself; while a rest is kept, an eventfd that always is stands in for it.
"""

cimport cython
from libc.errno cimport errno
from libc.math cimport INFINITY
from libc.stdint cimport uint32_t, uint64_t

from gateway.engine.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLET,
    EPOLLIN,
    EPOLLRDHUP,
    close_fd,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    eventfd,
)
from gateway.engine.relay_loop cimport ENDS, RelayLoop
from gateway.engine.relay_slots cimport UNWATCHED, Far, Slot, clock

cdef enum:
    BATCH = 256                      # events of one epoll_wait
    FEW = 16                         # with fewer, the next wait is the outer loop's
    LOOK_EVERY = 16                  # events of little between two looks at the clock

cdef uint64_t NOBODY = 0xFFFFFFFFFFFFFFFF
cdef double DRAIN_LIMIT = 0.002      # seconds that one drain may take before Python has its turn


@cython.final
cdef class EpollRelays(RelayLoop):
    """See RelayLoop; and `drain`, when `fileno` is readable."""

    cdef int _epoll
    cdef int _rest                   # readable for ever; watched while a batch is not done
    cdef epoll_event _events[BATCH]
    cdef int _done, _count           # of the batch
    cdef bint _is_resting
    cdef double _drain_limit
    cdef uint64_t _waits

    def __cinit__(self, *args, **named):
        cdef epoll_event event
        self._drain_limit = DRAIN_LIMIT
        self._rest = -1
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise OSError(errno, "epoll_create1")
        self._rest = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)
        event.events, event.data.u64 = 0, NOBODY
        if self._rest < 0 or epoll_ctl(self._epoll, EPOLL_CTL_ADD, self._rest, &event) < 0:
            raise OSError(errno, "eventfd")

    def __dealloc__(self):
        for fd in (self._epoll, self._rest):
            if fd >= 0:
                close_fd(fd)

    @property
    def waits(self):
        """System calls that asked who is ready, ever."""
        return self._waits

    def fileno(self):
        """The descriptor to watch for reading."""
        return self._epoll

    def close(self):
        """Give back what is shared. No relay runs any more."""
        RelayLoop.close(self)
        if self._epoll >= 0:
            close_fd(self._epoll)
            close_fd(self._rest)
            self._epoll = self._rest = -1

    def drain(self, double alarm_at=INFINITY):
        """Do what is ready and what is due, for a bounded time. Returns True if relays ended, or
        if `next_at` is sooner than `alarm_at` now: mostly nothing is left for Python to do."""
        with nogil:
            self._drain()
            if self.put_off_size:
                self.do_ends()
            self._keep_rest(self._done < self._count or self.put_off_size > 0)
            if self._heap_size and self.slot(self._heap[0]).armed_at <= self.now:
                self.fire()
        return self.ended_size > 0 or (
            self._heap_size > 0 and self.slot(self._heap[0]).armed_at < alarm_at
        )

    cdef void _drain(self) noexcept nogil:
        cdef double until
        self.now = clock()
        until = self.now + self._drain_limit
        while self._do_batch(until):
            self._waits += 1
            self._done, self._count = 0, epoll_wait(self._epoll, self._events, BATCH, 0)
            if self._count <= 0:
                self._count = 0
                break
            self.turns += 1
            if not self._do_batch(until) or self._count < FEW:
                break                   # with few, too little time went by for more to have come
            self.now = clock()
            if self.now >= until or self.ended_size:
                break

    cdef bint _do_batch(self, double until) noexcept nogil:
        """Do what is left of the batch; False if its time was over before."""
        cdef epoll_event *event
        while self._done < self._count:
            event = &self._events[self._done]
            self._done += 1
            if event.data.u64 != NOBODY and not (
                event.events & ENDS and self.put_off(event.data.u64, event.events)
            ):
                self.resume(event.data.u64, event.events)
            if self.took_long or self._done % LOOK_EVERY == 0:
                self.took_long = False
                self.now = clock()
                if self.now >= until:
                    break
        return self._done == self._count

    cdef void resume(self, uint64_t data, uint32_t mask) noexcept nogil:
        cdef uint32_t index = <uint32_t>(data >> 1)
        cdef Slot *slot = self.slot(index)
        # A relay that ended since, and its slot's next tenant, are not meant by what epoll said.
        if slot.used and not slot.ended and slot.generation == <uint32_t>(data >> 33):
            self.ready(index, data & 1, mask)

    cdef void _keep_rest(self, bint is_resting) noexcept nogil:
        """Let the outer loop come back at once for what is left, or no more."""
        cdef epoll_event event
        if is_resting != self._is_resting:
            self._is_resting = is_resting
            event.events, event.data.u64 = EPOLLIN if is_resting else 0, NOBODY
            epoll_ctl(self._epoll, EPOLL_CTL_MOD, self._rest, &event)

    cdef void watch(self, uint32_t index, int side, uint32_t mask) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        cdef Far *far = &slot.far[side]
        cdef epoll_event event
        event.events = mask | EPOLLET
        if mask & EPOLLIN:
            event.events |= EPOLLRDHUP
        event.data.u64 = <uint64_t>slot.generation << 33 | <uint64_t>index << 1 | side
        if mask == UNWATCHED:
            epoll_ctl(self._epoll, EPOLL_CTL_DEL, far.fd, NULL)
        else:
            epoll_ctl(
                self._epoll, EPOLL_CTL_ADD if far.mask == UNWATCHED else EPOLL_CTL_MOD, far.fd,
                &event,
            )

    cdef void look_again(self, uint32_t index, int side) noexcept nogil:
        self.watch(index, side, self.slot(index).far[side].mask)

    cdef void forget(self, Slot *slot, int side) noexcept nogil:
        """close(2) takes it out, since no other descriptor means the same socket."""

    # --- For tests -------------------------------------------------------------------------------

    def limit_turns(self, double seconds):
        """Let a drain take so long; with 0, it is LOOK_EVERY events."""
        self._drain_limit = seconds
