"""Tests for `timestamp_echo.transports.epoll`: real sockets, served by the test."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyClass

from tests.fakes import Producer
from timestamp_echo.transports import arrivals
from timestamp_echo.transports.epoll import (
    HAS_EPOLL,
    MAX_EVENTS,
    MAX_ROUNDS,
    READ_SIZE,
    EpollGroup,
    StreamTransport,
    TimedStreamTransport,
    UNIXStreamTransport,
)

RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER: a close is a reset (socket(7))."""


@implementer(IHalfCloseableProtocol)
class Kept(Protocol):
    """Keeps what it receives and how it ends, and may do something at each read."""

    transport: Any

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.ends: list[object] = []
        self.act: Callable[[], object] = bool

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.reads.append(data)
        self.act()

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        self.ends.append("half")

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.ends.append(reason.type)


class BatchTests(SynchronousTestCase):
    """`EpollGroup`, with connections over pairs of UNIX sockets."""

    if not HAS_EPOLL:
        skip = "there is no epoll here"

    def setUp(self) -> None:
        """A group without connections."""
        self.reactor = MemoryReactorClock()
        self.group = EpollGroup(self.reactor)

    def connect(self) -> tuple[socket.socket, Kept]:
        """A peer's socket, and the protocol at the other end."""
        ours, peer = socket.socketpair()
        peer.settimeout(10)
        self.addCleanup(peer.close)
        self.addCleanup(ours.close)
        protocol = Kept()
        none: Any = None
        connection = UNIXStreamTransport(
            *(ours, protocol, None, none, 0, self.reactor), group=self.group, max_unsent=READ_SIZE
        )
        protocol.makeConnection(connection)
        return peer, protocol

    def pairs(self, count: int) -> list[tuple[socket.socket, Kept]]:
        """So many connections, each with a byte to be read."""
        pairs = [self.connect() for _ in range(count)]
        for peer, _ in pairs:
            peer.send(b"x")
        return pairs

    def test_interfaces(self) -> None:
        """It is what it says that it is."""
        verifyClass(IReadDescriptor, EpollGroup)
        self.assertEqual(self.group.logPrefix(), "connections")
        self.group.connectionLost(Failure(ConnectionDone()))

    def test_all_ready(self) -> None:
        """One turn serves all that are ready, and no others."""
        pairs = self.pairs(20)
        _, silent = self.connect()
        self.group.doRead()
        self.assertEqual([kept.reads for _, kept in pairs], [[b"x"]] * 20)
        self.assertEqual(silent.reads, [])

    def test_epoll_while_connections(self) -> None:
        """The epoll, and the reactor's interest in it, last as long as there are connections."""
        self.assertEqual(self.group.fileno(), -1)
        self.group.doRead()
        for _ in range(2):
            (_, one), (_, two) = self.connect(), self.connect()
            self.assertEqual(self.reactor.getReaders(), [self.group])
            number = self.group.fileno()
            one.transport.stopReading()
            two.transport.stopReading()
            self.assertEqual(self.reactor.getReaders(), [])
            self.assertRaises(OSError, os.fstat, number)

    def test_its_turn(self) -> None:
        """However many are ready again and again, the rest of the reactor gets its turn."""
        pairs = self.pairs(2 * MAX_EVENTS)
        for peer, kept in pairs:
            kept.act = partial(peer.send, b"x")
        self.group.doRead()
        served = [len(kept.reads) for _, kept in pairs]
        self.assertEqual(sum(served), MAX_ROUNDS * MAX_EVENTS)
        self.assertEqual(set(served), {MAX_ROUNDS // 2})  # and none of them more than another

    def test_closed_by_another(self) -> None:
        """A connection that one before it in the group closes is not read any more."""
        pairs = self.pairs(2)
        gone = Failure(ConnectionDone())
        for _, kept in pairs:
            kept.act = lambda: [other.transport.connectionLost(gone) for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(kept.reads) for _, kept in pairs), [0, 1])
        self.assertEqual(self.reactor.getReaders(), [])

    def test_aborted_by_another(self) -> None:
        """One that is aborted is over in the reactor's next turn."""
        pairs = self.pairs(2)
        for _, kept in pairs:
            kept.act = lambda: [other.transport.abortConnection() for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(kept.reads) for _, kept in pairs), [0, 1])
        self.reactor.advance(0)
        self.assertEqual([kept.ends for _, kept in pairs], [[ConnectionAborted]] * 2)

    def test_paused_by_another(self) -> None:
        """One that is paused is not read, though it was ready when the group began."""
        pairs = self.pairs(2)
        for _, kept in pairs:
            kept.act = lambda: [other.transport.pauseProducing() for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(kept.reads) for _, kept in pairs), [0, 1])
        for _, kept in pairs:
            kept.transport.resumeProducing()
        self.group.doRead()
        self.assertEqual([kept.reads for _, kept in pairs], [[b"x"]] * 2)

    def test_paused_with_unsent(self) -> None:
        """So it is where it is also watched for room to write."""
        pairs = self.pairs(2)
        for _, kept in pairs:
            kept.transport.startWriting()
            kept.act = lambda: [other.transport.pauseProducing() for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(kept.reads) for _, kept in pairs), [0, 1])

    def test_replaced(self) -> None:
        """What is left in the group for a number is not taken for its new owner's."""
        ((_, first),) = self.pairs(1)
        peer, old = self.connect()
        old.transport.pauseProducing()
        old.transport.startWriting()
        peer.close()  # EPOLLHUP, and behind the other's byte
        new: list[tuple[socket.socket, Kept]] = []

        def replace() -> None:
            number = old.transport.fileno()
            while (taken := os.open(os.devnull, os.O_RDONLY)) < number:
                self.addCleanup(os.close, taken)
            self.addCleanup(os.close, taken)
            old.transport.connectionLost(Failure(ConnectionDone()))
            new.append(self.connect())
            self.assertEqual(new[0][1].transport.fileno(), number)

        first.act = replace
        self.group.doRead()
        self.assertEqual(new[0][1].ends, [])
        new[0][0].send(b"y")
        self.group.doRead()
        self.assertEqual((new[0][1].reads, new[0][1].ends), ([b"y"], []))

    def test_exception(self) -> None:
        """A protocol that raises loses its connection, is logged once, and nobody else."""
        pairs = self.pairs(3)
        pairs[1][1].act = {}.popitem
        self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual([kept.ends for _, kept in pairs], [[], [KeyError], []])
        self.assertEqual([kept.reads for _, kept in pairs], [[b"x"]] * 3)

    def test_exception_at_the_end(self) -> None:
        """Nor is anybody else's what a protocol raises when it is told of its end."""
        pairs = self.pairs(3)
        for _, kept in pairs[:2]:
            kept.connectionLost = {}.popitem  # type: ignore[assignment, method-assign]
        pairs[0][1].act = {}.popitem
        peer, kept = pairs[1]
        kept.transport.pauseProducing()
        kept.transport.startWriting()
        peer.close()
        self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(TypeError, KeyError)), 3)
        self.assertEqual(pairs[2][1].reads, [b"x"])
        pairs[2][0].send(b"y")
        self.group.doRead()
        self.assertEqual(pairs[2][1].reads, [b"x", b"y"])

    def test_exception_with_room(self) -> None:
        """A producer that raises when there is room again costs its connection alone."""
        peer, kept = self.connect()
        producer = Producer()
        kept.transport.registerProducer(producer, True)
        producer.resumeProducing = {}.popitem  # type: ignore[assignment, method-assign]
        while not producer.paused:
            kept.transport.write(b"x" * READ_SIZE)
        ((_, other),) = self.pairs(1)
        peer.setblocking(False)
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                peer.recv(2**20)
            self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual((kept.ends, other.reads), ([KeyError], [b"x"]))

    def test_ended_by_its_read(self) -> None:
        """One that ends at a read is not written to, though there was room as well."""
        ((_, kept),) = self.pairs(1)
        kept.transport.startWriting()
        kept.act = lambda: kept.transport.connectionLost(Failure(ConnectionDone()))
        self.group.doRead()
        self.assertEqual((kept.reads, kept.ends), ([b"x"], [ConnectionDone]))

    def test_watched_twice(self) -> None:
        """To be watched again changes nothing, nor does to be let go again."""
        _, kept = self.connect()
        transport = kept.transport
        for start, stop in (
            (transport.startWriting, transport.stopWriting),
            (transport.startReading, transport.stopReading),
        ):
            for call in (start, start, stop, stop):
                call()
        self.assertEqual(self.reactor.getReaders(), [])

    def test_last_bytes_and_reset(self) -> None:
        """What came before a reset is read first, and then its connection ends."""
        peer, kept = self.connect()
        kept.transport.write(b"not read by its peer")
        peer.send(b"x")
        peer.close()  # with bytes unread: a reset
        for _ in range(3):
            self.group.doRead()
        self.assertEqual(kept.reads, [b"x"])
        self.assertIn(kept.ends[-1], (ConnectionLost, "half"))

    def test_half_closed(self) -> None:
        """The peer's close is told to a protocol that goes on writing."""
        peer, kept = self.connect()
        peer.send(b"x")
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.group.doRead()
        self.assertEqual((kept.reads, kept.ends), ([b"x"], ["half"]))
        kept.transport.write(b"last words")
        kept.transport.loseConnection()
        self.group.doRead()
        self.assertEqual(peer.recv(100), b"last words")
        self.assertEqual(kept.ends, ["half", ConnectionDone])

    def test_last_words(self) -> None:
        """What a protocol writes when it hears of the peer's close is delivered, however long."""
        peer, kept = self.connect()

        def last_words() -> None:
            kept.transport.write(b"x" * 10**6)
            kept.transport.loseConnection()

        kept.readConnectionLost = last_words  # type: ignore[method-assign]
        peer.shutdown(socket.SHUT_WR)
        size = 0
        for _ in range(100):
            self.group.doRead()
            size += len(peer.recv(2**20))
        self.assertEqual((size, kept.ends), (10**6, [ConnectionDone]))

    def test_gone_while_paused(self) -> None:
        """A peer that is gone is noticed even if it is not read (EPOLLHUP without EPOLLIN)."""
        peer, kept = self.connect()
        kept.transport.pauseProducing()
        with contextlib.suppress(BlockingIOError):
            while True:
                kept.transport.socket.send(b"x" * READ_SIZE)
        kept.transport.write(b"x")
        peer.close()
        self.group.doRead()
        self.assertEqual(kept.ends, [ConnectionLost])

    def test_writing(self) -> None:
        """What the kernel does not take goes out in order when there is room again."""
        peer, kept = self.connect()
        producer = Producer()
        kept.transport.registerProducer(producer, True)
        texts = [bytes([65 + number]) * 50_000 for number in range(20)]
        for text in texts:
            kept.transport.write(text)
        self.assertTrue(producer.paused)
        peer.setblocking(False)
        got = b""
        while len(got) < 10**6:
            got += peer.recv(2**20)
            self.group.doRead()
        self.assertEqual(got, b"".join(texts))
        self.assertFalse(producer.paused)

    def test_write_after_the_end(self) -> None:
        """What is written to a connection that is over, or closed on this side, is dropped."""
        peer, kept = self.connect()
        transport = kept.transport
        transport.loseWriteConnection()
        self.group.doRead()
        transport.write(b"x")
        self.assertEqual(peer.recv(100), b"")
        transport.connectionLost(Failure(ConnectionDone()))
        transport.write(b"x")
        self.assertEqual(kept.ends, [ConnectionDone])

    def test_error_in_send(self) -> None:
        """An error is not reported from inside `write`, but when it is met again."""
        peer, kept = self.connect()
        peer.close()
        kept.transport.write(b"x")
        self.assertEqual(kept.ends, [])
        kept.transport.pauseProducing()
        self.group.doRead()
        self.assertEqual(kept.ends, [ConnectionLost])


