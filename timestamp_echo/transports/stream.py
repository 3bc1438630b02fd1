"""Stream connections that are written to at once.

`StreamTransport.write` hands its bytes to the kernel at once. Only what the kernel does not take is
buffered, and only then is the connection watched for room. Twisted's own transport is watched for
room before each write, so a reply waits for the next iteration of the reactor and costs two calls
of epoll_ctl(2). A connection is watched by its `group`. Knows no message and no stamp.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from array import array
from collections.abc import Iterable
from fcntl import ioctl
from functools import partial
from termios import FIONREAD, TIOCOUTQ
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python import log
from twisted.python.failure import Failure

from timestamp_echo.transports.arrivals import ANCILLARY_SIZE, LINUX, from_ancillary

READ_SIZE = 2**15
"""Bytes of one read at most. A TLS peer that does not read its replies then takes 205 KiB of
memory; with twice as many, 290 KiB."""

_NO_BUFFER: Any = ()  # see StreamTransport.__init__

_BROKEN = {errno.EPIPE, errno.ECONNRESET}

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER (socket(7)): close(2) drops what is unsent, and resets


class StreamTransport(tcp.Server):
    """A TCP connection that is written to at once.

    @param args: as for `tcp.Server`.
    @param group: watches it: an `EpollGroup`, or the reactor itself.
    @param max_unsent: bytes beyond which its producer is paused.
    """

    kind = "tcp"
    """What it is, in the statistics."""

    server: Any  # the `StreamPort` that accepted it

    fd: int
    """The socket's file descriptor; -1 once it is closed."""

    read_size: int
    """Bytes of one read at most."""

    # While the protocol's `readConnectionLost` runs: whether it asked to be watched for room.
    _wants_room: bool | None = None
    # Whether a write has failed because the peer is gone. The kernel reports that once; then a read
    # finds the end of the stream, as if the peer had closed its side.
    _broken = False
    _tempDataLen = 0  # as `FileDescriptor.__init__` sets it

    def __init__(self, *args: Any, group: Any, max_unsent: int) -> None:
        sock, self.protocol, (host, *rest), self.server, _, self.reactor = args
        # Time and memory count here: there may be a million connections. Twisted's `__init__` is
        # not called: it makes two strings, a number, a list and a bound method for each.
        sock.setblocking(False)
        self.socket = sock
        self.fd = sock.fileno()
        self._tempDataBuffer = _NO_BUFFER
        self._group = group
        self.bufferSize = max_unsent
        # Every read or write looks these up, which takes longer in the class than in the object.
        self.read_size = READ_SIZE
        self.dataBuffer = b""
        self.connected = 1
        # One string for all connections of a host: a proxy, or a network behind one address.
        self.client = (sys.intern(host) if isinstance(host, str) else host, *rest)
        if len(rest) > 1:
            self._addressType = IPv6Address
        group.addReader(self)

    @property
    def hostname(self) -> Any:  # type: ignore[override]  # never set
        """The peer's host, or the path of its socket, as Twisted's own transports have it."""
        return self.client[0]

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`."""
        return self.fd

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return f"{type(self.protocol).__name__},{self.fd},{self.client[0]}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fd} from {self.client[0]}>"

    def connectionLost(self, reason: Failure) -> None:
        """As `tcp.Connection.connectionLost`, but also tell the port that a file is closed."""
        if not self.connected:
            return
        self.connected, self.disconnected = 0, 1
        self._group.removeReader(self)
        self._group.removeWriter(self)
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        if isinstance(reason.value, ConnectionAborted):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()
        self.fd = -1
        protocol = self.protocol
        del self.protocol, self.socket
        self.server.connection_closed()
        protocol.connectionLost(reason)

    def readConnectionLost(self, reason: Failure) -> None:
        """As `tcp.Connection.readConnectionLost`, but if nothing is unsent, it closes at once."""
        # The protocol's usual answer to the peer's FIN is `loseConnection`. In Twisted that asks
        # to be watched for room; the next iteration finds room, nothing to send, and closes. That
        # is two calls of epoll_ctl(2) and a whole iteration for nothing, for every connection
        # that the peer ends. So while the protocol is called here, `startWriting` only notes that
        # it was called, and what it would have led to is done right away.
        protocol = IHalfCloseableProtocol(self.protocol, None)
        if protocol is None:
            self.connectionLost(reason)
            return
        self._wants_room = False
        try:
            protocol.readConnectionLost()
        except BaseException:
            log.err()
            self.connectionLost(Failure())
        wants_room, self._wants_room = self._wants_room, None
        if (
            self.disconnecting
            and not (self._tempDataBuffer or self.dataBuffer or self._aborting)
            and (self.producer is None or self.streamingProducer)  # others may have more to send
        ):
            self.connectionLost(reason)
        elif wants_room and self.connected:
            self.startWriting()

    def abortConnection(self) -> None:
        """See `ITCPTransport.abortConnection`. What is written from now on is dropped."""
        super().abortConnection()
        self.write = _drop  # type: ignore[method-assign]

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """See `ITLSTransport.startTLS`."""
        self.buffer_writes()
        super().startTLS(ctx, normal)

    def buffer_writes(self) -> None:
        """Write as Twisted does from now on: to a buffer, or to TLS, which writes to the buffer."""
        if self._tempDataBuffer is _NO_BUFFER:
            self._tempDataBuffer = []
        self.write = super().write  # type: ignore[method-assign]

    def loseConnection(self) -> None:
        """See `ITransport.loseConnection`."""
        if self._wants_room is None or self.TLS:
            super().loseConnection()
        else:  # in `readConnectionLost`, which does the rest; nothing is read any more
            self.disconnecting = self._wants_room = True

    def hold(self) -> None:
        """Send what is written from now on together with the end of the stream, if that is soon.

        The last reply and the FIN are then one segment. Otherwise the peer may get the reply, and
        send more, before it can know of the end. Data held too long is sent (TCP_CORK, tcp(7)).
        """
        if LINUX and self.connected:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def loseWriteConnection(self) -> None:
        """See `IHalfCloseableDescriptor.loseWriteConnection`. If nothing is unsent, do it now."""
        unsent = self._tempDataBuffer or self.dataBuffer or self.producer is not None
        if unsent or self.TLS or self._aborting or self._wants_room is not None:
            super().loseWriteConnection()
        elif self.connected:
            self._writeDisconnecting = self._writeDisconnected = True
            self._closeWriteConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See `IConsumer.registerProducer`."""
        if self.TLS or self.producer is not None or self.disconnected or not streaming:
            if not streaming:  # is asked for more whenever the buffer is empty
                self.buffer_writes()
            super().registerProducer(producer, streaming)
        else:  # the usual case, without two calls
            self.producer = producer
            self.streamingProducer = True

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        if self.TLS or self.disconnecting:
            super().unregisterProducer()
        else:  # as above
            self.producer = None

    def startReading(self) -> None:
        """Watch for bytes to read."""
        self._group.addReader(self)

    def stopReading(self) -> None:
        """Do not watch for bytes to read."""
        self._group.removeReader(self)

    def startWriting(self) -> None:
        """Watch for room to write."""
        if self._wants_room is None:
            self._group.addWriter(self)
        else:
            self._wants_room = True

    def stopWriting(self) -> None:
        """Do not watch for room to write."""
        self._group.removeWriter(self)

    def doRead(self) -> ConnectionLost | ConnectionDone | None:  # type: ignore[override]  # abortConnection replaces it
        """As `tcp.Connection.doRead`."""
        try:
            data = self.socket.recv(self.read_size)
        except OSError as error:
            return _read_error(error)
        if not data:
            return CONNECTION_LOST if self._broken else CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def unread(self) -> int:
        """How many bytes have arrived that are not read yet (FIONREAD, ioctl_tty(2))."""
        if not self.connected:
            return 0
        count = array("i", [0])
        ioctl(self.fd, FIONREAD, count)
        return count[0]

    def unsent(self) -> int:
        """How many bytes are buffered here, or not acknowledged by the peer (SIOCOUTQ, tcp(7)).

        A peer whose buffer was full acknowledges more once it has read a segment, or a sixteenth of
        its buffer. For a UNIX socket, what the peer has not read counts, by the memory that it
        takes. If the kernel does not say, only what is buffered here counts.
        """
        buffered = self._tempDataLen + len(self.dataBuffer) - self.offset
        if not (LINUX and self.connected):
            return buffered
        count = array("i", [0])
        ioctl(self.fd, TIOCOUTQ, count)
        return buffered + count[0]

    def set_read_size(self, size: int) -> None:
        """Read at most this many bytes at once, but never more than `READ_SIZE`."""
        self.read_size = min(size, READ_SIZE)

    def write(self, data: bytes) -> None:
        """Send what the kernel takes at once; buffer the rest, as `FileDescriptor.write` does."""
        # Anything that is still buffered must go first, or replies would overtake each other.
        if self.connected and not (self._tempDataBuffer or self.dataBuffer):
            try:
                sent = self.socket.send(data)
            except OSError as error:
                # No room, or an error that must not surface here, in the middle of the caller's
                # work: the bytes are buffered, and the error recurs when the group sends them.
                sent = 0
                self._broken = error.errno in _BROKEN and not self._writeDisconnected
            if sent == len(data):
                return
            data = data[sent:]
        if self._tempDataBuffer is _NO_BUFFER:
            self._tempDataBuffer = []
        super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """See `ITransport.writeSequence`."""
        self.write(b"".join(iovec))


def _drop(data: bytes) -> None:
    """Stands for `write` after `abortConnection`."""


def _read_error(error: OSError) -> ConnectionLost | None:
    """What an error in a read means: there was nothing to read, or the connection is lost."""
    return None if isinstance(error, BlockingIOError) else CONNECTION_LOST


class TimedStreamTransport(StreamTransport):
    """A TCP connection that knows when the kernel received the bytes of its last read.

    If a read spans several segments, that is the time of the last one.
    """

    arrival = 0
    """Nanoseconds since the epoch; 0 if the kernel did not say."""

    def doRead(self) -> ConnectionLost | ConnectionDone | None:  # type: ignore[override]  # abortConnection replaces it
        """As `StreamTransport.doRead`."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(self.read_size, ANCILLARY_SIZE)
        except OSError as error:
            return _read_error(error)
        if not data:
            return CONNECTION_LOST if self._broken else CONNECTION_DONE
        self.arrival = from_ancillary(ancillary)
        self.protocol.dataReceived(data)
        return None


class UNIXStreamTransport(StreamTransport, unix.Server):
    """The same for a UNIX socket.

    Ancillary data is not requested, so the kernel closes file descriptors that a peer passes
    (unix(7)), unless the protocol can receive them (`IFileDescriptorReceiver`).
    """

    kind = "unix"

    def __init__(self, sock: Any, protocol: Any, client: Any, *args: Any, **options: Any) -> None:
        unix._SendmsgMixin.__init__(self)
        super().__init__(sock, protocol, (client,), *args, **options)
        if hasattr(protocol, "fileDescriptorReceived"):
            self.doRead = partial(unix.Server.doRead, self)  # type: ignore[method-assign]

    def hold(self) -> None:
        """Nothing to do: only TCP can send the end of the stream with the last bytes."""

    def end_stream(self) -> bool:
        """End the stream, once what is buffered is sent, unless the peer has sent more.

        No system call both checks for data and ends the stream, and what the peer sends in between
        would get no answer. So its writes are made to fail first (EPIPE); what has arrived can
        still be read, on Linux.

        @return: False if there is more to read.
        """
        if LINUX and self.connected:
            self.socket.shutdown(socket.SHUT_RD)
            if self.unread():
                return False
            if not (self._tempDataBuffer or self.dataBuffer):
                self.socket.shutdown(socket.SHUT_WR)
        return True

    def sendFileDescriptor(self, fileno: int) -> None:
        """See `IUNIXTransport.sendFileDescriptor`. It goes along with the next byte written."""
        self.buffer_writes()
        super().sendFileDescriptor(fileno)
