"""What a message takes in instructions and system calls: `python -m benchmarks.counts`.

Unlike processor time, these hardly depend on the machine or on what else it does. The case is
"100 connections": strace(1) counts the system calls, valgrind's callgrind the instructions in
user space. Both slow the server down, and both count from its start: so it runs twice, for a
short while and for longer, and what counts is the difference, for each message more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import PATIENCE, Server, built, commands, pinned

SERVERS = ("tsecho", "C", "bare", "uvloop", "asyncio", "Twisted")
SLOWER = 10.0
"""How many times longer than without valgrind a start may take."""


class Tool(NamedTuple):
    """A program that runs another and counts."""

    command: tuple[str, ...]
    """Its last option takes the file for the counts."""

    pattern: str
    """A name and its count in this file; the last one is their total."""


STRACE = Tool(
    # The tracer is the grandchild (-D): so the server gets the signal that ends it.
    ("strace", "-D", "-f", "-c", "-U", "name,calls", "--output"),
    r"(?m)^(\w+) +(\d+)$",
)
CALLGRIND = Tool(("valgrind", "--tool=callgrind", "--callgrind-out-file"), r"(?m)^(totals): (\d+)$")


def counted(
    tool: Tool, command: list[str], load: str, seconds: float, folder: Path
) -> Counter[str]:
    """Run a server under a load for so long; all that was counted, and the "messages"."""
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    file = folder / "counts"
    file.unlink(missing_ok=True)
    under = [*tool.command[:-1], f"{tool.command[-1]}={file}", *command]
    with Server(under, folder / "log", server_core, SLOWER * PATIENCE) as server:
        talk = ["talk", str(seconds), "127.0.0.1", str(server.port), "100", "100", "1", "64"]
        said = subprocess.run(
            [*pinned(load_core), load, *talk], input=b"\n", stdout=subprocess.PIPE, check=True
        )
        server.stop(signal.SIGTERM)
    found = {name: int(count) for name, count in re.findall(tool.pattern, _written(file))}
    found["messages"] = int(json.loads(said.stdout.splitlines()[-1])["messages"])
    return Counter(found)


def _written(file: Path) -> str:
    """What is in it when its last line is: strace ends a little later than the server."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if file.exists() and re.search(r"(?m)^totals?\b.*\n", text := file.read_text()):
            return text
        time.sleep(0.01)
    raise RuntimeError(f"{file} has no total")


def for_each(
    tool: Tool, command: list[str], load: str, seconds: float, folder: Path
) -> dict[str, float]:
    """How many of each for a message, the most first: the total is first of all."""
    less, more = (
        counted(tool, command, load, length, folder) for length in (seconds / 10, seconds)
    )
    more.subtract(less)
    messages = more.pop("messages")
    return {name: count / messages for name, count in more.most_common()}


def row(server: str, command: list[str], load: str, seconds: float, folder: Path) -> str:
    """One line of the table."""
    cells = f"{server:10}"
    if shutil.which("valgrind"):
        (instructions,) = for_each(CALLGRIND, command, load, seconds, folder).values()
        cells += f"{instructions:14,.0f}"
    if shutil.which("strace"):
        total, *calls = for_each(STRACE, command, load, seconds, folder).items()
        names = ", ".join(f"{name} {count:.2f}" for name, count in calls if count >= 0.005)
        cells += f"{total[1]:14.2f}  {names}"
    return cells


def main() -> None:
    """Count with every server, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of each longer run")
    parser.add_argument("--server", action="append", help="only these")
    arguments = parser.parse_args()
    title = f"{'a message':10}"
    for program, what in (("valgrind", "instructions"), ("strace", "system calls")):
        if shutil.which(program):
            title += f"{what:>14}"
        else:
            print(f"{what} are left out: {program} is not here", file=sys.stderr)
    print(title)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = built(folder, "load", "C")
        servers = commands(programs, folder)["tcp"]
        for server in arguments.server or SERVERS:
            if server in servers:
                print(row(server, servers[server], programs["load"], arguments.seconds, folder))


if __name__ == "__main__":
    main()
