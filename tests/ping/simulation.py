"""A simulated server and the way to it, for what `timestamp_echo.ping.estimate` claims.

`python -m tests.ping.simulation` prints how often that held, and how wide its bounds were.
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
"""The client's clock when a run starts, in nanoseconds; each starts up to a second later."""

PPM = SECOND // 10**6
"""A millionth, in nanoseconds a second."""

Way = Callable[[Random], tuple[int, int]]
"""How long a probe takes there, and its reply back, in nanoseconds."""


def fixed(there: int, back: int) -> Way:
    """Always the same."""
    return lambda random: (there, back)


def uniform(most: int) -> Way:
    """Anything up to `most`, each way."""
    return lambda random: (random.randrange(most), random.randrange(most))


def heavy_tailed(least: int) -> Way:
    """Half of `least` each way, times a Pareto variable: of 1.5, its variance is infinite."""
    return lambda random: (
        int(least / 2 * random.paretovariate(1.5)),
        int(least / 2 * random.paretovariate(1.5)),
    )


class Server(NamedTuple):
    """A server's clock, and how it is told."""

    offset: int
    """Ahead of the client's at `START`, in nanoseconds, without its zone."""

    resolution: int = SECOND
    """Of its stamps, in nanoseconds."""

    rate: int = 0
    """How much faster than the client's, in nanoseconds a second."""

    zone: int = 0
    """Seconds; a whole second's stamp names none."""

    steps: tuple[tuple[int, int], ...] = ()
    """When, by the client's clock, it is set, and by how much; in nanoseconds."""

    def offset_at(self, at: int) -> int:
        """What there is to find out, in billionths of a nanosecond so that it is exact."""
        stepped = sum(by for when, by in self.steps if at >= when)
        return (self.offset + stepped) * SECOND + self.rate * (at - START)

    def stamp(self, at: int) -> Moment:
        """What a probe is answered that comes at this moment."""
        zoned = self.resolution < SECOND
        reading = at + self.offset_at(at) // SECOND + (0 if zoned else self.zone * SECOND)
        return Moment(reading // self.resolution * self.resolution, self.resolution, zoned)

    def within(self, offset: Offset | None) -> bool:
        """Whether the truth is within what is stated."""
        if offset is None:
            return False
        # Where the zone could not be told it is to be found in the offset.
        zone = self.zone if offset.zone is None else self.zone - offset.zone
        truth = self.offset_at(offset.at) + (0 if self.resolution < SECOND else zone * SECOND**2)
        return abs(truth - offset.nanoseconds * SECOND) <= offset.bound * SECOND


class Path(NamedTuple):
    """The way to the server, and how it is probed."""

    way: Way
    loss: float = 0.0
    interval: int = SECOND
    aimed: bool = True


def probed(random: Random, server: Server, path: Path, count: int) -> Iterator[Estimate]:
    """Probe a server, with the aim that the estimate takes or at any phase of a second.

    @return: the estimate after each of the `count` replies; always the same object.
    """
    estimate = Estimate()
    due = START + random.randrange(SECOND)
    while count:
        sent = estimate.aim(due) if path.aimed else due + random.randrange(SECOND)
        due = max(due + path.interval, sent)
        if random.random() < path.loss:
            continue
        there, back = path.way(random)
        estimate.add(Sample(sent, sent + there + back, server.stamp(sent + there)))
        yield estimate
        count -= 1


class Row(NamedTuple):
    """What came of many runs, after so many probes."""

    probes: int
    within: int
    median_bound: int


def table(random: Random, resolution: int, path: Path, runs: int, at: tuple[int, ...]) -> list[Row]:
    """Probe many servers, which are up to a day wrong or 100 ppm fast or slow.

    @param at: after how many probes to look.
    """
    within = dict.fromkeys(at, 0)
    bounds: dict[int, list[int]] = {probes: [] for probes in at}
    for _ in range(runs):
        day = 86400 * SECOND if resolution < SECOND else 400 * SECOND
        server = Server(random.randint(-day, day), resolution, random.randint(-100, 100) * PPM)
        for probes, estimate in enumerate(probed(random, server, path, max(at)), 1):
            if probes in within and (offset := estimate.offset):
                within[probes] += server.within(offset)
                bounds[probes].append(offset.bound)
    return [Row(probes, within[probes], round(median(bounds[probes]))) for probes in at]


def main() -> None:
    """Print the table, for the paths and stamps that matter."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    paths = {
        "1 ms round trip": fixed(MILLISECOND // 2, MILLISECOND // 2),
        "1 ms round trip, all of it back": fixed(0, MILLISECOND),
        "20 ms round trip and more, heavy-tailed": heavy_tailed(20 * MILLISECOND),
    }
    print("probes | within the bound | median bound, ms")
    for name, way in paths.items():
        for style, resolution in (("ctime", SECOND), ("unix", 1)):
            print(f"\n{style}, {name}")
            rows = table(Random(1), resolution, Path(way), runs, (1, 2, 4, 8, 12, 16, 32))
            for row in rows:
                bound = row.median_bound / MILLISECOND
                print(f"{row.probes:6} | {row.within:6} of {runs:6} | {bound:10.3f}")


if __name__ == "__main__":
    main()
