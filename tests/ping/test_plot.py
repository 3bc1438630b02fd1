"""Tests for `timestamp_echo.ping.plot`: a picture is drawn, of what there is to see."""

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

from tests.ping.outcomes import MILLISECOND, answered, lost, outcome_of
from tests.ping.simulation import START, Server, fixed, heavy_tailed
from timestamp_echo.ping import plot
from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.plot import Plot
from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.stamps import SECOND

INSTALLED = find_spec("matplotlib") is not None

NAME = "host:1"

WAY = fixed(10 * MILLISECOND, 10 * MILLISECOND)

NAMELESS = Server(0)
"""One whose stamps are of whole seconds."""


def told(plot: Plot, count: int, server: Server | None, way: Any = WAY, losses: int = 0) -> None:
    """Tell of a run, the last probes of which are lost."""
    random, outcome, at = Random(1), Outcome(), START
    for number in range(1, count + 1):
        at = outcome.clock.aim(at + SECOND // 2)
        there, back = way(random)
        outcome.sent += 1
        probe = Probe(number, at, at)
        if number > count - losses:
            plot.lost(probe, outcome)
            continue
        probe.received = at + there + back
        if server:
            outcome.clock.add(Sample(at, probe.received, server.stamp(at + there)))
        plot.answered(probe, outcome)


class RefusalTests(SynchronousTestCase):
    """What can't be drawn is known before anything is sent."""

    def test_kind(self) -> None:
        """A name that ends with neither kind."""
        for path in ("x", "x.jpg", "png", "x.png.", ""):
            error = self.assertRaises(ValueError, Plot, path)
            self.assertEqual(
                str(error), f"expected a name that ends with .png or .svg, not {path!r}"
            )

    def test_folder(self) -> None:
        """A file in a folder that is not there, and a folder."""
        os.makedirs(folder := self.mktemp() + ".png")
        for path in ("/nonexistent/x.png", folder):
            error = self.assertRaises(ValueError, Plot, path)
            self.assertIn("expected a file in a folder that is there", str(error))

    def test_not_installed(self) -> None:
        """Without matplotlib the extra is named."""
        with patch.dict(sys.modules, {"matplotlib": None}):
            error = self.assertRaises(ValueError, Plot, "x.png")
        self.assertEqual(str(error), "it needs the extra 'plot': pip install 'tsecho[plot]'")


class PlotTestCase(SynchronousTestCase):
    """What these tests ask."""

    def setUp(self) -> None:
        """Without matplotlib there is nothing to test."""
        if not INSTALLED:
            raise SkipTest("matplotlib is not installed: the extra 'plot'")

    def plot(self, kind: str = ".png") -> Plot:
        """To a file of its own."""
        self.path = Path(self.mktemp() + kind)
        return Plot(str(self.path))

    def panes(
        self, count: int, server: Server | None, way: Any = WAY, losses: int = 0
    ) -> list[Any]:
        """The panes of the picture of a run."""
        plot = self.plot()
        told(plot, count, server, way, losses)
        plot.draw(NAME)
        return list(plot._figure(NAME).axes)

    def labels(self, pane: Any) -> list[str]:
        """What its legend says."""
        return [text.get_text() for text in pane.get_legend().get_texts()]


class FileTests(PlotTestCase):
    """The file."""

    def test_png(self) -> None:
        """A PNG of the size that is said, with something on it."""
        from matplotlib.image import imread

        for server, rows in ((None, 1), (NAMELESS, 2)):
            plot = self.plot()
            told(plot, 12, server, losses=2)
            plot.draw(NAME)
            self.assertEqual(self.path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
            picture = imread(self.path)
            self.assertEqual(picture.shape[1], 1200)
            self.assertEqual(picture.shape[0], int(120 * (0.5 + 3.2 * rows)))
            self.assertLess(picture[..., :3].min(), 0.1)

    def test_svg(self) -> None:
        """An SVG, which is well-formed."""
        plot = self.plot(".svg")
        told(plot, 12, NAMELESS, losses=2)
        plot.draw("<&>")
        root = ElementTree.parse(self.path).getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")

    def test_many(self) -> None:
        """With very many probes an SVG has a picture of them, and stays small."""
        self.patch(plot, "_MANY", 100)
        sizes = []
        for count in (100, 1000):
            drawn = self.plot(".svg")
            told(drawn, count, None, heavy_tailed(MILLISECOND))
            drawn.draw(NAME)
            sizes.append(b"<image" in self.path.read_bytes())
        self.assertEqual(sizes, [False, True])

    def test_any_name(self) -> None:
        """A name that TeX would read otherwise is written as it is."""
        plot = self.plot()
        told(plot, 2, None)
        plot.draw("unix:$\\x$_^")

    def test_not_written(self) -> None:
        """Where the file can't be made, that is an OSError."""
        os.makedirs(folder := self.mktemp())
        plot = Plot(f"{folder}/x.png")
        told(plot, 1, None)
        os.rmdir(folder)
        self.assertRaises(OSError, plot.draw, NAME)


class RoundTripTests(PlotTestCase):
    """The panes of round trips."""

    def test_plain(self) -> None:
        """Without a stamp there are the round trips and their distribution alone."""
        trips, spread = self.panes(12, None, losses=2)
        self.assertEqual(self.labels(trips), ["answered: 10", "lost: 2"])
        self.assertEqual(trips.get_ylabel(), "round trip, ms")
        dots, crosses = trips.lines
        self.assertEqual(list(dots.get_ydata()), [20] * 10)
        self.assertEqual(list(dots.get_xdata()), [i / 2 for i in range(10)])
        self.assertEqual(list(crosses.get_xdata()), [5, 5.5])
        self.assertEqual(trips.get_ylim()[0], 0)
        self.assertEqual(sum(bar.get_width() for bar in spread.patches), 10)

    def test_none_lost(self) -> None:
        """Nothing is said of losses where there are none."""
        trips, _ = self.panes(2, None)
        self.assertEqual(self.labels(trips), ["answered: 2"])

    def test_none_answered(self) -> None:
        """When all are lost, when; and no scale for what isn't there."""
        trips, spread = self.panes(3, None, losses=3)
        self.assertEqual(self.labels(trips), ["answered: 0", "lost: 3"])
        self.assertEqual(trips.get_ylabel(), "no reply")
        self.assertEqual(list(trips.get_yticks()), [])
        self.assertEqual(len(spread.patches), 0)

    def test_nothing(self) -> None:
        """A run that ended before it began has an empty picture."""
        self.assertEqual(len(self.panes(0, None)), 2)

    def test_units(self) -> None:
        """As large as they are."""
        for half, unit in ((20_000, "µs"), (MILLISECOND, "ms"), (SECOND, "s"), (0, "µs")):
            trips, _ = self.panes(3, None, fixed(half, half))
            self.assertEqual(trips.get_ylabel(), f"round trip, {unit}")

    def test_far_out(self) -> None:
        """Where one is far out the axis is logarithmic; all are still to be seen and counted."""
        plot = self.plot()
        outcome = outcome_of(0)
        trips = [MILLISECOND, 2 * MILLISECOND, 2 * MILLISECOND, SECOND]
        for number, trip in enumerate(trips, 1):
            plot.answered(answered(number, trip), outcome)
        pane, spread = plot._figure(NAME).axes
        self.assertEqual(pane.get_yscale(), "log")
        low, high = pane.get_ylim()
        self.assertLess(low, 1)
        self.assertGreater(high, 1000)
        self.assertEqual(sum(bar.get_width() for bar in spread.patches), 4)
        ticks = pane.yaxis.get_major_formatter()
        self.assertEqual(ticks(20), "20")

    def test_most(self) -> None:
        """No more than that are kept, be they answered or lost."""
        self.patch(plot, "MOST", 3)
        drawn = self.plot()
        outcome = Outcome(sent=100)
        for number in (1, 3, 4):
            drawn.answered(answered(number), outcome)
        for number in (3, 4, 5):
            drawn.lost(lost(number), outcome)
        drawn.happened("connected again")
        self.assertEqual((len(drawn._times), len(drawn._trips), len(drawn._lost)), (2, 2, 1))


class ClockTests(PlotTestCase):
    """The panes of the clock."""

    def test_converges(self) -> None:
        """The first bound of half a second does not flatten the last, of a hundredth."""
        *_, clock, bound = self.panes(16, Server(333 * MILLISECOND))
        low, high = clock.get_ylim()
        self.assertLess(high - low, 300)
        self.assertLess(low, 323)
        self.assertGreater(high, 343)
        self.assertGreater(abs(clock.lines[0].get_ydata()[0] - 333), 100)
        self.assertLess(abs(clock.lines[0].get_ydata()[-1] - 333), 15)
        self.assertEqual(clock.get_ylabel(), "ahead of ours, ms")
        self.assertEqual(self.labels(clock), ["where it may be", "the middle of that"])
        self.assertEqual(bound.get_yscale(), "log")
        self.assertEqual(bound.get_ylabel(), "± ms")
        (known,) = bound.lines
        self.assertGreater(max(known.get_ydata()), 490)
        self.assertLess(min(known.get_ydata()), 15)

    def test_one(self) -> None:
        """One reply is a dot and its bound."""
        *_, clock, bound = self.panes(1, Server(5 * MILLISECOND, 1))
        low, high = clock.get_ylim()
        self.assertTrue(low < -5 < 15 < high)
        self.assertEqual(len(clock.containers), 1)
        self.assertEqual(bound.get_ylim()[0], 0)

    def test_far_ahead(self) -> None:
        """One that is an hour ahead is drawn from there, for the axis to have short numbers."""
        *_, clock, _ = self.panes(3, Server(-3600 * SECOND, 1))
        self.assertEqual(clock.get_ylabel(), "ahead of ours,\nms from -3600.000000 s")
        low, high = clock.get_ylim()
        self.assertTrue(-20 < low < -10 < 10 < high < 20)

    def test_step(self) -> None:
        """A clock that is set is seen before and after."""
        steps = ((START + 10 * SECOND, 2 * SECOND),)
        *_, clock, _ = self.panes(60, Server(0, 1, 0, 0, steps))
        low, high = clock.get_ylim()
        self.assertLess(low, 0)
        self.assertGreater(high, 2)
        self.assertEqual(clock.get_ylabel(), "ahead of ours, s")

    def test_long(self) -> None:
        """Of many offsets as many are drawn as can be seen, with the last; and without dots."""
        self.patch(plot, "_POINTS", 50)
        *_, clock, _ = self.panes(1000, Server(MILLISECOND, 1), losses=1)
        middle = clock.lines[0]
        self.assertLessEqual(len(middle.get_xdata()), 51)
        self.assertEqual(middle.get_xdata()[-1], 499.5)
        self.patch(plot, "_POINTS", 1000)
        *_, clock, _ = self.panes(1000, Server(MILLISECOND, 1))
        self.assertEqual(len(clock.containers), 0)
