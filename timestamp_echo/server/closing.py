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
"""Seconds that a peer has to close its side after this side closed its own, all replies sent."""

MAX_LAST_BYTES = 4 * 2**20
"""Bytes of a connection that are read at a stop, at most, beyond those in its buffer: as many as
the kernel buffers for a sender by default (tcp_wmem, tcp(7))."""

LAST_BYTES_DELAY = 0.5
"""Seconds that those bytes may take to come. A sender on this host learns of the room in the buffer
from the kernel, which takes its time where the processors are busy, or else asks again: first after
0.2 s (TCP_RTO_MIN)."""

MAX_REFUSALS = 32
"""Refused connections that may linger at once. Each holds an open file, and no limit counts it:
half of those that are reserved (`connections.RESERVED_FILES`)."""


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

    close(2) while the peer's bytes are unread sends a reset, and a reset discards whatever the
    peer has not read yet: the last replies (RFC 9112, section 9.6, describes it for HTTP). So
    this side closes only its sending direction, and reads and discards until the peer has closed
    as well, for at most `LINGER_TIMEOUT`.
    """

    factory: ServiceFactory
    transport: Transport  # type: ignore[assignment]  # it has more than `ITransport`

    why = ""
    """Why the connection ends, for the log; empty: as the transport says."""

    _linger: IDelayedCall | None = None

    def close(self) -> None:
        """Close this side once everything is sent, then wait for the peer to close its own."""
        self.dataReceived = self._discard  # type: ignore[method-assign]  # for this object alone
        # Ask the class: Twisted's own TLS, which has no half-close, passes the call on to the
        # socket, which would be closed under what TLS has still to write.
        if hasattr(type(self.transport), "loseWriteConnection"):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

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
    """Reads everything that has arrived by now, then calls back.

    @param clock: the reactor's.
    @param transport: the connection's.
    @param drained: is called then.
    """

    def __init__(
        self, clock: IReactorTime, transport: Transport, drained: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._drained = drained
        self._call: IDelayedCall | None = None
        # What is below TLS and the PROXY protocol knows what waits in its socket. What comes later
        # is not waited for: a peer that never stops sending would keep the service from stopping.
        # But if more than a read waits, the buffer may be full, and a sender on this host may have
        # more in its own, which comes as this one is read.
        self._unread: Callable[[], int] | None = getattr(transport, "unread", None)
        self._left = 0  # bytes to read at most
        self._more = False  # whether to wait for more
        if self._unread is not None:
            self._left = self._unread()
            if self._left > transport.read_size:  # type: ignore[attr-defined]
                self._left += MAX_LAST_BYTES
                self._more = True

    def start(self) -> None:
        """Begin, or go on after `cancel`."""
        first = self._wait_for_read if self._unread is None else self._read
        self._call = self._clock.callLater(0, first)

    def cancel(self) -> None:
        """Stop; nothing is called."""
        cancel(self._call)

    def _wait_for_read(self) -> None:
        # Another's transport does not know; between these two calls the reactor reads it, once.
        self._call = self._clock.callLater(0, self._read)

    def _read(self) -> None:
        if self._unread is None or self._left <= 0:
            self._drained()
        elif self._unread():
            # One read at a time, so that others have their turn. It brings a full read, or else
            # everything. It may also pause this connection, which cancels the next call.
            self._left -= self._transport.read_size  # type: ignore[attr-defined]
            self._call = self._clock.callLater(0, self._read)
            self._transport.doRead()  # type: ignore[attr-defined]
        elif self._more:  # meanwhile the reactor reads what comes
            self._more = False
            self._call = self._clock.callLater(LAST_BYTES_DELAY, self._read)
        else:
            self._drained()


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
