"""Run the benchmark, and print its table.

Each round runs every case with all servers, in random order, so that other load on the machine
affects all servers alike. A ratio is the median of the ratios of the rounds. The server runs on one
core, the load generator on another.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.picture import plot
from benchmarks.servers import Load, Server, built, commands


class Case(NamedTuple):
    """One kind of load."""

    name: str
    load: tuple[str, ...]
    """The mode of the program `load` and its arguments after the port; or "start" alone, which
    measures the start of the server, without a load."""

    kind: str = "tcp"
    """Which servers take part: a key of what `commands` returns."""

    files: int = 0
    """Open files that the server and the load each need."""

    styles: bool = False
    """Whether tsecho's other stamp styles take part."""


CASES = [
    Case("100 connections, 64 B", ("talk", "100", "100", "1", "64"), styles=True),
    Case("1,000 connections", ("talk", "1000", "1000", "1", "64")),
    Case("10,000 connections", ("talk", "10000", "10000", "1", "64"), files=10_100),
    Case("1 connection", ("talk", "1", "1", "1", "64"), kind="one"),
    Case("50 lines in flight", ("talk", "100", "100", "50", "64")),
    Case("16 KiB lines", ("talk", "100", "100", "1", "16384")),
    Case("10,000 open, 100 active", ("talk", "10000", "100", "1", "64"), files=10_100),
    Case("UDP", ("udp", "100", "64"), kind="udp", styles=True),
    Case("TLS, 100 connections", ("talk", "100", "100", "1", "64"), kind="tls"),
    Case("connect, line, close", ("connect", "100")),
    Case("the same, one at a time", ("connect", "1")),
    Case("memory, idle", ("idle", "5000"), files=5100),
    Case("start to first reply", ("start",)),
]

Result = dict[str, float]


def measured(case: Case, command: list[str], load: str, seconds: float, folder: Path) -> Result:
    """Measure one server under one load.

    @return: "cost", in microseconds of processor time per message, or for the mode "idle" in
        bytes of memory per connection; "rate", in messages a second; percentiles of the round-trip
        times, in microseconds.
    """
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    mode, *values = case.load
    if mode == "start":
        return started(command, folder, server_core)
    with Server(command, folder / "log", server_core) as server:
        empty = server.resident()
        with Load(load, load_core, mode, seconds, server.port, *values) as client:
            before, full = server.used(), server.resident()
            client.start()
            result: Result = client.result()
            used = server.used() - before
    if mode == "idle":
        return {"cost": (full - empty) / int(values[0])}
    result["cost"] = used / result["messages"]
    result["rate"] = result.pop("messages") / seconds
    return result


def started(command: list[str], folder: Path, core: int) -> Result:
    """Measure the time from a server's start to its first reply: "cost", in milliseconds."""
    began = time.perf_counter()
    with (
        Server(command, folder / "log", core) as server,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        sock.sendall(b"hello\n")
        sock.recv(100)
        return {"cost": (time.perf_counter() - began) * 1000}


def main() -> None:
    """Run the benchmark that the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="duration of each measurement")
    parser.add_argument(
        "--case", action="append", help="only cases whose name contains this; repeatable"
    )
    parser.add_argument("--server", action="append", help="only tsecho and this server; repeatable")
    parser.add_argument(
        "--option", action="append", default=[], help="pass this option to tsecho; repeatable"
    )
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--plot", type=Path, help="write a picture to this file (SVG or PNG)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = built(folder)
        servers = commands(programs, folder, *arguments.option)
        cases = chosen(arguments.case, servers)
        # The tables have this order, whatever the order of the measurements.
        results: dict[str, dict[str, list[Result]]] = {
            case.name: {
                name: [] for name in servers[case.kind] if takes_part(name, case, arguments.server)
            }
            for case in cases
        }
        for turn in range(arguments.rounds):
            for case in cases:
                load = programs["load, tls" if case.kind == "tls" else "load"]
                by_server = results[case.name]
                for server in random.sample(list(by_server), len(by_server)):
                    print(f"\r\033[K{turn + 1}: {case.name}, {server}", end="", file=sys.stderr)
                    command = servers[case.kind][server]
                    one = measured(case, command, load, arguments.seconds, folder)
                    by_server[server].append(one)
    print("\r\033[K", end="", file=sys.stderr)
    for case_name, by_server in results.items():
        print(table(case_name, by_server))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    if arguments.plot:
        plot(results, arguments.plot)


def takes_part(server: str, case: Case, names: list[str] | None) -> bool:
    """Whether a server is measured in a case."""
    if server == "tsecho":
        return True
    if server.startswith("tsecho"):
        return case.styles
    return not names or server in names


def chosen(names: list[str] | None, kinds: Collection[str]) -> list[Case]:
    """The selected cases that this machine can run."""
    files = os.sysconf("SC_OPEN_MAX")
    cases = []
    for case in CASES:
        if names and not any(name in case.name for name in names):
            continue
        if case.files > files:
            print(f"{case.name} is left out: the limit is {files} open files", file=sys.stderr)
        elif case.kind not in kinds:
            print(f"{case.name} is left out: no libssl headers, or no pyOpenSSL", file=sys.stderr)
        else:
            cases.append(case)
    return cases


def table(name: str, by_server: dict[str, list[Result]]) -> str:
    """The results of one case, a line for each server."""
    unit = {"memory, idle": "B each", "start to first reply": "ms"}.get(name, "us CPU")
    lines = [f"{name:26}{unit:>9}{'tsecho/':>9}{'rate':>9}{'p50':>9}{'p99':>9}{'p99.9':>9}"]
    for server, rounds in by_server.items():
        pairs = zip(by_server["tsecho"], rounds, strict=True)
        ratio = median(ours["cost"] / theirs["cost"] for ours, theirs in pairs)
        cells = [f"{median(one['cost'] for one in rounds):9.2f}", f"{ratio:9.2f}"]
        cells += [
            f"{median(one[key] for one in rounds):9.0f}"
            for key in ("rate", "p50", "p99", "p999")
            if key in rounds[0]
        ]
        lines.append(f"  {server:24}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
