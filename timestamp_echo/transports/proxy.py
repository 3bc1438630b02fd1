"""Connections behind the PROXY protocol (`haproxy:`), with half-close and without tracebacks.

Knows Twisted's wrapper and mends it; knows no message and no stamp.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocolFactory,
)
from twisted.protocols.haproxy._exceptions import InvalidProxyHeader
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import Interface, implementer

_SHORTEST = 16
"""Bytes of the shortest header of version 2; one of version 1 ends in a newline."""


class IProxied(Interface):
    """A transport whose peer is known when the header of the PROXY protocol has come."""


class IPeerListener(Interface):
    """A protocol that wants to know when the peer of its `IProxied` transport is known."""

    def peerNamed() -> None:
        """From now on `getPeer` is the client, not the proxy."""

    def peerUnknown() -> None:
        """What came is no header of the PROXY protocol: the connection is closed."""


@implementer(IPeerListener)
class _Deaf:
    """A protocol that does not want to know."""

    def peerNamed(self) -> None:
        """See `IPeerListener`."""

    def peerUnknown(self) -> None:
        """See `IPeerListener`."""


def peer_listener(protocol: Any) -> Any:
    """The protocol, if it is an `IPeerListener`; otherwise one that does nothing."""
    return IPeerListener(protocol, _Deaf())


@implementer(IHalfCloseableProtocol, IProxied)
class HalfCloseProxied(HAProxyProtocolWrapper):
    """A connection whose first bytes say for whom a proxy made it.

    Twisted's wrapper tells the protocol inside neither that the peer has closed its side, and so
    loses replies, nor when the peer's address is known; it refuses a header that comes in small
    pieces and the specification's own `PROXY UNKNOWN`; and it raises where a port or an address
    in the header is none.
    """

    wrappedProtocol: Any
    transport: Any

    _first = b""

    def dataReceived(self, data: bytes) -> None:
        """Take the header, then hand everything on."""
        if self._proxyInfo is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        try:
            rest = self._header(data)
        except (InvalidProxyHeader, ValueError):
            peer_listener(self.wrappedProtocol).peerUnknown()
            self.loseConnection()
            return
        if self._proxyInfo is not None:
            peer_listener(self.wrappedProtocol).peerNamed()
            if rest:
                self.wrappedProtocol.dataReceived(rest)

    def _header(self, data: bytes) -> bytes:
        """Take the header, or a piece of it; what came behind it.

        @raise InvalidProxyHeader: it is none.
        @raise ValueError: neither is it.
        """
        if self._parser is None:
            data = self._first = self._first + data
            may_be_2 = V2Parser.PREFIX.startswith(data[: len(V2Parser.PREFIX)])
            if len(data) < _SHORTEST and (may_be_2 or b"\n" not in data):
                return b""
            self._parser = _parser(data)
            if data.startswith(b"PROXY UNKNOWN\r\n"):
                data = data.replace(b"UNKNOWN", b"UNKNOWN ", 1)
        info, rest = self._parser.feed(data)
        if info is not None:
            host = getattr(info.source, "host", None)
            if host is not None:
                ip_address(host)
            self._proxyInfo = info
        return rest or b""

    def readConnectionLost(self) -> None:
        """Tell the protocol inside."""
        inner = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if inner is None:
            self.loseConnection()
        else:
            inner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Tell the protocol inside: only by its wish is this side alone closed."""
        self.wrappedProtocol.writeConnectionLost()


def _parser(data: bytes) -> V1Parser | V2Parser:
    """The parser of a header that begins like this.

    @raise InvalidProxyHeader: none does.
    """
    if data.startswith(V2Parser.PREFIX):
        return V2Parser()
    if data.startswith(V1Parser.PROXYSTR):
        return V1Parser()
    raise InvalidProxyHeader


class ProxiedFactory(HAProxyWrappingFactory):
    """Builds connections behind the PROXY protocol: for nobody, until the header has come."""

    protocol = HalfCloseProxied  # type: ignore[assignment]  # it is a subclass

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper:
        """See `IProtocolFactory.buildProtocol`."""
        return super().buildProtocol(None)


def with_half_close(factory: IProtocolFactory) -> IProtocolFactory:
    """Let connections half-close: the factory for it, if this is one of the PROXY protocol."""
    if isinstance(factory, HAProxyWrappingFactory):
        return ProxiedFactory(factory.wrappedFactory)
    return factory
