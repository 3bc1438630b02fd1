"""How a connection is ended by this side, so that nothing that was written is lost.

Knows a transport and a clock; no message, and not why a connection ends.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, INegotiated
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

FAREWELL = 1.0
"""Seconds that a peer has to close its side after this one, with all delivered, closed its."""


@implementer(IHalfCloseableProtocol)
class Parting(Protocol):
    """A connection that this side can end without losing what it wrote.

    Where a peer's bytes are still unread a close would be a reset, and may overtake or discard
    the last replies. So only this side closes at first, what comes is thrown away, and the
    whole is closed when the peer has closed as well, or after a while.
    """

    factory: Any  # with a clock and a journal
    transport: Any  # ITransport and IConsumer; the rest is asked for before it is used

    why = ""
    """How it ends, in words, for the log; the transport's own if there are none."""

    _farewell: IDelayedCall | None = None

    def part(self) -> None:
        """Close this side once all is delivered, then wait for the peer's."""
        self.dataReceived = self._ignore  # type: ignore[method-assign]  # else each read would ask
        if INegotiated.providedBy(self.transport):
            # TLS goes on reading until the peer's close_notify, which may never come; the
            # transport below delivers what is unsent, and waits for nothing.
            secured: Any = self.transport
            secured.loseConnection()
            below = secured.transport
            self._farewell = self.factory.clock.callLater(FAREWELL, below.loseConnection)
        else:
            self.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """All is delivered, and this side is closed."""
        self._farewell = self.factory.clock.callLater(FAREWELL, self.transport.loseConnection)

    def readConnectionLost(self) -> None:
        """The peer closed as well."""
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        self._cancel(self._farewell)

    def _cancel(self, call: IDelayedCall | None) -> None:
        if call is not None and call.active():
            call.cancel()

    def _ignore(self, data: bytes) -> None:
        """Throw away what comes after the end."""


def refusal(why: str) -> bytes:
    """What a peer is told that is one too many."""
    return f"tsecho: {why}\n".encode()


class Refusal(Parting):
    """A connection that is one too many: it is told so in one line."""

    def __init__(self, why: str) -> None:
        self.why = why

    def connectionMade(self) -> None:
        """Say why, and part."""
        self.factory.journal.refused(self.transport.getPeer, self.why)
        self.transport.write(refusal(self.why))
        self.part()
