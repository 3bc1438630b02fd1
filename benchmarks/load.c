/* A load generator: many clients of a timestamp echo in one thread.
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
 *   load storm SECONDS HOST PORT SOCKETS close|reset LINES SIZE [CONNECTIONS]
 *       SOCKETS clients at a time connect and send LINES lines of SIZE bytes. Then they read the
 *       replies and close, or reset the connection without reading. Stops after CONNECTIONS, if
 *       that comes before SECONDS have passed. "messages" counts the connections that did it all,
 *       "failed" those that were refused, ended early, or answered without a stamp.
 *   load probe SECONDS HOST PORT CONNECTIONS INTERVAL
 *       Opens the connections; each has a line due every INTERVAL milliseconds, whether or not
 *       its previous reply has come. A round-trip time begins when the line was due. "failed"
 *       counts the lines without a reply at the end, whose times end there. Runs with real-time
 *       priority, if it may ("realtime").
 *
 * Compiled with -DTLS, its connections use TLS (wire.h). Its datagrams do not, and it has no storm.
 *
 * Each mode prints "open" when all connections are open, waits for a line on its standard input,
 * and measures for SECONDS. Then it prints one line of JSON: the number of messages, how long they
 * took, and percentiles of the round-trip times in microseconds. It exits with status 1 when a
 * connection ends (but for the storm), when connect(2) fails, or when the first reply has no stamp.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include "wire.h"

enum { EVENTS = 512, BUFFER = 1 << 18, SAMPLES = 1 << 23 };
enum { GRACE = 240 };   /* seconds for all that is not measured */

struct client {
    struct wire wire;
    int left;       /* replies still to come */
    long sent;      /* time of sending, in nanoseconds */
    long answered;  /* replies so far (probe) */
};

static struct sockaddr_in server;
static struct client *clients;
static char *message, buffer[BUFFER];
static long message_size;
static float *samples;
static long messages, failed, taken, depth = 1, limit = LONG_MAX;
static long began;      /* when measuring began, in nanoseconds */
static int epoll, realtime;

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

static void watch_for(int fd, unsigned events, struct client *c)
{
    struct epoll_event e = { .events = events, .data.ptr = c };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e))
        fail("epoll_ctl");
}

static void watch(struct client *c)
{
    watch_for(c->wire.fd, EPOLLIN, c);
}

/* Begin to connect a new socket, and return it; a non-blocking one is not connected yet. */
static int connecting(int flags)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    /* Thousands of connections need more ports than one address has: use 64 addresses. In a storm
     * closed sockets keep their ports for a minute (TIME_WAIT): 64 addresses have 1.8 million, the
     * kernel keeps at most net.ipv4.tcp_max_tw_buckets, some 100,000. */
    struct sockaddr_in own = { .sin_family = AF_INET };
    static unsigned count;
    own.sin_addr.s_addr = htonl(0x7f000001 + ++count % 64);
    setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (fd < 0 || bind(fd, (void *)&own, sizeof own)
        || (connect(fd, (void *)&server, sizeof server) && errno != EINPROGRESS))
        fail("connect");
    return fd;
}

