"""Tests for `timestamp_echo.ping.bounds`; whole runs are in `test_estimate`."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping import bounds
from timestamp_echo.ping.bounds import (
    MAX_DRIFT,
    TOLERANCE,
    Cone,
    Polygon,
    Sample,
    Side,
    Step,
    midpoint,
)
from timestamp_echo.stamps import SECOND, Moment

START = 10**6 * SECOND
HOUR = 3600 * SECOND
MILLISECOND = SECOND // 1000


def sample(at: int, offset: int, there: int = 0, back: int = 0, resolution: int = 1) -> Sample:
    """A probe sent at `at` to a server whose clock is `offset` ahead when it arrives."""
    reading = at + there + offset
    moment = Moment(reading // resolution * resolution, resolution, True)
    return Sample(at, at + there + back, moment)


def interval_sample(at: int, low: int, high: int) -> Sample:
    """A sample without a round trip that bounds the offset by these."""
    return Sample(at, at, Moment(at + low, high - low, True))


class ConstantTests(SynchronousTestCase):
    """What the documentation says about rates."""

    def test_rates(self) -> None:
        """Healthy clocks differ by 100 ppm at most; a drift is at most 1 %."""
        self.assertEqual(TOLERANCE, 100_000)
        self.assertEqual(MAX_DRIFT, 10_000_000)


class SampleTests(SynchronousTestCase):
    """`Sample`."""

    @given(
        st.integers(-HOUR, HOUR),
        st.integers(0, SECOND),
        st.integers(0, SECOND),
        st.sampled_from([1, 1000, SECOND]),
    )
    def test_bounds(self, offset: int, there: int, back: int, resolution: int) -> None:
        """The true offset is within the bounds, which are a round trip and a resolution apart."""
        one = sample(START, offset, there, back, resolution)
        self.assertTrue(one.low <= offset <= one.high)
        self.assertEqual(one.high - one.low, there + back + resolution)


class ConeTests(SynchronousTestCase):
    """`Cone`: any rate within `TOLERANCE`."""

    def intersected(self, *samples: Sample) -> Cone:
        """The cone of these samples, which is not empty."""
        cone = Cone.of(samples[0])
        for sample in samples[1:]:
            narrower = cone.intersect(sample)
            assert narrower is not None
            cone = narrower
        return cone

    @given(
        st.lists(st.tuples(st.integers(0, 100), st.integers(-TOLERANCE, TOLERANCE)), max_size=20)
    )
    def test_varying_rate(self, intervals: list[tuple[int, int]]) -> None:
        """The true offset stays possible however the rate varies."""
        at, offset = START, HOUR
        samples = [sample(at, offset)]
        for seconds, rate in intervals:
            at, offset = at + seconds * SECOND, offset + seconds * rate
            samples.append(sample(at, offset))
        low, high = self.intersected(*samples).interval(at)
        self.assertTrue(low <= offset <= high, (low, offset, high))

    def test_of(self) -> None:
        """The lower bound holds at `received`, the upper one at `sent`."""
        cone = Cone.of(Sample(3, 8, Moment(100, 10, True)))
        low, high = 92 * SECOND + 8 * TOLERANCE, 107 * SECOND - 3 * TOLERANCE
        self.assertEqual(cone, Cone(Side(low, 8, high), Side(high, 3, low)))

    def test_interval(self) -> None:
        """Bounds widen by 100 ppm of the time since, and are rounded outwards."""
        cone = Cone.of(Sample(0, 0, Moment(0, 10, True)))
        for at, expected in (
            (0, (0, 10)),
            (1, (-1, 11)),
            (10_000, (-1, 11)),
            (10_001, (-2, 12)),
            (SECOND, (-TOLERANCE, 10 + TOLERANCE)),
        ):
            self.assertEqual(cone.interval(at), expected)

    def test_intersect(self) -> None:
        """Each side is the strongest; it remembers its sample, and the opposite side then."""
        first = interval_sample(0, 0, 100)
        cone = self.intersected(first, interval_sample(1000, 40, 160))
        low, high = 40 * SECOND + 1000 * TOLERANCE, 100 * SECOND
        self.assertEqual(cone, Cone(Side(low, 1000, high), Side(high, 0, 0)))
        cone = self.intersected(first, interval_sample(1000, -60, 70))
        high = 70 * SECOND - 1000 * TOLERANCE
        self.assertEqual(cone, Cone(Side(0, 0, 100 * SECOND), Side(high, 1000, 0)))

    def test_same_bounds(self) -> None:
        """Of two samples that give the same bound, the first is remembered."""
        first = interval_sample(0, 0, 100)
        for second in (Sample(-5, 0, Moment(0, 200, True)), Sample(0, 5, Moment(0, 100, True))):
            self.assertEqual(self.intersected(first, second), Cone.of(first))

    def test_empty(self) -> None:
        """Bounds that touch leave one offset possible; a nanosecond more, and none is."""
        cone = Cone.of(interval_sample(0, 0, 1))
        # After 10 microseconds a bound has widened by a nanosecond.
        self.assertIsNotNone(cone.intersect(interval_sample(10_000, 2, 3)))
        self.assertIsNone(cone.intersect(interval_sample(10_000, 3, 4)))
        self.assertIsNotNone(cone.intersect(interval_sample(10_000, -2, -1)))
        self.assertIsNone(cone.intersect(interval_sample(10_000, -3, -2)))

    def test_step(self) -> None:
        """A sample that leaves nothing possible shows a step, after the sample it contradicts."""
        # The lower and the upper side are from different samples, late enough for the
        # widening since the client's 0 to exceed every other number.
        samples = [
            interval_sample(START, -1, 2 * SECOND),
            interval_sample(START + SECOND, -2 * SECOND, 1),
            interval_sample(START + 2 * SECOND, -2 * SECOND, 2 * SECOND),
        ]
        cone = self.intersected(*samples)
        for size, after, bound in ((SECOND, START + SECOND, 1), (-SECOND, START, SECOND)):
            later = sample(START + 3 * SECOND, size)
            self.assertIsNone(cone.intersect(later))
            step = cone.step(later)
            self.assertEqual((step.after, step.before), (after, START + 3 * SECOND))
            self.assertLessEqual(abs(step.nanoseconds - size), step.bound)
            self.assertLess(step.bound, bound + 4 * TOLERANCE)

    def test_step_after_unnoticed_step(self) -> None:
        """The offset before a step is that of the contradicted side, not of later samples."""
        for sign in (1, -1):
            samples = [
                interval_sample(START, 0, 100 * MILLISECOND),
                interval_sample(START + SECOND, *sorted((sign * 90 * MILLISECOND, sign * SECOND))),
            ]
            if sign < 0:
                samples[0] = interval_sample(START, -100 * MILLISECOND, 0)
            cone = self.intersected(*samples)
            later = interval_sample(
                START + 2 * SECOND, *sorted((sign * 110 * MILLISECOND, sign * 111 * MILLISECOND))
            )
            self.assertIsNone(cone.intersect(later))
            step = cone.step(later)
            self.assertEqual(step.after, START)
            # From anything up to 100 ms to 110 or 111: a step by 10 to 111 ms.
            expected, bound = midpoint(*sorted((sign * 10 * MILLISECOND, sign * 111 * MILLISECOND)))
            self.assertLessEqual(abs(step.nanoseconds - expected), TOLERANCE)
            self.assertLessEqual(abs(step.bound - bound), 3 * TOLERANCE)


class StepTests(SynchronousTestCase):
    """`Step`."""

    def test_between(self) -> None:
        """From the old interval to the new one: the midpoint, and half the width."""
        step = Step.between(START, (-5, 5), sample(START + SECOND, 100))
        self.assertEqual(step, Step(START, START + SECOND, 100, 6))
        step = Step.between(1, (0, 0), Sample(0, 100, Moment(0, 1, True)))
        self.assertEqual(step, Step(1, 100, -49, 51))  # -100 to 2, with 100 ppm of 100 ns

    def test_midpoint(self) -> None:
        """The distance is the one to the farther end."""
        self.assertEqual(midpoint(-4, 10), (3, 7))
        self.assertEqual(midpoint(-4, 11), (3, 8))


Line = tuple[Fraction, Fraction]
"""An offset at 0, and a rate."""


def vertices(samples: list[Sample], rate: int) -> set[Line]:
    """The vertices of the polygon of these samples, found by trying all pairs of constraints.

    @param rate: the highest rate, in nanoseconds per nanosecond.
    """
    # a * x + b * y <= c
    constraints = [(0, 1, rate), (0, -1, rate)]
    for one in samples:
        constraints += [(1, one.sent, one.high), (-1, -one.received, -one.low)]
    found = set()
    for (a, b, c), (d, e, f) in combinations(constraints, 2):
        if determinant := a * e - b * d:
            x, y = Fraction(c * e - b * f, determinant), Fraction(a * f - c * d, determinant)
            if all(p * x + q * y <= r for p, q, r in constraints):
                found.add((x, y))
    return found


def found(polygon: Polygon | None) -> list[Line]:
    """The vertices of a polygon."""
    return [(Fraction(x, w), Fraction(y, w)) for x, y, w in polygon.vertices] if polygon else []


class PolygonTests(SynchronousTestCase):
    """`Polygon`: one constant rate, up to `MAX_DRIFT`."""

    def test_rate(self) -> None:
        """Two samples give the rate, the better the further they are apart."""
        polygon = Polygon.of(sample(START, 0))
        self.assertEqual(polygon.rates(), (-MAX_DRIFT, MAX_DRIFT))
        narrower = polygon.intersect(sample(START + 1000 * SECOND, 1000 * 5000))
        assert narrower is not None
        slow, fast = narrower.rates()
        self.assertTrue(slow <= 5000 <= fast and fast - slow <= 2, (slow, fast))
        self.assertEqual(narrower.since, START)
        self.assertIsNone(narrower.intersect(sample(START + 2000 * SECOND, 0)))

    def test_of(self) -> None:
        """The upper bound holds at `sent`: until `received` it may rise by the highest rate."""
        for sent in (1, START):
            one = Sample(sent, sent + SECOND, Moment(sent, 5, True))
            polygon = Polygon.of(one)
            self.assertEqual(polygon.interval(sent + SECOND), (-SECOND, 5 + MAX_DRIFT))
            self.assertEqual(polygon.interval(sent), (-SECOND - MAX_DRIFT, 5))
            self.assertEqual(polygon.since, sent)

    def test_rounded_outwards(self) -> None:
        """Offsets and rates are whole nanoseconds, rounded outwards."""
        polygon = Polygon([(1, 1, 3), (-1, -1, 3)], 0)
        self.assertEqual(polygon.interval(0), (-1, 1))
        self.assertEqual(polygon.interval(3), (-2, 2))
        self.assertEqual(polygon.interval(5), (-2, 2))
        self.assertEqual(polygon.rates(), (-(SECOND // 3) - 1, SECOND // 3 + 1))

    def test_all_pairs(self) -> None:
        """The vertices are those that are found by trying all pairs of constraints."""
        # Small integers, so that borders meet in vertices and edges fall together.
        random = Random(1)
        for run in range(150):
            samples = [
                Sample(sent, sent + random.randint(0, 3), Moment(sent + low, size, True))
                for sent, low, size in (
                    (random.randint(0, 4), random.randint(-3, 3), random.randint(1, 6))
                    for _ in range(random.randint(1, 5))
                )
            ]
            polygon: Polygon | None = Polygon.of(samples[0], (-SECOND, SECOND))
            for one in samples[1:]:
                polygon = polygon and polygon.intersect(one)
            expected = vertices(samples, 1)
            self.assertEqual(set(found(polygon)), expected, (run, samples))
            if len(expected) > 2:
                self.assertEqual(len(found(polygon)), len(expected), (run, samples))

    def test_clipped_by_one(self) -> None:
        """A vertex is cut off even if it is outside by the smallest possible number."""
        square = Polygon([(0, 0, 1), (2, 0, 1), (2, 1, 1), (0, 1, 1)], 0)
        clipped = square.intersect(interval_sample(0, -9, 1))
        self.assertEqual(set(found(clipped)), {(0, 0), (1, 0), (1, 1), (0, 1)})

    def test_lowest_terms(self) -> None:
        """Vertices are stored in lowest terms, so that their size is bounded."""
        random = Random(2)
        polygon: Polygon | None = Polygon.of(sample(START, 0, 500, 500))
        for i in range(1, 50):
            there, back = random.randrange(1000), random.randrange(1000)
            polygon = polygon and polygon.intersect(sample(START + i * SECOND, 0, there, back))
        assert polygon is not None
        for x, y, w in polygon.vertices:
            self.assertLess(max(abs(x), abs(y), w).bit_length(), 128)

    def many(self) -> list[Sample]:
        """Samples each of which cuts a vertex off: the offset is bounded by a parabola."""
        # Its slopes are from 1000 to -1000 ppm.
        return [
            Sample(at, at, Moment(at - i * i * 1000, HOUR, True))
            for i, at in ((i, START + i * SECOND) for i in range(-500, 500))
        ]

    def test_max_vertices(self) -> None:
        """A polygon never has more than 64 vertices, and always contains the true line."""
        first, *others = self.many()
        polygon, counts = Polygon.of(first), set()
        for one in others:
            narrower = polygon.intersect(one)
            assert narrower is not None
            polygon = narrower
            counts.add(len(polygon.vertices))
            self.assertLessEqual(polygon.interval(one.received)[0], 0)
            self.assertTrue(polygon.rates()[0] <= 0 <= polygon.rates()[1])
        self.assertEqual(max(counts), 64)

    def test_replaced(self) -> None:
        """The parallelogram has the offsets and the rates of the polygon it replaces."""
        first, *others = self.many()[490:]
        polygon = narrower = Polygon.of(first)
        while len(narrower.vertices) <= 4:
            polygon, one = narrower, others.pop(0)
            clipped = polygon.intersect(one)
            assert clipped is not None
            narrower = clipped
        self.patch(bounds, "MAX_VERTICES", 4)
        replaced = polygon.intersect(one)
        assert replaced is not None
        self.assertEqual(len(replaced.vertices), 4)
        self.assertEqual(replaced.interval(one.received), narrower.interval(one.received))
        self.assertEqual(replaced.rates(), narrower.rates())
        self.assertEqual(replaced.since, first.sent)
