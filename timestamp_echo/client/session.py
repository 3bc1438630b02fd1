"""A session over a stream connection: sends lines, receives replies, and counts both.

Knows a transport, and the `SessionListener` that gets the replies; not where the lines come from.
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

from timestamp_echo.client import errors
from timestamp_echo.client.address import StreamServer

LINGER_TIMEOUT = 1.0
"""Seconds to wait for a server that has answered every line to close its side, too."""

HANDSHAKE_TIMEOUT = 30
"""Seconds for the TLS handshake: as long as Twisted gives TCP to connect."""


class SessionListener(Protocol):
    """Gets the events of a session."""

    def replied(self, data: bytes) -> None:
        """Bytes of replies were received, in any pieces."""

    def answered(self) -> None:
        """Every line sent so far is answered, or was given up."""

    def over(self, why: str) -> None:
        """The session has ended.

        @param why: the reason; empty if this side ended it.
        """


class Session(Protocol):
    """What stream and datagram sessions have in common.

    It is a push producer of replies (`IPushProducer`) and a consumer of lines.
    """

    @property
    def missing(self) -> int:
        """Lines that were sent and have no reply."""

    @property
    def sent(self) -> int:
        """Lines that were sent."""

    @property
    def refused(self) -> bool:
        """Whether the server's host reported, after the first line, that the port is closed."""

    def write(self, data: bytes) -> None:
        """Send these bytes; lines may be in any pieces."""

    def finish(self) -> None:
        """No more will be written: deliver everything, wait for the last reply, then end."""

    def abort(self) -> None:
        """End at once."""

    def register_producer(self, producer: IPushProducer) -> None:
        """Pause this producer of lines while the server cannot take more."""

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`: receive no more replies for now."""

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`: receive replies again."""

    def stopProducing(self) -> None:
        """See `IPushProducer.stopProducing`: receive no more replies."""


class LineCount:
    """Counts the lines of a stream, and the bytes after the last newline.

    A reply keeps its message's own line ending. So as many newlines come back as were sent,
    whether the server echoes lines or chunks, with a stamp or without.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.partial = 0
        """Bytes after the last newline."""

    def add(self, data: bytes) -> None:
        """Count the next bytes of the stream."""
        before, newline, rest = data.rpartition(b"\n")
        if newline:
            self.lines += 1 + before.count(b"\n")
            self.partial = 0
        self.partial += len(rest)

    @property
    def messages(self) -> int:
        """Lines, and the last one without a newline."""
        return self.lines + bool(self.partial)

    def answered(self, sent: LineCount, closed: bool) -> int:
        """How many of the messages `sent` the replies counted here answer.

        A reply without a newline has no end that can be seen. Its length is no help: the client
        does not know how long a stamp is, nor how many there are (a server that reads a long
        message in chunks stamps each). Only the server's orderly close shows that the reply is
        whole: it closes after the last byte. Then at least as many bytes as the message has must
        be there, because a stamp only adds to them.

        @param sent: the count of what was sent.
        @param closed: whether the server has closed the connection in order.
        """
        if closed and self.lines >= sent.lines and self.partial >= sent.partial:
            return sent.messages
        return min(self.lines, sent.lines)


@implementer(IHandshakeListener)
class StreamSession(StreamProtocol):
    """A session over a TCP, TLS or UNIX connection.

    @param listener: gets the replies.
    @param clock: times the handshake and the lingering close.
    """

    # ITCPTransport, IConsumer and IPushProducer in one, which no interface is.
    transport: Any

    refused = False  # a closed port already fails `connect`
    _linger_timer: IDelayedCall | None = None

    def __init__(self, listener: SessionListener, clock: IReactorTime) -> None:
        self._listener = listener
        self._clock = clock
        self._out = LineCount()
        self._in = LineCount()
        self._finished = False
        self._lost = False
        self._closed = False
        self._ready: Deferred[None] = Deferred()

    def connect(self, server: StreamServer) -> Deferred[Self]:
        """Connect and, with TLS, complete the handshake.

        @return: fires with this session; fails with the endpoint's own kind of error, such as
            `ConnectError` or `OpenSSL.SSL.Error`, and with `TimeoutError` if the handshake takes
            longer than `HANDSHAKE_TIMEOUT`.
        """
        connected: Deferred[object] = connectProtocol(server.endpoint, self)
        return connected.addCallback(self._wait_until_ready).addCallback(lambda _: self)

    def _wait_until_ready(self, _: object) -> Deferred[None]:
        return self._ready.addTimeout(HANDSHAKE_TIMEOUT, self._clock, self._handshake_timed_out)

    def _handshake_timed_out(self, result: object, timeout: float) -> None:
        self.transport.abortConnection()
        raise TimeoutError(f"no handshake within {timeout} s")

    @property
    def sent(self) -> int:
        """See `Session.sent`."""
        return self._out.messages

    @property
    def missing(self) -> int:
        """See `Session.missing`."""
        return self._out.messages - self._in.answered(self._out, self._closed)

    def connectionMade(self) -> None:
        """See `IProtocol.connectionMade`: with TLS, the handshake is still to come."""
        if not INegotiated.providedBy(self.transport):
            self._ready.callback(None)

    def handshakeCompleted(self) -> None:
        """See `IHandshakeListener.handshakeCompleted`: the certificate is verified."""
        self._ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`: pass on a piece of the replies."""
        self._in.add(data)
        self._listener.replied(data)
        if self._finished:
            self._linger()
        elif not self.missing:
            self._listener.answered()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`: end, or fail `connect` if the handshake failed."""
        self._lost = True
        self._closed = reason.check(ConnectionDone) is not None
        if self._linger_timer is not None and self._linger_timer.active():
            self._linger_timer.cancel()
        if not self._ready.called:
            self._ready.errback(reason)
        else:
            self._listener.over(self._why(reason))

    def _why(self, reason: Failure) -> str:
        """Why the session ended; empty if it was complete, however the connection ended."""
        if self._finished and not self.missing:
            return ""
        if self._closed:
            return "the server closed the connection"
        return errors.reason(reason.value)

    def write(self, data: bytes) -> None:
        """See `Session.write`."""
        self._out.add(data)
        self.transport.write(data)

    def finish(self) -> None:
        """See `Session.finish`."""
        self._finished = True
        if self._lost:
            return
        # Twisted would resume a paused producer first; its TLS transport waits until there is none.
        self.transport.unregisterProducer()
        # A half-close: the server reads the end of the stream, answers what has no newline,
        # and its replies can still be received. On TCP and UNIX sockets that is shutdown(SHUT_WR).
        # TLS ends a direction by close_notify (RFC 8446, section 6.1). Twisted's TLS transport
        # sends it in `loseConnection`, and delivers what it receives until the server's own.
        if INegotiated.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._linger()

    def abort(self) -> None:
        """See `Session.abort`."""
        self.transport.abortConnection()

    def register_producer(self, producer: IPushProducer) -> None:
        """See `Session.register_producer`."""
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

    def _linger(self) -> None:
        """Give a server that has answered everything a second to close, then abort.

        The server should close next, because this side has closed. But not every server closes
        (a half-close may be lost on a proxy), and none must keep the client waiting without end. As
        long as more comes in, the second starts again. A last line without a newline counts as
        missing until the server closes, so after one this timer never starts.
        """
        if self._linger_timer is not None:
            self._linger_timer.reset(LINGER_TIMEOUT)
        elif not self.missing:
            self._linger_timer = self._clock.callLater(LINGER_TIMEOUT, self.abort)
