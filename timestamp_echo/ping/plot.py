"""The figure of `tsecho ping --plot`: round trips over time, their distribution, and the clock.

Draws with matplotlib, from the extra `plot`, which is only imported when it is needed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from timestamp_echo.client.errors import not_installed
from timestamp_echo.ping.stats import PHASES, Probe, Stats
from timestamp_echo.stamps import SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PROBES = 10**6
"""Number of probes that are drawn; later ones are not."""

SUFFIXES = (".png", ".svg")
"""Supported file types, recognised by the end of the file's name."""

# From Okabe and Ito's palette, which is safe for colour-blind readers.
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"
_OTHERS = ("#E69F00", "#56B4E9", "#CC79A7", "#000000")  # one for each phase

_BINS = 40
_MANY_SERVERS = 20  # above which their names would fill the figure
_FEW = 100  # probes up to which each is a large dot, and each offset has an error bar
_MANY = 10_000  # probes above which an SVG contains a bitmap of them
_MAX_POINTS = 4000  # of a line: more than the figure has pixels
_OUTLIER = 5  # times the median; one such round trip makes the axis logarithmic
_WIDE = 8  # times the smallest bound; offsets with wider bounds do not extend the axis
_FAR = 20  # times the height of the axes; a larger offset is drawn relative to its last value


