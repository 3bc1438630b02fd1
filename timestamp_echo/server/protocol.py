"""One stream connection: what comes in goes back behind the moment of its arrival.

Knows a framing, a stamp and a transport; not which kind of socket is below, nor who may
connect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    INegotiated,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.framing import FULL_READ, SHORT_READ, AutoFraming, Framing
from timestamp_echo.server.closing import Parting, Refusal, refusal
from timestamp_echo.server.connections import Limited, Limits
from timestamp_echo.server.log import Journal, escaped
from timestamp_echo.stamps import Stamp
from timestamp_echo.transports.proxy import IPeerListener, IProxied

# FULL_READ is at most what one read can bring, whichever transport it comes through: a TLS record
# has up to 16 KiB (RFC 8446, section 5.1), a batched connection reads 32 KiB (`epoll.READ`), of
# which the header of the PROXY protocol may be gone, and Twisted's own connections read 64 KiB.

PREFACE = 10.0
"""Seconds that a TLS handshake, and the header of the PROXY protocol, may take."""

CLOSED = "closed by the peer"
"""Why a connection ended, if nothing else comes of it."""

PAUSE = 0.1
"""Seconds without a byte that end a message in `auto`: longer than a segment that follows
on a path across the world takes to come, shorter than a person notices."""


@implementer(IHandshakeListener, IPeerListener, IPushProducer)
class TimestampEcho(Parting, Limited):
    """The server's side of one connection.

    A peer may stop sending before it stops reading (`shutdown(SHUT_WR)`): what is pending
    is then answered, all replies are delivered, and only then is the connection closed.
    Without `IHalfCloseableProtocol` Twisted drops what it has not written yet when the
    peer's FIN arrives.
    """

    factory: TimestampEchoFactory

    _pause: IDelayedCall | None = None
    _quiet = False
    _held = False
    _rest: Sequence[tuple[bytes, bytes]] = ()
    _closed = False
    _draining = False
    _look: IDelayedCall | None = None
    _preface: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin: a framing of its own, and no reading while replies pile up."""
        factory = self.factory
        self._framing: Framing = factory.framing()
        self._into = self._out = 0
        self._held = False
        if ITCPTransport.providedBy(self.transport):
            # A reply is whole when it is written: nothing is gained by waiting for more.
            self.transport.setTcpNoDelay(True)
        # What is read is what is written: with too many replies unsent, it is not read.
        self.transport.registerProducer(self, True)
        if IProxied.providedBy(self.transport):
            factory.limits.enter(self, _nobody)
            self._await_preface("PROXY header")
            return
        self._await_handshake()
        factory.limits.enter(self, self.transport.getPeer)
        factory.journal.opened(self.transport.getPeer)

    def _await_preface(self, what: str) -> None:
        self._preface = self.factory.clock.callLater(PREFACE, self._late, what)

    def _await_handshake(self) -> None:
        if INegotiated.providedBy(self.transport):
            self._await_preface("TLS handshake")

    def handshakeCompleted(self) -> None:
        """TLS is set up."""
        self._cancel(self._preface)

    def peerUnknown(self) -> None:
        """What came is no header of the PROXY protocol."""
        self.why = "no PROXY header came first"

    def peerNamed(self) -> None:
        """The header of the PROXY protocol has come: let its peer in, or not."""
        self._cancel(self._preface)
        self._await_handshake()
        peer = self.transport.getPeer
        why = self.factory.limits.named(self, peer())
        if why:
            self.factory.journal.refused(peer, why)
            self._last_words(why)
            self.transport.write(refusal(why))
            self.part()
        else:
            self.factory.journal.opened(peer)

    def _late(self, what: str) -> None:
        self.why = self.why or f"no {what} within {PREFACE:g} s"
        self.abort()

    @property
    def messages(self) -> int:
        """How many messages have been answered."""
        return self._framing.messages

    def dataReceived(self, data: bytes) -> None:
        """Answer what one read brought."""
        factory = self.factory
        prefix = factory.prefix(self._arrival() if factory.subsecond else factory.now())
        size = len(data)
        self._into += size
        if self._held or (  # TLS hands on what it had read, held or not
            size > SHORT_READ and self._framing.portion(data, prefix) < size
        ):
            self._rest = [*self._rest, (data, prefix)]
            self._catch_up()
        else:
            self._answer(data, prefix)

    def _catch_up(self) -> None:
        """Answer what was read, until too many replies are unsent."""
        while self._rest and not self._held:
            (data, prefix), *self._rest = self._rest
            size = self._framing.portion(data, prefix)
            if size < len(data):
                self._rest = [(data[size:], prefix), *self._rest]
                data = data[:size]
            self._answer(data, prefix)

    def _answer(self, data: bytes, prefix: bytes) -> None:
        framing = self._framing
        reply = framing.received(data, prefix)
        if framing.waiting and framing.ends_at_pause:
            self._await_pause()  # before the write, which may be one too many: pauseProducing
        if reply:
            self._out += len(reply)
            self.transport.write(reply)

    def pauseProducing(self) -> None:
        """Too many replies are unsent: do not read. Then a pause is not the sender's."""
        self._held = True
        self.transport.pauseProducing()
        self._cancel_pause()
        self._cancel(self._look)

    def resumeProducing(self) -> None:
        """There is room again: answer the rest of what was read, then read on."""
        self._held = False
        self._catch_up()
        if self._held:
            return
        if self._closed:
            self.readConnectionLost()
            return
        self.transport.resumeProducing()
        if self._framing.waiting and self._framing.ends_at_pause:
            self._await_pause()
        if self._draining:
            self.drain()

    def stopProducing(self) -> None:
        """Nothing to do: the connection is lost, as `connectionLost` will say."""

    def readConnectionLost(self) -> None:
        """The peer closed its side: answer what is pending, deliver all, then close."""
        if self._held and self._rest:  # through TLS: the rest of its last read
            self._closed = True
            return
        if not self.why:
            self._last_words(CLOSED)
        self.transport.loseConnection()

    def end(self, why: str) -> None:
        """Answer what is pending, deliver all, then close in order.

        A peer that does not take its replies would not take the last ones either: abort.

        @param why: in words, for the log.
        """
        if self.why:
            return
        if self._held:
            self.why = why
            self.abort()
        else:
            self._last_words(why)
            self.part()

    def drain(self) -> None:
        """Answer all that has arrived by now, then end.

        All has been read when the reactor has once looked at its sockets and did not fill its
        buffer from this one. Where too many replies are unsent it is not read, until they are.
        """
        self._draining = True
        if not self._held:
            self._look = self.factory.clock.callLater(0, self._drain_turn)

    def _drain_turn(self) -> None:
        # From a timer on, for only then does the reactor look before it calls the next.
        self._look = self.factory.clock.callLater(0, self._drained, self._into)

    def _drained(self, before: int) -> None:
        if self._into - before < FULL_READ:
            self.end("the service stops")
        else:
            self._drain_turn()

    def _last_words(self, why: str) -> None:
        self.why = why
        self._cancel_pause()
        # A producer that is left registered would be resumed instead of closed.
        self.transport.unregisterProducer()
        self._held = False
        self._catch_up()
        self._end_message()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        super().connectionLost(reason)
        self._cancel_pause()
        self._cancel(self._look)
        self._cancel(self._preface)
        self.factory.limits.leave(self)
        if isinstance(reason.value, ConnectionDone):
            self.why = self.why or "closed by the server"
        elif self.why in {"", CLOSED}:  # another reason is this side's own, and the first
            self.why = escaped(reason.getErrorMessage())
        self.factory.journal.ended(
            self.transport.getPeer,
            self.why,
            seconds=self.factory.clock.seconds() - self.since,
            messages=self._framing.messages,
            into=self._into,
            out=self._out,
        )

    def _await_pause(self) -> None:
        # One timer is moved on, at no cost to the reactor's heap; a message that ends
        # meanwhile leaves it to run out.
        self._quiet = False
        if self._pause is None:
            self._pause = self.factory.clock.callLater(PAUSE, self._paused)
        else:
            self._pause.reset(PAUSE)

    def _paused(self) -> None:
        self._pause = None
        if self._quiet:
            self._end_message()
        else:
            # The server may be late, and a reactor's timers come before its reads: what has
            # arrived by now is read first.
            self._quiet = True
            self._pause = self.factory.clock.callLater(0, self._paused)

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _end_message(self) -> None:
        reply = self._framing.ended()
        if reply:
            self._out += len(reply)
            self.transport.write(reply)

    def _arrival(self) -> int:
        """When the kernel got the bytes of this read, if the transport says; or now."""
        arrival: int = getattr(self.transport, "arrival", 0)
        return arrival or self.factory.now()


