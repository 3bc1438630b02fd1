"""Measure what a connection costs a host, the kernel's memory included.

    python -m benchmarks.capacity [--connections N] [--tls]

It needs root. First, pairs of connected sockets are opened in this process: one socket costs half
as much as a pair. Then clients connect to tsecho, and the cost of their own sockets is subtracted.
The kernel's memory is that of slabinfo(5), counting only caches that gained at least one object for
every two connections, so that the rest of the host hardly shows. `docs/explanation/capacity.rst`
draws the conclusions.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import Server
from tests.system.certificates import self_signed

LINE = b"x" * 63 + b"\n"

SPARE_FILES = 500
"""Open files beside the connections, generously."""

SETTLING = 0.5
"""Seconds in which memory whose freeing the kernel defers (RCU) shrinks noticeably."""

WATCHED = re.compile("ep_head|eventpoll_")
"""Caches of epoll(7), which plain sockets do not need."""


class Memory(NamedTuple):
    """The kernel's memory at some moment."""

    caches: dict[str, tuple[int, int]]
    """Objects, and bytes of an object with its share of the slab, by the name of the cache."""

    buffers: int
    """Bytes in the buffers of all TCP sockets (sockstat)."""

    @classmethod
    def now(cls) -> Memory:
        """Read it, once the sockets that were closed before have gone."""
        last = cls._read()
        while True:
            time.sleep(SETTLING)
            latest = cls._read()
            if latest.caches["TCP"][0] >= 0.99 * last.caches["TCP"][0]:
                return latest
            last = latest

    @classmethod
    def _read(cls) -> Memory:
        caches = {}
        for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
            name, objects, _, _, per_slab, pages, *_ = line.split()
            caches[name] = (int(objects), int(pages) * resource.getpagesize() // int(per_slab))
        found = re.search(r"TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text())
        assert found is not None
        return cls(caches, int(found[1]) * resource.getpagesize())

    def since(self, before: Memory, connections: int) -> dict[str, float]:
        """The bytes that each of this many connections has added, by cache."""
        grown = {
            name: (objects - before.caches.get(name, (0, 0))[0]) / connections
            for name, (objects, _) in self.caches.items()
        }
        return {name: count * self.caches[name][1] for name, count in grown.items() if count >= 0.5}


@contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Open this many pairs of connected sockets, in this process."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        made = []
        for _ in range(count):
            near = stack.enter_context(socket.create_connection(listener.getsockname()))
            made.append((near, stack.enter_context(listener.accept()[0])))
        yield made


def plain(count: int) -> tuple[dict[str, float], float]:
    """Measure plain sockets.

    @return: the bytes of one socket, by cache; and those of a line that waits in a buffer.
    """
    before = Memory.now()
    with pairs(count) as made:
        connected = Memory.now()
        for near, _ in made:
            near.sendall(LINE)
        waiting = Memory.now()
    caches = {name: size / 2 for name, size in connected.since(before, count).items()}
    return caches, (waiting.buffers - connected.buffers) / count


class Costs(NamedTuple):
    """What each connection costs tsecho."""

    process: float
    """Bytes of the process."""

    caches: dict[str, float]
    """Bytes of the kernel, on both sides, by cache."""

    opening: float
    """Microseconds of processor time for a connection and its first line."""

    line: float
    """The same for another line, on each connection in turn; the connections are otherwise idle."""

    closing: float
    """The same for the end of a connection."""


def exchange(clients: list[socket.socket]) -> None:
    """Send a line on each connection, and read all replies."""
    for start in range(0, len(clients), 100):
        some = clients[start : start + 100]
        for client in some:
            client.sendall(LINE)
        for client in some:
            while not client.recv(1024).endswith(b"\n"):
                pass


def served(count: int, tls: bool) -> Costs:
    """Measure tsecho with this many connections."""
    twistd = str(Path(sys.executable).parent / "twistd")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as stack,
    ):
        where = "tcp:0:interface=127.0.0.1"
        if tls:
            where = f"ssl:0:interface=127.0.0.1:{self_signed(f'{folder}/tls').endpoint}"
        command = [twistd, "-n", "--pidfile=", "tsecho", "-l", where]
        server = stack.enter_context(
            Server(command, Path(folder, "log"), min(os.sched_getaffinity(0)))
        )

        def client() -> socket.socket:
            made = socket.create_connection(("127.0.0.1", server.port))
            return stack.enter_context(context.wrap_socket(made) if tls else made)

        exchange([client()])  # what is made once
        kernel, process = Memory.now(), server.resident()
        used = [server.used()]
        clients = [client() for _ in range(count)]
        exchange(clients)
        used.append(server.used())
        caches = Memory.now().since(kernel, count)
        process = server.resident() - process
        used.append(server.used())
        exchange(clients)
        used.append(server.used())
        for each in clients:
            each.close()
        while server.files() > count / 2 and server.files() > SPARE_FILES:
            time.sleep(0.01)
        used.append(server.used())
    return Costs(
        process / count,
        caches,
        (used[1] - used[0]) / count,
        (used[3] - used[2]) / count,
        (used[4] - used[3]) / count,
    )


def report(one: dict[str, float], line: float, costs: Costs) -> str:
    """All figures, as a table."""
    # The clients' sockets cost as much as those that were measured alone. The other caches show
    # what the rest of the host did meanwhile.
    server = {
        name: size - one.get(name, 0.0)
        for name, size in costs.caches.items()
        if name in one or WATCHED.match(name)
    }
    kernel = sum(server.values())
    rows = [
        ("bytes for a connection:", ""),
        ("  the process", f"{costs.process:,.0f}"),
        ("  the kernel", f"{kernel:,.0f}"),
        *((f"    {name}", f"{size:,.0f}") for name, size in sorted(server.items())),
        ("  together", f"{costs.process + kernel:,.0f}"),
        (f"  and for {len(LINE)} bytes that wait", f"{line:,.0f}"),
        ("microseconds of processor time:", ""),
        ("  connect, a line, its reply", f"{costs.opening:.1f}"),
        ("  another line", f"{costs.line:.1f}"),
        ("  the end", f"{costs.closing:.1f}"),
    ]
    return "\n".join(f"{name:34}{value:>8}".rstrip() for name, value in rows)


def main(arguments: list[str]) -> None:
    """Measure, and print the figures.

    @raise SystemExit: it cannot be measured here.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args(arguments)
    count: int = options.connections
    if not os.access("/proc/slabinfo", os.R_OK):
        raise SystemExit("only root may read /proc/slabinfo")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < count + SPARE_FILES:
        raise SystemExit(f"the limit of open files (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(report(*plain(count // 2), served(count, options.tls)))


if __name__ == "__main__":
    main(sys.argv[1:])
