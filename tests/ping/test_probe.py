"""Tests for `timestamp_echo.ping.probe`, with received bytes split in every way."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping.probe import MAX_SIZE, MIN_SIZE, NONCE_LENGTH, Probes, Reply
from timestamp_echo.stamps import MAX_STAMP, SECOND, Moment, Stamp

NONCE = "0123456789ab"
OTHER_NONCE = "ba9876543210"
NOW = 1795357656 * SECOND + 123456789
HIGHEST = 10**10 - 1

PREFIXES = [b"", *(Stamp(style, utc=True).prefix(NOW) for style in ("ctime", "iso", "unix"))]
"""What may precede a message; a plain echo adds nothing."""

NOISE = [
    b"\n",
    b"hello\n",
    b"[a stamp] of another's\n",
    b"[[[]] \xff\0\n",
    PREFIXES[1] + Probes(OTHER_NONCE, 64).message(1),
    NONCE.encode() + b"\n",
    NONCE.encode() + b" x \n",
    NONCE.encode() + b" 12345678901 \n",
    NONCE.encode() + b" 0 \n",
    PREFIXES[1] + Probes(NONCE, 64).message(0),
]
"""Lines that are not replies."""

SIZES = st.sampled_from([MIN_SIZE, MIN_SIZE + 1, 64, 1500])


def probes(size: int = 64) -> Probes:
    """The probes of a run."""
    return Probes(NONCE, size)


def stamp_of(prefix: bytes) -> str:
    """The stamp in a prefix."""
    return prefix.decode()[1:-2]


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[bytes], list[Reply]]:
    """Size of a probe; a stream of replies and noise, split anywhere; the expected replies."""
    size = draw(SIZES)
    text, expected = b"", []
    for number in draw(st.lists(st.none() | st.integers(1, HIGHEST), max_size=6)):
        if number is None:
            text += draw(st.sampled_from(NOISE))
            continue
        prefix = draw(st.sampled_from(PREFIXES))
        text += prefix + probes(size).message(number)
        expected.append(Reply(number, stamp_of(prefix), False))
    cuts = draw(st.sets(st.integers(0, len(text)), max_size=20))
    return size, [text[i:j] for i, j in pairwise(sorted(cuts | {0, len(text)}))], expected


class TextTests(SynchronousTestCase):
    """`Probes.message`."""

    def test_number(self) -> None:
        """The number of a probe is found in its message."""
        probes = Probes("0123456789ab", 64)
        for number in (1, 10, 9_999_999_999):
            self.assertEqual(probes.number(probes.message(number)), number)

    @given(st.integers(MIN_SIZE, 2000), st.integers(0, HIGHEST))
    def test_size(self, size: int, number: int) -> None:
        """A probe has the requested size, is one line, and contains its number."""
        text = probes(size).message(number)
        self.assertEqual(len(text), size)
        self.assertEqual(text.index(b"\n"), size - 1)
        self.assertEqual(text.split(b" ")[:2], [NONCE.encode(), b"%d" % number])
        self.assertTrue(text.isascii())

    def test_smallest(self) -> None:
        """The smallest probe has room for a number of ten digits, and no more."""
        self.assertEqual(len(NONCE), NONCE_LENGTH)
        self.assertEqual(len(probes(MIN_SIZE).message(HIGHEST)), MIN_SIZE)
        self.assertEqual(probes(MIN_SIZE).message(HIGHEST), b"%b %d \n" % (NONCE.encode(), HIGHEST))

    def test_largest(self) -> None:
        """The reply to the largest probe fits into a datagram, with a stamp of 500 bytes."""
        self.assertLessEqual(len(probes(MAX_SIZE).message(1)) + 500, 65507)


class RepliesTests(SynchronousTestCase):
    """`Probes.replies`."""

    @given(streams())
    def test_any_cut(self, stream: tuple[int, list[bytes], list[Reply]]) -> None:
        """However the stream is split, each reply is found once, with its stamp, in order."""
        size, pieces, expected = stream
        run = probes(size)
        self.assertEqual([reply for piece in pieces for reply in run.replies(piece)], expected)

    @given(streams())
    def test_at_once(self, stream: tuple[int, list[bytes], list[Reply]]) -> None:
        """A reply is found when its newline arrives, neither earlier nor later."""
        size, pieces, expected = stream
        run, seen, found = probes(size), b"", 0
        for piece in pieces:
            seen += piece
            found += len(run.replies(piece))
            lines = seen.split(b"\n")[:-1]
            texts = [b"%b %d " % (NONCE.encode(), reply.number) for reply in expected]
            whole = [line for line in lines if any(text in line for text in texts)]
            self.assertEqual(found, len(whole))

    def test_moment(self) -> None:
        """The moment of a stamp of any style is parsed; otherwise it is None."""
        second = NOW // SECOND * SECOND
        expected = [
            None,
            Moment(second, SECOND, False),
            Moment(NOW // 1000 * 1000, 1000, True),
            Moment(NOW, 1, True),
        ]
        for prefix, moment in zip(PREFIXES, expected, strict=True):
            (reply,) = probes().replies(prefix + probes().message(7))
            self.assertEqual(reply.moment, moment)
        for stamp in ("x", "9" * 250 + ".5", "2026-02-30T00:00:00.000000+00:00", ""):
            self.assertIsNone(Reply(1, stamp, False).moment)

    def test_strange_stamp(self) -> None:
        """An unknown stamp is kept as text; bytes that are not UTF-8 are replaced."""
        for prefix, stamp in ((b"[12 \xe7\x82\xb9] ", "12 点"), (b"[\xff] ", "\ufffd")):
            (reply,) = probes().replies(prefix + probes().message(1))
            self.assertEqual(reply, Reply(1, stamp, False))

    def test_nearest_stamp(self) -> None:
        """After other text on the same line, the stamp is still the reply's own."""
        for before in (b"[x", b"[x] y", b"[[", b"] [", b"no newline "):
            (reply,) = probes().replies(before + PREFIXES[3] + probes().message(1))
            self.assertEqual(reply, Reply(1, stamp_of(PREFIXES[3]), False))

    def test_no_stamp(self) -> None:
        """Only `[`, text without brackets, and `] ` directly before the message is a stamp."""
        for before in (b"[x]", b"[x]  ", b"x] ", b"[x\n] ", b"[" + b"x" * (MAX_STAMP + 1) + b"] "):
            (reply,) = probes().replies(before + probes().message(1))
            self.assertEqual(reply, Reply(1, "", False))
        (reply,) = probes().replies(b"[" + b"x" * MAX_STAMP + b"] " + probes().message(1))
        self.assertEqual(reply.stamp, "x" * MAX_STAMP)

    def test_other_run(self) -> None:
        """Probes of another run are ignored."""
        self.assertEqual(Probes(OTHER_NONCE, 64).replies(probes().message(1)), [])

    def test_altered(self) -> None:
        """A message that differs from the probe is reported as altered."""
        text = probes().message(12)
        for message in (
            text[:-1] + b"\r\n",
            text[:-2] + b"\n",
            text[:-2] + b"..\n",
            text.replace(b".", b",", 1),
            text.replace(b" 12 ", b" 012 "),
        ):
            (reply,) = probes().replies(b"[x] " + message)
            self.assertEqual(reply, Reply(12, "x", True))

    def assert_read_by(self, size: int, step: int, piece: int) -> None:
        """A message with the stamps of an echo that stamps each of its reads is not altered."""
        run = probes(size)
        text, stamp = run.message(3), PREFIXES[1]
        reads = [text[i : i + step] for i in range(0, size, step)]
        back = b"".join(stamp + read for read in reads)
        found = [run.replies(back[i : i + piece]) for i in range(0, len(back), piece)]
        expected = Reply(3, stamp_of(stamp), False)
        self.assertEqual(found, [[]] * (len(found) - 1) + [[expected]])

    def test_stamps_within(self) -> None:
        """The lab's server reads 1024 bytes at a time, so its stamps are inside a large probe."""
        for size in (1000, 1024, 1025, 2000, 12_000, MAX_SIZE):
            for piece in (1000, 10**6):
                self.assert_read_by(size, 1024, piece)

    @given(
        st.integers(1, HIGHEST),
        st.sets(st.integers(1, 63), min_size=1, max_size=4),
        st.sampled_from(PREFIXES[1:]),
        st.booleans(),
    )
    def test_stamps_anywhere(
        self, number: int, cuts: set[int], stamp: bytes, stamped: bool
    ) -> None:
        """Reads end anywhere under load, so stamps may be within the nonce and the number."""
        text = probes().message(number)
        reads = [text[i:j] for i, j in pairwise(sorted(cuts | {0, 64}))]
        first = stamp if stamped else b""
        expected = Reply(number, stamp_of(stamp) if stamped else "", False)
        self.assertEqual(probes().replies(first + stamp.join(reads)), [expected])

    def test_stamps_within_other_text(self) -> None:
        """What is not a stamp does not belong into a nonce or a number."""
        for inside in (b"[x]", b"x", b"[x\n] ", b"[" + b"x" * (MAX_STAMP + 1) + b"] "):
            for at in (5, NONCE_LENGTH, NONCE_LENGTH + 2):
                text = probes().message(123)
                self.assertEqual(probes().replies(text[:at] + inside + text[at:]), [])

    def test_bounded(self) -> None:
        """Of an endless line, no more is kept than two probes and a stamp."""
        for size in (MIN_SIZE, 1000):
            run = probes(size)
            for _ in range(100):
                self.assertEqual(run.replies(b"x" * 999), [])
                self.assertLessEqual(len(run._partial), 2 * size + 256)
            # When it ends, the next reply is parsed as usual.
            self.assertEqual(run.replies(run.message(1) + run.message(2))[1], Reply(2, "", False))

    def test_costs_little(self) -> None:
        """A line made to be slow to search is not."""
        run = probes(MAX_SIZE)  # backtracking would take minutes
        self.assertEqual(run.replies(b"[" * 200_000 + b"\n"), [])
        self.assertEqual(run.replies(b"[" + b"x[" * 100_000 + b"\n"), [])
        self.assertEqual(run.replies(b"0" + b"[] " * 60_000 + b"\n"), [])
        self.assertEqual(run.replies(b"0[] 1[] " * 20_000 + b"\n"), [])

    def test_other(self) -> None:
        """The first line that is no reply is kept, unless it is blank or was cut."""
        run = probes()
        reply = run.message(1)
        for data in (b"[x] one\r\ntw", b"o\n", reply):
            run.replies(data)
            self.assertEqual(run.other_line, b"[x] one\r")
        run.other_line = b""
        for data in (b"x" * 1000, b"cut\n", b"\r\n \n"):
            run.replies(data)
            self.assertEqual(run.other_line, b"")
        for _ in range(2):
            run.replies(reply + b"three\n" + reply[:9])
            self.assertEqual(run.other_line, b"three")
            run.reset()
            self.assertEqual(run.other_line, b"")

    def test_reset(self) -> None:
        """A partial reply from a lost connection does not alter the next one."""
        run = probes()
        text = run.message(1)
        self.assertEqual(run.replies(text[:30]), [])
        run.reset()
        self.assertEqual(run.replies(text), [Reply(1, "", False)])
