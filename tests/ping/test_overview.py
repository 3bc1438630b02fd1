"""Tests for `timestamp_echo.ping.overview`: what is written, and when."""

from __future__ import annotations

import contextlib
import io
import json

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import EPOCH, MILLISECOND, add_stamps, answered, lost, stats_of
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping.live import JSONOutput
from timestamp_echo.ping.overview import (
    MetricsOutput,
    ObjectsOutput,
    Output,
    Screen,
    SingleOutput,
    TableOutput,
)
from timestamp_echo.ping.stats import Host, Stats

CLOCKS = Clocks(lambda: EPOCH, lambda: 0, lambda _: None)


class OverviewTestCase(SynchronousTestCase):
    """A test case that keeps what is written."""

    def setUp(self) -> None:
        """Nothing is written yet; two servers answered, and one could not be reached."""
        self.pieces: list[str] = []
        self.write = self.pieces.append
        self.hosts = [
            *(Host("a", stats_of(MILLISECOND)), Host("b", stats_of(MILLISECOND))),
            Host("c", Stats(), "name not found"),
        ]
        add_stamps(self.hosts[0].stats, (0, 1), rtt=MILLISECOND)
        add_stamps(self.hosts[1].stats, (9 * MILLISECOND, 1), rtt=MILLISECOND)

    def taken(self) -> str:
        """What was written since the last call."""
        text = "".join(self.pieces)
        self.pieces.clear()
        return text


