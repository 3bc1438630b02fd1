"""Tests for `timestamp_echo.client.session`."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, TimeoutError
from twisted.internet.interfaces import (
    IHandshakeListener,
    INegotiated,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer
from zope.interface.verify import verifyClass

from tests.fakes import Listener, Producer, TCPTransport
from timestamp_echo.client import session
from timestamp_echo.client.address import StreamServer
from timestamp_echo.client.session import (
    HANDSHAKE_TIMEOUT,
    LINGER_TIMEOUT,
    LineCount,
    StreamSession,
)
from timestamp_echo.framing import ChunkFraming, LineFraming

STAMP = b"[stamp] "


class LineCountTests(SynchronousTestCase):
    """`LineCount`: how many lines are answered."""

    @given(
        st.lists(st.sampled_from([b"a", b"bb", b"\n", b"c" * 2000])).map(b"".join),
        st.sampled_from([LineFraming, ChunkFraming]),
        st.integers(1, 5000),
        st.integers(1, 5000),
    )
    def test_echo(self, text: bytes, framing: Any, size: int, cut: int) -> None:
        """After an echo of lines or chunks, none is missing, however the streams are cut."""
        echo = framing()
        sent, received = LineCount(), LineCount()
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        replies = b""
        for piece in pieces:
            sent.add(piece)
            replies += echo.received(piece, STAMP)
        replies += echo.ended()
        for i in range(0, len(replies), cut):
            received.add(replies[i : i + cut])
        lines = text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
        self.assertEqual((sent.messages, received.answered(sent, True)), (lines, lines))
        self.assertEqual(received.answered(sent, False), text.count(b"\n"))

    def test_missing(self) -> None:
        """Lines that did not come back are missing, and so is the last without a newline."""
        sent, received = LineCount(), LineCount()
        sent.add(b"a\nb\nend")
        for reply, answered in ((b"[] a\n", 1), (b"[] b\n", 2), (b"en", 2), (b"d", 3)):
            received.add(reply)
            self.assertEqual(received.answered(sent, True), answered)


class StreamSessionTests(SynchronousTestCase):
    """`StreamSession`, on a transport in memory and a fake clock."""

    def setUp(self) -> None:
        """Create a connected session with a producer."""
        self.clock = Clock()
        self.listener = Listener()
        self.session = StreamSession(self.listener, self.clock)
        self.transport = TCPTransport()
        self.session.makeConnection(self.transport)
        self.session.register_producer(Producer())

    def test_interfaces(self) -> None:
        """It provides `IHandshakeListener` and has the type `Session`."""
        verifyClass(IHandshakeListener, StreamSession)
        typed: session.Session = self.session
        self.assertIs(typed, self.session)

    def test_replies(self) -> None:
        """It sends lines, passes replies on, and reports when every line is answered."""
        self.session.write(b"a\nb\n")
        self.assertEqual(self.transport.value(), b"a\nb\n")
        self.session.dataReceived(b"[] a\n[]")
        self.assertEqual((self.listener.replies, self.listener.answers), (b"[] a\n[]", 0))
        self.assertEqual((self.session.sent, self.session.missing), (2, 1))
        self.session.dataReceived(b" b\n")
        self.assertEqual((self.listener.answers, self.session.missing), (1, 0))

    def test_finish(self) -> None:
        """`finish` closes this side; the session ends when the server has closed, too."""
        self.session.write(b"a")
        self.session.finish()
        self.assertIsNone(self.transport.producer)
        self.assertTrue(self.transport.half_closed)
        self.session.dataReceived(b"[] a")
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.listener.ends, [""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finish_tls(self) -> None:
        """With TLS, `finish` sends close_notify, after which replies can still come."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        tested = StreamSession(self.listener, self.clock)
        tested.makeConnection(tls)
        tested.handshakeCompleted()
        tested.register_producer(Producer())
        tested.finish()
        self.assertTrue(tls.disconnecting)
        self.assertFalse(tls.half_closed)

    def test_linger(self) -> None:
        """A server that has answered every line but does not close is left after a second.

        More data from it starts the second again.
        """
        self.session.write(b"a\n")
        self.session.finish()
        self.clock.advance(10 * LINGER_TIMEOUT)
        self.assertFalse(self.transport.aborted)
        self.session.dataReceived(b"[] a\n")
        self.clock.advance(LINGER_TIMEOUT * 0.9)
        self.session.dataReceived(b"more\n")
        self.clock.advance(LINGER_TIMEOUT * 0.9)
        self.assertFalse(self.transport.aborted)
        self.clock.advance(LINGER_TIMEOUT * 0.2)
        self.assertTrue(self.transport.aborted)
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.listener.ends, [""])

    def test_linger_closed(self) -> None:
        """A server that closes after the last reply ends the session at once."""
        self.session.write(b"a\n")
        self.session.finish()
        self.session.dataReceived(b"[] a\n")
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.listener.ends, [""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_linger_after_partial_line(self) -> None:
        """After a line without a newline, only the server's close shows that the reply is whole."""
        self.session.write(b"a" * 2000)
        self.session.finish()
        self.session.dataReceived(b"[] " + b"a" * 2000)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.listener.ends, [""])

    def test_partial_line_cut(self) -> None:
        """If the server does not close in order, the reply may be cut, so it is missing."""
        self.session.write(b"aaa")
        self.session.finish()
        self.session.dataReceived(b"[] aa")
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.session.missing, 1)
        self.assertIn("non-clean", self.listener.ends[0])

    def test_lost(self) -> None:
        """A connection lost before the last reply is reported."""
        self.session.write(b"a\n")
        self.session.finish()
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertIn("non-clean", self.listener.ends[0])
        self.assertEqual(self.session.missing, 1)

    def test_finish_after_loss(self) -> None:
        """`finish` after the connection was lost does nothing."""
        self.session.connectionLost(Failure(ConnectionLost()))
        self.session.finish()
        self.assertFalse(self.transport.half_closed)
        self.assertEqual(len(self.listener.ends), 1)

    def test_closed_before_finish(self) -> None:
        """A close by the server is reported, even if nothing is missing: more lines may follow."""
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.listener.ends, ["the server closed the connection"])

    def test_backpressure(self) -> None:
        """A slow standard output pauses the connection, and a lost one aborts it."""
        self.session.pauseProducing()
        self.assertTrue(self.transport.streaming)
        self.assertEqual(self.transport.producerState, "paused")
        self.session.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.session.stopProducing()
        self.assertTrue(self.transport.aborted)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An endpoint whose connection is a transport in memory."""

    def __init__(self, transport: TCPTransport) -> None:
        self.transport = transport

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See `IStreamClientEndpoint`."""
        protocol = cast(Any, protocolFactory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)))
        result: Deferred[Any] = Deferred()
        result.callback(protocol)
        protocol.makeConnection(self.transport)
        return result


