"""Tests for `timestamp_echo.server.protocol`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from ipaddress import ip_network
from math import inf
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolFactory,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import IterationClock, TCPTransport, TLSTransport, logged
from timestamp_echo.framing import (
    FULL_READ,
    MAX_PENDING,
    MIN_PORTION,
    SHORT_REPLY,
    AutoFraming,
    ChunkFraming,
    Framing,
    LineFraming,
)
from timestamp_echo.server.closing import LAST_BYTES_DELAY, MAX_LAST_BYTES
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.log import USUAL
from timestamp_echo.server.protocol import (
    FIRST_MESSAGE,
    MESSAGE_GAP,
    TimestampEcho,
    TimestampEchoFactory,
)
from timestamp_echo.stamps import SECOND, Stamp

NOON = 1795348800  # 2026-11-22 12:00:00 UTC
STAMP = b"[Sun Nov 22 12:00:00 2026] "


class Transport(StringTransport):
    """A transport in memory that may know arrival times."""

    arrival = 0


class UnreadTransport(TCPTransport):
    """A connection with this many bytes unread, read as `FULL_READ` bytes at a time.

    @param size: how many are in its buffer.
    @param more: how many come when there is room for them.
    """

    read_size = FULL_READ
    reads = 0
    held = False
    echo: TimestampEcho

    def __init__(self, size: int, more: float = 0) -> None:
        super().__init__()
        self._unread = size
        self._more = more

    def unread(self) -> int:
        """See `StreamTransport.unread`."""
        return self._unread

    def hold(self) -> None:
        """See `StreamTransport.hold`."""
        self.held = True

    def has_come(self, size: int) -> None:
        """The peer's bytes arrive."""
        self._unread += size

    def doRead(self) -> None:
        """See `IReadDescriptor.doRead`."""
        self.reads += 1
        if self._more > 0:
            self._more -= FULL_READ
        else:
            self._unread = max(self._unread - FULL_READ, 0)
        self.echo.dataReceived(b"x" * (FULL_READ - 1) + b"\n")


class EndingTransport(UnreadTransport):
    """A connection whose peer sends something right before the end of the stream."""

    ends = 0

    def end_stream(self) -> bool:
        """See `UNIXStreamTransport.end_stream`."""
        self.ends += 1
        if self.ends == 1:
            self.has_come(1)
        return self.ends > 1


