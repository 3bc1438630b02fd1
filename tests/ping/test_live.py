"""Tests for `timestamp_echo.ping.live`: what is written, and when."""

from __future__ import annotations

from json import loads

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.outcomes import MILLISECOND, answered, lost, outcome_of
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import json, text
from timestamp_echo.ping.live import Lines, Records
from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.stamps import SECOND

NAME = "host:1"

FRESH = "\r\033[K"
"""What a terminal takes as: begin this line anew."""

ANSWERED = "64 bytes from host:1: seq=1 time=1.000 ms\n"
LOST = "seq=2 lost: no reply within 1 s\n"


def line(outcome: Outcome) -> str:
    """The progress, as it is shown."""
    return FRESH + text.progress(outcome)


class LinesTests(SynchronousTestCase):
    """For a person."""

    wide = 200

    def lines(self, *, quiet: bool, terminal: bool = False, colour: bool = False) -> Lines:
        """What writes to `written`."""
        self.written: list[str] = []
        write = self.written.append
        columns = (lambda: self.wide) if terminal else None
        return Lines(write, NAME, 64, quiet=quiet, columns=columns, colour=colour)

    def told(self, lines: Lines) -> Outcome:
        """Tell all there is, and return what has become of it."""
        outcome = outcome_of(MILLISECOND)
        lines.answered(answered(1), outcome)
        outcome.sent, outcome.lost = 2, 1
        lines.lost(lost(2), outcome)
        lines.happened("connected again")
        return outcome

    def test_each(self) -> None:
        """A line a probe and a line an event; on a terminal, too, nothing is written over."""
        for terminal in (False, True):
            lines = self.lines(quiet=False, terminal=terminal)
            outcome = self.told(lines)
            lines.look(outcome)
            lines.end(outcome)
            self.assertEqual(
                self.written,
                [
                    ANSWERED,
                    LOST,
                    "connected again\n",
                    text.progress(outcome) + "\n",
                    text.summary(outcome, NAME),
                ],
            )

    def test_colour(self) -> None:
        """What is lost and what happens is red; what is answered and found is not."""
        lines = self.lines(quiet=False, terminal=True, colour=True)
        outcome = self.told(lines)
        lines.end(outcome)
        self.assertEqual(
            self.written,
            [
                ANSWERED,
                f"\033[31m{LOST[:-1]}\033[0m\n",
                "\033[31mconnected again\033[0m\n",
                text.summary(outcome, NAME),
            ],
        )

    def test_quiet(self) -> None:
        """Where it can't be written over, only what is asked for is written, and the end."""
        lines = self.lines(quiet=True)
        outcome = self.told(lines)
        lines.look(outcome)
        lines.end(outcome)
        summary = text.summary(outcome, NAME)
        self.assertEqual(self.written, [text.progress(outcome) + "\n", summary])

    def test_progress(self) -> None:
        """On a terminal one line says how it stands, and makes room for each other."""
        lines = self.lines(quiet=True, terminal=True)
        first = line(outcome_of(MILLISECOND))
        outcome = self.told(lines)
        again = line(outcome)
        lines.answered(answered(3), outcome)
        lines.look(outcome)
        lines.lost(lost(4), outcome)
        lines.end(outcome)
        lines.end(outcome)
        summary = text.summary(outcome, NAME)
        self.assertEqual(
            self.written,
            [
                *(first, again, again, FRESH, text.progress(outcome) + "\n"),
                *(again, FRESH, summary, summary),
            ],
        )

    def test_narrow(self) -> None:
        """What has no room is cut, and that is seen: a second line could not be cleared."""
        for self.wide in (60, 20, 2, 1, 0):
            lines = self.lines(quiet=True, terminal=True)
            self.told(lines)
            shown = self.written[0].removeprefix(FRESH)
            self.assertTrue(shown.endswith("…"))
            self.assertEqual(len(shown), max(self.wide - 1, 1))
            self.assertIn(shown[:-1], text.progress(outcome_of(MILLISECOND)))

    def test_flood(self) -> None:
        """However many there are a second, the line is written ten times in it."""
        lines = self.lines(quiet=True, terminal=True)
        outcome = outcome_of(MILLISECOND)
        for tell in (lines.answered, lines.lost):
            self.written.clear()
            start = SECOND if tell == lines.answered else 3 * SECOND
            for number in range(1000):
                sent = start + number * MILLISECOND
                tell(Probe(number, sent, sent), outcome)
            self.assertEqual(self.written, [line(outcome)] * 10)

    def test_tenth(self) -> None:
        """A tenth of a second later it is written again; not a nanosecond sooner."""
        lines = self.lines(quiet=True, terminal=True)
        for sent, written in ((0, 1), (SECOND // 10 - 1, 1), (SECOND // 10, 2)):
            lines.answered(Probe(1, sent, sent), outcome_of(MILLISECOND))
            self.assertEqual(len(self.written), written)

    def test_out_of_order(self) -> None:
        """One that left before the last that was shown changes nothing yet."""
        lines = self.lines(quiet=True, terminal=True)
        outcome = outcome_of(MILLISECOND)
        for number in (9, 3, 8, 9, 10):
            lines.answered(answered(number), outcome)
        self.assertEqual(len(self.written), 2)


class RecordsTests(SynchronousTestCase):
    """For a program."""

    def records(self, *, quiet: bool) -> Records:
        """What writes to `written`, at a host whose clock is a day ahead of the steady one."""
        self.written: list[str] = []
        clocks = Clocks(lambda: 86400 * SECOND, lambda: 0)
        return Records(self.written.append, NAME, clocks, quiet=quiet)

    def test_each(self) -> None:
        """A probe, answered or lost, an event, how it stands, and the summary: each a line."""
        records = self.records(quiet=False)
        outcome = outcome_of(MILLISECOND, lost=1)
        records.answered(answered(1), outcome)
        records.lost(lost(2), outcome)
        records.happened("connected again")
        records.look(outcome)
        records.end(outcome)
        self.assertEqual(
            self.written,
            [
                json.probe_record(answered(1), 86401 * SECOND, outcome),
                json.probe_record(lost(2), 86402 * SECOND, outcome),
                json.event_record("connected again"),
                json.summary_record(outcome, NAME, "standing"),
                json.summary_record(outcome, NAME),
            ],
        )
        self.assertEqual(len([loads(line) for line in self.written]), 5)

    def test_quiet(self) -> None:
        """The summary alone, also when it is asked for."""
        records = self.records(quiet=True)
        outcome = outcome_of(MILLISECOND)
        records.answered(answered(1), outcome)
        records.lost(lost(2), outcome)
        records.happened("connected again")
        self.assertEqual(self.written, [])
        records.look(outcome)
        records.end(outcome)
        kinds = [loads(line)["type"] for line in self.written]
        self.assertEqual(kinds, ["standing", "summary"])
