"""Tests for `timestamp_echo.client.session`."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, TimeoutError
from twisted.internet.interfaces import (
    IHandshakeListener,
    INegotiated,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer
from zope.interface.verify import verifyClass

from tests.fakes import IterationClock, Listener, Producer, TCPTransport, TLSTransport
from timestamp_echo.client import session
from timestamp_echo.client.address import StreamServer
from timestamp_echo.client.session import (
    HANDSHAKE_TIMEOUT,
    LAST_INPUT_TIMEOUT,
    LINGER_TIMEOUT,
    MAX_UNANSWERED,
    StreamConnection,
    StreamSession,
)


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
        self.assertEqual((self.listener.replies, self.listener.answers), (b"[] a\n", 0))
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
        """A server that has answered every line but does not close is left after a second."""
        for last in (b"\n", b"", b"["):  # with a newline, without, and as a stamp begins
            self.setUp()
            self.session.write(b"a" + last)
            self.session.finish()
            self.clock.advance(10 * LINGER_TIMEOUT)
            self.assertFalse(self.transport.aborted)
            self.session.dataReceived(b"[] a" + last)
            self.clock.advance(LINGER_TIMEOUT * 0.9)
            self.assertFalse(self.transport.aborted)
            self.clock.advance(LINGER_TIMEOUT * 0.2)
            self.assertTrue(self.transport.aborted)
            self.session.connectionLost(Failure(ConnectionLost()))
            self.assertEqual(self.listener.ends, [""])

    def test_linger_again(self) -> None:
        """More data starts the second again. A stamp without a message is no reply."""
        self.session.write(b"a\n")
        self.session.finish()
        self.session.dataReceived(b"[] a\n[")
        self.clock.advance(LINGER_TIMEOUT * 0.9)
        self.session.dataReceived(b"] ")
        self.clock.advance(LINGER_TIMEOUT * 0.9)
        self.assertFalse(self.transport.aborted)
        self.clock.advance(LINGER_TIMEOUT * 0.2)
        self.assertTrue(self.transport.aborted)
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.listener.ends, ["the server sent '[] ', which is not a reply"])

    def test_linger_closed(self) -> None:
        """A server that closes after the last reply ends the session at once."""
        self.session.write(b"a\n")
        self.session.finish()
        self.session.dataReceived(b"[] a\n")
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.listener.ends, [""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_partial_line_cut(self) -> None:
        """A reply that is cut short is missing, also if the server closes in order."""
        for sent, received in ((b"aaa", b"[] aa"), (b"aaa\n", b"[] aaa")):
            for reason, why in (
                (ConnectionLost(), "the connection was lost"),
                (ConnectionDone(), "the server closed the connection"),
            ):
                self.setUp()
                self.session.write(sent)
                self.session.finish()
                self.session.dataReceived(received)
                self.session.connectionLost(Failure(reason))
                self.assertEqual((self.session.missing, self.listener.replies), (1, b""))
                self.assertEqual(self.listener.ends, [why])

    def test_lost(self) -> None:
        """A connection lost before the last reply is reported."""
        self.session.write(b"a\n")
        self.session.finish()
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(
            self.listener.ends, ["the connection was lost (if it speaks TLS, use tls:host:port)"]
        )
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
        self.assertEqual(self.listener.ends, [])
        self.clock.advance(LAST_INPUT_TIMEOUT)
        self.assertEqual(self.listener.ends, ["the server closed the connection"])

    def test_finish_after_close(self) -> None:
        """Unless the input ends a moment later, after it was answered, or without a line."""
        for line in (b"a\n", b"a", b""):
            self.setUp()
            if line:
                self.session.write(line)
                self.session.dataReceived(b"[] " + line)
            self.session.connectionLost(Failure(ConnectionDone()))
            self.session.finish()
            self.assertEqual(self.listener.ends, [""])
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_write_after_close(self) -> None:
        """If instead a line comes, it is missing, and reported at once."""
        self.session.connectionLost(Failure(ConnectionDone()))
        self.session.write(b"a\n")
        self.session.finish()
        self.assertEqual(self.listener.ends, ["the server closed the connection"])
        self.assertEqual((self.session.sent, self.session.missing), (1, 1))
        self.assertEqual((self.transport.value(), self.clock.getDelayedCalls()), (b"", []))

    def test_refusal(self) -> None:
        """Text that is no reply ends the session: whether awaited, before a line or after all."""
        for line, replies, missing in ((b"", b"", 0), (b"a\n", b"", 1), (b"a\n", b"[] a\n", 0)):
            self.setUp()
            if line:
                self.session.write(line)
            self.session.dataReceived(replies + b"No\x1b!\r\nmore\n")
            self.assertTrue(self.transport.aborted)
            self.assertEqual(self.listener.replies, replies)
            self.assertEqual(
                self.listener.ends, ["the server sent 'No\\x1b!', which is not a reply"]
            )
            self.assertEqual(self.session.missing, missing)
            self.session.connectionLost(Failure(ConnectionLost()))
            self.assertEqual((self.listener.replies, len(self.listener.ends)), (replies, 1))

    def test_refusal_in_pieces(self) -> None:
        """Its first line may come in pieces, until none has come for a second."""
        why = "the server sent 'None', which is not a reply"
        for end in (
            lambda: self.session.dataReceived(b"\n"),
            lambda: self.clock.advance(LINGER_TIMEOUT),
            lambda: self.session.connectionLost(Failure(ConnectionDone())),
        ):
            self.setUp()
            self.session.write(b"a\n")
            self.session.dataReceived(b"No")
            self.clock.advance(0.9 * LINGER_TIMEOUT)
            self.session.dataReceived(b"ne")
            self.clock.advance(0.9 * LINGER_TIMEOUT)
            self.assertEqual(self.listener.ends, [])
            end()
            self.assertEqual(self.listener.ends, [why])
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refusal_and_close(self) -> None:
        """The end of a refusal in pieces is not taken for one that came after all replies."""
        self.session.dataReceived(b"No")
        self.session.finish()
        self.session.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.listener.ends, ["the server sent 'No', which is not a reply"])

    def test_unanswered(self) -> None:
        """Sending without end to a server that never answers takes bounded memory."""
        block = b"x" * (MAX_UNANSWERED // 4)
        for _ in range(4):
            self.session.write(block)
        self.assertEqual(self.listener.ends, [])
        self.session.write(b"x")
        self.assertEqual(self.listener.ends, ["64 MiB were sent without a reply"])
        self.assertTrue(self.transport.aborted)

    def test_backpressure(self) -> None:
        """A slow standard output pauses the connection, and a lost one aborts it."""
        self.session.pauseProducing()
        self.assertTrue(self.transport.streaming)
        self.assertEqual(self.transport.producerState, "paused")
        self.session.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.session.stopProducing()
        self.assertTrue(self.transport.aborted)

    def test_slow_server(self) -> None:
        """A server that takes no more pauses the input; a lost connection does not stop it."""
        self.session.transport.unregisterProducer()
        producer = StringTransport()
        self.session.register_producer(cast(IPushProducer, producer))
        registered = cast(IPushProducer, self.transport.producer)
        registered.pauseProducing()
        self.assertEqual(producer.producerState, "paused")
        registered.resumeProducing()
        self.assertEqual(producer.producerState, "producing")
        registered.stopProducing()
        self.assertEqual(producer.producerState, "producing")


class TimeoutTests(SynchronousTestCase):
    """`StreamSession` with a timeout of two seconds."""

    def setUp(self) -> None:
        """Create a connected session."""
        self.clock = Clock()
        self.listener = Listener()
        self.session = StreamSession(self.listener, self.clock, 2)
        self.transport = TCPTransport()
        self.session.makeConnection(self.transport)
        self.session.register_producer(Producer())

    def advance(self, *seconds: float) -> None:
        """Let time pass; nothing may end."""
        self.clock.pump(seconds)
        self.assertEqual((self.listener.ends, self.transport.aborted), ([], False))

    def test_no_reply(self) -> None:
        """A server that does not answer is left, also after the end of the input."""
        for finished in (False, True):
            self.setUp()
            self.session.write(b"a\n")
            if finished:
                self.session.finish()
            self.advance(1.9)
            self.clock.advance(0.1)
            self.assertEqual(self.listener.ends, ["no reply within 2 s"])
            self.assertTrue(self.transport.aborted)
            self.session.connectionLost(Failure(ConnectionLost()))
            self.assertEqual(len(self.listener.ends), 1)

    def test_late(self) -> None:
        """What has come by the time that is over is read first, on a busy machine, for example."""
        self.session = StreamSession(self.listener, clock := IterationClock(), 2)
        self.session.makeConnection(self.transport)
        self.session.write(b"a\n")
        clock.advance(9)
        self.session.dataReceived(b"[] a\n")
        clock.advance(9)
        self.assertEqual((self.listener.ends, self.listener.replies), ([], b"[] a\n"))

    def test_more(self) -> None:
        """Each piece of a reply starts the time again; another line that is sent does not."""
        self.session.write(b"abc\n")
        for piece in (b"[] a", b"b", b"c"):
            self.advance(1.5)
            self.session.write(b"d\n")
            self.session.dataReceived(piece)
        self.advance(1.5)
        self.session.write(b"d\n")
        self.clock.advance(0.5)
        self.assertEqual(len(self.listener.ends), 1)

    def test_idle(self) -> None:
        """While nothing is awaited, no time is too long."""
        self.advance(9)
        self.session.write(b"a\n")
        self.session.dataReceived(b"[] a\n")
        self.advance(9)
        self.session.write(b"b\n")
        self.advance(1.9)
        self.clock.advance(0.1)
        self.assertEqual(len(self.listener.ends), 1)

    def test_paused(self) -> None:
        """Nor is it while standard output takes no more replies."""
        self.session.write(b"a\n")
        self.session.pauseProducing()
        self.advance(9)
        self.session.resumeProducing()
        self.advance(1.9)
        self.clock.advance(0.1)
        self.assertEqual(len(self.listener.ends), 1)

    def test_lost(self) -> None:
        """No timer is left when the connection is lost, or when the server is refused."""
        self.session.write(b"a\n")
        self.session.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.setUp()
        self.session.write(b"a\n")
        self.session.dataReceived(b"no")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.session.dataReceived(b"\n")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StreamConnectionTests(SynchronousTestCase):
    """`StreamConnection`, which verifies nothing."""

    def test_connection(self) -> None:
        """It passes on what it receives, and why it was lost."""
        for reason, why in (
            (ConnectionDone(), "the server closed the connection"),
            (ConnectionLost(), "the connection was lost"),
        ):
            listener = Listener()
            connection = StreamConnection(listener, Clock())
            connection.makeConnection(TCPTransport())
            connection.dataReceived(b"anything")
            connection.connectionLost(Failure(reason))
            self.assertEqual(listener.replies, b"anything")
            self.assertEqual(listener.ends, [why])

    def test_hint(self) -> None:
        """A server that returns nothing may speak TLS: not through TLS or a UNIX socket."""
        for transport, hint in (
            (TCPTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1)), True),
            (TCPTransport(peerAddress=IPv6Address("TCP", "2001:db8::1", 1)), True),
            (TCPTransport(peerAddress=UNIXAddress("socket")), False),
            (TLSTransport(), False),
        ):
            listener = Listener()
            connection = StreamConnection(listener, Clock())
            connection.makeConnection(transport)
            if not connection._ready.called:
                connection.handshakeCompleted()
            connection.connectionLost(Failure(ConnectionDone()))
            why = "the server closed the connection"
            words = f"{why} (if it speaks TLS, use tls:host:port)" if hint else why
            self.assertEqual(listener.ends, [words])


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
