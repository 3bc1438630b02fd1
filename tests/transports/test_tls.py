"""Tests for `timestamp_echo.transports.tls`, against a TLS client made of OpenSSL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL.SSL import (
    TLS_CLIENT_METHOD,
    Connection,
    Context,
    Error,
    WantReadError,
)
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass

from tests.fakes import TCPTransport
from tests.system.certificates import self_signed
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.proxy import ProxiedFactory
from timestamp_echo.transports.tls import (
    FIRST_READ_SIZE,
    MAX_RECORD,
    SMALL_READ_SIZE,
    HalfCloseTLS,
    HalfCloseTLSFactory,
    RecordTracker,
)

STAMP = b"[Thu Jan  1 00:00:01 1970] "


class Client:
    """A TLS client in memory, connected to a server's protocol.

    @param prepare: is called with OpenSSL's connection before the handshake.
    """

    def __init__(
        self,
        server: Any,
        transport: TCPTransport,
        prepare: Callable[[Connection], object] = lambda tls: None,
    ) -> None:
        self._tls = Connection(Context(TLS_CLIENT_METHOD), None)
        self._tls.set_connect_state()
        prepare(self._tls)
        self._server = server
        self._transport = transport
        self.received = b""
        server.makeConnection(transport)
        try:
            self._tls.do_handshake()
        except WantReadError:
            self.exchange()
        self._tls.do_handshake()
        self.exchange()

    def exchange(self) -> None:
        """Pass bytes in both directions until there are none left."""
        while True:
            with contextlib.suppress(WantReadError):
                self._server.dataReceived(self._tls.bio_read(2**16))
            data = self._transport.value()
            self._transport.clear()
            if not data:
                return
            self._tls.bio_write(data)
            self._read()

    def _read(self) -> None:
        with contextlib.suppress(Error):
            while True:
                self.received += self._tls.recv(2**16)

    def take(self, size: int) -> bytes:
        """Take up to this many bytes of what is encrypted."""
        with contextlib.suppress(WantReadError):
            return self._tls.bio_read(size)
        return b""

    def send(self, data: bytes) -> None:
        """Encrypt data for the next exchange."""
        self._tls.send(data)

    def close_notify(self) -> None:
        """Close this side, in the next exchange."""
        self._tls.shutdown()

    @property
    def server_closed(self) -> bool:
        """Whether the server has sent its close_notify."""
        return bool(self._tls.get_shutdown() & 2)


class RecordTrackerTests(SynchronousTestCase):
    """`RecordTracker`: which reads are exactly one record."""

    @given(
        st.lists(st.integers(0, 300) | st.just(MAX_RECORD), min_size=1, max_size=6),
        st.lists(st.integers(0, 6 * 305), max_size=12),
        st.data(),
    )
    def test_any_split(self, sizes: list[int], splits: list[int], data: st.DataObject) -> None:
        """However TCP splits the stream, only a read of one whole record is one."""
        stream = b"".join(b"\x17\3\3" + size.to_bytes(2, "big") + bytes(size) for size in sizes)
        ends = [0, *accumulate(5 + size for size in sizes)]
        positions = sorted({0, len(stream), *splits, *data.draw(st.sets(st.sampled_from(ends)))})
        tracker = RecordTracker()
        for start, end in pairwise(p for p in positions if p <= len(stream)):
            expected = (start, end) in set(pairwise(ends))
            self.assertEqual(tracker.is_one_record(stream[start:end]), expected)

    def test_no_boundary(self) -> None:
        """A read within a record may look exactly like a record, and is none."""
        record = b"\x17\3\3\0\2ab"
        outer = b"\x17\3\3\0\x09" + record + b"zz"
        tracker = RecordTracker()
        reads = (outer[:5], record, b"zz", record)
        self.assertEqual([tracker.is_one_record(data) for data in reads], [False] * 3 + [True])
        # The second read has the rest of the header in front.
        split = (b"\x17\3\3", b"\0\5a\0\2yz", record)
        self.assertEqual([tracker.is_one_record(data) for data in split], [False, False, True])

    def test_count(self) -> None:
        """It counts the records that begin in a read."""
        tracker = RecordTracker()
        stream = b"\x17\3\3\0\1a" * 10
        counts = []
        for data in (stream[:33], stream[33:], b"\x17\3\3\1\0" + bytes(100), bytes(100)):
            self.assertFalse(tracker.is_one_record(data))
            counts.append(tracker.count)
        self.assertEqual(counts, [5, 5, 1, 0])


class ReadSizes(TCPTransport):
    """Records the sizes of reads that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def set_read_size(self, size: int) -> None:
        """See `StreamTransport.set_read_size`."""
        self.sizes.append(size)


