"""The command `tsecho ping`: runs the reactor, returns the exit status."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from io import TextIOWrapper
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer
from timestamp_echo.clocks import Clocks, use_monotonic_clock
from timestamp_echo.ping.arguments import Server, named_servers, new_parser
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
from timestamp_echo.ping.probe import NONCE_LENGTH, Probes
from timestamp_echo.ping.scheduler import Pinger, Plan
from timestamp_echo.ping.stats import Host
from timestamp_echo.ping.transport import Path, PathListener, ProbeListener, StreamPath, UDPPath
from timestamp_echo.stamps import SECOND

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
        interrupted before a probe was sent.
    """
    from twisted.internet import reactor

    parser = new_parser()
    arguments = parser.parse_args(argv)
    servers = named_servers(parser, arguments, reactor)
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
        # A `Clocks` reports a step of this host's clock once, so each pinger has its own copy. All
        # start from the same readings, so that the offsets of all servers can be compared.
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
