"""One stream connection: each message is sent back with its arrival time in front of it.

Knows a framing, a stamp and a transport; not which kind of socket that is, nor who may connect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

from twisted.internet.error import ConnectionClosed, ConnectionDone
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

from timestamp_echo.framing import MIN_PORTION, SHORT_REPLY, AutoFraming, Framing
from timestamp_echo.server.closing import (
    LAST_BYTES_DELAY,
    Drain,
    LingeringClose,
    Refusal,
    cancel,
    refusal,
)
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.counts import Counts
from timestamp_echo.server.log import ConnectionLog, describe, escape
from timestamp_echo.stamps import Stamp
from timestamp_echo.transports.proxy import IProxied, IProxyListener
from timestamp_echo.transports.stream import StreamTransport

# FULL_READ must not exceed what one read can bring through any transport: a TLS record has up to
# 16 KiB (RFC 8446, section 5.1), our own connections read 32 KiB (`stream.READ_SIZE`), perhaps less
# a PROXY header, and Twisted's connections read 64 KiB.

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a TLS handshake, and the header of the PROXY protocol, may take."""

CLOSED_BY_PEER = "closed by the peer"
"""Why a connection ended, unless an error follows."""

FIRST_MESSAGE = 1.0
"""Seconds that a connection has for its first bytes when the service stops, from when it was made:
they may still be on their way, after a TLS handshake or from a busy host."""

MESSAGE_GAP = 0.1
"""Seconds of silence that end a message in `auto`: longer than the next segment takes to follow
on a path around the world, shorter than a person notices."""


