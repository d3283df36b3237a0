"""Buffers that the kernel takes from, when bytes have come. See uring_buffers.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gateway.engine.liburing cimport io_uring, io_uring_buf_ring

cdef enum:
    BUFFER_GROUP = 1
    NO_BUFFER = 0xFFFFFFFF

cdef struct Lent:
    # One buffer, while it is out of the kernel's ring.
    uint32_t index                   # the relay whose bytes it has
    uint32_t generation
    uint32_t users                   # operations that read it, and whoever walks it
    uint32_t size[2]                 # what is being sent to each side; 0: nothing
    const uint8_t *data[2]

cdef class RingBuffers:
    cdef io_uring_buf_ring *_ring
    cdef uint8_t *_memory
    cdef Lent *_lent
    cdef uint16_t *_withheld
    cdef unsigned _withheld_count
    cdef bint _is_withholding
    cdef readonly unsigned count
    cdef readonly unsigned out       # buffers that are not in the kernel's ring

    cdef int register(self, io_uring *ring) noexcept
    cdef uint8_t *take(self, uint32_t number, uint32_t index, uint32_t generation) noexcept nogil
    cdef Lent *lent(self, uint32_t number) noexcept nogil
    cdef bint has(self, uint32_t number, const uint8_t *data) noexcept nogil
    cdef void drop(self, uint32_t number) noexcept nogil
    cdef void _give_back(self, unsigned number) noexcept nogil
    cdef void abandon(self) noexcept nogil
