"""One talk with a server, over a connection: lines go out, replies come in, both are counted.

Knows a transport, and the `User` that the replies are for; not where lines come from.
"""

from __future__ import annotations

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
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from typing_extensions import Self  # Twisted needs it too
from zope.interface import implementer

from timestamp_echo.client.address import StreamServer

LINGER = 1.0
"""Seconds that a server which has answered everything gets to close as well."""

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

    def connect(self, server: StreamServer) -> Deferred[Self]:
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
