/* The load's connections: handshakes, frames, and the checks that make a message count.
 *
 * What a connection does follows from its role. A CLIENT sends a message, checks the echo and
 * sends the next; a SERVER speaks RFC 6455 and echoes each message whole; a RAW server echoes
 * bytes as they come. Control frames are answered by both ends, between two frames. A CLIENT may
 * speak TLS; `get` and `put` are then OpenSSL's, and what waits is told as EAGAIN.
 */
#include "load.h"
#include <openssl/err.h>
#include <strings.h>
#include <sys/epoll.h>

int epoll_fd;
struct conn **clients;
uint32_t client_count, servers_open;
struct conn *graveyard;

char subprotocol[64];
enum tls tls;
static SSL_CTX *context;
static SSL_SESSION *ticket;              /* the newest, for who resumes */
static uint32_t client_room, next_id;
static uint8_t workspace[WORKSPACE];
static uint8_t *pattern, *client_frame, *server_frame;
static size_t message_size, client_size, server_size;
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};
static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static char expected_accept[ACCEPT_SIZE + 1];

static int keep_ticket(SSL *ssl, SSL_SESSION *session);

void prepare_wire(void) {
    uint32_t random = 12345;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    pattern = grab(SIZE_MAX_MESSAGE);
    for (size_t i = 0; i < SIZE_MAX_MESSAGE; i++) {
        random = random * 1664525 + 1013904223;
        pattern[i] = (uint8_t)(random >> 24);
    }
    accept_key(KEY, expected_accept);
    context = SSL_CTX_new(TLS_client_method());
    if (!context) die("no TLS");
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_ticket);
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set1_groups_list(context, "X25519");
}

/* --- TLS ---------------------------------------------------------------------------------- */

static int keep_ticket(SSL *ssl, SSL_SESSION *session) {
    (void)ssl;
    SSL_SESSION_free(ticket);
    ticket = session;
    return 1;
}

void forget_ticket(void) {
    SSL_SESSION_free(ticket);
    ticket = NULL;
}

