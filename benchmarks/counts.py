"""Count the instructions and system calls per message: `python -m benchmarks.counts`.

Unlike processor time, these counts hardly depend on the machine or its load. The case is
"100 connections": strace(1) counts the system calls, valgrind's callgrind the instructions in
user space. Both count from the server's start. So each server runs twice, for few messages and
for ten times as many, and the difference of the counts is divided by the difference of the
messages: what the start, the connections and the stop take cancels out.
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

CONNECTIONS = 100

SLOWDOWN = 5.0
"""Factor by which everything may take longer under valgrind."""


class Tool(NamedTuple):
    """A program that runs another program and counts."""

    command: tuple[str, ...]
    """Its last option takes the output file."""

    pattern: str
    """Matches a name and its count in that file. The last match is the total."""


PATIENT = (
    "from timestamp_echo.transports import epoll; epoll.MAX_QUICK = 1e9;"
    " from twisted.scripts.twistd import run; run()"
)
"""`twistd` with a tsecho that treats no connection as slow: under valgrind all of them are."""


STRACE = Tool(
    # With -D the tracer is the grandchild, so that SIGTERM goes to the server.
    ("strace", "-D", "-f", "-c", "-U", "name,calls", "--output"),
    r"(?m)^(\w+) +(\d+)$",
)
CALLGRIND = Tool(("valgrind", "--tool=callgrind", "--callgrind-out-file"), r"(?m)^(totals): (\d+)$")


def counted(tool: Tool, command: list[str], load: str, messages: int, folder: Path) -> Counter[str]:
    """Run a server until the load has this many replies, and return the counts by name.

    The count "messages" is the number of replies: `messages` plus at most one per connection.
    """
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    file = folder / "counts"
    file.unlink(missing_ok=True)
    under = [*tool.command[:-1], f"{tool.command[-1]}={file}", *command]
    with Server(under, folder / "log", server_core, SLOWDOWN * PATIENCE) as server:
        every, size = str(CONNECTIONS), "64"
        talk = ["talk", str(SLOWDOWN * PATIENCE), "127.0.0.1", str(server.port)]
        talk += [every, every, "1", size, str(messages)]
        output = subprocess.run(
            [*pinned(load_core), load, *talk], input=b"\n", stdout=subprocess.PIPE, check=True
        ).stdout
        server.stop(signal.SIGTERM)
    found = {name: int(count) for name, count in re.findall(tool.pattern, _complete(file))}
    found["messages"] = int(json.loads(output.splitlines()[-1])["messages"])
    return Counter(found)


def _complete(file: Path) -> str:
    """Wait for the last line, and return the text: strace ends a little later than the server."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if file.exists() and re.search(r"(?m)^totals?\b.*\n", text := file.read_text()):
            return text
        time.sleep(0.01)
    raise RuntimeError(f"{file} has no total")


def per_message(
    tool: Tool, command: list[str], load: str, messages: int, folder: Path
) -> dict[str, float]:
    """The counts per message, by name, largest first. So the total comes first."""
    few, many = (
        counted(tool, command, load, number, folder) for number in (messages // 10, messages)
    )
    many.subtract(few)
    more = many.pop("messages")
    return {name: count / more for name, count in many.most_common()}


def row(server: str, command: list[str], load: str, messages: int, folder: Path) -> str:
    """A server's row of the table."""
    cells = f"{server:12}"
    if shutil.which("valgrind"):
        (instructions,) = per_message(CALLGRIND, command, load, messages, folder).values()
        cells += f"{instructions:14,.0f}"
    if shutil.which("strace"):
        total, *calls = per_message(STRACE, command, load, messages, folder).items()
        names = ", ".join(f"{name} {count:.2f}" for name, count in calls if count >= 0.005)
        cells += f"{total[1]:14.2f}  {names}"
    return cells


def main() -> None:
    """Count for each server, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="of each longer run")
    parser.add_argument("--server", action="append", help="only this server; repeatable")
    arguments = parser.parse_args()
    title = f"{'per message':12}"
    for program, what in (("valgrind", "instructions"), ("strace", "system calls")):
        if shutil.which(program):
            title += f"{what:>14}"
        else:
            print(f"{what} are left out: {program} is not installed", file=sys.stderr)
    print(title)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = built(folder, "load", "C")
        servers = commands(programs, folder)["tcp"]
        servers["tsecho"][:1] = [sys.executable, "-c", PATIENT]
        for server in arguments.server or SERVERS:
            if server in servers:
                print(row(server, servers[server], programs["load"], arguments.messages, folder))


if __name__ == "__main__":
    main()
