"""Tests for `timestamp_echo.ping.estimate`: its bounds hold, and are nearly optimal."""

from __future__ import annotations

import pickle
from itertools import islice
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.ping.simulation import (
    MICROSECOND,
    MILLISECOND,
    PPM,
    START,
    Path,
    Row,
    Server,
    fixed,
    heavy_tailed,
    probed,
    settled,
    settled_limit,
    table,
    uniform,
)
from timestamp_echo.ping.bounds import MAX_DRIFT, TOLERANCE, Cone, Polygon, Sample, Step, midpoint
from timestamp_echo.ping.estimate import Drift, Estimate, Offset
from timestamp_echo.stamps import SECOND, Moment

HOUR = 3600 * SECOND
DAY = 24 * HOUR

NEPAL = 20700
"""+05:45, in seconds."""

NEWFOUNDLAND = -12600
"""-03:30, in seconds."""

PATH = Path(fixed(MILLISECOND // 2, MILLISECOND // 2))
"""A constant round trip of 1 ms, probed once a second."""

DELAYS = [
    fixed(0, 0),
    fixed(MILLISECOND // 2, MILLISECOND // 2),
    fixed(0, MILLISECOND),
    fixed(20 * MILLISECOND, 0),
    uniform(50 * MICROSECOND),
    uniform(3 * SECOND),
    heavy_tailed(20 * MILLISECOND),
]


def sample_from(server: Server, at: int, there: int = 0, back: int = 0) -> Sample:
    """A probe and its reply."""
    return Sample(at, at + there + back, server.stamp(at + there))


def estimate_of(*samples: Sample) -> Estimate:
    """The estimate after these samples."""
    estimate = Estimate()
    for sample in samples:
        estimate.add(sample)
    return estimate


def offset_of(estimate: Estimate) -> Offset:
    """The offset, which is known."""
    assert estimate.offset is not None
    return estimate.offset


def drift_of(estimate: Estimate) -> Drift:
    """The drift, which is known."""
    assert estimate.drift is not None
    return estimate.drift


def last(server: Server, path: Path, count: int, seed: int = 1) -> Estimate:
    """The estimate after `count` probes."""
    *_, estimate = probed(Random(seed), server, path, count)
    return estimate


def aimed(estimate: Estimate, due: int) -> int:
    """The moment that it chooses for a probe, which has time for any."""
    moment = estimate.aim(due, due + 2 * SECOND)
    assert moment is not None
    return moment


def size(estimate: Estimate) -> int:
    """Size of all its state, in bytes."""
    return len(pickle.dumps(vars(estimate)))


class EstimateTestCase(SynchronousTestCase):
    """Assertions about estimates."""

    def assert_within(self, number: float, expected: float, within: float) -> None:
        """The numbers differ by `within` at most."""
        # Twisted's assertAlmostEqual ignores the delta.
        self.assertLessEqual(abs(number - expected), within, (number, expected))

    def assert_drift(self, estimate: Estimate, rate: int) -> None:
        """The stated drift is the server's, within its bound."""
        drift = drift_of(estimate)
        self.assert_within(drift.rate, rate, drift.bound)

    def assert_step(self, step: Step, when: int, size: int) -> None:
        """The stated step is this one, within its bound."""
        self.assertLess(step.after, when)
        self.assertLessEqual(when, step.before)
        self.assert_within(step.nanoseconds, size, step.bound)


class OneSampleTests(EstimateTestCase):
    """The estimate after one probe."""

    def test_none(self) -> None:
        """Without a sample nothing is known, and a probe is not aimed."""
        estimate = Estimate()
        self.assertIsNone(estimate.offset)
        self.assertIsNone(estimate.drift)
        self.assertEqual(list(estimate.steps), [])
        self.assertIsNone(estimate.aim(START, START + SECOND))

    def test_half_the_round_trip(self) -> None:
        """The offset is measured at the middle of the round trip; the bound is half of it."""
        estimate = estimate_of(Sample(1000, 1600, Moment(5300, 1, True)))
        self.assertEqual(offset_of(estimate), Offset(4001, 301, 1600, 0, "rate"))

    def test_half_the_resolution(self) -> None:
        """A coarser stamp adds half its resolution to the bound, and to the offset."""
        estimate = estimate_of(Sample(1000, 1600, Moment(5300, 1000, True)))
        self.assertEqual(offset_of(estimate), Offset(4500, 801, 1600, 0, "rate"))

    @given(
        st.integers(-(10**19), 10**19),
        st.integers(0, SECOND),
        st.integers(0, SECOND),
        st.sampled_from([1, 1000, SECOND]),
    )
    def test_any(self, offset: int, there: int, back: int, resolution: int) -> None:
        """The true offset is within the bound: half a round trip, plus half the resolution."""
        server = Server(offset, resolution)
        stated = offset_of(estimate_of(sample_from(server, START, there, back)))
        self.assertTrue(server.bound_holds(stated))
        trip = there + back
        self.assert_within(stated.bound, (trip + resolution) / 2, 1 + trip * 100e-6)


class BoundTests(EstimateTestCase):
    """The true offset is within the bound after each probe of each of 4,000 runs."""

    def assert_bounds_hold(self, seed: int, runs: int, resolution: int) -> None:
        """The bound holds for all kinds of servers and paths, and no step is reported."""
        random = Random(seed)
        for run in range(runs):
            wrong = random.choice([1, MICROSECOND, SECOND, 440 * SECOND, 9 * DAY])
            server = Server(
                random.randint(-wrong, wrong),
                resolution,
                random.choice([0, 80, -80, 100, -100]) * PPM,
                random.choice([0, NEPAL, NEWFOUNDLAND]),
            )
            path = Path(
                random.choice(DELAYS),
                random.choice([0, 0.3]),
                random.choice([SECOND // 100, SECOND, 10 * SECOND]),
            )
            for estimate in probed(random, server, path, random.randint(1, 12)):
                self.assertTrue(server.bound_holds(estimate.offset), (run, server, estimate.offset))
            self.assertFalse(estimate.steps, (run, server))
            if estimate.drift:
                self.assert_drift(estimate, server.rate)

    def test_nanoseconds(self) -> None:
        """`unix` stamps."""
        self.assert_bounds_hold(1, 1000, 1)

    def test_microseconds(self) -> None:
        """`iso` stamps."""
        self.assert_bounds_hold(2, 1000, 1000)

    def test_seconds(self) -> None:
        """`ctime` stamps."""
        self.assert_bounds_hold(3, 2000, SECOND)

    def test_long(self) -> None:
        """A run of an hour."""
        for resolution, rate in ((1, 0), (1, 80 * PPM), (SECOND, 0), (SECOND, -80 * PPM)):
            server = Server(123456789, resolution, rate)
            path = Path(heavy_tailed(20 * MILLISECOND), 0.1)
            for estimate in probed(Random(resolution + rate), server, path, 3600):
                self.assertTrue(server.bound_holds(estimate.offset))
            self.assertFalse(estimate.steps)
            self.assert_drift(estimate, rate)
            self.assertLess(drift_of(estimate).bound, 20 * PPM)

    def test_in_flight(self) -> None:
        """Several probes are in flight, and replies arrive out of order."""
        random = Random(4)
        for _ in range(300):
            server = Server(random.randint(-DAY, DAY), 1, random.randint(-100, 100) * PPM)
            delays = heavy_tailed(20 * MILLISECOND)
            sent = [START + i * MILLISECOND for i in range(30)]
            samples = [sample_from(server, at, *delays(random)) for at in sent]
            estimate = Estimate()
            for sample in sorted(samples, key=lambda sample: sample.received):
                estimate.add(sample)
                self.assertTrue(server.bound_holds(estimate.offset))
            self.assertFalse(estimate.steps)


class FineTests(EstimateTestCase):
    """Stamps with subsecond resolution."""

    def test_shortest_round_trip(self) -> None:
        """The bound is half the shortest round trip, widened by 100 ppm of the time since."""
        server = Server(HOUR, 1)
        trips = {0: 900_000, 1: 600, 2: 900_000, 3: 900_000}
        samples = [
            sample_from(server, START + i * SECOND, trip // 2, trip // 2)
            for i, trip in trips.items()
        ]
        self.assertEqual(offset_of(estimate_of(*samples[:2])).bound, 301)
        for i in (2, 3):
            stated = offset_of(estimate_of(*samples[: i + 1]))
            self.assert_within(stated.bound, 300 + TOLERANCE * (i - 1 + 900e-6), 2)
            self.assert_within(stated.nanoseconds, HOUR, 2)

    def test_never_wider_than_shortest_round_trip(self) -> None:
        """The bound is never wider than that of the shortest round trip."""
        random = Random(5)
        for resolution in (1, 1000):
            for _ in range(300):
                server = Server(random.randint(-DAY, DAY), resolution)
                delays = heavy_tailed(20 * MILLISECOND)
                sent = [START + i * SECOND for i in range(12)]
                samples = [sample_from(server, at, *delays(random)) for at in sent]
                shortest = min(sample.received - sample.sent for sample in samples)
                widest = (shortest + resolution) // 2 + 12 * TOLERANCE + 2
                self.assertLessEqual(offset_of(estimate_of(*samples)).bound, widest)

    def test_asymmetric_delays(self) -> None:
        """A fast request and a fast reply of different probes combine to a narrow bound."""
        server = Server(-HOUR, 1)
        samples = [sample_from(server, START, 0, 9000), sample_from(server, START + 10**5, 9000, 0)]
        stated = offset_of(estimate_of(*samples))
        self.assertLess(stated.bound, 20)
        self.assertTrue(server.bound_holds(stated))

    def test_steady(self) -> None:
        """With constant round trips the bound is exactly half of one, plus half the resolution."""
        for rows, resolution in (
            (table(Random(6), 1, PATH, 50, (1, 4, 12)), 1),
            (table(Random(6), 1000, PATH, 50, (1,)), 1000),
        ):
            for row in rows:
                half = (MILLISECOND + resolution) // 2
                self.assertLessEqual(abs(row.median_bound - half), 60)  # drifts of 100 ppm

    def test_never_aimed(self) -> None:
        """Fine stamps need no aiming."""
        for resolution in (1, 1000):
            estimate = last(Server(HOUR, resolution), PATH, 12)
            self.assertIsNone(estimate.aim(START + 20 * SECOND, START + 22 * SECOND))


class SecondsTests(EstimateTestCase):
    """Stamps of whole seconds: each probe halves the bound."""

    def rows(self, path: Path, runs: int = 200) -> list[Row]:
        """The bounds after some numbers of probes; all of them hold."""
        rows = table(Random(7), SECOND, path, runs, (1, 2, 4, 8, 12, 16))
        for row in rows:
            self.assertEqual(row.within, runs)
        return rows

    def test_halved(self) -> None:
        """After n probes the bound is 2**-n s, plus about a round trip."""
        for delays in (PATH.delays, fixed(0, MILLISECOND), fixed(MILLISECOND, 0)):
            for row in self.rows(Path(delays)):
                halved = SECOND // 2**row.probes
                self.assertGreater(row.median_bound, halved)
                self.assertLess(row.median_bound, halved + 900 * MICROSECOND)

    def test_heavy_tailed(self) -> None:
        """With very variable round trips the bound ends near the shortest of them."""
        *_, row = self.rows(Path(heavy_tailed(20 * MILLISECOND)))
        self.assertLess(row.median_bound, 20 * MILLISECOND)

    def test_quick(self) -> None:
        """With short round trips the bound ends at the widening of a few seconds."""
        *_, row = self.rows(Path(fixed(20_000, 20_000)))
        self.assertLess(row.median_bound, 500 * MICROSECOND)

    def test_stays(self) -> None:
        """The bound stays narrow, because both of its sides are renewed."""
        for rate in (0, 100 * PPM, -100 * PPM):
            server = Server(12345, SECOND, rate)
            for estimate in islice(probed(Random(8), server, PATH, 300), 16, None):
                self.assertLess(offset_of(estimate).bound, 1300 * MICROSECOND)
                self.assertTrue(server.bound_holds(estimate.offset))

    def test_without_aim(self) -> None:
        """Without aiming, twelve probes leave about a twelfth of a second."""
        rows = self.rows(PATH._replace(aimed=False))
        self.assertGreater(rows[-2].median_bound, 30 * MILLISECOND)

    @given(
        st.integers(-(10**18), 10**18),
        st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, SECOND)), min_size=1),
        st.integers(0, 100 * SECOND),
        st.integers(-1000, 1000),
    )
    def test_due(self, offset: int, trips: list[tuple[int, int]], wait: int, rate: int) -> None:
        """A probe is never sent before it is due, and the moment comes within a second."""
        server = Server(offset, SECOND, rate * PPM)
        estimate = estimate_of(sample_from(server, START))
        at = START
        for there, back in trips:
            due = at + wait
            aimed = estimate.aim(due, due + SECOND + MAX_DRIFT * 2)
            assert aimed is not None
            self.assertLessEqual(due, aimed)
            self.assertIsNone(estimate.aim(due, aimed))
            self.assertEqual(estimate.aim(due, aimed + 1), aimed)
            estimate.add(sample_from(server, aimed, there, back), aimed=True)
            at = aimed + there + back

    def test_aim(self) -> None:
        """The second probe is aimed at the change of the second, for the middle of the interval."""
        sample = sample_from(Server(0), START + SECOND // 4, MILLISECOND, MILLISECOND)
        estimate = estimate_of(sample)
        # The stamp says START, so that the offset is from -252 to 750 ms, in the middle 249.
        expected = START + (2000 - 249 - 1) * MILLISECOND
        self.assert_within(aimed(estimate, START + SECOND), expected, 2 * TOLERANCE)

    def expected(self, cone: Cone, due: int, round_trips: list[int], number: int) -> int:
        """When to send a probe after `number` replies, computed from the documentation of `aim`."""
        shortest, median = (
            min(round_trips[-8:]),
            sorted(round_trips[-8:])[len(round_trips[-8:]) // 2],
        )

        def ahead(at: int) -> int:
            low, high = cone.interval(at)
            if number <= 12 or number % 2 == 0:
                return (low + high + shortest) // 2
            return high + 2 * median if number % 4 == 1 else low - shortest

        first = due + -(due + ahead(due)) % SECOND
        return max(due, first + ahead(due) - ahead(first))

    def test_aim_of_each(self) -> None:
        """The first twelve probes bisect; then every second one avoids the change."""
        random = Random(3)
        server = Server(12345, SECOND)
        estimate, cone, round_trips = (
            Estimate(),
            Cone.of(Sample(0, 0, Moment(-DAY, 2 * DAY, False))),
            [],
        )
        at = 10
        for number in range(1, 40):
            there, back = random.randrange(10_000), random.randrange(10_000)
            sample = sample_from(server, at, there, back)
            estimate.add(sample, aimed=True)
            narrower = cone.intersect(sample)
            assert narrower is not None
            cone = narrower
            round_trips.append(there + back)
            at = aimed(estimate, at + SECOND)
            due = sample.sent + SECOND
            self.assertEqual(at, self.expected(cone, due, round_trips, number), number)

    def test_first_moment(self) -> None:
        """A probe that is due at the right moment is not delayed."""
        estimate = last(Server(0), PATH, 5)
        moment = aimed(estimate, START + 10 * SECOND)
        self.assertEqual(aimed(estimate, moment), moment)

    def test_turns(self) -> None:
        """Only aimed probes that are answered take turns: others leave the next moment as it is."""
        for probes in range(12, 18):
            estimate = last(Server(0), PATH, probes)
            at = START + (probes + 3) * SECOND
            # This one says nothing new.
            sample = Sample(at, at + MILLISECOND, Moment(at - DAY, 2 * DAY, False))
            before = aimed(estimate, at)
            for _ in range(3):
                estimate.add(sample)
                self.assertEqual(aimed(estimate, at), before)
            estimate.add(sample, aimed=True)
            self.assertNotEqual(aimed(estimate, at), before)

    def test_intervals(self) -> None:
        """The bound comes down to the round trip's, however many probes fall into a second."""
        random = Random(15)
        even = [SECOND // 2, SECOND // 4, SECOND // 10, SECOND // 20, SECOND // 100]
        for interval in [*even, SECOND, SECOND // 3, 2 * SECOND, 5 * SECOND]:
            for _ in range(3):
                bound = settled(random, interval, PATH.delays)
                self.assertLess(bound, settled_limit(interval, MILLISECOND), interval)


class ZoneTests(EstimateTestCase):
    """Stamps that name no zone."""

    def test_zones(self) -> None:
        """The nearest multiple of 15 minutes is taken as the zone, the rest as the offset."""
        for zone in (0, NEPAL, NEWFOUNDLAND, 8 * 3600, -12 * 3600, 14 * 3600):
            for wrong in (0, 7 * 60 * SECOND, -7 * 60 * SECOND):
                server = Server(wrong, SECOND, 0, zone)
                stated = offset_of(last(server, PATH, 12))
                self.assertEqual(stated.zone, zone)
                self.assert_within(stated.nanoseconds, wrong, stated.bound)
                self.assertLess(stated.bound, 2 * MILLISECOND)

    def test_too_wrong(self) -> None:
        """An error of more than 7.5 minutes is mistaken for a zone."""
        server = Server(8 * 60 * SECOND, SECOND, 0, NEPAL)
        stated = offset_of(last(server, PATH, 12))
        self.assertEqual(stated.zone, NEPAL + 900)
        self.assert_within(stated.nanoseconds, -7 * 60 * SECOND, stated.bound)

    def test_between_two(self) -> None:
        """If two zones are possible, the zone is unknown and part of the offset."""
        for wrong in (450 * SECOND, -450 * SECOND):
            server = Server(wrong, SECOND, 0, NEPAL)
            stated = offset_of(
                estimate_of(sample_from(server, START + MILLISECOND, 0, MILLISECOND))
            )
            self.assertIsNone(stated.zone)
            truth = wrong + NEPAL * SECOND
            self.assert_within(stated.nanoseconds, truth, stated.bound)

    def test_no_such_zone(self) -> None:
        """Beyond the westernmost and the easternmost zone, it is the clock that is wrong."""
        west, east = -12 * HOUR, 14 * HOUR
        for wrong, beyond in (
            (DAY, True),
            (-45 * HOUR, True),
            (east + 449 * SECOND, False),
            (east + 451 * SECOND, True),
            (west - 449 * SECOND, False),
            (west - 451 * SECOND, True),
        ):
            stated = offset_of(last(Server(wrong, SECOND), PATH, 12))
            self.assertEqual((stated.zone is None, stated.beyond_zones), (beyond, beyond), wrong)
            if beyond:
                self.assert_within(stated.nanoseconds, wrong, stated.bound)
        self.assertFalse(Offset(DAY, 0, 0, 0, "rate").beyond_zones)
        for middle, bound, beyond in (
            (east, 0, False),
            (east + 1, 0, True),
            (east + 2, 2, False),
            (west, 0, False),
            (west - 1, 0, True),
            (west - 2, 2, False),
        ):
            self.assertEqual(Offset(middle, bound, 0, None, "rate").beyond_zones, beyond)

    def test_named(self) -> None:
        """If the stamp names its zone, no zone is estimated, however wrong the clock is."""
        stated = offset_of(last(Server(HOUR, 1000), PATH, 3))
        self.assertEqual(stated.zone, 0)
        self.assert_within(stated.nanoseconds, HOUR, stated.bound)


class DriftTests(EstimateTestCase):
    """The server's rate."""

    def test_unknown_at_first(self) -> None:
        """A few probes give no better rate than the one assumed."""
        for probes in range(1, 10):
            self.assertIsNone(last(Server(0, 1), PATH, probes).drift)
        self.assertIsNotNone(last(Server(0, 1), PATH, 15).drift)

    def test_usual(self) -> None:
        """The rate of a normal clock is known the better the longer the run is."""
        for rate in (0, 80 * PPM, -80 * PPM):
            bounds = []
            for probes in (20, 100, 500):
                drift = drift_of(last(Server(HOUR, 1, rate), PATH, probes))
                self.assertLessEqual(abs(drift.rate - rate), drift.bound)
                bounds.append(drift.bound)
            self.assertLess(bounds[1], bounds[0] / 4)
            self.assertLess(bounds[2], 2.1 * PPM)

    def test_fast(self) -> None:
        """A rate beyond the tolerance is found, and the bound of the offset then holds."""
        for resolution, within in ((1, 10), (SECOND, 60)):
            for rate in (1000 * PPM, -1000 * PPM, 9000 * PPM):
                server = Server(DAY, resolution, rate)
                path = Path(uniform(MILLISECOND))
                for estimate in islice(probed(Random(9), server, path, 600), within, None):
                    self.assertTrue(server.bound_holds(estimate.offset), estimate.offset)
                self.assertFalse(estimate.steps)
                stated, drift = offset_of(estimate), drift_of(estimate)
                self.assertEqual(stated.formula, "drift")
                self.assertLess(stated.bound, 1500 * MICROSECOND)
                self.assertLessEqual(abs(drift.rate - rate), drift.bound)
                self.assertLess(drift.bound, 10 * PPM)
                self.assertLess(drift.since, START + 3 * SECOND)

    def test_any_rate(self) -> None:
        """Once a sample contradicts the tolerance, every bound holds."""
        random = Random(14)
        for run in range(100):
            wrong, rate = random.randint(-DAY, DAY), random.randint(-9900, 9900) * PPM
            server = Server(wrong, random.choice([1, 1000, SECOND]), rate)
            path = Path(random.choice(DELAYS), random.choice([0, 0.3]))
            for estimate in probed(random, server, path, 60):
                if offset_of(estimate).formula != "rate":
                    self.assertTrue(server.bound_holds(estimate.offset), (run, server))
                    if estimate.drift:
                        self.assert_drift(estimate, rate)
            self.assertFalse(estimate.steps)

    def test_perhaps_a_step(self) -> None:
        """While it may be a step as well, the bound covers both, and no drift is reported."""
        fast = [Server(0, 1, 3000 * PPM)] * 3
        stepped = [Server(0, 1), Server(3 * MILLISECOND, 1), Server(3 * MILLISECOND, 1)]
        for servers in (fast, stepped):
            estimate = Estimate()
            for i, server in enumerate(servers):
                estimate.add(sample_from(server, START + i * SECOND, 1000, 1000))
                self.assertTrue(server.bound_holds(estimate.offset))
                self.assertEqual(offset_of(estimate).formula == "either", i == 1)
                if i == 1:
                    self.assertIsNone(estimate.drift)
            self.assertEqual(len(estimate.steps), 0 if servers == fast else 1)
            self.assertEqual(estimate.drift is None, servers == stepped)

    def test_covers_both(self) -> None:
        """While a fast clock may have become a normal one, the bound is the hull of both."""
        for rate in (1000 * PPM, -1000 * PPM):
            server = Server(0, 10 * MILLISECOND, rate, 0, ((START + 100 * SECOND, -DAY),))
            before = [sample_from(server, START + i * SECOND) for i in range(100)]
            first, at = sample_from(server, START + 100 * SECOND), START + 101 * SECOND
            # A sample that says little, so that the bounds come from the one before.
            second = Sample(at, at, Moment(at + first.low - SECOND, 2 * SECOND, True))
            fast, cone = Polygon.of(before[0]), Cone.of(first).intersect(second)
            for sample in before[1:]:
                narrower = fast.intersect(sample)
                assert narrower is not None
                fast = narrower
            polygon = Polygon.of(first, fast.rates()).intersect(second)
            assert cone is not None and polygon is not None
            stated = offset_of(estimate_of(*before, first, second))
            self.assertEqual(stated.formula, "either")
            intervals = (cone.interval(stated.at), polygon.interval(stated.at))
            (low, other_low), (high, other_high) = zip(*intervals, strict=True)
            self.assertNotEqual(low < other_low, high > other_high)  # neither contains the other
            expected = midpoint(min(low, other_low), max(high, other_high))
            self.assertEqual((stated.nanoseconds, stated.bound), expected)

    def test_older_than_the_polygon(self) -> None:
        """A sample that contradicts one from before the rate changed shows a step at once."""
        changing = [
            Sample(at, at, Moment(at + low, high - low, True))
            for at, low, high in (
                (START, 0, 1),
                (START + 10 * SECOND, 900 * MICROSECOND, 900 * MICROSECOND + 1),
                # No constant rate explains this one, but a change within 100 ppm does.
                (START + 20 * SECOND, -10 * MILLISECOND, 0),
            )
        ]
        self.assertEqual(list(estimate_of(*changing).steps), [])
        for offset, after in ((-5 * MILLISECOND, [START + 10 * SECOND]), (-MILLISECOND, [])):
            last = START + 30 * SECOND
            estimate = estimate_of(*changing, Sample(last, last, Moment(last + offset, 1, True)))
            self.assertEqual(offset_of(estimate).formula, "rate")
            self.assertEqual([step.after for step in estimate.steps], after)

    def test_better_than_tolerance(self) -> None:
        """A rate is reported once its interval is narrower than that of the tolerance."""
        for wait, known in ((10_000, False), (10_001, True)):
            samples = [Sample(at, at, Moment(at, 1, True)) for at in (START, START + wait)]
            self.assertEqual(estimate_of(*samples).drift is not None, known)

    def test_rough_drift(self) -> None:
        """A rate beyond the tolerance is reported even if it is not known well."""
        server = Server(0, 1, 9000 * PPM)
        delay = MILLISECOND
        estimate = estimate_of(
            *(sample_from(server, START + i * SECOND, delay, delay) for i in range(3))
        )
        self.assertEqual(offset_of(estimate).formula, "drift")
        self.assertGreater(drift_of(estimate).bound, TOLERANCE)
        self.assert_drift(estimate, 9000 * PPM)

    def test_changing(self) -> None:
        """A rate that changes within the tolerance is no step, and the bound holds."""
        estimate = Estimate()
        offset = 0
        for i in range(1000):
            rate = 90 * PPM if i < 500 else -90 * PPM
            offset += rate
            server = Server(offset, 1)
            estimate.add(sample_from(server, START + i * SECOND, 100_000, 100_000))
            self.assertTrue(server.bound_holds(estimate.offset))
        self.assertFalse(estimate.steps)
        drift = drift_of(estimate)
        self.assertGreater(drift.since, START + 490 * SECOND)
        self.assertLess(abs(drift.rate + 90 * PPM), 2 * PPM)

    def test_set_while_fast(self) -> None:
        """A fast clock that is set runs on as fast as before, and each bound holds."""
        for times in (1, 2):
            when = tuple((START + i * 100 * SECOND, -SECOND) for i in range(1, times + 1))
            server = Server(SECOND, 1, 1000 * PPM, 0, when)
            for estimate in islice(probed(Random(10), server, PATH, 250), 10, None):
                self.assertTrue(server.bound_holds(estimate.offset))
            self.assertEqual(offset_of(estimate).formula, "drift")
            self.assertEqual(len(estimate.steps), times)
            for step in estimate.steps:
                self.assertLessEqual(abs(step.nanoseconds + SECOND), step.bound)

    def test_set_twice_while_fast(self) -> None:
        """A fast clock set again before its rate is confirmed is taken to be as fast as before."""
        when = tuple((START + i * SECOND, -SECOND) for i in (50, 51))
        server = Server(SECOND, 1, 1000 * PPM, 0, when)
        for estimate in islice(probed(Random(10), server, PATH, 100), 10, None):
            self.assertTrue(server.bound_holds(estimate.offset))
        self.assertEqual(len(estimate.steps), 2)

    def test_slewed(self) -> None:
        """A drift that ends is reported as a step; then the clock is a normal one."""
        estimate = Estimate()
        for i in range(200):
            server = Server(min(i, 60) * MILLISECOND, 1)
            estimate.add(sample_from(server, START + i * SECOND, 100_000, 100_000))
        self.assertEqual(len(estimate.steps), 1)
        self.assertEqual(offset_of(estimate).formula, "rate")
        self.assertTrue(server.bound_holds(estimate.offset))
        self.assertLess(abs(drift_of(estimate).rate), 2 * PPM)


class StepTests(EstimateTestCase):
    """A clock that is stepped."""

    def test_noticed_at_once(self) -> None:
        """With fine stamps the first sample reveals a step of any size, at any time."""
        random = Random(11)
        for run in range(150):
            size = random.choice([1, -1]) * random.choice([12 * MILLISECOND, SECOND, HOUR, DAY])
            when = START + random.randrange(5, 20) * SECOND + random.choice([0, 1, 777777])
            rate = random.choice([0, 80, -80]) * PPM
            server = Server(random.randint(-DAY, DAY), 1, rate, 0, ((when, size),))
            path = Path(random.choice([PATH.delays, uniform(MILLISECOND)]))
            for estimate in probed(random, server, path, 25):
                self.assertTrue(server.bound_holds(estimate.offset), run)
                at = offset_of(estimate).at
                self.assertEqual(len(estimate.steps), at >= when + MILLISECOND, run)
            self.assert_step(estimate.steps[0], when, size)
            self.assertLess(estimate.steps[0].before - when, 2 * SECOND)
            self.assertLess(estimate.steps[0].bound, 4 * MILLISECOND)

    def test_small(self) -> None:
        """A step just beyond the bounds is detected; one within them cannot be."""
        for size, detected in ((1_100_000, 1), (900_000, 0)):
            server = Server(0, 1, 0, 0, ((START + 30 * SECOND, size),))
            estimate = last(server, Path(PATH.delays, 0, SECOND // 10), 400)
            self.assertEqual(len(estimate.steps), detected)

    def test_within_a_drift_at_first(self) -> None:
        """A step that a drift would explain is recognised two samples later."""
        for size in (5 * MILLISECOND, -5 * MILLISECOND):
            when = START + 2 * SECOND
            server = Server(0, 1, 0, 0, ((when, size),))
            estimate = estimate_of(
                *(sample_from(server, START + i * SECOND, 1000, 1000) for i in range(4))
            )
            (step,) = estimate.steps
            self.assert_step(step, when, size)
            self.assertEqual(step.before, START + 2 * SECOND + 2000)

    def test_within_a_drift_once(self) -> None:
        """Such a step is reported once, also if the clock is stepped again later."""
        steps = ((START + SECOND, MILLISECOND), (START + 10 * SECOND, HOUR))
        server = Server(0, 1, 0, 0, steps)
        samples = [sample_from(server, START + i * SECOND, 1000, 1000) for i in range(20)]
        self.assertEqual(offset_of(estimate_of(*samples[:2])).formula, "either")
        estimate = estimate_of(*samples)
        self.assertEqual(len(estimate.steps), 2)
        for step, expected in zip(estimate.steps, steps, strict=True):
            self.assert_step(step, *expected)

    def test_two_at_once(self) -> None:
        """Two steps in a row are reported separately."""
        steps = ((START + SECOND, MILLISECOND), (START + 2 * SECOND, 4 * MILLISECOND))
        server = Server(0, 1, 0, 0, steps)
        estimate = estimate_of(
            *(sample_from(server, START + i * SECOND, 1000, 1000) for i in range(3))
        )
        self.assertEqual(len(estimate.steps), 2)
        for step, expected in zip(estimate.steps, steps, strict=True):
            self.assert_step(step, *expected)
        # The slope between the first two samples was no drift, so none goes on.
        self.assertEqual(offset_of(estimate).formula, "rate")

    def test_aimed_again(self) -> None:
        """After a step each aimed probe halves the bound again."""
        server = Server(0, SECOND, 0, 0, ((START + 30 * SECOND, 10_370 * MILLISECOND),))
        runs = probed(Random(16), server, PATH, 60)
        estimate = next(estimate for estimate in runs if estimate.steps)
        *_, estimate = islice(runs, 12)
        self.assertLess(offset_of(estimate).bound, 2 * MILLISECOND)

    def test_two(self) -> None:
        """A step forward and one back."""
        steps = ((START + 10 * SECOND, HOUR), (START + 20 * SECOND, -HOUR))
        for resolution in (1, 1000, SECOND):
            server = Server(0, resolution, 0, 0, steps)
            estimate = last(server, PATH, 40)
            self.assertTrue(server.bound_holds(estimate.offset))
            self.assertEqual(len(estimate.steps), 2)
            for step, expected in zip(estimate.steps, steps, strict=True):
                self.assert_step(step, *expected)

    def test_zone_change(self) -> None:
        """Daylight saving time begins: a step by an hour, after which the zone is different."""
        server = Server(0, SECOND, 0, 3600, ((START + 20 * SECOND, HOUR),))
        estimate = last(server, PATH, 40)
        self.assert_step(estimate.steps[0], START + 20 * SECOND, HOUR)
        stated = offset_of(estimate)
        self.assertEqual(stated.zone, 7200)
        self.assert_within(stated.nanoseconds, 0, stated.bound)

    def test_whole_seconds(self) -> None:
        """With `ctime` stamps a step of less than a second is detected within a few probes."""
        random = Random(12)
        for run in range(150):
            size = random.choice([1, -1]) * random.randrange(20, 990) * MILLISECOND
            when = START + 30 * SECOND + random.randrange(10 * SECOND)
            server = Server(random.randint(-DAY, DAY), SECOND, 0, NEPAL, ((when, size),))
            path = Path(random.choice([PATH.delays, uniform(MILLISECOND), fixed(20_000, 20_000)]))
            estimate = last(server, path, 80, run)
            self.assertEqual(len(estimate.steps), 1, (run, size))
            self.assert_step(estimate.steps[0], when, size)
            self.assertLess(estimate.steps[0].before - when, 10 * SECOND)
            self.assertTrue(server.bound_holds(estimate.offset))


class CostTests(EstimateTestCase):
    """Memory."""

    def test_long_run(self) -> None:
        """Ten thousand samples take no more memory than a hundred."""
        server = Server(HOUR, 1, 50 * PPM)
        path = Path(heavy_tailed(MILLISECOND), 0, SECOND // 100)
        for number, estimate in enumerate(probed(Random(13), server, path, 10_000)):
            if number % 500 == 499:
                self.assertLess(size(estimate), 5000)
                self.assertTrue(server.bound_holds(estimate.offset))

    def test_steps(self) -> None:
        """If a clock is stepped all the time, the latest steps are kept."""
        estimate = estimate_of(
            *(sample_from(Server(i * i * HOUR, 1), START + i * SECOND) for i in range(150))
        )
        self.assertEqual(len(estimate.steps), 100)
        self.assertEqual(estimate.steps[-1].before, START + 149 * SECOND)
