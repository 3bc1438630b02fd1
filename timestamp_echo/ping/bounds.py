"""What the stamps in a server's replies say about its clock.

Integers in, integers out, all in nanoseconds. This module opens no socket, reads no clock and knows
no reactor; it only knows what a stamp means.

The offset is the server's clock minus the client's. A probe sent at `sent`, whose reply arrived at
`received`, was stamped at some moment in between. The server's clock does not run backwards, so it
read less than `stamp + resolution` at `sent`, and `stamp` or more at `received`::

    offset at sent     <=  stamp + resolution - sent
    offset at received >=  stamp - received

For one sample this is the estimate of RFC 5905, section 8, with T2 = T3: the midpoint of T2 - T1
and T3 - T4, with an error of at most half the round trip plus half the resolution. For many samples
the intervals are intersected (K. Marzullo, 1984): all of them contain the true offset, so their
intersection does too. It is never wider than the interval of the shortest round trip, and usually
narrower, because the upper and the lower bound can come from different probes.

Two clocks run at different rates, so intervals from different moments cannot be intersected as they
are. There are two models of what happens in between:

  - `Cone`: the rate may change at any time, but stays within `TOLERANCE`. An old bound is widened
    by `TOLERANCE` for each second that has passed.
  - `Polygon`: the rate is constant, up to `MAX_DRIFT`. The possible pairs of offset and rate form a
    convex polygon, and each sample cuts a piece off.

The cone needs no assumption that a healthy clock would violate. The polygon gives the drift, and
the offset of a clock whose rate exceeds the cone's tolerance. If neither model explains the
samples, the clock was stepped.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from timestamp_echo.stamps import SECOND, Moment

TOLERANCE = SECOND // 10_000
"""Assumed maximum difference in rate of two healthy clocks, in nanoseconds per second: 100 ppm.

Quartz oscillators are specified to 50 ppm or better. RFC 5905 calls this frequency tolerance.
"""

MAX_DRIFT = SECOND // 100
"""Highest constant rate that is reported as a drift, in nanoseconds per second: 1 %."""

MAX_VERTICES = 64
"""Vertices of a polygon beyond which it is replaced by a parallelogram around it."""

Vertex = tuple[int, int, int]
"""Homogeneous coordinates x, y, w, with w > 0: an offset of x / w nanoseconds when the client's
clock reads 0, and a rate of y / w nanoseconds per nanosecond."""


class Sample(NamedTuple):
    """One probe and its reply."""

    sent: int
    """When the probe was sent, in nanoseconds of a client clock that is never stepped."""

    received: int
    """When the reply arrived, by the same clock."""

    moment: Moment
    """The moment stated by the stamp in the reply."""

    @property
    def low(self) -> int:
        """Lower bound of the offset at `received`, in nanoseconds."""
        return self.moment.nanoseconds - self.received

    @property
    def high(self) -> int:
        """Upper bound of the offset at `sent`, in nanoseconds."""
        return self.moment.nanoseconds + self.moment.resolution - self.sent


class Step(NamedTuple):
    """A clock was set, the server's or the client's, or the server's zone changed.

    A stamp that names no zone steps by an hour when daylight saving time begins or ends. So a step
    by a multiple of 15 minutes, within the bound, is more likely a change of zone.
    """

    after: int
    """The client's clock at the last sample known to be from before the step.

    That is the sample which the sample at `before` contradicts. If the clock had a drift beyond
    `TOLERANCE`, it is the previous sample.
    """

    before: int
    """The client's clock when the reply arrived that revealed the step."""

    nanoseconds: int
    """Size of the step; negative if the server's clock was set back."""

    bound: int
    """Maximum error of `nanoseconds`, in nanoseconds."""

    @classmethod
    def between(cls, after: int, old: tuple[int, int], sample: Sample) -> Step:
        """The step from an offset in the interval `old` to the offset that a sample shows.

        @param old: the lowest and highest offset possible without a step, in nanoseconds, when the
            reply arrived.
        """
        # Interval subtraction: the smallest step is from the old maximum to the new minimum, the
        # largest from the old minimum to the new maximum.
        new = Cone.of(sample).interval(sample.received)
        return cls(after, sample.received, *midpoint(new[0] - old[1], new[1] - old[0]))


