"""Tests for `timestamp_echo.server.connections`."""

from __future__ import annotations

import resource
from unittest.mock import patch

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.server.connections import Limited, Limits, file_limit, source


class Talker(Limited):
    """A connection that remembers what it was told."""

    messages = 0

    def __init__(self) -> None:
        self.told: list[str] = []

    def end(self, why: str) -> None:
        """See `Connection`."""
        self.told.append(why)

    def drain(self) -> None:
        """See `Connection`."""
        self.told.append("drain")

    def abort(self) -> None:
        """See `Connection`."""
        self.told.append("abort")


def ipv4(host: str) -> IAddress:
    """A peer over IPv4."""
    return IPv4Address("TCP", host, 5000)


def ipv6(host: str) -> IAddress:
    """A peer over IPv6."""
    return IPv6Address("TCP", host, 5000)


class FileLimitTests(SynchronousTestCase):
    """`file_limit`."""

    def test_raised(self) -> None:
        """The soft limit is raised to the hard one."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        self.assertEqual(file_limit(), hard)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (hard, hard))

    def test_none(self) -> None:
        """Where there is no limit, it is no small number, whatever stands for it."""
        infinity = resource.RLIM_INFINITY
        with (
            patch("resource.setrlimit"),
            patch("resource.getrlimit", return_value=(1024, infinity)),
        ):
            self.assertGreater(file_limit(), 10**9)

    def test_not_to_be_raised(self) -> None:
        """Where it can't be, it is what it is."""
        with patch("resource.setrlimit", side_effect=ValueError):
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.assertEqual(file_limit(), soft)


class SourceTests(SynchronousTestCase):
    """`source`: what counts as one peer."""

    def test_ipv4(self) -> None:
        """An address, however it is written."""
        self.assertEqual(source(ipv4("192.0.2.1")), source(ipv6("::ffff:192.0.2.1")))
        self.assertNotEqual(source(ipv4("192.0.2.1")), source(ipv4("192.0.2.2")))

    def test_ipv6(self) -> None:
        """A /64, for that is what one host has."""
        self.assertEqual(source(ipv6("2001:db8::1")), source(ipv6("2001:db8::2")))
        self.assertNotEqual(source(ipv6("2001:db8::1")), source(ipv6("2001:db8:0:1::1")))
        self.assertEqual(source(ipv6("fe80::1%eth0")), source(ipv6("fe80::2%eth0")))

    def test_others(self) -> None:
        """UNIX sockets have no peer that could be told apart."""
        self.assertEqual(source(UNIXAddress("/run/x")), b"")
        self.assertEqual(source(None), b"")


class LimitsTests(SynchronousTestCase):
    """`Limits`."""

    def setUp(self) -> None:
        """A clock."""
        self.clock = Clock()

    def enter(self, limits: Limits, address: IAddress | None = None) -> Talker:
        """A connection is made."""
        talker = Talker()
        limits.enter(talker, lambda: address)
        return talker

    def test_no_limits(self) -> None:
        """Without limits anybody may come, and stay."""
        limits = Limits(self.clock, idle=0)
        for _ in range(100):
            self.enter(limits, ipv4("192.0.2.1"))
        self.assertEqual(limits.refusal(ipv4("192.0.2.1")), "")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_total(self) -> None:
        """So many in all; when one leaves, there is room again."""
        limits = Limits(self.clock, 2)
        first = self.enter(limits)
        self.assertEqual(limits.refusal(None), "")
        self.enter(limits)
        self.assertEqual(limits.refusal(None), "2 connections are open, and no more may be")
        limits.leave(first)
        self.assertEqual(limits.refusal(None), "")

    def test_per_peer(self) -> None:
        """So many of one peer; others, and UNIX sockets, are not concerned."""
        limits = Limits(self.clock, per_peer=2)
        first = self.enter(limits, ipv4("192.0.2.1"))
        self.enter(limits, ipv6("::ffff:192.0.2.1"))
        self.assertEqual(
            limits.refusal(ipv4("192.0.2.1")),
            "2 connections from your address are open, and no more may be",
        )
        self.assertEqual(limits.refusal(ipv4("192.0.2.2")), "")
        for _ in range(5):
            self.enter(limits, UNIXAddress(None))
        self.assertEqual(limits.refusal(UNIXAddress(None)), "")
        limits.leave(first)
        self.assertEqual(limits.refusal(ipv4("192.0.2.1")), "")

    def test_peers_forgotten(self) -> None:
        """Who has left leaves nothing behind."""
        limits = Limits(self.clock, per_peer=2)
        for number in range(100):
            limits.leave(self.enter(limits, ipv4(f"192.0.2.{number}")))
        self.assertEqual(len(limits._peers), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """A connection without an exchange is ended; if that does not help, aborted."""
        limits = Limits(self.clock, idle=100)
        talker = self.enter(limits)
        self.clock.pump([10] * 9)
        self.assertEqual(talker.told, [])
        self.clock.advance(10)
        self.assertEqual(talker.told, ["idle for 100 s"])
        self.clock.advance(10)
        self.assertEqual(talker.told, ["idle for 100 s", "abort"])

    def test_not_idle(self) -> None:
        """One with an exchange now and then may stay for ever."""
        limits = Limits(self.clock, idle=100)
        talker = self.enter(limits)
        for _ in range(50):
            self.clock.pump([10] * 9)
            talker.messages += 1
        self.assertEqual(talker.told, [])

    def test_all_left(self) -> None:
        """Who asks is told when the last has left, or at once if there is none."""
        limits = Limits(self.clock)
        self.successResultOf(limits.all_left())
        talkers = [self.enter(limits) for _ in range(2)]
        self.assertEqual(set(limits), set(talkers))
        left = limits.all_left()
        for talker in limits:
            self.assertNoResult(left)
            limits.leave(talker)
        self.successResultOf(left)

    def test_one_timer(self) -> None:
        """However many there are, one timer looks at all of them; with none, there is none."""
        limits = Limits(self.clock, idle=100)
        talkers = [self.enter(limits) for _ in range(100)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(10)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for talker in talkers:
            limits.leave(talker)
        self.assertEqual(self.clock.getDelayedCalls(), [])
