"""Connections behind the PROXY protocol (`haproxy:`), with half-close and without tracebacks.

Knows Twisted's wrapper and mends it; knows no message and no stamp.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IProtocolFactory
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from zope.interface import implementer

_SHORTEST = 16
"""Bytes of the shortest header of version 2; one of version 1 ends in a newline."""


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class HalfCloseProxied(HAProxyProtocolWrapper):
    """A connection whose first bytes say for whom a proxy made it.

    Twisted's wrapper does not tell the protocol inside that the peer has closed its side, and so
    loses replies; it refuses a header that comes in small pieces and the specification's own
    `PROXY UNKNOWN`; and it raises where a port or an address in the header is none.
    """

    wrappedProtocol: Any
    transport: Any

    _first = b""

    def dataReceived(self, data: bytes) -> None:
        """Take the header, then hand everything on."""
        if self._proxyInfo is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        if self._parser is None:
            data = self._first = self._first + data
            if len(data) < _SHORTEST and b"\n" not in data:
                return
            if data.startswith(b"PROXY UNKNOWN\r\n"):
                data = data.replace(b"UNKNOWN", b"UNKNOWN ", 1)
        try:
            super().dataReceived(data)
        except ValueError:
            if self._proxyInfo is not None:  # not the header's, then
                raise
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close; if no header has come yet, that is why."""
        if self._proxyInfo is None:
            self.wrappedProtocol.why = "no PROXY header came first"
        super().loseConnection()

    def handshakeCompleted(self) -> None:
        """Tell the protocol inside that the TLS around this is set up."""
        if IHandshakeListener.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.handshakeCompleted()

    def readConnectionLost(self) -> None:
        """Tell the protocol inside."""
        inner = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if inner is None:
            self.loseConnection()
        else:
            inner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Never called: this side closes both directions at once."""


def with_half_close(factory: IProtocolFactory) -> None:
    """Let the connections of this factory half-close, if it is one of the PROXY protocol."""
    if isinstance(factory, HAProxyWrappingFactory):
        factory.protocol = HalfCloseProxied  # type: ignore[assignment]  # it is a subclass
