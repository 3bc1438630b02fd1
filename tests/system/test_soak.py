"""A short run of `tests.system.soak`."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.running import PATIENCE, run


class SoakTests(SynchronousTestCase):
    """All attacks at once, for a few seconds."""

    def test_soak(self) -> None:
        """Well-behaved clients get every reply while the service is attacked."""
        done = run(
            [sys.executable, "-m", "tests.system.soak", "--seconds", "4"],
            cwd=Path(__file__).parent.parent.parent,
            timeout=10 * PATIENCE,
        )
        report = done.stdout.decode()
        self.assertEqual(done.returncode, 0, report + done.stderr.decode())
        for kind in ("TCP", "UNIX", "TLS", "PROXY", "UDP"):
            self.assertRegex(report, rf"replies checked:.* \d\d+ {kind},")
        self.assertIn("exit status 0, tracebacks 0, errors 0", report)
