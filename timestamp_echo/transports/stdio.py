"""Standard input and output as one connection, for `stdio:`.

Twisted's lacks `abortConnection`, and stays open for ever once its output alone has been closed.
Knows two pipes; no message and no stamp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:  # mypy takes the public names for those of Windows
    from twisted.internet._posixstdio import PipeAddress, StandardIO
else:
    from twisted.internet.stdio import PipeAddress, StandardIO


class StandardIOTransport(StandardIO):
    """A connection of which this side can close the output alone, or everything."""

    _half_closing = False
    _output_closed = False

    def loseWriteConnection(self) -> None:
        """See `IHalfCloseableDescriptor.loseWriteConnection`."""
        self._half_closing = True
        super().loseWriteConnection()

    def childConnectionLost(self, fd: str, reason: Failure) -> None:
        """Either of the two is closed: "read" or "write"."""
        if fd == "write":
            self._output_closed = True
            if not self._half_closing and not self.disconnecting:
                # Nobody reads it any more. Twisted would go on reading.
                self.disconnecting = True
                reason = Failure(ConnectionLost())
        super().childConnectionLost(fd, reason)

    def loseConnection(self) -> None:
        """See `ITransport.loseConnection`."""
        super().loseConnection()
        if self._output_closed:
            self._end(connectionDone)

    def abortConnection(self) -> None:
        """See `ITCPTransport.abortConnection`."""
        self._end(Failure(ConnectionAborted()))

    def _end(self, reason: Failure) -> None:
        if not self.disconnected:
            self.connectionLost(reason)


@implementer(IStreamServerEndpoint)
class StandardIOEndpoint:
    """Its one connection is made at once; what it opens is no port.

    @param reactor: the reactor, an `IReactorFDSet`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See `IStreamServerEndpoint.listen`."""
        return execute(self._connect, protocolFactory)

    def _connect(self, factory: Any) -> StandardIOTransport:
        return StandardIOTransport(factory.buildProtocol(PipeAddress()), reactor=self._reactor)
