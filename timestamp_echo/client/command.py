"""The command `tsecho connect`: arguments in, exit status out."""

from __future__ import annotations

import os
import signal
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from timestamp_echo import __version__
from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.client.arguments import add_server, chosen_server
from timestamp_echo.client.datagram import DatagramSession
from timestamp_echo.client.session import Session, StreamSession
from timestamp_echo.client.stdio import Pipe, Terminal


def main(argv: Sequence[str]) -> int:
    """Talk to a server, from a terminal or in a pipe.

    @param argv: the arguments after `connect`.
    @return: the exit status, as `errors` has them; 128 and the signal's number if one came.
    """
    from twisted.internet import reactor

    parser = _parser()
    arguments = parser.parse_args(argv)
    return _run(reactor, chosen_server(parser, arguments, reactor))


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
        return errors.UNREACHABLE
    user.session = session
    StandardIO(user, reactor=reactor)
    why = await user.ended
    if not why:
        return errors.ANSWERED
    answered = session.sent - session.missing
    errors.say(errors.lost(server.name, why, session.missing, session.sent))
    return errors.UNREACHABLE if session.refused and not answered else errors.MISSING


def _connected(
    reactor: Any, server: StreamServer | DatagramServer, user: Pipe
) -> Deferred[Session | None]:
    """Fire with a session, or, if there is none to be had, say why and fire with nothing."""

    def unreachable(failure: Failure) -> None:
        errors.say(errors.unreachable(server.name, failure.value))

    connecting: Deferred[Any] = (
        DatagramSession(user, reactor).connect(server)
        if isinstance(server, DatagramServer)
        else StreamSession(user, reactor).connect(server)
    )
    return connecting.addErrback(unreachable)
