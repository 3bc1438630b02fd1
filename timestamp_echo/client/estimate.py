"""How wrong the server's clock is, from the stamps in its replies.

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

Not to be known from stamps, so not claimed: a step, or a rate beyond `RATE`, whose effect is still
within the bounds; until it is noticed, the stated bound is that of a clock without it. Slewing by
more than `RATE` (ntpd's is up to 500 ppm) is a drift, and where it begins and ends a small step.
And the clock is the one that is told: on Linux time(2) changes its second at the kernel's next
tick, up to 10 ms late.
"""

from __future__ import annotations

from collections import deque
from math import gcd
from typing import Literal, NamedTuple

from timestamp_echo.stamps import SECOND, Moment

RATE = SECOND // 10_000
"""By how much two clocks may differ, in nanoseconds a second: 100 ppm. A quartz has up to 50."""

LIMIT = SECOND // 100
"""The most that is taken for a steady drift, in nanoseconds a second: 1 %."""

QUARTER = 900 * SECOND
"""What all zones are multiples of: 15 minutes, in nanoseconds."""

STEPS = 100
"""The most steps that are kept, the latest."""

CORNERS = 64
"""The most corners that the polygon of a line keeps before it is made a parallelogram again."""

TRIPS = 8
"""How many round trips tell how long one takes: RFC 5905, section 10, keeps as many."""

HALVINGS = 12
"""Probes that halve a second: 2**-12 of it is a quarter of a millisecond."""

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


class Offset(NamedTuple):
    """How far the server's clock is ahead of the client's."""

    nanoseconds: int
    """The middle of what is possible, less the zone; negative if the server is behind."""

    bound: int
    """The truth is no further away than this, in nanoseconds."""

    at: int
    """The client's clock at the moment for which it is stated: when the last reply came."""

    zone: int | None
    """The zone of a stamp that names none, in seconds east of UTC; 0 if the stamp names its own.

    It is the multiple of 15 minutes nearest to what was measured: an error of more than 7.5
    minutes can't be told from a zone. None if two are possible; the zone is then in the offset.
    """

    formula: Literal["rate", "drift", "either"]
    """What the bound allows for: any rate within `RATE`; the steady rate that was found, for the
    samples exclude `RATE`; or either that or a step, as long as it may have been both."""


class Drift(NamedTuple):
    """How fast the server's clock runs away from the client's, if it is steady."""

    rate: int
    """Nanoseconds a second (1000 are 1 ppm); negative if the server's clock is the slower."""

    bound: int
    """The truth is no further away than this, in nanoseconds a second."""

    since: int
    """The client's clock when the first of the probes that tell it left."""


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
            return _step(self.high.moment, old, sample)
        return _step(self.low.moment, _widened(self.low.origin, self.low.other, at), sample)


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


