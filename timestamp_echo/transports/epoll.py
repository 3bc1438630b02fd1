"""Stream connections, read in batches and written at once.

Theory of operation. For a short message, Twisted's reactor costs more than the message itself: a
logging context for every event, and a write that only marks the connection as writable, so that
it waits for the next iteration and costs two calls of epoll_ctl(2). Here

- all connections are one descriptor to the reactor: an epoll(7) of their own, which is readable
  when any of them is ready. `EpollGroup.doRead` serves all that are, in one loop. (An epoll may be
  watched by another epoll, by poll or by select.)
- `StreamTransport.write` hands its bytes to the kernel at once. Only what the kernel does not
  take is buffered, and only then is the connection watched for room.

Everything else is Twisted's. Without epoll (it is Linux's) the reactor watches each connection,
and only the second point holds. Knows no message and no stamp.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from array import array
from collections.abc import Iterable
from fcntl import ioctl
from termios import FIONREAD
from time import monotonic
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.transports.arrivals import ANCILLARY_SIZE, from_ancillary

HAS_EPOLL = hasattr(select, "epoll")
"""Whether there is an epoll(7). Elsewhere the reactor watches each connection."""

READ_SIZE = 2**15
"""Bytes of one read at most. A TLS peer that does not read its replies then takes 205 KiB of
memory; with twice as many, 290 KiB."""

MAX_EVENTS = 128
"""Connections served per round, and `MAX_ROUNDS` rounds per iteration of the reactor: at some 8
microseconds each, its timers and listening ports wait for 2 ms."""

MAX_ROUNDS = 2

MAX_QUICK = 0.0002
"""Seconds that serving a connection once may take before it has to wait for the quicker ones. A
line takes some 10 microseconds, a TLS handshake a millisecond."""

MAX_SECONDS = 0.002
"""How long a round may go on with connections that take longer than `MAX_QUICK`."""

_MANY_READY = 8  # in one round: then others are likely to have become ready meanwhile

# epoll(7): EPOLLIN, EPOLLOUT, EPOLLERR | EPOLLHUP; as plain numbers, without a look-up in `select`
_IN = 1
_OUT = 4
_BROKEN = 8 | 16

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER (socket(7)): close(2) drops what is unsent, and resets

_Events = list[tuple[int, int]]  # file descriptors, and what they are ready for

_NO_BUFFER: Any = ()  # see StreamTransport.__init__


@implementer(IReadDescriptor)
class EpollGroup:
    """All connections of one service, as one descriptor.

    It stands in for the reactor where a connection asks to be watched. Its epoll exists only
    while a connection is watched: so it is made in the process that serves, after any fork, and
    nothing is left of it in the end.

    @param reactor: watches the epoll.
    """

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        # Transports by file descriptor. The kernel always gives the lowest free one, so they are
        # small, and a list takes a fraction of what a dict does. Few wait for room to write.
        self._readers: list[StreamTransport | None] = []
        self._writers: dict[int, StreamTransport] = {}
        self._watched = 0
        self._unregistered: set[int] = set()  # since the last epoll_wait(2)
        # When those that took long were last served, by file descriptor. A number that another
        # connection has by now does no harm: that one waits for one round.
        self._slow: dict[int, float] = {}

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`: the reactor stops."""

    def doRead(self) -> None:
        """Serve the connections that are ready, in at most `MAX_ROUNDS` rounds."""
        for _ in range(MAX_ROUNDS):
            # With few ready, another look would likely find none: leave that to the reactor.
            if self.serve() < _MANY_READY:
                return

    def serve(self) -> int:
        """Serve the connections that are ready, in one round.

        @return: how many were ready.
        """
        # epoll_wait(2) returns the events of a whole round at once. What serving the first of
        # these connections does may close or pause any of the others (a limit, a stop), and a
        # connection that is accepted meanwhile may get the file descriptor of a closed one. So
        # an event may be stale by the time its turn comes:
        #
        # - To read is harmless. `readers` has None for whoever does not want to read (any more),
        #   and a new connection with an old number finds nothing to read yet: EAGAIN.
        # - All other events are rare, and `_other_event` checks that they are not stale.
        #
        # This loop is the path of every message, so the usual case, bytes to read, is inlined.
        if self._epoll is None:
            return 0
        self._unregistered.clear()
        readers = self._readers
        events = self._epoll.poll(0, MAX_EVENTS)
        quick, slow = self._split(events) if self._slow else (events, [])
        before = monotonic()
        deadline = before + MAX_SECONDS
        for fd, event in quick:
            transport = readers[fd]
            if event != _IN:
                self._other_event(fd, event)
            elif transport is not None:
                why: BaseException | None
                try:
                    why = transport.doRead()
                except BaseException as error:
                    log.err()
                    why = error
                if why:
                    self._disconnect(transport, why, True)
            now = monotonic()
            if now - before > MAX_QUICK:
                # Whoever takes long is served after all others from now on. So the others can
                # wait for the next round, in which this one is not in front of them.
                self._slow[fd] = now
                if now > deadline:
                    break
            before = now
        if slow:
            self._serve_slow(slow, deadline)
        return len(events)

    def _split(self, events: _Events) -> tuple[_Events, _Events]:
        """The events of quick connections, and of slow ones, the one that waits longest first."""
        slow = sorted(
            (event for event in events if event[0] in self._slow),
            key=lambda event: self._slow[event[0]],
        )
        return [event for event in events if event[0] not in self._slow], slow

    def _serve_slow(self, events: _Events, deadline: float) -> None:
        """Serve connections that took long, while there is time, but at least one.

        What is served may be bounded (`READ_SIZE`), but not what a byte of it costs: a TLS record
        of one byte takes as long as one of a thousand. So the time is measured, and whoever took
        more than `MAX_QUICK` gets its turn when the quick ones had theirs.
        """
        for fd, event in events:
            before = monotonic()
            reader = self._readers[fd]
            if event != _IN:
                self._other_event(fd, event)
            elif reader is not None:
                self._try(reader, reader.doRead, True)
            now = monotonic()
            if now - before > MAX_QUICK:
                self._slow[fd] = now
            else:
                del self._slow[fd]
            if now > deadline:
                return

    def _other_event(self, fd: int, event: int) -> None:
        """Handle an event that is not just bytes to read: room to write, or a peer that is gone."""
        # Whoever was unregistered since epoll_wait(2) is no longer there, or is another.
        if fd in self._unregistered:
            return
        reader = self._readers[fd]
        transport = reader or self._writers[fd]
        if event & _BROKEN and not event & _IN:
            # EPOLLHUP without EPOLLIN: there is nothing left to read. For a reader that is the
            # usual end; whoever was only waiting for room has lost what it had still to send.
            why = CONNECTION_DONE if reader else CONNECTION_LOST
            self._disconnect(transport, why, reading=reader is not None)
            return
        # Otherwise read first, also where the peer is gone: its last bytes are still there.
        alive = not (event & _IN and reader) or self._try(transport, transport.doRead, True)
        # To read may have paused or closed this very connection, and so unregistered it.
        if alive and event & _OUT and fd not in self._unregistered:
            self._try(transport, transport.doWrite, False)

    def _try(self, transport: StreamTransport, do: Any, reading: bool) -> bool:
        """Read or write; where that ends the connection, disconnect it, and return False."""
        try:
            why = do()
        except BaseException as error:
            log.err()
            why = error
        if why:
            self._disconnect(transport, why, reading)
        return not why

    def _disconnect(self, transport: StreamTransport, why: BaseException, reading: bool) -> None:
        """End a connection, or, where the peer has only closed its side, its reading."""
        # As the reactor itself does it. Once the peer's FIN is read, the socket stays readable
        # (recv(2) returns nothing, again and again): stop watching for that.
        self.removeReader(transport)
        try:
            if reading and isinstance(why, ConnectionDone):
                transport.readConnectionLost(Failure(why))
            else:
                self.removeWriter(transport)
                transport.connectionLost(Failure(why))
        except BaseException:
            # Raised by the protocol. If the reactor saw it, it would drop the whole group.
            log.err()

    def addReader(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.addReader`."""
        fd = transport.fileno()
        if not self._is_reader(fd):
            self._watch(fd, _IN, fd in self._writers)
            self._readers[fd] = transport

    def addWriter(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.addWriter`."""
        fd = transport.fileno()
        if fd not in self._writers:
            self._watch(fd, _OUT, self._is_reader(fd))
            self._writers[fd] = transport

    def removeReader(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.removeReader`."""
        fd = transport.fileno()
        if self._is_reader(fd):
            self._readers[fd] = None
            self._unwatch(fd, _OUT, fd in self._writers)

    def removeWriter(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.removeWriter`."""
        fd = transport.fileno()
        if self._writers.pop(fd, None) is not None:
            self._unwatch(fd, _IN, self._is_reader(fd))

    def _is_reader(self, fd: int) -> bool:
        return 0 <= fd < len(self._readers) and self._readers[fd] is not None

    def _watch(self, fd: int, event: int, for_other: bool) -> None:
        """Watch for one event more.

        @param for_other: whether it is watched for the other event already.
        """
        # Made with the first connection, not before: twistd forks, and a child that shares an
        # epoll with its parent would see its parent's events, too (epoll(7)).
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        if for_other:
            self._epoll.modify(fd, _IN | _OUT)
            return
        self._epoll.register(fd, event)
        self._watched += 1
        # The list never shrinks: at most a pointer for each file that was ever open at once.
        self._readers.extend([None] * (fd + 1 - len(self._readers)))

    def _unwatch(self, fd: int, other: int, for_other: bool) -> None:
        """Watch only for the other event, if it is watched for that, or not at all."""
        assert self._epoll is not None
        if for_other:
            self._epoll.modify(fd, other)
            return
        # close(2) would unregister it as well, but only if no other process has the socket, and
        # `_unregistered` has to know in any case.
        self._epoll.unregister(fd)
        self._unregistered.add(fd)
        self._watched -= 1
        # Without connections there is nothing to watch, and nothing to be left open at the end.
        if not self._watched:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None


class StreamTransport(tcp.Server):
    """A TCP connection that is written to at once.

    @param args: as for `tcp.Server`.
    @param group: watches it: an `EpollGroup`, or the reactor itself.
    @param max_unsent: bytes beyond which its producer is paused.
    """

    server: Any  # the `StreamPort` that accepted it

    read_size = READ_SIZE
    """Bytes of one read at most."""

    # While `readConnectionLost` of the protocol runs: whether that asked to be watched for room.
    _wants_room: bool | None = None

    def __init__(self, *args: Any, group: Any, max_unsent: int) -> None:
        # Memory counts here: there may be a million connections. `tcp.Server.__init__`, which is
        # skipped, makes two texts and a number for each, and `fileno` is a method of the class in
        # place of a bound one of the socket.
        sock, protocol, (host, *rest), self.server, _, reactor = args
        tcp.Connection.__init__(self, sock, protocol, reactor)
        del self.fileno
        self._tempDataBuffer = _NO_BUFFER
        self._group = group
        self.bufferSize = max_unsent
        # Every write looks these up, which takes longer in a class than in the object.
        self.dataBuffer = b""
        # One text for all connections of a host: a proxy, or a network behind one address.
        self.hostname = sys.intern(host) if isinstance(host, str) else host
        self.client = (self.hostname, *rest)
        if len(rest) > 1:
            self._addressType = IPv6Address
        self.connected = 1
        self.startReading()

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`."""
        # While the connection is being lost it is still unregistered by its number.
        return self.socket.fileno() if hasattr(self, "socket") else -1

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return f"{type(self.protocol).__name__},{self.fileno()},{self.hostname}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fileno()} from {self.hostname}>"

    def connectionLost(self, reason: Failure) -> None:
        """As `tcp.Connection.connectionLost`; the port learns that a file is closed."""
        if not self.connected:
            return
        self.connected, self.disconnected = 0, 1
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        self.stopReading()
        self.stopWriting()
        if reason.check(ConnectionAborted):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()
        protocol = self.protocol
        del self.protocol, self.socket
        protocol.connectionLost(reason)
        self.server.connection_closed()

    def readConnectionLost(self, reason: Failure) -> None:
        """As `tcp.Connection.readConnectionLost`, but if nothing is unsent, it closes at once."""
        # The protocol's usual answer to the peer's FIN is `loseConnection`. In Twisted that asks
        # to be watched for room; the next iteration finds room, nothing to send, and closes. That
        # is two calls of epoll_ctl(2) and a whole iteration for nothing, for every connection
        # that the peer ends. So while the protocol is called here, `startWriting` only notes that
        # it was called, and what it would have led to is done right away.
        self._wants_room = False
        super().readConnectionLost(reason)
        wants_room, self._wants_room = self._wants_room, None
        if self.disconnecting and not (self._tempDataBuffer or self.dataBuffer):
            self.connectionLost(reason)
        elif wants_room and self.connected:
            self.startWriting()

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
            return CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def unread(self) -> int:
        """How many bytes have arrived that are not read yet (FIONREAD, ioctl_tty(2))."""
        if not self.connected:
            return 0
        count = array("i", [0])
        ioctl(self.fileno(), FIONREAD, count)
        return count[0]

    def set_read_size(self, size: int) -> None:
        """Read at most this many bytes at once, but never more than `READ_SIZE`."""
        self.read_size = min(size, READ_SIZE)

    def write(self, data: bytes) -> None:
        """Send what the kernel takes at once; buffer the rest, as `FileDescriptor.write` does."""
        # Anything that is still buffered must go first, or replies would overtake each other.
        # After `loseWriteConnection` send(2) fails (EPIPE), and Twisted's `write` drops the bytes.
        if self.connected and not (self._tempDataBuffer or self.dataBuffer):
            try:
                sent = self.socket.send(data)
            except OSError:
                # EAGAIN: no room. Any other error must not surface here, in the middle of the
                # caller's work, where `connectionLost` would be called from within `write`: the
                # bytes are buffered, and the group meets the error again when it sends them.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        if self._tempDataBuffer is _NO_BUFFER:
            self._tempDataBuffer = []
        super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """See `ITransport.writeSequence`."""
        self.write(b"".join(iovec))


def _read_error(error: OSError) -> ConnectionLost | None:
    """What an error in a read means: there was nothing to read, or the connection is lost."""
    return None if isinstance(error, BlockingIOError) else CONNECTION_LOST


class TimedStreamTransport(StreamTransport):
    """A TCP connection that knows when the kernel received the bytes of its last read.

    Where a read takes in several segments, that is the last one's time.
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
            return CONNECTION_DONE
        self.arrival = from_ancillary(ancillary)
        self.protocol.dataReceived(data)
        return None


class UNIXStreamTransport(StreamTransport, unix.Server):
    """The same for a UNIX socket.

    It takes no file descriptors that a peer passes (unix(7)): the kernel closes them, as no
    ancillary data is asked for.
    """

    def __init__(self, sock: Any, protocol: Any, client: Any, *args: Any, **options: Any) -> None:
        unix._SendmsgMixin.__init__(self)
        super().__init__(sock, protocol, (client, None), *args, **options)
