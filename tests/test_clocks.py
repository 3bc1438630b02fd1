"""Tests for `timestamp_echo.clocks`."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.clocks import LONG, SET, Clocks
from timestamp_echo.stamps import SECOND

EPOCH = 1795357656 * SECOND


class Host:
    """A host's two clocks, each reading of which takes a moment.

    @param costs: nanoseconds that the next readings take, the first first; then 10 each.
    """

    def __init__(self, costs: list[int] | None = None) -> None:
        self.now = 5 * SECOND
        self.set_by = EPOCH
        self.costs = costs or []
        self.slept: list[float] = []
        self.clocks = Clocks(self.wall, self.steady, self.slept.append)

    def steady(self) -> int:
        """The clock that is never set."""
        self.now += self.costs.pop(0) if self.costs else 10
        return self.now

    def wall(self) -> int:
        """The clock that is."""
        return self.steady() + self.set_by


class ClocksTests(SynchronousTestCase):
    """Both clocks of a host."""

    def test_time(self) -> None:
        """The time at a moment is the wall's clock's."""
        host = Host()
        self.assertEqual(host.clocks.unset(7 * SECOND), 7 * SECOND + EPOCH)
        self.assertEqual(host.clocks.time(7 * SECOND), 7 * SECOND + EPOCH)

    def test_never_set(self) -> None:
        """As long as it is not set, nothing is said."""
        host = Host()
        for _ in range(5):
            self.assertEqual(host.clocks.set_by(), 0)
            host.now += 3600 * SECOND
        self.assertEqual(host.clocks.moved, 0)

    @given(st.integers(SET, 10**18), st.sampled_from([1, -1]))
    def test_set(self, by: int, sign: int) -> None:
        """When it is set, forward or back, that is noticed once."""
        host = Host()
        host.set_by += sign * by
        self.assertEqual([host.clocks.set_by() for _ in range(3)], [sign * by, 0, 0])
        self.assertEqual(host.clocks.moved, sign * by)
        self.assertEqual(host.clocks.unset(0), EPOCH)
        self.assertEqual(host.clocks.time(0), EPOCH + sign * by)

    def test_set_again(self) -> None:
        """Each time it is set is noticed, and what it comes to is kept."""
        host = Host()
        found = []
        for by in (SECOND, -3 * SECOND, SET, 2 * SECOND - SET):
            host.set_by += by
            found += [host.clocks.set_by(), host.clocks.set_by()]
        self.assertEqual(found, [SECOND, 0, -3 * SECOND, 0, SET, 0, 2 * SECOND - SET, 0])
        self.assertEqual(host.clocks.moved, 0)

    def test_drift(self) -> None:
        """What is less than that is none, until it has come to as much."""
        for sign in (1, -1):
            host = Host()
            host.set_by += sign * (SET - 1)
            self.assertEqual(host.clocks.set_by(), 0)
            self.assertEqual(host.clocks.moved, 0)
            host.set_by += sign
            self.assertEqual(host.clocks.set_by(), sign * SET)

    def test_interrupted(self) -> None:
        """Another process between two readings does not look like a clock that was set."""
        slow = [10, 80 * SET, 10]
        quick = [10, 10, 10]
        for looks in (slow + slow + quick, quick + slow + slow, slow + quick + slow):
            host = Host()
            host.costs = list(looks)
            self.assertEqual(host.clocks.set_by(), 0)
            self.assertEqual(host.costs, [])
            self.assertEqual(Host(list(looks)).clocks.unset(0), EPOCH)

    def test_since(self) -> None:
        """How long ago a moment was; 0 if it is none, to come, or a second ago and more."""
        host = Host()
        self.assertEqual(host.clocks.since(host.now + EPOCH), 10)
        self.assertEqual(host.clocks.since(host.now + EPOCH + 10), 0)
        self.assertEqual(host.clocks.since(host.now + EPOCH + 11), 0)
        self.assertEqual(host.clocks.since(host.now + EPOCH + 11 - LONG), LONG - 1)
        self.assertEqual(host.clocks.since(host.now + EPOCH + 10 - LONG), 0)
        self.assertEqual(host.clocks.since(0), 0)

    def test_since_nothing(self) -> None:
        """Even where the clock says that it is 1970."""
        host = Host()
        host.set_by = -host.now
        self.assertEqual(host.clocks.since(0), 0)
        self.assertEqual(host.clocks.since(1), 19)

    def test_sleep(self) -> None:
        """Sleep is in nanoseconds, too."""
        host = Host()
        host.clocks.sleep(1_500_000)
        self.assertEqual(host.slept, [0.0015])

    def test_this_host(self) -> None:
        """Without others they are this host's."""
        clocks = Clocks()
        self.assertLess(abs(clocks.time(clocks.steady()) - time.time_ns()), SECOND)
        # It counts the time that the host was asleep as well.
        self.assertGreater(clocks.steady(), time.monotonic_ns() - SECOND)
        before = time.monotonic_ns()
        clocks.sleep(SET)
        self.assertGreaterEqual(time.monotonic_ns() - before, SET)
