"""The shell completions in `completions/`, which shtab generates from the commands' parsers.

`python -m tests.completion` writes them. The packages install them where the shells look.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import shtab

import timestamp_echo
from timestamp_echo.client import command as client
from timestamp_echo.ping import arguments as ping

FOLDER = Path(timestamp_echo.__file__).parent.parent / "completions"

FILES = {"bash": "bash/tsecho", "zsh": "zsh/_tsecho", "fish": "fish/tsecho.fish"}
"""Where each shell's script is. The names are those by which the shells find it."""


def script(shell: str) -> str:
    """Generate the script for a shell."""
    return shtab.complete(whole_parser(), shell).rstrip() + "\n"


def whole_parser() -> ArgumentParser:
    """A parser of all commands. The real one is two, to import only what a command needs."""
    parser = ArgumentParser("tsecho")
    connect = client._parser()
    add_options(parser, connect)
    commands = parser.add_subparsers()
    for name, words, options in (
        ("connect", "send lines and print the replies", connect),
        ("ping", "measure round trips, and how wrong the server's clock is", ping.new_parser()),
    ):
        command = commands.add_parser(name, help=words)
        add_options(command, options)
        # Without it, zsh completes no option behind SERVER; with any number of them, none at all.
        command.add_argument("server", nargs="?", metavar="SERVER", help="the server")
    words = "show the help of a command"
    commands.add_parser("help", help=words).add_argument("command", choices=("connect", "ping"))
    return parser


def add_options(parser: ArgumentParser, source: ArgumentParser) -> None:
    """Add the options of another parser, but its --help."""
    for action in source._actions:
        if action.option_strings and action.dest != "help":
            if action.metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's interface
            parser._add_action(action)


def main() -> None:
    """Write the scripts."""
    for shell, path in FILES.items():
        (FOLDER / path).write_text(script(shell))


if __name__ == "__main__":
    main()
