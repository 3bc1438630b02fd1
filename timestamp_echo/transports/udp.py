"""Datagrams, received and sent many at a time: recvmmsg(2) and sendmmsg(2), on Linux only.

Theory of operation. Python's sockets take one system call for each datagram, and make objects of
its bytes and its source. Here one recvmmsg(2) takes up to `BATCH` datagrams, each into a slot of
its own, and one sendmmsg(2) sends the replies from where they lie. The two calls are made through
ctypes, which passes them the addresses of C structures. These are laid out once, at the start::

    slot 0                               slot 1
    +--------------+-------------------+--------------+-------------------+---
    |  ...prefix   | datagram          |  ...prefix   | datagram          |
    +--------------+-------------------+--------------+-------------------+---
    ^ PREFIX_ROOM    ^ maximum size

    received[i]: mmsghdr -> name[i]     where the kernel writes the sender's address
                         -> bodies[i]   an iovec: the datagram's part of the slot
                         -> control[i]  ancillary data: arrival time, then pktinfo
    sent[i]:     mmsghdr -> name[i]     the same address: the reply goes back there
                         -> replies[2i], replies[2i + 1]
                                        two iovecs: the prefix, and the datagram behind it
                         -> control[i]  the same pktinfo: the reply leaves from that address

So a reply is not built at all: the prefix is copied to the beginning of its slot, unless it is
there already (datagrams of the same second share theirs), and the sizes of the two pieces are set.
The kernel gathers them into one datagram (`struct iovec`, readv(2)).

ctypes is slow at turning numbers into objects, so the few numbers that are read or written for
each datagram are accessed through memoryviews over the structures (`_column`).

Knows a UDP socket and memory; no stamp, and not which datagrams are answered.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ctypes import Structure, addressof, c_char, c_int, c_size_t, c_uint, c_void_p, sizeof
from functools import lru_cache
from typing import Any, Literal

from twisted.internet import udp
from twisted.python import log
from twisted.python.failure import Failure

from timestamp_echo.transports import arrivals
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.shared import SharedSocket

_LIBC: Any = ctypes.CDLL(None)  # its functions are made when they are first asked for

HAS_RECVMMSG = LINUX and hasattr(_LIBC, "recvmmsg")
"""Whether there are these calls. Elsewhere datagrams are received one by one."""

BATCH = 32
"""Datagrams that are received at a time. They take 2 MiB, of which the kernel provides only the
pages that are used. With twice as many, a datagram costs 3 % less."""

PREFIX_ROOM = 1024
"""Bytes reserved in front of each datagram for the prefix of its reply."""

MAX_PER_ITERATION = 128
"""Datagrams per iteration of the reactor: at some 5 microseconds for each, and 30 for the longest,
its timers and other ports wait for 1 to 4 ms."""

RECEIVE_BUFFER = 2**20
"""Bytes of receive buffer to ask for. The kernel doubles it, and takes 832 bytes of it for a short
datagram, so it holds 2,500. Without privileges it may be smaller (net.core.rmem_max)."""

_MIN_HELD = 512  # bytes of the receive buffer that a datagram takes at the least

_CACHED_SOURCES = 2**12  # whose addresses are not formatted again

# ip(7) and ipv6(7). Python has IP_PKTINFO from 3.14 on; the numbers are Linux's.
_IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8)
_IPV6_RECVPKTINFO: int = getattr(socket, "IPV6_RECVPKTINFO", 49)
_IPV6_PKTINFO: int = getattr(socket, "IPV6_PKTINFO", 50)

# `struct in_pktinfo`: the local address, then the one that the datagram was sent to. For a
# datagram to this host alone they are the same.
_LOCAL, _ASKED = slice(4, 8), slice(8, 12)

_MULTICAST = 0xFF  # the first byte of every IPv6 multicast address (RFC 4291, section 2.7)

# socket(7) and asm-generic/socket.h; Python has neither.
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55
_DROPS = slice(32, 36)  # in what SO_MEMINFO returns: SK_MEMINFO_DROPS of linux/sock_diag.h

_ANCILLARY_SIZE = socket.CMSG_SPACE(20) + socket.CMSG_SPACE(12)  # pktinfo of IPv6, and of IPv4

_CMSG_DATA = socket.CMSG_LEN(0)  # where the value begins in a piece of ancillary data (cmsg(3))

_SIZE_T: Literal["P"] = "P"  # a memoryview's format of `size_t`, which is as large as a pointer


class iovec(Structure):  # noqa: N801  # this and the next two are named as in the man pages
    """`struct iovec` of readv(2): a piece of memory."""

    _fields_ = (("base", c_void_p), ("size", c_size_t))


class msghdr(Structure):  # noqa: N801
    """`struct msghdr` of recvmsg(2): where a datagram goes, or lies."""

    _fields_ = (
        ("name", c_void_p),
        ("name_size", c_uint),
        ("iovecs", c_void_p),
        ("iovec_count", c_size_t),
        ("control", c_void_p),
        ("control_size", c_size_t),
        ("flags", c_int),
    )


class mmsghdr(Structure):  # noqa: N801
    """`struct mmsghdr` of recvmmsg(2): the same, and how many bytes the datagram had."""

    _fields_ = (("header", msghdr), ("size", c_uint))


class _Family:
    """What differs between IPv4 and IPv6.

    @param sockaddr: the layout of `struct sockaddr_in` or `sockaddr_in6`: its port and address.
    @param option: the socket option that asks for pktinfo (ip(7), ipv6(7)).
    @param pktinfo_size: bytes of `struct in_pktinfo` or `in6_pktinfo`.
    @param interface_offset: where in it the index of the interface is.
    """

    def __init__(
        self, sockaddr: str, option: tuple[int, int], pktinfo_size: int, interface_offset: int
    ) -> None:
        self.sockaddr = struct.Struct(sockaddr)
        self.option = option
        self.pktinfo_size = socket.CMSG_SPACE(pktinfo_size)
        self.interface_offset = interface_offset


_FAMILIES = {
    socket.AF_INET: _Family("!2xH4s8x", (socket.IPPROTO_IP, _IP_PKTINFO), 12, 0),
    socket.AF_INET6: _Family("!2xH4x16s4x", (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO), 20, 16),
}


@lru_cache(_CACHED_SOURCES)
def _source(name: bytes) -> tuple[str, int]:
    """The IP address, without a scope, and the port in a `sockaddr_in` or `sockaddr_in6`."""
    ipv4 = len(name) == _FAMILIES[socket.AF_INET].sockaddr.size
    family = socket.AF_INET if ipv4 else socket.AF_INET6
    port, packed = _FAMILIES[family].sockaddr.unpack(name)
    return socket.inet_ntop(family, packed), port


def _column(array: Any, offset: int, kind: Literal["I", "P"]) -> memoryview:
    """One number of each structure in an array.

    @param array: a ctypes array of structures.
    @param offset: where in each structure the number is.
    @param kind: its format, as in `struct`.
    """
    size = struct.calcsize(kind)
    return memoryview(array).cast("B").cast(kind)[offset // size :: sizeof(array[0]) // size]


def _beginnings(*columns: memoryview) -> list[list[memoryview]]:
    """The columns, cut to the first 0, 1, 2 and so on up to all slots.

    Writing or comparing a longer column takes longer, and most batches are short.
    """
    return [[column[:count] for column in columns] for count in range(BATCH + 1)]


class DatagramBatch:
    """The datagrams of one batch, each in a slot from 0 to `count`.

    @param sock: a UDP socket that does not block, of IPv4 or IPv6.
    @param pktinfo: whether the address that a datagram was sent to matters, because the socket is
        not bound to one of this host's. If so, replies leave from it, and `groups` is maintained.
    @param timed: whether arrival times are wanted.
    @param size: bytes of the longest datagram.
    """

    count = 0
    """How many datagrams there are."""

    timed: bool
    """Whether `arrival` may be called."""

    groups: Sequence[int] = ()
    """The slots whose datagrams were sent to a broadcast or multicast address. On an IPv6 socket,
    IPv4 broadcasts are not among them; but the kernel sends nothing from their address (`send`)."""

    first_bytes: memoryview
    """The first byte of each datagram; arbitrary for an empty one."""

    def __init__(self, sock: socket.socket, pktinfo: bool, timed: bool, size: int) -> None:
        family = _FAMILIES[sock.family]
        self._ipv4 = sock.family == socket.AF_INET
        self.timed = timed
        self._pktinfo = pktinfo
        self._dropped: list[int] = []  # slots without a reply, in order
        self._prefixes = [b""] * BATCH  # what each slot has in its room for a prefix
        self._without_pktinfo: list[int] = []  # slots of this batch whose replies have none
        self._lay_out(family, size)
        # Made once: to make them anew takes ctypes as long as the rest of a call.
        self._fd = c_int(sock.fileno())
        self._receive_into = c_void_p(addressof(self._received))
        sent = addressof(self._sent)
        self._send_from = [c_void_p(sent + i * sizeof(mmsghdr)) for i in range(BATCH)]
        self._link()
        self._make_columns(family)
        if pktinfo:
            sock.setsockopt(*family.option, 1)
        if timed:
            arrivals.enable(sock)

    def _lay_out(self, family: _Family, size: int) -> None:
        """Allocate the slots and the structures, of `BATCH` datagrams each."""
        self._name_size = family.sockaddr.size
        # The kernel writes the arrival time in front of pktinfo.
        self._pktinfo_offset = arrivals.ANCILLARY_SIZE if self.timed else 0
        self._pktinfo_size = family.pktinfo_size if self._pktinfo else 0
        self._control_size = self._pktinfo_offset + self._pktinfo_size
        self._slot_size = PREFIX_ROOM + size
        # Anonymous memory: a page takes no room until it is first used.
        self._memory = mmap.mmap(-1, BATCH * self._slot_size, mmap.MAP_PRIVATE)
        self._names = ctypes.create_string_buffer(BATCH * self._name_size)
        name = self._name_size
        self._name_slices = [slice(i * name, (i + 1) * name) for i in range(BATCH)]
        self._controls = ctypes.create_string_buffer(BATCH * self._control_size or 1)
        self._received, self._sent = (mmsghdr * BATCH)(), (mmsghdr * BATCH)()
        self._bodies, self._replies = (iovec * BATCH)(), (iovec * (2 * BATCH))()

    def _link(self) -> None:
        """Point the structures at each other and into the slots, as drawn at the top."""
        # All addresses are fixed from here on, so that a call passes nothing but the address of
        # the first `mmsghdr`. The buffers must stay alive, and in place, as long as this object:
        # ctypes does not know that the structures point at them. The attributes hold them.
        memory = addressof(c_char.from_buffer(self._memory))
        for i in range(BATCH):
            slot = memory + i * self._slot_size
            body = slot + PREFIX_ROOM
            self._bodies[i] = iovec(body, self._slot_size - PREFIX_ROOM)
            self._replies[2 * i], self._replies[2 * i + 1] = iovec(slot, 0), iovec(body, 0)
            name = (addressof(self._names) + i * self._name_size, self._name_size)
            control = addressof(self._controls) + i * self._control_size
            self._received[i].header = msghdr(
                *name, addressof(self._bodies[i]), 1, control, self._control_size
            )
            self._sent[i].header = msghdr(
                *name,
                addressof(self._replies[2 * i]),
                2,
                control + self._pktinfo_offset,
                self._pktinfo_size,
            )

    def _make_columns(self, family: _Family) -> None:
        """Make the views of the numbers that are read or written for each datagram."""
        # `self._received[i].size` makes two ctypes objects and an int, which takes as long as
        # everything else done for a datagram. A memoryview over the array, cast to the number's
        # type and sliced with a step as long as the structure, is the column of all these
        # numbers: indexing it makes only the int. `iovec`s go in pairs, so `pieces` has the
        # prefix's sizes at even places, the body's at odd ones.
        self.first_bytes = memoryview(self._memory)[PREFIX_ROOM :: self._slot_size]
        self._sizes = _column(self._received, mmsghdr.size.offset, "I")
        pieces = _column(self._replies, iovec.size.offset, _SIZE_T)
        self._prefix_sizes, self._body_sizes = pieces[0::2], pieces[1::2]
        offset = mmsghdr.header.offset + msghdr.control_size.offset
        self._control_sizes = _column(self._received, offset, _SIZE_T)
        # A copy of the sizes as they are now, all the same: written back before each call.
        full = memoryview(bytes(self._control_sizes)).cast(_SIZE_T)
        self._control_size_columns = _beginnings(self._control_sizes, full)
        if self._pktinfo:
            self._make_pktinfo_columns(family)

    def _make_pktinfo_columns(self, family: _Family) -> None:
        """Make the views of pktinfo, which tells the address that a datagram was sent to."""
        memory = memoryview(self._controls).cast("B")
        words = memory.cast("I")
        start, step = self._pktinfo_offset + _CMSG_DATA, self._control_size
        interfaces = words[(start + family.interface_offset) // 4 :: step // 4]
        zeros = memoryview(bytes(4 * BATCH)).cast("I")
        if self._ipv4:
            asked = words[(start + _ASKED.start) // 4 :: step // 4]
            local = words[(start + _LOCAL.start) // 4 :: step // 4]
        else:
            asked = local = memory[start::step]  # the first byte of the address
        self._pktinfo_columns = _beginnings(interfaces, zeros, asked, local)

    def receive(self) -> int:
        """Receive the datagrams that are there.

        @return: how many there are, also as `count`.
        """
        # The structures are both input and output: recvmmsg(2) reads from `control_size` how much
        # room there is, and overwrites it with how much it used. So it is reset each time.
        # `name_size` is overwritten, too, but always with the same: one socket has one family.
        if self._control_size:
            sizes, full = self._control_size_columns[self.count]  # of those that were overwritten
            sizes[:] = full
        received = _LIBC.recvmmsg(self._fd, self._receive_into, BATCH, 0, None)
        # -1: nothing was there, or an ICMP error (udp(7))
        self.count = received if received > 0 else 0
        self._dropped.clear()
        while self._without_pktinfo:
            self._sent[self._without_pktinfo.pop()].header.control_size = self._pktinfo_size
        if self._pktinfo:
            self._read_pktinfo()
        return self.count

    def _read_pktinfo(self) -> None:
        interfaces, zeros, asked, local = self._pktinfo_columns[self.count]
        # The replies must leave from that address, but through whichever interface the route
        # says: if the index stayed, they could leave through no other.
        interfaces[:] = zeros
        self.groups = ()
        if self._ipv4:
            if asked != local:
                self.groups = [slot for slot, host in enumerate(asked) if host != local[slot]]
        elif _MULTICAST in asked:
            self.groups = [slot for slot, byte in enumerate(asked) if byte == _MULTICAST]

    def source(self, slot: int) -> tuple[str, int]:
        """Where a datagram came from: the IP address, without a scope, and the port."""
        name: Any = self._names[self._name_slices[slot]]  # bytes, which ctypes does not say
        return _source(name)

    def message(self, slot: int) -> bytes:
        """The bytes of a datagram."""
        start = slot * self._slot_size + PREFIX_ROOM
        return self._memory[start : start + self._sizes[slot]]

    def arrival(self, slot: int) -> int:
        """When a datagram arrived: nanoseconds since the epoch, 0 if the kernel did not say.

        It may be called only if `timed`.
        """
        if self._control_sizes[slot] != self._control_size:
            # Then pktinfo is not in its place either: the route chooses the reply's source.
            self._sent[slot].header.control_size = 0
            self._without_pktinfo.append(slot)
            return 0
        return arrivals.from_memory(self._controls, slot * self._control_size + _CMSG_DATA)

    def reply(self, slot: int, prefix: bytes) -> None:
        """Answer a datagram with itself, behind a prefix of at most `PREFIX_ROOM` bytes."""
        if prefix is not self._prefixes[slot]:
            size = len(prefix)
            start = slot * self._slot_size
            self._memory[start : start + size] = self._prefixes[slot] = prefix
            self._prefix_sizes[slot] = size
        self._body_sizes[slot] = self._sizes[slot]

    def drop(self, slot: int) -> None:
        """Do not answer a datagram. Slots are dropped in ascending order."""
        self._dropped.append(slot)

    def send(self) -> int:
        """Send the replies, those between two dropped slots at once.

        @return: how many could not be sent.
        """
        # sendmmsg(2) takes consecutive structures, so dropped slots divide the batch into runs:
        # with slots 2 and 3 of 6 dropped, 0-1, none, and 4-5. It stops at the first datagram that
        # cannot be sent and returns how many were sent before it, or -1 if that was the first;
        # so that one is skipped, and the rest of its run is sent by another call.
        failed = slot = 0
        for end in (*self._dropped, self.count):
            while slot < end:
                sent = _LIBC.sendmmsg(self._fd, self._send_from[slot], end - slot, 0)
                if sent < 1:
                    failed += 1
                    sent = 1
                slot += sent
            slot += 1  # `end` is a dropped slot, or the end
        return failed


class DatagramPort(SharedSocket, udp.Port):
    """A UDP port whose protocol gets datagrams in batches, by its `datagramsReceived`.

    It knows when each arrived, and at which local address. Replies leave from that address: the
    route might choose another, from which the client would not recognize them as replies (ip(7),
    IP_PKTINFO; RFC 3542, section 4). Without recvmmsg(2) it calls its protocol's
    `datagramReceived` for each datagram, and the route chooses the address.
    """

    reuse_port = False
    """Whether other processes may open the same port."""

    to_group = False
    """Whether the datagram that `datagramReceived` is called with was sent to a broadcast or
    multicast address, as far as the kernel says."""

    unread = 0
    """How many datagrams were left in the buffer when the port closed: at most as many as fit."""

    _timed = False
    _batch: DatagramBatch | None = None
    _drops = 0  # by the kernel, when it was last asked

    def listen(self, timed: bool) -> None:
        """Open the port.

        @param timed: whether it is to know arrival times.
        """
        self._timed = timed
        self.startListening()
        if self.inherited:
            self._prepare(self.socket)

    def createInternetSocket(self) -> socket.socket:
        """As `udp.Port.createInternetSocket`, prepared for bursts and batches."""
        sock: socket.socket = super().createInternetSocket()
        if self.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._prepare(sock)
        return sock

    def _prepare(self, sock: socket.socket) -> None:
        _enlarge_buffer(sock)
        # A socket bound to an address of this host receives nothing that was sent to another.
        pktinfo = LINUX and not _is_own(sock.family, self.interface)
        if HAS_RECVMMSG and _is_allowed(sock):
            self._batch = DatagramBatch(sock, pktinfo, self._timed, self.maxPacketSize)
        elif pktinfo:
            for family in {socket.AF_INET, sock.family}:  # an IPv6 socket has IPv4 peers, too
                sock.setsockopt(*_FAMILIES[family].option, 1)

    def doRead(self) -> None:
        """Answer the datagrams that are there."""
        if self._batch is None:
            self._read_singly()
        else:
            self._read_batches(self._batch)
        self.end_turn()

    def _read_batches(self, batch: DatagramBatch) -> None:
        for _ in range(MAX_PER_ITERATION // BATCH):
            count = batch.receive()
            try:
                self.protocol.datagramsReceived(batch)
            except BaseException:
                log.err()  # as udp.Port does: an error does not close the port
            if count < BATCH:
                return

    def _read_singly(self) -> None:
        # Not Twisted's own loop: that counts bytes, so a flood of empty datagrams never ends it.
        for _ in range(MAX_PER_ITERATION):
            try:
                datagram, ancillary, _, address = self.socket.recvmsg(
                    self.maxPacketSize, _ANCILLARY_SIZE
                )
            except OSError:  # no more, or an ICMP error about an earlier reply
                return
            self.to_group = _is_to_group(ancillary)
            try:
                self.protocol.datagramReceived(datagram, address[:2])
            except BaseException:
                log.err()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """See `IFileDescriptor.connectionLost`. Datagrams in the buffer are answered first.

        That takes a fraction of a second at most: in a flood, what exceeds the size of the buffer
        is only counted. An inherited socket's buffer is left to the next process.
        """
        if not self.inherited:
            held = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _MIN_HELD
            for _ in range(held // MAX_PER_ITERATION + 1):
                self.doRead()
            self.unread = self._discard(held)
        super().connectionLost(reason)

    def _discard(self, limit: int) -> int:
        """Discard the datagrams that are there, up to a limit; return how many there were."""
        for count in range(limit):
            try:
                self.socket.recv(1)
            except OSError:
                return count
        return limit

    def overflows(self) -> int:
        """How many datagrams met a full buffer since the last call; 0 if the kernel cannot say."""
        try:
            counts = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _DROPS.stop)
        except OSError:
            return 0
        before, self._drops = self._drops, int.from_bytes(counts[_DROPS], sys.byteorder)
        return (self._drops - before) % 2**32


def _enlarge_buffer(sock: socket.socket) -> None:
    """Have the kernel hold more datagrams while this process does something else."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * RECEIVE_BUFFER:
        return  # the host's default is larger (net.core.rmem_default)
    for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):  # the second may exceed rmem_max
        with suppress(OSError):  # for lack of privileges, or of such an option
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)


def _is_own(family: int, host: str) -> bool:
    """Whether this is an address of this host alone: not a wildcard, nor a broadcast.

    connect(2) on UDP sends nothing. It gives the socket the local address that the route prefers:
    the same one, if the destination is this host itself.
    """
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return bool(probe.getsockname()[0] == host)
    return False


def _is_to_group(ancillary: Iterable[tuple[int, int, bytes]]) -> bool:
    """Whether a datagram was sent to a broadcast or multicast address, by its pktinfo."""
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and value[_LOCAL] != value[_ASKED]:
            return True
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO) and value[0] == _MULTICAST:
            return True
    return False


def _is_allowed(sock: socket.socket) -> bool:
    """Whether the kernel, or a filter in front of it (seccomp(2)), lets these calls pass."""
    fd = sock.fileno()
    calls = (
        _LIBC.recvmmsg(fd, None, 0, socket.MSG_DONTWAIT, None),
        _LIBC.sendmmsg(fd, None, 0, socket.MSG_DONTWAIT),
    )
    return calls == (0, 0)  # zero datagrams were asked for, and zero were handled
