"""TLS for servers, with half-close.

Needs the extra `tls`. Knows TLS and the transport below it; no message and no stamp.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import RECEIVED_SHUTDOWN, Error, WantReadError, ZeroReturnError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.transports.proxy import IProxyListener

MAX_RECORD = 2**14
"""Bytes of data that one record holds at most (RFC 8446, section 5.1)."""

FIRST_READ_SIZE = 2**12
"""Bytes of a read at most, at first. It grows as long as reads are full."""

SMALL_READ_SIZE = 2**10
"""The same for a peer whose records are tiny. Each is decrypted and answered by itself, which takes
50 microseconds however short it is, and 32 KiB may hold 1,400 of them."""

_MANY_RECORDS = SMALL_READ_SIZE // 32  # in one read; one of a line of text has some 60 bytes

_HEADER_SIZE = 5  # of a record: one byte for the type, two for the version, two for the length


class RecordTracker:
    """Where the records in one direction of a TLS connection begin and end.

    TCP may cut the stream anywhere, also within a record's header. But a record's header gives
    its length in clear text (RFC 8446, section 5.1), so its end is known without decrypting it.
    """

    __slots__ = ("_header", "_skip", "count")  # one for each connection

    count: int
    """How many records began in the last read that was not exactly one record."""

    def __init__(self) -> None:
        self.count = 0
        self._skip = 0  # bytes still to come of the record that has begun
        self._header = b""  # a header of which only a part has come

    def is_one_record(self, data: bytes) -> bool:
        """Follow what was just read.

        @return: whether it is exactly one record: whole, and nothing else.
        """
        # Three states: at a boundary (nothing skipped, no part of a header); within a record, of
        # which `_skip` bytes are still to come; or within a header, whose first bytes are in
        # `_header`. In the last two, what came is not one record, whatever it is.
        at_boundary = not (self._skip or self._header)
        if at_boundary and len(data) >= _HEADER_SIZE and _record_size(data, 0) == len(data):
            return True  # the usual case, and the tracker is at a boundary again
        # Jump from header to header. `position` ends at the first byte of the next header; if
        # that lies beyond what came, the difference is the rest of a record.
        data = self._header + data
        position = self._skip
        self.count = 0
        while position + _HEADER_SIZE <= len(data):
            position += _record_size(data, position)
            self.count += 1
        self._header = data[position:]
        self._skip = max(position - len(data), 0)
        return False


def _record_size(data: bytes, at: int) -> int:
    """Bytes of the record whose header is here, header included."""
    return _HEADER_SIZE + (data[at + 3] << 8) + data[at + 4]


class _CloseRefused(Exception):
    """The peer has closed its side, but the protocol inside still has replies to write."""


@implementer(IHalfCloseableProtocol, IProxyListener)
class HalfCloseTLS(TLSMemoryBIOProtocol):
    """The server's side of TLS, whose peer may stop sending before it stops reading.

    TLS 1.3 has the same half-close as TCP: a `close_notify` alert ends one direction only
    (RFC 8446, section 6.1). Twisted answers it by closing both, and by default holds writes back
    until the next reactor iteration, when they are lost (twisted#5341). This class

      - writes at once (it is not Twisted's `BufferingTLSTransport`);
      - on the peer's `close_notify`, or FIN, calls `readConnectionLost` of the protocol inside, and
        closes only when that asks for it;
      - has `loseWriteConnection`, as TCP's transport has.
    """

    kind = "tls"

    transport: Any  # what is below: a socket's transport, or a `ProxiedProtocol`

    _read_size = FIRST_READ_SIZE
    _read_closed = False  # the protocol inside knows that nothing more will come
    _write_closed = False  # close_notify is sent, or will be when everything before it is
    _fin_received = False  # the peer has closed the connection below

    def makeConnection(self, transport: ITransport) -> None:
        """See `IProtocol.makeConnection`."""
        self._records = RecordTracker()
        super().makeConnection(transport)
        self._set_read_size(FIRST_READ_SIZE)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`. A read of exactly one record takes a shortcut.

        For any read Twisted calls SSL_read until it raises (there might be another record), and
        then asks OpenSSL whether it has written anything by itself (a new key, an alert). Both
        find nothing nearly always, and take as long as decrypting and encrypting a short message.
        But if the read is one record, there is nothing after it, and a record of application data
        makes OpenSSL write nothing. If the record is of another type, SSL_read says so at once,
        and everything is done as Twisted does it.
        """
        # Not while the handshake goes on, nor after this side asked for the close, nor with
        # writes that wait for OpenSSL: each of these has its own steps in Twisted's method. The
        # tracker has to see every read all the same.
        ordinary = self._handshakeDone and not (self.disconnecting or self._appSendBuffer)
        one = self._records.is_one_record(data)
        if not one:
            self._adapt_read_size(len(data))
        if not (one and ordinary):
            super().dataReceived(data)
            return
        self._tlsConnection.bio_write(data)
        try:
            decrypted = self._tlsConnection.recv(MAX_RECORD)
        except (WantReadError, ZeroReturnError):  # no application data: a new key, a close_notify
            self._flushReceiveBIO()
        except Error:
            self._tlsShutdownFinished(Failure())
        else:
            self.wrappedProtocol.dataReceived(decrypted)

    def _adapt_read_size(self, size: int) -> None:
        """Read less at once from a peer whose records are tiny, and more from one that sends much.

        @param size: bytes of the last read.
        """
        if self._records.count > _MANY_RECORDS:
            self._set_read_size(SMALL_READ_SIZE)
        elif size >= self._read_size:
            self._set_read_size(2 * size)

    def _set_read_size(self, size: int) -> None:
        self._read_size = size
        set_read_size = getattr(self.transport, "set_read_size", None)
        if set_read_size is not None:  # only our own transports have it
            set_read_size(size)

    def hold(self) -> None:
        """See `StreamTransport.hold`: here the `close_notify` goes along with the last reply."""
        buffer_writes = getattr(self.transport, "buffer_writes", None)
        if buffer_writes is not None:  # only our own transports have it
            buffer_writes()

    def end_stream(self) -> bool:
        """Nothing to do: TLS ends its own stream (`loseWriteConnection`), not that below."""
        return True

    def loseWriteConnection(self) -> None:
        """Send `close_notify` once everything is written, and read on.

        The connection below stays open in both directions, as TLS may still send alerts. So
        `writeConnectionLost` is called at once; `loseConnection` then delivers what is unsent
        below.
        """
        super().loseConnection()
        self._write_closed = True
        inner = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if inner is not None:
            inner.writeConnectionLost()

    def loseConnection(self) -> None:
        """Close both directions; after `loseWriteConnection`, without waiting for the peer.

        Where the peer's FIN has ended the handshake, Twisted would abort the connection: a TCP
        health check is no failure.
        """
        if self._write_closed or (self._fin_received and not self._handshakeDone):
            self.transport.loseConnection()
        else:
            super().loseConnection()

    def readConnectionLost(self) -> None:
        """The peer's FIN came: its `close_notify` will not come any more."""
        self._fin_received = True
        self._close_read()
        if self.disconnecting:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never called: the connection below is never half-closed by this side."""

    def proxy_header_received(self) -> None:
        """See `IProxyListener`: passed on to the protocol inside."""
        if IProxyListener.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.proxy_header_received()

    def proxy_header_invalid(self) -> None:
        """See `IProxyListener`: passed on to the protocol inside."""
        if IProxyListener.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.proxy_header_invalid()

    # Twisted calls the next two by these names. A close_notify arrives as a ZeroReturnError in
    # `_flushReceiveBIO`, which calls `_shutdownTLS` to answer it, and then closes regardless: only
    # an exception stops it. So `_shutdownTLS` raises `_CloseRefused` while the protocol inside has
    # not asked for the close.

    def _flushReceiveBIO(self) -> None:
        if self._read_closed:
            return  # nothing comes any more
        try:
            super()._flushReceiveBIO()
        except _CloseRefused:
            self._flushSendBIO()

    def _shutdownTLS(self) -> None:
        # Two callers: `loseConnection`, when this side closes; and, on the peer's close_notify,
        # `_flushReceiveBIO`. The second is recognized by OpenSSL's record of what it received. The
        # protocol inside is then told that nothing more will come. Usually it closes from within
        # that call, which sets `disconnecting`: both directions are closed.
        if self._tlsConnection.get_shutdown() & RECEIVED_SHUTDOWN:
            self._close_read()
            if not self.disconnecting:
                raise _CloseRefused
        super()._shutdownTLS()
        # Twisted would wait for the peer's close_notify, which a peer that sent a FIN cannot send.
        if self._fin_received:
            self.transport.loseConnection()

    def _close_read(self) -> None:
        if self._read_closed:
            return
        self._read_closed = True
        inner = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if inner is not None:
            inner.readConnectionLost()
        else:
            self.disconnecting = True


class HalfCloseTLSFactory(TLSMemoryBIOFactory):
    """Builds the server's side of TLS around the protocols of another factory.

    @param creator: makes the OpenSSL connections.
    @param factory: makes the protocols inside.
    @param clock: the reactor.
    """

    protocol = HalfCloseTLS

    port_type = "TLS"
    """What the log calls a port that listens with this factory."""

    def __init__(
        self,
        creator: IOpenSSLServerConnectionCreator,
        factory: IProtocolFactory,
        clock: IReactorTime,
    ) -> None:
        super().__init__(creator, False, factory, clock)
        self.certificates = creator


@implementer(IStreamServerEndpoint)
class HalfCloseTLSEndpoint:
    """TLS over another endpoint.

    @param endpoint: what is below.
    @param creator: makes the OpenSSL connections.
    @param clock: the reactor.
    """

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        creator: IOpenSSLServerConnectionCreator,
        clock: IReactorTime,
    ) -> None:
        self._endpoint = endpoint
        self._creator = creator
        self._clock = clock

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See `IStreamServerEndpoint.listen`."""
        wrapped = HalfCloseTLSFactory(self._creator, factory, self._clock)
        listening: Deferred[IListeningPort] = self._endpoint.listen(wrapped)
        return listening
