"""Measure what `--status` costs a service that is scraped: `python -m benchmarks.scrapes`.

A benchmark under load cannot resolve a thousandth. So the two things that `--status` adds are each
measured alone, on an otherwise idle server: a scrape, and a second of the timer that measures the
reactor's lag. The path of a message has no added code. At full load, with one scrape a second, each
second of the server's processor time includes both: "ratio" is what a message then costs, as a
multiple of its cost without them. Between two scrapes every connection sends a line, so that the
processor's caches contain what they would under load.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.servers import PATIENCE, Server, commands

CONNECTIONS = (0, 1, 100, 1000, 10_000)


def measured(
    command: list[str], count: int, folder: Path, scrapes: int, seconds: float
) -> tuple[float, float]:
    """Measure one server.

    @param count: how many connections are open.
    @param scrapes: how many are measured.
    @param seconds: for which the timer is measured.
    @return: microseconds of processor time for a second of the timer, and for a scrape.
    """
    log = folder / "log"
    with Server(command, log, min(os.sched_getaffinity(0))) as server:
        found = re.search(r"status on tcp:(\d+)", log.read_text())
        assert found is not None, log.read_text()
        url = f"http://127.0.0.1:{found[1]}/metrics"
        where = ("127.0.0.1", server.port)
        connections = [socket.create_connection(where, PATIENCE) for _ in range(count)]
        scrape(url)  # the first one takes longer
        costs = []
        for _ in range(scrapes):
            talk(connections)
            costs.append(used(server, lambda: scrape(url)))
        timer = used(server, lambda: time.sleep(seconds)) / seconds
        for sock in connections:
            sock.close()
    return timer, median(costs)


def used(server: Server, action: Callable[[], object]) -> float:
    """Microseconds of the server's processor time that an action takes, when it has settled."""
    time.sleep(0.05)
    before = server.used()
    action()
    return server.used() - before


def scrape(url: str) -> None:
    """Read the metrics."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        response.read()


def talk(connections: list[socket.socket]) -> None:
    """Send a line through each connection, and read all replies."""
    for sock in connections:
        sock.sendall(b"x" * 63 + b"\n")
    for sock in connections:
        sock.recv(100)


def main() -> None:
    """Print a line for each number of connections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scrapes", description=__doc__)
    parser.add_argument("--scrapes", type=int, default=20, help="for each number of connections")
    parser.add_argument("--seconds", type=float, default=3, help="for the timer")
    arguments = parser.parse_args()
    files = os.sysconf("SC_OPEN_MAX")
    print(f"{'connections':>11} {'scrape us':>10} {'timer us/s':>11} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        status = ("--status", "tcp:0:interface=127.0.0.1")
        command = commands({}, folder, *status)["tcp"]["tsecho"]
        for count in CONNECTIONS:
            if count + 100 > files:
                print(f"{count:11,} is left out: the limit is {files} open files")
                continue
            timer, cost = measured(command, count, folder, arguments.scrapes, arguments.seconds)
            print(f"{count:11,} {cost:10,.0f} {timer:11,.0f} {1 + (timer + cost) / 1e6:7.4f}")


if __name__ == "__main__":
    main()
