# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One ring: its set-up, what is asked of it, and how it is emptied and left.

Facts about io_uring that shape it (Linux 6.1 to 6.18):

- SINGLE_ISSUER and DEFER_TASKRUN (6.1): nothing completes but inside our own waits, and another
  thread, or a forked child, gets EEXIST. TASKRUN_FLAG tells that work waits. SUBMIT_ALL (5.18): a
  bad entry fails alone. Older kernels get COOP_TASKRUN, or none of it.
- A wait for one completion yields at most 20 deferred ones, so waits are many under load, and
  cheap.
- liburing's wait asks for no events where a completion lies in the queue already, and a poll of
  who is ready completes inside its own submission. So a few who always are would keep the queue
  from being empty, and what is deferred (all who become ready later) would never come: where
  something is left in the queue, events are asked for expressly.
- Completions that find the queue full are kept by the kernel (NODROP, 5.5); asking for events
  brings them.
- A one-shot POLL_ADD is level-triggered: it completes at once where the descriptor is ready. It
  holds the file: close(2) of a descriptor with a poll armed sends no FIN before that is cancelled.
  Cancel by user data, never by descriptor: its number may be another's already.
- The file of an entry is looked up when it is submitted. So what is queued is submitted before
  any descriptor is closed.
- A send with MSG_DONTWAIT is done inside the submission, as far as the socket takes it, and never
  waits in the kernel: it owns its bytes no longer than that, and a close behind it cuts nothing.
- A receive is armed with POLL_FIRST and takes its buffer when bytes have come (uring_buffers.pyx).
- The ring is restricted to the opcodes in use (5.10): whoever takes this process over by a bug
  cannot open files through it, past the filter of system calls.

