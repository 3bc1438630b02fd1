"""Tests for `timestamp_echo.stamps`."""

import os
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo import stamps
from timestamp_echo.stamps import SECOND, Moment, Stamp, parse

MOMENT = 1795357656_065043076  # 2026-11-22 14:27:36 UTC
MOMENTS = st.integers(0, 4102444800 * SECOND - 1)  # 1970 to 2099


@contextmanager
def zone(name: str) -> Iterator[None]:
    """The local zone, for a while."""
    with patch.dict(os.environ, TZ=name):
        time.tzset()
        yield
    time.tzset()


class FormattingTests(SynchronousTestCase):
    """`Stamp.prefix`."""

    def test_ctime(self) -> None:
        """The default is the text of C's ctime."""
        self.assertEqual(Stamp(utc=True).prefix(MOMENT), b"[Sun Nov 22 14:27:36 2026] ")

    def test_ctime_day_padded(self) -> None:
        """A day of one digit is padded with a space, as in C."""
        self.assertEqual(Stamp(utc=True).prefix(0), b"[Thu Jan  1 00:00:00 1970] ")

    def test_iso(self) -> None:
        """`iso` is RFC 3339 with microseconds and the zone's offset."""
        with zone("Asia/Singapore"):
            prefix = Stamp("iso").prefix(MOMENT)
        self.assertEqual(prefix, b"[2026-11-22T22:27:36.065043+08:00] ")

    def test_iso_west(self) -> None:
        """An offset west of Greenwich is negative, and may have minutes."""
        with zone("NST3:30"):
            prefix = Stamp("iso").prefix(MOMENT)
        self.assertEqual(prefix, b"[2026-11-22T10:57:36.065043-03:30] ")

    def test_iso_utc(self) -> None:
        """With `utc` the local zone does not matter."""
        with zone("Asia/Singapore"):
            prefix = Stamp("iso", utc=True).prefix(MOMENT)
        self.assertEqual(prefix, b"[2026-11-22T14:27:36.065043+00:00] ")

    def test_unix(self) -> None:
        """`unix` is seconds and nanoseconds, in any zone."""
        self.assertEqual(Stamp("unix").prefix(MOMENT), b"[1795357656.065043076] ")

    def test_pattern(self) -> None:
        """Any text with a % is a strftime pattern; %% is a %, and %f the microseconds."""
        stamp = Stamp("%H:%M:%S.%f %%f at 5%% é", utc=True)
        self.assertEqual(stamp.prefix(MOMENT), "[14:27:36.065043 %f at 5% é] ".encode())

    def test_pattern_offset(self) -> None:
        """%:z is the offset with a colon, on every Python."""
        with zone("Asia/Singapore"):
            self.assertEqual(Stamp("%H%:z").prefix(MOMENT), b"[22+08:00] ")

    def test_fraction_twice(self) -> None:
        """A pattern may have %f several times."""
        self.assertEqual(Stamp("%f %f", utc=True).prefix(MOMENT), b"[065043 065043] ")

    def test_pattern_from_any_letter(self) -> None:
        """What is in front of the first directive of a pattern does not matter."""
        for text in ("a", "ctime", "iso", "unix", "zone"):
            prefix = Stamp(f"{text} %H", utc=True).prefix(MOMENT)
            self.assertEqual(prefix, f"[{text} 14] ".encode())

    def test_named_by_any_string(self) -> None:
        """A style is known by its text, as it comes from a command line."""
        for style in stamps.STYLES:
            same = style.encode().decode()
            self.assertEqual(Stamp(same).prefix(MOMENT), Stamp(style).prefix(MOMENT))

    def test_subsecond(self) -> None:
        """Only styles with a fraction of a second are sub-second."""
        styles = ["ctime", "iso", "unix", "%H", "%f", "%%f"]
        self.assertEqual(
            [Stamp(style).subsecond for style in styles],
            [False, True, True, False, True, False],
        )

    def test_cached_within_second(self) -> None:
        """Within a second the stamp is formatted once."""
        stamp = Stamp(utc=True)
        for start in range(MOMENT // SECOND * SECOND, MOMENT + 8 * SECOND, SECOND):
            first = stamp.prefix(start)
            self.assertIs(stamp.prefix(start + 1), first)
            self.assertIs(stamp.prefix(start + SECOND - 1), first)
            self.assertIs(stamp.prefix(start), first)

    @given(MOMENTS, st.lists(st.integers(-3 * SECOND, 3 * SECOND), min_size=1, max_size=5))
    def test_as_without_cache(self, moment: int, steps: list[int]) -> None:
        """A stamp does not depend on the ones before it."""
        for style in ("ctime", "unix"):
            stamp = Stamp(style, utc=True)
            for step in (0, SECOND, *steps):
                expected = Stamp(style, utc=True).prefix(moment + step)
                self.assertEqual(stamp.prefix(moment + step), expected)

    def test_next_second(self) -> None:
        """The stamp changes with the second, forwards and backwards (a clock may be set back)."""
        stamp = Stamp(utc=True)
        stamp.prefix(MOMENT)
        start = MOMENT // SECOND * SECOND
        self.assertIn(b":37 ", stamp.prefix(start + SECOND))
        self.assertIn(b":35 ", stamp.prefix(start - 1))

    def test_daylight_saving(self) -> None:
        """The start of daylight saving time takes effect between two messages."""
        change = 1774746000 * SECOND  # 2026-03-29 01:00 UTC
        with zone("Europe/Berlin"):
            stamp = Stamp("iso")
            self.assertIn(b"T01:59:59.999999+01:00", stamp.prefix(change - 1000))
            self.assertIn(b"T03:00:00.000000+02:00", stamp.prefix(change))

    def test_zone_changed(self) -> None:
        """A change of the local zone takes effect with the next second."""
        stamp = Stamp("%H")
        with zone("UTC"):
            self.assertEqual(stamp.prefix(MOMENT), b"[14] ")
            with patch.dict(os.environ, TZ="Asia/Singapore"):
                self.assertEqual(stamp.prefix(MOMENT + SECOND), b"[22] ")

    def test_zone_file_changed(self) -> None:
        """So does a change of the zone's file, as when /etc/localtime is replaced."""
        zones = Path("/usr/share/zoneinfo")
        link = Path(self.mktemp()).absolute()
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_bytes((zones / "UTC").read_bytes())
        stamp = Stamp("%H")
        with zone(f":{link}"):
            self.assertEqual(stamp.prefix(MOMENT), b"[14] ")
            with patch.dict(os.environ, TZ=f":{zones / 'Asia/Singapore'}"):
                self.assertEqual(stamp.prefix(MOMENT + SECOND), b"[22] ")


class RefusedStyleTests(SynchronousTestCase):
    """What `Stamp` refuses, and its error messages."""

    def assert_refused(self, style: str, message: str) -> None:
        """The style is refused with a message that says what was expected and what was given."""
        self.assertEqual(str(self.assertRaises(ValueError, Stamp, style)), message)

    def test_unknown(self) -> None:
        """A text that is not the name of a style and has no % in it."""
        for style in ("rfc822", "", "ISO", "ctimes", "isotime", "unixtime", "zulu"):
            self.assert_refused(
                style,
                "expected ctime, iso, unix, or a strftime pattern with a '%', not " + repr(style),
            )

    def test_unknown_directive(self) -> None:
        """A directive that is not in the documentation of strftime."""
        for style, directive in (
            *(("%Q", "%Q"), ("%", "%"), ("%H%", "%"), ("x% d", "% "), ("%-d", "%-")),
            *(("%:s", "%:"), ("%:", "%:"), ("%\n", "%\n"), ("%é", "%é")),
        ):
            self.assert_refused(
                style, f"expected a strftime directive, not {directive!r} in {style!r}"
            )

    def test_all_directives(self) -> None:
        """Of the letters, those in the documentation of Python's strftime are directives."""
        refused = "EiJkKlLNoOPqQsv"
        for letter in string.ascii_letters:
            if letter in refused:
                self.assertRaises(ValueError, Stamp, f"%{letter}")
            elif letter not in "nt":  # a newline and a tab, which do not print
                Stamp(f"%{letter}")

    def assert_unprintable(self, style: str) -> None:
        """The text of the style is refused."""
        self.assert_refused(
            style,
            "expected a strftime pattern that gives printable text on one line without ']'"
            f" before a space, not {style!r}",
        )

    def test_not_printable(self) -> None:
        """A pattern whose text is not one printable line."""
        for style in ("%H\n", "%n", "%t", "\x1b[31m%H", "%H\udcff"):
            self.assert_unprintable(style)

    def test_end_of_stamp_within(self) -> None:
        """A pattern whose text contains `] `, where a stamp ends."""
        for style in ("%H] %M", "%%] ", "%H] "):
            self.assert_unprintable(style)
        for style in ("%H]%M", "%H [%M]"):
            Stamp(style)

    def test_checked_times(self) -> None:
        """A pattern is checked for each month, weekday and half of the day (%B, %A, %p)."""
        times = {time.gmtime(second) for second in stamps._SECONDS}
        seen = {(at.tm_mon, at.tm_wday, at.tm_hour < 12) for at in times}
        self.assertEqual(len(seen), 12 * 7 * 2)

    def assert_too_long(self, style: str, size: int) -> None:
        """The text of the style is refused for its size."""
        self.assert_refused(
            style,
            f"expected a strftime pattern that gives at most 255 bytes, not {size} as {style!r}",
        )

    def test_too_long(self) -> None:
        """A pattern whose text may have more than 255 bytes, in UTF-8, at some time of the year."""
        Stamp("%y" + "é" * 124 + "xxxxx")  # 255 bytes
        self.assert_too_long("%y" + "é" * 127, 256)
        self.assert_too_long("%f" * 43, 258)
        self.assert_too_long("%B" * 29, 29 * len("September"))
        self.assert_too_long("%A" * 29, 29 * len("Wednesday"))


class ParsingTests(SynchronousTestCase):
    """`parse`."""

    @given(MOMENTS)
    def test_unix(self, moment: int) -> None:
        """A `unix` stamp has nanoseconds."""
        text = Stamp("unix").prefix(moment)[1:-2].decode()
        self.assertEqual(parse(text), Moment(moment, 1, True))

    @given(MOMENTS, st.sampled_from(["UTC", "Asia/Singapore", "America/St_Johns"]))
    def test_iso(self, moment: int, name: str) -> None:
        """An `iso` stamp has microseconds, whatever the zone.

        Some zones once had an offset with seconds, which RFC 3339 has no room for.
        """
        with zone(name):
            text = Stamp("iso").prefix(moment)[1:-2].decode()
            odd = time.localtime(moment // SECOND).tm_gmtoff % 60
        expected = moment // 1000 * 1000 + odd * SECOND
        self.assertEqual(parse(text), Moment(expected, 1000, True))

    @given(MOMENTS)
    def test_ctime(self, moment: int) -> None:
        """A `ctime` stamp has seconds and no zone, so it is taken for UTC."""
        text = Stamp(utc=True).prefix(moment)[1:-2].decode()
        self.assertEqual(parse(text), Moment(moment // SECOND * SECOND, SECOND, False))

    @given(MOMENTS)
    def test_pattern(self, moment: int) -> None:
        """A stamp in a pattern of one's own is parsed with the pattern."""
        pattern = "%d.%m.%Y %H-%M-%S,%f %:z"
        text = Stamp(pattern, utc=True).prefix(moment)[1:-2].decode()
        self.assertEqual(parse(text, pattern), Moment(moment // 1000 * 1000, 1000, True))

    def test_pattern_with_percent(self) -> None:
        """A %% is a %, whatever letters follow."""
        pattern = "%Y-%m-%d %H:%M:%S %%:z %%f"
        text = Stamp(pattern, utc=True).prefix(MOMENT)[1:-2].decode()
        self.assertEqual(parse(text, pattern), Moment(MOMENT // SECOND * SECOND, SECOND, False))

    def test_pattern_without_zone(self) -> None:
        """Without a zone in the pattern the stamp is taken for UTC; without %f it has seconds."""
        expected = Moment(MOMENT // SECOND * SECOND, SECOND, False)
        self.assertEqual(parse("2026-11-22 14:27:36", "%Y-%m-%d %H:%M:%S"), expected)

    def test_leap_second(self) -> None:
        """A leap second is taken for the second before it: POSIX time has no number for it."""
        for text in ("Sat Dec 31 23:59:59 2016", "Sat Dec 31 23:59:60 2016"):
            self.assertEqual(parse(text), Moment(1483228799 * SECOND, SECOND, False))

    def test_no_stamp(self) -> None:
        """Any other text is refused, and the message shows it."""
        for text in (
            *("", "hello", "Sun Foo 22 14:08:00 2026", "1.5", "2026-11-22T14:08:00Z"),
            *("Sun Nov 22 14:08:00 2026 ", " Sun Nov 22 14:08:00 2026"),
            *("1795357656.065043076 ", "1795357656,065043076", "-1.000000000"),
            *("2026-11-22T14:08:00.123456+08:00 ", "2026-11-22 14:08:00.123456+08:00"),
        ):
            error = self.assertRaises(ValueError, parse, text)
            self.assertEqual(str(error), f"expected a ctime, iso or unix stamp, not {text!r}")

    def test_other_digits(self) -> None:
        """Only ASCII digits are digits, although Python's `int` takes others."""
        for text in (
            "1795357656.065043076",
            "2026-11-22T14:08:00.123456+08:00",
            "Sun Nov 22 14:08:00 2026",
        ):
            arabic = text.translate({ord("0") + i: chr(0x660 + i) for i in range(10)})
            error = self.assertRaises(ValueError, parse, arabic)
            self.assertIn("expected a ctime, iso or unix stamp", str(error))

    def test_every_month(self) -> None:
        """Each month and weekday of `ctime` is parsed, and the fields in their order."""
        for days in range(0, 400, 10):
            moment = (MOMENT // SECOND - days * 86400) * SECOND
            text = Stamp(utc=True).prefix(moment)[1:-2].decode()
            self.assertEqual(parse(text).nanoseconds, moment)

    def test_no_such_date(self) -> None:
        """A date that does not exist is refused."""
        self.assertRaises(ValueError, parse, "Sun Feb 31 14:08:00 2026")
        self.assertRaises(ValueError, parse, "2026-13-22T14:08:00.000000+00:00")

    def test_all_styles(self) -> None:
        """Every named style can be parsed."""
        for style in stamps.STYLES:
            parse(Stamp(style, utc=True).prefix(MOMENT)[1:-2].decode())
