"""Writes the results of several servers: as text for people, as JSON, or for Prometheus.

Knows how to write, but not where the output goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from timestamp_echo.client import errors
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import json, table, text
from timestamp_echo.ping.live import JSONOutput, TextOutput, Write, coloured, truncated
from timestamp_echo.ping.prometheus import format_metrics
from timestamp_echo.ping.scheduler import ProbeObserver
from timestamp_echo.ping.stats import Host, Probe, Stats
from timestamp_echo.stamps import SECOND

Screen = Callable[[], tuple[int, int]]
"""Returns the columns and lines of a terminal."""

_REFRESH = SECOND // 2  # nanoseconds between two updates of the table


class Output(Protocol):
    """Writes the results of all servers."""

    def observer(self, name: str, clocks: Clocks) -> ProbeObserver:
        """The observer of one server's probes.

        @param name: the server.
        @param clocks: this host's clocks, as the server's pinger knows them.
        """

    def unreachable(self, host: Host) -> None:
        """Say that a server cannot be reached, as soon as that is known."""

    def progress(self, hosts: Sequence[Host], *, entered: bool) -> None:
        """Write the progress on request.

        @param entered: whether the request was Enter, which the terminal has echoed.
        """

    def summary(self, hosts: Sequence[Host]) -> None:
        """Write the final summary."""


class SingleOutput:
    """An `Output` for one server, which needs no comparison.

    @param output: makes the writer of its results, from its name and this host's clocks.
    """

    _inner: TextOutput | JSONOutput

    def __init__(self, output: Callable[[str, Clocks], TextOutput | JSONOutput]) -> None:
        self._output = output

    def observer(self, name: str, clocks: Clocks) -> ProbeObserver:
        """See `Output.observer`."""
        self._inner = self._output(name, clocks)
        return self._inner

    def unreachable(self, host: Host) -> None:
        """See `Output.unreachable`. `summary`, which follows at once, reports it."""

    def progress(self, hosts: Sequence[Host], *, entered: bool) -> None:
        """See `Output.progress`."""
        self._inner.progress(hosts[0].stats)

    def summary(self, hosts: Sequence[Host]) -> None:
        """See `Output.summary`. That the server cannot be reached is an error of the command."""
        host = hosts[0]
        if host.error:
            errors.print_error(f"cannot connect to {host.name}: {host.error}")
        else:
            self._inner.summary(host.stats)


class TableOutput:
    """An `Output` that writes a line for each probe, and a table at the end.

    On a terminal the table is there all the time, in place of the lines.

    @param write: receives the text.
    @param hosts: returns the results of all servers until now.
    @param quiet: write only the summary; on a terminal, also the table.
    @param screen: returns the size of the terminal; None if the output is not one.
    @param colour: whether to write lost probes and events in red.
    @param limit: the largest offset allowed, in nanoseconds, if there is one.
    """

    def __init__(
        self,
        write: Write,
        hosts: Callable[[], Sequence[Host]],
        *,
        quiet: bool,
        screen: Screen | None,
        colour: bool,
        limit: int | None,
    ) -> None:
        self._write = write
        self._hosts = hosts
        self._quiet = quiet
        self._screen = screen
        self._colour = colour
        self._limit = limit
        self._drawn = 0  # lines of the table on the screen
        self._refreshed: int | None = None

    def observer(self, name: str, clocks: Clocks) -> ProbeObserver:
        """See `Output.observer`."""
        return _Lines(self, name)

    def probe(self, probe: Probe, line: str) -> None:
        """Write the line of a probe, or update the table on the screen."""
        if self._screen is None:
            self._line(coloured(line) if self._colour and probe.lost else line)
        elif self._refreshed is None or probe.sent - self._refreshed >= _REFRESH:
            self._refreshed = probe.sent
            self._redraw()

    def event(self, line: str) -> None:
        """Write a line about an event, on a terminal above the table."""
        if self._quiet:
            return
        drawn = self._drawn
        self._clear()
        lines = "\n".join(text.folded(line))
        self._line(coloured(lines) if self._colour else lines)
        if drawn:
            self._redraw()

    def unreachable(self, host: Host) -> None:
        """See `Output.unreachable`. On a terminal, the table shows it."""
        if self._screen is None:
            self.event(f"{host.name}: cannot connect: {host.error}")
        else:
            self._redraw()

    def progress(self, hosts: Sequence[Host], *, entered: bool) -> None:
        """See `Output.progress`."""
        if self._drawn:
            self._drawn += entered
        self._clear()
        lines = [*table.table(hosts), *table.comparison(hosts)]
        self._write("\n".join(lines) + "\n")

    def summary(self, hosts: Sequence[Host]) -> None:
        """See `Output.summary`."""
        self._clear()
        servers = "1 server" if len(hosts) == 1 else f"{len(hosts)} servers"
        lines = [f"--- tsecho ping of {servers} ---", *table.table(hosts)]
        lines += table.comparison(hosts)
        if self._limit is not None:
            lines += table.verdicts(hosts, self._limit)
        self._write("\n".join(lines) + "\n")

    def _line(self, line: str) -> None:
        if not self._quiet:
            self._write(line + "\n")

    def _redraw(self) -> None:
        assert self._screen is not None
        self._clear()
        columns, rows = self._screen()
        lines = table.table(self._hosts(), longest=columns // 3)
        room = max(rows - 2, 2)  # less one for the cursor and one for "... and N more"
        shown = lines if len(lines) <= room else lines[:room]
        if len(shown) < len(lines):
            shown.append(f"... and {len(lines) - len(shown)} more")
        self._drawn = len(shown)
        self._write("".join(truncated(line, columns - 1) + "\n" for line in shown))

    def _clear(self) -> None:
        if self._drawn:
            # Clear from the table's first line on; \r, because an echoed ^C moves the cursor.
            self._write(f"\r\033[{self._drawn}A\033[J")
            self._drawn = 0


class _Lines:
    """A `ProbeObserver` whose lines name the server."""

    def __init__(self, output: TableOutput, name: str) -> None:
        self._output = output
        self._name = name

    def answered(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.answered`."""
        self._output.probe(probe, text.answered(probe, self._name, stats.offset))

    def lost(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.lost`."""
        lines = text.folded(f"{self._name}: {text.lost(probe)}")
        self._output.probe(probe, "\n".join(lines))

    def event(self, message: str) -> None:
        """See `ProbeObserver.event`."""
        self._output.event(f"{self._name}: {message}")


class ObjectsOutput:
    """An `Output` that writes one JSON object per line.

    @param write: receives the text.
    @param quiet: write only the summaries.
    @param limit: the largest offset allowed, in nanoseconds, if there is one.
    """

    def __init__(self, write: Write, *, quiet: bool, limit: int | None) -> None:
        self._write = write
        self._quiet = quiet
        self._limit = limit

    def observer(self, name: str, clocks: Clocks) -> ProbeObserver:
        """See `Output.observer`."""
        return JSONOutput(self._write, name, clocks, quiet=self._quiet)

    def unreachable(self, host: Host) -> None:
        """See `Output.unreachable`. Its object is one of those of the summary."""

    def progress(self, hosts: Sequence[Host], *, entered: bool) -> None:
        """See `Output.progress`."""
        self._summaries(hosts, "progress")

    def summary(self, hosts: Sequence[Host]) -> None:
        """See `Output.summary`."""
        self._summaries(hosts, "summary")

    def _summaries(self, hosts: Sequence[Host], kind: str) -> None:
        for host in hosts:
            self._write(
                json.format_unreachable(host)
                if host.error
                else json.format_summary(host.stats, host.name, kind)
            )
        self._write(json.format_fleet(hosts, self._limit))


class MetricsOutput:
    """An `Output` that writes nothing but the final results, for Prometheus.

    What a person has to know goes to standard error.

    @param write: receives the text.
    @param limit: the largest offset allowed, in nanoseconds, if there is one.
    """

    def __init__(self, write: Write, *, limit: int | None) -> None:
        self._write = write
        self._limit = limit

    def observer(self, name: str, clocks: Clocks) -> ProbeObserver:
        """See `Output.observer`."""
        return _Silent()

    def unreachable(self, host: Host) -> None:
        """See `Output.unreachable`."""
        errors.print_error(f"cannot connect to {host.name}: {host.error}")

    def progress(self, hosts: Sequence[Host], *, entered: bool) -> None:
        """See `Output.progress`."""

    def summary(self, hosts: Sequence[Host]) -> None:
        """See `Output.summary`."""
        self._write(format_metrics(hosts))
        if self._limit is not None:
            for name, words in table.failures(hosts, self._limit):
                errors.print_error(f"{name}: {words}")


class _Silent:
    """A `ProbeObserver` that writes nothing."""

    def answered(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.answered`."""

    lost = answered

    def event(self, message: str) -> None:
        """See `ProbeObserver.event`."""
