/* A floor: bytes from one socket to the other through epoll and one hot buffer.
 *
 *     floor_epoll LISTEN_PORT UPSTREAM_PORT
 *
 * Every client gets an upstream connection of its own; nothing is parsed, limited or counted.
 * What a proxy costs above this is what it does besides moving bytes.
 *
 * Edge-triggered, registered once, so that there is no epoll_ctl(2) after the start. A receive
 * that is short has emptied the socket (the next arrival is a new edge), unless the event said
 * that a FIN or an error is behind it.
 */
#include "common.h"
#include <sys/epoll.h>

enum { HOT = 256 * 1024, BATCH = 256 };

struct leg {
    int fd;
    bool finished;         /* FIN was read from it and passed on */
    bool dead;             /* closed; freed after the batch, which may mention it again */
    struct leg *other;
    struct leg *next_dead;
    uint8_t *pending;      /* bytes for this leg that its socket did not take */
    size_t pending_size, pending_at;
};

static int epoll_fd;
static uint8_t hot[HOT];
static struct leg *graveyard;

static void bury(struct leg *leg) {
    if (leg->dead) return;
    close(leg->fd);
    free(leg->pending);
    leg->pending = NULL;
    leg->dead = true;
    leg->next_dead = graveyard;
    graveyard = leg;
}

static void drop(struct leg *leg) {
    bury(leg->other);
    bury(leg);
}

static void keep(struct leg *leg, const uint8_t *data, size_t size) {
    leg->pending = grab(size);
    leg->pending_size = size;
    leg->pending_at = 0;
    memcpy(leg->pending, data, size);
}

/* Everything that `from` has goes to its other leg, until one of them has enough. */
static void pump(struct leg *from, bool to_the_end) {
    struct leg *to = from->other;
    while (!from->dead && !from->finished && !to->pending) {
        ssize_t got = recv(from->fd, hot, HOT, 0);
        if (got < 0) {
            if (errno != EAGAIN) drop(from);
            return;
        }
        if (got == 0) {
            from->finished = true;
            if (to->finished)
                drop(from);
            else
                shutdown(to->fd, SHUT_WR);
            return;
        }
        ssize_t put = send(to->fd, hot, (size_t)got, MSG_NOSIGNAL);
        if (put < 0 && errno != EAGAIN) {
            drop(from);
            return;
        }
        if (put < got) {
            size_t done = put < 0 ? 0 : (size_t)put;
            keep(to, hot + done, (size_t)got - done);
            return;
        }
        if (got < HOT && !to_the_end) return;
    }
}

static void flush(struct leg *leg) {
    while (leg->pending) {
        ssize_t put = send(leg->fd, leg->pending + leg->pending_at,
                           leg->pending_size - leg->pending_at, MSG_NOSIGNAL);
        if (put < 0) {
            if (errno != EAGAIN) drop(leg);
            return;
        }
        leg->pending_at += (size_t)put;
        if (leg->pending_at == leg->pending_size) {
            free(leg->pending);
            leg->pending = NULL;
        }
    }
    pump(leg->other, true); /* its edge may have passed while it was not read */
}

static struct leg *watch(int fd) {
    struct leg *leg = grab(sizeof *leg);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    leg->fd = fd;
    event.data.ptr = leg;
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
    if (count != 3) die("usage: floor_epoll LISTEN_PORT UPSTREAM_PORT");
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
            if (!leg->dead && (what & EPOLLOUT) && leg->pending) flush(leg);
            if (!leg->dead && (what & ~(uint32_t)EPOLLOUT))
                pump(leg, what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
        }
        while (graveyard) {
            struct leg *leg = graveyard;
            graveyard = leg->next_dead;
            free(leg);
        }
    }
}
