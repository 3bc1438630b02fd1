"""That the benchmark runs; what it finds is nobody's test."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.running import PATIENCE, needs, run


class BenchmarkTests(SynchronousTestCase):
    """`python -m benchmarks`, as short as may be."""

    def bench(self, *arguments: str) -> str:
        """What it prints, and what it says besides."""
        needs("cc")
        needs("taskset")
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("the server and the load want a core each")
        done = run(
            [sys.executable, "-m", *arguments],
            cwd=Path(__file__).parent.parent.parent,
            timeout=3 * PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return (done.stdout + done.stderr).decode()

    def test_cases(self) -> None:
        """Each kind of load, with the limit as the only peer, and the lab's server."""
        file = os.path.abspath(self.mktemp())
        cases = ("100 connections", "1 connection", "UDP", "connect, line", "memory", "start")
        table = self.bench(
            *("benchmarks", "--rounds", "1", "--seconds", "0.1", "--json", file),
            *("--server", "C", "--server", "lab", "--server", "bare"),
            *(word for case in cases for word in ("--case", case)),
        )
        for case in cases:
            self.assertRegex(table, rf"(?m)^{case}.*\n  tsecho +\d.*\n(.*\n)*?  C +\d")
        self.assertEqual(len(re.findall(r"(?m)^  lab +\d", table)), 1)
        self.assertEqual(len(re.findall(r"(?m)^  bare +\d", table)), 5)
        results = json.loads(Path(file).read_text())
        self.assertGreater(results["100 connections, 64 B"]["tsecho"][0]["rate"], 0)

    def test_tls(self) -> None:
        """Every server that is here speaks TLS."""
        table = self.bench("benchmarks", "--rounds", "1", "--seconds", "0.1", "--case", "TLS")
        if "TLS, 100 connections is left out" in table:
            self.skipTest("libssl's headers are not here")
        for server in ("tsecho", "C", "asyncio", "Twisted"):
            self.assertRegex(table, rf"(?m)^  {server} +\d")

    def test_counts(self) -> None:
        """Instructions and system calls: the limit reads, writes, and waits now and then."""
        needs("valgrind")
        if run([needs("strace"), "true"]).returncode:
            self.skipTest("strace may not trace here")
        table = self.bench("benchmarks.counts", "--seconds", "0.1", "--server", "C")
        self.assertRegex(table, r"(?m)^C +\d+ +2\.\d\d  .*recvfrom 1\.0")

    def test_moments(self) -> None:
        """How true the stamps are."""
        table = self.bench("benchmarks.moments", "--seconds", "0.2")
        self.assertRegex(table, r"stamp after sending, the kernel's time +\d+ +\d+\n")
        self.assertEqual(table.count("timer of 10 ms, late"), 2)
