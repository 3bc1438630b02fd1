"""Tests for `timestamp_echo.client.stdio`."""

from __future__ import annotations

import os
import stat
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass

from tests.fakes import FakeSession
from timestamp_echo.client.stdio import Pipe, Terminal, TerminalEscaper

FULL = "standard output could not be written"


class TerminalEscaperTests(SynchronousTestCase):
    """`TerminalEscaper`: replies that are safe for a terminal."""

    def escaped(self, *pieces: bytes) -> str:
        """Escape these pieces of a reply."""
        escaper = TerminalEscaper()
        return b"".join([*(escaper.escape(piece) for piece in pieces), escaper.flush()]).decode()

    def test_plain(self) -> None:
        """Text in any script passes, with newlines and tabs, and emoji, joined or not."""
        text = "[Sun Nov 22 14:08:00 2026] a\tb 你好 👨‍👩‍👧 é\n"
        self.assertEqual(self.escaped(text.encode()), text)

    def test_controls(self) -> None:
        """Control characters become escapes."""
        self.assertEqual(
            self.escaped(b"\x1b[31m\x07\0\x7f\x0c\n"), "\\x1b[31m\\x07\\x00\\x7f\\x0c\n"
        )
        self.assertEqual(self.escaped("\x9b31m\x85".encode()), "\\x9b31m\\x85")

    def test_direction(self) -> None:
        """Bidirectional controls and separators become escapes."""
        self.assertEqual(self.escaped("a\u202eb\u2066c\u2028".encode()), "a\\u202eb\\u2066c\\u2028")

    def test_invisible(self) -> None:
        """Format characters that show nothing become escapes: text could be hidden in a line."""
        for char in "\u00ad\u061c\u180e\u200b\u200e\u200f\u2060\ufeff\U000e0001\U000e007f":
            self.assertEqual(self.escaped(f"a{char}b".encode()), f"a{ascii(char)[1:-1]}b")

    def test_script(self) -> None:
        """Those that scripts and emoji are written with pass: joiners, variation selectors."""
        text = "می\u200cخواهم क्\u200dष ❤\ufe0f 葛\U000e0100 \u0600١"
        self.assertEqual(self.escaped(text.encode()), text)

    def test_carriage_return(self) -> None:
        """A carriage return passes only in front of a newline."""
        self.assertEqual(self.escaped(b"a\r\nb\rc\n"), "a\r\nb\\rc\n")
        self.assertEqual(self.escaped(b"a\r", b"\nb\r", b"c\n"), "a\r\nb\\rc\n")

    def test_end(self) -> None:
        """An unfinished character or carriage return becomes an escape at the end."""
        self.assertEqual(self.escaped(b"a\xe4\xbd"), "a\\xe4\\xbd")
        self.assertEqual(self.escaped(b"a\r"), "a\\r")

    def test_not_utf8(self) -> None:
        """Bytes that are not UTF-8 become escapes."""
        self.assertEqual(self.escaped(b"a\xff\xfeb\n"), "a\\xff\\xfeb\n")

    @given(st.text(), st.integers(1, 5))
    def test_cut(self, text: str, size: int) -> None:
        """The result does not depend on how a text is cut."""
        data = text.encode() + b"\n"
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        self.assertEqual(self.escaped(*pieces), self.escaped(data))

    @given(st.binary())
    def test_any_bytes(self, data: bytes) -> None:
        """No bytes give a control character other than newline, tab and CRLF."""
        escaped = self.escaped(data).replace("\r\n", "").replace("\n", "").replace("\t", "")
        self.assertFalse([c for c in escaped if ord(c) < 32 or 127 <= ord(c) < 160])


