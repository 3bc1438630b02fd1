"""Tests for `timestamp_echo.ping.transport`."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any, cast
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ServerEndpoint
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import INegotiated, IPushProducer, IReactorUDP
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.protocols.wire import Echo
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.fakes import Listener
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.ping import transport
from timestamp_echo.ping.transport import StreamPath, UDPPath, record_arrivals
from timestamp_echo.server.datagram import TimestampDatagram
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.udp import DatagramPort


class ReplyListener(Listener):
    """A listener with a Deferred for its first reply."""

    writable_calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.replied_once: Deferred[None] = Deferred()

    def writable(self) -> None:
        """See `PathListener`."""
        self.writable_calls += 1

    def replied(self, data: bytes) -> None:
        """See `PathListener`."""
        super().replied(data)
        if not self.replied_once.called:
            self.replied_once.callback(None)


class RealPathTests(TestCase):
    """Both kinds of path, over the loopback interface."""

    async def test_stream(self) -> None:
        """Data is sent when `write` returns, and the kernel reports when the reply arrived."""
        listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(listening.stopListening)
        server = StreamServer("", HostnameEndpoint(reactor, "127.0.0.1", listening.getHost().port))
        listener = ReplyListener()
        path = await StreamPath(listener, reactor).connect(server)
        typed: transport.Path = path
        before = time.time_ns()
        typed.write(b"a\n")
        self.assertFalse(path.transport.dataBuffer or path.transport._tempDataBuffer)
        await listener.replied_once
        self.assertEqual(listener.replies, b"a\n")
        if LINUX and path.arrival:  # the kernel starts a moment after the first request
            self.assertTrue(before - SECOND < path.arrival <= time.time_ns())
        path.close()
        await listener.ended
        self.assertEqual(listener.ends, ["the server closed the connection"])

    async def test_datagrams(self) -> None:
        """The same over UDP; an address of the name at which no one listens is skipped."""
        echo = TimestampDatagram(Stamp(), clock=Clock())
        port = DatagramPort(0, echo, "127.0.0.1", 8192, cast(Any, reactor))
        port.listen(timed=False)
        self.addCleanup(port.stopListening)
        listener = ReplyListener()
        path = await UDPPath(listener, cast(Any, reactor)).connect(
            DatagramServer("", "localhost", port.getHost().port)
        )
        typed: transport.Path = path
        typed.write(b"a\n")
        await listener.replied_once
        self.assertTrue(listener.replies.endswith(b"] a\n"))
        self.assertGreaterEqual(path.arrival, 0)
        path.close()
        path.close()
        self.assertEqual(listener.ends, [])

    async def test_datagrams_refused(self) -> None:
        """If no one listens at any address, the path is refused."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            number = sock.getsockname()[1]
        listener = ReplyListener()
        path = await UDPPath(listener, cast(Any, reactor)).connect(
            DatagramServer("", "localhost", number)
        )
        path.write(b"a\n")
        await listener.ended
        self.assertEqual((listener.ends, path.refused), (["Connection refused"], True))


class FakeTransport:
    """A fake port or connection."""

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


def udp_path(listener: ReplyListener) -> UDPPath:
    """A path that has no port yet."""
    return UDPPath(listener, cast(IReactorUDP, Clock()))


