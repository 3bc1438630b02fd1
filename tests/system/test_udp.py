"""Tests for `timestamp_echo.transports.udp`: real sockets, and a reactor in memory."""

from __future__ import annotations

import socket
import time
from typing import Any

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.transports import arrivals, udp
from timestamp_echo.transports.udp import (
    BATCH,
    HAS_RECVMMSG,
    MAX_PER_ITERATION,
    PREFIX_ROOM,
    DatagramBatch,
    DatagramPort,
)

PREFIX = b"[now] "


class Answering(DatagramProtocol):
    """Answers all datagrams but those that say no; keeps what it was told of each."""

    def __init__(self) -> None:
        self.came: list[tuple[bytes, Any, int]] = []
        self.failed = 0

    def datagramsReceived(self, datagrams: DatagramBatch) -> None:
        """See `DatagramPort`."""
        for slot in range(datagrams.count):
            message = datagrams.message(slot)
            arrival = datagrams.arrival(slot) if datagrams.timed else 0
            self.came.append((message, datagrams.source(slot), arrival))
            assert not message or message[0] == datagrams.first_bytes[slot]
            if message.startswith(b"no"):
                datagrams.drop(slot)
            else:
                datagrams.reply(slot, PREFIX)
        self.failed += datagrams.send()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """See `DatagramProtocol`."""
        self.came.append((datagram, addr, 0))


