"""`tsecho ping` with several servers, as a process: real servers, wrong clocks, a terminal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import validated
from tests.system.running import BIN, PATIENCE, Screen, Service, Status, faketime, plain_echo, run


def ping(*arguments: str, stdin: bytes = b"") -> Status:
    """Run `tsecho ping` to its end."""
    return run([BIN / "tsecho", "ping", *arguments], input=stdin)


def refusing() -> str:
    """A host and port where no one listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


class FleetTests(SynchronousTestCase):
    """Several servers at once."""

    def servers(self, *offsets: str, style: str = "unix") -> list[str]:
        """Servers whose clocks are wrong by this much."""
        services = [
            Service(self, *("-s", style, "-l", "unix:socket"), environment=faketime(offset))
            for offset in offsets
        ]
        return [f"unix:{service.path()}" for service in services]

    def test_wrong_clocks(self) -> None:
        """Which clocks provably differ, with fine and coarse stamps."""
        servers = self.servers("-2s", "+0s", "+0s")
        servers += self.servers("+3s", style="ctime")
        done = ping("-c", "4", "-i", "0.2", "-q", *servers)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        words = done.stdout.decode()
        self.assertEqual(len(re.findall(r"^unix:\S+\s+0 % +\d", words, re.MULTILINE)), 4)
        one, two, three, four = servers
        self.assertIn(f"differ:\n  {one}\n  {two}, ", words.replace(",\n   ", ","))
        self.assertRegex(words, rf"\n +{three}\n  {four}\n")

    def test_limit(self) -> None:
        """`--max-offset`: status 0, 1 where it is exceeded, and 3 where no one can tell."""
        right, ahead = self.servers("+0s", "+2s")
        for arguments, status, words in (
            ([right], 0, f"offset within 1000.000 ms:\n  {right}\n"),
            ([right, ahead], 1, f"offset provably over 1000.000 ms:\n  {ahead}\n"),
            ([right, plain_echo(self)], 3, "can't tell whether the offset is over 1000.000 ms:\n"),
            ([right, refusing()], 2, "can't tell whether the offset is over 1000.000 ms:\n"),
        ):
            done = ping(*("-c", "2", "-i", "0.05", "-q", "--max-offset", "1s"), *arguments)
            self.assertEqual((done.returncode, done.stderr), (status, b""), arguments)
            self.assertIn(words, done.stdout.decode())

    def test_unreachable(self) -> None:
        """A server that refuses, and a name that is not found, are rows; the others go on."""
        service = Service(self, *("-l", "tcp:0:interface=127.0.0.1"))
        right = f"127.0.0.1:{service.port()}"
        done = ping(*("-c", "2", "-i", "0.05", refusing(), right, "a.invalid:7"))
        self.assertEqual((done.returncode, done.stderr), (2, b""))
        words = done.stdout.decode()
        self.assertRegex(words, r"\n127[.:\d]+ +Connection refused\n")
        self.assertRegex(words, r"\na.invalid:7 +no address found for this name\n")
        self.assertEqual(len(re.findall(rf"^{right}: seq=", words, re.MULTILINE)), 2)

    def test_list(self) -> None:
        """`--from` reads servers from a file or standard input; each is asked once."""
        service = Service(self, *("-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"))
        where = f"127.0.0.1:{service.port()}"
        listed = f"# servers\n\n {where} # this one\n{where}\nunix:{service.path()}\n"
        path = Path(self.mktemp())
        path.write_text(listed)
        for file, stdin in ((str(path), b""), ("-", listed.encode())):
            arguments = ("--json", "-c", "1", "--from", file, where)
            done = ping(*arguments, stdin=stdin)
            records = [validated(line) for line in done.stdout.splitlines()]
            self.assertEqual(done.returncode, 0)
            self.assertEqual(
                [record["server"] for record in records if record["type"] == "summary"],
                [where, f"unix:{service.path()}"],
            )
            self.assertEqual(len(records[-1]["may_agree"]), 1)
        path.write_text(f"\ufeff{where}")  # a byte order mark
        done = ping("-c", "1", "-q", "--from", str(path))
        self.assertIn(b"--- tsecho ping of 1 server ---", done.stdout)

    def test_wrong_list(self) -> None:
        """A file that cannot be read, or lists no servers: one line, and status 2."""
        empty, binary = Path(self.mktemp()), Path(self.mktemp())
        empty.write_text("# none\n")
        binary.write_bytes(b"\xff\n")
        for arguments, words in (
            (["--from", ""], "--from: expected a file or -, not ''"),
            (
                ["--max-offset", "0.0001us"],
                "--max-offset: expected a time such as 50ms, 2s or 0.05, not '0.0001us'",
            ),
            (["--plot", ""], "--plot: expected a name that ends with .png or .svg, not ''"),
            (["--from", "/nowhere"], "--from: /nowhere: No such file or directory"),
            (["--from", str(binary)], f"--from: {binary}: not a text file"),
            (
                ["--from", str(empty)],
                f"--from: expected a SERVER on each line, found none in {empty}",
            ),
            (["--max-offset", "5m"], "expected a time such as 50ms, 2s or 0.05, not '5m'"),
            (["--max-offset", "0"], "expected a time such as 50ms, 2s or 0.05, not '0'"),
            (["--json", "--prometheus"], "--prometheus: cannot be combined with --json"),
            (["a", "b:0"], "SERVER: expected a port from 1 to 65535, not 0 in 'b:0'"),
        ):
            done = ping(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, b""))
            self.assertRegex(done.stderr.decode(), f"^tsecho ping: .*{re.escape(words)}\n$")

    def test_prometheus(self) -> None:
        """`--prometheus` writes nothing but the metrics, also of a single server."""
        service = Service(self, *("-l", "tcp:0:interface=127.0.0.1", "-s", "unix"))
        right = f"127.0.0.1:{service.port()}"
        done = ping("--prometheus", "-c", "2", "-i", "0.05", right, "--max-offset", "0.5")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(f'tsecho_ping_probes_sent{{server="{right}"}} 2\n', done.stdout.decode())
        self.assertTrue(done.stdout.startswith(b"# HELP tsecho_ping_up "))

    def test_signals(self) -> None:
        """SIGQUIT shows the table; SIGINT stops with the summary."""
        service = Service(self, *("-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"))
        servers = (f"127.0.0.1:{service.port()}", f"unix:{service.path()}")
        with subprocess.Popen(
            [BIN / "tsecho", "ping", "-i", "0.2", *servers], stdout=subprocess.PIPE
        ) as process:
            self.addCleanup(process.kill)
            assert process.stdout
            lines = iter(process.stdout.readline, b"")
            waited_for = {f"{server}: seq=1".encode() for server in servers}
            while waited_for:  # a long path leaves no room for the time in the same line
                waited_for.discard(b" ".join(next(lines).split()[:2]))
            process.send_signal(signal.SIGQUIT)
            while not next(lines).startswith(b"both clocks may agree"):
                pass
            process.send_signal(signal.SIGINT)
            self.assertIn(b"--- tsecho ping of 2 servers ---\n", process.stdout.read())
            self.assertEqual(process.wait(PATIENCE), 0)

    def test_terminal(self) -> None:
        """On a terminal the table is there while the servers are asked, and is drawn anew."""
        service = Service(self, *("-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"))
        servers = (f"127.0.0.1:{service.port()}", f"unix:{service.path()}")
        screen = Screen(self, *(BIN / "tsecho", "ping", "-c", "3", "-i", "0.6", *servers))
        screen.see(
            r"(?s)server +loss.*\r\x1b\[3A\x1b\[J.*--- tsecho ping of 2 servers ---.*explain\)\r\n"
        )
        self.assertEqual(screen.status(), 0)

    def test_insecure(self) -> None:
        """The warning of `--insecure` is printed once."""
        done = ping("--insecure", "-c", "1", "-q", f"tls:{refusing()}", f"tls:{refusing()}")
        self.assertEqual(done.stderr.count(b"--insecure"), 1)

    def test_plot(self) -> None:
        """`--plot` draws several servers in one figure; there is none of unreachable ones."""
        service = Service(self, *("-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket"))
        servers = (f"127.0.0.1:{service.port()}", f"unix:{service.path()}")
        path = self.mktemp() + ".svg"
        done = ping("-q", "-c", "2", "-i", "0.05", "--plot", path, *servers)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn("<svg", Path(path).read_text())
        path = self.mktemp() + ".svg"
        ping("-q", "--plot", path, refusing(), refusing())
        self.assertFalse(os.path.exists(path))
