/* A floor: bytes from one socket to the other by splice(2), never in user space.
 *
 *     floor_splice LISTEN_PORT UPSTREAM_PORT
 *
 * Pipes of 256 KiB (smaller ones cost up to twice as much at 1 MiB), taken from a pool while
 * they hold something. An unprivileged user gets 256 of them (fs.pipe-user-pages-soft).
 *
 * Level-triggered: the number of bytes that splice(2) moved does not say whether the socket is
 * empty, since a pipe has slots, not bytes, so that an edge would cost one more call a message.
 */
#include "common.h"
#include <sys/epoll.h>

enum { PIPE = 256 * 1024, BATCH = 256, POOL = 1024 };

struct tube {
    int in, out;
    size_t held;
};

struct leg {
    int fd;
    uint32_t events;       /* as registered */
    bool finished, dead;
    struct leg *other;
    struct leg *next_dead;
    struct tube *tube;     /* holds bytes for this leg; NULL: none do */
};

static int epoll_fd;
static struct leg *graveyard;
static struct tube *pool[POOL];
static int pooled;

static struct tube *take_tube(void) {
    if (pooled) return pool[--pooled];
    struct tube *tube = grab(sizeof *tube);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) die("pipe2");
    if (fcntl(ends[1], F_SETPIPE_SZ, PIPE) < 0) fprintf(stderr, "pipes stay small\n");
    tube->out = ends[0];
    tube->in = ends[1];
    return tube;
}

/* A pipe goes back empty, or is closed: what it holds must not reach a stranger. */
static void give_tube(struct tube *tube) {
    if (tube->held == 0 && pooled < POOL) {
        pool[pooled++] = tube;
        return;
    }
    close(tube->in);
    close(tube->out);
    free(tube);
}

static void bury(struct leg *leg) {
    if (leg->dead) return;
    close(leg->fd);
    if (leg->tube) give_tube(leg->tube);
    leg->tube = NULL;
    leg->dead = true;
    leg->next_dead = graveyard;
    graveyard = leg;
}

static void drop(struct leg *leg) {
    bury(leg->other);
    bury(leg);
}

static void want(struct leg *leg, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = leg};
    if (leg->dead || leg->events == events) return;
    leg->events = events;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, leg->fd, &event);
}

/* What each leg waits for follows from the pipes and the ends that were read. */
static void rewatch(struct leg *leg) {
    uint32_t events = 0;
    if (!leg->finished && !leg->other->tube) events |= EPOLLIN;
    if (leg->tube) events |= EPOLLOUT;
    want(leg, events);
}

static bool drain(struct leg *to) {
    struct tube *tube = to->tube;
    while (tube->held) {
        ssize_t put = splice(tube->out, NULL, to->fd, NULL, tube->held,
                             SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (put < 0 && errno == EAGAIN) return true;
        if (put <= 0) return false;
        tube->held -= (size_t)put;
    }
    to->tube = NULL;
    give_tube(tube);
    return true;
}

static void pump(struct leg *from) {
    struct leg *to = from->other;
    if (from->finished || to->tube) return;
    struct tube *tube = take_tube();
    ssize_t got = splice(from->fd, NULL, tube->in, NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (got <= 0) {
        give_tube(tube);
        if (got < 0 && errno == EAGAIN) return;
        if (got < 0 || to->finished) {
            drop(from);
            return;
        }
        from->finished = true;
        shutdown(to->fd, SHUT_WR);
        rewatch(from);
        return;
    }
    tube->held = (size_t)got;
    to->tube = tube;
    if (!drain(to)) {
        drop(from);
        return;
    }
    if (to->tube) {
        rewatch(from);
        rewatch(to);
    }
}

static void flush(struct leg *leg) {
    if (!drain(leg)) {
        drop(leg);
        return;
    }
    if (!leg->tube) {
        rewatch(leg);
        rewatch(leg->other);
    }
}

static struct leg *watch(int fd) {
    struct leg *leg = grab(sizeof *leg);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = leg};
    leg->fd = fd;
    leg->events = EPOLLIN;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
    return leg;
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
        struct leg *one = watch(client), *two = watch(upstream);
        one->other = two;
        two->other = one;
    }
}

int main(int count, char **arguments) {
    struct epoll_event events[BATCH], listening = {.events = EPOLLIN};
    if (count != 3) die("usage: floor_splice LISTEN_PORT UPSTREAM_PORT");
    prepare_process();
    int listener = listen_on(port_argument(arguments[1]));
    int upstream_port = port_argument(arguments[2]);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &listening); /* data.ptr NULL is the listener */
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, BATCH, -1);
        for (int i = 0; i < ready; i++) {
            struct leg *leg = events[i].data.ptr;
            uint32_t what = events[i].events;
            if (!leg) {
                accept_all(listener, upstream_port);
                continue;
            }
            if (!leg->dead && leg->tube && (what & EPOLLOUT)) flush(leg);
            if (!leg->dead && (what & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
                /* A lost leg that is finished or blocked would be reported for ever. */
                if ((what & (EPOLLHUP | EPOLLERR)) && (leg->finished || leg->other->tube))
                    drop(leg);
                else
                    pump(leg);
            }
        }
        while (graveyard) {
            struct leg *leg = graveyard;
            graveyard = leg->next_dead;
            free(leg);
        }
    }
}
