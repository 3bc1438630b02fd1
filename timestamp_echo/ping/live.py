"""Writes the results of `tsecho ping` as they arrive: as text for people, or as JSON.

Knows how to write, but not where the output goes.
"""

from __future__ import annotations

from collections.abc import Callable

from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import json, text
from timestamp_echo.ping.stats import Probe, Stats

Write = Callable[[str], None]

_RED, _RESET = "\033[31m", "\033[0m"
_CLEAR_LINE = "\r\033[K"
_REFRESH = 10**8  # minimum nanoseconds between updates of the progress line, even in a flood


class TextOutput:
    """A `ProbeObserver` that writes text for people.

    @param write: receives the text.
    @param name: the server.
    @param quiet: write only the summary; on a terminal, also one progress line that is overwritten.
    @param columns: returns the width of the terminal; None if the output is not one.
    @param colour: whether to write lost probes and events in red.
    """

    def __init__(
        self,
        write: Write,
        name: str,
        *,
        quiet: bool,
        columns: Callable[[], int] | None,
        colour: bool,
    ) -> None:
        self._write = write
        self._name = name
        self._quiet = quiet
        self._columns = columns
        self._colour = colour
        self._progress_shown = False
        self._refreshed: int | None = None

    def answered(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.answered`."""
        if self._quiet:
            self._refresh(probe, stats)
        else:
            self._write(text.answered(probe, self._name, stats.offset) + "\n")

    def lost(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.lost`."""
        if self._quiet:
            self._refresh(probe, stats)
        else:
            self._warn(text.lost(probe))

    def event(self, message: str) -> None:
        """See `ProbeObserver.event`."""
        if not self._quiet:
            self._warn(message)

    def progress(self, stats: Stats) -> None:
        """Write the progress on request."""
        self._clear()
        self._write(text.progress(stats) + "\n")

    def summary(self, stats: Stats) -> None:
        """Write the final summary."""
        self._clear()
        self._write(text.summary(stats, self._name))

    def _warn(self, message: str) -> None:
        lines = "\n".join(text.folded(message))
        self._write((coloured(lines) if self._colour else lines) + "\n")

    def _refresh(self, probe: Probe, stats: Stats) -> None:
        if self._columns is None:
            return
        if self._refreshed is None or probe.sent - self._refreshed >= _REFRESH:
            self._progress_shown, self._refreshed = True, probe.sent
            self._write(_CLEAR_LINE + truncated(text.progress(stats), self._columns() - 1))

    def _clear(self) -> None:
        if self._progress_shown:
            self._progress_shown = False
            self._write(_CLEAR_LINE)


def coloured(line: str) -> str:
    """The same line in red."""
    return f"{_RED}{line}{_RESET}"


def truncated(line: str, columns: int) -> str:
    """The part of a line that fits; an ellipsis shows that a number may have been cut."""
    return line if len(line) <= columns else line[: max(columns - 1, 0)] + "…"


class JSONOutput:
    """A `ProbeObserver` that writes one JSON object per line.

    @param write: receives the text.
    @param name: the server.
    @param clocks: this host's clocks.
    @param quiet: write only the summary.
    """

    def __init__(self, write: Write, name: str, clocks: Clocks, *, quiet: bool) -> None:
        self._write = write
        self._name = name
        self._clocks = clocks
        self._quiet = quiet

    def answered(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.answered`."""
        if not self._quiet:
            sent = self._clocks.wall_time(probe.sent)
            self._write(json.format_probe(probe, sent, stats, self._name))

    lost = answered

    def event(self, message: str) -> None:
        """See `ProbeObserver.event`."""
        if not self._quiet:
            self._write(json.format_event(message, self._name))

    def progress(self, stats: Stats) -> None:
        """Write the progress on request: the same object as the summary, with another type."""
        self._write(json.format_summary(stats, self._name, "progress"))

    def summary(self, stats: Stats) -> None:
        """Write the final summary."""
        self._write(json.format_summary(stats, self._name))