class DatagramPortTests(SynchronousTestCase):
    """`DatagramPort` and `DatagramBatch`, on real sockets."""

    if not HAS_RECVMMSG:
        skip = "there is no recvmmsg here"

    def opened(self, interface: str, timed: bool = False) -> tuple[DatagramPort, Answering]:
        """A port, and its protocol."""
        protocol = Answering()
        port = DatagramPort(0, protocol, interface, 65536, MemoryReactorClock())
        port.listen(timed)
        self.addCleanup(port.connectionLost)
        return port, protocol

    def client(self, port: DatagramPort, host: str = "127.0.0.1") -> socket.socket:
        """A client's socket: what it receives has come from there and from nowhere else."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.settimeout(10)
        client.connect((host, port.getHost().port))
        return client

    def test_batch(self) -> None:
        """All that are there are answered at once, each to where it came from."""
        port, protocol = self.opened("127.0.0.1")
        clients = [self.client(port) for _ in range(BATCH)]
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
        port.doRead()
        for number, client in enumerate(clients):
            self.assertEqual(client.recv(100), PREFIX + b"%d" % number)
        expected = [(b"%d" % n, client.getsockname(), 0) for n, client in enumerate(clients)]
        self.assertEqual((protocol.came, protocol.failed), (expected, 0))

    def test_nothing_there(self) -> None:
        """A turn without datagrams."""
        port, protocol = self.opened("127.0.0.1")
        port.doRead()
        self.assertEqual(protocol.came, [])

    def test_places_again(self) -> None:
        """What was in a slot before leaves no trace, however long it was."""
        port, _ = self.opened("127.0.0.1")
        client = self.client(port)
        for message in (b"x" * 60_000, b"", b"y", b"z" * 2000):
            client.send(message)
            port.doRead()
            self.assertEqual(client.recv(2**16), PREFIX + message)

    def test_dropped(self) -> None:
        """Those that are not answered are left out, wherever in the batch they are."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        for messages in (
            [b"no", b"a", b"b"],
            [b"c", b"d", b"e"],
            [b"a", b"no", b"no2", b"b", b"no3", b"c"],
            [b"a", b"no"],
            [b"no", b"no"],
            [b"f"],
        ):
            for message in messages:
                client.send(message)
            port.doRead()
            answered = [message for message in messages if not message.startswith(b"no")]
            self.assertEqual(
                [client.recv(100) for _ in answered], [PREFIX + message for message in answered]
            )
        client.setblocking(False)
        self.assertRaises(BlockingIOError, client.recv, 100)
        self.assertEqual(protocol.failed, 0)

    def test_impossible(self) -> None:
        """A reply that is too long for a datagram is counted, and keeps no other from leaving."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        messages = [b"a", b"x" * 65507, b"no", b"y" * 65507, b"b", b"z" * 65507]
        for message in messages:
            client.send(message)
        port.doRead()
        self.assertEqual([client.recv(2**16) for _ in range(2)], [PREFIX + b"a", PREFIX + b"b"])
        self.assertEqual([message for message, _, _ in protocol.came], messages)
        self.assertEqual(protocol.failed, 3)

    def test_prefixes(self) -> None:
        """Each may have a prefix of its own, up to the longest that there is room for."""
        port, _ = self.opened("127.0.0.1")
        client = self.client(port)
        datagrams: Any = port._batch
        prefixes = [b"a" * PREFIX_ROOM, b"b", b"", b"c" * 50]
        for turn in range(2):
            for _ in prefixes:
                client.send(b"|")
            self.assertEqual(datagrams.receive(), len(prefixes))
            for slot, prefix in enumerate(prefixes):
                datagrams.reply(slot, prefix[turn:])
            self.assertEqual(datagrams.send(), 0)
            for prefix in prefixes:
                self.assertEqual(client.recv(2000), prefix[turn:] + b"|")

    def test_source(self) -> None:
        """A reply leaves from the address that was asked, not from the route's."""
        for timed in (False, True):
            port, _ = self.opened("", timed)
            for number in range(3):
                client = self.client(port, f"127.0.0.{2 + number}")
                client.send(b"x")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"x")

    def test_source_ipv6(self) -> None:
        """So it is over IPv6, to IPv4 peers as well."""
        for timed in (False, True):
            port, protocol = self.opened("::", timed)
            for host, seen in (("::1", "::1"), ("127.0.0.3", "::ffff:127.0.0.1")):
                client = self.client(port, host)
                client.send(b"x")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"x")
                (_, source, _) = protocol.came.pop()
                self.assertEqual(source, (seen, client.getsockname()[1]))

    def test_arrival(self) -> None:
        """Each datagram has the time at which it came."""
        port, protocol = self.opened("127.0.0.1", timed=True)
        client = self.client(port)
        moments = []
        for _ in range(5):
            before = time.time_ns()
            client.send(b"x")
            moments.append((before, time.time_ns()))
        port.doRead()
        self.assertEqual(len(protocol.came), 5)
        for (before, after), (_, _, arrival) in zip(moments, protocol.came, strict=True):
            # Some 1 ms of slack on either side: the kernel's clock for it may be coarser.
            self.assertTrue(before - 1_000_000 <= arrival <= after + 1_000_000, arrival - before)

    def test_no_arrival(self) -> None:
        """A kernel that does not say when: the datagrams are answered all the same."""
        self.patch(arrivals, "enable", lambda sock: None)
        for interface in ("127.0.0.1", ""):
            port, protocol = self.opened(interface, timed=True)
            client = self.client(port)
            for _ in range(2):
                client.send(b"x")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"x")
            self.assertEqual([arrival for _, _, arrival in protocol.came], [0, 0])

    def test_said_again(self) -> None:
        """What the kernel is told, and has told, of one batch is not taken for the next one's."""
        port, _ = self.opened("", timed=True)
        client = self.client(port)
        datagrams: Any = port._batch
        whole = datagrams._control_sizes.tolist()
        for _ in range(2):
            client.send(b"x")
            datagrams._control_sizes[0] = 0
            self.assertEqual(datagrams.receive(), 1)
            self.assertEqual(datagrams._control_sizes.tolist(), whole)
            self.assertEqual(set(datagrams._interfaces), {0})
            self.assertGreater(datagrams.arrival(0), 0)

    def test_its_turn(self) -> None:
        """After so many the others get their turn, and then the rest."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        for _ in range(MAX_PER_ITERATION + 5):
            client.send(b"no")
        port.doRead()
        self.assertEqual(len(protocol.came), MAX_PER_ITERATION)
        port.doRead()
        self.assertEqual(len(protocol.came), MAX_PER_ITERATION + 5)

    def test_exception(self) -> None:
        """A protocol that raises is logged, and its port goes on."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        raising = self.patch(protocol, "datagramsReceived", {}.__getitem__)
        client.send(b"x")
        port.doRead()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        raising.restore()
        client.send(b"y")
        port.doRead()
        self.assertEqual(client.recv(100), PREFIX + b"y")

    def test_elsewhere(self) -> None:
        """Without these calls datagrams are received one by one, as many in a turn."""
        self.patch(udp, "HAS_RECVMMSG", False)
        port, protocol = self.opened("127.0.0.1", timed=True)
        client = self.client(port)
        client.send(b"x" * 60_000)
        for _ in range(MAX_PER_ITERATION):
            client.send(b"")
        port.doRead()
        self.assertEqual(protocol.came[0], (b"x" * 60_000, client.getsockname(), 0))
        self.assertEqual(len(protocol.came), MAX_PER_ITERATION)
        port.doRead()
        self.assertEqual(len(protocol.came), MAX_PER_ITERATION + 1)
        port.write(b"reply", client.getsockname())
        self.assertEqual(client.recv(100), b"reply")

    def test_error_elsewhere(self) -> None:
        """An error that came for an earlier reply does not close the port."""
        self.patch(udp, "HAS_RECVMMSG", False)
        port, protocol = self.opened("127.0.0.1")
        unreachable: Any = Unreachable()
        patched = self.patch(port, "socket", unreachable)
        port.doRead()
        patched.restore()
        self.assertEqual(protocol.came, [])

    def test_not_allowed(self) -> None:
        """So it is where they are there and a filter does not let them pass."""
        forbidding = Forbidding(udp._LIBC)
        self.patch(udp, "_LIBC", forbidding)
        port, protocol = self.opened("127.0.0.1")
        self.client(port).send(b"x")
        port.doRead()
        self.assertEqual([message for message, _, _ in protocol.came], [b"x"])


class Unreachable:
    """A socket with an error."""

    def recvfrom(self, size: int) -> bytes:
        """See `socket.socket`."""
        raise OSError(113, "No route to host")


class Forbidding:
    """The C library, without leave to send several datagrams at once."""

    def __init__(self, library: Any) -> None:
        self.recvmmsg = library.recvmmsg

    def sendmmsg(self, *_: object) -> int:
        """What a filter in front of it says."""
        return -1
