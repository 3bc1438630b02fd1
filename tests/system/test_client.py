"""Tests of the client as a process: in a pipe and on a terminal, with servers of all kinds."""

from __future__ import annotations

import os
import pty
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.running import (
    BIN,
    PATIENCE,
    SIGNALLED,
    STAMP,
    Screen,
    Service,
    Window,
    lab_server,
    plain_echo,
    read_all,
    run,
    tsecho,
)

LINES = "one\n你好\n\nlast 👋".encode()
REPLIES = re.compile(
    STAMP + b"one\n" + STAMP + "你好\n".encode() + STAMP + b"\n" + STAMP + "last 👋".encode()
)


def wait_for_end(connection: socket.socket) -> None:
    """Wait until the client has closed, or aborted, both directions of a connection."""
    poller = select.poll()
    poller.register(connection, 0)  # POLLERR and POLLHUP are always reported
    assert poller.poll(PATIENCE * 1000)


class PipeTests(SynchronousTestCase):
    """`tsecho` in a pipe."""

    def assert_answered(self, *arguments: str) -> None:
        """Every line is answered in order, the last without a newline; the status is 0."""
        done = tsecho(*arguments, stdin=LINES)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertTrue(REPLIES.fullmatch(done.stdout), done.stdout)

    def test_families(self) -> None:
        """Over TCP by name and by address, UNIX sockets and datagrams, in either framing."""
        for framing in ("auto", "line"):
            service = Service(
                self,
                *("-l", "tcp:0:interface=127.0.0.1", "-l", "tcp6:0:interface=\\:\\:1"),
                *("-l", "unix:socket", "-l", "udp:0:interface=127.0.0.1"),
                *("--framing", framing),
            )
            port, port6, _, udp = (service.port(i) if i != 2 else 0 for i in range(4))
            for server in (
                f"localhost:{port}",
                f"127.0.0.1:{port}",
                f"[::1]:{port6}",
                f"unix:{service.path()}",
                f"udp:127.0.0.1:{udp}",
                f"tcp:host=127.0.0.1:port={port}",
            ):
                self.assert_answered(server)
            self.assert_answered("connect", f"localhost:{port}")

    def test_one_family(self) -> None:
        """-4 and -6 use addresses of one family only."""
        listen = ("-l", "tcp:0:interface=127.0.0.1", "-l", "udp:0:interface=127.0.0.1")
        service = Service(self, *listen)
        for server in (f"localhost:{service.port()}", f"udp:localhost:{service.port(1)}"):
            self.assert_answered("-4", server)
            self.assertEqual(tsecho("ping", "-c", "1", "--ipv4", server).returncode, 0)
            done = tsecho("-6", server, stdin=LINES)
            self.assertEqual((done.returncode, done.stdout), (2, b""))

    def test_many_datagrams(self) -> None:
        """More lines than the server answers in a second are all answered, in order."""
        service = Service(self, "-l", "udp:0:interface=127.0.0.1")
        lines = [b"%d" % number for number in range(3000)]
        done = tsecho(f"udp:127.0.0.1:{service.port()}", stdin=b"\n".join(lines))
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual([reply.rpartition(b"] ")[2] for reply in done.stdout.split(b"\n")], lines)

    def test_tls(self) -> None:
        """Over TLS, by name and by address; the last line has no newline."""
        files = self_signed(self.mktemp())
        for framing in ("auto", "line"):
            service = Service(
                self,
                *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}", "--framing", framing),
            )
            for host in ("localhost", "127.0.0.1"):
                self.assert_answered(f"tls:{host}:{service.port()}", "--ca", files.certificate)

    def test_tls_not_trusted(self) -> None:
        """A certificate that is not trusted, or for another name, is refused with a hint."""
        files = self_signed(self.mktemp(), "example.org")
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        server = f"tls:localhost:{service.port()}"
        for arguments in ([server], [server, "--ca", files.certificate]):
            done = tsecho(*arguments, stdin=LINES)
            self.assertEqual((done.returncode, done.stdout), (2, b""))
            self.assertIn(f"cannot connect to {server}: ".encode(), done.stderr)
            self.assertIn(b"--insecure", done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_tls_insecure(self) -> None:
        """`--insecure` accepts any certificate, and prints a warning."""
        files = self_signed(self.mktemp(), "example.org")
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        done = tsecho(f"tls:localhost:{service.port()}", "--insecure", stdin=LINES)
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout, REPLIES)
        self.assertIn(b"tsecho: warning: --insecure", done.stderr)

    def test_client_certificate(self) -> None:
        """A server that asks for a client's certificate: `--cert` and `--key` show one."""
        files, alice, bob = (
            self_signed(self.mktemp(), name) for name in ("localhost", "alice", "bob")
        )
        service = Service(
            self,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("--client-ca", alice.certificate),
        )
        server = (f"tls:localhost:{service.port()}", "--ca", files.certificate)
        shown = ("--cert", alice.certificate, "--key", alice.key)
        done = tsecho(*server, *shown, stdin=LINES)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(done.stdout, REPLIES)
        self.assertEqual(tsecho("ping", "-c", "1", *server, *shown).returncode, 0)
        for arguments, words in (
            ([], b"the server asks for a client certificate (--cert FILE)\n"),
            (
                ["--cert", bob.certificate, "--key", bob.key],
                b"the server does not know the authority of the client certificate\n",
            ),
        ):
            done = tsecho(*server, *arguments, stdin=LINES)
            self.assertEqual((done.returncode, done.stdout), (1, b""))
            self.assertTrue(done.stderr.endswith(words), done.stderr)

    def test_no_tls_there(self) -> None:
        """A server without TLS: the message says so."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        done = tsecho(f"tls:localhost:{service.port()}", "--insecure")
        self.assertEqual(done.returncode, 2)
        self.assertTrue(
            done.stderr.endswith(b": the server does not speak TLS on this port\n"), done.stderr
        )

    def test_tls_there(self) -> None:
        """Plain text to a server of TLS, which closes the connection: the message asks."""
        files = self_signed(self.mktemp())
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        done = tsecho(f"localhost:{service.port()}", stdin=LINES)
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertTrue(
            done.stderr.endswith(b" (if it speaks TLS, use tls:host:port)\n"), done.stderr
        )

    def test_file_as_input(self) -> None:
        """A regular file as standard input, which epoll(7) cannot watch."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        path = Path(self.mktemp())
        path.write_bytes(b"".join(b"%d\n" % i for i in range(50_000)))
        with path.open("rb") as file:
            done = run([BIN / "tsecho", f"localhost:{service.port()}"], stdin=file)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(re.sub(STAMP, b"", done.stdout), path.read_bytes())
        self.assertEqual(len(re.findall(STAMP, done.stdout)), 50_000)

    def test_no_input(self) -> None:
        """Without input there is no reply and no error."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        done = run([BIN / "tsecho", f"localhost:{service.port()}"])
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def test_blocking(self) -> None:
        """Standard input, which other processes may share, is as blocking as before."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        for blocking in (True, False):
            read, write = os.pipe()
            with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as writer:
                os.set_blocking(read, blocking)
                writer.write(b"one\n")
                writer.close()
                done = run([BIN / "tsecho", f"localhost:{service.port()}"], stdin=reader)
                self.assertEqual((done.returncode, done.stderr), (0, b""))
                self.assertEqual(os.get_blocking(read), blocking)

    def test_output_terminal(self) -> None:
        """With input from a pipe, replies to a terminal are escaped as well."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        user, terminal = pty.openpty()
        self.addCleanup(os.close, user)
        self.addCleanup(os.close, terminal)
        subprocess.run(
            [BIN / "tsecho", f"localhost:{service.port()}"],
            input=b"a\x1bb\n",
            stdout=terminal,
            timeout=PATIENCE,
            check=True,
        )
        self.assertRegex(os.read(user, 1024), b"^" + STAMP + rb"a\\x1bb\r\n$")

    def test_long_line(self) -> None:
        """A line of several megabytes."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--framing", "line")
        for line in (b"x" * 5_000_000, b"x" * 5_000_000 + b"\nend\n"):
            done = tsecho(f"localhost:{service.port()}", stdin=line)
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertEqual(re.sub(STAMP, b"", done.stdout), line)

    def test_any_bytes(self) -> None:
        """Replies are written byte for byte, in each framing, behind any stamp."""
        data = bytes(range(256)) * 100 + random.Random(15).randbytes(2**20)
        for framing in ("auto", "line", "chunk"):
            for stamp, pattern in (("ctime", STAMP), ("[%H]%M", rb"\[\[\d\d\]\d\d\] ")):
                service = Service(
                    self,
                    *("-l", "tcp:0:interface=127.0.0.1", "--framing", framing, "-s", stamp),
                )
                done = tsecho(f"localhost:{service.port()}", stdin=data)
                self.assertEqual((done.returncode, done.stderr), (0, b""))
                self.assertEqual(re.sub(pattern, b"", done.stdout), data)

    def test_module(self) -> None:
        """`python -m timestamp_echo` is the same command."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        command = [sys.executable, "-m", "timestamp_echo", f"localhost:{service.port()}"]
        self.assertRegex(run(command, input=LINES).stdout, REPLIES)


class OtherServerTests(SynchronousTestCase):
    """`tsecho` with servers that are not tsecho, and with none."""

    def listener(self) -> socket.socket:
        """A listening socket for a test's own server."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        return listener

    def serve(self, act: Callable[[socket.socket], None]) -> str:
        """Serve one connection in a thread.

        @param act: is called with the connection.
        @return: the server's host and port.
        """
        listener = self.listener()

        def first() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                act(connection)

        server = threading.Thread(target=first)
        server.start()
        self.addCleanup(server.join, PATIENCE)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def test_lab_server(self) -> None:
        """The server of the lab, which stamps what each `recv` returns."""
        server = lab_server(self)
        done = tsecho(server, stdin=LINES)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(re.sub(STAMP, b"", done.stdout), LINES)

    def test_plain_echo(self) -> None:
        """A plain echo (RFC 862): socat's."""
        done = tsecho(plain_echo(self), stdin=LINES)
        self.assertEqual((done.returncode, done.stdout), (0, LINES))

    def test_closes_early(self) -> None:
        """A server that closes early: the error has the number of missing replies."""

        def act(connection: socket.socket) -> None:
            connection.recv(1024)
            connection.sendall(b"[x] one\n")

        server = self.serve(act)
        process = subprocess.Popen(
            [BIN / "tsecho", server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin and process.stdout and process.stderr
        with process.stdin, process.stdout, process.stderr:
            process.stdin.write(b"one\ntwo\nthree\n")
            process.stdin.flush()  # not closed: the server closes first
            self.assertEqual(process.stdout.read(), b"[x] one\n")
            message = process.stderr.read().decode()
        self.assertEqual(process.wait(PATIENCE), 1)
        self.assertIn(f"tsecho: 2 of 3 lines were not answered by {server}: ", message)

    def test_resets(self) -> None:
        """So it is for a server that resets the connection."""

        def act(connection: socket.socket) -> None:
            connection.recv(1024)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        done = tsecho(self.serve(act), stdin=b"one\n")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"1 of 1 lines were not answered", done.stderr)

    def test_does_not_close(self) -> None:
        """A server that answers every line but never closes does not block the client."""

        def act(connection: socket.socket) -> None:
            connection.sendall(read_all(connection))
            wait_for_end(connection)

        done = tsecho(self.serve(act), stdin=b"one\n")
        self.assertEqual((done.returncode, done.stdout), (0, b"one\n"))

    def test_garbled(self) -> None:
        """One garbled line in a thousand ends the session: it is reported, and not printed."""

        def act(connection: socket.socket) -> None:
            received = connection.makefile("rb")
            for number in range(1, 1001):
                line = received.readline()
                connection.sendall(b"[t] " + (line if number < 1000 else line.upper()))
            read_all(connection)

        lines = [b"line %d\n" % number for number in range(2000)]
        server = self.serve(act)
        done = tsecho(server, stdin=b"".join(lines))
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, b"".join(b"[t] " + line for line in lines[:999]))
        self.assertRegex(
            done.stderr.decode(),
            rf"^tsecho: \d+ of \d+ lines were not answered by {server}:"
            r" the server sent '\[t\] LINE 999', which is not a reply\n$",
        )

    def test_refusal(self) -> None:
        """A full server refuses with a line that is no reply, whether or not there is input."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--max-connections", "1")
        server = f"127.0.0.1:{service.port()}"
        with service.connect() as first:
            first.sendall(b"a\n")
            first.recv(100)
            for stdin in (b"one\n", b""):
                done = tsecho(server, stdin=stdin)
                self.assertEqual((done.returncode, done.stdout), (1, b""))
                self.assertRegex(
                    done.stderr.decode(),
                    # The refusal may come before the line is sent.
                    rf"^tsecho: (1 of 1 lines were not answered by )?{server}: the server sent"
                    r" 'tsecho: too many connections: the limit is 1', which is not a reply\n$",
                )

    def test_http(self) -> None:
        """The 400 of an HTTP server is no reply, nor is one that was not asked for."""

        def act(connection: socket.socket) -> None:
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n")

        done = tsecho(self.serve(act), stdin=b"one\n")
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertIn(
            b"the server sent 'HTTP/1.1 400 Bad Request', which is not a reply", done.stderr
        )

    def test_cut_short(self) -> None:
        """A last reply that is cut short is missing, though the connection is closed in order."""
        for stdin, reply in ((b"one\ntwo\n", b"[t] one\n[t] tw"), (b"one\ntwo", b"one\ntw")):

            def act(connection: socket.socket, reply: bytes = reply) -> None:
                read_all(connection)
                connection.sendall(reply)

            done = tsecho(self.serve(act), stdin=stdin)
            self.assertEqual((done.returncode, done.stdout), (1, reply[: reply.index(b"\n") + 1]))
            self.assertIn(b"1 of 2 lines were not answered", done.stderr)

    def test_timeout(self) -> None:
        """`--timeout` ends the wait for a reply, for a connection, and over UDP for a datagram."""

        def act(connection: socket.socket) -> None:
            wait_for_end(connection)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, self.listener() as tls:
            silent.bind(("127.0.0.1", 0))
            for server, status, message in (
                (self.serve(act), 1, "1 of 1 lines were not answered by {}: no reply within 0.2 s"),
                (
                    f"tls:127.0.0.1:{tls.getsockname()[1]}",
                    2,
                    "cannot connect to {}: no answer in time",
                ),
                (
                    f"udp:127.0.0.1:{silent.getsockname()[1]}",
                    1,
                    "1 of 1 lines were not answered by {}: no reply came in time",
                ),
            ):
                done = tsecho(server, "--timeout", "0.2", stdin=b"one\n")
                expected = f"tsecho: {message.format(server)}\n"
                self.assertEqual((done.returncode, done.stderr.decode()), (status, expected))

    def test_no_input(self) -> None:
        """A server that closes at once left nothing unanswered if there is no input."""

        def act(connection: socket.socket) -> None:
            connection.shutdown(socket.SHUT_RDWR)

        done = tsecho(self.serve(act))
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def test_datagrams(self) -> None:
        """A datagram that is no reply ends the session."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            other.settimeout(PATIENCE)
            answer = threading.Thread(target=lambda: other.sendto(b"no", other.recvfrom(99)[1]))
            answer.start()
            done = tsecho(f"udp:127.0.0.1:{other.getsockname()[1]}", stdin=b"one\ntwo\n")
            answer.join(PATIENCE)
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertIn(b"2 of 2 lines were not answered", done.stderr)
        self.assertIn(b"the server sent 'no', which is not a reply", done.stderr)

    def test_two_stamps(self) -> None:
        """A message without a newline may be answered in several chunks, each with a stamp."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--framing", "chunk")
        done = tsecho(f"localhost:{service.port()}", stdin=b"x" * 300_000)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertGreater(len(re.findall(STAMP, done.stdout)), 1)

    def test_refused(self) -> None:
        """A closed port, over TCP and UDP, or a missing UNIX socket: one line names the server."""
        with self.listener() as listener:
            port = listener.getsockname()[1]
        for server in (f"127.0.0.1:{port}", f"localhost:{port}", f"udp:127.0.0.1:{port}"):
            done = tsecho(server, stdin=b"one\n")
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"{server}: Connection refused\n".encode(), done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1)
        done = tsecho("unix:/nonexistent")
        self.assertEqual(
            (done.returncode, done.stderr),
            (2, b"tsecho: cannot connect to unix:/nonexistent: No such file or directory\n"),
        )

    def test_no_such_name(self) -> None:
        """A name that does not exist (RFC 6761, section 6.4)."""
        for server in ("tsecho.invalid", "udp:tsecho.invalid"):
            done = tsecho(server)
            self.assertEqual(done.returncode, 2)
            self.assertIn(b"tsecho.invalid:3000: ", done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_datagrams_lost(self) -> None:
        """Datagrams without a reply are counted."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            server = f"udp:127.0.0.1:{silent.getsockname()[1]}"
            done = tsecho(server, stdin=b"one\n")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"1 of 1 lines were not answered", done.stderr)


