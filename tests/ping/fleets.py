"""Simulated fleets, to check which clocks `timestamp_echo.ping.compare` claims to differ.

`python -m tests.ping.fleets` simulates ten thousand.
"""

from __future__ import annotations

import sys
from itertools import combinations
from random import Random
from typing import NamedTuple

from tests.ping.simulation import (
    MILLISECOND,
    PPM,
    Delays,
    Path,
    Server,
    fixed,
    heavy_tailed,
    probed,
    uniform,
)
from timestamp_echo.ping.compare import Interval, difference
from timestamp_echo.ping.estimate import Estimate
from timestamp_echo.stamps import SECOND


class Judgement(NamedTuple):
    """What was claimed about the pairs of a fleet's clocks."""

    pairs: int
    false: int
    """Pairs said to differ by more than they do."""
    equal: int
    """Pairs that agree to a nanosecond."""
    distinct: int
    """Pairs whose difference is greater than both intervals together, so that they cannot meet."""
    shown: int
    """Those of them that are said to differ."""


def judged(random: Random) -> Judgement:
    """Probe a fleet of two to six servers, and compare what is claimed with the truth."""
    servers = _fleet(random)
    estimates = [_estimate(random, server) for server in servers]
    at = max(estimate.offset.at for estimate in estimates if estimate.offset)
    at += random.randrange(10 * SECOND)
    clocks = [
        Interval(*(estimate.interval(at) or (0, 0)), server.resolution < SECOND)
        for estimate, server in zip(estimates, servers, strict=True)
    ]
    pairs = false = equal = distinct = shown = 0
    for (one, clock), (other, another) in combinations(zip(servers, clocks, strict=True), 2):
        # In 10**-9 ns, so that it is exact.
        true = abs(one.offset_at(at) - other.offset_at(at))
        claimed = difference(clock, another)
        widths = (clock.high - clock.low + another.high - another.low) * SECOND
        pairs += 1
        equal += true < SECOND
        false += claimed * SECOND > true
        # Of stamps that name no zone nothing is claimed that a zone explains.
        if widths < true < 450 * SECOND**2 - widths:
            distinct += 1
            shown += claimed > 0
    return Judgement(pairs, false, equal, distinct, shown)


def _estimate(random: Random, server: Server) -> Estimate:
    """Probe one server a few times, at some interval, over some path."""
    interval = random.choice((100, 500, 1000, 1100)) * MILLISECOND
    path = Path(_delays(random), random.choice((0, 0.2)), interval, random.random() < 0.8)
    *_, estimate = probed(random, server, path, random.randint(1, 40))
    return estimate


def _fleet(random: Random) -> list[Server]:
    """Servers with clocks some of which agree, and some almost."""
    spread = random.choice((0, 1, MILLISECOND, 50 * MILLISECOND, 3 * SECOND, 900 * SECOND))
    base = random.randint(-400 * SECOND, 400 * SECOND)
    servers = []
    for _ in range(random.randint(2, 6)):
        coarse = random.random() < 0.5
        servers.append(
            Server(
                base + random.randint(-spread, spread),
                SECOND if coarse else random.choice((1, 1000)),
                random.randint(-100, 100) * PPM,
                zone=random.randint(-48, 56) * 900 if coarse else 0,
            )
        )
    if random.random() < 0.5:  # the same clock, by another path and with another stamp
        servers.append(servers[0]._replace(resolution=1, zone=0))
    return servers


def _delays(random: Random) -> Delays:
    longest = int(MILLISECOND * 10 ** random.uniform(-1, 2))
    return random.choice(
        (fixed(0, longest), fixed(longest, 0), uniform(longest), heavy_tailed(longest))
    )


def main() -> None:
    """Print what was claimed about many fleets."""
    fleets = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    random = Random(1)
    totals = Judgement(*map(sum, zip(*(judged(random) for _ in range(fleets)), strict=True)))
    print(f"{fleets} fleets, {totals.pairs} pairs of clocks, {totals.equal} of them equal")
    print(f"false claims: {totals.false}")
    print(f"differences greater than the intervals: {totals.distinct}, shown: {totals.shown}")


if __name__ == "__main__":
    main()
