"""How this side ends a connection without losing anything: draining, lingering close, refusals.

Knows a transport and a clock; no message, and not why a connection ends.
"""

from __future__ import annotations

import typing
from collections.abc import Callable

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.server.counts import Counts
from timestamp_echo.server.log import ConnectionLog

LINGER_TIMEOUT = 1.0
"""Seconds that a peer has to close its side, once this side has sent all replies and closed."""

MAX_LAST_BYTES = 4 * 2**20
"""At a stop, how many bytes of a connection are read beyond those already in its buffer: at most
what the kernel buffers for a sender by default (tcp_wmem, tcp(7))."""

LAST_BYTES_DELAY = 0.5
"""Seconds that those bytes, and a last message, may take to arrive. The kernel tells a sender on
this host that the buffer has room, which takes a while if the processors are busy; or the sender
probes for it, first after 0.2 s (TCP_RTO_MIN). A round trip to the other side of the world takes
less."""

MAX_REFUSALS = 32
"""Refused connections that may linger at once. Each holds an open file that no limit counts, so
they get half of the reserved ones (`connections.RESERVED_FILES`)."""


class Transport(typing.Protocol):
    """What a connection needs of its transport: that of a socket, or TLS or PROXY over one."""

    def write(self, data: bytes) -> None:
        """See `ITransport.write`."""

    def getPeer(self) -> IAddress:
        """See `ITransport.getPeer`."""

    def loseConnection(self) -> None:
        """See `ITransport.loseConnection`."""

    def loseWriteConnection(self) -> None:
        """See `IHalfCloseableDescriptor.loseWriteConnection`."""

    def abortConnection(self) -> None:
        """See `ITCPTransport.abortConnection`."""

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See `IConsumer.registerProducer`."""

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""


class ServiceFactory(typing.Protocol):
    """What a connection needs of the factory that built it."""

    clock: IReactorTime
    log: ConnectionLog
    counts: Counts

    refusals: int
    """How many refused connections are open."""


@implementer(IHalfCloseableProtocol)
class LingeringClose(Protocol):
    """A connection that this side can end without losing what it wrote.

    close(2) while the peer's bytes are unread sends a reset, which drops the replies that are
    still unsent and, on some systems, those that the peer has not read (RFC 9112, section 9.6,
    describes it for HTTP). So this side closes only its sending direction, and reads and discards
    until the peer has closed as well, for at most `LINGER_TIMEOUT`.
    """

    factory: ServiceFactory
    transport: Transport  # type: ignore[assignment]  # it has more than `ITransport`

    why = ""
    """Why the connection ends, for the log; if empty, the transport's reason is used."""

    _linger: IDelayedCall | None = None

    def close(self) -> None:
        """Close this side once everything is sent, then wait for the peer to close its own."""
        # Ask the class, not the object: Twisted's own TLS has no half-close, but passes the call
        # on to the socket, which would be closed before TLS has written everything.
        if hasattr(type(self.transport), "loseWriteConnection"):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()
        self.dataReceived = self._discard  # type: ignore[method-assign]  # for this object alone

    def writeConnectionLost(self) -> None:
        """Everything is sent, and this side is closed."""
        self._linger = self.factory.clock.callLater(LINGER_TIMEOUT, self.transport.loseConnection)

    def readConnectionLost(self) -> None:
        """The peer has closed as well."""
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        if self._linger is not None:
            cancel(self._linger)

    def _discard(self, data: bytes) -> None:
        """Drop what comes after the close."""


def cancel(call: IDelayedCall | None) -> None:
    """Cancel a timer, if there is one and it has not fired."""
    if call is not None and call.active():
        call.cancel()


