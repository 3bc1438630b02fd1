"""Tests for `timestamp_echo.transports.reactor`: real sockets, and a reactor in memory."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.lockfile import FilesystemLock
from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from timestamp_echo.transports import reactor
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.epoll import (
    EpollGroup,
    StreamTransport,
    TimedStreamTransport,
    UNIXStreamTransport,
)
from timestamp_echo.transports.proxy import ProxiedFactory
from timestamp_echo.transports.reactor import BACKLOG, ReactorAdapter
from timestamp_echo.transports.tls import HalfCloseTLSFactory

FACTORY = Factory.forProtocol(Protocol)


class FakePort:
    """A listening port, as far as `ReactorAdapter` looks at it."""

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


class ReactorAdapterTests(SynchronousTestCase):
    """`ReactorAdapter` in front of a reactor in memory."""

    def setUp(self) -> None:
        """The reactor, and what stands in for it."""
        self.memory = MemoryReactorClock()
        self.reactor = ReactorAdapter(self.memory, False)

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
        self.assertIsInstance(factory, HalfCloseTLSFactory)
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

        reactor = ReactorAdapter(Refusing(), False)
        self.assertRaises(CannotListenError, reactor.listenUNIX, path, FACTORY, wantPID=True)
        self.assertFalse(os.path.lexists(path + ".lock"))

    def test_unix_lock_of_another(self) -> None:
        """The lock of another process stays."""
        path = os.path.abspath(self.mktemp())
        os.symlink("1", path + ".lock")

        class Refusing:
            def listenUNIX(self, address: str, *_: object) -> IListeningPort:
                raise CannotListenError(None, address, "Cannot acquire lock")

        reactor = ReactorAdapter(Refusing(), False)
        self.assertRaises(CannotListenError, reactor.listenUNIX, path, FACTORY, wantPID=True)
        self.assertTrue(os.path.lexists(path + ".lock"))

    def test_adopted(self) -> None:
        """A port that is already open is the reactor's; with times, if it is TCP."""
        for timed, family, expected in (
            (False, socket.AF_INET, StreamTransport),
            (True, socket.AF_UNIX, UNIXStreamTransport),
            (LINUX, socket.AF_INET6, TimedStreamTransport if LINUX else StreamTransport),
        ):
            with socket.socket(family) as sock:
                port = FakePort(sock)
                ReactorAdapter(FakeReactor(port), timed).adoptStreamPort(3, family, FACTORY)
                self.assertIs(port.transport.func, expected)

    def test_one_group(self) -> None:
        """All connections of a service are one batch; without epoll, the reactor's own."""
        for there in (True, False):
            if not there:
                self.patch(reactor, "HAS_EPOLL", False)
            adapter = ReactorAdapter(FakeReactor(FakePort(socket.socket())), False)
            ports = [adapter.listenTCP(0, FACTORY), adapter.adoptStreamPort(3, 1, FACTORY)]
            groups = [port.transport.keywords["group"] for port in ports]  # type: ignore[attr-defined]
            self.assertIs(groups[0], groups[1])
            self.assertEqual(isinstance(groups[0], EpollGroup), there)
            ports[0].socket.close()  # type: ignore[attr-defined]

    def listened(self, description: str) -> Any:
        """The factory that an endpoint of this description listens with."""
        before = [*self.memory.tcpServers, *self.memory.unixServers]
        self.successResultOf(self.reactor.endpoint(description).listen(FACTORY))
        (server,) = (
            s for s in (*self.memory.tcpServers, *self.memory.unixServers) if s not in before
        )
        return server[1]

    def test_endpoint(self) -> None:
        """An endpoint without layers listens with the factory itself."""
        self.assertIs(self.listened("tcp:3000"), FACTORY)
        self.assertIs(self.listened("unix:/run/tsecho"), FACTORY)

    def test_proxied(self) -> None:
        """Behind `haproxy:` each kind of port expects the header of the PROXY protocol."""
        for description in ("haproxy:tcp:3000", "haproxy:tcp6:3000", "haproxy:unix:/run/tsecho"):
            factory = self.listened(description)
            self.assertIsInstance(factory, ProxiedFactory)
            self.assertIs(factory.wrappedFactory, FACTORY)

    def test_adopted_proxied(self) -> None:
        """So does one that was already open."""
        with socket.socket() as sock:
            adopting = FakeReactor(FakePort(sock))
            adapter = ReactorAdapter(adopting, False)._changed(_proxied=True)
            adapter.adoptStreamPort(3, socket.AF_INET, FACTORY)
            self.assertIsInstance(adopting.factory, ProxiedFactory)

    def test_tls_layers(self) -> None:
        """The header comes in front of TLS (twisted#9041), for `ssl:` and `tls:` alike."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        for description in (f"ssl:3001:{files.endpoint}", f"tls:{folder}:port=3001"):
            secured = self.listened(description)
            self.assertIsInstance(secured, HalfCloseTLSFactory)
            self.assertIs(secured.wrappedFactory, FACTORY)
            proxied = self.listened(f"haproxy:{description}")
            self.assertIsInstance(proxied, ProxiedFactory)
            self.assertIsInstance(proxied.wrappedFactory, HalfCloseTLSFactory)
            self.assertIs(proxied.wrappedFactory.wrappedFactory, FACTORY)

    def test_proxied_twice(self) -> None:
        """There is one header of the PROXY protocol."""
        self.assertRaises(ValueError, self.reactor.endpoint, "haproxy:haproxy:tcp:3000")

    def test_replacing(self) -> None:
        """An open port gets its factory anew, with the same layers; no other port is opened."""
        files = self_signed(self.mktemp())
        port: Any = FakePort(socket.socket())
        self.addCleanup(port.socket.close)
        endpoint = self.reactor.replacing(port).endpoint(f"haproxy:ssl:3001:{files.endpoint}")
        self.assertIs(self.successResultOf(endpoint.listen(FACTORY)), port)
        self.assertIsInstance(port.factory, ProxiedFactory)
        self.assertIsInstance(port.factory.wrappedFactory, HalfCloseTLSFactory)
        self.assertEqual(self.memory.tcpServers, [])

    def test_all_else(self) -> None:
        """Everything else is the reactor's."""
        self.assertEqual(self.reactor.callLater, self.memory.callLater)
        self.assertIsInstance(self.memory, Clock)
