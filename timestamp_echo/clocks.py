"""The monotonic clock and the wall clock of this host.

Timers and durations follow the monotonic clock. So a step of the wall clock (by an operator, or by
NTP) neither shortens nor lengthens a wait, and makes no round trip look long or negative. Comparing
the two clocks detects it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from timestamp_echo.stamps import SECOND

STEP_THRESHOLD = SECOND // 1000
"""Nanoseconds by which one clock must have moved against the other to count as a step.

Slewing (adjtime(3)) and frequency corrections move both clocks alike, so anything smaller is
measurement error. Small steps that add up to this much count as one.
"""

MAX_AGE = 60 * SECOND
"""Nanoseconds; an older arrival time is wrong, because no data waits that long to be read."""

_READINGS = 3
"""How often the clocks are compared; the quickest comparison counts.

If another process runs in the middle of one, its readings are not of the same moment.
"""


def monotonic_ns() -> int:
    """Nanoseconds of a clock that is never set, and goes on while the host is suspended.

    On Linux that is CLOCK_BOOTTIME (clock_gettime(2)); CLOCK_MONOTONIC stops during suspend.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


def use_monotonic_clock(reactor: Any) -> None:
    """Make a reactor's timers follow the clock of `monotonic_ns`; Twisted's follow the wall clock.

    A timer that is already set keeps its due time by the old clock. So call this before any timer
    is set, and only on a reactor that belongs to this program.

    @param reactor: an `IReactorTime`; its `seconds` is replaced.
    """
    # Not a Python function: a service with many timers calls this often.
    if hasattr(time, "CLOCK_BOOTTIME"):
        reactor.seconds = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    else:
        reactor.seconds = time.monotonic


class Clocks:
    """Both clocks, and the conversion from one to the other.

    @param wall: reads the wall clock, in nanoseconds since the epoch.
    @param monotonic: reads the monotonic clock, in nanoseconds since any moment.
    @param sleep: sleeps for a number of seconds.
    """

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wall = wall
        self.monotonic = monotonic
        self._sleep = sleep
        self._initial_offset = self._offset()
        self.stepped = 0
        """Nanoseconds by which the wall clock was stepped forward so far; the sum of `step`."""

    def initial_wall_time(self, moment: int) -> int:
        """Convert a moment of the monotonic clock to wall-clock time, as if that was never stepped.

        @return: nanoseconds since the epoch.
        """
        return moment + self._initial_offset

    def wall_time(self, moment: int) -> int:
        """Convert a moment of the monotonic clock to wall-clock time, as it is set now.

        @return: nanoseconds since the epoch.
        """
        return moment + self._initial_offset + self.stepped

    def age(self, time: int) -> int:
        """How long ago an arrival was.

        @param time: its wall-clock time, in nanoseconds since the epoch; 0 if it is unknown.
        @return: nanoseconds; 0 if the time is unknown, in the future, or `MAX_AGE` ago or more, as
            after a step of the wall clock.
        """
        age = self._wall() - time
        return age if time and 0 <= age < MAX_AGE else 0

    def sleep(self, nanoseconds: int) -> None:
        """Sleep, which blocks the process."""
        self._sleep(nanoseconds / SECOND)

    def step(self) -> int:
        """The step of the wall clock since the last call.

        @return: nanoseconds, positive if it was set forward; 0 if there was none of
            `STEP_THRESHOLD` or more.
        """
        step = self._offset() - self._initial_offset - self.stepped
        if abs(step) < STEP_THRESHOLD:
            return 0
        self.stepped += step
        return step

    def _offset(self) -> int:
        """How far the wall clock is ahead of the monotonic one, in nanoseconds.

        The wall clock is read between two readings of the other, and compared with their mean: the
        error is at most half of the time between them.
        """
        readings = []
        for _ in range(_READINGS):
            before, wall, after = self.monotonic(), self._wall(), self.monotonic()
            readings.append((after - before, wall - (before + after) // 2))
        return min(readings)[1]
