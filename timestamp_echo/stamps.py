"""The text of a moment: written in front of a message, and read back.

Knows nothing else of the house: no framing, no socket, no clock. A moment comes in as
whole nanoseconds since the epoch (`time.time_ns`, or the kernel's arrival time).
"""

from __future__ import annotations

import calendar
import re
import time
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

SECOND = 10**9
"""Nanoseconds in a second."""

LONGEST = 255
"""Bytes of a stamp: a longer one would make of short messages much longer replies, which
over UDP anybody could set on anybody."""

STYLES = ("ctime", "iso", "unix")

_ISO = "%Y-%m-%dT%H:%M:%S.%f%:z"  # RFC 3339, section 5.6

# The directives that the documentation of Python's strftime names. What else a C library
# may know differs from one to the next, so it is refused rather than guessed at.
_DIRECTIVES = frozenset("aAbBcCdDeFfgGhHIjmMnprRStTuUVwWxXyYzZ%")

# Of a year every second midnight and noon: each day of the week in each month, and either half
# of the day, for %p may be empty in a locale.
_SECONDS = range(0, 365 * 86400, 129600)

_TOKEN = re.compile(r"%:z|%.|%$|[^%]+", re.DOTALL)


class Stamp:
    """The writer of one style of stamp.

    What does not change within a second is made once a second; between, a stamp costs a
    comparison and, for the sub-second styles, one `bytes.join`.

    @param style: `ctime`, `iso`, `unix`, or a strftime pattern: any text with a `%`.
    @param utc: UTC instead of the local zone, which is followed as it changes.
    @raise ValueError: for a style that is none of these, or a pattern whose text could not
        stand between `[` and `] ` at the front of a line.
    """

    subsecond: bool
    """Whether this style tells moments apart within one second."""

    def __init__(self, style: str = "ctime", utc: bool = False) -> None:
        self._utc = utc
        self._unix = style == "unix"
        self._ctime = style == "ctime"
        self._patterns = [] if style in ("unix", "ctime") else _split(style)
        self.subsecond = self._unix or len(self._patterns) > 1
        self._start = self._end = 0
        self._parts: list[bytes] = []
        if self._patterns:
            self._check(style)

    def prefix(self, moment: int) -> bytes:
        """What goes in front of a message: `[`, the stamp, `] `.

        @param moment: nanoseconds since the epoch.
        """
        if not self._start <= moment < self._end:
            self._renew(moment // SECOND)
        if not self.subsecond:
            return self._parts[0]
        fraction = moment - self._start
        if self._unix:
            return (b"%09d" % fraction).join(self._parts)
        return (b"%06d" % (fraction // 1000)).join(self._parts)

    def _renew(self, second: int) -> None:
        self._start = second * SECOND
        self._end = self._start + SECOND
        texts = self._texts(second)
        texts[0] = "[" + texts[0]
        texts[-1] += "] "
        self._parts = [text.encode("utf-8") for text in texts]

    def _texts(self, second: int) -> list[str]:
        """The stamp of this second, cut where its fraction goes."""
        if self._unix:
            return [f"{second}.", ""]
        tm = self._broken_down(second)
        if self._ctime:
            # Unlike strftime's %a and %b, asctime's names are English in every locale.
            return [time.asctime(tm)]
        offset = _offset(tm.tm_gmtoff)
        return [
            "".join(offset if t == "%:z" else time.strftime(t, tm) for t in tokens)
            for tokens in self._patterns
        ]

    def _broken_down(self, second: int) -> time.struct_time:
        if self._utc:
            return time.gmtime(second)
        # localtime alone does not look whether /etc/localtime changed (tzset(3)).
        time.tzset()
        return time.localtime(second)

    def _check(self, style: str) -> None:
        for second in _SECONDS:
            text = "000000".join(self._texts(second))
            if not text.isprintable() or "] " in text:
                raise ValueError(
                    "expected a strftime pattern that gives printable text on one line"
                    f" without ']' before a space, not {style!r}"
                )
            if (size := len(text.encode("utf-8"))) > LONGEST:
                raise ValueError(
                    f"expected a strftime pattern that gives at most {LONGEST} bytes,"
                    f" not {size} as {style!r}"
                )


def _split(style: str) -> list[list[str]]:
    """Cut a strftime pattern into its tokens, in runs between one `%f` and the next."""
    tokens = _TOKEN.findall(_ISO if style == "iso" else style)
    if "%" not in style and style != "iso":
        raise ValueError(
            f"expected {', '.join(STYLES)}, or a strftime pattern with a '%', not {style!r}"
        )
    runs: list[list[str]] = [[]]
    for token in tokens:
        if token[0] == "%" and token != "%:z" and token[1:] not in _DIRECTIVES:
            raise ValueError(f"expected a strftime directive, not {token!r} in {style!r}")
        if token == "%f":
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


def _offset(seconds: int) -> str:
    """A zone's distance from UTC, as in RFC 3339: `+08:00`."""
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02}:{minutes:02}"


class Moment(NamedTuple):
    """What a stamp says."""

    nanoseconds: int
    """Since the epoch; where the stamp names no zone, as if it were UTC's."""

    resolution: int
    """The step of the stamp, in nanoseconds: the moment is this one or less than a step later."""

    zoned: bool
    """Whether the stamp says what its zone is, so that `nanoseconds` is the moment itself."""


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CTIME_SHAPE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (\w{3}) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})", re.ASCII
)
_ISO_SHAPE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d", re.ASCII)
_UNIX_SHAPE = re.compile(r"(\d+)\.(\d{9})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def parse(text: str, pattern: str | None = None) -> Moment:
    """Read a stamp: what stands between `[` and `] `.

    @param text: a `ctime`, `iso` or `unix` stamp, told apart by their shape.
    @param pattern: the strftime pattern it was written with, if it was. It is read by
        `datetime.strptime`, which does not know all the directives that strftime has.
    @raise ValueError: the text is no such stamp.
    """
    if pattern is not None:
        return _parse_pattern(text, pattern)
    if match := _UNIX_SHAPE.fullmatch(text):
        return Moment(int(match[1]) * SECOND + int(match[2]), 1, True)
    if _ISO_SHAPE.fullmatch(text):
        return Moment(_since_epoch(datetime.fromisoformat(text)), 1000, True)
    if (match := _CTIME_SHAPE.fullmatch(text)) and match[1] in _MONTHS:
        month, day, hour, minute, second, year = match.groups()
        date = datetime(
            *(int(year), _MONTHS.index(month) + 1, int(day)),
            *(int(hour), int(minute), min(int(second), 59)),  # 60 is a leap second
        )
        return Moment(calendar.timegm(date.timetuple()) * SECOND, SECOND, False)
    raise ValueError(f"expected a ctime, iso or unix stamp, not {text!r}")


def _parse_pattern(text: str, pattern: str) -> Moment:
    # strptime reads +08:00 with %z; %:z is a directive of strftime alone.
    tokens = ["%z" if token == "%:z" else token for token in _TOKEN.findall(pattern)]
    date = datetime.strptime(text, "".join(tokens))
    zoned = date.tzinfo is not None
    aware = date if zoned else date.replace(tzinfo=timezone.utc)
    return Moment(_since_epoch(aware), 1000 if "%f" in tokens else SECOND, zoned)


def _since_epoch(date: datetime) -> int:
    # Whole microseconds: datetime.timestamp() is a float, too coarse for the last digit.
    return (date - _EPOCH) // timedelta(microseconds=1) * 1000
