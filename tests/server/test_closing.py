"""Tests for `timestamp_echo.server.closing`; `test_protocol` has more cases."""

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
from timestamp_echo.server.closing import MAX_REFUSALS, Refusal
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory


class RefusalTests(SynchronousTestCase):
    """`Refusal`: the connection of a client over a limit."""

    def setUp(self) -> None:
        """Make a factory that has as many connections as its limit allows."""
        self.clock = Clock()
        self.events = logged(self)
        connections = Connections(self.clock, 1)
        self.factory = TimestampEchoFactory(clock=self.clock, connections=connections)
        self.first = self.factory.buildProtocol(None)
        assert isinstance(self.first, TimestampEcho)
        self.first.makeConnection(StringTransport())

    def refuse(self, transport: TCPTransport) -> Refusal:
        """Make a connection over the limit."""
        refusal = self.factory.buildProtocol(None)
        assert isinstance(refusal, Refusal)
        refusal.makeConnection(transport)
        return refusal

    def test_one_line(self) -> None:
        """The client gets the reason on one line; its own bytes are discarded until it closes."""
        verifyClass(IHalfCloseableProtocol, Refusal)
        transport = TCPTransport()
        refusal = self.refuse(transport)
        why = "too many connections: the limit is 1"
        self.assertEqual(transport.value(), f"tsecho: {why}\n".encode())
        self.assertTrue(transport.half_closed)
        self.assertFalse(transport.disconnecting)
        refusal.dataReceived(b"hello\n")
        refusal.readConnectionLost()
        self.assertTrue(transport.disconnecting)
        refusal.connectionLost()
        line = formatEvent(self.events[-1])
        self.assertEqual(line, f"connection from 192.168.1.1:54321 refused: {why}")
        self.clock.advance(1)
        self.assertEqual(transport.value(), f"tsecho: {why}\n".encode())

    def test_peer_does_not_close(self) -> None:
        """A client that does not close its side has one second, from the delivery of the line."""
        transport = TCPTransport()
        refusal = self.refuse(transport)
        self.clock.advance(10)
        self.assertFalse(transport.disconnecting)
        refusal.writeConnectionLost()  # everything is sent
        self.clock.advance(0.9)
        self.assertFalse(transport.disconnecting)
        self.clock.advance(0.1)
        self.assertTrue(transport.disconnecting)
        refusal.connectionLost()

    def test_lost_while_lingering(self) -> None:
        """A connection that is lost within that second leaves no timer."""
        transport = TCPTransport()
        refusal = self.refuse(transport)
        self.clock.advance(1)  # past the end of the log's second
        refusal.writeConnectionLost()
        refusal.connectionLost()
        self.clock.advance(1)
        self.assertFalse(transport.disconnecting)

    def test_without_half_close(self) -> None:
        """A transport without half-close, such as Twisted's own TLS, closes both directions."""
        refusal = Refusal("full")
        refusal.factory = self.factory
        transport = StringTransport()
        refusal.makeConnection(transport)
        self.assertEqual(transport.value(), b"tsecho: full\n")
        self.assertTrue(transport.disconnecting)

    def test_many(self) -> None:
        """Each holds an open file: beyond a bound they are closed at once, until one has ended."""
        refusals = [self.refuse(TCPTransport()) for _ in range(MAX_REFUSALS)]
        transport = TCPTransport()
        self.refuse(transport).connectionLost()
        self.assertEqual((transport.value(), transport.aborted), (b"", True))
        refusals[0].connectionLost()
        transport = TCPTransport()
        self.refuse(transport)
        self.assertFalse(transport.aborted)
        self.assertTrue(transport.half_closed)

    def test_room_again(self) -> None:
        """When a connection has closed, the next one is accepted."""
        assert isinstance(self.first, TimestampEcho)
        self.first.connectionLost(Failure(ConnectionDone()))
        self.assertIsInstance(self.factory.buildProtocol(None), TimestampEcho)
