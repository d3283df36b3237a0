/* The load: WebSocket clients, and the upstreams that answer them, in one process on one core.
 *
 * It reads commands on standard input and answers each with one line of JSON, after a first line
 * with the ports of its upstreams:
 *
 *     pids PID...                            the processes whose CPU time is meant from here on
 *     open PORT COUNT [SUBPROTOCOL]          open more WebSockets through the proxy at PORT
 *     run COUNT SIZE MILLISECONDS WARM-UP MESSAGES
 *                                            echo on the first COUNT of them, one message in
 *                                            flight each, for a time, or for MESSAGES if not 0
 *     cycle PORT COUNT CONCURRENCY           open and close with Close frames, COUNT times
 *     shake PORT COUNT CONCURRENCY           connect, TLS, and close without a request, COUNT times
 *     tls off|full|resumed                   how clients begin that connect from here on; what is
 *                                            resumed is the newest session since then
 *     close                                  close them all
 *     syscall                                what the cheapest system call costs
 *     quit
 *
 * Laws. It does as little as it can, so that the proxy is what is measured: frames are made once
 * a size and sent from one place, and payloads are dropped in the kernel (recv with MSG_TRUNC)
 * but for their first bytes, unless they came by TLS, which only clients speak, and without looking
 * whose certificate it is. Every message is checked for its size and for connection and
 * sequence number, and one of SAMPLE for every byte, at the upstream and again at the client.
 * Any mismatch or lost connection ends the command with an error: a number that comes out is the
 * number of messages that were right. CPU times are read from the processes' own clocks at both
 * ends of the measured window.
 *
 * Edge-triggered epoll; a receive that is short has emptied the socket unless the event said FIN.
 */
#include "load.h"
#include <sys/epoll.h>
#include <sys/syscall.h>

enum { PIDS_MAX = 512, OPENING_AT_ONCE = 32 };
static const uint64_t SETTLE = 100 * MILLISECOND; /* for what a proxy does after an open or close */

struct job job;
uint64_t now, errors;
struct histogram latencies;
static char first_error[256];
static pid_t pids[PIDS_MAX];
static int pid_count;

uint64_t clock_now(clockid_t clock) {
    struct timespec at;
    if (clock_gettime(clock, &at) < 0) return 0; /* a process that is gone */
    return (uint64_t)at.tv_sec * SECOND + (uint64_t)at.tv_nsec;
}

static uint64_t cpu_of_pids(void) {
    uint64_t sum = 0;
    for (int i = 0; i < pid_count; i++) {
        clockid_t clock;
        if (clock_getcpuclockid(pids[i], &clock) == 0) sum += clock_now(clock);
    }
    return sum;
}

/* Nanoseconds that the main thread was ready to run and did not: somebody else had the core. */
static uint64_t waited_of(pid_t pid) {
    char path[64];
    unsigned long long ran, waited = 0;
    snprintf(path, sizeof path, "/proc/%d/schedstat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%llu %llu", &ran, &waited) != 2) waited = 0;
    fclose(file);
    return waited;
}

static uint64_t waited_of_pids(void) {
    uint64_t sum = 0;
    for (int i = 0; i < pid_count; i++) sum += waited_of(pids[i]);
    return sum;
}

static void open_window(void) {
    job.waited_begin = waited_of_pids();
    job.own_waited_begin = waited_of(getpid());
    job.window_begin = clock_now(CLOCK_MONOTONIC);
    job.cpu_begin = cpu_of_pids();
    job.own_begin = clock_now(CLOCK_PROCESS_CPUTIME_ID);
}

static void close_window(void) {
    job.cpu_end = cpu_of_pids();
    job.own_end = clock_now(CLOCK_PROCESS_CPUTIME_ID);
    job.window_end = clock_now(CLOCK_MONOTONIC);
    job.waited_end = waited_of_pids();
    job.own_waited_end = waited_of(getpid());
    job.measuring = false;
}

__attribute__((format(printf, 1, 2))) void note_error(const char *format, ...) {
    va_list list;
    va_start(list, format);
    if (!errors++) vsnprintf(first_error, sizeof first_error, format, list);
    va_end(list);
}

/* --- Commands ------------------------------------------------------------------------------ */

static void begin(enum job_kind kind, uint64_t limit) {
    memset(&job, 0, sizeof job);
    job.kind = kind;
    now = clock_now(CLOCK_MONOTONIC);
    job.begun = now;
    job.limit_at = now + limit;
    open_window();
}

