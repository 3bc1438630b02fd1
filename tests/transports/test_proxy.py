"""Tests for `timestamp_echo.transports.proxy`."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import TCPTransport, logged
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.log import USUAL
from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.proxy import (
    InvalidHeader,
    IProxied,
    IProxyListener,
    ProxiedFactory,
    ProxiedProtocol,
    parse_header,
)

STAMP = b"[Thu Jan  1 00:00:01 1970] "


V2 = b"\r\n\r\n\0\r\nQUIT\n"

INVALID = (
    *(b"PROXY TCP4 192.0.2.1 192.0.2.2 %b 2\r\n" % port for port in (b"-1", b"65536", b"+5")),
    *(b"PROXY TCP4 192.0.2.1 192.0.2.2 %b 2\r\n" % port for port in (b"5_6", b"05", b"", b"5 6")),
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
    b"PROXY UNKNOWN" + b" " * 94,
    b"PROXYTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    V2 + b"\x31\x11\0\x0c" + bytes(12),  # version 3
    V2 + b"\x22\x11\0\x0c" + bytes(12),  # no such command
    V2 + b"\x22",
    V2 + b"\x21\x41\0\0",  # no such family
    V2 + b"\x21\x13\0\x0c" + bytes(12),  # no such protocol
    V2 + b"\x21\x11\0\x0b" + bytes(11),  # one byte less than two addresses and ports have
)


class ParseHeaderTests(SynchronousTestCase):
    """`parse_header`: complete, incomplete and invalid headers of both versions."""

    def test_version_1(self) -> None:
        """A header of version 1 has the client's address and port, or UNKNOWN."""
        tcp4 = b"PROXY TCP4 192.0.2.1 192.0.2.2 65535 0\r\n"
        tcp6 = b"PROXY TCP6 2001:DB8:0::1 ::1 1 2\r\n"
        for header, peer in (
            (tcp4, IPv4Address("TCP", "192.0.2.1", 65535)),
            (tcp6, IPv6Address("TCP", "2001:db8::1", 1)),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
            (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None),  # the longest
        ):
            self.assertEqual(parse_header(header), (len(header), peer))
            self.assertEqual(parse_header(header + b"rest\r\n"), (len(header), peer))

    def test_version_2(self) -> None:
        """A header of version 2 has the address; LOCAL, and an unsupported family, have none."""
        ipv4 = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + b"\0\1\0\2"
        ipv6 = bytes(15) + b"\1" + bytes(15) + b"\2" + b"\1\0\0\2"
        unix = b"/run/x".ljust(108, b"\0") + b"/run/y".ljust(108, b"\0")
        for command, addresses, peer in (
            (b"\x21\x11", ipv4, IPv4Address("TCP", "192.0.2.1", 1)),
            (b"\x21\x11", ipv4 + b"\x04\0\1x", IPv4Address("TCP", "192.0.2.1", 1)),  # a TLV
            (b"\x21\x21", ipv6, IPv6Address("TCP", "::1", 256)),
            (b"\x21\x31", unix, UNIXAddress(b"/run/x")),
            (b"\x20\x11", ipv4, None),
            (b"\x20\0", b"", None),
            (b"\x21\0", b"", None),
            (b"\x21\x12", ipv4, IPv4Address("TCP", "192.0.2.1", 1)),
            (b"\x21\x10", ipv4, None),
        ):
            header = V2 + command + len(addresses).to_bytes(2, "big") + addresses
            self.assertEqual(parse_header(header), (len(header), peer))
            self.assertEqual(parse_header(header + b"rest"), (len(header), peer))
            for cut in range(1, len(header)):
                self.assertIsNone(parse_header(header[:cut]))

    def test_invalid(self) -> None:
        """An invalid header is refused; the beginning of a valid one is not."""
        for header in INVALID:
            self.assertRaises(InvalidHeader, parse_header, header)
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
        for cut in range(1, len(header)):
            self.assertIsNone(parse_header(header[:cut]))


class Raising(Protocol):
    """A protocol that raises on any data."""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        raise ValueError(data)


