"""When the kernel got what a read brings: `SO_TIMESTAMPNS` (socket(7)), which is Linux's.

Knows sockets and their ancillary data; no connection, no message.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any

LINUX = sys.platform == "linux"
"""Whether the kernel says when bytes arrived, and at which of our addresses."""

# Python has the name from 3.14 on; the number is asm-generic/socket.h's.
_SO_TIMESTAMPNS: int = getattr(socket, "SO_TIMESTAMPNS", 35)
_TIMESPEC = struct.Struct("@ll")

SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
"""Bytes of ancillary data that it takes."""


def ask(sock: socket.socket) -> None:
    """Ask for the time of each read. Connections inherit it from the socket that accepts them."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


class TimedSocket:
    """A socket that knows when the kernel got what its last read brought.

    It takes the socket's place in a transport of Twisted's.
    """

    arrival = 0
    """Nanoseconds since the epoch; 0 if the kernel did not say."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        ask(sock)

    def recv(self, size: int) -> bytes:
        """See `socket.socket.recv`."""
        return self.recvfrom(size)[0]

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        """See `socket.socket.recvfrom`."""
        data, ancillary, _, address = self._socket.recvmsg(size, SPACE)
        self.arrival = arrival(ancillary)
        return data, address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def arrival(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """The arrival time in ancillary data, nanoseconds since the epoch, or 0."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            return read(value, 0)
    return 0


def read(control: Any, offset: int) -> int:
    """The arrival time that stands at this place in memory, nanoseconds since the epoch."""
    seconds, nanoseconds = _TIMESPEC.unpack_from(control, offset)
    return int(seconds * 10**9 + nanoseconds)
