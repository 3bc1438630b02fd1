"""Tests for `timestamp_echo.client.history`."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.client.history import MAX_LINES, History, history_file


class HistoryFileTests(SynchronousTestCase):
    """`history_file`: where the history is kept."""

    def test_default(self) -> None:
        """In the folder for state, by default the one in the home."""
        with patch.dict(os.environ, {"HOME": "/home/someone"}):
            for environment, path in (
                ({}, "/home/someone/.local/state/tsecho/history"),
                ({"XDG_STATE_HOME": ""}, "/home/someone/.local/state/tsecho/history"),
                ({"XDG_STATE_HOME": "relative"}, "/home/someone/.local/state/tsecho/history"),
                ({"XDG_STATE_HOME": "/state"}, "/state/tsecho/history"),
            ):
                self.assertEqual(history_file(environment), Path(path))

    def test_named(self) -> None:
        """A variable names another file; an empty one turns the history off."""
        state = {"XDG_STATE_HOME": "/state"}
        self.assertEqual(history_file({**state, "TSECHO_HISTORY": "a/b"}), Path("a/b"))
        self.assertIsNone(history_file({**state, "TSECHO_HISTORY": ""}))

    def test_no_home(self) -> None:
        """Without a home there is no file: none is made in a folder named `~`."""
        with patch.dict(os.environ, {"HOME": "~"}):
            self.assertIsNone(history_file({}))


class HistoryTests(SynchronousTestCase):
    """`History`: the lines."""

    def setUp(self) -> None:
        """Choose a path in a folder that does not exist yet."""
        self.path = Path(self.mktemp()) / "state" / "history"

    def test_kept(self) -> None:
        """The lines of one run are there in the next, any bytes of them."""
        lines = [b"one", "你 👍".encode(), b"\xff\r\x1b \x0c", b"one"]
        history = History(self.path)
        self.assertEqual(history.lines, [])
        for line in lines:
            self.assertTrue(history.add(line))
        self.assertEqual(history.lines, lines)
        self.assertEqual(History(self.path).lines, lines)

    def test_private(self) -> None:
        """Nobody else can read it."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        History(self.path).add(b"one")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)

    def test_repeated(self) -> None:
        """A line that is the same as the last, in this run or the one before, is not added."""
        history = History(self.path)
        for line, added in ((b"a", True), (b"a", False), (b"", False), (b"b", True), (b"a", True)):
            self.assertEqual(history.add(line), added)
        self.assertFalse(History(self.path).add(b"a"))
        self.assertEqual(self.path.read_bytes(), b"a\nb\na\n")

    def test_limit(self) -> None:
        """The file keeps the last thousand lines."""
        lines = [b"%d" % number for number in range(MAX_LINES + 1)]
        History(self.path)
        self.path.write_bytes(b"".join(line + b"\n" for line in lines))
        history = History(self.path)
        self.assertEqual(history.lines, lines[1:])
        self.assertEqual(self.path.read_bytes().split(), lines[1:])
        history.add(b"more")
        self.assertEqual(History(self.path).lines, [*lines[2:], b"more"])

    def test_two_clients(self) -> None:
        """Two clients at once do not lose each other's lines."""
        one, other = History(self.path), History(self.path)
        one.add(b"a")
        other.add(b"b")
        one.add(b"c")
        self.assertEqual(History(self.path).lines, [b"a", b"b", b"c"])

    def test_no_file(self) -> None:
        """Without a path, or where none can be written, lines are kept in memory."""
        file = Path(self.mktemp())
        file.write_bytes(b"")
        for path in (None, file / "history", Path("/proc/tsecho/history")):
            history = History(path)
            self.assertTrue(history.add(b"a"))
            self.assertEqual(history.lines, [b"a"])
