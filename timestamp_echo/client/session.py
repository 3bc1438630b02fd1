"""A session over a stream connection: sends lines, receives replies, and verifies them.

Knows a transport, and the `SessionListener` that gets the replies; not where the lines come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import TimeoutError
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
from timestamp_echo.client.replies import Replies

LINGER_TIMEOUT = 1.0
"""Seconds to wait for a server that has answered every line to close its side, too."""

HANDSHAKE_TIMEOUT = 30
"""Seconds for the TLS handshake: as long as Twisted gives TCP to connect."""

LAST_INPUT_TIMEOUT = 0.1
"""Seconds for the input to end after the server has closed with nothing missing. Even if the input
is empty, or all answered, its end may be read a moment later: that depends on the scheduler."""

MAX_UNANSWERED = 64 * 2**20
"""Bytes that may be sent without a reply; they are kept to be compared with it. The buffers of both
hosts and of a server that echoes hold less than half of that (tcp(7))."""


class SessionListener(Protocol):
    """Gets the events of a session."""

    def replied(self, data: bytes) -> None:
        """Bytes of replies were received and verified; lines may be split anywhere."""

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
        """Send these bytes; lines may be split anywhere."""

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


@implementer(IHandshakeListener)
class StreamConnection(StreamProtocol):
    """A TCP, TLS or UNIX connection to a server.

    @param listener: gets what is received.
    @param clock: times the handshake.
    """

    # ITCPTransport, IConsumer and IPushProducer in one, which no interface is.
    transport: Any

    refused = False  # a closed port already fails `connect`

    def __init__(self, listener: SessionListener, clock: IReactorTime) -> None:
        self._listener = listener
        self._clock = clock
        self._ready: Deferred[None] = Deferred()
        self._silent = True  # nothing has been received

    def connect(self, server: StreamServer) -> Deferred[Self]:
        """Connect and, with TLS, complete the handshake.

        @return: fires with this object; fails with the endpoint's own kind of error, such as
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

    def connectionMade(self) -> None:
        """See `IProtocol.connectionMade`: with TLS, the handshake is still to come."""
        if not INegotiated.providedBy(self.transport):
            self._ready.callback(None)

    def handshakeCompleted(self) -> None:
        """See `IHandshakeListener.handshakeCompleted`: the certificate is verified."""
        self._ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self._silent = False
        self._listener.replied(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`: end, or fail `connect` if the handshake failed."""
        if not self._ready.called:
            self._ready.errback(reason)
        else:
            self._lost(reason)

    def _lost(self, reason: Failure) -> None:
        """The connection was lost after it was ready."""
        self._listener.over(self._why(reason, self._silent))

    def _why(self, reason: Failure, silent: bool) -> str:
        """Why the connection was lost, as text.

        @param silent: the server has returned nothing for what was sent, as a TLS server does
            unless it sends an alert; see `errors.no_reply`.
        """
        why = errors.reason(reason.value)
        over_ip = isinstance(self.transport.getPeer(), IPv4Address | IPv6Address)
        if silent and over_ip and not INegotiated.providedBy(self.transport):
            return f"{why} (if it speaks TLS, use tls:host:port)"
        return why


class _Timer:
    """One delayed call, which can be stopped or replaced."""

    _call: IDelayedCall | None = None

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def start(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Make a call after this many seconds; one scheduled before is cancelled."""
        self.stop()
        self._call = self._clock.callLater(seconds, self._due, call, *arguments)

    def _due(self, call: Callable[..., object], *arguments: object) -> None:
        # The reactor runs timers before it reads. Read first what has come by now.
        self._call = self._clock.callLater(0, call, *arguments)

    def stop(self) -> None:
        """Make no call."""
        if self._call is not None and self._call.active():
            self._call.cancel()


@implementer(IPushProducer)
class _Input:
    """A producer of lines that outlives the connection: `over` stops it."""

    def __init__(self, producer: IPushProducer) -> None:
        self._producer = producer

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The connection was lost. The input may be at its end: then nothing is missing."""


class StreamSession(StreamConnection):
    """A session over a TCP, TLS or UNIX connection.

    @param listener: gets the replies.
    @param clock: times the handshake, the wait for a reply and the lingering close.
    @param timeout: seconds to wait for a reply, or for more of it; None for no limit.
    """

    def __init__(
        self, listener: SessionListener, clock: IReactorTime, timeout: float | None = None
    ) -> None:
        super().__init__(listener, clock)
        self._timeout = timeout
        self._replies = Replies()
        self._reply_timer = _Timer(clock)
        self._end_timer = _Timer(clock)
        self._paused = False
        self._finished = False
        self._ended = False
        self._why_lost = ""

    @property
    def sent(self) -> int:
        """See `Session.sent`."""
        return self._replies.lines

    @property
    def missing(self) -> int:
        """See `Session.missing`."""
        return self._replies.missing

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`: pass on what is verified."""
        self._silent = False
        if replies := self._replies.receive(data):
            self._listener.replied(replies)
        if self._replies.unexpected:
            self._refuse()
            return
        self._watch()
        if self._finished:
            self._linger()
        elif self._replies.answered:
            self._listener.answered()

    def _lost(self, reason: Failure) -> None:
        """The connection was lost. If nothing is missing, the end of the input may still come."""
        silent = self._silent and self.missing > 0
        self._why_lost = self._unexpected() or self._why(reason, silent)
        if not self._replies.complete:
            self._end(self._why_lost)
        elif self._finished:
            self._end("")
        else:
            self._end_timer.start(LAST_INPUT_TIMEOUT, self._end, self._why_lost)

    def _unexpected(self) -> str:
        """Describe what came that is not a reply, or that was not awaited; empty if nothing did."""
        replies = self._replies
        if text := replies.unexpected or (b"" if replies.missing else replies.rest):
            return errors.no_reply(text)
        return ""

    def _refuse(self) -> None:
        """End because of what is not a reply, once its first line is whole, or after a second."""
        self._reply_timer.stop()
        if self._replies.unexpected_line:
            self._give_up(self._unexpected())
        else:
            self._end_timer.start(LINGER_TIMEOUT, lambda: self._give_up(self._unexpected()))

    def _give_up(self, why: str) -> None:
        """End, because what is awaited will not come."""
        self.abort()
        self._end(why)

    def _end(self, why: str) -> None:
        if not self._ended:
            self._ended = True
            self._reply_timer.stop()
            self._end_timer.stop()
            self._listener.over(why)

    def _watch(self) -> None:
        """Limit the wait for the next bytes, if a reply is awaited and can be received."""
        if self._timeout is None or self._paused or self._replies.answered:
            self._reply_timer.stop()
        else:
            why = f"no reply within {self._timeout:g} s"
            self._reply_timer.start(self._timeout, self._give_up, why)

    def write(self, data: bytes) -> None:
        """See `Session.write`."""
        idle = self._replies.answered
        self._replies.send(data)
        if self._why_lost:
            self._end(self._why_lost)
            return
        self.transport.write(data)
        if idle:
            self._watch()
        if self._replies.unanswered > MAX_UNANSWERED:
            self._give_up(f"{MAX_UNANSWERED // 2**20} MiB were sent without a reply")

    def finish(self) -> None:
        """See `Session.finish`."""
        self._finished = True
        if self._why_lost:
            self._end("")
            return
        # Or Twisted would first resume a paused producer and, over TLS, wait until it has gone.
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
        self.transport.registerProducer(_Input(producer), True)

    def pauseProducing(self) -> None:
        """See `Session.pauseProducing`."""
        self._paused = True
        self._watch()
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """See `Session.resumeProducing`."""
        self._paused = False
        self._watch()
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """See `Session.stopProducing`."""
        self.abort()

    def _linger(self) -> None:
        """Give a server that has answered everything a second to close, then abort.

        The server should close next, because this side has closed. But not every server closes
        (a proxy may drop a half-close), and none may keep the client waiting forever. Whatever else
        comes in restarts the second.
        """
        if self._replies.answered:
            self._end_timer.start(LINGER_TIMEOUT, self.abort)
