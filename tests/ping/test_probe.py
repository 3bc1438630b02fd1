"""Tests for `timestamp_echo.ping.probe`: every way to cut the bytes that come back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.ping.probe import LARGEST, NONCE, SMALLEST, Probes, Reply
from timestamp_echo.stamps import MAX_STAMP, SECOND, Moment, Stamp

WORD = "0123456789ab"
OTHER_WORD = "ba9876543210"
NOW = 1795357656 * SECOND + 123456789
HIGHEST = 10**10 - 1

PREFIXES = [b"", *(Stamp(style, utc=True).prefix(NOW) for style in ("ctime", "iso", "unix"))]
"""What may come before a message: of a plain echo nothing."""

NOISE = [
    b"\n",
    b"hello\n",
    b"[a stamp] of another's\n",
    b"[[[]] \xff\0\n",
    PREFIXES[1] + Probes(OTHER_WORD, 64).text(1),
    WORD.encode() + b"\n",
    WORD.encode() + b" x \n",
    WORD.encode() + b" 12345678901 \n",
]
"""Lines that are no replies."""

SIZES = st.sampled_from([SMALLEST, SMALLEST + 1, 64, 1500])


def probes(size: int = 64) -> Probes:
    """A run's."""
    return Probes(WORD, size)


def stamp_of(prefix: bytes) -> str:
    """The stamp in a prefix."""
    return prefix.decode()[1:-2]


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[bytes], list[Reply]]:
    """The size of a probe; replies, and lines between them, cut anywhere; what is to be found."""
    size = draw(SIZES)
    text, expected = b"", []
    for number in draw(st.lists(st.none() | st.integers(0, HIGHEST), max_size=6)):
        if number is None:
            text += draw(st.sampled_from(NOISE))
            continue
        prefix = draw(st.sampled_from(PREFIXES))
        text += prefix + probes(size).text(number)
        expected.append(Reply(number, stamp_of(prefix), False))
    cuts = draw(st.sets(st.integers(0, len(text)), max_size=20))
    return size, [text[i:j] for i, j in pairwise(sorted(cuts | {0, len(text)}))], expected


class TextTests(SynchronousTestCase):
    """What is sent."""

    @given(st.integers(SMALLEST, 2000), st.integers(0, HIGHEST))
    def test_size(self, size: int, number: int) -> None:
        """Each is as large as was asked for, one line, and known by its number."""
        text = probes(size).text(number)
        self.assertEqual(len(text), size)
        self.assertEqual(text.index(b"\n"), size - 1)
        self.assertEqual(text.split(b" ")[:2], [WORD.encode(), b"%d" % number])
        self.assertTrue(text.isascii())

    def test_smallest(self) -> None:
        """The smallest has room for a number of ten digits, and for no more."""
        self.assertEqual(len(WORD), NONCE)
        self.assertEqual(len(probes(SMALLEST).text(HIGHEST)), SMALLEST)
        self.assertEqual(probes(SMALLEST).text(HIGHEST), b"%b %d \n" % (WORD.encode(), HIGHEST))

    def test_largest(self) -> None:
        """The reply to the largest fits into a datagram, with a stamp of 500 bytes."""
        self.assertLessEqual(len(probes(LARGEST).text(1)) + 500, 65507)


