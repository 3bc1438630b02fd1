"""Real processes whose wall clock is set while they run: only stamps may change."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.running import (
    BIN,
    PATIENCE,
    STAMP,
    Case,
    Log,
    Service,
    faketime,
    fill,
    read_all,
)
from timestamp_echo.client.datagram import REPLY_TIMEOUT
from timestamp_echo.client.session import LINGER_TIMEOUT
from timestamp_echo.server.log import USUAL
from timestamp_echo.stamps import SECOND, parse

STEPS = (7200, 100, -3600, -7200)
"""Seconds by which the clock is set: beyond every timeout, in both directions."""

LOCAL = "0:interface=127.0.0.1"

REFUSAL = b"tsecho: too many connections: the limit is 5\n"

SHORT_HANDSHAKES = """
import sys
from timestamp_echo.server import protocol
protocol.HANDSHAKE_TIMEOUT = 1.0
del sys.argv[0]
from twisted.scripts.twistd import run
run()
"""
"""Runs `twistd`, its first argument, with a shorter limit than 10 s for handshakes."""


PING = """
import select, sys, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
from timestamp_echo.__main__ import main
sys.exit(main())
"""
"""Runs `tsecho`; under faketime 0.9.10, clock_nanosleep(2), which Python's `sleep` uses, fails."""


