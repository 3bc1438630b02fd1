"""The command `tsecho ping`: parses arguments, runs the reactor, returns the exit status."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from io import TextIOWrapper
from pathlib import Path as FilePath
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.client.arguments import (
    DEFAULT_SERVER,
    CommandParser,
    add_server,
    apply_options,
    named_server,
    parse_seconds,
)
from timestamp_echo.clocks import Clocks, use_monotonic_clock
from timestamp_echo.ping.compare import clock_verdict
from timestamp_echo.ping.fleet import Fleet
from timestamp_echo.ping.live import JSONOutput, TextOutput
from timestamp_echo.ping.overview import (
    MetricsOutput,
    ObjectsOutput,
    Output,
    SingleOutput,
    TableOutput,
)
from timestamp_echo.ping.phases import ConnectPath, LookupTimer
from timestamp_echo.ping.plot import FleetPlot
from timestamp_echo.ping.probe import MAX_SIZE, MIN_SIZE, NONCE_LENGTH, Probes
from timestamp_echo.ping.scheduler import Pinger, Plan
from timestamp_echo.ping.stats import Host
from timestamp_echo.ping.transport import Path, PathListener, ProbeListener, StreamPath, UDPPath
from timestamp_echo.stamps import SECOND

Server = StreamServer | DatagramServer

INCOMPLETE = 1
"""Exit status: a server sent no reply, or fewer than requested, or its clock exceeds a limit."""

UNCERTAIN = 3
"""Exit status: it is not known whether a clock is within the limit."""

MAX_LOOKUPS = 100
"""Threads that look up names. One that is not found takes a while, and the others would wait."""


def main(argv: Sequence[str]) -> int:
    """Send probes, and write the results.

    @param argv: the arguments after `ping`.
    @return: the exit status: 0, `INCOMPLETE`, `UNCERTAIN` or `errors.UNREACHABLE`; 130 if
        interrupted before there was a connection.
    """
    from twisted.internet import reactor

    parser = _parser()
    arguments = parser.parse_args(argv)
    servers = _servers(parser, arguments, reactor)
    try:
        plot = None if arguments.plot is None else FleetPlot(arguments.plot)
    except ValueError as error:
        parser.error(f"argument --plot: {error}")
    return Run(reactor, arguments, servers, plot).status()


class Run:
    """One run of the command.

    @param reactor: the global reactor, which this class runs and stops.
    @param arguments: of the command line.
    @param servers: the servers to probe, each with the reactor that makes its connections.
    @param plot: the figure to draw, if any.
    """

    def __init__(
        self,
        reactor: Any,  # provides many interfaces, and is typed as a module
        arguments: Namespace,
        servers: Sequence[tuple[Server, Any]],
        plot: FleetPlot | None,
    ) -> None:
        self._reactor = reactor
        self._arguments = arguments
        self._required: int = arguments.count
        self._plot = plot
        self._failed = self._interrupted = False
        self._clocks = Clocks()
        use_monotonic_clock(reactor)
        reactor.suggestThreadPoolSize(min(max(len(servers), 10), MAX_LOOKUPS))
        listed = arguments.servers_from is not None
        several = len(servers) > 1 or listed or arguments.max_offset is not None
        self._output = self._new_output(several)
        plan = _plan(arguments)
        self._fleet = Fleet(
            [server.name for server, _ in servers],
            [self._pinger(*server, plan) for server in servers],
            *(plan.interval, arguments.deadline, reactor, self._output.unreachable),
        )
        self._status = INCOMPLETE

    def _pinger(self, server: Server, reactor: Any, plan: Plan) -> Pinger:
        # Each reports a step of this host's clock once, so each has its own copy. They were read at
        # the same moment, so that the offsets of all servers can be compared.
        clocks = copy(self._clocks)
        observers = [self._output.observer(server.name, clocks)]
        if self._plot:
            observers.append(self._plot.observer(server.name))
        probes = Probes(secrets.token_hex(NONCE_LENGTH // 2), self._arguments.size)
        send_proxy = self._arguments.send_proxy
        connect = (
            partial(_connect_each, reactor, server, clocks.monotonic, send_proxy)
            if isinstance(reactor, LookupTimer)
            else partial(_connect, reactor, server, send_proxy)
        )
        return Pinger(plan, probes, connect, self._reactor, clocks, observers)

    def _new_output(self, several: bool) -> Output:
        arguments, write = self._arguments, self._write
        quiet, limit = arguments.quiet or arguments.flood, arguments.max_offset
        if arguments.prometheus:
            return MetricsOutput(write, limit=limit)
        if arguments.json:
            if several:
                return ObjectsOutput(write, quiet=quiet, limit=limit)
            return SingleOutput(lambda *server: JSONOutput(write, *server, quiet=quiet))
        terminal = os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"
        colour = terminal and not os.environ.get("NO_COLOR")  # no-color.org
        screen = _screen if terminal and _in_foreground(1) else None
        if several:
            shown = partial(TableOutput, quiet=quiet, screen=screen, colour=colour, limit=limit)
            return shown(write, lambda: self._fleet.hosts)
        columns = (lambda: _screen()[0]) if screen else None
        return SingleOutput(
            lambda name, _: TextOutput(write, name, quiet=quiet, columns=columns, colour=colour)
        )

    def status(self) -> int:
        """Run the command, and return its exit status."""
        # The encoding may lack ±, or a character of the server's name.
        # Prometheus's format is UTF-8.
        encoding = "utf-8" if self._arguments.prometheus else None
        cast(TextIOWrapper, sys.stdout).reconfigure(encoding=encoding, errors="backslashreplace")
        self._reactor.callWhenRunning(self._start)
        self._reactor.run()
        return self._status

    def _start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # after the reactor has set its own
            signal.signal(number, self._interrupt)
        signal.signal(signal.SIGQUIT, lambda *_: self._reactor.callFromThread(self._progress))
        if _interactive():
            self._reactor.addReader(Keyboard(self._reactor, partial(self._progress, entered=True)))
        done = self._fleet.start().addCallback(self._summarise)
        done.addErrback(self._fail).addBoth(self._stop)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._interrupted or not self._fleet.sent:
            # Stopping the reactor would wait for a thread that looks up a name.
            os._exit(128 + number)  # pragma: no cover  # ends the process
        self._interrupted = True
        self._required = 0
        self._reactor.callFromThread(self._fleet.stop)

    def _progress(self, *, entered: bool = False) -> None:
        self._output.progress(self._fleet.current_hosts(), entered=entered)

    def _summarise(self, _: None) -> None:
        hosts = self._fleet.hosts
        self._output.summary(hosts)
        if self._plot and not all(host.error for host in hosts):
            self._plot.draw()
        if not self._failed:
            self._status = _exit_status(hosts, max(1, self._required), self._arguments.max_offset)

    def _fail(self, failure: Failure) -> None:
        self._status = INCOMPLETE
        error = failure.value
        errors.print_error(
            f"{error.filename or 'output'}: {error.strerror}"
            if isinstance(error, OSError)
            else str(error) or type(error).__name__
        )

    def _stop(self, _: object) -> None:
        if self._fleet.connecting or self._arguments.connect:
            # As in `_interrupt`.
            os._exit(self._status)  # pragma: no cover  # ends the process
        self._reactor.stop()

    def _write(self, text: str) -> None:
        """Write to standard output and flush it; if that fails, stop."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again at exit
            if not isinstance(error, BrokenPipeError):
                self._failed = True
                errors.print_error(f"cannot write standard output: {error.strerror}")
            self._fleet.stop()


