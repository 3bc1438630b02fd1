"""Tests for `timestamp_echo.server.connections`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.addresses import parse_network
from timestamp_echo.server.closing import LINGER_TIMEOUT
from timestamp_echo.server.connections import (
    IDLE_TIMEOUT,
    RESERVED_FILES,
    Connection,
    Connections,
    address_key,
    file_limit,
)


class FakeConnection:
    """A `Connection` that records the calls of its methods."""

    peer_key = b""
    progress_seen = 0
    idle_checks = 0
    progress = 0

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


typed: Connection = FakeConnection()  # mypy checks that it conforms


def ipv4(host: str) -> IAddress:
    """The address of a peer over IPv4."""
    return IPv4Address("TCP", host, 5000)


def ipv6(host: str) -> IAddress:
    """The address of a peer over IPv6."""
    return IPv6Address("TCP", host, 5000)


class FileLimitTests(SynchronousTestCase):
    """`file_limit`: how many files the process may open."""

    def limit(self, soft: int, hard: int, error: type[Exception] | None = None) -> int:
        """What `file_limit` returns where getrlimit(2) and setrlimit(2) have these results."""
        with (
            patch("resource.getrlimit", return_value=(soft, hard)),
            patch("resource.setrlimit", side_effect=error),
        ):
            return file_limit()

    def test_raise(self) -> None:
        """The soft limit is raised to the hard limit."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        self.assertEqual(file_limit(), hard)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (hard, hard))

    def test_infinite(self) -> None:
        """No limit is a huge number, although RLIM_INFINITY is -1 in Python."""
        self.assertEqual(self.limit(1024, resource.RLIM_INFINITY), sys.maxsize)

    def test_cannot_raise(self) -> None:
        """Where the system does not allow to raise the soft limit, that limit holds."""
        for error in (ValueError, OSError):
            for hard in (4096, resource.RLIM_INFINITY):
                self.assertEqual(self.limit(1024, hard, error), 1024)

    def test_cannot_raise_infinite(self) -> None:
        """A soft limit of infinity is a huge number, too."""
        infinity = resource.RLIM_INFINITY
        self.assertEqual(self.limit(infinity, infinity, OSError), sys.maxsize)


class AddressKeyTests(SynchronousTestCase):
    """`address_key`: which addresses count as one peer; `test_addresses` has more cases."""

    def test_ip(self) -> None:
        """An IPv4 address and the same address mapped to IPv6 are one peer."""
        self.assertEqual(address_key(ipv4("192.0.2.1")), address_key(ipv6("::ffff:192.0.2.1")))
        self.assertNotEqual(address_key(ipv4("192.0.2.1")), address_key(ipv4("192.0.2.2")))

    def test_no_ip(self) -> None:
        """UNIX sockets and unknown peers have no key: they are never counted per peer."""
        self.assertEqual(address_key(UNIXAddress("/run/x")), b"")
        self.assertEqual(address_key(None), b"")


