"""Tests for `timestamp_echo.ping.roundtrips`, against textbook definitions."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import isqrt
from statistics import pvariance
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping import roundtrips
from timestamp_echo.ping.roundtrips import Figures, Histogram, RoundTrips

TRIPS = st.lists(
    st.integers(0, 3000) | st.integers(0, 10**12) | st.just(10**6), min_size=1, max_size=120
)


def round_trips(trips: list[int]) -> RoundTrips:
    """Round trips with these times."""
    result = RoundTrips()
    for trip in trips:
        result.add(trip)
    return result


def figures_of(trips: list[int]) -> Figures:
    """Their statistics."""
    figures = round_trips(trips).figures
    assert figures is not None
    return figures


def nearest_rank(trips: list[int], percent: int) -> int:
    """The smallest value that at least `percent` % of all values do not exceed."""
    return next(
        trip
        for trip in sorted(trips)
        if 100 * sum(other <= trip for other in trips) >= percent * len(trips)
    )


class FiguresTests(SynchronousTestCase):
    """`RoundTrips.figures`."""

    def test_none(self) -> None:
        """Without round trips there are no statistics."""
        none = RoundTrips()
        self.assertIsNone(none.figures)
        self.assertEqual((none.count, none.mean), (0, 0))
        self.assertEqual(none.histogram(10), Histogram(0, 1000, [], 0))

    def test_one(self) -> None:
        """A single value is its own minimum, mean, maximum and percentile, without deviation."""
        self.assertEqual(figures_of([7]), Figures(7, 7, 7, 0, 7, 7, 7, 0))

    def test_by_hand(self) -> None:
        """A few values, computed by hand."""
        # Squares of 10, -10, 30, -30 from the mean: 2000 / 4 = 500. Jitter: 20 / 16 = 1.25,
        # + (40 - 1.25) / 16 = 3.67, + (60 - 3.67) / 16 = 7.19.
        self.assertEqual(figures_of([60, 40, 80, 20]), Figures(20, 50, 80, 22, 40, 80, 80, 7))

    @given(TRIPS)
    def test_any(self, trips: list[int]) -> None:
        """Each statistic follows its definition, rounded down."""
        figures = figures_of(trips)
        self.assertEqual(figures.min, min(trips))
        self.assertEqual(figures.mean, sum(trips) // len(trips))
        self.assertEqual(round_trips(trips).mean, figures.mean)
        self.assertEqual(figures.max, max(trips))
        self.assertEqual(figures.mdev, isqrt(int(pvariance(map(Fraction, trips)))))
        for percent, found in ((50, figures.p50), (90, figures.p90), (99, figures.p99)):
            self.assertEqual(found, nearest_rank(trips, percent))

    @given(TRIPS)
    def test_jitter(self, trips: list[int]) -> None:
        """RFC 3550, 6.4.1: J += (|D| - J) / 16, from 0 at the first."""
        jitter = Fraction(0)
        for one, other in pairwise(trips):
            jitter += (abs(other - one) - jitter) / 16
        self.assertLessEqual(abs(figures_of(trips).jitter - jitter), 1 + jitter / 10**9)

    def test_hundred(self) -> None:
        """Of a hundred values the percentiles are exactly those of their rank."""
        figures = figures_of(list(range(100, 0, -1)))
        self.assertEqual((figures.p50, figures.p90, figures.p99), (50, 90, 99))
        figures = figures_of(list(range(1, 102)))
        self.assertEqual((figures.p50, figures.p90, figures.p99), (51, 91, 100))

    def test_exact(self) -> None:
        """A small deviation of large values is not lost in rounding."""
        self.assertEqual(figures_of([10**12, 10**12 + 2] * 500).mdev, 1)

    def test_negative(self) -> None:
        """A value can be negative, if the clock was set; it may also be the maximum."""
        self.assertEqual(figures_of([-5])[:4], (-5, -5, -5, 0))


class WindowTests(SynchronousTestCase):
    """The window of latest values."""

    @given(TRIPS, st.integers(1, 20))
    def test_last(self, trips: list[int], size: int) -> None:
        """Percentiles and histogram are of the latest values; the rest is of all."""
        with patch.object(roundtrips, "WINDOW", size):
            run = round_trips(trips)
            figures, expected = run.figures, figures_of(trips[-size:])
            assert figures is not None
            self.assertEqual(figures[4:7], expected[4:7])
            self.assertEqual(figures[:3], (min(trips), sum(trips) // len(trips), max(trips)))
            self.assertEqual(run.count, len(trips))
            self.assertEqual(len(run._window), min(size, len(trips)))
            found = run.histogram(10)
            self.assertEqual(sum(found.counts) + found.beyond, min(size, len(trips)))

    def test_bound(self) -> None:
        """The window takes 8 MiB."""
        self.assertEqual(roundtrips.WINDOW * RoundTrips()._window.itemsize, 8 * 2**20)


class HistogramTests(SynchronousTestCase):
    """`RoundTrips.histogram`."""

    @given(TRIPS, st.integers(1, 20))
    def test_any(self, trips: list[int], bins: int) -> None:
        """Bins of equal width, from the minimum on, which hold three quarters of all values."""
        start, width, counts, beyond = round_trips(trips).histogram(bins)
        self.assertEqual(start, min(trips))
        self.assertLessEqual(len(counts), bins)
        for index, count in enumerate(counts):
            low = start + width * index
            # The last bin may reach into what is beyond.
            inside = sorted(trips)[: len(trips) - beyond]
            self.assertEqual(count, sum(low <= trip < low + width for trip in inside))
        self.assertEqual(sum(counts) + beyond, len(trips))
        self.assertGreaterEqual(4 * sum(counts), 3 * len(trips))

    def test_by_hand(self) -> None:
        """Ten values in five bins of two microseconds."""
        trips = [number * 1000 for number in (0, 1, 2, 2, 3, 5, 6, 9, 9, 9)]
        found = round_trips(trips).histogram(5)
        self.assertEqual(found, Histogram(0, 1801, [2, 3, 1, 1, 3], 0))

    def test_end(self) -> None:
        """The bins end at twice the distance of the 75th percentile from the minimum."""
        for longest, beyond in ((7000, 0), (7001, 1)):
            found = round_trips([1000, 3000, 4000, longest]).histogram(5)
            self.assertEqual((sum(found.counts), found.beyond), (4 - beyond, beyond))

    def test_outlier(self) -> None:
        """One outlier does not widen the bins, neither of sixteen values nor of a thousand."""
        for count in (16, 1000):
            trips = range(10**6, 10**6 + 1000 * count, 1000)
            found = round_trips([*trips, 10**9]).histogram(10)
            self.assertEqual(found.beyond, 1)
            self.assertEqual(found[:3], round_trips([*trips]).histogram(10)[:3])

    def test_alike(self) -> None:
        """Equal values are in one bin."""
        self.assertEqual(round_trips([5] * 20).histogram(10), Histogram(5, 1000, [20], 0))
