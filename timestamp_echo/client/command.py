"""The `tsecho` command: arguments in, exit status out."""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from timestamp_echo import __version__
from timestamp_echo.client import ping_command, report
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.client.arguments import add_server, chosen_server
from timestamp_echo.client.datagram import DatagramSession
from timestamp_echo.client.session import Session, StreamSession
from timestamp_echo.client.stdio import Pipe, Terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Talk to a server, from a terminal or in a pipe.

    @param argv: the arguments; the process's own if none are given.
    @return: the exit status, as `report` has them; 128 and the signal's number if one came.
    """
    for fd, name in ((0, "standard input"), (1, "standard output")):
        if not _is_open(fd):  # looked at before the reactor's own files take the number
            report.say(f"expected an open {name}; it is closed")
            return report.UNREACHABLE
    from twisted.internet import reactor

    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["ping"]:
        return ping_command.main(words[1:])
    parser = _parser()
    arguments = parser.parse_args(words[1:] if words[:1] == ["connect"] else words)
    server = chosen_server(parser, arguments, reactor)
    return _run(reactor, server)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="tsecho",
        usage="%(prog)s [connect|ping] [options] [SERVER]",
        description="Send lines to a timestamp echo and print what comes back. What `ping` does"
        " instead says `tsecho ping --help`.",
        epilog="On a terminal an empty line or Ctrl-D ends it. Exit status: 0 every line was"
        " answered; 1 the connection was lost or replies are missing; 2 usage, name not"
        " found, connection refused; 130 Ctrl-C.",
    )
    add_server(parser)
    parser.add_argument("--version", action="version", version=f"tsecho {__version__}")
    return parser


def _run(reactor: Any, server: StreamServer | DatagramServer) -> int:
    """Run the reactor until the talk is over, or a signal ends it."""
    statuses: list[int] = []
    blocking = [os.get_blocking(fd) for fd in (0, 1)]

    def restore() -> None:
        # A terminal is shared with the shell, which expects it as it was.
        for fd, was in enumerate(blocking):
            os.set_blocking(fd, was)

    def interrupt(number: int, frame: object) -> None:  # pragma: no cover  # ends the process
        # At once: the reactor's own way would wait for a look-up of a name in its thread.
        restore()
        if os.isatty(1):
            os.write(1, b"\n")
        os._exit(128 + number)

    def start() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # after the reactor has set its own
            signal.signal(number, interrupt)
        talk = Deferred.fromCoroutine(_talk(reactor, server))
        talk.addCallback(statuses.append).addBoth(stop)

    def stop(result: object) -> object:
        reactor.stop()
        return result

    reactor.callWhenRunning(start)
    try:
        reactor.run()
    finally:
        restore()
    return statuses[0]


async def _talk(reactor: Any, server: StreamServer | DatagramServer) -> int:
    user = Terminal(os.isatty(1)) if os.isatty(0) else Pipe(os.isatty(1))
    session = await _connected(reactor, server, user)
    if session is None:
        return report.UNREACHABLE
    user.session = session
    StandardIO(user, reactor=reactor)
    why = await user.ended
    if not why:
        return report.ANSWERED
    answered = session.sent - session.missing
    report.say(report.lost(server.name, why, session.missing, session.sent))
    return report.UNREACHABLE if session.refused and not answered else report.MISSING


def _connected(
    reactor: Any, server: StreamServer | DatagramServer, user: Pipe
) -> Deferred[Session | None]:
    """Fire with a session, or, if there is none to be had, say why and fire with nothing."""

    def unreachable(failure: Failure) -> None:
        report.say(report.unreachable(server.name, failure.value))

    connecting: Deferred[Any] = (
        DatagramSession(user, reactor).connect(server)
        if isinstance(server, DatagramServer)
        else StreamSession(user, reactor).connect(server)
    )
    return connecting.addErrback(unreachable)
