"""The text that `tsecho ping` writes for people: a line for each probe, and a summary at the end.

Numbers in, text out. Knows no connection and no terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from operator import attrgetter
from textwrap import wrap

from timestamp_echo.ping.estimate import Drift, Offset
from timestamp_echo.ping.roundtrips import Figures
from timestamp_echo.ping.stats import PHASES, Probe, Stats
from timestamp_echo.stamps import SECOND

WIDTH = 79
"""Columns of a line, unless a server's name takes too many: those of a terminal, less one."""

_BINS = 10
_MIN_FOR_HISTOGRAM = 10  # round trips; fewer are no distribution
_BAR_WIDTH = 40  # characters of the longest bar
_MILLI = SECOND // 1000
_PHASE_FIGURES = attrgetter("min", "mean", "max", "p50", "p90", "p99")


def format_ms(*values: int) -> str:
    """Format nanoseconds as milliseconds, separated by slashes."""
    return "/".join(f"{value / _MILLI:.3f}" for value in values) + " ms"


def format_offset(nanoseconds: int, bound: int) -> str:
    """Format an offset between two clocks, to three digits of its bound, or to the microsecond.

    While it may be zero, it is a range: people take the number in front of ± for the offset.
    """
    unit = 10 ** max(3, len(str(bound)) - 3)  # a microsecond, or about a hundredth of the bound
    if abs(nanoseconds) <= bound:
        numbers = (nanoseconds - bound) // unit, -(-(nanoseconds + bound) // unit)
        template = "{:+.{digits}f} to {:+.{digits}f} {symbol}"
    else:
        numbers = _rounded(nanoseconds, bound, unit)
        template = "{:+.{digits}f} ± {:.{digits}f} {symbol}"
    small = max(map(abs, numbers)) * unit < SECOND
    scale, symbol = (_MILLI, "ms") if small else (SECOND, "s")
    digits = max(0, len(str(scale)) - len(str(unit)))
    one, other = (number * unit / scale for number in numbers)
    return template.format(one, other, digits=digits, symbol=symbol)


def answered(probe: Probe, name: str, offset: Offset | None) -> str:
    """The line for a probe that was answered."""
    parts = [f"{name}: seq={probe.number}", f"time={format_ms(probe.rtt)}"]
    durations = probe.durations
    if durations:
        phases = " + ".join(f"{phase} {value / _MILLI:.3f}" for phase, value in durations.items())
        parts.append(f"= {phases}")
    if probe.late:
        parts.append(f"late={format_ms(probe.sent - probe.due)}")
    if probe.reply is not None and probe.reply.moment and offset and not durations:
        parts.append(f"clock={format_offset(offset.nanoseconds, offset.bound)}")
    if probe.reply is not None and probe.reply.altered:
        parts.append("(message altered)")
    return _filled(parts)


def folded(line: str, indent: str = "") -> list[str]:
    """Wrap a line at its spaces; the lines that follow the first are indented further."""
    return wrap(
        line,
        WIDTH,
        initial_indent=indent,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _filled(parts: Iterable[str]) -> str:
    """Join parts like `folded`, without dividing any part."""
    first, *rest = parts
    lines = [first]
    for part in rest:
        if len(lines[-1]) + 1 + len(part) > WIDTH:
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines)


def lost(probe: Probe) -> str:
    """The line for a lost probe."""
    phase = f" in {PHASES[probe.phases.current]}" if probe.phases else ""
    return f"seq={probe.number} lost{phase}: {probe.lost}"


def progress(stats: Stats) -> str:
    """The progress in one line, without statistics that are expensive to compute."""
    parts = [_counts(stats)]
    if stats.received:
        parts.append(f"rtt avg {format_ms(stats.rtt.mean)}")
    if offset := stats.offset:
        parts.append(f"clock {format_offset(offset.nanoseconds, offset.bound)}")
    return ", ".join(parts)


def summary(stats: Stats, name: str) -> str:
    """All results, in a few lines."""
    lines = [f"--- {name} tsecho ping ---"]
    lines.append(f"{_counts(stats)}, time {stats.duration:.1f} s")
    lines += _anomalies(stats)
    if figures := stats.rtt.figures:
        lines += _round_trips(stats, figures)
    lines += _clock(stats)
    return "\n".join(lines) + "\n"


def format_loss(stats: Stats) -> str:
    """Format the share of probes that were lost, of those whose result is known."""
    known = stats.received + stats.lost
    share = 100 * stats.lost / known if known else 0
    if 0 < stats.lost < known:
        share = min(max(share, 0.01), 99.99)  # not rounded to none or all
    return f"{share:.4g} %"


def _counts(stats: Stats) -> str:
    counts = f"{stats.sent} sent, {stats.received} received, {format_loss(stats)} loss"
    return counts + (f", {stats.in_flight} in flight" if stats.in_flight else "")


