"""`tsecho ping` as a process, against servers of all kinds, and on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import SCHEMA, validated
from tests.system.certificates import self_signed
from tests.system.running import (
    BIN,
    PATIENCE,
    Screen,
    Service,
    Status,
    faketime,
    lab_server,
    plain_echo,
    run,
    tsecho,
)
from timestamp_echo.ping import command
from timestamp_echo.ping.arguments import new_parser
from timestamp_echo.transports.arrivals import LINUX

MILLI = 10**6


def ping(*arguments: str) -> Status:
    """Run `tsecho ping` to its end."""
    return tsecho("ping", *arguments)


def measured(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run `tsecho ping --json`; return its exit status and the objects it wrote, all valid."""
    done = ping("--json", *arguments)
    return done.returncode, [validated(line) for line in done.stdout.splitlines()]


class ServerTests(SynchronousTestCase):
    """Servers of all kinds."""

    def test_families(self) -> None:
        """TCP, UNIX, UDP and TLS, with one probe and with several in flight."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *("-s", "unix", "-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"),
            *(
                "-l",
                "udp:0:interface=127.0.0.1",
                "-l",
                f"ssl:0:interface=127.0.0.1:{files.endpoint}",
            ),
        )
        for server in (
            [f"localhost:{service.port()}"],
            [f"unix:{service.path()}"],
            [f"udp:localhost:{service.port(2)}"],
            [f"tls:localhost:{service.port(3)}", "--ca", files.certificate],
        ):
            for plan in (["-i", "0.02"], ["-f", "-n", "3"]):
                status, records = measured("-c", "6", *plan, *server)
                *_, summary = records
                self.assertEqual((status, summary["received"], summary["lost"]), (0, 6, 0))
                self.assertLess(0, summary["rtt_ns"]["min"])
                offset = summary["offset"]
                self.assertLessEqual(abs(offset["offset_ns"]), offset["bound_ns"])
                self.assertLess(offset["bound_ns"], 500 * MILLI)
                if LINUX and not server[0].startswith("unix:"):
                    self.assertGreater(summary["own_delay_ns"]["max"], 0)

    def test_insecure(self) -> None:
        """`--insecure` prints a warning."""
        files = self_signed(self.mktemp(), "example.org")
        service = Service(self, "-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        done = ping("-c", "1", "--insecure", f"tls:localhost:{service.port()}")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr, rb"^tsecho: warning: --insecure: .*\n$")

    def test_framings(self) -> None:
        """Every framing, with the smallest and the largest probe."""
        for framing in ("auto", "line", "chunk"):
            service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "--framing", framing)
            for size in ("25", "65000"):
                where = f"127.0.0.1:{service.port()}"
                status, records = measured("-c", "4", "-i", "0.02", "-s", size, where)
                self.assertEqual((status, records[-1]["received"]), (0, 4))
                self.assertEqual(records[-1]["altered"], 0)

    def test_lines(self) -> None:
        """One line per probe, like those of ping, and a summary."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        where = f"127.0.0.1:{service.port()}"
        done = ping("-c", "2", "-i", "0.02", "-s", "100", where)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        clock = r"clock=[+-][\d.]+ (to|±) [+-]?[\d.]+ m?s\n"
        late = r"(late=[\d.]+ ms\s+)?"  # on a busy machine; it may leave no room for the clock
        line = rf"{where}: seq=\d time=\d+\.\d{{3}} ms {late}{clock}"
        words = done.stdout.decode()
        self.assertRegex(words, rf"^({line}){{2}}--- {where} tsecho ping ---\n")
        self.assertRegex(
            words, r"\n2 sent, 2 received, 0 % loss, time \d+\.\d s\nrtt min/avg/max/mdev"
        )

    def test_lab_server(self) -> None:
        """The lab's server, which reads 1,024 bytes at a time; it still works afterwards."""
        server = lab_server(self)
        status, records = measured("-c", "2", "-i", "0.02", server)
        self.assertEqual((status, records[-1]["received"], records[-1]["altered"]), (0, 2, 0))
        self.assertIsNotNone(records[-1]["offset"])
        status, records = measured("-c", "2", "-i", "0.02", "-s", "3000", server)
        self.assertEqual((status, records[-1]["received"], records[-1]["altered"]), (0, 2, 0))
        self.assertEqual(ping("-c", "1", server).returncode, 0)

    def test_plain_echo(self) -> None:
        """A plain echo has round trips, but no clock."""
        done = ping("-c", "2", "-i", "0.02", plain_echo(self))
        self.assertEqual(done.returncode, 0)
        self.assertNotIn(b"clock=", done.stdout)
        self.assertIn(b"clock: unknown, the replies have no known stamp", done.stdout)

    def test_wrong_clock(self) -> None:
        """A clock that is 2.345 s ahead, with coarse and with fine stamps: the bound holds."""
        ahead = 2345 * MILLI
        for style, probes in (("ctime", ["-c", "5"]), ("unix", ["-c", "5", "-i", "0.05"])):
            service = Service(
                self,
                # On a UNIX socket there is no arrival time of the kernel's, which is never wrong.
                *("-l", "unix:socket", "-s", style),
                environment=faketime("+2.345s") | {"TZ": "Asia/Kathmandu"},
            )
            status, (*_, summary) = measured(*probes, f"unix:{service.path()}")
            offset = summary["offset"]
            self.assertEqual((status, summary["received"]), (0, 5))
            self.assertLessEqual(abs(offset["offset_ns"] - ahead), offset["bound_ns"])
            self.assertLess(offset["bound_ns"], 100 * MILLI)
            self.assertEqual(offset["zone_s"], 20700 if style == "ctime" else 0)

    def test_wrong_rate(self) -> None:
        """A clock that is 0.5 % fast: the bound of the drift holds."""
        service = Service(
            self,
            *("-l", "unix:socket", "-s", "unix"),
            environment=faketime("+2.345s x1.005"),
        )
        status, (*_, summary) = measured("-c", "60", "-i", "0.05", f"unix:{service.path()}")
        drift = summary["drift"]
        self.assertEqual((status, summary["received"], summary["steps"]), (0, 60, []))
        self.assertLessEqual(abs(drift["rate_ppb"] - 5_000_000), drift["bound_ppb"])
        self.assertLess(drift["bound_ppb"], 1_000_000)

    def test_delay(self) -> None:
        """A delay of 40 ms in one direction is in the round trip, and in the bound."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "-s", "unix")
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def relay() -> None:
            with listener.accept()[0] as client, service.connect() as server:
                while data := client.recv(2**16):
                    server.sendall(data)
                    reply = server.recv(2**16)
                    time.sleep(0.04)
                    client.sendall(reply)

        thread = threading.Thread(target=relay)
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        status, (*_, summary) = measured("-c", "4", "-i", "0.01", where)
        offset = summary["offset"]
        self.assertEqual(status, 0)
        self.assertGreater(summary["rtt_ns"]["min"], 40 * MILLI)
        self.assertLess(
            offset["offset_ns"], -15 * MILLI
        )  # half of it: the midpoint assumes equal delays
        self.assertLessEqual(abs(offset["offset_ns"]), offset["bound_ns"])
        self.assertEqual(summary["sent_late"], 3)
        self.assertGreater(summary["rtt_from_due_ns"]["max"], 2 * summary["rtt_ns"]["min"])

    def datagrams(self, act: Callable[[socket.socket, bytes, Any, int], None]) -> str:
        """Start a server that calls `act` with its socket, a datagram, sender and number from 1."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            for number in range(1, 10**9):
                data, sender = sock.recvfrom(2**16)
                if data == b"end":
                    return
                act(sock, data, sender, number)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        self.addCleanup(sock.sendto, b"end", sock.getsockname())
        return f"udp:127.0.0.1:{sock.getsockname()[1]}"

    def test_lossy(self) -> None:
        """A lost and a duplicate datagram are reported and counted; status 1."""

        def act(sock: socket.socket, data: bytes, sender: Any, number: int) -> None:
            if number != 2:
                sock.sendto(data, sender)
            if number == 3:
                sock.sendto(data, sender)

        done = ping("-c", "4", "-i", "0.02", "-W", "0.1", self.datagrams(act))
        self.assertEqual(done.returncode, 1)
        words = done.stdout.decode()
        self.assertIn("seq=2 lost: no reply within 0.1 s\n", words)
        self.assertIn("4 sent, 3 received, 25 % loss", words)
        self.assertIn("duplicates: 1\n", words)

    def test_reordered(self) -> None:
        """Reordered replies are counted."""
        held: list[bytes] = []

        def act(sock: socket.socket, data: bytes, sender: Any, number: int) -> None:
            held.append(data)
            if number % 3 == 0:
                while held:
                    sock.sendto(held.pop(), sender)

        status, (*_, summary) = measured("-c", "6", "-f", "-n", "3", self.datagrams(act))
        self.assertEqual((status, summary["received"], summary["reordered"]), (0, 6, 4))

    def test_silent(self) -> None:
        """Without any reply there is a summary, and status 1."""
        where = self.datagrams(lambda *_: None)
        done = ping("-c", "2", "-i", "0.02", "-W", "0.05", where)
        self.assertEqual((done.returncode, done.stderr), (1, b""))
        self.assertIn(b"2 sent, 0 received, 100 % loss", done.stdout)
        done = ping("-w", "0.8", where)
        self.assertEqual((done.returncode, done.stderr), (1, b""))
        self.assertIn(b"1 sent, 0 received, 0 % loss, 1 in flight", done.stdout)

    def test_reconnects(self) -> None:
        """After a server closes the connection, it is made again."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve() -> None:
            for _ in range(2):
                with listener.accept()[0] as connection:
                    connection.sendall(connection.recv(1024))

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        done = ping("-i", "0.4", "-c", "4", f"127.0.0.1:{listener.getsockname()[1]}")
        words = done.stdout.decode()
        self.assertEqual(done.returncode, 1)
        self.assertRegex(words, "connection lost: .*\n(.*\n)+reconnected\n")
        self.assertIn("\n4 sent, 2 received, 50 % loss", words)
        self.assertIn("\nreconnects: 1\n", words)

    def test_refused(self) -> None:
        """Connection refused over TCP, UNIX and UDP, or unknown name: one line, and status 2."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for server in (
            *([f"localhost:{port}"], [f"udp:localhost:{port}"], ["unix:/nowhere"], ["a.invalid"]),
            ["-f", "-n", "5", f"udp:127.0.0.1:{port}"],
        ):
            done = ping("-c", "5", *server)
            self.assertEqual((done.returncode, done.stdout), (2, b""))
            self.assertRegex(done.stderr, b"^tsecho: cannot connect to .*: .*\n$")


