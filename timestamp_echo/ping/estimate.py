"""How wrong the server's clock is, probe by probe, and when the next one would tell the most.

Numbers in, numbers out, as in `bounds`, where it stands what a reply says of a clock. Here it is
decided what explains all that was said until now: two clocks of about the same rate, a drift, or
a clock that was set.

Not to be known from stamps, so not claimed: a step, or a rate beyond `RATE`, whose effect is still
within the bounds; until it is noticed, the stated bound is that of a clock without it. Slewing by
more than `RATE` (ntpd's is up to 500 ppm) is a drift, and where it begins and ends a small step.
And the clock is the one that is told: on Linux time(2) changes its second at the kernel's next
tick, up to 10 ms late.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from timestamp_echo.ping.bounds import RATE, Cone, Line, Sample, Step, middle
from timestamp_echo.stamps import SECOND

QUARTER = 900 * SECOND
"""What all zones are multiples of: 15 minutes, in nanoseconds."""

STEPS = 100
"""The most steps that are kept, the latest."""

TRIPS = 8
"""How many round trips tell how long one takes: RFC 5905, section 10, keeps as many."""

HALVINGS = 12
"""Probes that halve a second: 2**-12 of it is a quarter of a millisecond."""


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
            self.steps.append(Step.of(last.sent, self._line.span(sample.received), sample))
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
        centre, bound = middle(low - (zone or 0) * SECOND, high - (zone or 0) * SECOND)
        return Offset(centre, bound, at, zone, self._formula)

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
        return Drift(*middle(slow, fast), self._line.since)

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


def _zone(low: int, high: int) -> int | None:
    """The multiple of 15 minutes that is nearest to both, in seconds; None if there is none."""
    nearest, other = ((end + QUARTER // 2) // QUARTER for end in (low, high))
    return nearest * (QUARTER // SECOND) if nearest == other else None
