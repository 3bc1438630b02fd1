"""Compare `tsecho ping` with ping, irtt and sockperf: `python -m benchmarks.pings`, as root.

All of them measure the same path, a veth pair between two network namespaces, in turn, in several
rounds. None of them has a core of its own, because they are idle most of the time.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from statistics import median
from typing import Any

from tests.system.namespaces import FAR, Machines
from tests.system.running import BIN, PATIENCE

SERVERS = {
    f"{BIN / 'twistd'} -n --pidfile= tsecho -s unix -l udp:3000 -l tcp:3000": "listening on tcp",
    "irtt server": "listener",
    "sockperf server": "Warmup|block on socket|SERVER",
}
"""The commands of the servers, and a pattern in the line that each prints when it is ready."""


class Stack(ExitStack):
    """An exit stack with the interface of a test case, for `Machines`."""

    def addCleanup(self, f: Callable[..., Any], *args: Any) -> None:
        """See `tests.system.running.Case`."""
        self.callback(f, *args)

    def mktemp(self) -> str:
        """See `tests.system.running.Case`."""
        return tempfile.mkdtemp()


def commands(probes: int, every: float) -> dict[str, str]:
    """The commands of the measuring programs, by name."""
    seconds = max(1, int(probes * every))
    tsecho = f"{BIN / 'tsecho'} ping --json -c {probes} -i {every}"
    return {
        "ping": f"ping -c {probes} -i {every} {FAR}",
        "irtt": f"irtt client -Q -o - -i {every}s -d {seconds}s {FAR}",
        "sockperf": f"sockperf pp --full-rtt -i {FAR} -t {seconds} --mps {int(1 / every)}",
        "tsecho ping, UDP": f"{tsecho} udp:{FAR}:3000",
        "tsecho ping, TCP": f"{tsecho} {FAR}:3000",
    }


def median_round_trip(name: str, text: str) -> float:
    """The median round-trip time in the output of a program, in microseconds."""
    if name == "ping":
        return 1000 * median(float(time) for time in re.findall(r"time=([\d.]+) ms", text))
    if name == "irtt":
        return float(json.loads(text)["stats"]["rtt"]["median"]) / 1000
    if name == "sockperf":
        return float(re.findall(r"percentile 50.000 *= *([\d.]+)", text)[0])
    return float(json.loads(text.splitlines()[-1])["rtt_ns"]["p50"]) / 1000


def installed(commands: Iterable[str]) -> list[str]:
    """The commands whose program is installed."""
    found = []
    for command in commands:
        if shutil.which(command.split()[0]):
            found.append(command)
        else:
            print(f"{command.split()[0]} is left out: it is not installed", file=sys.stderr)
    return found


def serve(stack: Stack, prefix: list[str], command: str) -> None:
    """Start a server, and wait until it is ready."""
    server = subprocess.Popen(
        [*prefix, *command.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    stack.callback(server.wait, PATIENCE)
    stack.callback(server.terminate)
    assert server.stdout is not None
    stack.callback(server.stdout.close)
    while not re.search(SERVERS[command], line := server.stdout.readline()):
        if not line:
            raise RuntimeError(f"{command} does not start")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pings", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=50)
    parser.add_argument("--every", type=float, default=0.05, help="seconds")
    arguments = parser.parse_args()
    probes, every = arguments.probes, arguments.every
    found: dict[str, list[float]] = defaultdict(list)
    with Stack() as stack:
        machines = Machines(stack)
        for server in installed(SERVERS):
            serve(stack, machines.inside(machines.far), server)
        named = {command: name for name, command in commands(probes, every).items()}
        programs = installed(named)
        for _ in range(arguments.rounds):
            for command in programs:
                done = subprocess.run(
                    [*machines.inside(machines.near), *command.split()],
                    capture_output=True,
                    check=True,
                    timeout=PATIENCE + probes * every,
                )
                name = named[command]
                found[name].append(median_round_trip(name, done.stdout.decode()))
    print(f"{'':20}{'median, us':>12}{'to ping':>12}   rounds")
    for name, medians in found.items():
        pairs = zip(medians, found.get("ping", medians), strict=True)
        apart = median(ours - theirs for ours, theirs in pairs)
        rounds = " ".join(f"{value:.0f}" for value in medians)
        print(f"{name:20}{median(medians):12.0f}{apart:+12.0f}   {rounds}")


if __name__ == "__main__":
    main()
