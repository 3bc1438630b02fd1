"""Tests for `timestamp_echo.ping.roundtrips`: against the textbook, and within its bound."""

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


def taken(trips: list[int]) -> RoundTrips:
    """All of them, one by one."""
    taken = RoundTrips()
    for trip in trips:
        taken.add(trip)
    return taken


def figures_of(trips: list[int]) -> Figures:
    """Their figures, which are there."""
    figures = taken(trips).figures
    assert figures is not None
    return figures


def nearest_rank(trips: list[int], percent: int) -> int:
    """The least of them that is not less than so many in a hundred: as the definition says it."""
    return next(
        trip
        for trip in sorted(trips)
        if 100 * sum(other <= trip for other in trips) >= percent * len(trips)
    )


class FiguresTests(SynchronousTestCase):
    """The figures."""

    def test_none(self) -> None:
        """Of none there are none."""
        none = RoundTrips()
        self.assertIsNone(none.figures)
        self.assertEqual((none.count, none.mean), (0, 0))
        self.assertEqual(none.histogram(10), [])

    def test_one(self) -> None:
        """One is its own least, mean, most and percentile, and does not vary."""
        self.assertEqual(figures_of([7]), Figures(7, 7, 7, 0, 7, 7, 7, 0))

    def test_by_hand(self) -> None:
        """A few, reckoned by hand."""
        # Squares of 10, -10, 30, -30 from the mean: 2000 / 4 = 500. Jitter: 20 / 16 = 1.25,
        # + (40 - 1.25) / 16 = 3.67, + (60 - 3.67) / 16 = 7.19.
        self.assertEqual(figures_of([60, 40, 80, 20]), Figures(20, 50, 80, 22, 40, 80, 80, 7))

    @given(TRIPS)
    def test_any(self, trips: list[int]) -> None:
        """Each is as its definition has it, rounded down."""
        figures = figures_of(trips)
        self.assertEqual(figures.least, min(trips))
        self.assertEqual(figures.mean, sum(trips) // len(trips))
        self.assertEqual(taken(trips).mean, figures.mean)
        self.assertEqual(figures.most, max(trips))
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
        """Of a hundred the percentiles are those of their rank: not one more, not one less."""
        figures = figures_of(list(range(100, 0, -1)))
        self.assertEqual((figures.p50, figures.p90, figures.p99), (50, 90, 99))
        figures = figures_of(list(range(1, 102)))
        self.assertEqual((figures.p50, figures.p90, figures.p99), (51, 91, 100))

    def test_exact(self) -> None:
        """A small deviation of long ones is not lost in rounding."""
        self.assertEqual(figures_of([10**12, 10**12 + 2] * 500).mdev, 1)

    def test_negative(self) -> None:
        """A clock that was set while a reply waited can make one negative; it is the most, too."""
        self.assertEqual(figures_of([-5])[:4], (-5, -5, -5, 0))


class KeptTests(SynchronousTestCase):
    """What is kept of many."""

    @given(TRIPS, st.integers(1, 20))
    def test_last(self, trips: list[int], kept: int) -> None:
        """Percentiles and histogram are of the last ones; the rest is of all."""
        with patch.object(roundtrips, "KEPT", kept):
            run = taken(trips)
            figures, expected = run.figures, figures_of(trips[-kept:])
            assert figures is not None
            self.assertEqual(figures[4:7], expected[4:7])
            self.assertEqual(figures[:3], (min(trips), sum(trips) // len(trips), max(trips)))
            self.assertEqual(run.count, len(trips))
            self.assertEqual(len(run._kept), min(kept, len(trips)))
            counts = [count for _, _, count in run.histogram(10)]
            self.assertEqual(sum(counts), min(kept, len(trips)))

    def test_bound(self) -> None:
        """As many as are said, at eight bytes each, are 8 MiB."""
        self.assertEqual(roundtrips.KEPT * RoundTrips()._kept.itemsize, 8 * 2**20)


class HistogramTests(SynchronousTestCase):
    """How many fell where."""

    @given(TRIPS, st.integers(1, 20))
    def test_any(self, trips: list[int], bars: int) -> None:
        """Steps that join, as wide as each other, from the least to the most; each is counted."""
        run, figures = taken(trips), figures_of(trips)
        steps = run.histogram(bars)
        self.assertLessEqual(len(steps), bars)
        self.assertEqual(sum(count for _, _, count in steps), len(trips))
        self.assertEqual(steps[0][0], figures.least)
        self.assertGreaterEqual(steps[-1][1], figures.most)
        self.assertLessEqual(steps[-1][0], figures.p99)
        self.assertLessEqual(len({end - start for start, end, _ in steps[:-1]}), 1)
        for one, other in pairwise(steps):
            self.assertEqual(one[1], other[0])
        for start, end, count in steps[:-1]:
            self.assertEqual(count, sum(start <= trip < end for trip in trips))
        self.assertEqual(steps[-1][2], sum(steps[-1][0] <= trip for trip in trips))

    def test_by_hand(self) -> None:
        """Ten, in five steps of two."""
        self.assertEqual(
            taken([0, 1, 2, 2, 3, 5, 6, 9, 9, 9]).histogram(5),
            [(0, 2, 2), (2, 4, 3), (4, 6, 1), (6, 8, 1), (8, 10, 3)],
        )

    def test_far_out(self) -> None:
        """One in a thousand that is far out falls into the last step, and flattens none."""
        steps = taken([*range(1000), 10**9]).histogram(10)
        self.assertEqual([count for _, _, count in steps[:-1]], [100] * 9)
        self.assertEqual(steps[-1], (900, 10**9, 101))

    def test_alike(self) -> None:
        """All alike are one step."""
        self.assertEqual(taken([5] * 20).histogram(10), [(5, 6, 20)])
