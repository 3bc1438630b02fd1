"""The command `tsecho ping`: arguments in, exit status out. It composes the rest."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from io import TextIOWrapper
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.client.arguments import CommandParser, add_server, chosen_server
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping.live import Lines, Records, Write
from timestamp_echo.ping.plot import Plot
from timestamp_echo.ping.probe import LARGEST, NONCE, SMALLEST, Probes
from timestamp_echo.ping.scheduler import Pinger, Plan
from timestamp_echo.ping.transport import Path, ProbingDatagrams, StreamPath, Traveller
from timestamp_echo.stamps import SECOND

MISSING = 1
"""Exit status: no reply came, or fewer than were asked for."""


def main(argv: Sequence[str]) -> int:
    """Send probes, and say what comes of them.

    @param argv: the arguments after `ping`.
    @return: the exit status: 0, `MISSING`, or `errors.UNREACHABLE`; 130 if it was interrupted
        before there was a connection.
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
    """One run, from the arguments to the exit status.

    @param reactor: is started, and stopped in the end.
    @param arguments: the command line's.
    @param server: whom to ask.
    @param plot: takes part, if there is to be a picture.
    """

    def __init__(
        self,
        reactor: Any,
        arguments: Namespace,
        server: StreamServer | DatagramServer,
        plot: Plot | None,
    ) -> None:
        self._reactor = reactor
        self._asked: int = arguments.count
        self._server = server
        self._plot = plot
        self._failed = self._interrupted = False
        clocks = Clocks()
        # Twisted's timers go by the time, and would stand still when that is set back.
        reactor.seconds = lambda: clocks.steady() / SECOND
        self._show = _show(self._write, arguments, server.name, clocks)
        self._pinger = Pinger(
            _plan(arguments),
            Probes(secrets.token_hex(NONCE // 2), arguments.size),
            partial(_connect, reactor, server),
            reactor,
            clocks,
            [self._show, plot] if plot else [self._show],
        )
        self._status = MISSING

    def status(self) -> int:
        """Carry it out."""
        # Where it has no ±, or what else is in a name.
        cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
        self._reactor.callWhenRunning(self._start)
        self._reactor.run()
        return self._status

    def _start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # after the reactor has set its own
            signal.signal(number, self._interrupt)
        signal.signal(signal.SIGQUIT, lambda *_: self._reactor.callFromThread(self._look))
        if _in_front():
            self._reactor.addReader(Keys(self._reactor, self._look))
        ended = self._pinger.start().addCallbacks(self._found, self._unreachable)
        ended.addErrback(self._fail).addBoth(self._stop)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._interrupted or not self._pinger.outcome.sent:
            # At once: the reactor's own way would wait for a look-up of a name in its thread.
            os._exit(128 + number)  # pragma: no cover  # ends the process
        self._interrupted = True
        self._asked = 0
        self._reactor.callFromThread(self._pinger.stop)

    def _look(self) -> None:
        self._show.look(self._pinger.look())

    def _found(self, _: None) -> None:
        outcome = self._pinger.outcome
        self._show.end(outcome)
        if self._plot:
            self._plot.draw(self._server.name)
        if outcome.received >= max(1, self._asked) and not self._failed:
            self._status = 0

    def _unreachable(self, failure: Failure) -> None:
        self._status = errors.UNREACHABLE
        errors.say(errors.unreachable(self._server.name, failure.value))

    def _fail(self, failure: Failure) -> None:
        self._status = MISSING
        error: Any = failure.value
        words = isinstance(error, OSError) and f"{error.filename or 'output'}: {error.strerror}"
        errors.say(words or str(error) or type(error).__name__)

    def _stop(self, _: object) -> None:
        if self._pinger.connecting:
            # As in `_interrupt`: a name may be being looked up.
            os._exit(self._status)  # pragma: no cover  # ends the process
        self._reactor.stop()

    def _write(self, text: str) -> None:
        """Write to standard output, at once; where it can't be, end."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again in the end
            if not isinstance(error, BrokenPipeError):
                self._failed = True
                errors.say(f"standard output could not be written: {error.strerror}")
            self._pinger.stop()


@implementer(IReadDescriptor)
class Keys:
    """The keyboard: Enter asks how it stands.

    @param reactor: watches it.
    @param entered: is called.
    """

    def __init__(self, reactor: Any, entered: Callable[[], None]) -> None:
        self._reactor = reactor
        self._entered = entered

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`: standard input."""
        return 0

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return "keys"

    def doRead(self) -> None:
        """A line was typed; or Ctrl-D, which ends that, as does being put in the background."""
        if _in_front() and os.read(0, 1024):
            self._entered()
        else:
            self._reactor.removeReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor.connectionLost`."""


def _in_front() -> bool:
    """Whether there is a person at the keyboard, who speaks to us."""
    return _ours(0) and _ours(1)


def _ours(fd: int) -> bool:
    """Whether this is our terminal, and we are not in the background."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # no terminal, or not ours
        return False


def _connect(
    reactor: Any, server: StreamServer | DatagramServer, traveller: Traveller
) -> Deferred[Path]:
    connecting: Deferred[Any] = (
        ProbingDatagrams(traveller, reactor).connect(server)
        if isinstance(server, DatagramServer)
        else StreamPath(traveller, reactor).connect(server)
    )
    return connecting


def _show(write: Write, arguments: Namespace, name: str, clocks: Clocks) -> Lines | Records:
    quiet = arguments.quiet or arguments.flood
    if arguments.json:
        return Records(write, name, clocks, quiet=quiet)
    terminal = os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"
    colour = terminal and not os.environ.get("NO_COLOR")  # no-color.org
    columns = _columns if terminal and _ours(1) else None
    return Lines(write, name, arguments.size, quiet=quiet, columns=columns, colour=colour)


def _columns() -> int:
    return shutil.get_terminal_size().columns or 80  # Python 3.10 takes a terminal's 0 as it is


def _plan(arguments: Namespace) -> Plan:
    return Plan(
        size=arguments.size,
        interval=0 if arguments.flood else int(arguments.interval * SECOND),
        count=arguments.count,
        deadline=arguments.deadline,
        timeout=arguments.timeout,
        in_flight=arguments.in_flight,
    )


def _parser() -> ArgumentParser:
    parser = CommandParser(
        prog="tsecho ping",
        usage="%(prog)s [options] [SERVER]",
        description="Ask a timestamp echo, or any echo, how far away it is and how wrong its"
        " clock is.",
        epilog="Ctrl-C ends it with a summary, Enter or Ctrl-\\ says how it stands. Exit status:"
        " 0; 1 no reply came, or fewer than -c, or something could not be written; 2 usage, name"
        " not found, connection refused; 130 Ctrl-C before there was a connection.",
    )
    add_server(parser)
    pace = parser.add_mutually_exclusive_group()
    count, seconds = partial(_whole, 1, 10**9), partial(_seconds, 0.001)
    in_flight, size = partial(_whole, 1, 10_000), partial(_whole, SMALLEST, LARGEST)
    for group, flag, name, kind, default, words in (
        (parser, "-c", "count", count, 0, "so many probes (no end)"),
        (pace, "-i", "interval", seconds, 1.0, "seconds from one probe to the next (1)"),
        (parser, "-n", "in_flight", in_flight, 1, "so many may be under way at a time (1)"),
        (parser, "-s", "size", size, 64, f"bytes of a probe, {SMALLEST} to {LARGEST} (64)"),
        (parser, "-w", "deadline", seconds, 0.0, "seconds after which it ends (never)"),
        (parser, "-W", "timeout", seconds, 1.0, "seconds that a reply may take (1)"),
    ):
        group.add_argument(flag, dest=name, type=kind, default=default, metavar="N", help=words)
    for group, flag, name, words in (
        (pace, "-f", "flood", "flood: a probe leaves as soon as another is answered; implies -q"),
        (parser, "-q", "quiet", "no line for each probe"),
        (parser, "--json", "json", "one JSON object a line; the README has the schema"),
    ):
        group.add_argument(flag, dest=name, action="store_true", help=words)
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, .png or .svg (extra: plot)")
    return parser


def _whole(least: int, most: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise ArgumentTypeError(f"expected a whole number from {least} to {most}, not {text!r}")
    return int(text)


def _seconds(least: float, text: str) -> float:
    try:
        value = float(text.replace("_", "?"))  # Python's own, and nobody else's
    except ValueError:
        value = math.nan
    if not least <= value <= 10**6:  # nan is neither
        raise ArgumentTypeError(f"expected seconds from {least:g} to 1000000, not {text!r}")
    return value