/* What OpenSSL could not do now, or ever, as a system call would say it. */
static ssize_t failure(SSL *ssl, int result) {
    int error = SSL_get_error(ssl, result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        errno = EAGAIN;
    else if (error == SSL_ERROR_ZERO_RETURN)
        return 0;
    else if (error != SSL_ERROR_SYSCALL || !errno)
        errno = EPROTO;
    ERR_clear_error();
    return -1;
}

static ssize_t get(struct conn *conn, void *into, size_t size, int flags) {
    if (!conn->ssl) return recv(conn->fd, into, size, flags);
    if (flags & MSG_TRUNC) {
        into = workspace;
        if (size > WORKSPACE) size = WORKSPACE;
    }
    int got = SSL_read(conn->ssl, into, (int)size);
    return got > 0 ? got : failure(conn->ssl, got);
}

static ssize_t put(struct conn *conn, const void *data, size_t size) {
    if (!conn->ssl) return send(conn->fd, data, size, MSG_NOSIGNAL);
    int put = SSL_write(conn->ssl, data, (int)size);
    return put > 0 ? put : failure(conn->ssl, put);
}

/* One frame a size for each role; only its head and stamp change from message to message. */
void make_frames(size_t size) {
    free(client_frame);
    free(server_frame);
    message_size = size;
    client_frame = grab(size + HEAD_MAX);
    server_frame = grab(size + HEAD_MAX);
    size_t masked = put_head(client_frame, BINARY, size, MASK);
    size_t plain = put_head(server_frame, BINARY, size, NULL);
    for (size_t i = 0; i < size; i++) client_frame[masked + i] = pattern[i] ^ MASK[i & 3];
    memcpy(server_frame + plain, pattern, size);
    client_size = masked + size;
    server_size = plain + size;
}

/* --- Connections ------------------------------------------------------------------------- */

struct conn *watch(int fd, enum role role, enum state state) {
    struct conn *conn = grab(sizeof *conn);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    if (role == LISTENER || role == COMMANDS) event.events = EPOLLIN;
    *conn = (struct conn){.fd = fd, .role = role, .state = state, .id = next_id++};
    event.data.ptr = conn;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
    return conn;
}

void bury(struct conn *conn) {
    if (conn->state == DEAD) return;
    if (conn->in_flight && job.kind == RUN_JOB) job.in_flight--;
    if (conn->role == CLIENT) {
        struct conn *last = clients[--client_count];
        clients[conn->place] = last;
        last->place = conn->place;
    } else {
        servers_open--;
    }
    SSL_free(conn->ssl);
    close(conn->fd);
    free(conn->text);
    free(conn->stash);
    conn->state = DEAD;
    conn->next_dead = graveyard;
    graveyard = conn;
}

/* Its end was not ordered: an error of the measurement, whoever caused it. */
static void fail(struct conn *conn, const char *why) {
    static const char *const names[] = {"client", "server", "raw server"};
    if (conn->state == DEAD) return;
    note_error("%s %u, message %u: %s", names[conn->role], conn->id, conn->sequence, why);
    bury(conn);
}

void connect_client(void) {
    struct sockaddr_in address = loopback(job.port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    job.started++;
    if (fd < 0) die("socket");
    no_delay(fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        note_error("connect: %s", strerror(errno));
        close(fd);
        return;
    }
    struct conn *conn = watch(fd, CLIENT, CONNECTING);
    if (client_count == client_room) {
        client_room = client_room ? 2 * client_room : 1024;
        clients = realloc(clients, client_room * sizeof *clients);
        if (!clients) die("no memory");
    }
    conn->place = client_count;
    clients[client_count++] = conn;
}

static bool say(struct conn *conn, const void *data, size_t size) {
    if (put(conn, data, size) == (ssize_t)size) return true;
    fail(conn, "a handshake or control frame could not be sent");
    return false;
}

/* --- Sending ------------------------------------------------------------------------------ */

/* Continues the frame under way; behind it, a control frame that waits. */
static void pump(struct conn *conn) {
    uint8_t *frame = conn->role == CLIENT ? client_frame : server_frame;
    while (conn->out_size) {
        if (conn->out_at < conn->prefix_size) memcpy(frame, conn->prefix, conn->prefix_size);
        ssize_t sent = put(conn, frame + conn->out_at, conn->out_size - conn->out_at);
        if (sent < 0) {
            if (errno != EAGAIN) fail(conn, strerror(errno));
            return;
        }
        conn->out_at += (uint32_t)sent;
        if (conn->out_at == conn->out_size) conn->out_size = 0;
    }
    if (conn->control_size) {
        size_t size = conn->control_size;
        conn->control_size = 0;
        say(conn, conn->control, size);
    }
}

/* The stamp tells connection and sequence number; it is the message's first eight bytes. */
static void send_message(struct conn *conn, const uint8_t stamp[STAMP]) {
    bool client = conn->role == CLIENT;
    size_t head = put_head(conn->prefix, BINARY, message_size, client ? MASK : NULL);
    for (size_t i = 0; i < STAMP; i++)
        conn->prefix[head + i] = stamp[i] ^ (client ? MASK[i & 3] : 0);
    conn->prefix_size = (uint8_t)(head + STAMP);
    conn->out_at = 0;
    conn->out_size = (uint32_t)(client ? client_size : server_size);
    pump(conn);
}

void ask(struct conn *conn) {
    uint8_t stamp[STAMP];
    conn->sequence++;
    memcpy(stamp, &conn->id, 4);
    memcpy(stamp + 4, &conn->sequence, 4);
    conn->sent_at = now;
    if (!conn->in_flight) job.in_flight++;
    conn->in_flight = true;
    send_message(conn, stamp);
}

static void send_control(struct conn *conn, int opcode, const uint8_t *data, size_t size) {
    bool client = conn->role == CLIENT;
    size_t head = put_head(conn->control, opcode, size, client ? MASK : NULL);
    for (size_t i = 0; i < size; i++)
        conn->control[head + i] = data[i] ^ (client ? MASK[i & 3] : 0);
    conn->control_size = (uint8_t)(head + size);
    if (opcode == CLOSE) conn->close_sent = true;
    pump(conn);
}

void say_goodbye(struct conn *conn) {
    static const uint8_t normal[2] = {0x03, 0xe8};
    if (conn->state == OPEN && !conn->close_sent) {
        conn->state = CLOSING;
        send_control(conn, CLOSE, normal, 2);
    }
}

/* --- Receiving ---------------------------------------------------------------------------- */

static void on_message(struct conn *conn) {
    uint32_t id, sequence;
    memcpy(&id, conn->stamp, 4);
    memcpy(&sequence, conn->stamp + 4, 4);
    conn->message_at = 0;
    if (conn->role == SERVER) {
        conn->sequence = sequence;
        if (conn->out_size)
            fail(conn, "a second message before the first was echoed");
        else
            send_message(conn, conn->stamp);
        return;
    }
    if (!conn->in_flight || id != conn->id || sequence != conn->sequence) {
        fail(conn, "the echo is another message");
        return;
    }
    if (job.kind != RUN_JOB) { /* the run that sent it has failed */
        conn->in_flight = false;
        return;
    }
    now = clock_now(CLOCK_MONOTONIC);
    job.messages++;
    job.checked += conn->sampled;
    if (job.measuring) {
        job.window_messages++;
        histogram_add(&latencies, now - conn->sent_at);
    }
    if (job.messages_wanted && job.messages + job.in_flight > job.messages_wanted)
        job.stopping = true;
    if (job.stopping) {
        conn->in_flight = false;
        job.in_flight--;
    } else {
        ask(conn);
    }
}

/* Payload in user space: the stamp is kept, and in a sampled message every byte is compared. */
static void take_payload(struct conn *conn, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i++) {
        uint64_t at = conn->message_at + i;
        uint8_t byte = data[i] ^ (conn->head[1] & 0x80 ? conn->mask[(conn->mask_at + i) & 3] : 0);
        if (at < STAMP) {
            conn->stamp[at] = byte;
            if (at == STAMP - 1) {
                uint32_t id, sequence;
                memcpy(&id, conn->stamp, 4);
                memcpy(&sequence, conn->stamp + 4, 4);
                conn->sampled = (id + sequence) % SAMPLE == 0;
            }
        } else if (!conn->sampled) {
            break;
        } else if (at < message_size && byte != pattern[at]) {
            fail(conn, "a byte has changed on the way");
            return;
        }
    }
    conn->mask_at += (uint32_t)size;
}

static void on_control(struct conn *conn) {
    int opcode = conn->head[0] & 15;
    if (opcode == PING) {
        send_control(conn, PONG, conn->control_in, conn->control_in_have);
    } else if (opcode == CLOSE) {
        if (!conn->close_sent) send_control(conn, CLOSE, conn->control_in, conn->control_in_have);
        if (conn->state == OPEN && conn->role == CLIENT) fail(conn, "closed by the other side");
        if (conn->state != DEAD) {
            /* The server closes first (RFC 6455 7.1.1). The client finishes its side as soon as
             * it has the answer, since some proxies linger for a second waiting for that. */
            conn->state = CLOSING;
            if (conn->ssl) SSL_shutdown(conn->ssl);
            shutdown(conn->fd, SHUT_WR);
        }
    }
}

/* The frame's head is whole. */
static void begin_frame(struct conn *conn) {
    size_t size = conn->head_have;
    bool masked = conn->head[1] & 0x80;
    conn->left = payload_size(conn->head);
    conn->in_frame = true;
    conn->mask_at = 0;
    conn->control_in_have = 0;
    if (masked) memcpy(conn->mask, conn->head + size - 4, 4);
    if (masked != (conn->role == SERVER))
        fail(conn, "masked the wrong way (RFC 6455 5.1)");
    else if (conn->head[0] & 0x70)
        fail(conn, "reserved bits");
    else if (!(conn->head[0] & 8) && conn->message_at + conn->left > message_size)
        fail(conn, "a message that is too long");
    else if ((conn->head[0] & 8) && conn->left > CONTROL_MAX)
        fail(conn, "a control frame that is too long");
}

static void end_frame(struct conn *conn) {
    bool control = conn->head[0] & 8;
    conn->in_frame = false;
    conn->head_have = 0;
    if (control)
        on_control(conn);
    else if (conn->message_at == message_size)
        on_message(conn);
}

static void advance(struct conn *conn, size_t size) {
    conn->left -= size;
    if (!(conn->head[0] & 8)) conn->message_at += size;
    if (conn->left == 0) end_frame(conn);
}

static void feed(struct conn *conn, const uint8_t *data, size_t size) {
    while (size && conn->state != DEAD) {
        if (!conn->in_frame) {
            conn->head[conn->head_have++] = *data++;
            size--;
            if (conn->head_have < 2 || conn->head_have < head_size(conn->head)) continue;
            begin_frame(conn);
            if (conn->state != DEAD && conn->left == 0) end_frame(conn);
            continue;
        }
        size_t part = size < conn->left ? size : (size_t)conn->left;
        if (conn->head[0] & 8) {
            for (size_t i = 0; i < part; i++)
                conn->control_in[conn->control_in_have++] =
                    data[i] ^ (conn->head[1] & 0x80 ? conn->mask[conn->mask_at++ & 3] : 0);
        } else {
            take_payload(conn, data, part);
        }
        if (conn->state != DEAD) advance(conn, part);
        data += part;
        size -= part;
    }
}

static void on_open(struct conn *conn) {
    conn->state = OPEN;
    if (conn->role != CLIENT) return;
    if (job.kind == CYCLE_JOB)
        say_goodbye(conn);
    else
        job.done++;
    if (job.kind == OPEN_JOB && job.started < job.target) connect_client();
}

/* The value of a field in a head that ends with an empty line; NULL if it is not there. */
static const char *field(const char *text, const char *name) {
    for (const char *line = strstr(text, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        size_t size = strlen(name);
        if (strncasecmp(line + 2, name, size) == 0 && line[2 + size] == ':')
            return line + 3 + size + strspn(line + 3 + size, " ");
    }
    return NULL;
}

static void answer(struct conn *conn) {
    const char *key = field(conn->text, "sec-websocket-key");
    char accept[ACCEPT_SIZE + 1], text[256];
    if (!key || strcspn(key, "\r") != 24) {
        fail(conn, "a request without a key");
        return;
    }
    accept_key(key, accept);
    int size = snprintf(text, sizeof text,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept);
    if (say(conn, text, (size_t)size)) on_open(conn);
}

static void check_answer(struct conn *conn) {
    const char *accept = field(conn->text, "sec-websocket-accept");
    if (strncmp(conn->text, "HTTP/1.1 101", 12) != 0) {
        conn->text[strcspn(conn->text, "\r\n")] = 0;
        note_error("the proxy answered: %s", conn->text);
        bury(conn);
    } else if (!accept || strncmp(accept, expected_accept, ACCEPT_SIZE) != 0) {
        fail(conn, "a wrong accept key");
    } else {
        on_open(conn);
    }
}

static void request(struct conn *conn) {
    char text[512];
    bool named = subprotocol[0];
    int size = snprintf(text, sizeof text,
                        "GET /bench HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: %s\r\n"
                        "Sec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                        job.port, KEY, named ? "Sec-WebSocket-Protocol: " : "", subprotocol,
                        named ? "\r\n" : "");
    conn->state = HANDSHAKE;
    say(conn, text, (size_t)size);
}

/* TLS, then the request; where handshakes are what is measured, close_notify and FIN. */
static void shake(struct conn *conn) {
    int done = SSL_do_handshake(conn->ssl);
    if (done != 1) {
        if (failure(conn->ssl, done) < 0 && errno == EAGAIN) return;
        fail(conn, "the handshake of TLS failed");
        return;
    }
    if (tls == RESUMED && job.kind == SHAKE_JOB && !SSL_session_reused(conn->ssl)) {
        fail(conn, "the session was not resumed: open a connection first, for its ticket");
        return;
    }
    if (job.kind != SHAKE_JOB) {
        request(conn);
        return;
    }
    conn->state = CLOSING;
    SSL_shutdown(conn->ssl);
    shutdown(conn->fd, SHUT_WR);
}

static void begin_tls(struct conn *conn) {
    conn->ssl = SSL_new(context);
    if (!conn->ssl || SSL_set_fd(conn->ssl, conn->fd) != 1) die("no memory");
    SSL_set_connect_state(conn->ssl);
    SSL_set_tlsext_host_name(conn->ssl, "bench.example");
    if (tls == RESUMED && ticket) { /* a copy: what a connection ends with is written into it */
        SSL_SESSION *own = SSL_SESSION_dup(ticket);
        if (!own || SSL_set_session(conn->ssl, own) != 1) die("no memory");
        SSL_SESSION_free(own);
    }
    conn->state = SHAKING;
    shake(conn);
}

static void take_text(struct conn *conn, const uint8_t *data, size_t size) {
    if (!conn->text) conn->text = grab(TEXT_MAX + 1);
    if (conn->text_size + size > TEXT_MAX) {
        fail(conn, "a head that is too long");
        return;
    }
    memcpy(conn->text + conn->text_size, data, size);
    conn->text_size += size;
    conn->text[conn->text_size] = 0;
    char *end = strstr(conn->text, "\r\n\r\n");
    if (!end) return;
    size_t rest = conn->text_size - (size_t)(end + 4 - conn->text);
    if (conn->role == CLIENT)
        check_answer(conn);
    else
        answer(conn);
    if (conn->state == DEAD) return;
    if (rest) feed(conn, data + size - rest, rest);
    free(conn->text);
    conn->text = NULL;
}

static void on_end(struct conn *conn, int error) {
    if (conn->role == CLIENT) {
        if (conn->state != CLOSING) {
            fail(conn, error ? strerror(error) : "the connection ended");
            return;
        }
        job.done++;
        bury(conn);
        if ((job.kind == CYCLE_JOB || job.kind == SHAKE_JOB) && job.started < job.target)
            connect_client();
        return;
    }
    if (error && conn->state == OPEN && job.kind == RUN_JOB)
        fail(conn, strerror(error));
    else
        bury(conn);
}

/* A stream service without frames: what comes goes back. */
static void echo(struct conn *conn, bool to_the_end) {
    for (;;) {
        if (conn->stash) {
            ssize_t put = send(conn->fd, conn->stash + conn->stash_at,
                               conn->stash_size - conn->stash_at, MSG_NOSIGNAL);
            if (put < 0 && errno == EAGAIN) return;
            if (put < 0) {
                on_end(conn, errno);
                return;
            }
            conn->stash_at += (size_t)put;
            if (conn->stash_at < conn->stash_size) continue;
            free(conn->stash);
            conn->stash = NULL;
        }
        ssize_t got = recv(conn->fd, workspace, WORKSPACE, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            on_end(conn, got < 0 ? errno : 0);
            return;
        }
        ssize_t put = send(conn->fd, workspace, (size_t)got, MSG_NOSIGNAL);
        if (put < 0) put = 0;
        if (put < got) {
            conn->stash_size = (size_t)(got - put);
            conn->stash_at = 0;
            conn->stash = grab(conn->stash_size);
            memcpy(conn->stash, workspace + put, conn->stash_size);
        } else if (got < WORKSPACE && !to_the_end) {
            return;
        }
    }
}

static void read_all(struct conn *conn, bool to_the_end) {
    while (conn->state != DEAD) {
        bool drop = conn->in_frame && !(conn->head[0] & 8) && !conn->sampled &&
                    conn->message_at >= STAMP;
        size_t wanted = drop             ? (size_t)conn->left
                        : conn->in_frame ? WORKSPACE
                                         : FIRST_READ;
        ssize_t got = get(conn, workspace, wanted, drop ? MSG_TRUNC : 0);
        if (got <= 0) {
            if (got == 0 || errno != EAGAIN) on_end(conn, got < 0 ? errno : 0);
            return;
        }
        if (job.kind == SHAKE_JOB)
            continue; /* some proxies answer that there was no request */
        if (drop)
            advance(conn, (size_t)got);
        else if (conn->state == HANDSHAKE)
            take_text(conn, workspace, (size_t)got);
        else
            feed(conn, workspace, (size_t)got);
        if ((size_t)got < wanted && !to_the_end && !conn->ssl) return;
    }
}

void accept_all(struct conn *listener) {
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno != EAGAIN && errno != ECONNABORTED) die("accept4");
            return;
        }
        no_delay(fd);
        servers_open++;
        if (listener->id == 0)
            watch(fd, SERVER, HANDSHAKE);
        else
            watch(fd, RAW, OPEN);
    }
}

void on_event(struct conn *conn, uint32_t what) {
    if (conn->state == CONNECTING && (what & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            fail(conn, strerror(error));
        else if (tls != NO_TLS)
            begin_tls(conn);
        else
            request(conn);
        return;
    }
    if (conn->state == SHAKING) {
        shake(conn);
        return;
    }
    if (conn->role == RAW) {
        echo(conn, conn->stash || (what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)));
        return;
    }
    if ((what & EPOLLOUT) && conn->out_size) pump(conn);
    if (conn->state != DEAD && (what & ~(uint32_t)EPOLLOUT))
        read_all(conn, what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
}

