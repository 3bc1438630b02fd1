"""The arguments that all commands of `tsecho` have: which server, and whom to trust."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, StreamServer, Trust, server_from


def add_server(parser: ArgumentParser) -> None:
    """Let a command take them."""
    parser.add_argument(
        "server",
        nargs="?",
        default="localhost",
        metavar="SERVER",
        help="host, host:port, [::1]:3000, unix:/path, udp:host:port, tls:host:port or any"
        " Twisted client endpoint (default: localhost:3000)",
    )
    parser.add_argument("--ca", metavar="FILE", help="tls: the authorities to trust, in PEM")
    parser.add_argument("--insecure", action="store_true", help="tls: trust any certificate")


def chosen_server(
    parser: ArgumentParser, arguments: Namespace, reactor: Any
) -> StreamServer | DatagramServer:
    """The server they name; where they name none, the command ends with its usage and why."""
    try:
        server = server_from(arguments.server, Trust(arguments.ca, arguments.insecure), reactor)
    except ValueError as error:
        parser.error(str(error))
    if arguments.insecure:
        errors.say("warning: --insecure: whoever answers is believed to be the server")
    return server
