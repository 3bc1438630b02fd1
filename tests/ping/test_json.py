"""Tests for `timestamp_echo.ping.json`: every member, and the schema."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import (
    MILLISECOND,
    SCHEMA,
    STAMP,
    add_stamps,
    answered,
    lost,
    stats_of,
    validated,
)
from timestamp_echo.ping.json import (
    format_event,
    format_fleet,
    format_probe,
    format_summary,
    format_unreachable,
)
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.stats import Host, Phases, Stats
from timestamp_echo.stamps import SECOND

NAME = "host:1"

NONE: dict[str, Any] = {
    "type": "summary",
    "server": NAME,
    "duration_s": 0.0,
    "sent": 0,
    "received": 0,
    "lost": 0,
    "in_flight": 0,
    "late_replies": 0,
    "duplicates": 0,
    "reordered": 0,
    "altered": 0,
    "unstamped": 0,
    "sent_late": 0,
    "reconnects": 0,
    "rtt_ns": None,
    "rtt_from_due_ns": None,
    "own_delay_ns": None,
    "drift": None,
    "steps": [],
    "own_clock_step_ns": 0,
    "offset": None,
}
"""The summary before the first probe."""


class LineTestCase(SynchronousTestCase):
    """Assertions about lines of output."""

    def assert_line(self, line: str, expected: dict[str, Any]) -> None:
        """The line is this object, in ASCII."""
        self.assertTrue(line.endswith("\n"))
        self.assertEqual(len(line.splitlines()), 1)
        self.assertTrue(line.isascii())
        self.assertEqual(validated(line), expected)


class ProbeTests(LineTestCase):
    """`format_probe`."""

    def test_answered(self) -> None:
        """When it was sent, how late; its round trip, stamp, and the offset so far."""
        stats = stats_of(MILLISECOND)
        add_stamps(stats, (5 * MILLISECOND, 1), rtt=MILLISECOND)
        probe = answered(3, late=20)
        expected = {
            "type": "probe",
            "server": NAME,
            "seq": 3,
            "sent_ns": 123,
            "late_ns": 20,
            "rtt_ns": MILLISECOND,
            "own_delay_ns": 2000,
            "stamp": STAMP,
            "altered": False,
            "offset": {"offset_ns": 5_000_050, "bound_ns": 500_051, "zone_s": 0, "formula": "rate"},
        }
        self.assert_line(format_probe(probe, 123, stats, NAME), expected)

    def test_no_clock(self) -> None:
        """Without a stamp its text is empty, and the offset is null."""
        probe = answered(3)
        probe.reply = Reply(3, "", True)
        expected = {
            "type": "probe",
            "server": NAME,
            "seq": 3,
            "sent_ns": 123,
            "late_ns": 0,
            "rtt_ns": MILLISECOND,
            "own_delay_ns": 2000,
            "stamp": "",
            "altered": True,
            "offset": None,
        }
        self.assert_line(format_probe(probe, 123, stats_of(MILLISECOND), NAME), expected)

    def test_zone(self) -> None:
        """The zone of a stamp that names none is in seconds; null if it is unknown."""
        for ahead, zone in ((28800, 28800), (450, None)):
            stats = stats_of(MILLISECOND)
            add_stamps(stats, (ahead * SECOND, SECOND), rtt=MILLISECOND, zone=False)
            record = validated(format_probe(answered(1), 123, stats, NAME))
            self.assertEqual(record["offset"]["zone_s"], zone)

    def test_lost(self) -> None:
        """A lost probe has the reason, and nothing about a reply."""
        expected = {
            "type": "probe",
            "server": NAME,
            "seq": 4,
            "sent_ns": 5,
            "late_ns": 0,
            "lost": "no reply within 1 s",
        }
        self.assert_line(format_probe(lost(4), 5, stats_of(lost=1), NAME), expected)


class EventTests(LineTestCase):
    """`format_event`."""

    def test_message(self) -> None:
        """Any message is one line."""
        for message in ("reconnected", "±\n\0\u2028", ""):
            expected = {"type": "event", "server": NAME, "message": message}
            self.assert_line(format_event(message, NAME), expected)


class SummaryTests(LineTestCase):
    """`format_summary`."""

    def test_none(self) -> None:
        """All keys are present from the start; unknown values are null."""
        self.assert_line(format_summary(Stats(), NAME), NONE)

    def test_counts(self) -> None:
        """Each count is under its own name."""
        stats = Stats(
            sent=20,
            lost=7,
            late_replies=9,
            duplicates=1,
            reordered=2,
            altered=3,
            unstamped=4,
            sent_late=5,
            reconnects=6,
            own_clock_step=-10,
            duration=8.5,
        )
        expected = NONE | {
            "sent": 20,
            "lost": 7,
            "in_flight": 13,
            "late_replies": 9,
            "duplicates": 1,
            "reordered": 2,
            "altered": 3,
            "unstamped": 4,
            "sent_late": 5,
            "reconnects": 6,
            "own_clock_step_ns": -10,
            "duration_s": 8.5,
        }
        self.assert_line(format_summary(stats, NAME), expected)

    def test_figures(self) -> None:
        """Statistics of each kind of time."""
        stats = Stats(sent=2)
        for rtt in (1000, 3000):
            stats.rtt.add(rtt)
            stats.rtt_from_due.add(2 * rtt)
        stats.own_delay.add(5)
        record = validated(format_summary(stats, NAME))
        names = ["min", "mean", "max", "mdev", "p50", "p90", "p99", "jitter"]
        for key, values in (
            ("rtt_ns", [1000, 2000, 3000, 1000, 1000, 3000, 3000, 125]),
            ("rtt_from_due_ns", [2000, 4000, 6000, 2000, 2000, 6000, 6000, 250]),
            ("own_delay_ns", [5, 5, 5, 0, 5, 5, 5, 0]),
        ):
            self.assertEqual(record[key], dict(zip(names, values, strict=True)))
        self.assertEqual(record["received"], 2)

    def test_clock(self) -> None:
        """Offset, drift and steps; the offset is relative to this host's clock as it is now."""
        stats = stats_of(MILLISECOND)
        add_stamps(stats, (0, 1), *((3600 * SECOND + i * 20_000, 1) for i in range(50)))
        stats.own_clock_step = SECOND
        drift, offset = stats.clock.drift, stats.clock.offset
        assert drift is not None and offset is not None
        (step,) = stats.clock.steps
        record = validated(format_summary(stats, NAME))
        self.assertEqual(record["drift"], {"rate_ppb": drift.rate, "bound_ppb": drift.bound})
        self.assertEqual(record["steps"], [{"offset_ns": step.nanoseconds, "bound_ns": step.bound}])
        self.assertLess(abs(step.nanoseconds - 3600 * SECOND), 200_000)
        self.assertEqual(
            record["offset"],
            {
                "offset_ns": offset.nanoseconds - SECOND,
                "bound_ns": offset.bound,
                "zone_s": 0,
                "formula": "rate",
            },
        )


