"""The text about several servers: a table with a line for each, and which clocks differ.

Numbers in, text out. Knows no connection and no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from timestamp_echo.ping.compare import Verdict, clock_verdict, groups, known_clocks
from timestamp_echo.ping.stats import Host, Stats
from timestamp_echo.ping.text import (
    WIDTH,
    folded,
    format_loss,
    format_ms,
    format_offset,
    format_rate,
    format_zone,
)

_HEADER = ("server", "loss", "rtt avg", "clock", "zone", "drift")
_NUMBERS = (0, 1)  # columns, after the name, that are aligned at the right and always shown
_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("exceeded", "offset provably over"),
    ("can't tell", "can't tell whether the offset is over"),
    ("within", "offset within"),
)


def table(hosts: Sequence[Host], longest: int | None = None) -> list[str]:
    """A line for each server, in columns, under a header.

    @param longest: names are cut at the front to this many characters. If it is None, a name that
        leaves too little room for the rest has a line of its own, as in df(1).
    """
    names = [_HEADER[0], *(_end(host.name, longest) for host in hosts)]
    rows = [_HEADER[1:], *map(_row, hosts)]
    figures = _aligned(rows)
    width = max(map(len, names))
    if longest is not None:
        return [f"{name:{width}}  {line}" for name, line in zip(names, figures, strict=True)]
    room = WIDTH - 2 - max(len(line) for line, row in zip(figures, rows, strict=True) if row[1:])
    width = min(width, max(room, len(_HEADER[0])))
    lines = []
    for name, line, row in zip(names, figures, rows, strict=True):
        if row[1:] and len(name) > width:
            lines += [name, f"{'':{width}}  {line}"]
        else:
            lines += folded(f"{name:{width}}  {line}")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The cells of each row in columns; without columns that have no entries."""
    # A row of one cell is a reason, which is longer than a column.
    columns = list(zip_longest(*(row for row in rows if row[1:]), fillvalue=""))
    widths = [max(map(len, column)) for column in columns]
    shown = [index for index, column in enumerate(columns) if any(column[1:]) or index in _NUMBERS]
    return [
        "  ".join(f"{row[i]:{'>' if i in _NUMBERS else '<'}{widths[i]}}" for i in shown).rstrip()
        if row[1:]
        else row[0]
        for row in rows
    ]


def _end(name: str, longest: int | None) -> str:
    return name if longest is None or len(name) <= longest else "…" + name[1 - longest :]


def _row(host: Host) -> tuple[str, ...]:
    stats = host.stats
    if host.error:
        return (host.error,)
    loss = format_loss(stats) if stats.received + stats.lost else "-"
    rtt = format_ms(stats.rtt.mean) if stats.received else "-"
    drift = stats.clock.drift
    return loss, rtt, *_clock(stats), format_rate(drift) if drift else ""


def _clock(stats: Stats) -> tuple[str, str]:
    offset = stats.offset
    if offset is None:
        return "no known stamp" if stats.unstamped else "", ""
    clock = format_offset(offset.nanoseconds, offset.bound)
    if not stats.zoneless:
        return clock, ""
    return clock, "?" if offset.zone is None else format_zone(offset.zone).removeprefix("UTC")


def comparison(hosts: Sequence[Host]) -> list[str]:
    """Which clocks provably differ, and which may agree."""
    clocks = known_clocks(hosts)
    if len(clocks) < 2:
        return []
    names, found = list(clocks), groups(list(clocks.values()))
    if len(found) == 1:
        lines = [f"{_all(len(names))} may agree"]
    elif len(found) == len(names) == sum(map(len, found)):
        lines = [f"{_all(len(names))} provably differ from each other"]
    else:
        lines = ["groups of clocks that may agree; two that share no group provably differ:"]
        for group in found:
            lines += _listed([names[index] for index in group])
    if not all(clock.zoned for clock in clocks.values()):
        lines.append("(not counting what an unknown time zone would explain)")
    return lines


def verdicts(hosts: Sequence[Host], limit: int) -> list[str]:
    """Whose offset exceeds a limit, whose may, and whose does not.

    @param limit: the largest offset allowed, in nanoseconds.
    """
    found = [clock_verdict(host, limit) for host in hosts]
    lines = []
    for verdict, words in _VERDICTS:
        names = [host.name for host, one in zip(hosts, found, strict=True) if one == verdict]
        if names:
            lines += [f"{words} {format_ms(limit)}:", *_listed(names)]
    return lines


def failures(hosts: Sequence[Host], limit: int) -> list[tuple[str, str]]:
    """The clocks that are not within a limit: the server's name, and what is known.

    @param limit: the largest offset allowed, in nanoseconds.
    """
    words = dict(_VERDICTS)
    found = [(host.name, clock_verdict(host, limit)) for host in hosts if not host.error]
    return [(name, f"{words[one]} {format_ms(limit)}") for name, one in found if one != "within"]


def _all(clocks: int) -> str:
    return "both clocks" if clocks == 2 else f"all {clocks} clocks"


def _listed(names: Sequence[str]) -> list[str]:
    return folded(", ".join(names), indent="  ")
