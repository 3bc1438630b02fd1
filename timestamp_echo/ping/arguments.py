"""The command line of `tsecho ping`: its options, and the servers that it names."""

from __future__ import annotations

import re
import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path
from typing import Any

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
from timestamp_echo.ping.phases import LookupTimer
from timestamp_echo.ping.probe import MAX_SIZE, MIN_SIZE
from timestamp_echo.stamps import SECOND

Server = StreamServer | DatagramServer

_UNITS = {"us": SECOND // 10**6, "ms": SECOND // 1000, "s": SECOND, "": SECOND}


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


def new_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser(
        prog="tsecho ping",
        usage="%(prog)s [options] [SERVER ...]",
        description="Measure the round-trip time to a timestamp echo, or to any echo, and how wrong"
        " its clock is. With several servers, tell whose clocks differ.",
        epilog="Enter or Ctrl-\\ shows the progress; Ctrl-C stops and shows the summary."
        " Exit status: 0 success; 1 no reply, or fewer replies than -c requests, or a clock exceeds"
        " --max-offset, or output could not be written; 2 usage error, name not found or connection"
        " refused; 3 cannot tell whether a clock exceeds --max-offset; 130 interrupted before a"
        " probe was sent, or twice. With several servers, the first of 1, 2 and 3 that applies to"
        " any.",
    )
    add_server(parser, several=True)
    _add_options(parser)
    return parser


def named_servers(
    parser: CommandParser, arguments: Namespace, reactor: Any
) -> list[tuple[Server, Any]]:
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
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8-sig")
    except (OSError, ValueError) as error:  # a ValueError: the file is no text
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        parser.error(f"--from: {path}: {reason}")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    if not any(lines):
        parser.error(f"--from: expected a SERVER on each line, found none in {path}")
    return list(filter(None, lines))


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

        # Printed like the help, so that a reader that is gone is no error.
        text = files(__package__).joinpath("schema.json").read_text("utf-8")
        parser._print_message(text, sys.stdout)
        parser.exit()


def _names(flag: str, name: str) -> list[str]:
    """The names of an option: its flag and, if that is short, the long one that argparse stores."""
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