class UsageTests(SynchronousTestCase):
    """The command line, and standard streams that are closed, full or limited."""

    def test_usage(self) -> None:
        """Wrong arguments: one line on standard error, status 2."""
        for arguments in (
            *(["bogus:x:y"], ["host:99999"], ["--nonsense"], ["--ca", "x"], ["a", "b"], ["--ca"]),
            *(["--timeout", "0"], ["--timeout", "x"], ["--timeout"], ["--key", "x"]),
            *(["a\n\x1bb:c:d"], [b"\xff:x:y".decode(errors="surrogateescape")]),
        ):
            done = tsecho(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, b""))
            self.assertRegex(done.stderr, rb"^tsecho: [ -~]+\n$")

    def test_version(self) -> None:
        """Each command has `--version`."""
        for command in ([], ["connect"], ["ping"]):
            done = tsecho(*command, "--version")
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertRegex(done.stdout, rb"^tsecho \d+\.\d+\.\d+\n$")

    def test_help(self) -> None:
        """`tsecho help` lists the commands, a line each; `tsecho help ping` is that of `ping`."""
        general, ping = (tsecho(*command, "--help").stdout for command in ([], ["ping"]))
        for command in (b"connect", b"ping", b"help"):
            self.assertRegex(general, rb"\n  %b +\S" % command)
        self.assertIn(b"\n  0    every line was answered", general)
        for arguments, words in (
            (["help"], general),
            (["help", "--help"], general),
            (["help", "connect"], general),
            (["help", "ping"], ping),
            (["connect", "-h"], general),
        ):
            done = tsecho(*arguments)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, words, b""))

    def test_no_such_help(self) -> None:
        """The help of anything else is an error."""
        done = tsecho("help", "localhost")
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertEqual(done.stderr, b"tsecho help: expected connect or ping, not 'localhost'\n")

    def test_server_named_like_a_command(self) -> None:
        """`tsecho connect help` is a connection to a server of that name."""
        for name in ("help", "ping"):
            done = tsecho("connect", name, "--timeout", "1")
            self.assertIn(f"cannot connect to {name}:3000".encode(), done.stderr)

    def test_reader_gone(self) -> None:
        """A reader that leaves, as in `| head -1`, is no error."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        command = f"yes | {BIN}/tsecho localhost:{service.port()} | head -1"
        done = run(["bash", "-c", f"set -o pipefail; {command}; echo ${{PIPESTATUS[1]}}"])
        self.assertRegex(done.stdout, b"^" + STAMP + b"y\n0\n$")
        self.assertEqual(done.stderr, b"")

    def test_output_full(self) -> None:
        """A full disk is an error."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [BIN / "tsecho", f"localhost:{service.port()}"],
                input=b"one\n",
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=PATIENCE,
                check=False,
            )
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output could not be written", done.stderr)

    def test_closed(self) -> None:
        """A standard input or output that is closed from the start is an error."""
        for closed, name in (("<&-", b"standard input"), (">&-", b"standard output")):
            done = run(["bash", "-c", f"{BIN}/tsecho localhost:1 {closed}"])
            self.assertEqual(done.returncode, 2)
            self.assertEqual(done.stderr, b"tsecho: expected an open " + name + b"; it is closed\n")

    def test_output_limited(self) -> None:
        """So is an output that reaches its limit after the server has closed."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        folder = self.mktemp()
        os.makedirs(folder)
        command = f"ulimit -f 4; seq 1 300 | {BIN}/tsecho localhost:{service.port()} > out"
        # The limit is for every file, and coverage would exceed it, too.
        kept = {key: value for key, value in os.environ.items() if "COVERAGE" not in key}
        done = run(["bash", "-c", command], cwd=folder, env=kept)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output could not be written", done.stderr)

    def test_help_full(self) -> None:
        """A help, a version or a schema that cannot be written is an error; a reader may leave."""
        for arguments in (
            "--help",
            "--version",
            "help ping",
            "ping --version",
            "ping --json-schema",
        ):
            done = run(["bash", "-c", f"{BIN}/tsecho {arguments} > /dev/full"])
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, b"^.*: cannot write standard output: No space left .*\n$")
            done = run(["bash", "-c", f"{BIN}/tsecho {arguments} | true"])
            self.assertEqual(done.stderr, b"")

    def test_command_late(self) -> None:
        """A command behind an option is no server: the error says where it belongs."""
        for arguments in (
            ["-4", "ping"],
            ["--insecure", "ping", "localhost"],
            ["localhost", "help"],
        ):
            done = tsecho(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn(b"tsecho: expected the command first, as in tsecho ", done.stderr)

    def test_errors_full(self) -> None:
        """A standard error that is full does not change the status."""
        for arguments in ("unix:/nonexistent", "--nonsense", "ping unix:/nonexistent"):
            done = run(["bash", "-c", f"{BIN}/tsecho {arguments} 2>/dev/full"])
            self.assertEqual((done.returncode, done.stdout), (2, b""))

    def test_input_unreadable(self) -> None:
        """An input that cannot be read is an error, not the end of the input."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        with open(os.devnull, "wb") as not_for_reading:
            done = run([BIN / "tsecho", f"localhost:{service.port()}"], stdin=not_for_reading)
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertEqual(done.stderr, b"tsecho: standard input could not be read\n")

    def test_no_stderr(self) -> None:
        """With standard error closed, the message is not printed elsewhere."""
        done = run(["bash", "-c", f"{BIN}/tsecho unix:/nonexistent 2>&-"])
        self.assertEqual((done.returncode, done.stdout), (2, b""))

    def test_signals(self) -> None:
        """SIGINT (Ctrl-C) ends it with status 130, SIGTERM with 143."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = subprocess.Popen(
                [BIN / "tsecho", f"localhost:{service.port()}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdin and process.stdout and process.stderr
            with process.stdin, process.stdout, process.stderr:
                process.stdin.write(b"one\n")
                process.stdin.flush()
                process.stdout.readline()
                process.send_signal(number)
                self.assertEqual(process.wait(PATIENCE), status)
                self.assertEqual(process.stderr.read(), b"")

    def test_interrupted_at_start(self) -> None:
        """SIGINT also ends it while it is starting, without a traceback."""
        for module, *arguments in (
            ("timestamp_echo.client",),
            ("timestamp_echo.client", "ping"),
            ("twisted.internet.reactor",),
            ("twisted.internet.reactor", "ping"),
        ):
            command = [sys.executable, "-c", SIGNALLED, module, "SIGINT", str(BIN / "tsecho")]
            done = run([*command, *arguments, "unix:/nonexistent"])
            self.assertEqual((done.returncode, done.stderr), (130, b""), (module, arguments))

    def test_interrupt_ignored_at_start(self) -> None:
        """Where SIGINT is ignored, as in the background of a script, it is while starting, too."""
        ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
        command = [sys.executable, "-c", SIGNALLED, "timestamp_echo.client", "SIGINT"]
        done = run([*ignoring, *command, str(BIN / "tsecho"), "unix:/nonexistent"])
        self.assertEqual(done.returncode, 2)

    def test_interrupted_while_connecting(self) -> None:
        """SIGINT also ends it during the TLS handshake."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = subprocess.Popen(
                [BIN / "tsecho", f"tls:127.0.0.1:{listener.getsockname()[1]}"],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdin and process.stderr
            with process.stdin, process.stderr, listener.accept()[0] as connection:
                connection.recv(1)
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(PATIENCE), 130)
                self.assertEqual(process.stderr.read(), b"")


