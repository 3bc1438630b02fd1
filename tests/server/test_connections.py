"""Tests for `timestamp_echo.server.connections`."""

from __future__ import annotations

import resource
from unittest.mock import patch

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.server.connections import Connection, Connections, address_key, file_limit


class FakeConnection:
    """A `Connection` that remembers the calls of its methods."""

    peer_key = b""
    messages_seen = 0
    idle_checks = 0
    messages = 0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def end(self, why: str) -> None:
        """See `Connection`."""
        self.calls.append(why)

    def drain(self) -> None:
        """See `Connection`."""
        self.calls.append("drain")

    def abort(self) -> None:
        """See `Connection`."""
        self.calls.append("abort")


typed: Connection = FakeConnection()  # mypy checks that the fake is one


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


class AddressKeyTests(SynchronousTestCase):
    """`address_key`: what counts as one peer; `test_addresses` has more."""

    def test_ip(self) -> None:
        """An IPv4 address is one peer, however it is written."""
        self.assertEqual(address_key(ipv4("192.0.2.1")), address_key(ipv6("::ffff:192.0.2.1")))
        self.assertNotEqual(address_key(ipv4("192.0.2.1")), address_key(ipv4("192.0.2.2")))

    def test_others(self) -> None:
        """Peers at UNIX sockets cannot be calls apart."""
        self.assertEqual(address_key(UNIXAddress("/run/x")), b"")
        self.assertEqual(address_key(None), b"")


class LimitsTests(SynchronousTestCase):
    """`Connections`."""

    def setUp(self) -> None:
        """A clock."""
        self.clock = Clock()

    def added(self, connections: Connections, address: IAddress | None = None) -> FakeConnection:
        """A connection is made."""
        connection = FakeConnection()
        connections.add(connection, lambda: address)
        return connection

    def test_no_connections(self) -> None:
        """Without connections anybody may come, and stay."""
        connections = Connections(self.clock, idle_timeout=0)
        for _ in range(100):
            self.added(connections, ipv4("192.0.2.1"))
        self.assertEqual(connections.refusal(ipv4("192.0.2.1")), "")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_total(self) -> None:
        """So many in all; when one leaves, there is room again."""
        connections = Connections(self.clock, 2)
        first = self.added(connections)
        self.assertEqual(connections.refusal(None), "")
        self.added(connections)
        self.assertEqual(connections.refusal(None), "too many connections: the limit is 2")
        connections.remove(first)
        self.assertEqual(connections.refusal(None), "")

    def test_per_peer(self) -> None:
        """So many of one peer; others, and UNIX sockets, are not concerned."""
        connections = Connections(self.clock, max_per_peer=2)
        first = self.added(connections, ipv4("192.0.2.1"))
        self.added(connections, ipv6("::ffff:192.0.2.1"))
        self.assertEqual(
            connections.refusal(ipv4("192.0.2.1")),
            "too many connections from your address: the limit is 2",
        )
        self.assertEqual(connections.refusal(ipv4("192.0.2.2")), "")
        for _ in range(5):
            self.added(connections, UNIXAddress(None))
        self.assertEqual(connections.refusal(UNIXAddress(None)), "")
        connections.remove(first)
        self.assertEqual(connections.refusal(ipv4("192.0.2.1")), "")

    def test_peers_forgotten(self) -> None:
        """Who has left leaves nothing behind."""
        connections = Connections(self.clock, max_per_peer=2)
        for number in range(100):
            connections.remove(self.added(connections, ipv4(f"192.0.2.{number}")))
        self.assertEqual(len(connections._peers), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """A connection without an exchange is ended; if that does not help, aborted."""
        connections = Connections(self.clock, idle_timeout=100)
        connection = self.added(connections)
        self.clock.pump([10] * 10)
        self.assertEqual(connection.calls, [])
        self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s"])
        self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s", "abort"])

    def test_idle_with_pending_message(self) -> None:
        """An answer to what was pending, made by the end itself, does not start a new timeout."""
        connections = Connections(self.clock, idle_timeout=100)
        connection = self.added(connections)
        self.clock.pump([10] * 11)
        connection.messages += 1
        self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s", "abort"])

    def test_not_idle(self) -> None:
        """One with an exchange now and then may stay for ever."""
        connections = Connections(self.clock, idle_timeout=100)
        connection = self.added(connections)
        for _ in range(50):
            self.clock.pump([10] * 9)
            connection.messages += 1
        self.assertEqual(connection.calls, [])

    def test_all_closed(self) -> None:
        """Who asks is calls when the last has left, or at once if there is none."""
        connections = Connections(self.clock)
        self.successResultOf(connections.all_closed())
        opened = [self.added(connections) for _ in range(2)]
        self.assertEqual(set(connections), set(opened))
        left = connections.all_closed()
        for connection in connections:
            self.assertNoResult(left)
            connections.remove(connection)
        self.successResultOf(left)

    def test_one_timer(self) -> None:
        """However many there are, one timer looks at all of them; with none, there is none."""
        connections = Connections(self.clock, idle_timeout=100)
        opened = [self.added(connections) for _ in range(100)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(10)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for connection in opened:
            connections.remove(connection)
        self.assertEqual(self.clock.getDelayedCalls(), [])
