"""Tests for `timestamp_echo.transports.tls`: each against a TLS client that OpenSSL itself is."""

from __future__ import annotations

import contextlib
from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL.SSL import (
    TLS_CLIENT_METHOD,
    VERIFY_FAIL_IF_NO_PEER_CERT,
    VERIFY_PEER,
    Connection,
    Context,
    Error,
    WantReadError,
)
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, DefaultOpenSSLContextFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass

from tests.fakes import TCPTransport
from tests.system.certificates import self_signed
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.tls import (
    MAX_RECORD,
    HalfCloseTLS,
    HalfCloseTLSFactory,
    RecordTracker,
    require_client_certificate,
)

STAMP = b"[Thu Jan  1 00:00:01 1970] "


class Client:
    """A TLS client in memory, joined to a server's protocol by strings."""

    def __init__(self, server: Any, transport: TCPTransport) -> None:
        self._tls = Connection(Context(TLS_CLIENT_METHOD), None)
        self._tls.set_connect_state()
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
        """Carry bytes both ways until there are none."""
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

    def send(self, data: bytes) -> None:
        """Encrypt, for the next exchange."""
        self._tls.send(data)

    def close_notify(self) -> None:
        """Say that no more comes, for the next exchange."""
        self._tls.shutdown()

    @property
    def server_closed(self) -> bool:
        """Whether the server's own close_notify came."""
        return bool(self._tls.get_shutdown() & 2)


class RecordsTests(SynchronousTestCase):
    """`RecordTracker`: which reads are one record."""

    @given(
        st.lists(st.integers(1, 300) | st.just(MAX_RECORD), min_size=1, max_size=6),
        st.lists(st.integers(0, 6 * 305), max_size=12),
        st.data(),
    )
    def test_every_cut(self, sizes: list[int], cuts: list[int], data: st.DataObject) -> None:
        """However the network cuts them, a read is one if it begins and ends as one does."""
        stream = b"".join(b"\x17\3\3" + size.to_bytes(2, "big") + bytes(size) for size in sizes)
        ends = [0, *accumulate(5 + size for size in sizes)]
        places = sorted({0, len(stream), *cuts, *data.draw(st.sets(st.sampled_from(ends)))})
        records = RecordTracker()
        for start, end in pairwise(place for place in places if place <= len(stream)):
            expected = (start, end) in set(pairwise(ends))
            self.assertEqual(records.is_one_record(stream[start:end]), expected)


