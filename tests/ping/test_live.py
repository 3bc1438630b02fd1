"""Tests for `timestamp_echo.ping.live`: what is written, and when."""

from __future__ import annotations

from json import loads

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import MILLISECOND, answered, lost, stats_of
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import json, text
from timestamp_echo.ping.live import JSONOutput, TextOutput
from timestamp_echo.ping.stats import Probe, Stats
from timestamp_echo.stamps import SECOND

NAME = "host:1"

CLEAR_LINE = "\r\033[K"
"""Moves a terminal's cursor to the start of the line, and erases the line."""

ANSWERED = "host:1: seq=1 time=1.000 ms\n"
LOST = "seq=2 lost: no reply within 1 s\n"


def line(stats: Stats) -> str:
    """The progress line, as written to a terminal."""
    return CLEAR_LINE + text.progress(stats)


class TextOutputTests(SynchronousTestCase):
    """`TextOutput`."""

    width = 200

    def output(self, *, quiet: bool, terminal: bool = False, colour: bool = False) -> TextOutput:
        """An output that writes to `written`."""
        self.written: list[str] = []
        write = self.written.append
        columns = (lambda: self.width) if terminal else None
        return TextOutput(write, NAME, quiet=quiet, columns=columns, colour=colour)

    def notified(self, output: TextOutput) -> Stats:
        """Notify an output of a reply, a loss and an event, and return the statistics."""
        stats = stats_of(MILLISECOND)
        output.answered(answered(1), stats)
        stats.sent, stats.lost = 2, 1
        output.lost(lost(2), stats)
        output.event("reconnected")
        return stats

    def test_each(self) -> None:
        """Each probe and event is one line; nothing is overwritten, even on a terminal."""
        for terminal in (False, True):
            output = self.output(quiet=False, terminal=terminal)
            stats = self.notified(output)
            output.progress(stats)
            output.summary(stats)
            self.assertEqual(
                self.written,
                [
                    ANSWERED,
                    LOST,
                    "reconnected\n",
                    text.progress(stats) + "\n",
                    text.summary(stats, NAME),
                ],
            )

    def test_colour(self) -> None:
        """Losses and events are red; replies and the summary are not."""
        output = self.output(quiet=False, terminal=True, colour=True)
        stats = self.notified(output)
        output.summary(stats)
        self.assertEqual(
            self.written,
            [
                ANSWERED,
                f"\033[31m{LOST[:-1]}\033[0m\n",
                "\033[31mreconnected\033[0m\n",
                text.summary(stats, NAME),
            ],
        )

    def test_quiet(self) -> None:
        """Without a terminal only requested progress and the summary are written."""
        output = self.output(quiet=True)
        stats = self.notified(output)
        output.progress(stats)
        output.summary(stats)
        summary = text.summary(stats, NAME)
        self.assertEqual(self.written, [text.progress(stats) + "\n", summary])

    def test_progress(self) -> None:
        """On a terminal a progress line is overwritten, and erased before other output."""
        output = self.output(quiet=True, terminal=True)
        first = line(stats_of(MILLISECOND))
        stats = self.notified(output)
        again = line(stats)
        output.answered(answered(3), stats)
        output.progress(stats)
        output.lost(lost(4), stats)
        output.summary(stats)
        output.summary(stats)
        summary = text.summary(stats, NAME)
        self.assertEqual(
            self.written,
            [
                *(first, again, again, CLEAR_LINE, text.progress(stats) + "\n"),
                *(again, CLEAR_LINE, summary, summary),
            ],
        )

    def test_narrow(self) -> None:
        """The progress line is truncated to the width: a second line could not be erased."""
        for self.width in (45, 20, 2, 1, 0):
            output = self.output(quiet=True, terminal=True)
            self.notified(output)
            shown = self.written[0].removeprefix(CLEAR_LINE)
            self.assertTrue(shown.endswith("…"))
            self.assertEqual(len(shown), max(self.width - 1, 1))
            self.assertIn(shown[:-1], text.progress(stats_of(MILLISECOND)))

    def test_flood(self) -> None:
        """The progress line is written ten times a second at most."""
        output = self.output(quiet=True, terminal=True)
        stats = stats_of(MILLISECOND)
        for notify in (output.answered, output.lost):
            self.written.clear()
            start = SECOND if notify == output.answered else 3 * SECOND
            for number in range(1000):
                sent = start + number * MILLISECOND
                notify(Probe(number, sent, sent), stats)
            self.assertEqual(self.written, [line(stats)] * 10)

    def test_tenth(self) -> None:
        """It is written again after a tenth of a second, not a nanosecond earlier."""
        output = self.output(quiet=True, terminal=True)
        for sent, written in ((0, 1), (SECOND // 10 - 1, 1), (SECOND // 10, 2)):
            output.answered(Probe(1, sent, sent), stats_of(MILLISECOND))
            self.assertEqual(len(self.written), written)

    def test_out_of_order(self) -> None:
        """A probe sent before the last one shown does not update the line."""
        output = self.output(quiet=True, terminal=True)
        stats = stats_of(MILLISECOND)
        for number in (9, 3, 8, 9, 10):
            output.answered(answered(number), stats)
        self.assertEqual(len(self.written), 2)


class JSONOutputTests(SynchronousTestCase):
    """`JSONOutput`."""

    def output(self, *, quiet: bool) -> JSONOutput:
        """An output that writes to `written`, on a host whose two clocks are a day apart."""
        self.written: list[str] = []
        clocks = Clocks(lambda: 86400 * SECOND, lambda: 0)
        return JSONOutput(self.written.append, NAME, clocks, quiet=quiet)

    def test_each(self) -> None:
        """Each reply, loss, event, progress and summary is one line."""
        output = self.output(quiet=False)
        stats = stats_of(MILLISECOND, lost=1)
        output.answered(answered(1), stats)
        output.lost(lost(2), stats)
        output.event("reconnected")
        output.progress(stats)
        output.summary(stats)
        self.assertEqual(
            self.written,
            [
                json.format_probe(answered(1), 86401 * SECOND, stats, NAME),
                json.format_probe(lost(2), 86402 * SECOND, stats, NAME),
                json.format_event("reconnected", NAME),
                json.format_summary(stats, NAME, "progress"),
                json.format_summary(stats, NAME),
            ],
        )
        self.assertEqual(len([loads(line) for line in self.written]), 5)

    def test_quiet(self) -> None:
        """Only requested progress and the summary are written."""
        output = self.output(quiet=True)
        stats = stats_of(MILLISECOND)
        output.answered(answered(1), stats)
        output.lost(lost(2), stats)
        output.event("reconnected")
        self.assertEqual(self.written, [])
        output.progress(stats)
        output.summary(stats)
        kinds = [loads(line)["type"] for line in self.written]
        self.assertEqual(kinds, ["progress", "summary"])
