"""What the stamps in a server's replies leave possible of its clock.

Numbers in, numbers out, all of them whole nanoseconds: knows no socket, no reactor and reads
no clock; of the house it knows what a stamp says.

The offset is the server's clock less the client's. A probe that left at `sent` and whose reply
came at `received` was stamped at some moment between them. The server's clock does not run
backwards, so it read less than `stamp + resolution` at `sent`, and `stamp` or more at `received`:

    offset at sent     <=  stamp + resolution - sent
    offset at received >=  stamp - received

From one sample that is RFC 5905, section 8, with T2 = T3: the middle of T2 - T1 and T3 - T4, wrong
by half the round trip at most, and by half the resolution. From many it is the intersection
(K. Marzullo, 1984), never wider than that of the least round trip. It narrows with the way there
of one probe and the way back of another, and where a stamp's second changes.

Two clocks run at different rates, so a bound from another moment is widened by `RATE` for each
nanosecond between. That is true of any rate within `RATE`, changing or not. A line of offset over
time, a steady rate, is looked for beside it, up to `LIMIT`: it gives the drift, and carries the
offset where `RATE` does not explain the samples. What neither explains is a step.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from timestamp_echo.stamps import SECOND, Moment

RATE = SECOND // 10_000
"""By how much two clocks may differ, in nanoseconds a second: 100 ppm. A quartz has up to 50."""

LIMIT = SECOND // 100
"""The most that is taken for a steady drift, in nanoseconds a second: 1 %."""

CORNERS = 64
"""The most corners that the polygon of a line keeps before it is made a parallelogram again."""

Corner = tuple[int, int, int]
"""x, y, w: an offset of x / w at the client's 0, and a rate of y / w; w is positive."""


class Sample(NamedTuple):
    """One probe and its reply."""

    sent: int
    """The client's clock when the probe left: nanoseconds of a clock that never steps."""

    received: int
    """The same clock when the reply came."""

    moment: Moment
    """What the stamp in the reply says."""

    @property
    def low(self) -> int:
        """The least possible offset when the reply came, in nanoseconds."""
        return self.moment.nanoseconds - self.received

    @property
    def high(self) -> int:
        """The greatest possible offset when the probe left, in nanoseconds."""
        return self.moment.nanoseconds + self.moment.resolution - self.sent


class Step(NamedTuple):
    """A clock was set, the server's or the client's; or the server's zone has changed.

    A stamp without a zone steps by an hour when summer time begins or ends: a multiple of 15
    minutes, within the bound, is more likely that than a clock that was set.
    """

    after: int
    """The client's clock at the sample, stamped before the step, that excludes what came then.

    Where the clock drifted, beyond `RATE`, that is taken to be the sample before.
    """

    before: int
    """The client's clock when the reply came that showed it."""

    nanoseconds: int
    """By how much; negative if the server's clock was set back."""

    bound: int
    """The truth is no further away than this, in nanoseconds."""

    @classmethod
    def of(cls, after: int, old: tuple[int, int], sample: Sample) -> Step:
        """From what would be possible without a step, to what the sample says."""
        new = Cone.of(sample).span(sample.received)
        return cls(after, sample.received, *middle(new[0] - old[1], new[1] - old[0]))


class Side(NamedTuple):
    """One end of what is possible at any rate within `RATE`."""

    origin: int
    """The bound, carried back to the client's 0 at `RATE`; in billionths of a nanosecond."""

    moment: int
    """The client's clock at the sample that set it."""

    other: int
    """The other end's origin at that time: as it was before any step that this end shows."""


class Cone(NamedTuple):
    """What is possible at any rate within `RATE`: two ends, which part as time goes on."""

    low: Side
    high: Side

    @classmethod
    def of(cls, sample: Sample) -> Cone:
        """What one sample leaves possible."""
        low = sample.low * SECOND + RATE * sample.received
        high = sample.high * SECOND - RATE * sample.sent
        return cls(Side(low, sample.received, high), Side(high, sample.sent, low))

    def narrowed(self, sample: Sample) -> Cone | None:
        """What another sample leaves of it; None if that is nothing."""
        new = Cone.of(sample)
        low = max(self.low.origin, new.low.origin)
        high = min(self.high.origin, new.high.origin)
        if high - low + 2 * RATE * sample.received < 0:
            return None
        return Cone(
            self.low if low == self.low.origin else new.low._replace(other=high),
            self.high if high == self.high.origin else new.high._replace(other=low),
        )

    def span(self, at: int) -> tuple[int, int]:
        """From which offset to which, at a moment not before its samples'; rounded outwards."""
        return _widened(self.low.origin, self.high.origin, at)

    def step(self, sample: Sample) -> Step:
        """The step that a sample shows which leaves nothing possible."""
        at = sample.received
        if Cone.of(sample).low.origin - self.high.origin > 2 * RATE * at:
            old = _widened(self.high.other, self.high.origin, at)
            return Step.of(self.high.moment, old, sample)
        return Step.of(self.low.moment, _widened(self.low.origin, self.low.other, at), sample)


