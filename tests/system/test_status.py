"""Tests of `--status`: a real service, asked by curl, promtool and Prometheus."""

from __future__ import annotations

import json
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.running import (
    BIN,
    PATIENCE,
    STAMP,
    Log,
    Service,
    needs,
    passing,
    read_all,
    run,
    talk,
    twistd,
)
from tests.system.test_server import TLSClient
from timestamp_echo.status.site import MAX_CONNECTIONS

STATUS = ("--status", "tcp:0:interface=127.0.0.1")

TCP = ("-l", "tcp:0:interface=127.0.0.1")

LINES = b"one\ntwo\nthree\n"


def status_port(service: Service) -> int:
    """The port of `--status`."""
    (found,) = service.log.wait_for(r"status on \w+:(\d+)")
    return int(found)


def asking(service: Service) -> socket.socket:
    """Connect to the port of `--status`."""
    return socket.create_connection(("127.0.0.1", status_port(service)), PATIENCE)


def get(service: Service, path: str) -> tuple[int, str]:
    """The status and the body of a response."""
    with asking(service) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        head, _, body = read_all(sock).decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def samples(text: str) -> dict[str, float]:
    """All figures, by names with labels as they stand in the text."""
    return {
        name: float(value)
        for name, value in re.findall(r"^([a-z][^ ]*(?:{.*})?) (\S+)$", text, re.MULTILINE)
    }


def metrics(service: Service) -> dict[str, float]:
    """All figures of a service."""
    return samples(get(service, "/metrics")[1])


