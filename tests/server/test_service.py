"""Tests for `timestamp_echo.server.service`."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass, verifyObject

from tests.fakes import logged
from tests.server.test_connections import FakeConnection
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.service import ABORT_TIMEOUT, CannotListen, EchoService, Listener
from timestamp_echo.transports.port import StreamPort


@implementer(IListeningPort)
class Port:
    """A listening port without a socket.

    @param closing: what `stopListening` returns, or raises if it is an exception.
    """

    def __init__(
        self, address: IAddress, closing: Deferred[None] | Exception | None = None
    ) -> None:
        self._address = address
        self._closing = closing
        self.listening = True

    def startListening(self) -> None:
        """See `IListeningPort`."""

    def stopListening(self) -> Deferred[None] | None:
        """See `IListeningPort`."""
        self.listening = False
        return_or_raise(self._closing)
        return self._closing  # type: ignore[return-value]  # it is no exception

    def getHost(self) -> IAddress:
        """See `IListeningPort`."""
        return self._address


class Reactor(MemoryReactorClock):
    """A reactor in memory that counts its iterations."""

    iterations = 0
    sigInt: object = None
    sigTerm: object = None

    def callFromThread(self, call: Callable[[], None]) -> None:
        """See `IReactorFromThreads`."""
        call()

    def iterate(self, delay: float = 0) -> None:
        """See `IReactorCore`."""
        self.iterations += 1
        self.advance(0)


class FaultyConnection(FakeConnection):
    """Raises whatever it is asked for."""

    def drain(self) -> None:
        """See `Connection`."""
        raise ZeroDivisionError

    abort = drain


class StandardIO:
    """What `stdio:` opens: it has an address, and no `stopListening`."""

    def getHost(self) -> IAddress:
        """See `ITransport`."""
        return UNIXAddress(None)


def return_or_raise(result: object) -> object:
    """Return the result, or raise it if it is an exception."""
    if isinstance(result, Exception):
        raise result
    return result


class EchoServiceTests(SynchronousTestCase):
    """`EchoService`: listening, reloading and stopping."""

    def setUp(self) -> None:
        """Make a reactor, and record the log."""
        self.patch(signal, "signal", lambda number, handler: None)
        self.reactor = Reactor()
        self.connections = Connections(self.reactor, idle_timeout=0)
        self.events = logged(self)
        self.reports: list[str] = []

    def lines(self) -> list[str]:
        """The lines logged so far."""
        return [formatEvent(event) for event in self.events]

    def service(self, *results: tuple[str, Any]) -> EchoService:
        """Make a service of listeners with these descriptions, and ports or errors."""
        listeners = [
            Listener(text, partial(execute, return_or_raise, result)) for text, result in results
        ]
        service = EchoService(listeners, self.connections, self.reactor, 20)
        verifyObject(IService, service)
        return service

    def test_interfaces(self) -> None:
        """The fake port has the interface of a real one."""
        verifyClass(IListeningPort, Port)

    def test_listening(self) -> None:
        """The log has each address in the syntax of --listen, with the actual port."""
        self.service(
            ("tcp:0", Port(IPv4Address("TCP", "0.0.0.0", 40000))),
            ("tcp:3000:interface=127.0.0.1", Port(IPv4Address("TCP", "127.0.0.1", 3000))),
            ("tcp6:3000", Port(IPv6Address("TCP", "::", 3000))),
            ("ssl:3001:privateKey=k", Port(IPv4Address("TCP", "0.0.0.0", 3001))),
            ("tcp:3003:interface=::", Port(IPv6Address("TCP", "::", 3003))),
            ("haproxy:tcp:3002", Port(IPv4Address("TCP", "0.0.0.0", 3002))),
            ("unix:/run/tsecho", Port(UNIXAddress("/run/tsecho"))),
            ("udp:3000:interface=::1", Port(IPv6Address("UDP", "::1", 3000))),
            ("systemd:domain=INET6:name=x", Port(IPv6Address("TCP", "::", 3004))),
            ("systemd:domain=INET6:name=y", Port(IPv6Address("UDP", "::", 3004))),
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
                "listening on systemd:3004:interface=\\:\\:",
                "listening on udp:3004:interface=\\:\\:",
            ],
        )

    def test_once(self) -> None:
        """Ports that were opened with privileges are not opened again without."""
        service = self.service(("tcp:1", Port(IPv4Address("TCP", "0.0.0.0", 1))))
        service.privilegedStartService()
        service.startService()
        self.assertEqual(self.lines(), ["listening on tcp:1"])
        self.assertTrue(service.running)

    def test_stop(self) -> None:
        """The service has stopped once all ports are closed."""
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
        """A stop drains all connections, and waits until they are closed."""
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        stopped = self.service().stopService()
        self.assertEqual(set(connection.calls), {"drain"})
        self.assertNoResult(stopped)
        self.connections.remove(connection)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_drain_timeout(self) -> None:
        """Connections that are open at the drain timeout are aborted."""
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        stopped = self.service().stopService()
        self.reactor.advance(19.9)
        self.assertEqual(set(connection.calls), {"drain"})
        self.reactor.advance(0.1)
        self.assertEqual(connection.calls[-1:], ["abort"])
        self.connections.remove(connection)
        self.successResultOf(stopped)

    def test_drain_accepted(self) -> None:
        """Connections that a port accepts while it closes are drained as soon as they are made.

        With a full file table, the port waits for them to end.
        """
        closing: Deferred[None] = Deferred()
        service = self.service(("tcp:1", Port(IPv4Address("TCP", "0.0.0.0", 1), closing)))
        service.startService()
        stopped = service.stopService()
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        self.assertEqual(connection.calls, ["drain"])
        closing.callback(None)
        self.assertNoResult(stopped)
        self.connections.remove(connection)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_abort_closes_ports(self) -> None:
        """At the drain timeout a port that still waits for a free file is closed at once."""
        port = StreamPort(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        port.reactor = self.reactor
        port.startListening()
        self.addCleanup(port.socket.close)
        datagrams = Port(IPv4Address("UDP", "127.0.0.1", 1), Deferred())
        service = self.service(("tcp:0", port), ("udp:0", datagrams))
        service.startService()
        full = OSError(errno.EMFILE, "Too many open files")
        self.patch(port, "doRead", lambda: port._pause(full))
        service.stopService()
        self.reactor.advance(19)
        self.assertTrue(port.connected)
        self.reactor.advance(1)
        self.reactor.advance(0)
        self.assertFalse(port.connected)

    def test_status(self) -> None:
        """The port of --status opens first, and closes last: when everything is drained."""
        closing: Deferred[None] = Deferred()
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        status = Port(IPv4Address("TCP", "127.0.0.1", 2), closing)
        service = self.service(("tcp:1", port))
        service.status = Listener("tcp:2", partial(execute, lambda: status))
        service.startService()
        self.assertEqual(
            self.lines(), ["status on tcp:2:interface=127.0.0.1", "listening on tcp:1"]
        )
        self.assertEqual(service.ports, [("tcp:1", port)])
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        stopped = service.stopService()
        self.assertEqual((port.listening, status.listening), (False, True))
        self.assertEqual(service.ports, [("tcp:1", port)])
        self.connections.remove(connection)
        self.assertFalse(status.listening)
        self.assertNoResult(stopped)
        closing.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_status_not_closed(self) -> None:
        """A port of --status that does not close does not keep the service from stopping."""
        service = self.service()
        status = Port(IPv4Address("TCP", "127.0.0.1", 2), Deferred())
        service.status = Listener("tcp:2", partial(execute, lambda: status))
        service.startService()
        stopped = service.stopService()
        self.reactor.advance(20)
        self.assertNoResult(stopped)
        self.reactor.advance(ABORT_TIMEOUT)
        self.successResultOf(stopped)

    def test_status_not_opened(self) -> None:
        """If the port of --status cannot be opened, the service does not start."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        service = self.service(("tcp:1", port))
        error = CannotListenError("", 2, OSError(98, "Address already in use"))
        service.status = Listener("tcp:2", partial(fail, error))
        raised = self.assertRaises(CannotListen, service.startService)
        self.assertEqual(str(raised), "tsecho: cannot listen on tcp:2: Address already in use")
        self.assertEqual(self.lines(), [])

    def test_status_alone(self) -> None:
        """The end of `stdio:` is the end of the service, although --status has a port."""
        service = self.service(("stdio:", StandardIO()))
        status = Port(IPv4Address("TCP", "127.0.0.1", 2))
        service.status = Listener("tcp:2", partial(execute, lambda: status))
        self.reactor.running = True
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        service.startService()
        self.connections.remove(connection)
        self.assertTrue(self.reactor.hasStopped)

    def test_ready(self) -> None:
        """The service is ready once all is open, until a stop begins; not after an error."""
        openings: list[Deferred[Any]] = [Deferred(), Deferred()]
        service = self.late(*openings)
        for number, opening in enumerate(openings):
            self.assertFalse(service.ready)
            opening.callback(Port(IPv4Address("TCP", "0.0.0.0", number)))
        self.assertTrue(service.ready)
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        service.stopService()
        self.assertFalse(service.ready)
        self.connections.remove(connection)
        self.reactor.running = False  # else the process of the tests ends with status 1
        failing = self.service(("tcp:1", CannotListenError("", 1, OSError(98, "x"))))
        self.assertRaises(CannotListen, failing.startService)
        self.assertFalse(failing.ready)

    def delayed(self) -> tuple[EchoService, Port, FakeConnection]:
        """Start a service whose stops have a delay, with a port and a connection."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        listener = Listener("tcp:1", partial(execute, lambda: port))
        service = EchoService([listener], self.connections, self.reactor, 20, stop_delay=5)
        service.startService()
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        return service, port, connection

    def test_stop_delay(self) -> None:
        """With a delay, a stop leaves everything open for so long, but the service is not ready.

        The drain timeout begins after the delay.
        """
        service, port, connection = self.delayed()
        stopped = service.stopService()
        self.assertFalse(service.ready)
        self.assertEqual(self.lines()[1:], ["the ports close in 5 s"])
        self.reactor.advance(4.9)
        self.assertEqual((port.listening, connection.calls), (True, []))
        self.reactor.advance(0.1)
        self.assertEqual((port.listening, set(connection.calls)), (False, {"drain"}))
        self.reactor.advance(19.9)
        self.assertNotIn("abort", connection.calls)
        self.reactor.advance(0.1)
        self.assertEqual(connection.calls[-1], "abort")
        self.connections.remove(connection)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_delay_ended(self) -> None:
        """A second signal ends the delay: the ports close, and connections end by force."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        service, port, connection = self.delayed()
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        stopped = service.stopService()
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual((port.listening, connection.calls[-1]), (False, "abort"))
        self.connections.remove(connection)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_delay_not_started(self) -> None:
        """A service that cannot start, or is not ready yet, ends without a delay."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        error = CannotListenError("", 2, OSError(98, "Address already in use"))
        listeners = [
            Listener("tcp:1", partial(execute, lambda: port)),
            Listener("tcp:2", partial(fail, error)),
        ]
        service = EchoService(listeners, self.connections, self.reactor, 20, stop_delay=5)
        self.assertRaises(CannotListen, service.startService)
        self.assertFalse(port.listening)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_reload(self) -> None:
        """At SIGHUP the certificates of each TLS listener are reloaded; the log has every error."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        events = logged(self)
        ports = [Port(IPv4Address("TCP", "127.0.0.1", number)) for number in range(3)]
        reloaded: list[IListeningPort] = []

        def reload(port: IListeningPort) -> Deferred[Any]:
            reloaded.append(port)
            return execute(lambda: None)

        def fail(port: IListeningPort) -> Deferred[Any]:
            raise FileNotFoundError(2, "No such file or directory", "key\n.pem")

        service = EchoService(
            [
                Listener("tcp:0", lambda: execute(lambda: ports[0])),
                Listener("ssl:1", lambda: execute(lambda: ports[1]), reload),
                Listener("ssl:2", lambda: execute(lambda: ports[2]), fail),
            ],
            Connections(self.reactor),
            self.reactor,
        )
        service.startService()
        self.reactor.run()
        handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.assertEqual(reloaded, [ports[1]])
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
        self.assertEqual(len(reloaded), 1)

    def notifying(self, *listeners: Listener) -> tuple[EchoService, list[str]]:
        """Start a service of these listeners, and record what it notifies systemd of."""
        service = EchoService(listeners, self.connections, self.reactor)
        states: list[str] = []
        service.notify = states.append
        service.startService()
        return service, states

    def test_notify(self) -> None:
        """READY comes when all ports are open, and STOPPING when a stop begins."""
        openings: list[Deferred[Any]] = [Deferred(), Deferred()]
        service, states = self.notifying(
            Listener("tcp:1", lambda: openings[0]), Listener("tcp:2", lambda: openings[1])
        )
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        openings[0].callback(Port(IPv4Address("TCP", "0.0.0.0", 1)))
        self.assertEqual((states, service.ready), ([], False))
        openings[1].callback(Port(IPv4Address("TCP", "0.0.0.0", 2)))
        self.assertEqual((states, service.ready), (["READY"], True))
        service.stopService()
        self.assertEqual((states, service.ready), (["READY", "STOPPING"], False))
        self.connections.remove(connection)
        self.assertEqual(states, ["READY", "STOPPING"])

    def test_notify_reload(self) -> None:
        """A reload has ended when the last listener's has, well or not."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        for last in (0, 1):
            reloads: list[Deferred[Any]] = [Deferred(), Deferred()]
            service, states = self.notifying(
                *(
                    Listener("ssl:1", partial(execute, lambda: port), lambda _, end=end: end)  # type: ignore[misc]
                    for end in reloads
                )
            )
            service._reload()
            reloads.pop(1 - last).errback(OSError())
            self.assertEqual(states, ["READY", "RELOADING"])
            reloads.pop().callback(None)
            self.assertEqual(states, ["READY", "RELOADING", "READY"])

    def test_notify_nothing_to_reload(self) -> None:
        """Whoever asked for a reload hears that it has ended, also if there was nothing to do."""
        service, states = self.notifying()
        service._reload()
        self.assertEqual(states, ["READY", "RELOADING", "READY"])

    def test_notify_not_ready(self) -> None:
        """A reload does not make ready what is still opening, or is being stopped."""
        opening: Deferred[Any] = Deferred()
        service, states = self.notifying(Listener("tcp:1", lambda: opening))
        service._reload()
        self.assertEqual(states, [])
        end: Deferred[Any] = Deferred()
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        service, states = self.notifying(
            Listener("ssl:1", partial(execute, lambda: port), lambda _: end)
        )
        service._reload()
        service.stopService()
        end.callback(None)
        service._reload()
        self.assertEqual(states, ["READY", "RELOADING", "STOPPING"])

    def test_nothing_to_reload(self) -> None:
        """Without TLS, SIGHUP does nothing but a line in the log."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        events = logged(self)
        service = self.service()
        service.startService()
        self.reactor.run()
        handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.assertEqual(
            formatEvent(events[-1]), "SIGHUP received: there are no certificates to reload"
        )

    def test_signals(self) -> None:
        """SIGINT and SIGTERM stop the reactor; a second signal aborts all connections."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        service = self.service()
        service.privilegedStartService()
        self.assertEqual(set(handlers), {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        self.assertEqual(self.reactor.sigTerm, handlers[signal.SIGTERM])
        self.assertEqual(self.reactor.sigInt, handlers[signal.SIGINT])
        service.startService()
        self.reactor.run()  # in memory it stops at once
        self.reactor.hasStopped = False
        self.assertEqual(set(handlers), {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertTrue(self.reactor.hasStopped)
        service.stopService()
        self.assertEqual(set(connection.calls), {"drain"})
        handlers[signal.SIGINT](signal.SIGINT, None)
        self.assertEqual(connection.calls[-1:], ["abort"])
        self.assertEqual(self.lines(), ["SIGTERM received", "SIGINT received"])

    def test_stop_isolated(self) -> None:
        """A port or a connection that raises at a stop does not keep the others from theirs."""
        connection = FakeConnection()
        for each in (FaultyConnection(), connection, FaultyConnection()):
            self.connections.add(each, lambda: None)
        address = IPv4Address("TCP", "0.0.0.0", 1)
        last = Port(address)
        service = self.service(
            ("tcp:1", Port(address, KeyError("x"))),
            ("tcp:2", Port(address, fail(IndexError("x")))),
            ("tcp:3", last),
        )
        service.startService()
        stopped = service.stopService()
        self.assertFalse(last.listening)
        self.assertEqual(set(connection.calls), {"drain"})
        self.assertIn("cannot close tcp:1:", self.lines()[-6:])
        for error, count in ((KeyError, 1), (IndexError, 1), (ZeroDivisionError, 2)):
            self.assertEqual(len(self.flushLoggedErrors(error)), count)
        self.reactor.advance(20)
        self.assertEqual(connection.calls[-1], "abort")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertNoResult(stopped)

    def test_abort_isolated(self) -> None:
        """A port that raises when it is closed by force does not keep the others from theirs."""
        ports = [StreamPort(0, Factory.forProtocol(Protocol)) for _ in range(2)]
        for port in ports:
            self.patch(port, "getHost", lambda: IPv4Address("TCP", "0.0.0.0", 1))
            self.patch(port, "stopListening", Deferred)
        closed: list[None] = []
        self.patch(ports[0], "loseConnection", {}.popitem)
        self.patch(ports[1], "loseConnection", lambda: closed.append(None))
        service = self.service(("tcp:1", ports[0]), ("tcp:1", ports[1]))
        service.startService()
        service.stopService()
        self.reactor.advance(20)
        self.assertEqual(len(closed), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_stop_ends(self) -> None:
        """A stop ends shortly after its timeout, whatever cannot be closed by force until then."""
        closing: Deferred[None] = Deferred()
        service = self.service(("tcp:1", Port(IPv4Address("TCP", "0.0.0.0", 1), closing)))
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        for close in (lambda: closing.callback(None), lambda: self.connections.remove(connection)):
            service.startService()
            stopped = service.stopService()
            self.reactor.advance(20)
            self.assertNoResult(stopped)
            self.reactor.advance(ABORT_TIMEOUT)
            self.successResultOf(stopped)
            self.assertIn("could not be closed", self.lines()[-1])
            self.assertEqual(self.reactor.getDelayedCalls(), [])
            close()

    def test_standard_io(self) -> None:
        """`stdio:` opens something that is not a port; the real ports are closed all the same."""
        self.patch(signal, "signal", lambda number, handler: None)
        self.reactor.running = True
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        service = self.service(("stdio:", StandardIO()), ("tcp:1", port))
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        service.startService()
        self.connections.remove(connection)
        self.assertFalse(self.reactor.hasStopped)
        self.successResultOf(service.stopService())
        self.assertFalse(port.listening)

    def test_standard_io_alone(self) -> None:
        """Without a port, the service ends with its connection; not if there never was one."""
        self.patch(signal, "signal", lambda number, handler: None)
        self.reactor.running = True
        self.service(("stdio:", StandardIO())).startService()
        self.assertFalse(self.reactor.hasStopped)
        connection = FakeConnection()
        self.connections.add(connection, lambda: None)
        self.service(("stdio:", StandardIO())).startService()
        self.assertFalse(self.reactor.hasStopped)
        self.connections.remove(connection)
        self.assertTrue(self.reactor.hasStopped)

    def late(self, *openings: Deferred[Any]) -> EchoService:
        """Start a service of listeners that open later, under a reactor that runs."""
        listeners = [
            Listener(f"late:{number}", lambda opening=opening: opening)  # type: ignore[misc]
            for number, opening in enumerate(openings)
        ]
        service = EchoService(listeners, self.connections, self.reactor, 20, self.reports.append)
        service.privilegedStartService()
        service.startService()
        self.reactor.running = True
        return service

    def test_late(self) -> None:
        """Listeners that open later open once; the start is reported when all are open."""
        openings: list[Deferred[Any]] = [Deferred(), Deferred()]
        ports = [Port(IPv4Address("TCP", "0.0.0.0", number)) for number in (1, 2)]
        service = self.late(*openings)
        openings[1].callback(ports[1])
        self.assertEqual((self.lines(), self.reports), (["listening on late:2"], []))
        openings[0].callback(ports[0])
        self.assertEqual(self.lines()[1:], ["listening on late:1"])
        self.assertEqual(self.reports, [""])
        self.successResultOf(service.stopService())
        self.assertEqual([port.listening for port in ports], [False, False])

    def test_late_failure(self) -> None:
        """A listener that cannot be opened later ends the process with status 1."""
        exits: list[object] = []
        self.patch(atexit, "register", lambda *call: exits.append(call))
        first: Deferred[Any] = Deferred()
        second: Deferred[Any] = Deferred()
        self.late(first, second)
        first.errback(CannotListenError("", 2, OSError(98, "Address already in use")))
        line = "tsecho: cannot listen on late:0: Address already in use"
        self.assertEqual((self.lines(), self.reports), ([line], [line]))
        self.assertEqual(exits, [(os._exit, 1)])
        self.assertTrue(self.reactor.hasStopped)
        # The real one runs until its next turn, and raises if it is stopped again.
        self.reactor.hasStopped, self.reactor.running = False, True
        second.errback(KeyError("x"))
        self.assertFalse(self.reactor.hasStopped)
        self.assertEqual(len(self.reports), 2)

    def test_stop_cancels(self) -> None:
        """A stop cancels what is being opened, and closes a port that opens all the same."""
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        cancelled: list[object] = []
        service = self.late(
            Deferred(cancelled.append), Deferred(lambda opening: opening.callback(port))
        )
        self.successResultOf(service.stopService())
        self.assertEqual(len(cancelled), 1)
        self.assertFalse(port.listening)
        self.assertEqual((self.lines(), self.reports), ([], []))

    def test_late_after_stop(self) -> None:
        """A port that opens after the stop is closed at once, and what it accepted is drained."""
        opening: Deferred[Any] = Deferred()
        service = self.late(opening)
        held = FakeConnection()
        self.connections.add(held, lambda: None)
        service.stopService()
        closing: Deferred[None] = Deferred()
        port = Port(IPv4Address("TCP", "0.0.0.0", 1), closing)
        opening.callback(port)
        self.assertFalse(port.listening)
        accepted = FakeConnection()
        self.connections.add(accepted, lambda: None)
        closing.callback(None)
        self.assertEqual(accepted.calls, ["drain"])
        self.assertEqual(self.lines(), [])

    def test_late_failure_after_stop(self) -> None:
        """A listener that cannot be opened after the stop is of no interest any more."""
        opening: Deferred[Any] = Deferred()
        service = self.late(opening)
        self.successResultOf(service.stopService())
        opening.errback(KeyError("x"))
        self.assertEqual((self.lines(), self.reports), ([], []))

    def test_late_reload(self) -> None:
        """At SIGHUP each listener gets its own port, in whatever order they have opened."""
        openings: list[Deferred[Any]] = [Deferred(), Deferred(), Deferred()]
        ports = [Port(IPv4Address("TCP", "0.0.0.0", number)) for number in range(2)]
        reloaded: list[tuple[int, IListeningPort]] = []

        def reload(number: int, port: IListeningPort) -> Deferred[Any]:
            reloaded.append((number, port))
            return execute(lambda: None)

        service = EchoService(
            [
                Listener(f"ssl:{number}", lambda opening=opening: opening, partial(reload, number))  # type: ignore[misc]
                for number, opening in enumerate(openings)
            ],
            self.connections,
            self.reactor,
        )
        service.startService()
        service._reload()
        self.assertEqual(self.lines()[-1], "SIGHUP received: there are no certificates to reload")
        openings[1].callback(ports[1])
        service._reload()
        self.assertEqual(reloaded, [(1, ports[1])])
        openings[0].callback(ports[0])
        service._reload()
        self.assertEqual(reloaded[1:], [(1, ports[1]), (0, ports[0])])
        service.stopService()
        service._reload()
        self.assertEqual(len(reloaded), 3)
        self.assertEqual(self.lines()[-1], "SIGHUP received: there are no certificates to reload")

    def test_cannot_listen(self) -> None:
        """If a port cannot be opened, the start fails, and the ports before it are closed again."""
        closing: Deferred[None] = Deferred()
        port = Port(IPv4Address("TCP", "0.0.0.0", 1), closing)
        self.reactor.callLater(0, closing.callback, None)
        error = CannotListenError("", 2, OSError(98, "Address already in use"))
        service = self.service(("tcp:1", port), ("tcp:2", error))
        raised = self.assertRaises(CannotListen, service.privilegedStartService)
        self.assertEqual(raised.code, "tsecho: cannot listen on tcp:2: Address already in use")
        self.assertFalse(port.listening)
        self.assertEqual(self.reactor.iterations, 1)

    def test_reported(self) -> None:
        """`report` is called with an empty text after a start, or with the error."""
        reports: list[str] = []
        port = Port(IPv4Address("TCP", "0.0.0.0", 1))
        for result in (port, CannotListenError(None, b"/x", "in use")):
            service = self.service(("tcp:1", result))
            service._report = reports.append
            with contextlib.suppress(CannotListen):
                service.startService()
        self.assertEqual(reports, ["", "tsecho: cannot listen on tcp:1: in use"])

    def test_errors(self) -> None:
        """Any error of an endpoint becomes one line."""
        for error, why in (
            (CannotListenError(None, b"/x", "Cannot acquire lock"), "Cannot acquire lock"),
            (PermissionError(13, "Permission denied"), "Permission denied"),
            (FileNotFoundError(2, "No such file", "/\udcff"), "/\\udcff: No such file"),
            (OverflowError("port must be 0-65535."), "port must be 0-65535."),
        ):
            service = self.service(("tcp:\n", error))
            raised = self.assertRaises(CannotListen, service.startService)
            self.assertEqual(raised.code, f"tsecho: cannot listen on tcp:\\n: {why}")

    def test_exception_types(self) -> None:
        """It is an Exception for twistd, which cleans up, and a SystemExit for Python: one line."""
        self.assertTrue(issubclass(CannotListen, Exception))
        self.assertTrue(issubclass(CannotListen, SystemExit))
        with redirect_stderr(io.StringIO()):
            self.assertRaises(SystemExit, self._raise)

    def _raise(self) -> None:
        raise CannotListen("tsecho: cannot listen")
