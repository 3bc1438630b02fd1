"""A simulated server and network path, to check the claims of `timestamp_echo.ping.estimate`.

`python -m tests.ping.simulation` prints how often the bound held, and how wide it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from random import Random
from statistics import median
from typing import NamedTuple

from timestamp_echo.ping.bounds import Sample
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
    """Probe a server, either when the estimate aims to or at a random phase of the second.

    @return: the estimate after each of the `count` replies; always the same object.
    """
    estimate = Estimate()
    due = START + random.randrange(SECOND)
    while count:
        sent = estimate.aim(due) if path.aimed else due + random.randrange(SECOND)
        due = max(due + path.interval, sent)
        if random.random() < path.loss:
            continue
        there, back = path.delays(random)
        estimate.add(Sample(sent, sent + there + back, server.stamp(sent + there)))
        yield estimate
        count -= 1


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


def main() -> None:
    """Print the table for typical paths and stamps."""
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


if __name__ == "__main__":
    main()
