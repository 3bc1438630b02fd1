"""Tests for `timestamp_echo.transports.stream`, with real sockets and a reactor in memory."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
import time
from array import array
from fcntl import ioctl
from termios import FIONREAD
from typing import Any
from unittest import skipIf

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.fakes import FakePort, Recorder
from tests.system.certificates import self_signed
from tests.system.running import PATIENCE
from timestamp_echo.transports import arrivals, stream
from timestamp_echo.transports.stream import (
    READ_SIZE,
    StreamTransport,
    TimedStreamTransport,
    UNIXStreamTransport,
)

RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER: a close is a reset (socket(7))."""


class StreamTransportTests(SynchronousTestCase):
    """`StreamTransport`, over TCP, watched by the reactor itself."""

    kind: type[StreamTransport] = StreamTransport

    def setUp(self) -> None:
        """Connect a client's socket, and make the server's side of the connection."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        if self.kind is TimedStreamTransport:
            arrivals.enable(listener)
        self.client = socket.create_connection(listener.getsockname())
        self.client.settimeout(PATIENCE)
        self.addCleanup(self.client.close)
        accepted, peer = listener.accept()
        self.addCleanup(accepted.close)
        self.recorder = Recorder()
        reactor: Any = MemoryReactorClock()
        self.server: Any = self.kind(
            *(accepted, self.recorder, peer, FakePort(), 0, reactor), group=reactor, max_unsent=10
        )
        self.recorder.makeConnection(self.server)

    def test_watched_by_reactor(self) -> None:
        """Without epoll, the reactor itself watches each connection."""
        self.assertEqual(self.server.reactor.getReaders(), [self.server])
        self.server.stopReading()
        self.server.startWriting()
        self.assertEqual(self.server.reactor.getReaders(), [])
        self.assertEqual(self.server.reactor.getWriters(), [self.server])
        self.server.stopWriting()
        self.assertEqual(self.server.reactor.getWriters(), [])

    def test_names(self) -> None:
        """Its names in the log and in a traceback have the protocol and the peer."""
        number = self.server.fileno()
        self.assertEqual(self.server.logPrefix(), f"Recorder,{number},127.0.0.1")
        self.assertEqual(repr(self.server), f"<{self.kind.__name__} {number} from 127.0.0.1>")

    def test_fileno(self) -> None:
        """It has the file descriptor of its socket, and none after it is lost, also twice."""
        self.assertEqual(self.server.fileno(), self.server.socket.fileno())
        for _ in range(2):
            self.server.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(self.server.fileno(), -1)
        self.assertEqual(self.recorder.ends, [ConnectionDone])

    def test_peer(self) -> None:
        """It knows its peer; connections from one host share the text of its address."""
        host, port = self.client.getsockname()
        self.assertEqual(self.server.getPeer(), IPv4Address("TCP", host, port))
        self.assertIs(self.server.client[0], sys.intern("".join(host)))

    def test_peer_ipv6(self) -> None:
        """A peer over IPv6, whose socket address has four parts."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.addCleanup(ours.close)
        reactor: Any = MemoryReactorClock()
        server = self.kind(
            *(ours, Recorder(), ("::1", 5000, 0, 0), FakePort(), 0, reactor),
            group=reactor,
            max_unsent=10,
        )
        self.assertEqual(server.getPeer(), IPv6Address("TCP", "::1", 5000))

    def test_unread(self) -> None:
        """It knows how many bytes wait to be read, also when it is lost."""
        self.assertEqual(self.server.unread(), 0)
        self.client.sendall(b"x" * 1000)
        self.assertEqual(self.server.unread(), 1000)
        self.server.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.server.unread(), 0)

    def test_unsent(self) -> None:
        """It knows how many bytes the client's host has not received: its own, and the kernel's."""
        self.assertEqual(self.server.unsent(), 0)
        size = 2**24  # more than the kernels take
        self.server.write(b"x" * size)
        read = 0
        while not self.server.offset:
            read += len(self.client.recv(2**20))
            self.server.doWrite()
        self.server.write(b"x" * 1000)
        self.assertTrue(self.server.dataBuffer and self.server._tempDataBuffer)
        # The rest has been received, and waits there to be read; it may still be acknowledged.
        deadline = time.monotonic() + PATIENCE
        while self.server.unsent() + self.received() + read != size + 1000:
            self.assertLess(time.monotonic(), deadline)
        before = self.server.unsent()
        self.server.connectionLost(Failure(ConnectionDone()))
        self.assertLess(self.server.unsent(), before)

    def received(self) -> int:
        """How many bytes wait for the client to read them."""
        count = array("i", [0])
        ioctl(self.client, FIONREAD, count)
        return count[0]

    def test_unsent_elsewhere(self) -> None:
        """Where the kernel does not say, it is what is in its own buffers."""
        self.patch(stream, "LINUX", False)
        self.server.write(b"x" * 2**24)
        self.assertEqual(self.server.unsent(), self.server._tempDataLen)

    def test_read_size(self) -> None:
        """Its reads can be made smaller, but not larger than `READ_SIZE`."""
        self.client.sendall(b"x" * 1000)
        self.server.set_read_size(600)
        self.server.doRead()
        self.server.doRead()
        self.assertEqual([len(data) for data in self.recorder.reads], [600, 400])
        self.server.set_read_size(2 * READ_SIZE)
        self.assertEqual(self.server.read_size, READ_SIZE)

    def test_port(self) -> None:
        """Its end is reported to its port, once."""
        for _ in range(2):
            self.server.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.server.server.closed, 1)

    def test_sequence(self) -> None:
        """`writeSequence` sends all pieces, in order."""
        self.server.writeSequence([b"a", b"bc"])
        self.assertEqual(self.client.recv(10), b"abc")

    def test_nothing_there(self) -> None:
        """A read that finds nothing does not end the connection."""
        self.assertIsNone(self.server.doRead())
        self.assertEqual(self.recorder.reads, [])

    def test_producer(self) -> None:
        """There is one producer at a time, which is stopped at the end."""
        one, two = StringTransport(), StringTransport()
        self.server.registerProducer(one, True)
        self.assertRaises(RuntimeError, self.server.registerProducer, two, True)
        self.server.unregisterProducer()
        self.assertEqual(self.server.reactor.getWriters(), [])
        two.pauseProducing()
        self.server.registerProducer(two, False)  # a pull producer
        self.assertEqual(two.producerState, "producing")
        self.server.unregisterProducer()
        self.server.registerProducer(two, True)
        self.server.loseConnection()
        self.server.stopWriting()
        self.server.unregisterProducer()  # there may be nothing more to wait for
        self.assertEqual(self.server.reactor.getWriters(), [self.server])
        self.server.registerProducer(two, True)
        self.server.connectionLost(Failure(CONNECTION_DONE))
        self.assertEqual(two.producerState, "stopped")
        self.server.registerProducer(one, True)
        self.assertEqual(one.producerState, "stopped")

    def test_closed(self) -> None:
        """The peer's FIN is a clean end."""
        self.client.close()
        self.assertIs(self.server.doRead(), CONNECTION_DONE)

    def test_reset(self) -> None:
        """The peer's RST is a lost connection."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.close()
        self.assertIs(self.server.doRead(), CONNECTION_LOST)

    def test_reset_while_writing(self) -> None:
        """A reset that a write finds is a lost connection, too, once all is read."""
        self.client.sendall(b"last words")
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.close()
        self.server.write(b"x")
        self.assertEqual(self.server.reactor.getWriters(), [self.server])
        self.assertIsNone(self.server.doRead())
        self.assertEqual(self.recorder.reads, [b"last words"])
        self.assertIs(self.server.doRead(), CONNECTION_LOST)
        self.assertIs(self.server.doWrite(), CONNECTION_LOST)

    def test_no_memory_for_a_write(self) -> None:
        """If the kernel has no memory for a write (ENOBUFS), it is tried again; reading goes on."""
        send = self.server.socket

        class Full:
            """A socket that can send nothing."""

            def send(self, data: bytes) -> int:
                raise OSError(errno.ENOBUFS, "No buffer space available")

        self.server.socket = Full()
        self.server.write(b"x")
        self.server.socket = send
        self.server.doWrite()
        self.assertEqual(self.client.recv(10), b"x")
        self.client.close()
        self.assertIs(self.server.doRead(), CONNECTION_DONE)

    def test_write_after_half_close(self) -> None:
        """To write after `loseWriteConnection` does not end the reading."""
        self.server.loseWriteConnection()
        self.server.doWrite()
        self.server.write(b"x")
        self.client.close()
        self.assertIs(self.server.doRead(), CONNECTION_DONE)

    def test_half_close_at_once(self) -> None:
        """`loseWriteConnection` closes this side at once if nothing is unsent."""
        self.server.write(b"x")
        self.server.loseWriteConnection()
        self.assertEqual((self.client.recv(10), self.client.recv(10)), (b"x", b""))
        self.server.connectionLost(Failure(ConnectionDone()))
        self.server.loseWriteConnection()  # changes nothing

    def test_half_close_with_unsent(self) -> None:
        """What is buffered is sent before this side is closed."""
        self.server.buffer_writes()
        self.server.write(b"x")
        self.server.loseWriteConnection()
        self.client.setblocking(False)
        self.assertRaises(BlockingIOError, self.client.recv, 10)
        self.server.doWrite()
        self.assertEqual((self.client.recv(10), self.client.recv(10)), (b"x", b""))

    def test_hold(self) -> None:
        """After `hold`, the client gets nothing before the end of the stream, or some time."""
        self.server.hold()
        self.server.write(b"x")
        self.client.setblocking(False)
        self.assertRaises(BlockingIOError, self.client.recv, 10)
        self.server.loseWriteConnection()
        self.assertEqual((self.client.recv(10), self.client.recv(10)), (b"x", b""))
        self.server.connectionLost(Failure(ConnectionDone()))
        self.server.hold()

    def test_write_after_abort(self) -> None:
        """Nothing is sent after `abortConnection`, only the reset."""
        self.server.abortConnection()
        self.server.write(b"x")
        self.server.reactor.advance(0)
        self.assertRaises(ConnectionResetError, self.client.recv, 1)
        self.assertEqual(self.recorder.ends, [ConnectionAborted])

    def test_start_tls(self) -> None:
        """From `startTLS` on, everything that is written is encrypted."""
        files = self_signed(self.mktemp())
        self.server.write(b"plain")
        self.server.startTLS(DefaultOpenSSLContextFactory(files.key, files.certificate))
        self.server.write(b"secret" * 2**14)  # a shorter write would wait for the reactor
        self.assertEqual(self.client.recv(100), b"plain")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        encrypted, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(encrypted, to_send)
        text = b""
        while not text:
            try:
                text = tls.read()
            except ssl.SSLWantReadError:
                self.client.sendall(to_send.read())
                self.server.doRead()
                self.server.doWrite()
                received = self.client.recv(2**16)
                self.assertNotIn(b"secret", received)
                encrypted.write(received)
        self.assertTrue(text.startswith(b"secret"))

    def test_max_unsent(self) -> None:
        """The size of a read does not depend on `max_unsent`, here 10 bytes."""
        self.client.send(b"x" * 1000)
        self.server.doRead()
        self.assertEqual([len(data) for data in self.recorder.reads], [1000])


class TimedStreamTransportTests(StreamTransportTests):
    """`TimedStreamTransport`, on a kernel that has arrival times."""

    kind = TimedStreamTransport

    if not arrivals.LINUX:
        skip = "this kernel gives no arrival times"

    def test_arrival(self) -> None:
        """Bytes that waited before they were read have the time at which they arrived."""
        while not self.server.arrival:  # the first ones may have none
            self.client.sendall(b"x")
            self.server.doRead()
        self.recorder.reads.clear()
        before = time.time_ns()
        self.client.sendall(b"hello")
        sent = time.time_ns()
        while time.time_ns() < sent + 5_000_000:  # a server that is busy for 5 ms
            pass
        self.assertIsNone(self.server.doRead())
        self.assertEqual(self.recorder.reads, [b"hello"])
        # Some 1 ms of slack on either side: the kernel's clock for it may be coarser.
        arrival = self.server.arrival
        self.assertTrue(before - 1_000_000 <= arrival <= sent + 1_000_000, arrival - before)


@implementer(IFileDescriptorReceiver)
class FileReceiver(Recorder):
    """A `Recorder` of file descriptors."""

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """See `IFileDescriptorReceiver`."""
        self.reads.append(b"file")
        os.close(descriptor)


class UNIXStreamTransportTests(SynchronousTestCase):
    """`UNIXStreamTransport`: the differences from TCP."""

    def connect(self, protocol: Recorder) -> tuple[socket.socket, Any]:
        """Connect a peer with a protocol; return the peer's socket and the transport."""
        peer, ours = socket.socketpair()
        self.addCleanup(peer.close)
        self.addCleanup(ours.close)
        reactor: Any = MemoryReactorClock()
        transport = UNIXStreamTransport(
            *(ours, protocol, None, FakePort(), 0, reactor), group=reactor, max_unsent=10
        )
        protocol.makeConnection(transport)
        return peer, transport

    def test_files(self) -> None:
        """A file descriptor that the peer passes is closed by the kernel."""
        recorder = Recorder()
        peer, transport = self.connect(recorder)
        reader, writer = os.pipe()
        socket.send_fds(peer, [b"x"], [writer])
        os.close(writer)
        transport.doRead()
        self.assertEqual((recorder.reads, os.read(reader, 1)), ([b"x"], b""))
        os.close(reader)

    def test_files_received(self) -> None:
        """A protocol that can receive file descriptors gets them, before the bytes."""
        receiver = FileReceiver()
        peer, transport = self.connect(receiver)
        socket.send_fds(peer, [b"x"], [peer.fileno()])
        transport.doRead()
        self.assertEqual(receiver.reads, [b"file", b"x"])

    def test_files_sent(self) -> None:
        """A file descriptor is sent with the first byte that is written after it."""
        peer, transport = self.connect(Recorder())
        transport.write(b"a")
        transport.sendFileDescriptor(peer.fileno())
        transport.write(b"bc")
        transport.doWrite()
        self.assertEqual(peer.recv(1), b"a")
        data, files, _, _ = socket.recv_fds(peer, 10, 10)
        self.assertEqual((data, len(files)), (b"b", 1))
        os.close(files[0])
        self.assertEqual(peer.recv(10), b"c")

    @skipIf(not arrivals.LINUX, "only Linux keeps what has arrived")
    def test_end_stream(self) -> None:
        """What the peer has sent is read before the end; more of it is refused."""
        recorder = Recorder()
        peer, transport = self.connect(recorder)
        peer.sendall(b"before")
        self.assertFalse(transport.end_stream())
        self.assertRaises(BrokenPipeError, peer.sendall, b"after")
        transport.doRead()
        transport.write(b"reply")
        self.assertTrue(transport.end_stream())
        self.assertEqual(recorder.reads, [b"before"])
        self.assertEqual((peer.recv(10), peer.recv(10)), (b"reply", b""))
        self.assertIs(transport.doRead(), CONNECTION_DONE)

    def test_end_stream_unsent(self) -> None:
        """What is unsent is sent before the end."""
        peer, transport = self.connect(Recorder())
        transport.buffer_writes()
        transport.write(b"reply")
        self.assertTrue(transport.end_stream())
        transport.doWrite()
        peer.setblocking(False)
        self.assertEqual(peer.recv(10), b"reply")
        self.assertRaises(BlockingIOError, peer.recv, 10)

    def test_end_stream_lost(self) -> None:
        """A connection that is lost has ended."""
        _, transport = self.connect(Recorder())
        transport.connectionLost(Failure(ConnectionDone()))
        self.assertTrue(transport.end_stream())
