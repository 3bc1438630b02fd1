"""The servers that are compared: how to build and start each one, and measure what it uses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / "peers"
PATIENCE = 60.0
"""Seconds to wait for what takes at most a second on an idle machine."""

_TSECHO = [
    *(str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "tsecho"),
    *("--max-connections", "15000"),
]

_AIO = [sys.executable, str(PEERS / "aio.py")]
_LIBSSL = ["-DTLS", "-lssl", "-lcrypto"]


def built(folder: Path, *names: str) -> dict[str, str]:
    """Build the programs that are not in Python.

    @param folder: where they go.
    @param names: build only these; all, if there is none.
    @return: the paths of the programs, by name, without those whose compiler is missing. The
        variants in C that use TLS have the suffix ", tls".
    @raise CalledProcessError: a compiler failed.
    """
    sources = {
        "load": ["cc", "-O2", str(HERE / "load.c")],
        "C": ["cc", "-O2", str(PEERS / "epoll.c")],
        "Go": ["go", "build", str(PEERS / "echo.go")],
    }
    if _has_libssl():
        sources |= {f"{name}, tls": [*sources[name], *_LIBSSL] for name in ("load", "C")}
    programs = {}
    for name, (compiler, how, *rest) in sources.items():
        if names and name not in names:
            continue
        if shutil.which(compiler):
            programs[name] = str(folder / name)
            subprocess.run([compiler, how, "-o", programs[name], *rest], check=True)
        else:
            print(f"{name} is left out: {compiler} is not installed", file=sys.stderr)
    return programs


def _has_libssl() -> bool:
    """Whether libssl's headers are installed. They are a package of their own."""
    if not shutil.which("cc"):
        return False
    probe = ["cc", "-E", "-include", "openssl/ssl.h", "-x", "c", os.devnull]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def commands(
    programs: dict[str, str], folder: Path, *options: str
) -> dict[str, dict[str, list[str]]]:
    """The commands that start the servers, by kind of case and by name.

    @param folder: where the key and the certificate for TLS are written.
    @param options: further options of tsecho.
    @return: the kinds are connections ("tcp"), a single connection ("one"), datagrams ("udp")
        and, if libssl's headers and pyOpenSSL are installed, TLS ("tls").
    """
    found = {
        kind: _commands(programs, kind, f"{kind}:0:interface=127.0.0.1", options)
        for kind in ("tcp", "udp")
    }
    for name, command in found["udp"].items():
        if name.startswith("tsecho"):
            command += ["--udp-rate", "999999999"]
    found["tcp"]["streams"] = [*_AIO, "asyncio", "streams", "0"]
    found["tcp"]["bare"] = [sys.executable, str(PEERS / "bare.py"), "0"]
    found["one"] = found["tcp"] | {"lab": [sys.executable, "-m", "tests.system.lab"]}
    if "load, tls" in programs and find_spec("OpenSSL"):
        from tests.system.certificates import self_signed

        files = self_signed(str(folder / "tls"))
        where = f"ssl:0:interface=127.0.0.1:{files.endpoint}"
        found["tls"] = _commands(programs, "tls", where, options, files)
    if not find_spec("uvloop"):
        print("uvloop is left out: it is not installed", file=sys.stderr)
    return found


def _commands(
    programs: dict[str, str],
    kind: str,
    where: str,
    options: Sequence[str],
    files: Sequence[str] = (),
) -> dict[str, list[str]]:
    """The commands for one kind of case, by the server's name.

    @param where: tsecho's endpoint.
    @param files: the paths of the key and the certificate, for TLS.
    """
    peers: dict[str, list[str]] = {
        name: [programs.get(f"{name}, {kind}", programs[name])]
        for name in ("C", "Go")
        if name in programs
    }
    peers["asyncio"] = [*_AIO, "asyncio"]
    peers["Twisted"] = [sys.executable, str(PEERS / "plain_twisted.py")]
    if find_spec("uvloop"):
        peers["uvloop"] = [*_AIO, "uvloop"]
    return {
        "tsecho": [*_TSECHO, "-l", where, *options],
        **{f"tsecho, {style}": [*_TSECHO, "-l", where, "-s", style] for style in ("iso", "unix")},
        **{name: [*start, kind, "0", *files] for name, start in peers.items()},
    }


def pinned(core: int) -> list[str]:
    """The prefix of a command that makes it run on this core alone (taskset(1))."""
    return ["taskset", "--cpu-list", str(core)]


class Server:
    """A running server, pinned to a core. As a context manager, it kills the server at the end.

    @param command: what starts it; it must print "listening on" and its port.
    @param log: the file for its output.
    @param core: the number of the core.
    @param patience: seconds that its start may take.
    @param pass_fds: file descriptors that it inherits.
    @raise RuntimeError: it ended, or did not listen in time.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        core: int,
        patience: float = PATIENCE,
        pass_fds: Sequence[int] = (),
    ) -> None:
        began = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*pinned(core), *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"GOMAXPROCS": "1"},
                pass_fds=pass_fds,
            )
        self.pid = self._process.pid
        try:
            while not (found := re.search(r"listening on (?:[a-z]+:)*(\d+)", log.read_text())):
                if self._process.poll() is not None or time.perf_counter() - began > patience:
                    raise RuntimeError(f"{command} does not start:\n{log.read_text()}")
                time.sleep(0.005)
        except BaseException:  # even Ctrl-C: nothing else would end the process
            self.__exit__()
            raise
        self.port = int(found[1])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self, number: int, patience: float = PATIENCE) -> None:
        """Send this signal, and wait until the server has ended.

        @raise TimeoutExpired: that took more than `patience` seconds.
        """
        self._process.send_signal(number)
        self._process.wait(patience)

    def used(self) -> float:
        """Microseconds of processor time so far, of all its threads (proc(5), schedstat)."""
        total = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1000

    def resident(self) -> int:
        """Resident memory in bytes (proc(5))."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def forget_peak(self) -> None:
        """Reset `peak` (proc(5), clear_refs)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """The most resident memory so far, in bytes (proc(5), VmHWM)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None, status
        return int(found[1]) * 1024

    def files(self) -> int:
        """How many files it has open."""
        folder = Path(f"/proc/{self._process.pid}/fd")
        # Since Linux 6.2 the size is their number, which is much cheaper than a list.
        return folder.stat().st_size or len(os.listdir(folder))


class Load:
    """A running load generator (`load.c`), pinned to a core, whose connections are open.

    As a context manager, it kills the load generator at the end.

    @param program: the path of the program.
    @param core: the number of the core.
    @param mode: the program's mode, and then the other arguments of its command line.
    @raise RuntimeError: it ended before its connections were open.
    """

    def __init__(
        self, program: str, core: int, mode: str, seconds: float, port: int, *values: str
    ) -> None:
        self._process = subprocess.Popen(
            [*pinned(core), program, mode, str(seconds), "127.0.0.1", str(port), *values],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        try:
            if self._output.readline() != "open\n":
                raise RuntimeError(f"load {mode} does not start")
        except BaseException:  # even Ctrl-C: nothing else would end the process
            self.__exit__()
            raise

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._input.close()
        self._output.close()

    def start(self) -> None:
        """Let it send."""
        self._input.write("\n")
        self._input.flush()

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def result(self) -> dict[str, float]:
        """Wait for its end, and return what it has measured.

        It does not wait for the process to exit: that closes the connections, which costs the
        server processor time.

        @raise RuntimeError: it failed; the reason is on its standard error.
        """
        line = self._output.readline()
        if not line:
            raise RuntimeError("the load failed")
        measured: dict[str, float] = json.loads(line)
        return measured
