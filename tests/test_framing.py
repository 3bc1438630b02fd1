"""Tests for `timestamp_echo.framing`: every way to cut the bytes."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.framing import (
    FRAMINGS,
    FULL_READ,
    HOLD,
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


def lines_of(text: bytes) -> list[bytes]:
    """The lines of a text, the last perhaps without a newline."""
    *whole, rest = text.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def numbered(number: int) -> bytes:
    """The prefix of a read, which tells which one it was."""
    return b"[%d\xff] " % number


def fed(framing: Framing, pieces: list[bytes]) -> list[bytes]:
    """The replies to each read, then to the end."""
    return [framing.received(piece, STAMP) for piece in pieces] + [framing.ended()]


class LineTests(SynchronousTestCase):
    """`LineFraming`: exact at every way the network may cut the bytes."""

    @given(reads())
    def test_one_stamp_a_line(self, pieces: list[bytes]) -> None:
        """However the text is cut, every line comes back behind one stamp."""
        framing = LineFraming()
        lines = lines_of(b"".join(pieces))
        self.assertEqual(b"".join(fed(framing, pieces)), b"".join(STAMP + li for li in lines))
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

    @given(reads(), st.integers(1, 2 * HOLD))
    def test_portions(self, pieces: list[bytes], length: int) -> None:
        """Taken in portions, a read gets the same replies, none of which is too long."""
        prefix = b"x" * length
        whole, framing = AutoFraming(), AutoFraming()
        for piece in pieces:
            replies = []
            rest = piece
            while rest:
                size = framing.portion(rest, prefix)
                lines = rest[:size].count(b"\n")
                self.assertTrue(lines <= 1 or size + lines * length <= HOLD)
                replies.append(framing.received(rest[:size], prefix))
                rest = rest[size:]
            self.assertEqual(b"".join(replies), whole.received(piece, prefix))

    def test_portion(self) -> None:
        """A read is one portion unless its stamps are many; `chunk` has but one."""
        self.assertEqual(LineFraming().portion(b"x\n" * 999, STAMP), 1998)
        self.assertEqual(LineFraming().portion(b"x" * HOLD + b"\n", STAMP), HOLD + 1)
        self.assertEqual(LineFraming().portion(b"x\n" + b"x" * HOLD, STAMP), HOLD + 2)
        self.assertEqual(LineFraming().portion(b"\n" * HOLD, b"x" * 31), HOLD // 32)
        self.assertEqual(ChunkFraming().portion(b"\n" * HOLD, STAMP), HOLD)

    @given(reads())
    def test_waiting(self, pieces: list[bytes]) -> None:
        """It is waiting exactly while a line has come in part."""
        framing = LineFraming()
        seen = b""
        for piece in pieces:
            seen += piece
            framing.received(piece, STAMP)
            self.assertEqual(framing.waiting, not seen.endswith(b"\n"))
        framing.ended()
        self.assertFalse(framing.waiting)

    def test_end_has_stamp_of_last_read(self) -> None:
        """What the sender's closing ends has the stamp of the last read that brought some."""
        framing = LineFraming()
        framing.received(b"a", numbered(1))
        framing.received(b"b", numbered(2))
        self.assertEqual(framing.ended(), numbered(2) + b"ab")
        self.assertEqual(framing.ended(), b"")

    @example(HOLD, 1)
    @example(HOLD - 1, 1)
    @example(HOLD + 1, HOLD)
    @given(st.integers(1, 5 * HOLD), st.integers(1000, 2 * HOLD))
    def test_no_longest_line(self, length: int, size: int) -> None:
        """A line of any length comes back behind one stamp, and is not held beyond 64 KiB."""
        framing = LineFraming()
        text = b"x" * length + b"\nnext"
        size = max(size, len(text) // 100)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        held = 0
        replies = []
        for piece in pieces:
            replies.append(framing.received(piece, STAMP))
            held += len(piece) - len(replies[-1].replace(STAMP, b""))
            self.assertLess(held, HOLD)
        replies.append(framing.ended())
        self.assertEqual(b"".join(replies), STAMP + b"x" * length + b"\n" + STAMP + b"next")
        self.assertEqual(framing.messages, 2)

    def test_long_reply_has_stamp_of_its_start(self) -> None:
        """The stamp of a long line is that of the read which started its reply."""
        framing = LineFraming()
        self.assertEqual(framing.received(b"x" * (HOLD - 1), numbered(1)), b"")
        self.assertTrue(framing.received(b"x", numbered(2)).startswith(numbered(2) + b"x"))
        self.assertEqual(framing.received(b"x\ny\nz", numbered(3)), b"x\n" + numbered(3) + b"y\n")
        self.assertEqual(framing.ended(), numbered(3) + b"z")

    def test_long_tail_of_one_read(self) -> None:
        """What follows the last newline of a read is bounded as well."""
        framing = LineFraming()
        tail = b"x" * HOLD
        self.assertEqual(framing.received(b"a\n" + tail, STAMP), STAMP + b"a\n" + STAMP + tail)

    def test_long_line_ends_with_its_sender(self) -> None:
        """Where the sender closes after a long reply has started, there is no more to say."""
        framing = LineFraming()
        framing.received(b"x" * HOLD, STAMP)
        self.assertTrue(framing.waiting)
        self.assertEqual(framing.ended(), b"")
        self.assertEqual(framing.received(b"y\n", STAMP), STAMP + b"y\n")

    def test_million_empty_lines(self) -> None:
        """Empty lines are lines."""
        framing = LineFraming()
        self.assertEqual(framing.received(b"\n" * 10**6, STAMP), (STAMP + b"\n") * 10**6)
        self.assertEqual(framing.messages, 10**6)

    def test_pause_does_not_count(self) -> None:
        """In `line` the sender may take its time."""
        self.assertFalse(LineFraming.ends_at_pause)


class ChunkTests(SynchronousTestCase):
    """`ChunkFraming`: a message is a read."""

    @given(reads().map(lambda pieces: [piece for piece in pieces if piece]))
    def test_one_stamp_a_read(self, pieces: list[bytes]) -> None:
        """Each read comes back behind one stamp, as it was."""
        framing = ChunkFraming()
        self.assertEqual(fed(framing, pieces), [STAMP + piece for piece in pieces] + [b""])
        self.assertEqual(framing.messages, len(pieces))
        self.assertFalse(framing.waiting or framing.ends_at_pause)


class AutoTests(SynchronousTestCase):
    """`AutoFraming`: lines, and what comes without one."""

    @given(reads())
    def test_bytes_and_order_kept(self, pieces: list[bytes]) -> None:
        """Whatever the cuts, the replies with the stamps removed are the input."""
        replies = b"".join(fed(AutoFraming(), [piece for piece in pieces if piece]))
        self.assertEqual(replies.replace(STAMP, b""), b"".join(pieces))

    @given(TEXTS.filter(bool))
    def test_lone_read_at_once(self, text: bytes) -> None:
        """What comes without a newline, by itself, is a message at once."""
        text = text.replace(b"\n", b"") or b"x"
        framing = AutoFraming()
        for _ in range(2):
            self.assertEqual(framing.received(text, STAMP), STAMP + text)
            self.assertFalse(framing.waiting)
        self.assertEqual(framing.messages, 2)

    @given(reads())
    def test_as_the_table_says(self, pieces: list[bytes]) -> None:
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
        replies = b"".join(fed(framing, [piece for piece in pieces if piece]))
        self.assertEqual(replies, b"".join(STAMP + message for message in messages))
        self.assertEqual(framing.messages, len(messages))

    def test_line_at_once(self) -> None:
        """A line is answered when its newline comes."""
        framing = AutoFraming()
        self.assertEqual(framing.received(b"a\nb\n", STAMP), STAMP + b"a\n" + STAMP + b"b\n")
        self.assertFalse(framing.waiting)

    def test_tail_waits(self) -> None:
        """What follows a newline in the same read waits for the rest of its line."""
        framing = AutoFraming()
        self.assertEqual(framing.received(b"a\nb", STAMP), STAMP + b"a\n")
        self.assertTrue(framing.waiting)
        self.assertEqual(framing.received(b"c", STAMP), b"")
        self.assertEqual(framing.received(b"d\n", STAMP), STAMP + b"bcd\n")

    def test_full_read_waits(self) -> None:
        """A read that filled the receive buffer may have been cut by it."""
        for size in (FULL_READ, FULL_READ + 1, 2**16 - 30, 2**16):
            framing = AutoFraming()
            reply = framing.received(b"x" * size, STAMP)
            self.assertTrue(framing.waiting)
            self.assertEqual(reply + framing.received(b"y\n", STAMP), STAMP + b"x" * size + b"y\n")

    def test_shorter_read_at_once(self) -> None:
        """One that is shorter was not."""
        framing = AutoFraming()
        text = b"x" * (FULL_READ - 1)
        self.assertEqual(framing.received(text, STAMP), STAMP + text)

    def test_pause_ends_message(self) -> None:
        """After a pause the next bytes are another message; so, after a long one's start."""
        for size in (5, HOLD):
            framing = AutoFraming()
            text = b"x" * size
            replies = framing.received(b"a\n" + text, STAMP) + framing.ended()
            self.assertEqual(replies, STAMP + b"a\n" + STAMP + text)
            self.assertEqual(framing.received(b"next", STAMP), STAMP + b"next")

    def test_rest_after_long_line_waits(self) -> None:
        """What follows a long line's newline in one read is no read of its own."""
        framing = AutoFraming()
        framing.received(b"x" * HOLD, STAMP)
        self.assertEqual(framing.received(b"\nrest", STAMP), b"\n")
        self.assertTrue(framing.waiting)

    def test_pause_counts(self) -> None:
        """In `auto` a pause ends a message."""
        self.assertTrue(AutoFraming.ends_at_pause)


class NamesTests(SynchronousTestCase):
    """`FRAMINGS`."""

    def test_names(self) -> None:
        """The names are those of the command line."""
        self.assertEqual(list(FRAMINGS), ["auto", "line", "chunk"])
