"""Tests for `timestamp_echo.client.replies`."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock, patch

from hypothesis import assume, example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.client import replies
from timestamp_echo.client.replies import (
    MAX_HELD,
    MAX_READINGS,
    MAX_UNEXPECTED,
    STAMP,
    Replies,
)
from timestamp_echo.framing import ChunkFraming, LineFraming
from timestamp_echo.stamps import MAX_STAMP, Stamp

NOW = 1795357656065043076

texts = st.lists(
    st.sampled_from([b"a", b"bb", b"\n", b"[", b"]", b"] ", b" ", b"[] ", b"[x] ", b"\xff\r"]),
    max_size=12,
).map(b"".join)
"""Messages, also such that contain what looks like a stamp."""

stamps = st.sampled_from([b"[] ", b"[x] ", b"[[12]] ", b"[Sun Nov 22 14:08:00 2026] ", b"[a]b] "])


def cut(data: bytes, size: int) -> list[bytes]:
    """Cut into pieces of this size."""
    return [data[i : i + size] for i in range(0, len(data), size)]


def is_echo(sent: bytes, received: bytes, after_stamp: bool = False) -> bool:
    """Whether this is what was sent, with stamps, by the definition: slow, but simple."""
    if not received:
        return not sent and not after_stamp
    stamp = None if after_stamp else STAMP.match(received)
    if stamp and is_echo(sent, received[stamp.end() :], True):
        return True
    return sent[:1] == received[:1] and is_echo(sent[1:], received[1:])


class RepliesTests(SynchronousTestCase):
    """`Replies`: what is a reply, and what is not."""

    def setUp(self) -> None:
        """Nothing is sent yet."""
        self.replies = Replies()

    def receive(self, data: bytes, size: int = 0) -> bytes:
        """Receive this in pieces of some size, or at once."""
        return b"".join(self.replies.receive(piece) for piece in cut(data, size or len(data) or 1))

    def assert_refused(
        self, received: bytes, unexpected: bytes, shown: bytes = b"", sent: bytes = b"a\nb\n"
    ) -> None:
        """A part is verified, and the rest is no reply, however it is cut."""
        for size in (1, 2, 3, 7, len(received)):
            self.replies = Replies()
            self.replies.send(sent)
            self.assertEqual(self.receive(received, size), shown, size)
            self.assertEqual(self.replies.unexpected, unexpected, size)
            self.assertFalse(self.replies.complete)

    @given(texts, st.data())
    def test_definition(self, sent: bytes, data: st.DataObject) -> None:
        """It verifies exactly what is an echo by the definition, however it is cut."""
        pieces = data.draw(st.lists(st.one_of(stamps, st.sampled_from(cut(sent, 3) or [b""]))))
        received = b"".join(pieces)
        self.replies = Replies()
        if sent:
            self.replies.send(sent)
        shown = self.receive(received, data.draw(st.integers(1, 9)))
        self.assertEqual(self.replies.complete, is_echo(sent, received))
        if self.replies.complete:
            self.assertEqual((shown, self.replies.missing), (received, 0))

    @given(texts, st.lists(stamps, min_size=1), st.integers(1, 9), st.data())
    @example(b"[] [] [] [] []", [b"[x] "], 1, None)
    def test_chunks(
        self, sent: bytes, used: list[bytes], size: int, data: st.DataObject | None
    ) -> None:
        """What was sent is verified with stamps anywhere in it, however both are cut."""
        length = data.draw(st.integers(1, 9)) if data else 5
        chunks = cut(sent, length)
        received = b"".join(used[i % len(used)] + chunk for i, chunk in enumerate(chunks))
        self.replies = Replies()
        for piece in chunks:
            self.replies.send(piece)
        self.assertEqual(self.receive(received, size), received)
        self.assertTrue(self.replies.complete)
        self.assertEqual(self.replies.lines, sent.count(b"\n") + (sent[-1:] not in b"\n"))

    @given(texts, st.sampled_from([LineFraming, ChunkFraming]), st.integers(1, 50))
    def test_framings(self, sent: bytes, framing: Any, size: int) -> None:
        """The replies of this package's own framings are verified while more is being sent."""
        self.replies, echo = Replies(), framing()
        shown = expected = b""
        for number, piece in enumerate(cut(sent, size)):
            self.replies.send(piece)
            reply = echo.received(piece, Stamp("unix").prefix(NOW + number))
            shown += self.receive(reply, 7)
            expected += reply
        shown += self.receive(last := echo.ended())
        self.assertEqual(shown, expected + last)
        self.assertTrue(self.replies.complete)

    def test_styles(self) -> None:
        """Stamps of each style are recognised, also such with brackets, and the longest."""
        for style in ("ctime", "iso", "unix", "[%H]", "[%H", "%H]", "%M]%S", "%%" + "[" * 254):
            self.replies.send(b"one\n[two] \n\nend")
            prefix = Stamp(style).prefix(NOW)
            reply = b"".join(prefix + line for line in (b"one\n", b"[two] \n", b"\n", b"end"))
            self.assertEqual(self.receive(reply, 5), reply)
            self.assertTrue(self.replies.complete)

    @given(st.integers(0, 59), st.sampled_from([0, 1, 32, 127, 128, 255]), st.integers(1, 99))
    def test_garbled(self, at: int, byte: int, size: int) -> None:
        """A changed byte of a message is found; the lines in front of it are verified."""
        sent = b"".join(b"line %d\n" % number for number in range(10, 17))
        garbled = bytearray(sent)
        at %= len(sent)
        assume(garbled[at] != byte)
        garbled[at] = byte
        lines = bytes(garbled).split(b"\n")
        received = b"[t] " + b"\n[t] ".join(lines[:-1]) + b"\n" + lines[-1]
        self.replies = Replies()
        self.replies.send(sent)
        good = at // 8
        shown = self.receive(received, size)
        self.assertEqual(shown, b"".join(b"[t] line %d\n" % (10 + n) for n in range(good)))
        self.assertTrue(self.replies.unexpected)
        self.assertEqual(self.replies.missing, 7 - good)

    def test_refusals(self) -> None:
        """Text in place of a reply."""
        http = b"HTTP/1.0 400 Bad\r\nServer"
        self.assert_refused(http, http)
        self.assert_refused(b"[t] a\n[ERROR] no\nmore\n", b"[ERROR] no\nmore\n", b"[t] a\n")

    def test_nothing_sent(self) -> None:
        """Nothing is a reply before something is sent."""
        self.assertEqual(self.receive(b"tsecho: full\n"), b"")
        self.assertEqual(self.receive(b"more\n"), b"")
        self.assertEqual(self.replies.unexpected, b"tsecho: full\nmore\n")
        self.assertEqual((self.replies.lines, self.replies.missing), (0, 0))

    def test_beyond(self) -> None:
        """More than was sent is no reply, nor are two stamps, or a byte too few."""
        self.assert_refused(b"a\nb\nc\n", b"c\n", b"a\nb\n")
        self.assert_refused(b"[t] a\n[t] [t] b\n", b"[t] [t] b\n", b"[t] a\n")
        self.assert_refused(b"[t] a\n[t] \n", b"[t] \n", b"[t] a\n")
        self.assert_refused(b"[t\x1b] a\n", b"[t\x1b] a\n")
        self.assert_refused(b"a\n\n", b"\n", b"a\n")
        long = b"[%b] a\n" % (b"x" * (MAX_STAMP + 1))
        self.assert_refused(long, long)

    def test_trailing_stamp(self) -> None:
        """A stamp without a message is not verified, and only complete with one."""
        self.replies.send(b"a\n")
        self.assertEqual(self.receive(b"[t] a\n[t] "), b"[t] a\n")
        self.assertEqual(self.replies.rest, b"[t] ")
        self.assertEqual((self.replies.complete, self.replies.missing), (False, 0))
        self.assertTrue(self.replies.answered)
        self.replies.send(b"b\n")
        self.assertFalse(self.replies.answered)
        self.assertEqual(self.receive(b"b\n"), b"[t] b\n")
        self.assertTrue(self.replies.complete)

    def test_held(self) -> None:
        """A line is not returned before all of it is verified."""
        self.replies.send(b"a\nbcd\n")
        self.assertEqual(self.receive(b"[t] a\n[t] b"), b"[t] a\n")
        self.assertEqual(self.receive(b"c"), b"")
        self.assertEqual((self.replies.missing, self.replies.rest), (1, b"[t] bc"))
        self.assertEqual(self.receive(b"d\n"), b"[t] bcd\n")

    def test_long_line(self) -> None:
        """A long line is returned as it comes; only what may be a stamp is held back."""
        line = b"x" * (3 * MAX_HELD)
        self.replies.send(line + b"[a")
        self.assertEqual(self.receive(b"[t] " + line[:MAX_HELD]), b"[t] " + line[:MAX_HELD])
        rest = line[MAX_HELD:]
        self.assertEqual(self.receive(rest + b"["), rest)
        self.assertEqual(self.replies.rest, b"[")
        self.assertEqual(self.replies.missing, 1)
        self.assertEqual(self.receive(b"a"), b"[a")
        self.assertTrue(self.replies.complete)

    def test_long_line_ends_in_a_stamp(self) -> None:
        """A stamp that was returned with a long line is not followed by another."""
        self.replies.send(b"x" * (MAX_HELD + 1) + b"a\nb\n")
        long = b"x" * (MAX_HELD + 1) + b"[t] "
        self.assertEqual(self.receive(long), long)
        self.assertEqual(self.receive(b"[t] a\n"), b"")
        self.assertEqual(self.replies.unexpected, b"[t] a\n")

    def test_longest_held(self) -> None:
        """Up to a limit all of a line is held."""
        self.replies.send(b"x" * (MAX_HELD + 1) + b"\n")
        self.assertEqual(self.receive(b"x" * MAX_HELD), b"")
        self.assertEqual(self.receive(b"x"), b"x" * (MAX_HELD + 1))

    def test_partial_line(self) -> None:
        """A line sent without its newline is returned as soon as all of it is there, once."""
        self.replies.send(b"a[")
        self.assertEqual(self.receive(b"[t] a"), b"")
        self.assertEqual(self.receive(b"["), b"[t] a[")
        self.assertEqual((self.replies.lines, self.replies.missing), (1, 0))
        self.replies.send(b"b\n")  # of the same line
        self.assertEqual((self.replies.lines, self.replies.missing), (1, 1))
        self.assertEqual(self.receive(b"u] b"), b"")
        self.assertTrue(self.replies.unexpected)  # because the [ that began this stamp was sent

    def test_stamp_begins_like_the_message(self) -> None:
        """What looked like all of the message turns out to be the start of a stamp."""
        self.replies.send(b"[")
        self.assertEqual(self.receive(b"["), b"[")
        self.assertTrue(self.replies.complete)
        self.assertEqual(self.receive(b"t"), b"")
        self.assertEqual((self.replies.missing, self.replies.rest), (1, b"t"))
        self.assertEqual(self.receive(b"] ["), b"t] [")
        self.assertTrue(self.replies.complete)

    def test_many_readings(self) -> None:
        """A message of stamps has many readings: the one with the fewest stamps is right."""
        sent = b"[] " * 2000
        self.replies.send(sent)
        self.assertEqual(self.receive(b"[t] " + sent, 1000), b"[t] " + sent)
        self.assertTrue(self.replies.complete)
        at_most = max(map(len, self.replies._readings.values()))
        self.assertLessEqual(at_most, MAX_READINGS)

    def test_memory(self) -> None:
        """What is verified is forgotten, and of what is no reply little is kept."""
        for _ in range(50):
            self.replies.send(b"x" * 10_000)
            self.receive(b"[t] " + b"x" * 10_000, 999)
            self.assertEqual(self.replies.unanswered, 0)
            self.assertEqual(len(self.replies._held), 0)
        for size in (999, 30_000):
            self.replies = Replies()
            self.receive(b"no" * 10_000, size)
            self.assertEqual(len(self.replies.unexpected), MAX_UNEXPECTED)
        self.assertTrue(self.replies.unexpected_line)

    def test_one_by_one(self) -> None:
        """Lines with the same stamp, or none, are verified without looking at each."""
        sent = b"".join(b"%d\n" % number for number in range(100))
        lines = sent.splitlines(keepends=True)
        few = [b"[%d] " % (number // 20) + line for number, line in enumerate(lines)]
        many = [b"[%d] " % number + line for number, line in enumerate(lines)]
        one = b"[t] " + b"[t] ".join(lines)
        for received, by_pattern in ((sent, 0), (one, 0), (b"".join(few), 0), (b"".join(many), 92)):
            self.replies.send(sent)
            with (
                patch.object(Replies, "_follow", side_effect=AssertionError),
                patch.object(replies, "_LINE_STAMP", Mock(wraps=replies._LINE_STAMP)) as pattern,
            ):
                self.assertEqual(self.receive(received), received)
            self.assertTrue(self.replies.complete)
            rest = pattern.sub.call_args.args[1] if pattern.sub.called else b""
            self.assertEqual(rest.count(b"\n"), by_pattern)

    def test_longest_stamp(self) -> None:
        """The longest stamp may be cut anywhere."""
        reply = b"[" + b"x" * MAX_STAMP + b"] a\n"
        for at in range(1, len(reply)):
            self.replies.send(b"a\n")
            self.assertEqual(self.receive(reply[:at]) + self.receive(reply[at:]), reply)
            self.assertTrue(self.replies.complete)

    def test_partial_text(self) -> None:
        """Whether the first line of what is no reply is whole."""
        self.receive(b"no")
        self.assertFalse(self.replies.unexpected_line)
        self.receive(b"ne\n")
        self.assertTrue(self.replies.unexpected_line)
        self.assertEqual(self.replies.unexpected, b"none\n")
