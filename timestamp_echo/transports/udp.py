"""Datagrams, received and sent many at a time: recvmmsg(2) and sendmmsg(2), which are Linux's.

Python's own sockets take a system call for each datagram, and make objects of it and of where
it came from. Here one call brings all that are there, each into a place of its own, with room
before it for what goes in front of its reply; another call sends all the replies from where
they lie. Knows a UDP socket and memory; no stamp, and not which datagrams are answered.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from ctypes import Structure, addressof, c_char, c_int, c_size_t, c_uint, c_void_p, sizeof
from functools import lru_cache
from typing import Any, Literal

from twisted.internet import udp
from twisted.python import log

from timestamp_echo.transports import arrivals
from timestamp_echo.transports.arrivals import LINUX

_LIBC: Any = ctypes.CDLL(None)

BATCHED = LINUX and hasattr(_LIBC, "recvmmsg")
"""Whether there are these calls. Elsewhere datagrams are received one by one."""

MANY = 32
"""Datagrams that are received at a time: with twice as many one costs 3 % less, and the memory
for them is twice 2 MiB, of which the kernel gives what has once been used."""

HEAD = 1024
"""Bytes before each for what goes in front of its reply."""

TURN = 128
"""Datagrams after which timers and other ports get their turn: at some 5 microseconds for each,
and 30 for the longest, they wait for 1 to 4 ms."""

_SOURCES = 2**12  # whose addresses need not be written again

_ANY = ("", "0.0.0.0", "::")  # bound to no address of its own: the route would choose one

# ip(7) and ipv6(7). Python has IP_PKTINFO from 3.14 on; the number is Linux's.
_IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8)
_CONTROL = socket.CMSG_LEN(0)  # where in ancillary data the value begins

_SIZE: Literal["P"] = "P"  # a memoryview's format of `size_t`, which is as large as a pointer


class _Vector(Structure):
    """`struct iovec` of readv(2): a piece of memory."""

    _fields_ = (("base", c_void_p), ("size", c_size_t))


class _Message(Structure):
    """`struct msghdr` of recvmsg(2): where a datagram goes, or is."""

    _fields_ = (
        ("name", c_void_p),
        ("name_size", c_uint),
        ("vectors", c_void_p),
        ("vector_count", c_size_t),
        ("control", c_void_p),
        ("control_size", c_size_t),
        ("flags", c_int),
    )


class _Counted(Structure):
    """`struct mmsghdr` of recvmmsg(2): the same, and how many bytes it had."""

    _fields_ = (("message", _Message), ("size", c_uint))


class _Family:
    """What differs between IPv4 and IPv6.

    @param name: `struct sockaddr_in` or `sockaddr_in6`: of it the port and the address.
    @param option: what asks for the address that a datagram came to (ip(7), ipv6(7)).
    @param told: bytes of the answer.
    @param interface: where in it the interface's number is.
    """

    def __init__(self, name: str, option: tuple[int, int], told: int, interface: int) -> None:
        self.name = struct.Struct(name)
        self.option = option
        self.told = socket.CMSG_SPACE(told)
        self.interface = interface


_FAMILIES = {
    socket.AF_INET: _Family("!2xH4s8x", (socket.IPPROTO_IP, _IP_PKTINFO), 12, 0),
    socket.AF_INET6: _Family(
        "!2xH4x16s4x", (socket.IPPROTO_IPV6, getattr(socket, "IPV6_RECVPKTINFO", 49)), 20, 16
    ),
}


@lru_cache(_SOURCES)
def _source(name: bytes) -> tuple[str, int]:
    """The IP address, without a scope, and the port in a `sockaddr_in` or `sockaddr_in6`."""
    ipv4 = len(name) == _FAMILIES[socket.AF_INET].name.size
    family = socket.AF_INET if ipv4 else socket.AF_INET6
    port, packed = _FAMILIES[family].name.unpack(name)
    return socket.inet_ntop(family, packed), port


def _column(array: Any, offset: int, kind: Literal["I", "P"]) -> memoryview:
    """One number of each structure in an array.

    @param offset: where in the structure it is.
    @param kind: its format, as in `struct`.
    """
    size = struct.calcsize(kind)
    return memoryview(array).cast("B").cast(kind)[offset // size :: sizeof(array[0]) // size]


class Datagrams:
    """The datagrams of one batch, each in a place from 0 to `count`.

    @param sock: a UDP socket that does not block, of IPv4 or IPv6.
    @param told: whether replies are to leave from the address that was asked, although the
        socket is bound to none.
    @param timed: whether the kernel's arrival times are wanted.
    @param size: bytes of the longest datagram.
    """

    count = 0
    """How many there are."""

    timed: bool
    """Whether `arrival` is known."""

    firsts: memoryview
    """The first byte of each; of an empty one any byte."""

    def __init__(self, sock: socket.socket, told: bool, timed: bool, size: int) -> None:
        family = _FAMILIES[sock.family]
        self._told, self.timed = told, timed
        self._dropped: list[int] = []
        self._failed = 0
        self._heads = [b""] * MANY  # what is in front of each
        self._name = family.name.size
        self._before_told = arrivals.SPACE if timed else 0  # the kernel puts the time first
        self._control = self._before_told + (family.told if told else 0)
        self._place = HEAD + size
        # The kernel gives a page of it when it is first used.
        self._memory = mmap.mmap(-1, MANY * self._place, mmap.MAP_PRIVATE)
        self._names = ctypes.create_string_buffer(MANY * self._name)
        self._controls = ctypes.create_string_buffer(MANY * self._control or 1)
        self._received, self._sent = (_Counted * MANY)(), (_Counted * MANY)()
        self._bodies, self._replies = (_Vector * MANY)(), (_Vector * (2 * MANY))()
        # Made once: to make them of numbers takes ctypes as long as the rest of a call.
        self._number = c_int(sock.fileno())
        self._to = c_void_p(addressof(self._received))
        sent = addressof(self._sent)
        self._from = [c_void_p(sent + i * sizeof(_Counted)) for i in range(MANY)]
        self._point()
        self._look(family.interface)
        if told:
            sock.setsockopt(*family.option, 1)
        if timed:
            arrivals.ask(sock)

    def _point(self) -> None:
        """Say where in memory each datagram goes, and its reply is."""
        memory = addressof(c_char.from_buffer(self._memory))
        told = self._control - self._before_told
        for i in range(MANY):
            head = memory + i * self._place
            body = head + HEAD
            self._bodies[i] = _Vector(body, self._place - HEAD)
            self._replies[2 * i], self._replies[2 * i + 1] = _Vector(head, 0), _Vector(body, 0)
            name = (addressof(self._names) + i * self._name, self._name)
            control = addressof(self._controls) + i * self._control
            self._received[i].message = _Message(
                *name, addressof(self._bodies[i]), 1, control, self._control
            )
            self._sent[i].message = _Message(
                *name, addressof(self._replies[2 * i]), 2, control + self._before_told, told
            )

    def _look(self, interface: int) -> None:
        """Have the numbers that are read and written for each datagram at hand."""
        self.firsts = memoryview(self._memory)[HEAD :: self._place]
        self._sizes = _column(self._received, _Counted.size.offset, "I")
        pieces = _column(self._replies, _Vector.size.offset, _SIZE)
        self._head_sizes, self._body_sizes = pieces[0::2], pieces[1::2]
        offset = _Counted.message.offset + _Message.control_size.offset
        self._control_sizes = _column(self._received, offset, _SIZE)
        self._no_control = memoryview(bytes(self._control_sizes)).cast(_SIZE)
        if self._told:
            at = self._before_told + _CONTROL + interface
            words = memoryview(self._controls).cast("B").cast("I")
            self._interfaces = words[at // 4 :: self._control // 4]
            self._any_interface = memoryview(bytes(4 * MANY)).cast("I")

    def receive(self) -> int:
        """Take those that are there; how many these are."""
        if self._control:
            self._control_sizes[:] = self._no_control  # it says there how much it gave
        received = _LIBC.recvmmsg(self._number, self._to, MANY, 0, None)
        self.count = max(received, 0)  # less than none: nothing is there, or an ICMP error is
        self._dropped.clear()
        self._failed = 0
        if self._told:
            # From which interface a reply leaves is the route's to say.
            self._interfaces[:] = self._any_interface
        return self.count

    def source(self, place: int) -> tuple[str, int]:
        """Where one came from: the IP address, without a scope, and the port."""
        start = place * self._name
        name: Any = self._names[start : start + self._name]  # bytes
        return _source(name)

    def message(self, place: int) -> bytes:
        """What one says."""
        start = place * self._place + HEAD
        return self._memory[start : start + self._sizes[place]]

    def arrival(self, place: int) -> int:
        """When one came, in nanoseconds since the epoch; 0 if the kernel did not say.

        It is to be asked only if `timed`.
        """
        if self._control_sizes[place] != self._control:
            # Then the rest is not where it is looked for, either: the route has to choose.
            self._sent[place].message.control_size = 0
            return 0
        return arrivals.read(self._controls, place * self._control + _CONTROL)

    def reply(self, place: int, prefix: bytes) -> None:
        """Answer one with itself, behind this prefix; with more than `HEAD` bytes it can't be."""
        if prefix is not self._heads[place]:
            size = len(prefix)
            if size > HEAD:
                self._failed += 1
                self.drop(place)
                return
            start = place * self._place
            self._memory[start : start + size] = self._heads[place] = prefix
            self._head_sizes[place] = size
        self._body_sizes[place] = self._sizes[place]

    def drop(self, place: int) -> None:
        """Leave one, which is behind all that were left before, without an answer."""
        self._dropped.append(place)

    def send(self) -> int:
        """Send the replies; how many of them could not be sent."""
        failed, place = self._failed, 0
        for end in (*self._dropped, self.count):
            while place < end:
                sent = _LIBC.sendmmsg(self._number, self._from[place], end - place, 0)
                if sent < 1:  # the first of them
                    failed += 1
                    sent = 1
                place += sent
            place += 1  # that one has no answer
        return failed


