"""Tests for `timestamp_echo.clocks`."""

from __future__ import annotations

import time
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.clocks import (
    MAX_AGE,
    STEP_THRESHOLD,
    Clocks,
    monotonic_ns,
    use_monotonic_clock,
)
from timestamp_echo.stamps import SECOND

EPOCH = 1795357656 * SECOND


class Host:
    """A host's two clocks. Each reading takes time, so the next one differs.

    @param costs: nanoseconds that the next readings take, in their order; those after them take
        10 each.
    """

    def __init__(self, costs: list[int] | None = None) -> None:
        self.now = 5 * SECOND
        self.offset = EPOCH
        self.costs = costs or []
        self.slept: list[float] = []
        self.clocks = Clocks(self.wall, self.monotonic, self.slept.append)

    def monotonic(self) -> int:
        """Read the monotonic clock."""
        self.now += self.costs.pop(0) if self.costs else 10
        return self.now

    def wall(self) -> int:
        """Read the wall clock."""
        return self.monotonic() + self.offset


class ClocksTests(SynchronousTestCase):
    """`Clocks`: the monotonic clock against the wall clock."""

    def test_time(self) -> None:
        """A moment of the monotonic clock converts to wall-clock time."""
        host = Host()
        self.assertEqual(host.clocks.initial_wall_time(7 * SECOND), 7 * SECOND + EPOCH)
        self.assertEqual(host.clocks.wall_time(7 * SECOND), 7 * SECOND + EPOCH)

    def test_no_step(self) -> None:
        """Without a step none is reported, however much time passes."""
        host = Host()
        for _ in range(5):
            self.assertEqual(host.clocks.step(), 0)
            host.now += 3600 * SECOND
        self.assertEqual(host.clocks.stepped, 0)

    @given(st.integers(STEP_THRESHOLD, 10**18), st.sampled_from([1, -1]))
    def test_step(self, step: int, sign: int) -> None:
        """A step, forward or back, is reported once, and changes `wall_time` alone."""
        host = Host()
        host.offset += sign * step
        self.assertEqual([host.clocks.step() for _ in range(3)], [sign * step, 0, 0])
        self.assertEqual(host.clocks.stepped, sign * step)
        self.assertEqual(host.clocks.initial_wall_time(0), EPOCH)
        self.assertEqual(host.clocks.wall_time(0), EPOCH + sign * step)

    def test_several_steps(self) -> None:
        """Each step is reported, and `stepped` is their sum."""
        host = Host()
        found = []
        for step in (SECOND, -3 * SECOND, STEP_THRESHOLD, 2 * SECOND - STEP_THRESHOLD):
            host.offset += step
            found += [host.clocks.step(), host.clocks.step()]
        last = 2 * SECOND - STEP_THRESHOLD
        self.assertEqual(found, [SECOND, 0, -3 * SECOND, 0, STEP_THRESHOLD, 0, last, 0])
        self.assertEqual(host.clocks.stepped, 0)

    def test_below_threshold(self) -> None:
        """Less than the threshold is no step, until small ones add up to it."""
        for sign in (1, -1):
            host = Host()
            host.offset += sign * (STEP_THRESHOLD - 1)
            self.assertEqual(host.clocks.step(), 0)
            self.assertEqual(host.clocks.stepped, 0)
            host.offset += sign
            self.assertEqual(host.clocks.step(), sign * STEP_THRESHOLD)

    def test_preempted(self) -> None:
        """A delay between two readings is not taken for a step."""
        slow = [10, 80 * STEP_THRESHOLD, 10]
        quick = [10, 10, 10]
        for costs in (slow + slow + quick, quick + slow + slow, slow + quick + slow):
            host = Host()
            host.costs = list(costs)
            self.assertEqual(host.clocks.step(), 0)
            self.assertEqual(host.costs, [])
            self.assertEqual(Host(list(costs)).clocks.initial_wall_time(0), EPOCH)

    def test_since(self) -> None:
        """The age of an arrival; 0 if it is in the future, too old, or unknown."""
        host = Host()
        self.assertEqual(host.clocks.age(host.now + EPOCH), 10)
        self.assertEqual(host.clocks.age(host.now + EPOCH + 10), 0)
        self.assertEqual(host.clocks.age(host.now + EPOCH + 11), 0)
        self.assertEqual(host.clocks.age(host.now + EPOCH + 11 - MAX_AGE), MAX_AGE - 1)
        self.assertEqual(host.clocks.age(host.now + EPOCH + 10 - MAX_AGE), 0)
        self.assertEqual(host.clocks.age(0), 0)

    def test_since_unknown(self) -> None:
        """An unknown arrival has no age, even if the wall clock is at the epoch."""
        host = Host()
        host.offset = -host.now
        self.assertEqual(host.clocks.age(0), 0)
        self.assertEqual(host.clocks.age(1), 19)

    def test_sleep(self) -> None:
        """`sleep` takes nanoseconds."""
        host = Host()
        host.clocks.sleep(1_500_000)
        self.assertEqual(host.slept, [0.0015])

    def test_this_host(self) -> None:
        """By default the clocks are this host's."""
        clocks = Clocks()
        self.assertLess(abs(clocks.wall_time(clocks.monotonic()) - time.time_ns()), SECOND)
        before = time.monotonic_ns()
        clocks.sleep(STEP_THRESHOLD)
        self.assertGreaterEqual(time.monotonic_ns() - before, STEP_THRESHOLD)

    def test_suspended(self) -> None:
        """On Linux the monotonic clock includes the time for which the host was suspended."""
        linux = SimpleNamespace(CLOCK_BOOTTIME=7, clock_gettime_ns={7: 5}.__getitem__)
        with patch("timestamp_echo.clocks.time", linux):
            self.assertEqual(monotonic_ns(), 5)

    def test_no_boot_time(self) -> None:
        """Where there is no CLOCK_BOOTTIME, it is Python's monotonic clock."""
        with patch("timestamp_echo.clocks.time", SimpleNamespace(monotonic_ns=lambda: 7)):
            self.assertEqual(monotonic_ns(), 7)

    def test_reactor(self) -> None:
        """A reactor's timers follow the monotonic clock, in seconds."""
        reactor = SimpleNamespace(seconds=time.time)
        use_monotonic_clock(reactor)
        before = monotonic_ns()
        seconds = reactor.seconds()
        self.assertTrue(before <= seconds * SECOND <= monotonic_ns())

    def test_reactor_without_boot_time(self) -> None:
        """Where there is no CLOCK_BOOTTIME, they follow Python's monotonic clock."""
        reactor = SimpleNamespace(seconds=time.time)
        with patch("timestamp_echo.clocks.time", SimpleNamespace(monotonic=lambda: 7.5)):
            use_monotonic_clock(reactor)
        self.assertEqual(reactor.seconds(), 7.5)