@implementer(IReadDescriptor)
class Keyboard:
    """Standard input of a terminal: Enter requests the progress.

    @param reactor: reads from it.
    @param entered: is called for each line.
    """

    def __init__(self, reactor: IReactorFDSet, entered: Callable[[], None]) -> None:
        self._reactor = reactor
        self._entered = entered

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`: standard input."""
        return 0

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return "keyboard"

    def doRead(self) -> None:
        """Read a line. Ctrl-D ends reading, and so does being moved to the background."""
        if _interactive() and os.read(0, 1024):
            self._entered()
        else:
            self._reactor.removeReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`."""


def _interactive() -> bool:
    """Whether input and output are a terminal, and this process is in its foreground."""
    return _in_foreground(0) and _in_foreground(1)


def _in_foreground(fd: int) -> bool:
    """Whether this is our controlling terminal, and this process is in its foreground."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not a terminal, or not our controlling one
        return False


def _servers(parser: CommandParser, arguments: Namespace, reactor: Any) -> list[tuple[Server, Any]]:
    """The servers to probe, each once, and with the reactor that makes its connections."""
    texts: list[str] = arguments.server
    if arguments.servers_from is not None:
        texts = texts + _listed(parser, arguments.servers_from)
    found = {}
    for text in texts or [DEFAULT_SERVER]:
        own: Any = LookupTimer(reactor) if arguments.connect else reactor
        server = named_server(parser, arguments, text, own)
        if arguments.send_proxy and isinstance(server, DatagramServer):
            parser.error(f"--send-proxy is for connections, not {errors.quoted(text)}")
        found[server.name] = server, own
    apply_options(arguments, reactor)
    return list(found.values())


