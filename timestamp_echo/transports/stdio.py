"""Standard input and output as one connection, for `stdio:`.

Twisted's version lacks `abortConnection`, stays open forever once only its output has been closed,
and reads 8 KiB at a time. Knows two pipes; no message and no stamp.
"""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:  # mypy takes the public names for those of Windows
    from twisted.internet._posixstdio import PipeAddress, StandardIO
else:
    from twisted.internet.stdio import PipeAddress, StandardIO


READ_SIZE = 2**16
"""Bytes of one read at most: as many as a pipe holds by default (pipe(7))."""

MAX_UNREAD = 2**20
"""Bytes that count as unread at most: as many as a pipe can be made to hold."""


class StandardIOTransport(StandardIO):
    """A connection of which this side can close only the output, or everything."""

    kind = "stdio"
    read_size = READ_SIZE

    _half_closing = False
    _output_closed = False

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if self._reader is not None:  # otherwise the protocol has ended it
            self._reader.doRead = self.doRead  # type: ignore[method-assign]

    def doRead(self) -> Exception | None:
        """See `IReadDescriptor.doRead`, which Twisted's input gets in place of its own."""
        reader: Any = self._reader
        try:
            data = os.read(reader.fileno(), READ_SIZE)
        except OSError as error:
            return None if isinstance(error, BlockingIOError) else CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.childDataReceived("read", data)
        return None

    def unread(self) -> int:
        """How many bytes have arrived that are not read yet (FIONREAD, ioctl_tty(2)).

        An ordinary file counts as arrived in full, hence the limit.
        """
        count = array("i", [0])
        if self._reader is not None:
            with suppress(OSError):  # a device that does not say
                ioctl(self._reader.fileno(), FIONREAD, count)
        return min(count[0], MAX_UNREAD)

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
    """Makes the one connection of `stdio:` at once; it opens no port.

    @param reactor: the reactor, an `IReactorFDSet`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """See `IStreamServerEndpoint.listen`."""
        return execute(self._connect, protocolFactory)

    def _connect(self, factory: Any) -> StandardIOTransport:
        return StandardIOTransport(factory.buildProtocol(PipeAddress()), reactor=self._reactor)
