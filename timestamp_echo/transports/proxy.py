"""Connections behind the PROXY protocol (`haproxy:`), versions 1 and 2, with half-close.

The protocol is https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt: the first bytes of a
connection are a header that names the client for whom a proxy made it. Knows that header and the
transport below; no message and no stamp.

Twisted's own wrapper is not used: it does not tell the protocol inside that the peer has closed its
side, and so loses replies, nor when the client's address is known; it refuses a header that arrives
in small pieces, and the specification's own `PROXY UNKNOWN`; and it accepts invalid ports and
addresses.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    ITCPTransport,
)
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import Interface, implementer

MAX_V1 = 107
"""Bytes of the longest header of version 1, with its line ending (section 2.1)."""

_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP(?P<ip>[46]) (?P<source>\S+) (?P<destination>\S+)"
    rb" (?P<port>0|[1-9]\d{0,4}) (?P<to>0|[1-9]\d{0,4}))\r\n"
)

_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = struct.Struct("!12sBBH")  # signature, version and command, family, length of the rest
_V2_LOCAL, _V2_PROXY = 0x20, 0x21

_FAMILIES = {b"4": socket.AF_INET, b"6": socket.AF_INET6}

Address = IPv4Address | IPv6Address | UNIXAddress


class InvalidHeader(ValueError):
    """A connection did not begin with a valid header of the PROXY protocol."""


def parse_header(data: bytes) -> tuple[int, Address | None] | None:
    """Read the header at the beginning of a connection.

    @param data: everything that has come so far.
    @return: the size of the header in bytes, and the client's address, or None where the proxy
        names none (a health check of its own, for example). None in place of both while the
        header is incomplete.
    @raise InvalidHeader: the data is not the beginning of a header.
    """
    if data.startswith(_V2_SIGNATURE[: len(data)]):
        return _parse_v2(data)
    if data.startswith(b"PROXY "[: len(data)]):
        return _parse_v1(data)
    raise InvalidHeader("expected PROXY or the signature of version 2")


def _parse_v1(data: bytes) -> tuple[int, Address | None] | None:
    line, newline, _ = data[:MAX_V1].partition(b"\n")
    if not newline:
        if len(data) >= MAX_V1:
            raise InvalidHeader(f"expected a line of at most {MAX_V1} bytes")
        return None
    match = _V1.fullmatch(line + newline)
    if match is None:
        raise InvalidHeader("expected PROXY UNKNOWN, or TCP4 or TCP6 with addresses and ports")
    if match["ip"] is None:
        return match.end(), None
    if int(match["port"]) > 0xFFFF or int(match["to"]) > 0xFFFF:
        raise InvalidHeader("expected ports from 0 to 65535")
    host, _ = (_host(_FAMILIES[match["ip"]], match[name]) for name in ("source", "destination"))
    kind = IPv4Address if match["ip"] == b"4" else IPv6Address
    return match.end(), kind("TCP", host, int(match["port"]))


def _host(family: int, text: bytes) -> str:
    """An address of this family, in its usual form."""
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text.decode("ascii")))
    except (OSError, ValueError) as error:
        raise InvalidHeader("expected addresses of the family that the header names") from error


def _parse_v2(data: bytes) -> tuple[int, Address | None] | None:
    if len(data) < _V2_HEAD.size:
        # A wrong version is refused as soon as it comes: there may never be more.
        if len(data) > len(_V2_SIGNATURE) and data[12] not in {_V2_LOCAL, _V2_PROXY}:
            raise InvalidHeader("expected version 2, and the command LOCAL or PROXY")
        return None
    _, command, family, length = _V2_HEAD.unpack_from(data)
    if command not in {_V2_LOCAL, _V2_PROXY}:
        raise InvalidHeader("expected version 2, and the command LOCAL or PROXY")
    size = _V2_HEAD.size + length
    if len(data) < size:
        return None
    if command == _V2_PROXY and (family >> 4 > 3 or family & 15 > 2):
        raise InvalidHeader("expected a family and a protocol that section 2.2 assigns")
    if command == _V2_LOCAL or family not in _V2_FAMILIES:
        return size, None  # the connection's own addresses hold (section 2.2)
    layout, address = _V2_FAMILIES[family]
    if length < layout.size:
        raise InvalidHeader("expected the addresses that the family needs")
    return size, address(*layout.unpack_from(data, _V2_HEAD.size))


def _ipv4(source: bytes, _: bytes, port: int, __: int) -> Address:
    return IPv4Address("TCP", socket.inet_ntop(socket.AF_INET, source), port)


def _ipv6(source: bytes, _: bytes, port: int, __: int) -> Address:
    return IPv6Address("TCP", socket.inet_ntop(socket.AF_INET6, source), port)


def _unix(source: bytes, _: bytes) -> Address:
    return UNIXAddress(source.rstrip(b"\0"))


_V2_FAMILIES: dict[int, tuple[struct.Struct, Callable[..., Address]]] = {
    0x11: (struct.Struct("!4s4s2H"), _ipv4),
    0x21: (struct.Struct("!16s16s2H"), _ipv6),
    0x31: (struct.Struct("!108s108s"), _unix),
}
_V2_FAMILIES.update({stream + 1: _V2_FAMILIES[stream] for stream in [*_V2_FAMILIES]})
"""What follows the head, by the byte of the family (high half: IPv4, IPv6 or UNIX) and the protocol
(low half: a stream or a datagram). If either is unspecified, as for a proxy's own connections, the
receiver uses the connection's addresses (section 2.2)."""


