"""Real processes for the tests: `twistd tsecho` and `tsecho`, as a user would start them."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from unittest import SkipTest

PATIENCE = 20.0
"""Seconds after which what should have happened never will: far beyond any of them."""

BIN = Path(sys.executable).parent
"""Where `twistd` and `tsecho` are installed."""

WITHOUT_EPOLL = [
    *(sys.executable, "-c"),
    "import select; del select.epoll; from twisted.scripts.twistd import run; run()",
]
"""`twistd` where there is no epoll(7)."""

STAMP = rb"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] "
"""A ctime stamp, with its brackets."""

Status = subprocess.CompletedProcess[bytes]


class Log:
    """The lines of a running process, as they come."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._news:
                self._lines.append(line.decode(errors="replace"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def text(self) -> str:
        """All that came until now."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str, times: int = 1) -> list[Any]:
        """Wait until the pattern is there so many times; what it found."""

        def there() -> bool:
            found[:] = re.findall(pattern, "".join(self._lines), re.MULTILINE)
            return len(found) >= times or self._ended

        found: list[Any] = []
        with self._news:
            self._news.wait_for(there, PATIENCE)
            if len(found) < times:
                raise AssertionError(f"{pattern!r} is not in:\n{''.join(self._lines)}")
        return found

    def finish(self) -> str:
        """Wait until the process writes no more; all that it wrote."""
        self._thread.join(PATIENCE)
        return self.text


class Case(Protocol):
    """What a service needs of a test."""

    def mktemp(self) -> str:
        """A path where nothing is."""

    def addCleanup(self, f: Callable[..., Any], *args: Any) -> None:
        """Do this in the end."""


class Service:
    """`twistd -n tsecho` with these options, listening.

    @param case: the test, at whose end the service is stopped. If it is `without_epoll`, so is
        the service, as on systems that have none.
    @param options: of tsecho.
    @param twistd: options of twistd itself.
    @param environment: variables to add.
    @param prefix: a command that runs it.
    @param pass_fds: files that it inherits.
    """

    def __init__(
        self,
        case: Case,
        *options: str,
        twistd: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.folder = os.path.abspath(case.mktemp())
        os.makedirs(self.folder)
        program = WITHOUT_EPOLL if getattr(case, "without_epoll", False) else [BIN / "twistd"]
        arguments = ["-n", "--pidfile=", *twistd, "tsecho", *options]
        self.process = subprocess.Popen(
            [*prefix, *program, *arguments],
            pass_fds=pass_fds,
            cwd=self.folder,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        case.addCleanup(self.stop)
        assert self.process.stdout is not None
        self.log = Log(self.process.stdout)
        count = sum(option in {"-l", "--listen"} for option in options) or 1
        found = self.log.wait_for(r"listening on (\S+)$", count)
        self.listening: list[str] = found

    def port(self, index: int = 0) -> int:
        """The port of this listener."""
        match = re.search(r":(\d+)", self.listening[index])
        assert match is not None
        return int(match[1])

    def path(self, name: str = "socket") -> str:
        """A file in the service's folder, from here: a UNIX address has 108 bytes (unix(7))."""
        return os.path.relpath(os.path.join(self.folder, name))

    def connect(self, index: int = 0) -> socket.socket:
        """A connection to this listener, over IPv4."""
        return socket.create_connection(("127.0.0.1", self.port(index)), PATIENCE)

    def resident(self) -> int:
        """The memory that the process has now, in bytes (proc(5))."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def spins(self) -> bool:
        """Whether it uses most of half a second, in which it has nothing to do (proc(5))."""
        before = self._used()
        select.select([], [], [], 0.5)
        return self._used() - before > 0.25

    def _used(self) -> float:
        """Seconds of processor time until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it by a signal, if it runs; its exit status, and its log is complete."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; its exit status, and its log is complete."""
        status = self.process.wait(PATIENCE)
        self.log.finish()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class Screen:
    """A terminal, with a command on it.

    @param case: the test, at whose end it is gone.
    @param command: what runs on it.
    """

    def __init__(self, case: Case, *command: str | Path) -> None:
        self._person, self._terminal = pty.openpty()
        case.addCleanup(os.close, self._person)
        case.addCleanup(os.close, self._terminal)
        self.process = subprocess.Popen(
            # The terminal is to be the process's own, so that Ctrl-C reaches it.
            [needs("setsid"), "--ctty", *command],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=os.environ | {"TERM": "vt100"},
        )
        case.addCleanup(self.process.wait, PATIENCE)
        case.addCleanup(self.process.kill)
        self.seen = ""

    def see(self, pattern: str) -> None:
        """Wait until this is on the screen, at its end."""
        while not re.search(f"{pattern}$", self.seen):
            if not select.select([self._person], [], [], PATIENCE)[0]:
                raise AssertionError(f"{pattern!r} is not at the end of {self.seen!r}")
            self.seen += os.read(self._person, 2**16).decode(errors="replace")

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._person, text.encode())

    def status(self) -> int:
        """The exit status; and the terminal is as blocking as it was."""
        status = self.process.wait(PATIENCE)
        assert os.get_blocking(self._terminal)
        return status


def lab_server(case: Case) -> str:
    """The lab's server, and where it is."""
    return _listening(case, [sys.executable, "-m", "tests.system.lab"], r"listening on (\d+)")


def plain_echo(case: Case) -> str:
    """A plain echo (RFC 862), socat's; and where it is."""
    command = [needs("socat"), "-d", "-d", "TCP-LISTEN:0,bind=127.0.0.1", "PIPE"]
    return _listening(case, command, r"listening on .*:(\d+)")


def _listening(case: Case, command: list[str], pattern: str) -> str:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    case.addCleanup(process.stdout.close)
    case.addCleanup(process.wait, PATIENCE)
    case.addCleanup(process.terminate)
    (port,) = Log(process.stdout).wait_for(pattern)
    return f"127.0.0.1:{port}"


def twistd(folder: str | Path, *arguments: str) -> Status:
    """A `twistd` that is expected to end by itself."""
    return run([BIN / "twistd", *arguments], cwd=folder)


def tsecho(*arguments: str, stdin: bytes = b"") -> Status:
    """The client in a pipe, with this standard input."""
    return run([BIN / "tsecho", *arguments], input=stdin)


def run(command: Sequence[str | Path], **how: Any) -> Status:
    """Run a command to its end."""
    if "input" not in how:
        how.setdefault("stdin", subprocess.DEVNULL)
    how.setdefault("timeout", PATIENCE)
    return subprocess.run(command, capture_output=True, check=False, **how)


def needs(program: str) -> str:
    """Where this program is; without it the test is skipped, and says so."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if os.access(os.path.join(folder, program), os.X_OK):
            return os.path.join(folder, program)
    raise SkipTest(f"{program} is not installed")


def talk(sock: socket.socket, data: bytes) -> bytes:
    """Send, close this side at once, and read to the end."""
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Read until the peer closes."""
    data = b""
    while piece := sock.recv(2**16):
        data += piece
    return data


def fill(sock: socket.socket, line: bytes) -> int:
    """Send this line again and again until there is no room anywhere; bytes sent.

    The server stops reading when it has too much unsent, and the kernel takes no more when
    its buffers are full; a quarter of a second without room tells that it is so.
    """
    block = line * (2**16 // len(line))
    sent = 0
    sock.setblocking(False)
    while select.select([], [sock], [], 0.25)[1]:
        sent += sock.send(block[sent % len(block) :])
    return sent


def connectable(case: Case, wanted: int) -> int:
    """So many connections, or as many as may be opened here; this process may open them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    case.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, hard - 200)
