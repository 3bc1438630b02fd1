"""Tests for `timestamp_echo.transports.reactor`, with real sockets and a reactor in memory."""

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
    """The attributes of a listening port that `ReactorAdapter` uses."""

    transport: Any = None

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock


class FakeReactor:
    """A reactor that returns this port in place of opening one."""

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
    """`ReactorAdapter`, in front of a reactor in memory."""

    def setUp(self) -> None:
        """Make the reactor and the adapter."""
        self.memory = MemoryReactorClock()
        self.reactor = ReactorAdapter(self.memory, False)

    def test_tcp(self) -> None:
        """A TCP port is opened by the reactor, with the same arguments."""
        self.reactor.listenTCP(3000, FACTORY, 7, "127.0.0.1")
        self.assertEqual(self.memory.tcpServers, [(3000, FACTORY, 7, "127.0.0.1")])

    def test_backlog(self) -> None:
        """The backlog is larger than Twisted's default, unless the endpoint has another one."""
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
        """A UNIX port is opened by the reactor, with the same arguments."""
        self.reactor.listenUNIX("/run/tsecho", FACTORY, 7, 0o600, True)
        self.assertEqual(self.memory.unixServers, [("/run/tsecho", FACTORY, 7, 0o600, True)])

    def test_unix_fails(self) -> None:
        """A UNIX port that cannot be opened leaves no lock behind."""
        path = os.path.abspath(self.mktemp())

        class Refusing:
            def listenUNIX(self, address: str, *_: object) -> IListeningPort:
                FilesystemLock(address + ".lock").lock()
                raise CannotListenError(None, address, OSError(98, "in use"))

        reactor = ReactorAdapter(Refusing(), False)
        self.assertRaises(CannotListenError, reactor.listenUNIX, path, FACTORY, wantPID=True)
        self.assertFalse(os.path.lexists(path + ".lock"))

    def test_unix_lock_of_another(self) -> None:
        """The lock of another process is not removed."""
        path = os.path.abspath(self.mktemp())
        os.symlink("1", path + ".lock")

        class Refusing:
            def listenUNIX(self, address: str, *_: object) -> IListeningPort:
                raise CannotListenError(None, address, "Cannot acquire lock")

        reactor = ReactorAdapter(Refusing(), False)
        self.assertRaises(CannotListenError, reactor.listenUNIX, path, FACTORY, wantPID=True)
        self.assertTrue(os.path.lexists(path + ".lock"))

    def test_adopted(self) -> None:
        """An inherited port has fast transports; with arrival times, if it is TCP."""
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
        """All ports share one `EpollGroup`; without epoll, the reactor watches each connection."""
        for has_epoll in (True, False):
            if not has_epoll:
                self.patch(reactor, "HAS_EPOLL", False)
            adapter = ReactorAdapter(FakeReactor(FakePort(socket.socket())), False)
            ports = [adapter.listenTCP(0, FACTORY), adapter.adoptStreamPort(3, 1, FACTORY)]
            groups = [port.transport.keywords["group"] for port in ports]  # type: ignore[attr-defined]
            self.assertIs(groups[0], groups[1])
            self.assertEqual(isinstance(groups[0], EpollGroup), has_epoll)
            ports[0].socket.close()  # type: ignore[attr-defined]

    def listened(self, description: str) -> Any:
        """Listen on this endpoint, and return the factory that its port has."""
        before = [*self.memory.tcpServers, *self.memory.unixServers]
        self.successResultOf(self.reactor.endpoint(description).listen(FACTORY))
        (server,) = (
            s for s in (*self.memory.tcpServers, *self.memory.unixServers) if s not in before
        )
        return server[1]

    def test_endpoint(self) -> None:
        """Without TLS and PROXY the port has the factory itself."""
        self.assertIs(self.listened("tcp:3000"), FACTORY)
        self.assertIs(self.listened("unix:/run/tsecho"), FACTORY)

    def test_proxied(self) -> None:
        """`haproxy:` puts the PROXY protocol in front of every kind of port."""
        for description in ("haproxy:tcp:3000", "haproxy:tcp6:3000", "haproxy:unix:/run/tsecho"):
            factory = self.listened(description)
            self.assertIsInstance(factory, ProxiedFactory)
            self.assertIs(factory.wrappedFactory, FACTORY)

    def test_adopted_proxied(self) -> None:
        """It puts it in front of an inherited port, too."""
        with socket.socket() as sock:
            adopting = FakeReactor(FakePort(sock))
            adapter = ReactorAdapter(adopting, False)._changed(_proxied=True)
            adapter.adoptStreamPort(3, socket.AF_INET, FACTORY)
            self.assertIsInstance(adopting.factory, ProxiedFactory)

    def test_tls_layers(self) -> None:
        """The PROXY header comes before TLS (twisted#9041), for `ssl:` and `tls:`."""
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
        """`haproxy:` cannot be given twice."""
        self.assertRaises(ValueError, self.reactor.endpoint, "haproxy:haproxy:tcp:3000")

    def test_replacing(self) -> None:
        """An open port gets a new factory with the same layers; no port is opened."""
        files = self_signed(self.mktemp())
        port: Any = FakePort(socket.socket())
        self.addCleanup(port.socket.close)
        endpoint = self.reactor.replacing(port).endpoint(f"haproxy:ssl:3001:{files.endpoint}")
        self.assertIs(self.successResultOf(endpoint.listen(FACTORY)), port)
        self.assertIsInstance(port.factory, ProxiedFactory)
        self.assertIsInstance(port.factory.wrappedFactory, HalfCloseTLSFactory)
        self.assertEqual(self.memory.tcpServers, [])

    def test_other_attributes(self) -> None:
        """All other attributes are the reactor's."""
        self.assertEqual(self.reactor.callLater, self.memory.callLater)
        self.assertIsInstance(self.memory, Clock)
