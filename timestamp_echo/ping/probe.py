"""The probes of `tsecho ping`: what is sent, and which reply is to which.

A probe is a line with a word of its own and a number in it, so its reply is known by its
content, from any echo, with a stamp or without. Knows bytes; no connection, no clock.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from timestamp_echo.stamps import MAX_STAMP, Moment, parse

SMALLEST = 25
"""Bytes of the smallest probe: the word, a number of ten digits, two spaces, the newline."""

LARGEST = 65000
"""Bytes of the largest: with any stamp its reply fits into a datagram (65,507 bytes)."""

NONCE = 12
"""Characters of the word that tells a run's probes from all others."""

_STAMP = re.compile(rb"\[[^\[\]\n]{0,%d}\] " % MAX_STAMP)


class Reply(NamedTuple):
    """What came back."""

    number: int
    """Of the probe."""

    stamp: str
    """The text between `[` and `] ` in front of it; empty if there is none, as in a plain echo."""

    altered: bool
    """Whether the message came back other than it was sent, but for stamps within it: an echo
    that stamps what each of its reads gives puts them into the middle of a large probe."""

    @property
    def moment(self) -> Moment | None:
        """What the stamp says; nothing if there is none that can be read."""
        try:
            return parse(self.stamp)
        except ValueError:
            return None


class Probes:
    """One run's probes.

    @param nonce: the word, of `NONCE` characters without a space.
    @param size: bytes of a probe, from `SMALLEST` to `LARGEST`.
    """

    def __init__(self, nonce: str, size: int) -> None:
        self._nonce = nonce.encode()
        self._size = size
        self._shape = re.compile(
            rb"(?:\[([^\[\]\n]{0,%d})\] )?(%b (\d{1,10}) .*)" % (MAX_STAMP, self._nonce), re.S
        )
        self._rest = b""

    def text(self, number: int) -> bytes:
        """The probe of this number."""
        return (b"%b %d " % (self._nonce, number)).ljust(self._size - 1, b".") + b"\n"

    def replies(self, data: bytes) -> list[Reply]:
        """The replies that end in what came now; the rest is kept, within a bound.

        With stamps within, a reply may be longer than a probe and a stamp: up to twice as long.
        """
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-2 * self._size - MAX_STAMP :]
        return [reply for line in lines if (reply := self._reply(line + b"\n"))]

    def forget(self) -> None:
        """What has come in part will not go on."""
        self._rest = b""

    def _reply(self, line: bytes) -> Reply | None:
        if not (found := self._shape.search(line)):
            return None
        stamp, message, digits = found.groups()
        number = int(digits)
        text = stamp.decode(errors="replace") if stamp else ""
        altered = _STAMP.sub(b"", message) != self.text(number)
        return Reply(number, text, altered)
