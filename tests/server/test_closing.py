"""Tests for `timestamp_echo.server.closing`; `test_protocol` has more."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass

from tests.fakes import TCPTransport, logged
from timestamp_echo.server.closing import LINGER_TIMEOUT, Refusal
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory


class RefusalTests(SynchronousTestCase):
    """`Refusal`: what one connection too many gets."""

    def setUp(self) -> None:
        """A factory that has as many connections as it may have."""
        self.clock = Clock()
        self.events = logged(self)
        connections = Connections(self.clock, 1)
        self.factory = TimestampEchoFactory(clock=self.clock, connections=connections)
        self.first = self.factory.buildProtocol(None)
        assert isinstance(self.first, TimestampEcho)
        self.first.makeConnection(StringTransport())

    def refuse(self, transport: TCPTransport) -> Refusal:
        """One connection too many."""
        refusal = self.factory.buildProtocol(None)
        assert isinstance(refusal, Refusal)
        refusal.makeConnection(transport)
        return refusal

    def test_told(self) -> None:
        """It is told so in one line; then this side closes, and waits for the peer's."""
        verifyClass(IHalfCloseableProtocol, Refusal)
        transport = TCPTransport()
        refusal = self.refuse(transport)
        words = "too many connections: the limit is 1"
        self.assertEqual(transport.value(), f"tsecho: {words}\n".encode())
        self.assertTrue(transport.half_closed)
        self.assertFalse(transport.disconnecting)
        refusal.dataReceived(b"hello\n")
        refusal.readConnectionLost()
        self.assertTrue(transport.disconnecting)
        refusal.connectionLost()
        line = formatEvent(self.events[-1])
        self.assertEqual(line, f"connection from 192.168.1.1:54321 refused: {words}")
        self.clock.advance(LINGER_TIMEOUT)
        self.assertEqual(transport.value(), f"tsecho: {words}\n".encode())

    def test_does_not_close(self) -> None:
        """A peer that does not close is left after a second."""
        transport = TCPTransport()
        refusal = self.refuse(transport)
        self.clock.advance(LINGER_TIMEOUT)
        self.assertFalse(transport.disconnecting)
        refusal.writeConnectionLost()  # the line is delivered: now the second begins
        self.clock.advance(LINGER_TIMEOUT)
        self.assertTrue(transport.disconnecting)
        refusal.connectionLost()

    def test_without_half_close(self) -> None:
        """A transport that has no half-close, such as Twisted's own TLS, closes both ways."""
        refusal = Refusal("full")
        refusal.factory = self.factory
        transport = StringTransport()
        refusal.makeConnection(transport)
        self.assertEqual(transport.value(), b"tsecho: full\n")
        self.assertTrue(transport.disconnecting)

    def test_room_again(self) -> None:
        """When one has left there is room for another."""
        assert isinstance(self.first, TimestampEcho)
        self.first.connectionLost(Failure(ConnectionDone()))
        self.assertIsInstance(self.factory.buildProtocol(None), TimestampEcho)
