"""The lines entered at the terminal, kept in a file from one run to the next.

Knows a file of lines; not how a line is edited, nor what it is sent to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import BinaryIO

MAX_LINES = 1000
"""The file keeps this many of the last lines."""

VARIABLE = "TSECHO_HISTORY"
"""The environment variable that names another file or, if empty, turns the history off."""


def history_file(environment: Mapping[str, str]) -> Path | None:
    """Where the history is kept: in the folder for state of the XDG Base Directory Specification.

    @return: None if it is turned off, or if there is no home for it.
    """
    name = environment.get(VARIABLE)
    if name is not None:
        return Path(name) if name else None
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # unset, empty or, by the specification, to be ignored
        state = os.path.expanduser("~/.local/state")
    return Path(state, "tsecho", "history") if os.path.isabs(state) else None


class History:
    """The last lines, oldest first, in memory and in a file.

    A file that cannot be read or written is no error: then lines are kept in memory alone.

    @param path: the file; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.lines: list[bytes] = []
        if path is not None:
            with suppress(OSError):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.lines = _last_lines(path)

    def add(self, line: bytes) -> bool:
        """Add a line, unless it is empty or the same as the last.

        @param line: without its newline.
        @return: whether it was added.
        """
        if not line or self.lines[-1:] == [line]:
            return False
        self.lines.append(line)
        if self._path is not None:
            with suppress(OSError), _opened(self._path) as file:
                file.write(line + b"\n")
        return True


def _opened(path: Path) -> BinaryIO:
    """Open it to read and append, locked: another client may be about to shorten it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b")
    flock(file, LOCK_EX)  # until it is closed
    return file


def _last_lines(path: Path) -> list[bytes]:
    """Read the last lines, and drop those before them from the file."""
    with _opened(path) as file:
        lines = file.read().split(b"\n")[:-1]  # not `splitlines`, which also splits at \\r
        if len(lines) > MAX_LINES:
            lines = lines[-MAX_LINES:]
            file.truncate(0)
            file.write(b"\n".join([*lines, b""]))
    return lines
