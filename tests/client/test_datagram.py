"""Tests for `timestamp_echo.client.datagram`."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes import Listener, Producer
from timestamp_echo.client import session
from timestamp_echo.client.address import DatagramServer
from timestamp_echo.client.datagram import REPLY_TIMEOUT, DatagramSession
from timestamp_echo.server.datagram import TimestampDatagram
from timestamp_echo.stamps import Stamp

STAMP = b"[stamp] "


class FakePort:
    """A UDP port, connected to nowhere."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.listening = True
        self.error: Exception | None = None

    def write(self, datagram: bytes) -> None:
        """See `IUDPTransport`."""
        if self.error is not None:
            raise self.error
        self.sent.append(datagram)

    def stopListening(self) -> None:
        """See `IUDPTransport`."""
        self.listening = False


class DatagramSessionTests(SynchronousTestCase):
    """`DatagramSession`, on a port in memory and a clock."""

    def setUp(self) -> None:
        """A session that is connected, and fed by a producer."""
        self.clock = Clock()
        self.user = Listener()
        self.session = DatagramSession(self.user, self.clock)
        self.port = FakePort()
        self.session.transport = self.port
        self.producer = Producer()
        self.session.feed_from(self.producer)

    def reply(self, message: bytes) -> None:
        """The server answers this."""
        self.session.datagramReceived(STAMP + message, ("192.0.2.1", 1))

    def test_session(self) -> None:
        """It is a session, as mypy sees."""
        typed: session.Session = self.session
        self.assertIs(typed, self.session)

    def test_one_at_a_time(self) -> None:
        """Each line is a datagram that waits for the reply to the one before."""
        self.session.write(b"a\nb\nc")
        self.assertEqual(self.port.sent, [b"a\n"])
        self.assertTrue(self.producer.paused)
        self.reply(b"a\n")
        self.assertEqual(self.port.sent, [b"a\n", b"b\n"])
        self.reply(b"b\n")
        self.assertFalse(self.producer.paused)
        self.assertEqual(self.user.answers, 0)
        self.session.write(b"d\n")
        self.reply(b"cd\n")
        self.assertEqual(self.user.answers, 1)
        self.assertEqual((self.session.sent, self.session.missing), (3, 0))

    def test_finish(self) -> None:
        """The line without a newline is sent at the end, which its reply is."""
        self.session.write(b"a\nb")
        self.session.finish()
        self.reply(b"a\n")
        self.assertEqual(self.user.ends, [])
        self.reply(b"b")
        self.assertEqual(self.user.ends, [""])
        self.assertFalse(self.port.listening)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finish_at_once(self) -> None:
        """Nothing sent, nothing to wait for."""
        self.session.finish()
        self.assertEqual(self.user.ends, [""])

    def test_lost_reply(self) -> None:
        """A reply that does not come is missing, and the next line is sent."""
        self.session.write(b"a\nb\n")
        self.clock.advance(REPLY_TIMEOUT)
        self.assertEqual(self.port.sent, [b"a\n", b"b\n"])
        self.reply(b"a\n")  # too late
        self.assertEqual(self.user.replies, b"")
        self.reply(b"b\n")
        self.session.finish()
        self.assertEqual(self.user.ends, ["no reply came in time"])
        self.assertEqual((self.session.sent, self.session.missing), (2, 1))

    def test_unasked(self) -> None:
        """A datagram that answers nothing is not taken for a reply."""
        self.reply(b"a\n")
        self.assertEqual(self.user.replies, b"")

    def test_another_s_reply(self) -> None:
        """Nor is the late reply to another line, though it ends alike; nor one of two stamps."""
        self.session.write(b"\n")
        for reply in (b"[t] abc\n", b"[t] [t] \n", b"x\n", b"[t] "):
            self.session.datagramReceived(reply, None)
        self.assertEqual(self.user.replies, b"")
        self.session.datagramReceived(b"[t] \n", None)
        self.assertEqual(self.user.replies, b"[t] \n")

    def test_plain_echo(self) -> None:
        """A reply may be without a stamp."""
        self.session.write(b"a\n")
        self.session.datagramReceived(b"a\n", None)
        self.assertEqual(self.user.replies, b"a\n")

    def test_pressure(self) -> None:
        """While standard output is full nothing is sent that would be replied to."""
        self.session.write(b"a\nb\n")
        self.session.pauseProducing()
        self.reply(b"a\n")
        self.assertEqual(self.port.sent, [b"a\n"])
        self.assertTrue(self.producer.paused)
        self.session.resumeProducing()
        self.assertEqual(self.port.sent, [b"a\n", b"b\n"])

    def test_endless_line(self) -> None:
        """A line that has become too long is not waited for to end."""
        self.session.write(b"a\n" + b"x" * 70000)
        self.assertIn("does not fit into a datagram", self.user.ends[0])
        self.assertEqual((self.session.sent, self.session.missing), (2, 2))

    def test_too_long(self) -> None:
        """A line that is no datagram ends it, in words that say how long it is."""
        self.port.error = MessageLengthError("too long")
        self.session.write(b"x" * 70000 + b"\n")
        self.assertIn("a datagram of 70001 bytes could not be sent", self.user.ends[0])
        self.assertEqual(self.session.missing, 1)

    def test_refused(self) -> None:
        """Where nobody listens, the port's end says so; what waits to be sent is missing too."""
        self.session.write(b"a\nb\nc\n")
        self.session.transport = None  # as DatagramProtocol.doStop leaves it
        self.session.stopProtocol()
        self.session.stopProtocol()
        self.assertTrue(self.session.refused)
        self.assertEqual(self.user.ends, ["Connection refused"])
        self.assertEqual((self.session.sent, self.session.missing), (3, 3))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused_as_it_should(self) -> None:
        """A reactor that tells of the refusal itself has yet to close the port."""
        self.session.write(b"a\n")
        self.session.connectionRefused()
        self.assertFalse(self.port.listening)

    def test_end_is_no_refusal(self) -> None:
        """The end of the port that this side closed is not taken for a refusal."""
        self.session.finish()
        self.session.stopProtocol()
        self.assertFalse(self.session.refused)

    def test_abort(self) -> None:
        """It can be ended at any time, and once."""
        self.session.write(b"a\n")
        self.session.abort()
        self.session.abort()
        self.assertEqual(self.user.ends, [""])
        self.assertFalse(self.port.listening)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_producer(self) -> None:
        """It can do without a producer."""
        talk = DatagramSession(self.user, self.clock)
        talk.transport = self.port
        talk.write(b"a\n")
        talk.datagramReceived(b"[] a\n", None)
        self.assertEqual(self.user.answers, 1)

    def test_stop_producing(self) -> None:
        """A standard output that is lost is said by its own protocol."""
        self.session.stopProducing()
        self.assertTrue(self.port.listening)