class HalfCloseTLSTests(SynchronousTestCase):
    """`HalfCloseTLS` around a timestamp echo."""

    def setUp(self) -> None:
        """A server and a client that have shaken hands."""
        self.clock = Clock()
        self.transport = TCPTransport()
        echoes = TimestampEchoFactory(Stamp(utc=True), clock=self.clock, now=lambda: SECOND)
        self.server: Any = self.tls(echoes).buildProtocol(None)
        self.client = Client(self.server, self.transport)

    def tls(self, inner: Any) -> HalfCloseTLSFactory:
        """The factory with TLS around it."""
        files = self_signed(self.mktemp())
        creator: Any = DefaultOpenSSLContextFactory(files.key, files.certificate)
        return HalfCloseTLSFactory(creator, inner, self.clock)

    def test_interfaces(self) -> None:
        """It is what it says that it is."""
        verifyClass(IHalfCloseableProtocol, HalfCloseTLS)

    def test_reply(self) -> None:
        """A reply is written at once."""
        self.client.send(b"hello\n")
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"hello\n")

    def test_one_record(self) -> None:
        """A read that is one record is not asked for another, one that is more or less is."""
        flush = self.server._flushReceiveBIO
        asked = 0

        def ask() -> None:
            nonlocal asked
            asked += 1
            flush()

        self.patch(self.server, "_flushReceiveBIO", ask)
        for lines, times in ((1, 0), (2, 1), (1, 1)):
            for _ in range(lines):
                self.client.send(b"x\n")  # each a record
            self.client.exchange()
            self.assertEqual(asked, times)
        self.assertEqual(self.client.received, (STAMP + b"x\n") * 4)

    def test_handshake_by_records(self) -> None:
        """A handshake of which each record comes alone is one, and is told."""
        told: list[object] = []
        echo = TimestampEchoFactory(Stamp(utc=True), clock=self.clock, now=lambda: SECOND)
        server: Any = self.tls(echo).buildProtocol(None)
        self.patch(server.wrappedProtocol, "handshakeCompleted", lambda: told.append(server))
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
        self.assertEqual((len(told), client.received), (1, STAMP + b"x\n"))

    def test_after_abort(self) -> None:
        """Nothing is told of what comes after this side has aborted."""
        self.client.send(b"x\n")
        record = self.client._tls.bio_read(2**16)
        self.server.abortConnection()
        self.transport.clear()
        self.server.dataReceived(record)
        self.assertEqual(self.server.wrappedProtocol.messages, 0)

    def test_unsent(self) -> None:
        """What waited for TLS to go on is written first, in order."""
        self.server._appSendBuffer = [b"first\n"]
        self.client.send(b"x\n")
        self.client.exchange()
        self.assertEqual(self.client.received, b"first\n" + STAMP + b"x\n")

    def test_not_for_us(self) -> None:
        """A record that is TLS' own is no message; nor is what follows lost."""
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
        """A record that was altered on the way ends the connection; the log says why."""
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
        """A close_notify in the same segment as the data loses no reply."""
        self.client.send(b"one\ntwo\nthree")
        self.client.close_notify()
        self.client.exchange()
        self.assertEqual(
            self.client.received, STAMP + b"one\n" + STAMP + b"two\n" + STAMP + b"three"
        )
        self.assertTrue(self.client.server_closed)
        self.assertTrue(self.transport.disconnecting)

    def test_close_notify_behind_many_replies(self) -> None:
        """If the peer has no room for all replies, the close waits for it, FIN or not."""
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
            turns = 0
            while self.transport.producer is not None:
                self.assertFalse(self.client.server_closed or self.transport.disconnecting)
                if fin and not turns:
                    self.server.readConnectionLost()
                turns += 1
                self.transport.producer.resumeProducing()
                self.client.exchange()
            self.assertGreater(turns, 3)
            self.assertEqual(self.client.received, (STAMP + b"\n") * 16_000)
            self.assertTrue(self.client.server_closed)
            self.assertTrue(self.transport.disconnecting)

    def test_handshake_told(self) -> None:
        """The protocol inside knows that hands were shaken, and so waits for it no more."""
        self.clock.advance(3600 / 20)
        self.assertFalse(self.transport.aborted)
        self.client.send(b"hello\n")
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"hello\n")

    def test_fin_without_close_notify(self) -> None:
        """So does a FIN without it, after which there is no more to wait for."""
        self.client.send(b"one\ntwo")
        self.client.exchange()
        self.server.readConnectionLost()
        self.client.exchange()
        self.assertEqual(self.client.received, STAMP + b"one\n" + STAMP + b"two")
        self.assertTrue(self.client.server_closed)
        self.assertTrue(self.transport.disconnecting)

    def test_lost(self) -> None:
        """A connection that is lost in mid-message just ends."""
        self.client.send(b"one\ntwo")
        self.client.exchange()
        self.server.connectionLost(Failure(ConnectionLost()))
        self.clock.advance(2)
        self.assertEqual(self.client.received, STAMP + b"one\n")

    def test_inner_without_half_close(self) -> None:
        """A protocol that knows no half-close is not asked to."""
        server = self.tls(Factory.forProtocol(Protocol)).buildProtocol(None)
        client = Client(server, TCPTransport())
        client.close_notify()
        client.exchange()
        self.assertTrue(client.server_closed)

    def test_lose_write_connection(self) -> None:
        """Only this side closes: its close_notify is sent, and the peer's data is still read."""
        read: list[bytes] = []
        closed: list[bool] = []

        @implementer(IHalfCloseableProtocol)
        class HalfCloseable(Protocol):
            def dataReceived(self, data: bytes) -> None:
                read.append(data)

            def readConnectionLost(self) -> None:
                read.append(b"closed")

            def writeConnectionLost(self) -> None:
                closed.append(True)

        transport = TCPTransport()
        server = self.tls(Factory.forProtocol(HalfCloseable)).buildProtocol(None)
        client = Client(server, transport)
        server.write(b"last words")
        server.loseWriteConnection()
        client.exchange()
        self.assertEqual((client.received, client.server_closed), (b"last words", True))
        self.assertEqual(closed, [True])
        self.assertFalse(transport.disconnecting or transport.half_closed)
        client.send(b"more")
        client.exchange()
        self.assertEqual(read, [b"more"])
        server.loseConnection()
        self.assertTrue(transport.disconnecting)

    def test_lose_write_connection_without_half_close(self) -> None:
        """A protocol inside that knows no half-close is not told."""
        server = self.tls(Factory.forProtocol(Protocol)).buildProtocol(None)
        client = Client(server, TCPTransport())
        server.loseWriteConnection()
        client.exchange()
        self.assertTrue(client.server_closed)


class AskClientsTests(SynchronousTestCase):
    """`require_client_certificate`: whose certificates are asked for."""

    def test_asked(self) -> None:
        """Without a certificate there is no connection."""
        files = self_signed(self.mktemp())
        options = CertificateOptions()
        require_client_certificate(options, files.certificate)
        mode = options.getContext().get_verify_mode()
        self.assertTrue(mode & VERIFY_PEER and mode & VERIFY_FAIL_IF_NO_PEER_CERT)

    def test_none(self) -> None:
        """A file without certificates, or none at all, is an error that names it."""
        files = self_signed(self.mktemp())
        error = self.assertRaises(
            ValueError, require_client_certificate, CertificateOptions(), files.key
        )
        self.assertEqual(str(error), f"{files.key}: expected certificates in PEM")
        self.assertRaises(OSError, require_client_certificate, CertificateOptions(), self.mktemp())