class DatagramPort(udp.Port):
    """A UDP port whose protocol takes datagrams in batches, by `datagramsReceived`.

    It knows when each arrived, and at which of our addresses. Its replies leave from that
    address: from another, as the route back may have it, they would not be taken for replies
    (ip(7), IP_PKTINFO; RFC 3542, section 4). Without these calls it knows neither, and its
    protocol's `datagramReceived` is called for each datagram.
    """

    _timed = False
    _datagrams: Datagrams | None = None

    def listen(self, timed: bool) -> None:
        """Open the port.

        @param timed: whether it is to know arrival times.
        """
        self._timed = timed
        self.startListening()

    def createInternetSocket(self) -> socket.socket:
        """As `udp.Port.createInternetSocket`, and ask for what is to come with each datagram."""
        sock: socket.socket = super().createInternetSocket()
        if BATCHED and _is_allowed(sock):
            told = self.interface in _ANY
            self._datagrams = Datagrams(sock, told, self._timed, self.maxPacketSize)
        return sock

    def doRead(self) -> None:
        """Answer those that are there, batch by batch."""
        datagrams = self._datagrams
        if datagrams is None:
            self._read_singly()
            return
        for _ in range(TURN // MANY):
            count = datagrams.receive()
            try:
                self.protocol.datagramsReceived(datagrams)
            except BaseException:
                log.err()  # as udp.Port does: the port is not closed for it
            if count < MANY:
                return

    def _read_singly(self) -> None:
        for _ in range(TURN):
            try:
                datagram, address = self.socket.recvfrom(self.maxPacketSize)
            except OSError:  # nothing more, or an ICMP error about an earlier reply
                return
            self.protocol.datagramReceived(datagram, address[:2])


def _is_allowed(sock: socket.socket) -> bool:
    """Whether the kernel, or a filter in front of it (seccomp(2)), lets these calls pass."""
    number = sock.fileno()
    calls = (
        _LIBC.recvmmsg(number, None, 0, socket.MSG_DONTWAIT, None),
        _LIBC.sendmmsg(number, None, 0, socket.MSG_DONTWAIT),
    )
    return calls == (0, 0)  # none asked for, and none
