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
from timestamp_echo.ping.roundtrips import Figures, RoundTrips

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
        self.assertEqual(none.histogram(10), [])

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
            counts = [count for _, _, count in run.histogram(10)]
            self.assertEqual(sum(counts), min(size, len(trips)))

    def test_bound(self) -> None:
        """The window takes 8 MiB."""
        self.assertEqual(roundtrips.WINDOW * RoundTrips()._window.itemsize, 8 * 2**20)


class HistogramTests(SynchronousTestCase):
    """`RoundTrips.histogram`."""

    @given(TRIPS, st.integers(1, 20))
    def test_any(self, trips: list[int], bins: int) -> None:
        """Adjacent bins of equal width, from minimum to maximum, count every value."""
        run, figures = round_trips(trips), figures_of(trips)
        found = run.histogram(bins)
        self.assertLessEqual(len(found), bins)
        self.assertEqual(sum(count for _, _, count in found), len(trips))
        self.assertEqual(found[0][0], figures.min)
        self.assertGreaterEqual(found[-1][1], figures.max)
        self.assertLessEqual(found[-1][0], figures.p99)
        self.assertLessEqual(len({end - start for start, end, _ in found[:-1]}), 1)
        for one, other in pairwise(found):
            self.assertEqual(one[1], other[0])
        for start, end, count in found[:-1]:
            self.assertEqual(count, sum(start <= trip < end for trip in trips))
        self.assertEqual(found[-1][2], sum(found[-1][0] <= trip for trip in trips))

    def test_by_hand(self) -> None:
        """Ten values in five bins of two."""
        self.assertEqual(
            round_trips([0, 1, 2, 2, 3, 5, 6, 9, 9, 9]).histogram(5),
            [(0, 2, 2), (2, 4, 3), (4, 6, 1), (6, 8, 1), (8, 10, 3)],
        )

    def test_outlier(self) -> None:
        """One outlier in a thousand is in the last bin, and does not widen the others."""
        found = round_trips([*range(1000), 10**9]).histogram(10)
        self.assertEqual([count for _, _, count in found[:-1]], [100] * 9)
        self.assertEqual(found[-1], (900, 10**9, 101))

    def test_alike(self) -> None:
        """Equal values are in one bin."""
        self.assertEqual(round_trips([5] * 20).histogram(10), [(5, 6, 20)])