@implementer(IHalfCloseableProtocol)
class Recorder(Protocol):
    """Records what it receives, and how both sides close; closes nothing itself."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.events.append(data)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        self.events.append("read closed")

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        self.events.append("write closed")


class HalfCloseTLSTests(SynchronousTestCase):
    """`HalfCloseTLS` around `TimestampEcho`."""

    def setUp(self) -> None:
        """Connect a client, and complete the handshake."""
        self.clock = Clock()
        self.transport = TCPTransport()
        echoes = TimestampEchoFactory(Stamp(utc=True), clock=self.clock, now=lambda: SECOND)
        self.server: Any = self.tls(echoes).buildProtocol(None)
        self.client = Client(self.server, self.transport)

    def tls(self, inner: Any) -> HalfCloseTLSFactory:
        """Make a factory of TLS around this one."""
        files = self_signed(self.mktemp())
        creator: Any = DefaultOpenSSLContextFactory(files.key, files.certificate)
        return HalfCloseTLSFactory(creator, inner, self.clock)

    def test_interfaces(self) -> None:
        """The class implements the interface that it declares."""
        verifyClass(IHalfCloseableProtocol, HalfCloseTLS)

    def test_read_size(self) -> None:
        """Reads grow while they are full, and are small while the records are tiny."""
        transport = ReadSizes()
        server: Any = self.server.factory.buildProtocol(None)
        client = Client(server, transport)
        self.assertEqual(transport.sizes, [FIRST_READ_SIZE])
        client.send(b"x" * (MAX_RECORD - 1) + b"\n")
        while data := client.take(transport.sizes[-1]):
            server.dataReceived(data)
        self.assertEqual(transport.sizes[1:], [2 * FIRST_READ_SIZE, 4 * FIRST_READ_SIZE])
        for _ in range(100):
            client.send(b"x")
        client.exchange()
        self.assertEqual(transport.sizes[3:], [SMALL_READ_SIZE])

    def test_reply(self) -> None:
        """A reply is sent at once, not in the next iteration of the reactor."""
        self.client.send(b"hello\n")
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"hello\n")

    def test_one_record(self) -> None:
        """After a read of exactly one record OpenSSL is not asked for another one."""
        flush = self.server._flushReceiveBIO
        calls = 0

        def count_calls() -> None:
            nonlocal calls
            calls += 1
            flush()

        self.patch(self.server, "_flushReceiveBIO", count_calls)
        for lines, times in ((1, 0), (2, 1), (1, 1)):
            for _ in range(lines):
                self.client.send(b"x\n")  # each a record
            self.client.exchange()
            self.assertEqual(calls, times)
        self.assertEqual(self.client.received, (STAMP + b"x\n") * 4)

    def test_handshake_by_records(self) -> None:
        """A handshake may arrive record by record; `handshakeCompleted` is called once."""
        completed: list[object] = []
        echo = TimestampEchoFactory(Stamp(utc=True), clock=self.clock, now=lambda: SECOND)
        server: Any = self.tls(echo).buildProtocol(None)
        self.patch(server.wrappedProtocol, "handshakeCompleted", lambda: completed.append(server))
        whole = server.dataReceived

        def one_by_one(data: bytes) -> None:
            while data:
                size = 5 + int.from_bytes(data[3:5], "big")
                whole(data[:size])
                data = data[size:]

        self.patch(server, "dataReceived", one_by_one)
        client = Client(server, TCPTransport())
        client.send(b"x\n")
        client.exchange()
        self.assertEqual((len(completed), client.received), (1, STAMP + b"x\n"))

    def test_after_abort(self) -> None:
        """After an abort nothing is read any more."""
        self.client.send(b"x\n")
        record = self.client._tls.bio_read(2**16)
        self.server.abortConnection()
        self.transport.clear()
        self.server.dataReceived(record)
        self.assertEqual(self.server.wrappedProtocol.messages, 0)

    def test_unsent(self) -> None:
        """Data that TLS had to hold back is sent first, in order."""
        self.server._appSendBuffer = [b"first\n"]
        self.client.send(b"x\n")
        self.client.exchange()
        self.assertEqual(self.client.received, b"first\n" + STAMP + b"x\n")

    def test_no_application_data(self) -> None:
        """A record of TLS's own, such as a KeyUpdate, is no data; the next record is read."""
        real = self.server._tlsConnection

        class Renewing:
            def recv(self, size: int) -> bytes:
                self.recv = real.recv  # type: ignore[method-assign]
                raise WantReadError

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        self.server._tlsConnection = Renewing()
        self.client.send(b"x\n")
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"x\n")

    def test_tampered(self) -> None:
        """An altered record ends the connection, with an alert and OpenSSL's reason."""
        self.client.send(b"x\n")
        record = self.client._tls.bio_read(2**16)
        self.server.dataReceived(record[:-1] + bytes([record[-1] ^ 1]))
        self.assertTrue(self.transport.disconnecting)
        self.assertNotEqual(self.transport.value(), b"")  # an alert
        reasons: list[Failure] = []
        self.patch(self.server.wrappedProtocol, "connectionLost", reasons.append)
        self.server.connectionLost(Failure(ConnectionLost()))
        self.assertIn("bad record mac", str(reasons[0].value))

    def test_close_notify_behind_data(self) -> None:
        """After data and a close_notify in one segment every reply is sent, then the close."""
        self.client.send(b"one\ntwo\nthree")
        self.client.close_notify()
        self.client.exchange()
        self.assertEqual(
            self.client.received, STAMP + b"one\n" + STAMP + b"two\n" + STAMP + b"three"
        )
        self.assertTrue(self.client.server_closed)
        self.assertTrue(self.transport.disconnecting)

    def test_close_notify_behind_many_replies(self) -> None:
        """The close waits until the peer has read all replies, also if its FIN comes meanwhile."""
        for fin in (False, True):
            self.setUp()
            written = self.transport.write

            def write(data: bytes, written: Any = written) -> None:
                written(data)
                if self.transport.producer is not None and len(self.transport.value()) > 2**16:
                    self.transport.producer.pauseProducing()

            self.transport.write = write  # type: ignore[method-assign]
            self.client.send(b"\n" * 16_000)
            self.client.close_notify()
            self.client.exchange()
            rounds = 0
            while self.transport.producer is not None:
                self.assertFalse(self.client.server_closed or self.transport.disconnecting)
                if fin and not rounds:
                    self.server.readConnectionLost()
                rounds += 1
                self.transport.producer.resumeProducing()
                self.clock.advance(0)
                self.client.exchange()
            self.assertGreater(rounds, 3)
            self.assertEqual(self.client.received, (STAMP + b"\n") * 16_000)
            self.assertTrue(self.client.server_closed)
            self.assertTrue(self.transport.disconnecting)

    def test_handshake_completed(self) -> None:
        """After the handshake its timeout is over."""
        self.clock.advance(180)
        self.assertFalse(self.transport.aborted)
        self.client.send(b"hello\n")
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"hello\n")

    def test_fin_without_close_notify(self) -> None:
        """A FIN without a close_notify has the same effect, and closes the connection below."""
        self.client.send(b"one\ntwo")
        self.client.exchange()
        self.server.readConnectionLost()
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"one\n" + STAMP + b"two")
        self.assertTrue(self.client.server_closed)
        self.assertTrue(self.transport.disconnecting)

    def test_lost(self) -> None:
        """A connection that is lost within a message sends nothing more."""
        self.client.send(b"one\ntwo")
        self.client.exchange()
        self.server.connectionLost(Failure(ConnectionLost()))
        self.clock.advance(2)
        self.assertEqual(self.client.received, STAMP + b"one\n")

    def test_inner_without_half_close(self) -> None:
        """For a protocol without half-close a close_notify closes both sides, as in Twisted."""
        server = self.tls(Factory.forProtocol(Protocol)).buildProtocol(None)
        client = Client(server, TCPTransport())
        client.close_notify()
        client.exchange()
        self.assertTrue(client.server_closed)
        self.assertTrue(server.disconnecting)

    def test_fin_without_half_close(self) -> None:
        """For such a protocol a FIN without a close_notify closes the connection, too."""
        transport = TCPTransport()
        server: Any = self.tls(Factory.forProtocol(Protocol)).buildProtocol(None)
        Client(server, transport)
        server.readConnectionLost()
        self.assertTrue(transport.disconnecting)

    def test_fin_with_backlog(self) -> None:
        """After a FIN without a close_notify, too, all replies are sent before the close."""
        self.client.send(b"\n" * 16_000)
        self.server.dataReceived(self.client._tls.bio_read(2**20))
        self.server.wrappedProtocol.pauseProducing()
        self.client.send(b"\n" * 16_000)
        self.server.dataReceived(self.client._tls.bio_read(2**20))
        self.server.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.server.wrappedProtocol.resumeProducing()
        self.clock.pump([0] * 50)
        self.assertTrue(self.transport.disconnecting)
        self.client.exchange()
        self.assertEqual(self.client.received, (STAMP + b"\n") * 32_000)

    def recorded(self) -> tuple[Any, Recorder, TCPTransport]:
        """Make TLS around a `Recorder`."""
        transport = TCPTransport()
        server: Any = self.tls(Factory.forProtocol(Recorder)).buildProtocol(None)
        return server, server.wrappedProtocol, transport

    def test_read_closed_once(self) -> None:
        """The protocol hears once that the peer has closed, by a close_notify and then a FIN."""
        server, recorder, transport = self.recorded()
        client = Client(server, transport)
        client.close_notify()
        client.exchange()
        server.readConnectionLost()
        self.assertEqual(recorder.events, ["read closed"])
        self.assertFalse(client.server_closed or transport.disconnecting)

    def test_bytes_after_close_notify(self) -> None:
        """Bytes after a close_notify, which TLS forbids, are ignored."""
        server, recorder, transport = self.recorded()
        client = Client(server, transport)
        client.close_notify()
        client.exchange()
        server.dataReceived(b"\x17\3\3\0\1x")
        self.assertEqual(recorder.events, ["read closed"])
        self.assertFalse(transport.disconnecting)

    def test_flush_at_close_notify(self) -> None:
        """What OpenSSL wrote by itself is sent also when the read ends with a close_notify."""
        server, _, transport = self.recorded()
        client = Client(server, transport)
        flushed: list[bool] = []
        self.patch(server, "_flushSendBIO", lambda: flushed.append(True))
        client.close_notify()
        client.exchange()
        self.assertEqual(flushed, [True])

    def test_lose_write_connection(self) -> None:
        """`loseWriteConnection` sends a close_notify, and the peer's data is still read."""
        server, recorder, transport = self.recorded()
        client = Client(server, transport)
        server.write(b"last reply")
        server.loseWriteConnection()
        client.exchange()
        self.assertEqual((client.received, client.server_closed), (b"last reply", True))
        self.assertFalse(transport.disconnecting or transport.half_closed)
        client.send(b"more")
        client.exchange()
        self.assertEqual(recorder.events, ["write closed", b"more"])
        server.loseConnection()
        self.assertTrue(transport.disconnecting)

    def test_hold(self) -> None:
        """`hold` has the transport below send the last reply with the close_notify, if it can."""
        server, _, transport = self.recorded()
        Client(server, transport)
        server.hold()
        held: list[bool] = []
        transport.buffer_writes = lambda: held.append(True)  # type: ignore[attr-defined]
        server.hold()
        self.assertEqual(held, [True])

    def test_end_stream(self) -> None:
        """The stream of the transport below does not end before the close_notify."""
        server, _, transport = self.recorded()
        Client(server, transport)
        transport.end_stream = lambda: self.fail("ended")  # type: ignore[attr-defined]
        self.assertTrue(server.end_stream())

    def test_lose_write_connection_without_half_close(self) -> None:
        """It works for a protocol without half-close, too."""
        server = self.tls(Factory.forProtocol(Protocol)).buildProtocol(None)
        client = Client(server, TCPTransport())
        server.loseWriteConnection()
        client.exchange()
        self.assertTrue(client.server_closed)


