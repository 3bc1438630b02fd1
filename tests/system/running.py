"""Real processes for the tests: `twistd tsecho` and `tsecho`, started as a user starts them."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from unittest import SkipTest

PATIENCE = 20.0
"""Seconds to wait for what takes milliseconds, even on a busy machine, before a test fails."""

BIN = Path(sys.executable).parent
"""The folder in which `twistd` and `tsecho` are installed."""

WITHOUT_EPOLL = [
    *(sys.executable, "-c"),
    "import select; del select.epoll; from twisted.scripts.twistd import run; run()",
]
"""`twistd` as on a system without epoll(7)."""

WITHOUT_RECVMMSG = [
    *(sys.executable, "-c"),
    "from timestamp_echo.transports import udp; udp.HAS_RECVMMSG = False;"
    "from twisted.scripts.twistd import run; run()",
]
"""`twistd` as on a system without recvmmsg(2)."""

SIGNALLED = """
import os, signal, sys
module, name_of_signal, program, *arguments = sys.argv[1:]
class Finder:
    def find_spec(self, name, *arguments):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.Signals[name_of_signal])
sys.meta_path.insert(0, Finder())
sys.argv = [program, *arguments]
exec(compile(open(program).read(), program, "exec"))
"""
"""Runs a Python script, and sends it a signal when it begins to import a module."""

REACTOR = [f"--reactor={os.environ['TSECHO_REACTOR']}"] if "TSECHO_REACTOR" in os.environ else []
"""Services run under the reactor that this variable names, such as poll; by default twistd's."""

STAMP = rb"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] "
"""A regular expression for a ctime stamp, its brackets and the space."""

Status = subprocess.CompletedProcess[bytes]


class Log:
    """The output of a running process, read by a thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._changed:
                self._lines.append(line.decode(errors="replace"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def text(self) -> str:
        """The output so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, times: int = 1) -> list[Any]:
        """Wait until the output has this many matches of the pattern, and return the matches.

        @param pattern: a regular expression, for `re.findall` with `re.MULTILINE`.
        @raise AssertionError: the process ended, or `PATIENCE` passed, before that.
        """

        def is_complete() -> bool:
            found[:] = re.findall(pattern, "".join(self._lines), re.MULTILINE)
            return len(found) >= times or self._ended

        found: list[Any] = []
        with self._changed:
            self._changed.wait_for(is_complete, PATIENCE)
            if len(found) < times:
                raise AssertionError(f"{pattern!r} is not in:\n{''.join(self._lines)}")
        return found

    def finish(self) -> str:
        """Wait until the process has closed its output, and return all of it."""
        self._thread.join(PATIENCE)
        return self.text


class Case(Protocol):
    """What the helpers here need of a test case."""

    def mktemp(self) -> str:
        """A path where no file is."""

    def addCleanup(self, f: Callable[..., Any], *args: Any) -> None:
        """Call this at the end of the test."""


