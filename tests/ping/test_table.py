"""Tests for `timestamp_echo.ping.table`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import MILLISECOND, add_stamps, stats_of
from timestamp_echo.ping.stats import Host, Stats
from timestamp_echo.ping.table import comparison, table, verdicts
from timestamp_echo.stamps import SECOND

HOUR = 3600 * SECOND


def host(name: str, offset: int | None, *, resolution: int = 1, zone: bool = True) -> Host:
    """A server that was asked once, and whose clock is this far ahead."""
    stats = stats_of(MILLISECOND)
    if offset is not None:
        add_stamps(stats, (offset, resolution), rtt=MILLISECOND, zone=zone)
    return Host(name, stats)


class TableTests(SynchronousTestCase):
    """`table`."""

    def test_columns(self) -> None:
        """Each column is as wide as its longest entry; numbers are aligned at the right."""
        lost = Host("c", stats_of(lost=3))
        late = Host("d:3000", stats_of(20 * MILLISECOND, 20 * MILLISECOND, lost=1))
        late.stats.unstamped = 2
        self.assertEqual(
            table([host("a", 5 * MILLISECOND), host("b", HOUR, zone=False), lost, late]),
            [
                "server     loss    rtt avg  clock                zone",
                "a           0 %   1.000 ms  +5.000 ± 0.501 ms",
                "b           0 %   1.000 ms  -0.501 to +0.501 ms  +01:00",
                "c         100 %          -",
                "d:3000  33.33 %  20.000 ms  no known stamp",
            ],
        )

    def test_long_names(self) -> None:
        """Of a long name the end may be shown alone: paths begin alike."""
        for longest, name in ((None, "unix:/a/b"), (9, "unix:/a/b"), (8, "…ix:/a/b")):
            row = table([Host("unix:/a/b", Stats())], longest)[1]
            self.assertEqual(row.split()[0], name)

    def test_width(self) -> None:
        """Without a limit names are whole; what is longer than 79 columns takes two lines."""
        short, long = host("a" * 39, SECOND), host("b" * 40, SECOND)
        reason = Host("c" * 41, Stats(), "no one will ever find out why it is unreachable")
        figures = "   0 %  1.000 ms  +1.000000 ± 0.000501 s"
        self.assertEqual(
            table([short, long, reason]),
            [
                f"{'server':39}  loss   rtt avg  clock",
                short.name + figures,
                long.name,
                " " * 39 + figures,
                reason.name + "  no one will ever find out why it is",
                "    unreachable",
            ],
        )
        self.assertEqual(len(short.name + figures), 79)

    def test_unreachable(self) -> None:
        """The reason is in place of the columns, and does not widen them."""
        reason = "no one will ever find out why this server could not be reached"
        self.assertEqual(
            table([Host("a" * 12, Stats(), reason), Host("b", Stats())]),
            [
                "server        loss  rtt avg",
                f"aaaaaaaaaaaa  {reason}",
                "b                -        -",
            ],
        )

    def test_drift_and_zone(self) -> None:
        """There are columns for drifts and zones if any is known; `?` is a zone that is not."""
        drifting = host("a", 0)
        add_stamps(drifting.stats, *((n * 50, 1) for n in range(100)), rtt=MILLISECOND // 10)
        header, *rows = table([drifting, host("b", 450 * SECOND, resolution=SECOND, zone=False)])
        self.assertTrue(header.endswith("  zone  drift"), header)
        self.assertRegex(rows[0], r" ms        [+-]\d+\.\d ± \d+\.\d ppm$")
        self.assertRegex(rows[1], r" ± 0.501 s +\?$")


class ComparisonTests(SynchronousTestCase):
    """`comparison`."""

    def test_one(self) -> None:
        """One clock is compared with none."""
        self.assertEqual(comparison([host("a", 0), host("b", None)]), [])

    def test_agreeing(self) -> None:
        """All may agree."""
        words = comparison([host("a", 0), host("b", MILLISECOND // 2), host("c", None)])
        self.assertEqual(words, ["both clocks may agree"])

    def test_different(self) -> None:
        """All differ."""
        words = comparison([host("a", 0), host("b", SECOND), host("c", 2 * SECOND)])
        self.assertEqual(words, ["all 3 clocks provably differ from each other"])

    def test_groups(self) -> None:
        """Some may agree; a long list of names continues on the next line."""
        names = [f"server-{n:02}.example.org" for n in range(6)]
        hosts = [host(name, 0) for name in names]
        self.assertEqual(
            comparison([host("x", SECOND), *hosts, host("y", 2 * SECOND)]),
            [
                "groups of clocks that may agree; two that share no group provably differ:",
                f"  {', '.join(names[:3])},",
                f"    {', '.join(names[3:])}",
                "  x",
                "  y",
            ],
        )

    def test_zones(self) -> None:
        """It is said that zones which stamps do not name are taken into account."""
        words = comparison([host("a", 0), host("b", HOUR, zone=False)])
        self.assertEqual(
            words,
            [
                "both clocks may agree",
                "(not counting what an unknown time zone would explain)",
            ],
        )

    def test_same_moment(self) -> None:
        """Intervals of different moments are widened by the tolerance before they are compared."""
        early, late = host("a", 0), host("b", 0)
        tolerated = 2 * MILLISECOND
        add_stamps(late.stats, *((tolerated, 1) for _ in range(2)), rtt=MILLISECOND)
        self.assertEqual(len(comparison([early, late])), 1)
        late = Host("b", stats_of(MILLISECOND))
        add_stamps(late.stats, *((tolerated, 1) for _ in range(2)), rtt=MILLISECOND)
        self.assertEqual(comparison([early, late]), ["both clocks provably differ from each other"])
        late = Host("b", stats_of(MILLISECOND))
        add_stamps(late.stats, *((tolerated, 1) for _ in range(12)), rtt=MILLISECOND)
        self.assertEqual(comparison([early, late]), ["both clocks may agree"])


class VerdictsTests(SynchronousTestCase):
    """`verdicts`."""

    def test_all_kinds(self) -> None:
        """Who exceeds the limit, who may, and who does not; an unknown clock may."""
        hosts = [
            *(host("a", 0), host("b", 51 * MILLISECOND), host("c", 50 * MILLISECOND)),
            *(host("d", HOUR, zone=False), host("e", HOUR), host("f", None)),
        ]
        self.assertEqual(
            verdicts(hosts, 50 * MILLISECOND),
            [
                *("offset provably over 50.000 ms:", "  b, e"),
                *("can't tell whether the offset is over 50.000 ms:", "  c, f"),
                *("offset within 50.000 ms:", "  a, d"),
            ],
        )

    def test_own_step(self) -> None:
        """The offset is from this host's clock as it is set now."""
        ahead = host("a", SECOND)
        ahead.stats.own_clock_step = SECOND
        self.assertEqual(verdicts([ahead], MILLISECOND), ["offset within 1.000 ms:", "  a"])