class WallClock:
    """The wall clock of processes that a test starts, which runs right until it is set.

    @param case: the test.
    @raise SkipTest: faketime(1) is not installed.
    """

    def __init__(self, case: Case) -> None:
        self._file = Path(case.mktemp()).absolute()
        self._file.write_text("+0")
        self.environment = {
            "LD_PRELOAD": faketime("+0s")["LD_PRELOAD"],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name of 0.9.10 and later
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # and that of older ones
        }

    def set(self, seconds: int) -> None:
        """Set the clock to the right time and this many seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._file)  # so that nobody reads an empty file


class ServiceTests(SynchronousTestCase):
    """`twistd tsecho`."""

    def services(self, *options: str, **more: Any) -> list[tuple[int, WallClock, Service]]:
        """For each step a service of its own, with the clock to set."""
        clocks = [(step, WallClock(self)) for step in STEPS]
        return [
            (step, clock, Service(self, *options, environment=clock.environment, **more))
            for step, clock in clocks
        ]

    def test_timeouts(self) -> None:
        """In every state of a connection, its timeout takes as long as it should.

        All connections are made before the clock is set. How long they last, the log says.
        """
        files = self_signed(self.mktemp())
        services = self.services(
            *("-l", f"tcp:{LOCAL}", "-l", f"haproxy:tcp:{LOCAL}", "--utc"),
            *("-l", f"ssl:{LOCAL}:{files.endpoint}"),
            *("--idle-timeout", "2", "--max-connections", "5"),
            prefix=[sys.executable, "-c", SHORT_HANDSHAKES],
        )
        with ExitStack() as stack:
            last = []
            for step, clock, service in services:
                fill(stack.enter_context(service.connect()), b"x" * 1023 + b"\n")
                stack.enter_context(service.connect()).sendall(b"x")  # idle
                for index in (1, 2):  # without a PROXY header, without a handshake
                    stack.enter_context(service.connect(index))
                talker = stack.enter_context(service.connect())
                talker.sendall(b"one\ntwo")
                self.assertRegex(talker.recv(100), STAMP + b"one\n$")
                refused = stack.enter_context(service.connect())
                self.assertEqual(read_all(refused), REFUSAL)
                clock.set(step)
                # The pause that ends this message began before that.
                self.assertRegex(talker.recv(100), STAMP + b"two$")
                self.assert_stamp(talker, step)
                for _ in range(2 * USUAL.lines):
                    self.assertEqual(read_all(stack.enter_context(service.connect())), REFUSAL)
                last.append(refused)
            for (_, _, service), refused in zip(services, last, strict=True):
                self.assert_ends(service)
                self.assert_closed(refused)
                service.log.wait_for("more connections refused within 1 s")

    def assert_stamp(self, sock: socket.socket, step: int) -> None:
        """Stamps show the clock as it is set."""
        sock.sendall(b"three\n")
        stamp = sock.recv(100)[1:].partition(b"] ")[0].decode()
        self.assertLess(abs(parse(stamp).nanoseconds / SECOND - time.time() - step), PATIENCE)

    def assert_ends(self, service: Service) -> None:
        """All five connections end, each after its own timeout."""
        found = service.log.wait_for(r"ended after (\S+) s: .*; (.*)$", 5)
        idle, header, handshake = (
            "idle for 2 s",
            "no PROXY header within 1 s",
            "no TLS handshake within 1 s",
        )
        self.assertEqual(sorted(why for _, why in found), [idle, idle, idle, header, handshake])
        for seconds, why in found:
            self.assertTrue(1 + (why == idle) <= float(seconds) < PATIENCE, (seconds, why))

    def assert_closed(self, sock: socket.socket) -> None:
        """The server closes this connection: what is sent then is answered by a reset."""
        deadline = time.monotonic() + PATIENCE
        with self.assertRaises(ConnectionError):
            while time.monotonic() < deadline:
                sock.send(b"x")
                time.sleep(0.05)

    def test_stop(self) -> None:
        """A stop takes as long as the drain timeout, no longer and no less."""
        services = self.services(
            *("-l", f"tcp:{LOCAL}", "--drain-timeout", "1", "--idle-timeout", "1000")
        )
        with ExitStack() as stack:
            for step, clock, service in services:
                fill(stack.enter_context(service.connect()), b"x" * 1023 + b"\n")
                service.process.send_signal(signal.SIGTERM)
                service.log.wait_for("SIGTERM received")
                clock.set(step)
            for _, _, service in services:
                self.assertEqual(service.wait(), 0)
                (seconds,) = service.log.wait_for(r"ended after (\S+) s")
                self.assertTrue(1 <= float(seconds) < PATIENCE, seconds)


class ClientTests(SynchronousTestCase):
    """`tsecho`."""

    def client(
        self, clock: WallClock, *arguments: str, program: Sequence[str | Path] = (BIN / "tsecho",)
    ) -> subprocess.Popen[bytes]:
        """A client with this clock, whose input is two lines."""
        process = subprocess.Popen(
            [*program, *arguments],
            env=os.environ | clock.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin and process.stdout and process.stderr
        for stream in (process.stdout, process.stderr):
            self.addCleanup(stream.close)
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.kill)
        with process.stdin:
            process.stdin.write(b"one\ntwo\n")
        return process

    def test_no_reply(self) -> None:
        """Over UDP a reply counts as lost after a second."""

        def talk(step: int, clock: WallClock) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.settimeout(PATIENCE)
                server.bind(("127.0.0.1", 0))
                client = self.client(clock, f"udp:127.0.0.1:{server.getsockname()[1]}")
                line, peer = server.recvfrom(100)
                began = time.monotonic()
                server.sendto(line, peer)  # the reply, after which the second line is sent
                self.assertEqual(server.recv(100), b"two\n")
                clock.set(step)
                server.sendto(line, peer)  # comes twice: the client wakes up, and goes on waiting
                errors = self.assert_end(client, 1, began + REPLY_TIMEOUT)
                self.assertIn(b"no reply came in time", errors)

        self.at_each_step(talk)

    def test_server_does_not_close(self) -> None:
        """A server that has answered everything has a second to close its side."""

        def talk(step: int, clock: WallClock) -> None:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                client = self.client(clock, f"127.0.0.1:{listener.getsockname()[1]}")
                connection = listener.accept()[0]
                with connection:
                    data = read_all(connection)
                    began = time.monotonic()
                    connection.sendall(data)
                    assert client.stdout
                    self.assertEqual(client.stdout.readline(), b"one\n")
                    clock.set(step)
                    errors = self.assert_end(client, 0, began + LINGER_TIMEOUT)
                    self.assertEqual(errors, b"")

        self.at_each_step(talk)

    def at_each_step(self, talk: Callable[[int, WallClock], None]) -> None:
        """Call this for each step, in threads: what one waits for must not keep others waiting."""
        clocks = [WallClock(self) for _ in STEPS]
        with ThreadPoolExecutor(len(STEPS)) as pool:
            list(pool.map(talk, STEPS, clocks))

    def assert_end(self, process: subprocess.Popen[bytes], status: int, earliest: float) -> bytes:
        """The process ends with this status, not before this moment of `time.monotonic`.

        @return: what it wrote to stderr.
        """
        self.assertEqual(process.wait(PATIENCE), status)
        self.assertGreaterEqual(time.monotonic(), earliest)
        assert process.stderr
        return process.stderr.read()

    def test_ping(self) -> None:
        """`tsecho ping` goes on with its probes, and reports that its own clock was set."""
        service = Service(self, "-l", f"tcp:{LOCAL}", "-s", "unix")
        arguments = ["ping", "-i", "0.1", f"127.0.0.1:{service.port()}"]
        for step in STEPS:
            clock = WallClock(self)
            client = self.client(clock, *arguments, program=[sys.executable, "-c", PING])
            assert client.stdout
            log = Log(client.stdout)
            log.wait_for("seq=1 ")
            clock.set(step)
            (found,) = log.wait_for(r"this host's clock was set by (\S+) s$")
            self.assertAlmostEqual(float(found), step, 2)
            before = len(log.wait_for("seq="))
            log.wait_for("seq=", before + 2)
            client.send_signal(signal.SIGINT)
            self.assertEqual(client.wait(PATIENCE), 0)
            (longest,) = re.findall(r"rtt min/avg/max/mdev = .*/.*/(.*)/", log.finish())
            self.assertTrue(0 < float(longest) < 1000 * PATIENCE, log.text)
