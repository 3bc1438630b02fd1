"""The server as a process, on real sockets, with real clients and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from OpenSSL.SSL import TLS_CLIENT_METHOD, Connection, Context
from twisted.trial.unittest import SynchronousTestCase

from tests.system import lab
from tests.system.certificates import Files, issued, self_signed
from tests.system.running import (
    BIN,
    PATIENCE,
    REACTOR,
    SIGNALLED,
    STAMP,
    Log,
    Service,
    connectable,
    fill,
    needs,
    passing,
    read_all,
    run,
    talk,
    twistd,
)
from timestamp_echo.stamps import SECOND, parse
from timestamp_echo.transports.stream import READ_SIZE

LINES = b"one\ntwo\nthree"
REPLIES = re.compile(STAMP + b"one\n" + STAMP + b"two\n" + STAMP + b"three")

STOPPING = r"SIGTERM received|Port \d+ Closed|Main loop terminated|Server Shut Down"
"""The lines of the log that a stop writes."""


def count_datagrams(sock: socket.socket) -> int:
    """How many datagrams have arrived."""
    sock.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(2**16):
            count += 1
    return count


class TLSClient:
    """A TLS client that can close its sending side alone, which `ssl.SSLSocket` cannot.

    @param authority: the certificate to trust.
    """

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ssl.create_default_context(cafile=authority).wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )

    def talk(self, data: bytes) -> bytes:
        """Shake hands, send, close this side at once, and read to the end."""
        while not self._done(self._tls.do_handshake):
            self._exchange()
        self._tls.write(data)
        self._done(self._tls.unwrap)
        replies: list[bytes] = []
        while self._exchange():
            while self._done(lambda: replies.append(self._tls.read(2**16))):
                pass
        return b"".join(replies)

    def _done(self, call: Callable[[], object]) -> bool:
        """Whether OpenSSL could do this with the bytes received so far."""
        try:
            call()
        except ssl.SSLError:  # wants more, or the server has closed as well
            return False
        return True

    def _exchange(self) -> bool:
        """Send and receive once; return whether anything was received."""
        self._sock.sendall(self._outgoing.read())
        data = self._sock.recv(2**16)
        self._incoming.write(data)
        return bool(data)


def activated(
    case: SynchronousTestCase,
    listener: socket.socket,
    *options: str,
    endpoint: str = "systemd:domain=INET:index=0",
) -> Service:
    """Start a service on an inherited socket."""
    return Service(
        case,
        *("-l", endpoint, *options),
        prefix=passing(listener),
        pass_fds=[listener.fileno()],
    )


class StreamTests(SynchronousTestCase):
    """Every kind of stream socket, TLS, PROXY, and the options for messages."""

    def assert_echo(self, sock: socket.socket) -> None:
        """Three lines, the last without a newline, and a close get three replies."""
        self.assertRegex(talk(sock, LINES), REPLIES)

    def connected(self, family: int, address: Any) -> socket.socket:
        """Connect to this address."""
        sock = socket.socket(family)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        return sock

    def test_all_kinds(self) -> None:
        """One process serves IPv4, IPv6, UNIX sockets and PROXY; the log names the client."""
        service = Service(
            self,
            *("-l", "tcp:0:interface=127.0.0.1"),
            *("-l", "tcp6:0:interface=\\:\\:1"),
            *("-l", "unix:socket"),
            *("-l", "haproxy:tcp:0:interface=127.0.0.1"),
        )
        self.assertEqual(service.listening[2], "unix:socket")
        self.assert_echo(service.connect())
        self.assert_echo(self.connected(socket.AF_INET6, ("::1", service.port(1))))
        self.assert_echo(self.connected(socket.AF_UNIX, service.path()))
        balancer = service.connect(3)
        balancer.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 1111 2222\r\n")
        self.assert_echo(balancer)
        service.log.wait_for(r"connection from 192\.0\.2\.7:1111 ended .*closed by the peer")
        service.stop()
        self.assertEqual(os.listdir(service.folder), [])
        self.assertNotIn("Traceback", service.log.text)

    def test_tls(self) -> None:
        """Over TLS, a close_notify right after the lines loses no reply."""
        files = self_signed(self.mktemp())
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        with service.connect() as sock:
            client = TLSClient(sock, files.certificate)
            self.assertRegex(client.talk(LINES), REPLIES)
        service.stop()
        self.assertIn(f"(TLS Port {service.port()} Closed)", service.log.text)

    def test_reload(self) -> None:
        """At SIGHUP new connections get the new certificate; open connections stay open."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        service = Service(
            self,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("-l", f"tls:{folder}:port=0:interface=127.0.0.1"),
        )
        old = Path(files.certificate).read_text()
        with self.secured(service, old) as first, self.secured(service, old, 1) as second:
            renewed = self_signed(self.mktemp())
            os.replace(renewed.key, files.key)
            os.replace(renewed.certificate, files.certificate)
            new = Path(files.certificate).read_text()
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for("certificates of (ssl|tls):.* reloaded", 2)
            for index in (0, 1):
                self.secured(service, new, index).close()
                self.assertRaises(ssl.SSLError, self.secured, service, old, index)
            for sock in (first, second):
                sock.sendall(b"hello\n")
                self.assertRegex(sock.recv(100), STAMP + b"hello\n")
        service.stop()
        self.assertNotIn("Traceback", service.log.text)

    def test_reload_fails(self) -> None:
        """At SIGHUP with bad files the old certificates stay in use; the log names each file."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        service = Service(
            self,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("-l", f"haproxy:tls:{folder}:port=0:interface=127.0.0.1"),
        )
        key, certificate = (Path(file).read_text() for file in files)
        other = Path(self_signed(self.mktemp()).key).read_text()
        self.secured(service, certificate).close()  # once it answers, it handles signals
        kept = "not reloaded, the old ones stay in use"
        for in_key, in_certificate, ssl_error, tls_error in (
            (
                *("garbage", certificate, f"{files.key}: expected a private key in PEM"),
                f"{files.key}: expected a certificate or a private key in PEM",
            ),
            (
                *(key, None, f"{files.certificate}: No such file or directory"),
                f"{files.key}: its private key fits no certificate in {folder}",
            ),
            (
                *(None, certificate, f"{files.key}: No such file or directory"),
                f"{files.certificate}: no private key in {folder} fits its certificate",
            ),
            (
                *(other, certificate),
                f"{files.certificate}: expected the certificate of the key in {files.key}",
                f"{files.key}: its private key fits no certificate in {folder}",
            ),
            (
                *(None, None, f"{files.key}: No such file or directory"),
                f"{folder}: expected files *.pem with certificates and their private keys",
            ),
        ):
            for file, text in ((files.key, in_key), (files.certificate, in_certificate)):
                Path(file).unlink(missing_ok=True)
                if text is not None:
                    Path(file).write_text(text)
            times = service.log.text.count(kept) // 2 + 1
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for(f"certificates of .*{kept}: ", 2 * times)
            # Others say that the last client's connection has ended.
            lines = [line for line in service.log.text.splitlines() if kept in line]
            *_, for_ssl, for_tls = lines
            self.assertIn(f"certificates of ssl:0:interface=127.0.0.1:{files.endpoint} ", for_ssl)
            self.assertTrue(for_ssl.endswith(f" {kept}: {ssl_error}"), for_ssl)
            self.assertTrue(for_tls.endswith(f" {kept}: {tls_error}"), for_tls)
        for index, header in ((0, b""), (1, b"PROXY UNKNOWN\r\n")):
            with self.secured(service, certificate, index, header=header) as sock:
                sock.sendall(b"hello\n")
                self.assertRegex(sock.recv(100), STAMP + b"hello\n")
        service.stop()
        self.assertNotIn("Traceback", service.log.text)

    def test_unknown_names(self) -> None:
        """Clients that ask for an unknown server get no line in the log but those of connections.

        They get a certificate all the same, and may refuse it.
        """
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        service = Service(self, "-l", f"tls:{folder}:port=0:interface=127.0.0.1")
        before = len(service.log.text.splitlines())
        context = Context(TLS_CLIENT_METHOD)
        for number in range(100):
            name = b"unknown-%d.example" % number if number % 2 else b"\xff\n%d" % number
            with service.connect() as sock:
                sock.settimeout(None)  # OpenSSL's connection does without
                tls = Connection(context, sock)
                tls.set_tlsext_host_name(name)
                tls.set_connect_state()
                tls.do_handshake()
        service.stop()
        lines = service.log.text.splitlines()[before:]
        about = [line for line in lines if "connection" not in line]
        self.assertEqual(about, [line for line in about if re.search(STOPPING, line)])
        self.assertNotRegex(service.log.text, "unknown|xff|Traceback")

    def secured(
        self,
        service: Service,
        authority: str,
        index: int = 0,
        own: Files | None = None,
        *,
        header: bytes = b"",
    ) -> ssl.SSLSocket:
        """Connect over TLS, with a client certificate if one is given, and behind this header."""
        context = ssl.create_default_context(cadata=authority)
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        sock = service.connect(index)
        sock.sendall(header)
        try:
            return context.wrap_socket(sock, server_hostname="localhost")
        except ssl.SSLError:
            sock.close()
            raise

    def test_client_certificates(self) -> None:
        """With --client-ca only clients with a certificate of that authority are served."""
        files, client = self_signed(self.mktemp()), self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("--client-ca", client.certificate),
        )
        authority = Path(files.certificate).read_text()
        with self.secured(service, authority, own=client) as sock:
            sock.sendall(b"hello\n")
            self.assertRegex(sock.recv(100), STAMP + b"hello\n")
        for own in (None, files):
            # In TLS 1.3 the client has finished its handshake when the server refuses it.
            with self.assertRaises(OSError), self.secured(service, authority, own=own) as sock:
                sock.sendall(b"hello\n")
                self.assertEqual(sock.recv(100), b"")
        service.process.send_signal(signal.SIGHUP)
        service.log.wait_for("certificates of ssl:.* reloaded")
        self.secured(service, authority, own=client).close()
        with self.assertRaises(OSError), self.secured(service, authority) as sock:
            self.assertEqual(sock.recv(100), b"")
        service.stop()
        self.assertNotIn("Traceback", service.log.text)

    def test_systemd(self) -> None:
        """A socket inherited from systemd (sd_listen_fds(3)) is served."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        service = activated(self, listener, "-s", "iso")
        reply = talk(service.connect(), b"hello\n")
        self.assertTrue(parse(reply[1 : reply.index(b"]")].decode()).zoned)

    def test_systemd_path(self) -> None:
        """A UNIX socket of systemd's keeps its file and its mode, and serves the next process."""
        path = os.path.relpath(self.mktemp())
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen()
            for _ in range(2):
                service = activated(self, listener, endpoint="systemd:domain=UNIX:name=x")
                self.assert_echo(self.connected(socket.AF_UNIX, path))
                self.assertEqual(service.stop(), 0)
                self.assertNotIn("Traceback", service.log.text)
                self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_path_removed(self) -> None:
        """A service whose UNIX socket's file is gone stops all the same."""
        service = Service(self, "-l", "unix:socket")
        self.assert_echo(self.connected(socket.AF_UNIX, service.path()))
        os.unlink(service.path())
        self.assertEqual(service.stop(), 0)
        self.assertNotIn("Traceback", service.log.text)
        self.assertEqual(os.listdir(service.folder), [])

    def test_proxied(self) -> None:
        """PROXY headers: in pieces, UNKNOWN, LOCAL, invalid, and in front of TLS."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", "haproxy:tcp:0:interface=127.0.0.1"),
            *("-l", f"haproxy:ssl:0:interface=127.0.0.1:{files.endpoint}"),
        )
        for pieces in (
            [b"PROXY UNKNOWN\r\n"],
            [b"PRO", b"XY TCP4 192.0.2.7 192.0.2.8 1", b"111 2222\r\n"],
            [b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"],  # version 2, LOCAL
        ):
            sock = service.connect()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                sock.sendall(piece)
                select.select([], [], [], 0.01)  # most likely each is a read of its own
            self.assert_echo(sock)
        for header in (
            b"PROXY TCP4 \xff x y z\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 x 1\r\n",
            b"no\n",
        ):
            self.assertEqual(talk(service.connect(), header + LINES), b"")
        service.log.wait_for("; no valid PROXY header", 3)
        with service.connect(1) as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.8 1111 2222\r\n")  # twisted#9041
            client = TLSClient(sock, files.certificate)
            self.assertRegex(client.talk(LINES), REPLIES)
        service.log.wait_for(r"connection from 192\.0\.2\.9:1111 ended .*closed by the peer")
        self.assertEqual(talk(service.connect(1), b"no\n" + LINES), b"")
        service.log.wait_for("; no valid PROXY header", 4)
        service.stop()
        self.assertNotIn("Traceback", service.log.text)

    def test_health_checks(self) -> None:
        """Who connects and sends no byte has no line in the log, over TLS and PROXY as well.

        The last four have one: they send a byte, or no PROXY header, or no TLS.
        """
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", "tcp:0:interface=127.0.0.1"),
            *("-l", "haproxy:tcp:0:interface=127.0.0.1"),
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("-l", f"haproxy:ssl:0:interface=127.0.0.1:{files.endpoint}"),
        )
        trusted = Path(files.certificate).read_text()
        header, local = b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
        for reset in (b"\0", b"\1"):
            proxied = [service.connect(1), service.connect(1)]
            proxied[0].sendall(header)
            proxied[1].sendall(local)
            for sock in (
                *proxied,
                *(service.connect(index) for index in range(4)),
                self.secured(service, trusted, 2),
                self.secured(service, trusted, 3, header=header),
            ):
                linger = reset + bytes(7)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.close()
        for index in range(4):
            talk(service.connect(index), b"hello\n")
        service.log.wait_for("connection from .* ended", 4)
        service.stop()
        self.assertEqual(service.log.text.count("connection from"), 1 + 4)

    def test_proxy_from(self) -> None:
        """With --proxy-from, other hosts' connections are closed before their header is read.

        The file of a UNIX socket has a mode to guard it. Other listeners serve everybody.
        """
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", "haproxy:tcp6:0"),
            *("-l", f"haproxy:ssl:0:{files.endpoint}"),
            *("-l", "haproxy:unix:socket", "-l", "tcp:0:interface=127.0.0.1"),
            *("--proxy-from", "127.0.0.1", "--proxy-from", "2001:db8::/32"),
        )
        header = b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n"
        path = self.connected(socket.AF_UNIX, service.path())
        for proxy in (service.connect(), path):
            proxy.sendall(header)
            self.assert_echo(proxy)
        sources = (("::1", 0), ("127.0.0.2", 0), ("127.0.0.2", 1))
        for host, index in sources:
            address = (host if ":" in host else "127.0.0.1", service.port(index))
            other = socket.create_connection(address, PATIENCE, (host, 0))
            with other, contextlib.suppress(ConnectionError):  # a reset: the header is not read
                other.sendall(header + LINES)
                self.assertEqual(read_all(other), b"")
        service.log.wait_for(
            r"connection from (?:127.0.0.2|\[::1\]):\d+ refused: not in a --proxy-from network",
            len(sources),
        )
        self.assert_echo(service.connect(3))
        service.stop()
        self.assertNotIn("Traceback", service.log.text)
        self.assertEqual(service.log.text.count("ended after"), 3)

    def test_proxied_refusal_tls(self) -> None:
        """A refused connection whose client stays silent is closed, and counts no longer."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", f"haproxy:ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("--max-per-peer", "1", "--idle-timeout", "0"),
        )
        context = ssl.create_default_context(cafile=files.certificate)
        socks = []
        for _ in range(3):
            sock = service.connect()
            sock.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.8 1111 2222\r\n")
            socks.append(context.wrap_socket(sock, server_hostname="localhost"))
        for sock in socks[1:]:
            self.assertIn(
                b"tsecho: too many connections from your address: the limit is 1", sock.recv(100)
            )
        service.log.wait_for(
            "ended after .*; too many connections from your address: the limit is 1", 2
        )
        for sock in socks:
            sock.close()

    def test_long_line_in_auto(self) -> None:
        """A long line that is sent at once gets one stamp, also after a PROXY header."""
        service = Service(
            self,
            *("-l", "tcp:0:interface=127.0.0.1", "-l", "haproxy:tcp:0:interface=127.0.0.1"),
        )
        line = b"x" * 200_000 + b"\n"
        for _ in range(5):
            self.assertEqual(len(re.findall(STAMP, talk(service.connect(), line))), 1)
            reply = talk(service.connect(1), b"PROXY UNKNOWN\r\n" + line)
            self.assertEqual(len(re.findall(STAMP, reply)), 1)

    def test_thousand_half_closes(self) -> None:
        """A client that sends a line and closes its side at once always gets its reply."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"),
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
        )
        reply = re.compile(STAMP + b"hello\n")
        for _ in range(1000):
            self.assertTrue(reply.fullmatch(talk(service.connect(), b"hello\n")))
            unix = self.connected(socket.AF_UNIX, service.path())
            self.assertTrue(reply.fullmatch(talk(unix, b"hello\n")))
            with service.connect(2) as sock:
                client = TLSClient(sock, files.certificate)
                self.assertTrue(reply.fullmatch(client.talk(b"hello\n")))

    def test_kernel_times(self) -> None:
        """A sub-second stamp is within 10 ms of the time when the message was sent."""
        for style in ("iso", "unix"):
            service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "-s", style)
            before = time.time_ns()
            reply = talk(service.connect(), b"hello\n")
            after = time.time_ns()
            stamp = parse(reply[1 : reply.index(b"]")].decode()).nanoseconds
            self.assertTrue(before - SECOND // 100 <= stamp <= after + SECOND // 100)

    def test_chunk_and_line(self) -> None:
        """--framing applies to the connections."""
        for framing, expected in (("chunk", STAMP + LINES), ("line", REPLIES.pattern)):
            service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--framing", framing)
            self.assertRegex(talk(service.connect(), LINES), b"^" + expected + b"$")

    def test_pattern_in_utc(self) -> None:
        """--stamp and --utc apply to them, in any locale and zone."""
        service = Service(
            self,
            *("-l", "tcp:0:interface=127.0.0.1", "-s", "%H%z %b", "--utc"),
            environment={"TZ": "Asia/Singapore", "LC_ALL": "C.UTF-8"},
        )
        self.assertRegex(talk(service.connect(), b"x"), rb"^\[\d\d\+0000 \w{3}\] x$")


class StreamWithoutEpollTests(StreamTests):
    """The same on a system without epoll(7)."""

    without_epoll = True


class HostileClientTests(SynchronousTestCase):
    """Clients that send odd bytes, do not read, or reset."""

    def setUp(self) -> None:
        """Start a service, which must still serve at the end of the test."""
        self.service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        self.addCleanup(self.assert_still_serves)

    def assert_still_serves(self) -> None:
        """The service still serves, and has logged no exception."""
        self.assertRegex(talk(self.service.connect(), LINES), REPLIES)
        self.service.stop()
        self.assertNotIn("Traceback", self.service.log.text)
        self.assertNotIn("Unhandled", self.service.log.text)

    def test_bytes(self) -> None:
        """Bytes that are not UTF-8, and NULs, are echoed."""
        message = bytes(byte for byte in range(256) if byte != ord("\n"))
        reply = talk(self.service.connect(), message + b"\n")
        self.assertTrue(reply.endswith(b"] " + message + b"\n"))

    def test_out_of_band(self) -> None:
        """A byte that is sent out of band is echoed in its place."""
        sock = self.service.connect()
        sock.sendall(b"ab")
        sock.send(b"c", socket.MSG_OOB)
        self.assertEqual(re.sub(STAMP, b"", talk(sock, b"d\n")), b"abcd\n")

    def test_million_empty_lines(self) -> None:
        """A million empty lines get a million stamps, in less than 16 MiB of memory."""
        before = self.service.resident()
        with self.service.connect() as sock:
            replies = self.exchange(sock, b"\n" * 10**6)
        self.assertEqual(replies, (10**6, 10**6))
        self.assertLess(self.service.resident() - before, 16 * 2**20)

    def exchange(self, sock: socket.socket, data: bytes) -> tuple[int, int]:
        """Send while reading, close this side, and count the lines and stamps received."""

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        lines = stamps = 0
        while piece := sock.recv(2**20):
            lines += piece.count(b"\n")
            stamps += piece.count(b"[")
        sender.join(PATIENCE)
        return lines, stamps

    def test_no_bytes(self) -> None:
        """A client that closes without having sent anything gets no bytes."""
        self.assertEqual(talk(self.service.connect(), b""), b"")

    def test_storm(self) -> None:
        """Two thousand connections are reset before they are accepted (twisted#11625)."""
        os.kill(self.service.process.pid, signal.SIGSTOP)
        for _ in range(4):
            socks = [self.service.connect() for _ in range(500)]
            for sock in socks:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()
            os.kill(self.service.process.pid, signal.SIGCONT)
            self.assertRegex(talk(self.service.connect(), LINES), REPLIES)
            os.kill(self.service.process.pid, signal.SIGSTOP)
        os.kill(self.service.process.pid, signal.SIGCONT)

    def test_half_closed_and_full(self) -> None:
        """A client that closed its side and does not read takes no CPU time (twisted#5662)."""
        with self.service.connect() as sock:
            size = fill(sock, b"x" * 1023 + b"\n")
            sock.shutdown(socket.SHUT_WR)
            self.assertFalse(self.service.spins())
            self.assertRegex(talk(self.service.connect(), LINES), REPLIES)
            sock.settimeout(PATIENCE)
            self.assertEqual(len(re.findall(STAMP, read_all(sock))), -(-size // 1024))

    def test_reset_in_mid_message(self) -> None:
        """A reset within a message is logged as a lost connection."""
        sock = self.service.connect()
        sock.sendall(b"one\ntw")
        self.assertRegex(sock.recv(1024), STAMP + b"one\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        self.service.log.wait_for("connection from .* ended .*; connection lost")

    def test_slow_reader(self) -> None:
        """A client that sends and does not read costs little memory; later it gets every reply."""
        for line in (b"x" * 1023 + b"\n", b"\n"):
            before = self.service.resident()
            socks = [self.service.connect() for _ in range(3)]
            sent = [fill(sock, line) for sock in socks]
            # For each the replies that are unsent, and the rest of one read.
            self.assertLess((self.service.resident() - before) / len(socks), 256 * 1024)
            for sock, size in zip(socks, sent, strict=True):
                self.assertGreater(size, 2**20)
                with sock:
                    sock.settimeout(PATIENCE)
                    lines, stamps = self.exchange(sock, line[size % len(line) :])
                self.assertEqual(lines, size // len(line) + 1)
                # While the server did not read, silence ended no message: each line has one stamp.
                self.assertEqual(stamps, lines)

    def test_line_without_end(self) -> None:
        """A line that never ends costs less than 128 KiB of memory."""
        before = self.service.resident()
        socks = [self.service.connect() for _ in range(50)]
        for sock in socks:
            sock.sendall(b"one\n" + b"x" * 65000)
            self.assertTrue(sock.recv(100).endswith(b"] one\n"))
        self.assertLess((self.service.resident() - before) / len(socks), 128 * 1024)
        for sock in socks:
            sock.close()


class HostileClientWithoutEpollTests(HostileClientTests):
    """The same on a system without epoll(7)."""

    without_epoll = True


class LimitTests(SynchronousTestCase):
    """The limits of connections, of idle time and of unsent replies."""

    def service(self, *options: str) -> Service:
        """Start a service with these options."""
        return Service(self, "-l", "tcp:0:interface=127.0.0.1", *options)

    def test_too_many(self) -> None:
        """A client over the limit gets one line, and no reset, although it has sent something."""
        service = self.service("--max-connections", "2")
        first, second = service.connect(), service.connect()
        with first, second:
            for sock in (first, second):
                sock.sendall(b"hello\n")
                self.assertRegex(sock.recv(1024), STAMP + b"hello\n")
            why = b"too many connections: the limit is 2"
            self.assertEqual(talk(service.connect(), LINES * 1000), b"tsecho: " + why + b"\n")
            service.log.wait_for("connection from .* refused: too many connections: the limit is 2")
        service.log.wait_for("connection from .* ended", 2)
        self.assertRegex(talk(service.connect(), LINES), REPLIES)

    def test_too_many_tls(self) -> None:
        """The same over TLS."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}", "--max-connections", "1"),
        )
        with service.connect() as first, service.connect() as sock:
            client = TLSClient(sock, files.certificate)
            self.assertIn(b"tsecho: too many connections: the limit is 1", client.talk(LINES))
            first.close()

    def test_too_many_of_one_peer(self) -> None:
        """The limit per peer applies to each address separately."""
        service = self.service("--max-per-peer", "1")
        with service.connect() as sock:
            sock.sendall(b"hello\n")
            service.log.wait_for("opened")
            self.assertIn(
                b"too many connections from your address: the limit is 1",
                talk(service.connect(), LINES),
            )
            with socket.socket() as other:
                other.bind(("127.0.0.2", 0))
                other.connect(("127.0.0.1", service.port()))
                self.assertRegex(talk(other, LINES), REPLIES)

    def test_idle(self) -> None:
        """An idle connection gets the reply to its unfinished message, and is closed."""
        service = self.service("--idle-timeout", "1", "--framing", "line")
        with service.connect() as sock:
            sock.sendall(b"one\ntwo\nthree")
            self.assertRegex(read_all(sock), REPLIES)
        service.log.wait_for("connection from .* ended .*; idle for 1 s")

    def test_idle_slow_sender(self) -> None:
        """A message that is sent a byte at a time does not keep a connection open."""
        service = self.service("--idle-timeout", "1", "--framing", "line")
        with service.connect() as sock:
            while not select.select([sock], [], [], 0.1)[0]:
                sock.sendall(b"x")
            self.assertRegex(sock.recv(100), STAMP + b"x+$")
        service.log.wait_for("connection from .* ended .*; idle for 1 s")

    def test_idle_slow_reader(self) -> None:
        """An idle connection whose client does not read is aborted."""
        service = self.service("--idle-timeout", "1")
        with service.connect() as sock:
            fill(sock, b"x" * 1023 + b"\n")
            service.log.wait_for("connection from .* ended .*; idle for 1 s")

    def test_idle_steady_reader(self) -> None:
        """A client that reads steadily is not idle, however long it takes to read everything."""
        files = self_signed(self.mktemp())
        service = Service(
            *(self, "--idle-timeout", "2", "-l", "tcp:0:interface=127.0.0.1"),
            *("-l", "haproxy:tcp:0:interface=127.0.0.1"),
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
        )
        clients = (
            (f"TCP:127.0.0.1:{service.port(0)}", b""),
            (f"TCP:127.0.0.1:{service.port(1)}", b"PROXY UNKNOWN\r\n"),
            (f"OPENSSL:localhost:{service.port(2)},pf=ip4,cafile={files.certificate}", b""),
        )
        readers = [self.reader(where, begin) for where, begin in clients]
        replies = [b""] * len(readers)
        for _ in range(100):  # 5 s, at 320 KB/s
            select.select([], [], [], 0.05)
            for index, reader in enumerate(readers):
                replies[index] += os.read(reader.fileno(), 2**14)
        for index, reader in enumerate(readers):
            replies[index] += reader.read()
        self.assertEqual([reply.count(b"\n") for reply in replies], [40_000] * len(readers))
        self.assertNotIn("idle", service.log.text)

    def reader(self, where: str, begin: bytes) -> IO[bytes]:
        """Let socat send 4 MB of lines; return its replies, of which it buffers little."""
        path = Path(self.mktemp())
        path.write_bytes(begin + (b"x" * 98 + b"\n") * 40_000)
        with path.open("rb") as lines:
            process = subprocess.Popen(
                [needs("socat"), "-t", "60", "-", f"{where},rcvbuf=65536"],
                stdin=lines,
                stdout=subprocess.PIPE,
            )
        assert process.stdout is not None
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        return process.stdout

    def test_max_unsent(self) -> None:
        """--max-unsent bounds the memory for the replies that a client does not read."""
        for max_unsent, memory in ((1, range(2**20)), (2**23, range(2**22, 2**24))):
            service = self.service("--max-unsent", str(max_unsent))
            before = service.resident()
            with service.connect() as sock:
                fill(sock, b"x" * 1023 + b"\n")
                self.assertIn(service.resident() - before, memory)

    def test_ten_thousand(self) -> None:
        """Ten thousand connections are open at once and served, with 8 KiB of memory each.

        Without epoll there are two thousand: poll(2) looks at all of them in every iteration, so
        that the time grows with the square of their number.
        """
        many = connectable(self, 2_000 if getattr(self, "without_epoll", False) else 10_000)
        service = self.service()
        before = service.resident()
        socks = [service.connect() for _ in range(many)]
        with contextlib.ExitStack() as stack:
            for sock in socks:
                stack.enter_context(sock)
                sock.sendall(b"hello\n")
            for sock in socks:
                self.assertRegex(sock.recv(1024), STAMP + b"hello\n$")
            self.assertLess((service.resident() - before) / many, 8 * 1024)
        last = service.connect()
        last.settimeout(3 * PATIENCE)  # ten thousand ends come first: 6 s of processor time
        self.assertRegex(talk(last, LINES), REPLIES)

    def test_file_table_full(self) -> None:
        """While the file table is full nobody is cut off: later clients wait, and are served."""
        service = Service(
            *(self, "-l", "tcp:0:interface=127.0.0.1", "--max-connections", "1000"),
            prefix=["prlimit", "--nofile=64:64"],
        )
        socks = [service.connect() for _ in range(200)]
        for sock in socks:
            self.addCleanup(sock.close)
            sock.sendall(b"hello\n")
        service.log.wait_for("Too many open files; connections wait")
        self.assertFalse(service.spins())
        self.assertEqual(select.select(socks[64:], [], [], 0)[0], [])
        for sock in socks:
            self.assertRegex(sock.recv(1024), STAMP + b"hello\n$")
            sock.close()
        self.assertRegex(talk(service.connect(), LINES), REPLIES)
        service.stop()
        self.assertNotIn("Traceback", service.log.text)
        self.assertLess(len(service.log.text.splitlines()), 100)


class LimitWithoutEpollTests(LimitTests):
    """The same on a system without epoll(7)."""

    without_epoll = True


class StopTests(SynchronousTestCase):
    """A stop by a signal, with connections open."""

    def test_under_load(self) -> None:
        """No reply to a message that had arrived is lost, and no client gets a reset.

        A UNIX socket may refuse what a client sends later (EPIPE).
        """
        files = self_signed(self.mktemp())
        for _ in range(2):
            service = Service(
                self,
                *("-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"),
                *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            )
            context = ssl.create_default_context(cafile=files.certificate)
            ends = asyncio.run(self.load(service, context))
            self.assertEqual(len(ends), 201)
            for sent, ended in ends:
                self.assertEqual(ended, "closed")
                # Only what was sent after the signal may be without a reply.
                self.assertTrue(sent is None or sent >= self.stopped, (sent, self.stopped))
            self.assertEqual(service.wait(), 0)
            self.assertNotIn("Traceback", service.log.text)

    async def load(
        self, service: Service, context: ssl.SSLContext
    ) -> list[tuple[float | None, str]]:
        """Let clients send without pause until the service stops; return how each one ended."""
        connects = [
            lambda: asyncio.open_connection("127.0.0.1", service.port()),
            lambda: asyncio.open_unix_connection(service.path()),
            lambda: asyncio.open_connection(
                "127.0.0.1", service.port(2), ssl=context, server_hostname="localhost"
            ),
        ]
        clients = [await connect() for connect in connects for _ in range(67)]
        asked = asyncio.Event()
        talks = [asyncio.create_task(self.ask(*client, asked)) for client in clients]
        await asked.wait()
        self.stopped = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*talks)

    async def ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event
    ) -> tuple[float | None, str]:
        """Send until the end; return when the last unanswered message was sent, and the end."""
        sent = None
        unix = writer.get_extra_info("socket").family == socket.AF_UNIX
        try:
            for number in range(10**9):
                sent = time.monotonic()
                writer.write(b"%d\n" % number)
                reply = await asyncio.wait_for(reader.readline(), PATIENCE)
                if not reply:
                    return sent, "closed"
                sent = None
                if number == 100:
                    asked.set()
            raise AssertionError("the service does not stop")
        except OSError as error:
            refused = unix and isinstance(error, BrokenPipeError)
            return sent, "closed" if refused else repr(error)
        finally:
            writer.close()

    def test_hangup(self) -> None:
        """SIGHUP is no stop, also where there is nothing to reload."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        for _ in range(2):  # before the first reply the reactor may not be running
            self.assertRegex(talk(service.connect(), b"hello\n"), STAMP + b"hello\n$")
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for("SIGHUP received: there are no certificates to reload")
        self.assertEqual(service.stop(), 0)

    def test_many_waiting(self) -> None:
        """More connections than one iteration serves have sent a line: all are answered."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        socks = [service.connect() for _ in range(connectable(self, 2000))]
        for sock in socks:
            sock.sendall(b"first\n")
        for sock in socks:
            self.assertRegex(sock.recv(100), STAMP + b"first\n$")
        os.kill(service.process.pid, signal.SIGSTOP)
        for sock in socks:
            sock.sendall(b"second\n")
        service.process.send_signal(signal.SIGTERM)
        os.kill(service.process.pid, signal.SIGCONT)
        for sock in socks:
            with sock:
                self.assertRegex(read_all(sock), STAMP + b"second\n$")
        self.assertEqual(service.wait(), 0)

    def test_at_once(self) -> None:
        """A signal right after the line "listening on" is a stop like any other."""
        for _ in range(5):
            service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket")
            self.assertEqual(service.stop(), 0)
            self.assertEqual(os.listdir(service.folder), [])

    def test_full_file_table(self) -> None:
        """What waits in the queue is answered although there are files for a few at a time only."""
        service = Service(
            *(self, "-l", "tcp:0:interface=127.0.0.1", "--max-connections", "1000"),
            *("--drain-timeout", "1000"),
            prefix=["prlimit", "--nofile=64:64"],
        )
        self.assertRegex(talk(service.connect(), LINES), REPLIES)
        os.kill(service.process.pid, signal.SIGSTOP)
        socks = [service.connect() for _ in range(150)]
        for sock in socks:
            self.addCleanup(sock.close)
            sock.sendall(b"hello\n")
        service.process.send_signal(signal.SIGTERM)
        os.kill(service.process.pid, signal.SIGCONT)
        for sock in socks:
            self.assertRegex(read_all(sock), STAMP + b"hello\n$")
            sock.close()
        self.assertEqual(service.wait(), 0)

    def test_pipeline(self) -> None:
        """Everything that had been sent is answered, also from the sender's own full buffer."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--framing", "line")
        with service.connect() as sock:
            sock.sendall(b"first\n")
            self.assertTrue(sock.recv(1024))
            os.kill(service.process.pid, signal.SIGSTOP)
            sent = fill(sock, b"x" * 99 + b"\n")
            self.assertGreater(sent, 10 * READ_SIZE)
            service.process.send_signal(signal.SIGTERM)
            os.kill(service.process.pid, signal.SIGCONT)
            sock.settimeout(PATIENCE)
            self.assertEqual(len(re.findall(STAMP, read_all(sock))), -(-sent // 100))
        self.assertEqual(service.wait(), 0)

    def test_ahead(self) -> None:
        """A client that does not wait for replies receives all: until then it can also send.

        A failed write would make many a client drop what it has not read.
        """
        service = Service(self, "-l", "unix:socket")
        received, stopped = 0, False
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(service.path())
            sock.setblocking(False)
            while True:
                readable, writable, _ = select.select([sock], [sock], [], PATIENCE)
                if writable:
                    sock.send(b"hello\n" * 50)
                if readable:
                    data = sock.recv(2**16)
                    if not data:
                        break
                    received += len(data)
                if received > 100_000 and not stopped:
                    service.process.send_signal(signal.SIGTERM)
                    stopped = True
        self.assertEqual(service.wait(), 0)
        self.assertIn(f" {received} bytes out; the service is stopping", service.log.text)

    def test_records(self) -> None:
        """So are many short TLS records."""
        files = self_signed(self.mktemp())
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        context = ssl.create_default_context(cafile=files.certificate)
        with context.wrap_socket(service.connect(), server_hostname="localhost") as sock:
            sock.sendall(b"first\n")
            self.assertTrue(sock.recv(1024))
            os.kill(service.process.pid, signal.SIGSTOP)
            for _ in range(3000):
                sock.sendall(b"x" * 63 + b"\n")
            service.process.send_signal(signal.SIGTERM)
            os.kill(service.process.pid, signal.SIGCONT)
            self.assertEqual(len(re.findall(STAMP, read_all(sock))), 3000)
        self.assertEqual(service.wait(), 0)

    def test_drain_timeout(self) -> None:
        """A client that neither reads nor closes delays the stop by no more than the timeout."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--drain-timeout", "1")
        with service.connect() as sock:
            fill(sock, b"x" * 1023 + b"\n")
            self.assertEqual(service.stop(), 0)
        self.assertIn("ended after", service.log.text)

    def test_no_close_notify(self) -> None:
        """A TLS client that does not answer the close does not delay the stop (twisted#7926)."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}", "--drain-timeout", "1000"),
        )
        context = ssl.create_default_context(cafile=files.certificate)
        with context.wrap_socket(service.connect(), server_hostname="localhost") as sock:
            sock.sendall(b"hello\n")
            self.assertRegex(sock.recv(100), STAMP + b"hello\n")
            self.assertEqual(service.stop(), 0)
        self.assertIn(" 1 message, 6 bytes in", service.log.text)

    def test_second_signal(self) -> None:
        """A second signal stops the service at once; SIGHUP does not."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--drain-timeout", "1000")
        with service.connect() as sock:
            fill(sock, b"x" * 1023 + b"\n")
            service.process.send_signal(signal.SIGTERM)
            service.log.wait_for("Port .* Closed")
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for("SIGHUP received")
            self.assertIsNone(service.process.poll())
            self.assertEqual(service.stop(), 0)
        self.assertNotIn("Traceback", service.log.text)

    def test_interrupt(self) -> None:
        """SIGINT (Ctrl-C) stops the service like SIGTERM."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        self.assertRegex(talk(service.connect(), LINES), REPLIES)  # it is running
        self.assertEqual(service.stop(signal.SIGINT), 0)
        self.assertIn("SIGINT received", service.log.text)


class StopWithoutEpollTests(StopTests):
    """The same on a system without epoll(7)."""

    without_epoll = True


class RestartTests(SynchronousTestCase):
    """A new process replaces the old one, on a socket that systemd keeps open."""

    def test_under_load(self) -> None:
        """No client is refused or reset; every message from before the stop is answered."""
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            self.address = listener.getsockname()
            self.service = activated(self, listener)
            self.stops: list[tuple[float, float]] = []
            self.answers = 0
            asyncio.run(self.restarts(listener))
        self.assertGreater(self.answers, 1000)

    async def restarts(self, listener: socket.socket) -> None:
        """Restart three times, while twenty clients connect, send and close without pause."""
        self.over = False
        clients = [asyncio.create_task(self.ask()) for _ in range(20)]
        for _ in range(3):
            await self.answered(500)
            begun = time.monotonic()
            self.stops.append((begun, float("inf")))
            self.assertEqual(await asyncio.to_thread(self.service.stop), 0)
            self.stops[-1] = begun, time.monotonic()
            self.service = await asyncio.to_thread(activated, self, listener)
        await self.answered(500)
        self.over = True
        await asyncio.gather(*clients)

    async def answered(self, more: int) -> None:
        """Wait until this many more messages are answered."""
        enough = self.answers + more
        while self.answers < enough:
            await asyncio.sleep(0)

    async def ask(self) -> None:
        """Connect, send, close; only a message sent during a stop may get no reply."""
        while not self.over:
            # Any refusal or reset is raised from here, and fails the test.
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(*self.address), PATIENCE
            )
            sent = time.monotonic()
            writer.write(b"hello\n")
            writer.write_eof()
            reply = await asyncio.wait_for(reader.read(), PATIENCE)
            writer.close()
            if reply:
                self.assertRegex(reply, b"^" + STAMP + b"hello\n$")
                self.answers += 1
            else:
                self.assertTrue([1 for begin, end in self.stops if begin <= sent <= end])


class StartTests(SynchronousTestCase):
    """Starts that fail."""

    def refused(self, *arguments: str, there: Sequence[str] = ()) -> str:
        """Run a twistd that fails with status 1, and return its last line.

        It must log no traceback, and leave no files but those that were there.
        """
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        for name in there:
            (folder / name).touch()
        done = twistd(folder, "-n", *arguments)
        output = (done.stdout + done.stderr).decode()
        self.assertEqual(done.returncode, 1, output)
        self.assertNotIn("Traceback", output)
        self.assertEqual(os.listdir(folder), list(there))
        return output.strip().splitlines()[-1]

    def test_bad_values(self) -> None:
        """A wrong option gets one line: no usage, no log."""
        for arguments, error in (
            (["--listen", "tcp:70000"], "expected a port from 0 to 65535, not 70000"),
            (["--listen", "bogus:1"], "not 'bogus:1': Unknown endpoint type: 'bogus'"),
            (["--stamp", "rfc822"], "--stamp: expected ctime, iso, unix"),
            (["--stamp", "%Q"], "--stamp: expected a strftime directive, not '%Q'"),
            (["--framing", "word"], "--framing: expected auto, line, chunk, not 'word'"),
            (["--listen", "ssl:0:privateKey=/nonexistent"], "/nonexistent: No such file or dir"),
            (["--listen", "tls:/nonexistent:port=0"], "/nonexistent: No such file or directory"),
        ):
            done = twistd(".", "-n", "tsecho", *arguments)
            line = done.stderr.decode()
            self.assertEqual((done.returncode, done.stdout, line.count("\n")), (1, b"", 1))
            self.assertTrue(line.startswith("tsecho: "), line)
            self.assertIn(error, line)

    def test_bad_certificates(self) -> None:
        """Certificates that are of no use are an error, for a daemon too."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        path = Path(folder, "a.pem")
        path.write_bytes(issued("localhost").key)
        for arguments in (["-n"], ["--logfile=log"]):
            done = twistd(folder, *arguments, "tsecho", "-l", f"tls:{folder}:port=0")
            line = (
                f"tsecho: --listen: cannot load the certificates of 'tls:{folder}:port=0':"
                f" {path}: its private key fits no certificate in {folder}\n"
            )
            self.assertEqual((done.returncode, done.stdout, done.stderr.decode()), (1, b"", line))
        self.assertEqual(os.listdir(folder), ["a.pem"])

    def test_port_in_use(self) -> None:
        """A port in use is an error; the ports opened before it are closed again."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            there = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            line = self.refused("tsecho", "-l", "unix:socket", "-l", there)
        self.assertIn(f"tsecho: cannot listen on {there}: Address already in use", line)

    def test_datagram_port_in_use(self) -> None:
        """A UDP port in use is an error, too."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            there = f"udp:{taken.getsockname()[1]}:interface=127.0.0.1"
            for stamp in ("ctime", "iso"):
                line = self.refused("tsecho", "-l", there, "-s", stamp)
                self.assertIn(f"cannot listen on {there}: Address already in use", line)

    def test_address_not_ours(self) -> None:
        """An address that this machine does not have is an error (RFC 5737)."""
        line = self.refused("tsecho", "-l", "tcp:0:interface=192.0.2.1")
        self.assertIn(
            "cannot listen on tcp:0:interface=192.0.2.1: Cannot assign requested address", line
        )

    def test_path_exists(self) -> None:
        """A file in the place of the UNIX socket is an error, and is not removed."""
        line = self.refused("tsecho", "-l", "unix:socket", there=["socket"])
        self.assertIn("cannot listen on unix:socket: Address already in use", line)

    def test_path_twice(self) -> None:
        """The same path twice is an error; the lock of the first is removed once."""
        line = self.refused("tsecho", "-l", "unix:socket", "-l", "unix:socket")
        self.assertIn("cannot listen on unix:socket: socket.lock is held by process ", line)

    def test_wrong_socket(self) -> None:
        """What systemd passes must be a listening or a bound datagram socket of the domain."""
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
            socket.socket() as stream,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as other,
            open(os.devnull, "rb") as null,
        ):
            expected = "expected a listening stream socket with domain=INET, got "
            for file, domain, error in (
                (
                    *(datagram, "INET"),
                    "expected a bound datagram socket with domain=INET, got one without a port",
                ),
                (datagram, "UNIX", "expected a datagram socket with domain=INET or INET6"),
                (stream, "INET", f"{expected}one that does not listen"),
                (other, "INET", f"{expected}one with domain=INET6"),
                (null, "INET", f"{expected}no socket"),
                (stream, "APPLETALK", "expected domain=INET, INET6 or UNIX"),
                (stream, "NET", "expected domain=INET, INET6 or UNIX, not NET"),
            ):
                endpoint = f"systemd:domain={domain}:index=0"
                command = [*passing(file), str(BIN / "twistd"), "-n", "--pidfile=", "tsecho"]
                done = run([*command, "-l", endpoint], pass_fds=[file.fileno()])
                output = (done.stdout + done.stderr).decode()
                self.assertEqual(done.returncode, 1, output)
                self.assertTrue(output.endswith(f": {error}\n"), output)
                self.assertIn(endpoint, output)
                self.assertNotIn("Traceback", output)

    def test_daemon_not_started(self) -> None:
        """A daemon that cannot start says why on one line, and leaves no pidfile."""
        folder = self.mktemp()
        os.makedirs(folder)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            there = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            done = twistd(folder, "--logfile=log", "tsecho", "-l", there)
        self.assertEqual(done.returncode, 1)
        error = f"tsecho: cannot listen on {there}: Address already in use\n"
        self.assertEqual((done.stdout, done.stderr.decode()), (b"", error))
        self.assertEqual(os.listdir(folder), ["log"])
        # The parent ends at the daemon's report; the daemon may log its last line later.
        deadline = time.monotonic() + PATIENCE
        while "Address already in use" not in (log := Path(folder, "log").read_text()):
            self.assertLess(time.monotonic(), deadline, log)
        self.assertNotIn("Traceback", log)

    def test_interrupted(self) -> None:
        """SIGINT (Ctrl-C) while it is starting ends it, without a traceback."""
        command = [sys.executable, "-c", SIGNALLED, "timestamp_echo.tap", "SIGINT"]
        command += [str(BIN / "twistd"), "-n", "--pidfile=", "tsecho"]
        done = run([*command, "-l", "tcp:0:interface=127.0.0.1"])
        self.assertEqual((done.returncode, done.stdout, done.stderr), (-signal.SIGINT, b"", b""))

    def test_hangup(self) -> None:
        """SIGHUP while it is starting does nothing, as there is nothing to reload yet."""
        prefix = [sys.executable, "-c", SIGNALLED, "timestamp_echo.tap", "SIGHUP"]
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", prefix=prefix)
        service.process.send_signal(signal.SIGHUP)  # it listens; its reactor may not run yet
        self.assertRegex(talk(service.connect(), LINES), REPLIES)
        self.assertEqual(service.stop(), 0)


class StandardIOTests(SynchronousTestCase):
    """`stdio:`, as under inetd or socat; the log is in a file."""

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a service on two pipes."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)
        arguments = [*REACTOR, "-n", "--pidfile=", "--logfile=log", "tsecho", "-l", "stdio:"]
        process = subprocess.Popen(
            [BIN / "twistd", *arguments, *options],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        for cleanup in (process.stdin.close, process.stdout.close, process.kill):
            self.addCleanup(cleanup)
        self.input, self.output = process.stdin, process.stdout
        return process

    def say_hello(self) -> None:
        """Send a line and read its reply: the service is running."""
        self.input.write(b"hello\n")
        self.input.flush()
        self.assertRegex(self.output.readline(), STAMP + b"hello\n$")

    def assert_ended(self, process: subprocess.Popen[bytes], why: str) -> None:
        """The service ends by itself with status 0, and has logged why its connection ended."""
        self.assertEqual(process.wait(PATIENCE), 0)
        log = (self.folder / "log").read_text()
        self.assertRegex(log, f"connection from stdio ended .*; {why}\n")
        self.assertNotIn("Traceback", log)

    def test_end_of_input(self) -> None:
        """At the end of its input everything is answered, and the service ends."""
        process = self.start()
        output, _ = process.communicate(LINES, PATIENCE)
        self.assertRegex(output, REPLIES)
        self.assert_ended(process, "closed by the peer")

    def test_idle(self) -> None:
        """After the idle timeout an incomplete message is answered, and the service ends."""
        process = self.start("--idle-timeout", "1", "--framing", "line")
        self.say_hello()
        self.input.write(b"incomplete")
        self.input.flush()
        self.assertRegex(self.output.read(), STAMP + b"incomplete$")
        self.assert_ended(process, "idle for 1 s")

    def test_stop(self) -> None:
        """A stop answers what has arrived: here, as much as a pipe holds."""
        process = self.start()
        self.say_hello()
        process.send_signal(signal.SIGSTOP)
        self.input.write(b"x" * 63 + b"\n")
        self.input.flush()
        for _ in range(15):
            os.write(self.input.fileno(), (b"x" * 63 + b"\n") * 60)  # at most a page is atomic
        process.terminate()
        process.send_signal(signal.SIGCONT)
        self.assertEqual(len(re.findall(STAMP + b"x{63}\n", self.output.read())), 901)
        self.assert_ended(process, "the service is stopping")

    def test_long_line(self) -> None:
        """A line that takes several pages of a pipe is one message."""
        process = self.start()
        self.say_hello()
        line = b"x" * 15_000 + b"\n"
        self.input.write(line)
        self.input.flush()
        self.assertRegex(self.output.readline(), STAMP + line + b"$")
        process.terminate()
        self.assert_ended(process, "the service is stopping")

    def test_drain_timeout(self) -> None:
        """A reader that does not read delays a stop by no more than the timeout."""
        process = self.start("--drain-timeout", "1")
        self.say_hello()
        os.set_blocking(self.input.fileno(), False)
        while select.select([], [self.input], [], 0.25)[1]:
            os.write(self.input.fileno(), b"x" * 1023 + b"\n")
        process.terminate()
        self.assert_ended(process, "aborted by the server")

    def test_reader_gone(self) -> None:
        """When nobody reads its output any more, the service ends."""
        process = self.start()
        self.say_hello()
        self.output.close()
        self.assert_ended(process, "connection lost")


LATE_ENDPOINT = """
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer

@implementer(IPlugin, IStreamServerEndpointStringParser)
class Late:
    prefix = "late"

    def parseStreamServer(self, reactor, how):
        return Endpoint(reactor, how)

@implementer(IStreamServerEndpoint)
class Endpoint:
    def __init__(self, reactor, how):
        self.reactor, self.how = reactor, how

    def listen(self, factory):
        if self.how == "never":
            return Deferred(lambda _: print("cancelled"))
        return deferLater(self.reactor, 0.01, self.open, factory)

    def open(self, factory):
        if self.how == "fails":
            raise CannotListenError(None, 0, OSError("not today"))
        return TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(factory)

late = Late()
"""
"""A plugin for Twisted: `late:opens`, `late:fails` and `late:never` listen after a while."""


class LateTests(SynchronousTestCase):
    """Endpoints of others that open their ports later, such as an onion service's."""

    def setUp(self) -> None:
        """Install the plugin in a folder."""
        folder = Path(self.mktemp()).absolute()
        (folder / "twisted" / "plugins").mkdir(parents=True)
        (folder / "twisted" / "plugins" / "late.py").write_text(LATE_ENDPOINT)
        self.environment = {"PYTHONPATH": str(folder)}

    def test_opens(self) -> None:
        """It is opened once, and closed at a stop."""
        service = Service(self, "-l", "late:opens", environment=self.environment)
        self.assertRegex(talk(service.connect(), LINES), REPLIES)
        self.assertEqual(service.stop(), 0)
        self.assertEqual(service.log.text.count("listening on"), 1)
        self.assertNotIn("Traceback", service.log.text)

    def test_never_opens(self) -> None:
        """A stop cancels the opening, and does not wait for it."""
        service = Service(
            *(self, "-l", "tcp:0:interface=127.0.0.1", "--listen=late:never"),
            environment=self.environment,
        )
        self.assertRegex(talk(service.connect(), LINES), REPLIES)
        self.assertEqual(service.stop(), 0)
        self.assertIn("cancelled", service.log.text)
        self.assertNotIn("Traceback", service.log.text)

    def test_fails(self) -> None:
        """If it cannot be opened, the service stops, with one line and status 1."""
        service = Service(
            *(self, "-l", "tcp:0:interface=127.0.0.1", "--listen=late:fails"),
            environment=self.environment,
            twistd=["--pidfile=pid"],
        )
        self.assertEqual(service.wait(), 1)
        service.log.wait_for("tsecho: cannot listen on late:fails: not today$")
        self.assertNotIn("Traceback", service.log.text)
        self.assertEqual(os.listdir(service.folder), [])

    def test_daemon(self) -> None:
        """A daemon's start ends when all listeners are open, or when one has failed."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        command = [str(BIN / "twistd"), *REACTOR, "--pidfile=pid", "--logfile=log", "tsecho"]
        environment = os.environ | self.environment
        done = run([*command, "-l", "late:fails"], cwd=folder, env=environment)
        error = b"tsecho: cannot listen on late:fails: not today\n"
        self.assertEqual((done.returncode, done.stdout, done.stderr), (1, b"", error))
        self.assertEqual(os.listdir(folder), ["log"])
        done = run([*command, "-l", "late:opens"], cwd=folder, env=environment)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
        self.assertRegex((folder / "log").read_text(), r"listening on late:\d+")
        pid = int((folder / "pid").read_text())
        watch = os.pidfd_open(pid)
        self.addCleanup(os.close, watch)
        os.kill(pid, signal.SIGTERM)
        self.assertTrue(select.select([watch], [], [], PATIENCE)[0])


class JSONTests(SynchronousTestCase):
    """`twist --log-format=json tsecho`."""

    def test_fields(self) -> None:
        """Each line is an object that has the fields of its line; a stop has status 0."""
        process = subprocess.Popen(
            [BIN / "twist", "--log-format=json", "tsecho", "-l", "tcp:0:interface=127.0.0.1"],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        for cleanup in (process.stdout.close, process.wait, process.kill):
            self.addCleanup(cleanup)
        log = Log(process.stdout)
        (port,) = log.wait_for(r'"where": "tcp:(\d+):interface=127.0.0.1"')
        talk(socket.create_connection(("127.0.0.1", int(port)), PATIENCE), LINES)
        log.wait_for("closed by the peer")
        process.send_signal(signal.SIGHUP)
        log.wait_for("SIGHUP received")
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)
        events = [json.loads(text) for text in log.finish().split("\x1e")[1:]]
        (ended,) = [event for event in events if event.get("why")]
        self.assertEqual(
            [ended[name] for name in ("messages", "received", "why", "log_namespace")],
            [3, len(LINES), "closed by the peer", "timestamp_echo.server.log.ConnectionLog"],
        )
        self.assertTrue(ended["peer"].startswith("127.0.0.1:"))
        for event in events:
            names = re.findall(r"{(\w+)", event["log_format"])
            self.assertLessEqual(set(names), set(event), event)


class DaemonTests(SynchronousTestCase):
    """`twistd` with a pidfile and a logfile."""

    def test_daemon(self) -> None:
        """It runs in the background, and is stopped by its pidfile."""
        folder = os.path.abspath(self.mktemp())
        os.makedirs(folder)
        done = twistd(
            folder,
            *("--pidfile=pid", "--logfile=log", "tsecho"),
            *("-l", "unix:socket", "-l", "udp:0:interface=127.0.0.1", "-s", "iso"),
        )
        # The parent ends when the service has started, so there is nothing to wait for.
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
        pid = int(Path(folder, "pid").read_text())
        try:
            self.assertTrue(stat.S_ISSOCK(os.stat(f"{folder}/socket").st_mode))
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE)
            sock.connect(os.path.relpath(f"{folder}/socket"))
            self.assertEqual(len(parse(talk(sock, b"hello")[1:33].decode())), 3)
        finally:
            watch = os.pidfd_open(pid)
            os.kill(pid, signal.SIGTERM)
            self.assertTrue(select.select([watch], [], [], PATIENCE)[0])
            os.close(watch)
        self.assertEqual(os.listdir(folder), ["log"])
        log = Path(folder, "log").read_text()
        self.assertIn("listening on unix:", log)
        self.assertNotIn("Traceback", log)

    def test_privileges(self) -> None:
        """A port under 1024 is opened before root privileges are dropped."""
        if os.getuid() != 0:
            self.skipTest("only root can drop privileges")
        port = self.low_port()
        service = Service(
            self,
            *("-l", f"tcp:{port}:interface=127.0.0.1"),
            twistd=["--uid=65534", "--gid=65534"],
        )
        self.assertRegex(talk(service.connect(), LINES), REPLIES)
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        self.assertRegex(status, r"Uid:\t65534\t65534")

    def low_port(self) -> int:
        """A free port under 1024."""
        for port in range(1023, 512, -1):
            with socket.socket() as sock:
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise AssertionError("no free port under 1024")

    def test_reactors(self) -> None:
        """It works with each of Twisted's reactors for Linux."""
        for reactor in ("epoll", "poll", "select", "asyncio"):
            service = Service(
                self,
                *("-l", "tcp:0:interface=127.0.0.1", "-s", "iso"),
                twistd=[f"--reactor={reactor}"],
            )
            self.assertEqual(talk(service.connect(), b"a\nb").count(b"] "), 2)
            service.stop()
            self.assertNotIn("Traceback", service.log.text)


class DatagramTests(SynchronousTestCase):
    """UDP, over real sockets."""

    def ask(self, family: int, address: Any, message: bytes) -> bytes:
        """Send a datagram, and return its reply."""
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(address)
            sock.send(message)
            return sock.recv(2**16)

    def test_families(self) -> None:
        """Datagrams are answered over IPv4 and IPv6, with and without arrival times."""
        for style in ("ctime", "unix"):
            service = Service(
                self,
                *("-l", "udp:0:interface=127.0.0.1", "-l", "udp:0:interface=::1"),
                *("--stamp", style),
            )
            for index, family, host in (
                (0, socket.AF_INET, "127.0.0.1"),
                (1, socket.AF_INET6, "::1"),
            ):
                reply = self.ask(family, (host, service.port(index)), b"a\nb")
                self.assertTrue(reply.endswith(b"] a\nb"))

    def test_large(self) -> None:
        """The longest datagram whose reply fits into one is answered whole."""
        service = Service(self, "-l", "udp:0:interface=127.0.0.1")
        address = ("127.0.0.1", service.port())
        message = b"x" * (65507 - 27)
        self.assertTrue(self.ask(socket.AF_INET, address, message).endswith(b"] " + message))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x" * 65507, address)
        self.ask(socket.AF_INET, address, b"after it")
        service.stop()
        self.assertIn("datagrams not answered: 1 impossible to send", service.log.text)
        self.assertNotIn("Traceback", service.log.text)

    def test_closed_ports(self) -> None:
        """Replies to ports that are closed meanwhile do not stop the port (twisted#6287)."""
        service = Service(self, "-l", "udp:0:interface=127.0.0.1")
        address = ("127.0.0.1", service.port())
        # Bound first: with the port of a socket that is closed, it would get that one's reply.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(address)
            for _ in range(100):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x", address)
            asking.send(b"after it")
            self.assertTrue(asking.recv(100).endswith(b"] after it"))
        service.stop()
        self.assertNotIn("Traceback", service.log.text)

    def stop_with_datagrams(
        self, counts: Sequence[int], hosts: Sequence[str] = ("127.0.0.1", "::1"), rate: int = 10**6
    ) -> tuple[str, int]:
        """Stop a service while datagrams to its listeners are in the receive buffers.

        @param counts: how many there are for each listener.
        @param hosts: the addresses of the listeners.
        @param rate: --udp-rate.
        @return: the service's log, and how many datagrams were answered.
        """
        listeners = ["udp:0:interface=" + host.replace(":", "\\:") for host in hosts]
        options = [option for listener in listeners for option in ("-l", listener)]
        service = Service(self, *options, "--udp-rate", str(rate))
        self.ask(socket.AF_INET, (hosts[0], service.port()), b"the reactor runs")
        service.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, service.process.pid, os.WSTOPPED)
        with contextlib.ExitStack() as stack:
            socks = []
            for index, (host, count) in enumerate(zip(hosts, counts, strict=True)):
                for start in range(0, count, 100):  # as many replies as fit into each buffer
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    socks.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
                    socks[-1].connect((host, service.port(index)))
                    for _ in range(min(count - start, 100)):
                        socks[-1].send(b"x")
            service.process.send_signal(signal.SIGTERM)
            service.process.send_signal(signal.SIGCONT)
            self.assertEqual(service.wait(), 0)
            return service.log.text, sum(map(count_datagrams, socks))

    def test_stop(self) -> None:
        """At a stop everything that has arrived is answered."""
        for counts in ((50, 50), (500, 0), (0, 500)):
            log, answered = self.stop_with_datagrams(counts)
            self.assertEqual(answered, sum(counts))
            self.assertNotIn("not answered", log)

    def test_overflow(self) -> None:
        """Datagrams that the receive buffer had no room for are counted in the log."""
        log, answered = self.stop_with_datagrams((12_000, 0))
        (lost,) = map(int, re.findall(r"(\d+) lost in a full receive buffer", log))
        self.assertEqual(lost + answered, 12_000)

    def test_rate(self) -> None:
        """--udp-rate limits the answers to a source, over all listeners; the log has the others."""
        log, answered = self.stop_with_datagrams((25, 25), ("127.0.0.1", "127.0.0.1"), rate=5)
        self.assertIn(answered, (4, 5))  # one more was answered before, perhaps over a second ago
        refused = map(int, re.findall(r"not answered: (\d+) over the rate limit", log))
        self.assertEqual(sum(refused), 50 - answered)


class DatagramWithoutRecvmmsgTests(DatagramTests):
    """The same on a system without recvmmsg(2)."""

    without_recvmmsg = True


class PeerTests(SynchronousTestCase):
    """Other programs as clients and proxies."""

    def setUp(self) -> None:
        """Start a service in the default framing."""
        self.service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        self.port = str(self.service.port())

    def test_lab_client(self) -> None:
        """The lab's client, which sends no newlines and reads 1024 bytes, gets its replies."""
        words = ["hello", "你好", "x" * 900, "👋"]
        replies = lab.ask(("127.0.0.1", int(self.port)), words)
        for word, reply in zip(words, replies, strict=True):
            self.assertRegex(reply, "^" + STAMP.decode() + word + "$")

    def test_nc(self) -> None:
        """`nc -N`, which closes its side at the end of its input, gets all replies."""
        done = run([needs("nc"), "-N", "127.0.0.1", self.port], input=LINES)
        self.assertRegex(done.stdout, REPLIES)

    def test_socat(self) -> None:
        """`socat`, which then waits only half a second for replies, gets them all."""
        done = run([needs("socat"), "-", f"TCP:127.0.0.1:{self.port}"], input=LINES)
        self.assertRegex(done.stdout, REPLIES)

    def test_socat_tls(self) -> None:
        """So does `socat` over TLS, with a close_notify."""
        files = self_signed(self.mktemp())
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        where = f"OPENSSL:localhost:{service.port()},pf=ip4,cafile={files.certificate}"
        done = run([needs("socat"), "-", where], input=LINES)
        self.assertRegex(done.stdout, REPLIES)

    def test_haproxy(self) -> None:
        """HAProxy works with both versions of its header, and with TLS to the service."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-l", "haproxy:tcp:0:interface=127.0.0.1"),
            *("-l", f"haproxy:ssl:0:interface=127.0.0.1:{files.endpoint}"),
        )
        for index, how in (
            (0, "send-proxy"),
            (0, "send-proxy-v2"),
            (1, f"send-proxy ssl verify required ca-file {files.certificate}"),
        ):
            with self.balanced(f"127.0.0.1:{service.port(index)} {how}") as sock:
                self.assertRegex(talk(sock, LINES), REPLIES)

    @contextlib.contextmanager
    def balanced(self, server: str) -> Iterator[socket.socket]:
        """Connect to this server through HAProxy."""
        settings = Path(self.mktemp())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            settings.write_text(
                "defaults\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n"
                f"listen echo\n bind fd@{listener.fileno()}\n server tsecho {server}\n"
            )
            balancer = subprocess.Popen(
                [needs("haproxy"), "-db", "-f", settings],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                yield socket.create_connection(listener.getsockname(), PATIENCE)
            finally:
                balancer.terminate()
                balancer.wait(PATIENCE)

    def test_openssl(self) -> None:
        """`openssl s_client` gets its reply while it is connected."""
        files = self_signed(self.mktemp())
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        self.assert_answered(
            *(needs("openssl"), "s_client", "-quiet", "-verify_return_error"),
            *("-CAfile", files.certificate, "-connect", f"127.0.0.1:{service.port()}"),
        )

    def test_protocols_offered(self) -> None:
        """Clients that offer protocols (ALPN) are served, as `curl` does, whatever they are."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        kinds = (f"ssl:0:interface=127.0.0.1:{files.endpoint}", f"tls:{folder}:0:50:127.0.0.1")
        listen = [word for kind in kinds for word in ("-l", kind, "-l", f"haproxy:{kind}")]
        service = Service(self, *listen)
        for _ in range(2):
            for index in range(4):
                self.assert_curl_served(service.port(index), proxied=index % 2 == 1)
                if index % 2 == 0:
                    self.assert_answered(
                        *(needs("openssl"), "s_client", "-quiet", "-alpn", "h2,foo"),
                        *("-connect", f"127.0.0.1:{service.port(index)}"),
                    )
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for("certificates of .* reloaded", 4)

    def assert_curl_served(self, port: int, *, proxied: bool) -> None:
        """`curl` gets a reply, which it says is not HTTP."""
        header = ["--haproxy-protocol"] if proxied else []
        done = run([needs("curl"), "-sSk", *header, f"https://127.0.0.1:{port}/"])
        self.assertIn(b"HTTP/0.9 when not allowed", done.stderr)

    def test_new_key(self) -> None:
        """A TLS client that updates its key between two lines (KeyUpdate) gets both replies."""
        files = self_signed(self.mktemp())
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        process = subprocess.Popen(
            [needs("openssl"), "s_client", "-brief", "-connect", f"127.0.0.1:{service.port()}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        timeout = threading.Timer(PATIENCE, process.kill)
        timeout.start()
        self.addCleanup(timeout.cancel)
        assert process.stdin is not None and process.stdout is not None
        with process.stdin, process.stdout:
            # A line of a single k makes s_client send a KeyUpdate.
            for line, answer in (
                (b"one\n", b"] one\n"),
                (b"k\n", b"KEYUPDATE\n"),
                (b"2\n", b"] 2\n"),
            ):
                process.stdin.write(line)
                process.stdin.flush()
                while not (got := process.stdout.readline()).endswith(answer):
                    self.assertNotEqual(got, b"")
        process.wait(PATIENCE)

    def test_telnet(self) -> None:
        """`telnet` shows the reply while it is connected."""
        self.assert_answered(needs("telnet"), "127.0.0.1", self.port)

    def assert_answered(self, *command: str) -> None:
        """A line on the standard input of this program is answered while it runs."""
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None and process.stdout is not None
        with process.stdin, process.stdout:
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            replies = (line for line in process.stdout if line.startswith(b"["))
            self.assertRegex(next(replies), STAMP + b"hello\r?\n")
            process.terminate()
        process.wait(PATIENCE)
