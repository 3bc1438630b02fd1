"""The command line of both commands: errors in one line, SERVER, and the options for TLS."""

from __future__ import annotations

import math
import os
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn, cast

from twisted.internet.interfaces import IReactorTime

from timestamp_echo import __version__
from timestamp_echo.client import errors
from timestamp_echo.client.address import (
    IPV4,
    IPV6,
    PORT,
    DatagramServer,
    FamilyResolver,
    IClientReactor,
    StreamServer,
    server_from,
)
from timestamp_echo.client.tls import Trust

_REWORDED = (
    (r"argument (\S+): expected one argument", r"\1: expected a value, got none"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1: expected no value, got \2"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1: cannot be combined with \2"),
    (r"ambiguous option: (\S+) could match (.*)", r"ambiguous option \1: it may be any of \2"),
    (r"argument (\S+): (.*)", r"\1: \2"),
)
"""argparse's messages, and ours for them: the option, what was expected, what was given.

A message that no pattern matches, such as one of a later Python, is printed as it is.
"""


COMMANDS = {"connect", "help", "ping"}
"""The words that are commands if they come first."""

DEFAULT_SERVER = "localhost"
"""SERVER if there is none on the command line."""


class CommandParser(ArgumentParser):
    """A parser whose errors are one line on standard error, without the usage page before it.

    Its command has the argument SERVER, see `add_server`.
    """

    def parse_args(  # `Any`: argparse returns the namespace that it is given, of any type
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """See `ArgumentParser.parse_args`. Unknown arguments get a message of their own."""
        # Intermixed: several SERVERs may have options between them.
        arguments, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            # SERVER as well: argparse takes the -4 of `-4 host` for a number, hence for SERVER.
            named = arguments.server
            self.error(self._unknown([*(named if isinstance(named, list) else [named]), *unknown]))
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print one line, and exit with status 2."""
        for pattern, ours in _REWORDED:
            message = re.sub(f"^{pattern}$", ours, message, flags=re.DOTALL)
        errors.print_error(message, self.prog)
        self.exit(errors.UNREACHABLE)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or the version. argparse would ignore every error, such as a full disk."""
        try:
            print(message, end="", file=file, flush=True)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again at exit
            if not isinstance(error, BrokenPipeError):  # that is a reader that is gone: no error
                errors.print_error(f"cannot write standard output: {error.strerror}", self.prog)
                self.exit(errors.MISSING)

    def _unknown(self, arguments: list[str]) -> str:
        """Describe arguments that the command does not have.

        @param arguments: SERVER, and those that are left over.
        """
        options = [argument for argument in arguments if argument.startswith("-")]
        if not options and (commands := [word for word in arguments if word in COMMANDS]):
            return command_first(commands[0])
        if not options:
            given = " and ".join(map(errors.quoted, arguments))
            meant = f"; did you mean {':'.join(arguments)}?" if arguments[-1].isdecimal() else ""
            return f"SERVER: expected one, got {given}{meant}"
        name = options[0].partition("=")[0]
        # The one place that lists a parser's options; argparse has no public name for it.
        similar = get_close_matches(name, self._option_string_actions, n=1, cutoff=0.7)
        hint = f"did you mean {similar[0]}?" if similar else f"see {self.prog} --help"
        return f"unknown option {errors.quoted(name)}; {hint}"


def add_server(parser: ArgumentParser, *, several: bool = False) -> None:
    """Add the argument SERVER, and the options that both commands have.

    @param several: whether there may be more than one SERVER. They are a list, empty if there is
        none.
    """
    parser.add_argument(
        "server",
        nargs="*" if several else "?",
        default=[] if several else DEFAULT_SERVER,
        metavar="SERVER",
        help="connect to host, host:port, [::1]:3000, unix:/path, udp:host:port, tls:host:port or"
        " any Twisted client endpoint (default: localhost:3000)",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="verify a tls: server against the certificate authorities in this PEM file"
        " (default: the system's)",
    )
    parser.add_argument(
        "--cert",
        metavar="FILE",
        help="present the certificate in this PEM file to a tls: server",
    )
    parser.add_argument(
        "--key",
        metavar="FILE",
        help="the private key of --cert, a PEM file without a password (default: in that file)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="accept any certificate of a tls: server (default: verify it)",
    )
    families = parser.add_mutually_exclusive_group()
    for family in (IPV4, IPV6):
        families.add_argument(
            family.option,
            f"--{family.name.lower()}",
            action="store_const",
            dest="family",
            const=family,
            help=f"use only {family.name} addresses of SERVER",
        )
    parser.add_argument("--version", action="version", version=f"tsecho {__version__}")


def command_first(command: str) -> str:
    """The error for a command that follows an option or a SERVER."""
    return (
        f"expected the command first, as in tsecho {command} ...;"
        f" for a server of that name, write {command}:{PORT}"
    )


def chosen_server(
    parser: ArgumentParser, arguments: Namespace, reactor: IReactorTime
) -> StreamServer | DatagramServer:
    """The server that the arguments name; if they name none, exit with status 2 and the reason.

    @param parser: reports the error.
    @param arguments: what it parsed.
    @param reactor: makes the connection, so it provides all of `IClientReactor`.
    """
    server = named_server(parser, arguments, arguments.server, reactor)
    apply_options(arguments, cast(IClientReactor, reactor))
    return server


def named_server(
    parser: ArgumentParser, arguments: Namespace, text: str, reactor: IReactorTime
) -> StreamServer | DatagramServer:
    """The server that a text names; if it names none, exit with status 2 and the reason.

    @param parser: reports the error.
    @param arguments: the options that it parsed.
    @param text: SERVER.
    @param reactor: makes the connection, so it provides all of `IClientReactor`.
    """
    if arguments.key is not None and arguments.cert is None:
        parser.error("--key: expected --cert FILE too, the certificate of the key")
    trust = Trust(arguments.ca, arguments.insecure, arguments.cert, arguments.key)
    try:
        return server_from(text, trust, cast(IClientReactor, reactor), arguments.family)
    except ValueError as error:
        parser.error(str(error))


def apply_options(arguments: Namespace, reactor: IClientReactor) -> None:
    """Apply the options that are not about one server only.

    @param arguments: what was parsed.
    @param reactor: looks names up, from now on in the family that was asked for.
    """
    if arguments.family:
        # HostnameEndpoint has no such option, but looks names up by the reactor's resolver.
        reactor.installNameResolver(FamilyResolver(reactor.nameResolver, arguments.family))
    if arguments.insecure:
        errors.print_error("warning: --insecure: the server's certificate is not verified")


def parse_seconds(minimum: float, text: str) -> float:
    """Parse the value of an option; with a minimum bound, a `type` for `add_argument`.

    @param minimum: the smallest value allowed.
    @raise ArgumentTypeError: it is not a number, or is too small, or is over eleven days.
    """
    try:
        # 1_000, and digits of other scripts, are numbers in Python only.
        value = float(text.replace("_", "?")) if text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not minimum <= value <= 10**6:  # false for nan as well
        raise ArgumentTypeError(
            f"expected seconds from {minimum:g} to 1000000, not {errors.quoted(text)}"
        )
    return value