class Drain:
    """Answers what has arrived by now and one more message, then closes this side.

    A client that sends without pause has a message in flight at nearly any moment, and the only
    way to say "no more" is to end the stream. So once everything is read, this waits briefly for a
    last message, and closes together with the reply to it. A client that checks for the end of the
    stream before it sends the next message then has all its messages answered.

    @param clock: the reactor's.
    @param transport: the connection's.
    @param incomplete: whether a message has come only in part.
    @param drained: is called to close this side.
    @param wait: seconds that the last message may take to come.
    """

    def __init__(
        self,
        clock: IReactorTime,
        transport: Transport,
        incomplete: Callable[[], bool],
        drained: Callable[[], None],
        wait: float,
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._incomplete = incomplete
        self._drained = drained
        self._wait = wait
        self._end = clock.seconds() + wait
        self._call: IDelayedCall | None = None
        self._came = False  # whether the last message has come, or its beginning
        self._ahead = False  # whether the peer sends without waiting for each reply
        # Our own transports, also those below TLS and the PROXY protocol, know how much is unread
        # in the socket; others do not.
        self._unread: Callable[[], int] = getattr(transport, "unread", _unknown)
        self._unsent: Callable[[], int] = getattr(transport, "unsent", _unknown)
        unread = self._unread()
        # A peer that never stops sending must not keep the service from stopping.
        self._left = unread + MAX_LAST_BYTES
        # If there is more than one read, the buffer may be full, and a sender on this host may
        # have more in its own buffer, which arrives as this one empties.
        self._more = unread > getattr(transport, "read_size", 0)

    def start(self) -> None:
        """Begin, or go on after `cancel`."""
        if not self._more:
            self._hold_replies()
        self._call = self._clock.callLater(0, self._read)

    def cancel(self) -> None:
        """Stop, without calling `drained`."""
        cancel(self._call)

    def receiving(self, data: bytes) -> None:
        """A read brought this, which is about to be answered."""
        # For a UNIX socket, what the peer has not read is unsent.
        self._ahead = self._unsent() > 0 or data.count(b"\n") > 1

    def received(self) -> None:
        """Something was read, and answered, unless that paused the connection."""
        self._came = True
        call = self._call
        if call is not None and call.active() and self._is_done():
            call.cancel()
            self._drained()

    def resume(self) -> bool:
        """Drain on if more has come meanwhile, and call `drained` again.

        Ask right before the close: the peer may have received the last reply, and sent more. If
        there is nothing, the stream over a UNIX socket ends here (see its `end_stream`).

        @return: whether there was more.
        """
        if self._left <= 0:
            return False
        if not self._came:
            self.receiving(b"")
        more = self._unread() > 0
        end_stream = getattr(self._transport, "end_stream", None)
        # A peer that has not read all replies may drop them when a write of its own fails. One that
        # waits for each reply has only the last to read, and sends nothing meanwhile.
        if not more and not self._ahead and end_stream is not None:
            more = not end_stream()
        if more:
            self.start()
        return more

    def _is_done(self) -> bool:
        return self._came and not (self._more or self._unread() or self._incomplete())

    def _read(self) -> None:
        if self._left <= 0 or self._is_done():
            self._drained()
        elif self._unread():
            # One read at a time, so that others have their turn. It takes `read_size` bytes, or
            # all there are. It may pause this connection, which cancels the call just set.
            self._left -= self._transport.read_size  # type: ignore[attr-defined]
            self._call = self._clock.callLater(0, self._read)
            self._transport.doRead()  # type: ignore[attr-defined]
        elif self._more:  # meanwhile the reactor reads what comes
            self._call = self._clock.callLater(LAST_BYTES_DELAY, self._wait_for_last)
        else:
            left = max(self._end - self._clock.seconds(), 0)
            self._call = self._clock.callLater(left, self._drained)

    def _wait_for_last(self) -> None:
        self._more = self._came = False
        self._end = self._clock.seconds() + self._wait
        self._hold_replies()
        self._read()

    def _hold_replies(self) -> None:
        hold = getattr(self._transport, "hold", None)  # our own transports have it
        if hold is not None:
            hold()


def _unknown() -> int:
    """How much is unread or unsent in a transport that does not say."""
    return 0


def refusal(why: str) -> bytes:
    """The line that a refused client gets."""
    return f"tsecho: {why}\n".encode()


class Refusal(LingeringClose):
    """A connection that is refused with one line; beyond `MAX_REFUSALS`, it is closed at once.

    @param why: the reason, as the client and the log get it.
    """

    def __init__(self, why: str) -> None:
        self.why = why

    def connectionMade(self) -> None:
        """Send the reason, and close."""
        self.factory.refusals += 1
        self.factory.counts.count_refused(self.why)
        if self.factory.log.may_write("refused"):
            self.factory.log.refused(self.transport.getPeer(), self.why)
        if self.factory.refusals > MAX_REFUSALS:
            self.transport.abortConnection()
        else:
            self.transport.write(refusal(self.why))
            self.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        super().connectionLost(reason)
        self.factory.refusals -= 1