@implementer(INegotiated)
class Layer:
    """A transport over another one, as TLS is; it delegates what it lacks."""

    def __init__(self, below: Any) -> None:
        self.transport = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class PathTests(SynchronousTestCase):
    """Cases that are rare on real sockets."""

    def transport(self, error: Exception | None = None) -> FakeTransport:
        """A fake transport that is closed after the test."""
        transport = FakeTransport(error)
        self.addCleanup(transport.socket.close)
        return transport

    def test_arrivals(self) -> None:
        """The socket below all layers is replaced on Linux, and only there."""
        for linux in (True, False):
            self.patch(transport, "LINUX", linux)
            below = self.transport()
            before: Any = below.socket
            path = StreamPath(ReplyListener(), Clock())
            path.transport = Layer(Layer(below))
            path.connectionMade()
            self.assertEqual(below.socket is before, not linux)
            self.assertTrue(below.no_delay)
            self.assertEqual((below.socket.fileno(), path.arrival), (before.fileno(), 0))

    def test_arrivals_not_supported(self) -> None:
        """If the kernel does not support arrival times, the socket is left alone."""
        transport = self.transport()
        before = transport.socket
        transport.socket.close()
        self.assertIs(record_arrivals(transport), None)
        self.assertIs(transport.socket, before)

    def test_not_sent(self) -> None:
        """A datagram that cannot be sent closes the path, with the reason."""
        for error, message in (
            (OSError(101, "Network is unreachable"), "[Errno 101] Network is unreachable"),
            (MessageLengthError("message too long"), None),
        ):
            listener = ReplyListener()
            path = udp_path(listener)
            path.transport = transport = self.transport(error)
            path.write(b"a\n")
            self.assertEqual(listener.ends, [message or str(error)])
            self.assertFalse(transport.listening or path.refused)
            path.stopProtocol()
            self.assertEqual(len(listener.ends), 1)

    def test_next_address(self) -> None:
        """If the name has another address, unconfirmed datagrams are sent again, to that."""
        listener = ReplyListener()
        clock: Any = Clock()
        ports: list[Any] = []

        def listen(number: int, path: Any, interface: str, size: int) -> Any:
            path.transport = self.transport()
            path.transport.connect = lambda host, port: ports.append((host, port, interface))
            return path.transport

        clock.listenUDP = listen
        path = UDPPath(listener, clock)
        path.transport = path._port = self.transport()
        path._addresses.append((socket.AF_INET6, 0, 0, "", ("::1", 3000, 0, 0)))
        path.write(b"a\n")
        path.write(b"b\n")
        path.stopProtocol()
        self.assertEqual(ports, [("::1", 3000, "::")])
        self.assertEqual((path.transport.written, listener.ends), ([b"a\n", b"b\n"], []))
        path.stopProtocol()
        self.assertEqual(listener.ends, ["Connection refused"])

    def test_truncated(self) -> None:
        """A truncated datagram does not run into the next one."""
        listener = ReplyListener()
        path = udp_path(listener)
        path.datagramReceived(b"[stamp] a", None)
        path.datagramReceived(b"[stamp] b\n", None)
        self.assertEqual(listener.replies, b"[stamp] a\n[stamp] b\n")

    def test_full(self) -> None:
        """A path is full while its transport's producer is paused."""
        listener = ReplyListener()
        path = StreamPath(listener, Clock())
        path.transport = transport = self.transport()
        path.connectionMade()
        producer = transport.producer
        verifyObject(IPushProducer, producer)
        producer.pauseProducing()
        self.assertEqual((path.full, listener.writable_calls), (True, 0))
        producer.resumeProducing()
        self.assertEqual((path.full, listener.writable_calls), (False, 1))
        producer.stopProducing()

    def test_below_tls(self) -> None:
        """Over TLS, writing is left to the TLS layer."""
        path = StreamPath(ReplyListener(), Clock())
        below = self.transport()  # which has no `doWrite`
        path.transport = Layer(below)
        path.write(b"a\n")
        self.assertEqual(below.written, [b"a\n"])

    def test_refused_twice(self) -> None:
        """Several datagrams may be refused; the port is closed once."""
        path = udp_path(ReplyListener())
        path.transport = transport = self.transport()
        path.connectionRefused()
        transport.listening = True
        path.connectionRefused()
        path.close()
        self.assertTrue(transport.listening)

    def test_other_error(self) -> None:
        """Other ICMP errors close the path too, but are no refusal."""
        listener = ReplyListener()
        path = udp_path(listener)
        path._port = self.transport()
        with patch.object(path._port, "socket") as sock:
            sock.getsockopt.return_value = errno.EHOSTUNREACH
            path.stopProtocol()
        self.assertEqual((listener.ends, path.refused), (["No route to host"], False))

    def test_no_room(self) -> None:
        """A datagram that the host drops for now is lost; the path stays open."""
        for number in (errno.EAGAIN, errno.ENOBUFS, errno.EPERM):
            listener = ReplyListener()
            path = udp_path(listener)
            path.transport = self.transport(OSError(number, "no"))
            path.write(b"a\n")
            self.assertEqual((listener.ends, path.transport.listening), ([], True))


class ProxyHeaderTests(SynchronousTestCase):
    """`proxy_header`."""

    def test_families(self) -> None:
        """Both ends of TCP; a scope is not part of an address; UNIX has no addresses."""
        for host, peer, expected in (
            (
                IPv4Address("TCP", "10.0.0.1", 1),
                IPv4Address("TCP", "10.0.0.2", 2),
                b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2",
            ),
            (
                IPv6Address("TCP", "fe80::1%eth0", 1),
                IPv6Address("TCP", "fe80::2%eth0", 2),
                b"PROXY TCP6 fe80::1 fe80::2 1 2",
            ),
            (UNIXAddress(None), UNIXAddress("/x"), b"PROXY UNKNOWN"),
            (IPv4Address("TCP", "10.0.0.1", 1), UNIXAddress("/x"), b"PROXY UNKNOWN"),
        ):
            self.assertEqual(transport.proxy_header(host, peer), expected + b"\r\n")
