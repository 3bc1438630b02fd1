"""Plot the results of a run, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from statistics import median

ORDER = ("C", "bare", "tsecho", "Go", "uvloop", "Twisted", "streams", "asyncio", "lab")

Results = dict[str, dict[str, list[dict[str, float]]]]


def plot(results: Results, file: Path) -> None:
    """Draw the cost of a message for each server, in each case that counts messages.

    @param file: where the picture goes; its suffix selects SVG or PNG.
    """
    from matplotlib.figure import Figure  # only --plot needs the extra

    cases = {name: by for name, by in results.items() if "rate" in by["tsecho"][0]}
    columns = 3
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(3.6 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (name, by_server) in zip(axes, cases.items(), strict=False):
        servers = [server for server in reversed(ORDER) if server in by_server]
        costs = [median(one["cost"] for one in by_server[server]) for server in servers]
        colours = ["#1f6f8b" if server == "tsecho" else "#c9d6df" for server in servers]
        bars = axis.barh(servers, costs, color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlim(0, max(costs) * 1.18)
        axis.tick_params(labelsize=7, length=0)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
    for axis in figure.axes[len(cases) :]:
        axis.remove()
    figure.suptitle("Processor time of the server per message, in microseconds", fontsize=10)
    figure.savefig(file)
