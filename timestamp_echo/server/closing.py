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

from timestamp_echo.framing import FULL_READ
from timestamp_echo.server.log import ConnectionLog

LINGER_TIMEOUT = 1.0
"""Seconds that a peer has to close its side after this side closed its own, all replies sent."""


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
        cancel(self._linger)

    def _discard(self, data: bytes) -> None:
        """Drop what comes after the close."""


def cancel(call: IDelayedCall | None) -> None:
    """Cancel a timer, if there is one and it has not fired."""
    if call is not None and call.active():
        call.cancel()


class Drain:
    """Waits until everything that has arrived is read.

    That is so when the reactor has read its sockets once more, and has found less than a full
    read in this one.

    @param clock: the reactor's.
    @param received: returns how many bytes were read so far.
    @param drained: is called then.
    """

    def __init__(
        self, clock: IReactorTime, received: Callable[[], int], drained: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._received = received
        self._drained = drained
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin, or begin again."""
        # A reactor reads between one timer and the next that is due at once: only a call that
        # was made by a timer is sure to come after a whole round of reads.
        self._call = self._clock.callLater(0, self._begin_round)

    def cancel(self) -> None:
        """Stop waiting; nothing is called."""
        cancel(self._call)

    def _begin_round(self) -> None:
        self._call = self._clock.callLater(0, self._end_round, self._received())

    def _end_round(self, before: int) -> None:
        if self._received() - before < FULL_READ:
            self._drained()
        else:
            self._begin_round()


def refusal(why: str) -> bytes:
    """The line that a refused client gets."""
    return f"tsecho: {why}\n".encode()


class Refusal(LingeringClose):
    """A connection that is refused with one line.

    @param why: the reason, as the client and the log get it.
    """

    def __init__(self, why: str) -> None:
        self.why = why

    def connectionMade(self) -> None:
        """Send the reason, and close."""
        self.factory.log.refused(self.transport.getPeer, self.why)
        self.transport.write(refusal(self.why))
        self.close()
