"""Three machines behind HAProxy, with the configuration in `deploy/`: restarts and a failure.

Each machine is a network namespace with an address of its own.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.load import LONG, SHORT, Report
from tests.system.namespaces import HUB, Star
from tests.system.running import PATIENCE, Log, Service, needs, run
from tests.test_deploy import DEPLOY

NODES = {"a": "10.77.0.11", "b": "10.77.0.12", "c": "10.77.0.13"}
CLIENT = "10.77.0.2"

PROXIED = """
import socket, sys
with socket.create_connection((sys.argv[1], 3000), 10) as sock:
    sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\\r\\nhello\\n")
    print(sock.makefile("rb").readline())
"""
"""Asks a machine directly, as HAProxy would."""


class MachinesTests(SynchronousTestCase):
    """Clients, HAProxy, and three services."""

    def setUp(self) -> None:
        """Start the services, then HAProxy."""
        try:
            self.star = Star(self, {**NODES, "client": CLIENT})
        except OSError as error:
            self.skipTest(str(error))
        self.folder = Path(self.mktemp()).absolute()
        self_signed(str(self.folder))
        self.nodes: dict[str, Service] = {}

    def start_all(self, stop_delay: int) -> None:
        """Start the services of all machines, at once: a start takes seconds on a busy host."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start, NODES, [stop_delay] * len(NODES)))

    def start(self, node: str, stop_delay: int) -> None:
        """Start the service of a machine, as the comment in HAProxy's configuration says."""
        self.nodes[node] = Service(
            self,
            *("-l", "haproxy:tcp:3000", "-l", f"haproxy:tls:{self.folder}:port=3001"),
            *("--status", "tcp:8080", "--proxy-from", HUB, "--stop-delay", str(stop_delay)),
            prefix=self.star.inside(self.star.hosts[node]),
        )
        self.addCleanup(self.nodes[node].process.kill)  # the end of the test needs no delay

    def balance(self) -> None:
        """Start HAProxy. It asks for the nodes' state more often, so that a test is short."""
        config = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
        config = config.replace("10.0.0.", "10.77.0.").replace("inter 1s", "inter 100ms")
        config = config.replace("/run/haproxy/admin.sock", "unix@admin.sock")
        file = self.folder / "haproxy.cfg"
        file.write_text(config)
        process = subprocess.Popen(
            [*self.star.inside(self.star.hub), needs("haproxy"), "-W", "-db", "-f", str(file)],
            cwd=self.folder,  # an absolute path of its socket may be too long
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        self.haproxy = Log(process.stderr)
        self.addCleanup(process.stderr.close)
        self.addCleanup(self.haproxy.finish)
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.terminate)
        self.haproxy.wait_for("Loading success")

    def begin(self) -> None:
        """Start the clients."""
        self.clients = subprocess.Popen(
            [
                *self.star.inside(self.star.hosts["client"]),
                # What is started meanwhile goes first.
                *("nice", sys.executable, "-m", "tests.system.load"),
                *(f"tcp={HUB}:3000", f"tls={HUB}:3001"),
            ],
            cwd=DEPLOY.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(self.clients.communicate)
        self.addCleanup(self.clients.kill)
        self.wait_for_all()

    def wait_for_all(self) -> None:
        """Wait until each node has served a client."""
        for node in self.nodes.values():
            node.log.wait_for("ended after")

    def end(self) -> dict[str, Report]:
        """Stop the clients; return their reports."""
        output, _ = self.clients.communicate(timeout=PATIENCE)
        reports = {kind: Report(**report) for kind, report in json.loads(output).items()}
        for kind, report in reports.items():
            lost, count = len(report.unanswered), len(report.ports)
            print(f"{kind}: {report.replies} replies, {count} connections, {lost} unanswered")
            self.assertGreater(report.replies, 100)
        return reports

    def assert_addresses(self, reports: dict[str, Report]) -> None:
        """Each address in the logs of the nodes is one that a client had."""
        used = {f"{CLIENT}:{port}" for report in reports.values() for port in report.ports}
        for node in self.nodes.values():
            logged = set(re.findall(r"connection from (\S+) ", node.log.text))
            self.assertTrue(logged)
            self.assertEqual(logged - used, set())

    def test_rolling_restart(self) -> None:
        """Restarted one after the other, three machines answer every request.

        A client that keeps its connection sees it end in order, and asks again.
        """
        self.start_all(2)
        self.balance()
        self.begin()
        for node in NODES:
            old = self.nodes[node]
            self.assertEqual(old.stop(), 0)
            self.assertIn("the ports close in 2 s", old.log.text)
            self.haproxy.wait_for(f"Server tcp/{node} is DOWN")
            self.start(node, 2)
            self.haproxy.wait_for(f"Server tcp/{node} is UP")
        self.wait_for_all()
        reports = self.end()
        for kind, report in reports.items():
            if kind.endswith("short"):
                self.assertEqual(report.unanswered, [], kind)
            else:  # one that moves on is in the way of at most every restart
                ends = [what for *_, what in report.unanswered]
                self.assertEqual(ends, [""] * len(ends), kind)
                self.assertLessEqual(len(ends), len(NODES) * LONG)
        self.assert_addresses(reports)

    def test_killed(self) -> None:
        """When a machine dies, only the requests that it was answering are lost."""
        self.start_all(0)
        self.balance()
        self.begin()
        self.nodes["b"].stop(signal.SIGKILL)
        self.haproxy.wait_for("Server tcp/b is DOWN")
        self.start("b", 0)
        self.wait_for_all()
        reports = self.end()
        lost = {
            (kind.split()[0], str(port))
            for kind, report in reports.items()
            for port, *_ in report.unanswered
        }
        self.assertLessEqual(len(lost), 2 * (SHORT + LONG))
        # Those on which nothing had been transferred are in no line of HAProxy's (dontlognull).
        logged = re.findall(rf"{CLIENT}:(\d+) .* (tcp|tls)/[ac] ", self.haproxy.text)
        self.assertEqual(lost & {(kind, port) for port, kind in logged}, set())
        self.assert_addresses(reports)

    def test_ready(self) -> None:
        """A machine that is to stop is taken out while it still answers."""
        self.start_all(15)
        self.balance()
        old = self.nodes["a"]
        old.process.send_signal(signal.SIGTERM)
        self.haproxy.wait_for("Server tcp/a is DOWN.*503")
        self.haproxy.wait_for("Server tls/a is DOWN")
        asking = [*self.star.inside(self.star.hub), sys.executable, "-c", PROXIED, NODES["a"]]
        self.assertRegex(run(asking).stdout, rb"\] hello")
        old.process.send_signal(signal.SIGTERM)  # does not wait for the rest of the delay
        self.assertEqual(old.wait(), 0)
        self.assertEqual(run(asking).stdout, b"")
