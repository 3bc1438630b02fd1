"""Half-close through TLS, and the certificates of clients.

Needs the extra `tls`; knows no message and no stamp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509
from OpenSSL.SSL import RECEIVED_SHUTDOWN, Error, WantReadError, ZeroReturnError
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolFactory, ITransport
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.transports.proxy import IPeerListener, peer_listener

RECORD = 2**14
"""Bytes that a record has at most (RFC 8446, section 5.1)."""

_HEADER = 5  # bytes before them: of the type one, of the version two, of the length two


class Records:
    """Where the records of one direction of TLS begin and end (RFC 8446, section 5.1)."""

    __slots__ = ("_begun", "_next")  # there are many

    def __init__(self) -> None:
        self._next = 0  # bytes of what comes that are in front of the next header
        self._begun = b""  # a header that has come in part

    def is_one(self, data: bytes) -> bool:
        """Whether what has come now is one record, whole, and nothing else."""
        between = not (self._next or self._begun)
        if between and len(data) > _HEADER and _size(data, 0) == len(data):
            return True
        data = self._begun + data
        at = self._next
        while at + _HEADER <= len(data):
            at += _size(data, at)
        self._begun = data[at:]
        self._next = max(at - len(data), 0)
        return False


def _size(data: bytes, at: int) -> int:
    return _HEADER + (data[at + 3] << 8) + data[at + 4]


class _NotYet(Exception):
    """The peer has closed its side, but the protocol inside is not ready to close."""


@implementer(IHalfCloseableProtocol, IPeerListener)
class HalfCloseTLS(TLSMemoryBIOProtocol):
    """The server's side of TLS, whose peer may stop sending before it stops reading.

    TLS 1.3 has the same half-close as TCP: a `close_notify` ends one direction alone
    (RFC 8446, section 6.1). Twisted answers it by closing both, and by default holds writes
    back until its next turn, by which time they are lost (twisted#5341).

    This class writes at once, tells the protocol inside before it closes, and does not close
    before that one does: there may be replies which the peer has yet to make room for.
    """

    transport: Any  # the TCP connection

    _told = False
    _fin = False

    def makeConnection(self, transport: ITransport) -> None:
        """See `IProtocol.makeConnection`."""
        self._records = Records()
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """As `TLSMemoryBIOProtocol.dataReceived`, at less cost if it is one record.

        Then there is nothing behind the bytes in it, nor do they make OpenSSL answer by itself.
        To ask it both, as Twisted does, takes as long as to decrypt and to encrypt a message.
        """
        usual = self._handshakeDone and not (self.disconnecting or self._appSendBuffer)
        if not self._records.is_one(data) or not usual:
            super().dataReceived(data)
            return
        self._tlsConnection.bio_write(data)
        try:
            inner = self._tlsConnection.recv(RECORD)
        except (WantReadError, ZeroReturnError):  # for TLS itself: a new key, a close_notify
            self._flushReceiveBIO()
        except Error:
            self._tlsShutdownFinished(Failure())
        else:
            self.wrappedProtocol.dataReceived(inner)

    def readConnectionLost(self) -> None:
        """The peer's FIN came, so that its `close_notify` will not come any more."""
        self._fin = True
        self._tell()
        if self.disconnecting:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never called: this side closes both directions at once."""

    def peerNamed(self) -> None:
        """The header of the PROXY protocol came, in front of the handshake."""
        peer_listener(self.wrappedProtocol).peerNamed()

    def peerUnknown(self) -> None:
        """It did not."""
        peer_listener(self.wrappedProtocol).peerUnknown()

    def _flushReceiveBIO(self) -> None:
        if self._told:
            return  # nothing comes any more
        try:
            super()._flushReceiveBIO()
        except _NotYet:
            self._flushSendBIO()

    def _shutdownTLS(self) -> None:
        # The one place that Twisted comes by when a close_notify was received.
        if self._tlsConnection.get_shutdown() & RECEIVED_SHUTDOWN:
            self._tell()
            if not self.disconnecting:
                raise _NotYet
        super()._shutdownTLS()
        if self._fin:
            self.transport.loseConnection()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            inner = IHalfCloseableProtocol(self.wrappedProtocol, None)
            if inner is not None:
                inner.readConnectionLost()
            else:
                self.disconnecting = True


def ask_clients(options: CertificateOptions, authorities: str) -> None:
    """Let in only clients that show a certificate of one of these authorities.

    @param authorities: a file of certificates in PEM.
    @raise OSError: it can't be read.
    @raise ValueError: there are none in it.
    """
    try:
        certificates = load_pem_x509_certificates(Path(authorities).read_bytes())
    except ValueError as error:
        raise ValueError(f"{authorities}: expected certificates in PEM") from error
    options.verify = options.requireCertificate = True
    options.trustRoot = trustRootFromCertificates(
        [Certificate(X509.from_cryptography(certificate)) for certificate in certificates]
    )


def with_half_close(factory: IProtocolFactory) -> IProtocolFactory:
    """Let the connections of this factory half-close, if it is one of TLS."""
    if isinstance(factory, TLSMemoryBIOFactory):
        factory.protocol = HalfCloseTLS
    return factory
