"""Attack a service in many ways at once, while well-behaved clients check every reply.

`python -m tests.system.soak --seconds 600` starts a service. At the end it reports the replies
checked, the attacks, the errors, and the service's memory and open files at the start and the end.
The exit status is 1 if anything was wrong. The attackers connect from 127.0.9.2, and forge
datagrams if they are root; `--max-per-peer` keeps them from taking all connections.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import os
import random
import socket
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.system.certificates import self_signed
from tests.system.running import PATIENCE, Service
from tests.system.wire import forged
from timestamp_echo.stamps import SECOND, parse

HERE, ATTACKERS = "127.0.0.1", "127.0.9.2"

OPTIONS = [
    *("--framing", "line", "--stamp", "unix"),
    *("--idle-timeout", "5", "--max-per-peer", "60"),
    *("--listen", f"tcp:0:interface={HERE}"),
    *("--listen", "unix:socket"),
    *("--listen", f"haproxy:tcp:0:interface={HERE}"),
    *("--listen", f"udp:0:interface={HERE}"),
]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class WrongReply(Exception):
    """A reply that no client may ever get."""


class Workspace:
    """The interface of a test case that `Service` needs, outside of a test."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._names = 0

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def mktemp(self) -> str:
        """A path where no file is."""
        self._names += 1
        return os.path.join(self._folder, str(self._names))

    def addCleanup(self, act: Callable[..., object], *arguments: Any) -> None:
        """Call this at the end."""
        self._stack.callback(act, *arguments)


