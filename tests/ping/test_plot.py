"""Tests for `timestamp_echo.ping.plot`: files, axes and what is drawn on them."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any
from unittest import SkipTest
from unittest.mock import patch
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import MILLISECOND, add_stamps, answered, lost, stats_of
from tests.ping.simulation import START, Delays, Server, fixed, heavy_tailed
from timestamp_echo.ping import plot
from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.plot import FleetPlot, Plot
from timestamp_echo.ping.stats import Phases, Probe, Stats
from timestamp_echo.stamps import SECOND

INSTALLED = find_spec("matplotlib") is not None

NAME = "host:1"

DELAYS = fixed(10 * MILLISECOND, 10 * MILLISECOND)

COARSE = Server(0)
"""A server whose stamps have whole seconds."""


def notify(
    plot: Plot, count: int, server: Server | None, delays: Delays = DELAYS, losses: int = 0
) -> None:
    """Notify a plot of a run whose last probes are lost."""
    random, stats, at = Random(1), Stats(), START
    for number in range(1, count + 1):
        at += SECOND // 2
        aimed = stats.clock.aim(at, at + SECOND)
        at = aimed or at
        there, back = delays(random)
        stats.sent += 1
        probe = Probe(number, at, at)
        if number > count - losses:
            plot.lost(probe, stats)
            continue
        probe.received = at + there + back
        if server:
            sample = Sample(at, probe.received, server.stamp(at + there))
            stats.clock.add(sample, aimed=aimed is not None)
        plot.answered(probe, stats)


class ArgumentTests(SynchronousTestCase):
    """A file that cannot be drawn is refused before anything is sent."""

    def test_kind(self) -> None:
        """The name has to end with a supported suffix."""
        for path in ("x", "x.jpg", "png", "x.png.", ""):
            error = self.assertRaises(ValueError, Plot, path)
            self.assertEqual(
                str(error), f"expected a name that ends with .png or .svg, not {path!r}"
            )

    def test_folder(self) -> None:
        """The folder has to exist, and the path must not be a folder."""
        os.makedirs(folder := self.mktemp() + ".png")
        for path in ("/nonexistent/x.png", folder):
            error = self.assertRaises(ValueError, Plot, path)
            self.assertIn("expected a file in an existing folder", str(error))

    def test_not_installed(self) -> None:
        """Without matplotlib the message names the package and the extra."""
        with patch.dict(sys.modules, {"matplotlib": None}):
            error = self.assertRaises(ValueError, Plot, "x.png")
        self.assertEqual(
            str(error),
            "needs the package matplotlib (the extra 'plot' of tsecho), which is not installed",
        )


class PlotTestCase(SynchronousTestCase):
    """Runs, and their figures."""

    def setUp(self) -> None:
        """Skip without matplotlib."""
        if not INSTALLED:
            raise SkipTest("matplotlib is not installed: the extra 'plot'")

    def plot(self, kind: str = ".png") -> Plot:
        """A plot with its own file."""
        self.path = Path(self.mktemp() + kind)
        return Plot(str(self.path))

    def axes(
        self, count: int, server: Server | None, delays: Delays = DELAYS, losses: int = 0
    ) -> list[Any]:
        """The axes of the figure of a run."""
        plot = self.plot()
        notify(plot, count, server, delays, losses)
        return self.drawn(plot)

    def drawn(self, plot: Plot) -> list[Any]:
        """The axes of a figure that has been drawn.

        They are Any, because matplotlib types what they contain by base classes.
        """
        figure = plot._figure(NAME)
        # Drawing can fail as well. The layout takes most of its time; `FileTests` cover it.
        figure.set_layout_engine("none")
        figure.draw_without_rendering()
        return list(figure.axes)

    def labels(self, axes: Any) -> list[str]:
        """The labels in the legend of axes."""
        return [text.get_text() for text in axes.get_legend().get_texts()]


class FileTests(PlotTestCase):
    """Files."""

    def test_png(self) -> None:
        """A PNG has the expected size, and is not empty."""
        from matplotlib.image import imread

        for server, rows in ((None, 1), (COARSE, 2)):
            plot = self.plot()
            notify(plot, 12, server, losses=2)
            plot.draw(NAME)
            self.assertEqual(self.path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
            image = imread(self.path)
            self.assertEqual(image.shape[1], 1200)
            self.assertEqual(image.shape[0], int(120 * (0.5 + 3.2 * rows)))
            self.assertLess(image[..., :3].min(), 0.1)

    def test_svg(self) -> None:
        """An SVG is well-formed."""
        plot = self.plot(".svg")
        notify(plot, 12, COARSE, losses=2)
        plot.draw("<&>")
        root = ElementTree.parse(self.path).getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")

    def test_many(self) -> None:
        """With very many probes an SVG contains a bitmap of them, and stays small."""
        self.patch(plot, "_MANY", 100)
        sizes = []
        for count in (100, 1000):
            drawn = self.plot(".svg")
            notify(drawn, count, None, heavy_tailed(MILLISECOND))
            drawn.draw(NAME)
            sizes.append(b"<image" in self.path.read_bytes())
        self.assertEqual(sizes, [False, True])

    def test_any_name(self) -> None:
        """A name is not interpreted as TeX."""
        plot = self.plot()
        notify(plot, 2, None)
        plot.draw("unix:$\\x$_^")

    def test_not_written(self) -> None:
        """A file that cannot be written raises OSError."""
        os.makedirs(folder := self.mktemp())
        plot = Plot(f"{folder}/x.png")
        notify(plot, 1, None)
        os.rmdir(folder)
        self.assertRaises(OSError, plot.draw, NAME)


class RoundTripTests(PlotTestCase):
    """The axes of round trips."""

    def test_plain(self) -> None:
        """Without stamps there are only the round trips and their distribution."""
        trips, spread = self.axes(12, None, losses=2)
        self.assertEqual(self.labels(trips), ["answered: 10", "lost: 2"])
        self.assertEqual(trips.get_ylabel(), "round trip, ms")
        dots, crosses = trips.lines
        self.assertEqual(list(dots.get_ydata()), [20] * 10)
        self.assertEqual(list(dots.get_xdata()), [i / 2 for i in range(10)])
        self.assertEqual(list(crosses.get_xdata()), [5, 5.5])
        self.assertEqual(trips.get_ylim()[0], 0)
        self.assertEqual(sum(bar.get_width() for bar in spread.patches), 10)

    def test_none_lost(self) -> None:
        """Without losses the legend does not mention them."""
        trips, _ = self.axes(2, None)
        self.assertEqual(self.labels(trips), ["answered: 2"])

    def test_none_answered(self) -> None:
        """If all probes are lost, their times are drawn, and the axis has no scale."""
        trips, spread = self.axes(3, None, losses=3)
        self.assertEqual(self.labels(trips), ["answered: 0", "lost: 3"])
        self.assertEqual(trips.get_ylabel(), "no replies")
        self.assertEqual(list(trips.get_yticks()), [])
        self.assertEqual(len(spread.patches), 0)

    def test_nothing(self) -> None:
        """A run without probes gives an empty figure."""
        self.assertEqual(len(self.axes(0, None)), 2)

    def test_units(self) -> None:
        """The unit depends on the size of the round trips."""
        for half, unit in ((20_000, "µs"), (MILLISECOND, "ms"), (SECOND, "s"), (0, "µs")):
            trips, _ = self.axes(3, None, fixed(half, half))
            self.assertEqual(trips.get_ylabel(), f"round trip, {unit}")

    def test_outlier(self) -> None:
        """An outlier makes the axis logarithmic; every round trip is visible and counted."""
        plot = self.plot()
        stats = stats_of(0)
        trips = [MILLISECOND, 2 * MILLISECOND, 2 * MILLISECOND, SECOND]
        for number, trip in enumerate(trips, 1):
            plot.answered(answered(number, trip), stats)
        axes, spread = self.drawn(plot)
        self.assertEqual(axes.get_yscale(), "log")
        low, high = axes.get_ylim()
        self.assertLess(low, 1)
        self.assertGreater(high, 1000)
        self.assertEqual(sum(bar.get_width() for bar in spread.patches), 4)
        ticks = axes.yaxis.get_major_formatter()
        self.assertEqual(ticks(20), "20")

    def test_phases(self) -> None:
        """With a connection for each probe there is a line for each phase."""
        plot = self.plot()
        for number in (1, 2):
            probe = answered(number)
            probe.phases = Phases({"lookup": MILLISECOND // 4, "tls": MILLISECOND // 2}, "reply")
            plot.answered(probe, Stats())
        axes = self.drawn(plot)[0]
        self.assertEqual(self.labels(axes), ["answered: 2", "name lookup", "TLS", "reply"])
        values = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
        self.assertEqual(values["TLS"], [0.5, 0.5])
        self.assertEqual(values["reply"], [0.25, 0.25])

    def test_outlier_of_few(self) -> None:
        """What is more than five times the median is an outlier; the unit fits both axes."""
        for longest, scale, unit in ((2_000_000, "linear", "ms"), (2_000_001, "log", "µs")):
            plot = self.plot()
            for number, trip in enumerate((400_000, 400_000, longest), 1):
                plot.answered(answered(number, trip), stats_of(0))
            axes, _ = self.drawn(plot)
            self.assertEqual(axes.get_yscale(), scale)
            self.assertEqual(axes.get_ylabel(), f"round trip, {unit}")

    def test_titles(self) -> None:
        """Titles in plain words."""
        titles = [axes.get_title("left") for axes in self.axes(3, COARSE)]
        self.assertEqual(
            titles,
            ["Round trip", "Distribution of round trips", "Clock offset", "Bound of the offset"],
        )

    def test_max_probes(self) -> None:
        """Probes beyond the maximum are not kept, whether answered or lost."""
        self.patch(plot, "MAX_PROBES", 3)
        drawn = self.plot()
        stats = Stats(sent=100)
        for number in (1, 3, 4):
            drawn.answered(answered(number), stats)
        for number in (3, 4, 5):
            drawn.lost(lost(number), stats)
        drawn.event("reconnected")
        self.assertEqual((len(drawn._times), len(drawn._rtts), len(drawn._lost)), (2, 2, 1))


class ClockTests(PlotTestCase):
    """The axes of the clock."""

    def test_converges(self) -> None:
        """The first bound, half a second, does not flatten the last, a hundredth."""
        *_, clock, bound = self.axes(16, Server(333 * MILLISECOND))
        low, high = clock.get_ylim()
        self.assertLess(high - low, 300)
        self.assertLess(low, 323)
        self.assertGreater(high, 343)
        self.assertGreater(abs(clock.lines[0].get_ydata()[0] - 333), 100)
        self.assertLess(abs(clock.lines[0].get_ydata()[-1] - 333), 15)
        self.assertEqual(clock.get_ylabel(), "server ahead, ms")
        self.assertEqual(self.labels(clock), ["possible offsets", "midpoint"])
        self.assertEqual(bound.get_yscale(), "log")
        self.assertEqual(bound.get_ylabel(), "± ms")
        (known,) = bound.lines
        self.assertGreater(max(known.get_ydata()), 490)
        self.assertLess(min(known.get_ydata()), 15)

    def test_one(self) -> None:
        """One reply is a dot with an error bar."""
        *_, clock, bound = self.axes(1, Server(5 * MILLISECOND, 1))
        low, high = clock.get_ylim()
        self.assertTrue(low < -5 < 15 < high)
        self.assertEqual(len(clock.containers), 1)
        self.assertEqual(bound.get_ylim()[0], 0)

    def test_units(self) -> None:
        """The units fit numbers that are shown: 500 ms are no 500,000 µs."""
        for offset, resolution, units in (
            (0, SECOND, ("server ahead, ms", "± ms")),
            (300_000, 1, ("server ahead, µs", "± µs")),
            (2 * MILLISECOND, 1, ("server ahead, ms", "± µs")),
        ):
            server = Server(offset, resolution)
            *_, clock, bound = self.axes(60, server, fixed(150_000, 150_000))
            self.assertEqual((clock.get_ylabel(), bound.get_ylabel()), units)

    def test_far_ahead(self) -> None:
        """An offset of an hour is drawn relative to it, so that the axis has short numbers."""
        *_, clock, _ = self.axes(3, Server(-3600 * SECOND, 1))
        self.assertEqual(clock.get_ylabel(), "server ahead, ms\nrelative to -3600.000000 s")
        low, high = clock.get_ylim()
        self.assertTrue(-20 < low < -10 < 10 < high < 20)

    def test_step(self) -> None:
        """A step is visible, with the offsets before and after."""
        steps = ((START + 10 * SECOND, 2 * SECOND),)
        *_, clock, _ = self.axes(60, Server(0, 1, 0, 0, steps))
        low, high = clock.get_ylim()
        self.assertLess(low, 0)
        self.assertGreater(high, 2)
        self.assertEqual(clock.get_ylabel(), "server ahead, s")

    def test_long(self) -> None:
        """Of many offsets a subset is drawn that includes the last, without error bars."""
        self.patch(plot, "_MAX_POINTS", 50)
        *_, clock, _ = self.axes(1000, Server(MILLISECOND, 1), losses=1)
        middle = clock.lines[0]
        self.assertLessEqual(len(middle.get_xdata()), 51)
        self.assertEqual(middle.get_xdata()[-1], 499.5)
        self.patch(plot, "_MAX_POINTS", 1000)
        *_, clock, _ = self.axes(1000, Server(MILLISECOND, 1))
        self.assertEqual(len(clock.containers), 0)


class FleetTests(PlotTestCase):
    """`FleetPlot`."""

    def fleet(self, servers: int) -> FleetPlot:
        """A figure of some servers, of which the last has sent nothing."""
        self.path = Path(self.mktemp() + ".png")
        figure = FleetPlot(str(self.path))
        for number in range(servers):
            plot = figure.observer(f"host-{number}")
            stats = stats_of()
            if number < servers - 1:
                add_stamps(stats, (number * SECOND, 1), rtt=MILLISECOND, zone=number > 0)
                for probe in (answered(1, late=number * SECOND), answered(2), lost(3)):
                    plot.answered(probe, stats if number else Stats())
        return figure

    def test_lines(self) -> None:
        """A line for each server, with its name, and the possible offsets of its clock."""
        rtts: Any
        rtts, clock = self.fleet(4)._figure().axes
        self.assertEqual(self.labels(rtts), [f"host-{number}" for number in range(4)])
        self.assertEqual([list(line.get_xdata())[:1] for line in rtts.lines], [[0], [1], [2], []])
        self.assertEqual(list(rtts.lines[0].get_ydata())[:2], [1, 1])
        self.assertEqual(len(clock.collections), 2)
        low, high = (
            extent[1] for extent in clock.collections[1].get_datalim(clock.transData).get_points()
        )
        self.assertTrue(1.99 < low < 2 < high < 2.01, (low, high))

    def test_many(self) -> None:
        """The names of very many would fill the figure."""
        self.assertIsNone(self.fleet(21)._figure().axes[0].get_legend())

    def test_files(self) -> None:
        """The file is written; that of one server is as without the others."""
        for servers in (2, 3):
            self.fleet(servers).draw()
            self.assertGreater(self.path.stat().st_size, 10_000)
        one = FleetPlot(str(self.path))
        with patch.object(Plot, "draw") as drawn:
            one.observer("host")
            one.draw()
        drawn.assert_called_once_with("host")
        self.assertRaises(ValueError, FleetPlot, "x.gif")
