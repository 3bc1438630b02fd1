"""Tests for `timestamp_echo.client.datagram`."""

from __future__ import annotations

import socket
from typing import Any, cast
from unittest.mock import Mock, patch

from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes import Listener, Producer
from timestamp_echo.client import session
from timestamp_echo.client.address import DatagramServer, IClientReactor
from timestamp_echo.client.datagram import (
    MAX_LINES,
    REMEMBERED_LINES,
    REPLY_TIMEOUT,
    WINDOW,
    DatagramSession,
)
from timestamp_echo.framing import MAX_DATAGRAM
from timestamp_echo.server.datagram import UDP_RATE, TimestampDatagram
from timestamp_echo.stamps import Stamp
from timestamp_echo.transports.udp import DatagramPort

STAMP = b"[stamp] "


class FakePort:
    """A UDP port that keeps what is sent."""

    connected: tuple[str, int] | None = None

    def __init__(self) -> None:
        self.socket = Mock()
        self.sent: list[bytes] = []
        self.closed = 0
        self.error: Exception | None = None

    @property
    def listening(self) -> bool:
        """Whether it was not closed."""
        return not self.closed

    def connect(self, host: str, port: int) -> None:
        """See `IUDPTransport`."""
        self.connected = host, port

    def write(self, datagram: bytes) -> None:
        """See `IUDPTransport`."""
        if self.error is not None:
            raise self.error
        self.sent.append(datagram)

    def stopListening(self) -> None:
        """See `IUDPTransport`."""
        self.closed += 1