class Soak:
    """One run.

    @param workspace: has the folders, and stops the service at the end.
    @param seed: seeds the choice of messages, attacks and times.
    """

    def __init__(self, workspace: Workspace, seed: int) -> None:
        files = self_signed(workspace.mktemp())
        self.random = random.Random(seed)
        self.trust = ssl.create_default_context(cafile=files.certificate)
        tls = ("--listen", f"ssl:0:interface={HERE}:{files.endpoint}")
        self.service = Service(workspace, *OPTIONS, *tls)
        self.tcp, self.proxied, self.udp, self.tls = (
            (HERE, self.service.port(index)) for index in (0, 2, 3, 4)
        )
        self.unix = self.service.path()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(self.udp)
            sock.send(b"are you there?")
            sock.recv(100)  # from now on its reactor runs, and all its files are open
        self.over = False
        self.checked: Counter[str] = Counter()
        self.attacks: Counter[str] = Counter()
        self.errors: list[str] = []
        self.lost_datagrams = 0

    async def run(self, seconds: float) -> None:
        """Attack the service and check its replies for this long."""
        honest = [
            *(self._keep("TCP", self._connect_tcp) for _ in range(4)),
            *(self._keep("UNIX", self._connect_unix) for _ in range(2)),
            *(self._keep("TLS", self._connect_tls) for _ in range(2)),
            *(self._keep("PROXY", self._connect_proxied) for _ in range(2)),
            *(self._ask_datagrams() for _ in range(2)),
        ]
        talks = [asyncio.create_task(talk) for talk in honest]
        attacks = [asyncio.create_task(self._attack()) for _ in range(30)]
        await asyncio.sleep(seconds)
        self.over = True
        await asyncio.gather(*talks)
        for attack in attacks:
            attack.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)

    # Well-behaved clients.

    async def _connect_tcp(self) -> Streams:
        return await asyncio.open_connection(*self.tcp, limit=2**20)

    async def _connect_unix(self) -> Streams:
        return await asyncio.open_unix_connection(self.unix, limit=2**20)

    async def _connect_tls(self) -> Streams:
        return await asyncio.open_connection(
            *self.tls, limit=2**20, ssl=self.trust, server_hostname="localhost"
        )

    async def _connect_proxied(self) -> Streams:
        reader, writer = await asyncio.open_connection(*self.proxied, limit=2**20)
        writer.write(b"PROXY TCP4 192.0.2.%d 192.0.2.2 1 2\r\n" % self.random.randrange(1, 255))
        return reader, writer

    async def _keep(self, kind: str, connect: Callable[[], Awaitable[Streams]]) -> None:
        """Talk on one connection after another."""
        while not self.over:
            try:
                await asyncio.wait_for(self._talk(kind, connect), 3 * PATIENCE)
            except (OSError, EOFError, ValueError, asyncio.TimeoutError, WrongReply) as error:
                self.errors.append(f"{kind}: {error!r}")

    async def _talk(self, kind: str, connect: Callable[[], Awaitable[Streams]]) -> None:
        reader, writer = await connect()
        with contextlib.closing(writer):
            for _ in range(self.random.randrange(1, 100)):
                messages = [self._message() for _ in range(self.random.choice((1, 1, 1, 50)))]
                sent = time.time_ns()
                self._send(writer, b"".join(messages))
                for message in messages:
                    self._check(kind, await reader.readline(), message, sent)
            if writer.can_write_eof():
                sent = time.time_ns()
                self._send(writer, b"last words")
                writer.write_eof()
                self._check(kind, await reader.read(), b"last words", sent)

    def _message(self) -> bytes:
        size = self.random.choice((0, 1, 10, 64, 64, 64, 1000, 100_000))
        return self.random.randbytes(size).replace(b"\n", b"") + b"\n"

    def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        cut = self.random.randrange(len(data) + 1)
        writer.write(data[:cut])
        writer.write(data[cut:])

    def _check(self, kind: str, reply: bytes, message: bytes, sent: int) -> None:
        """Check that the reply is the message, behind a stamp between its sending and now."""
        stamp, bracket, rest = reply.partition(b"] ")
        if not bracket or rest != message:
            raise WrongReply(f"{reply[:100]!r} for {message[:100]!r}")
        moment = parse(stamp[1:].decode()).nanoseconds
        if not sent - SECOND // 20 <= moment <= time.time_ns() + SECOND // 20:
            raise WrongReply(f"{stamp!r} for a message of {sent}")
        self.checked[kind] += 1

    async def _ask_datagrams(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.udp)
            while not self.over:
                message = self.random.randbytes(self.random.choice((1, 64, 1000)))
                message = b"%d " % time.time_ns() + message
                sent = time.time_ns()
                await loop.sock_sendall(sock, message)
                try:
                    reply = await asyncio.wait_for(loop.sock_recv(sock, 2**16), 1)
                    self._check("UDP", reply, message, sent)
                except asyncio.TimeoutError:
                    self.lost_datagrams += 1  # the port's buffer was full
                except WrongReply as error:
                    self.errors.append(f"UDP: {error!r}")
                await asyncio.sleep(0.005)

    # Attackers.

    async def _attack(self) -> None:
        while True:
            attack = self.random.choice(self._attacks)
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(attack(self), PATIENCE)
            self.attacks[attack.__name__.strip("_")] += 1
            await asyncio.sleep(self.random.random() / 20)

    async def _connected(self, address: Any = None) -> socket.socket:
        """Connect as an attacker, by default to any of the ports."""
        address = address or self.random.choice((self.tcp, self.unix, self.tls, self.proxied))
        sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        sock.setblocking(False)
        if isinstance(address, tuple):
            sock.bind((ATTACKERS, 0))
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _give(self, sock: socket.socket, data: bytes) -> None:
        """Send as much of this as the service takes within a second."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(sock, data), 1)

    async def _random_bytes(self) -> None:
        with await self._connected() as sock:
            await self._give(sock, self.random.randbytes(self.random.randrange(1, 100_000)))

    async def _reset(self) -> None:
        with await self._connected() as sock:
            await self._give(sock, b"one\ntwo"[: self.random.randrange(8)])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async def _half_open(self) -> None:
        with await self._connected() as sock:
            await asyncio.get_running_loop().sock_recv(sock, 1)  # until it is idle for too long

    async def _storm(self) -> None:
        for sock in [await self._connected() for _ in range(50)]:
            sock.close()

    async def _slow_reader(self) -> None:
        with await self._connected(self.random.choice((self.tcp, self.unix))) as sock:
            await self._give(sock, self.random.choice((b"\n", b"x\n" * 8)) * 2**20)
            await asyncio.sleep(self.random.random() * 2)

    async def _slow_sender(self) -> None:
        with await self._connected(self.tcp) as sock:
            for _ in range(50):
                await self._give(sock, b"x")
                await asyncio.sleep(0.1)

    async def _line_without_end(self) -> None:
        with await self._connected() as sock:
            await self._give(sock, b"x" * 2**20)

    async def _no_handshake(self) -> None:
        with await self._connected(self.tls) as sock:
            await self._give(sock, b"\x16\x03\x01" + self.random.randbytes(500))

    async def _no_header(self) -> None:
        with await self._connected(self.proxied) as sock:
            header = b"PROXY TCP4 192.0.2.1 192.0.2.2 x y\r\n"
            await self._give(sock, header[: self.random.randrange(len(header) + 1)])
            await asyncio.sleep(0.1)

    async def _passed_files(self) -> None:
        with await self._connected(self.unix) as sock:
            rights = array.array("i", [sock.fileno()] * 5)
            sock.sendmsg([b"x\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    async def _datagrams(self) -> None:
        """Empty, too long to be answered, like a reply, and more than the rate limit allows."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((ATTACKERS, 0))
            for data in (b"", b"x" * 65507, b"[Sun] x", *[b"x"] * 200):
                sock.sendto(data, self.udp)

    async def _forged_datagrams(self) -> None:
        """From other services, from the service itself, and from port 0."""
        if os.getuid() == 0:
            for _ in range(50):
                host = f"127.0.{self.random.randrange(8, 256)}.{self.random.randrange(1, 255)}"
                port = self.random.choice((0, 7, 53, self.udp[1], 40000))
                forged(host, port, *self.udp, self.random.choice((b"x", b"[Sun] x")))

    _attacks = (
        *(_random_bytes, _reset, _half_open, _storm, _slow_reader, _slow_sender, _no_handshake),
        *(_line_without_end, _no_header, _passed_files, _datagrams, _forged_datagrams),
    )

    # Resources.

    def open_files(self) -> int:
        """The number of files that the service has open."""
        return len(os.listdir(f"/proc/{self.service.process.pid}/fd"))

    def settled(self, files: int) -> int:
        """Wait until the service has at most this many files open, or too long; how many it has."""
        until = time.monotonic() + PATIENCE
        while self.open_files() > files and time.monotonic() < until:
            time.sleep(0.1)
        return self.open_files()


def main() -> int:
    """Run the soak test that the command line selects, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    with Workspace() as workspace:
        soak = Soak(workspace, arguments.seed)
        # The service keeps the epoll that it makes for its first connection.
        files, memory = soak.open_files() + 1, soak.service.resident()
        asyncio.run(soak.run(arguments.seconds))
        files_then, memory_then = soak.settled(files), soak.service.resident()
        status = soak.service.stop()
        tracebacks = soak.service.log.text.count("Traceback")
    print(f"{arguments.seconds:g} s, seed {arguments.seed}")
    print("replies checked:", *(f"{n} {kind}," for kind, n in sorted(soak.checked.items())))
    print("datagrams without a reply:", soak.lost_datagrams)
    print("attacks:", *(f"{n} {kind}," for kind, n in sorted(soak.attacks.items())))
    print(f"open files: {files} at the start, {files_then} at the end")
    print(f"memory: {memory // 1024} KiB at the start, {memory_then // 1024} KiB at the end")
    print(f"exit status {status}, tracebacks {tracebacks}, errors {len(soak.errors)}")
    for line in soak.errors[:20]:
        print(" ", line)
    well = not (soak.errors or status or tracebacks or files_then > files)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
