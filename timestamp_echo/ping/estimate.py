"""How wrong the server's clock is, updated with each probe, and when to send the next probe.

Integers in, integers out. `bounds` says what one sample implies under a given model of the two
clocks. This module decides which model explains all samples so far: two clocks of about the same
rate, a constant drift, or a clock that was stepped.

A step, or a rate beyond `TOLERANCE`, cannot be detected from stamps while its effect is smaller
than the bounds. Until it is detected, the stated bound assumes that there was none.
Slewing faster than `TOLERANCE` (ntpd slews by up to 500 ppm) is seen as a drift, and its beginning
and end as small steps. And the clock measured is the one in the stamps: on Linux, time(2) moves to
the next second at a timer tick of the kernel, up to 10 ms late.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from timestamp_echo.ping.bounds import TOLERANCE, Cone, Polygon, Sample, Step, midpoint
from timestamp_echo.stamps import SECOND

ZONE_STEP = 900 * SECOND
"""All time zones are multiples of this: 15 minutes, in nanoseconds."""

ZONES = range(-12 * 3600, 14 * 3600 + 1)
"""From the westernmost zone to the easternmost, UTC-12:00 to UTC+14:00, in seconds east of UTC."""

MAX_STEPS = 100
"""Steps that are kept; older ones are dropped."""

RECENT = 8
"""Recent round trips from which the next one is predicted; RFC 5905, section 10, keeps as many."""

HALVINGS = 12
"""Probes that each halve a bound of one second: 2**-12 s is a quarter of a millisecond."""

Model = Literal["rate", "drift", "either"]


class Offset(NamedTuple):
    """How far the server's clock is ahead of the client's."""

    nanoseconds: int
    """Midpoint of the possible offsets, without the zone; negative if the server is behind."""

    bound: int
    """Maximum error of `nanoseconds`, in nanoseconds."""

    at: int
    """The client's clock when the offset applied: when the last reply arrived."""

    zone: int | None
    """Zone of a stamp that names none, in seconds east of UTC; 0 if the stamp names its zone.

    This is the multiple of 15 minutes nearest to the measured offset, so a clock that is wrong by
    more than 7.5 minutes looks as if it were in another zone. None if two multiples are possible,
    or if no zone is that far from UTC; `nanoseconds` then includes the zone.
    """

    formula: Model
    """The assumption behind the bound.

    `rate`: the clocks differ by `TOLERANCE` at most. `drift`: the server's clock has the constant
    rate that was found, because the samples exclude `TOLERANCE`. `either`: that, or a step; later
    samples will tell, and the bound covers both.
    """

    @property
    def beyond_zones(self) -> bool:
        """Whether no time zone explains the offset, so that one of the clocks is wrong."""
        low, high = self.nanoseconds - self.bound, self.nanoseconds + self.bound
        return self.zone is None and (
            high < ZONES.start * SECOND or low > (ZONES.stop - 1) * SECOND
        )


class Drift(NamedTuple):
    """The rate of the server's clock relative to the client's, if it is constant."""

    rate: int
    """Nanoseconds per second (1000 are 1 ppm); negative if the server's clock is slower."""

    bound: int
    """Maximum error of `rate`, in nanoseconds per second."""

    since: int
    """The client's clock when the first of the probes behind this rate was sent."""


