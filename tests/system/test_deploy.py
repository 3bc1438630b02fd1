"""The files in `deploy/`, checked by the programs that they are for."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.system.running import BIN, needs, run
from tests.test_deploy import DEPLOY, SERVICES

KUBERNETES = ("1.30", "1.34")
"""The first version of Kubernetes that has `preStop.sleep`, and the first in which it is stable."""


class ToolTests(SynchronousTestCase):
    """Each program finds its file free of errors."""

    def assert_clean(self, *command: str | Path, folder: str | Path | None = None) -> str:
        """Check that a command succeeds; return its standard output."""
        done = run([needs(str(command[0])), *command[1:]], cwd=folder)
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""), done.stdout.decode())
        return done.stdout.decode()

    def units(self) -> Path:
        """A copy of systemd's units, which start this environment's `twistd`."""
        folder = Path(self.mktemp()).absolute()
        shutil.copytree(DEPLOY / "systemd", folder)
        for service in SERVICES:
            file = folder / service
            file.write_text(file.read_text().replace("/opt/tsecho/bin", str(BIN)))
        return folder

    def test_systemd(self) -> None:
        """The units verify without a word, and the services expose little."""
        folder = self.units()
        units = [f"./{path.name.replace('@', '@1')}" for path in sorted(folder.iterdir())]
        output = self.assert_clean("systemd-analyze", "verify", "--man=no", *units, folder=folder)
        self.assertEqual(output, "")
        for service in SERVICES:
            security = ("security", "--offline=true", "--no-pager", f"./{service}")
            output = self.assert_clean("systemd-analyze", *security, folder=folder)
            (level,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d)", output)
            self.assertLessEqual(float(level), 1.5)

    def test_haproxy(self) -> None:
        """HAProxy accepts its configuration, without a warning."""
        output = self.assert_clean("haproxy", "-c", "-f", DEPLOY / "haproxy" / "haproxy.cfg")
        self.assertEqual(output, "Configuration file is valid\n")

    def test_kubernetes(self) -> None:
        """The manifest follows the schemas of Kubernetes, with no unknown field."""
        if not (BIN / "kubernetes-validate").exists():
            raise SkipTest("kubernetes-validate is not installed")
        for version in KUBERNETES:
            done = run(
                [
                    *(sys.executable, BIN / "kubernetes-validate", "--strict"),
                    *("--kubernetes-version", version, DEPLOY / "kubernetes" / "tsecho.yaml"),
                ]
            )
            output = done.stdout.decode()
            self.assertEqual(done.returncode, 0, output)
            kinds = re.findall(
                rf"passed for resource (\w+)/tsecho against version {version}", output
            )
            expected = ["deployment", "service", "poddisruptionbudget", "networkpolicy"]
            self.assertEqual(kinds, expected, output)

    def test_prometheus(self) -> None:
        """Prometheus accepts its configuration and the alerts, which fire when they should."""
        folder = DEPLOY / "prometheus"
        self.assert_clean("promtool", "check", "config", folder / "prometheus.yml")
        self.assert_clean("promtool", "test", "rules", folder / "alerts_test.yml")
