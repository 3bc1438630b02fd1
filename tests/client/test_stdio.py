"""Tests for `timestamp_echo.client.stdio`."""

from __future__ import annotations

import os
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass

from timestamp_echo.client.stdio import Display, Pipe, Terminal

FULL = "standard output could not be written"


class DisplayTests(SynchronousTestCase):
    """`Display`: replies made harmless for a terminal."""

    def shown(self, *pieces: bytes) -> str:
        """What these pieces of a reply look like."""
        display = Display()
        return b"".join([*(display.shown(piece) for piece in pieces), display.rest()]).decode()

    def test_plain(self) -> None:
        """Text in any script passes, with its newlines and tabs, emoji joined or not."""
        text = "[Sun Nov 22 14:08:00 2026] a\tb 你好 👨‍👩‍👧 é\n"
        self.assertEqual(self.shown(text.encode()), text)

    def test_controls(self) -> None:
        """Control characters are shown as escapes."""
        self.assertEqual(self.shown(b"\x1b[31m\x07\0\x7f\x0c\n"), "\\x1b[31m\\x07\\x00\\x7f\\x0c\n")
        self.assertEqual(self.shown("\x9b31m\x85".encode()), "\\x9b31m\\x85")

    def test_direction(self) -> None:
        """So are marks that would make a line look like another, and separators."""
        self.assertEqual(self.shown("a\u202eb\u2066c\u2028".encode()), "a\\u202eb\\u2066c\\u2028")

    def test_carriage_return(self) -> None:
        """A carriage return passes before a newline alone."""
        self.assertEqual(self.shown(b"a\r\nb\rc\n"), "a\r\nb\\rc\n")
        self.assertEqual(self.shown(b"a\r", b"\nb\r", b"c\n"), "a\r\nb\\rc\n")

    def test_end(self) -> None:
        """What was held because it might have gone on is shown in the end."""
        self.assertEqual(self.shown(b"a\xe4\xbd"), "a\\xe4\\xbd")
        self.assertEqual(self.shown(b"a\r"), "a\\r")

    def test_no_utf8(self) -> None:
        """Bytes that are no UTF-8 are shown as escapes."""
        self.assertEqual(self.shown(b"a\xff\xfeb\n"), "a\\xff\\xfeb\n")

    @given(st.text(), st.integers(1, 5))
    def test_cut(self, text: str, size: int) -> None:
        """However a text is cut, it looks the same."""
        data = text.encode() + b"\n"
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        self.assertEqual(self.shown(*pieces), self.shown(data))

    @given(st.binary())
    def test_harmless(self, data: bytes) -> None:
        """Whatever comes, no control character but newline, tab and CRLF is shown."""
        shown = self.shown(data).replace("\r\n", "").replace("\n", "").replace("\t", "")
        self.assertFalse([c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160])


class FakeSession:
    """A session that remembers what it was told."""

    missing = sent = 0
    refused = False

    def __init__(self) -> None:
        self.did: list[object] = []

    def write(self, data: bytes) -> None:
        """See `Session`."""
        self.did.append(data)

    def finish(self) -> None:
        """See `Session`."""
        self.did.append("finish")

    def abort(self) -> None:
        """See `Session`."""
        self.did.append("abort")

    def feed_from(self, producer: object) -> None:
        """See `Session`."""
        self.producer = producer

    def pauseProducing(self) -> None:
        """See `Session`."""

    def resumeProducing(self) -> None:
        """See `Session`."""

    def stopProducing(self) -> None:
        """See `Session`."""


