"""Tests for `timestamp_echo.ping.stats`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.stats import LATE, Probe, Stats
from timestamp_echo.stamps import SECOND, Moment


class ProbeTests(SynchronousTestCase):
    """One probe."""

    def test_times(self) -> None:
        """The round trip starts when the probe is sent, `rtt_from_due` when it was due."""
        probe = Probe(1, due=100, sent=130, received=190, own_delay=7)
        self.assertEqual(probe.rtt, 60)
        self.assertEqual(probe.rtt_from_due, 90)

    def test_late(self) -> None:
        """A probe was sent late if that was more than 10 ms after it was due."""
        self.assertEqual(LATE, SECOND // 100)
        for delay, late in ((-1, False), (0, False), (LATE, False), (LATE + 1, True)):
            self.assertIs(Probe(1, due=100, sent=100 + delay).late, late)

    def test_nothing_yet(self) -> None:
        """A probe that was just sent has no result."""
        probe = Probe(1, 100, 100)
        self.assertIsNone(probe.reply)
        self.assertEqual(probe.lost, "")


class StatsTests(SynchronousTestCase):
    """All probes."""

    def test_counts(self) -> None:
        """What was sent is received, lost or in flight."""
        stats = Stats(sent=7, lost=2)
        self.assertEqual((stats.received, stats.in_flight), (0, 5))
        for _ in range(3):
            stats.rtt.add(5)
            stats.rtt_from_due.add(6)
        self.assertEqual((stats.received, stats.in_flight), (3, 2))

    def test_own(self) -> None:
        """Each run has its own round trips and its own estimate."""
        one, other = Stats(), Stats()
        lists = [
            one.rtt,
            one.rtt_from_due,
            one.own_delay,
            other.rtt,
            other.rtt_from_due,
            other.own_delay,
        ]
        self.assertEqual(len(set(map(id, lists))), 6)
        self.assertIsNot(one.clock, other.clock)

    def test_no_offset(self) -> None:
        """Without a stamp there is no offset, even if this host's clock was set."""
        self.assertIsNone(Stats().offset)
        self.assertIsNone(Stats(own_clock_step=SECOND).offset)

    def test_offset(self) -> None:
        """The offset is the estimate's, minus a step of this host's clock."""
        stats = Stats()
        stats.clock.add(Sample(1000, 1600, Moment(5300, 1, True)))
        self.assertEqual(stats.offset, stats.clock.offset)
        for step in (SECOND, -SECOND):
            stats.own_clock_step = step
            assert stats.offset is not None and stats.clock.offset is not None
            self.assertEqual(stats.offset.nanoseconds, 4001 - step)
            self.assertEqual(stats.offset[1:], stats.clock.offset[1:])