class PlainTerminalTests(SynchronousTestCase):
    """`tsecho` on a terminal that edits lines itself: TERM says that it can do no more."""

    def setUp(self) -> None:
        """Start a service, and the client on a pseudo-terminal."""
        self.service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        server = f"127.0.0.1:{self.service.port()}"
        self.screen = Screen(self, BIN / "tsecho", server, term="dumb")
        self.screen.see(r"^Lines go to 127\.0\.0\.1:\d+\. An empty line or Ctrl-D ends\.\r\n> ")

    def test_lines(self) -> None:
        """After each reply it prompts again; an empty line ends it."""
        stamp = STAMP.decode()
        self.screen.type("hello\n")
        self.screen.see(f"> hello\r\n{stamp}hello\r\n> ")
        self.screen.type("你好 👋\n")
        self.screen.see(f"你好 👋\r\n{stamp}你好 👋\r\n> ")
        self.screen.type("\n")
        self.assertEqual(self.screen.status(), 0)

    def test_end_of_input(self) -> None:
        """Ctrl-D ends it."""
        self.screen.type("\x04")
        self.assertEqual(self.screen.status(), 0)

    def test_interrupt(self) -> None:
        """Ctrl-C ends it with status 130."""
        self.screen.type("\x03")
        self.assertEqual(self.screen.status(), 130)

    def test_control_characters(self) -> None:
        """Control characters in a reply are escaped."""
        self.screen.type("a\x16\x1bcb\n")  # Ctrl-V: the next key is literal
        self.screen.see(STAMP.decode() + r"a\\x1bcb\r\n> ")

    def test_server_killed(self) -> None:
        """A connection lost at the prompt is reported, with status 1."""
        self.service.stop(signal.SIGKILL)
        self.assertEqual(self.screen.status(), 1)
        self.screen.see(r"> \r\ntsecho: 127\.0\.0\.1:\d+: .*[Cc]onnection.*\r\n")