class UsageTests(SynchronousTestCase):
    """The command line, signals and output."""

    def test_bad_values(self) -> None:
        """A bad value: one line says what was expected and what was given; status 2."""
        self.assertEqual(ping("-c", "0").returncode, 2)
        for arguments, words in (
            (["-c", "0"], "-c/--count: expected a whole number from 1 to 1000000000, not '0'"),
            (["-c", "x"], "-c/--count: expected a whole number from 1 to 1000000000, not 'x'"),
            (["-n", "0"], "-n/--in-flight: expected a whole number from 1 to 10000, not '0'"),
            (["-n", "10001"], "expected a whole number from 1 to 10000, not '10001'"),
            (["-s", "24"], "-s/--size: expected a whole number from 25 to 65000, not '24'"),
            (["-s", "٣٣"], "-s/--size: expected a whole number from 25 to 65000, not '٣٣'"),
            (["-i", "0"], "-i/--interval: expected seconds from 0.001 to 1000000, not '0'"),
            (["-W", "nan"], "-W/--timeout: expected seconds from 0.001 to 1000000, not 'nan'"),
            (["-i", "1_0"], "-i/--interval: expected seconds from 0.001 to 1000000, not '1_0'"),
            (["-w", "soon"], "-w/--deadline: expected seconds from 0.001 to 1000000, not 'soon'"),
            (
                ["--plot", "x.gif"],
                "--plot: expected a name that ends with .png or .svg, not 'x.gif'",
            ),
            (["-f", "-i", "1"], "-i/--interval: cannot be combined with -f/--flood"),
            (["localhost:0"], "expected a port from 1 to 65535, not 0 in 'localhost:0'"),
            (["--ca", "x", "localhost"], "--ca, --cert, --key and --insecure are for tls:"),
        ):
            said = io.StringIO()
            with redirect_stderr(said), self.assertRaises(SystemExit) as exited:
                command.main(arguments)
            self.assertEqual(exited.exception.code, 2)
            error, rest = said.getvalue().split("\n")
            self.assertEqual(rest, "")
            self.assertTrue(error.startswith("tsecho ping: "), error)
            self.assertIn(words, error)

    def test_long_names(self) -> None:
        """Each option of one letter has a long name too."""
        parser = new_parser()
        for short, long in (
            *(("-c", "--count"), ("-i", "--interval"), ("-n", "--in-flight"), ("-s", "--size")),
            *(("-w", "--deadline"), ("-W", "--timeout"), ("-f", "--flood"), ("-q", "--quiet")),
        ):
            value = [] if short in ("-f", "-q") else ["30"]
            given = parser.parse_args([short, *value])
            self.assertEqual(parser.parse_args([long, *value]), given)
            self.assertNotEqual(given, parser.parse_args([]))

    def test_help(self) -> None:
        """`--help` lists every option."""
        words = ping("--help").stdout.decode()
        for option in (
            "-c",
            "-i",
            "-n",
            "-s",
            "-w",
            "-W",
            "-f",
            "-q",
            "--exact",
            "--json",
            "--plot",
            "--ca",
        ):
            self.assertIn(f"  {option}", words)

    def test_exact(self) -> None:
        """`--exact` is part of the plan."""
        for arguments in ([], ["--exact"]):
            plan = command._plan(new_parser().parse_args(arguments))
            self.assertEqual(plan.exact, bool(arguments))

    def test_schema(self) -> None:
        """`--json-schema` prints the schema; each kind of line of a real run is valid."""
        done = ping("--json-schema")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(json.loads(done.stdout), SCHEMA)
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        process = self.started(
            *("--json", "-i", "30", "-c", "9", f"127.0.0.1:{service.port()}"), first=b'"seq": 1,'
        )
        assert process.stdout
        process.send_signal(signal.SIGQUIT)
        self.assertEqual(validated(process.stdout.readline())["type"], "progress")
        service.stop()
        self.assertEqual(validated(process.stdout.readline())["type"], "event")
        process.send_signal(signal.SIGINT)
        self.assertEqual(validated(process.stdout.read())["type"], "summary")

    def started(self, *arguments: str, first: bytes = b"seq=1 ") -> subprocess.Popen[bytes]:
        """A process that runs until it is stopped, after its first line of output."""
        process = subprocess.Popen(
            [BIN / "tsecho", "ping", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout and process.stderr
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.assertIn(first, process.stdout.readline())
        return process

    def test_signals(self) -> None:
        """SIGQUIT shows the progress; SIGINT and SIGTERM stop with the summary."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        for number in (signal.SIGINT, signal.SIGTERM):
            process = self.started("-i", "30", "-c", "9", f"127.0.0.1:{service.port()}")
            assert process.stdout and process.stderr
            process.send_signal(signal.SIGQUIT)
            self.assertRegex(process.stdout.readline(), b"^1 sent, 1 received, 0 % loss, rtt avg")
            process.send_signal(number)
            self.assertIn(b"1 sent, 1 received, 0 % loss, time ", process.stdout.read())
            self.assertEqual(process.wait(PATIENCE), 0)
            self.assertEqual(process.stderr.read(), b"")

    def test_interrupted_while_connecting(self) -> None:
        """SIGINT before there is a connection: no summary, status 130."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = subprocess.Popen(
                [BIN / "tsecho", "ping", f"tls:127.0.0.1:{listener.getsockname()[1]}"],
                stderr=subprocess.PIPE,
            )
            assert process.stderr
            with process.stderr, listener.accept()[0] as connection:
                connection.recv(1)
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(PATIENCE), 130)
                self.assertEqual(process.stderr.read(), b"")

    def test_reader_gone(self) -> None:
        """A closed pipe (`| head`) stops it silently."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        command = f"{BIN}/tsecho ping -i 0.01 127.0.0.1:{service.port()} | head -n 2"
        done = run(["bash", "-c", command])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout.count(b"\n"), 2)
        for flags in ("-i 0.001 -n 50", "-i 0.001 --json"):
            command = f"{BIN}/tsecho ping {flags} 127.0.0.1:{service.port()} | head -n 1"
            self.assertEqual(run(["bash", "-c", command]).stderr, b"")

    def test_output_full(self) -> None:
        """A full disk is reported once."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        command = f"{BIN}/tsecho ping -i 0.01 127.0.0.1:{service.port()} > /dev/full"
        done = run(["bash", "-c", command])
        self.assertEqual(done.returncode, 1)
        words = b"tsecho: cannot write standard output: No space left on device\n"
        self.assertEqual(done.stderr, words)

    def test_ascii(self) -> None:
        """If the encoding of the output lacks a plus-minus sign, it is escaped."""
        service = Service(self, "-l", "unix:socket", "-s", "unix", environment=faketime("+2.345s"))
        command = f"PYTHONIOENCODING=ascii {BIN}/tsecho ping -c 1 unix:{service.path()}"
        done = run(["bash", "-c", command])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b" \\xb1 ", done.stdout)

    def test_closed(self) -> None:
        """Standard output or standard error is closed."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        where = f"ping -c 1 127.0.0.1:{service.port()}"
        done = run(["bash", "-c", f"{BIN}/tsecho {where} >&-"])
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"expected an open standard output", done.stderr)
        done = run(["bash", "-c", f"{BIN}/tsecho {where} 2>&-"])
        self.assertEqual(done.returncode, 0)

    def test_plot(self) -> None:
        """The figure is drawn at the end; if it cannot be written, status 1."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        os.makedirs(folder := self.mktemp())
        where = f"127.0.0.1:{service.port()}"
        done = ping("-c", "3", "-i", "0.01", "--plot", f"{folder}/a.svg", where)
        if b"matplotlib is not installed" in done.stderr:
            raise SkipTest("matplotlib is not installed")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        with open(f"{folder}/a.svg") as figure:
            self.assertIn("<svg", figure.read())
        os.mkdir(f"{folder}/b.svg")
        done = ping("-c", "1", "--plot", f"{folder}/b.svg", where)
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        os.symlink("/dev/full", f"{folder}/c.svg")
        done = ping("-c", "1", "--plot", f"{folder}/c.svg", where)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, rb"^tsecho: .+: .+\n$")


