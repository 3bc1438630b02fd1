"""The listening port: who is accepted, and when.

Twisted accepts a hundred connections in each iteration of the reactor, and twenty more whenever
that was not enough, without bound: in a storm of new connections, established ones wait for
seconds. Here established ones come first: a few are accepted, then those that have sent something
are served, and so on for at most `MAX_SECONDS`. The rest wait in the kernel's queue, which costs
this process nothing. Knows sockets and the group of connections; no message and no stamp.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
import sys
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python import log
from twisted.python.failure import Failure

from timestamp_echo.addresses import host_port
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.shared import SharedSocket

if TYPE_CHECKING:
    from timestamp_echo.transports.epoll import EpollGroup

MAX_ACCEPTS = 4
"""Connections accepted before the established ones are served: as many as HAProxy's default
(tune.maxaccept). With 64, an established client waits 20 ms and more in a storm."""

MAX_SECONDS = 0.002
"""How long one event may accept and serve, before timers and other descriptors have their turn."""

MAX_LAST_ACCEPTS = 4096
"""Connections accepted once the port has been asked to stop: as many as its queue holds. Without
this bound a port could not stop in a storm."""

PAUSE = 0.5
"""Seconds without accepting after the file table was full, unless a connection closes before."""

LOG_INTERVAL = 10.0
"""Seconds between two lines in the log about such pauses."""

_RETRY = 0.01  # seconds until a port that is stopping checks again for room in the file table

# In tcp_info (tcp(7)), tcpi_unacked: for a listening socket, the length of its queue.
_UNACKED = slice(24, 28)

# Errors of accept(2) if the process or the host has no room for another connection, which stays in
# the queue. EAGAIN means that there is none. All others concern one connection, which is gone.
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class StreamPort(SharedSocket, tcp.Port):
    """A TCP port, or an inherited socket, that puts established connections first.

    `transport` makes its connections, as in `tcp.Port`.
    """

    reactor: Any  # IReactorFDSet and IReactorTime

    group: EpollGroup | None = None
    """Serves the connections of this port; None if the reactor has to do it."""

    reuse_port = False
    """Whether other processes may open the same port."""

    pauses = 0
    """How often it stopped accepting because the file table was full."""

    _logger = Logger()
    _resume_call: IDelayedCall | None = None
    _pauses = 0  # since the last line in the log
    _next_line = -inf
    _accepted = False  # whether a connection was, in this turn
    _stopped: Deferred[None] | None = None  # fires when the port is closed; None: not stopping
    _last_accepts = 0  # allowed until it is closed

    def startListening(self) -> None:
        """See `IListeningPort.startListening`."""
        self._stopped = None
        super().startListening()
        if self.addressFamily != socket.AF_UNIX:
            # Connections inherit these options, which saves a system call for each.
            # A reply is written whole, so there is nothing to wait for (Nagle's algorithm).
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Out-of-band data (send(2), MSG_OOB) is part of the message: read it in its place.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if self.group is not None:
            self.group.add_port(self)

    def createInternetSocket(self) -> socket.socket:
        """See `tcp.Port.createInternetSocket`."""
        sock: socket.socket = super().createInternetSocket()
        if self.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock

    def doRead(self) -> None:
        """Accept a few connections, serve the established ones, and so on for a short time."""
        deadline = monotonic() + MAX_SECONDS
        while self._accept_some() and self.group is not None:
            self.group.serve()
            if monotonic() >= deadline:
                break
        if self._accepted:
            self._accepted = False
            self.end_turn()

    def _accept_some(self) -> bool:
        """Accept a few connections.

        @return: whether more may be waiting.
        """
        listening: Any = self.socket
        queued = self._queued()
        for _ in range(min(max(queued, 1), MAX_ACCEPTS)):
            try:
                # As `socket.accept`, but without Python's wrapper around the C socket: it takes
                # 1.2 us of the 40 of a short connection, and nothing here needs it.
                fd, address = listening._accept()
                sock = _socket.socket(self.addressFamily, socket.SOCK_STREAM, 0, fd)
            except BlockingIOError:
                if self._stopped is not None:
                    self._close()
                return False
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._pause(error)
                    return False
                if error.errno == errno.EINVAL:  # a UNIX socket; a TCP socket does not listen then
                    self._logger.error("{where} was shut down elsewhere", where=self._where())
                    self._close()
                    return False
            else:
                self._make_connection(sock, address)
        return queued > MAX_ACCEPTS

    def _queued(self) -> int:
        """How many connections wait to be accepted; `sys.maxsize` if the kernel does not say.

        Finding none with accept(2) takes 6.5 us, as the kernel makes a socket before it looks, and
        Python raises an exception; asking takes 1.3.
        """
        if self.addressFamily == socket.AF_UNIX or not LINUX:
            return sys.maxsize
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.stop)
        return int.from_bytes(info[_UNACKED], sys.byteorder)

    def _make_connection(self, sock: Any, address: Any) -> None:
        self._accepted = True
        if self._stopped is not None:
            self._last_accepts -= 1
        try:
            if self.addressFamily == socket.AF_INET6:
                address = _scoped(address)
            peer = self._buildAddr(address)
            protocol = self.factory.buildProtocol(peer)  # type: ignore[union-attr]
            if protocol is None:
                sock.close()
            else:
                transport = self.transport(sock, protocol, address, self, 0, self.reactor)
                protocol.makeConnection(transport)
        except BaseException:
            # One failure must not keep the others from being accepted.
            log.err()

    def _pause(self, error: OSError) -> None:
        """Let new connections wait, and say so at most once in `LOG_INTERVAL`."""
        self.stopReading()
        self._resume_call = self.reactor.callLater(PAUSE, self._resume)
        self.pauses += 1
        self._pauses += 1
        now = self.reactor.seconds()
        if now >= self._next_line:
            self._logger.warn(
                "cannot accept on {where}: {why}; connections wait"
                " ({count} pause{s} since the last such line)",
                where=self._where(),
                why=error.strerror,
                count=self._pauses,
                s="" if self._pauses == 1 else "s",
            )
            self._next_line = now + LOG_INTERVAL
            self._pauses = 0

    def connection_closed(self) -> None:
        """One of this port's connections has closed: after a pause, accept again."""
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume()

    def _resume(self) -> None:
        self._resume_call = None
        self.startReading()

    def _where(self) -> str:
        host = self.getHost()
        if isinstance(host, UNIXAddress):
            return "unix:" + os.fsdecode(host.name or b"")
        return host_port(host.host, host.port)

    def stopListening(self) -> Deferred[None]:  # type: ignore[override]  # with a reason, it is `loseConnection`
        """See `IListeningPort.stopListening`. Connections in the queue are accepted first.

        Their clients are connected, and may have sent something. An inherited socket's queue is
        left to the next process. To close the port at once, call `loseConnection`.
        """
        if self._stopped is None:
            self._stopped = Deferred()
            self._last_accepts = MAX_LAST_ACCEPTS
            if not self.connected:
                self._closed()
            elif self.inherited:
                self._close()
            else:
                self.reactor.callLater(0, self._accept_last)
        return self._stopped

    def _accept_last(self) -> None:
        paused = self._resume_call is not None
        if not paused and self.connected:
            self.doRead()
        # `doRead` closes the port when it finds the queue empty.
        if self._last_accepts <= 0:
            self._close()
        elif self.connected and not self.disconnecting:
            self.reactor.callLater(_RETRY if paused else 0, self._accept_last)

    def _close(self) -> None:
        """Close the port, if that has not begun."""
        if self.connected and not self.disconnecting:
            self.loseConnection()

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`."""
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume_call = None
        if self.group is not None:
            self.group.remove_port(self)
        try:
            super().connectionLost(reason)
        except BaseException:  # from the factory; whoever waits for the close must not wait forever
            if self._stopped is None or self._stopped.called:
                raise
            self._stopped.errback()
        else:
            self._closed()

    def _closed(self) -> None:
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)


class _UNIXPort(unix.Port):
    """Twisted's UNIX port, except for inherited sockets, and files that cannot be removed."""

    inherited: bool

    def startListening(self) -> None:
        """See `IListeningPort.startListening`."""
        if self.inherited:
            # `unix.Port` would set the mode of the socket's file and the length of its queue, and
            # at the end shut the socket down, for all processes that have it. `tcp.Port` does not.
            tcp.Port.startListening(self)
        else:
            super().startListening()

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`."""
        if not self.inherited:
            self._remove_files()
        tcp.Port.connectionLost(self, reason)

    def _remove_files(self) -> None:
        """Remove the socket's file and its lock. `unix.Port` stays open if that fails."""
        path = self.socket.getsockname()
        try:
            if isinstance(path, str):  # otherwise it is abstract (unix(7)), and has no file
                with suppress(FileNotFoundError):
                    os.unlink(path)
        except OSError as error:
            self._logger.warn("cannot remove {path}: {why}", path=path, why=error.strerror)
        if self.lockFile is not None:
            with suppress(ValueError, OSError):  # another process's by now, or removed
                self.lockFile.unlock()


class UNIXStreamPort(StreamPort, _UNIXPort):
    """The same for a UNIX socket."""


def _scoped(address: Any) -> Any:
    """A peer's address, with the scope of a link-local IPv6 address in its text (RFC 4007)."""
    if address[3]:
        host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return (host, *address[1:])
    return address
