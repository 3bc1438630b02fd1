"""Measure the cost and gain of a second process on one socket: `python -m benchmarks.processes`.

With only two cores, which must run the load generator as well, two processes cannot show that they
serve twice as many messages. So there are two measurements, each with one process and with two:

First, a hundred clients send requests without pause. The processes share one core, and the load
generator has the other. The processor time per message is compared. With two processes, each finds
half as many clients ready at a time, and the core has to switch between the processes, which it
need not if each has its own.

Second, many clients send a line while the processes are suspended. The processes then resume at the
same moment, each on its own core, while this program sleeps, so that both cores are free. The time
taken is from the first reply's arrival to the last's, as the kernel records them. As root, the
processes get real-time priority, so that other programs wait. This leaves out two effects of a load
generator: its share of the caches, and waking the processes.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import nan
from pathlib import Path
from statistics import median

from benchmarks.servers import Load, Server, built
from tests.system.running import passing
from timestamp_echo.transports import arrivals

LINE = b"x" * 63 + b"\n"

COUNTS = (1, 2)
"""How many processes there are."""

BURSTS = 9
"""How often the same processes are suspended and go on."""

PACE = 0.001
"""Seconds from one new connection to the next: slow enough for the processes to take turns."""

SERVING = 0.0002
"""Seconds to wait per line before the replies are read; more than enough."""

Result = dict[str, float]


@contextmanager
def started(count: int, cores: Sequence[int], folder: Path) -> Iterator[list[Server]]:
    """Start this many processes on one socket, distributed over these cores."""
    twistd = str(Path(sys.executable).parent / "twistd")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        tsecho = [twistd, "-n", "--pidfile=", "tsecho", "-l", "systemd:domain=INET:name=x"]
        yield [
            stack.enter_context(
                Server(
                    [*passing(listener), *tsecho],
                    folder / f"log{number}",
                    cores[number % len(cores)],
                    pass_fds=[listener.fileno()],
                )
            )
            for number in range(count)
        ]


def used(servers: list[Server]) -> float:
    """Microseconds of processor time so far, of all processes."""
    return sum(server.used() for server in servers)


def switches(servers: list[Server]) -> int:
    """Context switches of all processes so far, voluntary or not (proc(5))."""
    status = "".join(Path(f"/proc/{server.pid}/status").read_text() for server in servers)
    return sum(map(int, re.findall(r"voluntary_ctxt_switches:\s*(\d+)", status)))


def asked(servers: list[Server], load: str, core: int, seconds: float) -> Result:
    """Let a hundred clients ask without pause.

    @param load: the path of the load generator.
    @param core: its core.
    @return: "us", microseconds of processor time a message, and "switches" a thousand messages.
    """
    options = ("talk", seconds, servers[0].port, "100", "100", "1", str(len(LINE)))
    with Load(load, core, *options) as clients:
        before, switched = used(servers), switches(servers)
        clients.start()
        messages = clients.result()["messages"]
        return {
            "us": (used(servers) - before) / messages,
            "switches": (switches(servers) - switched) / messages * 1000,
        }


def waiting(servers: list[Server], count: int) -> Result:
    """Let this many clients send a line while the processes are suspended, `BURSTS` times.

    @return: the medians of "us", microseconds of processor time a line, and of "lines/s".
    """
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", servers[0].port)))
            arrivals.enable(client)
            client.sendall(LINE)
            arrival(client)
            clients.append(client)
            time.sleep(PACE)
        for server in servers:
            with suppress(PermissionError):
                os.sched_setscheduler(server.pid, os.SCHED_FIFO, os.sched_param(1))
        results = [burst(servers, clients) for _ in range(BURSTS)]
    return {key: median(result[key] for result in results) for key in results[0]}


def burst(servers: list[Server], clients: list[socket.socket]) -> Result:
    """Suspend the processes until each client has sent a line; see `waiting`."""
    for server in servers:
        os.kill(server.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, server.pid, os.WSTOPPED)
    for client in clients:
        client.sendall(LINE)
    before = used(servers)
    for server in servers:
        os.kill(server.pid, signal.SIGCONT)
    time.sleep(SERVING * len(clients))
    times = [arrival(client) for client in clients]
    return {
        "us": (used(servers) - before) / len(clients),
        "lines/s": (len(clients) - 1) / (max(times) - min(times)) * 1e9,
    }


def arrival(client: socket.socket) -> int:
    """Read a reply; return when it arrived, in nanoseconds since the epoch."""
    reply, ancillary, _, _ = client.recvmsg(1024, arrivals.ANCILLARY_SIZE)
    assert reply.endswith(LINE), reply
    return arrivals.from_ancillary(ancillary)


def table(title: str, results: dict[int, list[Result]]) -> str:
    """The medians of all rounds, and those of the rounds' own ratios to a single process."""
    single = results[1]
    lines = [f"{title:34}" + "".join(f"{key:>10}{'ratio':>8}" for key in single[0])]
    for count, rounds in results.items():
        cells = ""
        for key in single[0]:
            value = median(one[key] for one in rounds)
            pairs = [(one[key], other[key]) for one, other in zip(rounds, single, strict=True)]
            ratio = median(one / other if other else nan for one, other in pairs)
            cells += f"{value:10,.{0 if value > 100 else 2}f}{ratio:8.2f}"
        lines.append(f"  {f'processes: {count}':32}" + cells)
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="duration of each load")
    parser.add_argument("--connections", type=int, default=1000, help="with a line that waits")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))[:2]
    # This is the core of the last process to resume. On the first one's core, this program would
    # have to wait for that process before it could resume the others.
    os.sched_setaffinity(0, cores[1:])
    asking: dict[int, list[Result]] = {count: [] for count in COUNTS}
    at_once: dict[int, list[Result]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load = built(folder, "load")["load"]
        for _ in range(arguments.rounds):
            for count in COUNTS:
                with started(count, cores[:1], folder) as servers:
                    asking[count].append(asked(servers, load, cores[1], arguments.seconds))
                with started(count, cores, folder) as servers:
                    at_once[count].append(waiting(servers, arguments.connections))
    print(table("100 clients ask; one core", asking))
    print(table(f"{arguments.connections:,} lines wait; two cores", at_once))


if __name__ == "__main__":
    main()
