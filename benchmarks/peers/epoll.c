/* The lower bound: a timestamp echo in C, with one level-triggered epoll(7).
 *
 *   epoll tcp PORT | epoll udp PORT
 *   epoll tls PORT KEY CERTIFICATE      (compiled with -DTLS: see wire.h)
 *
 * A read takes up to 64 KiB. What the kernel does not take of a reply is kept until it does;
 * meanwhile that connection is not read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "../wire.h"

enum { EVENTS = 512, READ = 1 << 16, STAMP = 27 };

struct connection {
    struct wire wire;
    int begun;                  /* the start of the current line has been answered */
    char *rest;                 /* of a reply: what the kernel did not take */
    long size, offset;
};

static char in[READ], out[READ * (STAMP + 1) + STAMP], stamp[STAMP + 1];
static int epoll;

static void renew_stamp(void)
{
    static time_t last;
    time_t now = time(NULL);
    if (now != last) {
        char text[26];
        last = now;
        ctime_r(&now, text);
        text[24] = 0;
        snprintf(stamp, sizeof stamp, "[%s] ", text);
    }
}

static void watch(struct connection *c, int how, unsigned events)
{
    struct epoll_event e = { .events = events, .data.ptr = c };
    epoll_ctl(epoll, how, c->wire.fd, &e);
}

static void end(struct connection *c)
{
    wire_end(&c->wire);
    free(c->rest);
    free(c);
}

/* Put a stamp in front of every line; return the length of the reply. */
static long stamped(struct connection *c, long n)
{
    char *to = out, *line = in, *stop = in + n;
    while (line < stop) {
        char *newline = memchr(line, '\n', stop - line);
        char *next = newline ? newline + 1 : stop;
        if (!c->begun) {
            memcpy(to, stamp, STAMP);
            to += STAMP;
        }
        c->begun = !newline;
        memcpy(to, line, next - line);
        to += next - line;
        line = next;
    }
    return to - out;
}

static void readable(struct connection *c)
{
    long n = wire_read(&c->wire, in, READ, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        end(c);
        return;
    }
    renew_stamp();
    long size = stamped(c, n), sent = wire_write(&c->wire, out, size);
    if (sent < 0)
        sent = 0;
    if (sent < size) {
        c->rest = malloc(size - sent);
        memcpy(c->rest, out + sent, c->size = size - sent);
        c->offset = 0;
        watch(c, EPOLL_CTL_MOD, EPOLLOUT);
    }
}

static void writable(struct connection *c)
{
    long n = wire_write(&c->wire, c->rest + c->offset, c->size - c->offset);
    if (n < 0 && errno != EAGAIN) {
        end(c);
        return;
    }
    if (n > 0 && (c->offset += n) == c->size) {
        free(c->rest);
        c->rest = NULL;
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void accepting(int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        wire_begin(&c->wire, fd);
        setsockopt(fd, SOL_TCP, TCP_NODELAY, &on, sizeof on);
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void stream(int listener)
{
    struct epoll_event events[EVENTS];
    listen(listener, 4096);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = NULL };
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                accepting(listener);
            else if (events[i].events & EPOLLOUT)
                writable(c);
            else
                readable(c);
        }
    }
}

static void datagrams(int fd)
{
    for (;;) {
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        long n = recvfrom(fd, out + STAMP, READ, 0, (void *)&peer, &length);
        renew_stamp();
        memcpy(out, stamp, STAMP);
        sendto(fd, out, n + STAMP, 0, (void *)&peer, length);
    }
}

int main(int argc, char **argv)
{
    int udp = argc > 2 && !strcmp(argv[1], "udp"), on = 1;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct sockaddr_in own = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001) };
    own.sin_port = htons(argc > 2 ? atoi(argv[2]) : 0);
    int fd = socket(AF_INET, udp ? SOCK_DGRAM : SOCK_STREAM, 0);
    socklen_t length = sizeof own;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&own, sizeof own)) {
        perror("epoll: bind");
        return 1;
    }
    getsockname(fd, (void *)&own, &length);
    if (!udp)
        listen(fd, 4096);
    wire_set_up(argc > 4 ? argv[3] : NULL, argc > 4 ? argv[4] : NULL);
    printf("listening on %d\n", ntohs(own.sin_port));
    fflush(stdout);
    if (udp)
        datagrams(fd);
    else
        stream(fd);
}
