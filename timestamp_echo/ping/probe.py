"""The probes of `tsecho ping`: the messages sent, and how replies are matched to them.

A probe is a line that contains a nonce and a number. So its reply is recognised by its content,
whichever echo it comes from, with or without a stamp. Knows bytes; no connection, no clock.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from timestamp_echo.stamps import MAX_STAMP, Moment, parse

MIN_SIZE = 25
"""Bytes of the smallest probe: the nonce, a number of ten digits, two spaces and the newline."""

MAX_SIZE = 65000
"""Bytes of the largest probe: with any stamp its reply fits into a datagram (65,507 bytes)."""

NONCE_LENGTH = 12
"""Characters of the nonce, which distinguishes the probes of one run from all others."""

_STAMPED = rf"\[[^\[\]\n]{{0,{MAX_STAMP}}}\] "
_STAMP = re.compile(_STAMPED.encode())


class Reply(NamedTuple):
    """A reply to a probe."""

    number: int
    """The probe's number."""

    stamp: str
    """The text between `[` and `] ` in front of the message; empty if there is no stamp."""

    altered: bool
    """Whether the message differs from the probe, apart from stamps inside it: an echo that
    stamps each of its reads inserts them into a large probe."""

    @property
    def moment(self) -> Moment | None:
        """The moment stated by the stamp; None if there is no stamp or it cannot be parsed."""
        try:
            return parse(self.stamp)
        except ValueError:
            return None


class Probes:
    """The probes of one run.

    @param nonce: `NONCE_LENGTH` characters without a space.
    @param size: bytes of a probe, from `MIN_SIZE` to `MAX_SIZE`.
    """

    other_line = b""
    """The first line received that is not a reply, without its newline. The caller clears it."""

    def __init__(self, nonce: str, size: int) -> None:
        self._nonce = nonce.encode()
        self._size = size
        self._pattern = _pattern(nonce, "")
        # An echo that stamps each of its reads may do so within the nonce or the number. That is
        # rare, and takes several times as long to look for.
        self._interrupted = _pattern(nonce, rf"(?:{_STAMPED})*")
        self._partial = b""
        self._cut = False  # whether its beginning was dropped

    def message(self, number: int) -> bytes:
        """The probe with this number."""
        return (b"%b %d " % (self._nonce, number)).ljust(self._size - 1, b".") + b"\n"

    def number(self, message: bytes) -> int:
        """The number of one of these probes."""
        return int(message.split(b" ", 2)[1])

    def replies(self, data: bytes) -> list[Reply]:
        """Parse received bytes.

        @return: the replies that are now complete. The rest is kept for the next call, up to the
            length of the longest reply.
        """
        *lines, partial = (self._partial + data).split(b"\n")
        # With stamps inside, a reply is rarely more than twice as long as the probe.
        self._partial = partial[-2 * self._size - MAX_STAMP :]
        replies = []
        for line in lines:
            reply = self._parse(line + b"\n")
            if reply:
                replies.append(reply)
            elif line.strip() and not (self._cut or self.other_line):
                self.other_line = line
            self._cut = False
        self._cut |= len(partial) > len(self._partial)
        return replies

    def reset(self) -> None:
        """Discard whatever is not a complete reply: its connection was lost."""
        self._partial = self.other_line = b""
        self._cut = False

    def _parse(self, line: bytes) -> Reply | None:
        match = self._pattern.search(line) or self._interrupted.search(line)
        if not match:
            return None
        stamp, message, digits = match.groups()
        number = int(_STAMP.sub(b"", digits))
        if not number:  # they are counted from 1
            return None
        text = stamp[1:-2].decode(errors="replace") if stamp else ""
        altered = _STAMP.sub(b"", message) != self.message(number)
        return Reply(number, text, altered)


def _pattern(nonce: str, gap: str) -> re.Pattern[bytes]:
    """A pattern for a reply, whose groups are the stamp, the message and the digits of its number.

    @param gap: a pattern for what may be between the characters of the nonce and of the number.
    """
    start = gap.join([*map(re.escape, nonce), " "])
    text = rf"({_STAMPED})?({start}{gap}((?:\d{gap}){{1,10}}) .*)"
    return re.compile(text.encode(), re.DOTALL)