class StatusTests(SynchronousTestCase):
    """`--status`, over HTTP."""

    def test_transports(self) -> None:
        """The messages of each transport count, whether its connections are open or not."""
        files = self_signed(self.mktemp())
        service = Service(
            self,
            *(*TCP, *STATUS),
            *("-l", "unix:socket"),
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("-l", f"haproxy:ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("-l", "haproxy:tcp:0:interface=127.0.0.1"),
            *("-l", "udp:0:interface=127.0.0.1"),
        )
        proxy = b"PROXY TCP4 192.0.2.7 192.0.2.8 1111 2222\r\n"
        talk(service.connect(), LINES)
        held = service.connect()
        self.addCleanup(held.close)
        held.sendall(b"held\n")
        self.assertRegex(held.recv(100), STAMP + b"held\n")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(service.path())
            talk(sock, LINES)
        for index, header in ((2, b""), (3, proxy)):
            with service.connect(index) as sock:
                sock.sendall(header)
                TLSClient(sock, files.certificate).talk(LINES)
        with service.connect(4) as sock:
            sock.sendall(proxy)
            talk(sock, LINES)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(("127.0.0.1", service.port(5)))
            for datagram in (b"a", b"[x] y", b"b"):
                sock.send(datagram)
            for _ in range(2):
                sock.recv(100)
        service.log.wait_for("ended after", 5)
        found = metrics(service)
        for transport, count in {"tcp": 7, "unix": 3, "tls": 6, "udp": 2, "stdio": 0}.items():
            self.assertEqual(found[f'tsecho_messages_total{{transport="{transport}"}}'], count)
        self.assertEqual(found["tsecho_connections"], 1)
        self.assertEqual(found["tsecho_connections_total"], 6)
        self.assertEqual(found['tsecho_connections_closed_total{reason="peer"}'], 5)
        self.assertEqual(found["tsecho_received_bytes_total"], 5 * len(LINES) + len(b"held\n"))
        self.assertEqual(found["tsecho_datagrams_total"], 3)
        self.assertEqual(found['tsecho_datagrams_unanswered_total{reason="reply"}'], 1)

    def test_certificates(self) -> None:
        """The expiry of a certificate, and after SIGHUP that of the new one."""
        files = self_signed(self.mktemp())
        listen = f"ssl:0:interface=127.0.0.1:{files.endpoint}"
        service = Service(self, "-l", listen, *STATUS)
        name = f'tsecho_certificate_expiry_timestamp_seconds{{listener="{listen}"}}'
        before = metrics(service)[name]
        renewed = self_signed(self.mktemp(), left=3)
        Path(renewed.key).replace(files.key)
        Path(renewed.certificate).replace(files.certificate)
        service.process.send_signal(signal.SIGHUP)
        service.log.wait_for("certificates of ssl:.* reloaded")
        self.assertApproximates(metrics(service)[name] - before, 2 * 3600, 60)

    def test_accept_pauses(self) -> None:
        """With a full file table there are figures all the same, and the pauses among them."""
        service = Service(
            self,
            *(*TCP, *STATUS, "--max-connections", "1000"),
            prefix=["prlimit", "--nofile=64:64"],
        )
        prometheus = asking(service)
        self.addCleanup(prometheus.close)
        socks = [service.connect() for _ in range(100)]
        for sock in socks:
            self.addCleanup(sock.close)
        service.log.wait_for("Too many open files; connections wait")
        prometheus.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        found = samples(read_all(prometheus).decode())
        self.assertGreaterEqual(found["tsecho_accept_pauses_total"], 1)
        self.assertEqual(found["process_max_fds"], 64)
        service.stop()
        self.assertNotIn("Traceback", service.log.text)

    def test_file_table(self) -> None:
        """With a full file table, requests wait, and the log has a line, not some for each."""
        service = Service(
            self,
            *(*TCP, *STATUS, "--max-connections", "1000"),
            prefix=["prlimit", "--nofile=40:40"],
        )
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(service.connect())
            service.log.wait_for("Too many open files; connections wait")
            checks = [stack.enter_context(asking(service)) for _ in range(50)]
            for check in checks:
                check.sendall(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
            service.log.wait_for("Too many open files; connections wait", 2)
            service.process.send_signal(signal.SIGTERM)
            for check in checks[:10]:
                self.assertTrue(read_all(check).endswith(b"ok\n"))
        self.assertEqual(service.wait(), 0)
        # One line for each of the two ports, and more only where this takes ten seconds.
        self.assertLess(service.log.text.count("Too many open files"), 10)
        self.assertNotIn("EMFILE", service.log.text)

    def test_inherited(self) -> None:
        """A UNIX socket of systemd's keeps its file and its mode; a wrong socket is an error."""
        path = Path(self.mktemp())
        with socket.socket(socket.AF_UNIX) as listening, socket.socket() as closed:
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen()
            status = ("--status", "systemd:domain=UNIX:index=0")
            for _ in range(2):
                service = Service(
                    *(self, *TCP, *status),
                    prefix=passing(listening),
                    pass_fds=[listening.fileno()],
                )
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(PATIENCE)
                    sock.connect(str(path))
                    self.assertIn(b"\r\n\r\nok\n", talk(sock, b"GET /livez HTTP/1.0\r\n\r\n"))
                self.assertEqual(service.stop(), 0)
                self.assertEqual(path.stat().st_mode & 0o777, 0o600)
            command = [str(BIN / "twistd"), "-n", "--pidfile=", "tsecho", *TCP]
            for file, domain, got in (
                (closed, "INET", "one that does not listen"),
                (listening, "INET", "one with domain=UNIX"),
            ):
                done = run(
                    [*passing(file), *command, "--status", f"systemd:domain={domain}:index=0"],
                    pass_fds=[file.fileno()],
                )
                self.assertEqual(done.returncode, 1)
                self.assertIn(
                    f"expected a listening stream socket with domain={domain}, got {got}",
                    (done.stdout + done.stderr).decode(),
                )

    def test_path_not_utf8(self) -> None:
        """A listener whose path is not UTF-8 has its certificate in the metrics all the same."""
        folder = Path(self.mktemp(), "\udcff")
        folder.mkdir(parents=True)
        pair = self_signed(self.mktemp())
        (folder / "a.pem").write_bytes(
            Path(pair.key).read_bytes() + Path(pair.certificate).read_bytes()
        )
        listen = f"tls:{folder}:port=0:interface=127.0.0.1"
        service = Service(self, "-l", listen.replace(str(folder), str(folder.absolute())), *STATUS)
        names = [name for name in metrics(service) if "certificate_expiry" in name]
        self.assertEqual(len(names), 1)
        self.assertIn(r"\\udcff:port=0", names[0])

    def test_health_check(self) -> None:
        """A client that connects and closes, or resets, has its own label."""
        files = self_signed(self.mktemp())
        tls = ("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}")
        service = Service(
            self, *TCP, *STATUS, *tls, "-l", f"haproxy:{tls[1]}", "-l", "haproxy:tcp:0"
        )
        for index in range(4):
            service.connect(index).close()
            with service.connect(index) as sock:
                sock.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(sock), b"")
        name = "tsecho_connections_closed_total"
        deadline = time.monotonic() + PATIENCE
        while (found := metrics(service))[f'{name}{{reason="no_data"}}'] < 8:
            self.assertLess(time.monotonic(), deadline, found)
        self.assertEqual(found[f'{name}{{reason="aborted"}}'], 0)
        self.assertEqual(found["tsecho_connections"], 0)
        self.assertNotIn("ended after", service.log.text)

    def test_ready(self) -> None:
        """During a delayed stop /readyz fails while clients are served; a second signal ends it.

        The port of --status is the last to close.
        """
        service = Service(self, *TCP, *STATUS, "--stop-delay", "600")
        self.assertEqual(get(service, "/readyz"), (200, "ok\n"))
        service.process.send_signal(signal.SIGTERM)
        service.log.wait_for(r"the ports close in 600 s$")
        self.assertEqual(get(service, "/readyz"), (503, "not ready\n"))
        self.assertEqual(get(service, "/livez"), (200, "ok\n"))
        self.assertRegex(talk(service.connect(), b"hello\n"), STAMP + b"hello\n$")
        self.assertEqual(service.stop(), 0)
        echo, status = (
            service.log.text.index(f"TCP Port {port} Closed")
            for port in (service.port(), status_port(service))
        )
        self.assertLess(echo, status)

    def test_draining(self) -> None:
        """While a stop waits for a connection to end, /readyz fails, and the port is closed."""
        service = Service(self, *TCP, *STATUS)
        with service.connect() as held:
            held.sendall(b"held\n")
            held.recv(100)
            service.process.send_signal(signal.SIGTERM)
            # The stop has begun when this side's end has come; it then waits for the other one.
            self.assertEqual(held.recv(100), b"")
            self.assertEqual(get(service, "/readyz")[0], 503)
            self.assertRaises(ConnectionRefusedError, service.connect)
        self.assertEqual(service.wait(), 0)

    def test_endpoints(self) -> None:
        """It may be a UNIX socket, whose file is removed at the end, or one of systemd's."""
        service = Service(self, *TCP, "--status", "unix:status")
        service.log.wait_for("status on unix:status$")
        request = b"GET /livez HTTP/1.0\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(service.path("status"))
            sock.sendall(request)
            self.assertTrue(read_all(sock).endswith(b"ok\n"))
        service.stop()
        self.assertFalse(Path(service.path("status")).exists())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = Service(
                self,
                *(*TCP, "--status", "systemd:domain=INET:index=0"),
                prefix=passing(listener),
                pass_fds=[listener.fileno()],
            )
            self.assertEqual(status_port(service), listener.getsockname()[1])
            self.assertEqual(get(service, "/livez"), (200, "ok\n"))

    def test_many_idle(self) -> None:
        """Whoever opens connections and asks nothing keeps no health check out."""
        service = Service(self, *TCP, *STATUS)
        with ExitStack() as stack:

            def connect() -> socket.socket:
                where = ("127.0.0.1", status_port(service))
                return stack.enter_context(socket.create_connection(where, PATIENCE))

            first = connect()
            for _ in range(MAX_CONNECTIONS):
                connect()
            self.assertRaises(ConnectionResetError, first.recv, 1)  # it made room for the last
            for _ in range(2 * MAX_CONNECTIONS):
                self.assertEqual(get(service, "/livez"), (200, "ok\n"))
                connect()

    def test_not_opened(self) -> None:
        """A port that is in use ends the start with one line, and nothing is left open."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            done = twistd(".", "-n", "--pidfile=", "tsecho", *TCP, "--status", endpoint)
        self.assertEqual(done.returncode, 1)
        line = f"tsecho: cannot listen on {endpoint}: Address already in use\n"
        self.assertTrue((done.stdout + done.stderr).decode().endswith(line), done)

    def test_imports(self) -> None:
        """Without --status nothing that it needs is imported."""
        program = (
            "import sys; from timestamp_echo import tap; options = tap.Options();"
            " options.parseOptions(sys.argv[1:]); tap.makeService(options);"
            " print(sum(name.startswith(('twisted.web', 'prometheus_client',"
            " 'timestamp_echo.status')) for name in sys.modules))"
        )
        for arguments, some in (([], False), (STATUS, True)):
            done = run([sys.executable, "-c", program, *arguments])
            self.assertEqual(int(done.stdout) > 0, some, done.stderr)

    def test_without_epoll(self) -> None:
        """It works as well where the reactor watches each connection."""
        self.without_epoll = True
        service = Service(self, *TCP, *STATUS)
        talk(service.connect(), LINES)
        service.log.wait_for("ended after")
        self.assertEqual(metrics(service)['tsecho_messages_total{transport="tcp"}'], 3)


class FloodTests(SynchronousTestCase):
    """HTTP clients that do not behave."""

    def test_never_reads(self) -> None:
        """Clients that ask without pause and never read cost little; the echo goes on."""
        service = Service(self, *TCP, *STATUS)
        get(service, "/metrics")
        before = service.resident()
        request = b"GET /metrics HTTP/1.1\r\n\r\n"
        for piece in (request, 100 * request, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000):
            socks = []
            for _ in range(100):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.connect(("127.0.0.1", status_port(service)))
                sock.setblocking(False)
                socks.append(sock)
                self.addCleanup(sock.close)
            for _ in range(200):
                _, ready, _ = select.select([], socks, [], 0.05)
                for sock in ready:
                    try:
                        sock.send(piece)
                    except OSError:
                        socks.remove(sock)
            self.assertRegex(talk(service.connect(), b"hello\n"), STAMP + b"hello\n$")
            for sock in socks:
                sock.close()
        self.assertLess(service.resident() - before, 16 * 2**20)
        while get_or_none(service) is None:
            pass
        service.stop()
        self.assertNotIn("Traceback", service.log.text)
        self.assertLess(len(service.log.text.splitlines()), 30)


def get_or_none(service: Service) -> int | None:
    """The status of /readyz; None if all connections are taken."""
    try:
        return get(service, "/readyz")[0]
    except (OSError, IndexError):
        return None


class ToolTests(SynchronousTestCase):
    """What operators ask with."""

    def test_curl(self) -> None:
        """The figures with curl; with --fail its status is that of the service."""
        curl = needs("curl")
        service = Service(self, *TCP, *STATUS, "--stop-delay", "600")
        url = f"http://127.0.0.1:{status_port(service)}"
        done = run([curl, "-s", f"{url}/metrics"])
        self.assertIn(b"tsecho_connections 0.0\n", done.stdout)
        self.assertEqual(run([curl, "-sf", f"{url}/readyz"]).returncode, 0)
        service.process.send_signal(signal.SIGTERM)
        service.log.wait_for("the ports close in")
        self.assertEqual(run([curl, "-sf", f"{url}/readyz"]).returncode, 22)
        self.assertEqual(run([curl, "-sf", f"{url}/livez"]).returncode, 0)
        service.stop()

    def test_promtool(self) -> None:
        """Prometheus's own checker finds nothing to say against the metrics."""
        promtool = needs("promtool")
        service = Service(self, *TCP, *STATUS)
        text = get(service, "/metrics")[1]
        done = run([promtool, "check", "metrics"], input=text.encode())
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))


