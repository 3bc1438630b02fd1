"""Tests of the manual pages: that they are up to date, and what man(1) makes of them."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo
from tests.system.running import needs, run

ROOT = Path(timestamp_echo.__file__).parent.parent
FOLDER = ROOT / "man"

PAGES = {
    "tsecho.1": "tsecho - send lines and print their timestamps",
    "tsecho-ping.1": "tsecho-ping - measure round trips and clock offsets",
    "tsecho-server.7": "tsecho-server - the timestamp echo service",
}
"""The pages, and what apropos(1) shows of them."""


class ManualPageTests(SynchronousTestCase):
    """The pages in `man/`."""

    def setUp(self) -> None:
        """Only a source tree has the pages."""
        if not FOLDER.exists():
            raise SkipTest("not run from the project's source tree")

    def test_up_to_date(self) -> None:
        """They are what Sphinx makes of the reference; `python docs/manpages.py` writes them."""
        first, _, _ = (FOLDER / "tsecho.1").read_text().partition("\n")
        writers = dict(re.findall(r"(sphinx|docutils) ([\d.]*\d)", first.lower()))
        self.assertEqual(len(writers), 2, first)
        for package, wrote in writers.items():
            try:
                installed = version(package)
            except PackageNotFoundError:
                raise SkipTest(f"{package} is not installed") from None
            if installed != wrote:
                raise SkipTest(f"written with {package} {wrote}, not {installed}")
        folder = Path(self.mktemp())
        done = run([sys.executable, ROOT / "docs" / "manpages.py", folder])
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertEqual({path.name for path in folder.iterdir()}, set(PAGES))
        for name in PAGES:
            self.assertEqual((folder / name).read_text(), (FOLDER / name).read_text(), name)

    def test_rendered(self) -> None:
        """Each is shown without a warning, in a narrow window too, with its usual sections."""
        man = needs("man")
        for name in PAGES:
            for width in ("60", "80", "200"):
                environment = os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": width}
                done = run([man, "--warnings", "-l", FOLDER / name], env=environment)
                self.assertEqual((done.returncode, done.stderr.decode()), (0, ""), name)
                text = done.stdout.decode()
                headings = re.findall(r"(?m)^[A-Z][A-Z ]+$", text)
                self.assertEqual(headings[:3], ["NAME", "SYNOPSIS", "DESCRIPTION"], name)
                self.assertIn("SEE ALSO", headings, name)

    def test_found(self) -> None:
        """The database of apropos(1) has each with its one line."""
        lexgrog = needs("lexgrog")
        for name, line in PAGES.items():
            done = run([lexgrog, FOLDER / name])
            self.assertEqual(done.stdout.decode(), f'{FOLDER / name}: "{line}"\n')
