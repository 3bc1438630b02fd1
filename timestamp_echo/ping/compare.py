"""Which of several clocks provably differ.

Integers in, integers out, all in nanoseconds. Knows no connection and no text.

An offset is a server's clock minus the client's. Two servers' clocks provably differ if their
intervals do not intersect. All intervals must be those of the same moment, to which
`Estimate.interval` widens them.

A stamp that names no zone shows the offset plus that of an unknown time zone, a multiple of 15
minutes. A difference that a pair of zones explains is not claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from timestamp_echo.ping.estimate import ZONE_STEP, ZONES
from timestamp_echo.ping.stats import Host
from timestamp_echo.stamps import SECOND

Verdict = Literal["within", "exceeded", "can't tell"]

_WEST, _EAST = ZONES.start * SECOND, (ZONES.stop - 1) * SECOND


class Interval(NamedTuple):
    """The possible offsets of one clock at a moment."""

    low: int
    """Lowest offset, in nanoseconds."""

    high: int
    """Highest offset, in nanoseconds."""

    zoned: bool = True
    """Whether the stamps name their zone. Otherwise, both ends include its unknown offset."""


def difference(one: Interval, other: Interval) -> int:
    """The least by which two clocks differ, in nanoseconds; 0 if they may agree."""
    low, high = one.low - other.high, one.high - other.low
    # The zones of the two clocks, either of which may be unknown, differ by a multiple of 15
    # minutes, from `first` to `last`.
    first = (0 if one.zoned else _WEST) - (0 if other.zoned else _EAST)
    last = (0 if one.zoned else _EAST) - (0 if other.zoned else _WEST)
    # Of these multiples, the nearest to each end of the interval: if one is within it, the zones
    # explain everything.
    below = min(max(high // ZONE_STEP * ZONE_STEP, first), last)
    above = min(max(-(-low // ZONE_STEP) * ZONE_STEP, first), last)
    return min(max(0, low - apart, apart - high) for apart in (below, above))


def verdict(clock: Interval, limit: int) -> Verdict:
    """Whether a clock's offset is within a limit.

    If its stamps name no zone, it is taken to be in the zone in which its offset is smallest.

    @param limit: the largest offset allowed, in nanoseconds.
    """
    if difference(clock, Interval(-limit, limit)):
        return "exceeded"
    zone = 0
    if not clock.zoned:
        nearest = (clock.low + clock.high + ZONE_STEP) // (2 * ZONE_STEP) * ZONE_STEP
        zone = min(max(nearest, _WEST), _EAST)
    within = -limit <= clock.low - zone and clock.high - zone <= limit
    return "within" if within else "can't tell"


def clock_verdict(host: Host, limit: int) -> Verdict:
    """Whether a server's clock is within a limit of this host's clock, as that is set now.

    @param limit: the largest offset allowed, in nanoseconds.
    """
    stats = host.stats
    if not (offset := stats.clock.offset) or not (clock := _interval(host, offset.at)):
        return "can't tell"
    step = stats.own_clock_step
    return verdict(clock._replace(low=clock.low - step, high=clock.high - step), limit)


def known_clocks(hosts: Sequence[Host]) -> dict[str, Interval]:
    """The possible offsets of all clocks that are known, by server, at the same moment.

    The offsets are from this host's clock as if it had never been set, so it does not matter
    whether a server was asked before or after it was set.
    """
    at = max((offset.at for host in hosts if (offset := host.stats.clock.offset)), default=0)
    found = ((host.name, _interval(host, at)) for host in hosts)
    return {name: clock for name, clock in found if clock}


def _interval(host: Host, at: int) -> Interval | None:
    interval = host.stats.clock.interval(at)
    return interval and Interval(*interval, not host.stats.zoneless)


def groups(clocks: Sequence[Interval]) -> list[list[int]]:
    """Groups of clocks that may agree.

    @return: the indices of each group's members. Each clock is in a group, and two clocks provably
        differ if, and only if, no group has both.
    """
    order = sorted(range(len(clocks)), key=clocks.__getitem__)
    agreeing: dict[int, set[int]] = {index: set() for index in order}
    for one, other in combinations(order, 2):
        if not difference(clocks[one], clocks[other]):
            agreeing[one].add(other)
            agreeing[other].add(one)
    found: list[list[int]] = []
    shown: set[tuple[int, int]] = set()
    for one in order:
        # A clock that agrees with no other is a group of one.
        for other in sorted(agreeing[one], key=order.index) or [one]:
            if (one, other) not in shown:
                group = _grown([one, other] if other != one else [one], order, agreeing)
                shown.update((first, second) for first in group for second in group)
                found.append(sorted(group))
    return found


def _grown(group: list[int], order: list[int], agreeing: dict[int, set[int]]) -> list[int]:
    """Add each clock that may agree with all members."""
    for index in order:
        if agreeing[index].issuperset(group):
            group.append(index)
    return group
