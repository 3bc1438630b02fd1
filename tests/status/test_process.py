"""Tests for `timestamp_echo.status.process`."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.status.process import ProcessMetrics
from timestamp_echo.transports.arrivals import LINUX


def values(collector: Collector) -> dict[str, float]:
    """The figures of a collector by their names."""
    return {
        sample.name: sample.value for metric in collector.collect() for sample in metric.samples
    }


class ProcessMetricsTests(SynchronousTestCase):
    """`ProcessMetrics`: the figures of this process."""

    if not LINUX:
        skip = "proc(5) is Linux's"

    def test_same(self) -> None:
        """Names, types, texts and values are those of prometheus_client's own collector."""
        own = {metric.name: metric for metric in ProcessMetrics().collect()}
        theirs = {metric.name: metric for metric in ProcessCollector(registry=None).collect()}
        self.assertEqual(
            {name: (metric.type, metric.documentation) for name, metric in own.items()},
            {name: (metric.type, metric.documentation) for name, metric in theirs.items()},
        )
        mine = values(ProcessMetrics())
        for name, value in values(ProcessCollector(registry=None)).items():
            self.assertApproximates(mine[name] / value, 1, 0.1, name)
            if "start_time" in name:  # theirs is that of a clock of whole seconds
                self.assertApproximates(mine[name], value, 2)

    def test_open_files(self) -> None:
        """Each open file counts."""
        metrics = ProcessMetrics()
        before = values(metrics)["process_open_fds"]
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
        after = values(metrics)["process_open_fds"]
        for file in files:
            os.close(file)
        self.assertEqual(after - before, 10)

    def test_start_time(self) -> None:
        """The start is in the past, and stays where it was when the clock is set."""
        metrics = ProcessMetrics()
        start = values(metrics)["process_start_time_seconds"]
        self.assertLess(start, time.time())
        real = time.time
        self.patch(time, "time", lambda: real() + 5000)
        self.assertEqual(values(metrics)["process_start_time_seconds"], start)

    def test_old_kernel(self) -> None:
        """Where the kernel does not say how many files are open, they are counted."""
        proc = Path(self.mktemp())
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "stat").write_text(Path("/proc/self/stat").read_text())
        (proc / "self" / "fd").symlink_to("fds")
        (proc / "self" / "fds").mkdir()
        self.patch(Path, "stat", lambda path, **options: os.stat_result([0] * 10))
        for name in ("0", "1", "2"):
            (proc / "self" / "fds" / name).touch()
        self.assertEqual(values(ProcessMetrics(str(proc)))["process_open_fds"], 3)

    def test_without_proc(self) -> None:
        """Without proc(5) there is what POSIX has; a limit that is none is infinite."""
        self.patch(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY, 5))
        found = values(ProcessMetrics("/nonexistent"))
        self.assertEqual(set(found), {"process_cpu_seconds_total", "process_max_fds"})
        self.assertEqual(found["process_max_fds"], float("inf"))
