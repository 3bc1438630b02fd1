"""Tests for `timestamp_echo.transport`: real sockets, and a reactor in memory."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.lockfile import FilesystemLock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo import transport
from timestamp_echo.arrivals import LINUX
from timestamp_echo.batch import Batch, Connection, TimedConnection, UNIXConnection
from timestamp_echo.proxy import ProxiedFactory
from timestamp_echo.tls import HalfCloseTLS
from timestamp_echo.transport import BACKLOG, DatagramPort, StreamReactor

FACTORY = Factory.forProtocol(Protocol)


class ReceivedDatagrams(DatagramProtocol):
    """The same for datagrams."""

    def __init__(self) -> None:
        self.reads: list[tuple[bytes, Any, int]] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """See `DatagramProtocol`."""
        self.reads.append((datagram, addr, self.transport.arrival))  # type: ignore[union-attr]


class FakePort:
    """A listening port, as far as `StreamReactor` looks at it."""

    transport: Any = None

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock


class FakeReactor:
    """A reactor whose ports are real sockets that nobody watches."""

    def __init__(self, port: FakePort) -> None:
        self._port = port

    def listenTCP(self, *_: object) -> FakePort:
        """See `IReactorTCP`."""
        return self._port

    def adoptStreamPort(self, number: int, family: int, factory: object) -> FakePort:
        """See `IReactorSocket`."""
        self.factory = factory
        return self._port


class SourceTests(SynchronousTestCase):
    """Which of our addresses a datagram came to, in its ancillary data."""

    def test_without(self) -> None:
        """Where the kernel does not say, the route decides."""
        self.assertEqual(transport._source([]), [])
        self.assertEqual(transport._source([(socket.SOL_SOCKET, 1, b"")]), [])


class DatagramPortTests(SynchronousTestCase):
    """`DatagramPort`, on a real socket."""

    if not LINUX:
        skip = "this kernel gives no arrival times"

    def setUp(self) -> None:
        """A port, and a client's socket."""
        self.received = ReceivedDatagrams()
        self.port = DatagramPort(0, self.received, "", 65536, MemoryReactorClock())
        self.port.listen(timed=True)
        self.addCleanup(self.port.connectionLost)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.client.close)
        self.client.connect(("127.0.0.2", self.port.getHost().port))
        self.client.settimeout(10)

    def test_source(self) -> None:
        """A reply leaves from the address that was asked, not from the route's."""
        self.client.send(b"one")
        self.port.doRead()
        _, address, _ = self.received.reads[0]
        self.port.write(b"reply", address)
        self.assertEqual(self.client.recv(100), b"reply")  # connected: from no other it would be

    def test_source_ipv6(self) -> None:
        """So it is over IPv6, to IPv4 peers as well."""
        received = ReceivedDatagrams()
        port = DatagramPort(0, received, "::", 65536, MemoryReactorClock())
        port.listen(timed=False)
        self.addCleanup(port.connectionLost)
        for family, host in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.3")):
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.connect((host, port.getHost().port))
                client.send(b"one")
                port.doRead()
                port.write(b"reply", received.reads[-1][1])
                self.assertEqual(client.recv(100), b"reply")
        self.assertEqual(port.arrival, 0)

    def test_elsewhere(self) -> None:
        """A kernel that says none of it still has its datagrams answered."""
        received = ReceivedDatagrams()
        self.patch(transport, "LINUX", False)
        port = DatagramPort(0, received, "127.0.0.1", 65536, MemoryReactorClock())
        port.listen(timed=True)
        self.addCleanup(port.connectionLost)
        self.client.connect(port.socket.getsockname())
        self.client.send(b"one")
        port.doRead()
        port.write(b"reply", received.reads[0][1])
        self.assertEqual(self.client.recv(100), b"reply")
        self.assertEqual(port.arrival, 0)

    def test_too_long(self) -> None:
        """What does not fit into a datagram is an error for the caller."""
        self.assertRaises(OSError, self.port.write, b"x" * 65508, self.client.getsockname())

    def test_arrival(self) -> None:
        """Each datagram has the time at which it came; all that are there are read."""
        before = time.time_ns()
        self.client.send(b"one")
        self.client.send(b"")
        self.client.send(b"x" * 65507)
        sent = time.time_ns()
        self.port.doRead()
        self.assertEqual([len(read[0]) for read in self.received.reads], [3, 0, 65507])
        for _, address, arrival in self.received.reads:
            self.assertEqual(address, self.client.getsockname())
            self.assertTrue(before - 1_000_000 <= arrival <= sent + 1_000_000, arrival - before)

    def test_its_turn(self) -> None:
        """After so many bytes the others get their turn."""
        self.port.maxThroughput = 2
        for _ in range(3):
            self.client.send(b"x")
        self.port.doRead()
        self.assertEqual(len(self.received.reads), 2)
        self.port.doRead()
        self.assertEqual(len(self.received.reads), 3)


