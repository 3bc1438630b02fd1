"""Tests for `timestamp_echo.transports.udp`, with real sockets and a reactor in memory."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from socket import AF_INET
from typing import Any

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.transports import arrivals, udp
from timestamp_echo.transports.reactor import ReactorAdapter
from timestamp_echo.transports.udp import (
    BATCH,
    HAS_RECVMMSG,
    MAX_PER_ITERATION,
    PREFIX_ROOM,
    RECEIVE_BUFFER,
    DatagramBatch,
    DatagramPort,
    _enlarge_buffer,
)

PREFIX = b"[now] "

BROADCAST, GROUP = "127.255.255.255", "ff0e::7473"


def multicast_interface() -> int:
    """The index of an interface by which this host hears its own IPv6 multicast; 0: none."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        sock.settimeout(0)
        for index, _ in socket.if_nameindex():
            with contextlib.suppress(OSError):
                sock.sendto(b"", ("ff02::1", sock.getsockname()[1], 0, index))
                sock.recv(1)
                return index
    return 0


def close(port: DatagramPort) -> None:
    """Close a port, if the test has not."""
    if port.connected:
        port.connectionLost()


class Recorder(DatagramProtocol):
    """Records all datagrams, and answers those that do not begin with "no"."""

    transport: Any

    def __init__(self) -> None:
        self.received: list[tuple[bytes, Any, int]] = []
        self.groups: list[bytes] = []
        self.failed = 0

    def datagramsReceived(self, datagrams: DatagramBatch) -> None:
        """See `DatagramPort`."""
        for slot in range(datagrams.count):
            message = datagrams.message(slot)
            arrival = datagrams.arrival(slot) if datagrams.timed else 0
            self.received.append((message, datagrams.source(slot), arrival))
            assert not message or message[0] == datagrams.first_bytes[slot]
            if slot in datagrams.groups:
                self.groups.append(message)
            if message.startswith(b"no"):
                datagrams.drop(slot)
            else:
                datagrams.reply(slot, PREFIX)
        self.failed += datagrams.send()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """See `DatagramProtocol`."""
        self.received.append((datagram, addr, 0))
        if self.transport.to_group:
            self.groups.append(datagram)
        if datagram == b"raise":
            raise KeyError


