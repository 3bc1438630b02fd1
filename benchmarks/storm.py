"""Measure how servers behave in a storm of short connections: `python -m benchmarks.storm`.

In each storm 200 clients at a time connect, do something short, and disconnect. Meanwhile each of
20 clients that connected before it sends a line every 10 ms, whether or not the previous reply has
come. The latency of a line counts from when it was due, and a line without a reply counts with its
age at the end of the storm; so the figures show if a server stops answering for a while. All
servers may open the same number of files.

The server has one core, the storm the other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.servers import Load, Server, built, commands

STORMS = {
    "short": ("close", "1", "64"),
    "newlines": ("reset", "5000", "1"),
    "reset": ("reset", "0", "0"),
}
"""By name: how a client ends, and how many lines of how many bytes it sends before.

"short" reads its reply and closes, "newlines" does not read, and "reset" does not even send.
"""

SERVERS = ("tsecho", "C", "Go", "uvloop", "asyncio", "Twisted")

SOCKETS = 200
"""Clients of the storm at a time."""

CONNECTIONS = 100_000
"""A storm ends early after this many connections per second of its planned duration."""

PROBES = ("20", "10")
"""Clients that stay connected, and the milliseconds from one line to the next."""

FILES = 16_384
"""Open files that a server may have: more than tsecho's --max-connections."""

STOP = 20.0
"""Seconds after SIGTERM until a server that still runs is killed."""

SAMPLING = 0.1
"""Seconds from one count of the server's open files to the next."""

COLUMNS = {
    "rate": ("conn/s", "9.0f"),
    "p50_ms": ("p50 ms", "9.2f"),
    "p99_ms": ("p99 ms", "9.2f"),
    "max_ms": ("max ms", "9.2f"),
    "files": ("files", "9.0f"),
    "memory_mb": ("+MB", "9.1f"),
    "log_bytes": ("log B", "9.0f"),
    "stop_s": ("stop s", "9.2f"),
}
"""By the key in a result: a column's title, and the format of its cells."""

Result = dict[str, float]


class Bench(NamedTuple):
    """What all measurements have in common."""

    load: str
    """The path of the load generator."""

    seconds: float
    folder: Path
    server_core: int
    load_core: int


def measured(storm: str, command: list[str], bench: Bench) -> Result:
    """Measure one server in one storm.

    @return: the values of `COLUMNS`; of the storm's connections, how many were "completed" and how
        many "failed"; of the established clients' lines, how many were "answered" and how many
        "overdue" at the end; and "realtime", which is 1 if these clients had real-time priority.
    """
    log = bench.folder / "log"
    limited = ["prlimit", f"--nofile={FILES}:{FILES}", *command]
    with Server(limited, log, bench.server_core) as server:
        written = log.stat().st_size
        result = stormed(storm, server, bench)
        result["stop_s"] = seconds_to_stop(server)
        result["log_bytes"] = log.stat().st_size - written
    return result


def stormed(storm: str, server: Server, bench: Bench) -> Result:
    """Run a storm on a server; return the same as `measured`, less "stop_s" and "log_bytes"."""
    # The established clients share the storm's core. On the server's core they would take the
    # server's time, and interrupt it. The storm can spare the time, since it only has to be faster
    # than the server; and real-time priority keeps these clients punctual: they wait for no more
    # than the storm's current system call.
    generator = (bench.load, bench.load_core)
    count = str(int(CONNECTIONS * bench.seconds))
    sockets = (str(SOCKETS), *STORMS[storm], count)
    with (
        Load(*generator, "probe", bench.seconds, server.port, *PROBES) as probe,
        Load(*generator, "storm", bench.seconds, server.port, *sockets) as load,
    ):
        server.forget_peak()
        before = server.resident()
        probe.start()
        load.start()
        files = 0
        while load.is_running():
            time.sleep(SAMPLING)
            files = max(files, server.files())
        clients, lines = load.result(), probe.result()
        memory = server.peak() - before
    return {
        "rate": clients["messages"] / clients["seconds"],
        **{f"{key}_ms": lines[key] / 1000 for key in ("p50", "p99", "max")},
        "files": files,
        "memory_mb": memory / 1e6,
        "completed": clients["messages"],
        "failed": clients["failed"],
        "answered": lines["messages"],
        "overdue": lines["failed"],
        "realtime": lines["realtime"],
    }


def seconds_to_stop(server: Server) -> float:
    """Stop a server by SIGTERM; how long that took, or `STOP` if it did not end by then."""
    began = time.perf_counter()
    try:
        server.stop(signal.SIGTERM, STOP)
    except subprocess.TimeoutExpired:
        return STOP
    return time.perf_counter() - began


def table(storm: str, by_server: dict[str, list[Result]]) -> str:
    """The results of one storm, a line for each server: the medians of the rounds."""
    lines = [f"{storm:12}" + "".join(f"{title:>9}" for title, _ in COLUMNS.values())]
    for server, rounds in by_server.items():
        cells = (
            format(median(one[key] for one in rounds), how) for key, (_, how) in COLUMNS.items()
        )
        lines.append(f"  {server:10}" + "".join(cells))
    return "\n".join(lines)


def notes(results: dict[str, dict[str, list[Result]]]) -> list[str]:
    """What the reader of the tables must know besides."""
    found = [
        f"{storm}, {server}: {failed:.0f} connections of the storm failed"
        for storm, by_server in results.items()
        for server, rounds in by_server.items()
        if (failed := sum(one["failed"] for one in rounds))
    ]
    measurements = (one for by in results.values() for rounds in by.values() for one in rounds)
    if not all(one["realtime"] for one in measurements):
        found.append("The established clients had no real-time priority: their latency is too high")
    return found


def main() -> None:
    """Run the storms that the command line selects, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="duration of each storm")
    parser.add_argument("--storm", action="append", choices=STORMS, help="only this; repeatable")
    parser.add_argument("--server", action="append", help="only tsecho and this server; repeatable")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    arguments = parser.parse_args()
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = built(folder, "load", "C", "Go")
        servers = commands(programs, folder)["tcp"]
        names = {"tsecho", *(arguments.server or SERVERS)}
        # The tables have this order, whatever the order of the measurements.
        results: dict[str, dict[str, list[Result]]] = {
            storm: {server: [] for server in servers if server in names}
            for storm in arguments.storm or STORMS
        }
        bench = Bench(programs["load"], arguments.seconds, folder, server_core, load_core)
        os.sched_setaffinity(0, {load_core})  # this process must not take the server's time either
        for turn in range(arguments.rounds):
            for storm, by_server in results.items():
                for server in random.sample(list(by_server), len(by_server)):
                    print(f"\r\033[K{turn + 1}: {storm}, {server}", end="", file=sys.stderr)
                    by_server[server].append(measured(storm, servers[server], bench))
    print("\r\033[K", end="", file=sys.stderr)
    print(*(table(*one) for one in results.items()), *notes(results), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