class TerminalTests(SynchronousTestCase):
    """`tsecho` on a terminal."""

    def setUp(self) -> None:
        """Start a service, and the client on a pseudo-terminal."""
        self.service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        self.screen = Screen(self, BIN / "tsecho", f"127.0.0.1:{self.service.port()}")
        self.screen.see(r"^Lines go to 127\.0\.0\.1:\d+\. An empty line or Ctrl-D ends\.\r\n.*> ")

    def test_lines(self) -> None:
        """After each reply it prompts again; an empty line ends it."""
        stamp = STAMP.decode()
        self.screen.type("hello\n")
        self.screen.see(f"> hello\r\n.*{stamp}hello\r\n.*> ")
        self.screen.type("\n")
        self.assertEqual(self.screen.status(), 0)

    def test_not_utf8(self) -> None:
        """Bytes that are not UTF-8 are sent as they are, and shown as escapes; so in any locale."""
        for locale, line, shown in (
            ("C.UTF-8", b"a\xffb", r"a\\xffb"),
            ("C", b"\xff\xe4d", r"\\xff\\xe4d"),
        ):
            server = f"127.0.0.1:{self.service.port()}"
            screen = Screen(self, "env", f"LC_ALL={locale}", BIN / "tsecho", server)
            screen.see("> ")
            screen.type_bytes(line + b"\n")
            screen.see(rf"{STAMP.decode()}{shown}\r\n.*> ")

    def test_end_of_input(self) -> None:
        """Ctrl-D ends it, on a line of its own."""
        self.screen.type("\x04")
        self.assertEqual(self.screen.status(), 0)
        self.screen.see("> [^\n]*\r\n[^\n]*")

    def test_interrupt(self) -> None:
        """Ctrl-C and SIGTERM end it with their statuses, and leave the terminal as it was."""
        for end, status in (
            (signal.SIGINT, 130),
            (signal.SIGTERM, 143),
        ):
            self.screen.type("unfinished")
            self.screen.see("unfinished")
            if end == signal.SIGINT:
                self.screen.type("\x03")
            else:
                self.screen.process.send_signal(end)
            self.assertEqual(self.screen.status(), status)
            self.setUp()

    def test_interrupt_while_waiting(self) -> None:
        """So does Ctrl-C while a reply is awaited."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            screen = Screen(self, BIN / "tsecho", f"127.0.0.1:{listener.getsockname()[1]}")
            with listener.accept()[0] as connection:
                screen.see("> ")
                screen.type("hello\n")
                self.assertEqual(connection.recv(1024), b"hello\n")
                screen.type("\x03")
                self.assertEqual(screen.status(), 130)

    def test_typed_ahead(self) -> None:
        """What is typed while a reply is awaited is the next line: whole, and shown once."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            screen = Screen(self, BIN / "tsecho", f"127.0.0.1:{listener.getsockname()[1]}")
            with listener.accept()[0] as connection, connection.makefile("rwb", 0) as server:
                screen.see("> ")
                screen.type("hello\n")
                self.assertEqual(server.readline(), b"hello\n")
                screen.type("<" + "y" * 5000 + "\n")
                server.write(b"[x] hello\n")
                self.assertEqual(server.readline(), b"<" + b"y" * 5000 + b"\n")
                server.write(b"[x] <" + b"y" * 5000 + b"\n")
                screen.see(r"\[x\] <y+\r\n.*> ")
                self.assertEqual(screen.seen.count("<"), 2)

    def test_control_characters(self) -> None:
        """Control characters in a reply are escaped."""
        self.screen.type("a\x16\x1bcb\n")  # Ctrl-V: the next key is literal
        self.screen.see(STAMP.decode() + r"a\\x1bcb\r\n.*> ")

    def test_server_killed(self) -> None:
        """A connection lost at the prompt is reported, with status 1."""
        self.screen.type("unfinished")
        self.screen.see("unfinished")
        self.service.stop(signal.SIGKILL)
        self.assertEqual(self.screen.status(), 1)
        self.screen.see(r"tsecho: 127\.0\.0\.1:\d+: .*[Cc]onnection.*\r\n")

    def test_suspended(self) -> None:
        """Ctrl-Z leaves the terminal as it was, also where the shell does not see to that."""
        command = f"{BIN}/tsecho 127.0.0.1:{self.service.port()}; stty -a; fg"
        screen = Screen(self, "sh", "-mc", command)
        screen.see("> ")
        screen.type("\x1a")
        screen.see(r" icanon(.|\n)* echo (.|\n)*> ")
        screen.type("\x03")
        self.assertEqual(screen.status(), 130)

    def test_output_elsewhere(self) -> None:
        """With standard output elsewhere there is no greeting, no prompt and no escape."""
        path = Path(self.mktemp())
        command = f"{BIN}/tsecho 127.0.0.1:{self.service.port()} > {path}"
        screen = Screen(self, "sh", "-c", command)
        screen.type("a\x16\x1bb\n\n")
        self.assertEqual(screen.status(), 0)
        self.assertRegex(path.read_bytes(), b"^" + STAMP + b"a\x1bb\n$")

    def test_without_readline(self) -> None:
        """With a Python without GNU readline, the terminal edits the lines."""
        program = "import sys; sys.modules['readline'] = None; from timestamp_echo.__main__ import"
        command = [sys.executable, "-c", f"{program} main; sys.exit(main())"]
        screen = Screen(self, *command, f"127.0.0.1:{self.service.port()}")
        screen.see(r"Ctrl-D ends\.\r\n> ")
        screen.type("hello\n")
        screen.see(f"> hello\r\n{STAMP.decode()}hello\r\n> ")