class ConnectTests(SynchronousTestCase):
    """`StreamSession.connect`."""

    def connect(self, transport: TCPTransport) -> tuple[StreamSession, Deferred[StreamSession]]:
        """Start to connect a session.

        @return: the session, and what `connect` returned.
        """
        endpoint = Endpoint(transport)
        verifyClass(IStreamClientEndpoint, Endpoint)
        self.clock = Clock()
        tested = StreamSession(Listener(), self.clock)
        return tested, tested.connect(StreamServer("host", endpoint))

    def test_plain(self) -> None:
        """A plain connection is ready at once."""
        tested, connected = self.connect(TCPTransport())
        self.assertIs(self.successResultOf(connected), tested)

    def test_tls(self) -> None:
        """A TLS connection is ready after the handshake."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        tested, connected = self.connect(tls)
        self.assertNoResult(connected)
        tested.handshakeCompleted()
        self.assertIs(self.successResultOf(connected), tested)

    def test_tls_silent(self) -> None:
        """A peer that does not complete the handshake is aborted after a timeout."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        tested, connected = self.connect(tls)
        self.clock.advance(HANDSHAKE_TIMEOUT)
        self.failureResultOf(connected, TimeoutError)
        self.assertTrue(tls.aborted)
        tested.connectionLost(Failure(ConnectionLost()))

    def test_tls_refused(self) -> None:
        """A connection lost during the handshake fails `connect`."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        tested, connected = self.connect(tls)
        tested.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(connected, ConnectionLost)
