"""The output of `tsecho ping --prometheus`: Prometheus's text format, for a textfile collector.

All values are of this run alone, so they are gauges: a counter would go on from one run to the
next. Units are base units, and a part of the name, as Prometheus wants them. Knows no connection.

See https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.ping.stats import Host, Stats
from timestamp_echo.stamps import SECOND

_Value = Callable[[Stats], float | None]


def format_metrics(hosts: Sequence[Host]) -> str:
    """Format the results of several servers; what is not known is left out."""
    lines = []
    for name, words, value in _METRICS:
        lines += [f"# HELP tsecho_ping_{name} {words}", f"# TYPE tsecho_ping_{name} gauge"]
        for host in hosts:
            number = value(host.stats)
            if number is not None:
                lines.append(f'tsecho_ping_{name}{{server="{_escaped(host.name)}"}} {number!r}')
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _offset(stats: Stats) -> float | None:
    offset = stats.offset
    return offset and offset.nanoseconds / SECOND


def _bound(stats: Stats) -> float | None:
    offset = stats.offset
    return offset and offset.bound / SECOND


def _drift(stats: Stats) -> float | None:
    drift = stats.clock.drift
    return drift and drift.rate / SECOND


def _rtt(value: Callable[[RoundTrips], int]) -> _Value:
    return lambda stats: value(stats.rtt) / SECOND if stats.received else None


_METRICS: tuple[tuple[str, str, _Value], ...] = (
    ("up", "Whether the server answered any probe.", lambda stats: int(stats.received > 0)),
    ("probes_sent", "Probes sent in this run.", lambda stats: stats.sent),
    ("probes_lost", "Probes lost in this run.", lambda stats: stats.lost),
    ("rtt_min_seconds", "Shortest round trip.", _rtt(lambda rtt: rtt.min)),
    ("rtt_avg_seconds", "Mean round trip.", _rtt(lambda rtt: rtt.mean)),
    ("rtt_max_seconds", "Longest round trip.", _rtt(lambda rtt: rtt.max)),
    ("offset_seconds", "How far the server's clock is ahead of this host's.", _offset),
    ("offset_bound_seconds", "Maximum error of the offset.", _bound),
    ("drift_ratio", "Rate of the server's clock relative to this host's, less 1.", _drift),
)
