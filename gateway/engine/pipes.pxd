"""A bounded pool of pipes, for splice(2). See pipes.pyx."""

cdef enum:
    PIPES_MAX = 32              # of one process: a user has 256 of this size, over all of his
    NO_PIPE = -1

cdef struct Pipe:
    int out_fd
    int in_fd
    size_t size                 # what it holds at most
    size_t held                 # bytes in it; whoever moves them keeps this true

cdef class Pipes:
    cdef Pipe pipes[PIPES_MAX]
    cdef int _made
    cdef int _max
    cdef int _free[PIPES_MAX]
    cdef int _free_count
    cdef int _in_vain           # times that the kernel is not asked, since it refused
    cdef readonly int in_use

    cdef int take(self) noexcept nogil
    cdef void give_back(self, int index) noexcept nogil
    cdef bint _try_to_make(self, int index) noexcept nogil
    cdef bint _make(self, Pipe *pipe) noexcept nogil
    cdef void _unmake(self, Pipe *pipe) noexcept nogil