Must never: be used by another thread or by a forked child; use links, multishots, or
`IORING_OP_ACCEPT` on a listener that processes share (it waits exclusively).
"""

from libc.errno cimport EAGAIN, EBUSY, EINTR, EINVAL, ENOMEM, ETIME
from libc.signal cimport SIG_IGN, SIGPIPE, signal
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from gateway.engine.liburing cimport (
    IORING_ASYNC_CANCEL_ALL,
    IORING_ASYNC_CANCEL_ANY,
    IORING_CQE_F_MORE,
    IORING_FEAT_EXT_ARG,
    IORING_FEAT_FAST_POLL,
    IORING_FEAT_NODROP,
    IORING_OP_ASYNC_CANCEL,
    IORING_OP_POLL_ADD,
    IORING_OP_POLL_REMOVE,
    IORING_OP_RECV,
    IORING_OP_SEND,
    IORING_POLL_UPDATE_EVENTS,
    IORING_RECVSEND_POLL_FIRST,
    IORING_RESTRICTION_SQE_FLAGS_ALLOWED,
    IORING_RESTRICTION_SQE_OP,
    IORING_SETUP_COOP_TASKRUN,
    IORING_SETUP_CQSIZE,
    IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_R_DISABLED,
    IORING_SETUP_SINGLE_ISSUER,
    IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_TASKRUN_FLAG,
    IORING_SQ_CQ_OVERFLOW,
    IORING_SQ_TASKRUN,
    IOSQE_BUFFER_SELECT,
    io_uring_cq_advance,
    io_uring_cqe,
    io_uring_enable_rings,
    io_uring_get_events,
    io_uring_get_sqe,
    io_uring_opcode_supported,
    io_uring_params,
    io_uring_prep_cancel64,
    io_uring_prep_poll_add,
    io_uring_prep_poll_remove,
    io_uring_prep_poll_update,
    io_uring_prep_recv,
    io_uring_prep_send,
    io_uring_probe,
    io_uring_probe_op,
    io_uring_queue_exit,
    io_uring_queue_init_params,
    io_uring_register_probe,
    io_uring_register_restrictions,
    io_uring_restriction,
    io_uring_ring_dontfork,
    io_uring_smp_load_acquire,
    io_uring_sqe,
    io_uring_sqe_set_data64,
    io_uring_submit_and_get_events,
    io_uring_submit_and_wait_timeout,
    timespec64,
)

from gateway.engine.linux cimport (
    CLOCK_MONOTONIC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    clock_gettime,
    timespec,
)
from gateway.engine.uring_buffers cimport BUFFER_GROUP, RingBuffers

cdef extern from "<unistd.h>" nogil:
    int getpid()
    int getppid()
    int usleep(unsigned microseconds)

cdef double LATEST_S = 3600.0        # no wait is longer
cdef enum:
    ROUNDS = 10                      # of timing a system call: 100 microseconds in all
    CALLS = 100
    PROBED = 64                      # opcodes; those in use have small numbers
    DEFERRED_ROUNDS = 16             # of 20 deferred completions, behind what is left in the queue

# The best first; what a kernel does not know it refuses with EINVAL.
FORMS = (
    ("deferred", IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
     | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL),
    ("cooperative", IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL),
    ("plain", 0),
)
SIZES_SMALL = (64, 256)              # for where the memory that may be locked is short
OPCODES = {
    "POLL_ADD": IORING_OP_POLL_ADD, "POLL_REMOVE": IORING_OP_POLL_REMOVE,
    "ASYNC_CANCEL": IORING_OP_ASYNC_CANCEL,
}
OPCODES_OF_BUFFERS = {"RECV": IORING_OP_RECV, "SEND": IORING_OP_SEND}
FEATURES = {
    "NODROP": IORING_FEAT_NODROP, "FAST_POLL": IORING_FEAT_FAST_POLL,
    "EXT_ARG": IORING_FEAT_EXT_ARG,
}


cdef struct Probe:
    # liburing's own function for it does not tell why the kernel, or a filter, refused.
    io_uring_probe head
    io_uring_probe_op operations[PROBED]


def call_cost_ns():
    """Nanoseconds of the cheapest system call: the best of some rounds, filters included."""
    cdef timespec start, end
    cdef long best = 1 << 30
    cdef int turn, call
    with nogil:
        for turn in range(ROUNDS):
            clock_gettime(CLOCK_MONOTONIC, &start)
            for call in range(CALLS):
                getppid()
            clock_gettime(CLOCK_MONOTONIC, &end)
            best = min(best, (end.tv_sec - start.tv_sec) * 1000000000 + end.tv_nsec - start.tv_nsec)
    return best // CALLS


class RingRefused(Exception):
    """A ring cannot be had. `step` names what failed, `number` is its errno, or 0."""

    def __init__(self, step, int number):
        super().__init__(step, number)
        self.step = step
        self.number = number


cdef class Ring:
    """See the module's docstring. Raises `RingRefused`.

    entries: places for what is asked in one go; completions: places for answers; buffers: to
    receive into, if any.
    """

    def __cinit__(self, unsigned entries=256, unsigned completions=4096, unsigned buffers=0):
        # splice(2) into a socket that was reset raises it; there is no flag against that.
        signal(SIGPIPE, SIG_IGN)
        self._pid = getpid()
        self._set_up(entries, completions)
        try:
            opcodes = {**OPCODES, **OPCODES_OF_BUFFERS} if buffers else OPCODES
            self._check_features(opcodes)
            if buffers:
                self.buffers = RingBuffers(buffers)
                self._check(self.buffers.register(&self.ring), "registering buffers")
            self._restrict(opcodes)
            self._check(io_uring_enable_rings(&self.ring), "enabling the ring")
        except RingRefused:
            io_uring_queue_exit(&self.ring)
            self._is_open = False
            raise
        io_uring_ring_dontfork(&self.ring)

    def __dealloc__(self):
        if self._is_open and self._pid == getpid():      # a forked child has no ring mapped
            io_uring_queue_exit(&self.ring)

    # --- Set-up ----------------------------------------------------------------------------------

    def _set_up(self, unsigned entries, unsigned completions):
        cdef io_uring_params params
        cdef int result = -EINVAL
        for sizes in ((entries, completions), SIZES_SMALL):
            for form, flags in FORMS:
                memset(&params, 0, sizeof(params))
                params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED
                params.cq_entries = sizes[1]
                result = io_uring_queue_init_params(sizes[0], &self.ring, &params)
                if result == 0:
                    self.form = form
                    self._is_open = True
                    return
                if result != -EINVAL:
                    break
            if result != -ENOMEM:
                break
        raise RingRefused("io_uring_setup", -result)

    def _check(self, int result, step):
        if result < 0:
            raise RingRefused(step, -result)

    def _check_features(self, opcodes):
        """What the kernel itself says it has; its version says nothing, parts are ported back."""
        cdef Probe probe
        for name, feature in FEATURES.items():
            if not self.ring.features & feature:
                raise RingRefused("feature " + name, 0)
        memset(&probe, 0, sizeof(probe))
        self._check(
            io_uring_register_probe(&self.ring, &probe.head, PROBED), "io_uring_register"
        )
        for name, opcode in opcodes.items():
            if not io_uring_opcode_supported(&probe.head, opcode):
                raise RingRefused("opcode " + name, 0)

    def _restrict(self, opcodes):
        """Only the opcodes and the flag in use from here on, where the kernel takes that."""
        cdef io_uring_restriction allowed[8]
        cdef unsigned count = 0
        memset(allowed, 0, sizeof(allowed))
        for opcode in opcodes.values():
            allowed[count].opcode = IORING_RESTRICTION_SQE_OP
            allowed[count].sqe_op = opcode
            count += 1
        if self.buffers is not None:
            allowed[count].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED
            allowed[count].sqe_flags = IOSQE_BUFFER_SELECT
            count += 1
        self.is_restricted = io_uring_register_restrictions(&self.ring, allowed, count) == 0

    @property
    def fd(self):
        """The ring's descriptor."""
        return self.ring.ring_fd

    # --- What is asked ---------------------------------------------------------------------------

    cdef io_uring_sqe *_sqe(self, uint64_t data) noexcept nogil:
        """A free entry, never NULL: what is queued goes out first. Its caller fills it, and sets
        the user data last, since `prep` functions leave what stood there."""
        cdef io_uring_sqe *sqe = io_uring_get_sqe(&self.ring)
        while sqe == NULL:
            self.flush()
            sqe = io_uring_get_sqe(&self.ring)
            if sqe == NULL:
                usleep(1000)                 # the kernel has no memory for requests
        self.pending += 1
        self.submitted += 1
        return sqe

    cdef void arm(self, int fd, uint32_t mask, uint64_t data) noexcept nogil:
        """Complete once when `fd` is ready for `mask`; ERR and HUP always count."""
        cdef io_uring_sqe *sqe = self._sqe(data)
        io_uring_prep_poll_add(sqe, fd, mask)
        io_uring_sqe_set_data64(sqe, data)

    cdef void rearm(self, uint64_t data, uint32_t mask) noexcept nogil:
        """Let what is armed as `data` wait for `mask` instead. If it completes meanwhile, it does
        so for the old mask."""
        cdef io_uring_sqe *sqe = self._sqe(NOBODY)
        io_uring_prep_poll_update(sqe, data, 0, mask, IORING_POLL_UPDATE_EVENTS)
        io_uring_sqe_set_data64(sqe, NOBODY)

    cdef void cancel(self, uint64_t data) noexcept nogil:
        """Take back what is armed as `data`, at once: its descriptor may be closed afterwards."""
        cdef io_uring_sqe *sqe = self._sqe(NOBODY)
        io_uring_prep_poll_remove(sqe, data)
        io_uring_sqe_set_data64(sqe, NOBODY)
        self.flush()

    cdef void receive(self, int fd, uint64_t data) noexcept nogil:
        """Complete once, with a buffer when bytes have come, or with the end or the error that
        came instead."""
        cdef io_uring_sqe *sqe = self._sqe(data)
        io_uring_prep_recv(sqe, fd, NULL, 0, 0)
        sqe.flags |= IOSQE_BUFFER_SELECT
        sqe.ioprio |= IORING_RECVSEND_POLL_FIRST
        sqe.buf_group = BUFFER_GROUP
        io_uring_sqe_set_data64(sqe, data)

    cdef void send(
        self, int fd, const uint8_t *bytes_first, size_t size, uint64_t data
    ) noexcept nogil:
        """Send what the socket takes of this with the next submission; it is ours again when that
        has completed."""
        cdef io_uring_sqe *sqe = self._sqe(data)
        io_uring_prep_send(sqe, fd, bytes_first, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        io_uring_sqe_set_data64(sqe, data)

    cdef void take_back(self, uint64_t data) noexcept nogil:
        """Let what is armed as `data` complete soon, whatever it waits for."""
        cdef io_uring_sqe *sqe = self._sqe(NOBODY)
        io_uring_prep_cancel64(sqe, data, 0)
        io_uring_sqe_set_data64(sqe, NOBODY)

    # --- What is answered ------------------------------------------------------------------------

    cdef void flush(self) noexcept nogil:
        """Submit, and let completions come, without a wait."""
        self.enters += 1
        self._note(io_uring_submit_and_get_events(&self.ring))

    cdef bint wait(self, double seconds) noexcept nogil:
        """Submit, and wait for a completion for so long; not at all if there is one already, but
        what is deferred comes all the same. True if a signal interrupted it."""
        cdef timespec64 limit
        cdef io_uring_cqe *first = NULL
        cdef int result
        if seconds <= 0 or self._is_answered():
            self._fetch()
            return False
        if seconds > LATEST_S:
            seconds = LATEST_S
        # Rounded up, so that what is waited for is due afterwards.
        limit.tv_sec = <long long>seconds
        limit.tv_nsec = <long long>((seconds - limit.tv_sec) * 1e9) + 1
        if limit.tv_nsec >= 1000000000:
            limit.tv_sec, limit.tv_nsec = limit.tv_sec + 1, 0
        self.enters += 1
        result = io_uring_submit_and_wait_timeout(&self.ring, &first, 1, &limit, NULL)
        self._note(result)
        return result == -EINTR

    cdef bint _is_answered(self) noexcept nogil:
        """Completions are in the queue."""
        return self.ring.cq.khead[0] != io_uring_smp_load_acquire(self.ring.cq.ktail)

    cdef void _fetch(self) noexcept nogil:
        """Submit, and let what is deferred complete too, within reason, without a wait."""
        cdef int left = DEFERRED_ROUNDS
        self.flush()
        while self.ring.sq.kflags[0] & IORING_SQ_TASKRUN and left and not self.error:
            left -= 1
            self.enters += 1
            self._note(io_uring_get_events(&self.ring))

    cdef void _note(self, int result) noexcept nogil:
        """Look at what came, not at the result, except for what must not be."""
        if (
            result < 0 and result != -ETIME and result != -EINTR and result != -EAGAIN
            and result != -EBUSY
        ):
            self.error = -result
        if self.ring.sq.kflags[0] & IORING_SQ_CQ_OVERFLOW:
            self.overflows += 1

    cdef bint take(self, Completion *completion) noexcept nogil:
        """The oldest completion, copied; False if there is none."""
        cdef unsigned head = self.ring.cq.khead[0]
        cdef io_uring_cqe *cqe
        if head == io_uring_smp_load_acquire(self.ring.cq.ktail):
            return False
        cqe = &self.ring.cq.cqes[head & self.ring.cq.ring_mask]
        completion.data = cqe.user_data
        completion.result = cqe.res
        completion.flags = cqe.flags
        io_uring_cq_advance(&self.ring, 1)
        if not completion.flags & IORING_CQE_F_MORE:
            self.pending -= 1
        return True

    # --- The end -------------------------------------------------------------------------------

    cdef void cancel_all(self) noexcept nogil:
        """Let everything complete soon that is in flight."""
        cdef io_uring_sqe *sqe = self._sqe(NOBODY)
        io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL)
        io_uring_sqe_set_data64(sqe, NOBODY)
        self.flush()

    def close(self):
        """Leave the ring. Returns how many operations would not end: what they may still write to
        is never freed."""
        if self._is_open:
            if self.pending and self.buffers is not None:
                self.buffers.abandon()
            io_uring_queue_exit(&self.ring)
            self._is_open = False
        return self.pending
