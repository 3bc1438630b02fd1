"""Tests for `timestamp_echo.framing`: every way to cut the bytes."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.framing import (
    FRAMINGS,
    FULL_READ,
    MAX_PENDING,
    MIN_PORTION,
    SHORT_REPLY,
    AutoFraming,
    ChunkFraming,
    Framing,
    LineFraming,
)

STAMP = b"[\xff] "
"""A prefix that no generated text contains."""

TEXTS = st.lists(
    st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\0", b"\xe4\xbd\xa0", b"] ["])
).map(b"".join)


@st.composite
def reads(draw: st.DrawFn) -> list[bytes]:
    """A text, cut into reads anywhere."""
    text = draw(TEXTS)
    cuts = draw(st.sets(st.integers(0, len(text))))
    return [text[i:j] for i, j in pairwise(sorted(cuts | {0, len(text)}))]


PREFIX_LENGTHS = st.integers(1, 8).flatmap(
    lambda n: st.integers(MAX_PENDING // n - 30, MAX_PENDING // n + 30)
)
"""Lengths with which the reply to a few lines is about as long as it may be."""


def lines_of(text: bytes) -> list[bytes]:
    """The lines of a text, the last perhaps without a newline."""
    *whole, rest = text.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def numbered(number: int) -> bytes:
    """A prefix for each read, to see which of them a message was stamped with."""
    return b"[%d\xff] " % number


def replies_to(framing: Framing, pieces: list[bytes]) -> list[bytes]:
    """The replies to each read, and to the end."""
    return [framing.received(piece, STAMP) for piece in pieces] + [framing.ended()]


class ConstantTests(SynchronousTestCase):
    """The sizes, which users and the service rely on."""

    def test_max_pending(self) -> None:
        """A reply starts once 64 KiB of a message have come, and not before."""
        framing = LineFraming()
        self.assertEqual(framing.received(b"x" * (65_536 - 1), STAMP), b"")
        self.assertEqual(framing.received(b"x", STAMP), STAMP + b"x" * 65_536)

    def test_full_read(self) -> None:
        """A read without a newline is a message below 16 KiB, which a TLS record may have."""
        self.assertEqual(AutoFraming().received(b"x" * 16_384, STAMP), b"")
        self.assertEqual(AutoFraming().received(b"x" * 16_383, STAMP), STAMP + b"x" * 16_383)

    def test_short_reply(self) -> None:
        """The longest reply to a read that is not measured, with a `ctime` stamp, is 112 KiB."""
        prefix = b"[Sun Nov 22 14:27:36 2026] "
        read = b"\n" * (SHORT_REPLY // len(prefix))
        self.assertEqual(len(LineFraming().received(read, prefix)), 112 * 1024)


class PortionTests(SynchronousTestCase):
    """`Framing.portion`: long replies are made piece by piece."""

    # All of these need the last newline left for the second portion, or its unfinished line
    # would come alone and get a stamp of its own: the reply is too long for the whole read, but
    # not for its first half, which has all of the newlines.
    @example([b"\n\n" + b"x" * 14], MAX_PENDING // 2 - 4)
    @example([b"a\nb\n" + b"x" * 20, b"y\n"], MAX_PENDING // 2 - 6)
    @example([(b"x" * 126 + b"\n") * 129 + b"x" * 16_383], 258)
    # Even the first line is too long, and so is every one after it.
    @example([b"\n\n\n"], 2 * MAX_PENDING)
    @example([b"a\nb\nc"], 2 * MAX_PENDING)
    @given(reads(), PREFIX_LENGTHS | st.integers(1, 2 * MAX_PENDING))
    def test_same_replies(self, pieces: list[bytes], length: int) -> None:
        """Taken in portions, a read gets the same replies, none of which is too long."""
        prefix = b"p" * length
        for kind in (LineFraming, AutoFraming):
            whole, framing = kind(), kind()
            for piece in pieces:
                replies = []
                rest = piece
                while rest:
                    size = framing.portion(rest, prefix)
                    self.assertGreater(size, 0)
                    lines = rest[:size].count(b"\n")
                    self.assertTrue(lines <= 1 or size + lines * length <= MAX_PENDING)
                    replies.append(framing.received(rest[:size], prefix))
                    rest = rest[size:]
                self.assertEqual(b"".join(replies), whole.received(piece, prefix))
            self.assertEqual(framing.ended(), whole.ended())
            self.assertEqual(framing.messages, whole.messages)

    def test_whole_read(self) -> None:
        """A read is one portion unless it has many stamps."""
        for data in (
            b"x",
            b"x\n" * 999,
            b"x" * MAX_PENDING,
            b"x" * MAX_PENDING + b"\n",
            b"x\n" + b"x" * MAX_PENDING,
            b"\n" + b"x" * MAX_PENDING + b"y",
        ):
            self.assertEqual(LineFraming().portion(data, STAMP), len(data))

    def test_longest_reply(self) -> None:
        """A reply twice as long as the read is made at once, and else the read is halved.

        A reply of 16 KiB always is, and none that is longer than 64 KiB.
        """
        for line, lines, limit in (
            (b"\n", 1024, MIN_PORTION),
            (b"x\n", 512, MIN_PORTION),
            (b"x" * 15 + b"\n", 64, MIN_PORTION),
            (b"\n", 10_000, 20_000),
            (b"x" * 3 + b"\n", MAX_PENDING // 8, MAX_PENDING),
            (b"x" * 15 + b"\n", MAX_PENDING // 20, MAX_PENDING),
        ):
            data = line * lines
            prefix = b"p" * ((limit - len(data)) // lines)
            self.assertEqual(LineFraming().portion(data, prefix), len(data))
            self.assertEqual(LineFraming().portion(data, prefix + b"p"), lines // 2 * len(line))
        self.assertEqual(LineFraming().portion(b"\n" * MAX_PENDING, b"p" * 31), MAX_PENDING // 32)

    def test_ends_at_newline(self) -> None:
        """A portion cuts no line in two."""
        data = b"a" * 10 + b"\n" + b"b" * 30 + b"\n" + b"c" * 10 + b"\n"
        for length in (MAX_PENDING // 2, MAX_PENDING, 2 * MAX_PENDING):
            self.assertEqual(LineFraming().portion(data, b"p" * length), 11)

    def test_chunk(self) -> None:
        """In `chunk` there is one stamp in any reply."""
        self.assertEqual(ChunkFraming().portion(b"\n" * MAX_PENDING, STAMP), MAX_PENDING)


class LineTests(SynchronousTestCase):
    """`LineFraming`: exact at every way the network may cut the bytes."""

    @given(reads())
    def test_one_stamp_per_line(self, pieces: list[bytes]) -> None:
        """However the text is cut, every line comes back with one stamp in front of it."""
        framing = LineFraming()
        lines = lines_of(b"".join(pieces))
        replies = b"".join(replies_to(framing, pieces))
        self.assertEqual(replies, b"".join(STAMP + line for line in lines))
        self.assertEqual(framing.messages, len(lines))

    @given(reads())
    def test_at_once(self, pieces: list[bytes]) -> None:
        """A line is answered by the read that completes it, with that read's stamp."""
        framing = LineFraming()
        seen = b""
        for number, piece in enumerate(pieces):
            before = seen.count(b"\n")
            seen += piece
            due = lines_of(seen)[before : seen.count(b"\n")]
            reply = framing.received(piece, numbered(number))
            self.assertEqual(reply, b"".join(numbered(number) + line for line in due))

    @given(reads())
    def test_waiting(self, pieces: list[bytes]) -> None:
        """It is waiting exactly while a line is incomplete."""
        framing = LineFraming()
        self.assertIs(framing.waiting, False)
        seen = b""
        for piece in pieces:
            seen += piece
            framing.received(piece, STAMP)
            self.assertIs(framing.waiting, not seen.endswith(b"\n"))
        framing.ended()
        self.assertIs(framing.waiting, False)

    def test_end_has_stamp_of_last_read(self) -> None:
        """A line that ends with the connection has the stamp of the last read."""
        framing = LineFraming()
        framing.received(b"a", numbered(1))
        framing.received(b"b", numbered(2))
        self.assertEqual(framing.ended(), numbered(2) + b"ab")
        self.assertEqual(framing.ended(), b"")
        self.assertEqual(framing.messages, 1)

    def test_end_without_bytes(self) -> None:
        """A connection without a byte gets no reply."""
        framing = LineFraming()
        self.assertEqual(framing.ended(), b"")
        self.assertEqual(framing.messages, 0)

    def test_million_empty_lines(self) -> None:
        """Empty lines are lines."""
        framing = LineFraming()
        self.assertEqual(framing.received(b"\n" * 10**6, STAMP), (STAMP + b"\n") * 10**6)
        self.assertEqual(repr(framing.messages), "1000000")  # an integer, as the log shows it

    def test_nothing_waits_after_newline(self) -> None:
        """A read of any length that ends in a newline leaves nothing to wait for."""
        for size in (1, 255, 256, 257, 9000):
            framing = LineFraming()
            lines = b"a\n" + b"x" * size + b"\n"
            replies = STAMP + b"a\n" + STAMP + b"x" * size + b"\n"
            self.assertEqual(framing.received(lines, STAMP), replies)
            self.assertIs(framing.waiting, False)

    def test_pause_does_not_count(self) -> None:
        """In `line` a pause of the sender ends nothing."""
        self.assertIs(LineFraming.ends_at_pause, False)