class Line(NamedTuple):
    """What is possible at a steady rate: a convex polygon of offset and rate."""

    corners: list[Corner]
    """In turn, exact."""

    since: int

    @classmethod
    def of(cls, sample: Sample, rates: tuple[int, int] = (-LIMIT, LIMIT)) -> Line:
        """What one sample leaves possible, at these rates."""
        # The upper end holds at `sent`: until it is cut there, it is raised by more than enough.
        high = sample.high + sample.received - sample.sent
        whole = _parallelogram((sample.low, high), rates, sample.received)
        return cls(_cut(whole, sample), sample.sent)

    def narrowed(self, sample: Sample) -> Line | None:
        """What another sample leaves of it; None if that is nothing."""
        corners = _cut(self.corners, sample)
        if len(corners) > CORNERS:
            whole, at = Line(corners, self.since), sample.received
            corners = _parallelogram(whole.span(at), whole.rates(), at)
        return Line(corners, self.since) if corners else None

    def span(self, at: int) -> tuple[int, int]:
        """From which offset to which, at a moment; rounded outwards."""
        return _outwards([(x + y * at, w) for x, y, w in self.corners])

    def rates(self) -> tuple[int, int]:
        """From which rate to which, in nanoseconds a second; rounded outwards."""
        return _outwards([(y * SECOND, w) for _, y, w in self.corners])


def middle(low: int, high: int) -> tuple[int, int]:
    """The middle, and how far it is to the ends; rounded up."""
    middle = (low + high) // 2
    return middle, high - middle


def _widened(low: int, high: int, at: int) -> tuple[int, int]:
    """Two origins, carried to a moment at `RATE`; rounded outwards."""
    return (low - RATE * at) // SECOND, -(-(high + RATE * at) // SECOND)


def _outwards(quotients: list[tuple[int, int]]) -> tuple[int, int]:
    """The least, rounded down, and the greatest, rounded up."""
    return min(x // w for x, w in quotients), max(-(-x // w) for x, w in quotients)


def _parallelogram(offsets: tuple[int, int], rates: tuple[int, int], at: int) -> list[Corner]:
    """All lines that have these offsets at a moment, in nanoseconds, and these rates."""
    (low, high), (slow, fast) = offsets, rates
    ends = ((low, slow), (low, fast), (high, fast), (high, slow))
    return [(offset * SECOND - rate * at, rate, SECOND) for offset, rate in ends]


def _cut(corners: list[Corner], sample: Sample) -> list[Corner]:
    """The part of a convex polygon that a sample leaves."""
    sent, high, received, low = sample.sent, sample.high, sample.received, sample.low
    left = _inside(corners, [x + y * sent - w * high for x, y, w in corners])
    return _inside(left, [w * low - x - y * received for x, y, w in left])


def _inside(corners: list[Corner], excess: list[int]) -> list[Corner]:
    """The part of a convex polygon where an excess, linear in x, y and w, is not above 0."""
    if all(over <= 0 for over in excess):
        return corners
    left = []
    for i, corner in enumerate(corners):
        if excess[i - 1] * excess[i] < 0:
            left.append(_between(corners[i - 1], abs(excess[i - 1]), corner, abs(excess[i])))
        if excess[i] <= 0:
            left.append(corner)
    return left


def _between(one: Corner, from_one: int, other: Corner, from_other: int) -> Corner:
    """The corner on a side where it is cut, so far from its ends."""
    x, y, w = (a * from_other + b * from_one for a, b in zip(one, other, strict=True))
    shared = gcd(x, y, w)  # or the numbers would grow from cut to cut
    return x // shared, y // shared, w // shared
