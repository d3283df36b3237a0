# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The buffers of a ring: the kernel takes one when bytes have come, and not before.

So a link that is idle owns none, and their number bounds what is in flight, not how many links
there are. Facts:

- The kernel takes them in the order in which they were given, so all of them are walked through,
  however little comes: few and large ones, which become resident only as far as they are written.
- A buffer is taken whole, by one byte too; a receive that ends without bytes takes none.
- Where none is left a receive ends with ENOBUFS. One that waits for bytes first
  (IORING_RECVSEND_POLL_FIRST, 5.19) takes its buffer when they have come, not when it is armed.
- A place is given back by writing it down: no system call.
- Before each buffer is room for what was left of the last read, so that a header that was cut is
  walked in one piece, and for the header of a frame that is made of what was read. That also
  makes the distance between two an odd number of cache lines: at a power of two their beginnings
  would all fall into the same few sets of the caches.

Must never: give a buffer back while an operation may still read it, or twice.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from gateway.engine.ledger cimport law
from gateway.engine.liburing cimport (
    io_uring,
    io_uring_buf_reg,
    io_uring_buf_ring,
    io_uring_buf_ring_add,
    io_uring_buf_ring_advance,
    io_uring_buf_ring_init,
    io_uring_buf_ring_mask,
    io_uring_register_buf_ring,
)
from gateway.engine.linux cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

cdef enum:
    HEADROOM = 192                   # three cache lines; a tail is at most 139 bytes, a header 10
    BUFFER = 64 * 1024
    STRIDE = HEADROOM + BUFFER
    PLACE = 16                       # bytes of one place of the kernel's ring
    COUNT_MAX = 32768


cdef class RingBuffers:
    """`count` of them, a power of two. Belongs to one ring, and lives longer than it."""

    def __cinit__(self, unsigned count):
        if not 0 < count <= COUNT_MAX or count & (count - 1):
            raise ValueError("a power of two, up to 32768")
        self.count = count
        self._lent = <Lent *>calloc(count, sizeof(Lent))
        self._withheld = <uint16_t *>calloc(count, sizeof(uint16_t))
        self._ring = <io_uring_buf_ring *>_pages(count * PLACE)
        self._memory = <uint8_t *>_pages(<size_t>count * STRIDE)
        if not (self._lent and self._withheld and self._ring and self._memory):
            raise MemoryError

    def __dealloc__(self):
        free(self._lent)
        free(self._withheld)
        if self._ring != NULL:
            munmap(self._ring, self.count * PLACE)
        if self._memory != NULL:
            munmap(self._memory, <size_t>self.count * STRIDE)

    cdef int register(self, io_uring *ring) noexcept:
        """Let the kernel have them all. Negative errno if it will not."""
        cdef io_uring_buf_reg terms
        cdef unsigned number
        cdef int result
        memset(&terms, 0, sizeof(terms))
        terms.ring_addr = <uint64_t>self._ring
        terms.ring_entries = self.count
        terms.bgid = BUFFER_GROUP
        result = io_uring_register_buf_ring(ring, &terms, 0)
        if result == 0:
            io_uring_buf_ring_init(self._ring)
            self.out = self.count
            for number in range(self.count):
                self._give_back(number)
        return result

    cdef uint8_t *take(self, uint32_t number, uint32_t index, uint32_t generation) noexcept nogil:
        """The kernel gave this one out, with bytes for a relay. Before what this returns are
        HEADROOM bytes to write to. The caller has it until it calls `drop`."""
        cdef Lent *lent = &self._lent[number]
        law(number < self.count and not lent.users, b"a buffer is given out once")
        lent.index, lent.generation, lent.users = index, generation, 1
        lent.size[0] = lent.size[1] = 0
        self.out += 1
        return self._memory + <size_t>number * STRIDE + HEADROOM

    cdef inline Lent *lent(self, uint32_t number) noexcept nogil:
        return &self._lent[number]

    cdef inline bint has(self, uint32_t number, const uint8_t *data) noexcept nogil:
        """Whether these bytes are in that buffer, or before it in what was left of others."""
        cdef uint8_t *start = self._memory + <size_t>number * STRIDE
        return start <= data < start + STRIDE

    cdef void drop(self, uint32_t number) noexcept nogil:
        """One user less; behind the last it is the kernel's again."""
        cdef Lent *lent = &self._lent[number]
        law(lent.users > 0, b"a buffer is given back once")
        lent.users -= 1
        if lent.users:
            return
        if self._is_withholding:
            self._withheld[self._withheld_count] = <uint16_t>number
            self._withheld_count += 1
        else:
            self._give_back(number)

    cdef void _give_back(self, unsigned number) noexcept nogil:
        io_uring_buf_ring_add(
            self._ring, self._memory + <size_t>number * STRIDE + HEADROOM, BUFFER,
            <unsigned short>number, io_uring_buf_ring_mask(self.count), 0,
        )
        io_uring_buf_ring_advance(self._ring, 1)
        self.out -= 1

    cdef void abandon(self) noexcept nogil:
        """Operations that would not end may still write here: the memory stays for ever."""
        self._memory = NULL

    # --- For tests -------------------------------------------------------------------------------

    def withhold(self, bint withholding):
        """Keep what is given back from the kernel, until this is called again."""
        cdef unsigned i
        self._is_withholding = withholding
        if not withholding:
            for i in range(self._withheld_count):
                self._give_back(self._withheld[i])
            self._withheld_count = 0


cdef void *_pages(size_t size) noexcept:
    """Pages that become resident when they are written; NULL if there are none."""
    cdef void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    return NULL if at == MAP_FAILED else at
