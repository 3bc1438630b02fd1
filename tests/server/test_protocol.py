"""Tests for `timestamp_echo.server.protocol`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    IProtocolFactory,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import SecuredTransport, TCPTransport, Turns, logged
from timestamp_echo.framing import (
    MAX_PENDING,
    SHORT_READ,
    AutoFraming,
    ChunkFraming,
    Framing,
    LineFraming,
)
from timestamp_echo.server.closing import LINGER_TIMEOUT
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.protocol import (
    HANDSHAKE_TIMEOUT,
    MESSAGE_GAP,
    TimestampEcho,
    TimestampEchoFactory,
)
from timestamp_echo.stamps import SECOND, Stamp

NOON = 1795348800  # 2026-11-22 12:00:00 UTC
STAMP = b"[Sun Nov 22 12:00:00 2026] "


class Transport(StringTransport):
    """A string transport that may know arrival times."""

    arrival = 0


class TimestampEchoTests(SynchronousTestCase):
    """`TimestampEcho`, on a transport of strings and a clock."""

    def connect(
        self,
        framing: Callable[[], Framing] = AutoFraming,
        style: str = "ctime",
        transport: StringTransport | None = None,
        limits: Connections | None = None,
    ) -> TimestampEcho:
        """A connection at noon."""
        self.clock = Turns()
        self.clock.advance(NOON)
        self.transport = transport or Transport()
        self.factory = TimestampEchoFactory(
            Stamp(style, utc=True),
            framing,
            self.clock,
            lambda: int(self.clock.seconds() * SECOND),
            Connections(self.clock, idle_timeout=0) if limits is None else limits,
        )
        echo = self.factory.buildProtocol(None)
        assert isinstance(echo, TimestampEcho)
        echo.makeConnection(self.transport)
        return echo

    def lose(self, echo: TimestampEcho, error: Exception | None = None) -> str:
        """The connection is lost; the line that the log gets."""
        events = logged(self)
        echo.connectionLost(Failure(error or ConnectionDone()))
        return formatEvent(events[-1])

    def test_interfaces(self) -> None:
        """It is what it says that it is."""
        verifyClass(IHalfCloseableProtocol, TimestampEcho)
        verifyClass(IPushProducer, TimestampEcho)
        verifyClass(ITCPTransport, TCPTransport)
        verifyObject(IProtocolFactory, TimestampEchoFactory(clock=Clock()))

    def test_line(self) -> None:
        """A line comes back at once with the moment in front of it."""
        self.connect().dataReceived(b"hello\n")
        self.assertEqual(self.transport.value(), STAMP + b"hello\n")

    def test_lab_client(self) -> None:
        """So does a message without a newline, as the lab's client sends it."""
        self.connect().dataReceived("你好".encode())
        self.assertEqual(self.transport.value(), STAMP + "你好".encode())

    def test_any_bytes(self) -> None:
        """Bytes that are no UTF-8, NULs and carriage returns come back as they are."""
        message = bytes(range(256)).replace(b"\n", b"") + b"\r\n"
        self.connect().dataReceived(message)
        self.assertEqual(self.transport.value(), STAMP + message)

    def test_order(self) -> None:
        """Replies come in the order of the messages, each with its own arrival."""
        echo = self.connect()
        echo.dataReceived(b"1\n2\n")
        self.clock.advance(1)
        echo.dataReceived(b"3\n")
        later = STAMP.replace(b":00 ", b":01 ")
        self.assertEqual(self.transport.value(), STAMP + b"1\n" + STAMP + b"2\n" + later + b"3\n")

    def test_chunk(self) -> None:
        """In `chunk` a read is a message."""
        self.connect(ChunkFraming).dataReceived(b"one\ntwo\nthr")
        self.assertEqual(self.transport.value(), STAMP + b"one\ntwo\nthr")

    def test_pause_ends_message(self) -> None:
        """In `auto` a pause of 0.1 s ends a message; its stamp is of its last read."""
        echo = self.connect()
        echo.dataReceived(b"one\ntw")
        self.clock.advance(MESSAGE_GAP / 2)
        echo.dataReceived(b"o")
        self.transport.clear()
        self.clock.advance(MESSAGE_GAP * 0.9)
        self.assertEqual(self.transport.value(), b"")
        self.clock.advance(MESSAGE_GAP * 0.2)
        self.clock.advance(0)
        self.assertEqual(self.transport.value(), STAMP + b"two")

    def test_pause_stamp(self) -> None:
        """The stamp of what a pause ended is the arrival's, not the pause's end."""
        echo = self.connect(style="unix")
        echo.dataReceived(b"one\ntwo")
        self.transport.clear()
        self.paused()
        self.assertEqual(self.transport.value(), b"[%d.000000000] two" % NOON)

    def test_pause_over_nothing(self) -> None:
        """A message that ends before the pause is over leaves nothing to answer."""
        echo = self.connect()
        echo.dataReceived(b"one\ntw")
        echo.dataReceived(b"o\n")
        self.transport.clear()
        self.paused()
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])

    def test_one_timer(self) -> None:
        """However many reads leave something pending, there is one timer for it."""
        echo = self.connect(transport=Transport())
        before = len(self.clock.getDelayedCalls())
        for _ in range(5):
            echo.dataReceived(b"a\nb")
        self.assertEqual(len(self.clock.getDelayedCalls()), before + 1)

    def test_no_pause_in_line(self) -> None:
        """In `line` a sender may take as long as it likes."""
        echo = self.connect(LineFraming)
        echo.dataReceived(b"one\ntwo")
        self.clock.advance(3600)
        echo.dataReceived(b"\n")
        self.assertEqual(
            self.transport.value(), STAMP + b"one\n" + STAMP.replace(b"12:00", b"13:00") + b"two\n"
        )

    def test_half_close(self) -> None:
        """Where the peer closes its side, what is pending is answered before the close."""
        for framing in (AutoFraming, LineFraming):
            echo = self.connect(framing)
            echo.dataReceived(b"one\ntwo\nthree")
            echo.readConnectionLost()
            self.assertEqual(
                self.transport.value(), STAMP + b"one\n" + STAMP + b"two\n" + STAMP + b"three"
            )
            self.assertTrue(self.transport.disconnecting)

    def test_half_close_after_nothing(self) -> None:
        """An empty stream gets an empty answer."""
        self.connect().readConnectionLost()
        self.assertEqual(self.transport.value(), b"")
        self.assertTrue(self.transport.disconnecting)

    def test_back_pressure(self) -> None:
        """The connection is its own streaming producer until it closes."""
        echo = self.connect()
        self.assertIs(self.transport.producer, echo)
        self.assertTrue(self.transport.streaming)
        echo.readConnectionLost()
        self.assertIsNone(self.transport.producer)

    def test_pressure_is_no_pause(self) -> None:
        """While the server itself does not read, the sender's line is not at its end."""
        echo = self.connect()
        echo.dataReceived(b"one\ntw")
        self.transport.clear()
        echo.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.clock.advance(10)
        self.assertEqual(self.transport.value(), b"")
        echo.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.clock.advance(MESSAGE_GAP / 2)
        echo.dataReceived(b"o\n")
        self.assertEqual(self.transport.value(), STAMP.replace(b"00:00 ", b"00:10 ") + b"two\n")

    def test_pressure_within_a_read(self) -> None:
        """So it is where the very replies of the read that brought a piece are too many."""
        echo = self.connect()
        written = self.transport.write

        def write(data: bytes) -> None:
            written(data)
            echo.pauseProducing()

        self.patch(self.transport, "write", write)
        echo.dataReceived(b"one\ntw")
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])

    def test_pause_after_pressure(self) -> None:
        """A sender that does pause after that has ended its message."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo")
        self.transport.clear()
        echo.pauseProducing()
        echo.resumeProducing()
        self.paused()
        self.assertEqual(self.transport.value(), STAMP + b"two")

    def test_pressure_without_a_message(self) -> None:
        """Where nothing is pending, or no pause counts, there is nothing to wait for."""
        for framing, data in ((AutoFraming, b"one\n"), (LineFraming, b"one\ntwo")):
            echo = self.connect(framing)
            before = len(self.clock.getDelayedCalls())
            echo.dataReceived(data)
            echo.pauseProducing()
            echo.resumeProducing()
            self.assertEqual(len(self.clock.getDelayedCalls()), before)

    def test_stop_producing(self) -> None:
        """A transport that is lost says so to its producer; that closes nothing more."""
        self.connect().stopProducing()
        self.assertFalse(self.transport.disconnecting)

    def test_late_server(self) -> None:
        """Where the server is late itself, what has come by now is read before it decides."""
        echo = self.connect()
        echo.dataReceived(b"one\nha")
        self.transport.clear()
        self.clock.advance(10 * MESSAGE_GAP)  # the timer, which the reactor looks at first
        echo.dataReceived(b"lf\n")  # then the sockets, in the same turn
        self.paused()
        self.assertEqual(self.transport.value().count(b"] "), 1)
        self.assertTrue(self.transport.value().endswith(b"] half\n"))

    def test_late_server_more_to_come(self) -> None:
        """So it is where what has come is not yet all of the message."""
        echo = self.connect()
        echo.dataReceived(b"one\nh")
        self.transport.clear()
        self.clock.advance(10 * MESSAGE_GAP)
        echo.dataReceived(b"a")
        self.clock.advance(MESSAGE_GAP / 2)
        self.assertEqual(self.transport.value(), b"")
        echo.dataReceived(b"lf\n")
        self.assertTrue(self.transport.value().endswith(b"] half\n"))

    def paused(self) -> None:
        """A pause passes, and then the turn of the reactor in which nothing has come."""
        self.clock.advance(MESSAGE_GAP)
        self.clock.advance(0)

    def test_no_delay(self) -> None:
        """On TCP replies leave at once (TCP_NODELAY)."""
        transport = TCPTransport()
        self.connect(transport=transport)
        self.assertTrue(transport.getTcpNoDelay())

    def test_kernel_time(self) -> None:
        """A sub-second stamp is the transport's arrival time, where it knows one."""
        transport = Transport()
        echo = self.connect(style="unix", transport=transport)
        transport.arrival = 123_456_789_012
        echo.dataReceived(b"a\n")
        transport.arrival = 0
        echo.dataReceived(b"b\n")
        self.assertEqual(transport.value(), b"[123.456789012] a\n" + b"[%d.000000000] b\n" % NOON)

    def test_no_kernel_time(self) -> None:
        """On a transport that knows no arrival times it is the clock's."""
        echo = self.connect(style="iso", transport=StringTransport())
        echo.dataReceived(b"a\n")
        self.assertEqual(self.transport.value(), b"[2026-11-22T12:00:00.000000+00:00] a\n")

    def test_lost_while_pending(self) -> None:
        """A connection that is lost within a message leaves no timer, and writes nothing."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo")
        self.transport.clear()
        self.lose(echo, ConnectionLost())
        self.paused()
        self.clock.advance(2)
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_log_peer_closed(self) -> None:
        """The line at the end has how long, how much, and that the peer closed."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo")
        self.clock.advance(2)
        echo.readConnectionLost()
        self.assertEqual(
            self.lose(echo),
            "connection from 192.168.1.1:54321 ended after 2.000 s: 2 messages,"
            " 7 bytes in, 61 bytes out; closed by the peer",
        )

    def test_log_server_closed(self) -> None:
        """A clean end that the peer did not begin is the server's."""
        self.assertIn("; closed by the server", self.lose(self.connect()))

    def test_log_lost(self) -> None:
        """Any other end has its reason."""
        self.assertIn("connection lost", self.lose(self.connect(), ConnectionLost()))
        self.assertIn("aborted", self.lose(self.connect(), ConnectionAborted()))

    def test_no_handshake(self) -> None:
        """A TLS peer that does not shake hands is cut off, with the reason in the log."""
        transport = TCPTransport()
        directlyProvides(transport, INegotiated)
        echo = self.connect(transport=transport)
        self.clock.advance(HANDSHAKE_TIMEOUT)
        self.assertTrue(transport.aborted)
        self.assertIn("; no TLS handshake within 10 s", self.lose(echo, ConnectionAborted()))

    def test_handshake(self) -> None:
        """One that does may take its time."""
        verifyClass(IHandshakeListener, TimestampEcho)
        transport = TCPTransport()
        directlyProvides(transport, INegotiated)
        echo = self.connect(transport=transport)
        echo.handshakeCompleted()
        self.clock.advance(10 * HANDSHAKE_TIMEOUT)
        self.assertFalse(transport.aborted)

    def test_log_ended_by_limits(self) -> None:
        """An end that the limits ordered has their reason, even if it took force."""
        transport = TCPTransport()
        echo = self.connect(LineFraming, transport=transport)
        echo.dataReceived(b"one\ntwo")
        echo.end("idle for 5 s")
        self.assertEqual(transport.value(), STAMP + b"one\n" + STAMP + b"two")
        self.assertTrue(transport.half_closed)
        echo.abort()
        self.assertTrue(transport.aborted)
        self.assertIn("; idle for 5 s", self.lose(echo, ConnectionAborted()))

    def test_log_reset_while_closing(self) -> None:
        """A peer that resets while its last replies are delivered did not just close."""
        echo = self.connect()
        echo.readConnectionLost()
        self.assertIn("connection lost", self.lose(echo, ConnectionLost()))

    def test_part(self) -> None:
        """After the end what comes is thrown away; the peer's close, or a second, closes."""
        transport = TCPTransport()
        echo = self.connect(transport=transport)
        echo.end("over")
        echo.end("again")
        echo.dataReceived(b"late\n")
        self.assertEqual(transport.value(), b"")
        echo.writeConnectionLost()
        self.assertFalse(transport.disconnecting)
        self.clock.advance(LINGER_TIMEOUT)
        self.assertTrue(transport.disconnecting)
        self.assertIn("; over", self.lose(echo))

    def test_part_tls(self) -> None:
        """Through TLS, too, a peer that does not close is left after a second."""
        transport = SecuredTransport()
        echo = self.connect(transport=transport)
        echo.end("over")
        self.assertTrue(transport.half_closed)
        echo.writeConnectionLost()
        self.clock.advance(LINGER_TIMEOUT)
        self.assertTrue(transport.disconnecting)
        self.assertIn("; over", self.lose(echo))

    def test_part_both(self) -> None:
        """Where the peer closes as well, that is the end."""
        transport = TCPTransport()
        echo = self.connect(transport=transport)
        echo.end("over")
        echo.writeConnectionLost()
        echo.readConnectionLost()
        self.assertTrue(transport.disconnecting)
        self.assertIn("; over", self.lose(echo))
        self.assertFalse(echo._linger and echo._linger.active())

    def test_end_under_pressure(self) -> None:
        """A peer that does not take its replies is cut off."""
        transport = TCPTransport()
        echo = self.connect(transport=transport)
        echo.pauseProducing()
        echo.end("over")
        self.assertTrue(transport.aborted)
        self.assertIn("; over", self.lose(echo, ConnectionAborted()))

    def full_after(self, size: int, transport: StringTransport) -> None:
        """From now on, this is full whenever it has so many bytes more."""
        written = transport.write
        left = size

        def write(data: bytes) -> None:
            nonlocal left
            written(data)
            left -= len(data)
            if left <= 0 and transport.producer is not None:
                left = size
                transport.producer.pauseProducing()

        self.patch(transport, "write", write)

    def test_dense_read(self) -> None:
        """Of a read whose replies are too long, no more is answered than there is room for."""
        echo = self.connect()
        self.full_after(1, self.transport)
        echo.dataReceived(b"\n" * MAX_PENDING)
        turns = 1
        while echo.messages < MAX_PENDING:
            reply = self.transport.value()
            self.assertLessEqual(len(reply), MAX_PENDING + len(STAMP))
            self.transport.clear()
            self.assertEqual(reply, (STAMP + b"\n") * (len(reply) // (len(STAMP) + 1)))
            self.assertEqual(self.transport.producerState, "paused")
            echo.resumeProducing()
            turns += 1
        self.assertGreater(turns, 20)
        echo.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")

    def test_dense_read_has_its_own_arrival(self) -> None:
        """What is answered late has the moment at which it came, and keeps its place."""
        echo = self.connect()
        self.full_after(MAX_PENDING, self.transport)
        echo.dataReceived(b"\n" * SHORT_READ * 2)
        self.clock.advance(60)
        echo.dataReceived(b"later\n")  # as TLS hands on what it had read
        while self.transport.producerState == "paused":
            echo.resumeProducing()
        late = STAMP.replace(b":00:", b":01:") + b"later\n"
        self.assertEqual(self.transport.value(), (STAMP + b"\n") * SHORT_READ * 2 + late)

    def test_close_behind_a_dense_read(self) -> None:
        """A close_notify behind it, in the same read, waits until all of it is answered."""
        echo = self.connect()
        self.full_after(1, self.transport)
        echo.dataReceived(b"\n" * MAX_PENDING + b"end")
        echo.readConnectionLost()
        self.assertLess(len(self.transport.value()), 2 * MAX_PENDING)
        while not self.transport.disconnecting:
            self.assertEqual(self.transport.producerState, "paused")
            echo.resumeProducing()
        self.assertEqual(self.transport.value(), (STAMP + b"\n") * MAX_PENDING + STAMP + b"end")
        self.assertTrue(self.transport.disconnecting)

    def test_drain(self) -> None:
        """Drained, it answers what has arrived, and what was pending, and parts."""
        transport = TCPTransport()
        echo = self.connect(LineFraming, transport=transport)
        echo.dataReceived(b"one\ntwo")
        echo.drain()
        self.clock.advance(0)
        self.assertFalse(transport.half_closed)
        echo.dataReceived(b"\nthree")  # when the reactor looks at its sockets
        self.clock.advance(0)
        self.assertTrue(transport.half_closed)
        self.assertEqual(transport.value().replace(STAMP, b""), b"one\ntwo\nthree")
        self.assertIn("; the service is stopping", self.lose(echo))

    def test_drain_full_reads(self) -> None:
        """While its reads fill the buffer, more has arrived."""
        transport = TCPTransport()
        echo = self.connect(transport=transport)
        echo.drain()
        self.clock.advance(0)
        for _ in range(3):
            echo.dataReceived(b"x" * 65535 + b"\n")
            self.clock.advance(0)
            self.assertFalse(transport.half_closed)
        self.clock.advance(0)
        self.assertTrue(transport.half_closed)

    def test_drain_under_pressure(self) -> None:
        """Where replies have to be taken first, it waits until they are."""
        transport = TCPTransport()
        echo = self.connect(transport=transport)
        echo.pauseProducing()
        echo.drain()
        self.clock.advance(10)
        self.assertFalse(transport.half_closed)
        echo.resumeProducing()
        self.clock.advance(0)
        echo.pauseProducing()
        self.clock.advance(0)
        self.assertFalse(transport.half_closed)
        echo.resumeProducing()
        self.clock.advance(0)
        echo.dataReceived(b"one\n")
        self.clock.advance(0)
        self.assertTrue(transport.half_closed)
        self.assertEqual(transport.value().count(b"] one\n"), 1)

    def test_drain_lost(self) -> None:
        """One that is lost meanwhile is left alone."""
        echo = self.connect(transport=TCPTransport())
        echo.drain()
        self.lose(echo, ConnectionLost())
        self.clock.advance(0)
        self.clock.advance(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_messages(self) -> None:
        """The limits see how many messages were answered."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo\n")
        self.assertEqual(echo.messages, 2)

    def test_log_reason_escaped(self) -> None:
        """The reason is printable ASCII, whatever it is."""
        line = self.lose(self.connect(), ValueError("a\n\x1b[31m\u2028"))
        self.assertIn("; a \\x1b[31m", line)

    def test_payload_not_logged(self) -> None:
        """What a peer sends is nowhere in its line."""
        echo = self.connect()
        echo.dataReceived(b"secret\n")
        self.assertNotIn("secret", self.lose(echo))

    def test_default_clock(self) -> None:
        """A factory without parameters is a whole one: for one's own service."""
        factory: Any = TimestampEchoFactory()
        echo = factory.buildProtocol(None)
        assert isinstance(echo, TimestampEcho)
        transport = StringTransport()
        echo.makeConnection(transport)
        echo.dataReceived(b"hello\n")
        self.assertRegex(
            transport.value(), rb"^\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] hello\n$"
        )
        for call in factory.clock.getDelayedCalls():
            call.cancel()
