"""Tests for `timestamp_echo.client.terminal`; `tests/system` has those on real terminals."""

from __future__ import annotations

import errno
import signal
import termios
from io import BytesIO
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass

from tests.fakes import FakeSession
from timestamp_echo.client.history import History
from timestamp_echo.client.terminal import (
    EditedTerminal,
    Readline,
    edited_terminal,
    set_terminal,
)

GREETING = b"Lines go to host:1. An empty line or Ctrl-D ends.\n"


class FakeReadline:
    """An editor that records its calls; `line` is entered by the next key."""

    ends_line = True
    line: bytes | None = None
    entered = True

    def __init__(self) -> None:
        self.calls: list[object] = []

    def remember(self, line: bytes) -> None:
        """See `Readline`."""
        self.calls.append(line)

    def read(self) -> bool:
        """See `Readline`."""
        return self.entered

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


class EditedTerminalTests(SynchronousTestCase):
    """`EditedTerminal`: when a line is edited, and what is sent and shown."""

    def setUp(self) -> None:
        """Start one, with fakes on every side."""
        self.editor = FakeReadline()
        self.output = BytesIO()
        self.reactor = MemoryReactor()
        self.signals: dict[int, Any] = {}
        self.history = History(None)
        self.history.add(b"before")
        self.terminal = EditedTerminal(cast(Readline, self.editor), self.history, self.output)
        self.terminal.session = self.session = FakeSession()
        with (
            patch("signal.signal", self.signals.__setitem__),
            patch("signal.getsignal", {signal.SIGTSTP: signal.SIG_IGN}.get),
        ):
            self.terminal.start("host:1", cast(Any, self.reactor))

    def shown(self) -> bytes:
        """What was written since the last call."""
        data = self.output.getvalue()
        self.output.seek(0)
        self.output.truncate()
        return data

    def enter(self, line: bytes | None) -> None:
        """Enter this line; None is Ctrl-D."""
        self.assertEqual(self.reactor.getReaders(), [self.terminal])
        self.editor.line = line
        self.terminal.doRead()
        self.assertEqual(self.reactor.getReaders(), [])

    def test_interface(self) -> None:
        """It provides `IReadDescriptor`, of standard input."""
        verifyClass(IReadDescriptor, EditedTerminal)
        self.assertEqual((self.terminal.fileno(), self.terminal.logPrefix()), (0, "terminal"))

    def test_start(self) -> None:
        """It greets, hands the history to the editor, and asks for a line."""
        self.assertEqual(self.shown(), GREETING)
        self.assertEqual(self.editor.calls, [b"before", "ask"])

    def test_signals(self) -> None:
        """The reactor acts on signals, between two keys; an ignored one stays ignored."""
        self.assertEqual(set(self.signals), {signal.SIGCONT, signal.SIGWINCH})
        calls: list[Any] = []
        self.reactor.callFromThread = calls.append  # type: ignore[attr-defined]
        for number, act in ((signal.SIGCONT, "resume"), (signal.SIGWINCH, "resize")):
            self.signals[number](number, None)
            calls.pop()()
            self.assertEqual(self.editor.calls.pop(), act)

    def test_line(self) -> None:
        """After each reply it asks for the next line; the line is remembered once."""
        self.shown()
        for _ in range(2):
            self.enter(b"hello")
            self.terminal.replied(b"[] hello\n")
            self.terminal.answered()
        self.assertEqual(self.session.calls, [b"hello\n", b"hello\n"])
        self.assertEqual(self.shown(), b"[] hello\n[] hello\n")
        self.assertEqual(self.editor.calls, [b"before", "ask", b"hello", "ask", "ask"])
        self.assertEqual(self.history.lines, [b"before", b"hello"])

    def test_unfinished(self) -> None:
        """A key that does not end the line changes nothing."""
        self.editor.entered = False
        self.terminal.doRead()
        self.assertEqual(self.reactor.getReaders(), [self.terminal])
        self.assertEqual(self.session.calls, [])

    def test_pasted(self) -> None:
        """Each of several lines is sent when the one before is answered, empty ones as well."""
        self.enter(b"a\n\nb\n")
        for sent in (b"a\n", b"\n", b"b\n"):
            self.assertEqual(self.session.calls.pop(), sent)
            self.assertEqual(self.session.calls, [])
            self.terminal.answered()
        self.assertEqual(self.editor.calls, [b"before", "ask", b"a", b"b", "ask"])

    def test_end(self) -> None:
        """An empty line, or newlines alone, or Ctrl-D ends the session."""
        for line in (b"", b"\n\n", None):
            self.setUp()
            self.shown()
            self.enter(line)
            self.assertEqual(self.session.calls, ["finish"])
            self.assertEqual(self.shown(), b"")
            self.terminal.over("")
            self.assertEqual(self.shown(), b"")
            self.assertEqual(self.successResultOf(self.terminal.ended), "")
            self.assertEqual(self.editor.calls, [b"before", "ask", "restore"])

    def test_end_of_input_with_old_readline(self) -> None:
        """Before readline 8.1 Ctrl-D leaves the cursor behind the prompt."""
        self.shown()
        self.editor.ends_line = False
        self.enter(None)
        self.assertEqual(self.shown(), b"\n")

    def test_gone(self) -> None:
        """A terminal that is gone ends the session, too."""
        self.terminal.connectionLost()
        self.assertEqual(self.session.calls, ["finish"])
        self.assertEqual(self.reactor.getReaders(), [])

    def test_escaped(self) -> None:
        """Replies are escaped; what is cut off at the end is, and gets a newline."""
        self.shown()
        self.enter(b"hello")
        self.terminal.replied(b"\x1b\xe4")
        self.terminal.over("why")
        self.assertEqual(self.shown(), b"\\x1b\\xe4\n")
        self.assertEqual(self.successResultOf(self.terminal.ended), "why")

    def test_lost(self) -> None:
        """When the connection is lost, the prompt and the line are cleared."""
        self.shown()
        self.terminal.over("why")
        self.assertEqual(self.editor.calls[2:], ["hide", "restore"])
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.shown(), b"")
        self.assertEqual(self.successResultOf(self.terminal.ended), "why")

    def test_unasked(self) -> None:
        """What comes while a line is edited is shown above it."""
        self.shown()
        self.terminal.replied(b"more")
        self.terminal.answered()  # no line waits for this
        self.assertEqual(self.shown(), b"more\n")
        self.assertEqual(self.editor.calls[2:], ["hide", "show"])