class ProxiedTLSTests(SynchronousTestCase):
    """`ProxiedProtocol` around `HalfCloseTLS` around `TimestampEcho`."""

    def setUp(self) -> None:
        """Make a connection whose PROXY header has not arrived."""
        self.clock = Clock()
        files = self_signed(self.mktemp())
        creator: Any = DefaultOpenSSLContextFactory(files.key, files.certificate)
        self.creator = creator
        echoes = TimestampEchoFactory(Stamp(utc=True), clock=self.clock, now=lambda: SECOND)
        secured = HalfCloseTLSFactory(self.creator, echoes, self.clock)
        factory: Any = ProxiedFactory(secured)
        self.proxied = factory.buildProtocol(None)
        self.transport = TCPTransport()
        self.proxied.makeConnection(self.transport)
        tls: Any = self.proxied.wrappedProtocol
        self.echo = tls.wrappedProtocol

    def test_header(self) -> None:
        """The header is passed on: it starts the ten seconds for the handshake."""
        self.clock.advance(9)
        self.proxied.dataReceived(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        self.assertEqual(self.echo.transport.getPeer().host, "192.0.2.1")
        self.clock.advance(9)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.echo.why, "no TLS handshake within 10 s")

    def test_inner_without_proxy_listener(self) -> None:
        """A protocol that is no `IProxyListener` works through both layers, too."""
        for header in (b"PROXY UNKNOWN\r\n", b"no\n"):
            inner: Any = Factory.forProtocol(Protocol)
            secured = HalfCloseTLSFactory(self.creator, inner, self.clock)
            proxied: Any = ProxiedFactory(secured).buildProtocol(None)
            transport = TCPTransport()
            proxied.makeConnection(transport)
            proxied.dataReceived(header)
            self.assertEqual(transport.disconnecting, header == b"no\n")

    def test_invalid_header(self) -> None:
        """An invalid header is passed on, too: it is the reason in the log."""
        self.proxied.dataReceived(b"no\n")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.echo.why, "no valid PROXY header")
