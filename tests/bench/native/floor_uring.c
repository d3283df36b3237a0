/* A floor: bytes from one socket to the other by io_uring completions.
 *
 *     floor_uring LISTEN_PORT UPSTREAM_PORT
 *
 * One-shot receives with POLL_FIRST from a ring of buffers, one send in flight a socket, sent
 * from the buffer that was received into, and the next receive of a link behind its send.
 *
 * Facts: IORING_SETUP_DEFER_TASKRUN needs Linux 6.1; a buffer is given back if and only if the
 * completion has IORING_CQE_F_BUFFER; with an empty buffer ring a receive ends with ENOBUFS and
 * must not be armed again before a buffer is back; a descriptor is closed only when no operation
 * on it is owed a completion.
 */
#include "common.h"
#include <liburing.h>
#include <poll.h>
#include <sys/mman.h>

enum { BUFFERS = 128, BUFFER = 64 * 1024, GROUP = 1, SQ = 512, CQ = 8192 };
enum { RECEIVE = 0, SEND = 1, OPERATIONS = 3 }; /* in the low bits of user_data */

struct pair;
struct leg {
    int fd;
    bool finished;
    unsigned buffer;         /* being sent to the other leg */
    struct leg *other;
    struct leg *next_hungry; /* waits for a buffer */
    struct pair *pair;
};
struct pair {
    struct leg legs[2];
    int owed;                /* completions that are still to come */
    bool dying;
};

static struct io_uring ring;
static struct io_uring_buf_ring *buffer_ring;
static uint8_t *memory;
static struct leg *hungry;

static struct io_uring_sqe *entry(void) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    if (!sqe) {
        io_uring_submit(&ring);
        sqe = io_uring_get_sqe(&ring);
    }
    if (!sqe) die("the submission queue stays full");
    return sqe;
}

static uint8_t *buffer_at(unsigned number) {
    return memory + (size_t)number * BUFFER;
}

static void arm(struct leg *leg) {
    struct io_uring_sqe *sqe = entry();
    io_uring_prep_recv(sqe, leg->fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    sqe->buf_group = GROUP;
    io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)leg | RECEIVE);
    leg->pair->owed++;
}

static void settle(struct pair *pair) {
    if (!pair->dying || pair->owed) return;
    close(pair->legs[0].fd);
    close(pair->legs[1].fd);
    free(pair);
}

static void give_buffer(unsigned number) {
    io_uring_buf_ring_add(buffer_ring, buffer_at(number), BUFFER, (unsigned short)number,
                          io_uring_buf_ring_mask(BUFFERS), 0);
    io_uring_buf_ring_advance(buffer_ring, 1);
    while (hungry) {
        struct leg *leg = hungry;
        bool dying = leg->pair->dying;
        hungry = leg->next_hungry;
        leg->pair->owed--; /* the debt of the waiting itself */
        if (!dying) {
            arm(leg);
            break;
        }
        settle(leg->pair);
    }
}

/* shutdown(2) completes what is armed; close(2) would not. */
static void drop(struct pair *pair) {
    if (pair->dying) return;
    pair->dying = true;
    shutdown(pair->legs[0].fd, SHUT_RDWR);
    shutdown(pair->legs[1].fd, SHUT_RDWR);
}

static void on_received(struct leg *leg, int result, uint32_t flags) {
    struct leg *to = leg->other;
    bool has_buffer = flags & IORING_CQE_F_BUFFER;
    unsigned buffer = flags >> IORING_CQE_BUFFER_SHIFT;
    if (result > 0 && !leg->pair->dying) {
        struct io_uring_sqe *sqe = entry();
        leg->buffer = buffer;
        io_uring_prep_send(sqe, to->fd, buffer_at(buffer), (size_t)result,
                           MSG_WAITALL | MSG_NOSIGNAL);
        io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)leg | SEND);
        leg->pair->owed++;
        return;
    }
    if (has_buffer) give_buffer(buffer);
    if (result == -ENOBUFS && !leg->pair->dying) {
        leg->next_hungry = hungry;
        hungry = leg;
        leg->pair->owed++;
    } else if (result == 0 && !leg->pair->dying) {
        leg->finished = true;
        if (to->finished)
            drop(leg->pair);
        else
            shutdown(to->fd, SHUT_WR);
    } else if (result < 0) {
        drop(leg->pair);
    }
}

static void on_sent(struct leg *leg, int result) {
    give_buffer(leg->buffer);
    if (result <= 0)
        drop(leg->pair);
    else if (!leg->pair->dying)
        arm(leg);
}

static void accept_all(int listener, int upstream_port) {
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0) return;
        int upstream = connect_to(upstream_port);
        if (upstream < 0) {
            close(client);
            continue;
        }
        no_delay(client);
        struct pair *pair = grab(sizeof *pair);
        pair->legs[0] = (struct leg){.fd = client, .other = &pair->legs[1], .pair = pair};
        pair->legs[1] = (struct leg){.fd = upstream, .other = &pair->legs[0], .pair = pair};
        arm(&pair->legs[0]);
        arm(&pair->legs[1]);
    }
}

static void watch_listener(int listener) {
    struct io_uring_sqe *sqe = entry();
    io_uring_prep_poll_add(sqe, listener, POLLIN);
    io_uring_sqe_set_data64(sqe, 0);
}

/* By hand: io_uring_setup_buf_ring() came with liburing 2.4. */
static void set_up(void) {
    struct io_uring_params params = {0};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                   IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE;
    params.cq_entries = CQ;
    int result = io_uring_queue_init_params(SQ, &ring, &params);
    if (result < 0) {
        errno = -result;
        die("no ring");
    }
    size_t size = BUFFERS * sizeof(struct io_uring_buf);
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory = mmap(NULL, (size_t)BUFFERS * BUFFER, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED || memory == MAP_FAILED) die("mmap");
    buffer_ring = place;
    struct io_uring_buf_reg reg = {
        .ring_addr = (uint64_t)(uintptr_t)place, .ring_entries = BUFFERS, .bgid = GROUP};
    result = io_uring_register_buf_ring(&ring, &reg, 0);
    if (result < 0) {
        errno = -result;
        die("no buffer ring");
    }
    io_uring_buf_ring_init(buffer_ring);
    for (unsigned i = 0; i < BUFFERS; i++) give_buffer(i);
}

int main(int count, char **arguments) {
    if (count != 3) die("usage: floor_uring LISTEN_PORT UPSTREAM_PORT");
    prepare_process();
    set_up();
    int listener = listen_on(port_argument(arguments[1]));
    int upstream_port = port_argument(arguments[2]);
    watch_listener(listener);
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        int result = io_uring_submit_and_wait(&ring, 1);
        if (result < 0 && result != -EINTR) {
            errno = -result;
            die("submit_and_wait");
        }
        io_uring_for_each_cqe(&ring, head, cqe) {
            struct leg *leg = (struct leg *)(uintptr_t)(cqe->user_data & ~(uint64_t)OPERATIONS);
            seen++;
            if (!leg) {
                accept_all(listener, upstream_port);
                watch_listener(listener);
                continue;
            }
            struct pair *pair = leg->pair;
            if ((cqe->user_data & OPERATIONS) == SEND)
                on_sent(leg, cqe->res);
            else
                on_received(leg, cqe->res, cqe->flags);
            pair->owed--;
            settle(pair);
        }
        io_uring_cq_advance(&ring, seen);
    }
}