class RealDatagramTests(TestCase):
    """`DatagramSession` on real sockets."""

    async def talk(self, host: str, interface: str) -> None:
        """A line there and back."""
        from twisted.internet import reactor

        real: Any = reactor
        port = real.listenUDP(0, TimestampDatagram(Stamp(), real), interface)
        self.addCleanup(port.stopListening)
        user = Listener()
        server = DatagramServer("name", host, port.getHost().port)
        talk = await DatagramSession(user, real).connect(server)
        talk.write(b"hello\n")
        talk.finish()
        self.assertEqual(await user.ended, "")
        self.assertTrue(user.replies.endswith(b"] hello\n"))

    async def test_ipv4(self) -> None:
        """Over IPv4."""
        await self.talk("127.0.0.1", "127.0.0.1")

    async def test_ipv6(self) -> None:
        """Over IPv6."""
        await self.talk("::1", "::1")

    async def test_second_address(self) -> None:
        """Where nobody listens at a name's first address, the next is asked."""
        from twisted.internet import reactor

        real: Any = reactor
        port = real.listenUDP(0, TimestampDatagram(Stamp(), real), "127.0.0.1")
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        user = Listener()
        talk = DatagramSession(user, real)
        talk._open(
            [
                (socket.AF_INET6, socket.SOCK_DGRAM, 0, "", ("::1", number, 0, 0)),
                (socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", number)),
            ]
        )
        talk.write(b"hello\n")
        talk.finish()
        self.assertEqual(await user.ended, "")
        self.assertEqual((talk.sent, talk.missing), (1, 0))

    def test_no_route(self) -> None:
        """An address that this host has no way to is passed over; if all are, that is said."""
        nowhere = (socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("255.255.255.255", 9))
        talk = DatagramSession(Listener(), None)
        error = self.assertRaises(OSError, talk._open, [nowhere])
        self.assertEqual(error.strerror, "Network is unreachable")

    async def test_refused(self) -> None:
        """The error that Linux gives for a closed port is a refusal, with epoll as well."""
        from twisted.internet import reactor

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            number = taken.getsockname()[1]
        user = Listener()
        server = DatagramServer("name", "127.0.0.1", number)
        talk = await DatagramSession(user, reactor).connect(server)
        talk.write(b"hello\n")
        self.assertEqual(await user.ended, "Connection refused")
        self.assertTrue(talk.refused)
