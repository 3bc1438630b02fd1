"""The same job with asyncio: `aio.py LOOP KIND PORT [KEY CERTIFICATE]`.

LOOP is asyncio or uvloop; KIND is tcp or tls (a protocol), streams or udp.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import Any

from stamping import Stamper, now


class Echo(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport
        self._stamper = Stamper()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._transport.write(self._stamper.stamped(data))

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._transport.resume_reading()


class Datagrams(asyncio.DatagramProtocol):
    """One port."""

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.DatagramProtocol`."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """See `asyncio.DatagramProtocol`."""
        self._transport.sendto(now() + data, addr)


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    stamper = Stamper()
    while data := await reader.read(65536):
        writer.write(stamper.stamped(data))
        await writer.drain()
    writer.close()


def secured(key: str, certificate: str) -> ssl.SSLContext:
    """TLS with the key and the certificate of these files."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def main() -> None:
    """Serve what the command line selects."""
    kind, port = sys.argv[2], int(sys.argv[3])
    loop = asyncio.get_running_loop()
    if kind == "udp":
        transport, _ = await loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", port))
        where = transport.get_extra_info("sockname")
    elif kind == "streams":
        server = await asyncio.start_server(streams, "127.0.0.1", port, backlog=4096)
        where = server.sockets[0].getsockname()
    else:
        context = secured(*sys.argv[4:]) if kind == "tls" else None
        server = await loop.create_server(Echo, "127.0.0.1", port, backlog=4096, ssl=context)
        where = server.sockets[0].getsockname()
    print(f"listening on {where[1]}", flush=True)
    await loop.create_future()


if sys.argv[1] == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
