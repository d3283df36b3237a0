"""One ring, for the drivers that wait in it. See uring_ring.pyx."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from gateway.engine.liburing cimport io_uring, io_uring_sqe
from gateway.engine.uring_buffers cimport RingBuffers

cdef enum:
    NOBODY = 0                       # user data of what nobody waits for

cdef struct Completion:
    uint64_t data
    int32_t result
    uint32_t flags

cdef class Ring:
    cdef io_uring ring
    cdef bint _is_open
    cdef int _pid
    cdef readonly uint64_t pending   # completions that the kernel owes us
    cdef readonly uint64_t enters    # system calls that were made
    cdef readonly uint64_t submitted  # operations that were asked for
    cdef readonly RingBuffers buffers  # None: operations need none
    cdef readonly uint64_t overflows  # times that the completion queue was seen too small
    cdef readonly int error          # errno of a wait that failed as none should; 0: none
    cdef readonly str form           # flags of its set-up, in a word
    cdef readonly bint is_restricted

    cdef io_uring_sqe *_sqe(self, uint64_t data) noexcept nogil
    cdef void arm(self, int fd, uint32_t mask, uint64_t data) noexcept nogil
    cdef void rearm(self, uint64_t data, uint32_t mask) noexcept nogil
    cdef void cancel(self, uint64_t data) noexcept nogil
    cdef void receive(self, int fd, uint64_t data) noexcept nogil
    cdef void send(
        self, int fd, const uint8_t *bytes_first, size_t size, uint64_t data
    ) noexcept nogil
    cdef void take_back(self, uint64_t data) noexcept nogil
    cdef void cancel_all(self) noexcept nogil
    cdef void flush(self) noexcept nogil
    cdef bint wait(self, double seconds) noexcept nogil
    cdef bint _is_answered(self) noexcept nogil
    cdef void _fetch(self) noexcept nogil
    cdef void _note(self, int result) noexcept nogil
    cdef bint take(self, Completion *completion) noexcept nogil
