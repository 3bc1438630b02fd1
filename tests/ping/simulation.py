"""A simulated server and network path, to check the claims of `timestamp_echo.ping.estimate`.

`python -m tests.ping.simulation` prints how often the bound held, and how wide it was: after some
numbers of probes, and with `ctime` stamps for intervals from 5 ms to 5 s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from statistics import median
from typing import NamedTuple

from timestamp_echo.ping.bounds import TOLERANCE, Sample
from timestamp_echo.ping.estimate import Estimate, Offset
from timestamp_echo.stamps import SECOND, Moment

MICROSECOND = SECOND // 10**6
MILLISECOND = SECOND // 1000

START = 1795357656 * SECOND
"""The client's clock at the start of a run, in nanoseconds; a run starts up to 1 s later."""

PPM = SECOND // 10**6
"""One part per million, in nanoseconds per second."""

Delays = Callable[[Random], tuple[int, int]]
"""Draws the delays of a probe and of its reply, in nanoseconds."""


def fixed(there: int, back: int) -> Delays:
    """Constant delays."""
    return lambda random: (there, back)


def uniform(maximum: int) -> Delays:
    """Uniformly distributed delays, independent in the two directions."""
    return lambda random: (random.randrange(maximum), random.randrange(maximum))


def heavy_tailed(minimum: int) -> Delays:
    """Delays of half of `minimum`, times a Pareto variable whose variance is infinite (1.5)."""
    return lambda random: (
        int(minimum / 2 * random.paretovariate(1.5)),
        int(minimum / 2 * random.paretovariate(1.5)),
    )


