"""Tests for `timestamp_echo.ping.text`: whole texts."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.ping.outcomes import MILLISECOND, answered, outcome_of, stamped
from tests.ping.outcomes import lost as lost_probe
from timestamp_echo.ping import text
from timestamp_echo.ping.estimate import Offset
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.stats import Outcome
from timestamp_echo.stamps import SECOND

NAME = "host:1"

HOUR = 3600 * SECOND


class NumberTests(SynchronousTestCase):
    """Numbers, with their units and signs."""

    def test_milliseconds(self) -> None:
        """Nanoseconds are told in milliseconds, to the microsecond."""
        self.assertEqual(text.milliseconds(1_234_567), "1.235 ms")
        self.assertEqual(text.milliseconds(0, 1000, 12_345_000_000), "0.000/0.001/12345.000 ms")

    def test_apart(self) -> None:
        """Milliseconds, or seconds where there is one; always a sign."""
        for nanoseconds, bound, words in (
            (0, 1000, "+0.000 ms ± 0.001 ms"),
            (1_234_000, 20_000, "+1.234 ms ± 0.020 ms"),
            (-1_234_000, 20_000, "-1.234 ms ± 0.020 ms"),
            (999_999_000, 999_999_000, "+999.999 ms ± 999.999 ms"),
            (SECOND, 1000, "+1.000000 s ± 0.000001 s"),
            (-440 * SECOND, MILLISECOND, "-440.000000 s ± 0.001000 s"),
            (0, SECOND, "+0.000000 s ± 1.000000 s"),
            (999_999_600, 1000, "+1.000000 s ± 0.000002 s"),
            (-400, 0, "+0.000 ms ± 0.001 ms"),
        ):
            self.assertEqual(text.apart(nanoseconds, bound), words)

    @given(st.integers(-(10**12), 10**12), st.integers(0, 10**12))
    def test_rounded_outwards(self, nanoseconds: int, bound: int) -> None:
        """What was possible is possible still, and no more than a microsecond each way is added."""
        words = text.apart(nanoseconds, bound)
        digits = [int(re.sub(r"\D", "", part)) for part in words.split("±")]
        middle, most = (1000 * number for number in digits)
        middle = -middle if words.startswith("-") else middle
        self.assertLessEqual(abs(middle - nanoseconds), 500)
        self.assertLessEqual(middle - most, nanoseconds - bound)
        self.assertGreaterEqual(middle + most, nanoseconds + bound)
        self.assertLess(most, bound + 1500)


class LineTests(SynchronousTestCase):
    """A line a probe."""

    def test_answered(self) -> None:
        """How large, from whom, which one, how long, and the clock."""
        offset = Offset(-MILLISECOND, 2000, 0, 0, "rate")
        self.assertEqual(
            text.answered(answered(3), NAME, 64, offset),
            "64 bytes from host:1: seq=3 time=1.000 ms clock=-1.000 ms ± 0.002 ms",
        )

    def test_no_clock(self) -> None:
        """The clock is told only of a reply with a stamp, and not before it is known."""
        words = "64 bytes from host:1: seq=3 time=1.000 ms"
        probe = answered(3)
        self.assertEqual(text.answered(probe, NAME, 64, None), words)
        probe.reply = Reply(3, "", False)
        offset = Offset(0, 2000, 0, 0, "rate")
        self.assertEqual(text.answered(probe, NAME, 64, offset), words)

    def test_remarkable(self) -> None:
        """That it left late, and that the message was altered."""
        probe = answered(3, late=20 * MILLISECOND)
        probe.reply = Reply(3, "", True)
        self.assertEqual(
            text.answered(probe, NAME, 1000, None),
            "1000 bytes from host:1: seq=3 time=1.000 ms (21.000 ms from when it was due)"
            " (the message came back altered)",
        )

    def test_lost(self) -> None:
        """Which one, and why."""
        self.assertEqual(text.lost(lost_probe(4)), "seq=4 lost: no reply within 1 s")

    def test_progress(self) -> None:
        """How it stands, in one line, of what there is."""
        self.assertEqual(text.progress(Outcome()), "0 sent, 0 received, 0 % loss")
        self.assertEqual(text.progress(outcome_of(lost=2)), "2 sent, 0 received, 100 % loss")
        outcome = outcome_of(MILLISECOND, 3 * MILLISECOND, lost=1)
        outcome.sent += 2
        words = (
            "5 sent, 2 received, 33.33 % loss, 2 under way, rtt min/avg/max 1.000/2.000/3.000 ms"
        )
        self.assertEqual(text.progress(outcome), words)
        stamped(outcome, (-5000, 1), trip=10_000)
        self.assertEqual(text.progress(outcome), words + ", clock -0.005 ms ± 0.006 ms")


class SummaryTests(SynchronousTestCase):
    """The summary."""

    def assert_summary(self, outcome: Outcome, *lines: str) -> None:
        """It is that, behind its heading."""
        expected = "".join(line + "\n" for line in ("--- host:1 tsecho ping ---", *lines))
        self.assertEqual(text.summary(outcome, NAME), expected)

    def clock_lines(self, outcome: Outcome) -> list[str]:
        """Those about clocks."""
        return [line for line in text.summary(outcome, NAME).splitlines() if "clock" in line]

    def test_nothing_sent(self) -> None:
        """It ended before it began."""
        self.assert_summary(Outcome(), "0 sent, 0 received, 0 % loss, time 0.0 s")

    def test_no_reply(self) -> None:
        """None of them was answered: nothing is said of round trips and clocks."""
        self.assert_summary(
            outcome_of(lost=3, seconds=3.04), "3 sent, 0 received, 100 % loss, time 3.0 s"
        )

    def test_under_way(self) -> None:
        """What is under way is no loss."""
        self.assert_summary(
            Outcome(sent=2, seconds=0.06), "2 sent, 0 received, 0 % loss, 2 under way, time 0.1 s"
        )

    def test_plain(self) -> None:
        """An echo without stamps: round trips, and that there is no clock."""
        outcome = outcome_of(1_000_000, 2_000_000, 6_000_000)
        outcome.unstamped = 3
        self.assert_summary(
            outcome,
            "3 sent, 3 received, 0 % loss, time 1.0 s",
            "rtt min/avg/max/mdev = 1.000/3.000/6.000/2.160 ms",
            "rtt p50/p90/p99 = 2.000/6.000/6.000 ms, jitter 0.309 ms (RFC 3550)",
            "clock: the replies have no stamp that is known",
        )

    def test_oddities(self) -> None:
        """Each is told if there is one."""
        self.assert_summary(
            Outcome(sent=1, late=2, duplicates=3, reordered=4, altered=5, reconnects=6),
            "1 sent, 0 received, 0 % loss, 1 under way, time 0.0 s",
            "replies after their timeout: 2",
            "duplicates: 3",
            "replies out of order: 4",
            "messages that came back altered: 5",
            "connected again: 6",
        )

    def test_left_late(self) -> None:
        """Where probes left late, the round trips from when they were due; and our own delay."""
        outcome = outcome_of(1_000_000, 1_000_000)
        outcome.from_due.add(31_000_000)
        outcome.delays.add(30_000)
        outcome.left_late = 1
        self.assert_summary(
            outcome,
            "2 sent, 2 received, 0 % loss, time 1.0 s",
            "rtt min/avg/max/mdev = 1.000/1.000/1.000/0.000 ms",
            "rtt p50/p90/p99 = 1.000/1.000/1.000 ms, jitter 0.000 ms (RFC 3550)",
            "1 left late; from when due: p50/p90/p99 = 1.000/31.000/31.000 ms",
            "own delay in reading replies, not counted: avg/max = 0.010/0.030 ms",
        )

    def test_left_late_and_lost(self) -> None:
        """Those that left late may all be lost."""
        outcome = outcome_of(lost=1)
        outcome.left_late = 1
        self.assert_summary(outcome, "1 sent, 0 received, 100 % loss, time 1.0 s")

    def test_histogram(self) -> None:
        """From ten on, how many fell where; a bar that is not none is to be seen."""
        self.assertEqual(len(text.summary(outcome_of(*[1] * 9), NAME).splitlines()), 4)
        trips = [*[1_000_000] * 200, *[1_050_000] * 100, *[1_099_999] * 3, 7_000_000]
        lines = text.summary(outcome_of(*trips), NAME).splitlines()[4:]
        self.assertEqual(
            [lines[0], lines[5], lines[-1]],
            [
                f"  1.000 - 1.010 ms |{'#' * 40}| 200",
                f"  1.050 - 1.060 ms |{'#' * 20:40}| 100",
                f"  1.090 - 7.000 ms |{'#':40}| 4",
            ],
        )

    def test_histogram_whole(self) -> None:
        """The whole of one, with numbers in columns."""
        lines = text.summary(
            outcome_of(*[9_000_000] * 8, 9_000_001, 10_000_000), NAME
        ).splitlines()[4:]
        empty = f"|{'':40}| 0"
        self.assertEqual(lines[0], f"   9.000 -  9.100 ms |{'#' * 40}| 9")
        self.assertEqual([line.split("ms ")[1] for line in lines[1:-1]], [empty] * 8)
        self.assertEqual(lines[-1], f"   9.900 - 10.000 ms |{'#' * 5:40}| 1")

    def test_unix(self) -> None:
        """A fine stamp: the offset, which side is ahead, and nothing of zones."""
        for ahead, words in (
            (2_000_000, "+2.000 ms ± 0.501 ms (the server is ahead)"),
            (-2_000_000, "-2.000 ms ± 0.501 ms (the server is behind)"),
            (500_000, "+0.500 ms ± 0.501 ms (no difference is shown)"),
            (HOUR, "+3600.000000 s ± 0.000501 s (the server is ahead)"),
        ):
            outcome = outcome_of(MILLISECOND)
            stamped(outcome, (ahead, 1), trip=MILLISECOND)
            self.assertEqual(self.clock_lines(outcome), [f"clock offset = {words}"])

    def test_zone_known(self) -> None:
        """A `ctime` stamp names no zone: the one that was made of it is told."""
        for zone, words in (
            (0, "UTC+00:00"),
            (8 * HOUR, "UTC+08:00"),
            (-7 * HOUR // 2, "UTC-03:30"),
            (23 * HOUR // 4, "UTC+05:45"),
        ):
            outcome = outcome_of(MILLISECOND)
            stamped(outcome, (zone, SECOND), trip=MILLISECOND, zone=False)
            (line,) = self.clock_lines(outcome)
            self.assertEqual(
                line,
                "clock offset = +499.500 ms ± 500.501 ms (no difference is shown)"
                f"; its stamps are in {words}",
            )

    def test_zone_unknown(self) -> None:
        """Where it lies between two zones, that is told."""
        outcome = outcome_of(MILLISECOND)
        stamped(outcome, (450 * SECOND, SECOND), trip=MILLISECOND, zone=False)
        (line,) = self.clock_lines(outcome)
        self.assertEqual(
            line,
            "clock offset = +450.499500 s ± 0.500501 s (the server is ahead)"
            "; its zone can't be told yet and is in that",
        )

    def test_drift(self) -> None:
        """How fast it runs away, in millionths, rounded outwards."""
        outcome = outcome_of(MILLISECOND)
        stamped(outcome, *((-i * 20_000, 1) for i in range(101)))
        drift = outcome.clock.drift
        assert drift is not None
        self.assertLess(drift.bound, 100)
        self.assertIn("\ndrift: -20.0 ppm ± 0.1 ppm\n", text.summary(outcome, NAME))

    def test_steps(self) -> None:
        """Each time that the server's clock was set, and by how much; and this host's own."""
        outcome = outcome_of(MILLISECOND)
        stamped(outcome, (0, 1), (0, 1), (HOUR, 1), (HOUR - 20 * MILLISECOND, 1))
        outcome.stepped = -1_500_000_000
        self.assertEqual(
            self.clock_lines(outcome),
            [
                "clock offset = +3601.480000 s ± 0.000001 s (the server is ahead)",
                "the server's clock was set by +3600.000000 s ± 0.000101 s",
                "the server's clock was set by -20.000 ms ± 0.101 ms",
                "this host's clock was set by -1.500000 s",
            ],
        )
