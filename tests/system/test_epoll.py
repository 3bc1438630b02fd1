"""Tests for `timestamp_echo.transports.epoll`, with real sockets and a reactor in memory."""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
from functools import partial
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocol, IReadDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer_only
from zope.interface.verify import verifyClass

from tests.fakes import FakePort, Producer, Recorder
from timestamp_echo.transports import epoll
from timestamp_echo.transports.epoll import (
    HAS_EPOLL,
    MAX_EVENTS,
    MAX_QUICK,
    MAX_ROUNDS,
    MAX_SECONDS,
    EpollGroup,
)
from timestamp_echo.transports.stream import READ_SIZE, UNIXStreamTransport


@implementer_only(IProtocol)
class WithoutHalfClose(Recorder):
    """A `Recorder` that is not half-closeable."""


class EpollGroupTests(SynchronousTestCase):
    """`EpollGroup`, with connections over pairs of UNIX sockets."""

    if not HAS_EPOLL:
        skip = "there is no epoll here"

    def setUp(self) -> None:
        """Make a group without connections, for which no read takes long."""
        self.patch(epoll, "monotonic", lambda: 0.0)
        self.reactor = MemoryReactorClock()
        self.group = EpollGroup(self.reactor)

    def connect(
        self, max_unsent: int = READ_SIZE, protocol: Recorder | None = None
    ) -> tuple[socket.socket, Recorder]:
        """Make a connection: the peer's socket, and the protocol at the other end."""
        ours, peer = socket.socketpair()
        peer.settimeout(10)
        self.addCleanup(peer.close)
        self.addCleanup(ours.close)
        protocol = Recorder() if protocol is None else protocol
        connection = UNIXStreamTransport(
            *(ours, protocol, None, FakePort(), 0, self.reactor),
            group=self.group,
            max_unsent=max_unsent,
        )
        protocol.makeConnection(connection)
        return peer, protocol

    def pairs(self, count: int) -> list[tuple[socket.socket, Recorder]]:
        """Make this many connections, each with a byte to read."""
        pairs = [self.connect() for _ in range(count)]
        for peer, _ in pairs:
            peer.send(b"x")
        return pairs

    def test_interfaces(self) -> None:
        """The class implements the interface that it declares."""
        verifyClass(IReadDescriptor, EpollGroup)
        self.assertEqual(self.group.logPrefix(), "connections")
        self.group.connectionLost(Failure(ConnectionDone()))

    def test_all_ready(self) -> None:
        """One `doRead` serves all connections that are ready, and no others."""
        pairs = self.pairs(20)
        _, silent = self.connect()
        self.group.doRead()
        self.assertEqual([recorder.reads for _, recorder in pairs], [[b"x"]] * 20)
        self.assertEqual(silent.reads, [])

    def test_epoll_while_connections(self) -> None:
        """The epoll exists, and the reactor watches it, only while there are connections."""
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

    def test_epoll_while_ports(self) -> None:
        """While a port is open, the epoll stays for the next connection."""
        for port_first in (True, False):
            port = FileDescriptor(self.reactor)
            port.fileno = lambda: 7  # type: ignore[method-assign]
            self.group.add_port(port)
            self.assertEqual(self.group.fileno(), -1)
            _, recorder = self.connect()
            ends = [recorder.transport.abortConnection, partial(self.group.remove_port, port)]
            number = self.group.fileno()
            for end in reversed(ends) if port_first else ends:
                self.assertEqual(self.group.fileno(), number)
                self.assertEqual(self.reactor.getReaders(), [self.group])
                end()
            self.assertEqual(self.group.fileno(), -1)
            self.assertEqual(self.reactor.getReaders(), [])

    def test_port_without_connections(self) -> None:
        """A port that never had a connection leaves nothing."""
        port = FileDescriptor(self.reactor)
        self.group.add_port(port)
        self.group.remove_port(port)
        self.assertEqual(self.group.fileno(), -1)

    def test_bounded(self) -> None:
        """One `doRead` serves a bounded number, so that timers and ports do not wait for long."""
        pairs = self.pairs(2 * MAX_EVENTS)
        for peer, recorder in pairs:
            recorder.act = partial(peer.send, b"x")
        self.group.doRead()
        served = [len(recorder.reads) for _, recorder in pairs]
        self.assertEqual(sum(served), MAX_ROUNDS * MAX_EVENTS)
        self.assertEqual(set(served), {MAX_ROUNDS // 2})  # none is served more often than another

    def take(self, *durations: float) -> tuple[list[tuple[socket.socket, Recorder]], list[int]]:
        """Make connections whose reads take these times; return them, and the order of reads."""
        now = 0.0
        order: list[int] = []
        self.patch(epoll, "monotonic", lambda: now)
        pairs = self.pairs(len(durations))

        def read(number: int) -> None:
            nonlocal now
            order.append(number)
            now += durations[number]
            pairs[number][0].send(b"x")

        for number, (_, recorder) in enumerate(pairs):
            recorder.act = partial(read, number)
        return pairs, order

    def test_slow_last(self) -> None:
        """A connection whose last read took long is served after the others, if there is time."""
        _, order = self.take(2 * MAX_QUICK, 0, 0)
        for _ in range(2):
            self.group.serve()
        self.assertEqual(order, [0, 1, 2, 1, 2, 0])

    def test_slow_ends_round(self) -> None:
        """A read that takes too long ends the round: the others are served first in the next."""
        _, order = self.take(2 * MAX_SECONDS, 0, 0)
        for _ in range(3):
            self.group.serve()
        self.assertEqual(order, [0, 1, 2, 0, 1, 2, 0])

    def test_slow_take_turns(self) -> None:
        """Of those that take long, each round serves one at least, the longest waiting first."""
        _, order = self.take(*[2 * MAX_SECONDS] * 3, 0)
        for _ in range(7):
            self.group.serve()
        # 0; 1 is new, and 0; 2 is new, and 1; then in turn, with 3 always in front.
        self.assertEqual(order, [0, 1, 0, 2, 1, 3, 0, 3, 2, 3, 1, 3, 0])

    def test_quick_again(self) -> None:
        """A connection that took long once is served with the others after a quick read."""
        pairs, order = self.take(2 * MAX_QUICK, 0)
        self.group.serve()
        pairs[0][1].act = partial(order.append, 0)
        self.group.serve()
        pairs[0][0].send(b"x")
        self.group.serve()
        self.assertEqual(order, [0, 1, 1, 0, 0, 1])

    def test_slow_end(self) -> None:
        """Of slow connections other events are handled, too; one that has ended is not read."""
        pairs, _ = self.take(2 * MAX_QUICK, 2 * MAX_QUICK)
        self.group.serve()
        pairs[0][1].act = bool
        pairs[0][0].shutdown(socket.SHUT_WR)
        pairs[1][1].transport.pauseProducing()
        pairs[1][1].transport.startWriting()
        for _ in range(3):
            self.group.serve()
        self.assertEqual(pairs[0][1].ends, ["half"])
        self.assertEqual(pairs[1][1].ends, [])
        pairs[1][1].transport.resumeProducing()
        pairs[1][1].act = lambda: pairs[1][1].transport.connectionLost(Failure(ConnectionDone()))
        self.group.serve()
        self.assertEqual(pairs[1][1].ends, [ConnectionDone])

    def do_both(self, act: Any, recorder: Recorder, gone: Failure) -> None:
        """Act, then end the connection."""
        act()
        recorder.transport.connectionLost(gone)

    def test_slow_at_its_end(self) -> None:
        """A connection that ends in a slow read leaves no mark for another with its number."""
        pairs, _ = self.take(2 * MAX_QUICK, 2 * MAX_QUICK)
        gone = Failure(ConnectionDone())
        for _, recorder in pairs:
            recorder.act = partial(self.do_both, recorder.act, recorder, gone)
        self.group.serve()
        self.assertEqual(self.group._slow, {})

    def test_closed_by_another(self) -> None:
        """A connection that another closes in the same round is not read any more."""
        pairs = self.pairs(2)
        gone = Failure(ConnectionDone())
        for _, recorder in pairs:
            recorder.act = lambda: [other.transport.connectionLost(gone) for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(recorder.reads) for _, recorder in pairs), [0, 1])
        self.assertEqual(self.reactor.getReaders(), [])

    def test_aborted_by_another(self) -> None:
        """An aborted connection is lost in the reactor's next iteration."""
        pairs = self.pairs(2)
        for _, recorder in pairs:
            recorder.act = lambda: [other.transport.abortConnection() for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(recorder.reads) for _, recorder in pairs), [0, 1])
        self.reactor.advance(0)
        self.assertEqual([recorder.ends for _, recorder in pairs], [[ConnectionAborted]] * 2)

    def test_paused_by_another(self) -> None:
        """A connection that another pauses is not read, although it was ready."""
        pairs = self.pairs(2)
        for _, recorder in pairs:
            recorder.act = lambda: [other.transport.pauseProducing() for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(recorder.reads) for _, recorder in pairs), [0, 1])
        for _, recorder in pairs:
            recorder.transport.resumeProducing()
        self.group.doRead()
        self.assertEqual([recorder.reads for _, recorder in pairs], [[b"x"]] * 2)

    def test_paused_while_writing(self) -> None:
        """The same holds if it is also watched for room to write."""
        pairs = self.pairs(2)
        for _, recorder in pairs:
            recorder.transport.startWriting()
            recorder.act = lambda: [other.transport.pauseProducing() for _, other in pairs]
        self.group.doRead()
        self.assertEqual(sorted(len(recorder.reads) for _, recorder in pairs), [0, 1])

    def test_reused_descriptor(self) -> None:
        """A stale event is not taken for one of the connection that has its descriptor now."""
        ((_, first),) = self.pairs(1)
        peer, old = self.connect()
        old.transport.pauseProducing()
        old.transport.startWriting()
        peer.close()  # EPOLLHUP, reported after the other's byte
        new: list[tuple[socket.socket, Recorder]] = []

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
        """A protocol that raises is logged and loses its connection; the others are served."""
        pairs = self.pairs(3)
        pairs[1][1].act = {}.popitem
        self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual([recorder.ends for _, recorder in pairs], [[], [KeyError], []])
        self.assertEqual([recorder.reads for _, recorder in pairs], [[b"x"]] * 3)

    def test_exception_in_connection_lost(self) -> None:
        """The same holds for an exception in `connectionLost`."""
        pairs = self.pairs(3)
        for _, recorder in pairs[:2]:
            recorder.connectionLost = {}.popitem  # type: ignore[assignment, method-assign]
        pairs[0][1].act = {}.popitem
        peer, recorder = pairs[1]
        recorder.transport.pauseProducing()
        recorder.transport.startWriting()
        peer.close()
        self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(TypeError, KeyError)), 3)
        self.assertEqual(pairs[2][1].reads, [b"x"])
        pairs[2][0].send(b"y")
        self.group.doRead()
        self.assertEqual(pairs[2][1].reads, [b"x", b"y"])

    def test_exception_in_producer(self) -> None:
        """The same holds for a producer that raises when there is room to write again."""
        peer, recorder = self.connect()
        producer = Producer()
        recorder.transport.registerProducer(producer, True)
        producer.resumeProducing = {}.popitem  # type: ignore[assignment, method-assign]
        while not producer.paused:
            recorder.transport.write(b"x" * READ_SIZE)
        ((_, other),) = self.pairs(1)
        peer.setblocking(False)
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                peer.recv(2**20)
            self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual((recorder.ends, other.reads), ([KeyError], [b"x"]))

    def test_ended_by_its_read(self) -> None:
        """A connection that ends at a read is not written to in the same round."""
        ((_, recorder),) = self.pairs(1)
        recorder.transport.startWriting()
        recorder.act = lambda: recorder.transport.connectionLost(Failure(ConnectionDone()))
        self.group.doRead()
        self.assertEqual((recorder.reads, recorder.ends), ([b"x"], [ConnectionDone]))

    def test_watched_twice(self) -> None:
        """Starting or stopping to watch twice is the same as once."""
        _, recorder = self.connect()
        transport = recorder.transport
        for start, stop in (
            (transport.startWriting, transport.stopWriting),
            (transport.startReading, transport.stopReading),
        ):
            for call in (start, start, stop, stop):
                call()
        self.assertEqual(self.reactor.getReaders(), [])

    def test_last_bytes_and_reset(self) -> None:
        """Bytes that arrived before a reset are read before the connection ends."""
        peer, recorder = self.connect()
        recorder.transport.write(b"not read by its peer")
        peer.send(b"x")
        peer.close()  # with bytes unread: a reset
        for _ in range(3):
            self.group.doRead()
        self.assertEqual(recorder.reads, [b"x"])
        self.assertIn(recorder.ends[-1], (ConnectionLost, "half"))

    def test_half_closed(self) -> None:
        """When the peer closes its side, the protocol can still write."""
        peer, recorder = self.connect()
        peer.send(b"x")
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.group.doRead()
        self.assertEqual((recorder.reads, recorder.ends), ([b"x"], ["half"]))
        self.assertEqual(self.reactor.getReaders(), [])  # nothing to read or to write
        recorder.transport.write(b"last reply")
        recorder.transport.loseConnection()
        self.group.doRead()
        self.assertEqual(peer.recv(100), b"last reply")
        self.assertEqual(recorder.ends, ["half", ConnectionDone])

    def test_last_reply(self) -> None:
        """A reply written in `readConnectionLost` is delivered, however long it is."""
        peer, recorder = self.connect()

        def last_reply() -> None:
            recorder.transport.write(b"x" * 10**6)
            recorder.transport.loseConnection()

        recorder.readConnectionLost = last_reply  # type: ignore[method-assign]
        peer.shutdown(socket.SHUT_WR)
        size = 0
        for _ in range(100):
            self.group.doRead()
            size += len(peer.recv(2**20))
        self.assertEqual((size, recorder.ends), (10**6, [ConnectionDone]))

    def test_gone_while_paused(self) -> None:
        """The loss of a peer is noticed while reading is paused (EPOLLHUP without EPOLLIN)."""
        peer, recorder = self.connect()
        recorder.transport.pauseProducing()
        with contextlib.suppress(BlockingIOError):
            while True:
                recorder.transport.socket.send(b"x" * READ_SIZE)
        recorder.transport.write(b"x")
        peer.close()
        self.group.doRead()
        self.assertEqual(recorder.ends, [ConnectionLost])

    def test_buffered(self) -> None:
        """Bytes that the kernel does not take are sent, in order, when there is room again."""
        peer, recorder = self.connect()
        producer = Producer()
        recorder.transport.registerProducer(producer, True)
        texts = [bytes([65 + number]) * 50_000 for number in range(20)]
        for text in texts:
            recorder.transport.write(text)
        self.assertTrue(producer.paused)
        peer.setblocking(False)
        got = b""
        while len(got) < 10**6:
            got += peer.recv(2**20)
            self.group.doRead()
        self.assertEqual(got, b"".join(texts))
        self.assertFalse(producer.paused)

    def test_write_after_the_end(self) -> None:
        """Bytes written after the connection, or this side of it, has closed are dropped."""
        peer, recorder = self.connect()
        transport = recorder.transport
        transport.loseWriteConnection()
        self.group.doRead()
        transport.write(b"x")
        self.assertEqual(peer.recv(100), b"")
        transport.connectionLost(Failure(ConnectionDone()))
        transport.write(b"x")
        self.assertEqual(recorder.ends, [ConnectionDone])

    def test_error_in_send(self) -> None:
        """An error in `write` is not raised there: the connection ends in the next round."""
        peer, recorder = self.connect()
        peer.close()
        recorder.transport.write(b"x")
        self.assertEqual(recorder.ends, [])
        self.group.doRead()
        self.assertEqual(recorder.ends, [ConnectionLost])

    def test_pull_producer(self) -> None:
        """A producer that waits to be asked is asked for more, also when all of it went out."""
        peer, recorder = self.connect()
        for _ in range(2):
            sent = FileSender().beginFileTransfer(io.BytesIO(b"x" * 100_000), recorder.transport)
            got = b""
            while len(got) < 100_000:
                self.group.doRead()
                got += peer.recv(2**20)
            self.group.doRead()
            self.successResultOf(sent)

    def test_pull_producer_half_closed(self) -> None:
        """A pull producer is asked for the rest also when the peer has closed its side."""
        peer, recorder = self.connect()
        FileSender().beginFileTransfer(io.BytesIO(b"x" * 100_000), recorder.transport)
        self.patch(recorder, "readConnectionLost", recorder.transport.loseConnection)
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        got = b""
        while len(got) < 100_000:
            self.group.doRead()
            got += peer.recv(2**20)
        self.group.doRead()
        self.assertEqual(recorder.ends, [ConnectionDone])

    def test_abort_when_half_closed(self) -> None:
        """An abort right after `loseConnection`, when the peer has closed its side, is an abort."""
        peer, recorder = self.connect()

        def lose_and_abort() -> None:
            recorder.transport.loseConnection()
            recorder.transport.abortConnection()

        self.patch(recorder, "readConnectionLost", lose_and_abort)
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.reactor.advance(0)
        self.assertEqual(recorder.ends, [ConnectionAborted])

    def test_reactor_stops(self) -> None:
        """When the reactor stops, each connection ends, also after one that raises."""
        (_, one), (_, two), (peer, three) = (self.connect() for _ in range(3))
        self.patch(one, "connectionLost", self.fail)
        two.transport.startWriting()
        two.transport.stopReading()
        three.transport.startWriting()
        port = FileDescriptor(self.reactor)
        self.group.add_port(port)
        self.group.connectionLost(Failure(CONNECTION_LOST))
        self.assertEqual([two.ends, three.ends], [[ConnectionLost]] * 2)
        self.assertEqual(peer.recv(1), b"")
        self.assertEqual(len(self.flushLoggedErrors(self.failureException)), 1)
        self.assertEqual(self.group.fileno(), -1)
        self.group.remove_port(port)

    def test_closed_elsewhere(self) -> None:
        """A socket closed under a connection does not end the group, nor does a duplicate of it."""
        peer, recorder = self.connect()
        _, other = self.connect()
        fd = recorder.transport.fileno()
        duplicate = os.dup(fd)
        self.addCleanup(os.close, duplicate)
        os.close(recorder.transport.socket.detach())
        recorder.transport.stopReading()
        peer.send(b"x")
        self.group.doRead()
        self.group._any_event(fd, select.EPOLLHUP)
        self.assertEqual((recorder.reads, other.ends), ([], []))

    def test_half_closed_while_writing(self) -> None:
        """A close of the peer is a half-close also while bytes are unsent (EPOLLIN, EPOLLOUT)."""
        peer, recorder = self.connect()
        recorder.transport.startWriting()
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.assertEqual(recorder.ends, ["half"])
        recorder.transport.write(b"last reply")
        self.assertEqual(peer.recv(100), b"last reply")

    def test_broken_reader(self) -> None:
        """EPOLLHUP without EPOLLIN means, as in Twisted, that a reader has read everything."""
        _, recorder = self.connect()
        self.group._any_event(recorder.transport.fileno(), select.EPOLLHUP)
        self.assertEqual(recorder.ends, ["half"])

    def test_broken_writer(self) -> None:
        """For a connection that is only written to, it means that unsent bytes are lost."""
        _, recorder = self.connect()
        recorder.transport.startWriting()
        recorder.transport.pauseProducing()
        self.group._any_event(recorder.transport.fileno(), select.EPOLLHUP)
        self.assertEqual(recorder.ends, [ConnectionLost])

    def test_closed_without_half_close(self) -> None:
        """A protocol without half-close loses its connection when the peer closes its side."""
        peer, recorder = self.connect(protocol=WithoutHalfClose())
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.assertEqual(recorder.ends, [ConnectionDone])

    def test_no_idle_events(self) -> None:
        """After everything is sent, a connection is watched only for bytes to read."""
        _, recorder = self.connect()
        fd = recorder.transport.fileno()
        recorder.transport.startWriting()
        own: Any = self.group._epoll
        self.assertEqual(own.poll(0), [(fd, select.EPOLLOUT)])
        self.group.doRead()
        self.assertEqual(own.poll(0), [])

    def test_paused_has_no_events(self) -> None:
        """A connection that is paused while bytes are unsent is watched only for room."""
        peer, recorder = self.connect()
        peer.send(b"x")
        recorder.transport.startWriting()
        recorder.transport.pauseProducing()
        own: Any = self.group._epoll
        self.assertEqual(own.poll(0), [(recorder.transport.fileno(), select.EPOLLOUT)])

    def test_close_after_half_close(self) -> None:
        """A close in `readConnectionLost` with nothing unsent closes at once, without an event."""
        peer, recorder = self.connect()
        recorder.readConnectionLost = recorder.transport.loseConnection  # type: ignore[method-assign]
        self.patch(self.group, "addWriter", {}.popitem)  # must not be called
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.assertEqual(recorder.ends, [ConnectionDone])
        self.assertEqual(self.reactor.getReaders(), [])

    def test_exception_after_last_reply(self) -> None:
        """A protocol that writes a long reply and raises has one error logged, and is lost."""
        peer, recorder = self.connect()

        def write_and_raise() -> None:
            recorder.transport.write(b"x" * 10**6)
            raise KeyError

        recorder.readConnectionLost = write_and_raise  # type: ignore[method-assign]
        peer.shutdown(socket.SHUT_WR)
        self.group.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(recorder.ends, [KeyError])

    def test_order_of_buffered(self) -> None:
        """While bytes are buffered, later ones are sent after them, although there is room."""
        peer, recorder = self.connect()
        with contextlib.suppress(BlockingIOError):
            while True:
                recorder.transport.socket.send(b"-" * 1000)
        received = b""
        for text in (b"a" * 10**6, b"b", b"c"):
            recorder.transport.write(text)
            received += peer.recv(2**16)
            if text == b"b":
                self.group.doRead()  # sends a part of what is buffered
        peer.setblocking(False)
        while not received.endswith(b"c"):
            with contextlib.suppress(BlockingIOError):
                received += peer.recv(2**20)
            self.group.doRead()
        self.assertEqual(received.lstrip(b"-"), b"a" * 10**6 + b"bc")

    def test_max_unsent(self) -> None:
        """A producer is paused when more than `max_unsent` bytes are unsent, not before."""
        for max_unsent in (1000, 10**6):
            _, recorder = self.connect(max_unsent)
            with contextlib.suppress(BlockingIOError):
                while True:
                    recorder.transport.socket.send(b"x" * 100)
            producer = Producer()
            recorder.transport.registerProducer(producer, True)
            recorder.transport.write(b"x" * max_unsent)
            self.assertFalse(producer.paused)
            recorder.transport.write(b"x")
            self.assertTrue(producer.paused)
