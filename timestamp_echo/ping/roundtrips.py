"""Statistics of round-trip times: the usual figures, and a histogram.

Integers in, integers out, all in nanoseconds. Knows no connection and no text.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from math import ceil, isqrt
from typing import NamedTuple

MIN_BIN = 1000
"""Nanoseconds of the narrowest bin of a histogram, whose edges are shown in microseconds."""

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
    """Mean difference between consecutive ones, smoothed as in RFC 3550, section 6.4.1."""


class Histogram(NamedTuple):
    """How many round trips are in each of some bins."""

    start: int
    """Start of the first bin, in nanoseconds."""

    width: int
    """Width of each bin, in nanoseconds; its end belongs to the next."""

    counts: list[int]
    beyond: int
    """Longer round trips than those in the bins."""


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
        # Integers: the rounding of floats would swamp the variance of long round trips.
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
        p50, p90, p99 = (_nearest_rank(ordered, percent) for percent in (50, 90, 99))
        jitter = int(self._jitter)
        return Figures(self.min, self.mean, self.max, isqrt(variance), p50, p90, p99, jitter)

    def histogram(self, bins: int) -> Histogram:
        """Count the round trips in bins of equal width, from the minimum on.

        Those more than twice as far from the minimum as the 75th percentile are beyond the bins.
        So the shape of most is visible, however long the longest are.

        @param bins: maximum number of bins.
        """
        if not self.count:
            return Histogram(0, MIN_BIN, [], 0)
        ordered = sorted(self._window)
        low = ordered[0]
        within = bisect_right(ordered, 2 * _nearest_rank(ordered, 75) - low)
        reach = ordered[within - 1] - low
        width = max(MIN_BIN, -(-(reach + 1) // bins))
        counts = [0] * (reach // width + 1)
        within = bisect_left(ordered, low + width * len(counts))  # the last bin may reach farther
        for rtt in ordered[:within]:
            counts[(rtt - low) // width] += 1
        return Histogram(low, width, counts, len(ordered) - within)


def _nearest_rank(ordered: list[int], percent: int) -> int:
    """A percentile of values in ascending order."""
    return ordered[ceil(len(ordered) * percent / 100) - 1]
