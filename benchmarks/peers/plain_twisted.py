"""The same job, written the way that Twisted's documentation shows.

`plain_twisted.py tcp|udp PORT`, or `plain_twisted.py tls PORT KEY CERTIFICATE`.
"""

from __future__ import annotations

import sys
from typing import Any

from stamping import Stamper, now
from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol


class Echo(Protocol):
    """One connection."""

    def connectionMade(self) -> None:
        """See `IProtocol`."""
        self._stamper = Stamper()
        self.transport.setTcpNoDelay(True)  # type: ignore[union-attr]
        self.transport.registerProducer(self.transport, True)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.transport.write(self._stamper.stamped(data))  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        """See `IProtocol`."""
        self.transport.unregisterProducer()  # type: ignore[union-attr]


class Datagrams(DatagramProtocol):
    """One port."""

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """See `DatagramProtocol`."""
        self.transport.write(now() + datagram, addr)  # type: ignore[union-attr]


net: Any = reactor
if sys.argv[1] == "udp":
    port = net.listenUDP(int(sys.argv[2]), Datagrams(), "127.0.0.1", 65536)
elif sys.argv[1] == "tls":
    from twisted.internet.ssl import DefaultOpenSSLContextFactory

    context = DefaultOpenSSLContextFactory(*sys.argv[3:])
    port = net.listenSSL(int(sys.argv[2]), Factory.forProtocol(Echo), context, 4096, "127.0.0.1")
else:
    port = net.listenTCP(int(sys.argv[2]), Factory.forProtocol(Echo), 4096, "127.0.0.1")
print(f"listening on {port.getHost().port}", flush=True)
net.run()