class TerminalTests(SynchronousTestCase):
    """Output on a terminal."""

    def screen(self, *arguments: str) -> Screen:
        """A terminal with `tsecho ping` running against a service."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        return Screen(self, BIN / "tsecho", "ping", *arguments, f"127.0.0.1:{service.port()}")

    def test_progress(self) -> None:
        r"""Enter and Ctrl-\ show the progress; Ctrl-D is ignored; Ctrl-C stops."""
        screen = self.screen("-i", "30")
        screen.see(r"seq=1 .*\r\n")
        progress = r"1 sent, 1 received, 0 % loss, rtt avg [\d.]+ ms, clock .*\r\n"
        for key in ("\n", "\x1c"):
            screen.type(key)
            screen.see(progress)
            screen.seen = ""
        screen.type("\x04")
        for _ in range(2):  # the second time, Ctrl-D has been read
            screen.process.send_signal(signal.SIGQUIT)
            screen.see(progress)
            screen.seen = ""
        screen.type("\x03")
        screen.see(r"1 sent, 1 received, 0 % loss, time .*\r\n(.*\r\n)+")
        self.assertEqual(screen.status(), 0)

    def test_borrowed(self) -> None:
        """On a terminal that is not the controlling one, Enter is not read."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1")
        person, terminal = pty.openpty()
        self.addCleanup(os.close, person)
        self.addCleanup(os.close, terminal)
        process = subprocess.Popen(
            [BIN / "tsecho", "ping", "-c", "1", f"127.0.0.1:{service.port()}"],
            stdin=terminal,
            stdout=terminal,
            start_new_session=True,
        )
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_quiet(self) -> None:
        """The progress line is overwritten, and erased at the end."""
        screen = self.screen("-q", "-c", "3", "-i", "0.05")
        screen.see(r"\x1b\[K3 sent, 3 received, [^\r\n]*\r\x1b\[K--- (.*\r\n)+")
        self.assertEqual(screen.status(), 0)

    def test_colour(self) -> None:
        """Losses are red, unless NO_COLOR is set."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            where = f"udp:127.0.0.1:{silent.getsockname()[1]}"
            command = [str(BIN / "tsecho"), "ping", "-c", "1", "-W", "0.05", where]
            screen = Screen(self, *command)
            screen.see(r"\x1b\[31mseq=1 lost: no reply within 0.05 s\x1b\[0m\r\n--- (.*\r\n)+")
            self.assertEqual(screen.status(), 1)
            screen = Screen(self, "env", "NO_COLOR=1", *command)
            screen.see(r"loss, time (.*\r\n)+")
            self.assertTrue(re.match(r"(\^D\x08\x08)?seq=1 lost", screen.seen), screen.seen)
