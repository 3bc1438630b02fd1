"""All stream connections of a service as one descriptor of the reactor.

Theory of operation. For a short message, Twisted's reactor costs more than the message itself: a
logging context for every event, and a turn with its timers. Here

  - all connections are one descriptor to the reactor: an epoll(7) of their own, which is readable
    when any of them is ready. `EpollGroup.doRead` serves all that are, in one loop. (An epoll may
    be watched by another epoll, by poll or by select.)
  - while only connections are active, `EpollGroup` sleeps in the reactor's place, see `_sleep`.
  - `StreamTransport` writes at once, without being watched for room.

Everything else is Twisted's. Without epoll (it is Linux's) the reactor watches each connection,
and only the last point holds. Knows no message and no stamp.
"""

from __future__ import annotations

import select
from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.transports.stream import StreamTransport

if TYPE_CHECKING or hasattr(select, "epoll"):
    from twisted.internet.epollreactor import EPollReactor

HAS_EPOLL = hasattr(select, "epoll")
"""Whether there is an epoll(7). Elsewhere the reactor watches each connection."""

MAX_EVENTS = 128
"""Connections served per round, and `MAX_ROUNDS` rounds per iteration of the reactor: at some 8
microseconds each, its timers and listening ports wait for 2 ms."""

MAX_ROUNDS = 2

MAX_QUICK = 0.0002
"""Seconds that serving a connection once may take before it has to wait for the quicker ones. A
line takes some 10 microseconds, a TLS handshake a millisecond."""

MAX_SECONDS = 0.002
"""How long a round may go on with connections that take longer than `MAX_QUICK`."""

MAX_SLEEP = 0.004
"""Seconds without a connection after which the reactor gets its turn again. A shorter timeout of
epoll_wait(2) costs several microseconds, as it needs the hardware's timer."""

_MANY_ROUNDS = 8  # of a sleep that was worth its four system calls

_MAX_BACKOFF = 1023

_MANY_READY = 8  # in one round: then others are likely to have become ready meanwhile

# epoll(7): EPOLLIN, EPOLLOUT, EPOLLERR | EPOLLHUP; as plain numbers, without a look-up in `select`
_IN = 1
_OUT = 4
_BROKEN = 8 | 16
_EXCLUSIVE = 1 << 28  # EPOLLEXCLUSIVE

_LOST = Failure(CONNECTION_LOST)

_Events = list[tuple[int, int]]  # file descriptors, and what they are ready for