class PhasesTests(LineTestCase):
    """Probes that have a connection each."""

    def test_answered(self) -> None:
        """How long each phase took, with that of the reply."""
        probe = answered(3, rtt=4 * MILLISECOND)
        probe.phases = Phases({"lookup": MILLISECOND, "tls": MILLISECOND}, "reply")
        record = validated(format_probe(probe, 0, stats_of(MILLISECOND), NAME))
        self.assertEqual(
            record["phases_ns"],
            {"lookup": MILLISECOND, "tls": MILLISECOND, "reply": 2 * MILLISECOND},
        )

    def test_lost(self) -> None:
        """The phases that are over, and the one in which it was lost."""
        probe = lost(3)
        probe.phases = Phases({"lookup": 7}, "connect")
        record = validated(format_probe(probe, 0, Stats(), NAME))
        self.assertEqual((record["phases_ns"], record["lost_in"]), ({"lookup": 7}, "connect"))

    def test_summary(self) -> None:
        """Statistics of each phase."""
        stats = stats_of(MILLISECOND)
        stats.phases["tls"] = stats.rtt
        record = validated(format_summary(stats, NAME))
        self.assertEqual(record["phases_ns"], {"tls": record["rtt_ns"]})


class FleetTests(SynchronousTestCase):
    """`format_unreachable` and `format_fleet`."""

    def test_unreachable(self) -> None:
        """A server that could not be reached, and why."""
        self.assertEqual(
            validated(format_unreachable(Host("a", Stats(), "name not found"))),
            {"type": "unreachable", "server": "a", "reason": "name not found"},
        )

    def test_fleet(self) -> None:
        """The possible offsets at one moment, which may agree, and whose exceed the limit."""
        hosts = [Host(name, stats_of(MILLISECOND)) for name in ("a", "b", "c", "d")]
        for host, ahead in zip(hosts, (0, SECOND, MILLISECOND), strict=False):
            add_stamps(host.stats, (ahead, 1), rtt=MILLISECOND, zone=ahead != SECOND)
        record = validated(format_fleet(hosts, MILLISECOND))
        self.assertEqual(
            [(clock["server"], clock["zoned"]) for clock in record["clocks"]],
            [("a", True), ("b", False), ("c", True)],
        )
        for clock, ahead in zip(record["clocks"], (0, SECOND, MILLISECOND), strict=True):
            self.assertTrue(clock["low_ns"] < ahead < clock["high_ns"])
        self.assertEqual(record["may_agree"], [["a", "c"], ["b"]])
        self.assertEqual(record["max_offset"]["limit_ns"], MILLISECOND)
        self.assertEqual(
            [(one["server"], one["verdict"]) for one in record["max_offset"]["verdicts"]],
            [("a", "within"), ("b", "exceeded"), ("c", "can't tell"), ("d", "can't tell")],
        )
        self.assertIsNone(validated(format_fleet(hosts, None))["max_offset"])


class SchemaTests(SynchronousTestCase):
    """`schema.json`."""

    def test_valid(self) -> None:
        """It is a JSON Schema, which says what may change."""
        parsed = SCHEMA
        Draft202012Validator.check_schema(parsed)
        self.assertIn(
            "Within a major version of tsecho no member is removed", parsed["description"]
        )

    def test_described(self) -> None:
        """Every member has a description, but for those that other text describes."""
        for name, kind in SCHEMA["$defs"].items():
            self.assertIn("description", kind, name)
            for member, value in kind.get("properties", {}).items():
                self.assertTrue({"description", "enum", "$ref"} & value.keys(), member)

    def test_missing_and_unknown(self) -> None:
        """Members may be added, as the description says, but none may be missing."""
        validator = Draft202012Validator(SCHEMA)
        self.assertTrue(validator.is_valid(NONE | {"added_ns": 1}))
        self.assertRaises(ValidationError, validated, json.dumps(NONE | {"added_ns": 1}))
        for member in NONE:
            less = {name: value for name, value in NONE.items() if name != member}
            self.assertFalse(validator.is_valid(less), member)
        self.assertFalse(validator.is_valid(NONE | {"sent": "1"}))
