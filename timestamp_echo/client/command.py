"""The command `tsecho connect`: from its arguments to its exit status. It composes the client."""

from __future__ import annotations

import os
import signal
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import TimeoutError
from twisted.internet.interfaces import IReactorTime

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, IClientReactor, StreamServer
from timestamp_echo.client.arguments import (
    COMMANDS,
    CommandParser,
    add_server,
    chosen_server,
    command_first,
    parse_seconds,
)
from timestamp_echo.client.datagram import REPLY_TIMEOUT, DatagramSession
from timestamp_echo.client.session import Session, SessionListener, StreamSession
from timestamp_echo.client.stdio import Pipe, Terminal
from timestamp_echo.clocks import use_monotonic_clock

if TYPE_CHECKING:
    from timestamp_echo.client.terminal import EditedTerminal

T = TypeVar("T")

_DESCRIPTION = """\
Send lines to a timestamp echo and print its replies.

commands:
  connect         the same (the default); needed for a server that is named
                  like a command (tsecho connect ping)
  ping            measure round trips, and how wrong the server's clock is
  help [COMMAND]  show the help of a command"""

_EPILOG = """\
On a terminal, enter an empty line or press Ctrl-D to quit.

exit status:
  0    every line was answered, and nothing else came
  1    the connection was lost, replies are missing, or something else came
  2    wrong usage, or no connection: name not found, connection refused
  130  Ctrl-C"""


def main(argv: Sequence[str], *, named: bool = True) -> int:
    """Run a session with a server, from a terminal or in a pipe.

    @param argv: the arguments after `connect`.
    @param named: whether the word `connect` was given.
    @return: the exit status, see `errors`. A signal ends the process with 128 plus its number.
    """
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.server in COMMANDS and not named:
        parser.error(command_first(arguments.server))
    server = chosen_server(parser, arguments, reactor)
    return _run(cast(IClientReactor, reactor), server, arguments.timeout)


def _parser() -> ArgumentParser:
    parser = CommandParser(
        prog="tsecho",
        usage="%(prog)s [COMMAND] [options] [SERVER]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_server(parser)
    parser.add_argument(
        "--timeout",
        type=partial(parse_seconds, 0.001),
        metavar="SECONDS",
        help="give up after SECONDS without data while connecting or waiting for a reply (default:"
        f" wait forever; over UDP, {REPLY_TIMEOUT:g} s for each line)",
    )
    return parser


def _run(
    reactor: IClientReactor, server: StreamServer | DatagramServer, timeout: float | None
) -> int:
    """Run the reactor until the session ends, or a signal ends the process.

    @param timeout: seconds to wait for a connection or a reply; None for no limit.
    @return: the exit status.
    """
    statuses: list[int] = []
    stdio = _standard_io()

    def interrupt(number: int, frame: object) -> None:  # pragma: no cover  # ends the process
        # At once. A normal exit would wait for the thread that looks a name up, which cannot be
        # interrupted and may take a resolver's timeout.
        stdio.restore()
        if os.isatty(1):
            os.write(1, b"\n")
        os._exit(128 + number)

    def start() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # after the reactor has installed its own
            signal.signal(number, interrupt)
        session = Deferred.fromCoroutine(_session(reactor, server, stdio, timeout))
        session.addCallback(statuses.append).addBoth(stop)

    def stop(result: object) -> object:
        if statuses == [errors.UNREACHABLE]:  # pragma: no cover  # ends the process
            stdio.restore()
            os._exit(errors.UNREACHABLE)  # as in `interrupt`: after --timeout, a thread may be left
        reactor.stop()
        return result

    reactor.callWhenRunning(start)
    try:
        reactor.run()
    finally:
        stdio.restore()
    return statuses[0] if statuses else errors.MISSING  # the session raised, which is logged


def _standard_io() -> Pipe | EditedTerminal:
    """What is on standard input and output: a terminal with line editing, a plain one, a pipe."""
    if not os.isatty(0):
        return Pipe(os.isatty(1))
    if os.isatty(1):
        from timestamp_echo.client.terminal import edited_terminal  # with ctypes and readline

        if edited := edited_terminal():
            return edited
    return Terminal(os.isatty(1))


async def _session(
    reactor: IClientReactor,
    server: StreamServer | DatagramServer,
    stdio: Pipe | EditedTerminal,
    timeout: float | None,
) -> int:
    """Connect standard input and output to the server until either ends.

    @return: the exit status.
    """
    try:
        session = await _connect(reactor, server, stdio, timeout)
    except Exception as error:  # any: each kind of endpoint has its own
        errors.print_error(errors.connect_error(server.name, error))
        return errors.UNREACHABLE
    stdio.session = session
    stdio.start(server.name, reactor)
    why = await stdio.ended
    if stdio.input_failed:
        errors.print_error("standard input could not be read")
    if not why:
        return errors.MISSING if stdio.input_failed else errors.ANSWERED
    errors.print_error(errors.session_error(server.name, why, session.missing, session.sent))
    return _status(session)


async def _connect(
    reactor: IClientReactor,
    server: StreamServer | DatagramServer,
    listener: SessionListener,
    timeout: float | None,
) -> Session:
    if isinstance(server, DatagramServer):
        datagrams = DatagramSession(listener, reactor, timeout or REPLY_TIMEOUT)
        return await _limit(datagrams.connect(server), timeout, reactor)
    stream = StreamSession(listener, reactor, timeout)
    return await _limit(stream.connect(server), timeout, reactor)


def _limit(connecting: Deferred[T], timeout: float | None, clock: IReactorTime) -> Deferred[T]:
    def timed_out(result: object, seconds: float) -> NoReturn:
        raise TimeoutError

    return connecting.addTimeout(timeout, clock, timed_out) if timeout else connecting


def _status(session: Session) -> int:
    """The exit status of a session that failed; over UDP only a reply is proof of a connection."""
    unreachable = session.refused and session.missing == session.sent
    return errors.UNREACHABLE if unreachable else errors.MISSING
