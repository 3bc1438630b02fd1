/* How the programs in C read and write a connection: with recv(2) and send(2) or, compiled with
 * -DTLS (and -lssl -lcrypto), through TLS 1.3, with a single cipher suite and without verifying
 * certificates. Results and errno are those of recv(2) and send(2).
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>

struct wire {
    int fd;
    SSL *tls;
};

static SSL_CTX *context;

/* Call it once, before any connection. A server gives a key and a certificate (PEM files), a
 * client NULL. */
static void wire_set_up(const char *key, const char *certificate)
{
    context = SSL_CTX_new(TLS_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    signal(SIGPIPE, SIG_IGN);   /* SSL_write() has no MSG_NOSIGNAL */
    if (key && (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1
                || SSL_CTX_use_certificate_file(context, certificate, SSL_FILETYPE_PEM) != 1)) {
        fprintf(stderr, "no key in %s, or no certificate in %s\n", key, certificate);
        exit(1);
    }
}

/* The first reads and writes make the handshake. */
static void wire_begin(struct wire *w, int fd)
{
    w->fd = fd;
    w->tls = SSL_new(context);
    SSL_set_fd(w->tls, fd);
    if (SSL_CTX_get0_certificate(context))
        SSL_set_accept_state(w->tls);
    else
        SSL_set_connect_state(w->tls);
}

static long wire_result(struct wire *w, int n)
{
    if (n > 0)
        return n;
    int error = SSL_get_error(w->tls, n);
    ERR_clear_error();          /* the error queue is shared by all connections */
    if (error == SSL_ERROR_ZERO_RETURN)
        return 0;
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
}

/* SIZE must hold a whole record, so that nothing stays in OpenSSL's buffer, which epoll(7) does
 * not see. */
static long wire_read(struct wire *w, char *data, long size, int flags)
{
    (void)flags;
    return wire_result(w, SSL_read(w->tls, data, size));
}

static long wire_write(struct wire *w, const char *data, long size)
{
    return wire_result(w, SSL_write(w->tls, data, size));
}

static void wire_end(struct wire *w)
{
    SSL_free(w->tls);
    close(w->fd);
}
#else
struct wire {
    int fd;
};

static void wire_set_up(const char *key, const char *certificate)
{
    (void)key, (void)certificate;
}

static void wire_begin(struct wire *w, int fd)
{
    w->fd = fd;
}

static long wire_read(struct wire *w, char *data, long size, int flags)
{
    return recv(w->fd, data, size, flags);
}

static long wire_write(struct wire *w, const char *data, long size)
{
    return send(w->fd, data, size, MSG_NOSIGNAL);
}

static void wire_end(struct wire *w)
{
    close(w->fd);
}
#endif