class PipeTests(SynchronousTestCase):
    """`Pipe`: standard input that is no terminal."""

    def pipe(self, terminal: bool = False) -> Pipe:
        """Create a pipe with a session, and a transport in memory."""
        pipe = Pipe(terminal)
        pipe.session = self.session = FakeSession()
        self.stdio = StringTransport()
        pipe.makeConnection(self.stdio)
        return pipe

    def test_interfaces(self) -> None:
        """It provides `IHalfCloseableProtocol`."""
        verifyClass(IHalfCloseableProtocol, Pipe)

    def test_both_ways(self) -> None:
        """Input goes to the session, and replies to standard output, byte for byte."""
        pipe = self.pipe()
        pipe.dataReceived(b"a\n\nb\xff")
        pipe.replied(b"[] \x1b\xff")
        pipe.answered()
        pipe.readConnectionLost()
        self.assertEqual(self.session.calls, [b"a\n\nb\xff", "finish"])
        self.assertEqual(self.stdio.value(), b"[] \x1b\xff")

    def test_output_terminal(self) -> None:
        """Replies to a terminal are escaped."""
        pipe = self.pipe(terminal=True)
        pipe.replied(b"\x1b\xe4")
        pipe.over("")
        self.assertEqual(self.stdio.value(), b"\\x1b\\xe4\n")

    def test_last_newline(self) -> None:
        """The shell's prompt starts a line: a terminal gets the newline that a reply lacks."""
        for terminal, replies, output in (
            (True, [b"[] a"], b"[] a\n"),
            (True, [b"[] a", b"\n"], b"[] a\n"),
            (True, [], b""),
            (False, [b"[] a"], b"[] a"),
        ):
            pipe = self.pipe(terminal)
            for reply in replies:
                pipe.replied(reply)
            pipe.over("")
            self.assertEqual(self.stdio.value(), output)

    def test_backpressure(self) -> None:
        """Standard input and output, and the session, are each other's producer."""
        self.pipe()
        self.assertIs(self.session.producer, self.stdio)
        self.assertIs(self.stdio.producer, self.session)
        self.assertTrue(self.stdio.streaming)

    def test_over(self) -> None:
        """It ends when standard output is written."""
        pipe = self.pipe()
        pipe.over("why")
        self.assertTrue(self.stdio.disconnecting)
        self.assertIsNone(self.stdio.producer)
        self.assertNoResult(pipe.ended)
        pipe.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.successResultOf(pipe.ended), "why")

    def test_reader_gone(self) -> None:
        """A pipe or socket without a reader as standard output is no error."""
        for kind in (stat.S_IFIFO, stat.S_IFSOCK):
            pipe = self.pipe()
            status = SimpleNamespace(st_mode=kind | 0o600)
            with patch("timestamp_echo.client.stdio.fstat", return_value=status):
                pipe.writeConnectionLost()
            self.assertEqual(self.session.calls, ["abort"])
            self.assertEqual(self.successResultOf(pipe.ended), "")
            pipe.over("aborted")
            self.assertFalse(self.stdio.disconnecting)  # there is nothing left to write
            pipe.connectionLost(Failure(ConnectionDone()))

    def test_output_full(self) -> None:
        """A standard output that cannot be written is an error."""
        pipe = self.pipe()
        with (
            open(os.devnull) as null,
            patch("timestamp_echo.client.stdio.fstat", lambda _: os.fstat(null.fileno())),
        ):
            pipe.writeConnectionLost()
            self.assertEqual(self.successResultOf(pipe.ended), FULL)

    def test_output_full_at_end(self) -> None:
        """It is one, too, after the server has closed."""
        pipe = self.pipe()
        pipe.over("")
        with (
            open(os.devnull) as null,
            patch("timestamp_echo.client.stdio.fstat", lambda _: os.fstat(null.fileno())),
        ):
            pipe.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.successResultOf(pipe.ended), FULL)

    def test_over_before_connection(self) -> None:
        """A session may end before standard input and output are connected."""
        pipe = Pipe()
        pipe.over("why")
        self.assertNoResult(pipe.ended)