class Plot:
    """A `ProbeObserver` that collects what to draw.

    @param path: the file to write.
    @raise ValueError: the file type is not supported, the folder does not exist, or matplotlib is
        not installed.
    """

    def __init__(self, path: str) -> None:
        if not path.endswith(SUFFIXES):
            raise ValueError(
                f"expected a name that ends with {' or '.join(SUFFIXES)}, not {path!r}"
            )
        if not Path(path).parent.is_dir() or Path(path).is_dir():
            raise ValueError(f"expected a file in an existing folder, not {path!r}")
        try:
            import matplotlib as mpl
        except ImportError as error:
            raise ValueError(not_installed("matplotlib", "plot")) from error
        mpl.use("agg")
        self._path = path
        self.start = 0
        """When the first probe was sent, in nanoseconds; 0 if none was."""
        # Times are seconds since the first probe; all else is nanoseconds.
        self._times, self._rtts, self._lost = array("d"), array("d"), array("d")
        self._offset_times, self._offsets, self._bounds = array("d"), array("d"), array("d")
        self._phases = {phase: array("d") for phase in PHASES}  # of probes with a connection each

    def answered(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.answered`."""
        if probe.number > MAX_PROBES:
            return
        self._times.append(self._time(probe))
        self._rtts.append(probe.rtt)
        for phase, duration in probe.durations.items():
            self._phases[phase].append(duration)
        if offset := stats.offset:
            self._offset_times.append(self._time(probe))
            self._offsets.append(offset.nanoseconds)
            self._bounds.append(offset.bound)

    def lost(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver.lost`."""
        if probe.number <= MAX_PROBES:
            self._lost.append(self._time(probe))

    def event(self, message: str) -> None:
        """See `ProbeObserver.event`; its effects are visible in the figure."""

    def _time(self, probe: Probe) -> float:
        self.start = self.start or probe.sent
        return (probe.sent - self.start) / SECOND

    def draw(self, name: str) -> None:
        """Write the file.

        @param name: the server.
        @raise OSError: the file cannot be written.
        """
        self._figure(name).savefig(Path(self._path), dpi=120)

    def draw_lines(self, rtts: Axes, clock: Axes, shift: float, colour: str, name: str) -> None:
        """Draw the round trips and possible offsets of one of several servers.

        @param rtts: gets the round trips, in milliseconds.
        @param clock: gets the offsets, in seconds.
        @param shift: seconds from the start of the figure to this server's first probe.
        @param colour: as matplotlib names it.
        @param name: the server.
        """
        times = [shift + time for time in self._times]
        milliseconds = [1000 * rtt / SECOND for rtt in self._rtts]
        rtts.plot(times, milliseconds, ".-", color=colour, linewidth=0.8, label=name)
        if self._offsets:
            times, offsets, bounds = self._steps()
            low, high = (
                [
                    (offset + sign * bound) / SECOND
                    for offset, bound in zip(offsets, bounds, strict=True)
                ]
                for sign in (-1, 1)
            )
            clock.fill_between(
                [shift + time for time in times], low, high, step="post", alpha=0.4, color=colour
            )

    def _figure(self, name: str) -> Figure:
        from matplotlib.figure import Figure

        rows = 2 if self._offsets else 1
        figure = Figure(figsize=(10, 0.5 + 3.2 * rows), layout="constrained")
        figure.suptitle(f"tsecho ping {name}", parse_math=False)
        grid = figure.add_gridspec(rows, 2, width_ratios=(3, 1))
        rtts = figure.add_subplot(grid[0, 0])
        self._draw_rtts(rtts)
        self._draw_distribution(figure.add_subplot(grid[0, 1], sharey=rtts))
        timelines = [rtts]
        if self._offsets:
            clock = figure.add_subplot(grid[1, 0], sharex=rtts)
            bound = figure.add_subplot(grid[1, 1])
            self._draw_clock(clock)
            self._draw_bounds(bound)
            timelines = [clock, bound]
        for axes in timelines:
            axes.set_xlabel("time, s")
        for axes in figure.axes:
            axes.grid(alpha=0.3)
        return figure

    def _rtt_unit(self) -> tuple[int, str]:
        if not self._rtts:
            return _unit(SECOND // 1000)
        return _axis_unit(self._rtts, logarithmic=self._has_outliers())

    def _has_outliers(self) -> bool:
        """Whether the axis is logarithmic: an outlier would flatten all other round trips."""
        return 0 < min(self._rtts) < _OUTLIER * median(self._rtts) < max(self._rtts)

    def _draw_rtts(self, axes: Axes) -> None:
        self._draw_answered(axes)
        self._draw_phases(axes)
        if self._lost:
            self._draw_lost(axes)
        self._set_rtt_limits(axes)
        axes.set_title("Round trip", loc="left")
        axes.set_ylabel(f"round trip, {self._rtt_unit()[1]}" if self._rtts else "no replies")
        _add_legend(axes)

    def _draw_answered(self, axes: Axes) -> None:
        factor, _ = self._rtt_unit()
        size, alpha = (6, 1.0) if len(self._rtts) <= _FEW else (3, 0.5)
        axes.plot(
            self._times,
            [rtt / factor for rtt in self._rtts],
            "o",
            color=_BLUE,
            markersize=size,
            alpha=alpha,
            markeredgewidth=0,
            label=f"answered: {len(self._rtts)}",
            rasterized=len(self._rtts) > _MANY,
        )

    def _draw_phases(self, axes: Axes) -> None:
        factor, _ = self._rtt_unit()
        for (phase, durations), colour in zip(self._phases.items(), _OTHERS, strict=True):
            if durations:
                values = [duration / factor for duration in durations]
                axes.plot(self._times, values, color=colour, linewidth=1, label=PHASES[phase])

    def _draw_lost(self, axes: Axes) -> None:
        axes.plot(
            self._lost,
            [0.96] * len(self._lost),
            "x" if len(self._lost) <= _FEW else "|",
            color=_RED,
            markersize=6,
            label=f"lost: {len(self._lost)}",
            transform=axes.get_xaxis_transform(),  # 0 is the bottom of the axes, 1 the top
            rasterized=len(self._rtts) > _MANY,
        )

    def _set_rtt_limits(self, axes: Axes) -> None:
        if not self._rtts:
            axes.set(ylim=(0, 1), yticks=[])
            return
        factor, _ = self._rtt_unit()
        shortest = (min(times) for times in (self._rtts, *self._phases.values()) if times)
        low, high = min(shortest) / factor, max(self._rtts) / factor
        if self._has_outliers():
            _set_logarithmic(axes)
            axes.set_ylim(0.8 * low, 2 * high)
        else:
            axes.set_ylim(0, 1.15 * high or 1)  # leaves room for lost probes

    def _draw_distribution(self, axes: Axes) -> None:
        if self._rtts:
            rtts = [rtt / self._rtt_unit()[0] for rtt in self._rtts]
            bins = _BINS // 2 if len(rtts) <= _FEW else _BINS
            edges = _edges(min(rtts) if self._has_outliers() else 0, max(rtts), bins)
            axes.hist(rtts, bins=edges, orientation="horizontal", color=_BLUE)
        axes.set_title("Distribution of round trips", loc="left", fontsize="medium")
        axes.set_xlabel("probes")
        axes.locator_params(axis="x", integer=True, nbins=4, min_n_ticks=1)
        axes.tick_params(labelleft=False, which="both")

    def _steps(self) -> tuple[list[float], list[float], list[float]]:
        """Times, offsets and bounds. Each is valid until the next, and the last until the end."""
        every = -(-len(self._offsets) // _MAX_POINTS)
        times, offsets, bounds = (
            [*values[::every], values[-1]]
            for values in (self._offset_times, self._offsets, self._bounds)
        )
        times[-1] = max([times[-1], *self._lost])
        return times, offsets, bounds

    def _draw_clock(self, axes: Axes) -> None:
        times, offsets, bounds = self._steps()
        low, high = _limits(offsets, bounds)
        # A clock that is an hour ahead would have long numbers on its axis.
        far = abs(offsets[-1]) > _FAR * (high - low)
        factor, unit = _unit((high - low) / 2 if far else max(abs(low), abs(high)))
        base = factor * round(offsets[-1] / factor) if far else 0
        scaled = [(offset - base) / factor for offset in offsets]
        errors = [bound / factor for bound in bounds]
        _draw_band(axes, times, scaled, errors)
        if len(times) <= _FEW:
            _draw_error_bars(axes, times[:-1], scaled[:-1], errors[:-1])
        axes.set_ylim((low - base) / factor, (high - base) / factor)
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.set_title("Clock offset", loc="left")
        label = f"server ahead, {unit}"
        axes.set_ylabel(f"{label}\nrelative to {base / SECOND:+.6f} s" if base else label)
        _add_legend(axes)

    def _draw_bounds(self, axes: Axes) -> None:
        times, _, bounds = self._steps()
        logarithmic = max(bounds) > _WIDE * min(bounds)
        factor, unit = _axis_unit(bounds, logarithmic=logarithmic)
        axes.plot(
            times,
            [bound / factor for bound in bounds],
            color=_GREEN,
            drawstyle="steps-post",
            marker="o" if len(times) <= _FEW else "",
            markersize=4,
        )
        if logarithmic:
            _set_logarithmic(axes)
        else:
            axes.set_ylim(0, 1.15 * max(bounds) / factor)
        axes.set_title("Bound of the offset", loc="left", fontsize="medium")
        axes.set_ylabel(f"± {unit}")
        axes.locator_params(axis="x", nbins=4)


class FleetPlot:
    """The figure of all servers; a single one gets the fuller figure of `Plot`.

    @param path: the file to write.
    @raise ValueError: as `Plot`.
    """

    def __init__(self, path: str) -> None:
        Plot(path)  # checks it
        self._path = path
        self._plots: dict[str, Plot] = {}

    def observer(self, name: str) -> Plot:
        """The `ProbeObserver` of one server.

        @param name: the server.
        """
        self._plots[name] = Plot(self._path)
        return self._plots[name]

    def draw(self) -> None:
        """Write the file.

        @raise OSError: it cannot be written.
        """
        if len(self._plots) == 1:
            ((name, plot),) = self._plots.items()
            plot.draw(name)
        else:
            self._figure().savefig(Path(self._path), dpi=120)

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 7), layout="constrained")
        figure.suptitle(f"tsecho ping, {len(self._plots)} servers", parse_math=False)
        rtts, clock = figure.subplots(2, 1, sharex=True)
        start = min((plot.start for plot in self._plots.values() if plot.start), default=0)
        for index, (name, plot) in enumerate(self._plots.items()):
            shift = (plot.start - start) / SECOND
            plot.draw_lines(rtts, clock, shift, f"C{index}", name)
        rtts.set(title="Round trip", ylabel="round trip, ms")
        _set_logarithmic(rtts)
        clock.set(title="Clock offset", xlabel="time, s", ylabel="server ahead, s")
        clock.set_yscale("symlog", linthresh=0.001)
        clock.yaxis.set_major_formatter("{x:g}")
        for axes in (rtts, clock):
            axes.grid(alpha=0.3)
        if len(self._plots) <= _MANY_SERVERS:
            rtts.legend(fontsize="small", ncols=3)
        return figure


def _draw_band(axes: Axes, times: list[float], offsets: list[float], errors: list[float]) -> None:
    """Draw the possible offsets over time."""
    axes.fill_between(
        times,
        [offset - error for offset, error in zip(offsets, errors, strict=True)],
        [offset + error for offset, error in zip(offsets, errors, strict=True)],
        step="post",
        alpha=0.25,
        color=_GREEN,
        linewidth=0,
        label="possible offsets",
    )
    axes.plot(times, offsets, color=_GREEN, drawstyle="steps-post", label="midpoint")


def _draw_error_bars(
    axes: Axes, times: list[float], offsets: list[float], errors: list[float]
) -> None:
    axes.errorbar(
        times,
        offsets,
        yerr=errors,
        fmt="o",
        color=_GREEN,
        markersize=4,
        capsize=3,
        linewidth=1,
    )


def _unit(nanoseconds: float) -> tuple[int, str]:
    """The unit for numbers of this size: its nanoseconds, and its symbol."""
    for factor, symbol in ((SECOND, "s"), (SECOND // 1000, "ms")):
        if abs(nanoseconds) >= factor:
            return factor, symbol
    return SECOND // 10**6, "µs"


def _axis_unit(values: Sequence[float], *, logarithmic: bool) -> tuple[int, str]:
    """The unit for an axis that shows these numbers of nanoseconds, most of them above 1."""
    low, high = min(values), max(values)
    return _unit(sqrt(low * high) if logarithmic else high)


def _edges(low: float, high: float, bins: int) -> list[float]:
    """Edges of the bins of a histogram, which look equally wide on its axis.

    @param low: start of the first bin on a logarithmic axis; 0 for a linear one.
    """
    if low:
        return [low * (high / low) ** (index / bins) for index in range(bins)] + [high]
    return [(high or 1) * index / bins for index in range(bins)] + [high or 1]


def _set_logarithmic(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers such as 20, not powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _limits(offsets: Sequence[float], bounds: Sequence[float]) -> tuple[float, float]:
    """Limits of the offset axis, which shows all offsets with a narrow bound, and the last one.

    With stamps of whole seconds, the first bound is half a second: it would flatten all the others.
    """
    narrow = _WIDE * min(bounds)
    shown = [(o, b) for o, b in zip(offsets, bounds, strict=True) if b <= narrow]
    shown.append((offsets[-1], bounds[-1]))
    low, high = min(o - b for o, b in shown), max(o + b for o, b in shown)
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def _add_legend(axes: Axes) -> None:
    """Add a legend above the axes, where it covers nothing."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.1,
        ncols=2,
        frameon=False,
        fontsize="small",
    )
