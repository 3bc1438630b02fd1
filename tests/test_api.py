"""Tests of the public names: what `timestamp_echo` itself exports."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo


class PublicAPITests(SynchronousTestCase):
    """The names in `timestamp_echo.__all__`."""

    def test_all(self) -> None:
        """Each public name is there, and is the one that its module defines."""
        for name in timestamp_echo.__all__:
            self.assertIsNotNone(getattr(timestamp_echo, name), name)
            self.assertIn(name, [*timestamp_echo._MODULES, "__version__"])
        from timestamp_echo.server.protocol import TimestampEchoFactory

        self.assertIs(timestamp_echo.TimestampEchoFactory, TimestampEchoFactory)

    def test_no_other_name(self) -> None:
        """A name that is not public is missing, as in any module."""
        with self.assertRaises(AttributeError) as raised:
            timestamp_echo.Echo  # type: ignore[attr-defined]  # noqa: B018  # raises
        self.assertIn("'timestamp_echo' has no attribute 'Echo'", str(raised.exception))

    def test_without_twisted(self) -> None:
        """The version, the stamps and the framings import no Twisted: a build may have none."""
        code = (
            "import sys; from timestamp_echo import __version__, LineFraming, Stamp, parse;"
            "sys.exit('twisted' in sys.modules)"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", code], check=False).returncode, 0)
