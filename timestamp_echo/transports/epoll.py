"""Stream connections, read in batches and written to at once.

A reactor spends more time on the way to a connection and back than the connection does on a
short message: a logging context for each event, and a write that waits for the next turn and
takes two more calls of `epoll_ctl`. Here all connections are one descriptor to the reactor, an
epoll(7) of their own, whose `doRead` serves those that are ready in one loop; and what is
written goes to the kernel at once. All else stays Twisted's. Knows no message and no stamp.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.transports.arrivals import SPACE, arrival

BATCHED = hasattr(select, "epoll")
"""Whether there is an epoll(7): it is Linux's. Elsewhere the reactor watches each connection."""

READ = 2**15
"""Bytes that one read brings at most. With twice as many, a TLS peer that does not take its
replies costs 290 KiB, with these 205."""

EVENTS = 128
"""Connections that are served at a time, and `ROUNDS` such times in a turn of the reactor:
at some 8 microseconds each, its timers and listening ports wait for 2 ms."""

ROUNDS = 2

_NOTHING: Any = ()  # in place of an empty list of its own

_MANY = 8  # ready at a time: then it is likely that others have become so meanwhile

_IN = 1  # epoll(7): EPOLLIN, EPOLLOUT, EPOLLERR | EPOLLHUP
_OUT = 4
_BROKEN = 8 | 16