class Side(NamedTuple):
    """The lower or the upper side of a cone."""

    origin: int
    """Where this side would be when the client's clock reads 0, in units of 10**-9 ns."""

    moment: int
    """The client's clock at the sample that set this side."""

    opposite: int
    """Origin of the opposite side when this one was set.

    Samples taken after an unnoticed step may have moved the opposite side since.
    """


# Why sides have an origin. A lower bound `low`, valid at r, has sunk to
#
#     low - TOLERANCE * (t - r) / SECOND  =  (origin - TOLERANCE * t) / SECOND
#
# at a later moment t, with origin = low * SECOND + TOLERANCE * r. All lower bounds sink at the same
# speed, so one that is the highest stays the highest: the strongest is the one with the greatest
# origin, whatever t is. Upper bounds rise likewise, and the least origin is the strongest. So a
# cone needs two integers to represent any number of samples, and intersecting is a max and a min.
# The factor SECOND makes the origins integers, so nothing is rounded until `interval` is called.


class Cone(NamedTuple):
    """Possible offsets, if the rate always stays within `TOLERANCE`.

    Between samples the two sides move apart, hence the name.
    """

    low: Side
    high: Side

    @classmethod
    def of(cls, sample: Sample) -> Cone:
        """The offsets possible after one sample."""
        low = sample.low * SECOND + TOLERANCE * sample.received
        high = sample.high * SECOND - TOLERANCE * sample.sent
        return cls(Side(low, sample.received, high), Side(high, sample.sent, low))

    def intersect(self, sample: Sample) -> Cone | None:
        """The offsets possible after another sample.

        @return: a cone; None if nothing is possible, so that the rate exceeded `TOLERANCE`.
        """
        new = Cone.of(sample)
        low = max(self.low.origin, new.low.origin)
        high = min(self.high.origin, new.high.origin)
        # The interval at t is (low - TOLERANCE * t, high + TOLERANCE * t). Even if it is empty
        # at an earlier t, it is the one at `received`, the latest, that counts.
        if high - low + 2 * TOLERANCE * sample.received < 0:
            return None
        return Cone(
            self.low if low == self.low.origin else new.low._replace(opposite=high),
            self.high if high == self.high.origin else new.high._replace(opposite=low),
        )

    def interval(self, at: int) -> tuple[int, int]:
        """The lowest and highest offset at a moment, rounded outwards, in nanoseconds.

        @param at: the client's clock, not earlier than the last sample.
        """
        return _widened(self.low.origin, self.high.origin, at)

    def step(self, sample: Sample) -> Step:
        """The step that explains a sample for which `intersect` returned None.

        An empty intersection means that the sample contradicts one of the sides: its lower bound is
        above the old upper bound, or the reverse. The step came after the sample that set the side.
        """
        at = sample.received
        # The offset before the step was between the contradicted side and the opposite side as it
        # was then. The opposite side as it is now won't do. Say that the bounds were 0 and 100 and
        # the clock is set forward by 60: later samples can raise the lower bound to 90 before one
        # contradicts the upper one. The interval from 90 to 100 is not where the offset was.
        if Cone.of(sample).low.origin - self.high.origin > 2 * TOLERANCE * at:
            old = _widened(self.high.opposite, self.high.origin, at)
            return Step.between(self.high.moment, old, sample)
        old = _widened(self.low.origin, self.low.opposite, at)
        return Step.between(self.low.moment, old, sample)


