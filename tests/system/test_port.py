"""Tests for `timestamp_echo.transports.port`: real sockets, a reactor in memory, and services."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import patch

from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import logged
from tests.system.running import PATIENCE, Service, read_all, talk
from timestamp_echo.transports import port as port_module
from timestamp_echo.transports.port import (
    LOG_INTERVAL,
    MAX_ACCEPTS,
    MAX_SECONDS,
    PAUSE,
    StreamPort,
    UNIXStreamPort,
)
from timestamp_echo.transports.reactor import BACKLOG, ReactorAdapter


class Accepted(Factory[Protocol]):
    """Builds protocols, and keeps their peers' addresses."""

    noisy = False
    act: Callable[[], object] = bool
    refuse = False

    def __init__(self) -> None:
        self.peers: list[IAddress] = []
        self.built: list[Any] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """See `IProtocolFactory`."""
        assert addr is not None
        self.peers.append(addr)
        self.act()
        if self.refuse:
            return None
        self.built.append(Protocol())
        return cast(Protocol, self.built[-1])


class Socket:
    """A listening socket whose next calls of accept(2) fail with these errors."""

    def __init__(self, sock: socket.socket, *errors: int) -> None:
        self._sock = sock
        self.errors = list(errors)
        self.calls = 0

    def _accept(self) -> tuple[int, Any]:
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock._accept()  # type: ignore[attr-defined, no-any-return]  # not in typeshed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class FakeGroup:
    """What a port needs of its group; records how many were accepted when it served."""

    def __init__(self, factory: Accepted) -> None:
        self._factory = factory
        self.served: list[int] = []
        self.removed: list[StreamPort] = []

    def serve(self) -> None:
        """See `EpollGroup`."""
        self.served.append(len(self._factory.peers))

    def add_port(self, port: StreamPort) -> None:
        """See `EpollGroup`."""

    def remove_port(self, port: StreamPort) -> None:
        """See `EpollGroup`."""
        self.removed.append(port)