class PrometheusTests(SynchronousTestCase):
    """A real Prometheus, which scrapes a service every second."""

    def setUp(self) -> None:
        """Start both."""
        program = needs("prometheus")
        self.service = Service(self, *TCP, *STATUS)
        folder = Path(self.mktemp())
        folder.mkdir()
        target = f"127.0.0.1:{status_port(self.service)}"
        job: dict[str, Any] = {"job_name": "tsecho", "static_configs": [{"targets": [target]}]}
        settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(settings))  # which is YAML as well
        self.prometheus = subprocess.Popen(
            [
                *(program, f"--config.file={folder}/prometheus.yml"),
                *(f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.prometheus.stdout is not None
        self.addCleanup(self.prometheus.stdout.close)
        self.addCleanup(self.prometheus.wait, PATIENCE)
        self.addCleanup(self.prometheus.kill)
        log = Log(self.prometheus.stdout)
        (self.address,) = log.wait_for(r'"Listening on" address=(\S+)')
        log.wait_for("Server is ready to receive web requests")

    def query(self, expression: str, at: float | None = None) -> Any:
        """The value of the one series that this expression has; None if there is none yet."""
        arguments = {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"})
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            series = json.load(response)["data"]["result"]
        return series[0].get("value") or series[0]["values"] if series else None

    def test_rates(self) -> None:
        """The total is what a client got, to the message; the rate is the slope of the totals."""
        messages = 'tsecho_messages_total{transport="tcp"}'
        stop = threading.Event()
        answered = 0

        def load() -> None:
            nonlocal answered
            with self.service.connect() as sock, sock.makefile("rb") as replies:
                while not stop.wait(0.01):
                    sock.sendall(b"hello\n" * 10)
                    answered += len([replies.readline() for _ in range(10)])

        client = threading.Thread(target=load)
        client.start()
        deadline = time.monotonic() + PATIENCE
        while len(self.query(f"{messages}[1h]") or []) < 6 and time.monotonic() < deadline:
            stop.wait(0.1)
        stop.set()
        client.join(PATIENCE)
        points = [(at, float(value)) for at, value in self.query(f"{messages}[1h]")]
        self.assertGreaterEqual(len(points), 6)
        (first, low), *_, (last, high) = points[1:]
        span = last - first
        _, rate = self.query(f"rate({messages}[{round(span * 1000) + 2}ms])", last)
        self.assertApproximates(float(rate), (high - low) / span, 0.02 * (high - low) / span)
        while float(self.query(messages)[1]) < answered and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(float(self.query(messages)[1]), answered)
        self.assertEqual(float(self.query("up")[1]), 1)
        self.assertGreater(float(self.query("tsecho_reactor_lag_seconds_count")[1]), 0)
