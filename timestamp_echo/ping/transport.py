"""The way of a probe to the server and back: a connection, or datagrams.

As the sessions of `tsecho connect`, but what is written leaves at once, and the kernel says when
what is read arrived. So this program's own delay counts as little as can be.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import Any, Protocol

from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import INegotiated, IPushProducer, IReactorTime
from zope.interface import implementer

from timestamp_echo.client.datagram import DatagramPath
from timestamp_echo.client.session import StreamSession
from timestamp_echo.transports.arrivals import LINUX, TimedSocket

_PASSING = (errno.EAGAIN, errno.ENOBUFS, errno.EPERM)  # no room; a firewall of this host

_UNHEARD = 10_000  # as many may be under way


class Traveller(Protocol):
    """Whose way it is."""

    def replied(self, data: bytes) -> None:
        """Bytes came back."""

    def answered(self) -> None:
        """See `session.User.answered`."""

    def room(self) -> None:
        """The way can take more again."""

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

    @property
    def full(self) -> bool:
        """Whether so much is unsent that it can take no more."""

    def write(self, data: bytes) -> None:
        """Send these bytes, now."""

    def close(self) -> None:
        """Close it, in order."""


def timed(transport: Any) -> TimedSocket | None:
    """Let a transport of Twisted's, which has a socket, know when what it reads arrived.

    @return: what says it; nothing where the kernel does not.
    """
    try:
        transport.socket = sock = TimedSocket(transport.socket)
    except OSError:
        return None
    return sock


@implementer(IPushProducer)
class _Room:
    """Tells a path whether there is room in its transport."""

    def __init__(self, path: StreamPath) -> None:
        self._path = path

    def pauseProducing(self) -> None:
        """There is none."""
        self._path.full = True

    def resumeProducing(self) -> None:
        """There is."""
        self._path.full = False
        self._path.traveller.room()

    def stopProducing(self) -> None:
        """The connection is lost."""


class StreamPath(StreamSession):
    """A connection.

    @param traveller: whose way it is.
    @param clock: counts the seconds.
    """

    def __init__(self, traveller: Traveller, clock: IReactorTime) -> None:
        super().__init__(traveller, clock)
        self.traveller = traveller
        self.full = False
        self._timed: TimedSocket | None = None

    @property
    def arrival(self) -> int:
        """See `Path.arrival`."""
        return self._timed.arrival if self._timed else 0

    def connectionMade(self) -> None:
        """The connection is there."""
        below = self.transport
        while hasattr(below, "transport"):  # TLS, for example, is a transport with one below
            below = below.transport
        self._timed = timed(below) if LINUX else None
        self.transport.setTcpNoDelay(True)  # a probe does not wait for the one before
        self.transport.registerProducer(_Room(self), True)
        super().connectionMade()

    def write(self, data: bytes) -> None:
        """See `Path.write`. A TLS record leaves with the reactor's next turn."""
        self.transport.write(data)
        if not INegotiated.providedBy(self.transport):
            # Else it would wait for the next turn. What this meets, that will meet again.
            self.transport.doWrite()

    def close(self) -> None:
        """See `Path.close`."""
        self.transport.unregisterProducer()  # or it would be asked for more, first
        self.transport.loseConnection()


class ProbingDatagrams(DatagramPath):
    """Datagrams: any number may be under way, and any may be lost.

    @param traveller: whose way it is.
    @param reactor: opens the port.
    """

    def __init__(self, traveller: Traveller, reactor: Any) -> None:
        super().__init__(reactor)
        self._traveller = traveller
        self._over = self.refused = self.full = False
        self._timed: TimedSocket | None = None
        # What was sent before anything was heard, if there is another address for it.
        self._unheard: deque[bytes] = deque(maxlen=_UNHEARD)

    @property
    def arrival(self) -> int:
        """See `Path.arrival`."""
        return self._timed.arrival if self._timed else 0

    def startProtocol(self) -> None:
        """The port is open."""
        self._timed = timed(self.transport) if LINUX else None

    def write(self, data: bytes) -> None:
        """See `Path.write`. What there is no room for, or no leave, is lost as on the way."""
        if self._addresses:
            self._unheard.append(data)
        try:
            self.transport.write(data)
        except (OSError, MessageLengthError) as error:
            if getattr(error, "errno", None) not in _PASSING:
                self.close()
                self._traveller.over(str(error))

    def close(self) -> None:
        """See `Path.close`."""
        self._over = True
        self._stop()

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Take a reply. One without a newline has been cut: it ends here, too."""
        self._addresses.clear()
        self._traveller.replied(datagram.removesuffix(b"\n") + b"\n")

    def stopProtocol(self) -> None:
        """The port is closed, and if it was not this side that did it, nobody listens there."""
        if self._over:
            return
        error = self._error()
        if self._addresses and error == errno.ECONNREFUSED:
            # The name has another address, as localhost has ::1 and 127.0.0.1.
            self._open_next()
            unheard = list(self._unheard)
            self._unheard.clear()
            for data in unheard:
                self.write(data)
            return
        self._over, self.refused = True, error == errno.ECONNREFUSED
        self._traveller.over(os.strerror(error))

    def _error(self) -> int:
        """What the host was told (ICMP), and Twisted's port ended for: errno(3)."""
        pending: int = self._port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return pending or errno.ECONNREFUSED  # a read that met it has taken it