class TerminalTests(SynchronousTestCase):
    """`Terminal`: standard input that is a terminal."""

    def terminal(self, output: bool = True) -> Terminal:
        """Create one.

        @param output: whether standard output is a terminal, too.
        """
        terminal = Terminal(output)
        terminal.session = self.session = FakeSession()
        self.stdio = StringTransport()
        terminal.makeConnection(self.stdio)
        return terminal

    def test_prompt(self) -> None:
        """After each reply it prompts again."""
        terminal = self.terminal()
        self.assertEqual(self.stdio.value(), b"> ")
        terminal.dataReceived(b"hello\n")
        self.assertEqual(self.session.calls, [b"hello\n"])
        terminal.replied(b"[] hello\n")
        terminal.answered()
        self.assertEqual(self.stdio.value(), b"> [] hello\n> ")
        self.assertEqual(self.stdio.producerState, "producing")

    def test_greeting(self) -> None:
        """A terminal shows where its lines go and how to leave; a pipe gets no such line."""
        greeting = b"Lines go to h\\x1b:1. An empty line or Ctrl-D ends.\n> "
        for output, shown in ((True, greeting), (False, b"")):
            terminal = Terminal(output)
            terminal.session = FakeSession()
            stdio = StringTransport()
            with patch(
                "timestamp_echo.client.stdio._StandardIO",
                lambda protocol, reactor, stdio=stdio: protocol.makeConnection(stdio),
            ):
                terminal.start("h\x1b:1", MemoryReactor())
            terminal.restore()
            self.assertEqual(stdio.value(), shown)

    def test_no_prompt(self) -> None:
        """A standard output that is no terminal gets the replies only."""
        terminal = self.terminal(output=False)
        terminal.dataReceived(b"hello\n")
        terminal.replied(b"[] hello\n")
        terminal.answered()
        terminal.readConnectionLost()
        self.assertEqual(self.stdio.value(), b"[] hello\n")

    def test_empty_line(self) -> None:
        """An empty line ends the session; what follows it is not sent."""
        terminal = self.terminal()
        terminal.dataReceived(b"\nmore\n")
        terminal.dataReceived(b"more\n")
        terminal.readConnectionLost()
        self.assertEqual(self.session.calls, ["finish"])

    def test_end_of_input(self) -> None:
        """Ctrl-D ends the session, and starts a line for the shell's prompt."""
        terminal = self.terminal()
        terminal.readConnectionLost()
        self.assertEqual(self.session.calls, ["finish"])
        self.assertEqual(self.stdio.value(), b"> \n")

    def test_lost(self) -> None:
        """The error for a connection that is lost at the prompt gets a line of its own."""
        terminal = self.terminal()
        terminal.over("why")
        self.assertEqual(self.stdio.value(), b"> \n")
        terminal = self.terminal()
        terminal.dataReceived(b"hello\n")
        terminal.over("why")
        self.assertEqual(self.stdio.value(), b"> ")  # Enter has started a line

    def test_end_of_input_within_a_line(self) -> None:
        """A line ended by Ctrl-D is sent without a newline."""
        terminal = self.terminal()
        terminal.dataReceived(b"hel")
        terminal.dataReceived(b"lo")
        terminal.readConnectionLost()
        self.assertEqual(self.session.calls, [b"hello", "finish"])

    def test_typed_ahead(self) -> None:
        """Lines typed before a reply wait for it."""
        terminal = self.terminal()
        terminal.dataReceived(b"a\nb\n\n")
        self.assertEqual(self.session.calls, [b"a\n"])
        self.assertEqual(self.stdio.producerState, "paused")
        terminal.answered()
        self.assertEqual(self.session.calls, [b"a\n", b"b\n"])
        terminal.answered()
        self.assertEqual(self.session.calls, [b"a\n", b"b\n", "finish"])
        terminal.answered()
        self.assertEqual(self.session.calls, [b"a\n", b"b\n", "finish"])

    def test_typed_ahead_of_ctrl_d(self) -> None:
        """Ctrl-D typed before a reply waits for the lines before it."""
        terminal = self.terminal()
        terminal.dataReceived(b"a\nb\nc")
        terminal.readConnectionLost()
        self.assertEqual(self.session.calls, [b"a\n"])
        terminal.answered()
        terminal.answered()
        self.assertEqual(self.session.calls, [b"a\n", b"b\n", b"c", "finish"])
        self.assertEqual(self.stdio.value(), b"> \n")  # nothing more to prompt for
