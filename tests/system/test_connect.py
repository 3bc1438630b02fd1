"""`tsecho ping --connect`, as a process: through HAProxy, and what fails in which phase."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import validated
from tests.system.certificates import self_signed
from tests.system.running import BIN, PATIENCE, Service, Status, needs, run

LOCAL = "0:interface=127.0.0.1"

HAPROXY = """
defaults
  mode tcp
  timeout connect 20s
  timeout client 20s
  timeout server 20s
listen tls
  bind fd@{socket} ssl crt {certificate}
  server echo 127.0.0.1:{port} send-proxy
"""
"""TLS ends here; what is behind it goes on with a PROXY header."""


def ping(*arguments: str) -> Status:
    """Run `tsecho ping --connect` to its end."""
    return run([BIN / "tsecho", "ping", "--connect", *arguments])


def measured(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The same with `--json`; return the exit status and the objects it wrote, all valid."""
    done = ping("--json", *arguments)
    return done.returncode, [validated(line) for line in done.stdout.splitlines()]


class ConnectTests(SynchronousTestCase):
    """A new connection for each probe."""

    def check(self, arguments: list[str], *phases: str) -> None:
        """Three probes go through these phases, whose sum is the round trip."""
        status, (*probes, summary) = measured("-c", "3", "-i", "0.05", *arguments)
        self.assertEqual((status, len(probes)), (0, 3), arguments)
        for probe in probes:
            self.assertEqual(list(probe["phases_ns"]), list(phases))
            self.assertEqual(sum(probe["phases_ns"].values()), probe["rtt_ns"])
        self.assertEqual(list(summary["phases_ns"]), list(phases))
        offset = summary["offset"]
        self.assertLessEqual(abs(offset["offset_ns"]), offset["bound_ns"])

    def test_kinds(self) -> None:
        """Servers of all kinds, also behind a PROXY header."""
        files = self_signed(self.mktemp())
        ssl = f"ssl:{LOCAL}:{files.endpoint}"
        endpoints = [f"tcp:{LOCAL}", ssl, f"udp:{LOCAL}", f"haproxy:tcp:{LOCAL}", f"haproxy:{ssl}"]
        endpoints += ["unix:socket", "haproxy:unix:proxied"]
        listen = [word for endpoint in endpoints for word in ("-l", endpoint)]
        service = Service(self, "-s", "unix", *listen)
        tcp, tls, udp, proxied, proxied_tls = (f"localhost:{service.port(n)}" for n in range(5))
        trusting = ["--ca", files.certificate]
        self.check([tcp], "lookup", "connect", "reply")
        self.check(["-4", tcp], "lookup", "connect", "reply")
        self.check([*trusting, f"tls:{tls}"], "lookup", "connect", "tls", "reply")
        self.check([f"udp:{udp}"], "lookup", "reply")
        self.check([f"unix:{service.path()}"], "connect", "reply")
        self.check(["--send-proxy", proxied], "lookup", "connect", "reply")
        self.check(
            ["--send-proxy", *trusting, f"tls:{proxied_tls}"],
            *("lookup", "connect", "tls", "reply"),
        )
        self.check(["--send-proxy", f"unix:{service.path('proxied')}"], "connect", "reply")
        # A header is sent without --connect, too: once, in front of the first probe.
        done = run([BIN / "tsecho", "ping", "-c", "2", "-i", "0.05", "--send-proxy", proxied])
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_haproxy(self) -> None:
        """Through a load balancer that ends TLS and sends the PROXY header."""
        files = self_signed(self.mktemp())
        service = Service(self, "-s", "unix", "-l", f"haproxy:tcp:{LOCAL}")
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        folder = Path(self.mktemp())
        folder.mkdir()
        both = folder / "both.pem"
        both.write_text(Path(files.certificate).read_text() + Path(files.key).read_text())
        config = folder / "haproxy.cfg"
        names = {"socket": listener.fileno(), "certificate": both, "port": service.port()}
        config.write_text(HAPROXY.format(**names))
        haproxy = subprocess.Popen(
            [needs("haproxy"), "-q", "-db", "-f", str(config)], pass_fds=[listener.fileno()]
        )
        self.addCleanup(haproxy.wait, PATIENCE)
        self.addCleanup(haproxy.terminate)
        where = f"tls:localhost:{listener.getsockname()[1]}"
        self.check(["--ca", files.certificate, where], "lookup", "connect", "tls", "reply")

    def test_losses(self) -> None:
        """A loss names its phase; the status is that of lost probes."""
        service = Service(self, "-l", f"tcp:{LOCAL}")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(PATIENCE)
            port = silent.getsockname()[1]
            for server, words in (
                (f"tls:localhost:{service.port()}", "seq=1 lost in TLS: "),
                (f"tls:127.0.0.1:{port}", "seq=1 lost in TLS: no reply within 2 s\n"),
                (f"127.0.0.1:{port}", "seq=1 lost in reply: no reply within 2 s\n"),
                ("a.invalid", "seq=1 lost in name lookup: no address found for this name\n"),
                ("unix:/nowhere", "seq=1 lost in connect: No such file or directory\n"),
            ):
                done = ping("-c", "1", "-W", "2" if str(port) in server else "20", server)
                self.assertEqual((done.returncode, done.stderr), (1, b""), server)
                self.assertIn(words, done.stdout.decode())

    def test_fleet(self) -> None:
        """Several servers: each line names its server, and has the phases."""
        service = Service(self, "-l", f"tcp:{LOCAL}", "-l", "unix:socket")
        servers = (f"127.0.0.1:{service.port()}", f"unix:{service.path()}")
        done = ping("-c", "1", *servers)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        words = " ".join(done.stdout.decode().split())  # long lines are continued on the next
        self.assertRegex(words, rf"{servers[0]}: seq=1 time=\S+ ms = lookup \S+ \+ connect ")
        self.assertRegex(words, rf"{servers[1]}: seq=1 time=\S+ ms = connect \S+ \+ reply ")

    def test_no_connection(self) -> None:
        """There is no PROXY header in front of datagrams."""
        done = ping("--send-proxy", "udp:localhost")
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertEqual(
            done.stderr, b"tsecho ping: --send-proxy is for connections, not 'udp:localhost'\n"
        )
