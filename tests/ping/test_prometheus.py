"""Tests for `timestamp_echo.ping.prometheus`."""

from __future__ import annotations

import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.ping.fixtures import MILLISECOND, add_stamps, stats_of
from tests.system.running import needs
from timestamp_echo.ping.prometheus import format_metrics
from timestamp_echo.ping.stats import Host, Stats
from timestamp_echo.stamps import SECOND


def fleet() -> list[Host]:
    """A server that was measured, and one that could not be reached and has a strange name."""
    stats = stats_of(MILLISECOND, 2 * MILLISECOND, lost=1)
    add_stamps(stats, *((SECOND + n * 50, 1) for n in range(100)), rtt=MILLISECOND)
    return [Host("a:3000", stats), Host('unix:/"\\\n', Stats(), "refused")]


class PrometheusTests(SynchronousTestCase):
    """`format_metrics`."""

    def test_values(self) -> None:
        """Seconds; what is not known is left out; quotes in a name are escaped."""
        text = format_metrics(fleet())
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        self.assertEqual(
            {name: value for name, value in values.items() if "a:3000" not in name},
            {
                'tsecho_ping_up{server="unix:/\\"\\\\\\n"}': "0",
                'tsecho_ping_probes_sent{server="unix:/\\"\\\\\\n"}': "0",
                'tsecho_ping_probes_lost{server="unix:/\\"\\\\\\n"}': "0",
            },
        )
        measured = {
            name.removesuffix('{server="a:3000"}').removeprefix("tsecho_ping_"): float(value)
            for name, value in values.items()
            if "a:3000" in name
        }
        offset, bound = measured.pop("offset_seconds"), measured.pop("offset_bound_seconds")
        self.assertLess(abs(offset - 1), bound)
        self.assertLess(bound, 0.001)
        self.assertLess(abs(measured.pop("drift_ratio")), 1e-4)
        self.assertEqual(
            measured,
            {
                "up": 1,
                "probes_sent": 3,
                "probes_lost": 1,
                "rtt_min_seconds": 0.001,
                "rtt_avg_seconds": 0.0015,
                "rtt_max_seconds": 0.002,
            },
        )

    def test_promtool(self) -> None:
        """Prometheus's own checker has nothing to say about it."""
        done = subprocess.run(
            [needs("promtool"), "check", "metrics"],
            input=format_metrics(fleet()).encode(),
            capture_output=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, b""))