class SingleTests(OverviewTestCase):
    """`SingleOutput`."""

    def setUp(self) -> None:
        """The one server's results are written as JSON."""
        super().setUp()
        self.output = SingleOutput(
            lambda name, clocks: JSONOutput(self.write, name, clocks, quiet=False)
        )
        self.observer = self.output.observer("a", CLOCKS)

    def test_inner(self) -> None:
        """Everything is written as by the server's own output."""
        output: Output = self.output
        self.observer.answered(answered(1), self.hosts[0].stats)
        self.assertEqual(json.loads(self.taken())["type"], "probe")
        output.progress(self.hosts[:1], entered=True)
        self.assertEqual(json.loads(self.taken())["type"], "progress")
        output.summary(self.hosts[:1])
        self.assertEqual(json.loads(self.taken())["type"], "summary")

    def test_unreachable(self) -> None:
        """Why the server cannot be reached is an error."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.output.unreachable(self.hosts[2])
            self.output.summary(self.hosts[2:])
        self.assertEqual(said.getvalue(), "tsecho: cannot connect to c: name not found\n")
        self.assertEqual(self.taken(), "")


class TableTests(OverviewTestCase):
    """`TableOutput`."""

    def output(
        self,
        *,
        quiet: bool = False,
        screen: Screen | None = None,
        colour: bool = False,
        limit: int | None = None,
    ) -> TableOutput:
        """An output for these servers."""
        return TableOutput(
            self.write,
            lambda: self.hosts,
            quiet=quiet,
            screen=screen,
            colour=colour,
            limit=limit,
        )

    def test_lines(self) -> None:
        """Each line names its server."""
        for quiet, expected in (
            (
                False,
                "a: seq=1 time=1.000 ms clock=-0.501 to +0.501 ms\n"
                "a: seq=2 lost: no reply within 1 s\n"
                "a: reconnected\n",
            ),
            (True, ""),
        ):
            observer = self.output(quiet=quiet).observer("a", CLOCKS)
            observer.answered(answered(1), self.hosts[0].stats)
            observer.lost(lost(2), self.hosts[0].stats)
            observer.event("reconnected")
            self.assertEqual(self.taken(), expected)

    def test_colour(self) -> None:
        """Losses and events are red."""
        observer = self.output(colour=True).observer("a", CLOCKS)
        observer.answered(answered(1), Stats())
        observer.lost(lost(2), Stats())
        observer.event("x")
        self.assertEqual(
            self.taken(),
            "a: seq=1 time=1.000 ms\n"
            "\033[31ma: seq=2 lost: no reply within 1 s\033[0m\n"
            "\033[31ma: x\033[0m\n",
        )

    def test_summary(self) -> None:
        """A table, then which clocks differ, then which exceed the limit, if there is one."""
        table = (
            "server  loss   rtt avg  clock\n"
            "a        0 %  1.000 ms  -0.501 to +0.501 ms\n"
            "b        0 %  1.000 ms  +9.000 ± 0.501 ms\n"
            "c       name not found\n"
        )
        differ = "both clocks provably differ from each other\n"
        self.output().progress(self.hosts, entered=True)
        self.assertEqual(self.taken(), table + differ)
        self.output().summary(self.hosts)
        self.assertEqual(self.taken(), "--- tsecho ping of 3 servers ---\n" + table + differ)
        self.output(limit=MILLISECOND).summary(self.hosts)
        words = self.taken()
        self.assertIn(f"{differ}offset provably over 1.000 ms:\n  b\n", words)
        self.assertIn("can't tell whether the offset is over 1.000 ms:\n  c\n", words)

    def test_screen(self) -> None:
        """On a terminal the table is drawn anew, at most twice a second."""
        output = self.output(screen=lambda: (30, 24))
        observer = output.observer("a", CLOCKS)
        observer.answered(answered(1), self.hosts[0].stats)
        drawn = self.taken()
        self.assertEqual(
            drawn,
            "server  loss   rtt avg  clock\n"
            "a        0 %  1.000 ms  -0.5…\n"
            "b        0 %  1.000 ms  +9.0…\n"
            "c       name not found\n",
        )
        observer.answered(answered(1, late=499 * MILLISECOND), self.hosts[0].stats)
        self.assertEqual(self.taken(), "")
        observer.lost(lost(2), self.hosts[0].stats)
        self.assertEqual(self.taken(), "\r\033[4A\033[J" + drawn)
        observer.event("reconnected")
        self.assertEqual(self.taken(), "\r\033[4A\033[Ja: reconnected\n" + drawn)
        output.unreachable(self.hosts[2])  # the table shows it at once
        self.assertEqual(self.taken(), "\r\033[4A\033[J" + drawn)
        output.summary(self.hosts)
        self.assertTrue(self.taken().startswith("\r\033[4A\033[J--- "))
        observer.answered(answered(9), self.hosts[0].stats)
        self.taken()
        output.progress(self.hosts, entered=False)
        self.assertTrue(self.taken().startswith("\r\033[4A\033[Jserver "))

    def test_entered(self) -> None:
        """The line that the terminal echoes at Enter is cleared with the table, if there is one."""
        output = self.output(screen=lambda: (80, 24))
        output.progress(self.hosts, entered=True)
        self.assertTrue(self.taken().startswith("server "))
        output.observer("a", CLOCKS).answered(answered(1), self.hosts[0].stats)
        self.taken()
        output.progress(self.hosts, entered=True)
        self.assertTrue(self.taken().startswith("\r\033[5A\033[Jserver "))

    def test_event_before_the_table(self) -> None:
        """An event that comes first draws no table; if quiet, none is written at all."""
        for quiet, expected in ((False, "a: x\n"), (True, "")):
            output = self.output(screen=lambda: (80, 24), quiet=quiet)
            output.observer("a", CLOCKS).event("x")
            self.assertEqual(self.taken(), expected)

    def test_unreachable(self) -> None:
        """A server that cannot be reached is reported at once."""
        self.output().unreachable(self.hosts[2])
        self.assertEqual(self.taken(), "c: cannot connect: name not found\n")

    def test_one_server(self) -> None:
        """A single server is one server."""
        self.output().summary(self.hosts[:1])
        self.assertTrue(self.taken().startswith("--- tsecho ping of 1 server ---\n"))

    def test_small_screen(self) -> None:
        """Servers for which the terminal has no room are counted."""
        rows = 0
        observer = self.output(quiet=True, screen=lambda: (80, rows)).observer("a", CLOCKS)
        for number, (rows, shown) in enumerate(((6, 4), (5, 3), (4, 2), (1, 2))):  # noqa: B007
            observer.answered(answered(number), self.hosts[0].stats)
            lines = self.taken().rpartition("\033[J")[2].splitlines()
            self.assertEqual(lines[shown:], [] if shown == 4 else [f"... and {4 - shown} more"])
            self.assertEqual(lines[1][0], "a")


class ObjectsTests(OverviewTestCase):
    """`ObjectsOutput`."""

    def test_objects(self) -> None:
        """The objects of each server, then the comparison."""
        for quiet in (False, True):
            output = ObjectsOutput(self.write, quiet=quiet, limit=None)
            observer = output.observer("a", CLOCKS)
            observer.answered(answered(1), self.hosts[0].stats)
            output.progress(self.hosts, entered=False)
            output.unreachable(self.hosts[2])
            output.summary(self.hosts)
            found = [json.loads(line) for line in self.taken().splitlines()]
            self.assertEqual(
                [(record["type"], record.get("server")) for record in found],
                [
                    *([] if quiet else [("probe", "a")]),
                    *(("progress", "a"), ("progress", "b"), ("unreachable", "c")),
                    ("fleet", None),
                    *(("summary", "a"), ("summary", "b"), ("unreachable", "c")),
                    ("fleet", None),
                ],
            )
            self.assertIsNone(found[-1]["max_offset"])


class MetricsTests(OverviewTestCase):
    """`MetricsOutput`."""

    def test_at_the_end(self) -> None:
        """Nothing is written before the end, so that a file has only complete results."""
        output = MetricsOutput(self.write, limit=None)
        observer = output.observer("a", CLOCKS)
        observer.answered(answered(1), Stats())
        observer.lost(lost(1), Stats())
        observer.event("x")
        output.progress(self.hosts, entered=False)
        self.assertEqual(self.pieces, [])
        output.summary(self.hosts)
        self.assertIn('tsecho_ping_up{server="b"} 1\n', self.taken())

    def test_errors(self) -> None:
        """Standard error names the servers that are unreachable, and the clocks over the limit."""
        for limit, clocks in (
            (None, ""),
            (MILLISECOND, "tsecho: b: offset provably over 1.000 ms\n"),
            (
                MILLISECOND // 4,
                "tsecho: a: can't tell whether the offset is over 0.250 ms\n"
                "tsecho: b: offset provably over 0.250 ms\n",
            ),
        ):
            output = MetricsOutput(self.write, limit=limit)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                output.unreachable(self.hosts[2])
                output.summary(self.hosts)
            refused = "tsecho: cannot connect to c: name not found\n"
            self.assertEqual(said.getvalue(), refused + clocks)
