"""Where the findings of `tsecho ping` go as they come: lines for a person, or JSON.

Knows how to write; not where to.
"""

from __future__ import annotations

from collections.abc import Callable

from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import json, text
from timestamp_echo.ping.stats import Outcome, Probe

Write = Callable[[str], None]

_RED, _PLAIN = "\033[31m", "\033[0m"
_FRESH = "\r\033[K"  # the beginning of the line, and nothing on it
_OFTEN = 10**8  # nanoseconds between a probe and the next that changes the line: a flood's are many


class Lines:
    """For a person.

    @param write: takes text.
    @param name: the server's.
    @param size: bytes of a probe.
    @param quiet: nothing until the end, but on a terminal one line that says how it stands, and is
        written over.
    @param columns: how wide that is; nothing if it is no such terminal.
    @param colour: whether what is lost may be red.
    """

    def __init__(
        self,
        write: Write,
        name: str,
        size: int,
        *,
        quiet: bool,
        columns: Callable[[], int] | None,
        colour: bool,
    ) -> None:
        self._write = write
        self._name = name
        self._size = size
        self._quiet = quiet
        self._columns = columns
        self._colour = colour
        self._said = False
        self._shown: int | None = None

    def answered(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness.answered`."""
        if self._quiet:
            self._show_progress(probe, outcome)
        else:
            self._write(text.answered(probe, self._name, self._size, outcome.offset) + "\n")

    def lost(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness.lost`."""
        if self._quiet:
            self._show_progress(probe, outcome)
        else:
            self._warn(text.lost(probe))

    def happened(self, words: str) -> None:
        """See `Witness.happened`."""
        if not self._quiet:
            self._warn(words)

    def look(self, outcome: Outcome) -> None:
        """Say how it stands, for somebody asked."""
        self._clear()
        self._write(text.progress(outcome) + "\n")

    def end(self, outcome: Outcome) -> None:
        """Say what was found."""
        self._clear()
        self._write(text.summary(outcome, self._name))

    def _warn(self, words: str) -> None:
        self._write(f"{_RED}{words}{_PLAIN}\n" if self._colour else f"{words}\n")

    def _show_progress(self, probe: Probe, outcome: Outcome) -> None:
        if self._columns is None:
            return
        if self._shown is None or probe.sent - self._shown >= _OFTEN:
            self._said, self._shown = True, probe.sent
            self._write(_FRESH + _fitting(text.progress(outcome), self._columns() - 1))

    def _clear(self) -> None:
        if self._said:
            self._said = False
            self._write(_FRESH)


def _fitting(line: str, columns: int) -> str:
    """What of a line has room; a number is not cut without a sign of it."""
    return line if len(line) <= columns else line[: max(columns - 1, 0)] + "…"


class Records:
    """For a program: one JSON object a line.

    @param write: takes text.
    @param name: the server's.
    @param clocks: this host's.
    @param quiet: the summary alone.
    """

    def __init__(self, write: Write, name: str, clocks: Clocks, *, quiet: bool) -> None:
        self._write = write
        self._name = name
        self._clocks = clocks
        self._quiet = quiet

    def answered(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness.answered`."""
        if not self._quiet:
            self._write(json.probe_record(probe, self._clocks.time(probe.sent), outcome))

    lost = answered

    def happened(self, words: str) -> None:
        """See `Witness.happened`."""
        if not self._quiet:
            self._write(json.event_record(words))

    def look(self, outcome: Outcome) -> None:
        """Say how it stands: as in the end, but for the type."""
        self._write(json.summary_record(outcome, self._name, "standing"))

    def end(self, outcome: Outcome) -> None:
        """Say what was found."""
        self._write(json.summary_record(outcome, self._name))