class StreamReactorTests(SynchronousTestCase):
    """`StreamReactor` in front of a reactor in memory."""

    def setUp(self) -> None:
        """The reactor, and what stands in for it."""
        self.memory = MemoryReactorClock()
        self.reactor = StreamReactor(self.memory, False)

    def test_tcp(self) -> None:
        """A TCP port is the reactor's."""
        self.reactor.listenTCP(3000, FACTORY, 7, "127.0.0.1")
        self.assertEqual(self.memory.tcpServers, [(3000, FACTORY, 7, "127.0.0.1")])

    def test_backlog(self) -> None:
        """More than Twisted's default may wait to be accepted, unless the endpoint says."""
        self.reactor.listenTCP(3000, FACTORY)
        self.reactor.listenUNIX("/run/tsecho", FACTORY)
        self.assertEqual(self.memory.tcpServers, [(3000, FACTORY, BACKLOG, "")])
        self.assertEqual(self.memory.unixServers[0][2], BACKLOG)

    def test_tls(self) -> None:
        """A TLS port is a TCP port whose connections can half-close."""
        self.reactor.listenSSL(3001, FACTORY, CertificateOptions(), 7, "127.0.0.1")
        servers: Any = self.memory.tcpServers
        ((port, factory, backlog, interface),) = servers
        self.assertEqual((port, backlog, interface), (3001, 7, "127.0.0.1"))
        self.assertIsInstance(factory, TLSMemoryBIOFactory)
        self.assertIs(factory.protocol, HalfCloseTLS)
        self.assertIs(factory.wrappedFactory, FACTORY)

    def test_unix(self) -> None:
        """A UNIX port is the reactor's."""
        self.reactor.listenUNIX("/run/tsecho", FACTORY, 7, 0o600, True)
        self.assertEqual(self.memory.unixServers, [("/run/tsecho", FACTORY, 7, 0o600, True)])

    def test_unix_refused(self) -> None:
        """A UNIX port that can't be opened does not leave its lock behind."""
        path = os.path.abspath(self.mktemp())

        class Refusing:
            def listenUNIX(self, address: str, *_: object) -> IListeningPort:
                FilesystemLock(address + ".lock").lock()
                raise CannotListenError(None, address, OSError(98, "in use"))

        reactor = StreamReactor(Refusing(), False)
        self.assertRaises(CannotListenError, reactor.listenUNIX, path, FACTORY, wantPID=True)
        self.assertFalse(os.path.lexists(path + ".lock"))

    def test_unix_lock_of_another(self) -> None:
        """The lock of another process stays."""
        path = os.path.abspath(self.mktemp())
        os.symlink("1", path + ".lock")

        class Refusing:
            def listenUNIX(self, address: str, *_: object) -> IListeningPort:
                raise CannotListenError(None, address, "Cannot acquire lock")

        reactor = StreamReactor(Refusing(), False)
        self.assertRaises(CannotListenError, reactor.listenUNIX, path, FACTORY, wantPID=True)
        self.assertTrue(os.path.lexists(path + ".lock"))

    def test_adopted(self) -> None:
        """A port that is already open is the reactor's; with times, if it is TCP."""
        for timed, family, expected in (
            (False, socket.AF_INET, Connection),
            (True, socket.AF_UNIX, UNIXConnection),
            (LINUX, socket.AF_INET6, TimedConnection if LINUX else Connection),
        ):
            with socket.socket(family) as sock:
                port = FakePort(sock)
                StreamReactor(FakeReactor(port), timed).adoptStreamPort(3, family, FACTORY)
                self.assertIs(port.transport.func, expected)

    def test_one_batch(self) -> None:
        """All connections of a service are one batch; without epoll, the reactor's own."""
        for there in (True, False):
            if not there:
                self.patch(transport, "BATCHED", False)
            reactor = StreamReactor(FakeReactor(FakePort(socket.socket())), False)
            ports = [reactor.listenTCP(0, FACTORY), reactor.adoptStreamPort(3, 1, FACTORY)]
            watchers = [port.transport.keywords["watcher"] for port in ports]  # type: ignore[attr-defined]
            self.assertIs(watchers[0], watchers[1])
            self.assertEqual(isinstance(watchers[0], Batch), there)
            ports[0].socket.close()  # type: ignore[attr-defined]

    def test_proxied(self) -> None:
        """Behind the PROXY protocol each kind of port can half-close, in TLS as well."""
        proxied: Any = HAProxyWrappingFactory(FACTORY)
        self.reactor.listenTCP(3000, proxied)
        self.reactor.listenSSL(3001, proxied, CertificateOptions())
        self.reactor.listenUNIX("/run/tsecho", proxied)
        memory: Any = self.memory
        factories = [
            memory.tcpServers[0][1],
            memory.tcpServers[1][1],
            memory.unixServers[0][1],
        ]
        with socket.socket() as sock:
            adopting = FakeReactor(FakePort(sock))
            StreamReactor(adopting, False).adoptStreamPort(3, socket.AF_INET, proxied)
            factories.append(adopting.factory)
        for factory in factories:
            self.assertIsInstance(factory, ProxiedFactory)
        # The header comes in front of TLS (twisted#9041).
        secured = factories[1].wrappedFactory
        self.assertIs(secured.protocol, HalfCloseTLS)
        for factory in (factories[0], secured, *factories[2:]):
            self.assertIs(factory.wrappedFactory, FACTORY)

    def test_all_else(self) -> None:
        """Everything else is the reactor's."""
        self.assertEqual(self.reactor.callLater, self.memory.callLater)
        self.assertIsInstance(self.memory, Clock)
