"""The way of a probe to the server and back: a connection, or datagrams.

As the sessions of `tsecho connect`, but what is written leaves at once, and the kernel says when
what is read arrived. So this program's own delay counts as little as can be.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IReactorTime

from timestamp_echo.arrivals import LINUX, TimedSocket
from timestamp_echo.client.datagram import DatagramPath
from timestamp_echo.client.session import StreamSession


class Traveller(Protocol):
    """Whose way it is."""

    def replied(self, data: bytes) -> None:
        """Bytes came back."""

    def answered(self) -> None:
        """See `session.User.answered`."""

    def over(self, why: str) -> None:
        """The way has ended.

        @param why: how, in words.
        """


class Path(Protocol):
    """A way that is open."""

    @property
    def arrival(self) -> int:
        """When the kernel got what came last, in nanoseconds since the epoch, or 0."""

    @property
    def refused(self) -> bool:
        """Whether it is over because nobody listens there."""

    def write(self, data: bytes) -> None:
        """Send these bytes, now."""

    def close(self) -> None:
        """Close it, in order."""


def timed(transport: Any) -> Any:
    """Let a transport of Twisted's, or the one below its TLS, say when what it reads arrived.

    @return: the one that has the socket.
    """
    while not hasattr(transport, "socket"):
        transport = transport.transport
    if LINUX:
        transport.socket = TimedSocket(transport.socket)
    return transport


class StreamPath(StreamSession):
    """A connection.

    @param traveller: whose way it is.
    @param clock: counts the seconds.
    """

    def __init__(self, traveller: Traveller, clock: IReactorTime) -> None:
        super().__init__(traveller, clock)
        self._below: Any = None

    @property
    def arrival(self) -> int:
        """See `Path.arrival`."""
        return getattr(self._below.socket, "arrival", 0)

    def connectionMade(self) -> None:
        """The connection is there."""
        self._below = timed(self.transport)
        super().connectionMade()

    def write(self, data: bytes) -> None:
        """See `Path.write`. A TLS record leaves with the reactor's next turn."""
        self.transport.write(data)
        if self.transport is self._below:
            # Else it would wait for the next turn. What this meets, that will meet again.
            self.transport.doWrite()

    def close(self) -> None:
        """See `Path.close`."""
        self.transport.loseConnection()


class ProbingDatagrams(DatagramPath):
    """Datagrams: any number may be under way, and any may be lost.

    @param traveller: whose way it is.
    @param reactor: opens the port.
    """

    def __init__(self, traveller: Traveller, reactor: Any) -> None:
        super().__init__(reactor)
        self._traveller = traveller
        self._heard = self._over = self.refused = False
        self._last = b""

    @property
    def arrival(self) -> int:
        """See `Path.arrival`."""
        return getattr(self.transport.socket, "arrival", 0)

    def startProtocol(self) -> None:
        """The port is open."""
        timed(self.transport)

    def write(self, data: bytes) -> None:
        """See `Path.write`."""
        self._last = data
        try:
            self.transport.write(data)
        except (OSError, MessageLengthError) as error:
            self.close()
            self._traveller.over(str(error))

    def close(self) -> None:
        """See `Path.close`."""
        if not self._over:
            self._over = True
            self.transport.stopListening()

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Take a reply. One without a newline has been cut: it ends here, too."""
        self._heard = True
        self._traveller.replied(datagram.removesuffix(b"\n") + b"\n")

    def stopProtocol(self) -> None:
        """The port is closed, and if it was not this side that did it, nobody listens there."""
        if self._over:
            return
        if self._addresses and not self._heard:
            # The name has another address, as localhost has ::1 and 127.0.0.1.
            self._open_next()
            self.write(self._last)
            return
        self._over = self.refused = True
        self._traveller.over("connection refused")
