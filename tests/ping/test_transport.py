"""Tests for `timestamp_echo.ping.transport`."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any, cast
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ServerEndpoint
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import INegotiated, IPushProducer
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.protocols.wire import Echo
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.fakes import Listener
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.ping import transport
from timestamp_echo.ping.transport import ProbingDatagrams, StreamPath, timed
from timestamp_echo.server.datagram import TimestampDatagram
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.arrivals import LINUX


class Awaited(Listener):
    """A traveller whose first reply is waited for."""

    rooms = 0

    def __init__(self) -> None:
        super().__init__()
        self.came: Deferred[None] = Deferred()

    def room(self) -> None:
        """See `Traveller`."""
        self.rooms += 1

    def replied(self, data: bytes) -> None:
        """See `Traveller`."""
        super().replied(data)
        if not self.came.called:
            self.came.callback(None)


class RealPathTests(TestCase):
    """Both kinds of path, over loopback."""

    async def test_stream(self) -> None:
        """What is written has left when `write` returns, and the kernel says when it came back."""
        listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(listening.stopListening)
        server = StreamServer("", HostnameEndpoint(reactor, "127.0.0.1", listening.getHost().port))
        traveller = Awaited()
        way = await StreamPath(traveller, reactor).connect(server)
        typed: transport.Path = way
        before = time.time_ns()
        typed.write(b"a\n")
        self.assertFalse(way.transport.dataBuffer or way.transport._tempDataBuffer)
        await traveller.came
        self.assertEqual(traveller.replies, b"a\n")
        if LINUX and way.arrival:  # the kernel begins a moment after it is first asked
            self.assertTrue(before - SECOND < way.arrival <= time.time_ns())
        way.close()
        await traveller.ended
        self.assertEqual(traveller.ends, ["the server closed the connection"])

    async def test_datagrams(self) -> None:
        """The same; a name's address where nobody is is passed over."""
        port = cast(Any, reactor).listenUDP(
            0, TimestampDatagram(Stamp(), clock=Clock()), "127.0.0.1"
        )
        self.addCleanup(port.stopListening)
        traveller = Awaited()
        way = await ProbingDatagrams(traveller, reactor).connect(
            DatagramServer("", "localhost", port.getHost().port)
        )
        typed: transport.Path = way
        typed.write(b"a\n")
        await traveller.came
        self.assertTrue(traveller.replies.endswith(b"] a\n"))
        self.assertGreaterEqual(way.arrival, 0)
        way.close()
        way.close()
        self.assertEqual(traveller.ends, [])

    async def test_datagrams_refused(self) -> None:
        """Where nobody is at all, that is told."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            number = sock.getsockname()[1]
        traveller = Awaited()
        way = await ProbingDatagrams(traveller, reactor).connect(
            DatagramServer("", "localhost", number)
        )
        way.write(b"a\n")
        await traveller.ended
        self.assertEqual((traveller.ends, way.refused), (["Connection refused"], True))


class FakeTransport:
    """A port or a connection that is none."""

    def __init__(self, error: Exception | None = None) -> None:
        self.socket = socket.socket()
        self.written: list[bytes] = []
        self.listening = True
        self.no_delay = False
        self.error = error

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See `IConsumer`."""
        self.producer = producer

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See `ITCPTransport`."""
        self.no_delay = enabled

    def write(self, data: bytes) -> None:
        """See `ITransport`, or `IUDPTransport`."""
        if self.error is not None:
            raise self.error
        self.written.append(data)

    def stopListening(self) -> None:
        """See `IUDPTransport`."""
        self.listening = False


@implementer(INegotiated)
class Layer:
    """A transport over another, as TLS is: what it has not, the other has."""

    def __init__(self, below: Any) -> None:
        self.transport = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class PathTests(SynchronousTestCase):
    """What is seldom seen on real sockets."""

    def transport(self, error: Exception | None = None) -> FakeTransport:
        """One that is closed in the end."""
        transport = FakeTransport(error)
        self.addCleanup(transport.socket.close)
        return transport

    def test_timed(self) -> None:
        """The socket is found below any layer; elsewhere than on Linux it is left as it is."""
        for linux in (True, False):
            self.patch(transport, "LINUX", linux)
            below = self.transport()
            before: Any = below.socket
            way = StreamPath(Awaited(), Clock())
            way.transport = Layer(Layer(below))
            way.connectionMade()
            self.assertEqual(below.socket is before, not linux)
            self.assertTrue(below.no_delay)
            self.assertEqual((below.socket.fileno(), way.arrival), (before.fileno(), 0))

    def test_not_timed(self) -> None:
        """A kernel that does not tell is done without."""
        transport = self.transport()
        before = transport.socket
        transport.socket.close()
        self.assertIs(timed(transport), None)
        self.assertIs(transport.socket, before)

    def test_not_sent(self) -> None:
        """A datagram that can't be sent ends the path, with the reason."""
        for error, words in (
            (OSError(101, "Network is unreachable"), "[Errno 101] Network is unreachable"),
            (MessageLengthError("message too long"), None),
        ):
            traveller = Awaited()
            way = ProbingDatagrams(traveller, Clock())
            way.transport = transport = self.transport(error)
            way.write(b"a\n")
            self.assertEqual(traveller.ends, [words or str(error)])
            self.assertFalse(transport.listening or way.refused)
            way.stopProtocol()
            self.assertEqual(len(traveller.ends), 1)

    def test_next_address(self) -> None:
        """Where a name has another address, what nobody took is sent there."""
        traveller = Awaited()
        clock: Any = Clock()
        ports: list[Any] = []

        def listen(number: int, way: Any, interface: str, size: int) -> Any:
            way.transport = self.transport()
            way.transport.connect = lambda host, port: ports.append((host, port, interface))
            return way.transport

        clock.listenUDP = listen
        way = ProbingDatagrams(traveller, clock)
        way.transport = way._port = self.transport()
        way._addresses.append((socket.AF_INET6, 0, 0, "", ("::1", 3000, 0, 0)))
        way.write(b"a\n")
        way.write(b"b\n")
        way.stopProtocol()
        self.assertEqual(ports, [("::1", 3000, "::")])
        self.assertEqual((way.transport.written, traveller.ends), ([b"a\n", b"b\n"], []))
        way.stopProtocol()
        self.assertEqual(traveller.ends, ["Connection refused"])

    def test_cut(self) -> None:
        """What a datagram lacks does not come with the next: it ends where it ends."""
        traveller = Awaited()
        way = ProbingDatagrams(traveller, Clock())
        way.datagramReceived(b"[stamp] a", None)
        way.datagramReceived(b"[stamp] b\n", None)
        self.assertEqual(traveller.replies, b"[stamp] a\n[stamp] b\n")

    def test_full(self) -> None:
        """It is full while its transport has more unsent than it should."""
        traveller = Awaited()
        way = StreamPath(traveller, Clock())
        way.transport = transport = self.transport()
        way.connectionMade()
        producer = transport.producer
        verifyObject(IPushProducer, producer)
        producer.pauseProducing()
        self.assertEqual((way.full, traveller.rooms), (True, 0))
        producer.resumeProducing()
        self.assertEqual((way.full, traveller.rooms), (False, 1))
        producer.stopProducing()

    def test_below_tls(self) -> None:
        """Where there is a layer between, it is for the layer to write."""
        way = StreamPath(Awaited(), Clock())
        below = self.transport()  # which has no `doWrite`
        way.transport = Layer(below)
        way.write(b"a\n")
        self.assertEqual(below.written, [b"a\n"])

    def test_refused_twice(self) -> None:
        """Each of several datagrams may be refused; the port is closed once."""
        way = ProbingDatagrams(Awaited(), Clock())
        way.transport = transport = self.transport()
        way.connectionRefused()
        transport.listening = True
        way.connectionRefused()
        way.close()
        self.assertTrue(transport.listening)

    def test_other_error(self) -> None:
        """What else the way answers (ICMP) is told as it is, and is no refusal."""
        traveller = Awaited()
        way = ProbingDatagrams(traveller, Clock())
        way._port = self.transport()
        with patch.object(way._port, "socket") as sock:
            sock.getsockopt.return_value = errno.EHOSTUNREACH
            way.stopProtocol()
        self.assertEqual((traveller.ends, way.refused), (["No route to host"], False))

    def test_no_room(self) -> None:
        """A datagram for which there is no room is lost, and nothing else."""
        for number in (errno.EAGAIN, errno.ENOBUFS, errno.EPERM):
            traveller = Awaited()
            way = ProbingDatagrams(traveller, Clock())
            way.transport = self.transport(OSError(number, "no"))
            way.write(b"a\n")
            self.assertEqual((traveller.ends, way.transport.listening), ([], True))