static void report(void) {
    char text[2 * sizeof first_error];
    size_t at = 0;
    for (const char *from = first_error; *from; from++) {
        if (*from == '"' || *from == '\\') text[at++] = '\\';
        text[at++] = *from < ' ' ? ' ' : *from;
    }
    text[at] = 0;
    printf("{\"done\": %u, \"seconds\": %.9f, \"cpu_ns\": %lld, \"load_cpu_ns\": %lld, "
           "\"waited_ns\": %lld, \"load_waited_ns\": %lld, \"errors\": %llu, \"error\": \"%s\"",
           job.done, (double)(job.window_end - job.window_begin) / 1e9,
           (long long)(job.cpu_end - job.cpu_begin), (long long)(job.own_end - job.own_begin),
           (long long)(job.waited_end - job.waited_begin),
           (long long)(job.own_waited_end - job.own_waited_begin),
           (unsigned long long)errors, text);
    if (job.kind == RUN_JOB)
        printf(", \"messages\": %llu, \"all_messages\": %llu, \"checked\": %llu, "
               "\"mean_ns\": %.0f, \"p50_ns\": %llu, \"p99_ns\": %llu, \"p999_ns\": %llu, "
               "\"max_ns\": %llu",
               (unsigned long long)job.window_messages, (unsigned long long)job.messages,
               (unsigned long long)job.checked,
               latencies.total ? (double)latencies.sum / (double)latencies.total : 0.0,
               (unsigned long long)histogram_at(&latencies, 0.5),
               (unsigned long long)histogram_at(&latencies, 0.99),
               (unsigned long long)histogram_at(&latencies, 0.999),
               (unsigned long long)latencies.longest);
    printf("}\n");
    fflush(stdout);
    job.kind = NO_JOB;
    errors = 0;
    first_error[0] = 0;
}

static void start_run(unsigned count, size_t size, uint64_t length, uint64_t warm_up,
                      uint64_t messages) {
    begin(RUN_JOB, length + warm_up + 20 * SECOND);
    if (size < STAMP || size > SIZE_MAX_MESSAGE) die("no such size: %zu", size);
    if (count > client_count) die("only %u connections are open", client_count);
    make_frames(size);
    histogram_clear(&latencies);
    job.messages_wanted = messages;
    job.measure_at = now + warm_up;
    job.stop_at = job.measure_at + length;
    job.measuring = warm_up == 0;
    for (unsigned i = 0; i < count && i < client_count; i++) {
        if (messages && i >= messages) break;
        ask(clients[i]);
    }
}

static void start_close(void) {
    begin(CLOSE_JOB, 3 * SECOND);
    for (uint32_t i = 0; i < client_count; i++) say_goodbye(clients[i]);
}

/* Whether the job under way is over, looked at after each batch of events. */
static void look_at_run(void) {
    if (!job.measuring && !job.stopping && !job.window_end && now >= job.measure_at) {
        open_window();
        job.measuring = true;
    }
    if (job.measuring && (job.stopping || now >= job.stop_at)) {
        job.stopping = true;
        if (!job.messages_wanted || !job.in_flight) close_window();
    }
    if (job.stopping && !job.in_flight && !job.measuring) report();
}

static void look_at_job(void) {
    now = clock_now(CLOCK_MONOTONIC);
    if (job.kind == NO_JOB) return;
    if (now >= job.limit_at && job.kind != CLOSE_JOB) note_error("no end within the time");
    if (errors && job.kind != CLOSE_JOB) {
        close_window();
        report();
    } else if (job.kind == RUN_JOB) {
        look_at_run();
    } else if (job.kind == CLOSE_JOB) {
        /* They were asked; some proxies let nobody go before their own time is up. */
        while (now >= job.limit_at && client_count) bury(clients[0]);
        if (client_count || (servers_open && now < job.limit_at)) return;
        close_window();
        report();
    } else if (job.settling) {
        if (now < job.settled_at) return;
        uint64_t end = job.settled_at - SETTLE;
        close_window();
        job.window_end = end;
        report();
    } else if (job.done >= job.target) {
        job.settling = true;
        job.settled_at = now + SETTLE;
    }
}

static void start_opening(enum job_kind kind, int port, uint32_t count, int concurrency) {
    begin(kind, 120 * SECOND);
    job.port = port;
    job.target = count;
    for (int i = 0; i < concurrency && job.started < count; i++) connect_client();
}

