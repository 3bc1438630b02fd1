"""Statistics of round-trip times: the usual figures, and a histogram.

Integers in, integers out, all in nanoseconds. Knows no connection and no text.
"""

from __future__ import annotations

from array import array
from math import ceil, isqrt
from typing import NamedTuple

WINDOW = 2**20
"""Latest round trips from which percentiles and the histogram are computed: 8 MiB."""


class Figures(NamedTuple):
    """Statistics of some round-trip times, in nanoseconds."""

    min: int
    mean: int
    max: int
    mdev: int
    """Standard deviation, under the name it has in ping(8)."""
    p50: int
    p90: int
    p99: int
    jitter: int
    """Mean deviation from one to the next, smoothed as in RFC 3550, section 6.4.1."""


class RoundTrips:
    """Round-trip times, added one by one."""

    def __init__(self) -> None:
        self.count = self.min = self.max = 0
        self._sum = self._squares = self._last = 0
        self._jitter = 0.0
        self._window = array("q")

    def add(self, rtt: int) -> None:
        """Add a round-trip time.

        @param rtt: nanoseconds.
        """
        if self.count:
            self._jitter += (abs(rtt - self._last) - self._jitter) / 16
        self.min = min(rtt, self.min) if self.count else rtt
        self.max = max(rtt, self.max) if self.count else rtt
        if self.count < WINDOW:
            self._window.append(rtt)
        else:
            self._window[self.count % WINDOW] = rtt
        self.count += 1
        # Integers: the variance of long round trips would drown in the rounding of floats.
        self._sum += rtt
        self._squares += rtt * rtt
        self._last = rtt

    @property
    def mean(self) -> int:
        """The mean; 0 if there are none."""
        return self._sum // self.count if self.count else 0

    @property
    def figures(self) -> Figures | None:
        """All statistics; None if there are no round trips. Percentiles are of nearest rank."""
        if not self.count:
            return None
        variance = (self._squares * self.count - self._sum**2) // self.count**2
        ordered = sorted(self._window)
        p50, p90, p99 = (ordered[ceil(len(ordered) * p / 100) - 1] for p in (50, 90, 99))
        jitter = int(self._jitter)
        return Figures(self.min, self.mean, self.max, isqrt(variance), p50, p90, p99, jitter)

    def histogram(self, bins: int) -> list[tuple[int, int, int]]:
        """Count the round trips in bins of equal width, from the minimum to the 99th percentile.

        The last bin also contains everything beyond, so that one outlier does not flatten the rest.

        @param bins: maximum number of bins.
        @return: start, end and count of each bin. The end belongs to the next bin, except that of
            the last.
        """
        figures = self.figures
        if figures is None:
            return []
        width = max(1, -(-(figures.p99 + 1 - figures.min) // bins))
        counts = [0] * min(bins, (figures.p99 - figures.min) // width + 1)
        for rtt in self._window:
            counts[min(max(rtt - figures.min, 0) // width, len(counts) - 1)] += 1
        starts = [figures.min + width * index for index in range(len(counts))]
        ends = [*starts[1:], max(figures.max, starts[-1] + width)]
        return list(zip(starts, ends, counts, strict=True))
