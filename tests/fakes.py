"""Fakes that several tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    INegotiated,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer


@implementer(ITCPTransport)
class TCPTransport(StringTransport):
    """A TCP connection in memory that records the calls that set or close something."""

    aborted = False
    half_closed = False
    no_delay = False
    keep_alive = False

    def abortConnection(self) -> None:
        """See `ITCPTransport`."""
        self.aborted = self.disconnecting = True

    def loseWriteConnection(self) -> None:
        """See `ITCPTransport`."""
        self.half_closed = True

    def getTcpNoDelay(self) -> bool:
        """See `ITCPTransport`."""
        return self.no_delay

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See `ITCPTransport`."""
        self.no_delay = enabled

    def getTcpKeepAlive(self) -> bool:
        """See `ITCPTransport`."""
        return self.keep_alive

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See `ITCPTransport`."""
        self.keep_alive = enabled


@implementer(INegotiated)
class TLSTransport(TCPTransport):
    """A TLS connection in memory, without any encryption."""

    negotiatedProtocol = None

    def getPeerCertificate(self) -> None:
        """See `ISSLTransport`."""


class Listener:
    """A `SessionListener` that records its calls."""

    def __init__(self) -> None:
        self.replies = b""
        self.answers = 0
        self.ends: list[str] = []
        self.ended: Deferred[str] = Deferred()

    def replied(self, data: bytes) -> None:
        """See `SessionListener`."""
        self.replies += data

    def answered(self) -> None:
        """See `SessionListener`."""
        self.answers += 1

    def over(self, why: str) -> None:
        """See `SessionListener`."""
        self.ends.append(why)
        self.ended.callback(why)


@implementer(IPushProducer)
class Producer:
    """A producer that records whether it is paused."""

    paused = False

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.paused = False

    def stopProducing(self) -> None:
        """See `IPushProducer`."""


class IterationClock(Clock):
    """A clock with a reactor's iterations: a call scheduled for now waits for the next one."""

    def advance(self, amount: float) -> None:
        """Make the calls that are due at the beginning of the iteration."""
        self.rightNow += amount
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


def logged(case: SynchronousTestCase) -> list[LogEvent]:
    """Record what is logged until the end of the test.

    @return: the events so far, a list that grows.
    """
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    case.addCleanup(globalLogPublisher.removeObserver, observer)
    return events


@implementer(IHalfCloseableProtocol)
class Recorder(Protocol):
    """Records what it receives and how it ends, and calls `act` at each read."""

    transport: Any

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.ends: list[object] = []
        self.act: Callable[[], object] = bool

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.reads.append(data)
        self.act()

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        self.ends.append("half")

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.ends.append(reason.type)


class FakePort:
    """A listening port that counts the ends of its connections."""

    closed = 0

    def connection_closed(self) -> None:
        """See `StreamPort`."""
        self.closed += 1


class FakeSession:
    """A session that records its calls."""

    missing = sent = 0
    refused = False

    def __init__(self) -> None:
        self.calls: list[object] = []

    def write(self, data: bytes) -> None:
        """See `Session`."""
        self.calls.append(data)

    def finish(self) -> None:
        """See `Session`."""
        self.calls.append("finish")

    def abort(self) -> None:
        """See `Session`."""
        self.calls.append("abort")

    def register_producer(self, producer: object) -> None:
        """See `Session`."""
        self.producer = producer

    def pauseProducing(self) -> None:
        """See `Session`."""

    def resumeProducing(self) -> None:
        """See `Session`."""

    def stopProducing(self) -> None:
        """See `Session`."""