static void measure_system_call(void) {
    enum { CALLS = 200000 };
    double best = 1e9;
    for (int round = 0; round < 5; round++) {
        uint64_t begun = clock_now(CLOCK_MONOTONIC);
        for (int i = 0; i < CALLS; i++) syscall(SYS_getppid);
        double each = (double)(clock_now(CLOCK_MONOTONIC) - begun) / CALLS;
        if (each < best) best = each;
    }
    printf("{\"getppid_ns\": %.1f}\n", best);
    fflush(stdout);
}

static void set_pids(char *text) {
    pid_count = 0;
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) {
        if (pid_count == PIDS_MAX) die("too many processes");
        pids[pid_count++] = atoi(word);
    }
    printf("{\"pids\": %d}\n", pid_count);
    fflush(stdout);
}

static void set_tls(const char *word) {
    static const char *const words[] = {"off", "full", "resumed"};
    for (enum tls one = NO_TLS; one <= RESUMED; one++)
        if (strcmp(word, words[one]) == 0) {
            tls = one;
            forget_ticket();
            printf("{\"tls\": \"%s\"}\n", word);
            fflush(stdout);
            return;
        }
    die("not understood: tls %s", word);
}

static void obey(char *line) {
    unsigned count = 0, concurrency = 0;
    unsigned long long size = 0, length = 0, warm_up = 0, messages = 0;
    int port = 0;
    if (job.kind != NO_JOB) die("a command before the last one ended: %s", line);
    if (strcmp(line, "quit") == 0) exit(0);
    if (strncmp(line, "pids", 4) == 0) {
        set_pids(line + 4);
    } else if (strncmp(line, "tls ", 4) == 0) {
        set_tls(line + 4);
    } else if (strcmp(line, "syscall") == 0) {
        measure_system_call();
    } else if (strcmp(line, "close") == 0) {
        start_close();
    } else if (sscanf(line, "run %u %llu %llu %llu %llu", &count, &size, &length, &warm_up,
                      &messages) == 5) {
        start_run(count, size, length * MILLISECOND, warm_up * MILLISECOND, messages);
    } else if (sscanf(line, "cycle %d %u %u", &port, &count, &concurrency) == 3) {
        subprotocol[0] = 0;
        start_opening(CYCLE_JOB, port, count, (int)concurrency);
    } else if (sscanf(line, "shake %d %u %u", &port, &count, &concurrency) == 3) {
        start_opening(SHAKE_JOB, port, count, (int)concurrency);
    } else if (strncmp(line, "open ", 5) == 0) {
        subprotocol[0] = 0;
        if (sscanf(line, "open %d %u %63s", &port, &count, subprotocol) < 2)
            die("not understood: %s", line);
        start_opening(OPEN_JOB, port, count, OPENING_AT_ONCE);
    } else {
        die("not understood: %s", line);
    }
}

static void read_commands(void) {
    static char line[16384];
    static size_t have;
    ssize_t got = read(0, line + have, sizeof line - 1 - have);
    if (got <= 0) exit(0); /* whoever gave the commands is gone */
    have += (size_t)got;
    line[have] = 0;
    for (char *end; (end = memchr(line, '\n', have));) {
        *end = 0;
        obey(line);
        have -= (size_t)(end + 1 - line);
        memmove(line, end + 1, have);
    }
    if (have == sizeof line - 1) die("a command that is too long");
}

int main(void) {
    struct epoll_event events[BATCH];
    prepare_process();
    prepare_wire();
    int frames = listen_on(0), raw = listen_on(0);
    watch(frames, LISTENER, OPEN); /* id 0 */
    watch(raw, LISTENER, OPEN);
    watch(0, COMMANDS, OPEN);
    printf("{\"frames_port\": %d, \"raw_port\": %d}\n", port_of(frames), port_of(raw));
    fflush(stdout);
    for (;;) {
        int wait = job.kind == NO_JOB ? -1 : job.settling || job.kind == CLOSE_JOB ? 5 : 20;
        int ready = epoll_wait(epoll_fd, events, BATCH, wait);
        now = clock_now(CLOCK_MONOTONIC);
        for (int i = 0; i < ready; i++) {
            struct conn *conn = events[i].data.ptr;
            if (conn->role == LISTENER)
                accept_all(conn);
            else if (conn->role == COMMANDS)
                read_commands();
            else if (conn->state != DEAD)
                on_event(conn, events[i].events);
        }
        look_at_job();
        while (graveyard) {
            struct conn *conn = graveyard;
            graveyard = conn->next_dead;
            free(conn);
        }
    }
}
