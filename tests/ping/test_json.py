"""Tests for `timestamp_echo.ping.json`: the schema, to the last key."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.outcomes import MILLISECOND, STAMP, answered, lost, outcome_of, stamped
from timestamp_echo.ping.json import event_record, probe_record, summary_record
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.stats import Outcome
from timestamp_echo.stamps import SECOND

NONE: dict[str, Any] = {
    "type": "summary",
    "server": "host:1",
    "seconds": 0.0,
    "sent": 0,
    "received": 0,
    "lost": 0,
    "under_way": 0,
    "late_replies": 0,
    "duplicates": 0,
    "reordered": 0,
    "altered": 0,
    "unstamped": 0,
    "left_late": 0,
    "reconnects": 0,
    "rtt": None,
    "rtt_from_due": None,
    "own_delay": None,
    "drift": None,
    "steps": [],
    "own_clock_set_by": 0,
    "offset": None,
}
"""Before anything is known."""


class RecordTestCase(SynchronousTestCase):
    """What these tests ask."""

    def assert_record(self, line: str, expected: dict[str, Any]) -> None:
        """It is one line, with that and nothing else."""
        self.assertTrue(line.endswith("\n"))
        self.assertEqual(len(line.splitlines()), 1)
        self.assertTrue(line.isascii())
        self.assertEqual(json.loads(line), expected)


class ProbeTests(RecordTestCase):
    """A probe."""

    def test_answered(self) -> None:
        """When it left, how late; how long it took; what the stamp says, and the clock."""
        outcome = outcome_of(MILLISECOND)
        stamped(outcome, (5 * MILLISECOND, 1), trip=MILLISECOND)
        probe = answered(3, late=20)
        expected = {
            "type": "probe",
            "seq": 3,
            "sent": 123,
            "late": 20,
            "rtt": MILLISECOND,
            "own_delay": 2000,
            "stamp": STAMP,
            "altered": False,
            "offset": {"by": 5_000_050, "bound": 500_051, "zone": 0, "formula": "rate"},
        }
        self.assert_record(probe_record(probe, 123, outcome), expected)

    def test_no_clock(self) -> None:
        """Without a stamp its text is empty, and the clock is null."""
        probe = answered(3)
        probe.reply = Reply(3, "", True)
        expected = {
            "type": "probe",
            "seq": 3,
            "sent": 123,
            "late": 0,
            "rtt": MILLISECOND,
            "own_delay": 2000,
            "stamp": "",
            "altered": True,
            "offset": None,
        }
        self.assert_record(probe_record(probe, 123, outcome_of(MILLISECOND)), expected)

    def test_zone(self) -> None:
        """The zone that was made of a stamp without one is in seconds; null if it can't be told."""
        for ahead, zone in ((28800, 28800), (450, None)):
            outcome = outcome_of(MILLISECOND)
            stamped(outcome, (ahead * SECOND, SECOND), trip=MILLISECOND, zone=False)
            record = json.loads(probe_record(answered(1), 123, outcome))
            self.assertEqual(record["offset"]["zone"], zone)

    def test_lost(self) -> None:
        """Why; and no more."""
        expected = {"type": "probe", "seq": 4, "sent": 5, "late": 0, "lost": "no reply within 1 s"}
        self.assert_record(probe_record(lost(4), 5, outcome_of(lost=1)), expected)


class EventTests(RecordTestCase):
    """Something else."""

    def test_words(self) -> None:
        """Any words are one line."""
        for words in ("connected again", "±\n\0\u2028", ""):
            self.assert_record(event_record(words), {"type": "event", "words": words})


class SummaryTests(RecordTestCase):
    """The summary."""

    def test_none(self) -> None:
        """All its keys are there from the beginning; what is not known is null."""
        self.assert_record(summary_record(Outcome(), "host:1"), NONE)

    def test_counts(self) -> None:
        """Each count by its own name."""
        counts = {
            "duplicates": 1,
            "reordered": 2,
            "altered": 3,
            "unstamped": 4,
            "left_late": 5,
            "reconnects": 6,
            "lost": 7,
            "seconds": 8.5,
        }
        outcome = Outcome(sent=20, late=9, stepped=-10, **counts)  # type: ignore[arg-type]
        more = {"sent": 20, "late_replies": 9, "own_clock_set_by": -10, "under_way": 13}
        self.assert_record(summary_record(outcome, "host:1"), NONE | counts | more)

    def test_figures(self) -> None:
        """The figures of each kind of time."""
        outcome = Outcome(sent=2)
        for trip in (1000, 3000):
            outcome.trips.add(trip)
            outcome.from_due.add(2 * trip)
        outcome.delays.add(5)
        record = json.loads(summary_record(outcome, "host:1"))
        names = ["least", "mean", "most", "mdev", "p50", "p90", "p99", "jitter"]
        for key, values in (
            ("rtt", [1000, 2000, 3000, 1000, 1000, 3000, 3000, 125]),
            ("rtt_from_due", [2000, 4000, 6000, 2000, 2000, 6000, 6000, 250]),
            ("own_delay", [5, 5, 5, 0, 5, 5, 5, 0]),
        ):
            self.assertEqual(record[key], dict(zip(names, values, strict=True)))
        self.assertEqual(record["received"], 2)

    def test_clock(self) -> None:
        """Offset, drift and steps, as they are estimated; the offset by this host's clock now."""
        outcome = outcome_of(MILLISECOND)
        stamped(outcome, (0, 1), *((3600 * SECOND + i * 20_000, 1) for i in range(50)))
        outcome.stepped = SECOND
        drift, offset = outcome.clock.drift, outcome.clock.offset
        assert drift is not None and offset is not None
        (step,) = outcome.clock.steps
        record = json.loads(summary_record(outcome, "host:1"))
        self.assertEqual(record["drift"], {"rate": drift.rate, "bound": drift.bound})
        self.assertEqual(record["steps"], [{"by": step.nanoseconds, "bound": step.bound}])
        self.assertLess(abs(step.nanoseconds - 3600 * SECOND), 200_000)
        self.assertEqual(
            record["offset"],
            {
                "by": offset.nanoseconds - SECOND,
                "bound": offset.bound,
                "zone": 0,
                "formula": "rate",
            },
        )