class ConnectionsTests(SynchronousTestCase):
    """`Connections`: the limits, the idle timeout, and the wait for the last to close."""

    def setUp(self) -> None:
        """Make a clock."""
        self.clock = Clock()

    def added(self, connections: Connections, address: IAddress | None = None) -> FakeConnection:
        """Add a connection from this address."""
        connection = FakeConnection()
        connections.add(connection, lambda: address)
        return connection

    def test_defaults(self) -> None:
        """64 files are reserved, and the idle timeout is an hour, as the documentation says."""
        self.assertEqual((RESERVED_FILES, IDLE_TIMEOUT), (64, 3600))

    def test_no_limits(self) -> None:
        """Without limits any number of connections is accepted, and none is closed."""
        connections = Connections(self.clock, idle_timeout=0)
        for _ in range(100):
            self.added(connections, ipv4("192.0.2.1"))
        self.assertEqual(connections.refusal(ipv4("192.0.2.1")), "")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_proxies(self) -> None:
        """PROXY headers come from the networks that are given; without any, from anywhere."""
        networks = [parse_network(text) for text in ("192.0.2.0/24", "2001:db8::/64")]
        connections = Connections(self.clock, proxies=networks)
        for address in (
            *(ipv4("192.0.2.9"), ipv6("::ffff:192.0.2.9"), ipv6("2001:db8::1"), None),
            UNIXAddress("/run/x"),  # guarded by the mode of its file
        ):
            self.assertEqual(connections.proxy_refusal(address), "")
        for address in (ipv4("192.0.3.1"), ipv6("::ffff:192.0.3.1"), ipv6("2001:db8:0:1::1")):
            self.assertEqual(connections.proxy_refusal(address), "not in a --proxy-from network")
            self.assertEqual(Connections(self.clock).proxy_refusal(address), "")

    def test_total(self) -> None:
        """At the limit of all connections another is refused, until one closes."""
        connections = Connections(self.clock, 2)
        first = self.added(connections)
        self.assertEqual(connections.refusal(None), "")
        self.added(connections)
        self.assertEqual(len(connections), 2)
        self.assertEqual(connections.refusal(None), "too many connections: the limit is 2")
        connections.remove(first)
        self.assertEqual(connections.refusal(None), "")

    def test_over_total(self) -> None:
        """Over the limit (a refusal is checked before, not at, an addition) it still holds."""
        connections = Connections(self.clock, 1)
        for _ in range(2):
            self.added(connections)
        self.assertEqual(connections.refusal(None), "too many connections: the limit is 1")

    def test_per_peer(self) -> None:
        """At the limit per peer only that peer is refused; UNIX sockets have no such limit."""
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

    def test_over_per_peer(self) -> None:
        """A peer that is over its limit is refused as well."""
        connections = Connections(self.clock, max_per_peer=1)
        for _ in range(2):
            self.added(connections, ipv4("192.0.2.1"))
        self.assertIn("the limit is 1", connections.refusal(ipv4("192.0.2.1")))

    def test_peer_only_if_counted(self) -> None:
        """Without a limit per peer no connection is asked for its peer: getpeername(2) costs."""
        connections = Connections(self.clock)
        connection = FakeConnection()
        connections.add(connection, {}.popitem)  # type: ignore[arg-type]  # raises if called
        self.assertEqual(connections.set_peer(connection, ipv4("192.0.2.1")), "")
        self.assertEqual(connection.peer_key, b"")
        connections.remove(connection)
        self.assertEqual(len(connections._peers), 0)

    def test_set_peer(self) -> None:
        """A client behind a proxy counts as one of its own address once that is known."""
        connections = Connections(self.clock, max_per_peer=1)
        first, second = self.added(connections), self.added(connections)
        self.assertEqual(connections.set_peer(first, ipv4("192.0.2.1")), "")
        self.assertEqual(connections._peers, {first.peer_key: 1})
        why = "too many connections from your address: the limit is 1"
        self.assertEqual(connections.refusal(ipv4("192.0.2.1")), why)
        self.assertEqual(connections.set_peer(second, ipv4("192.0.2.1")), why)
        self.assertEqual(second.peer_key, b"")
        connections.remove(second)
        self.assertEqual(connections._peers, {first.peer_key: 1})
        connections.remove(first)
        self.assertEqual(connections.refusal(ipv4("192.0.2.1")), "")
        self.assertEqual(len(connections._peers), 0)

    def test_closed_peers_take_no_memory(self) -> None:
        """Nothing is kept of a peer whose last connection has closed."""
        connections = Connections(self.clock, max_per_peer=2)
        for number in range(100):
            connections.remove(self.added(connections, ipv4(f"192.0.2.{number}")))
        self.assertEqual(len(connections._peers), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """A connection without an exchange is ended; if it is still open after that, aborted."""
        connections = Connections(self.clock, idle_timeout=100)
        connection = self.added(connections)
        self.clock.pump([10] * 10)
        self.assertEqual(connection.calls, [])
        self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s"])
        self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s", "abort"])

    def test_short_idle_timeout(self) -> None:
        """A timeout is kept to within a tenth, also if it is only a few seconds."""
        connections = Connections(self.clock, idle_timeout=5)
        connection = self.added(connections)
        self.clock.pump([0.5] * 10)
        self.assertEqual(connection.calls, [])
        self.clock.advance(0.5)
        self.assertEqual(connection.calls, ["idle for 5 s"])

    def test_idle_isolated(self) -> None:
        """A connection that raises when it is ended does not keep the others from theirs."""
        connections = Connections(self.clock, idle_timeout=100)
        faulty, sound, another = (self.added(connections) for _ in range(3))
        for connection in (faulty, another):
            self.patch(connection, "end", connection.calls.index)
            self.patch(connection, "abort", connection.calls.pop)
        self.clock.pump([10] * 12)
        self.assertEqual(sound.calls, ["idle for 100 s", "abort"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError, IndexError)), 4)

    def test_ended_with_progress(self) -> None:
        """A connection that was ended is not aborted while its peer receives what is still sent."""
        connections = Connections(self.clock, idle_timeout=100)
        connection = self.added(connections)
        self.clock.pump([10] * 11)
        for _ in range(50):
            connection.progress += 1
            self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s"])
        self.clock.advance(10)
        self.assertEqual(connection.calls, ["idle for 100 s", "abort"])

    def test_ended_and_lingering(self) -> None:
        """However short the timeout, the lingering close of a connection comes to its end."""
        for idle_timeout in (1, 2, 5, 10):
            connections = Connections(self.clock, idle_timeout=idle_timeout)
            connection = self.added(connections)
            self.clock.pump([idle_timeout / 10] * 11)
            self.assertEqual(connection.calls, [f"idle for {idle_timeout} s"])
            ended = self.clock.seconds()
            while len(connection.calls) == 1:
                self.clock.advance(idle_timeout / 10)
            took = self.clock.seconds() - ended
            self.assertTrue(LINGER_TIMEOUT < took < LINGER_TIMEOUT + idle_timeout / 5, took)
            connections.remove(connection)

    def test_not_idle(self) -> None:
        """A connection with an exchange, or a part of one, in every timeout stays open."""
        connections = Connections(self.clock, idle_timeout=100)
        connection = self.added(connections)
        for _ in range(50):
            self.clock.pump([10] * 9)
            connection.progress += 1
        self.assertEqual(connection.calls, [])

    def test_idle_after_messages(self) -> None:
        """The timeout starts anew with each exchange, and is kept to within a tenth.

        The exchange comes right after a check, in the middle between two, or right before one.
        """
        for after in (0.01, 5, 9.99):
            connections = Connections(self.clock, idle_timeout=100)
            connection = self.added(connections)
            self.clock.pump([10] * 9)
            self.clock.advance(after)
            connection.progress += 1
            self.clock.pump([10 - after, *[10] * 9])
            self.assertEqual(connection.calls, [])
            self.clock.advance(after)  # 100 s since the exchange
            self.assertEqual(connection.calls, [])
            self.clock.advance(10 - after)
            self.assertEqual(connection.calls, ["idle for 100 s"])
            connections.remove(connection)

    def test_all_closed(self) -> None:
        """The Deferred fires when the last connection has closed, or at once if there is none."""
        connections = Connections(self.clock)
        self.successResultOf(connections.all_closed())
        opened = [self.added(connections) for _ in range(2)]
        self.assertEqual(set(connections), set(opened))
        closed = connections.all_closed()
        for connection in connections:
            self.assertNoResult(closed)
            connections.remove(connection)
        self.successResultOf(closed)

    def test_one_timer(self) -> None:
        """One timer checks all connections; without connections there is no timer."""
        connections = Connections(self.clock, idle_timeout=100)
        opened = [self.added(connections) for _ in range(100)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(10)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for connection in opened:
            connections.remove(connection)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timer_while_started(self) -> None:
        """While connections may be made, a timer stays after the last one, until it is due."""
        connections = Connections(self.clock, idle_timeout=100)
        connections.start()
        for _ in range(3):
            connections.remove(self.added(connections))
            (call,) = self.clock.getDelayedCalls()
            self.assertEqual(call.getTime(), 10)
        self.clock.advance(10)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """When no more connections are made, the timer goes with the last one."""
        connections = Connections(self.clock, idle_timeout=100)
        for connections_first in (True, False):
            connections.start()
            connection = self.added(connections)
            ends: list[Callable[[], None]] = [
                partial(connections.remove, connection),
                connections.stop,
            ]
            for end in ends if connections_first else reversed(ends):
                self.assertEqual(len(self.clock.getDelayedCalls()), 1)
                end()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timer_again(self) -> None:
        """After the last connection has closed, the next one is checked like the first."""
        connections = Connections(self.clock, idle_timeout=100)
        connections.remove(self.added(connections))
        connection = self.added(connections)
        self.clock.pump([10] * 11)
        self.assertEqual(connection.calls, ["idle for 100 s"])
