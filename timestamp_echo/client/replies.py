"""Verifies that a server returns what was sent to it, apart from stamps.

Bytes in, bytes out: knows no connection and no clock. An echo returns the bytes that it received,
in order, and inserts stamps: one in front of each line, or of the bytes of each read, or none at
all. It adds nothing else, and leaves out or changes nothing.

A stamp ends at the first `] ` after its `[`, so where it ends is certain. Where one begins is not:
a `[` may also be a byte of the message. Then both readings are followed until one of them fails.
A newline ends the uncertainty, because no stamp contains one: up to there, all readings have
consumed the same lines.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TypeAlias

from timestamp_echo.stamps import MAX_STAMP

MAX_HELD = 64 * 1024
"""Bytes of a line that are held back until all of it is verified. A longer one is shown as it
comes: a server, too, starts its reply once it holds as much (`framing.MAX_PENDING`)."""

MAX_UNEXPECTED = 1024
"""Bytes that are kept of what is no reply."""

MAX_STAMPS = 8
"""Different stamps in one read, each of which is handled for all of its lines at once. One read
seldom has more, unless each has few lines."""

MAX_READINGS = 16
"""Readings that are followed at a time. Only a message that itself consists of stamps, such as
`[] [] [] `, has more; then those that took the fewest of its brackets for stamps are kept."""

_PATTERN = rb"\[[^\x00-\x1f\x7f]{0,%d}?\] " % MAX_STAMP
STAMP = re.compile(_PATTERN)
"""A stamp, its brackets and the space: printable text, so without a newline, up to the first
`] `."""

_LINE_STAMP = re.compile(b"^" + _PATTERN, re.MULTILINE)
# A whole stamp, or what may become one: it is cut off by the end of what was received.
_STAMP_OR_START = re.compile(rb"%b|\[[^\x00-\x1f\x7f]{0,%d}\]?\Z" % (_PATTERN, MAX_STAMP))


_Bytes: TypeAlias = bytes | bytearray

_Readings: TypeAlias = set[tuple[int, bool]]
"""Ways to read what came up to some byte: for each, how much of the message it contains, and
whether a stamp may be next, which it may not right after another."""

_ReadingsAt: TypeAlias = dict[int, _Readings]
"""Readings, by the offset in `Replies._held` that they have reached."""


class Replies:
    """Verifies the replies to what was sent."""

    def __init__(self) -> None:
        self.lines = 0
        """Lines that were sent, the last of which may lack its newline."""

        self.unexpected = b""
        """The beginning of what came that is not a reply; empty while everything is one."""

        self._unfinished = False  # whether the last line that was sent lacks its newline
        self._sent = bytearray()  # what has not come back yet
        self._held = bytearray()  # what came, beginning with the last bytes that were shown
        self._shown = 0  # how many bytes of `_held` were shown
        self._readings: _ReadingsAt = {0: {(0, True)}}

    def send(self, data: bytes) -> None:
        """Note that these bytes, which are not empty, were sent."""
        self.lines += data.count(b"\n") - self._unfinished
        self._unfinished = not data.endswith(b"\n")
        self.lines += self._unfinished
        self._sent += data

    @property
    def unanswered(self) -> int:
        """Bytes that were sent and have not come back."""
        return len(self._sent)

    @property
    def missing(self) -> int:
        """Lines that were sent and have not come back whole."""
        if self.complete:
            return 0
        return self._sent.count(b"\n") + (not b"\n".endswith(self._sent[-1:]))

    @property
    def answered(self) -> bool:
        """Whether everything came back that was sent."""
        return not self._sent or self.complete

    @property
    def complete(self) -> bool:
        """Whether everything came back that was sent, and nothing else."""
        return (len(self._sent), True) in self._readings.get(len(self._held), ())

    @property
    def unexpected_line(self) -> bool:
        """Whether the first line of `unexpected` has come, or as much as is kept of it."""
        return b"\n" in self.unexpected or len(self.unexpected) == MAX_UNEXPECTED

    @property
    def rest(self) -> bytes:
        """What came and was neither returned by `receive` nor found to be `unexpected`."""
        return bytes(self._held[self._shown :])

    def receive(self, data: bytes) -> bytes:
        """Verify what was received.

        @return: what is now verified: whole lines, including a last one that was sent without a
            newline, and of a line of more than `MAX_HELD` bytes as much as has come.
        """
        end = data.find(b"\n") + 1 if self._held else 0  # of a line that began earlier
        last = data.rfind(b"\n") + 1
        return b"".join(
            read(piece)
            for read, piece in (
                (self._read, data[:end]),
                (self._read_lines, data[end:last]),
                (self._read, data[last:]),
            )
            if piece
        )

    def _read_lines(self, lines: bytes) -> bytes:
        """Verify whole lines, while nothing is held."""
        if self._unchanged(lines):
            return lines
        readings = self._readings
        shown = self._read(lines)
        if self._readings or not readings:
            return shown
        # Some line is no reply. Read them once more, one by one, up to that line.
        self._readings, self._held, self.unexpected = readings, bytearray(), b""
        return b"".join(self._read(line + b"\n") for line in lines[:-1].split(b"\n"))

    def _unchanged(self, lines: bytes) -> bool:
        """Whether these lines are the next ones with a stamp in front of each, or in front of none.

        This is how most servers answer. It takes a few calls for any number of lines: no Python
        loop runs once per line.
        """
        if self._readings != {0: {(0, True)}}:
            return False
        size = len(lines) if self._sent.startswith(lines) else self._stamped(lines)
        del self._sent[:size]
        return size > 0

    def _stamped(self, lines: bytes) -> int:
        """How many of the sent bytes these lines return, if each has a stamp in front; or 0."""
        size = end = 0
        # Lines that a server read at once have the same stamp. To put it in front of as many sent
        # lines, with a single call, is faster than to remove it from the received ones.
        for _ in range(MAX_STAMPS):
            if not (found := _LINE_STAMP.match(lines, end)):
                break
            start, stamp = end, found[0]
            last = lines.rfind(b"\n" + stamp, start) + 1
            end = lines.find(b"\n", max(last, start)) + 1
            length = end - start - len(stamp) * lines.count(b"\n", start, end)
            stamped = self._sent[size : size + length].replace(b"\n", b"\n" + stamp)
            # There is one too many at the end, and one too few at the start.
            if stamp + stamped[: -len(stamp)] != lines[start:end]:
                return 0
            size += length
        rest = _LINE_STAMP.sub(b"", lines[end:])
        return size + len(rest) if self._sent.startswith(rest, size) else 0

    def _read(self, data: bytes) -> bytes:
        """Verify bytes one stamp after another, wherever the stamps are."""
        if self.unexpected:
            self.unexpected = (self.unexpected + data)[:MAX_UNEXPECTED]
            return b""
        self._held += data
        self._follow()
        if not self._readings:
            self.unexpected = self.rest[:MAX_UNEXPECTED]
            return b""
        if data.endswith(b"\n") or self.complete:
            return self._show(len(self._held))
        if len(self._held) - self._shown > MAX_HELD:
            return self._show(max(min(self._readings), self._shown))
        return self._show(self._shown)

    def _follow(self) -> None:
        """Follow all readings to the end of what was received."""
        held, end = self._held, len(self._held)
        ahead = defaultdict(set, self._readings)
        self._readings = {}
        while ahead:
            at = min(ahead)
            readings = ahead.pop(at)
            if len(readings) > MAX_READINGS:
                readings = set(sorted(readings, key=lambda reading: reading[0])[-MAX_READINGS:])
            if at == end:
                self._readings[end] = readings
            elif held[at : at + 1] == b"[":
                self._fork(at, readings, ahead)
            else:
                bracket = held.find(b"[", at)
                run = held[at:bracket] if bracket >= 0 else held[at:]
                self._match(at, run, readings, ahead)

    def _match(self, at: int, run: _Bytes, readings: _Readings, ahead: _ReadingsAt) -> None:
        """Follow readings through bytes that can only be the message's."""
        for offset, _ in readings:
            if self._sent.startswith(run, offset):
                ahead[at + len(run)].add((offset + len(run), True))

    def _fork(self, at: int, readings: _Readings, ahead: _ReadingsAt) -> None:
        """Follow readings at a `[`, which is the message's, or begins a stamp, or may do either."""
        self._match(at, b"[", readings, ahead)
        stamp = _STAMP_OR_START.match(self._held, at)
        stampable = {reading for reading in readings if reading[1]}
        if not stamp or not stampable:
            return
        if stamp[0].endswith(b"] "):
            ahead[stamp.end()].update((offset, False) for offset, _ in stampable)
        else:  # to be decided when more has come
            self._readings[at] = stampable

    def _show(self, end: int) -> bytes:
        """Return what is held up to here, and forget what no reading needs any more."""
        shown = bytes(self._held[self._shown : end])
        forgotten = min(end, *self._readings)
        matched = min(offset for readings in self._readings.values() for offset, _ in readings)
        self._shown = end - forgotten
        del self._held[:forgotten], self._sent[:matched]
        self._readings = {
            at - forgotten: {(offset - matched, stampable) for offset, stampable in readings}
            for at, readings in self._readings.items()
        }
        return shown
