"""The network path of a probe: a connection, or datagrams.

Like the sessions of `tsecho connect`, except that what is written is sent at once, and the kernel
reports when what is read arrived. Both keep this program's own delays out of the round trips.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import Protocol, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import (
    IAddress,
    INegotiated,
    IPushProducer,
    IReactorTime,
    IReactorUDP,
)
from zope.interface import implementer

from timestamp_echo.client.datagram import DatagramPath
from timestamp_echo.client.session import StreamConnection
from timestamp_echo.ping.stats import Phases
from timestamp_echo.transports.arrivals import LINUX, TimedSocket

# The send buffer is full, or a firewall on this host dropped the datagram: others may get through.
_TEMPORARY = (errno.EAGAIN, errno.ENOBUFS, errno.EPERM)

_MAX_UNCONFIRMED = 10_000  # datagrams: as many as may be in flight


class PathListener(Protocol):
    """The user of a path. Sessions of the client require the same, apart from `writable`."""

    def replied(self, data: bytes) -> None:
        """Bytes were received."""

    def answered(self) -> None:
        """Everything sent so far was answered; only known if each line has one reply."""

    def writable(self) -> None:
        """The path is no longer full."""

    def over(self, why: str) -> None:
        """The path was closed.

        @param why: the reason, as text.
        """


class ProbeListener(PathListener, Protocol):
    """The user of a path that has a connection for each probe."""

    def failed(self, data: bytes, why: str) -> None:
        """There will be no reply to these bytes, which were written in one call.

        @param why: the reason, as text.
        """


class Path(Protocol):
    """An open path to the server."""

    @property
    def arrival(self) -> int:
        """When the kernel received the last data, in nanoseconds since the epoch; 0 if unknown."""

    @property
    def refused(self) -> bool:
        """Whether the path was closed because no one listens at the server's address."""

    @property
    def full(self) -> bool:
        """Whether the send buffer is full."""

    def write(self, data: bytes) -> None:
        """Send these bytes now."""

    def release(self, data: bytes) -> Phases | None:
        """Await no further reply to these bytes, which were written in one call.

        @return: where the time went, if they had a connection of their own.
        """

    def close(self) -> None:
        """Close the path cleanly."""


_Socket = socket.socket


class _SocketTransport(Protocol):
    """A transport of Twisted's that has a socket."""

    socket: _Socket


def record_arrivals(transport: _SocketTransport) -> TimedSocket | None:
    """Have the kernel report when the data that a transport reads arrived.

    @return: the transport's new socket, which has the times; None if the kernel does not support
        it.
    """
    try:
        sock = TimedSocket(transport.socket)
    except OSError:
        return None
    transport.socket = cast(_Socket, sock)  # delegates everything else
    return sock


def proxy_header(host: IAddress, peer: IAddress) -> bytes:
    """A header of version 1 of the PROXY protocol, for a connection of this program's own.

    See https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt

    @param host: the address of this end.
    @param peer: the address of the other end.
    """
    if not isinstance(host, IPv4Address | IPv6Address) or not isinstance(peer, type(host)):
        return b"PROXY UNKNOWN\r\n"
    family = "TCP4" if isinstance(host, IPv4Address) else "TCP6"
    source, target = (address.host.partition("%")[0] for address in (host, peer))  # no scope
    return f"PROXY {family} {source} {target} {host.port} {peer.port}\r\n".encode()


@implementer(IPushProducer)
class _FlowControl:
    """Tells a path whether its transport's send buffer is full."""

    def __init__(self, path: StreamPath) -> None:
        self._path = path

    def pauseProducing(self) -> None:
        """The buffer is full."""
        self._path.full = True

    def resumeProducing(self) -> None:
        """The buffer has room again."""
        self._path.full = False
        self._path.listener.writable()

    def stopProducing(self) -> None:
        """The connection is lost."""