class ProxiedProtocolTests(SynchronousTestCase):
    """`ProxiedProtocol` around `TimestampEcho`."""

    def setUp(self) -> None:
        """Make a connection whose header has not arrived."""
        self.clock = Clock()
        self.factory = TimestampEchoFactory(
            Stamp(utc=True),
            clock=self.clock,
            now=lambda: SECOND,
            connections=Connections(self.clock, 3, 1),
        )
        self.connect(self.factory)

    def connect(self, inner: Any) -> None:
        """Make a connection with a protocol of this factory inside."""
        factory: Any = ProxiedFactory(inner)
        self.proxied = factory.buildProtocol(None)
        self.transport = TCPTransport()
        self.proxied.makeConnection(self.transport)

    def test_interfaces(self) -> None:
        """The classes implement the interfaces that they declare."""
        verifyClass(IProxyListener, TimestampEcho)
        verifyObject(IProxied, self.proxied)
        verifyClass(IHalfCloseableProtocol, ProxiedProtocol)
        self.assertIsInstance(self.proxied, ProxiedProtocol)

    def test_half_close(self) -> None:
        """When the peer closes its side, an unfinished message is answered before the close."""
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\none\ntwo")
        self.proxied.dataReceived(b"!")
        self.proxied.readConnectionLost()
        self.assertEqual(self.transport.value(), STAMP + b"one\n" + STAMP + b"two!")
        self.assertTrue(self.transport.disconnecting)

    def test_byte_by_byte(self) -> None:
        """A header may arrive a byte at a time."""
        for byte in b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\none\n":
            self.proxied.dataReceived(bytes([byte]))
        self.proxied.readConnectionLost()
        self.assertEqual(self.transport.value().replace(STAMP, b""), b"one\n")
        self.assertEqual(self.proxied.getPeer().host, "192.0.2.1")

    def test_version_2_byte_by_byte(self) -> None:
        """So may a header of version 2."""
        header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\1\0\2"
        for byte in header + b"one\n":
            self.proxied.dataReceived(bytes([byte]))
            self.assertFalse(self.transport.disconnecting)
        self.proxied.readConnectionLost()
        self.assertEqual(self.transport.value().replace(STAMP, b""), b"one\n")

    def test_two_reads(self) -> None:
        """A header of either version may arrive in two reads, split at any byte."""
        for header in (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\1\0\2",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY UNKNOWN\r\n",
        ):
            for cut in range(1, len(header)):
                self.setUp()
                self.proxied.dataReceived(header[:cut])
                self.proxied.dataReceived(header[cut:] + b"one\n")
                self.assertFalse(self.transport.disconnecting)
                self.assertEqual(self.transport.value(), STAMP + b"one\n")

    def test_unknown(self) -> None:
        """`PROXY UNKNOWN`, which names no client, is accepted."""
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\none\n")
        self.assertEqual(self.transport.value(), STAMP + b"one\n")

    def test_invalid(self) -> None:
        """An invalid header closes the connection, and the log says why."""
        for header in (
            b"GET / HTTP/1.1\r\n",
            b"no\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 x 2\r\n",
            b"PROXY TCP4 \xff 192.0.2.2 1 2\r\n",
            b"PROXY TCP9 a b 1 2\r\n",
            b"PROXY TCP4 here there 1 2\r\n",
            b"neither version of it",
            *INVALID,
        ):
            self.setUp()
            self.proxied.dataReceived(header)
            self.assertTrue(self.transport.disconnecting)
            self.assertEqual(self.transport.value(), b"")
            self.assertEqual(self.proxied.wrappedProtocol.why, "no valid PROXY header")

    def test_closed_before_header(self) -> None:
        """A peer may close its side before its header is complete."""
        self.proxied.dataReceived(b"PROXY")
        self.proxied.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_per_peer(self) -> None:
        """The limit for one peer counts the client that the header names, not the proxy."""
        events = logged(self)
        first = self.proxied
        first.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        self.connect(self.factory)
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.9 192.0.2.2 1 2\r\none\n")
        self.assertEqual(self.transport.value(), STAMP + b"one\n")
        self.proxied.connectionLost(Failure(ConnectionDone()))
        self.connect(self.factory)
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 7 2\r\none\n")
        why = "too many connections from your address: the limit is 1"
        self.assertEqual(self.transport.value(), f"tsecho: {why}\n".encode())
        self.assertTrue(self.transport.half_closed)
        self.proxied.connectionLost(Failure(ConnectionDone()))
        first.connectionLost(Failure(ConnectionDone()))
        self.connect(self.factory)
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\none\n")
        self.assertEqual(self.transport.value(), STAMP + b"one\n")
        lines = [formatEvent(event) for event in events]
        self.assertIn("connection from 192.0.2.1:1 opened", lines)
        self.assertIn(f"connection from 192.0.2.1:7 refused: {why}", lines)

    def test_log_silent(self) -> None:
        """A header without a byte after it is a proxy's health check: counted, not logged."""
        events = logged(self)
        headers = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", V2 + b"\x20\0\0\0", b"PROXY", b""
        for header in headers:
            self.connect(self.factory)
            self.proxied.dataReceived(header)
            self.proxied.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(events, [])
        self.assertEqual(self.factory.counts.closed["no_data"], len(headers))

    def test_log_failed(self) -> None:
        """A header that is wrong, or refused, has a line at its end, and is no health check."""
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        for header in (b"no\n", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"):
            events = logged(self)
            self.connect(self.factory)
            self.proxied.dataReceived(header)
            self.proxied.connectionLost(Failure(ConnectionDone()))
            self.assertIn("ended", formatEvent(events[-1]))
        self.assertEqual(self.factory.counts.closed["no_data"], 0)

    def test_log_flood(self) -> None:
        """Of many new clients, and of many refusals, in a second ten each have a line."""
        events = logged(self)
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        for number in range(20):
            for host in (b"192.0.2.1", b"192.0.3.%d" % number):
                self.connect(self.factory)
                self.proxied.dataReceived(b"PROXY TCP4 %s 192.0.2.2 1 2\r\nx" % host)
                self.proxied.connectionLost(Failure(ConnectionDone()))
        lines = [formatEvent(event) for event in events]
        for kind in ("opened", "refused"):
            self.assertEqual(sum(kind in line for line in lines), USUAL.lines)

    def test_total(self) -> None:
        """Over the limit of all connections the refusal does not wait for the header."""
        for _ in range(3):
            self.connect(self.factory)
        self.assertIn(b"tsecho: too many connections: the limit is 3", self.transport.value())

    def test_linger(self) -> None:
        """`end` closes this side; a peer that does not close is left after a second."""
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\none")
        self.proxied.wrappedProtocol.end("over")
        self.assertTrue(self.transport.half_closed)
        self.proxied.writeConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)

    def test_no_header(self) -> None:
        """A connection without a complete header is aborted after ten seconds; the log says why."""
        events = logged(self)
        self.clock.advance(9.9)
        self.assertFalse(self.transport.aborted)
        self.clock.advance(0.1)
        self.assertTrue(self.transport.aborted)
        self.proxied.connectionLost(Failure(ConnectionAborted()))
        self.assertIn("; no PROXY header within 10 s", formatEvent(events[-1]))
        self.assertEqual(self.factory.counts.closed["no_data"], 0)

    def test_no_timeout_after_header(self) -> None:
        """After the header there is no such timeout."""
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\n")
        self.clock.advance(100)
        self.assertFalse(self.transport.aborted)

    def test_peer_is_proxy_until_header(self) -> None:
        """The peer is the proxy, until the header names the client."""
        self.assertEqual(self.proxied.getPeer(), self.transport.getPeer())
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\n")
        self.assertEqual(self.proxied.getPeer(), self.transport.getPeer())

    def test_not_a_proxy(self) -> None:
        """A connection whose header may not be read is not made at all."""
        allowed, other = (IPv4Address("TCP", host, 1) for host in ("192.0.2.1", "192.0.2.2"))
        factory = ProxiedFactory(self.factory, lambda address: address == allowed)
        self.assertIsNone(factory.buildProtocol(other))
        self.assertIsInstance(factory.buildProtocol(allowed), ProxiedProtocol)

    def test_proxy_has_no_limit(self) -> None:
        """The address of the proxy itself is not checked against the limit per peer."""
        proxy = IPv4Address("TCP", "192.0.2.50", 1)
        direct = self.factory.buildProtocol(proxy)
        assert isinstance(direct, TimestampEcho)
        transport = TCPTransport(peerAddress=proxy)
        direct.makeConnection(transport)
        self.assertNotEqual(self.factory.connections.refusal(proxy), "")
        proxied: Any = ProxiedFactory(self.factory).buildProtocol(proxy)
        self.assertIsInstance(proxied.wrappedProtocol, TimestampEcho)

    def test_exception_inside(self) -> None:
        """An exception of the protocol inside, here a ValueError, is not taken for the header's."""
        self.connect(Factory.forProtocol(Raising))
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
        self.assertRaises(ValueError, self.proxied.dataReceived, header + b"one\n")
        self.assertRaises(ValueError, self.proxied.dataReceived, b"two\n")

    def test_header_alone(self) -> None:
        """A header without anything after it is no data for the protocol inside."""
        self.connect(Factory.forProtocol(Raising))
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\n")
        self.assertFalse(self.transport.disconnecting)

    def test_inner_without_proxy_listener(self) -> None:
        """An invalid header closes the connection of any protocol."""
        self.connect(Factory.forProtocol(Raising))
        self.proxied.dataReceived(b"no\n")
        self.assertTrue(self.transport.disconnecting)

    def test_inner_without_half_close(self) -> None:
        """A protocol without half-close is closed when the peer closes its side."""
        self.connect(Factory.forProtocol(Raising))
        self.proxied.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)