def _nobody() -> None:
    """The peer of a connection, before the PROXY protocol has named it."""


class TimestampEchoFactory(Factory[TimestampEcho]):
    """Builds the connections of a timestamp echo service.

    It is an ordinary Twisted factory, for any endpoint of one's own service::

        endpoint.listen(TimestampEchoFactory())

    @param stamp: the writer of stamps; `ctime` in the local zone if none is given.
    @param framing: makes the framing of a connection.
    @param clock: for pauses and durations; the global reactor if none is given.
    @param now: the wall clock, in nanoseconds since the epoch.
    @param limits: who may connect; without them, anybody may, and may stay idle for an hour.
    """

    protocol = TimestampEcho
    noisy = False  # the service says what it listens on

    def __init__(
        self,
        stamp: Stamp | None = None,
        framing: Callable[[], Framing] = AutoFraming,
        clock: IReactorTime | None = None,
        now: Callable[[], int] = time.time_ns,
        limits: Limits | None = None,
    ) -> None:
        if clock is None:
            from twisted.internet import reactor

            clock = cast(IReactorTime, reactor)
        self.stamp = stamp or Stamp()
        self.prefix, self.subsecond = self.stamp.prefix, self.stamp.subsecond
        self.framing = framing
        self.clock = clock
        self.now = now
        self.journal = Journal(clock)
        self.limits = Limits(clock) if limits is None else limits

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:  # type: ignore[override]  # a Refusal is none of its own
        """See `IProtocolFactory.buildProtocol`."""
        why = self.limits.refusal(addr)
        if not why:
            return super().buildProtocol(addr)
        refusal = Refusal(why)
        refusal.factory = self
        return refusal
