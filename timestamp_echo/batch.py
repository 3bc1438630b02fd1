"""Stream connections, read in batches and written to at once.

A reactor spends more time on the way to a connection and back than the connection does on a
short message: a logging context for each event, and a write that waits for the next turn and
takes two more calls of `epoll_ctl`. Here all connections are one descriptor to the reactor, an
epoll(7) of their own, whose `doRead` serves those that are ready in one loop; and what is
written goes to the kernel at once. All else stays Twisted's. Knows no message and no stamp.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.posixbase import _DisconnectSelectableMixin, _PollLikeMixin
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.arrivals import SPACE, arrival

BATCHED = hasattr(select, "epoll")
"""Whether there is an epoll(7): it is Linux's. Elsewhere the reactor watches each connection."""

READ = 2**15
"""Bytes that one read brings at most. With twice as many, a TLS peer that does not take its
replies costs 290 KiB, with these 205."""

EVENTS = 128
"""Connections that are served at a time, and `ROUNDS` such times in a turn of the reactor:
at some 8 microseconds each, its timers and listening ports wait for 2 ms."""

ROUNDS = 2

_MANY = 8  # ready at a time: then it is likely that others have become so meanwhile

_IN = 1  # epoll(7): EPOLLIN, EPOLLOUT, EPOLLERR | EPOLLHUP
_OUT = 4
_BROKEN = 8 | 16


@implementer(IReadDescriptor)
class Batch(_PollLikeMixin, _DisconnectSelectableMixin):
    """All connections of one service, as one descriptor.

    It stands in for the reactor where a connection asks to be watched. Its epoll is there while
    there are connections that do: so it is made in the process that serves, after any fork,
    and nothing is left of it in the end.

    @param reactor: watches the epoll.
    """

    # What `_PollLikeMixin` wants to know.
    _POLL_DISCONNECTED = _BROKEN
    _POLL_IN = _IN
    _POLL_OUT = _OUT

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._epoll: Any = None
        self._reads: dict[int, Connection] = {}
        self._writes: dict[int, Connection] = {}
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
                if event != _IN:
                    self._rare(number, event)
                elif number in reads:
                    connection = reads[number]
                    why: BaseException | None
                    try:
                        why = connection.doRead()
                    except BaseException as error:
                        log.err()
                        why = error
                    if why:
                        self._end(connection, why)
            if len(events) < _MANY:
                return

    def _rare(self, number: int, event: int) -> None:
        """Something else than bytes to be read: room to write, a peer that is gone."""
        if number in self._changed:
            return  # it was another's
        if number not in self._reads:
            event &= ~_IN
        connection = self._reads.get(number) or self._writes[number]
        try:
            self._doReadOrWrite(connection, number, event)
        except BaseException:
            log.err()  # as in `_end`

    def _end(self, connection: Connection, why: BaseException) -> None:
        try:
            self._disconnectSelectable(connection, why, True)
        except BaseException:
            # Raised by its protocol, which is told last. The reactor would drop the batch for it.
            log.err()

    def addReader(self, connection: Connection) -> None:
        """See `IReactorFDSet.addReader`."""
        self._add(connection, self._reads, self._writes, _IN)

    def addWriter(self, connection: Connection) -> None:
        """See `IReactorFDSet.addWriter`."""
        self._add(connection, self._writes, self._reads, _OUT)

    def removeReader(self, connection: Connection) -> None:
        """See `IReactorFDSet.removeReader`."""
        self._remove(connection, self._reads, self._writes, _OUT)

    def removeWriter(self, connection: Connection) -> None:
        """See `IReactorFDSet.removeWriter`."""
        self._remove(connection, self._writes, self._reads, _IN)

    def _add(
        self,
        connection: Connection,
        these: dict[int, Connection],
        others: dict[int, Connection],
        event: int,
    ) -> None:
        number = connection.fileno()
        if number in these:
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        if number in others:
            self._epoll.modify(number, _IN | _OUT)
        else:
            self._epoll.register(number, event)
        these[number] = connection

    def _remove(
        self,
        connection: Connection,
        these: dict[int, Connection],
        others: dict[int, Connection],
        rest: int,
    ) -> None:
        number = connection.fileno()
        if these.pop(number, None) is None:
            return
        if number in others:
            self._epoll.modify(number, rest)
            return
        self._epoll.unregister(number)
        self._changed.add(number)
        if not (these or others):
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None


class Connection(tcp.Server):
    """A TCP connection that is written to at once.

    @param watcher: a `Batch`, or the reactor itself.
    @param max_unsent: bytes beyond which its producer is paused.
    """

    _wants_room: bool | None = None  # while its peer's close is told: whether it would

    def __init__(self, *args: Any, watcher: Any, max_unsent: int) -> None:
        self._watcher = watcher
        super().__init__(*args)
        self.bufferSize = max_unsent
        # Asked for by every write, and found sooner in an object than in its classes.
        self.dataBuffer = b""
        self._writeDisconnected = False
        del self.logstr  # these texts, which nobody reads, are a fifth of what it costs
        if self.server is not None:
            del self.repstr

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return f"{type(self.protocol).__name__},{self.sessionno},{self.hostname}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sessionno} from {self.hostname}>"

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
        super().write(data)


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
