"""What `tsecho ping --json` writes: one object a line, for each probe and in the end.

The schema stands in the README. All times but `seconds` are whole nanoseconds. Knows no connection.
"""

from __future__ import annotations

import json
from typing import Any

from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.ping.stats import Outcome, Probe


def probe_record(probe: Probe, sent: int, outcome: Outcome) -> str:
    """One probe, answered or lost.

    @param sent: when it left, by this host's clock.
    """
    record: dict[str, Any] = {
        "type": "probe",
        "seq": probe.number,
        "sent": sent,
        "late": probe.sent - probe.due,
    }
    if probe.reply is None:
        return _line(record | {"lost": probe.lost})
    return _line(
        record
        | {
            "rtt": probe.round_trip,
            "own_delay": probe.delay,
            "stamp": probe.reply.stamp,
            "altered": probe.reply.altered,
        }
        | _offset(outcome)
    )


def event_record(words: str) -> str:
    """Something else that came to pass."""
    return _line({"type": "event", "words": words})


def summary_record(outcome: Outcome, name: str, kind: str = "summary") -> str:
    """All that was found: in the end, or until now.

    @param kind: the record's type.
    """
    drift = outcome.clock.drift
    return _line(
        {
            "type": kind,
            "server": name,
            "seconds": outcome.seconds,
            "sent": outcome.sent,
            "received": outcome.received,
            "lost": outcome.lost,
            "under_way": outcome.under_way,
            "late_replies": outcome.late,
            "duplicates": outcome.duplicates,
            "reordered": outcome.reordered,
            "altered": outcome.altered,
            "unstamped": outcome.unstamped,
            "left_late": outcome.left_late,
            "reconnects": outcome.reconnects,
            "rtt": _figures(outcome.trips),
            "rtt_from_due": _figures(outcome.from_due),
            "own_delay": _figures(outcome.delays),
            "drift": drift and {"rate": drift.rate, "bound": drift.bound},
            "steps": [{"by": s.nanoseconds, "bound": s.bound} for s in outcome.clock.steps],
            "own_clock_set_by": outcome.stepped,
        }
        | _offset(outcome)
    )


def _offset(outcome: Outcome) -> dict[str, Any]:
    offset = outcome.offset
    if offset is None:
        return {"offset": None}
    words = {"by": offset.nanoseconds, "bound": offset.bound, "zone": offset.zone}
    return {"offset": words | {"formula": offset.formula}}


def _figures(trips: RoundTrips) -> dict[str, int] | None:
    figures = trips.figures
    return figures and figures._asdict()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
