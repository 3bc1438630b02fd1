"""Tests for `timestamp_echo.datagram`."""

from typing import Any

from twisted.internet.error import MessageLengthError
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import logged
from timestamp_echo.datagram import TimestampDatagram
from timestamp_echo.stamps import SECOND, Stamp

PEER = ("192.0.2.1", 5000)


class Port:
    """As much of a UDP port as is asked for."""

    arrival = 0

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self._error = error

    def write(self, datagram: bytes, addr: Any) -> None:
        """Send, or fail to."""
        if self._error is not None:
            raise self._error
        self.sent.append((datagram, addr))


class TimestampDatagramTests(SynchronousTestCase):
    """`TimestampDatagram`."""

    def echo(self, port: Port, style: str = "ctime") -> TimestampDatagram:
        """The protocol on this port, at the epoch's first second."""
        echo = TimestampDatagram(Stamp(style, utc=True), lambda: SECOND)
        echo.transport = port
        return echo

    def test_reply(self) -> None:
        """A datagram is a message, newlines and all, and goes back to where it came from."""
        port = Port()
        self.echo(port).datagramReceived(b"a\nb\xff\0", PEER)
        self.assertEqual(port.sent, [(b"[Thu Jan  1 00:00:01 1970] a\nb\xff\0", PEER)])

    def test_empty(self) -> None:
        """So is an empty one."""
        port = Port()
        self.echo(port).datagramReceived(b"", PEER)
        self.assertEqual(port.sent, [(b"[Thu Jan  1 00:00:01 1970] ", PEER)])

    def test_kernel_time(self) -> None:
        """The stamp is the port's arrival time, where it knows one."""
        port = Port()
        port.arrival = 5 * SECOND + 1
        self.echo(port, "unix").datagramReceived(b"a", PEER)
        self.assertEqual(port.sent, [(b"[5.000000001] a", PEER)])

    def test_could_not_be_sent(self) -> None:
        """What the sending raises is counted, and never a traceback."""
        for error in (MessageLengthError("too long"), OSError(22, "Invalid argument")):
            echo = self.echo(Port(error))
            echo.datagramReceived(b"a", PEER)
            self.assertEqual((echo.answered, echo.unanswered), (0, 1))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_counted(self) -> None:
        """When the port is closed the log says what became of the datagrams."""
        events = logged(self)
        echo = self.echo(Port())
        echo.datagramReceived(b"a", PEER)
        echo.stopProtocol()
        self.assertEqual(formatEvent(events[-1]), "datagrams: 1 answered, 0 could not be")
