# cython: language_level=3, boundscheck=False, wraparound=False
"""A bounded pool of pipes, for splice(2).

- Pipes are made on demand, of 256 KiB: with smaller ones a splice costs up to twice as much.
- A user may have 16,384 pages in pipes over all his processes (fs.pipe-user-pages-soft); past that
  a new pipe silently has two. Such a one is not used: a copy is cheaper.
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
            self._free_count -= 1
            self.in_use += 1
            count_made(L_PIPES_LENT)
            return self._free[self._free_count]
        if self._made >= self._max:
            return NO_PIPE
        index = self._made
        if not self._make(&self.pipes[index]):
            self._max = self._made          # what failed once will fail again: do not ask each time
            return NO_PIPE
        self._made += 1
        self.in_use += 1
        count_made(L_PIPES_LENT)
        return index

    cdef void give_back(self, int index) noexcept nogil:
        """Empty, it serves the next; else it is closed, and another takes its place."""
        cdef Pipe *pipe = &self.pipes[index]
        self.in_use -= 1
        count_freed(L_PIPES_LENT)
        if pipe.held:
            self._unmake(pipe)
            if not self._make(pipe):
                pipe.out_fd = -1            # this place is never given out again
                pipe.held = 0
                return
        self._free[self._free_count] = index
        self._free_count += 1

    cdef bint _make(self, Pipe *pipe) noexcept nogil:
        cdef int fds[2]
        pipe.held = 0
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
        count_freed(L_PIPES)