class MessageGap:
    """The silence that ends a message in `auto` framing.

    @param clock: counts the seconds.
    @param ended: is called when nothing was read for `MESSAGE_GAP`.
    """

    def __init__(self, clock: IReactorTime, ended: Callable[[], None]) -> None:
        self._clock = clock
        self._ended = ended
        self._call: IDelayedCall | None = None
        self._expired = False

    def restart(self) -> None:
        """Something was read: count from now on."""
        self._expired = False
        if self._call is None:
            self._call = self._clock.callLater(MESSAGE_GAP, self._expire)
        else:
            self._call.reset(MESSAGE_GAP)  # cheaper than to cancel it and make another

    def cancel(self) -> None:
        """Do not call back."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _expire(self) -> None:
        self._call = None
        if self._expired:
            self._ended()
        else:
            # This process itself may be late, and a reactor runs its timers before it reads. So let
            # it read what has arrived: if there is anything, `restart` is called; if not, this is
            # called once more.
            self._expired = True
            self._call = self._clock.callLater(0, self._expire)


@implementer(IHandshakeListener, IProxyListener, IPushProducer)
class TimestampEcho(LingeringClose):
    """The server's side of one connection.

    A peer may stop sending before it stops reading (`shutdown(SHUT_WR)`): what is pending is
    then answered, all replies are sent, and only then is the connection closed. Without
    `IHalfCloseableProtocol`, which `LingeringClose` implements, Twisted drops what is unsent when
    the peer's FIN arrives.

    It is its transport's producer: while more than `--max-unsent` bytes of replies are unsent,
    the transport pauses it, and it reads no further.
    """

    factory: TimestampEchoFactory

    peer_key = b""
    progress_seen = 0
    idle_checks = 0

    _received = 0  # bytes
    _sent = 0  # bytes of replies
    _paused = False  # too many replies are unsent, or others have their turn
    _unusual = True  # the next read needs special care: it is the first, or comes while paused
    _failed = False  # no valid PROXY header, no handshake, or refused: its end is logged
    _backlog: tuple[tuple[bytes, bytes], ...] = ()  # reads, with their prefixes, to be answered
    _eof = False  # the peer has closed its side, but there still is a backlog
    _gap: MessageGap | None = None
    _drain: Drain | None = None
    _handshake: IDelayedCall | None = None
    _turn: IDelayedCall | None = None  # to answer the rest of the backlog

    def connectionMade(self) -> None:
        """Set up its framing, and have it paused while too many replies are unsent."""
        factory, transport = self.factory, self.transport
        self._since = factory.clock.seconds()
        self._framing: Framing = factory.framing()
        self._paused = False
        transport.registerProducer(self, True)
        # Our own transport has none of these layers and inherits TCP_NODELAY, so this saves looking
        # up its interfaces for every connection.
        if not isinstance(transport, StreamTransport) and self._begin_layers():
            factory.connections.add(self, _unknown_peer)
        else:
            factory.connections.add(self, transport.getPeer)

    def _begin_layers(self) -> bool:
        """Set up a transport that may not be a socket's own.

        @return: whether the peer is unknown, because the PROXY header has not come yet.
        """
        if ITCPTransport.providedBy(self.transport):
            # A reply is written whole, so there is nothing to wait for (Nagle's algorithm).
            self.transport.setTcpNoDelay(True)
        if IProxied.providedBy(self.transport):
            self._limit_handshake("PROXY header")
            return True
        self._limit_tls_handshake()
        return False

    def _limit_handshake(self, what: str) -> None:
        self._handshake = self.factory.clock.callLater(HANDSHAKE_TIMEOUT, self._time_out, what)

    def _limit_tls_handshake(self) -> None:
        if INegotiated.providedBy(self.transport):
            self._limit_handshake("TLS handshake")

    def _time_out(self, what: str) -> None:
        self.why = self.why or f"no {what} within {HANDSHAKE_TIMEOUT:g} s"
        self._failed = True
        self.abort()

    def handshakeCompleted(self) -> None:
        """See `IHandshakeListener`: TLS is set up."""
        cancel(self._handshake)

    def proxy_header_invalid(self) -> None:
        """See `IProxyListener`."""
        self.why = "no valid PROXY header"
        self._failed = True

    def proxy_header_received(self) -> None:
        """See `IProxyListener`: the peer is known, so that its limit can be checked."""
        cancel(self._handshake)
        self._limit_tls_handshake()
        peer, log = self.transport.getPeer(), self.factory.log
        why = self.factory.connections.set_peer(self, peer)
        if why:
            self.factory.counts.count_refused(why)
            if log.may_write("refused"):
                log.refused(peer, why)
            self._failed = True
            self._finish(why)
            self.transport.write(refusal(why))
            self.close()

    @property
    def messages(self) -> int:
        """How many messages have been answered."""
        return self._framing.messages

    @property
    def progress(self) -> int:
        """See `Connection.progress`."""
        total = self.messages + self._sent
        # If everything had been received at the last check, and nothing was sent since, there is
        # nothing to ask the kernel: that would take ten times as long.
        unsent = getattr(self.transport, "unsent", None)  # our own transports have it
        return total if total == self.progress_seen or unsent is None else total - unsent()

    def dataReceived(self, data: bytes) -> None:
        """Answer what one read brought."""
        factory = self.factory
        prefix = factory.prefix(self._arrival() if factory.subsecond else factory.now())
        size = len(data)
        self._received += size
        # While paused nothing is read, but TLS still hands on what it had read before.
        if self._unusual or (
            size * len(prefix) > SHORT_REPLY and self._framing.portion(data, prefix) < size
        ):
            if self._received == size:
                self._log_opened()
            self._backlog += ((data, prefix),)
            self._answer_backlog()
        else:
            self._answer(data, prefix)

    def _log_opened(self) -> None:
        """Log the connection at its first bytes: without any, it may be a health check."""
        self._unusual = self._paused
        log = self.factory.log
        if log.may_write("opened"):
            log.opened(self.transport.getPeer())

    def _answer_backlog(self) -> None:
        """Answer a portion of what was read, and the next one when others have had their turn.

        Short reads, such as TLS's records, are combined into one portion.
        """
        end = self._sent + MIN_PORTION
        whole = True
        while self._backlog and whole and self._sent < end and not self._paused:
            (data, prefix), *rest = self._backlog
            size = self._framing.portion(data, prefix)
            whole = size == len(data)
            self._backlog = tuple(rest) if whole else ((data[size:], prefix), *rest)
            self._answer(data[:size], prefix)
        if self._backlog and not self._paused:
            self.pauseProducing()
            self._turn = self.factory.clock.callLater(0, self.resumeProducing)

    def _answer(self, data: bytes, prefix: bytes) -> None:
        framing = self._framing
        reply = framing.received(data, prefix)
        if framing.waiting and framing.ends_at_pause:
            self._restart_gap()  # before the write, which may pause this producer
        if reply:
            self._sent += len(reply)
            self.transport.write(reply)

    def pauseProducing(self) -> None:
        """Too many replies are unsent, or others have their turn: stop reading.

        From now on silence is due to this side, not to the sender, and so ends no message.
        """
        self._paused = self._unusual = True
        self.transport.pauseProducing()
        self._cancel_gap()
        if self._turn is not None:
            cancel(self._turn)
        if self._drain is not None:
            self._drain.cancel()

    def resumeProducing(self) -> None:
        """There is room again, or the turn has come: answer the backlog, then read on."""
        self._paused = False
        self._unusual = not self._received
        self._answer_backlog()
        if self._paused:
            return
        if self._eof:
            self.readConnectionLost()
            return
        self.transport.resumeProducing()
        if self._framing.waiting and self._framing.ends_at_pause:
            self._restart_gap()
        if self._drain is not None:
            self._drain.start()

    def stopProducing(self) -> None:
        """Nothing to do: the connection is lost, and `connectionLost` is called."""

    def readConnectionLost(self) -> None:
        """The peer closed its side: answer what is pending, send everything, then close."""
        if self._paused and self._backlog:  # the rest of the last read, through TLS
            self._eof = True
            return
        if self.why:
            self._end_pending()  # at a stop, what came after the last look
        else:
            self._finish(CLOSED_BY_PEER)
        self.transport.loseConnection()

    def end(self, why: str) -> None:
        """See `Connection.end`. A peer that does not read its replies is aborted instead."""
        if self.why:
            return
        if self._turn is not None and self._turn.active():
            self._drain_and_end(why)  # paused, but not by its peer
        elif self._paused:
            self.why = why
            self.abort()
        else:
            self._finish(why)
            self.close()

    def drain(self) -> None:
        """See `Connection.drain`. While the connection is paused, this waits: nothing is read."""
        self._drain_and_end("the service is stopping")

    def _drain_and_end(self, why: str) -> None:
        if self._drain is not None:
            return
        clock, wait = self.factory.clock, LAST_BYTES_DELAY
        if not self._received:
            wait = max(wait, self._since + FIRST_MESSAGE - clock.seconds())
        end = partial(self._end_drained, why)
        self._drain = Drain(clock, self.transport, self._is_incomplete, end, wait)
        self.dataReceived = self._received_at_stop  # type: ignore[method-assign]  # for this object
        if not self._paused:
            self._drain.start()

    def _end_drained(self, why: str) -> None:
        assert self._drain is not None
        if not self.why:
            self._finish(why)
        elif self.why == why:
            self._end_pending()
        else:
            return
        if not self._drain.resume():
            self.close()

    def _received_at_stop(self, data: bytes) -> None:
        assert self._drain is not None
        self._drain.receiving(data)
        type(self).dataReceived(self, data)
        self._drain.received()

    def _is_incomplete(self) -> bool:
        return self._framing.waiting

    def abort(self) -> None:
        """See `Connection.abort`."""
        if self._turn is not None:
            cancel(self._turn)
        self.transport.abortConnection()

    def _finish(self, why: str) -> None:
        """Answer the incomplete message, if there is one. There is no backlog."""
        self.why = why
        # Twisted closes only once there is no producer any more.
        self.transport.unregisterProducer()
        self._end_pending()

    def _end_pending(self) -> None:
        self._cancel_gap()
        self._end_message()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        super().connectionLost(reason)
        self._cancel_gap()
        if self._drain is not None:
            self._drain.cancel()
        if self._handshake is not None:
            cancel(self._handshake)
        if self._turn is not None:
            cancel(self._turn)
        # These refer back to this object. Without the cycle, a connection that the peer ends is
        # freed at once, with what is unsent, and not only when the garbage collector runs.
        self._gap = self._turn = None
        factory = self.factory
        silent = self._is_silent(reason.value)
        factory.counts.count_closed(self._reason(reason.value), silent=silent)
        add_counts((self,), factory.counts)
        try:
            if not silent and factory.log.may_write("ended"):
                factory.log.ended(
                    self.transport.getPeer(),
                    self._reason(reason.value),
                    seconds=factory.clock.seconds() - self._since,
                    messages=self._framing.messages,
                    received=self._received,
                    sent=self._sent,
                )
        finally:  # removing the last connection flushes the log
            factory.connections.remove(self)

    def _is_silent(self, error: BaseException | None) -> bool:
        """Whether nothing came, and nothing went wrong, as in a health check."""
        return not (self._received or self._failed) and isinstance(error, ConnectionClosed)

    def _reason(self, error: BaseException | None) -> str:
        """Why the connection ended: this side's own reason, or else the transport's."""
        if isinstance(error, ConnectionDone):
            return self.why or "closed by the server"
        if self.why in {"", CLOSED_BY_PEER}:
            return escape(describe(error))
        return self.why

    def _restart_gap(self) -> None:
        if self._gap is None:
            self._gap = MessageGap(self.factory.clock, self._end_message)
        self._gap.restart()

    def _cancel_gap(self) -> None:
        if self._gap is not None:
            self._gap.cancel()

    def _end_message(self) -> None:
        reply = self._framing.ended()
        if reply:
            self._sent += len(reply)
            self.transport.write(reply)

    def _arrival(self) -> int:
        """When the kernel received the bytes of this read, if the transport knows; or now."""
        arrival: int = getattr(self.transport, "arrival", 0)
        return arrival or self.factory.now()


def add_counts(connections: Iterable[TimestampEcho], counts: Counts) -> None:
    """Add the messages and bytes of connections so far.

    That takes half a microsecond for each, mostly waiting for memory: 100,000 connections block
    the service for 50 ms.
    """
    messages, received, sent = counts.messages, 0, 0
    for each in connections:
        messages[getattr(each.transport, "kind", "other")] += each._framing.messages
        received += each._received
        sent += each._sent
    counts.received += received
    counts.sent += sent


def _unknown_peer() -> None:
    """The peer of a connection whose PROXY header has not come yet."""


class TimestampEchoFactory(Factory[TimestampEcho]):
    """Builds the connections of a timestamp echo service.

    It is an ordinary Twisted factory, for any endpoint of your own service::

        endpoint.listen(TimestampEchoFactory())

    @param stamp: writes the stamps; `ctime` in the local zone by default.
    @param framing: makes the framing of a connection.
    @param clock: for pauses and durations; the global reactor by default.
    @param now: the wall clock, in nanoseconds since the epoch.
    @param connections: keeps the open connections within their limits; by default there may be
        any number of them, and each is closed after an hour of idling.
    """

    protocol = TimestampEcho
    noisy = False  # the service itself logs what it listens on

    def __init__(
        self,
        stamp: Stamp | None = None,
        framing: Callable[[], Framing] = AutoFraming,
        clock: IReactorTime | None = None,
        now: Callable[[], int] = time.time_ns,
        connections: Connections | None = None,
    ) -> None:
        if clock is None:
            from twisted.internet import reactor

            clock = cast(IReactorTime, reactor)
        self.stamp = stamp or Stamp()
        self.prefix, self.subsecond = self.stamp.prefix, self.stamp.subsecond
        self.framing = framing
        self.clock = clock
        self.now = now
        self.log = ConnectionLog(clock)
        self.counts = Counts()
        self.refusals = 0
        self.connections = Connections(clock) if connections is None else connections

    def startFactory(self) -> None:
        """See `Factory.startFactory`: a port begins to listen."""
        self.connections.start()

    def stopFactory(self) -> None:
        """See `Factory.stopFactory`: the last port is closed."""
        self.connections.stop()
        self.connections.all_closed().addCallback(lambda _: self.log.flush())

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:  # type: ignore[override]  # a Refusal is no TimestampEcho
        """See `IProtocolFactory.buildProtocol`."""
        why = self.connections.refusal(addr)
        if not why:
            return super().buildProtocol(addr)
        refusal = Refusal(why)
        refusal.factory = self
        return refusal

    def may_proxy(self, address: IAddress | None) -> bool:
        """Whether a PROXY header from this address is read; if not, the log has why."""
        why = self.connections.proxy_refusal(address)
        if why:
            self.counts.count_refused(why)
            if self.log.may_write("refused"):
                self.log.refused(address, why)
        return not why