class RepliesTests(SynchronousTestCase):
    """What came back."""

    @given(streams())
    def test_any_cut(self, stream: tuple[int, list[bytes], list[Reply]]) -> None:
        """However the stream is cut, each reply is found once, with its stamp, and in turn."""
        size, pieces, expected = stream
        run = probes(size)
        self.assertEqual([reply for piece in pieces for reply in run.replies(piece)], expected)

    @given(streams())
    def test_at_once(self, stream: tuple[int, list[bytes], list[Reply]]) -> None:
        """A reply is found when its newline is there, neither sooner nor later."""
        size, pieces, expected = stream
        run, seen, found = probes(size), b"", 0
        for piece in pieces:
            seen += piece
            found += len(run.replies(piece))
            lines = seen.split(b"\n")[:-1]
            texts = [b"%b %d " % (WORD.encode(), reply.number) for reply in expected]
            whole = [line for line in lines if any(text in line for text in texts)]
            self.assertEqual(found, len(whole))

    def test_moment(self) -> None:
        """The stamp's moment is read, whichever kind it is; else there is none."""
        second = NOW // SECOND * SECOND
        expected = [
            None,
            Moment(second, SECOND, False),
            Moment(NOW // 1000 * 1000, 1000, True),
            Moment(NOW, 1, True),
        ]
        for prefix, moment in zip(PREFIXES, expected, strict=True):
            (reply,) = probes().replies(prefix + probes().text(7))
            self.assertEqual(reply.moment, moment)
        for stamp in ("x", "9" * 250 + ".5", "2026-02-30T00:00:00.000000+00:00", ""):
            self.assertIsNone(Reply(1, stamp, False).moment)

    def test_strange_stamp(self) -> None:
        """A stamp of another kind is told as it is; bytes that are no text are replaced."""
        for prefix, stamp in ((b"[12 \xe7\x82\xb9] ", "12 点"), (b"[\xff] ", "\ufffd")):
            (reply,) = probes().replies(prefix + probes().text(1))
            self.assertEqual(reply, Reply(1, stamp, False))

    def test_nearest_stamp(self) -> None:
        """Behind something that does not end its line, the stamp is still the reply's own."""
        for before in (b"[x", b"[x] y", b"[[", b"] [", b"no newline "):
            (reply,) = probes().replies(before + PREFIXES[3] + probes().text(1))
            self.assertEqual(reply, Reply(1, stamp_of(PREFIXES[3]), False))

    def test_no_stamp(self) -> None:
        """What is not `[`, a text without a bracket, `] ` right before it is none."""
        for before in (b"[x]", b"[x]  ", b"x] ", b"[x\n] ", b"[" + b"x" * (MAX_STAMP + 1) + b"] "):
            (reply,) = probes().replies(before + probes().text(1))
            self.assertEqual(reply, Reply(1, "", False))
        (reply,) = probes().replies(b"[" + b"x" * MAX_STAMP + b"] " + probes().text(1))
        self.assertEqual(reply.stamp, "x" * MAX_STAMP)

    def test_other_run(self) -> None:
        """Another run's probes are nothing to this one."""
        self.assertEqual(Probes(OTHER_WORD, 64).replies(probes().text(1)), [])

    def test_altered(self) -> None:
        """A message that is not as it was sent is told to be altered."""
        text = probes().text(12)
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
        """An echo that stamps each of its reads: that is no alteration of the message."""
        run = probes(size)
        text, stamp = run.text(3), PREFIXES[1]
        reads = [text[i : i + step] for i in range(0, size, step)]
        back = b"".join(stamp + read for read in reads)
        found = [run.replies(back[i : i + piece]) for i in range(0, len(back), piece)]
        expected = Reply(3, stamp_of(stamp), False)
        self.assertEqual(found, [[]] * (len(found) - 1) + [[expected]])

    def test_stamps_within(self) -> None:
        """The lab's server reads 1024 bytes at a time: its stamps stand within a large probe."""
        for size in (1000, 1024, 1025, 2000, 12_000, LARGEST):
            for piece in (1000, 10**6):
                self.assert_read_by(size, 1024, piece)

    def test_bounded(self) -> None:
        """Of what never ends, no more is kept than twice a probe and a stamp."""
        for size in (SMALLEST, 1000):
            run = probes(size)
            for _ in range(100):
                self.assertEqual(run.replies(b"x" * 999), [])
                self.assertLessEqual(len(run._rest), 2 * size + MAX_STAMP)
            # When it ends, what comes next is as good as ever.
            self.assertEqual(run.replies(run.text(1) + run.text(2))[1], Reply(2, "", False))

    def test_costs_little(self) -> None:
        """A line made to be slow to look through is not."""
        run = probes(LARGEST)  # a pattern that went back for each of them would take minutes
        self.assertEqual(run.replies(b"[" * 200_000 + b"\n"), [])
        self.assertEqual(run.replies(b"[" + b"x[" * 100_000 + b"\n"), [])

    def test_forget(self) -> None:
        """What came in part before the connection was lost does not alter what comes after."""
        run = probes()
        text = run.text(1)
        self.assertEqual(run.replies(text[:30]), [])
        run.forget()
        self.assertEqual(run.replies(text), [Reply(1, "", False)])
