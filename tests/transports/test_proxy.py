"""Tests for `timestamp_echo.transports.proxy`."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import TCPTransport, logged
from timestamp_echo.server.closing import FAREWELL
from timestamp_echo.server.connections import Limits
from timestamp_echo.server.protocol import PREFACE, TimestampEcho, TimestampEchoFactory
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.proxy import (
    HalfCloseProxied,
    IPeerListener,
    IProxied,
    with_half_close,
)

STAMP = b"[Thu Jan  1 00:00:01 1970] "


class Raising(Protocol):
    """A protocol with a fault."""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        raise ValueError(data)


class HalfCloseProxiedTests(SynchronousTestCase):
    """`HalfCloseProxied` around a timestamp echo."""

    def setUp(self) -> None:
        """A connection whose header has not come."""
        self.clock = Clock()
        self.factory = TimestampEchoFactory(
            Stamp(utc=True), clock=self.clock, now=lambda: SECOND, limits=Limits(self.clock, 3, 1)
        )
        self.connect(self.factory)

    def connect(self, inner: Any) -> None:
        """A connection with this inside."""
        factory: Any = with_half_close(HAProxyWrappingFactory(inner))
        self.proxied = factory.buildProtocol(None)
        self.transport = TCPTransport()
        self.proxied.makeConnection(self.transport)

    def test_interfaces(self) -> None:
        """It is what it says that it is."""
        verifyClass(IPeerListener, TimestampEcho)
        verifyObject(IProxied, self.proxied)
        verifyClass(IHalfCloseableProtocol, HalfCloseProxied)
        self.assertIsInstance(self.proxied, HalfCloseProxied)

    def test_half_close(self) -> None:
        """The protocol inside is told, and what is pending is answered."""
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\none\ntwo")
        self.proxied.dataReceived(b"!")
        self.proxied.readConnectionLost()
        self.assertEqual(self.transport.value(), STAMP + b"one\n" + STAMP + b"two!")
        self.assertTrue(self.transport.disconnecting)

    def test_pieces(self) -> None:
        """A header may come a byte at a time."""
        for byte in b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\none\n":
            self.proxied.dataReceived(bytes([byte]))
        self.proxied.readConnectionLost()
        self.assertEqual(self.transport.value().replace(STAMP, b""), b"one\n")
        self.assertEqual(self.proxied.getPeer().host, "192.0.2.1")

    def test_version_2_in_pieces(self) -> None:
        """So may one of version 2."""
        header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\1\0\2"
        for byte in header + b"one\n":
            self.proxied.dataReceived(bytes([byte]))
            self.assertFalse(self.transport.disconnecting)
        self.proxied.readConnectionLost()
        self.assertEqual(self.transport.value().replace(STAMP, b""), b"one\n")

    def test_cut_anywhere(self) -> None:
        """Cut in two anywhere, a header of either version is taken."""
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
        """The specification's own header for a connection of nobody."""
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\none\n")
        self.assertEqual(self.transport.value(), STAMP + b"one\n")

    def test_nonsense(self) -> None:
        """What is no header closes the connection, for a reason that the log has."""
        for header in (
            b"GET / HTTP/1.1\r\n",
            b"no\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 x 2\r\n",
            b"PROXY TCP4 \xff 192.0.2.2 1 2\r\n",
            b"PROXY TCP9 a b 1 2\r\n",
            b"PROXY TCP4 here there 1 2\r\n",
            b"neither version of it",
        ):
            self.setUp()
            self.proxied.dataReceived(header)
            self.assertTrue(self.transport.disconnecting)
            self.assertEqual(self.transport.value(), b"")
            self.assertEqual(self.proxied.wrappedProtocol.why, "no PROXY header came first")

    def test_closed_before_header(self) -> None:
        """A peer that leaves before its header came just leaves."""
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
        words = "1 connections from your address are open, and no more may be"
        self.assertEqual(self.transport.value(), f"tsecho: {words}\n".encode())
        self.assertTrue(self.transport.half_closed)
        self.proxied.connectionLost(Failure(ConnectionDone()))
        first.connectionLost(Failure(ConnectionDone()))
        self.connect(self.factory)
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\none\n")
        self.assertEqual(self.transport.value(), STAMP + b"one\n")
        lines = [formatEvent(event) for event in events]
        self.assertIn("connection from 192.0.2.1:1 opened", lines)
        self.assertIn(f"connection from 192.0.2.1:7 refused: {words}", lines)

    def test_too_many(self) -> None:
        """One too many of all is told so at once."""
        for _ in range(3):
            self.connect(self.factory)
        self.assertIn(b"tsecho: 3 connections are open", self.transport.value())

    def test_part(self) -> None:
        """Ended by this side, it closes when the peer has, or after a second."""
        self.proxied.dataReceived(b"PROXY UNKNOWN\r\none")
        self.proxied.wrappedProtocol.end("over")
        self.assertTrue(self.transport.half_closed)
        self.proxied.writeConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(FAREWELL)
        self.assertTrue(self.transport.disconnecting)

    def test_no_header(self) -> None:
        """A header that does not come in ten seconds is not waited for."""
        events = logged(self)
        self.clock.advance(PREFACE)
        self.assertTrue(self.transport.aborted)
        self.proxied.connectionLost(Failure(ConnectionAborted()))
        self.assertIn("; no PROXY header within 10 s", formatEvent(events[-1]))

    def test_faults_inside(self) -> None:
        """A fault of the protocol inside is not taken for the header's."""
        self.connect(Factory.forProtocol(Raising))
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
        self.assertRaises(ValueError, self.proxied.dataReceived, header + b"one\n")
        self.assertRaises(ValueError, self.proxied.dataReceived, b"two\n")

    def test_inner_without_interest(self) -> None:
        """A protocol that does not want to know who its peer is is closed all the same."""
        self.connect(Factory.forProtocol(Raising))
        self.proxied.dataReceived(b"no\n")
        self.assertTrue(self.transport.disconnecting)

    def test_inner_without_half_close(self) -> None:
        """A protocol that knows no half-close is closed."""
        self.connect(Factory.forProtocol(Raising))
        self.proxied.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_other_factories(self) -> None:
        """A factory of something else is left as it is."""
        factory = Factory.forProtocol(Protocol)
        self.assertIs(with_half_close(factory), factory)
        self.assertIs(factory.protocol, Protocol)
