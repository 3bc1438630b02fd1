"""The command `tsecho ping`: parses arguments, runs the reactor, returns the exit status."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from io import TextIOWrapper
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.client.arguments import CommandParser, add_server, chosen_server, parse_seconds
from timestamp_echo.clocks import Clocks, use_monotonic_clock
from timestamp_echo.ping.live import JSONOutput, TextOutput, Write
from timestamp_echo.ping.plot import Plot
from timestamp_echo.ping.probe import MAX_SIZE, MIN_SIZE, NONCE_LENGTH, Probes
from timestamp_echo.ping.scheduler import Pinger, Plan
from timestamp_echo.ping.transport import Path, PathListener, StreamPath, UDPPath
from timestamp_echo.stamps import SECOND

INCOMPLETE = 1
"""Exit status: no reply arrived, or fewer than requested."""


def main(argv: Sequence[str]) -> int:
    """Send probes, and write the results.

    @param argv: the arguments after `ping`.
    @return: the exit status: 0, `INCOMPLETE` or `errors.UNREACHABLE`; 130 if interrupted before
        there was a connection.
    """
    from twisted.internet import reactor

    parser = _parser()
    arguments = parser.parse_args(argv)
    server = chosen_server(parser, arguments, reactor)
    try:
        plot = Plot(arguments.plot) if arguments.plot else None
    except ValueError as error:
        parser.error(f"argument --plot: {error}")
    return Run(reactor, arguments, server, plot).status()


class Run:
    """One run of the command.

    @param reactor: the global reactor, which this class runs and stops.
    @param arguments: of the command line.
    @param server: the server to probe.
    @param plot: the figure to draw, if any.
    """

    def __init__(
        self,
        reactor: Any,  # provides many interfaces, and is typed as a module
        arguments: Namespace,
        server: StreamServer | DatagramServer,
        plot: Plot | None,
    ) -> None:
        self._reactor = reactor
        self._required: int = arguments.count
        self._server = server
        self._plot = plot
        self._failed = self._interrupted = False
        clocks = Clocks()
        use_monotonic_clock(reactor)
        self._output = _output(self._write, arguments, server.name, clocks)
        self._pinger = Pinger(
            _plan(arguments),
            Probes(secrets.token_hex(NONCE_LENGTH // 2), arguments.size),
            partial(_connect, reactor, server),
            reactor,
            clocks,
            [self._output, plot] if plot else [self._output],
        )
        self._status = INCOMPLETE

    def status(self) -> int:
        """Run the command, and return its exit status."""
        # The encoding may lack ±, or a character of the server's name.
        cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
        self._reactor.callWhenRunning(self._start)
        self._reactor.run()
        return self._status

    def _start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # after the reactor has set its own
            signal.signal(number, self._interrupt)
        signal.signal(signal.SIGQUIT, lambda *_: self._reactor.callFromThread(self._progress))
        if _interactive():
            self._reactor.addReader(Keyboard(self._reactor, self._progress))
        done = self._pinger.start().addCallbacks(self._summarise, self._unreachable)
        done.addErrback(self._fail).addBoth(self._stop)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._interrupted or not self._pinger.stats.sent:
            # Stopping the reactor would wait for a thread that looks up a name.
            os._exit(128 + number)  # pragma: no cover  # ends the process
        self._interrupted = True
        self._required = 0
        self._reactor.callFromThread(self._pinger.stop)

    def _progress(self) -> None:
        self._output.progress(self._pinger.current_stats())

    def _summarise(self, _: None) -> None:
        stats = self._pinger.stats
        self._output.summary(stats)
        if self._plot:
            self._plot.draw(self._server.name)
        if stats.received >= max(1, self._required) and not self._failed:
            self._status = 0

    def _unreachable(self, failure: Failure) -> None:
        self._status = errors.UNREACHABLE
        errors.print_error(errors.connect_error(self._server.name, failure.value))

    def _fail(self, failure: Failure) -> None:
        self._status = INCOMPLETE
        error = failure.value
        errors.print_error(
            f"{error.filename or 'output'}: {error.strerror}"
            if isinstance(error, OSError)
            else str(error) or type(error).__name__
        )

    def _stop(self, _: object) -> None:
        if self._pinger.connecting:
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
            self._pinger.stop()


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


def _connect(
    reactor: Any,  # see `Run`
    server: StreamServer | DatagramServer,
    listener: PathListener,
) -> Deferred[Path]:
    connecting: Deferred[UDPPath] | Deferred[StreamPath] = (
        UDPPath(listener, reactor).connect(server)
        if isinstance(server, DatagramServer)
        else StreamPath(listener, reactor).connect(server)
    )
    return cast(Deferred[Path], connecting)  # a Deferred is invariant


def _output(
    write: Write, arguments: Namespace, name: str, clocks: Clocks
) -> TextOutput | JSONOutput:
    quiet = arguments.quiet or arguments.flood
    if arguments.json:
        return JSONOutput(write, name, clocks, quiet=quiet)
    terminal = os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"
    colour = terminal and not os.environ.get("NO_COLOR")  # no-color.org
    columns = _columns if terminal and _in_foreground(1) else None
    return TextOutput(write, name, quiet=quiet, columns=columns, colour=colour)


def _columns() -> int:
    return shutil.get_terminal_size().columns or 80  # Python 3.10 returns a terminal's 0 as it is


def _plan(arguments: Namespace) -> Plan:
    return Plan(
        size=arguments.size,
        interval=0 if arguments.flood else int(arguments.interval * SECOND),
        count=arguments.count,
        deadline=arguments.deadline,
        timeout=arguments.timeout,
        in_flight=arguments.in_flight,
        exact=arguments.exact,
    )


def _parser() -> ArgumentParser:
    parser = CommandParser(
        prog="tsecho ping",
        usage="%(prog)s [options] [SERVER]",
        description="Measure the round-trip time to a timestamp echo, or to any echo, and how wrong"
        " its clock is.",
        epilog="Enter or Ctrl-\\ shows the progress; Ctrl-C stops and shows the summary."
        " Exit status: 0 success; 1 no reply, or fewer than -c requests, or output could not be"
        " written; 2 usage error, name not found or connection refused; 130 interrupted before"
        " the connection was made.",
    )
    add_server(parser)
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
    "--exact": "send each probe exactly when it is due: do not move it to where it tells most about"
    " a clock of whole seconds",
    "-q": "write only the summary; on a terminal, also a progress line",
    "--json": "write one JSON object per line (see --json-schema)",
    "--json-schema": "print the JSON Schema of what --json writes, and exit",
    "--plot": "draw the results to a .png or .svg file (needs the extra: plot)",
}


def _add_options(parser: ArgumentParser) -> None:
    pace = parser.add_mutually_exclusive_group()
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
        group.add_argument(flag, dest=name, type=kind, default=default, metavar="N", help=text)
    for group, flag, name in (
        (pace, "-f", "flood"),
        (parser, "--exact", "exact"),
        (parser, "-q", "quiet"),
        (parser, "--json", "json"),
    ):
        group.add_argument(flag, dest=name, action="store_true", help=_HELP[flag])
    parser.add_argument("--json-schema", action=_PrintSchema, nargs=0, help=_HELP["--json-schema"])
    parser.add_argument("--plot", metavar="FILE", help=_HELP["--plot"])


class _PrintSchema(Action):
    def __call__(self, parser: ArgumentParser, *arguments: object) -> None:
        from importlib.resources import files

        print(files(__package__).joinpath("schema.json").read_text("utf-8"), end="")
        parser.exit()


def _whole(minimum: int, maximum: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
        raise ArgumentTypeError(
            f"expected a whole number from {minimum} to {maximum}, not {text!r}"
        )
    return int(text)