class StreamPortTests(SynchronousTestCase):
    """`StreamPort`, with clients that wait in its queue."""

    def setUp(self) -> None:
        """Open a port whose rounds of serving are recorded, and for which no time passes."""
        self.patch(port_module, "monotonic", lambda: 0.0)
        self.reactor: Any = MemoryReactorClock()
        self.factory = Accepted()
        self.group = FakeGroup(self.factory)
        self.port = self.open()
        self.events = logged(self)

    def open(self) -> Any:
        """Open a port on a free number."""
        adapter = ReactorAdapter(self.reactor, False)
        port: Any = adapter.listenTCP(0, self.factory, interface="127.0.0.1")
        self.addCleanup(port.socket.close)
        port.group = self.group
        return port

    def connect(self, count: int) -> list[socket.socket]:
        """Connect clients, which wait in the queue."""
        clients = [socket.create_connection(self.port.socket.getsockname()) for _ in range(count)]
        for client in clients:
            client.settimeout(PATIENCE)
            self.addCleanup(client.close)
        return clients

    def let_accept_fail(self, *errors: int) -> None:
        """Let the next calls of accept(2) fail."""
        self.port.socket = Socket(self.port.socket, *errors)

    def lines(self) -> list[str]:
        """What was logged."""
        return [formatEvent(event) for event in self.events]

    def test_interfaces(self) -> None:
        """It has the interface of a port."""
        verifyClass(IListeningPort, StreamPort)
        verifyObject(IListeningPort, self.port)

    def test_established_first(self) -> None:
        """After every few that are accepted, the established connections are served."""
        self.connect(2 * MAX_ACCEPTS + 1)
        self.port.doRead()
        self.assertEqual(self.group.served, [MAX_ACCEPTS, 2 * MAX_ACCEPTS])
        self.assertEqual(len(self.factory.peers), 2 * MAX_ACCEPTS + 1)

    def test_short(self) -> None:
        """One event takes a short time; who is not accepted by then waits in the queue."""
        now = 0.0
        self.patch(port_module, "monotonic", lambda: now)

        def spend() -> None:
            nonlocal now
            now += MAX_SECONDS / MAX_ACCEPTS / 2

        self.factory.act = spend
        self.connect(4 * MAX_ACCEPTS)
        self.port.doRead()
        self.assertEqual(len(self.factory.peers), 2 * MAX_ACCEPTS)
        self.port.doRead()
        self.assertEqual(len(self.factory.peers), 4 * MAX_ACCEPTS)

    def test_without_epoll(self) -> None:
        """Where the reactor serves each connection, it does so after every few accepted."""
        self.port.group = None
        self.connect(MAX_ACCEPTS + 1)
        self.port.doRead()
        self.assertEqual(len(self.factory.peers), MAX_ACCEPTS)

    def test_length_of_queue(self) -> None:
        """It accepts as many as there are, not one more to find that the queue is empty."""
        self.let_accept_fail()
        self.connect(2)
        self.port.doRead()
        self.assertEqual(self.port.socket.calls, 2)
        self.port.doRead()  # the event was stale
        self.assertEqual(self.port.socket.calls, 3)
        self.assertEqual(len(self.factory.peers), 2)

    def test_unknown_length(self) -> None:
        """Where the kernel does not say how many there are, all are accepted as well."""
        self.patch(port_module, "LINUX", False)
        self.let_accept_fail()
        self.connect(MAX_ACCEPTS + 2)
        self.port.doRead()
        self.assertEqual(self.port.socket.calls, MAX_ACCEPTS + 2 + 1)
        self.assertEqual(len(self.factory.peers), MAX_ACCEPTS + 2)

    def test_no_delay(self) -> None:
        """Connections inherit TCP_NODELAY, as replies are written whole."""
        self.connect(1)
        self.port.doRead()
        (protocol,) = self.factory.built
        self.assertTrue(protocol.transport.getTcpNoDelay())

    def test_not_built(self) -> None:
        """A connection for which the factory builds no protocol is closed."""
        self.factory.refuse = True
        (client,) = self.connect(1)
        self.port.doRead()
        self.assertEqual(client.recv(1), b"")

    def test_exception(self) -> None:
        """An exception of one connection is logged, and the others are accepted."""
        self.factory.act = {}.popitem
        self.connect(2)
        self.port.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)
        self.assertEqual(len(self.factory.peers), 2)

    def test_gone(self) -> None:
        """A connection that ended in the queue does not keep the others waiting."""
        self.let_accept_fail(errno.ECONNABORTED, errno.EPERM)
        self.connect(3)
        self.port.doRead()
        self.assertEqual(len(self.factory.peers), 1)
        self.assertEqual(self.lines(), [])

    def test_shut_down(self) -> None:
        """A socket that another process shut down (shutdown(2)) is closed, with a line in the log.

        It would be readable forever.
        """
        self.let_accept_fail(errno.EINVAL)
        self.port.doRead()
        self.reactor.advance(0)
        self.assertFalse(self.port.connected)
        self.assertIn("127.0.0.1", self.lines()[0])
        self.assertTrue(self.lines()[0].endswith(" was shut down elsewhere"))

    def test_full(self) -> None:
        """While the file table is full, connections wait, and the port is not watched."""
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self.let_accept_fail(number)
            self.connect(1)
            self.factory.peers.clear()
            self.port.doRead()
            self.assertEqual(self.factory.peers, [])
            self.assertNotIn(self.port, self.reactor.getReaders())
            self.reactor.advance(PAUSE - 0.01)
            self.assertNotIn(self.port, self.reactor.getReaders())
            self.reactor.advance(0.01)
            self.assertIn(self.port, self.reactor.getReaders())
            self.port.doRead()
            self.assertEqual(len(self.factory.peers), 1)

    def test_full_until_closed(self) -> None:
        """When a connection of the port has closed, there is a file for another."""
        self.port.connection_closed()  # not paused: nothing to do
        self.let_accept_fail(errno.EMFILE)
        self.connect(1)
        self.port.doRead()
        self.port.connection_closed()
        self.assertEqual(self.reactor.getReaders(), [self.port])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_full_log(self) -> None:
        """The log has one line in ten seconds, with a count."""
        self.let_accept_fail(*[errno.EMFILE] * 50)
        while self.reactor.seconds() < 2 * LOG_INTERVAL:
            self.port.doRead()
            self.reactor.advance(PAUSE)
        number = self.port.getHost().port
        line = f"cannot accept on 127.0.0.1:{number}: Too many open files; connections wait"
        self.assertEqual(
            self.lines(),
            [
                f"{line} (1 pause since the last such line)",
                f"{line} (20 pauses since the last such line)",
            ],
        )
        self.assertEqual(self.port.pauses, 40)

    def test_stop(self) -> None:
        """A stop accepts what waits in the queue, however much it is, before the port closes."""
        self.connect(100)
        stopped = self.port.stopListening()
        self.assertIs(self.port.stopListening(), stopped)
        self.assertNoResult(stopped)
        self.reactor.pump([0, 0])
        self.successResultOf(stopped)
        self.assertEqual(len(self.factory.peers), 100)
        self.assertEqual(self.group.removed, [self.port])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.successResultOf(self.port.stopListening())

    def test_stop_in_storm(self) -> None:
        """A stop ends although new connections never cease to come."""
        self.patch(port_module, "MAX_LAST_ACCEPTS", 10)
        self.factory.act = lambda: self.connect(1)
        self.patch(port_module, "MAX_SECONDS", 0)
        self.connect(1)
        stopped = self.port.stopListening()
        self.reactor.pump([0] * 11)
        self.successResultOf(stopped)
        self.assertEqual(len(self.factory.peers), 10)

    def test_stop_while_full(self) -> None:
        """A port that stops while the file table is full waits for a free file."""
        self.let_accept_fail(errno.EMFILE)
        self.connect(1)
        self.port.doRead()
        stopped = self.port.stopListening()
        self.reactor.pump([0.01] * 5)
        self.assertNoResult(stopped)
        self.port.connection_closed()
        self.reactor.pump([0.01] * 2)
        self.successResultOf(stopped)
        self.assertEqual(len(self.factory.peers), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_at_once(self) -> None:
        """`loseConnection` ends a stop that waits, and a pause."""
        self.let_accept_fail(errno.EMFILE)
        self.port.doRead()
        stopped = self.port.stopListening()
        self.port.loseConnection()
        self.reactor.pump([0, 0.01])
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_while_closing(self) -> None:
        """A port that is being closed is not closed again when its queue turns out empty."""
        stopped = self.port.stopListening()
        self.port.loseConnection()
        self.reactor.pump([0, 0])
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_closed(self) -> None:
        """A port that is closed already has stopped."""
        self.port.loseConnection()
        self.reactor.advance(0)
        self.successResultOf(self.port.stopListening())

    def test_listen_again(self) -> None:
        """After a stop, the port can listen again, and stop again."""
        for _ in range(2):
            [client] = self.connect(1)
            stopped = self.port.stopListening()
            self.reactor.advance(0)
            self.reactor.advance(0)
            self.successResultOf(stopped)
            self.assertEqual(len(self.factory.built), 1)
            self.factory.built.clear()
            client.close()
            self.port.startListening()
            self.addCleanup(self.port.socket.close)

    def test_stop_fails(self) -> None:
        """An error of the factory at the end is that of the stop."""
        self.patch(self.factory, "doStop", lambda: 1 / 0)
        stopped = self.port.stopListening()
        self.reactor.advance(0)
        self.reactor.advance(0)
        self.failureResultOf(stopped, ZeroDivisionError)
        self.port.startListening()
        self.assertRaises(ZeroDivisionError, self.port.connectionLost, Failure(ConnectionDone()))

    def test_stop_inherited(self) -> None:
        """The queue of an inherited socket is left to the next process."""
        self.port.inherited = True
        self.connect(1)
        stopped = self.port.stopListening()
        self.reactor.pump([0, 0])
        self.successResultOf(stopped)
        self.assertEqual(self.factory.peers, [])

    def test_scope(self) -> None:
        """The address of a link-local peer has its scope."""
        self.assertEqual(port_module._scoped(("::1", 1, 0, 0)), ("::1", 1, 0, 0))
        name = socket.if_indextoname(1)
        self.assertEqual(port_module._scoped(("fe80::1", 1, 0, 1)), (f"fe80::1%{name}", 1, 0, 1))
        self.port._addressType = IPv6Address
        self.port.addressFamily = socket.AF_INET6
        self.port._make_connection(socket.socket(socket.AF_INET6), ("fe80::1", 1, 0, 1))
        self.assertEqual(self.factory.peers, [IPv6Address("TCP", f"fe80::1%{name}", 1, 0, 1)])


class UNIXStreamPortTests(SynchronousTestCase):
    """`UNIXStreamPort`: the differences from TCP."""

    def setUp(self) -> None:
        """Make a reactor, record the log, and choose a path."""
        self.reactor: Any = MemoryReactorClock()
        self.adapter = ReactorAdapter(self.reactor, False)
        self.events = logged(self)
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "socket")

    def open(self, path: str) -> Any:
        """Open a port with a lock."""
        port: Any = self.adapter.listenUNIX(path, Accepted(), wantPID=True)
        self.addCleanup(port.socket.close)
        return port

    def close(self, port: Any) -> None:
        """Stop the port, and check that it is closed."""
        stopped = port.stopListening()
        self.reactor.pump([0, 0])
        self.successResultOf(stopped)
        self.assertFalse(port.connected)

    def test_full_log(self) -> None:
        """The log line about a full file table has the path."""
        port = self.open(self.path)
        self.assertIsInstance(port, UNIXStreamPort)
        port.socket = Socket(port.socket, errno.EMFILE)
        port.doRead()
        self.assertIn(f"cannot accept on unix:{self.path}: ", formatEvent(self.events[-1]))

    def test_files_removed(self) -> None:
        """When it closes, it removes its file and its lock."""
        port = self.open(self.path)
        self.assertEqual(sorted(os.listdir(self.folder)), ["socket", "socket.lock"])
        self.close(port)
        self.assertEqual(os.listdir(self.folder), [])

    def test_abstract(self) -> None:
        """An abstract socket (unix(7)) has no file to remove."""
        name = f"\0tsecho-test-{os.getpid()}"
        port: Any = self.adapter.listenUNIX(name, Accepted())
        self.addCleanup(port.socket.close)
        self.close(port)
        self.assertIn("Closed", formatEvent(self.events[-1]))

    def test_file_gone(self) -> None:
        """It closes, and removes its lock, although somebody has removed its file."""
        port = self.open(self.path)
        os.unlink(self.path)
        self.close(port)
        self.assertEqual(os.listdir(self.folder), [])

    def test_file_stays(self) -> None:
        """It closes although its file cannot be removed, and says so."""
        port = self.open(self.path)
        denied = PermissionError(errno.EACCES, "Permission denied", self.path)
        with patch("os.unlink", side_effect=denied):
            self.close(port)
        self.assertIn(
            f"cannot remove {self.path}: Permission denied", map(formatEvent, self.events)
        )

    def test_lock_of_another(self) -> None:
        """It leaves a lock alone that is another process's by now."""
        port = self.open(self.path)
        os.unlink(f"{self.path}.lock")
        os.symlink("1", f"{self.path}.lock")
        self.close(port)
        self.assertEqual(os.listdir(self.folder), ["socket.lock"])

    def test_inherited(self) -> None:
        """An inherited socket keeps its file, its mode and its queue, and goes on listening."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            os.chmod(self.path, 0o600)
            listener.listen(BACKLOG // 2)
            for _ in range(2):
                factory = Accepted()
                port: Any = self.adapter.adoptStreamPort(listener.fileno(), socket.AF_UNIX, factory)
                self.addCleanup(port.socket.close)
                port.socket.setblocking(False)
                clients = [socket.socket(socket.AF_UNIX) for _ in range(60)]
                for client in clients:
                    self.addCleanup(client.close)
                    client.setblocking(False)
                    client.connect(self.path)  # a queue of Twisted's 50 would be full
                self.assertEqual(port.getHost().name, os.fsencode(self.path))
                for _ in clients:
                    port.doRead()
                self.assertEqual(len(factory.peers), len(clients))
                self.close(port)
                self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
                self.assertTrue(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class QueueTests(SynchronousTestCase):
    """A service that stops while connections wait in its queue."""

    def test_queue_at_stop(self) -> None:
        """Connections in the queue when the stop begins are answered, over TCP and UNIX."""
        service = Service(self, "-l", "tcp:0:interface=127.0.0.1", "-l", "unix:socket")
        talk(service.connect(), b"hello\n")  # it runs, and handles signals
        os.kill(service.process.pid, signal.SIGSTOP)
        clients = [service.connect() for _ in range(300)]
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            client.connect(service.path())
            clients.append(client)
        for client in clients:
            self.addCleanup(client.close)
            client.sendall(b"hello\n")
        os.kill(service.process.pid, signal.SIGTERM)
        os.kill(service.process.pid, signal.SIGCONT)
        for client in clients:
            self.assertRegex(read_all(client), rb"^\[.*\] hello\n$")
            client.close()
        self.assertEqual(service.wait(), 0)