class FakeReactor(Clock):
    """A fake clock that also opens UDP ports."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[FakePort] = []
        self.interfaces: list[str] = []

    def listenUDP(
        self, port: int, protocol: DatagramSession, interface: str = "", maxPacketSize: int = 8192
    ) -> FakePort:
        """See `IReactorUDP`."""
        assert maxPacketSize > 65507, "a datagram would be cut"
        self.ports.append(FakePort())
        self.interfaces.append(interface)
        protocol.transport = self.ports[-1]
        return self.ports[-1]


class DatagramSessionTests(SynchronousTestCase):
    """`DatagramSession`, on a port in memory and a fake clock."""

    def setUp(self) -> None:
        """Create a connected session with a producer."""
        self.clock = Clock()
        self.listener = Listener()
        self.session = DatagramSession(self.listener, cast(IClientReactor, self.clock))
        self.port = FakePort()
        self.session.transport = self.port
        self.producer = Producer()
        self.session.register_producer(self.producer)

    def reply(self, message: bytes) -> None:
        """Receive a reply to this message."""
        self.session.datagramReceived(STAMP + message, ("192.0.2.1", 1))

    def test_session(self) -> None:
        """It has the type `Session`, which mypy checks."""
        typed: session.Session = self.session
        self.assertIs(typed, self.session)

    def test_one_at_a_time(self) -> None:
        """A line is sent when the one before is answered."""
        self.session.write(b"a\nb\nc")
        self.assertEqual(self.port.sent, [b"a\n"])
        self.assertTrue(self.producer.paused)
        self.reply(b"a\n")
        self.assertEqual(self.port.sent, [b"a\n", b"b\n"])
        self.reply(b"b\n")
        self.assertFalse(self.producer.paused)
        self.assertEqual(self.listener.answers, 0)
        self.session.write(b"d\n")
        self.reply(b"cd\n")
        self.assertEqual(self.listener.answers, 1)
        self.assertEqual((self.session.sent, self.session.missing), (3, 0))

    def test_paced(self) -> None:
        """No more lines are sent in a window of a second than a server answers by default."""
        self.assertLess(MAX_LINES / WINDOW, UDP_RATE / 1.01)
        self.session.write(b"a\n" * 3 * MAX_LINES)
        for number in range(1, 4):
            for _ in range(MAX_LINES):
                self.reply(b"a\n")
            self.assertEqual(len(self.port.sent), number * MAX_LINES)
            self.assertEqual(self.listener.answers, number // 3)
            self.session.resumeProducing()
            self.clock.advance(WINDOW - 0.001)
            self.assertEqual(len(self.port.sent), number * MAX_LINES)
            self.clock.advance(0.001)
        self.session.write(b"b\n")
        self.assertEqual(self.port.sent[-1], b"b\n")

    def test_ended_while_resting(self) -> None:
        """A session that ends before it may send the next line leaves no timer."""
        self.session.write(b"a\n" * (MAX_LINES + 1))
        for _ in range(MAX_LINES):
            self.reply(b"a\n")
        self.session.abort()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finish(self) -> None:
        """`finish` sends the last line without a newline; its reply ends the session."""
        self.session.write(b"a\nb")
        self.session.finish()
        self.reply(b"a\n")
        self.assertEqual(self.listener.ends, [])
        self.reply(b"b")
        self.assertEqual(self.listener.ends, [""])
        self.assertFalse(self.port.listening)
        self.assertTrue(self.producer.paused)  # no more is wanted
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finish_at_once(self) -> None:
        """`finish` without a line ends the session at once."""
        self.session.finish()
        self.assertEqual(self.listener.ends, [""])

    def test_lost_reply(self) -> None:
        """After the timeout the reply is missing, and the next line is sent."""
        self.session.write(b"a\nb\n")
        self.clock.advance(REPLY_TIMEOUT)
        self.assertEqual(self.port.sent, [b"a\n", b"b\n"])
        self.reply(b"a\n")  # too late
        self.assertEqual(self.listener.replies, b"")
        self.reply(b"b\n")
        self.session.finish()
        self.assertEqual(self.listener.ends, ["no reply came in time"])
        self.assertEqual((self.session.sent, self.session.missing), (2, 1))

    def test_twice(self) -> None:
        """A reply that comes twice is ignored, whether or not another line is in flight."""
        self.session.write(b"a\n")
        self.reply(b"a\n")
        self.reply(b"a\n")
        self.session.write(b"b\n")
        self.reply(b"a\n")
        self.session.datagramReceived(b"a\n", None)
        self.assertEqual((self.listener.replies, self.listener.ends), (STAMP + b"a\n", []))

    def test_no_reply(self) -> None:
        """What is no reply to any line ends the session, and so do two stamps."""
        for datagram in (b"x\n", b"[t] abc\n", b"[t] [t] \n", b"[t] ", b"[t\n] \n", b""):
            self.setUp()
            self.session.write(b"\n")
            self.session.datagramReceived(datagram, None)
            self.session.datagramReceived(b"\n", None)  # in the same read
            self.assertEqual(self.listener.replies, b"")
            self.assertIn(", which is not a reply", self.listener.ends[0])
            self.assertEqual((self.session.missing, len(self.listener.ends)), (1, 1))
            self.assertFalse(self.port.listening)

    def test_late_reply(self) -> None:
        """The late reply to another line is ignored, though it ends alike; ancient ones are not."""
        self.session.write(b"abc\n\n")
        self.clock.advance(REPLY_TIMEOUT)
        self.session.datagramReceived(b"[t] abc\n", None)
        self.assertEqual((self.listener.replies, self.listener.ends), (b"", []))
        self.session.datagramReceived(b"[t] \n", None)
        self.assertEqual(self.listener.replies, b"[t] \n")
        self.session._earlier.extend(range(REMEMBERED_LINES))
        self.session.datagramReceived(b"[t] abc\n", None)
        self.assertEqual(len(self.listener.ends), 1)

    def test_timeout(self) -> None:
        """A reply may be given more time."""
        tested = DatagramSession(self.listener, cast(IClientReactor, self.clock), 5)
        tested.transport = self.port
        tested.write(b"a\n")
        tested.finish()
        self.clock.advance(4.9)
        self.assertEqual(self.listener.ends, [])
        self.clock.advance(0.1)
        self.assertEqual(self.listener.ends, ["no reply came in time"])

    def test_plain_echo(self) -> None:
        """A reply may be without a stamp."""
        self.session.write(b"a\n")
        self.session.datagramReceived(b"a\n", None)
        self.assertEqual(self.listener.replies, b"a\n")

    def test_backpressure(self) -> None:
        """While standard output is paused, nothing is sent that would be replied to."""
        self.session.write(b"a\nb\n")
        self.session.pauseProducing()
        self.reply(b"a\n")
        self.assertEqual(self.port.sent, [b"a\n"])
        self.assertTrue(self.producer.paused)
        self.session.resumeProducing()
        self.assertEqual(self.port.sent, [b"a\n", b"b\n"])

    def test_endless_line(self) -> None:
        """A line longer than a datagram is refused before its end."""
        self.session.write(b"a\n" + b"x" * 70000)
        self.assertIn("does not fit into a datagram", self.listener.ends[0])
        self.assertEqual((self.session.sent, self.session.missing), (2, 2))

    def test_longest_partial_line(self) -> None:
        """A line as long as the buffer still waits for its newline."""
        self.session.write(b"x" * MAX_DATAGRAM)
        self.assertEqual((self.port.sent, self.listener.ends), ([], []))

    def test_too_long(self) -> None:
        """A line that cannot be sent ends the session; the reason has its length."""
        self.port.error = MessageLengthError("too long")
        self.session.write(b"x" * 70000 + b"\n")
        self.assertIn("a datagram of 70001 bytes could not be sent", self.listener.ends[0])
        self.assertEqual(self.session.missing, 1)

    def test_refused(self) -> None:
        """A port closed by a refusal ends the session; lines that wait are missing, too."""
        self.session.write(b"a\nb\nc\n")
        self.session.transport = None  # as DatagramProtocol.doStop leaves it
        self.session.stopProtocol()
        self.session.stopProtocol()
        self.assertTrue(self.session.refused)
        self.assertEqual(self.listener.ends, ["Connection refused"])
        self.assertEqual((self.session.sent, self.session.missing), (3, 3))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused_by_callback(self) -> None:
        """A refusal reported by `connectionRefused` closes the port."""
        self.session.write(b"a\n")
        self.session.connectionRefused()
        self.session.connectionRefused()
        self.assertEqual(self.port.closed, 1)

    def test_close_is_no_refusal(self) -> None:
        """A port that this side closed is not taken for a refusal."""
        self.session.finish()
        self.session.stopProtocol()
        self.assertFalse(self.session.refused)

    def test_abort(self) -> None:
        """`abort` ends the session at any time, once."""
        self.session.write(b"a\n")
        self.session.abort()
        self.session.abort()
        self.assertEqual(self.listener.ends, [""])
        self.assertFalse(self.port.listening)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_producer(self) -> None:
        """A session works without a producer."""
        tested = DatagramSession(self.listener, cast(IClientReactor, self.clock))
        tested.transport = self.port
        tested.write(b"a\n")
        tested.datagramReceived(b"[] a\n", None)
        self.assertEqual(self.listener.answers, 1)

    def test_stop_producing(self) -> None:
        """A lost standard output does not close the port; `Pipe` handles it."""
        self.session.stopProducing()
        self.assertTrue(self.port.listening)


class AddressTests(SynchronousTestCase):
    """`DatagramSession` with a host that has two addresses, on a fake reactor."""

    def setUp(self) -> None:
        """Open a port to the first address, and send a line."""
        self.reactor = FakeReactor()
        self.listener = Listener()
        self.session = DatagramSession(self.listener, cast(IClientReactor, self.reactor))
        self.session._open(
            [
                (socket.AF_INET6, socket.SOCK_DGRAM, 0, "", ("::1", 7, 0, 0)),
                (socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", 7)),
            ]
        )
        self.session.write(b"a\n")

    def refuse(self) -> None:
        """Refuse the datagram, as Twisted reports it."""
        self.session.connectionRefused()
        self.session.stopProtocol()

    def test_first(self) -> None:
        """The port is connected to the first address."""
        self.assertEqual(self.reactor.interfaces, ["::"])
        self.assertEqual(self.reactor.ports[0].connected, ("::1", 7))
        self.assertEqual(self.reactor.ports[0].sent, [b"a\n"])

    def test_zone(self) -> None:
        """To a link-local address the socket is connected with its zone as well, before."""
        address = ("fe80::1", 7, 0, 2)
        tested = DatagramSession(self.listener, cast(IClientReactor, self.reactor))
        with patch("timestamp_echo.client.datagram._has_route", return_value=True):
            tested._open([(socket.AF_INET6, socket.SOCK_DGRAM, 0, "", address)])
        port = self.reactor.ports[-1]
        port.socket.connect.assert_called_once_with(address)
        self.assertEqual(port.connected, ("fe80::1", 7))
        self.reactor.ports[0].socket.connect.assert_not_called()

    def test_second(self) -> None:
        """A first line that is refused is sent to the second address; both may refuse."""
        self.refuse()
        first, second = self.reactor.ports
        self.assertEqual(self.reactor.interfaces, ["::", "0.0.0.0"])
        self.assertEqual(second.connected, ("127.0.0.1", 7))
        self.assertEqual((second.sent, self.listener.ends), ([b"a\n"], []))
        self.refuse()
        self.assertEqual((first.closed, second.closed), (1, 1))
        self.assertEqual(self.listener.ends, ["Connection refused"])

    def test_after_reply(self) -> None:
        """After a reply, a refusal is the end: the right address is known."""
        self.session.datagramReceived(b"[] a\n", None)
        self.session.write(b"b\n")
        self.refuse()
        self.assertEqual(self.listener.ends, ["Connection refused"])
        self.assertEqual(len(self.reactor.ports), 1)

    def test_nothing_in_flight(self) -> None:
        """A refusal after the line was given up has nothing to send again."""
        self.reactor.advance(REPLY_TIMEOUT)
        self.refuse()
        self.assertEqual(self.listener.ends, ["Connection refused"])
        self.assertEqual(len(self.reactor.ports), 1)


class RealDatagramTests(TestCase):
    """`DatagramSession` on real sockets."""

    async def exchange(self, host: str, interface: str) -> None:
        """Send a line to a server at this address, and check its reply."""
        from twisted.internet import reactor

        real: Any = reactor
        port = DatagramPort(0, TimestampDatagram(Stamp(), real), interface, MAX_DATAGRAM, real)
        port.listen(timed=False)
        self.addCleanup(port.stopListening)
        listener = Listener()
        server = DatagramServer("name", host, port.getHost().port)
        tested = await DatagramSession(listener, real).connect(server)
        tested.write(b"hello\n")
        tested.finish()
        self.assertEqual(await listener.ended, "")
        self.assertTrue(listener.replies.endswith(b"] hello\n"))

    async def test_ipv4(self) -> None:
        """Over IPv4."""
        await self.exchange("127.0.0.1", "127.0.0.1")

    async def test_ipv6(self) -> None:
        """Over IPv6."""
        await self.exchange("::1", "::1")

    async def test_second_address(self) -> None:
        """A line refused at the name's first address is sent to the next."""
        from twisted.internet import reactor

        real: Any = reactor
        port = DatagramPort(0, TimestampDatagram(Stamp(), real), "127.0.0.1", 8192, real)
        port.listen(timed=False)
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        listener = Listener()
        tested = DatagramSession(listener, real)
        tested._open(
            [
                (socket.AF_INET6, socket.SOCK_DGRAM, 0, "", ("::1", number, 0, 0)),
                (socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", number)),
            ]
        )
        tested.write(b"hello\n")
        tested.finish()
        self.assertEqual(await listener.ended, "")
        self.assertEqual((tested.sent, tested.missing), (1, 0))

    def test_no_route(self) -> None:
        """An address without a route is skipped; without any, `connect` fails."""
        unreachable = (socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("255.255.255.255", 9))
        tested = DatagramSession(Listener(), cast(IClientReactor, None))
        error = self.assertRaises(OSError, tested._open, [unreachable])
        self.assertEqual(error.strerror, "Network is unreachable")

    async def test_refused(self) -> None:
        """ECONNREFUSED on a real socket ends the session as refused, with epoll, too."""
        from twisted.internet import reactor

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            number = taken.getsockname()[1]
        listener = Listener()
        server = DatagramServer("name", "127.0.0.1", number)
        tested = await DatagramSession(listener, cast(IClientReactor, reactor)).connect(server)
        tested.write(b"hello\n")
        self.assertEqual(await listener.ended, "Connection refused")
        self.assertTrue(tested.refused)
