"""The output of `tsecho ping --json`: one JSON object per line, for each probe and at the end.

`schema.json` describes them. A name ends with its unit; `ppb` is parts per billion, which is
nanoseconds per second. Knows no connection.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from timestamp_echo.ping.compare import clock_verdict, groups, known_clocks
from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.ping.stats import Host, Probe, Stats

Object = dict[str, object]


def format_probe(probe: Probe, sent: int, stats: Stats, name: str) -> str:
    """Format one probe, answered or lost.

    @param sent: when it was sent, by this host's clock, in nanoseconds since the epoch.
    @param name: the server.
    """
    record: Object = {
        "type": "probe",
        "server": name,
        "seq": probe.number,
        "sent_ns": sent,
        "late_ns": probe.sent - probe.due,
    }
    if probe.phases:
        record["phases_ns"] = probe.durations
    if probe.reply is None:
        if probe.phases:
            record["lost_in"] = probe.phases.current
        return _line(record | {"lost": probe.lost})
    return _line(
        record
        | {
            "rtt_ns": probe.rtt,
            "own_delay_ns": probe.own_delay,
            "stamp": probe.reply.stamp,
            "altered": probe.reply.altered,
            "offset": _offset(stats),
        }
    )


def format_event(message: str, name: str) -> str:
    """Format an event.

    @param name: the server.
    """
    return _line({"type": "event", "server": name, "message": message})


def format_summary(stats: Stats, name: str, kind: str = "summary") -> str:
    """Format all results until now.

    @param name: the server.
    @param kind: the object's type.
    """
    drift = stats.clock.drift
    phases = {phase: _figures(times) for phase, times in stats.phases.items()}
    return _line(
        {
            "type": kind,
            "server": name,
            "duration_s": stats.duration,
            "sent": stats.sent,
            "received": stats.received,
            "lost": stats.lost,
            "in_flight": stats.in_flight,
            "late_replies": stats.late_replies,
            "duplicates": stats.duplicates,
            "reordered": stats.reordered,
            "altered": stats.altered,
            "unstamped": stats.unstamped,
            "sent_late": stats.sent_late,
            "reconnects": stats.reconnects,
            "rtt_ns": _figures(stats.rtt),
            "rtt_from_due_ns": _figures(stats.rtt_from_due),
            "own_delay_ns": _figures(stats.own_delay),
            **({"phases_ns": phases} if phases else {}),
            "drift": drift and {"rate_ppb": drift.rate, "bound_ppb": drift.bound},
            "steps": [
                {"offset_ns": step.nanoseconds, "bound_ns": step.bound}
                for step in stats.clock.steps
            ],
            "own_clock_step_ns": stats.own_clock_step,
            "offset": _offset(stats),
        }
    )


def format_unreachable(host: Host) -> str:
    """Format a server that could not be reached."""
    return _line({"type": "unreachable", "server": host.name, "reason": host.error})


def format_fleet(hosts: Sequence[Host], limit: int | None) -> str:
    """Format the comparison of several servers' clocks.

    @param limit: the largest offset allowed, in nanoseconds, if there is one.
    """
    clocks = known_clocks(hosts)
    names = list(clocks)
    return _line(
        {
            "type": "fleet",
            "clocks": [
                {"server": name, "low_ns": low, "high_ns": high, "zoned": zoned}
                for name, (low, high, zoned) in clocks.items()
            ],
            "may_agree": [
                [names[index] for index in group] for group in groups(list(clocks.values()))
            ],
            "max_offset": limit
            and {
                "limit_ns": limit,
                "verdicts": [
                    {"server": host.name, "verdict": clock_verdict(host, limit)} for host in hosts
                ],
            },
        }
    )


def _offset(stats: Stats) -> Object | None:
    offset = stats.offset
    return offset and {
        "offset_ns": offset.nanoseconds,
        "bound_ns": offset.bound,
        "zone_s": offset.zone,
        "formula": offset.formula,
    }


def _figures(times: RoundTrips) -> Object | None:
    figures = times.figures
    return figures and figures._asdict()


def _line(record: Object) -> str:
    return json.dumps(record) + "\n"
