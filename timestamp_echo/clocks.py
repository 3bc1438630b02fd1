"""The two clocks of this host: the one that tells the time, and may be set; the one that never is.

Moments are nanoseconds of the second, so that no setting of the first can
make a round trip long or negative.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from timestamp_echo.stamps import SECOND

SET = SECOND // 1000
"""Nanoseconds by which one clock must have moved against the other to have been set."""

LONG = 60 * SECOND
"""Nanoseconds beyond which what was read can't have waited for it."""

_LOOKS = 3  # of which the quickest counts: between two readings there may be another process


def steady() -> int:
    """Nanoseconds of a clock that is never set, nor stands still while the host is asleep."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


class Clocks:
    """Both clocks.

    @param wall: the time, in nanoseconds since the epoch.
    @param steady: nanoseconds of a clock that is never set.
    @param sleep: does nothing for so many seconds.
    """

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = steady,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wall = wall
        self.steady = steady
        self._sleep = sleep
        self._base = self._difference()
        self.moved = 0
        """Nanoseconds by which the time was set forward until now."""

    def unset(self, moment: int) -> int:
        """The time at a moment, had it never been set since the beginning."""
        return moment + self._base

    def time(self, moment: int) -> int:
        """The time at a moment, as the clock is set now."""
        return moment + self._base + self.moved

    def since(self, time: int) -> int:
        """Nanoseconds since this time, a short while ago; 0 if it is none, or 0."""
        passed = self._wall() - time
        return passed if time and 0 <= passed < LONG else 0

    def sleep(self, nanoseconds: int) -> None:
        """Do nothing for so long."""
        self._sleep(nanoseconds / SECOND)

    def set_by(self) -> int:
        """By how many nanoseconds the time was set since this was asked last, or 0."""
        moved = self._difference() - self._base - self.moved
        if abs(moved) < SET:
            return 0
        self.moved += moved
        return moved

    def _difference(self) -> int:
        """How far the wall's clock is ahead of the steady one."""
        looks = []
        for _ in range(_LOOKS):
            before, wall, after = self.steady(), self._wall(), self.steady()
            looks.append((after - before, wall - (before + after) // 2))
        return min(looks)[1]
