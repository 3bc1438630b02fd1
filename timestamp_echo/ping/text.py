"""What `tsecho ping` says to a person: a line a probe, and in the end a summary.

Numbers in, text out. Knows no connection and no terminal.
"""

from __future__ import annotations

from timestamp_echo.ping.estimate import Drift, Offset
from timestamp_echo.ping.roundtrips import Figures
from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.stamps import SECOND

_BARS = 10
_ENOUGH = 10  # round trips, for a histogram to show more than their list
_WIDTH = 40  # characters of the longest bar
_MILLI = SECOND // 1000
_MICRO = SECOND // 10**6


def milliseconds(*values: int) -> str:
    """Nanoseconds as milliseconds, with slashes between."""
    return "/".join(f"{value / _MILLI:.3f}" for value in values) + " ms"


def apart(nanoseconds: int, bound: int) -> str:
    """How far one clock is ahead of the other, with the bound of the error: in microseconds."""
    middle, most = _rounded(nanoseconds, bound, _MICRO)
    if abs(middle) < 10**6 and most < 10**6:
        return f"{middle / 1000:+.3f} ms ± {most / 1000:.3f} ms"
    return f"{middle / 10**6:+.6f} s ± {most / 10**6:.6f} s"


def answered(probe: Probe, name: str, size: int, offset: Offset | None) -> str:
    """The line for a probe that was answered."""
    words = [f"{size} bytes from {name}: seq={probe.number}"]
    words.append(f"time={milliseconds(probe.round_trip)}")
    if probe.late:
        words.append(f"({milliseconds(probe.from_due)} from when it was due)")
    if probe.reply is not None and probe.reply.altered:
        words.append("(the message came back altered)")
    if probe.reply is not None and probe.reply.moment and offset:
        words.append(f"clock={apart(offset.nanoseconds, offset.bound)}")
    return " ".join(words)


def lost(probe: Probe) -> str:
    """The line for a probe that was not."""
    return f"seq={probe.number} lost: {probe.lost}"


def progress(outcome: Outcome) -> str:
    """How it stands, in one line: with the last clock, and without what takes long to reckon."""
    words = [_counts(outcome)]
    if outcome.received:
        trips = outcome.trips
        words.append(f"rtt min/avg/max {milliseconds(trips.least, trips.mean, trips.most)}")
    if offset := outcome.offset:
        words.append(f"clock {apart(offset.nanoseconds, offset.bound)}")
    return ", ".join(words)


def summary(outcome: Outcome, name: str) -> str:
    """All that was found, in a few lines."""
    lines = [f"--- {name} tsecho ping ---"]
    lines.append(f"{_counts(outcome)}, time {outcome.seconds:.1f} s")
    lines += _oddities(outcome)
    if figures := outcome.trips.figures:
        lines += _round_trips(outcome, figures)
    lines += _clock(outcome)
    return "\n".join(lines) + "\n"


def _counts(outcome: Outcome) -> str:
    known = outcome.received + outcome.lost
    share = 100 * outcome.lost / known if known else 0
    if 0 < outcome.lost < known:
        share = min(max(share, 0.01), 99.99)  # neither none nor all, however many there are
    words = f"{outcome.sent} sent, {outcome.received} received, {share:.4g} % loss"
    return words + (f", {outcome.under_way} under way" if outcome.under_way else "")


def _oddities(outcome: Outcome) -> list[str]:
    counts = [
        ("replies after their timeout", outcome.late),
        ("duplicates", outcome.duplicates),
        ("replies out of order", outcome.reordered),
        ("messages that came back altered", outcome.altered),
        ("connected again", outcome.reconnects),
    ]
    return [f"{words}: {count}" for words, count in counts if count]


def _round_trips(outcome: Outcome, figures: Figures) -> list[str]:
    percentiles, jitter = milliseconds(*figures[4:7]), milliseconds(figures.jitter)
    lines = [
        f"rtt min/avg/max/mdev = {milliseconds(*figures[:4])}",
        f"rtt p50/p90/p99 = {percentiles}, jitter {jitter} (RFC 3550)",
    ]
    if outcome.left_late and (due := outcome.from_due.figures):
        trips = milliseconds(due.p50, due.p90, due.p99)
        lines.append(f"{outcome.left_late} left late; from when due: p50/p90/p99 = {trips}")
    if (delays := outcome.delays.figures) and delays.most:
        own = milliseconds(delays.mean, delays.most)
        lines.append(f"own delay in reading replies, not counted: avg/max = {own}")
    return lines + (_histogram(outcome) if outcome.received >= _ENOUGH else [])


def _histogram(outcome: Outcome) -> list[str]:
    steps = outcome.trips.histogram(_BARS)
    longest = max(count for _, _, count in steps)
    width = len(f"{steps[-1][1] / _MILLI:.3f}")
    lines = []
    for start, end, count in steps:
        span = f"{start / _MILLI:{width}.3f} - {end / _MILLI:{width}.3f} ms"
        bar = "#" * -(-count * _WIDTH // longest)
        lines.append(f"  {span} |{bar:{_WIDTH}}| {count}")
    return lines


def _clock(outcome: Outcome) -> list[str]:
    offset = outcome.offset
    if offset is None:
        return ["clock: the replies have no stamp that is known"] if outcome.unstamped else []
    words = f"clock offset = {apart(offset.nanoseconds, offset.bound)} ({_side(offset)})"
    lines = [words + (_zone(offset.zone) if outcome.zoneless else "")]
    if drift := outcome.clock.drift:
        lines.append(f"drift: {_rate(drift)}")
    lines += [
        f"the server's clock was set by {apart(step.nanoseconds, step.bound)}"
        for step in outcome.clock.steps
    ]
    if outcome.stepped:
        lines.append(f"this host's clock was set by {outcome.stepped / SECOND:+.6f} s")
    return lines


def _side(offset: Offset) -> str:
    if abs(offset.nanoseconds) <= offset.bound:
        return "no difference is shown"
    return "the server is ahead" if offset.nanoseconds > 0 else "the server is behind"


def _zone(zone: int | None) -> str:
    """What was made of stamps that do not name their zone."""
    if zone is None:
        return "; its zone can't be told yet and is in that"
    hours, minutes = divmod(abs(zone) // 60, 60)
    return f"; its stamps are in UTC{'-' if zone < 0 else '+'}{hours:02}:{minutes:02}"


def _rate(drift: Drift) -> str:
    rate, bound = _rounded(drift.rate, drift.bound, 100)  # tenths of a millionth
    return f"{rate / 10:+.1f} ppm ± {bound / 10:.1f} ppm"


def _rounded(value: int, bound: int, step: int) -> tuple[int, int]:
    """Both in whole steps, so that what was within the bound still is."""
    middle = (2 * value + step) // (2 * step)
    return middle, -(-(bound + abs(value - middle * step)) // step)