class IProxied(Interface):
    """A transport whose peer is known only once the header of the PROXY protocol has come."""


class IProxyListener(Interface):
    """A protocol that wants to know when the header of the PROXY protocol has come."""

    def proxy_header_received() -> None:
        """From now on the transport's `getPeer` is the client, not the proxy."""

    def proxy_header_invalid() -> None:
        """The header of the PROXY protocol is invalid: the connection is being closed."""


@implementer(IHalfCloseableProtocol, IProxied)
class ProxiedProtocol(ProtocolWrapper):
    """A connection that begins with the header of the PROXY protocol.

    The protocol inside gets its connection at once, before the header, so that its own timeouts
    and limits apply to the wait for the header.
    """

    wrappedProtocol: IProtocol
    transport: ITCPTransport

    _header: bytes | None = b""
    """The part of the header that has come so far; None once it is complete."""

    _peer: Address | None = None

    def dataReceived(self, data: bytes) -> None:
        """Read the header, then pass everything on."""
        if self._header is None:
            self.wrappedProtocol.dataReceived(data)
            return
        self._header += data
        try:
            parsed = parse_header(self._header)
        except InvalidHeader:
            if IProxyListener.providedBy(self.wrappedProtocol):
                self.wrappedProtocol.proxy_header_invalid()
            self.loseConnection()
            return
        if parsed is not None:
            self._begin(*parsed)

    def _begin(self, size: int, peer: Address | None) -> None:
        assert self._header is not None
        rest, self._header = self._header[size:], None
        self._peer = peer
        if IProxyListener.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.proxy_header_received()
        if rest:
            self.wrappedProtocol.dataReceived(rest)

    def getPeer(self) -> IAddress:
        """The client that the header names, if it names one; otherwise the proxy."""
        return self._peer or super().getPeer()

    def readConnectionLost(self) -> None:
        """The peer closed its side: pass this on to the protocol inside."""
        inner = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if inner is None:
            self.loseConnection()
        else:
            inner.readConnectionLost()

    def loseWriteConnection(self) -> None:
        """See `IHalfCloseableDescriptor.loseWriteConnection`: passed on to the transport."""
        self.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """The half-close that the protocol inside asked for is complete: pass this on."""
        IHalfCloseableProtocol(self.wrappedProtocol).writeConnectionLost()


class ProxiedFactory(WrappingFactory):
    """Builds connections that begin with the header of the PROXY protocol.

    @param factory: makes the protocols inside.
    @param may_proxy: whether a header from this address is read. If not, the connection is closed
        at once.
    """

    protocol = ProxiedProtocol
    noisy = False  # the service itself logs what it listens on

    def __init__(
        self,
        factory: IProtocolFactory,
        may_proxy: Callable[[IAddress | None], bool] = lambda address: True,
    ) -> None:
        super().__init__(factory)
        self._may_proxy = may_proxy

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper | None:  # type: ignore[override]  # closes it
        """See `IProtocolFactory.buildProtocol`. The client is unknown until the header comes."""
        return super().buildProtocol(None) if self._may_proxy(addr) else None
