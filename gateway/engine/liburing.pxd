"""Every declaration of io_uring that is used, and only those. Facts are in uring_ring.pyx.

Flags that are newer than the headers of liburing 2.3 are the kernel's numbers, each with the
release that has it.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<liburing.h>" nogil:
    cdef struct io_uring_sqe:
        uint64_t user_data
        uint8_t flags
        uint16_t ioprio
        uint32_t len
        uint16_t buf_group
    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags
    cdef struct io_uring_sq:
        unsigned *kflags
    cdef struct io_uring_cq:
        unsigned *khead
        unsigned *ktail
        io_uring_cqe *cqes
        unsigned ring_mask
    cdef struct io_uring:
        io_uring_sq sq
        io_uring_cq cq
        int ring_fd
        unsigned features
    cdef struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
    cdef struct io_uring_probe:
        uint8_t last_op
    cdef struct io_uring_probe_op:
        uint8_t op
    cdef struct io_uring_restriction:
        uint16_t opcode
        uint8_t sqe_op
        uint8_t sqe_flags
    cdef struct io_uring_buf_ring
    cdef struct io_uring_buf_reg:
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid
    cdef struct timespec64 "__kernel_timespec":
        long long tv_sec
        long long tv_nsec

    int io_uring_queue_init_params(unsigned entries, io_uring *ring, io_uring_params *params)
    void io_uring_queue_exit(io_uring *ring)
    int io_uring_ring_dontfork(io_uring *ring)
    int io_uring_register_probe(io_uring *ring, io_uring_probe *probe, unsigned count)
    int io_uring_opcode_supported(const io_uring_probe *probe, int opcode)
    int io_uring_register_restrictions(
        io_uring *ring, io_uring_restriction *restrictions, unsigned count
    )
    int io_uring_enable_rings(io_uring *ring)
    int io_uring_register_buf_ring(io_uring *ring, io_uring_buf_reg *terms, unsigned flags)
    void io_uring_buf_ring_init(io_uring_buf_ring *buffers)
    int io_uring_buf_ring_mask(uint32_t entries)
    void io_uring_buf_ring_add(
        io_uring_buf_ring *buffers, void *address, unsigned size, unsigned short number, int mask,
        int place
    )
    void io_uring_buf_ring_advance(io_uring_buf_ring *buffers, int count)

    io_uring_sqe *io_uring_get_sqe(io_uring *ring)
    unsigned io_uring_sq_ready(const io_uring *ring)
    void io_uring_sqe_set_data64(io_uring_sqe *sqe, uint64_t data)
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned mask)
    void io_uring_prep_poll_remove(io_uring_sqe *sqe, uint64_t user_data)
    void io_uring_prep_poll_update(
        io_uring_sqe *sqe, uint64_t old, uint64_t new, unsigned mask, unsigned flags
    )
    void io_uring_prep_recv(io_uring_sqe *sqe, int fd, void *buffer, size_t size, int flags)
    void io_uring_prep_send(io_uring_sqe *sqe, int fd, const void *data, size_t size, int flags)
    void io_uring_prep_cancel64(io_uring_sqe *sqe, uint64_t user_data, int flags)

    int io_uring_submit_and_get_events(io_uring *ring)
    int io_uring_get_events(io_uring *ring)
    int io_uring_submit_and_wait_timeout(
        io_uring *ring, io_uring_cqe **first, unsigned count, timespec64 *limit, void *signals
    )
    unsigned io_uring_smp_load_acquire(const unsigned *value)
    void io_uring_cq_advance(io_uring *ring, unsigned count)

    enum:
        IORING_SETUP_CQSIZE
        IORING_SETUP_R_DISABLED
        IORING_SETUP_SUBMIT_ALL
        IORING_SETUP_COOP_TASKRUN
        IORING_SETUP_TASKRUN_FLAG
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_DEFER_TASKRUN
        IORING_FEAT_NODROP
        IORING_FEAT_FAST_POLL
        IORING_FEAT_EXT_ARG
        IORING_OP_POLL_ADD
        IORING_OP_POLL_REMOVE
        IORING_OP_ASYNC_CANCEL
        IORING_OP_RECV
        IORING_OP_SEND
        IORING_RECVSEND_POLL_FIRST
        IOSQE_BUFFER_SELECT
        IORING_POLL_UPDATE_EVENTS
        IORING_ASYNC_CANCEL_ALL
        IORING_ASYNC_CANCEL_ANY
        IORING_RESTRICTION_SQE_FLAGS_ALLOWED
        IORING_RESTRICTION_SQE_OP
        IORING_CQE_F_BUFFER
        IORING_CQE_F_MORE
        IORING_CQE_BUFFER_SHIFT
        IORING_SQ_CQ_OVERFLOW
        IORING_SQ_TASKRUN
