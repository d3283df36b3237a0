# cython: language_level=3, boundscheck=False, wraparound=False
"""A bounded pool of pipes, for splice(2).

- Pipes are made on demand, of 256 KiB: with smaller ones a splice costs up to twice as much.
- A user may have 16,384 pages in pipes over all his processes (fs.pipe-user-pages-soft); past that
  a new pipe silently has two. Such a one is not used: a copy is cheaper.
- Descriptors may run out, and be free again: who asks in vain is not asked again at once.
- A pipe comes back empty, or it is closed: stale bytes would reach a stranger.
"""

from gateway.engine.linux cimport (
    F_GETPIPE_SZ,
    F_SETPIPE_SZ,
    O_CLOEXEC,
    O_NONBLOCK,
    close_fd,
    fcntl,
    pipe2,
)
from gateway.engine.ledger cimport L_PIPES, L_PIPES_LENT, count_freed, count_made

cdef enum:
    SIZE = 256 * 1024
    PATIENCE = 64               # asked for a new pipe so often in vain, the kernel is asked again


cdef class Pipes:
    """`take` one, keep its `held` true, `give_back`."""

    def __cinit__(self, int most=PIPES_MAX):
        self._max = most if most < PIPES_MAX else PIPES_MAX

    def close(self):
        """Close all; none is in use."""
        assert not self.in_use
        cdef int i
        for i in range(self._made):
            if self.pipes[i].out_fd >= 0:
                self._unmake(&self.pipes[i])
        self._made = self._free_count = 0

    cdef int take(self) noexcept nogil:
        """The index of an empty pipe, or NO_PIPE."""
        cdef int index
        if self._free_count:
            index = self._free[self._free_count - 1]
            if self.pipes[index].out_fd < 0 and not self._try_to_make(index):
                return NO_PIPE
            self._free_count -= 1
        elif self._made < self._max and self._try_to_make(self._made):
            index = self._made
            self._made += 1
        else:
            return NO_PIPE
        self.in_use += 1
        count_made(L_PIPES_LENT)
        return index

    cdef void give_back(self, int index) noexcept nogil:
        """Empty, it serves the next; else it is closed, and another takes its place."""
        cdef Pipe *pipe = &self.pipes[index]
        self.in_use -= 1
        count_freed(L_PIPES_LENT)
        self._free[self._free_count] = index
        if pipe.held:
            self._unmake(pipe)
            if not self._make(pipe):        # its place is tried again, once no other is free
                self._free[self._free_count] = self._free[0]
                self._free[0] = index
        self._free_count += 1

    cdef bint _try_to_make(self, int index) noexcept nogil:
        """Unless it was just tried in vain."""
        if self._in_vain:
            self._in_vain -= 1
            return False
        if self._make(&self.pipes[index]):
            return True
        self._in_vain = PATIENCE
        return False

    cdef bint _make(self, Pipe *pipe) noexcept nogil:
        cdef int fds[2]
        pipe.held = 0
        pipe.out_fd = -1
        if pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0:
            return False
        fcntl(fds[1], F_SETPIPE_SZ, SIZE)
        pipe.out_fd, pipe.in_fd = fds[0], fds[1]
        pipe.size = fcntl(fds[1], F_GETPIPE_SZ)
        count_made(L_PIPES)
        if pipe.size >= SIZE:
            return True
        self._unmake(pipe)
        return False

    cdef void _unmake(self, Pipe *pipe) noexcept nogil:
        close_fd(pipe.out_fd)
        close_fd(pipe.in_fd)
        pipe.out_fd = -1
        count_freed(L_PIPES)