@implementer(IReadDescriptor)
class Batch(_DisconnectSelectableMixin):
    """All connections of one service, as one descriptor.

    It stands in for the reactor where a connection asks to be watched. Its epoll is there while
    there are connections that do: so it is made in the process that serves, after any fork,
    and nothing is left of it in the end.

    @param reactor: watches the epoll.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._epoll: Any = None
        # By their numbers. These are small, so that a list takes a fraction of what a dict does;
        # few wait for room to write.
        self._reads: list[Connection | None] = []
        self._writes: dict[int, Connection] = {}
        self._watched = 0
        self._changed: set[int] = set()

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`."""
        number: int = self._epoll.fileno() if self._epoll is not None else -1
        return number

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`: the reactor drops all that it watches."""

    def doRead(self) -> None:
        """Serve the connections that are ready.

        A connection may be closed, or paused, and its number taken by another, by what is done
        for those before it.
        """
        reads = self._reads
        for _ in range(ROUNDS):
            if self._epoll is None:
                return
            self._changed.clear()
            events = self._epoll.poll(0, EVENTS)
            for number, event in events:
                connection = reads[number]
                if event != _IN:
                    self._rare(number, event)
                elif connection is not None:
                    why: BaseException | None
                    try:
                        why = connection.doRead()
                    except BaseException as error:
                        log.err()
                        why = error
                    if why:
                        self._end(connection, why, True)
            if len(events) < _MANY:
                return

    def _rare(self, number: int, event: int) -> None:
        """Something else than bytes to be read: room to write, a peer that is gone."""
        if number in self._changed:
            return  # it was another's
        reader = self._reads[number]
        connection = reader or self._writes[number]
        why: BaseException | None = None
        reading = False
        if event & _BROKEN and not event & _IN:
            reading = reader is not None
            why = CONNECTION_DONE if reading else CONNECTION_LOST
        else:
            try:
                if event & _IN and reader is not None:
                    reading = True
                    why = reader.doRead()
                if event & _OUT and not why and number not in self._changed:
                    reading = False
                    why = connection.doWrite()
            except BaseException as error:
                log.err()
                why = error
        if why:
            self._end(connection, why, reading)

    def _end(self, connection: Connection, why: BaseException, reading: bool) -> None:
        try:
            self._disconnectSelectable(connection, why, reading)
        except BaseException:
            # Raised by its protocol, which is told last. The reactor would drop the batch for it.
            log.err()

    def addReader(self, connection: Connection) -> None:
        """See `IReactorFDSet.addReader`."""
        number = connection.fileno()
        if not self._is_read(number):
            self._watch(number, _IN, number in self._writes)
            self._reads[number] = connection

    def addWriter(self, connection: Connection) -> None:
        """See `IReactorFDSet.addWriter`."""
        number = connection.fileno()
        if number not in self._writes:
            self._watch(number, _OUT, self._is_read(number))
            self._writes[number] = connection

    def removeReader(self, connection: Connection) -> None:
        """See `IReactorFDSet.removeReader`."""
        number = connection.fileno()
        if self._is_read(number):
            self._reads[number] = None
            self._unwatch(number, _OUT, number in self._writes)

    def removeWriter(self, connection: Connection) -> None:
        """See `IReactorFDSet.removeWriter`."""
        number = connection.fileno()
        if self._writes.pop(number, None) is not None:
            self._unwatch(number, _IN, self._is_read(number))

    def _is_read(self, number: int) -> bool:
        return 0 <= number < len(self._reads) and self._reads[number] is not None

    def _watch(self, number: int, event: int, watched: bool) -> None:
        """Watch for one event more.

        @param watched: whether it is watched for the other.
        """
        if watched:
            self._epoll.modify(number, _IN | _OUT)
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._epoll.register(number, event)
        self._watched += 1
        self._reads.extend([None] * (number + 1 - len(self._reads)))

    def _unwatch(self, number: int, rest: int, watched: bool) -> None:
        """Watch for the rest alone, if it is watched for that."""
        if watched:
            self._epoll.modify(number, rest)
            return
        self._epoll.unregister(number)
        self._changed.add(number)
        self._watched -= 1
        if not self._watched:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None


class Connection(tcp.Server):
    """A TCP connection that is written to at once.

    @param watcher: a `Batch`, or the reactor itself.
    @param max_unsent: bytes beyond which its producer is paused.
    """

    _wants_room: bool | None = None  # while its peer's close is told: whether it would
    _shouldShutdown = False  # before it is closed: no other process has its socket

    def __init__(self, *args: Any, watcher: Any, max_unsent: int) -> None:
        # In place of `tcp.Server.__init__`, which makes several texts and numbers for each
        # connection that few ever need: they are a third of what it costs.
        sock, protocol, (host, *rest), self.server, _, reactor = args
        tcp.Connection.__init__(self, sock, protocol, reactor)
        del self.fileno
        self._tempDataBuffer = _NOTHING
        self._watcher = watcher
        self.bufferSize = max_unsent
        # Asked for by every write, and found sooner in an object than in its classes.
        self.dataBuffer = b""
        self._writeDisconnected = False
        # One text for all connections of a host: a proxy, or a network behind one address.
        self.hostname = sys.intern(host) if isinstance(host, str) else host
        self.client = (self.hostname, *rest)
        if len(rest) > 1:
            self._addressType = IPv6Address
        self.connected = 1
        self.startReading()

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`."""
        return self.socket.fileno() if self.connected else -1

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return f"{type(self.protocol).__name__},{self.fileno()},{self.hostname}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fileno()} from {self.hostname}>"

    def connectionLost(self, reason: Failure) -> None:
        """As `tcp.Connection.connectionLost`, which drops its `fileno`."""
        if self.connected:
            self.fileno = self.socket.fileno  # type: ignore[method-assign]  # it deletes that
        super().connectionLost(reason)

    def readConnectionLost(self, reason: Failure) -> None:
        """As `tcp.Connection.readConnectionLost`. If that is the end, it is so at once.

        That saves a turn of being watched for room to write what there is not.
        """
        self._wants_room = False
        super().readConnectionLost(reason)
        wants_room, self._wants_room = self._wants_room, None
        if self.disconnecting and not (self._tempDataBuffer or self.dataBuffer):
            self.connectionLost(reason)
        elif wants_room and self.connected:
            self.startWriting()

    def startReading(self) -> None:
        """See `IReadDescriptor`: be watched for bytes to read."""
        self._watcher.addReader(self)

    def stopReading(self) -> None:
        """No more."""
        self._watcher.removeReader(self)

    def startWriting(self) -> None:
        """Be watched for room to write."""
        if self._wants_room is None:
            self._watcher.addWriter(self)
        else:
            self._wants_room = True

    def stopWriting(self) -> None:
        """No more."""
        self._watcher.removeWriter(self)

    def doRead(self) -> ConnectionLost | ConnectionDone | None:  # type: ignore[override]  # abortConnection's
        """As `tcp.Connection.doRead`."""
        try:
            data = self.socket.recv(READ)
        except OSError as error:
            return _lost(error)
        if not data:
            return CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def write(self, data: bytes) -> None:
        """Send what the kernel takes at once; the rest waits, as in `FileDescriptor.write`.

        So does what an error meets: it is reported when that is tried again, not from here.
        """
        if self.connected and not (
            self._tempDataBuffer or self.dataBuffer or self._writeDisconnected
        ):
            try:
                sent = self.socket.send(data)
            except OSError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        if self._tempDataBuffer is _NOTHING:
            self._tempDataBuffer = []
        super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """See `ITransport.writeSequence`."""
        self.write(b"".join(iovec))


def _lost(error: OSError) -> ConnectionLost | None:
    """What an error in a read means: there was nothing to read, or it is the end."""
    return None if isinstance(error, BlockingIOError) else CONNECTION_LOST


class TimedConnection(Connection):
    """A TCP connection that knows when the kernel got the bytes of its last read.

    Where a read takes in several segments, that is the last one's time.
    """

    arrival = 0
    """Nanoseconds since the epoch; 0 if the kernel did not say."""

    def doRead(self) -> ConnectionLost | ConnectionDone | None:  # type: ignore[override]  # abortConnection's
        """As `Connection.doRead`."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(READ, SPACE)
        except OSError as error:
            return _lost(error)
        if not data:
            return CONNECTION_DONE
        self.arrival = arrival(ancillary)
        self.protocol.dataReceived(data)
        return None


class UNIXConnection(Connection, unix.Server):
    """The same for a UNIX socket. It takes no files that a peer passes (unix(7)).

    Without ancillary data asked for, the kernel closes them.
    """

    def __init__(self, sock: Any, protocol: Any, client: Any, *args: Any, **options: Any) -> None:
        unix._SendmsgMixin.__init__(self)
        super().__init__(sock, protocol, (client, None), *args, **options)