class TimestampEchoTests(SynchronousTestCase):
    """`TimestampEcho`, over a transport in memory."""

    def connect(
        self,
        framing: Callable[[], Framing] = AutoFraming,
        style: str = "ctime",
        transport: StringTransport | None = None,
        limits: Connections | None = None,
    ) -> TimestampEcho:
        """Make a connection at noon."""
        self.clock = IterationClock()
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

    def talked(self, transport: StringTransport | None = None) -> TimestampEcho:
        """Make a connection on which a line has been answered."""
        echo = self.connect(transport=transport)
        echo.dataReceived(b"hello\n")
        return echo

    def lose(self, echo: TimestampEcho, error: Exception | None = None) -> str:
        """Lose the connection, and return its line in the log; empty if it has none."""
        events = logged(self)
        echo.connectionLost(Failure(error or ConnectionDone()))
        return formatEvent(events[-1]) if events else ""

    def test_interfaces(self) -> None:
        """The classes implement the interfaces that they declare."""
        verifyClass(IHalfCloseableProtocol, TimestampEcho)
        verifyClass(IPushProducer, TimestampEcho)
        verifyClass(ITCPTransport, TCPTransport)
        verifyObject(IProtocolFactory, TimestampEchoFactory(clock=Clock()))

    def test_line(self) -> None:
        """A line is answered at once, with the current time in front of it."""
        self.connect().dataReceived(b"hello\n")
        self.assertEqual(self.transport.value(), STAMP + b"hello\n")

    def test_without_newline(self) -> None:
        """A message without a newline, as the lab's client sends it, is answered at once, too."""
        self.connect().dataReceived("你好".encode())
        self.assertEqual(self.transport.value(), STAMP + "你好".encode())

    def test_any_bytes(self) -> None:
        """Bytes that are not UTF-8, NULs and carriage returns are echoed unchanged."""
        message = bytes(range(256)).replace(b"\n", b"") + b"\r\n"
        self.connect().dataReceived(message)
        self.assertEqual(self.transport.value(), STAMP + message)

    def test_order(self) -> None:
        """Replies come in the order of the messages, each with the time of its own arrival."""
        echo = self.connect()
        echo.dataReceived(b"1\n2\n")
        self.clock.advance(1)
        echo.dataReceived(b"3\n")
        later = STAMP.replace(b":00 ", b":01 ")
        self.assertEqual(self.transport.value(), STAMP + b"1\n" + STAMP + b"2\n" + later + b"3\n")

    def test_chunk(self) -> None:
        """In `chunk` framing each read is one message."""
        self.connect(ChunkFraming).dataReceived(b"one\ntwo\nthr")
        self.assertEqual(self.transport.value(), STAMP + b"one\ntwo\nthr")

    def test_pause_ends_message(self) -> None:
        """In `auto` framing 0.1 s of silence end a message."""
        echo = self.connect()
        echo.dataReceived(b"one\ntw")
        self.clock.advance(0.05)
        echo.dataReceived(b"o")
        self.transport.clear()
        self.clock.advance(0.09)
        self.clock.advance(0)
        self.assertEqual(self.transport.value(), b"")
        self.clock.advance(0.02)
        self.clock.advance(0)
        self.assertEqual(self.transport.value(), STAMP + b"two")

    def test_pause_stamp(self) -> None:
        """The stamp of a message that silence ended is the time of its last read."""
        echo = self.connect(style="unix")
        echo.dataReceived(b"one\ntwo")
        self.transport.clear()
        self.paused()
        self.assertEqual(self.transport.value(), b"[%d.000000000] two" % NOON)

    def test_pause_over_nothing(self) -> None:
        """When the rest of a line arrives in time, the silence after it has no effect."""
        echo = self.connect()
        echo.dataReceived(b"one\ntw")
        echo.dataReceived(b"o\n")
        self.transport.clear()
        self.paused()
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])

    def test_one_timer(self) -> None:
        """A connection has one timer for its message gap, for any number of reads."""
        echo = self.connect(transport=Transport())
        before = len(self.clock.getDelayedCalls())
        for _ in range(5):
            echo.dataReceived(b"a\nb")
        self.assertEqual(len(self.clock.getDelayedCalls()), before + 1)

    def test_no_pause_in_line(self) -> None:
        """In `line` framing silence never ends a message."""
        echo = self.connect(LineFraming)
        echo.dataReceived(b"one\ntwo")
        self.clock.advance(3600)
        echo.dataReceived(b"\n")
        self.assertEqual(
            self.transport.value(), STAMP + b"one\n" + STAMP.replace(b"12:00", b"13:00") + b"two\n"
        )

    def test_half_close(self) -> None:
        """When the peer closes its side, an unfinished message is answered before the close."""
        for framing in (AutoFraming, LineFraming):
            echo = self.connect(framing)
            echo.dataReceived(b"one\ntwo\nthree")
            echo.readConnectionLost()
            self.assertEqual(
                self.transport.value(), STAMP + b"one\n" + STAMP + b"two\n" + STAMP + b"three"
            )
            self.assertTrue(self.transport.disconnecting)

    def test_half_close_after_nothing(self) -> None:
        """A peer that closes without having sent anything gets no bytes."""
        self.connect().readConnectionLost()
        self.assertEqual(self.transport.value(), b"")
        self.assertTrue(self.transport.disconnecting)

    def test_back_pressure(self) -> None:
        """The protocol is its transport's streaming producer until it closes."""
        echo = self.connect()
        self.assertIs(self.transport.producer, echo)
        self.assertTrue(self.transport.streaming)
        echo.readConnectionLost()
        self.assertIsNone(self.transport.producer)

    def test_paused_reading_is_no_gap(self) -> None:
        """While the server itself does not read, silence does not end the sender's message."""
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

    def test_paused_by_own_reply(self) -> None:
        """Nor when the reply to the same read is what pauses reading."""
        echo = self.connect()
        written = self.transport.write

        def write(data: bytes) -> None:
            written(data)
            echo.pauseProducing()

        self.patch(self.transport, "write", write)
        echo.dataReceived(b"one\ntw")
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])

    def test_gap_after_resuming(self) -> None:
        """After reading is resumed, silence ends the message again."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo")
        self.transport.clear()
        echo.pauseProducing()
        echo.resumeProducing()
        self.paused()
        self.assertEqual(self.transport.value(), STAMP + b"two")

    def test_no_timer_after_resuming(self) -> None:
        """Without an unfinished message, or in `line` framing, resuming starts no timer."""
        for framing, data in ((AutoFraming, b"one\n"), (LineFraming, b"one\ntwo")):
            echo = self.connect(framing)
            before = len(self.clock.getDelayedCalls())
            echo.dataReceived(data)
            echo.pauseProducing()
            echo.resumeProducing()
            self.assertEqual(len(self.clock.getDelayedCalls()), before)

    def test_stop_producing(self) -> None:
        """`stopProducing`, which a lost transport calls, does nothing."""
        self.connect().stopProducing()
        self.assertFalse(self.transport.disconnecting)

    def test_late_server(self) -> None:
        """A server that is late itself reads what has arrived before it ends a message."""
        echo = self.connect()
        echo.dataReceived(b"one\nha")
        self.transport.clear()
        self.clock.advance(10 * MESSAGE_GAP)  # timers run first in an iteration
        echo.dataReceived(b"lf\n")  # then sockets are read
        self.paused()
        self.assertEqual(self.transport.value().count(b"] "), 1)
        self.assertTrue(self.transport.value().endswith(b"] half\n"))

    def test_late_server_reads_part(self) -> None:
        """If that is not yet the end of the message, the gap starts anew."""
        echo = self.connect()
        echo.dataReceived(b"one\nh")
        self.transport.clear()
        self.clock.advance(10 * MESSAGE_GAP)
        echo.dataReceived(b"a")
        self.clock.advance(MESSAGE_GAP / 2)
        self.assertEqual(self.transport.value(), b"")
        echo.dataReceived(b"lf\n")
        self.assertTrue(self.transport.value().endswith(b"] half\n"))

    def test_late_server_twice(self) -> None:
        """A server that is late again reads again before it ends the message."""
        echo = self.connect()
        echo.dataReceived(b"one\nh")
        self.transport.clear()
        for data in (b"a", b"lf\n"):
            self.clock.advance(10 * MESSAGE_GAP)
            echo.dataReceived(data)
        self.paused()
        self.assertTrue(self.transport.value().endswith(b"] half\n"))

    def test_gap_again(self) -> None:
        """Silence can end several messages of one connection."""
        echo = self.connect()
        for data in (b"one\ntwo", b"three\nfour"):
            echo.dataReceived(data)
            self.paused()
        self.assertEqual(self.transport.value().replace(STAMP, b"|"), b"|one\n|two|three\n|four")

    def test_end_stops_gap(self) -> None:
        """After `end` no timer of the message gap is left."""
        echo = self.connect(transport=TCPTransport())
        echo.dataReceived(b"one\ntwo")
        echo.end("over")
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])  # the first is the log's

    def test_half_close_while_paused(self) -> None:
        """If only sent replies are pending, a close of the peer does not wait for them."""
        echo = self.connect()
        echo.pauseProducing()
        echo.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def paused(self) -> None:
        """Let the message gap pass, and the iteration in which nothing is read."""
        self.clock.advance(MESSAGE_GAP)
        self.clock.advance(0)

    def test_no_delay(self) -> None:
        """Over TCP replies are sent at once (TCP_NODELAY)."""
        transport = TCPTransport()
        self.connect(transport=transport)
        self.assertTrue(transport.getTcpNoDelay())

    def test_kernel_time(self) -> None:
        """A sub-second stamp is the transport's arrival time, or the current time without one."""
        transport = Transport()
        echo = self.connect(style="unix", transport=transport)
        transport.arrival = 123_456_789_012
        echo.dataReceived(b"a\n")
        transport.arrival = 0
        echo.dataReceived(b"b\n")
        self.assertEqual(transport.value(), b"[123.456789012] a\n" + b"[%d.000000000] b\n" % NOON)

    def test_no_kernel_time(self) -> None:
        """Over a transport without arrival times it is the current time."""
        echo = self.connect(style="iso", transport=StringTransport())
        echo.dataReceived(b"a\n")
        self.assertEqual(self.transport.value(), b"[2026-11-22T12:00:00.000000+00:00] a\n")

    def test_lost_within_message(self) -> None:
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
        """The log has the duration, the counts, and that the peer closed."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo")
        self.clock.advance(2)
        echo.readConnectionLost()
        self.assertEqual(
            self.lose(echo),
            "connection from 192.168.1.1:54321 ended after 2.000 s: 2 messages,"
            " 7 bytes in, 61 bytes out; closed by the peer",
        )

    def test_log_opened(self) -> None:
        """The first bytes write the line that a connection was opened; no others do."""
        events = logged(self)
        echo = self.connect()
        self.assertEqual(events, [])
        for data in (b"one", b"two", b"\n" * 5000):
            echo.dataReceived(data)
        echo.pauseProducing()
        echo.resumeProducing()
        echo.dataReceived(b"three\n")
        lines = [formatEvent(event) for event in events]
        self.assertEqual(lines, ["connection from 192.168.1.1:54321 opened"])

    def test_log_opened_while_paused(self) -> None:
        """So they do if they come while it is paused, or after that; their reply is not lost."""
        for resumed_first in (True, False):
            events = logged(self)
            echo = self.connect()
            echo.pauseProducing()
            if resumed_first:
                echo.resumeProducing()
            echo.dataReceived(b"one\n")
            if not resumed_first:
                self.assertEqual(self.transport.value(), b"")
                echo.resumeProducing()
            self.assertEqual(self.transport.value(), STAMP + b"one\n")
            self.assertEqual([event["log_format"][-6:] for event in events], ["opened"])

    def test_usual_path(self) -> None:
        """After the first read, and after a pause, short reads do not take the longer way."""
        for paused in (False, True):
            echo = self.connect()
            echo.dataReceived(b"one\n")
            if paused:
                echo.pauseProducing()
                echo.resumeProducing()
            self.patch(echo, "_answer_backlog", {}.popitem)  # raises
            echo.dataReceived(b"two\n")
            self.assertEqual(self.transport.value(), STAMP + b"one\n" + STAMP + b"two\n")

    def test_log_silent(self) -> None:
        """A connection that ends without a byte, as a health check does, is only counted."""
        for transport in (Transport, TLSTransport):
            for error in (ConnectionDone(), ConnectionLost(), ConnectionAborted()):
                self.assertEqual(self.lose(self.connect(transport=transport()), error), "")
                label = "aborted" if isinstance(error, ConnectionAborted) else "no_data"
                self.assertEqual(self.factory.counts.closed[label], 1)
        for echo in (self.connect(), self.connect()):
            echo.readConnectionLost()
            self.assertEqual(self.lose(echo), "")
        echo = self.talked()
        self.assertNotEqual(self.lose(echo), "")
        self.assertEqual(self.factory.counts.closed["no_data"], 0)

    def test_log_handshake_failed(self) -> None:
        """A connection whose TLS handshake fails is logged, although it brought no message."""
        error = SSL.Error([("SSL routines", "", "no shared cipher")])
        line = self.lose(self.connect(transport=TLSTransport()), error)
        self.assertIn("0 messages, 0 bytes in, 0 bytes out; no shared cipher", line)
        self.assertEqual(self.factory.counts.closed["no_data"], 0)

    def test_may_proxy(self) -> None:
        """Who may send no PROXY header is counted, and has a line, at the log's pace."""
        clock = Clock()
        connections = Connections(clock, proxies=[ip_network("192.0.2.0/24")])
        factory = TimestampEchoFactory(clock=clock, connections=connections)
        events = logged(self)
        self.assertTrue(factory.may_proxy(IPv4Address("TCP", "192.0.2.1", 1)))
        self.assertEqual((events, factory.counts.refused["proxy_from"]), ([], 0))
        for port in range(20):
            self.assertFalse(factory.may_proxy(IPv4Address("TCP", "192.0.3.1", port)))
        self.assertEqual((len(events), factory.counts.refused["proxy_from"]), (USUAL.lines, 20))
        self.assertEqual(
            formatEvent(events[0]),
            "connection from 192.0.3.1:0 refused: not in a --proxy-from network",
        )

    def test_log_server_closed(self) -> None:
        """A clean close that the peer did not begin is the server's."""
        self.assertIn("; closed by the server", self.lose(self.talked()))

    def test_log_lost(self) -> None:
        """The log tells a lost connection from one that the server aborted."""
        self.assertIn("connection lost", self.lose(self.talked(), ConnectionLost()))
        self.assertIn("aborted", self.lose(self.talked(), ConnectionAborted()))

    def test_no_handshake(self) -> None:
        """A connection without a TLS handshake is aborted after ten seconds; the log says why."""
        transport = TLSTransport()
        echo = self.connect(transport=transport)
        self.clock.advance(9.9)
        self.assertFalse(transport.aborted)
        self.clock.advance(0.1)
        self.assertTrue(transport.aborted)
        self.assertIn("; no TLS handshake within 10 s", self.lose(echo, ConnectionAborted()))

    def test_no_handshake_at_the_end(self) -> None:
        """A connection that is ended first keeps that reason."""
        transport = TLSTransport()
        echo = self.connect(transport=transport)
        echo.end("over")
        self.clock.advance(10)
        self.assertTrue(transport.aborted)
        self.assertIn("; over", self.lose(echo, ConnectionAborted()))

    def test_lost_within_handshake(self) -> None:
        """A connection that is lost during its handshake leaves no timer."""
        transport = TLSTransport()
        self.lose(self.connect(transport=transport), ConnectionLost())
        self.clock.advance(10)
        self.assertFalse(transport.aborted)

    def test_handshake(self) -> None:
        """After the handshake there is no such timeout."""
        verifyClass(IHandshakeListener, TimestampEcho)
        transport = TLSTransport()
        echo = self.connect(transport=transport)
        echo.handshakeCompleted()
        self.clock.advance(100)
        self.assertFalse(transport.aborted)

    def test_log_end_and_abort(self) -> None:
        """The log has the reason of `end`, also where an abort had to follow."""
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
        """If the peer closes its side and then resets, the log has the reset."""
        echo = self.talked()
        echo.readConnectionLost()
        self.assertIn("connection lost", self.lose(echo, ConnectionLost()))

    def test_linger(self) -> None:
        """After `end` input is discarded; a peer that does not close is left after a second."""
        transport = TCPTransport()
        echo = self.talked(transport)
        echo.end("over")
        echo.end("again")
        echo.dataReceived(b"late\n")
        self.assertEqual(transport.value(), STAMP + b"hello\n")
        echo.writeConnectionLost()
        self.assertFalse(transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(transport.disconnecting)
        self.assertIn("; over", self.lose(echo))

    def test_linger_tls(self) -> None:
        """The same holds over TLS."""
        transport = TLSTransport()
        echo = self.talked(transport)
        echo.end("over")
        self.assertTrue(transport.half_closed)
        echo.writeConnectionLost()
        self.clock.advance(1)
        self.assertTrue(transport.disconnecting)
        self.assertIn("; over", self.lose(echo))

    def test_linger_until_peer_closes(self) -> None:
        """When the peer closes its side after `end`, the connection closes at once."""
        transport = TCPTransport()
        echo = self.talked(transport)
        echo.end("over")
        echo.writeConnectionLost()
        echo.readConnectionLost()
        self.assertTrue(transport.disconnecting)
        self.assertIn("; over", self.lose(echo))
        self.assertFalse(echo._linger and echo._linger.active())

    def test_end_while_paused(self) -> None:
        """`end` aborts a connection whose peer does not read its replies."""
        transport = TCPTransport()
        echo = self.talked(transport)
        echo.pauseProducing()
        echo.end("over")
        self.assertTrue(transport.aborted)
        self.assertIn("; over", self.lose(echo, ConnectionAborted()))

    def test_end_between_turns(self) -> None:
        """`end` lets a connection that only waits for its turn answer all that it has read."""
        transport = TCPTransport()
        echo = self.connect(transport=transport)
        echo.dataReceived(b"\n" * 5000)
        echo.end("over")
        echo.end("again")
        self.clock.pump([0] * 20)
        self.assertEqual(transport.value(), (STAMP + b"\n") * 5000)
        self.clock.advance(LAST_BYTES_DELAY)
        self.assertTrue(transport.half_closed)
        self.assertFalse(transport.aborted)
        self.assertIn("; over", self.lose(echo))

    def test_progress(self) -> None:
        """An answered message is progress; bytes of a message that has not ended are none."""
        echo = self.connect(LineFraming)
        before = echo.progress
        echo.dataReceived(b"one")
        self.assertEqual(echo.progress, before)
        echo.dataReceived(b"\n")
        self.assertNotEqual(echo.progress, before)
        before = echo.progress
        written = len(self.transport.value())
        self.transport.unsent = lambda: len(self.transport.value()) - written  # type: ignore[attr-defined]
        echo.dataReceived(b"two\n")
        self.assertNotEqual(echo.progress, before)

    def test_progress_of_reader(self) -> None:
        """So are replies that the peer receives. When it has received all, nobody is asked."""
        unsent = [800, 0, 300, 300]
        echo = self.connect(LineFraming)
        self.transport.unsent = lambda: unsent.pop(0)  # type: ignore[attr-defined]
        echo.dataReceived(b"x" * 999 + b"\n")
        changes = []
        for line in (b"", b"", b"", b"y" * 300 + b"\n", b""):
            if line:
                echo.dataReceived(line)
            progress = echo.progress
            changes.append(progress != echo.progress_seen)
            echo.progress_seen = progress
        self.assertEqual(changes, [True, True, False, True, False])
        self.assertEqual(unsent, [])

    def full_after(self, size: int, transport: StringTransport) -> None:
        """Pause the producer of this transport after each `size` bytes written."""
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
        """Many short lines in one read are answered only as far as their replies have room."""
        echo = self.connect()
        self.full_after(1, self.transport)
        echo.dataReceived(b"\n" * MAX_PENDING)
        portions = 1
        while echo.messages < MAX_PENDING:
            reply = self.transport.value()
            self.assertLessEqual(len(reply), MAX_PENDING + len(STAMP))
            self.transport.clear()
            self.assertEqual(reply, (STAMP + b"\n") * (len(reply) // (len(STAMP) + 1)))
            self.assertEqual(self.transport.producerState, "paused")
            echo.resumeProducing()
            portions += 1
        self.assertGreater(portions, 20)
        echo.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")

    def test_backlog(self) -> None:
        """Lines that are answered late keep their order and their arrival times."""
        echo = self.connect()
        self.full_after(MAX_PENDING, self.transport)
        lines = 2 * SHORT_REPLY // len(STAMP)
        echo.dataReceived(b"\n" * lines)
        self.clock.advance(60)
        echo.dataReceived(b"later\n")  # TLS passes on what it had read before
        while self.transport.producerState == "paused":
            echo.resumeProducing()
        late = STAMP.replace(b":00:", b":01:") + b"later\n"
        self.assertEqual(self.transport.value(), (STAMP + b"\n") * lines + late)

    def test_turns(self) -> None:
        """Others have their turn between two portions of many short lines; then it reads on."""
        echo = self.connect()
        echo.dataReceived(b"\n" * 5000)
        turns = 0
        while echo.messages < 5000:
            self.assertEqual(self.transport.producerState, "paused")
            self.assertLessEqual(len(self.transport.value()), MIN_PORTION)
            self.assertEqual(self.transport.value().count(STAMP + b"\n") * 28, self.written())
            self.clock.advance(0)
            turns += 1
        self.assertGreater(turns, 8)
        self.assertEqual(self.transport.producerState, "producing")
        self.assertIn("5000 messages", self.lose(echo))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def written(self) -> int:
        """How many bytes were written since the last call."""
        size = len(self.transport.value())
        self.transport.clear()
        return size

    def test_nothing_left(self) -> None:
        """When the port and all connections are closed there is no timer, and the log is whole."""
        for port_first in (True, False):
            self.lose(self.connect())
            self.clock.advance(1)
            self.factory.connections = Connections(self.clock, idle_timeout=100)
            self.factory.doStart()
            echoes = []
            for _ in range(USUAL.lines + 1):
                echo = self.factory.buildProtocol(None)
                assert isinstance(echo, TimestampEcho)
                echo.makeConnection(StringTransport())
                echo.dataReceived(b"\n")
                echoes.append(echo)
            events = logged(self)
            if port_first:
                self.factory.doStop()
            for echo in echoes:
                echo.connectionLost(Failure(ConnectionDone()))
            if not port_first:
                self.assertEqual(len(self.clock.getDelayedCalls()), 3)
                self.factory.doStop()
            lines = [formatEvent(event) for event in events]
            self.assertEqual(lines[-1], "1 more connection ended within 0 s")
            self.assertIn("1 more connection opened within 0 s", lines)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_short_reads_share_a_turn(self) -> None:
        """Reads that came while it was paused are answered together, up to a portion."""
        echo = self.connect()
        echo.pauseProducing()
        for _ in range(1000):
            echo.dataReceived(b"x\n")
        echo.resumeProducing()
        turns = 0
        while echo.messages < 1000:
            self.clock.advance(0)
            turns += 1
        self.assertEqual(turns, 1000 * len(STAMP + b"x\n") // MIN_PORTION)

    def test_abort_between_turns(self) -> None:
        """After an abort nothing is written."""
        echo = self.connect(transport=TCPTransport())
        echo.dataReceived(b"\n" * 5000)
        answered = echo.messages
        echo.abort()
        self.clock.pump([0] * 3)
        self.assertEqual(echo.messages, answered)

    def test_exception_in_log(self) -> None:
        """A connection whose line cannot be written is over all the same."""
        echo = self.talked()
        self.patch(self.transport, "getPeer", {}.popitem)
        self.assertRaises(KeyError, echo.connectionLost, Failure(ConnectionDone()))
        self.assertEqual(len(self.factory.connections), 0)

    def test_lost_between_turns(self) -> None:
        """A connection that is lost before its next turn is answered no further."""
        echo = self.connect()
        echo.dataReceived(b"\n" * 5000)
        answered = echo.messages
        self.lose(echo)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(0 < answered == echo.messages < 5000)

    def test_paused_between_turns(self) -> None:
        """The rest waits as long as too many replies are unsent."""
        echo = self.connect()
        echo.dataReceived(b"\n" * 5000)
        answered = echo.messages
        echo.pauseProducing()
        self.clock.pump([0] * 3)
        self.assertEqual(echo.messages, answered)

    def test_no_cycle(self) -> None:
        """A connection that is over is deleted at once, with what it has still to send."""
        for read in (b"\n" * 5000, b"x" * FULL_READ):
            echo = self.connect()
            echo.dataReceived(read)
            self.lose(echo)
            self.transport.producer = None
            gone = weakref.ref(echo)
            gc.disable()
            self.addCleanup(gc.enable)
            del echo
            self.assertIsNone(gone())

    def test_long_stamp(self) -> None:
        """The longer the stamp, the fewer lines are answered at once."""
        echo = self.connect()
        self.factory.prefix = lambda moment: b"p" * 257
        echo.dataReceived(b"\n" * 1000)
        self.assertLessEqual(len(self.transport.value()), MAX_PENDING)

    def test_close_after_dense_read(self) -> None:
        """A close_notify in the same read takes effect when all lines are answered."""
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
        """`drain` answers what arrives, up to a whole message, then closes this side."""
        transport = TCPTransport()
        echo = self.connect(LineFraming, transport=transport)
        echo.dataReceived(b"one\ntwo")
        echo.drain()
        self.clock.advance(0)
        echo.dataReceived(b"\nthree")  # the reactor reads its sockets
        self.clock.advance(LAST_BYTES_DELAY / 2)
        self.assertFalse(transport.half_closed)
        echo.dataReceived(b"\n")
        self.assertTrue(transport.half_closed)
        echo.dataReceived(b"four\n")
        self.assertEqual(transport.value().replace(STAMP, b""), b"one\ntwo\nthree\n")
        self.assertIn("; the service is stopping", self.lose(echo))

    def test_drain_idle(self) -> None:
        """Where no message comes, this side is closed all the same, with what is unfinished."""
        for unfinished in (b"", b"one"):
            transport = TCPTransport()
            echo = self.connect(LineFraming, transport=transport)
            echo.dataReceived(b"\n" + unfinished)
            echo.drain()
            self.clock.pump([0, LAST_BYTES_DELAY / 2])
            self.assertFalse(transport.half_closed)
            self.clock.advance(LAST_BYTES_DELAY / 2)
            self.assertTrue(transport.half_closed)
            self.assertTrue(transport.value().endswith(STAMP + (unfinished or b"\n")))

    def test_drain_meanwhile(self) -> None:
        """What arrives between the last reply and the close is answered as well."""
        transport = UnreadTransport(1)
        echo = transport.echo = self.connect_before(transport)
        unread = [1, 1, 0, 1, 1, 1, 0, 0]  # the fourth is asked for right before the close
        transport.unread = lambda: unread.pop(0)  # type: ignore[method-assign]
        echo.drain()
        self.clock.advance(0)
        self.assertEqual((transport.reads, transport.half_closed), (1, False))
        self.clock.advance(0)
        self.assertEqual((transport.reads, transport.half_closed, unread), (2, True, []))
        self.assertEqual(echo.messages, 2)

    def test_drain_end(self) -> None:
        """Where the transport finds more as it ends the stream, that is answered first."""
        transport = EndingTransport(1)
        echo = transport.echo = self.connect_before(transport)
        echo.drain()
        self.clock.advance(0)
        self.assertEqual((transport.reads, transport.half_closed), (1, False))
        self.clock.advance(0)
        self.assertEqual((transport.reads, transport.half_closed, echo.messages), (2, True, 2))

    def test_drain_end_ahead(self) -> None:
        """Not where the peer has not read all replies, and so may drop them."""
        for unread in (0, 1):
            transport = EndingTransport(unread)
            transport.unsent = lambda: 28  # type: ignore[attr-defined]
            self.drain(transport)
            self.assertEqual(transport.ends, 0)

    def test_drain_end_several(self) -> None:
        """Nor where the peer sends several messages at once."""
        for data, ends in ((b"one\n", 2), (b"one\ntwo\n", 0)):
            transport = EndingTransport(0)
            echo = transport.echo = self.connect_before(transport)
            echo.drain()
            self.clock.advance(0)
            echo.dataReceived(data)
            self.clock.advance(0)
            self.assertEqual((transport.ends, transport.half_closed), (ends, True))

    def test_drain_end_incomplete(self) -> None:
        """The same where it is only the beginning of a message, and nothing follows."""
        transport = EndingTransport(1)
        echo = transport.echo = self.connect_before(transport)
        echo.drain()
        self.clock.advance(0)
        transport.clear()
        echo.dataReceived(b"one")
        echo.readConnectionLost()
        self.assertEqual(transport.value().count(b"] one"), 1)
        self.assertTrue(transport.disconnecting)

    def test_drain_ended(self) -> None:
        """A connection that has ended by itself while it was drained is not closed again."""
        transport = TCPTransport()
        echo = self.talked(transport)
        echo.drain()
        self.clock.advance(0)
        echo.readConnectionLost()
        self.clock.advance(LAST_BYTES_DELAY)
        self.assertFalse(transport.half_closed)
        self.assertIn("; closed by the peer", self.lose(echo))

    def connect_before(self, transport: TCPTransport) -> TimestampEcho:
        """Connect so long before a stop that no first message is waited for."""
        echo = self.connect(transport=transport)
        self.clock.advance(FIRST_MESSAGE)
        return echo

    def drain(self, transport: UnreadTransport) -> None:
        """Drain a connection until its side is closed."""
        echo = transport.echo = self.connect_before(transport)
        echo.drain()
        echo.drain()  # the second call of a stop changes nothing
        while not transport.half_closed:
            reads = transport.reads
            (call,) = self.clock.getDelayedCalls()
            self.clock.advance(call.getTime() - self.clock.seconds())
            self.assertLessEqual(transport.reads, reads + 1)  # others have their turn

    def test_drain_unread(self) -> None:
        """What is unread at the stop is read and answered, and what a full buffer kept out."""
        for size, more, reads in (
            (0, 0, 0),
            (1, 0, 1),
            (3 * FULL_READ, 0, 3),
            (3 * FULL_READ + 1, 5 * FULL_READ, 9),
        ):
            transport = UnreadTransport(size, more)
            self.drain(transport)
            self.assertEqual(transport.reads, reads)

    def test_drain_late(self) -> None:
        """What a full buffer kept out may come a little after the buffer was emptied.

        The last message is waited for only then.
        """
        transport = UnreadTransport(FULL_READ + 1)
        echo = transport.echo = self.connect_before(transport)
        echo.drain()
        self.clock.pump([0] * 3)
        self.assertEqual(transport.reads, 2)
        self.assertFalse(transport.half_closed)
        echo.dataReceived(b"the reactor reads this\n")
        transport.has_come(FULL_READ)
        self.clock.advance(LAST_BYTES_DELAY)
        self.clock.advance(0)
        self.assertEqual((transport.reads, echo.messages), (3, 4))
        self.assertTrue(transport.half_closed)

    def test_drain_at_once(self) -> None:
        """A message that waits is the last one, where the buffer was not full."""
        transport = UnreadTransport(FULL_READ)
        echo = transport.echo = self.connect_before(transport)
        echo.drain()
        self.clock.advance(0)
        self.assertTrue(transport.half_closed)
        self.assertTrue(transport.held)

    def test_drain_endless(self) -> None:
        """A peer that never stops sending does not keep the service from stopping."""
        transport = UnreadTransport(FULL_READ, inf)
        self.drain(transport)
        self.assertEqual(transport.reads, 1 + MAX_LAST_BYTES // FULL_READ)
        transport = UnreadTransport(FULL_READ + 1, inf)
        self.drain(transport)
        self.assertEqual(transport.reads, 2 + MAX_LAST_BYTES // FULL_READ)

    def test_drain_pausing(self) -> None:
        """A read whose reply pauses the connection interrupts the drain; it begins again later."""
        transport = UnreadTransport(2 * FULL_READ)
        echo = transport.echo = self.connect_before(transport)
        self.full_after(1, transport)
        echo.drain()
        for _ in range(3):
            self.clock.advance(0)
        self.assertEqual((transport.reads, transport.half_closed), (1, False))
        while not transport.half_closed:
            echo.resumeProducing()
            self.clock.pump([0, LAST_BYTES_DELAY])
        self.assertEqual((transport.reads, echo.messages), (2, 2))

    def test_drain_while_paused(self) -> None:
        """While too many replies are unsent, draining waits."""
        transport = TCPTransport()
        echo = self.connect_before(transport)
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
        self.assertFalse(transport.half_closed)
        echo.dataReceived(b"one\n")  # the reactor reads its sockets
        self.clock.advance(0)
        self.assertTrue(transport.half_closed)
        self.assertEqual(transport.value().count(b"] one\n"), 1)

    def test_drain_lost(self) -> None:
        """A connection that is lost while it is drained, or before, leaves no timer."""
        for age in (FIRST_MESSAGE, 0):
            transport = TCPTransport()
            echo = self.connect(transport=transport)
            self.clock.advance(age)
            for _ in range(2):
                echo.drain()
            self.lose(echo, ConnectionLost())
            self.clock.advance(0)
            self.clock.advance(2)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertFalse(transport.half_closed)

    def test_drain_first_message(self) -> None:
        """A young connection without a message is drained only when it is a second old."""
        for message in (b"", b"one\n"):
            transport = TCPTransport()
            echo = self.connect(transport=transport)
            self.clock.advance(FIRST_MESSAGE / 4)
            for _ in range(2):
                echo.drain()
            self.clock.pump([0, FIRST_MESSAGE * 5 / 8])
            self.assertFalse(transport.half_closed)
            if message:
                echo.dataReceived(message)
            else:
                self.clock.advance(FIRST_MESSAGE / 8)
            self.assertTrue(transport.half_closed)
            self.assertEqual(transport.value(), STAMP + message if message else b"")
            self.lose(echo)

    def test_messages(self) -> None:
        """`messages` counts the answered messages, for the idle timeout."""
        echo = self.connect()
        echo.dataReceived(b"one\ntwo\n")
        self.assertEqual(echo.messages, 2)

    def test_log_reason_escaped(self) -> None:
        """The reason is escaped to printable ASCII."""
        line = self.lose(self.connect(), ValueError("a\n\x1b[31m\u2028"))
        self.assertIn("; a \\x1b[31m", line)

    def test_payload_not_logged(self) -> None:
        """The log never has what a peer sends."""
        echo = self.connect()
        echo.dataReceived(b"secret\n")
        self.assertNotIn("secret", self.lose(echo))

    def test_default_clock(self) -> None:
        """A factory needs no arguments: it can be used in any Twisted service."""
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