class StreamPath(StreamConnection):
    """A path over a connection.

    @param listener: receives data and events.
    @param clock: for timeouts.
    @param send_proxy: send a header of the PROXY protocol first, as load balancers do.
    """

    def __init__(
        self, listener: PathListener, clock: IReactorTime, *, send_proxy: bool = False
    ) -> None:
        super().__init__(listener, clock)
        self._send_proxy = send_proxy
        self.listener = listener
        self.full = False
        self._arrivals: TimedSocket | None = None

    @property
    def arrival(self) -> int:
        """See `Path.arrival`."""
        return self._arrivals.arrival if self._arrivals else 0

    def connectionMade(self) -> None:
        """Prepare the new connection for measuring."""
        below = self.transport
        while hasattr(below, "transport"):  # TLS is a transport over another one
            below = below.transport
        self._arrivals = record_arrivals(below) if LINUX else None
        if self._send_proxy:  # TLS begins behind the header
            below.write(proxy_header(below.getHost(), below.getPeer()))
        self.transport.setTcpNoDelay(True)  # Nagle's algorithm would hold a probe back
        self.transport.registerProducer(_FlowControl(self), True)
        super().connectionMade()

    def write(self, data: bytes) -> None:
        """See `Path.write`. A TLS record is sent in the reactor's next iteration."""
        self.transport.write(data)
        if not INegotiated.providedBy(self.transport):
            # Otherwise it would be sent in the next iteration. The result does not matter: an
            # error that occurs here occurs there again.
            self.transport.doWrite()

    def release(self, data: bytes) -> None:
        """See `Path.release`."""

    def close(self) -> None:
        """See `Path.close`."""
        self.transport.unregisterProducer()  # or a paused one is resumed first
        self.transport.loseConnection()


class UDPPath(DatagramPath):
    """A path over UDP: any number of datagrams may be in flight, and any may be lost.

    @param listener: receives data and events.
    @param reactor: opens the port.
    """

    def __init__(self, listener: PathListener, reactor: IReactorUDP) -> None:
        super().__init__(reactor)
        self._listener = listener
        self._over = self.refused = self.full = False
        self._arrivals: TimedSocket | None = None
        # Sent before the first reply, to be sent again if the name has another address.
        self._unconfirmed: deque[bytes] = deque(maxlen=_MAX_UNCONFIRMED)

    @property
    def arrival(self) -> int:
        """See `Path.arrival`."""
        return self._arrivals.arrival if self._arrivals else 0

    def startProtocol(self) -> None:
        """The port is open."""
        self._arrivals = record_arrivals(self.transport) if LINUX else None

    def write(self, data: bytes) -> None:
        """See `Path.write`. A datagram that this host drops counts as lost in the network."""
        if self._addresses:
            self._unconfirmed.append(data)
        try:
            self.transport.write(data)
        except (OSError, MessageLengthError) as error:
            if getattr(error, "errno", None) not in _TEMPORARY:
                self.close()
                self._listener.over(str(error))

    def release(self, data: bytes) -> None:
        """See `Path.release`."""

    def close(self) -> None:
        """See `Path.close`."""
        self._over = True
        self._stop()

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Deliver a reply, with a newline, so that a truncated one does not run into the next."""
        self._addresses.clear()
        self._listener.replied(datagram.removesuffix(b"\n") + b"\n")

    def stopProtocol(self) -> None:
        """The port was closed: by `close`, or because of an ICMP error."""
        if self._over:
            return
        error = self._error()
        if self._addresses and error == errno.ECONNREFUSED:
            self._try_next_address()
            return
        self._over, self.refused = True, error == errno.ECONNREFUSED
        self._listener.over(os.strerror(error))

    def _try_next_address(self) -> None:
        """Send everything again to the name's next address: localhost is ::1 and 127.0.0.1."""
        self._open_next()
        unconfirmed = list(self._unconfirmed)
        self._unconfirmed.clear()
        for data in unconfirmed:
            self.write(data)

    def _error(self) -> int:
        """The ICMP error for which Twisted closed the port, as in errno(3)."""
        pending: int = self._port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return pending or errno.ECONNREFUSED  # reading the socket may have cleared it
