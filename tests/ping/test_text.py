"""Tests for `timestamp_echo.ping.text`: whole texts."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import MILLISECOND, add_stamps, answered, stats_of
from tests.ping.fixtures import lost as lost_probe
from timestamp_echo.ping import text
from timestamp_echo.ping.estimate import Offset
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.ping.stats import Phases, Stats
from timestamp_echo.stamps import SECOND

NAME = "host:1"

HOUR = 3600 * SECOND
DAY = 24 * HOUR


class NumberTests(SynchronousTestCase):
    """Numbers with units and signs."""

    def test_milliseconds(self) -> None:
        """Nanoseconds are formatted as milliseconds, to the microsecond."""
        self.assertEqual(text.format_ms(1_234_567), "1.235 ms")
        self.assertEqual(text.format_ms(0, 1000, 12_345_000_000), "0.000/0.001/12345.000 ms")

    def test_offset(self) -> None:
        """Milliseconds, or seconds from 1 s on; as many digits as the bound has meaning."""
        for nanoseconds, bound, expected in (
            (1_234_000, 20_000, "+1.234 ± 0.020 ms"),
            (-1_234_000, 20_000, "-1.234 ± 0.020 ms"),
            (12_345_678, 1_234_567, "+12.35 ± 1.24 ms"),
            (12_345_678, 12_345_677, "+12.3 ± 12.4 ms"),
            (600 * MILLISECOND, 500_388_000, "+600 ± 501 ms"),
            (998_999_000, 200, "+998.999 ± 0.001 ms"),
            (SECOND, 1000, "+1.000000 ± 0.000001 s"),
            (2_353_914_000, 62_792_000, "+2.3539 ± 0.0629 s"),
            (-440 * SECOND, SECOND // 2, "-440.000 ± 0.500 s"),
            (999_999_600, 1000, "+1.000000 ± 0.000002 s"),
            (-DAY, HOUR, "-86400 ± 3600 s"),
        ):
            self.assertEqual(text.format_offset(nanoseconds, bound), expected)

    def test_range(self) -> None:
        """As long as the offset may be zero, no number looks like a measured offset."""
        for nanoseconds, bound, expected in (
            (0, 1000, "-0.001 to +0.001 ms"),
            (0, 0, "+0.000 to +0.000 ms"),
            (487_064_000, 500_288_000, "-14 to +988 ms"),
            (-487_064_000, 500_288_000, "-988 to +14 ms"),
            (600_000, 600_000, "+0.000 to +1.200 ms"),
            (0, SECOND, "-1.00 to +1.00 s"),
        ):
            self.assertEqual(text.format_offset(nanoseconds, bound), expected)

    @given(st.integers(-(10**12), 10**12), st.integers(0, 10**12))
    def test_rounded_outwards(self, nanoseconds: int, bound: int) -> None:
        """The rounded interval contains the exact one, and is hardly wider."""
        numbers, _, symbol = text.format_offset(nanoseconds, bound).rpartition(" ")
        unit = {"ms": MILLISECOND, "s": SECOND}[symbol]
        one, other = (int(Decimal(number) * unit) for number in re.findall(r"[-+\d.]+", numbers))
        low, high = (one - other, one + other) if "±" in numbers else (one, other)
        tolerance = max(2000, bound // 50)
        self.assertTrue(low <= nanoseconds - bound < low + tolerance, (low, high))
        self.assertTrue(high - tolerance < nanoseconds + bound <= high, (low, high))


class LineTests(SynchronousTestCase):
    """Lines of single probes."""

    def test_answered(self) -> None:
        """Server, number, round trip and offset."""
        offset = Offset(-MILLISECOND, 2000, 0, 0, "rate")
        self.assertEqual(
            text.answered(answered(3), NAME, offset),
            "host:1: seq=3 time=1.000 ms clock=-1.000 ± 0.002 ms",
        )

    def test_width(self) -> None:
        """A line fits into 80 columns."""
        for offset in (0, 487_000_000, 2_353_914_000, -86_400 * SECOND):
            for bound in (500_388_000, 812_000):
                known = Offset(offset, bound, 0, 0, "rate")
                line = text.answered(answered(1000, 12_345_678), "time.example.com:3000", known)
                self.assertLessEqual(len(line), 80, line)

    def test_no_clock(self) -> None:
        """The offset is omitted if it is unknown, or the reply has no stamp."""
        words = "host:1: seq=3 time=1.000 ms"
        probe = answered(3)
        self.assertEqual(text.answered(probe, NAME, None), words)
        probe.reply = Reply(3, "", False)
        offset = Offset(0, 2000, 0, 0, "rate")
        self.assertEqual(text.answered(probe, NAME, offset), words)

    def test_anomalies(self) -> None:
        """A probe sent late and an altered message are pointed out."""
        probe = answered(3, late=20 * MILLISECOND)
        probe.reply = Reply(3, "", True)
        self.assertEqual(
            text.answered(probe, NAME, None),
            "host:1: seq=3 time=1.000 ms late=20.000 ms (message altered)",
        )

    def test_folded(self) -> None:
        """A line has at most 79 columns; what it has no room for comes indented, and undivided."""
        probe = answered(3, late=20 * MILLISECOND)
        offset = Offset(0, 10 * MILLISECOND, 0, 0, "rate")
        line, clock = " seq=3 time=1.000 ms late=20.000 ms", "clock=-10.0 to +10.0 ms"
        name = "n" * (text.WIDTH - len(f":{line} {clock}"))
        self.assertEqual(text.answered(probe, name, offset), f"{name}:{line} {clock}")
        self.assertEqual(text.answered(probe, name + "n", offset), f"{name}n:{line}\n    {clock}")
        self.assertEqual(text.folded("w" * 75 + " why"), ["w" * 75 + " why"])
        self.assertEqual(text.folded("w" * 76 + " why"), ["w" * 76, "    why"])

    def test_lost(self) -> None:
        """Number and reason."""
        self.assertEqual(text.lost(lost_probe(4)), "seq=4 lost: no reply within 1 s")

    def test_progress(self) -> None:
        """Counts, round trips and offset in one line, as far as they are known."""
        self.assertEqual(text.progress(Stats()), "0 sent, 0 received, 0 % loss")
        self.assertEqual(text.progress(stats_of(lost=2)), "2 sent, 0 received, 100 % loss")
        stats = stats_of(MILLISECOND, 3 * MILLISECOND, lost=1)
        stats.sent += 2
        words = "5 sent, 2 received, 33.33 % loss, 2 in flight, rtt avg 2.000 ms"
        self.assertEqual(text.progress(stats), words)
        add_stamps(stats, (-5000, 1), rtt=10_000)
        self.assertEqual(text.progress(stats), words + ", clock -0.010 to +0.001 ms")


class SummaryTests(SynchronousTestCase):
    """`summary`."""

    def assert_summary(self, stats: Stats, *lines: str) -> None:
        """The summary is these lines after its heading."""
        expected = "".join(line + "\n" for line in ("--- host:1 tsecho ping ---", *lines))
        self.assertEqual(text.summary(stats, NAME), expected)

    def clock_lines(self, stats: Stats) -> list[str]:
        """The lines about clocks."""
        return [line for line in text.summary(stats, NAME).splitlines() if "clock" in line]

    def test_nothing_sent(self) -> None:
        """Nothing was sent."""
        self.assert_summary(Stats(), "0 sent, 0 received, 0 % loss, time 0.0 s")

    def test_no_reply(self) -> None:
        """Without replies there are no round trips and no clock."""
        self.assert_summary(
            stats_of(lost=3, duration=3.04), "3 sent, 0 received, 100 % loss, time 3.0 s"
        )

    def test_in_flight(self) -> None:
        """Probes in flight are not lost."""
        self.assert_summary(
            Stats(sent=2, duration=0.06), "2 sent, 0 received, 0 % loss, 2 in flight, time 0.1 s"
        )

    def test_plain(self) -> None:
        """An echo without stamps: round trips, but no clock."""
        stats = stats_of(1_000_000, 2_000_000, 6_000_000)
        stats.unstamped = 3
        self.assert_summary(
            stats,
            "3 sent, 3 received, 0 % loss, time 1.0 s",
            "rtt min/avg/max/mdev = 1.000/3.000/6.000/2.160 ms",
            "rtt p50/p90/p99 = 2.000/6.000/6.000 ms, jitter 0.309 ms (RFC 3550)",
            "clock: unknown, the replies have no known stamp",
        )

    def test_counts(self) -> None:
        """Each anomaly that occurred has a line."""
        self.assert_summary(
            Stats(sent=1, late_replies=2, duplicates=3, reordered=4, altered=5, reconnects=6),
            "1 sent, 0 received, 0 % loss, 1 in flight, time 0.0 s",
            "late replies: 2",
            "duplicates: 3",
            "reordered replies: 4",
            "altered messages: 5",
            "reconnects: 6",
        )

    def test_sent_late(self) -> None:
        """If probes were sent late: round trips from when they were due. Also our own delay."""
        stats = stats_of(1_000_000, 1_000_000)
        stats.rtt_from_due.add(31_000_000)
        stats.own_delay.add(30_000)
        stats.sent_late = 1
        self.assert_summary(
            stats,
            "2 sent, 2 received, 0 % loss, time 1.0 s",
            "rtt min/avg/max/mdev = 1.000/1.000/1.000/0.000 ms",
            "rtt p50/p90/p99 = 1.000/1.000/1.000 ms, jitter 0.000 ms (RFC 3550)",
            "1 sent late; rtt from due time p50/p90/p99 = 1.000/31.000/31.000 ms",
            "own delay in reading replies (not in rtt) avg/max = 0.010/0.030 ms",
        )

    def test_sent_late_and_lost(self) -> None:
        """All probes that were sent late may be lost."""
        stats = stats_of(lost=1)
        stats.sent_late = 1
        self.assert_summary(stats, "1 sent, 0 received, 100 % loss, time 1.0 s")

    def test_histogram(self) -> None:
        """From ten round trips on there is a histogram; every non-empty bin has a visible bar."""
        self.assertEqual(len(text.summary(stats_of(*[1] * 9), NAME).splitlines()), 4)
        trips = [*[1_000_000] * 200, *[1_050_000] * 100, *[1_099_999] * 3]
        lines = text.summary(stats_of(*trips), NAME).splitlines()[4:]
        self.assertEqual(
            [lines[0], lines[5], lines[-1]],
            [
                f"  1.000 - 1.010 ms |{'#' * 40}| 200",
                f"  1.050 - 1.060 ms |{'#' * 20:40}| 100",
                f"  1.090 - 1.100 ms |{'#':40}| 3",
            ],
        )

    def test_histogram_whole(self) -> None:
        """All lines of a histogram: a few outliers are counted in the last, and flatten nothing."""
        trips = [*range(1_000_000, 1_100_000, 10_000), 1_099_999, 21_500_000, 500_000_000]
        lines = text.summary(stats_of(*trips), NAME).splitlines()[4:]
        edges = [f"1.{number:03}" for number in range(0, 101, 10)]
        half, whole = "#" * 20, "#" * 40
        self.assertEqual(
            lines,
            [
                *(f"  {one} - {other} ms |{half:40}| 1" for one, other in pairwise(edges[:-1])),
                f"  1.090 - 1.100 ms |{whole}| 2",
                f"     over 1.100 ms |{whole}| 2",
            ],
        )

    def test_unix(self) -> None:
        """With fine stamps: the offset and its sign, but no zone."""
        for ahead, words in (
            (2_000_000, "+2.000 ± 0.501 ms, server ahead"),
            (-2_000_000, "-2.000 ± 0.501 ms, server behind"),
            (500_000, "-0.001 to +1.001 ms, no difference shown"),
            (DAY, "+86400.000000 ± 0.000501 s, server ahead"),
        ):
            stats = stats_of(MILLISECOND)
            add_stamps(stats, (ahead, 1), rtt=MILLISECOND)
            self.assertEqual(self.clock_lines(stats), [f"clock offset: {words}"])

    def test_zone_known(self) -> None:
        """A `ctime` stamp names no zone, so the assumed one is stated."""
        for zone, name in (
            (0, "UTC+00:00"),
            (8 * HOUR, "UTC+08:00"),
            (-7 * HOUR // 2, "UTC-03:30"),
            (23 * HOUR // 4, "UTC+05:45"),
        ):
            stats = stats_of(MILLISECOND)
            add_stamps(stats, (zone, SECOND), rtt=MILLISECOND, zone=False)
            (line,) = self.clock_lines(stats)
            self.assertEqual(
                line,
                f"clock offset: -0.001 to +1.001 s, no difference shown; time zone {name}",
            )

    def test_zone_unknown(self) -> None:
        """If two zones are possible, that is stated."""
        stats = stats_of(MILLISECOND)
        add_stamps(stats, (450 * SECOND, SECOND), rtt=MILLISECOND, zone=False)
        (line,) = self.clock_lines(stats)
        self.assertEqual(
            line,
            "clock offset: +450.500 ± 0.501 s, server ahead; time zone unknown, included",
        )

    def test_no_such_zone(self) -> None:
        """No time zone is a day ahead: the clock is."""
        stats = stats_of(MILLISECOND)
        add_stamps(stats, (DAY, SECOND), rtt=MILLISECOND, zone=False)
        self.assertEqual(
            self.clock_lines(stats),
            [
                "clock offset: +86400.500 ± 0.501 s, server ahead",
                "no time zone is that far from UTC: one of the two clocks is wrong",
            ],
        )

    def test_drift(self) -> None:
        """The drift in ppm, rounded outwards."""
        stats = stats_of(MILLISECOND)
        add_stamps(stats, *((-i * 20_000, 1) for i in range(101)))
        drift = stats.clock.drift
        assert drift is not None
        self.assertLess(drift.bound, 100)
        self.assertIn("\ndrift: -20.0 ± 0.1 ppm\n", text.summary(stats, NAME))

    def test_steps(self) -> None:
        """Each step of the server's clock, and the sum of those of this host's."""
        stats = stats_of(MILLISECOND)
        add_stamps(stats, (0, 1), (0, 1), (HOUR, 1), (HOUR - 20 * MILLISECOND, 1))
        stats.own_clock_step = -1_500_000_000
        self.assertEqual(
            self.clock_lines(stats),
            [
                "clock offset: +3601.480000 ± 0.000001 s, server ahead",
                "server's clock was set by +3600.000000 ± 0.000101 s",
                "server's clock was set by -20.000 ± 0.101 ms",
                "this host's clock was set by -1.500000 s",
            ],
        )


class PhasesTests(SynchronousTestCase):
    """Probes that have a connection each."""

    def test_lines(self) -> None:
        """How long each phase took, in place of the clock; a loss names its phase."""
        probe = answered(1, rtt=4 * MILLISECOND)
        probe.phases = Phases({"lookup": MILLISECOND // 4, "tls": MILLISECOND // 2}, "reply")
        self.assertEqual(
            text.answered(probe, "a", Offset(0, 1, 0, 0, "rate")),
            "a: seq=1 time=4.000 ms = lookup 0.250 + tls 0.500 + reply 3.250",
        )
        probe = lost_probe(2)
        for phase, words in (("lookup", "name lookup"), ("connect", "connect"), ("tls", "TLS")):
            probe.phases = Phases({}, phase)
            expected = f"seq=2 lost in {words}: no reply within 1 s"
            self.assertEqual(text.lost(probe), expected)

    def test_summary(self) -> None:
        """Statistics of each phase."""
        stats = stats_of(MILLISECOND, 2 * MILLISECOND)
        for duration in (MILLISECOND, 3 * MILLISECOND):
            stats.phases.setdefault("tls", RoundTrips()).add(duration)
        self.assertIn(
            """
phase, in ms       min       avg       max       p50       p90       p99
TLS              1.000     2.000     3.000     1.000     3.000     3.000
""",
            text.summary(stats, "a"),
        )