def _listed(parser: CommandParser, path: str) -> list[str]:
    """The servers that a file lists, one on each line; `#` starts a comment."""
    if not path:
        parser.error("--from: expected a file or -, not ''")
    try:
        text = sys.stdin.read() if path == "-" else FilePath(path).read_text("utf-8-sig")
    except (OSError, ValueError) as error:  # a ValueError: the file is no text
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        parser.error(f"--from: {path}: {reason}")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    if not any(lines):
        parser.error(f"--from: expected a SERVER on each line, found none in {path}")
    return list(filter(None, lines))


def _connect(
    reactor: Any,  # see `Run`
    server: Server,
    send_proxy: bool,
    listener: PathListener,
) -> Deferred[Path]:
    connecting: Deferred[UDPPath] | Deferred[StreamPath] = (
        UDPPath(listener, reactor).connect(server)
        if isinstance(server, DatagramServer)
        else StreamPath(listener, reactor, send_proxy=send_proxy).connect(server)
    )
    return cast(Deferred[Path], connecting)  # a Deferred is invariant


def _connect_each(
    timer: LookupTimer,
    server: Server,
    now: Callable[[], int],
    send_proxy: bool,
    listener: ProbeListener,
) -> Deferred[Path]:
    return succeed(ConnectPath(listener, server, timer, now, send_proxy=send_proxy))


def _exit_status(hosts: Sequence[Host], required: int, limit: int | None) -> int:
    """The exit status for these results: the first that applies.

    @param required: probes that have to be answered by each server.
    @param limit: the largest offset allowed, in nanoseconds, if there is one.
    """
    verdicts = {clock_verdict(host, limit) for host in hosts} if limit is not None else set()
    reached = [host for host in hosts if not host.error]
    if "exceeded" in verdicts or any(host.stats.received < required for host in reached):
        return INCOMPLETE
    if len(reached) < len(hosts):
        return errors.UNREACHABLE
    return UNCERTAIN if "can't tell" in verdicts else 0


def _screen() -> tuple[int, int]:
    """Columns and lines of the terminal."""
    columns, lines = shutil.get_terminal_size()
    return columns or 80, lines or 24  # Python 3.10 returns a terminal's 0 as it is


def _plan(arguments: Namespace) -> Plan:
    return Plan(
        size=arguments.size,
        interval=0 if arguments.flood else int(arguments.interval * SECOND),
        count=arguments.count,
        timeout=arguments.timeout,
        in_flight=arguments.in_flight,
        exact=arguments.exact,
    )


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="tsecho ping",
        usage="%(prog)s [options] [SERVER ...]",
        description="Measure the round-trip time to a timestamp echo, or to any echo, and how wrong"
        " its clock is. With several servers, tell whose clocks differ.",
        epilog="Enter or Ctrl-\\ shows the progress; Ctrl-C stops and shows the summary."
        " Exit status: 0 success; 1 no reply, or fewer than -c requests, or a clock exceeds"
        " --max-offset, or output could not be written; 2 usage error, name not found or connection"
        " refused; 3 not known whether a clock exceeds --max-offset; 130 interrupted before the"
        " connection was made. With several servers, the first of 1, 2 and 3 that applies to any.",
    )
    add_server(parser, several=True)
    _add_options(parser)
    return parser


