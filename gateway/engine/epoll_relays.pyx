# cython: language_level=3, boundscheck=False, wraparound=False
"""Compiled relays that wait in one epoll descriptor, which another loop watches as one reader.

It is the driver wherever io_uring is refused. Facts:

- Edge-triggered: a level-triggered descriptor stays in the ready list and is polled again by the
  next wait, and by the outer loop's. epoll_ctl is called only when a relay begins, a side blocks
  or is held, or it is not proven that a side is drained (`look_again`); each time the kernel looks
  whether it is ready already, so no edge is lost.
- A batch is done to its end, whatever ends in it: its edges are told once.
- The epoll descriptor itself is readable while anybody in it is ready, so the outer loop comes
  back by itself.
"""

cimport cython
from libc.errno cimport errno
from libc.math cimport INFINITY
from libc.stdint cimport uint32_t, uint64_t

from gateway.engine.linux cimport (
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
)
from gateway.engine.relay_loop cimport RelayLoop
from gateway.engine.relay_slots cimport UNWATCHED, Far, Slot, clock

cdef enum:
    BATCH = 256                      # events of one epoll_wait
    FEW = 16                         # with fewer, the next wait is the outer loop's

cdef double DRAIN_LIMIT = 0.002      # seconds that one drain may take before Python has its turn


@cython.final
cdef class EpollRelays(RelayLoop):
    """See RelayLoop; and `drain`, when `fileno` is readable."""

    cdef int _epoll
    cdef uint64_t _waits

    def __cinit__(self, *args, **named):
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise OSError(errno, "epoll_create1")

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
            self._epoll = -1

    def drain(self, double alarm_at=INFINITY):
        """Do what is ready and what is due, for a bounded time. Returns True if relays ended, or
        if `next_at` is sooner than `alarm_at` now: mostly nothing is left for Python to do."""
        with nogil:
            self._drain()
            if self._heap_size and self.slot(self._heap[0]).armed_at <= self.now:
                self.fire()
        return self.ended_size > 0 or (
            self._heap_size > 0 and self.slot(self._heap[0]).armed_at < alarm_at
        )

    cdef void _drain(self) noexcept nogil:
        cdef epoll_event events[BATCH]
        cdef int i, count
        cdef uint64_t data
        cdef uint32_t index
        cdef Slot *slot
        cdef double until
        self.now = clock()
        until = self.now + DRAIN_LIMIT
        while True:
            self._waits += 1
            count = epoll_wait(self._epoll, events, BATCH, 0)
            if count <= 0:
                return
            self.turns += 1
            for i in range(count):
                data = events[i].data.u64
                index = <uint32_t>(data >> 1)
                slot = self.slot(index)
                # A relay that ended earlier in this batch, and its slot's next tenant, are not
                # meant by what epoll said before.
                if (
                    slot.used and not slot.ended
                    and slot.generation == <uint32_t>(data >> 33)
                ):
                    self.ready(index, data & 1, events[i].events)
            if count < FEW:
                return                  # too little time went by for more to have come
            self.now = clock()
            if self.now >= until or self.ended_size:
                return

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
