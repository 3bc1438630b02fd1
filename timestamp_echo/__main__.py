"""The command `tsecho`, also `python -m timestamp_echo`: selects the subcommand.

It imports both subcommands, so that neither imports the other.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tsecho connect`, the default, or `tsecho ping`; or show the help of one of them.

    @param argv: the arguments; by default those of the process.
    @return: the exit status.
    """
    # Both imports below take longer than a person needs to press Ctrl-C. When the reactor runs, the
    # subcommand sets a handler of its own.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    from timestamp_echo.client import errors

    for fd, name in ((0, "standard input"), (1, "standard output")):
        # Before the reactor opens files of its own, which would reuse the number of a closed one.
        if not _is_open(fd):
            errors.print_error(f"expected an open {name}; it is closed")
            return errors.UNREACHABLE
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        command = [word for word in arguments[1:] if word not in ("-h", "--help")]
        if command not in ([], ["connect"], ["ping"]):
            given = errors.quoted(" ".join(command))
            errors.print_error(f"expected connect or ping, not {given}", "tsecho help")
            return errors.UNREACHABLE
        arguments = [*command, "--help"]
    if arguments[:1] == ["ping"]:
        from timestamp_echo.ping.command import main as ping

        return ping(arguments[1:])
    from timestamp_echo.client.command import main as connect

    named = arguments[:1] == ["connect"]
    return connect(arguments[1:] if named else arguments, named=named)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
