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
    LINGER,
    StreamSession,
    Tally,
)
from timestamp_echo.framing import ChunkFraming, LineFraming

STAMP = b"[stamp] "


class TallyTests(SynchronousTestCase):
    """`Tally`: which of the lines are answered."""

    @given(
        st.lists(st.sampled_from([b"a", b"bb", b"\n", b"c" * 2000])).map(b"".join),
        st.sampled_from([LineFraming, ChunkFraming]),
        st.integers(1, 5000),
        st.integers(1, 5000),
    )
    def test_echo(self, text: bytes, framing: Any, size: int, cut: int) -> None:
        """After an echo of lines or of chunks, however both ways are cut, none is missing."""
        echo = framing()
        out, into = Tally(), Tally()
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        replies = b""
        for piece in pieces:
            out.add(piece)
            replies += echo.received(piece, STAMP)
        replies += echo.ended()
        for i in range(0, len(replies), cut):
            into.add(replies[i : i + cut])
        lines = text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
        self.assertEqual((out.messages, into.answered(out, True)), (lines, lines))
        self.assertEqual(into.answered(out, False), text.count(b"\n"))

    def test_missing(self) -> None:
        """What did not come back is missing: lines, and the line without a newline."""
        out, into = Tally(), Tally()
        out.add(b"a\nb\nend")
        for reply, answered in ((b"[] a\n", 1), (b"[] b\n", 2), (b"en", 2), (b"d", 3)):
            into.add(reply)
            self.assertEqual(into.answered(out, True), answered)


class StreamSessionTests(SynchronousTestCase):
    """`StreamSession`, on a transport of strings and a clock."""

    def setUp(self) -> None:
        """A session that is connected."""
        self.clock = Clock()
        self.user = Listener()
        self.session = StreamSession(self.user, self.clock)
        self.transport = TCPTransport()
        self.session.makeConnection(self.transport)
        self.session.feed_from(Producer())

    def test_interfaces(self) -> None:
        """It is what it says that it is."""
        verifyClass(IHandshakeListener, StreamSession)
        typed: session.Session = self.session
        self.assertIs(typed, self.session)

    def test_talk(self) -> None:
        """Lines go out, replies come in, and the user hears when all are answered."""
        self.session.write(b"a\nb\n")
        self.assertEqual(self.transport.value(), b"a\nb\n")
        self.session.dataReceived(b"[] a\n[]")
        self.assertEqual((self.user.replies, self.user.answers), (b"[] a\n[]", 0))
        self.assertEqual((self.session.sent, self.session.missing), (2, 1))
        self.session.dataReceived(b" b\n")
        self.assertEqual((self.user.answers, self.session.missing), (1, 0))

    def test_finish(self) -> None:
        """At the end its side is closed; the server's closing ends it."""
        self.session.write(b"a")
        self.session.finish()
        self.assertIsNone(self.transport.producer)
        self.assertTrue(self.transport.half_closed)
        self.session.dataReceived(b"[] a")
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.user.ends, [""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finish_tls(self) -> None:
        """Through TLS closing is a close_notify, after which replies still come."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        talk = StreamSession(self.user, self.clock)
        talk.makeConnection(tls)
        talk.handshakeCompleted()
        talk.feed_from(Producer())
        talk.finish()
        self.assertTrue(tls.disconnecting)
        self.assertFalse(tls.half_closed)

    def test_linger(self) -> None:
        """A server that has answered all and does not close is left, unless it says more."""
        self.session.write(b"a\n")
        self.session.finish()
        self.clock.advance(10 * LINGER)
        self.assertFalse(self.transport.aborted)
        self.session.dataReceived(b"[] a\n")
        self.clock.advance(LINGER * 0.9)
        self.session.dataReceived(b"more\n")
        self.clock.advance(LINGER * 0.9)
        self.assertFalse(self.transport.aborted)
        self.clock.advance(LINGER * 0.2)
        self.assertTrue(self.transport.aborted)
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.user.ends, [""])

    def test_no_linger_after_a_rest(self) -> None:
        """After a line without a newline only the server's closing says that it is whole."""
        self.session.write(b"a" * 2000)
        self.session.finish()
        self.session.dataReceived(b"[] " + b"a" * 2000)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.user.ends, [""])

    def test_rest_cut(self) -> None:
        """If it does not close in order, the reply may be cut."""
        self.session.write(b"aaa")
        self.session.finish()
        self.session.dataReceived(b"[] aa")
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.session.missing, 1)
        self.assertIn("non-clean", self.user.ends[0])

    def test_lost(self) -> None:
        """A connection that is lost before the end, or before the last reply, is said."""
        self.session.write(b"a\n")
        self.session.finish()
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertIn("non-clean", self.user.ends[0])
        self.assertEqual(self.session.missing, 1)

    def test_finish_after_loss(self) -> None:
        """Where the connection is lost already, there is nothing to finish."""
        self.session.connectionLost(Failure(ConnectionLost()))
        self.session.finish()
        self.assertFalse(self.transport.half_closed)
        self.assertEqual(len(self.user.ends), 1)

    def test_lost_before_the_end(self) -> None:
        """So is one that the server closes while nothing is missing, but more may come."""
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.user.ends, ["the server closed the connection"])

    def test_pressure(self) -> None:
        """A slow standard output stops the reading, and its loss ends it."""
        self.session.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.session.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.session.stopProducing()
        self.assertTrue(self.transport.aborted)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An endpoint whose connection is a transport of strings."""

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
        """A session, and when it is connected."""
        endpoint = Endpoint(transport)
        verifyClass(IStreamClientEndpoint, Endpoint)
        self.clock = Clock()
        talk = StreamSession(Listener(), self.clock)
        return talk, talk.connect(StreamServer("host", endpoint))

    def test_plain(self) -> None:
        """A plain connection is ready when it is made."""
        talk, connected = self.connect(TCPTransport())
        self.assertIs(self.successResultOf(connected), talk)

    def test_tls(self) -> None:
        """One of TLS is ready when hands are shaken."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        talk, connected = self.connect(tls)
        self.assertNoResult(connected)
        talk.handshakeCompleted()
        self.assertIs(self.successResultOf(connected), talk)

    def test_tls_silent(self) -> None:
        """A peer that never shakes hands is given up."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        talk, connected = self.connect(tls)
        self.clock.advance(HANDSHAKE_TIMEOUT)
        self.failureResultOf(connected, TimeoutError)
        self.assertTrue(tls.aborted)
        talk.connectionLost(Failure(ConnectionLost()))

    def test_tls_refused(self) -> None:
        """Where they are not shaken, there is no connection."""
        tls = TCPTransport()
        directlyProvides(tls, INegotiated)
        talk, connected = self.connect(tls)
        talk.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(connected, ConnectionLost)