class WindowTests(SynchronousTestCase):
    """`tsecho` in a window of tmux: what a person sees."""

    def setUp(self) -> None:
        """Start a service, and the client in a window."""
        self.window = Window(self)
        self.service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        self.stamp = STAMP.decode()
        self.start(self.service.port())

    def start(self, port: int) -> None:
        """Start the client in an empty window, with the server on this port."""
        self.window.type(f"clear; {BIN}/tsecho 127.0.0.1:{port}")
        self.window.press("Enter")
        self.window.see(r"\ALines go to .*\n> $")

    def test_editing(self) -> None:
        """Arrow keys, Home and End move within the line; Tab is a tab."""
        self.window.type("helo")
        self.window.press("Left", "l", "Home", "H", "DC", "End", "Tab", "!", "Enter")
        self.window.see(rf"^> Hello\s+! *\n{self.stamp}Hello\s+!\n> $")

    def test_deleted(self) -> None:
        """Backspace removes one character, however wide."""
        self.window.type("a你好👍")
        self.window.press("BSpace", "BSpace")
        self.window.see("^> a你 *$")
        self.window.press("BSpace", "b", "Enter")
        self.window.see(rf"^> ab *\n{self.stamp}ab\n> $")

    def test_history(self) -> None:
        """Up and Ctrl-R find the lines of this run and of earlier ones."""
        for line in ("first", "second"):
            self.window.type(line)
            self.window.press("Enter")
            self.window.see(f"{line}\n> $")
        self.window.press("Up", "Up", "Enter")
        self.window.see(rf"^> first *\n{self.stamp}first\n> $")
        self.window.press("C-d")
        self.window.see(r"^\$ $")
        self.start(self.service.port())
        self.window.press("Up", "Up")
        self.window.see("^> second *$")
        self.window.press("C-r", "r", "s", "t")
        self.window.see(r"\(reverse-i-search\)`rst': first")
        self.window.press("Enter")
        self.window.see(rf"{self.stamp}first\n> $")
        self.assertEqual(
            Path(self.window.home, "tsecho", "history").read_text(), "first\nsecond\nfirst\n"
        )

    def test_paste(self) -> None:
        """Pasted lines are sent after Enter, each whole and with its reply."""
        self.window.paste("one\n\ttwo\n\nthree\n")
        self.window.see("^> one\n +two *\n *\nthree *")
        self.window.press("Enter")
        replies = "\n".join(self.stamp + line for line in ("one", r"\s+two", " *", "three"))
        self.window.see(rf"^{replies}\n> $")

    def test_long_paste(self) -> None:
        """A pasted line of 5,000 characters is sent whole."""
        self.window.paste("z" * 5000)
        self.window.press("Enter")
        self.window.see("z\n> $")
        kept = Path(self.window.home, "tsecho", "history").read_text()
        self.assertEqual(kept, "z" * 5000 + "\n")

    def test_suspended(self) -> None:
        """Ctrl-Z gives the shell its terminal, and `fg` shows the line again, to be edited."""
        self.window.type("heo")
        self.window.press("Left", "l")
        self.window.see("^> helo *$")
        self.window.press("C-z")
        self.window.see(r"^> helo *\n(\^Z)?\n?\[1\]\+ +Stopped[^$]*\$ $")
        self.window.type("echo $(stty -a | grep -wo -e -icanon -e -echo -e icanon) here")
        self.window.press("Enter")
        self.window.see("^icanon here")
        self.window.type("fg")
        self.window.press("Enter")
        self.window.see(r"^\S+tsecho \S+\n(.*\n)*> helo *$")
        self.window.press("l", "Enter")
        self.window.see(rf"^> hello *\n{self.stamp}hello\n> $")
        self.window.press("C-c")
        self.window.see(r"^\$ $")

    def test_background(self) -> None:
        """Started in the background it waits for `fg`; `kill` ends it while it is stopped."""
        self.window.press("C-c")
        self.window.see(r"^\$ $")
        self.window.type(f"clear; {BIN}/tsecho 127.0.0.1:{self.service.port()} &")
        self.window.press("Enter")
        self.window.see("Lines go to")
        self.window.type("fg")
        self.window.press("Enter")
        self.window.see("^> $")
        self.window.type("hello")
        self.window.press("Enter")
        self.window.see(rf"{self.stamp}hello\n> $")
        self.window.press("C-z")
        self.window.see(r"Stopped[^$]*\$ $")
        self.window.type("kill %1; while kill -0 %1; do :; done; echo gone")
        self.window.press("Enter")
        self.assertNotIn("Traceback", self.window.see(r"^gone\n"))

    def test_resized(self) -> None:
        """A line fits itself to a window that changes its size."""
        self.window.type("y" * 50)
        self.window.see("^> y{50}$")
        self.window.resize(40)
        self.window.press("Home", "x")
        self.window.see("^> xy{37}\ny{13} *$")
        self.window.press("Enter")
        self.window.see("y\n> $")
        self.window.press("C-c")
        self.window.see(r"^\$ $")

    def test_suspended_while_waiting(self) -> None:
        """Ctrl-Z and another size of the window while a reply is awaited change nothing."""
        self.window.press("C-d")
        self.window.see(r"^\$ $")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.start(listener.getsockname()[1])
            with listener.accept()[0] as connection:
                self.window.type("hello")
                self.window.press("Enter")
                self.assertEqual(connection.recv(1024), b"hello\n")
                self.window.resize(50)
                self.window.press("C-z")
                self.window.see(r"\[1\]\+ +Stopped[^$]*\$ $")
                self.window.type("clear; fg")
                self.window.press("Enter")
                self.window.see(r"\A\S+tsecho")
                connection.sendall(b"[x] hello\n")
                self.window.see(r"^\[x\] hello\n> $")
                self.window.press("C-c")
                self.window.see(r"^\$ $")

    def test_server_killed(self) -> None:
        """A lost connection is reported in place of the prompt and the line, of several rows."""
        self.window.type("y" * 150)
        self.window.press("Home", "x")
        self.window.see("^> xy+\ny+\ny+$")
        self.service.stop(signal.SIGKILL)
        self.window.see(r"\ALines go to .*\ntsecho: 127\.0\.0\.1:\d+: .*\n(.*\n)?\$ $")
