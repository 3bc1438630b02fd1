"""Tests for `timestamp_echo.transports.reactor`, with real sockets and a reactor in memory."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

from twisted.internet import tcp, unix
from twisted.internet.endpoints import _SystemdParser
from twisted.internet.error import CannotListenError, UnsupportedAddressFamily
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from timestamp_echo.transports import reactor
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.epoll import EpollGroup
from timestamp_echo.transports.port import StreamPort
from timestamp_echo.transports.proxy import ProxiedFactory
from timestamp_echo.transports.reactor import BACKLOG, ReactorAdapter
from timestamp_echo.transports.stream import (
    StreamTransport,
    TimedStreamTransport,
    UNIXStreamTransport,
)
from timestamp_echo.transports.tls import HalfCloseTLSFactory

FACTORY = Factory.forProtocol(Protocol)


class ReactorAdapterTests(SynchronousTestCase):
    """`ReactorAdapter`, in front of a reactor in memory."""

    def setUp(self) -> None:
        """Make the reactor and the adapter."""
        self.memory = MemoryReactorClock()
        self.reactor = ReactorAdapter(self.memory, False)

    def socket_path(self) -> str:
        """A path that fits into the 108 bytes of a UNIX address (unix(7))."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return os.path.join(folder, "socket")

    def listen(self, description: str) -> StreamPort:
        """Listen on this endpoint until the test ends."""
        port: Any = self.successResultOf(self.reactor.endpoint(description).listen(FACTORY))
        self.addCleanup(port.socket.close)
        return cast(StreamPort, port)

    def test_tcp(self) -> None:
        """A TCP port has the arguments of its endpoint, and the reactor watches it."""
        port = self.listen("tcp:0:backlog=7:interface=127.0.0.1")
        self.assertEqual(port.getHost().host, "127.0.0.1")
        self.assertEqual((port.backlog, port.factory), (7, FACTORY))
        self.assertEqual(self.memory.getReaders(), [port])

    def test_backlog(self) -> None:
        """The backlog is larger than Twisted's default, unless the endpoint has another one."""
        path = self.socket_path()
        for description in ("tcp:0:interface=127.0.0.1", f"unix:{path}:lockfile=0"):
            self.assertEqual(self.listen(description).backlog, BACKLOG)

    def test_tls(self) -> None:
        """A TLS port is a TCP port whose connections can half-close."""
        port: Any = self.reactor.listenSSL(0, FACTORY, CertificateOptions(), 7, "127.0.0.1")
        self.addCleanup(port.socket.close)
        self.assertEqual((port.backlog, port.getHost().host), (7, "127.0.0.1"))
        self.assertIsInstance(port.factory, HalfCloseTLSFactory)
        self.assertIs(port.factory.wrappedFactory, FACTORY)

    def test_plain(self) -> None:
        """A plain adapter opens the same ports; their connections, and TLS, are Twisted's."""
        self.reactor.reuse_port = True
        self.reactor = self.reactor.plain()
        port = self.listen("tcp:0:interface=127.0.0.1")
        self.assertEqual((type(port), port.backlog), (StreamPort, BACKLOG))
        self.assertEqual((port.transport, port.group, port.reuse_port), (tcp.Server, None, False))
        secured: Any = self.reactor.listenSSL(0, FACTORY, CertificateOptions(), 7, "127.0.0.1")
        self.addCleanup(secured.socket.close)
        self.assertEqual((secured.backlog, secured.transport), (7, tcp.Server))
        self.assertIs(type(secured.factory), TLSMemoryBIOFactory)
        path = self.socket_path()
        self.assertIs(self.listen(f"unix:{path}").transport, unix.Server)

    def test_unix(self) -> None:
        """A UNIX port has the arguments of its endpoint."""
        path = self.socket_path()
        port = self.listen(f"unix:{path}:mode=600:backlog=7")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assertEqual((port.backlog, os.readlink(path + ".lock")), (7, str(os.getpid())))

    def test_unix_fails(self) -> None:
        """A UNIX port that cannot be opened leaves no lock behind."""
        path = os.path.join(self.mktemp(), "missing")
        os.mkdir(os.path.dirname(path))
        os.mkdir(path)  # where the socket should be
        adapter = ReactorAdapter(self.memory, False)
        self.assertRaises(CannotListenError, adapter.listenUNIX, path, FACTORY, wantPID=True)
        self.assertFalse(os.path.lexists(path + ".lock"))

    def test_unix_lock_of_another(self) -> None:
        """The lock of another process is not removed, and the error names both."""
        path = os.path.abspath(self.mktemp())
        lock = path + ".lock"
        os.symlink("1", lock)
        adapter = ReactorAdapter(self.memory, False)
        raised = self.assertRaises(
            *(CannotListenError, adapter.listenUNIX, path, FACTORY), wantPID=True
        )
        self.assertEqual(str(raised.socketError), f"{lock} is held by process 1")
        self.assertTrue(os.path.lexists(lock))
        os.unlink(lock)  # as the other process may do at any time
        self.assertEqual(reactor._held(lock), f"{lock} was held by another process")

    def test_unix_without_lock(self) -> None:
        """Without a lock, what cannot be opened is the error itself."""
        adapter = ReactorAdapter(self.memory, False)
        path = os.path.join(self.mktemp(), "socket")
        raised = self.assertRaises(CannotListenError, adapter.listenUNIX, path, FACTORY)
        self.assertIn("No such file", str(raised.socketError))

    def adopt(self, family: int, *, timed: bool = False, proxied: bool = False) -> Any:
        """Inherit a listening socket."""
        with socket.socket(family) as sock:
            if family != socket.AF_UNIX:
                sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            else:
                sock.bind(self.socket_path())
            sock.listen()
            sock.setblocking(False)
            adapter = ReactorAdapter(self.memory, timed)._changed(_proxied=proxied)
            port: Any = adapter.adoptStreamPort(sock.fileno(), family, FACTORY)
        self.addCleanup(port.socket.close)
        return port

    def test_adopted(self) -> None:
        """An inherited port has fast transports; with arrival times, if it is TCP."""
        for timed, family, expected in (
            (False, socket.AF_INET, StreamTransport),
            (True, socket.AF_UNIX, UNIXStreamTransport),
            (LINUX, socket.AF_INET6, TimedStreamTransport if LINUX else StreamTransport),
        ):
            port = self.adopt(family, timed=timed)
            self.assertIs(port.transport.func, expected)
            self.assertTrue(port.inherited)

    def test_adopted_family(self) -> None:
        """A socket of another family is refused, as Twisted does."""
        adapter = ReactorAdapter(self.memory, False)
        family = socket.AF_APPLETALK
        self.assertRaises(UnsupportedAddressFamily, adapter.adoptStreamPort, 3, family, FACTORY)

    def test_adopted_kind(self) -> None:
        """What cannot accept connections of the family is refused, and stays open."""
        adapter = ReactorAdapter(self.memory, False)
        pipe = os.pipe()
        for fd in pipe:
            self.addCleanup(os.close, fd)
        with (
            socket.socket() as stream,
            socket.socket(type=socket.SOCK_DGRAM) as datagram,
            socket.create_server(("127.0.0.1", 0)) as listening,
        ):
            for fd, family, name, given in (
                (datagram.fileno(), socket.AF_INET, "INET", "one of type DGRAM"),
                (stream.fileno(), socket.AF_INET, "INET", "one that does not listen"),
                (listening.fileno(), socket.AF_INET6, "INET6", "one with domain=INET"),
                (listening.fileno(), socket.AF_UNIX, "UNIX", "one with domain=INET"),
                (pipe[0], socket.AF_INET, "INET", "no socket"),
            ):
                raised = self.assertRaises(
                    CannotListenError, adapter.adoptStreamPort, fd, family, FACTORY
                )
                self.assertEqual(
                    str(raised.socketError),
                    f"expected a listening stream socket with domain={name}, got {given}",
                )
                os.fstat(fd)

    def test_adopted_datagrams(self) -> None:
        """What is no bound UDP socket of the family is refused, and stays open."""
        adapter = ReactorAdapter(self.memory, False)
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            socket.socket(type=socket.SOCK_DGRAM) as unbound,
            socket.socket(type=socket.SOCK_DGRAM) as bound,
            open(os.devnull, "rb") as null,
        ):
            bound.bind(("127.0.0.1", 0))
            for file, family, name, given in (
                (listening, socket.AF_INET, "INET", "one of type STREAM"),
                (unbound, socket.AF_INET, "INET", "one without a port"),
                (bound, socket.AF_INET6, "INET6", "one with domain=INET"),
                (null, socket.AF_INET, "INET", "no socket"),
            ):
                fd: Any = file.fileno()
                raised = self.assertRaises(
                    CannotListenError, adapter.adopt_udp, fd, family, DatagramProtocol(), 100
                )
                self.assertEqual(
                    str(raised.socketError),
                    f"expected a bound datagram socket with domain={name}, got {given}",
                )
                os.fstat(fd)
            family = socket.AF_UNIX
            raised = self.assertRaises(
                *(UnsupportedAddressFamily, adapter.adopt_udp),
                *(bound.fileno(), family, DatagramProtocol(), 100),
            )
            self.assertIn("with domain=INET or INET6", str(raised))

    def test_is_datagram_socket(self) -> None:
        """Whether a file descriptor is one for datagrams; it stays open, whatever it is."""
        with (
            socket.socket() as stream,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
            open(os.devnull, "rb") as null,
        ):
            for file, expected in ((stream, False), (datagram, True), (null, False)):
                self.assertEqual(reactor.is_datagram_socket(file.fileno()), expected)
                os.fstat(file.fileno())

    def test_reuse_port(self) -> None:
        """Ports can be opened several times if each asks for that, and only then."""
        sharing = ReactorAdapter(self.memory, False)
        sharing.reuse_port = True

        def listen(adapter: ReactorAdapter, datagrams: bool, number: int) -> Any:
            if datagrams:
                port: Any = adapter.listen_udp(number, DatagramProtocol(), "127.0.0.1", 100)
            else:
                port = adapter.listenTCP(number, FACTORY, interface="127.0.0.1")
            self.addCleanup(port.socket.close)
            return port

        for datagrams in (False, True):
            number = listen(sharing, datagrams, 0).getHost().port
            self.assertFalse(listen(sharing, datagrams, number).inherited)
            self.assertRaises(CannotListenError, listen, self.reactor, datagrams, number)

    def test_one_group(self) -> None:
        """All ports share one `EpollGroup`; without epoll, the reactor watches each connection."""
        for has_epoll in (True, False):
            if not has_epoll:
                self.patch(reactor, "HAS_EPOLL", False)
            self.reactor = ReactorAdapter(self.memory, False)
            path = self.socket_path()
            ports: list[Any] = [
                self.listen("tcp:0:interface=127.0.0.1"),
                self.listen(f"unix:{path}"),
            ]
            groups = [port.transport.keywords["group"] for port in ports]
            self.assertIs(groups[0], groups[1])
            self.assertEqual(isinstance(groups[0], EpollGroup), has_epoll)
            self.assertEqual([port.group is not None for port in ports], [has_epoll] * 2)

    def listened(self, description: str) -> Any:
        """Listen on this endpoint, and return the factory that its port has."""
        return self.listen(description).factory

    def test_endpoint(self) -> None:
        """Without TLS and PROXY the port has the factory itself."""
        self.assertIs(self.listened("tcp:0:interface=127.0.0.1"), FACTORY)
        self.assertIs(self.listened(f"unix:{self.socket_path()}"), FACTORY)

    def test_proxied(self) -> None:
        """`haproxy:` puts the PROXY protocol in front of every kind of port."""
        path = self.socket_path()
        for kind in ("tcp:0:interface=127.0.0.1", "tcp6:0:interface=\\:\\:1", f"unix:{path}"):
            factory = self.listened(f"haproxy:{kind}")
            self.assertIsInstance(factory, ProxiedFactory)
            self.assertIs(factory.wrappedFactory, FACTORY)

    def test_adopted_proxied(self) -> None:
        """It puts it in front of an inherited port, too."""
        self.assertIsInstance(self.adopt(socket.AF_INET, proxied=True).factory, ProxiedFactory)

    def test_tls_layers(self) -> None:
        """The PROXY header comes before TLS (twisted#9041), for `ssl:` and `tls:`."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        for description in (
            f"ssl:0:{files.endpoint}:interface=127.0.0.1",
            f"tls:{folder}:port=0:interface=\\:\\:1",
        ):
            secured = self.listened(description)
            self.assertIsInstance(secured, HalfCloseTLSFactory)
            self.assertIs(secured.wrappedFactory, FACTORY)
            proxied = self.listened(f"haproxy:{description}")
            self.assertIsInstance(proxied, ProxiedFactory)
            self.assertIsInstance(proxied.wrappedFactory, HalfCloseTLSFactory)
            self.assertIs(proxied.wrappedFactory.wrappedFactory, FACTORY)

    def test_tls_arguments(self) -> None:
        """`ssl:` and `tls:` have the arguments of Twisted's endpoints, in order or by name."""
        files = self_signed(os.path.join(self.mktemp(), "a:=\\b"))
        key, certificate, folder = (
            path.replace("\\", "\\\\").replace(":", "\\:").replace("=", "\\=")
            for path in (*files, os.path.dirname(files.key))
        )
        for description in (
            f"ssl:0:{key}:{certificate}:interface=127.0.0.1:backlog=7",
            f"ssl:port=0:privateKey={key}:certKey={certificate}:backlog=7:interface=127.0.0.1",
            f"tls:{folder}:0:7:127.0.0.1",
            f"tls:interface=127.0.0.1:port=0:path={folder}:backlog=7",
        ):
            port = self.listen(description)
            self.assertEqual((port.backlog, port.getHost().host), (7, "127.0.0.1"))
            self.assertIsInstance(port.factory, HalfCloseTLSFactory)

    def passed(self, family: int) -> str:
        """Pass a listening socket, as systemd does.

        @return: its name, which has a colon in it, as in an endpoint's description.
        """
        with socket.socket(family) as sock:
            address: Any = ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)
            sock.bind(self.socket_path() if family == socket.AF_UNIX else address)
            sock.listen()
            sockets = ListenFDs([os.dup(sock.fileno())], ["a:b"])
        self.patch(_SystemdParser, "_sddaemon", sockets)
        return "a\\:b"

    def test_tls_adopted(self) -> None:
        """`ssl:` and `tls:` listen on a socket of systemd's, of any family, in the same layers."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        for tls in (f"ssl:{files.endpoint}", f"tls:{folder}", f"haproxy:tls:path={folder}"):
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                port: Any = self.listen(f"{tls}:systemd={self.passed(family)}")
                self.assertEqual((port.socket.family, port.inherited), (family, True))
                self.assertEqual(port._type, "TLS")
                factory = port.factory
                if tls.startswith("haproxy"):
                    self.assertIsInstance(factory, ProxiedFactory)
                    factory = factory.wrappedFactory
                self.assertIsInstance(factory, HalfCloseTLSFactory)
                self.assertIs(factory.wrappedFactory, FACTORY)

    def test_tls_adopted_replaced(self) -> None:
        """Such a port gets new certificates without another socket."""
        files = self_signed(self.mktemp())
        description = f"ssl:{files.endpoint}:systemd={self.passed(socket.AF_INET)}"
        port: Any = self.listen(description)
        before = port.factory
        endpoint = self.reactor.replacing(port).endpoint(description)
        self.assertIs(self.successResultOf(endpoint.listen(FACTORY)), port)
        self.assertIsNot(port.factory, before)
        self.assertIsInstance(port.factory, HalfCloseTLSFactory)

    def test_tls_adopted_wrong(self) -> None:
        """The name must be that of a listening socket, which has its own port and address."""
        files = self_signed(self.mktemp())
        folder, name = os.path.dirname(files.key), self.passed(socket.AF_INET)
        for description in (
            f"ssl:3001:{files.endpoint}:systemd={name}",
            f"ssl:port=3001:{files.endpoint}:systemd={name}",
            f"ssl:{files.endpoint}:interface=127.0.0.1:systemd={name}",
            f"tls:{folder}:3001:systemd={name}",
            f"tls:{folder}:systemd={name}:backlog=7",
        ):
            raised = self.assertRaises(ValueError, self.reactor.endpoint, description)
            self.assertEqual(
                str(raised), "expected systemd= without port=, interface= and backlog="
            )
        self.assertRaises(LookupError, self.reactor.endpoint, f"tls:{folder}:systemd=no-such")
        with open(os.devnull, "rb") as null:
            self.patch(_SystemdParser, "_sddaemon", ListenFDs([null.fileno()], ["null"]))
            endpoint = self.reactor.endpoint(f"tls:{folder}:systemd=null")
            failure = self.failureResultOf(endpoint.listen(FACTORY), CannotListenError)
        self.assertIn("got no socket", str(failure.value))

    def test_tls_files(self) -> None:
        """Each file of `ssl:` is read as what it should be."""
        files = self_signed(self.mktemp())
        for argument, error in (
            (f"certKey={files.key}", "expected a certificate in PEM"),
            (f"privateKey={files.certificate}", "expected a private key in PEM"),
            (f"extraCertChain={files.key}", "expected certificates in PEM"),
            (f"dhParameters={files.key}", "OpenSSL does not accept the Diffie-Hellman parameters"),
        ):
            description = f"ssl:0:{files.endpoint}:{argument}"
            raised = self.assertRaises(OSError, self.reactor.endpoint, description)
            self.assertEqual(raised.filename, argument.partition("=")[2])
            self.assertTrue(raised.strerror.startswith(error), raised.strerror)

    def test_tls_defaults(self) -> None:
        """The default port of `tls:` is 443; the default file of `ssl:` is server.pem."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        ports: list[tuple[Any, ...]] = []
        adapter = self.reactor._changed(listenTCP=lambda *a, **k: ports.append((*a, *k.values())))
        adapter.endpoint(f"tls:{folder}").listen(FACTORY)
        both = Path(folder, "server.pem")
        both.write_text(Path(files.key).read_text() + Path(files.certificate).read_text())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        adapter.endpoint("ssl:3001").listen(FACTORY)
        self.assertEqual(
            [(port[0], *port[2:]) for port in ports], [(443, 50, "::"), (3001, 50, "")]
        )

    def test_tls_method(self) -> None:
        """`sslmethod=`, which Twisted has deprecated, still works."""
        files = self_signed(self.mktemp())
        self.listen(f"ssl:0:{files.endpoint}:interface=127.0.0.1:sslmethod=TLS_METHOD")
        (warning,) = self.flushWarnings()
        self.assertIs(warning["category"], DeprecationWarning)

    def test_client_authorities(self) -> None:
        """With `client_ca`, TLS endpoints ask clients for certificates, however they are made."""
        files = self_signed(self.mktemp())
        adapter = ReactorAdapter(self.memory, False, client_ca=files.key)
        expected = f"{files.key}: expected certificates in PEM"
        for listen in (
            partial(adapter.endpoint, f"ssl:0:{files.endpoint}"),
            partial(adapter.listenSSL, 0, FACTORY, CertificateOptions()),
        ):
            error = self.assertRaises(OSError, listen)
            self.assertEqual(f"{error.filename}: {error.strerror}", expected)

    def test_proxied_twice(self) -> None:
        """`haproxy:` cannot be given twice."""
        self.assertRaises(ValueError, self.reactor.endpoint, "haproxy:haproxy:tcp:3000")

    def test_replacing(self) -> None:
        """An open port gets a new factory with the same layers; no port is opened."""
        files = self_signed(self.mktemp())
        port: Any = self.listen("tcp:0:interface=127.0.0.1")
        endpoint = self.reactor.replacing(port).endpoint(f"haproxy:ssl:3001:{files.endpoint}")
        self.assertIs(self.successResultOf(endpoint.listen(FACTORY)), port)
        self.assertIsInstance(port.factory, ProxiedFactory)
        self.assertIsInstance(port.factory.wrappedFactory, HalfCloseTLSFactory)
        self.assertEqual(self.memory.getReaders(), [port])

    def test_other_attributes(self) -> None:
        """All other attributes are the reactor's, so that any protocol can have datagrams."""
        self.assertEqual(self.reactor.callLater, self.memory.callLater)
        self.assertEqual(self.reactor.adoptDatagramPort, self.memory.adoptDatagramPort)
        self.assertIsInstance(self.memory, Clock)
