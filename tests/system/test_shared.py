"""Several processes on one port: on sockets that systemd passes to all, or with `--reuse-port`."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.load import Report
from tests.system.running import PATIENCE, REACTOR, STAMP, Service, connectable, passing
from tests.system.test_server import LINES, REPLIES, TLSClient
from tests.system.test_status import STATUS, metrics
from timestamp_echo.transports.epoll import HAS_EPOLL

ROOT = Path(__file__).parent.parent.parent

ROUNDS = 1
"""How often each process is restarted under load."""

ARRIVALS = 500
"""Connections a second, for the balance; fewer where the host is too busy."""

ANY_RATE = ("--udp-rate", "999999999")

WITHOUT_TURNS = not HAS_EPOLL or REACTOR not in ([], ["--reactor=epoll"])
"""Whether the kernel wakes all processes, and the quickest gets the connection."""


class SharedCase(SynchronousTestCase):
    """What all tests here do with services and their sockets."""

    def connected(self, address: object, family: int, kind: int) -> socket.socket:
        """A socket that is connected with this address, until the end of the test."""
        sock = socket.socket(family, kind)
        self.addCleanup(sock.close)
        sock.settimeout(PATIENCE)
        sock.connect(address)  # type: ignore[arg-type]  # its type depends on the family
        return sock

    def assert_answered(self, sock: socket.socket) -> None:
        """The line "hello", which was sent before, is answered."""
        self.assertRegex(sock.recv(100), STAMP + b"hello\n")

    def figures(self, name: str, services: Sequence[Service]) -> list[int]:
        """The same figure of all services."""
        return [int(metrics(service)[name]) for service in services]


class InheritedTests(SharedCase):
    """A launcher keeps the sockets open, and passes them to every process."""

    def setUp(self) -> None:
        """Open a socket of each kind."""
        self.sockets = {
            name: socket.create_server(("127.0.0.1", 0), backlog=4096)
            for name in ("tcp", "tls", "ssl")
        }
        self.sockets["udp"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sockets["udp"].bind(("127.0.0.1", 0))
        self.sockets["unix"] = socket.socket(socket.AF_UNIX)
        folder = tempfile.mkdtemp()  # `mktemp` may be too long for a UNIX address
        self.addCleanup(shutil.rmtree, folder)
        self.sockets["unix"].bind(f"{folder}/socket")
        self.sockets["unix"].listen(4096)
        for sock in self.sockets.values():
            self.addCleanup(sock.close)
        self.files = self_signed(self.mktemp())
        self.services: list[Service] = []

    def start(self, *kinds: str) -> Service:
        """Start a process on these sockets, or on all."""
        listeners = {
            "tcp": "systemd:domain=INET:name=tcp",
            "udp": "systemd:domain=INET:name=udp",
            "unix": "systemd:domain=UNIX:name=unix",
            "tls": f"tls:{os.path.dirname(self.files.key)}:systemd=tls",
            "ssl": f"ssl:{self.files.endpoint}:systemd=ssl",
        }
        kinds = kinds or tuple(listeners)
        sockets = [self.sockets[kind] for kind in kinds]
        service = Service(
            self,
            *(argument for kind in kinds for argument in ("-l", listeners[kind])),
            *(*ANY_RATE, *STATUS),
            prefix=passing(*sockets, names=":".join(kinds)),
            pass_fds=[sock.fileno() for sock in sockets],
        )
        self.services.append(service)
        return service

    def start_many(self, count: int, *kinds: str) -> None:
        """Start several processes at once: a start takes seconds on a busy host."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda _: self.start(*kinds), range(count)))

    def asking(self, kind: str) -> socket.socket:
        """Connect to a socket, and send "hello"."""
        listener = self.sockets[kind]
        sock = self.connected(listener.getsockname(), listener.family, listener.type)
        sock.sendall(b"hello\n")
        return sock

    def suspend(self, service: Service) -> None:
        """Suspend a process, until the end of the test at the latest."""
        process = service.process
        self.addCleanup(process.send_signal, signal.SIGCONT)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start clients of all sockets."""
        addresses = []
        for kind, sock in self.sockets.items():
            name = sock.getsockname()
            addresses.append(f"{kind}={name if isinstance(name, str) else f'{name[0]}:{name[1]}'}")
        clients = subprocess.Popen(
            # What is started meanwhile goes first.
            ["nice", sys.executable, "-m", "tests.system.load", *addresses],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(clients.communicate)
        self.addCleanup(clients.kill)
        return clients

    def test_rolling_restart(self) -> None:
        """Restarted one after the other, three processes refuse nobody and answer everything.

        A client that keeps its connection, and looks for the end of the stream before it sends,
        sees it end in order with nothing unanswered. A UNIX socket may refuse its last request.
        """
        self.start_many(3)
        clients = self.begin()
        for _ in range(3 * ROUNDS):
            self.services[-1].log.wait_for("ended after")
            old = self.services.pop(0)
            self.assertEqual(old.stop(), 0)
            self.assertNotIn("Traceback", old.log.text)
            self.start()
        self.services[-1].log.wait_for("ended after")
        output, _ = clients.communicate(timeout=PATIENCE)
        for kind, content in json.loads(output).items():
            report = Report(**content)
            lost, count = report.unanswered, len(report.ports)
            print(
                f"{kind}: {report.replies} replies, {count} connections, "
                f"{len(lost)} unanswered, {report.not_sent} not sent"
            )
            self.assertGreater(report.replies, 100, kind)
            self.assertEqual(lost, [], kind)

    def test_waiting(self) -> None:
        """What waits in the sockets when the only process stops is answered, by it or the next."""
        old = self.start()
        self.suspend(old)
        asking = [self.asking(kind) for kind in ("tcp", "unix", "udp") for _ in range(300)]
        secured = [self.sockets["tls"].getsockname(), self.sockets["ssl"].getsockname()] * 10
        with ThreadPoolExecutor(len(secured)) as pool:
            talks = [pool.submit(self.talk_tls, address) for address in secured]
            old.process.send_signal(signal.SIGTERM)
            old.process.send_signal(signal.SIGCONT)
            self.assertEqual(old.wait(), 0)
            self.start()
            for each in talks:
                self.assertRegex(each.result(), REPLIES)
        for sock in asking:
            self.assert_answered(sock)

    def test_tls_over_unix(self) -> None:
        """Through TLS over a UNIX socket, an idle connection also ends with a close_notify."""
        service = Service(
            self,
            *("-l", f"ssl:{self.files.endpoint}:systemd=unix"),
            prefix=passing(self.sockets["unix"], names="unix"),
            pass_fds=[self.sockets["unix"].fileno()],
        )
        address = self.sockets["unix"].getsockname()
        context = ssl.create_default_context(cafile=self.files.certificate)
        with context.wrap_socket(
            self.connected(address, socket.AF_UNIX, socket.SOCK_STREAM),
            server_hostname="localhost",
            suppress_ragged_eofs=False,
        ) as sock:
            sock.sendall(b"hello\n")
            self.assert_answered(sock)
            service.process.send_signal(signal.SIGTERM)
            self.assertEqual(sock.recv(100), b"")
        self.assertEqual(service.wait(), 0)

    def talk_tls(self, address: object) -> bytes:
        """Connect with TLS, send three lines and close; return the replies."""
        sock = self.connected(address, socket.AF_INET, socket.SOCK_STREAM)
        return TLSClient(sock, self.files.certificate).talk(LINES)

    @skipIf(WITHOUT_TURNS, "needs the epoll reactor")
    def test_balance(self) -> None:
        """Of many long connections, four processes have about as many each.

        Each has 20 to 30 % on a host that is not busy. Only one process wakes up for most of them.
        """
        count = connectable(self, 800)
        self.start_many(4, "tcp")
        before = self.sleeps()
        begun = time.monotonic()
        connections = []
        for number in range(count):
            due = begun + number / ARRIVALS
            select.select([], [], [], max(due - time.monotonic(), 0))
            connections.append(self.asking("tcp"))
        print(f"{count} connections in {time.monotonic() - begun:.2f} s")
        for sock in connections:
            self.assert_answered(sock)
        sleeps = self.sleeps() - before
        print(f"the processes went to sleep {sleeps} times")
        self.assertLess(sleeps, 2 * count)
        shares = self.figures("tsecho_connections", self.services)
        print(f"shares: {shares}")
        self.assertEqual(sum(shares), count)
        self.assertGreater(min(shares), count / 10)
        self.assertLess(max(shares), count * 4 / 10)

    def sleeps(self) -> int:
        """How often all processes have gone to sleep so far (proc(5))."""
        status = "".join(
            Path(f"/proc/{service.process.pid}/status").read_text() for service in self.services
        )
        return sum(map(int, re.findall(r"(?m)^voluntary_ctxt_switches:\s*(\d+)$", status)))

    @skipIf(WITHOUT_TURNS, "needs the epoll reactor")
    def test_datagrams(self) -> None:
        """Datagrams from many ports reach every process."""
        self.start_many(4, "udp")
        for _ in range(200):
            self.assert_answered(self.asking("udp"))
        counts = self.figures("tsecho_datagrams_total", self.services)
        print(f"datagrams: {counts}")
        self.assertEqual(sum(counts), 200)
        self.assertGreater(min(counts), 0)

    def test_failures(self) -> None:
        """Where one process of four hangs and another is killed, the others serve who comes."""
        self.start_many(4)
        self.suspend(self.services[1])
        self.assert_served()
        self.services[2].stop(signal.SIGKILL)
        self.assert_served()

    @skipIf(WITHOUT_TURNS, "needs the epoll reactor")
    def test_woken_for_nothing(self) -> None:
        """A process that is woken, but takes nothing, does not keep others from doing it."""
        kinds = ("tcp", "unix", "udp")
        with select.epoll() as hanging, ThreadPoolExecutor() as pool:
            for kind in kinds:  # before the others, so that it is the first of the kernel's queue
                hanging.register(self.sockets[kind], select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self.start_many(2, *kinds)
            served = pool.submit(self.assert_served, kinds, 2)
            while not served.done():
                hanging.poll(0.1)
            served.result()

    def assert_served(self, kinds: Sequence[str] = ("tcp", "unix", "udp"), times: int = 20) -> None:
        """Clients that come now are served."""
        longest = 0.0
        for kind in kinds:
            for _ in range(times):
                begun = time.monotonic()
                self.assert_answered(self.asking(kind))
                longest = max(longest, time.monotonic() - begun)
        print(f"the longest waited {longest:.3f} s")


class ReusePortTests(SharedCase):
    """With `--reuse-port` each process has sockets of its own."""

    def start(self, tcp: int = 0, udp: int = 0) -> Service:
        """Start a process on these ports."""
        return Service(
            self,
            *("-l", f"tcp:{tcp}:interface=127.0.0.1", "-l", f"udp:{udp}:interface=127.0.0.1"),
            *("--reuse-port", *STATUS),
        )

    def test_both(self) -> None:
        """Two processes on the same ports get connections and datagrams each."""
        first = self.start()
        tcp, udp = first.port(), first.port(1)
        services = [first, self.start(tcp, udp)]
        for _ in range(64):  # the kernel chooses by a hash of the addresses
            for port, kind in ((tcp, socket.SOCK_STREAM), (udp, socket.SOCK_DGRAM)):
                sock = self.connected(("127.0.0.1", port), socket.AF_INET, kind)
                sock.sendall(b"hello\n")
                self.assert_answered(sock)
        for name in ("tsecho_connections_total", "tsecho_datagrams_total"):
            counts = self.figures(name, services)
            self.assertEqual(sum(counts), 64)
            self.assertGreater(min(counts), 0)

    def test_other_user(self) -> None:
        """Another user cannot open the ports as well."""
        if os.geteuid() != 0:
            self.skipTest("only root can be another user")
        service = self.start()
        for index, kind in enumerate((socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            address = ("127.0.0.1", service.port(index))
            with self.reusing(kind) as sock:
                sock.bind(address)
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)
            with self.reusing(kind) as sock, self.assertRaisesRegex(OSError, "already in use"):
                sock.bind(address)
            os.seteuid(0)

    def reusing(self, kind: int) -> socket.socket:
        """A socket that may share its port."""
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock
