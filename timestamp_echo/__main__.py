"""The `tsecho` command, also `python -m timestamp_echo`: picks the subcommand.

It is above both subcommands, so that neither need know the other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from timestamp_echo.client import errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tsecho connect`, the default, or `tsecho ping`.

    @param argv: the arguments; the process's own if none are given.
    @return: the exit status.
    """
    for fd, name in ((0, "standard input"), (1, "standard output")):
        if not _is_open(fd):  # checked before the reactor's own files take the number
            errors.say(f"expected an open {name}; it is closed")
            return errors.UNREACHABLE
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["ping"]:
        from timestamp_echo.ping.command import main as ping

        return ping(words[1:])
    from timestamp_echo.client.command import main as connect

    return connect(words[1:] if words[:1] == ["connect"] else words)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
