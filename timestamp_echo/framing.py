"""Where a message ends: bytes in, bytes out.

Knows no socket, no clock, no Twisted. A framing is fed each read of one connection
together with the prefix (the stamp in brackets) of the moment at which it arrived, and
gives the reply that is due. TCP keeps no boundaries (RFC 9293, section 3.8), so a read may
hold a piece of a message, or many messages, or both.
"""

from __future__ import annotations

from typing import Protocol

HOLD = 64 * 1024
"""Bytes of one message that are held; with so many, its reply starts. As much as one read
brings, so that what a connection costs does not grow with what its peer sends."""

FULL_READ = 16 * 1024
"""Bytes from which on a read may be a cut one. A TLS record has no more (RFC 8446, section
5.1); a receive buffer has 32 KiB (Twisted's own 64), of which a PROXY header may be gone."""

SURE = 4 * 1024
"""Bytes of a read whose reply is never too long to be made at once, even if they are all
newlines. Longer reads are measured by `portion`."""


class Framing(Protocol):
    """The framing of one connection's messages."""

    messages: int
    """How many messages have been stamped."""

    @property
    def waiting(self) -> bool:
        """Whether a message has come in part, so that `ended` would end it."""

    @property
    def ends_at_pause(self) -> bool:
        """Whether the sender's pause ends a message, as well as its closing does."""

    def portion(self, data: bytes, prefix: bytes) -> int:
        """How many bytes of a read to take at a time, so that the reply is not too long.

        A stamp for each newline makes of 32 KiB up to 0.9 MB, which the peer may never read.
        """

    def received(self, data: bytes, prefix: bytes) -> bytes:
        """Take one read, or the next portion of one.

        @param data: what the read brought, not empty.
        @param prefix: what goes in front of the messages that this read completes.
        @return: the reply that is due, or nothing.
        """

    def ended(self) -> bytes:
        """The sender paused or closed: what is pending is a message.

        @return: its reply, with the prefix of the last read, or nothing.
        """


class ChunkFraming:
    """A message is what one read brings, as in the blocking loop of the lab."""

    __slots__ = ("messages",)

    ends_at_pause = False
    waiting = False

    def __init__(self) -> None:
        self.messages = 0

    def portion(self, data: bytes, prefix: bytes) -> int:
        """See `Framing.portion`: there is one stamp in any reply."""
        return len(data)

    def received(self, data: bytes, prefix: bytes) -> bytes:
        """See `Framing.received`."""
        self.messages += 1
        return prefix + data

    def ended(self) -> bytes:
        """See `Framing.ended`: nothing is ever pending."""
        return b""


class LineFraming:
    """A message ends at its newline, or where the sender closes.

    Each byte is looked at a few times at most, by `memchr` (bytes.find, bytes.replace), never
    one by one (bytes.count): what came before is never searched again, and the prefix is put
    behind all the newlines of a read at once, for they all arrived together.
    """

    __slots__ = ("_begun", "_pending", "_prefix", "messages", "waiting")  # there are many

    ends_at_pause = False

    def __init__(self) -> None:
        self.messages = 0
        self.waiting = False
        self._pending = b""
        self._prefix = b""  # of the last read that left something pending
        self._begun = False  # the reply to a long message has started

    def portion(self, data: bytes, prefix: bytes) -> int:
        """See `Framing.portion`. It ends at a newline, and leaves one to the next.

        So a line that the read cut is never taken for a read of its own.
        """
        size = len(data)
        end = data.find(b"\n") + 1
        if end == size or not end:
            return size  # one line, or a piece of one: its reply is as long
        while size > 1 and size + _newlines(data[:size]) * len(prefix) > HOLD:
            size //= 2
        if size == len(data):
            return size
        last = data.rfind(b"\n")
        first = data.find(b"\n")
        if first == last:
            return len(data)
        return max(data.rfind(b"\n", 0, min(size, last)), first) + 1

    def received(self, data: bytes, prefix: bytes) -> bytes:
        """See `Framing.received`."""
        if self.waiting:
            return self._continued(data, prefix)
        first = data.find(b"\n") + 1
        if first == len(data):
            self.messages += 1
            return prefix + data
        return self._lines(data, prefix) if first else self._piece(data, prefix)

    def ended(self) -> bytes:
        """See `Framing.ended`."""
        reply = self._begin() if self._pending else b""
        self._begun = self.waiting = False
        return reply

    def _lines(self, data: bytes, prefix: bytes) -> bytes:
        """Answer the lines of a read that has a newline; hold what is behind the last."""
        end = data.rfind(b"\n") + 1
        lines = self._pending + data[:end]
        stamped = lines.replace(b"\n", b"\n" + prefix)
        self.messages += (len(stamped) - len(lines)) // len(prefix)
        self._pending = b""
        self.waiting = False
        # The last newline's prefix belongs in front of the first line.
        reply = prefix + stamped[: -len(prefix)]
        return reply if end == len(data) else reply + self._hold(data[end:], prefix)

    def _piece(self, data: bytes, prefix: bytes) -> bytes:
        """Take a read without a newline, with nothing pending."""
        return self._hold(data, prefix)

    def _continued(self, data: bytes, prefix: bytes) -> bytes:
        """Take a read that goes on with a message."""
        if self._begun:
            last, newline, rest = data.partition(b"\n")
            self._begun = self.waiting = not newline
            if not rest:
                return last + newline
            # Not self.received: a rest that follows a newline is no read of its own.
            more = self._lines(rest, prefix) if b"\n" in rest else self._hold(rest, prefix)
            return last + newline + more
        return self._lines(data, prefix) if b"\n" in data else self._hold(data, prefix)

    def _hold(self, data: bytes, prefix: bytes) -> bytes:
        self._pending += data
        self._prefix = prefix
        self.waiting = True
        return self._begin() if len(self._pending) >= HOLD else b""

    def _begin(self) -> bytes:
        """Start the reply to what is pending; what follows goes out as it comes."""
        reply = self._prefix + self._pending
        self._pending = b""
        self._begun = True
        self.messages += 1
        return reply


class AutoFraming(LineFraming):
    """As `LineFraming`, but a message may also come without a newline.

    It is answered at once if it is a read of its own: nothing is pending, there is no
    newline in it, and it is too short to have been cut by the receive buffer. Otherwise the
    sender's pause ends it; the caller says when that is.
    """

    __slots__ = ()

    ends_at_pause = True

    def _piece(self, data: bytes, prefix: bytes) -> bytes:
        """See `LineFraming._piece`."""
        if len(data) >= FULL_READ:
            return self._hold(data, prefix)
        self.messages += 1
        return prefix + data


def _newlines(data: bytes) -> int:
    return len(data) - len(data.replace(b"\n", b""))


FRAMINGS: dict[str, type[ChunkFraming] | type[LineFraming]] = {
    "auto": AutoFraming,
    "line": LineFraming,
    "chunk": ChunkFraming,
}
"""The framings by the names that `--framing` takes."""