@implementer(IReadDescriptor)
class EpollGroup:
    """All connections of one service, as one descriptor.

    Connections ask it, in place of the reactor, to watch them. Its epoll is made for the first
    connection, and so after any fork, in the process that serves. It is closed once there are no
    connections and no ports left.

    @param reactor: watches the epoll.
    """

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        # Transports by file descriptor. The kernel always gives the lowest free one, so they are
        # small, and a list takes a fraction of a dict's memory. Few wait for room to write.
        self._readers: list[Any] = []  # of StreamTransport or None; a Waker while sleeping
        self._writers: dict[int, StreamTransport] = {}
        self._watched = 0
        self._ports: dict[int, IReadDescriptor] = {}  # that accept its connections, while open
        self._unregistered: set[int] = set()  # since the last epoll_wait(2)
        self._sleeping = False
        self._sleep_turns = 0  # to go before the next attempt to sleep
        self._backoff = 0
        # When those that took long were last served, by file descriptor.
        self._slow: dict[int, float] = {}

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`: the reactor stops, and so do the connections."""
        transports = [*filter(None, self._readers), *self._writers.values()]
        for transport in dict.fromkeys(transports):
            try:
                transport.connectionLost(reason)
            except BaseException:
                log.err()
        if self._epoll is not None:  # there still are ports
            self._close()

    def doRead(self) -> None:
        """Serve the connections that are ready, in at most `MAX_ROUNDS` rounds.

        If only few were ready, then `_sleep`, unless the reactor has something else to do.
        """
        for _ in range(MAX_ROUNDS):
            if self.serve() < _MANY_READY:
                break
        if self._sleep_turns:
            self._sleep_turns -= 1
        elif self._epoll is not None and isinstance(self._reactor, EPollReactor):
            self._sleep(self._epoll, self._reactor)

    def _sleep(self, own: select.epoll, reactor: EPollReactor) -> None:
        """Wait for connections here, not in the reactor, as long as only connections are active.

        With few connections, most of the cost of a message is the reactor's own turn. So this
        epoll is taken out of the reactor's, and watches the reactor's instead. The sleep ends with
        anything that the reactor waits for (a signal, a call from a thread, a descriptor), except
        for a port of these connections; when a timer is set that is due soon; when no connection
        became ready; and in any case after about `MAX_SLEEP`, for events that no descriptor shows
        (`reactor.stop` called by a protocol).
        """
        if reactor.threadCallQueue or not _has_time(reactor):
            return
        waker = self._take_over(own, reactor)
        rounds = 0
        end = monotonic() + MAX_SLEEP
        try:
            while self.serve(MAX_SLEEP):
                rounds += 1
                if (
                    monotonic() > end
                    or (waker.woken and not self._serve_ports(waker, reactor, end))
                    or (reactor._newTimedCalls and not _has_time(reactor))
                ):
                    break
        finally:
            self._give_back(own, reactor)
        # Taking over and giving back costs four system calls, wasted if few connections were
        # active. Then skip twice as many turns as the last time before the next attempt.
        useful = rounds >= _MANY_ROUNDS
        self._backoff = 0 if useful else min(2 * self._backoff + 1, _MAX_BACKOFF)
        self._sleep_turns = self._backoff

    def _take_over(self, own: select.epoll, reactor: EPollReactor) -> Waker:
        """Watch the reactor's epoll, which no longer watches this one.

        @return: notes when something of the reactor's is ready.
        """
        fd = reactor._poller.fileno()
        waker = Waker()
        reactor.removeReader(self)
        own.register(fd, _IN)
        self._sleeping = True
        self._readers.extend([None] * (fd + 1 - len(self._readers)))
        self._readers[fd] = waker
        return waker

    def _give_back(self, own: select.epoll, reactor: EPollReactor) -> None:
        """Let the reactor watch this epoll again, if there still are connections or ports."""
        fd = reactor._poller.fileno()
        own.unregister(fd)
        self._sleeping = False
        self._readers[fd] = None
        if self._watched or self._ports:
            reactor.addReader(self)
        else:
            self._close()

    def _serve_ports(self, waker: Waker, reactor: EPollReactor, end: float) -> bool:
        """Accept on the ports that are ready.

        @param end: when the sleep has lasted long enough.
        @return: whether it goes on: nothing else of the reactor's is ready, and there is time.
        """
        for fd, _ in reactor._poller.poll(0):
            if fd not in self._ports:
                return False
            try:
                self._ports[fd].doRead()
            except BaseException:
                log.err()
                return False  # the reactor drops a port whose next event raises as well
        waker.woken = False
        return monotonic() <= end

    def serve(self, timeout: float = 0) -> int:
        """Serve the connections that are ready, in one round.

        @param timeout: seconds to wait until one is ready.
        @return: how many were ready.
        """
        # epoll_wait(2) returns the events of a whole round at once. Serving the first of these
        # connections may close or pause any of the others (a limit, a stop), and a connection
        # that is accepted meanwhile may get the file descriptor of a closed one. So an event may
        # be stale by the time its turn comes:
        #
        # - Reading is harmless. `readers` has None for a connection that does not read (any more),
        #   and a new connection with an old number finds nothing to read yet: EAGAIN.
        # - All other events are rare, and `_any_event` checks that they are not stale.
        #
        # This loop is the path of every message, so the usual case, bytes to read, is inlined.
        if self._epoll is None:
            return 0
        self._unregistered.clear()
        readers = self._readers
        events = self._epoll.poll(timeout, MAX_EVENTS)
        quick, slow = self._split(events) if self._slow else (events, [])
        before = monotonic()
        deadline = before + MAX_SECONDS
        for fd, event in quick:
            transport = readers[fd]
            if event != _IN:
                self._any_event(fd, event)
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
                # A slow connection is served after all others from now on. So if time is up, the
                # others can wait for the next round, where this one is not ahead of them.
                self._mark_slow(fd, now)
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

        The size of a read is bounded (`READ_SIZE`), but the cost of a byte is not: a TLS record of
        one byte takes as long as one of a thousand. So the time is measured, and a connection that
        took more than `MAX_QUICK` is served after the quick ones.
        """
        for fd, event in events:
            before = monotonic()
            self._any_event(fd, event)
            now = monotonic()
            self._slow.pop(fd, None)
            if now - before > MAX_QUICK:
                self._mark_slow(fd, now)
            if now > deadline:
                return

    def _mark_slow(self, fd: int, now: float) -> None:
        """Note when a slow connection was served, unless that has ended it."""
        if fd not in self._unregistered:
            self._slow[fd] = now

    def _any_event(self, fd: int, event: int) -> None:
        """Handle an event: bytes to read, room to write, or a peer that is gone."""
        # If unregistered since epoll_wait(2), it is closed, or another connection's by now.
        if fd in self._unregistered:
            return
        reader = self._readers[fd]
        transport = reader or self._writers.get(fd)
        if transport is None:
            return  # its socket was closed elsewhere, but a duplicate of it is open (epoll(7), Q6)
        if event & _BROKEN and not event & _IN:
            # EPOLLHUP without EPOLLIN: there is nothing left to read. For a reader that is the
            # usual end; a connection that only waited for room has lost what it still had to send.
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
        """End a connection, or only its reading if the peer has closed just its own side."""
        try:
            if reading and isinstance(why, ConnectionDone):
                # Once the peer's FIN is read, the socket stays readable (recv(2) returns nothing,
                # again and again): stop watching for that.
                self.removeReader(transport)
                transport.readConnectionLost(connectionDone)
            else:
                transport.connectionLost(_LOST if why is CONNECTION_LOST else Failure(why))
        except BaseException:
            # Raised by the protocol. If the reactor saw it, it would drop the whole group.
            log.err()

    def addReader(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.addReader`."""
        fd = transport.fd
        if not self._is_reader(fd):
            self._watch(fd, _IN, fd in self._writers)
            self._readers[fd] = transport

    def addWriter(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.addWriter`."""
        fd = transport.fd
        if fd not in self._writers:
            self._watch(fd, _OUT, self._is_reader(fd))
            self._writers[fd] = transport

    def removeReader(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.removeReader`."""
        fd = transport.fd
        if self._is_reader(fd):
            self._readers[fd] = None
            self._unwatch(fd, _OUT, fd in self._writers)

    def removeWriter(self, transport: StreamTransport) -> None:
        """See `IReactorFDSet.removeWriter`."""
        # Few are watched for room, but every connection calls this when it ends.
        if self._writers:
            fd = transport.fd
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
        # The list never shrinks: it has a pointer for each of the most files ever open at once.
        self._readers.extend([None] * (fd + 1 - len(self._readers)))

    def _unwatch(self, fd: int, other: int, for_other: bool) -> None:
        """Watch only for the other event, if that is still wanted, or stop watching."""
        assert self._epoll is not None
        if for_other:
            self._epoll.modify(fd, other)
            return
        # close(2) would unregister it as well, but only if no other process has the socket, and
        # `_unregistered` has to know in any case.
        try:  # noqa: SIM105  # `suppress` would take half a microsecond of each connection
            self._epoll.unregister(fd)
        except OSError:  # its socket was closed elsewhere
            pass
        self._unregistered.add(fd)
        self._slow.pop(fd, None)
        self._watched -= 1
        if not self._watched and not self._ports:
            self._close_unused()

    def add_port(self, port: IReadDescriptor) -> None:
        """A port whose connections are in this group has begun to listen."""
        self._ports[port.fileno()] = port

    def remove_port(self, port: IReadDescriptor) -> None:
        """That port is about to be closed."""
        del self._ports[port.fileno()]
        if not self._watched and not self._ports:
            self._close_unused()

    def _close_unused(self) -> None:
        if self._epoll is not None and not self._sleeping:
            self._reactor.removeReader(self)
            self._close()

    def _close(self) -> None:
        assert self._epoll is not None
        self._epoll.close()
        self._epoll = None


def watch_exclusively(reactor: Any, fd: int) -> bool:
    """Have the kernel wake this process for a file only if none ahead in its queue can be woken.

    Watching the file anew moves this process to the end of that queue. The reactor's own epoll has
    to watch it: EPOLLEXCLUSIVE has no effect through another one.

    @param reactor: watches the file for reading.
    @return: whether this is possible.
    """
    if not (HAS_EPOLL and isinstance(reactor, EPollReactor)):
        return False
    reactor._poller.unregister(fd)
    reactor._poller.register(fd, _IN | _EXCLUSIVE)
    return True


class Waker:
    """Stands for the reactor's epoll while it is watched with the connections."""

    woken = False

    def doRead(self) -> None:
        """Something of the reactor's is ready."""
        self.woken = True


def _has_time(reactor: EPollReactor) -> bool:
    """Whether no timer of the reactor's is due before a sleep ends.

    A sleep lasts up to twice `MAX_SLEEP` if a connection becomes ready shortly before its end.
    """
    timeout = reactor.timeout()
    return timeout is None or timeout > 2 * MAX_SLEEP