def _anomalies(stats: Stats) -> list[str]:
    counts = [
        ("late replies", stats.late_replies),
        ("duplicates", stats.duplicates),
        ("reordered replies", stats.reordered),
        ("altered messages", stats.altered),
        ("reconnects", stats.reconnects),
    ]
    return [f"{label}: {count}" for label, count in counts if count]


def _round_trips(stats: Stats, figures: Figures) -> list[str]:
    percentiles, jitter = format_ms(*figures[4:7]), format_ms(figures.jitter)
    lines = [
        f"rtt min/avg/max/mdev = {format_ms(*figures[:4])}",
        f"rtt p50/p90/p99 = {percentiles}, jitter {jitter} (RFC 3550)",
    ]
    if stats.sent_late and (due := stats.rtt_from_due.figures):
        percentiles = format_ms(due.p50, due.p90, due.p99)
        lines.append(f"{stats.sent_late} sent late; rtt from due time p50/p90/p99 = {percentiles}")
    if (delays := stats.own_delay.figures) and delays.max:
        own = format_ms(delays.mean, delays.max)
        lines.append(f"own delay in reading replies (not in rtt) avg/max = {own}")
    lines += _phases(stats)
    return lines + (_histogram(stats) if stats.received >= _MIN_FOR_HISTOGRAM else [])


def _phases(stats: Stats) -> list[str]:
    found = [(PHASES[name], times.figures) for name, times in stats.phases.items()]
    rows = [
        (name, *(f"{value / _MILLI:.3f}" for value in _PHASE_FIGURES(figures)))
        for name, figures in found
        if figures
    ]
    header = ("phase, in ms", "min", "avg", "max", "p50", "p90", "p99")
    return [
        f"{name:{len(header[0])}}" + "".join(f" {value:>9}" for value in values)
        for name, *values in ([header, *rows] if rows else [])
    ]


def _histogram(stats: Stats) -> list[str]:
    start, bin_width, counts, beyond = stats.rtt.histogram(_BINS)
    edges = [start + bin_width * index for index in range(len(counts) + 1)]
    digits = len(f"{edges[-1] / _MILLI:.3f}")
    texts = [f"{edge / _MILLI:{digits}.3f}" for edge in edges]
    rows = list(zip((f"{low} - {high}" for low, high in pairwise(texts)), counts, strict=True))
    if beyond:
        rows.append((f"{'over':>{digits + 2}} {texts[-1]}", beyond))
    highest = max(count for _, count in rows)
    return [
        f"  {span} ms |{'#' * -(-count * _BAR_WIDTH // highest):{_BAR_WIDTH}}| {count}"
        for span, count in rows
    ]


def _clock(stats: Stats) -> list[str]:
    offset = stats.offset
    if offset is None:
        return ["clock: unknown, the replies have no known stamp"] if stats.unstamped else []
    line = f"clock offset: {format_offset(offset.nanoseconds, offset.bound)}, {_sign(offset)}"
    lines = [line + (_zone(offset) if stats.zoneless else "")]
    if drift := stats.clock.drift:
        lines.append(f"drift: {format_rate(drift)}")
    lines += [
        f"server's clock was set by {format_offset(step.nanoseconds, step.bound)}"
        for step in stats.clock.steps
    ]
    if stats.own_clock_step:
        lines.append(f"this host's clock was set by {stats.own_clock_step / SECOND:+.6f} s")
    return lines


def _sign(offset: Offset) -> str:
    if abs(offset.nanoseconds) <= offset.bound:
        return "no difference shown"
    return "server ahead" if offset.nanoseconds > 0 else "server behind"


def _zone(offset: Offset) -> str:
    """What was assumed about stamps that name no zone."""
    if offset.beyond_zones:
        return "\nno time zone is that far from UTC: one of the two clocks is wrong"
    if offset.zone is None:
        return "; time zone unknown, included"
    return f"; time zone {format_zone(offset.zone)}"


def format_zone(zone: int) -> str:
    """Format a time zone, given in seconds east of UTC."""
    hours, minutes = divmod(abs(zone) // 60, 60)
    return f"UTC{'-' if zone < 0 else '+'}{hours:02}:{minutes:02}"


def format_rate(drift: Drift) -> str:
    """Format the rate of a clock relative to another, with its bound."""
    rate, bound = _rounded(drift.rate, drift.bound, 100)  # nanoseconds a second: 0.1 ppm
    return f"{rate / 10:+.1f} ± {bound / 10:.1f} ppm"


def _rounded(value: int, bound: int, unit: int) -> tuple[int, int]:
    """Round a value, and its bound up by as much, so that it still covers the same interval.

    @return: both in whole units.
    """
    middle = (2 * value + unit) // (2 * unit)
    return middle, -(-(bound + abs(value - middle * unit)) // unit)
