"""Tests of `EpollGroup` with a real reactor: it sleeps with the connections, and wakes for all."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.system.running import PATIENCE
from timestamp_echo.transports import epoll
from timestamp_echo.transports.reactor import ReactorAdapter

HAS_TIME = epoll._has_time


class Echo(Protocol):
    """Sends back what it receives, and tells its test of every read and of its end."""

    transport: Any

    def __init__(self, test: SleepTests) -> None:
        self._test = test

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.transport.write(data)
        self._test.act(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self._test.lost()


@implementer(IReadDescriptor)
class Pipe:
    """A descriptor of the reactor's own that calls `act` when it is readable."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._reader, self._writer = os.pipe()
        self._act = act

    def write(self) -> None:
        """Make it readable."""
        os.write(self._writer, b"x")

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """See `IFileDescriptor`."""
        return self._reader

    def logPrefix(self) -> str:
        """See `ILoggingContext`."""
        return "pipe"

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor`."""

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        os.read(self._reader, 1)
        self._act()


class SleepTests(SynchronousTestCase):
    """`EpollGroup` under an epoll reactor of its own, with a client that never pauses.

    The reactor runs in this thread, the client in another. A sleep lasts `PATIENCE` here, if
    nothing wakes it: whatever is lost during one fails the test.
    """

    if not epoll.HAS_EPOLL:
        skip = "there is no epoll here"

    def setUp(self) -> None:
        """Listen, and note what happens."""
        self.patch(epoll, "MAX_SLEEP", PATIENCE)
        self.patch(epoll, "_has_time", lambda reactor: self.has_time())
        self.reactor: Any = EPollReactor()
        self.addCleanup(self.close)
        self.slept = threading.Event()
        self.rounds = 0
        self.socks: list[socket.socket] = []
        self.finished = False
        self.act: Callable[[Echo], object] = bool
        self.accepted: Callable[[], object] = bool
        self.lost: Callable[[], object] = bool
        adapter = ReactorAdapter(self.reactor, False)
        self.port: Any = adapter.listenTCP(0, Echoes(self), interface="127.0.0.1")
        self.group: Any = adapter._group
        serve = self.group.serve

        def counted(timeout: float = 0) -> int:
            # Five rounds: the client has sent, and got, its messages during a sleep.
            self.rounds = self.rounds + 1 if timeout else 0
            if self.rounds > 5:
                self.slept.set()
            ready: int = serve(timeout)
            return ready

        self.patch(self.group, "serve", counted)

    def close(self) -> None:
        """Close what the reactor has open."""
        for reader in self.reactor.removeAll():
            reader.connectionLost(Failure(ConnectionError()))
        self.reactor._poller.close()

    def has_time(self) -> bool:
        """As `_has_time`, with the usual length of a sleep: timers are due after longer ones."""
        timeout = self.reactor.timeout()
        return timeout is None or timeout > 0.008

    def done(self) -> None:
        """What the test waits for has happened."""
        if not self.finished:
            self.finished = True
            self.reactor.stop()

    def run_with(self, act: Callable[[], object]) -> None:
        """Run until `done` is called.

        @param act: is called in the client's thread once the group has slept for some messages.
        """
        client = threading.Thread(target=self.talk, args=(act,))
        client.start()
        self.run_reactor(client)
        self.assertTrue(self.finished)
        self.assertTrue(self.slept.is_set())
        self.assertFalse(self.group._sleeping)

    def run_reactor(self, client: threading.Thread) -> None:
        """Run the reactor until it is stopped, then end the client."""
        began = time.monotonic()
        self.reactor.run(installSignalHandlers=False)
        # Not a limit of time, but the difference between woken and not woken.
        self.assertLess(time.monotonic() - began, PATIENCE)
        for sock in self.socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        client.join()

    def talk(self, act: Callable[[], object]) -> None:
        """Send and receive, until the group sleeps; act; go on until the service is gone."""
        with socket.create_connection(self.port.socket.getsockname()) as sock:
            sock.settimeout(PATIENCE)
            self.socks.append(sock)
            acted = False
            while not self.finished:
                try:
                    sock.sendall(b"x")
                    if not sock.recv(1):
                        return
                except OSError:
                    return
                if self.slept.is_set() and not acted:
                    acted = True
                    act()

    def test_thread(self) -> None:
        """A call from a thread is made."""
        self.run_with(lambda: self.reactor.callFromThread(self.done))

    def test_signal(self) -> None:
        """A signal is handled, also if its handler has nothing but `callFromThread`."""
        before = signal.signal(signal.SIGUSR1, lambda *_: self.reactor.callFromThread(self.done))
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        self.run_with(lambda: os.kill(os.getpid(), signal.SIGUSR1))

    def test_descriptor(self) -> None:
        """Another descriptor of the reactor's is served."""
        pipe = Pipe(self.done)
        self.addCleanup(pipe.close)
        self.reactor.addReader(pipe)
        self.run_with(pipe.write)
        self.reactor.removeReader(pipe)

    def test_port(self) -> None:
        """A new connection is accepted without an end to the sleep, and without looking again."""
        sleeping: list[bool] = []
        looks: list[int] = []
        serve_ports = self.group._serve_ports

        def counted(*args: Any) -> bool:
            looks.append(self.rounds)
            only_ports: bool = serve_ports(*args)
            return only_ports

        def accepted() -> None:
            if self.slept.is_set():
                sleeping.append(self.group._sleeping)

        def end_later(_: Echo) -> None:
            if looks and self.rounds > looks[0] + 5:
                self.reactor.callLater(0, self.done)

        self.patch(self.group, "_serve_ports", counted)
        self.accepted, self.act = accepted, end_later

        def connect() -> None:
            socket.create_connection(self.port.socket.getsockname()).close()

        self.run_with(connect)
        self.assertEqual(sleeping, [True])
        self.assertEqual(len(looks), 1)

    def test_failing_port(self) -> None:
        """A port that raises does not keep the connections from being served."""

        def fail() -> None:
            self.port.doRead = accept
            self.act = count
            raise KeyError("port")

        def connect() -> None:
            self.port.doRead = fail
            socket.create_connection(self.port.socket.getsockname()).close()

        def count(_: Echo) -> None:
            served.append(self.rounds)
            if len(served) == 5:
                self.reactor.callLater(0, self.done)

        accept = self.port.doRead
        served: list[int] = []
        self.run_with(connect)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_new_timer(self) -> None:
        """A timer that a protocol sets ends the sleep, if it is due soon."""

        def set_timer(_: Echo) -> None:
            if self.slept.is_set():
                self.act = bool
                self.reactor.callLater(0, self.done)

        self.act = set_timer
        self.run_with(bool)

    def test_later_timer(self) -> None:
        """A timer that is due later does not: the reactor has its turn before."""
        sleeps: list[float] = []

        def set_timer(_: Echo) -> None:
            if self.slept.is_set():
                self.act = lambda _: sleeps.append(self.rounds)
                self.reactor.callLater(0.3, self.done)

        self.act = set_timer
        self.patch(epoll, "MAX_SLEEP", 0.05)
        self.run_with(bool)
        self.assertGreater(max(sleeps), 5)

    def test_not_now(self) -> None:
        """It does not begin with a timer due soon, or with a call from a thread to be made."""
        with socket.create_connection(self.port.socket.getsockname()):
            self.port.doRead()
            taken: list[int] = []
            take_over = self.group._take_over

            def counted(own: Any, reactor: Any) -> Any:
                taken.append(1)
                self.reactor.callFromThread(bool)
                return take_over(own, reactor)

            self.patch(self.group, "_take_over", counted)
            soon = self.reactor.callLater(0.005, bool)
            self.group.doRead()
            self.assertEqual(taken, [])
            while soon.active():
                self.reactor.runUntilCurrent()
            self.reactor.callFromThread(bool)
            self.group.doRead()
            self.assertEqual(taken, [])
            self.reactor.threadCallQueue.clear()
            self.group.doRead()
            self.assertEqual(taken, [1])
            self.finished = True

    def test_long_accept(self) -> None:
        """A sleep ends when to accept has taken longer than it may last."""
        waker = epoll.Waker()
        for end, goes_on in ((time.monotonic() + PATIENCE, True), (time.monotonic(), False)):
            self.assertEqual(self.group._serve_ports(waker, self.reactor, end), goes_on)
        self.finished = True

    def test_has_time(self) -> None:
        """A sleep lasts up to twice `MAX_SLEEP`: timers before that are due too soon."""
        for delay, expected in ((1.9, False), (2.1, True)):
            reactor: Any = Clock()
            reactor.timeout = lambda delay=delay: delay * epoll.MAX_SLEEP
            self.assertEqual(HAS_TIME(reactor), expected)
        reactor.timeout = lambda: None
        self.assertTrue(HAS_TIME(reactor))

    def test_stop(self) -> None:
        """`reactor.stop`, called by a protocol, takes effect after a sleep of the usual length."""
        self.patch(epoll, "MAX_SLEEP", 0.004)
        self.act = lambda _: self.done() if self.slept.is_set() else None
        self.run_with(bool)

    def test_reactor_stops(self) -> None:
        """When the reactor stops, the protocols learn that their connections are lost."""
        ends: list[None] = []
        self.lost = lambda: ends.append(None)
        self.run_with(lambda: self.reactor.callFromThread(self.done))
        self.assertEqual(ends, [None])

    def test_abort(self) -> None:
        """A connection that is aborted during a sleep is lost."""
        self.act = lambda echo: echo.transport.abortConnection() if self.slept.is_set() else None
        self.lost = self.done
        self.run_with(bool)
        self.assertEqual(self.group.fileno(), -1)

    def test_port_closed(self) -> None:
        """The last port and the last connection may be closed during a sleep."""

        def close(echo: Echo) -> None:
            if self.slept.is_set():
                self.port.connectionLost(Failure(ConnectionDone()))
                echo.transport.abortConnection()

        self.act = close
        self.lost = lambda: self.reactor.callLater(0, self.done)
        self.run_with(bool)
        self.assertEqual(self.group.fileno(), -1)

    def test_no_connection(self) -> None:
        """A sleep may end without a connection; then the reactor watches the epoll again."""
        watched: list[bool] = []

        def look() -> None:
            watched.append(self.group.fileno() > -1 and self.group in self.reactor.getReaders())
            self.done()

        self.act = lambda echo: echo.transport.abortConnection() if self.slept.is_set() else None
        self.lost = lambda: self.reactor.callLater(0, look)
        self.run_with(bool)
        self.assertEqual(watched, [True])

    def test_last_connection(self) -> None:
        """The last connection may end during a sleep, and the next be accepted and served.

        There is one epoll as long as the port is open.
        """
        ends: list[int] = []

        def lost() -> None:
            ends.append(self.group.fileno())
            if len(ends) == 2:
                self.reactor.callLater(0, self.done)
            else:
                self.slept.clear()

        def lose(echo: Echo) -> None:
            if self.slept.is_set():
                echo.transport.loseConnection()

        self.act, self.lost = lose, lost
        again = threading.Thread(target=self.talk_twice)
        again.start()
        self.run_reactor(again)
        self.assertTrue(self.finished)
        self.assertEqual(len(set(ends)), 1)
        self.assertGreater(ends[0], -1)
        self.assertEqual(self.group.fileno(), -1)
        self.assertFalse(self.group._sleeping)

    def talk_twice(self) -> None:
        """Two clients, one after the other."""
        self.talk(bool)
        self.talk(bool)

    lost: Callable[[], object] = bool

    def test_back_off(self) -> None:
        """After a sleep in which nobody came, the next turns go without one, ever more of them."""
        self.patch(epoll, "MAX_SLEEP", 0)
        turns: list[int] = []

        def note(_: Echo) -> None:
            turns.append(self.group._sleep_turns)
            if len(turns) == 12:
                self.slept.set()
                self.done()

        self.act = note
        self.run_with(bool)
        self.assertEqual(max(turns), 7)


class Echoes(Factory[Echo]):
    """Builds the protocols of a test."""

    noisy = False

    def __init__(self, test: SleepTests) -> None:
        self.test = test

    def buildProtocol(self, addr: object) -> Echo:
        """See `IProtocolFactory`."""
        self.test.accepted()
        return Echo(self.test)