class Estimate:
    """The offset of one server's clock, sample by sample.

    A sample costs two products for each corner of a polygon, of which there are ten or twenty:
    8 microseconds on one machine. Nothing grows with their number: `CORNERS`, `STEPS` and `TRIPS`
    are the most there is.
    """

    def __init__(self) -> None:
        self.steps: deque[Step] = deque(maxlen=STEPS)
        """The steps noticed, oldest first: each at the first sample that no line explains."""
        self._last: Sample | None = None
        self._trips: deque[int] = deque(maxlen=TRIPS)
        self._narrowings = 0
        self._line: Line
        # What `RATE` explains has a cone. Where it failed and a line didn't, it is a drift; at
        # first perhaps a step, so there is a cone of what came since, until that fails as well.
        self._cone: Cone | None
        self._drifts = False
        self._suspected: Step | None = None

    def add(self, sample: Sample) -> None:
        """Take a sample into account: in the order in which the replies came."""
        if self._last is None:
            self._cone, self._line = self._anew(sample), Line.of(sample)
        else:
            self._explain(sample, self._last)
        self._last = sample
        self._trips.append(sample.received - sample.sent)
        self._narrowings += 1

    def _anew(self, sample: Sample) -> Cone:
        self._narrowings = 0
        return Cone.of(sample)

    def _explain(self, sample: Sample, last: Sample) -> None:
        cone = self._cone and self._cone.narrowed(sample)
        line = self._line.narrowed(sample)
        if self._cone and cone is None and not self._drifts:
            # A line does not explain what came before it began.
            line = line if self._cone.step(sample).after >= self._line.since else None
        if line is None:
            line = self._without_line(sample, last, stepped=cone is None)
            cone = cone or self._anew(sample)
        elif cone is None:
            cone = self._doubted(sample)
        self._cone, self._line = cone, line

    def _doubted(self, sample: Sample) -> Cone | None:
        """What came since `RATE` first failed; nothing if it has failed again, so it's a drift."""
        if self._drifts or self._cone is None:
            self._suspected = None
            return None
        self._suspected, self._drifts = self._cone.step(sample), True
        return self._anew(sample)

    def _without_line(self, sample: Sample, last: Sample, stepped: bool) -> Line:
        """Begin with a new line: the clock has stepped, or its rate changed within `RATE`."""
        # A clock that is set goes on to drift as it did, unless that drift was in doubt.
        steady = stepped and self._drifts and self._suspected is None
        if self._suspected:
            self.steps.append(self._suspected)
        if stepped and self._cone:
            self.steps.append(self._cone.step(sample))
        elif stepped:
            self.steps.append(_step(last.sent, self._line.span(sample.received), sample))
        self._suspected, self._drifts = None, steady
        return Line.of(sample, self._line.rates()) if steady else Line.of(sample)

    @property
    def offset(self) -> Offset | None:
        """The offset when the last reply came; None before the first."""
        if self._last is None:
            return None
        at = self._last.received
        low, high = self._span(at)
        zone = 0 if self._last.moment.zoned else _zone(low, high)
        middle, bound = _middle(low - (zone or 0) * SECOND, high - (zone or 0) * SECOND)
        return Offset(middle, bound, at, zone, self._formula)

    @property
    def drift(self) -> Drift | None:
        """The server's rate; None while it is not known any better than within `RATE`.

        A step begins it anew, but for a drift beyond `RATE` that was there before.
        """
        if self._last is None or self._formula == "either":
            return None
        slow, fast = self._line.rates()
        if self._formula == "rate" and fast - slow >= 2 * RATE:
            return None
        return Drift(*_middle(slow, fast), self._line.since)

    @property
    def _formula(self) -> Literal["rate", "drift", "either"]:
        if not self._drifts:
            return "rate"
        return "either" if self._cone else "drift"

    def aim(self, due: int) -> int:
        """When to send the next probe, so that its reply tells the most.

        For stamps of whole seconds: when it will, with half the least of the last round trips as
        the way there, meet the server's second as it changes in the middle of what is possible.
        So each probe halves that, until it is about a round trip. From then on every other probe
        goes so early, or so late, that it can't meet the change, unless the clock has stepped:
        one that always meets the change would follow such a step slowly, and not notice it.

        @param due: the client's clock, in nanoseconds.
        @return: the same or up to a second later; 1 % more where the clocks drift apart.
        """
        if self._last is None or self._last.moment.resolution < SECOND:
            return due
        first = due + -(due + self._lead(due)) % SECOND
        return max(due, first + self._lead(due) - self._lead(first))

    def _lead(self, at: int) -> int:
        """How far ahead of the client's clock the server's will be when the probe gets there."""
        low, high = self._span(at)
        trips = sorted(self._trips)
        turn = self._narrowings % 4
        if self._narrowings <= HALVINGS or turn in (0, 2):
            return (low + high + trips[0]) // 2
        # The reply, too, has to be back before the change, to exclude that it was later.
        return high + 2 * trips[len(trips) // 2] if turn == 1 else low - trips[0]

    def _span(self, at: int) -> tuple[int, int]:
        """From which offset to which, now or later."""
        if not self._cone:
            return self._line.span(at)
        low, high = self._cone.span(at)
        if not self._drifts:
            return low, high
        spans = self._line.span(at)
        return min(low, spans[0]), max(high, spans[1])


def _widened(low: int, high: int, at: int) -> tuple[int, int]:
    """Two origins, carried to a moment at `RATE`; rounded outwards."""
    return (low - RATE * at) // SECOND, -(-(high + RATE * at) // SECOND)


def _outwards(quotients: list[tuple[int, int]]) -> tuple[int, int]:
    """The least, rounded down, and the greatest, rounded up."""
    return min(x // w for x, w in quotients), max(-(-x // w) for x, w in quotients)


def _middle(low: int, high: int) -> tuple[int, int]:
    """The middle, and how far it is to the ends; rounded up."""
    middle = (low + high) // 2
    return middle, high - middle


def _step(after: int, old: tuple[int, int], sample: Sample) -> Step:
    """From what would be possible without a step, to what the sample says."""
    new = Cone.of(sample).span(sample.received)
    return Step(after, sample.received, *_middle(new[0] - old[1], new[1] - old[0]))


def _zone(low: int, high: int) -> int | None:
    """The multiple of 15 minutes that is nearest to both, in seconds; None if there is none."""
    nearest, other = ((end + QUARTER // 2) // QUARTER for end in (low, high))
    return nearest * (QUARTER // SECOND) if nearest == other else None


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
