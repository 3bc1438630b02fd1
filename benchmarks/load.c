/* A load generator: many clients of a timestamp echo in one thread, in a closed loop.
 *
 *   load talk SECONDS HOST PORT CONNECTIONS ACTIVE DEPTH SIZE [MESSAGES]
 *       Opens CONNECTIONS. ACTIVE of them send DEPTH lines of SIZE bytes at once, wait for as
 *       many replies, and send again. Stops after MESSAGES replies if they come before SECONDS
 *       have passed.
 *   load connect SECONDS HOST PORT CONNECTIONS
 *       CONNECTIONS clients at a time connect, send a line, read its reply, and close.
 *   load udp SECONDS HOST PORT SOCKETS SIZE
 *       Each socket sends a datagram, waits for its reply, and sends again.
 *   load idle SECONDS HOST PORT CONNECTIONS
 *       Opens the connections, exchanges a line on each, prints "open" and waits for a line or the
 *       end of its standard input.
 *
 * Compiled with -DTLS, its connections use TLS (wire.h); its datagrams do not.
 *
 * Each mode prints "open" when all connections are open, waits for a line on its standard input,
 * and measures for SECONDS. Then it prints one line of JSON: the number of messages, and
 * percentiles of the round-trip times in microseconds. It exits with status 1 when a connection
 * ends, or when the first reply has no stamp.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "wire.h"

enum { EVENTS = 512, BUFFER = 1 << 18, SAMPLES = 1 << 23 };

struct client {
    struct wire wire;
    int left;       /* replies still to come */
    long sent;      /* time of sending, in nanoseconds */
};

static struct sockaddr_in server;
static struct client *clients;
static char *message, buffer[BUFFER];
static long message_size;
static float *samples;
static long messages, taken, depth = 1, limit = LONG_MAX;
static int epoll;

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_all(struct client *c, const char *data, long size)
{
    while (size > 0) {
        long n = wire_write(&c->wire, data, size);
        if (n < 0 && errno != EAGAIN)
            fail("send");
        if (n > 0)
            data += n, size -= n;
    }
}

static void watch(struct client *c)
{
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->wire.fd, &e))
        fail("epoll_ctl");
}

static void open_tcp(struct client *c)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    /* Thousands of connections need more ports than one address has: use 64 addresses. */
    struct sockaddr_in own = { .sin_family = AF_INET };
    static unsigned count;
    own.sin_addr.s_addr = htonl(0x7f000001 + ++count % 64);
    setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (fd < 0 || bind(fd, (void *)&own, sizeof own)
        || connect(fd, (void *)&server, sizeof server))
        fail("connect");
    setsockopt(fd, SOL_TCP, TCP_NODELAY, &on, sizeof on);
    wire_begin(&c->wire, fd);
}

static void sample(struct client *c, long t)
{
    if (taken < SAMPLES)
        samples[taken++] = (t - c->sent) / 1e3;
}

static void ask(struct client *c, long depth)
{
    c->left = depth;
    c->sent = now();
    send_all(c, message, depth * message_size);
}

/* Read what has arrived; return how many replies ended in it. */
static int read_replies(struct client *c)
{
    long n = wire_read(&c->wire, buffer, BUFFER, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        fail("recv");
    int ended = 0;
    for (char *p = buffer; (p = memchr(p, '\n', buffer + n - p)); p++)
        ended++;
    return ended;
}

static void exchange_one(struct client *c)
{
    ask(c, 1);
    while (c->left > 0) {
        long n = wire_read(&c->wire, buffer, BUFFER, 0);
        if (n <= 0)
            fail("recv");
        if (messages == 0 && buffer[0] != '[')
            fail("no stamp");
        c->left -= buffer[n - 1] == '\n';
    }
}

static void wait_for_start(void)
{
    puts("open");
    fflush(stdout);
    getchar();
}

/* Read replies for this many seconds; a client that has all of its replies goes on with `again`. */
static void measure(double seconds, void (*again)(struct client *))
{
    struct epoll_event events[EVENTS];
    long end = now() + seconds * 1e9;
    for (long t = 0; t < end && messages < limit;) {
        int n = epoll_wait(epoll, events, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            int ended = read_replies(c);
            t = now();
            messages += ended;
            if (ended && (c->left -= ended) <= 0) {
                sample(c, t);
                again(c);
            }
        }
    }
}

static void ask_again(struct client *c)
{
    ask(c, depth);
}

static void talk(double seconds, int count, int active)
{
    for (int i = 0; i < count; i++) {
        open_tcp(&clients[i]);
        exchange_one(&clients[i]);
    }
    wait_for_start();
    for (int i = 0; i < active; i++) {
        watch(&clients[i]);
        ask(&clients[i], depth);
    }
    measure(seconds, ask_again);
}

static void reopen(struct client *c)
{
    long began = now();
    if (c->wire.fd)
        wire_end(&c->wire);
    open_tcp(c);
    watch(c);
    ask(c, 1);
    c->sent = began;
}

static void connects(double seconds, int count)
{
    wait_for_start();
    for (int i = 0; i < count; i++)
        reopen(&clients[i]);
    measure(seconds, reopen);
}

static void datagrams(double seconds, int count)
{
    for (int i = 0; i < count; i++) {
        clients[i].wire.fd = socket(AF_INET, SOCK_DGRAM, 0);
        if (connect(clients[i].wire.fd, (void *)&server, sizeof server))
            fail("connect");
        exchange_one(&clients[i]);
    }
    wait_for_start();
    for (int i = 0; i < count; i++) {
        watch(&clients[i]);
        ask(&clients[i], 1);
    }
    measure(seconds, ask_again);
}

static void idle(int count)
{
    for (int i = 0; i < count; i++) {
        open_tcp(&clients[i]);
        exchange_one(&clients[i]);
    }
    wait_for_start();
}

static int ascending(const void *a, const void *b)
{
    float x = *(float *)a, y = *(float *)b;
    return (x > y) - (x < y);
}

static double percentile(double p)
{
    return taken ? samples[(long)(p * (taken - 1))] : 0;
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "load: expected talk, connect, udp or idle, and its arguments\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const char *mode = argv[1];
    double seconds = atof(argv[2]);
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(argv[4]));
    inet_pton(AF_INET, argv[3], &server.sin_addr);
    int count = atoi(argv[5]);
    if (argc > 7)
        depth = atoi(argv[7]);
    message_size = argc > 8 ? atoi(argv[8]) : 64;
    if (argc > 9)
        limit = atol(argv[9]);
    if (!strcmp(mode, "udp") && argc > 6)
        message_size = atoi(argv[6]);
    clients = calloc(count, sizeof *clients);
    samples = malloc(SAMPLES * sizeof *samples);
    message = malloc(depth * message_size);
    memset(message, 'x', depth * message_size);
    for (int i = 1; i <= depth; i++)
        message[i * message_size - 1] = '\n';
    epoll = epoll_create1(0);
    wire_set_up(NULL, NULL);
    if (!strcmp(mode, "talk"))
        talk(seconds, count, atoi(argv[6]));
    else if (!strcmp(mode, "connect"))
        connects(seconds, count);
    else if (!strcmp(mode, "udp"))
        datagrams(seconds, count);
    else
        idle(count);
    qsort(samples, taken, sizeof *samples, ascending);
    printf("{\"messages\": %ld, \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f}\n", messages,
           percentile(.5), percentile(.99), percentile(.999));
    return 0;
}