class SetTerminalTests(SynchronousTestCase):
    """`set_terminal`."""

    def test_interrupted(self) -> None:
        """If a signal interrupts the call, it is made again; any other error is one."""
        interrupted = termios.error(errno.EINTR, "Interrupted system call")
        gone = termios.error(errno.EIO, "Input/output error")
        with patch("termios.tcsetattr", side_effect=[interrupted, interrupted, None]) as call:
            set_terminal([])
        self.assertEqual(call.call_count, 3)
        with patch("termios.tcsetattr", side_effect=gone):
            self.assertRaises(termios.error, set_terminal, [])


class AvailableTests(SynchronousTestCase):
    """`edited_terminal`: where lines can be edited."""

    def test_dumb(self) -> None:
        """Not on a terminal that is dumb or unknown."""
        for term in ("dumb", ""):
            with patch.dict("os.environ", {"TERM": term}):
                self.assertIsNone(edited_terminal())

    def test_other_readline(self) -> None:
        """Nor with a Python without readline, with one built into it, or with libedit."""
        built_in = ModuleType("readline")
        libedit = cast(ModuleType, SimpleNamespace(__file__="libedit.so"))
        for module, library in ((None, None), (built_in, None), (libedit, SimpleNamespace())):
            with (
                patch.dict("os.environ", {"TERM": "vt100"}),
                patch.dict("sys.modules", {"readline": module}),
                patch("timestamp_echo.client.terminal.CDLL", lambda _, it=library: it),
            ):
                self.assertIsNone(edited_terminal())
