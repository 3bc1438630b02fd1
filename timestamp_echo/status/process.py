"""What Prometheus's clients report of any process: memory, processor time, open files.

The names and texts are those of prometheus_client's own collector, which lists the open files and
so blocks the service for 2 microseconds for each. Knows proc(5).
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# In /proc/self/stat, counted after the name of the program.
_START, _VIRTUAL, _RESIDENT = 19, 20, 21


class ProcessMetrics(Collector):
    """The figures of this process.

    @param proc: the folder that proc(5) describes; without it there are fewer figures.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._process = Path(proc, "self")
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._start: float | None = None

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            value=usage.ru_utime + usage.ru_stime,
        )
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield GaugeMetricFamily(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            value=float("inf") if limit == resource.RLIM_INFINITY else limit,
        )
        with suppress(OSError):  # there is no proc(5), or the file table is full
            yield from self._from_proc()

    def _from_proc(self) -> Iterator[Metric]:
        fields = (self._process / "stat").read_text().rpartition(")")[2].split()
        yield GaugeMetricFamily(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            value=int(fields[_VIRTUAL]),
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            value=int(fields[_RESIDENT]) * self._page,
        )
        if self._start is None:  # once: setting the clock does not change when it started
            ticks = int(fields[_START]) / os.sysconf("SC_CLK_TCK")
            self._start = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            value=self._start,
        )
        files = self._process / "fd"
        yield GaugeMetricFamily(
            "process_open_fds",
            "Number of open file descriptors.",
            # Linux says so from 6.2 on. Before that, they have to be listed.
            value=files.stat().st_size or len(os.listdir(files)),
        )
