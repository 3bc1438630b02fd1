"""Tests for `timestamp_echo.ping.bounds`; `test_client_estimate` has them with whole runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping.bounds import CORNERS, LIMIT, RATE, Cone, Line, Sample, Step
from timestamp_echo.stamps import SECOND, Moment

START = 10**6 * SECOND
HOUR = 3600 * SECOND


def sample(at: int, offset: int, there: int = 0, back: int = 0, resolution: int = 1) -> Sample:
    """The probe that left at `at`, and the stamp of a clock that is so far ahead when it comes."""
    reading = at + there + offset
    moment = Moment(reading // resolution * resolution, resolution, True)
    return Sample(at, at + there + back, moment)


class SampleTests(SynchronousTestCase):
    """`Sample`."""

    @given(
        st.integers(-HOUR, HOUR),
        st.integers(0, SECOND),
        st.integers(0, SECOND),
        st.sampled_from([1, 1000, SECOND]),
    )
    def test_truth(self, offset: int, there: int, back: int, resolution: int) -> None:
        """The truth is possible, and not more than a round trip and a step of the stamp is."""
        one = sample(START, offset, there, back, resolution)
        self.assertTrue(one.low <= offset <= one.high)
        self.assertEqual(one.high - one.low, there + back + resolution)


class ConeTests(SynchronousTestCase):
    """`Cone`: rates within `RATE`, changing or not."""

    @given(st.lists(st.tuples(st.integers(0, 100), st.integers(-RATE, RATE)), max_size=20))
    def test_truth(self, waits: list[tuple[int, int]]) -> None:
        """The truth stays possible, however the rate changes meanwhile."""
        at, offset = START, HOUR
        cone = Cone.of(sample(at, offset))
        for seconds, rate in waits:
            at, offset = at + seconds * SECOND, offset + seconds * rate
            narrowed = cone.narrowed(sample(at, offset))
            assert narrowed is not None
            cone = narrowed
        low, high = cone.span(at)
        self.assertTrue(low <= offset <= high, (low, offset, high))

    def test_step(self) -> None:
        """What leaves nothing possible is a step: by how much, and between which samples."""
        for by in (SECOND, -SECOND):
            cone = Cone.of(sample(START, 0))
            later = sample(START + SECOND, by)
            self.assertIsNone(cone.narrowed(later))
            step = cone.step(later)
            self.assertEqual((step.after, step.before), (START, START + SECOND))
            self.assertLessEqual(abs(step.nanoseconds - by), step.bound)
            self.assertLess(step.bound, 3 * RATE)

    def test_step_of(self) -> None:
        """From what was possible to what is."""
        step = Step.of(START, (-5, 5), sample(START + SECOND, 100))
        self.assertEqual(step, Step(START, START + SECOND, 100, 6))


class LineTests(SynchronousTestCase):
    """`Line`: one rate, up to `LIMIT`."""

    def test_rate(self) -> None:
        """Two samples tell the rate, the better the further they are apart."""
        line = Line.of(sample(START, 0))
        self.assertEqual(line.rates(), (-LIMIT, LIMIT))
        narrowed = line.narrowed(sample(START + 1000 * SECOND, 1000 * 5000))
        assert narrowed is not None
        slow, fast = narrowed.rates()
        self.assertTrue(slow <= 5000 <= fast and fast - slow <= 2, (slow, fast))
        self.assertIsNone(narrowed.narrowed(sample(START + 2000 * SECOND, 0)))

    def test_corners(self) -> None:
        """However many samples each cut a corner off, few are kept, and the truth with them."""
        line = None
        for i in range(-500, 500):
            at = START + i * SECOND
            low = -i * i * 1000  # a rate from 1000 to -1000 ppm is the steepest of those below
            one = Sample(at, at, Moment(at + low, HOUR, True))
            line = line.narrowed(one) if line else Line.of(one)
            assert line is not None
            self.assertLessEqual(len(line.corners), CORNERS)
            self.assertLessEqual(line.span(at)[0], 0)
            self.assertTrue(line.rates()[0] <= 0 <= line.rates()[1])