_HELP = {
    "-c": "stop after N probes (default: no limit)",
    "-i": "send one probe every N seconds (default: 1)",
    "-n": "allow N probes in flight at a time (default: 1)",
    "-s": f"send probes of N bytes, {MIN_SIZE} to {MAX_SIZE} (default: 64)",
    "-w": "stop after N seconds (default: no limit)",
    "-W": "count a probe as lost after N seconds (default: 1)",
    "-f": "flood: send a probe as soon as another is answered; implies -q",
    "--exact": "send each probe exactly when due, even if a later moment would narrow the clock's"
    " bound more",
    "-q": "write only the summary; on a terminal, also a progress line, or the table of several"
    " servers",
    "--json": "write one JSON object per line (see --json-schema)",
    "--json-schema": "print the JSON Schema of what --json writes, and exit",
    "--from": "also probe the servers in FILE, one on each line (- for standard input)",
    "--max-offset": "check that no clock is off by more than TIME, such as 50ms or 2s (see the"
    " exit status)",
    "--connect": "open a new connection for each probe, and show where the time goes",
    "--send-proxy": "send a header of the PROXY protocol first, as load balancers do",
    "--prometheus": "write the final results in Prometheus's text format, at the end (see -c, -w)",
    "--plot": "draw the results to a .png or .svg file (needs matplotlib)",
}


def _add_options(parser: ArgumentParser) -> None:
    pace = parser.add_mutually_exclusive_group()
    form = parser.add_mutually_exclusive_group()
    count, seconds = partial(_whole, 1, 10**9), partial(parse_seconds, 0.001)
    in_flight, size = partial(_whole, 1, 10_000), partial(_whole, MIN_SIZE, MAX_SIZE)
    for group, flag, name, kind, default in (
        (parser, "-c", "count", count, 0),
        (pace, "-i", "interval", seconds, 1.0),
        (parser, "-n", "in_flight", in_flight, 1),
        (parser, "-s", "size", size, 64),
        (parser, "-w", "deadline", seconds, 0.0),
        (parser, "-W", "timeout", seconds, 1.0),
    ):
        text = _HELP[flag]
        group.add_argument(*_names(flag, name), type=kind, default=default, metavar="N", help=text)
    for group, flag, name in (
        (pace, "-f", "flood"),
        (parser, "--exact", "exact"),
        (parser, "-q", "quiet"),
        (parser, "--connect", "connect"),
        (parser, "--send-proxy", "send_proxy"),
        (form, "--json", "json"),
        (form, "--prometheus", "prometheus"),
    ):
        group.add_argument(*_names(flag, name), action="store_true", help=_HELP[flag])
    parser.add_argument("--json-schema", action=_PrintSchema, nargs=0, help=_HELP["--json-schema"])
    parser.add_argument("--plot", metavar="FILE", help=_HELP["--plot"])
    parser.add_argument("--from", dest="servers_from", metavar="FILE", help=_HELP["--from"])
    parser.add_argument("--max-offset", type=_duration, metavar="TIME", help=_HELP["--max-offset"])


class _PrintSchema(Action):
    def __call__(self, parser: ArgumentParser, *arguments: object) -> None:
        from importlib.resources import files

        # As the help is printed: a reader that is gone is no error.
        text = files(__package__).joinpath("schema.json").read_text("utf-8")
        parser._print_message(text, sys.stdout)
        parser.exit()


def _names(flag: str, name: str) -> list[str]:
    """The names of an option: a short one has a long one beside it, by which argparse stores it."""
    return list(dict.fromkeys((flag, f"--{name.replace('_', '-')}")))


def _whole(minimum: int, maximum: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
        raise ArgumentTypeError(
            f"expected a whole number from {minimum} to {maximum}, not {errors.quoted(text)}"
        )
    return int(text)


def _duration(text: str) -> int:
    """Parse a time such as 50ms, 2s or 0.05; return nanoseconds."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(us|ms|s|)", text, re.ASCII)
    value = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < value <= 10**6 * SECOND:
        given = errors.quoted(text)
        raise ArgumentTypeError(f"expected a time such as 50ms, 2s or 0.05, not {given}")
    return value


_UNITS = {"us": SECOND // 10**6, "ms": SECOND // 1000, "s": SECOND, "": SECOND}