class Server(NamedTuple):
    """A server's clock and its stamps."""

    offset: int
    """How far ahead of the client's clock at `START`, in nanoseconds, without the zone."""

    resolution: int = SECOND
    """Resolution of the stamps, in nanoseconds."""

    rate: int = 0
    """Rate relative to the client's clock, in nanoseconds per second."""

    zone: int = 0
    """Seconds east of UTC, for stamps of whole seconds, which do not name it."""

    steps: tuple[tuple[int, int], ...] = ()
    """When the clock is stepped, by the client's clock, and by how much, in nanoseconds."""

    def offset_at(self, at: int) -> int:
        """The true offset, in 10**-9 ns so that it is exact."""
        stepped = sum(size for when, size in self.steps if at >= when)
        return (self.offset + stepped) * SECOND + self.rate * (at - START)

    def stamp(self, at: int) -> Moment:
        """The stamp of a probe that arrives at this moment."""
        zoned = self.resolution < SECOND
        reading = at + self.offset_at(at) // SECOND + (0 if zoned else self.zone * SECOND)
        return Moment(reading // self.resolution * self.resolution, self.resolution, zoned)

    def bound_holds(self, offset: Offset | None) -> bool:
        """Whether the true offset is within the stated bound."""
        if offset is None:
            return False
        # If the zone is unknown, it is part of the stated offset.
        zone = self.zone if offset.zone is None else self.zone - offset.zone
        truth = self.offset_at(offset.at) + (0 if self.resolution < SECOND else zone * SECOND**2)
        return abs(truth - offset.nanoseconds * SECOND) <= offset.bound * SECOND


class Path(NamedTuple):
    """The network path to the server, and how it is probed."""

    delays: Delays
    loss: float = 0.0
    interval: int = SECOND
    aimed: bool = True


def probed(random: Random, server: Server, path: Path, count: int) -> Iterator[Estimate]:
    """Probe a server with one probe in flight, as the scheduler does.

    @return: the estimate after each of the `count` replies; always the same object.
    """
    estimate = Estimate()
    now = start = START + random.randrange(SECOND)
    number = 0
    while count:
        due = start + number * path.interval
        sent, aimed = _when(random, estimate, due, now, path)
        number += 1
        there, back = path.delays(random)
        now = sent + there + back
        if random.random() < path.loss:
            continue
        estimate.add(Sample(sent, now, server.stamp(sent + there)), aimed=aimed)
        yield estimate
        count -= 1


def _when(random: Random, estimate: Estimate, due: int, now: int, path: Path) -> tuple[int, bool]:
    """When the next probe is sent, and whether it is aimed."""
    if not path.aimed:
        return max(due + random.randrange(SECOND), now), False
    moment = estimate.aim(due, due + path.interval) if due > now else None
    return max(due, now) if moment is None else moment, moment is not None


class Row(NamedTuple):
    """Result of many runs after a number of probes."""

    probes: int
    within: int
    median_bound: int


def table(random: Random, resolution: int, path: Path, runs: int, at: tuple[int, ...]) -> list[Row]:
    """Probe many servers whose clocks are up to a day wrong, and up to 100 ppm fast or slow.

    @param at: the numbers of probes after which to evaluate the estimate.
    """
    within = dict.fromkeys(at, 0)
    bounds: dict[int, list[int]] = {probes: [] for probes in at}
    for _ in range(runs):
        day = 86400 * SECOND if resolution < SECOND else 400 * SECOND
        server = Server(random.randint(-day, day), resolution, random.randint(-100, 100) * PPM)
        for probes, estimate in enumerate(probed(random, server, path, max(at)), 1):
            if probes in within and (offset := estimate.offset):
                within[probes] += server.bound_holds(offset)
                bounds[probes].append(offset.bound)
    return [Row(probes, within[probes], round(median(bounds[probes]))) for probes in at]


def settled(random: Random, interval: int, delays: Delays) -> int:
    """Probe a server with `ctime` stamps for a minute, or with 40 probes if that takes longer.

    @return: the widest bound in the last quarter of the run, in nanoseconds.
    """
    server = Server(random.randint(-400 * SECOND, 400 * SECOND), rate=random.randint(-50, 50) * PPM)
    count = max(60 * SECOND // interval, 40)
    last = islice(
        probed(random, server, Path(delays, interval=interval), count), count * 3 // 4, None
    )
    offsets = [estimate.offset for estimate in last]
    assert all(map(server.bound_holds, offsets))
    return max(offset.bound for offset in offsets if offset)


def settled_limit(interval: int, round_trip: int) -> int:
    """The bound that a run of `settled` must reach, in nanoseconds.

    A round trip, and what the bound widens in the eight aimed probes that renew both of its sides.
    """
    return round_trip + 8 * max(interval, SECOND) * TOLERANCE // SECOND


INTERVALS = (5, 10, 20, 25, 40, 50, 95, 100, 125, 200, 240, 250, 333, 500, 750, 1000, 2500, 5000)
"""Milliseconds."""


def print_intervals(runs: int) -> None:
    """Print the bounds for intervals between probes, round ones and random ones."""
    random = Random(1)
    print("\nctime, 1 ms round trip, a minute\n")
    print("interval, ms | median bound, ms | widest, ms | runs over the limit")
    drawn = [5 * 1000 ** random.random() for _ in INTERVALS]
    for milliseconds in (*INTERVALS, *drawn):
        interval = int(milliseconds * MILLISECOND)
        delays = fixed(MILLISECOND // 2, MILLISECOND // 2)
        bounds = [settled(random, interval, delays) for _ in range(runs)]
        over = sum(bound > settled_limit(interval, MILLISECOND) for bound in bounds)
        middle, widest = median(bounds) / MILLISECOND, max(bounds) / MILLISECOND
        print(f"{milliseconds:12.3f} | {middle:16.3f} | {widest:10.3f} | {over:4} of {runs:4}")


def main() -> None:
    """Print the tables for typical paths and stamps, and for many intervals."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    paths = {
        "1 ms round trip": fixed(MILLISECOND // 2, MILLISECOND // 2),
        "1 ms round trip, all of it back": fixed(0, MILLISECOND),
        "20 ms round trip and more, heavy-tailed": heavy_tailed(20 * MILLISECOND),
    }
    print("probes | within the bound | median bound, ms")
    for name, delays in paths.items():
        for style, resolution in (("ctime", SECOND), ("unix", 1)):
            print(f"\n{style}, {name}")
            rows = table(Random(1), resolution, Path(delays), runs, (1, 2, 4, 8, 12, 16, 32))
            for row in rows:
                bound = row.median_bound / MILLISECOND
                print(f"{row.probes:6} | {row.within:6} of {runs:6} | {bound:10.3f}")
    print_intervals(max(1, runs // 20))


if __name__ == "__main__":
    main()
