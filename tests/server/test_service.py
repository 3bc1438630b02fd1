"""Tests for `timestamp_echo.server.service`."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import logged
from tests.server.test_connections import FakeConnection
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.service import CannotListen, EchoService, Listener
from timestamp_echo.transports.epoll import MAX_EVENTS


@implementer(IListeningPort)
class Port:
    """A port that listens nowhere, and is closed when it is told to be."""

    def __init__(self, address: IAddress, closing: Deferred[None] | None = None) -> None:
        self._address = address
        self._closing = closing
        self.listening = True

    def startListening(self) -> None:
        """See `IListeningPort`."""

    def stopListening(self) -> Deferred[None] | None:
        """See `IListeningPort`."""
        self.listening = False
        return self._closing

    def getHost(self) -> IAddress:
        """See `IListeningPort`."""
        return self._address


class Reactor(MemoryReactorClock):
    """A reactor that counts its turns."""

    turns = 0

    def callFromThread(self, act: Callable[[], None]) -> None:
        """See `IReactorFromThreads`."""
        act()

    def iterate(self, delay: float = 0) -> None:
        """See `IReactorCore`."""
        self.turns += 1


def resulting(result: object) -> object:
    """The result, or if it is an error, the error."""
    if isinstance(result, Exception):
        raise result
    return result


class EchoServiceTests(SynchronousTestCase):
    """`EchoService`."""

    def setUp(self) -> None:
        """A reactor, and what is logged."""
        self.reactor = Reactor()
        self.connections = Connections(self.reactor, idle_timeout=0)
        self.events = logged(self)

    def lines(self) -> list[str]:
        """What was logged."""
        return [formatEvent(event) for event in self.events]

    def service(self, *results: tuple[str, Any]) -> EchoService:
        """A service whose listeners have these descriptions and results."""
        listeners = [
            Listener(text, partial(execute, resulting, result)) for text, result in results
        ]
        service = EchoService(listeners, self.connections, self.reactor, 20)
        verifyObject(IService, service)
        return service

    def test_interfaces(self) -> None:
        """The fake port is like a real one."""
        verifyClass(IListeningPort, Port)

    def test_listening(self) -> None:
        """The log says, in the words of --listen, where it listens."""
        self.service(
            ("tcp:0", Port(IPv4Address("TCP", "0.0.0.0", 40000))),
            ("tcp:3000:interface=127.0.0.1", Port(IPv4Address("TCP", "127.0.0.1", 3000))),
            ("tcp6:3000", Port(IPv6Address("TCP", "::", 3000))),
            ("ssl:3001:privateKey=k", Port(IPv4Address("TCP", "0.0.0.0", 3001))),
            ("tcp:3003:interface=::", Port(IPv6Address("TCP", "::", 3003))),
            ("haproxy:tcp:3002", Port(IPv4Address("TCP", "0.0.0.0", 3002))),
            ("unix:/run/tsecho", Port(UNIXAddress("/run/tsecho"))),
            ("udp:3000:interface=::1", Port(IPv6Address("UDP", "::1", 3000))),
        ).startService()
        self.assertEqual(
            self.lines(),
            [
                "listening on tcp:40000",
                "listening on tcp:3000:interface=127.0.0.1",
                "listening on tcp6:3000",
                "listening on ssl:3001",
                "listening on tcp:3003:interface=\\:\\:",
                "listening on haproxy:tcp:3002",
                "listening on unix:/run/tsecho",
                "listening on udp:3000:interface=\\:\\:1",
            ],
        )

    def test_once(self) -> None:
        """What was opened with privileges is not opened again without."""
        service = self.service(("tcp:1", Port(IPv4Address("TCP", "0.0.0.0", 1))))
        service.privilegedStartService()
        service.startService()
        self.assertEqual(self.lines(), ["listening on tcp:1"])
        self.assertTrue(service.running)

    def test_stop(self) -> None:
        """The service has stopped when all ports are closed."""
        closing: Deferred[None] = Deferred()
        port = Port(IPv4Address("TCP", "0.0.0.0", 1), closing)
        other = Port(IPv4Address("TCP", "0.0.0.0", 2))
        service = self.service(("tcp:1", port), ("tcp:2", other))
        service.startService()
        stopped = service.stopService()
        self.assertFalse(port.listening or other.listening or service.running)
        self.assertNoResult(stopped)
        closing.callback(None)
        self.successResultOf(stopped)

    def test_drain(self) -> None:
        """A stop drains all connections, and waits until they have left."""
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        stopped = self.service().stopService()
        self.assertEqual(connection.calls, ["drain"])
        self.assertNoResult(stopped)
        self.connections.remove(connection)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_drain_timeout(self) -> None:
        """What is left at the timeout is ended by force."""
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        stopped = self.service().stopService()
        self.reactor.advance(19.9)
        self.assertEqual(connection.calls, ["drain"])
        self.reactor.advance(0.1)
        self.assertEqual(connection.calls, ["drain", "abort"])
        self.connections.remove(connection)
        self.successResultOf(stopped)

    def test_drain_many(self) -> None:
        """Of many connections each has its turn before any is drained."""
        connections = Connections(self.reactor)
        service = EchoService([], connections, self.reactor)
        opened = [FakeConnection() for _ in range(2 * MAX_EVENTS)]
        for connection in opened:
            connections.add(connection, lambda: None)
        service.stopService()
        self.assertEqual({tuple(connection.calls) for connection in opened}, {()})
        self.reactor.advance(0)
        self.assertEqual({tuple(connection.calls) for connection in opened}, {("drain",)})

    def test_renewal(self) -> None:
        """At SIGHUP each listener that has certificates reads them again, or says why not."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        events = logged(self)
        ports = [Port(IPv4Address("TCP", "127.0.0.1", number)) for number in range(3)]
        renewed: list[IListeningPort] = []

        def renew(port: IListeningPort) -> Deferred[Any]:
            renewed.append(port)
            return execute(lambda: None)

        def fail(port: IListeningPort) -> Deferred[Any]:
            raise FileNotFoundError(2, "No such file or directory", "key\n.pem")

        service = EchoService(
            [
                Listener("tcp:0", lambda: execute(lambda: ports[0])),
                Listener("ssl:1", lambda: execute(lambda: ports[1]), renew),
                Listener("ssl:2", lambda: execute(lambda: ports[2]), fail),
            ],
            Connections(self.reactor),
            self.reactor,
        )
        service.startService()
        self.reactor.run()
        handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.assertEqual(renewed, [ports[1]])
        self.assertEqual(
            [formatEvent(event) for event in events[-2:]],
            [
                "certificates of ssl:1 reloaded",
                "certificates of ssl:2 not reloaded, the old ones stay in use:"
                " key\\n.pem: No such file or directory",
            ],
        )
        service.stopService()
        handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.assertEqual(len(renewed), 1)

    def test_signals(self) -> None:
        """A signal of either kind stops the reactor; a second ends what is left by force."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        service = self.service()
        service.startService()
        self.reactor.run()  # which in memory stops at once
        self.reactor.hasStopped = False
        self.assertEqual(set(handlers), {signal.SIGINT, signal.SIGTERM})
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertTrue(self.reactor.hasStopped)
        service.stopService()
        self.assertEqual(connection.calls, ["drain"])
        handlers[signal.SIGINT](signal.SIGINT, None)
        self.assertEqual(connection.calls, ["drain", "abort"])
        self.assertEqual(self.lines(), ["SIGTERM received", "SIGINT received"])

    def test_stop_without_port(self) -> None:
        """`stdio:` opens something that is no port; the others are closed all the same."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))

        class StandardIO:
            """Has an address, and no way to stop listening."""

            getHost = port.getHost

        service = self.service(("stdio:", StandardIO()), ("tcp:1", port))
        service.startService()
        self.successResultOf(service.stopService())
        self.assertFalse(port.listening)

    def test_cannot_listen(self) -> None:
        """A port that can't be opened ends the start; those before it are closed again."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        error = CannotListenError("", 2, OSError(98, "Address already in use"))
        service = self.service(("tcp:1", port), ("tcp:2", error))
        raised = self.assertRaises(CannotListen, service.privilegedStartService)
        self.assertEqual(raised.code, "tsecho: cannot listen on tcp:2: Address already in use")
        self.assertFalse(port.listening)
        self.assertEqual(self.reactor.turns, 1)

    def test_reported(self) -> None:
        """The end of the start is reported: with an empty text, or with the error."""
        reports: list[str] = []
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        for result in (port, CannotListenError(None, b"/x", "in use")):
            service = self.service(("tcp:1", result))
            service._report = reports.append
            with contextlib.suppress(CannotListen):
                service.startService()
        self.assertEqual(reports, ["", "tsecho: cannot listen on tcp:1: in use"])

    def test_errors(self) -> None:
        """Whatever an endpoint fails with is one line."""
        for error, words in (
            (CannotListenError(None, b"/x", "Cannot acquire lock"), "Cannot acquire lock"),
            (PermissionError(13, "Permission denied"), "Permission denied"),
            (OverflowError("port must be 0-65535."), "port must be 0-65535."),
        ):
            service = self.service(("tcp:\n", error))
            raised = self.assertRaises(CannotListen, service.startService)
            self.assertEqual(raised.code, f"tsecho: cannot listen on tcp:\\n: {words}")

    def test_both_kinds(self) -> None:
        """Twistd tidies up after an Exception; Python ends in one line by a SystemExit."""
        self.assertTrue(issubclass(CannotListen, Exception))
        self.assertTrue(issubclass(CannotListen, SystemExit))
        with redirect_stderr(io.StringIO()):
            self.assertRaises(SystemExit, self._raise)

    def _raise(self) -> None:
        raise CannotListen("tsecho: cannot listen")
