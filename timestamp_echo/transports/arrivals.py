"""When the kernel received what a read brings: SO_TIMESTAMPNS (socket(7)), on Linux only.

Knows sockets and their ancillary data; no connection, no message.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from ctypes import Array, c_char
from typing import Any

LINUX = sys.platform == "linux"
"""Whether the kernel says when bytes arrived, and at which local address."""

# Python has the name from 3.14 on; the number is asm-generic/socket.h's.
_SO_TIMESTAMPNS: int = getattr(socket, "SO_TIMESTAMPNS", 35)
_TIMESPEC = struct.Struct("@ll")

ANCILLARY_SIZE = socket.CMSG_SPACE(_TIMESPEC.size)
"""Bytes of ancillary data that an arrival time takes."""


def enable(sock: socket.socket) -> None:
    """Ask for the time of each read. A connection inherits this from the socket it came through."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


class TimedSocket:
    """A socket that knows when the kernel received the data of its last read.

    It takes the socket's place in one of Twisted's transports.
    """

    arrival = 0
    """Nanoseconds since the epoch; 0 if the kernel did not say."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        enable(sock)

    def recv(self, size: int) -> bytes:
        """See `socket.socket.recv`."""
        return self.recvfrom(size)[0]

    def recvfrom(self, size: int) -> tuple[bytes, Any]:  # an address, as `socket` types it
        """See `socket.socket.recvfrom`."""
        data, ancillary, _, address = self._socket.recvmsg(size, ANCILLARY_SIZE)
        self.arrival = from_ancillary(ancillary)
        return data, address

    def __getattr__(self, name: str) -> Any:  # whatever a socket has
        return getattr(self._socket, name)


def from_ancillary(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """The arrival time in what recvmsg returned: nanoseconds since the epoch, or 0."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            return from_memory(value, 0)
    return 0


def from_memory(memory: bytes | Array[c_char], offset: int) -> int:
    """The arrival time at this offset: a `struct timespec`, in nanoseconds since the epoch."""
    seconds, nanoseconds = _TIMESPEC.unpack_from(memory, offset)
    return int(seconds * 10**9 + nanoseconds)