static void open_tcp(struct client *c)
{
    int on = 1, fd = connecting(0);
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

/* Read what has arrived; return how many replies ended in it, or -1 at the connection's end. */
static int read_some(struct client *c)
{
    long n = wire_read(&c->wire, buffer, BUFFER, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        return -1;
    int ended = 0;
    for (char *p = buffer; (p = memchr(p, '\n', buffer + n - p)); p++)
        ended++;
    return ended;
}

static int read_replies(struct client *c)
{
    int ended = read_some(c);
    if (ended < 0)
        fail("recv");
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
    began = now();
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
    long asked = now();
    if (c->wire.fd)
        wire_end(&c->wire);
    open_tcp(c);
    watch(c);
    ask(c, 1);
    c->sent = asked;
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

static void enter(struct client *c, int resets)
{
    struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
    c->sent = now();
    c->left = 0;
    wire_begin(&c->wire, connecting(SOCK_NONBLOCK));
    if (resets)
        setsockopt(c->wire.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    /* Edge-triggered, so that it need not change when the client has written and will read. */
    watch_for(c->wire.fd, EPOLLIN | EPOLLOUT | EPOLLET, c);
}

/* A client's next step. Return 1 if it was the last, 0 if there are more, -1 if it failed. */
static int step(struct client *c, unsigned events, int resets)
{
    if (events & EPOLLERR)
        return -1;
    if (!c->left) {
        long size = depth * message_size;
        if (size && wire_write(&c->wire, message, size) != size)
            return -1;
        c->left = depth;
        return resets;
    }
    int ended = read_some(c);
    if (ended < 0 || (ended && buffer[0] != '['))
        return -1;
    return (c->left -= ended) <= 0;
}

static void storm(double seconds, int count, int resets)
{
    struct epoll_event events[EVENTS];
    wait_for_start();
    long end = began + seconds * 1e9;
    for (int i = 0; i < count; i++)
        enter(&clients[i], resets);
    while (now() < end && messages + failed < limit) {
        int n = epoll_wait(epoll, events, EVENTS, 10);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            int done = step(c, events[i].events, resets);
            if (!done)
                continue;
            if (done > 0) {
                sample(c, now());
                messages++;
            } else
                failed++;
            wire_end(&c->wire);
            enter(c, resets);
        }
    }
}

/* The lines of all clients are one schedule: one is due every `interval` nanoseconds, and the
 * clients take turns. So the next reply to client i is to line number answered * count + i. */
static void account(struct client *c, int count, long interval, long t)
{
    c->sent = began + (c->answered++ * count + (c - clients)) * interval;
    sample(c, t);
}

static void follow_schedule(long end, int count, long interval, int timer)
{
    struct epoll_event events[EVENTS];
    unsigned long expirations;
    for (long next = 0, t; (t = now()) < end;) {
        for (; began + next * interval <= t; next++)
            send_all(&clients[next % count], message, message_size);
        int n = epoll_wait(epoll, events, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (!c && read(timer, &expirations, sizeof expirations) < 0)
                fail("read");
            t = now();
            for (int ended = c ? read_replies(c) : 0; ended > 0; ended--, messages++)
                account(c, count, interval, t);
        }
    }
}

static void probe(double seconds, int count, double milliseconds)
{
    long interval = milliseconds * 1e6 / count;
    struct itimerspec every = { { 0, interval }, { 0, interval } };
    struct sched_param priority = { .sched_priority = 1 };
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    for (int i = 0; i < count; i++) {
        open_tcp(&clients[i]);
        exchange_one(&clients[i]);
        watch(&clients[i]);
    }
    watch_for(timer, EPOLLIN, NULL);
    realtime = !sched_setscheduler(0, SCHED_FIFO, &priority);
    wait_for_start();
    timerfd_settime(timer, 0, &every, NULL);
    long end = began + seconds * 1e9;
    follow_schedule(end, count, interval, timer);
    for (int i = 0; i < count; i++)
        for (; began + (clients[i].answered * count + i) * interval < end; failed++)
            account(&clients[i], count, interval, end);
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
        fprintf(stderr, "load: expected a mode, and its arguments\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const char *mode = argv[1];
    double seconds = atof(argv[2]);
    alarm(seconds + GRACE);     /* never run on when a server hangs, or nobody waits any more */
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
    else if (!strcmp(mode, "storm"))
        storm(seconds, count, !strcmp(argv[6], "reset"));
    else if (!strcmp(mode, "probe"))
        probe(seconds, count, atof(argv[6]));
    else
        idle(count);
    seconds = (now() - began) / 1e9;
    qsort(samples, taken, sizeof *samples, ascending);
    printf("{\"messages\": %ld, \"failed\": %ld, \"seconds\": %.6f, \"realtime\": %d, "
           "\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}\n",
           messages, failed, seconds, realtime,
           percentile(.5), percentile(.99), percentile(.999), percentile(1));
    return 0;
}
