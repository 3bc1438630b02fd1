"""The servers that are compared: how each is built, started, and asked what it used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / "peers"
PATIENCE = 20.0

_TSECHO = [
    *(str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "tsecho"),
    *("--max-connections", "15000"),
]
_AIO = [sys.executable, str(PEERS / "aio.py")]


def built(folder: Path) -> dict[str, str]:
    """Build what is not Python; the programs by their names, without those that can't be built."""
    programs = {}
    for name, compiler, source in (
        ("load", ["cc", "-O2"], HERE / "load.c"),
        ("C", ["cc", "-O2"], PEERS / "epoll.c"),
        ("Go", ["go", "build"], PEERS / "echo.go"),
    ):
        if shutil.which(compiler[0]):
            program = str(folder / source.stem)
            subprocess.run([*compiler, "-o", program, str(source)], check=True)
            programs[name] = program
        else:
            print(f"{name} is left out: {compiler[0]} is not here", file=sys.stderr)
    return programs


def commands(programs: dict[str, str], *options: str) -> dict[str, dict[str, list[str]]]:
    """For streams ("tcp") and datagrams ("udp"), each server's command, by its name."""
    python = [sys.executable, str(PEERS / "plain_twisted.py")]
    found = {
        kind: {
            "tsecho": [*_TSECHO, "-l", f"{kind}:0:interface=127.0.0.1", *options],
            **{
                f"tsecho, {style}": [*_TSECHO, "-l", f"{kind}:0:interface=127.0.0.1", "-s", style]
                for style in ("iso", "unix")
            },
            **{name: [programs[name], kind, "0"] for name in ("C", "Go") if name in programs},
            "asyncio": [*_AIO, "udp" if kind == "udp" else "protocol", "0"],
            "Twisted": [*python, kind, "0"],
        }
        for kind in ("tcp", "udp")
    }
    for name, command in found["udp"].items():
        if name.startswith("tsecho"):
            command += ["--udp-rate", "999999999"]
    found["tcp"]["streams"] = [*_AIO, "streams", "0"]
    if find_spec("uvloop"):
        found["tcp"]["uvloop"] = [*found["tcp"]["asyncio"], "uvloop"]
        found["udp"]["uvloop"] = [*found["udp"]["asyncio"], "uvloop"]
    else:
        print("uvloop is left out: it is not installed", file=sys.stderr)
    return found


def pinned(core: int) -> list[str]:
    """The beginning of a command that runs on this core alone (taskset(1))."""
    return ["taskset", "--cpu-list", str(core)]


class Server:
    """One that runs, on this core.

    @param command: what starts it; it says "listening on" and where.
    @param log: the file for its words.
    """

    def __init__(self, command: list[str], log: Path, core: int) -> None:
        began = time.perf_counter()
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                [*pinned(core), *command],
                stdout=words,
                stderr=subprocess.STDOUT,
                env=os.environ | {"GOMAXPROCS": "1"},
            )
        while not (found := re.search(r"listening on (?:[a-z]+:)*(\d+)", log.read_text())):
            if self._process.poll() is not None or time.perf_counter() - began > PATIENCE:
                raise RuntimeError(f"{command} does not start:\n{log.read_text()}")
            time.sleep(0.005)
        self.port = int(found[1])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self, number: int) -> None:
        """Stop it by this signal, and wait until it has ended."""
        self._process.send_signal(number)
        self._process.wait(PATIENCE)

    def used(self) -> float:
        """Microseconds of processor time until now, of all its threads (proc(5), schedstat)."""
        total = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1000

    def resident(self) -> int:
        """Bytes of memory that it has (proc(5))."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
