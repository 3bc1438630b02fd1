"""A point in time as text, formatted and parsed.

Knows no framing, no socket and no clock. A moment is an integer, nanoseconds since the epoch
(`time.time_ns`, or the kernel's arrival time): a float has too few digits for today's.
"""

from __future__ import annotations

import calendar
import re
import time
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

SECOND = 10**9
"""Nanoseconds in a second."""

MAX_STAMP = 255
"""Bytes of a stamp, without its brackets. The limit bounds how much longer a reply is than its
message: over UDP the sender may be forged, and the reply would hit somebody else."""

STYLES = ("ctime", "iso", "unix")
"""The named styles; any text with a `%` is a style as well."""

_ISO = "%Y-%m-%dT%H:%M:%S.%f%:z"  # RFC 3339, section 5.6

# The directives in the documentation of Python's strftime. Others depend on the C library, which
# may format them, copy them or drop them, so they are refused.
_DIRECTIVES = frozenset("aAbBcCdDeFfgGhHIjmMnprRStTuUVwWxXyYzZ%")

# The times for which a pattern is checked: every 36 hours of a year, so midnight and noon in turn.
# The length of the text depends on the month's name, the weekday's and %p (which a locale may leave
# empty for half of the day), and every combination of these occurs.
_SECONDS = range(0, 365 * 86400, 129600)

# The colon of `%:z` is part of the directive; a lone `%` at the end is a token to be refused.
_TOKEN = re.compile(r"%:z|%.|%$|[^%]+", re.DOTALL)


class Stamp:
    """Formats moments in one style.

    What stays the same within a second is formatted once a second. Within it, a stamp costs a
    comparison and, with a sub-second style, one `bytes.join`.

    @param style: `ctime`, `iso`, `unix`, or a strftime pattern: any text with a `%`.
    @param utc: UTC instead of the local time zone. Changes of the local zone (TZ, /etc/localtime)
        take effect with the next second.
    @raise ValueError: the style is none of these, or the pattern's text is longer than
        `MAX_STAMP`, does not print on one line, or contains `] `, where a stamp ends.
    """

    subsecond: bool
    """Whether two moments within one second may have different stamps."""

    def __init__(self, style: str = "ctime", utc: bool = False) -> None:
        self._utc = utc
        self._unix = style == "unix"
        self._ctime = style == "ctime"
        self._patterns = [] if style in ("unix", "ctime") else _split(style)
        self.subsecond = self._unix or len(self._patterns) > 1
        self._start = self._end = 0  # the moments for which _parts is valid
        self._parts: list[bytes] = []  # the prefix, cut where its fraction of a second goes
        if self._patterns:
            self._check(style)

    def prefix(self, moment: int) -> bytes:
        """Format a moment as it goes in front of a message: `[`, the stamp, `] `.

        @param moment: nanoseconds since the epoch.
        @return: UTF-8.
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
        """The stamp of this second, cut where its fraction of a second goes."""
        if self._unix:
            return [f"{second}.", ""]
        tm = self._broken_down(second)
        if self._ctime:
            # asctime's names are English in every locale, those of strftime's %a and %b are not.
            return [time.asctime(tm)]
        offset = _offset(tm.tm_gmtoff)
        return [
            "".join(offset if t == "%:z" else time.strftime(t, tm) for t in tokens)
            for tokens in self._patterns
        ]

    def _broken_down(self, second: int) -> time.struct_time:
        if self._utc:
            return time.gmtime(second)
        # localtime alone does not notice that TZ or /etc/localtime has changed (tzset(3)).
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
            if (size := len(text.encode("utf-8"))) > MAX_STAMP:
                raise ValueError(
                    f"expected a strftime pattern that gives at most {MAX_STAMP} bytes,"
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
    """Format a zone's offset from UTC as in RFC 3339: `+08:00`."""
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02}:{minutes:02}"


class Moment(NamedTuple):
    """The time in a stamp, as `parse` returns it."""

    nanoseconds: int
    """Since the epoch. A stamp without a zone is taken for UTC."""

    resolution: int
    """Nanoseconds. The stamp was cut down to a multiple of this: the time it was made for is
    `nanoseconds`, or later by less than `resolution`."""

    zoned: bool
    """Whether the stamp has a zone. If not, `nanoseconds` may be off by the zone's offset."""


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CTIME_SHAPE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (\w{3}) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})", re.ASCII
)
_ISO_SHAPE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d", re.ASCII)
_UNIX_SHAPE = re.compile(r"(\d+)\.(\d{9})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def parse(text: str, pattern: str | None = None) -> Moment:
    """Parse a stamp: the text between `[` and `] `.

    @param text: a `ctime`, `iso` or `unix` stamp, which are recognised by their shape.
    @param pattern: the strftime pattern that the stamp was formatted with, if there was one. It
        is parsed by `datetime.strptime`, which lacks some of strftime's directives.
    @raise ValueError: the text is not such a stamp, or its date does not exist.
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
            # A leap second is 60, which datetime refuses. POSIX has no number for it either.
            *(int(hour), int(minute), min(int(second), 59)),
        )
        return Moment(calendar.timegm(date.timetuple()) * SECOND, SECOND, False)
    raise ValueError(f"expected a ctime, iso or unix stamp, not {text!r}")


def _parse_pattern(text: str, pattern: str) -> Moment:
    # strptime's %z parses +08:00 too; it has no %:z.
    tokens = ["%z" if token == "%:z" else token for token in _TOKEN.findall(pattern)]
    date = datetime.strptime(text, "".join(tokens))
    zoned = date.tzinfo is not None
    aware = date if zoned else date.replace(tzinfo=timezone.utc)
    return Moment(_since_epoch(aware), 1000 if "%f" in tokens else SECOND, zoned)


def _since_epoch(date: datetime) -> int:
    # In whole microseconds: datetime.timestamp() is a float, and its last digits are wrong.
    return (date - _EPOCH) // timedelta(microseconds=1) * 1000
