"""The picture of `tsecho ping --plot`: round trips over time, their distribution, the clock.

Draws with matplotlib, of the extra `plot`, and loads it only when it is asked to.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.stamps import SECOND

MOST = 10**6
"""Probes that are drawn; what comes after so many is not."""

KINDS = (".png", ".svg")
"""What the file's name may end with: that says what it is."""

# Okabe and Ito's colours, which the colour-blind can tell apart.
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"

_BARS = 40
_FEW = 100  # probes that are drawn as large dots, and their bounds one by one
_MANY = 10_000  # probes from which on an SVG has their picture, not each of them
_POINTS = 4000  # of a line: more than the picture is wide
_FAR_OUT = 20  # times the median: the axis is logarithmic, or all but such a one would be flat
_WIDE = 8  # times the least bound: an offset that is not known any better sets no limit
_AWAY = 20  # times as far as the pane is high: the offset is drawn from where it ends


class Plot:
    """What is to be drawn, as it comes.

    @param path: the file that it is for.
    @raise ValueError: the name is of another kind, its folder is not there, or matplotlib is not
        installed.
    """

    def __init__(self, path: str) -> None:
        if not path.endswith(KINDS):
            raise ValueError(f"expected a name that ends with {' or '.join(KINDS)}, not {path!r}")
        if not Path(path).parent.is_dir() or Path(path).is_dir():
            raise ValueError(f"expected a file in a folder that is there, not {path!r}")
        try:
            import matplotlib as mpl
        except ImportError as error:
            raise ValueError("it needs the extra 'plot': pip install 'tsecho[plot]'") from error
        mpl.use("agg")
        self._path = path
        self._first = 0
        # Seconds, from the first probe told of; and nanoseconds.
        self._times, self._trips, self._lost = array("d"), array("d"), array("d")
        self._clock: list[array[float]] = [array("d"), array("d"), array("d")]

    def answered(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness.answered`."""
        if probe.number > MOST:
            return
        self._times.append(self._time(probe))
        self._trips.append(probe.round_trip)
        if offset := outcome.offset:
            now = self._time(probe), offset.nanoseconds, offset.bound
            for values, value in zip(self._clock, now, strict=True):
                values.append(value)

    def lost(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness.lost`."""
        if probe.number <= MOST:
            self._lost.append(self._time(probe))

    def happened(self, words: str) -> None:
        """See `Witness.happened`: what changed is to be seen."""

    def _time(self, probe: Probe) -> float:
        self._first = self._first or probe.sent
        return (probe.sent - self._first) / SECOND

    def draw(self, name: str) -> None:
        """Write the file.

        @raise OSError: it can't be written.
        """
        self._figure(name).savefig(Path(self._path), dpi=120)

    def _figure(self, name: str) -> Any:
        from matplotlib.figure import Figure

        rows = 2 if self._clock[0] else 1
        figure = Figure(figsize=(10, 0.5 + 3.2 * rows), layout="constrained")
        figure.suptitle(f"tsecho ping {name}", parse_math=False)
        grid = figure.add_gridspec(rows, 2, width_ratios=(3, 1))
        trips = figure.add_subplot(grid[0, 0])
        self._draw_trips(trips, figure.add_subplot(grid[0, 1], sharey=trips))
        panes = [trips]
        if self._clock[0]:
            clock = figure.add_subplot(grid[1, 0], sharex=trips)
            bound = figure.add_subplot(grid[1, 1])
            self._draw_clock(clock)
            self._draw_bounds(bound)
            panes = [clock, bound]
        for pane in panes:
            pane.set_xlabel("time, s")
        for pane in figure.axes:
            pane.grid(alpha=0.3)
        return figure

    def _draw_trips(self, pane: Any, spread: Any) -> None:
        factor, unit = _unit(median(self._trips) if self._trips else SECOND // 1000)
        trips = [trip / factor for trip in self._trips]
        few, many = len(trips) <= _FEW, len(trips) > _MANY
        label = f"answered: {len(trips)}"
        size, alpha = (6, 1) if few else (3, 0.5)
        pane.plot(
            self._times,
            trips,
            "o",
            color=_BLUE,
            markersize=size,
            alpha=alpha,
            markeredgewidth=0,
            label=label,
            rasterized=many,
        )
        if self._lost:
            pane.plot(
                self._lost,
                [0.96] * len(self._lost),
                "x" if len(self._lost) <= _FEW else "|",
                color=_RED,
                markersize=6,
                label=f"lost: {len(self._lost)}",
                transform=pane.get_xaxis_transform(),
                rasterized=many,
            )
        far_out = bool(trips) and 0 < min(trips) < _FAR_OUT * median(trips) < max(trips)
        if far_out:
            _logarithmic(pane)
            pane.set_ylim(0.8 * min(trips), 2 * max(trips))
        elif trips:
            pane.set_ylim(0, 1.15 * max(trips) or 1)  # with room for what is lost
        else:
            pane.set(ylim=(0, 1), yticks=[])
        pane.set_title("Round trips", loc="left")
        pane.set_ylabel(f"round trip, {unit}" if trips else "no reply")
        _explain(pane)
        if trips:
            bins = _edges(min(trips) if far_out else 0, max(trips), _BARS // 2 if few else _BARS)
            spread.hist(trips, bins=bins, orientation="horizontal", color=_BLUE)
        spread.set_title("Their distribution", loc="left")
        spread.set_xlabel("probes")
        spread.xaxis.get_major_locator().set_params(integer=True, nbins=4, min_n_ticks=1)
        spread.tick_params(labelleft=False, which="both")

    def _known(self) -> list[list[float]]:
        """When, how far, how well: each until the next reply, and the last until the end."""
        every = -(-len(self._clock[0]) // _POINTS)
        times, *others = ([*values[::every], values[-1]] for values in self._clock)
        times[-1] = max([times[-1], *self._lost])
        return [times, *others]

    def _draw_clock(self, pane: Any) -> None:
        times, offsets, bounds = self._known()
        low, high = _limits(offsets, bounds)
        factor, unit = _unit((high - low) / 2)
        away = abs(offsets[-1]) > _AWAY * (high - low)
        base = factor * round(offsets[-1] / factor) if away else 0
        middle = [(offset - base) / factor for offset in offsets]
        least = [(o - base - b) / factor for o, b in zip(offsets, bounds, strict=True)]
        most = [(o - base + b) / factor for o, b in zip(offsets, bounds, strict=True)]
        pane.fill_between(
            times,
            least,
            most,
            step="post",
            alpha=0.25,
            color=_GREEN,
            linewidth=0,
            label="where it may be",
        )
        pane.plot(times, middle, color=_GREEN, drawstyle="steps-post", label="the middle of that")
        if len(times) <= _FEW:
            pane.errorbar(
                times[:-1],
                middle[:-1],
                yerr=[bound / factor for bound in bounds[:-1]],
                fmt="o",
                color=_GREEN,
                markersize=4,
                capsize=3,
                linewidth=1,
            )
        pane.set_ylim((low - base) / factor, (high - base) / factor)
        pane.ticklabel_format(axis="y", useOffset=False, style="plain")
        pane.set_title("Server's clock", loc="left")
        ahead = f"ahead of ours,\n{unit} from {base / SECOND:+.6f} s"
        pane.set_ylabel(ahead if base else f"ahead of ours, {unit}")
        _explain(pane)

    def _draw_bounds(self, pane: Any) -> None:
        times, _, bounds = self._known()
        factor, unit = _unit(min(bounds))
        pane.plot(
            times,
            [bound / factor for bound in bounds],
            color=_GREEN,
            drawstyle="steps-post",
            marker="o" if len(times) <= _FEW else "",
            markersize=4,
        )
        if max(bounds) > _WIDE * min(bounds):
            _logarithmic(pane)
        else:
            pane.set_ylim(0, 1.15 * max(bounds) / factor)
        pane.set_title("How well it is known", loc="left")
        pane.set_ylabel(f"± {unit}")
        pane.xaxis.get_major_locator().set_params(nbins=4)


def _unit(nanoseconds: float) -> tuple[int, str]:
    """The unit that suits such a number: so many nanoseconds, and its name."""
    for factor, name in ((SECOND, "s"), (SECOND // 1000, "ms")):
        if abs(nanoseconds) >= factor:
            return factor, name
    return SECOND // 10**6, "µs"


def _edges(least: float, most: float, bars: int) -> list[float]:
    """Where the bars of the distribution begin, and where the last ends: as high as each other.

    @param least: where the first begins; the axis is logarithmic, unless it is 0.
    """
    if least:
        return [least * (most / least) ** (index / bars) for index in range(bars)] + [most]
    return [(most or 1) * index / bars for index in range(bars)] + [most or 1]


def _logarithmic(pane: Any) -> None:
    """Make the axis so, with numbers as one writes them: 20, not 2 times 10 to the 1."""
    from matplotlib.ticker import LogLocator, NullFormatter

    pane.set_yscale("log")
    pane.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    pane.yaxis.set_major_formatter("{x:g}")
    pane.yaxis.set_minor_formatter(NullFormatter())


def _limits(offsets: Sequence[float], bounds: Sequence[float]) -> tuple[float, float]:
    """From where to where the offset is drawn: what is known well is, before and after a step.

    The first bound of half a second, of a clock of whole seconds, would flatten all that follows.
    """
    enough = _WIDE * min(bounds)
    known = [(o, b) for o, b in zip(offsets, bounds, strict=True) if b <= enough]
    known.append((offsets[-1], bounds[-1]))  # what is known in the end is seen whole
    low, high = min(o - b for o, b in known), max(o + b for o, b in known)
    room = 0.1 * (high - low) or 1.0
    return low - room, high + room


def _explain(pane: Any) -> None:
    """A legend above the pane, where it hides nothing."""
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1}
    pane.legend(**place, ncols=2, frameon=False, fontsize="small")