class Estimate:
    """The offset of one server's clock, updated with each sample.

    Adding a sample costs two multiplications per vertex of a polygon that usually has ten to twenty
    (8 microseconds on one machine). Memory is bounded by `MAX_VERTICES`, `MAX_STEPS` and `RECENT`.
    """

    # Both models of `bounds` are kept up to date. Which of them still explains the samples
    # decides what is known about the clock:
    #
    #     model   cone     drifts  meaning
    #     rate    present  False   the cone explains all samples since the last step
    #     either  present  True    the cone became empty, the polygon did not: the clock drifts by
    #                              more than TOLERANCE, or it was stepped. This cone is a new one,
    #                              of the samples since then.
    #     drift   None     True    the new cone became empty too. A single step does not explain
    #                              that, a drift does.
    #
    # If the polygon becomes empty, the clock was stepped, or its rate changed within TOLERANCE.
    # It is then started again, and the cone says which of the two it was: only a step empties it.

    def __init__(self) -> None:
        self.steps: deque[Step] = deque(maxlen=MAX_STEPS)
        """Steps detected, oldest first. One that looks like a drift is added once it is certain."""
        self._last: Sample | None = None
        self._round_trips: deque[int] = deque(maxlen=RECENT)
        self._aimed: int  # aimed probes answered since the cone was started
        self._polygon: Polygon
        self._cone: Cone | None
        self._drifts = False
        self._suspected: Step | None = None  # in `either`: the step, if it was one

    def add(self, sample: Sample, *, aimed: bool = False) -> None:
        """Add a sample. Samples have to be added in the order in which the replies arrived.

        @param aimed: whether the probe was sent when `aim` said.
        """
        if self._last is None:
            self._cone, self._polygon = self._new_cone(sample), Polygon.of(sample)
        else:
            self._aimed += aimed
            self._update(sample, self._last)
        self._last = sample
        self._round_trips.append(sample.received - sample.sent)

    def _new_cone(self, sample: Sample) -> Cone:
        # A new cone is as wide as the first one was, so aiming starts again as well.
        self._aimed = 0
        return Cone.of(sample)

    def _update(self, sample: Sample, previous: Sample) -> None:
        cone = self._cone.intersect(sample) if self._cone else None
        polygon = self._polygon.intersect(sample)
        if cone is None and self._predates_polygon(sample):
            polygon = None
        if polygon is None:
            polygon = self._restarted(sample, previous, stepped=cone is None)
            cone = cone or self._new_cone(sample)
        elif cone is None:
            cone = self._suspicious(sample)
        self._cone, self._polygon = cone, polygon

    def _predates_polygon(self, sample: Sample) -> bool:
        """Whether the sample contradicts one that is older than the polygon."""
        # A restarted polygon knows nothing of the samples before. Even if it is not empty, a
        # constant rate may not explain those.
        if self._cone is None or self._drifts:
            return False
        return self._cone.step(sample).after < self._polygon.since

    def _suspicious(self, sample: Sample) -> Cone | None:
        """Go from `rate` to `either`, or from `either` to `drift`: the polygon alone is left.

        @return: the cone to go on with.
        """
        if self._drifts or self._cone is None:
            self._suspected = None
            return None
        self._suspected, self._drifts = self._cone.step(sample), True
        return self._new_cone(sample)

    def _restarted(self, sample: Sample, previous: Sample, stepped: bool) -> Polygon:
        """Start a new polygon, and record the steps that are now certain."""
        # Setting a clock does not change how fast it runs: a drift that was certain goes on, so
        # the new polygon may start with its rates. While a step is suspected it is not certain.
        steady = stepped and self._drifts and self._suspected is None
        if self._suspected:
            # No constant rate explains the samples, so the suspected step was one.
            self.steps.append(self._suspected)
        if stepped:
            self.steps.append(self._step(sample, previous))
        self._suspected, self._drifts = None, steady
        return Polygon.of(sample, self._polygon.rates()) if steady else Polygon.of(sample)

    def _step(self, sample: Sample, previous: Sample) -> Step:
        if self._cone:
            return self._cone.step(sample)
        # Only a polygon was left, which does not remember which sample set which edge. But it
        # was not empty after the previous sample.
        return Step.between(previous.sent, self._polygon.interval(sample.received), sample)

    @property
    def offset(self) -> Offset | None:
        """The offset when the last reply arrived; None before the first."""
        if self._last is None:
            return None
        at = self._last.received
        low, high = self._interval(at)
        zone = 0 if self._last.moment.zoned else _zone(low, high)
        middle, bound = midpoint(low - (zone or 0) * SECOND, high - (zone or 0) * SECOND)
        return Offset(middle, bound, at, zone, self._model)

    @property
    def drift(self) -> Drift | None:
        """The rate of the server's clock; None until it is known better than to `TOLERANCE`.

        A step starts it again, unless the clock had a drift beyond `TOLERANCE` before.
        """
        # In `either` the polygon may contain a step, and its slope would not be a rate.
        if self._last is None or self._model == "either":
            return None
        slow, fast = self._polygon.rates()
        if self._model == "rate" and fast - slow >= 2 * TOLERANCE:
            return None
        return Drift(*midpoint(slow, fast), self._polygon.since)

    @property
    def _model(self) -> Model:
        if not self._drifts:
            return "rate"
        return "either" if self._cone else "drift"

    def aim(self, due: int, next_due: int) -> int | None:
        """When to send the next probe, so that its reply narrows the bound most.

        Only stamps of whole seconds need it. Their bound starts at half a second, and each aimed
        probe halves it, down to about a round trip. From then on every second aimed probe is sent
        well before or after the change of the second.

        @param due: when the probe is due by the client's clock, in nanoseconds.
        @param next_due: when the probe after it is due.
        @return: `due` or later, before `next_due`; None if no such moment is worth more than any
            other.
        """
        if self._last is None or self._last.moment.resolution < SECOND:
            return None
        # A stamp of whole seconds says little, but it does say whether the server's second had
        # already changed when the probe arrived. So ask that question where it is worth most. If
        # the offset were exactly the middle of the possible ones, a probe sent at a certain moment
        # would arrive at the very instant of the change. Send it at that moment: if the stamp shows
        # the new second, the offset is in the upper half, otherwise in the lower. That is a
        # bisection, one bit per probe.
        #
        # With `ahead` between the client's clock now and the server's on arrival, the moment is
        # the first t >= due at which t + ahead is a whole second. -x % SECOND is the distance from
        # x to the next whole second. If the clock drifts, `ahead` is another one by then.
        first = due + -(due + self._ahead(due)) % SECOND
        moment = max(due, first + self._ahead(due) - self._ahead(first))
        # With several probes in each second, only one of them can be sent then.
        return moment if moment < next_due else None

    def _ahead(self, at: int) -> int:
        """How far the server's clock, when the probe arrives, is ahead of the client's at `at`."""
        low, high = self._interval(at)
        ordered = sorted(self._round_trips)
        # Only aimed probes take turns. If all did, the same turn could always fall to a probe that
        # cannot be aimed: with two probes a second, that is every second one.
        turn = (self._aimed - HALVINGS) % 4
        if self._aimed < HALVINGS or turn in (1, 3):
            # The middle of the interval, plus half the shortest round trip for the way there.
            return (low + high + ordered[0]) // 2
        # If every probe arrived at the change, a small step would go unnoticed: each reply would
        # fit, and the bound would slowly follow the clock. So every second one is sent when its
        # stamp is known beforehand. If it differs, the clock was stepped.
        if turn == 0:
            # Early: even if the server's clock is as far ahead as it can be, the reply is back
            # before the second changes. A stamp that shows the new second is then a contradiction;
            # with a later reply, it could have been made after the change. Most probes are
            # slower than the fastest, so the allowance is two round trips of median length.
            return high + 2 * ordered[len(ordered) // 2]
        # Late: even if the server's clock is as far behind as it can be, the second has changed
        # before the probe is sent, with the shortest round trip to spare.
        return low - ordered[0]

    def interval(self, at: int) -> tuple[int, int] | None:
        """The lowest and highest possible offset at a moment; None before the first reply.

        If the stamps name no zone, both include its unknown offset.

        @param at: the client's clock, not earlier than the last sample, in nanoseconds.
        """
        return None if self._last is None else self._interval(at)

    def _interval(self, at: int) -> tuple[int, int]:
        """The lowest and highest possible offset, in nanoseconds, now or later."""
        if not self._cone:
            return self._polygon.interval(at)
        low, high = self._cone.interval(at)
        if not self._drifts:
            return low, high
        # `either`: the hull of both, since either may be true.
        other_low, other_high = self._polygon.interval(at)
        return min(low, other_low), max(high, other_high)


def _zone(low: int, high: int) -> int | None:
    """The zone nearest to all offsets in an interval, in seconds; None if that is not one zone."""
    nearest, other = ((end + ZONE_STEP // 2) // ZONE_STEP for end in (low, high))
    zone = nearest * (ZONE_STEP // SECOND)
    return zone if nearest == other and zone in ZONES else None