class Service:
    """`twistd -n tsecho` with these options, already listening.

    @param case: the test, at whose end the service is stopped. If it has a true attribute
        `without_epoll` or `without_recvmmsg`, the service runs as on a system without them.
    @param options: options of tsecho.
    @param twistd: options of twistd itself.
    @param environment: variables to add to the environment.
    @param prefix: a command that runs the service, such as `["prlimit", "--nofile=64"]`.
    @param pass_fds: file descriptors that the service inherits.
    @raise AssertionError: it ended without listening.
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
        if getattr(case, "without_recvmmsg", False):
            program = WITHOUT_RECVMMSG
        if not any(option.startswith("--reactor=") for option in twistd):
            twistd = [*REACTOR, *twistd]
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
        """The port of a listener, by its place among the options."""
        match = re.search(r":(\d+)", self.listening[index])
        assert match is not None
        return int(match[1])

    def path(self, name: str = "socket") -> str:
        """The relative path of a file in the service's folder.

        An absolute one may not fit into the 108 bytes of a UNIX address (unix(7)).
        """
        return os.path.relpath(os.path.join(self.folder, name))

    def connect(self, index: int = 0) -> socket.socket:
        """Connect to a listener over IPv4; the socket's timeout is `PATIENCE`."""
        return socket.create_connection(("127.0.0.1", self.port(index)), PATIENCE)

    def resident(self) -> int:
        """The resident memory of the process, in bytes (proc(5))."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def spins(self) -> bool:
        """Whether the process, which should be idle, uses a core for most of half a second."""
        before = self._used()
        select.select([], [], [], 0.5)
        return self._used() - before > 0.25

    def _used(self) -> float:
        """Seconds of processor time so far (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, if the process runs; then as `wait`."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until the process has ended and its log is complete; return the exit status."""
        status = self.process.wait(PATIENCE)
        self.log.finish()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class Screen:
    """A pseudo-terminal with a command running on it.

    @param case: the test, at whose end the command is killed and the terminal closed.
    @param command: the command.
    @param term: the kind of terminal that the command takes it for.
    """

    def __init__(self, case: Case, *command: str | Path, term: str = "vt100") -> None:
        self._person, self._terminal = pty.openpty()
        case.addCleanup(os.close, self._person)
        case.addCleanup(os.close, self._terminal)
        self._mode = termios.tcgetattr(self._terminal)
        self.process = subprocess.Popen(
            # It must be the controlling terminal, or Ctrl-C sends no signal.
            [needs("setsid"), "--ctty", *command],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=at_terminal(case, term),
        )
        case.addCleanup(self.process.wait, PATIENCE)
        case.addCleanup(self.process.kill)
        self.seen = ""

    def see(self, pattern: str) -> None:
        """Wait until the end of the output matches this pattern."""
        while not re.search(f"{pattern}$", self.seen):
            if not select.select([self._person], [], [], PATIENCE)[0]:
                raise AssertionError(f"{pattern!r} is not at the end of {self.seen!r}")
            self.seen += os.read(self._person, 2**16).decode(errors="replace")

    def type(self, text: str) -> None:
        """Type this text."""
        self.type_bytes(text.encode())

    def type_bytes(self, data: bytes) -> None:
        """Type these bytes."""
        os.write(self._person, data)

    def status(self) -> int:
        """Wait for the end; check that the terminal is as it was; return the exit status."""
        status = self.process.wait(PATIENCE)
        assert os.get_blocking(self._terminal)
        assert termios.tcgetattr(self._terminal) == self._mode
        return status


class Window:
    """A shell in a window of tmux(1), a real terminal: tests check what a user would see.

    @param case: the test, at whose end tmux and what runs in it are ended.
    @raise SkipTest: there is no tmux.
    """

    def __init__(self, case: Case) -> None:
        folder = tempfile.mkdtemp()  # `mktemp` may be too long for a UNIX address
        case.addCleanup(shutil.rmtree, folder)
        self._tmux = [needs("tmux"), "-S", f"{folder}/tmux", "-f", os.devnull]
        environment = at_terminal(case, "screen") | {"PS1": "$ ", "LC_ALL": "C.UTF-8"}
        self.home = environment["HOME"]
        size = ["-x", "60", "-y", "20"]
        # The control client reports each change of the window.
        command = [*self._tmux, "-C", "new-session", *size, "bash", "--norc", "--noprofile"]
        self._control = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        case.addCleanup(self._close)
        self.see(r"^\$ $")

    def _close(self) -> None:
        self._run("kill-server")
        self._control.communicate(timeout=PATIENCE)

    def _run(self, *arguments: str) -> str:
        return run([*self._tmux, *arguments]).stdout.decode()

    def see(self, pattern: str) -> str:
        """Wait until the window shows this, and return all of what it shows.

        @param pattern: a regular expression, for `re.search` with `re.MULTILINE`; the cursor's line
            is the last, and keeps its spaces.
        """
        assert self._control.stdout is not None
        while True:
            shown = self._run("capture-pane", "-p", "-N").rstrip("\n")
            if re.search(pattern, shown, re.MULTILINE):
                return shown
            if not select.select([self._control.stdout], [], [], PATIENCE)[0]:
                raise AssertionError(f"{pattern!r} is not in:\n{shown}")
            if not os.read(self._control.stdout.fileno(), 2**16):
                raise AssertionError(f"tmux has ended; it showed:\n{shown}")

    def type(self, text: str) -> None:
        """Type this text."""
        self._run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press these keys, by their names in tmux, such as `Up`, `C-r` and `Enter`."""
        self._run("send-keys", *keys)

    def resize(self, columns: int) -> None:
        """Give the window another width."""
        self._run("resize-window", "-x", str(columns))

    def paste(self, text: str) -> None:
        """Paste this text, in brackets if the program asks for them."""
        file = Path(self.home, "pasted")
        file.write_text(text)
        self._run("load-buffer", str(file))
        self._run("paste-buffer", "-p")


def at_terminal(case: Case, term: str) -> dict[str, str]:
    """The environment for the client at a terminal: no history, and readline's default settings.

    @param term: the kind of terminal, for TERM.
    """
    home = os.path.abspath(case.mktemp())
    os.makedirs(home)
    kept = {name: value for name, value in os.environ.items() if name != "TSECHO_HISTORY"}
    settings = {"TERM": term, "INPUTRC": os.devnull, "HOME": home, "XDG_STATE_HOME": home}
    return kept | settings


def lab_server(case: Case) -> str:
    """Start the lab's server, and return its host and port."""
    return _listening(case, [sys.executable, "-m", "tests.system.lab"], r"listening on (\d+)")


def plain_echo(case: Case) -> str:
    """Start a plain echo (RFC 862), with socat, and return its host and port."""
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
    """Run a `twistd` that is expected to end by itself."""
    return run([BIN / "twistd", *arguments], cwd=folder)


def tsecho(*arguments: str, stdin: bytes = b"") -> Status:
    """Run the client in a pipe, with this standard input."""
    return run([BIN / "tsecho", *arguments], input=stdin)


def run(command: Sequence[str | Path], **options: Any) -> Status:
    """Run a command to its end, with the options of `subprocess.run`.

    The default timeout is long, because a command may import much, such as matplotlib.
    """
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("timeout", 3 * PATIENCE)
    return subprocess.run(command, capture_output=True, check=False, **options)


def needs(program: str) -> str:
    """The path of a program.

    @raise SkipTest: it is not installed.
    """
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if os.access(os.path.join(folder, program), os.X_OK):
            return os.path.join(folder, program)
    raise SkipTest(f"{program} is not installed")


def faketime(offset: str) -> dict[str, str]:
    """The environment in which a process's clock is wrong by this offset (faketime(1))."""
    # It fails where another with the same process id was killed, and left its shared memory.
    for _ in range(3):
        done = run([needs("faketime"), "-f", offset, "env"])
        said = dict(re.findall(r"(?m)^(LD_PRELOAD|FAKETIME)=(.*)$", done.stdout.decode()))
        if said:
            return said
    raise AssertionError(f"faketime: {done.stderr.decode()}")


def passing(*files: socket.socket | IO[bytes], names: str = "x") -> list[str]:
    """A command prefix that passes sockets on as systemd does (sd_listen_fds(3)).

    @param names: those of the sockets, separated by colons.
    """
    script = (
        "import fcntl, os, sys; given = [*map(int, sys.argv[1].split(','))];"
        # Some may have the numbers that others must get.
        " away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given];"
        " [*map(os.close, given)]; [os.dup2(fd, 3 + i) for i, fd in enumerate(away)];"
        " os.environ.update(LISTEN_FDS=str(len(away)), LISTEN_FDNAMES=sys.argv[2]);"
        " os.environ.update(LISTEN_PID=str(os.getpid())); os.execv(sys.argv[3], sys.argv[3:])"
    )
    fds = ",".join(str(file.fileno()) for file in files)
    return [sys.executable, "-c", script, fds, names]


def talk(sock: socket.socket, data: bytes) -> bytes:
    """Send, close the sending side at once, and read to the end."""
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
    """Send this line repeatedly until every buffer is full; return the number of bytes sent.

    The server stops reading when it has too many unsent bytes; then the buffers of both kernels
    fill. They are taken to be full when nothing can be sent for a quarter of a second.
    """
    block = line * (2**16 // len(line))
    sent = 0
    sock.setblocking(False)
    while select.select([], [sock], [], 0.25)[1]:
        sent += sock.send(block[sent % len(block) :])
    return sent


def connectable(case: Case, wanted: int) -> int:
    """Raise this process's limit of open files; return how many connections it allows.

    @param wanted: the most to return.
    @raise SkipTest: the service's reactor cannot watch as many.
    """
    if getattr(case, "without_epoll", False) and REACTOR == ["--reactor=select"]:
        raise SkipTest("select(2) watches only the first 1,024 files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    case.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, hard - 200)
