"""Tests that the benchmarks run. What they measure depends on the machine, and is not tested."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.counts import CONNECTIONS, STRACE, counted
from benchmarks.servers import built, commands
from benchmarks.storm import COLUMNS, STORMS
from tests.system.running import PATIENCE, needs, run


class BenchmarkTests(SynchronousTestCase):
    """The programs in `benchmarks`, in runs as short as possible."""

    def setUp(self) -> None:
        """Skip the test where the benchmarks do not run."""
        needs("cc")
        needs("taskset")
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("the server and the load need a core each")

    def bench(self, *arguments: str) -> str:
        """Run a benchmark, and return its standard output and error."""
        done = run(
            [sys.executable, "-m", *arguments],
            cwd=Path(__file__).parent.parent.parent,
            timeout=20 * PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return (done.stdout + done.stderr).decode()

    def test_cases(self) -> None:
        """Each kind of load runs, with three of the peers."""
        file = os.path.abspath(self.mktemp())
        cases = ("100 connections", "1 connection", "UDP", "connect, line", "memory", "start")
        table = self.bench(
            *("benchmarks", "--rounds", "1", "--seconds", "0.1", "--json", file),
            *("--server", "C", "--server", "lab", "--server", "bare"),
            *(argument for case in cases for argument in ("--case", case)),
        )
        for case in cases:
            self.assertRegex(table, rf"(?m)^{case}.*\n  tsecho +\d.*\n(.*\n)*?  C +\d")
        self.assertEqual(len(re.findall(r"(?m)^  lab +\d", table)), 1)
        self.assertEqual(len(re.findall(r"(?m)^  bare +\d", table)), 5)
        results = json.loads(Path(file).read_text())
        self.assertGreater(results["100 connections, 64 B"]["tsecho"][0]["rate"], 0)

    def test_scrapes(self) -> None:
        """What a scrape takes is a table, with a line for each number of connections."""
        table = self.bench("benchmarks.scrapes", "--scrapes", "3", "--seconds", "0.2")
        self.assertRegex(table, r"(?m)^ +100 +[\d,]+ +[\d,]+ +1\.\d{4}$")

    def test_tls(self) -> None:
        """Every installed server has a row in the table for TLS."""
        table = self.bench("benchmarks", "--rounds", "1", "--seconds", "0.1", "--case", "TLS")
        if "TLS, 100 connections is left out" in table:
            self.skipTest("libssl's headers are not installed")
        for server in ("tsecho", "C", "asyncio", "Twisted"):
            self.assertRegex(table, rf"(?m)^  {server} +\d")

    def test_capacity(self) -> None:
        """The memory and the time that a connection takes are a table; the kernel has a part.

        The kernel counts the sockets of all processes, so few connections would not show among
        those that other tests close meanwhile.
        """
        if os.getuid() != 0:
            self.skipTest("only root may read /proc/slabinfo")
        for kind in ((), ("--tls",)):
            table = self.bench("benchmarks.capacity", "--connections", "1000", *kind)
            for row in ("the kernel", "  TCP", "  sock_inode_cache", "together"):
                self.assertRegex(table, rf"(?m)^  {row} +\d[\d,]*$")
            for row in ("connect, a line, its reply", "another line", "the end"):
                self.assertRegex(table, rf"(?m)^  {row} +\d+\.\d$")

    def count(self, messages: int) -> Counter[str]:
        """Count the system calls of the server in C."""
        if run([needs("strace"), "true"]).returncode:
            self.skipTest("strace may not trace here")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        programs = built(folder, "load", "C")
        command = commands(programs, folder)["tcp"]["C"]
        return counted(STRACE, command, programs["load"], messages, folder)

    def test_counted(self) -> None:
        """The server in C reads and writes once a message.

        Besides the counted messages each connection has one to warm up, and one that may be in
        flight when the load ends. The server reads once more where it notices the end.
        """
        calls = self.count(1000)
        messages = calls["messages"]
        self.assertTrue(1000 <= messages < 1000 + CONNECTIONS, messages)
        least, most = messages + CONNECTIONS, messages + 2 * CONNECTIONS
        self.assertTrue(least <= calls["sendto"] <= most, calls)
        self.assertTrue(least <= calls["recvfrom"] <= most + CONNECTIONS, calls)
        self.assertTrue(0 < calls["epoll_wait"] <= calls["recvfrom"] + CONNECTIONS + 1, calls)

    def test_counts(self) -> None:
        """The table has the instructions and the system calls of a message.

        What differs between the two runs besides their messages is at most a write and two reads
        a connection (`test_counted`): an eighth of 1,700 messages.
        """
        needs("valgrind")
        self.count(1)
        table = self.bench("benchmarks.counts", "--messages", "2000", "--server", "C")
        row = re.search(r"(?m)^C +([\d,]+) +\d\.\d\d  (.*)$", table)
        assert row is not None, table
        self.assertGreater(int(row[1].replace(",", "")), 0)
        calls = {name: float(count) for name, count in re.findall(r"(\w+) (\d\.\d\d)", row[2])}
        for name in ("recvfrom", "sendto"):
            self.assertTrue(7 / 8 < calls[name] < 9 / 8, table)

    def test_moments(self) -> None:
        """The table has the delays of the stamps and of the timer, for both kinds of stamps."""
        table = self.bench("benchmarks.moments", "--seconds", "0.2")
        self.assertRegex(table, r"stamp after sending, the kernel's time +\d+ +\d+\n")
        self.assertEqual(table.count("timer of 10 ms, late"), 2)

    def test_processes(self) -> None:
        """Each measurement has a table with one process and with two."""
        tables = self.bench(
            *("benchmarks.processes", "--rounds", "1", "--seconds", "0.2", "--connections", "100")
        )
        for title in ("100 clients ask", "100 lines wait"):
            rows = "".join(rf"  processes: {count}( +([\d,.]+|nan)){{4}}\n" for count in (1, 2))
            self.assertRegex(tables, rf"(?m)^{title}.*\n{rows}")

    def test_storm(self) -> None:
        """Each storm has a table with all columns, and the established clients are served."""
        needs("prlimit")
        file = os.path.abspath(self.mktemp())
        tables = self.bench(
            *("benchmarks.storm", "--rounds", "1", "--seconds", "1", "--json", file),
            *("--server", "C"),
        )
        results = json.loads(Path(file).read_text())
        self.assertEqual(list(results), list(STORMS))
        titles = " +".join(re.escape(title) for title, _ in COLUMNS.values())
        for storm, by_server in results.items():
            cells = rf"( +[\d.]+){{{len(COLUMNS)}}}\n"
            self.assertRegex(tables, rf"(?m)^{storm} +{titles}\n  tsecho{cells}  C{cells}")
            for (result,) in by_server.values():
                self.assertGreater(result["completed"], 0)
                self.assertGreater(result["answered"], 0)
                self.assertEqual(result["failed"], 0)
                self.assertGreater(result["files"], 0)
