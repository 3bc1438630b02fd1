"""Tests for `timestamp_echo.ping.stats`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.stats import LATE, Outcome, Probe
from timestamp_echo.stamps import SECOND, Moment


class ProbeTests(SynchronousTestCase):
    """One probe."""

    def test_times(self) -> None:
        """The round trip begins when it leaves; what is held up is seen from when it was due."""
        probe = Probe(1, due=100, sent=130, received=190, delay=7)
        self.assertEqual(probe.round_trip, 60)
        self.assertEqual(probe.from_due, 90)

    def test_late(self) -> None:
        """It left late if it left more than a hundredth of a second after it was due."""
        self.assertEqual(LATE, SECOND // 100)
        for after, late in ((-1, False), (0, False), (LATE, False), (LATE + 1, True)):
            self.assertIs(Probe(1, due=100, sent=100 + after).late, late)

    def test_nothing_yet(self) -> None:
        """Of one that has just left nothing is known."""
        probe = Probe(1, 100, 100)
        self.assertIsNone(probe.reply)
        self.assertEqual(probe.lost, "")


class OutcomeTests(SynchronousTestCase):
    """All of them together."""

    def test_counts(self) -> None:
        """What was sent is received, lost, or under way."""
        outcome = Outcome(sent=7, lost=2)
        self.assertEqual((outcome.received, outcome.under_way), (0, 5))
        for _ in range(3):
            outcome.trips.add(5)
            outcome.from_due.add(6)
        self.assertEqual((outcome.received, outcome.under_way), (3, 2))

    def test_own(self) -> None:
        """Each run has its own round trips and its own clock."""
        one, other = Outcome(), Outcome()
        lists = [one.trips, one.from_due, one.delays, other.trips, other.from_due, other.delays]
        self.assertEqual(len(set(map(id, lists))), 6)
        self.assertIsNot(one.clock, other.clock)

    def test_no_offset(self) -> None:
        """Without a stamp there is none, however this host's clock was set."""
        self.assertIsNone(Outcome().offset)
        self.assertIsNone(Outcome(stepped=SECOND).offset)

    def test_offset(self) -> None:
        """It is the estimate's; when this host's clock is set forward, the server is less ahead."""
        outcome = Outcome()
        outcome.clock.add(Sample(1000, 1600, Moment(5300, 1, True)))
        self.assertEqual(outcome.offset, outcome.clock.offset)
        for stepped in (SECOND, -SECOND):
            outcome.stepped = stepped
            assert outcome.offset is not None and outcome.clock.offset is not None
            self.assertEqual(outcome.offset.nanoseconds, 4001 - stepped)
            self.assertEqual(outcome.offset[1:], outcome.clock.offset[1:])