class LongLineTests(SynchronousTestCase):
    """`LineFraming` with lines of 64 KiB and more."""

    @example(MAX_PENDING, 1)
    @example(MAX_PENDING - 1, 1)
    @example(MAX_PENDING + 1, MAX_PENDING)
    @given(st.integers(1, 5 * MAX_PENDING), st.integers(1000, 2 * MAX_PENDING))
    def test_no_maximum(self, length: int, size: int) -> None:
        """A line of any length gets one stamp; at most 64 KiB of it are pending."""
        framing = LineFraming()
        text = b"x" * length + b"\nnext"
        size = max(size, len(text) // 100)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        pending = 0
        replies = []
        for piece in pieces:
            replies.append(framing.received(piece, STAMP))
            pending += len(piece) - len(replies[-1].replace(STAMP, b""))
            self.assertLess(pending, MAX_PENDING)
        replies.append(framing.ended())
        self.assertEqual(b"".join(replies), STAMP + b"x" * length + b"\n" + STAMP + b"next")
        self.assertEqual(framing.messages, 2)

    def test_stamp_of_its_start(self) -> None:
        """A long line has the stamp of the read with which its reply starts."""
        framing = LineFraming()
        start = b"x" * (MAX_PENDING - 1)
        self.assertEqual(framing.received(start, numbered(1)), b"")
        self.assertEqual(framing.received(b"y", numbered(2)), numbered(2) + start + b"y")
        self.assertEqual(framing.received(b"x\ny\nz", numbered(3)), b"x\n" + numbered(3) + b"y\n")
        self.assertEqual(framing.ended(), numbered(3) + b"z")

    def test_passed_on(self) -> None:
        """Once its reply has started, the bytes of a line go out as they come."""
        framing = LineFraming()
        framing.received(b"x" * MAX_PENDING, STAMP)
        for piece in (b"y", b"y" * 2 * MAX_PENDING, b"y\n"):
            self.assertIs(framing.waiting, True)
            self.assertEqual(framing.received(piece, STAMP), piece)
        self.assertIs(framing.waiting, False)
        self.assertEqual(framing.messages, 1)

    def test_unfinished_after_newline(self) -> None:
        """What follows the last newline of a read is bounded as well."""
        framing = LineFraming()
        end = b"x" * MAX_PENDING
        self.assertEqual(framing.received(b"a\n" + end, STAMP), STAMP + b"a\n" + STAMP + end)
        self.assertEqual(framing.received(b"b\n", STAMP), b"b\n")

    def test_ends_with_connection(self) -> None:
        """Where the connection ends within a long line, all of it has been answered."""
        framing = LineFraming()
        framing.received(b"x" * MAX_PENDING, STAMP)
        self.assertIs(framing.waiting, True)
        self.assertEqual(framing.ended(), b"")
        self.assertIs(framing.waiting, False)
        self.assertEqual(framing.messages, 1)

    @given(st.sampled_from([LineFraming, AutoFraming]), reads())
    def test_as_new_after_long_line(self, kind: type[LineFraming], pieces: list[bytes]) -> None:
        """After a long line everything is as on a new connection."""
        pieces = [piece for piece in pieces if piece]
        framing = kind()
        framing.received(b"x" * MAX_PENDING, STAMP)
        self.assertEqual(framing.received(b"\n", STAMP), b"\n")
        self.assertIs(framing.waiting, False)
        self.assertEqual(replies_to(framing, pieces), replies_to(kind(), pieces))

    @given(st.sampled_from([LineFraming, AutoFraming]), reads())
    def test_as_new_after_end(self, kind: type[LineFraming], pieces: list[bytes]) -> None:
        """After the end of a long message everything is as on a new connection."""
        pieces = [piece for piece in pieces if piece]
        framing = kind()
        framing.received(b"a\n" + b"x" * MAX_PENDING, STAMP)
        framing.ended()
        self.assertEqual(replies_to(framing, pieces), replies_to(kind(), pieces))


class ChunkTests(SynchronousTestCase):
    """`ChunkFraming`: a message is a read."""

    @given(reads().map(lambda pieces: [piece for piece in pieces if piece]))
    def test_one_stamp_per_read(self, pieces: list[bytes]) -> None:
        """Each read comes back unchanged, with one stamp in front of it."""
        framing = ChunkFraming()
        self.assertEqual(replies_to(framing, pieces), [STAMP + piece for piece in pieces] + [b""])
        self.assertEqual(framing.messages, len(pieces))
        self.assertIs(framing.waiting, False)

    def test_pause_does_not_count(self) -> None:
        """In `chunk` there is nothing for a pause to end."""
        self.assertIs(ChunkFraming.ends_at_pause, False)


class AutoTests(SynchronousTestCase):
    """`AutoFraming`: lines, and messages without a newline."""

    @given(reads())
    def test_bytes_and_order_kept(self, pieces: list[bytes]) -> None:
        """However the text is cut, the replies without their stamps are the text."""
        replies = b"".join(replies_to(AutoFraming(), [piece for piece in pieces if piece]))
        self.assertEqual(replies.replace(STAMP, b""), b"".join(pieces))

    @given(TEXTS.filter(bool))
    def test_lone_read_at_once(self, text: bytes) -> None:
        """A read without a newline that comes alone is a message at once."""
        text = text.replace(b"\n", b"") or b"x"
        framing = AutoFraming()
        for _ in range(2):
            self.assertEqual(framing.received(text, STAMP), STAMP + text)
            self.assertIs(framing.waiting, False)
        self.assertEqual(framing.messages, 2)

    @given(reads())
    def test_messages(self, pieces: list[bytes]) -> None:
        """A lone read is a message; pending bytes and newlines make lines, cut anywhere."""
        messages, pending = [], b""
        for piece in pieces:
            if piece and not pending and b"\n" not in piece:
                messages.append(piece)
                continue
            *whole, pending = (pending + piece).split(b"\n")
            messages += [line + b"\n" for line in whole]
        messages += [pending] if pending else []
        framing = AutoFraming()
        replies = b"".join(replies_to(framing, [piece for piece in pieces if piece]))
        self.assertEqual(replies, b"".join(STAMP + message for message in messages))
        self.assertEqual(framing.messages, len(messages))

    def test_line_at_once(self) -> None:
        """A line is answered when its newline comes."""
        framing = AutoFraming()
        self.assertEqual(framing.received(b"a\nb\n", STAMP), STAMP + b"a\n" + STAMP + b"b\n")
        self.assertIs(framing.waiting, False)

    def test_unfinished_line_waits(self) -> None:
        """What follows a newline in the same read waits for the rest of its line."""
        framing = AutoFraming()
        self.assertEqual(framing.received(b"a\nb", STAMP), STAMP + b"a\n")
        self.assertIs(framing.waiting, True)
        self.assertEqual(framing.received(b"c", STAMP), b"")
        self.assertEqual(framing.received(b"d\n", STAMP), STAMP + b"bcd\n")

    def test_full_read_waits(self) -> None:
        """A read that is long enough to have been cut waits for the rest of its message."""
        for size in (FULL_READ, FULL_READ + 1, MAX_PENDING - 30, MAX_PENDING):
            framing = AutoFraming()
            reply = framing.received(b"x" * size, STAMP)
            self.assertIs(framing.waiting, True)
            self.assertEqual(reply + framing.received(b"y\n", STAMP), STAMP + b"x" * size + b"y\n")

    def test_pause_ends_message(self) -> None:
        """After a pause the next bytes are another message, even within a long one."""
        for size in (5, MAX_PENDING):
            framing = AutoFraming()
            text = b"x" * size
            replies = framing.received(b"a\n" + text, STAMP) + framing.ended()
            self.assertEqual(replies, STAMP + b"a\n" + STAMP + text)
            self.assertEqual(framing.received(b"next", STAMP), STAMP + b"next")

    def test_rest_after_long_line_waits(self) -> None:
        """What follows the newline of a long line in one read is not a message of its own."""
        framing = AutoFraming()
        framing.received(b"x" * MAX_PENDING, STAMP)
        self.assertEqual(framing.received(b"\nrest", STAMP), b"\n")
        self.assertIs(framing.waiting, True)
        self.assertEqual(framing.received(b"\n", STAMP), STAMP + b"rest\n")

    def test_pause_counts(self) -> None:
        """In `auto` a pause of the sender ends a message."""
        self.assertIs(AutoFraming.ends_at_pause, True)


class NamesTests(SynchronousTestCase):
    """`FRAMINGS`."""

    def test_names(self) -> None:
        """The names are those of the command line."""
        self.assertEqual(
            FRAMINGS, {"auto": AutoFraming, "line": LineFraming, "chunk": ChunkFraming}
        )

    def test_no_dict(self) -> None:
        """A framing costs a connection its slots, and no dict."""
        for kind in FRAMINGS.values():
            self.assertFalse(hasattr(kind(), "__dict__"))
