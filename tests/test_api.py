"""Tests of the public names: what `timestamp_echo` itself exports."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo


class PublicAPITests(SynchronousTestCase):
    """The names in `timestamp_echo.__all__`."""

    def test_all(self) -> None:
        """Each public name can be imported, and is what its module defines."""
        self.assertEqual({*timestamp_echo._MODULES, "__version__"}, set(timestamp_echo.__all__))
        self.assertEqual(sorted(timestamp_echo.__all__), timestamp_echo.__all__)
        for name, module in timestamp_echo._MODULES.items():
            defined = vars(import_module(f"timestamp_echo.{module}"))[name]
            self.assertIs(getattr(timestamp_echo, name), defined)
            self.assertEqual(defined.__module__, f"timestamp_echo.{module}")

    def test_no_other_name(self) -> None:
        """Any other name raises AttributeError, as in any module."""
        with self.assertRaises(AttributeError) as raised:
            timestamp_echo.Echo  # type: ignore[attr-defined]  # noqa: B018  # raises
        self.assertIn("'timestamp_echo' has no attribute 'Echo'", str(raised.exception))

    def test_without_twisted(self) -> None:
        """The version, the stamps and the framings do not import Twisted: a build may lack it."""
        code = (
            "import sys; from timestamp_echo import __version__, LineFraming, Stamp, parse;"
            "sys.exit('twisted' in sys.modules)"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", code], check=False).returncode, 0)
