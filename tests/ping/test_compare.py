"""Tests for `timestamp_echo.ping.compare`, some of them with simulated fleets."""

from __future__ import annotations

from itertools import combinations
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fleets import judged
from timestamp_echo.ping.compare import Interval, difference, groups, verdict
from timestamp_echo.ping.estimate import ZONE_STEP
from timestamp_echo.stamps import SECOND

HOUR = 3600 * SECOND


def zoneless(low: int, high: int) -> Interval:
    """The interval of a clock whose stamps name no zone."""
    return Interval(low, high, zoned=False)


def intervals() -> st.SearchStrategy[Interval]:
    """Intervals that often touch, with and without a zone."""
    ends = st.integers(-8, 8).map(lambda end: end * ZONE_STEP // 4)
    return st.builds(
        lambda low, width, zoned: Interval(low, low + width, zoned),
        *(ends, st.integers(0, 3).map(lambda quarters: quarters * ZONE_STEP // 4), st.booleans()),
    )


class DifferenceTests(SynchronousTestCase):
    """`difference`."""

    def check(self, one: Interval, other: Interval, expected: int) -> None:
        """The difference is the same in both directions."""
        self.assertEqual(difference(one, other), expected)
        self.assertEqual(difference(other, one), expected)

    def test_zoned(self) -> None:
        """Clocks differ by the distance between their intervals; intervals that touch agree."""
        self.check(Interval(0, 10), Interval(11, 20), 1)
        self.check(Interval(0, 10), Interval(10, 20), 0)
        self.check(Interval(0, 10), Interval(-5, 30), 0)
        self.check(Interval(0, 10), Interval(HOUR, HOUR + 1), HOUR - 10)

    def test_one_zone_unknown(self) -> None:
        """A difference that one clock's zone explains is not claimed."""
        clock = Interval(-1, 1)
        for zone in (-12 * HOUR, -HOUR, 0, ZONE_STEP, 23 * ZONE_STEP, 14 * HOUR):
            self.check(zoneless(zone, zone + 5), clock, 0)
            self.check(zoneless(zone + 7, zone + 8), clock, 6)
            self.check(zoneless(zone - 8, zone - 7), clock, 6)
        self.check(zoneless(0, ZONE_STEP), clock, 0)

    def test_no_zone_is_that_far(self) -> None:
        """Zones explain only what they can: those of two clocks may be 26 hours apart."""
        clock = Interval(0, 0)
        self.check(zoneless(14 * HOUR + ZONE_STEP, 14 * HOUR + ZONE_STEP), clock, ZONE_STEP)
        self.check(zoneless(-13 * HOUR, -13 * HOUR), clock, HOUR)
        self.check(zoneless(26 * HOUR, 26 * HOUR), zoneless(0, 0), 0)
        self.check(zoneless(27 * HOUR, 27 * HOUR), zoneless(0, 0), HOUR)

    def test_both_zones_unknown(self) -> None:
        """The same if both zones are unknown."""
        self.check(zoneless(HOUR, HOUR + 5), zoneless(3, 4), 0)
        self.check(zoneless(HOUR + 20, HOUR + 30), zoneless(3, 4), 16)


class VerdictTests(SynchronousTestCase):
    """`verdict`."""

    def test_zoned(self) -> None:
        """Exceeded or within, if that is certain."""
        for low, high, expected in (
            (-10, 10, "within"),
            (-10, 11, "can't tell"),
            (-11, 10, "can't tell"),
            (10, 30, "can't tell"),
            (11, 30, "exceeded"),
            (-30, -11, "exceeded"),
            (HOUR, HOUR + 1, "exceeded"),
        ):
            self.assertEqual(verdict(Interval(low, high), 10), expected, (low, high))

    def test_zone_unknown(self) -> None:
        """The nearest zone is taken for the server's, if there is one that far from UTC."""
        for low, high, expected in (
            (HOUR - 5, HOUR + 5, "within"),
            (HOUR - 5, HOUR + 11, "can't tell"),
            (HOUR + 11, HOUR + 12, "exceeded"),
            (-12 * HOUR, 5 - 12 * HOUR, "within"),
            (-13 * HOUR, 5 - 13 * HOUR, "exceeded"),
            (14 * HOUR - 5, 14 * HOUR + 5, "within"),
            (24 * HOUR, 24 * HOUR, "exceeded"),
            (0, ZONE_STEP, "can't tell"),
        ):
            self.assertEqual(verdict(zoneless(low, high), 10), expected, (low, high))
        minutes, last = 60 * SECOND, 14 * HOUR
        clock = zoneless(last + 479 * SECOND, last + 9 * minutes)  # nearer to a zone that is none
        self.assertEqual(verdict(clock, 8 * minutes), "can't tell")


class GroupsTests(SynchronousTestCase):
    """`groups`."""

    def test_chain(self) -> None:
        """A clock may agree with two that differ from each other."""
        self.assertEqual(
            groups([Interval(0, 10), Interval(8, 20), Interval(15, 30), Interval(40, 50)]),
            [[0, 1], [1, 2], [3]],
        )

    def test_all(self) -> None:
        """Clocks that all meet are one group; without a clock there is none."""
        self.assertEqual(groups([Interval(5, 9), Interval(0, 6), Interval(4, 5)]), [[0, 1, 2]])
        self.assertEqual(groups([]), [])

    @given(st.lists(intervals(), max_size=7))
    def test_pairs(self, clocks: list[Interval]) -> None:
        """Two clocks provably differ if, and only if, no group has both."""
        found = groups(clocks)
        for one, other in combinations(range(len(clocks)), 2):
            together = any({one, other} <= set(group) for group in found)
            self.assertEqual(together, not difference(clocks[one], clocks[other]))
        self.assertEqual({index for group in found for index in group}, set(range(len(clocks))))
        for one_group, other_group in combinations(map(set, found), 2):
            self.assertFalse(one_group <= other_group or other_group <= one_group)


class FleetTests(SynchronousTestCase):
    """Simulated fleets; `python -m tests.ping.fleets` simulates ten thousand."""

    def test_no_false_claim(self) -> None:
        """No difference is claimed that is not there, and each that is greater than the bounds."""
        random = Random(1)
        totals = [judged(random) for _ in range(60)]
        self.assertEqual(sum(total.false for total in totals), 0)
        self.assertGreater(sum(total.equal for total in totals), 20)
        distinct = sum(total.distinct for total in totals)
        self.assertEqual(sum(total.shown for total in totals), distinct)
        self.assertGreater(distinct, 60)