class Polygon(NamedTuple):
    """Possible pairs of offset and rate, if the rate is constant."""

    # With a constant rate the offset is a straight line over time, offset(t) = x + y * t. Each line
    # is a point (x, y), and each bound of a sample is a half-plane of such points:
    #
    #     x + y * sent      <=  high
    #     x + y * received  >=  low
    #
    # The lines that satisfy all samples are an intersection of half-planes, a convex polygon. Its
    # extremes in any direction are at vertices, so the vertices are all there is to store.

    vertices: list[Vertex]
    """In order around the polygon; exact."""

    since: int
    """The client's clock when the first of the probes was sent."""

    @classmethod
    def of(cls, sample: Sample, rates: tuple[int, int] = (-MAX_DRIFT, MAX_DRIFT)) -> Polygon:
        """The lines possible after one sample.

        @param rates: the lowest and highest possible rate, in nanoseconds per second.
        """
        # Clipping needs a finite polygon to begin with: a parallelogram at `received`. The sample's
        # upper bound holds at `sent`. Until `received` the offset can rise by MAX_DRIFT of the
        # round trip at most, so allowing for a whole round trip is safe, and clipping corrects it.
        high = sample.high + sample.received - sample.sent
        start = _parallelogram((sample.low, high), rates, sample.received)
        return cls(_clip(start, sample), sample.sent)

    def intersect(self, sample: Sample) -> Polygon | None:
        """The lines possible after another sample.

        @return: a polygon; None if no line is possible, so that the rate was not constant.
        """
        vertices = _clip(self.vertices, sample)
        # Each sample adds two vertices at most. Those that are cut off again usually make up for
        # that, but not always. A parallelogram around the polygon has four, and is safe because
        # it only adds lines.
        if len(vertices) > MAX_VERTICES:
            clipped, at = Polygon(vertices, self.since), sample.received
            vertices = _parallelogram(clipped.interval(at), clipped.rates(), at)
        return Polygon(vertices, self.since) if vertices else None

    def interval(self, at: int) -> tuple[int, int]:
        """The lowest and highest offset at a moment, rounded outwards, in nanoseconds."""
        return _outwards([(x + y * at, w) for x, y, w in self.vertices])

    def rates(self) -> tuple[int, int]:
        """The lowest and highest rate, rounded outwards, in nanoseconds per second."""
        return _outwards([(y * SECOND, w) for _, y, w in self.vertices])


def midpoint(low: int, high: int) -> tuple[int, int]:
    """The midpoint of an interval, and the distance to its farther end."""
    middle = (low + high) // 2
    return middle, high - middle


def _widened(low: int, high: int, at: int) -> tuple[int, int]:
    """The interval between two sides of a cone at a moment, rounded outwards."""
    # -(-a // b) is a / b rounded up, in integers: a float would lose nanoseconds.
    return (low - TOLERANCE * at) // SECOND, -(-(high + TOLERANCE * at) // SECOND)


def _outwards(fractions: list[tuple[int, int]]) -> tuple[int, int]:
    """The least fraction, rounded down, and the greatest, rounded up."""
    return min(x // w for x, w in fractions), max(-(-x // w) for x, w in fractions)


def _parallelogram(offsets: tuple[int, int], rates: tuple[int, int], at: int) -> list[Vertex]:
    """All lines whose offset at a moment, and whose rate, are in these intervals.

    @param offsets: in nanoseconds.
    @param rates: in nanoseconds per second.
    """
    (low, high), (slow, fast) = offsets, rates
    corners = ((low, slow), (low, fast), (high, fast), (high, slow))
    return [(offset * SECOND - rate * at, rate, SECOND) for offset, rate in corners]


def _clip(vertices: list[Vertex], sample: Sample) -> list[Vertex]:
    """The part of a polygon that satisfies both bounds of a sample."""
    # Both inequalities times w, so that no division is needed.
    sent, high, received, low = sample.sent, sample.high, sample.received, sample.low
    below = _inside(vertices, [x + y * sent - w * high for x, y, w in vertices])
    return _inside(below, [w * low - x - y * received for x, y, w in below])


def _inside(vertices: list[Vertex], excess: list[int]) -> list[Vertex]:
    """The part of a convex polygon in a half-plane.

    @param excess: for each vertex how far it is outside, in any unit; 0 or less if it is inside.
    """
    # The usual case: most samples of a long run cut nothing off.
    if all(over <= 0 for over in excess):
        return vertices
    # Sutherland and Hodgman's algorithm: go around the polygon, keep each vertex that is inside,
    # and add one wherever an edge crosses the border. Index -1 closes the polygon.
    kept = []
    for i, vertex in enumerate(vertices):
        if excess[i - 1] * excess[i] < 0:
            kept.append(_crossing(vertices[i - 1], abs(excess[i - 1]), vertex, abs(excess[i])))
        if excess[i] <= 0:
            kept.append(vertex)
    return kept


def _crossing(one: Vertex, from_one: int, other: Vertex, from_other: int) -> Vertex:
    """The point where an edge crosses the border of a half-plane.

    @param from_one: absolute excess of `one`; `from_other` likewise.
    """
    # The excess is linear in x, y and w, and has opposite signs at the two ends. Weighted with
    # each other's excess they cancel out. In homogeneous coordinates that sum is the point itself:
    # no division, so the result is exact.
    x, y, w = (a * from_other + b * from_one for a, b in zip(one, other, strict=True))
    # Without this the integers would double in length at each cut.
    shared = gcd(x, y, w)
    return x // shared, y // shared, w // shared
