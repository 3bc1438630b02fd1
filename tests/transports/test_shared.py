"""Tests for `timestamp_echo.transports.shared`, with real sockets and a real epoll."""

from __future__ import annotations

import re
import select
import socket
from pathlib import Path
from typing import Any

from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.transports.epoll import HAS_EPOLL
from timestamp_echo.transports.reactor import ReactorAdapter
from timestamp_echo.transports.shared import LOOK_INTERVAL

if HAS_EPOLL:
    from twisted.internet.epollreactor import EPollReactor

FACTORY = Factory.forProtocol(Protocol)

KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


class Datagrams(DatagramProtocol):
    """Answers no datagram."""

    def datagramsReceived(self, datagrams: object) -> None:
        """See `DatagramPort`."""


class Poller:
    """A reactor's epoll that records what is registered, and what no longer is."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.calls: list[str] = []

    def register(self, fd: int, events: int) -> None:
        """See `select.epoll`."""
        self.calls.append("exclusive" if events & select.EPOLLEXCLUSIVE else "register")
        self._epoll.register(fd, events)

    def unregister(self, fd: int) -> None:
        """See `select.epoll`."""
        self.calls.append("unregister")
        self._epoll.unregister(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


ANEW = ["unregister", "exclusive"]
"""The calls that go to the end of the kernel's queue."""


class SharedSocketTests(SynchronousTestCase):
    """`SharedSocket`: the ports of TCP and UDP, inherited and not, with Twisted's epoll reactor."""

    if not HAS_EPOLL:
        skip = "there is no epoll here"

    def setUp(self) -> None:
        """Make a reactor that records, with a clock that does not run."""
        self.clock = Clock()
        self.reactor: Any = EPollReactor()
        self.poller: Any = Poller(self.reactor._poller)
        self.patch(self.reactor, "_poller", self.poller)
        self.patch(self.reactor, "callLater", self.clock.callLater)
        self.addCleanup(self.close)
        self.adapter = ReactorAdapter(self.reactor, False)

    def close(self) -> None:
        """Close what the reactor has open."""
        for reader in self.reactor.removeAll():
            reader.connectionLost(Failure(ConnectionError()))
        self.poller.close()

    def adopted(self, kind: int) -> Any:
        """A port on an inherited socket."""
        with socket.socket(type=kind) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.listen()
                return self.adapter.adoptStreamPort(sock.fileno(), socket.AF_INET, FACTORY)
            return self.adapter.adopt_udp(sock.fileno(), socket.AF_INET, Datagrams(), 100)

    def opened(self, kind: int) -> Any:
        """A port of this process's own."""
        if kind == socket.SOCK_STREAM:
            return self.adapter.listenTCP(0, FACTORY, interface="127.0.0.1")
        return self.adapter.listen_udp(0, Datagrams(), "127.0.0.1", 100)

    def send(self, port: Any) -> None:
        """Connect, or send a datagram."""
        client = socket.socket(type=port.socketType)
        self.addCleanup(client.close)
        client.connect(port.socket.getsockname())
        if port.socketType == socket.SOCK_DGRAM:
            client.send(b"x")

    def calls(self) -> list[str]:
        """What was called since the last time."""
        calls: list[str] = self.poller.calls
        self.poller.calls = []
        return calls

    def test_exclusive(self) -> None:
        """The reactor's own epoll watches an inherited socket exclusively, as the kernel says."""
        for kind in KINDS:
            port = self.adopted(kind)
            watched = Path(f"/proc/self/fdinfo/{self.poller.fileno()}").read_text()
            (events,) = re.findall(rf"tfd: +{port.fileno()} events: +(\w+) ", watched)
            self.assertTrue(int(events, 16) & select.EPOLLEXCLUSIVE)

    def test_reported(self) -> None:
        """What comes is reported, again and again until it is taken."""
        for kind in KINDS:
            port = self.adopted(kind)
            self.send(port)
            for _ in range(2):
                self.assertEqual(self.poller.poll(0), [(port.fileno(), select.EPOLLIN)])
            port.doRead()
            self.assertEqual(self.poller.poll(0), [])

    def test_turns(self) -> None:
        """Having taken something, a process goes to the end of the kernel's queue."""
        for kind in KINDS:
            port = self.adopted(kind)
            self.assertEqual(self.calls(), ["register", *ANEW])
            for _ in range(2):
                self.send(port)
                port.doRead()
                self.assertEqual([call for call in self.calls() if call != "register"], ANEW)

    def test_in_vain(self) -> None:
        """A process that was woken for a connection that another one took keeps its place."""
        port = self.adopted(socket.SOCK_STREAM)
        self.send(port)
        port.doRead()
        self.calls()
        port.doRead()
        self.assertEqual(self.calls(), [])

    def test_look(self) -> None:
        """Every half second it looks by itself, for another process may be woken and not act."""
        for kind in KINDS:
            port = self.adopted(kind)
            self.calls()
            for _ in range(3):
                self.clock.advance(LOOK_INTERVAL)
                self.assertEqual(self.calls(), ANEW)
            port.stopListening()
            self.clock.advance(0)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pause(self) -> None:
        """While a port is paused it looks at nothing; then it has one timer again."""
        for kind in KINDS:
            port = self.adopted(kind)
            port.stopReading()
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.calls()
            port.end_turn()
            self.assertEqual(self.calls(), [])
            for _ in range(2):
                port.startReading()
            self.assertEqual(self.calls(), ["register", *ANEW])
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            port.stopReading()

    def test_own(self) -> None:
        """A port of this process's own is watched as usual."""
        for kind in KINDS:
            port = self.opened(kind)
            self.send(port)
            port.doRead()
            self.assertNotIn("exclusive", self.calls())
            self.assertIsNone(port._look_call)

    def test_other_reactors(self) -> None:
        """Another reactor watches an inherited socket as any other, for all processes."""
        memory: Any = MemoryReactorClock()
        self.adapter = ReactorAdapter(memory, False)
        for kind in KINDS:
            port = self.adopted(kind)
            self.addCleanup(port.socket.close)
            self.send(port)
            port.doRead()
            self.assertIn(port, memory.getReaders())
