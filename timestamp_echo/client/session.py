"""One talk with a server: lines go out, replies come in, and each side is counted.

Knows a transport, and the `User` that the replies are for; not where lines come from.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    INegotiated,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import DatagramProtocol, connectionDone
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client.address import DatagramServer, StreamServer

LINGER = 1.0
"""Seconds that a server which has answered everything gets to close as well."""

REPLY_TIMEOUT = 1.0
"""Seconds after which the reply to a datagram counts as lost: RFC 6298's first timeout."""

DATAGRAM = 65536
"""Bytes that hold any datagram whole; a line that is longer is none."""

HANDSHAKE_TIMEOUT = 30
"""Seconds that TLS may take to be set up: as long as Twisted gives TCP."""


class User(Protocol):
    """Whom a session serves."""

    def replied(self, data: bytes) -> None:
        """Bytes of a reply came."""

    def answered(self) -> None:
        """Everything that was sent so far is answered, or given up."""

    def over(self, why: str) -> None:
        """The session has ended.

        @param why: how, in words; empty if it was this side that wanted it.
        """


class Session(Protocol):
    """What both kinds of session can do."""

    @property
    def missing(self) -> int:
        """Lines that are not answered."""

    @property
    def sent(self) -> int:
        """Lines that were sent."""

    @property
    def refused(self) -> bool:
        """Whether nobody listens there, as came out only after a line was sent."""

    def write(self, data: bytes) -> None:
        """Send these bytes of lines."""

    def finish(self) -> None:
        """No more will be written: deliver all of it, wait for the last reply, end."""

    def abort(self) -> None:
        """End at once."""

    def feed_from(self, producer: IPushProducer) -> None:
        """Pause this producer while the server can't take more."""

    def pauseProducing(self) -> None:
        """Take no more replies for now."""

    def resumeProducing(self) -> None:
        """Take replies again."""

    def stopProducing(self) -> None:
        """Take no more replies."""


