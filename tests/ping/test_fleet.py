"""Tests for `timestamp_echo.ping.fleet`, with pingers that only connect."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.clocks import Clocks
from timestamp_echo.ping.fleet import Fleet
from timestamp_echo.ping.probe import Probes
from timestamp_echo.ping.scheduler import Pinger, Plan
from timestamp_echo.ping.stats import Host
from timestamp_echo.ping.transport import Path, PathListener
from timestamp_echo.stamps import SECOND


class FakePath:
    """A path that answers every probe at once, without a stamp."""

    arrival = 0
    refused = full = closed = False

    def __init__(self, listener: PathListener) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        """See `Path.write`."""
        self._listener.replied(data)

    def release(self, data: bytes) -> None:
        """See `Path.release`."""

    def close(self) -> None:
        """See `Path.close`."""
        self.closed = True


class FleetTests(SynchronousTestCase):
    """`Fleet`, with three servers and a probe each."""

    deadline = 0.0

    def setUp(self) -> None:
        """No server is asked yet."""
        self.clock = Clock()
        clocks = Clocks(lambda: 0, lambda: round(self.clock.seconds() * SECOND), lambda _: None)
        self.connecting: dict[str, Deferred[Path]] = {}
        self.listeners: dict[str, PathListener] = {}
        names, probes = ("a", "b", "c"), Probes("0123456789ab", 64)
        pingers = [
            Pinger(Plan(count=1), probes, partial(self.connect, name), self.clock, clocks, [])
            for name in names
        ]
        self.unreachable: list[Host] = []
        self.fleet = Fleet(
            names, pingers, 3 * SECOND, self.deadline, self.clock, self.unreachable.append
        )

    def connect(self, name: str, listener: PathListener) -> Deferred[Path]:
        """See `Pinger`."""
        self.listeners[name] = listener
        self.connecting[name] = Deferred()
        return self.connecting[name]

    def answer(self, name: str) -> FakePath:
        """Let a server be reached, and answer."""
        path = FakePath(self.listeners[name])
        self.connecting[name].callback(path)
        return path

    def test_spread(self) -> None:
        """The servers are started spread over the interval; the end is that of the last."""
        done = self.fleet.start()
        self.assertFalse(self.fleet.sent)
        self.clock.advance(0)
        for asked in (1, 2, 3):
            self.assertEqual(list(self.connecting), ["a", "b", "c"][:asked])
            self.clock.advance(1)
        self.assertTrue(self.fleet.connecting)
        for name in ("c", "a"):
            self.answer(name)
            self.assertTrue(self.fleet.sent)
            self.assertNoResult(done)
        self.answer("b")
        self.assertIsNone(self.successResultOf(done))
        self.assertFalse(self.fleet.connecting)
        self.assertEqual([host.stats.received for host in self.fleet.hosts], [1, 1, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unreachable(self) -> None:
        """A server that cannot be reached has a reason, and the others go on."""
        done = self.fleet.start()
        self.clock.pump([1, 1])
        self.connecting["b"].errback(Failure(DNSLookupError()))
        self.assertEqual(self.unreachable, [self.fleet.hosts[1]])  # at once
        self.answer("a")
        self.assertNoResult(done)
        self.answer("c")
        self.successResultOf(done)
        self.assertEqual(
            [(host.name, host.error, host.stats.received) for host in self.fleet.hosts],
            [("a", "", 1), ("b", "no address found for this name", 0), ("c", "", 1)],
        )

    def test_stop(self) -> None:
        """All end at once, in whatever state they are; one that was not started never is."""
        done = self.fleet.start()
        self.clock.advance(1)
        self.answer("a")
        self.fleet.stop()
        self.successResultOf(done)
        self.assertTrue(self.answer("b").closed)
        self.assertEqual(list(self.connecting), ["a", "b"])
        self.assertEqual([host.error for host in self.fleet.hosts], ["", "", ""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_connecting(self) -> None:
        """A connection attempt may still be in progress afterwards."""
        self.fleet.start()
        self.clock.advance(0)
        self.fleet.stop()
        self.assertTrue(self.fleet.connecting)
        self.answer("a")
        self.assertFalse(self.fleet.connecting)

    def test_current(self) -> None:
        """The statistics are brought up to date on request."""
        self.fleet.start()
        self.clock.advance(0.5)
        self.assertEqual([host.stats.duration for host in self.fleet.current_hosts()], [0.5] * 3)
        self.fleet.stop()


class DeadlineTests(FleetTests):
    """The same with a deadline, which is cancelled when all are done; and when it passes."""

    deadline = 10.0

    def test_deadline(self) -> None:
        """The run ends at the deadline, whenever each server was started."""
        done = self.fleet.start()
        self.clock.advance(9.9)
        self.answer("a")
        self.assertNoResult(done)
        self.clock.advance(0.1)
        self.successResultOf(done)
        self.assertEqual([host.error for host in self.fleet.hosts], ["", "", ""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_before_all_have_started(self) -> None:
        """A server whose turn comes after the deadline is not asked."""
        self.fleet._deadline = 0.5
        done = self.fleet.start()
        self.clock.advance(0.5)
        self.successResultOf(done)
        self.assertEqual(list(self.connecting), ["a"])
