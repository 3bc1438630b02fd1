"""What stands in for the real thing in several tests."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import INegotiated, IPushProducer, ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer


@implementer(ITCPTransport)
class TCPTransport(StringTransport):
    """A TCP connection that is a string; it remembers what it was set to."""

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


class SecuredTransport(TCPTransport):
    """A TLS connection, over a TCP one."""

    def __init__(self) -> None:
        super().__init__()
        directlyProvides(self, INegotiated)
        self.transport = TCPTransport()


class Listener:
    """A `User` that remembers what it was told."""

    def __init__(self) -> None:
        self.replies = b""
        self.answers = 0
        self.ends: list[str] = []
        self.ended: Deferred[str] = Deferred()

    def replied(self, data: bytes) -> None:
        """See `User`."""
        self.replies += data

    def answered(self) -> None:
        """See `User`."""
        self.answers += 1

    def over(self, why: str) -> None:
        """See `User`."""
        self.ends.append(why)
        self.ended.callback(why)


@implementer(IPushProducer)
class Producer:
    """A producer that remembers whether it is paused."""

    paused = False

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.paused = False

    def stopProducing(self) -> None:
        """See `IPushProducer`."""


class Turns(Clock):
    """A clock that goes in turns: as in a reactor, a call made for now waits for the next."""

    def advance(self, amount: float) -> None:
        """Call what is due when the turn begins."""
        self.rightNow += amount
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


def logged(case: SynchronousTestCase) -> list[LogEvent]:
    """What is logged from now on, until the test is over."""
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    case.addCleanup(globalLogPublisher.removeObserver, observer)
    return events