class ConnectionTests(SynchronousTestCase):
    """`TimedStreamTransport` and `StreamTransport`, over TCP."""

    kind: type[StreamTransport] = StreamTransport

    def setUp(self) -> None:
        """A client's socket, and the server's side of its connection."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        if self.kind is TimedStreamTransport:
            arrivals.enable(listener)
        self.client = socket.create_connection(listener.getsockname())
        self.addCleanup(self.client.close)
        accepted, peer = listener.accept()
        self.addCleanup(accepted.close)
        self.kept = Kept()
        none: Any = None
        reactor: Any = MemoryReactorClock()
        self.server: Any = self.kind(
            *(accepted, self.kept, peer, none, 0, reactor), group=reactor, max_unsent=10
        )
        self.kept.makeConnection(self.server)

    def test_watched_by_reactor(self) -> None:
        """Where there is no epoll, the reactor itself watches each connection."""
        self.assertEqual(self.server.reactor.getReaders(), [self.server])
        self.server.stopReading()
        self.server.startWriting()
        self.assertEqual(self.server.reactor.getReaders(), [])
        self.assertEqual(self.server.reactor.getWriters(), [self.server])
        self.server.stopWriting()
        self.assertEqual(self.server.reactor.getWriters(), [])

    def test_names(self) -> None:
        """It is called by its protocol and its peer where Twisted asks."""
        number = self.server.fileno()
        self.assertEqual(self.server.logPrefix(), f"Kept,{number},127.0.0.1")
        self.assertEqual(repr(self.server), f"<{self.kind.__name__} {number} from 127.0.0.1>")

    def test_number(self) -> None:
        """It has its socket's number, and none when it is over."""
        self.assertEqual(self.server.fileno(), self.server.socket.fileno())
        for _ in range(2):
            self.server.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(self.server.fileno(), -1)
        self.assertEqual(self.kept.ends, [ConnectionDone])

    def test_peer(self) -> None:
        """It knows its peer, whose host's text it shares with others."""
        host, port = self.client.getsockname()
        self.assertEqual(self.server.getPeer(), IPv4Address("TCP", host, port))
        self.assertIs(self.server.client[0], sys.intern(host))

    def test_peer_ipv6(self) -> None:
        """The same over IPv6, where a peer has four parts."""
        none: Any = None
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.addCleanup(ours.close)
        reactor: Any = MemoryReactorClock()
        server = self.kind(
            *(ours, Kept(), ("::1", 5000, 0, 0), none, 0, reactor), group=reactor, max_unsent=10
        )
        self.assertEqual(server.getPeer(), IPv6Address("TCP", "::1", 5000))

    def test_sequence(self) -> None:
        """Several pieces are written at once, in order."""
        self.server.writeSequence([b"a", b"bc"])
        self.assertEqual(self.client.recv(10), b"abc")

    def test_nothing_there(self) -> None:
        """A read that finds nothing is no end."""
        self.assertIsNone(self.server.doRead())
        self.assertEqual(self.kept.reads, [])

    def test_closed(self) -> None:
        """The peer's FIN."""
        self.client.close()
        self.assertIs(self.server.doRead(), CONNECTION_DONE)

    def test_reset(self) -> None:
        """The peer's RST."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.close()
        self.assertIs(self.server.doRead(), CONNECTION_LOST)

    def test_reads(self) -> None:
        """A read is as large with a small limit of what may be unsent."""
        self.client.send(b"x" * 1000)
        self.server.doRead()
        self.assertEqual([len(data) for data in self.kept.reads], [1000])


class TimedConnectionTests(ConnectionTests):
    """`TimedStreamTransport`, on a kernel that has arrival times."""

    kind = TimedStreamTransport

    if not arrivals.LINUX:
        skip = "this kernel gives no arrival times"

    def test_arrival(self) -> None:
        """Bytes that waited before they were read have the time at which they came."""
        while not self.server.arrival:  # the kernel begins with it a little after it is asked
            self.client.sendall(b"x")
            self.server.doRead()
        self.kept.reads.clear()
        before = time.time_ns()
        self.client.sendall(b"hello")
        sent = time.time_ns()
        while time.time_ns() < sent + 5_000_000:  # a server that is busy for 5 ms
            pass
        self.assertIsNone(self.server.doRead())
        self.assertEqual(self.kept.reads, [b"hello"])
        # Some 1 ms of slack on either side: the kernel's clock for it may be coarser.
        arrival = self.server.arrival
        self.assertTrue(before - 1_000_000 <= arrival <= sent + 1_000_000, arrival - before)


class UNIXConnectionTests(SynchronousTestCase):
    """`UNIXStreamTransport`: what is other than over TCP."""

    def test_files(self) -> None:
        """A file that the peer passes is closed by the kernel."""
        peer, ours = socket.socketpair()
        self.addCleanup(peer.close)
        self.addCleanup(ours.close)
        kept = Kept()
        none: Any = None
        reactor: Any = MemoryReactorClock()
        connection = UNIXStreamTransport(
            *(ours, kept, None, none, 0, reactor), group=reactor, max_unsent=10
        )
        reader, writer = os.pipe()
        socket.send_fds(peer, [b"x"], [writer])
        os.close(writer)
        connection.doRead()
        self.assertEqual((kept.reads, os.read(reader, 1)), ([b"x"], b""))
        os.close(reader)
