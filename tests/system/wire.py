"""What passes on a wire: run inside a network namespace, as root.

`python -m tests.system.wire SOURCE PORT DESTINATION PORT SIZE [SIZE...]` sends datagrams of these
sizes, one after the other, with this source, which may be forged, and prints as JSON which
frames then passed on `eth0`, each with its source and its bytes, until none did for a while,
or there were a thousand.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from typing import NamedTuple

OVERHEAD = 4 + 8 + 12
"""Bytes that a frame has beside those of a packet socket: its check sum, the preamble, and
the gap to the next (IEEE 802.3)."""

SHORTEST = 60
"""Bytes of the shortest frame, without its check sum."""

_ETHERNET = 14
_IPV4 = struct.Struct("!BxHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_QUIET = 0.3
_ENOUGH = 1000


class Frame(NamedTuple):
    """One frame of a datagram over IPv4."""

    source: str
    """`address:port`; of a later fragment, the address alone."""

    size: int
    """Bytes that it takes on the wire, with all of `OVERHEAD`."""


def main() -> None:
    """Send and listen, as the command line says."""
    source, source_port, destination, port, *sizes = sys.argv[1:]
    frames: list[Frame] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as wire:
        wire.bind(("eth0", 0))
        wire.settimeout(_QUIET)
        for size in map(int, sizes):
            forged(source, int(source_port), destination, int(port), b"x" * size)
            try:
                while len(frames) < _ENOUGH:
                    frames += _datagram(wire.recv(2**16))
            except TimeoutError:
                pass
    print(json.dumps(frames))


def forged(source: str, source_port: int, destination: str, port: int, data: bytes) -> None:
    """Send a datagram, no longer than one frame, with this source, forged or not (raw(7))."""
    udp = _UDP.pack(source_port, port, _UDP.size + len(data), 0) + data
    addresses = socket.inet_aton(source), socket.inet_aton(destination)
    header = _IPV4.pack(0x45, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, *addresses)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        raw.sendto(header + udp, (destination, 0))


def _datagram(frame: bytes) -> list[Frame]:
    """The frame, if it is one of a datagram."""
    packet = frame[_ETHERNET:]
    if frame[12:14] != b"\x08\x00" or packet[9] != socket.IPPROTO_UDP:
        return []
    _, length, _, fragment, *_, source, _ = _IPV4.unpack_from(packet)
    where = socket.inet_ntoa(source)
    if not fragment & 0x1FFF:
        where += f":{_UDP.unpack_from(packet, _IPV4.size)[0]}"
    return [Frame(where, max(_ETHERNET + length, SHORTEST) + OVERHEAD)]


if __name__ == "__main__":
    main()