class PipeTests(SynchronousTestCase):
    """`Pipe`."""

    def pipe(self, terminal: bool = False) -> Pipe:
        """A pipe with its session, and standard input and output that are strings."""
        pipe = Pipe(terminal)
        pipe.session = self.session = FakeSession()
        self.stdio = StringTransport()
        pipe.makeConnection(self.stdio)
        return pipe

    def test_interfaces(self) -> None:
        """It is what it says that it is."""
        verifyClass(IHalfCloseableProtocol, Pipe)

    def test_through(self) -> None:
        """What comes goes to the session, and replies to standard output, byte for byte."""
        pipe = self.pipe()
        pipe.dataReceived(b"a\n\nb\xff")
        pipe.replied(b"[] \x1b\xff")
        pipe.answered()
        pipe.readConnectionLost()
        self.assertEqual(self.session.did, [b"a\n\nb\xff", "finish"])
        self.assertEqual(self.stdio.value(), b"[] \x1b\xff")

    def test_to_a_terminal(self) -> None:
        """On a terminal they are harmless."""
        pipe = self.pipe(terminal=True)
        pipe.replied(b"\x1b\xe4")
        pipe.over("")
        self.assertEqual(self.stdio.value(), b"\\x1b\\xe4")

    def test_pressure_both_ways(self) -> None:
        """Each side is the other's producer."""
        self.pipe()
        self.assertIs(self.session.producer, self.stdio)
        self.assertIs(self.stdio.producer, self.session)

    def test_over(self) -> None:
        """The end waits until standard output is written out."""
        pipe = self.pipe()
        pipe.over("why")
        self.assertTrue(self.stdio.disconnecting)
        self.assertIsNone(self.stdio.producer)
        self.assertNoResult(pipe.ended)
        pipe.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.successResultOf(pipe.ended), "why")

    def test_reader_gone(self) -> None:
        """Where standard output is a pipe that nobody reads, it ends quietly."""
        pipe = self.pipe()
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        with patch("timestamp_echo.client.stdio.fstat", lambda _: os.fstat(writing)):
            pipe.writeConnectionLost()
        self.assertEqual(self.session.did, ["abort"])
        self.assertEqual(self.successResultOf(pipe.ended), "")
        pipe.over("aborted")
        pipe.connectionLost(Failure(ConnectionDone()))

    def test_output_full(self) -> None:
        """Where it is a file that can't be written, that is said."""
        pipe = self.pipe()
        with (
            open(os.devnull) as null,
            patch("timestamp_echo.client.stdio.fstat", lambda _: os.fstat(null.fileno())),
        ):
            pipe.writeConnectionLost()
            self.assertEqual(self.successResultOf(pipe.ended), FULL)

    def test_output_full_in_the_end(self) -> None:
        """So it is where the server has closed by then."""
        pipe = self.pipe()
        pipe.over("")
        with (
            open(os.devnull) as null,
            patch("timestamp_echo.client.stdio.fstat", lambda _: os.fstat(null.fileno())),
        ):
            pipe.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.successResultOf(pipe.ended), FULL)

    def test_over_before_it_began(self) -> None:
        """A session that ends before standard input is there has nothing to write out."""
        pipe = Pipe()
        pipe.over("why")
        self.assertNoResult(pipe.ended)


class TerminalTests(SynchronousTestCase):
    """`Terminal`."""

    def terminal(self, shown: bool = True) -> Terminal:
        """A person who sees the replies, or sends them elsewhere."""
        terminal = Terminal(shown)
        terminal.session = self.session = FakeSession()
        self.stdio = StringTransport()
        terminal.makeConnection(self.stdio)
        return terminal

    def test_prompt(self) -> None:
        """A prompt, a line, its reply, a prompt."""
        terminal = self.terminal()
        self.assertEqual(self.stdio.value(), b"> ")
        terminal.dataReceived(b"hello\n")
        self.assertEqual(self.session.did, [b"hello\n"])
        terminal.replied(b"[] hello\n")
        terminal.answered()
        self.assertEqual(self.stdio.value(), b"> [] hello\n> ")

    def test_no_prompt(self) -> None:
        """A standard output that is no terminal gets the replies alone."""
        terminal = self.terminal(shown=False)
        terminal.dataReceived(b"hello\n")
        terminal.replied(b"[] hello\n")
        terminal.answered()
        terminal.readConnectionLost()
        self.assertEqual(self.stdio.value(), b"[] hello\n")

    def test_empty_line(self) -> None:
        """An empty line ends it, as in the lab; what is typed behind it is not sent."""
        terminal = self.terminal()
        terminal.dataReceived(b"\nmore\n")
        terminal.dataReceived(b"more\n")
        terminal.readConnectionLost()
        self.assertEqual(self.session.did, ["finish"])

    def test_end_of_input(self) -> None:
        """So does Ctrl-D, after which the shell's prompt has a line of its own."""
        terminal = self.terminal()
        terminal.readConnectionLost()
        self.assertEqual(self.session.did, ["finish"])
        self.assertEqual(self.stdio.value(), b"> \n")

    def test_end_of_input_within_a_line(self) -> None:
        """What was typed before Ctrl-D twice is sent as it is."""
        terminal = self.terminal()
        terminal.dataReceived(b"hel")
        terminal.dataReceived(b"lo")
        terminal.readConnectionLost()
        self.assertEqual(self.session.did, [b"hello", "finish"])

    def test_typed_ahead(self) -> None:
        """Lines typed before the reply came wait for it."""
        terminal = self.terminal()
        terminal.dataReceived(b"a\nb\n\n")
        self.assertEqual(self.session.did, [b"a\n"])
        self.assertEqual(self.stdio.producerState, "paused")
        terminal.answered()
        self.assertEqual(self.session.did, [b"a\n", b"b\n"])
        terminal.answered()
        self.assertEqual(self.session.did, [b"a\n", b"b\n", "finish"])
        terminal.answered()
        self.assertEqual(self.session.did, [b"a\n", b"b\n", "finish"])

    def test_typed_ahead_of_the_end(self) -> None:
        """So they do where Ctrl-D came before the reply, in their order."""
        terminal = self.terminal()
        terminal.dataReceived(b"a\nb\nc")
        terminal.readConnectionLost()
        self.assertEqual(self.session.did, [b"a\n"])
        terminal.answered()
        terminal.answered()
        self.assertEqual(self.session.did, [b"a\n", b"b\n", b"c", "finish"])
