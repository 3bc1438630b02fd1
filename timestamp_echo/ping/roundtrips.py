"""What the round trips of `tsecho ping` come to: the usual figures, and a histogram.

Numbers in, numbers out: whole nanoseconds. Knows no connection and no text.
"""

from __future__ import annotations

from array import array
from math import ceil, isqrt
from typing import NamedTuple

KEPT = 2**20
"""Round trips, the last ones, of which the percentiles and the histogram are made: 8 MiB."""


class Figures(NamedTuple):
    """The figures of some round trips, in nanoseconds."""

    least: int
    mean: int
    most: int
    mdev: int
    """The standard deviation, as ping(8) has it."""
    p50: int
    p90: int
    p99: int
    jitter: int
    """The mean deviation of one from the next, smoothed as in RFC 3550, section 6.4.1."""


class RoundTrips:
    """Round trips, as they come."""

    def __init__(self) -> None:
        self.count = self.least = self.most = 0
        self._sum = self._squares = self._last = 0
        self._jitter = 0.0
        self._kept = array("q")

    def add(self, trip: int) -> None:
        """Take one more.

        @param trip: nanoseconds.
        """
        if self.count:
            self._jitter += (abs(trip - self._last) - self._jitter) / 16
        self.least = min(trip, self.least) if self.count else trip
        self.most = max(trip, self.most) if self.count else trip
        if self.count < KEPT:
            self._kept.append(trip)
        else:
            self._kept[self.count % KEPT] = trip
        self.count += 1
        self._sum += trip
        self._squares += trip * trip
        self._last = trip

    @property
    def mean(self) -> int:
        """Their mean; 0 if there are none."""
        return self._sum // self.count if self.count else 0

    @property
    def figures(self) -> Figures | None:
        """Their figures; nothing if there are none. A percentile is that of the nearest rank."""
        if not self.count:
            return None
        variance = (self._squares * self.count - self._sum**2) // self.count**2
        ordered = sorted(self._kept)
        p50, p90, p99 = (ordered[ceil(len(ordered) * p / 100) - 1] for p in (50, 90, 99))
        jitter = int(self._jitter)
        return Figures(self.least, self.mean, self.most, isqrt(variance), p50, p90, p99, jitter)

    def histogram(self, bars: int) -> list[tuple[int, int, int]]:
        """How many fell where.

        The steps are as wide as each other, from the least to the 99th percentile; the last
        takes in what is beyond, so that one that is far out does not flatten the others.

        @param bars: how many steps there are at most.
        @return: the beginning of each step, its end, and how many are in it; those at the end are
            in the next step, but for the last.
        """
        figures = self.figures
        if figures is None:
            return []
        width = max(1, -(-(figures.p99 + 1 - figures.least) // bars))
        counts = [0] * min(bars, (figures.p99 - figures.least) // width + 1)
        for trip in self._kept:
            counts[min(max(trip - figures.least, 0) // width, len(counts) - 1)] += 1
        starts = [figures.least + width * index for index in range(len(counts))]
        ends = [*starts[1:], max(figures.most, starts[-1] + width)]
        return list(zip(starts, ends, counts, strict=True))
