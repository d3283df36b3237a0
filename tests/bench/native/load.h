/* The load generator's two halves: `load.c` orders and measures, `load_wire.c` speaks. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "common.h"
#include "histogram.h"
#include "websocket.h"
#include <openssl/ssl.h>

enum { SIZE_MAX_MESSAGE = 16 << 20, STAMP = 8, PREFIX_MAX = HEAD_MAX + STAMP, SAMPLE = 64 };
enum { FIRST_READ = 8192, WORKSPACE = 256 * 1024, TEXT_MAX = 8192, BATCH = 256 };
static const uint64_t SECOND = 1000000000ull, MILLISECOND = 1000000ull;

enum role { CLIENT, SERVER, RAW, LISTENER, COMMANDS };
enum state { CONNECTING, SHAKING, HANDSHAKE, OPEN, CLOSING, DEAD };
enum tls { NO_TLS, FULL, RESUMED };

struct conn {
    int fd;
    SSL *ssl;                          /* CLIENT: where it speaks TLS */
    uint32_t id, sequence;
    enum role role;
    enum state state;
    bool in_flight, close_sent, sampled;
    uint32_t out_at, out_size;         /* place in the frame under way; size 0: none is */
    uint8_t prefix_size, control_size; /* control: a frame that waits for the frame boundary */
    uint8_t prefix[PREFIX_MAX], control[HEAD_MAX + CONTROL_MAX];
    uint8_t head_have, head[HEAD_MAX]; /* of the frame that comes in */
    bool in_frame;
    uint64_t left, message_at;         /* payload to come in the frame; had of the message */
    uint32_t mask_at;
    uint8_t mask[4], stamp[STAMP];
    uint8_t control_in_have, control_in[CONTROL_MAX];
    uint64_t sent_at;
    char *text;                        /* the handshake as far as it came */
    size_t text_size;
    uint8_t *stash;                    /* RAW: bytes that the socket did not take */
    size_t stash_size, stash_at;
    uint32_t place;                    /* in `clients` */
    struct conn *next_dead;
};

enum job_kind { NO_JOB, OPEN_JOB, RUN_JOB, CYCLE_JOB, SHAKE_JOB, CLOSE_JOB };

struct job {
    enum job_kind kind;
    int port, concurrency;
    uint32_t target, done, started;
    uint32_t in_flight;
    bool measuring, stopping, settling;
    uint64_t begun, measure_at, stop_at, settled_at, limit_at;
    uint64_t messages_wanted, messages, window_messages, checked;
    uint64_t window_begin, window_end, cpu_begin, cpu_end, own_begin, own_end;
    uint64_t waited_begin, waited_end, own_waited_begin, own_waited_end;
};

/* Kept by `load.c`. */
extern struct job job;
extern uint64_t now;                 /* CLOCK_MONOTONIC, read once a batch and at each echo */
extern struct histogram latencies;
extern uint64_t errors;              /* in the command under way */

uint64_t clock_now(clockid_t clock);
__attribute__((format(printf, 1, 2))) void note_error(const char *format, ...);

/* Kept by `load_wire.c`. */
extern int epoll_fd;
extern struct conn **clients;
extern uint32_t client_count, servers_open;
extern struct conn *graveyard;       /* freed after the batch, which may mention them again */
extern char subprotocol[64];         /* what the next handshakes ask for; "" for nothing */

extern enum tls tls;                 /* how clients begin that connect from here on */

void prepare_wire(void);
void forget_ticket(void);
void make_frames(size_t size);
struct conn *watch(int fd, enum role role, enum state state);
void bury(struct conn *conn);
void connect_client(void);
void ask(struct conn *conn);         /* send the next message */
void say_goodbye(struct conn *conn);
void accept_all(struct conn *listener);
void on_event(struct conn *conn, uint32_t what);

#endif