class Tally:
    """How many lines a stream has brought, and how much of one without a newline.

    A reply ends with its message's own ending, so in a line echo and a chunk echo alike as
    many newlines come back as were sent.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.rest = 0
        """Bytes after the last newline."""

    def add(self, data: bytes) -> None:
        """Count what passed."""
        before, newline, rest = data.rpartition(b"\n")
        if newline:
            self.lines += 1 + before.count(b"\n")
            self.rest = 0
        self.rest += len(rest)

    @property
    def messages(self) -> int:
        """Lines, with the one that has no newline."""
        return self.lines + bool(self.rest)

    def answered(self, sent: Tally, closed: bool) -> int:
        """How many of the messages `sent` this tally of replies answers.

        @param closed: whether the server has closed in order. Nothing else tells that the
            reply to a message without a newline is whole: who knows how long its stamp is,
            and how many there are in it?
        """
        if closed and self.lines >= sent.lines and self.rest >= sent.rest:
            return sent.messages
        return min(self.lines, sent.lines)


@implementer(IHandshakeListener)
class StreamSession(StreamProtocol):
    """A session over a connection.

    @param user: whom it serves.
    @param clock: counts the seconds.
    """

    transport: Any  # ITransport, IConsumer and IPushProducer

    refused = False  # else there is no connection
    _linger: IDelayedCall | None = None

    def __init__(self, user: User, clock: IReactorTime) -> None:
        self._user = user
        self._clock = clock
        self._out = Tally()
        self._into = Tally()
        self._finished = False
        self._lost = False
        self._closed = False
        self._ready: Deferred[None] = Deferred()

    def connect(self, server: StreamServer) -> Deferred[StreamSession]:
        """Connect, and if it is TLS, shake hands.

        @return: fires with this session, or if there is no connection to be had, with the
            endpoint's own kind of failure, such as `ConnectError` or `OpenSSL.SSL.Error`.
        """
        connected: Deferred[object] = connectProtocol(server.endpoint, self)
        return connected.addCallback(self._handshake).addCallback(lambda _: self)

    def _handshake(self, _: object) -> Deferred[None]:
        return self._ready.addTimeout(HANDSHAKE_TIMEOUT, self._clock, self._give_up)

    def _give_up(self, result: object, timeout: float) -> None:
        self.transport.abortConnection()
        raise TimeoutError(f"no handshake within {timeout} s")

    @property
    def sent(self) -> int:
        """See `Session.sent`."""
        return self._out.messages

    @property
    def missing(self) -> int:
        """See `Session.missing`."""
        return self._out.messages - self._into.answered(self._out, self._closed)

    def connectionMade(self) -> None:
        """Ready, unless hands have to be shaken first."""
        if not INegotiated.providedBy(self.transport):
            self._ready.callback(None)

    def handshakeCompleted(self) -> None:
        """TLS is ready, and the certificate is good."""
        self._ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Hand a piece of the replies on."""
        self._into.add(data)
        self._user.replied(data)
        if self._finished:
            self._end_soon()
        elif not self.missing:
            self._user.answered()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over, or there never was one."""
        self._lost = True
        self._closed = reason.check(ConnectionDone) is not None
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        if not self._ready.called:
            self._ready.errback(reason)
        elif self._finished and not self.missing:
            self._user.over("")
        elif self._closed:
            self._user.over("the server closed the connection")
        else:
            self._user.over(reason.getErrorMessage())

    def write(self, data: bytes) -> None:
        """See `Session.write`."""
        self._out.add(data)
        self.transport.write(data)

    def finish(self) -> None:
        """See `Session.finish`."""
        self._finished = True
        if self._lost:
            return
        self.transport.unregisterProducer()
        if INegotiated.providedBy(self.transport):
            # Sends close_notify, then reads on until the server's own comes.
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._end_soon()

    def abort(self) -> None:
        """See `Session.abort`."""
        self.transport.abortConnection()

    def feed_from(self, producer: IPushProducer) -> None:
        """See `Session.feed_from`."""
        self.transport.registerProducer(producer, True)

    def pauseProducing(self) -> None:
        """See `Session.pauseProducing`."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """See `Session.resumeProducing`."""
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """See `Session.stopProducing`."""
        self.abort()

    def _end_soon(self) -> None:
        # All is answered; a server that would never close does not keep us for ever. After a
        # line without a newline its closing alone tells that all is answered.
        if self._linger is not None:
            self._linger.reset(LINGER)
        elif not self.missing:
            self._linger = self._clock.callLater(LINGER, self.abort)


class DatagramSession(DatagramProtocol):
    """A session over datagrams: each line is one, and waits for its reply or for a second.

    A datagram may be lost on the way, and nothing but the reply tells how much the server
    can take, so one at a time is under way.

    @param user: whom it serves.
    @param reactor: the reactor; of a Clock its time alone is used.
    """

    transport: Any  # IUDPTransport

    noisy = False

    def __init__(self, user: User, reactor: Any) -> None:
        self._user = user
        self._reactor = reactor
        self._queue: deque[bytes] = deque()
        self._partial = b""
        self._addresses: deque[tuple[Any, ...]] = deque()
        self._held = False
        self._awaited: bytes | None = None
        self._timeout: IDelayedCall | None = None
        self._finished = False
        self._over = False
        self._producer: IPushProducer | None = None
        self.sent = self.missing = 0
        self.refused = False

    def connect(self, server: DatagramServer) -> Deferred[DatagramSession]:
        """Find the address; datagrams to and from it alone will pass.

        @return: fires with this session, or an `OSError` if the name is not known.
        """
        found: Deferred[Any] = deferToThread(
            socket.getaddrinfo, server.host, server.port, 0, socket.SOCK_DGRAM
        )
        return found.addCallback(self._open)

    def _open(self, found: list[tuple[Any, ...]]) -> DatagramSession:
        self._addresses.extend(filter(_has_route, found))
        if not self._addresses:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        self._open_next()
        return self

    def _open_next(self) -> None:
        family, _, _, _, (host, port, *_) = self._addresses.popleft()
        local = "::" if family == socket.AF_INET6 else "0.0.0.0"
        self._reactor.listenUDP(0, self, local, DATAGRAM).connect(host, port)

    def write(self, data: bytes) -> None:
        """See `Session.write`."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._queue.extend(line + b"\n" for line in lines)
        if len(self._partial) > DATAGRAM:
            self._queue.append(self._partial)
            self._end("a line of more than 65,507 bytes does not fit into a datagram")
        self._send_next()

    def finish(self) -> None:
        """See `Session.finish`."""
        self._finished = True
        if self._partial:
            self._queue.append(self._partial)
        self._send_next()

    def abort(self) -> None:
        """See `Session.abort`."""
        self._end("")

    def feed_from(self, producer: IPushProducer) -> None:
        """See `Session.feed_from`."""
        self._producer = producer

    def pauseProducing(self) -> None:
        """See `Session.pauseProducing`: nothing is sent that would be replied to."""
        self._held = True

    def resumeProducing(self) -> None:
        """See `Session.resumeProducing`."""
        self._held = False
        self._send_next()

    def stopProducing(self) -> None:
        """See `Session.stopProducing`."""

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Take the reply to the line that waits for it; one that comes too late is none."""
        if self._awaited is not None and _is_reply(datagram, self._awaited):
            self._user.replied(datagram)
            self.missing -= 1
            self._done_waiting()

    def stopProtocol(self) -> None:
        """The port is closed, and if it was not this side that did it, by an error.

        The host answered that nobody listens there (ICMP port unreachable). That should be
        `connectionRefused`, but epoll tells of the error alone, which Twisted takes for the
        port's end (twisted#6287).
        """
        if self._over:
            return
        if self._addresses and self._awaited is not None and self.sent == self.missing:
            # The name has another address, as localhost has ::1 and 127.0.0.1.
            self._open_next()
            self.transport.write(self._awaited)
            return
        self.refused = True
        self._end("Connection refused")

    def connectionRefused(self) -> None:
        """The same, where the reactor does as it should: first it is to close the port."""
        self.transport.stopListening()

    def _send_next(self) -> None:
        if self._awaited is not None or self._held or self._over:
            return
        if not self._queue:
            self._all_sent()
            return
        if self._producer is not None:
            self._producer.pauseProducing()
        self._awaited = self._queue.popleft()
        self.sent += 1
        self.missing += 1
        self._timeout = self._reactor.callLater(REPLY_TIMEOUT, self._done_waiting)
        try:
            self.transport.write(self._awaited)
        except Exception as error:  # OSError, or Twisted's MessageLengthError
            self._end(f"a datagram of {len(self._awaited)} bytes could not be sent: {error}")

    def _done_waiting(self) -> None:
        self._awaited = None
        self._cancel_timeout()
        self._send_next()

    def _all_sent(self) -> None:
        if self._finished:
            self._end("no reply came in time" if self.missing else "")
        elif not self._partial:
            self._user.answered()
        if self._producer is not None:
            self._producer.resumeProducing()

    def _cancel_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        self._cancel_timeout()
        self._producer = None
        self.sent += len(self._queue)
        self.missing += len(self._queue)
        if self.transport is not None:
            self.transport.stopListening()
        self._user.over(why)


def _has_route(found: tuple[Any, ...]) -> bool:
    """Whether datagrams can leave for this address, one of `socket.getaddrinfo`'s."""
    family, _, _, _, address = found
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: connect(2) only looks for the way
    except OSError:
        return False
    return True


def _is_reply(datagram: bytes, message: bytes) -> bool:
    """Whether this is the message, behind one stamp or, from a plain echo, none."""
    stamp = datagram.removesuffix(message)
    if not datagram.endswith(message):
        return False
    return not stamp or (stamp[:1] == b"[" and stamp.find(b"] ") == len(stamp) - 2)