class DatagramPortTests(SynchronousTestCase):
    """`DatagramPort` and `DatagramBatch`, on real sockets."""

    if not HAS_RECVMMSG:
        skip = "there is no recvmmsg here"

    def opened(self, interface: str, timed: bool = False) -> tuple[DatagramPort, Recorder]:
        """Open a port on this address, with a protocol."""
        protocol = Recorder()
        port = DatagramPort(0, protocol, interface, 65536, MemoryReactorClock())
        port.listen(timed)
        self.addCleanup(close, port)
        return port, protocol

    def client(self, port: DatagramPort, host: str = "127.0.0.1") -> socket.socket:
        """A connected socket: it receives only what comes from this address of the port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.settimeout(10)
        client.connect((host, port.getHost().port))
        return client

    def test_batch(self) -> None:
        """All datagrams that have arrived are answered at once, each to its source."""
        port, protocol = self.opened("127.0.0.1")
        clients = [self.client(port) for _ in range(BATCH)]
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
        port.doRead()
        for number, client in enumerate(clients):
            self.assertEqual(client.recv(100), PREFIX + b"%d" % number)
        expected = [(b"%d" % n, client.getsockname(), 0) for n, client in enumerate(clients)]
        self.assertEqual((protocol.received, protocol.failed), (expected, 0))

    def test_no_datagrams(self) -> None:
        """A read that finds no datagrams does nothing."""
        port, protocol = self.opened("127.0.0.1")
        port.doRead()
        self.assertEqual(protocol.received, [])

    def test_reused_slots(self) -> None:
        """A reply has nothing of the datagram that was in its slot before, long or short."""
        port, _ = self.opened("127.0.0.1")
        client = self.client(port)
        for message in (b"x" * 60_000, b"", b"y", b"z" * 2000):
            client.send(message)
            port.doRead()
            self.assertEqual(client.recv(2**16), PREFIX + message)

    def test_dropped(self) -> None:
        """Dropped datagrams are not answered, wherever in the batch they are."""
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

    def test_too_long(self) -> None:
        """A reply that is too long for a datagram is counted, and the others are sent."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        messages = [b"a", b"x" * 65507, b"no", b"y" * 65507, b"b", b"z" * 65507]
        for message in messages:
            client.send(message)
        port.doRead()
        self.assertEqual([client.recv(2**16) for _ in range(2)], [PREFIX + b"a", PREFIX + b"b"])
        self.assertEqual([message for message, _, _ in protocol.received], messages)
        self.assertEqual(protocol.failed, 3)

    def test_prefixes(self) -> None:
        """Each reply may have its own prefix, of up to `PREFIX_ROOM` bytes."""
        port, _ = self.opened("127.0.0.1")
        client = self.client(port)
        datagrams: Any = port._batch
        prefixes = [b"a" * PREFIX_ROOM, b"b", b"", b"c" * 50]
        for start in range(2):
            for _ in prefixes:
                client.send(b"|")
            self.assertEqual(datagrams.receive(), len(prefixes))
            for slot, prefix in enumerate(prefixes):
                datagrams.reply(slot, prefix[start:])
            self.assertEqual(datagrams.send(), 0)
            for prefix in prefixes:
                self.assertEqual(client.recv(2000), prefix[start:] + b"|")

    def test_source(self) -> None:
        """A reply is sent from the address that the datagram was sent to (IP_PKTINFO)."""
        for timed in (False, True):
            port, _ = self.opened("", timed)
            for number in range(3):
                client = self.client(port, f"127.0.0.{2 + number}")
                client.send(b"x")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"x")

    def test_source_ipv6(self) -> None:
        """The same holds over IPv6, and for IPv4 peers of an IPv6 socket."""
        for timed in (False, True):
            port, protocol = self.opened("::", timed)
            for host, seen in (("::1", "::1"), ("127.0.0.3", "::ffff:127.0.0.1")):
                client = self.client(port, host)
                client.send(b"x")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"x")
                (_, source, _) = protocol.received.pop()
                self.assertEqual(source, (seen, client.getsockname()[1]))

    def test_arrival(self) -> None:
        """Each datagram has its arrival time."""
        port, protocol = self.opened("127.0.0.1", timed=True)
        client = self.client(port)
        moments = []
        for _ in range(5):
            before = time.time_ns()
            client.send(b"x")
            moments.append((before, time.time_ns()))
        port.doRead()
        self.assertEqual(len(protocol.received), 5)
        for (before, after), (_, _, arrival) in zip(moments, protocol.received, strict=True):
            # Some 1 ms of slack on either side: the kernel's clock for it may be coarser.
            self.assertTrue(before - 1_000_000 <= arrival <= after + 1_000_000, arrival - before)

    def test_no_arrival(self) -> None:
        """Where the kernel gives no arrival times, datagrams are answered all the same."""
        self.patch(arrivals, "enable", lambda sock: None)
        for interface in ("127.0.0.1", ""):
            port, protocol = self.opened(interface, timed=True)
            client = self.client(port)
            for _ in range(2):
                client.send(b"x")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"x")
            self.assertEqual([arrival for _, _, arrival in protocol.received], [0, 0])

    def test_source_after_no_arrival(self) -> None:
        """A datagram without an arrival time has no effect on later ones in its slot."""
        enabled = self.patch(arrivals, "enable", lambda sock: None)
        port, protocol = self.opened("", timed=True)
        self.client(port).send(b"x")
        port.doRead()
        enabled.restore()
        arrivals.enable(port.socket)
        client = self.client(port, "127.0.0.2")
        client.send(b"y")
        port.doRead()
        self.assertEqual(client.recv(100), PREFIX + b"y")
        self.assertGreater(protocol.received[1][2], 0)

    def test_sizes_reset(self) -> None:
        """The sizes that the kernel wrote for one batch are reset for the next."""
        port, _ = self.opened("", timed=True)
        client = self.client(port)
        datagrams: Any = port._batch
        full = datagrams._control_sizes.tolist()
        for _ in range(3):
            for _ in range(2):
                client.send(b"x")
            self.assertEqual(datagrams.receive(), 2)
            self.assertEqual(datagrams._control_sizes.tolist(), full)
            interfaces, *_ = datagrams._pktinfo_columns[BATCH]
            self.assertEqual(set(interfaces), {0})
            for slot in range(2):
                self.assertGreater(datagrams.arrival(slot), 0)
                datagrams._control_sizes[slot] = 0

    def test_bounded(self) -> None:
        """One read handles a bounded number, so that the reactor's timers do not wait for long."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        for _ in range(MAX_PER_ITERATION + 5):
            client.send(b"no")
        port.doRead()
        self.assertEqual(len(protocol.received), MAX_PER_ITERATION)
        port.doRead()
        self.assertEqual(len(protocol.received), MAX_PER_ITERATION + 5)

    def test_exception(self) -> None:
        """An exception of the protocol is logged, and does not close the port."""
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

    def unbatched(self, interface: str) -> tuple[DatagramPort, Recorder]:
        """Open a port as on a system without recvmmsg(2)."""
        patched = self.patch(udp, "HAS_RECVMMSG", False)
        opened = self.opened(interface)
        patched.restore()
        return opened

    def test_broadcast(self) -> None:
        """A datagram to a broadcast address is recognized, however the port is bound and read."""
        for opened in (self.opened, self.unbatched):
            for interface, own in (
                ("", "127.0.0.2"),
                ("0.0.0.0", "127.0.0.1"),
                ("127.0.0.1", "127.0.0.1"),
                ("127.0.0.2", "127.0.0.2"),
            ):
                port, protocol = opened(interface)
                client, number = self.broadcasting(), port.getHost().port
                for message, host in ((b"all", BROADCAST), (b"1", own), (b"all", BROADCAST)):
                    client.sendto(message, (host, number))
                port.doRead()
                client.sendto(b"2", (own, number))
                port.doRead()
                received = [message for message, _, _ in protocol.received]
                wildcard = interface in ("", "0.0.0.0")
                self.assertEqual(protocol.groups, [b"all"] * 2 * wildcard)
                self.assertEqual([each for each in received if each != b"all"], [b"1", b"2"])

    def test_broadcast_bind(self) -> None:
        """A port that is bound to a broadcast address gets nothing else."""
        for opened in (self.opened, self.unbatched):
            port, protocol = opened(BROADCAST)
            client = self.broadcasting()
            for message in (b"1", b"2"):
                client.sendto(message, (BROADCAST, port.getHost().port))
            port.doRead()
            self.assertEqual(protocol.groups, [b"1", b"2"])

    def test_own_address(self) -> None:
        """On a port that is bound to this host's address, pktinfo costs nothing."""
        for interface, wanted in (("127.0.0.1", 0), ("", 1)):
            for opened in (self.opened, self.unbatched):
                port, _ = opened(interface)
                self.assertEqual(port.socket.getsockopt(*udp._FAMILIES[AF_INET].option), wanted)

    def broadcasting(self) -> socket.socket:
        """An IPv4 socket that may send to broadcast addresses."""
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.settimeout(0)
        return client

    def test_ipv4_broadcast_to_ipv6(self) -> None:
        """An IPv6 port does not answer an IPv4 broadcast: the kernel refuses to send the reply."""
        client = self.broadcasting()
        for interface in ("::", f"::ffff:{BROADCAST}"):
            port, protocol = self.opened(interface)
            client.sendto(b"x", (BROADCAST, port.getHost().port))
            port.doRead()
            self.assertEqual((len(protocol.received), protocol.failed), (1, 1))
            self.assertRaises(BlockingIOError, client.recv, 100)
            port, protocol = self.unbatched(interface)
            client.sendto(b"x", (BROADCAST, port.getHost().port))
            port.doRead()
            self.assertEqual(protocol.groups, [b"x"])

    def test_multicast(self) -> None:
        """The same for IPv6 multicast."""
        scope = multicast_interface()
        if not scope:
            self.skipTest("no interface has IPv6 multicast")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            member = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("@I", scope)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            for opened in (self.opened, self.unbatched):
                for interface in ("::", GROUP):
                    port, protocol = opened(interface)
                    number = port.getHost().port
                    for message, host in ((b"x", GROUP), (b"y", "::1"), (b"z", GROUP)):
                        client.sendto(message, (host, number, 0, scope * (host == GROUP)))
                    port.doRead()
                    self.assertEqual(protocol.groups, [b"x", b"z"])
                    self.assertEqual(len(protocol.received), 2 + (interface == "::"))

    def test_exception_without_recvmmsg(self) -> None:
        """An exception of the protocol is logged; the datagrams behind it are received."""
        port, protocol = self.unbatched("127.0.0.1")
        client = self.client(port)
        for message in (b"a", b"raise", b"b"):
            client.send(message)
        port.doRead()
        self.assertEqual([message for message, _, _ in protocol.received], [b"a", b"raise", b"b"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_large_buffer(self) -> None:
        """A receive buffer that is larger by the host's own default stays as it is."""

        class Socket:
            """A socket with a large buffer, whose options cannot be set."""

            def getsockopt(self, level: int, option: int) -> int:
                return 2 * RECEIVE_BUFFER

        sock: Any = Socket()
        _enlarge_buffer(sock)

    def test_burst(self) -> None:
        """The buffer holds a burst that is much longer than the kernel's default does."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        for _ in range(400):
            client.send(b"no")
        while len(protocol.received) < 400:
            before = len(protocol.received)
            port.doRead()
            self.assertGreater(len(protocol.received), before)
        self.assertEqual(port.overflows(), 0)

    def test_overflows(self) -> None:
        """Datagrams that find the buffer full are counted, each of them once."""
        port, protocol = self.opened("127.0.0.1")
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        client = self.client(port)
        for _ in range(2):
            for _ in range(20):
                client.send(b"no")
            port.doRead()
            self.assertEqual(port.overflows(), 20 - len(protocol.received))
            self.assertEqual(port.overflows(), 0)
            protocol.received.clear()

    def test_overflows_unknown(self) -> None:
        """Where the kernel does not say how many there were, none are counted."""
        port, _ = self.opened("127.0.0.1")
        self.patch(udp, "_SO_MEMINFO", -1)
        self.assertEqual(port.overflows(), 0)

    def stop(self, port: DatagramPort, meanwhile: Callable[[], object] = bool) -> None:
        """Stop the port, which Twisted does in two iterations of the reactor.

        @param meanwhile: is called between them.
        """
        stopped: Any = port.stopListening()
        meanwhile()
        reactor: Any = port.reactor
        reactor.advance(0)
        self.successResultOf(stopped)

    def test_stop(self) -> None:
        """A stop answers all that is in the buffer, also what comes until the port is closed."""
        for opened in (self.opened, self.unbatched):
            port, protocol = opened("127.0.0.1")
            client = self.client(port)
            for _ in range(2 * MAX_PER_ITERATION + 1):
                client.send(b"no")
            self.stop(port, partial(client.send, b"last"))
            self.assertEqual(len(protocol.received), 2 * MAX_PER_ITERATION + 2)
            self.assertEqual((protocol.received[-1][0], port.unread), (b"last", 0))

    def test_stop_in_a_flood(self) -> None:
        """A stop answers as many as fit into the buffer, and counts as many; then it closes."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)
        fits = port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 512
        batch: Any = port._batch
        receive = batch.receive

        def flooded() -> int:
            for _ in range(BATCH):
                client.send(b"no")
            count: int = receive()
            return count

        self.patch(batch, "receive", flooded)
        self.stop(port)
        self.assertGreaterEqual(len(protocol.received), fits)
        self.assertLessEqual(len(protocol.received), fits + MAX_PER_ITERATION)

    def test_unread(self) -> None:
        """What a stop leaves in the buffer is counted."""
        port, protocol = self.opened("127.0.0.1")
        client = self.client(port)
        self.patch(port, "doRead", lambda: None)
        for _ in range(7):
            client.send(b"x")
        self.assertEqual(port._discard(2), 2)
        self.stop(port)
        self.assertEqual((protocol.received, port.unread), ([], 5))

    def test_inherited(self) -> None:
        """A stop leaves what is in an inherited socket's buffer to the next process."""
        port, protocol = self.opened("127.0.0.1")
        port.inherited = True
        client = self.client(port)
        with port.socket.dup() as other:
            client.send(b"x")
            self.stop(port)
            self.assertEqual((protocol.received, port.unread), ([], 0))
            self.assertEqual(other.recv(10), b"x")

    def adopted(self, sock: socket.socket, timed: bool = False) -> tuple[DatagramPort, Recorder]:
        """Inherit a bound socket."""
        protocol = Recorder()
        sock.setblocking(False)
        adapter = ReactorAdapter(MemoryReactorClock(), timed)
        port = adapter.adopt_udp(sock.fileno(), sock.family, protocol, 65536)
        self.addCleanup(close, port)
        return port, protocol

    def test_adopted(self) -> None:
        """An inherited socket is prepared like one of this process's own; others may have it."""
        for host, local in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "::1")):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind((host, 0))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
                port, _ = self.adopted(sock)
                self.assertTrue(port.inherited)
                client = self.client(port, local)  # receives what leaves from there alone
                client.send(b"hello")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"hello")
                size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                self.assertGreater(size, 2**17)
                close(port)
                client.send(b"to the next")
                self.assertEqual(sock.recv(100), b"to the next")

    def test_adopted_by_several(self) -> None:
        """Whatever stamps the processes write that have a socket: each answers, and knows times."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("0.0.0.0", 0))
            ports = [self.adopted(sock, timed) for timed in (False, True, False)]
            client = self.client(ports[0][0], "127.0.0.2")
            for port, protocol in ports:
                client.send(b"hello")
                port.doRead()
                self.assertEqual(client.recv(100), PREFIX + b"hello")
                self.assertGreater(protocol.received[0][2], 0)

    def test_without_recvmmsg(self) -> None:
        """Without recvmmsg(2) datagrams are received one by one, as many per read."""
        self.patch(udp, "HAS_RECVMMSG", False)
        port, protocol = self.opened("127.0.0.1", timed=True)
        client = self.client(port)
        client.send(b"x" * 60_000)
        for _ in range(MAX_PER_ITERATION):
            client.send(b"")
        port.doRead()
        self.assertEqual(protocol.received[0], (b"x" * 60_000, client.getsockname(), 0))
        self.assertEqual(len(protocol.received), MAX_PER_ITERATION)
        port.doRead()
        self.assertEqual(len(protocol.received), MAX_PER_ITERATION + 1)
        port.write(b"reply", client.getsockname())
        self.assertEqual(client.recv(100), b"reply")

    def test_error_without_recvmmsg(self) -> None:
        """An ICMP error about an earlier reply does not close the port."""
        self.patch(udp, "HAS_RECVMMSG", False)
        port, protocol = self.opened("127.0.0.1")
        unreachable: Any = Unreachable()
        patched = self.patch(port, "socket", unreachable)
        port.doRead()
        patched.restore()
        self.assertEqual(protocol.received, [])

    def test_not_allowed(self) -> None:
        """The same holds where a filter, such as a container's, forbids sendmmsg(2)."""
        forbidding = Forbidding(udp._LIBC)
        self.patch(udp, "_LIBC", forbidding)
        port, protocol = self.opened("127.0.0.1")
        self.client(port).send(b"x")
        port.doRead()
        self.assertEqual([message for message, _, _ in protocol.received], [b"x"])


class Unreachable:
    """A socket with a pending error."""

    def recvmsg(self, size: int, ancillary_size: int) -> bytes:
        """See `socket.socket`."""
        raise OSError(113, "No route to host")


class Forbidding:
    """The C library, with a filter that forbids sendmmsg(2)."""

    def __init__(self, library: Any) -> None:
        self.recvmmsg = library.recvmmsg

    def sendmmsg(self, *_: object) -> int:
        """Fail, as the filter makes it."""
        return -1
