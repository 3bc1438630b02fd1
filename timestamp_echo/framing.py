"""Where a message ends: bytes in, bytes out.

Knows no socket, no clock and no Twisted. TCP is a stream of bytes without message boundaries
(RFC 9293, section 3.8): what a peer sent at once may arrive in several reads, and what it sent
in several pieces may arrive in one. A framing is fed the reads of one connection, each with
the prefix for the time at which it arrived (the stamp in brackets and a space), and returns
the replies that are due.
"""

from __future__ import annotations

from typing import Protocol

MAX_PENDING = 64 * 1024
"""Bytes of an incomplete message at which its reply starts: this bounds the memory per connection
without a maximum message length. Also the longest reply that `portion` aims for."""

MIN_PORTION = 16 * 1024
"""Bytes of reply that make a turn worthwhile, see `Framing.portion`. In a storm of connections that
each send 5,000 newlines, others wait for 4 ms (p99); with four times this size, for 8 ms."""

FULL_READ = 16 * 1024
"""Bytes from which a read may have been cut off by the reader's buffer, so that it is not taken
for a whole message. The reader's buffer must be at least this large."""

SHORT_REPLY = 108 * 1024
"""A read whose stamps would take at most this many bytes, even with one for each byte (all
newlines), is answered without asking `portion`. With `ctime` those are the reads of up to 4 KiB, so
the usual read need not be scanned."""

MAX_DATAGRAM = 2**16
"""Bytes that hold any datagram, and so any message: its length has 16 bits (RFC 768)."""


class Framing(Protocol):
    """The framing of one connection's messages."""

    messages: int
    """How many messages have been stamped."""

    @property
    def waiting(self) -> bool:
        """Whether part of a message has come, and its end has not."""

    @property
    def ends_at_pause(self) -> bool:
        """Whether a pause of the sender ends a message, as closing does.

        Measuring the pause and calling `ended` is up to the caller.
        """

    def portion(self, data: bytes, prefix: bytes) -> int:
        """How many bytes of a read to pass to `received` at once, so as to bound the reply.

        The reply to nothing but newlines has a prefix for each byte, and its sender may never
        read it. Answering it also takes as long as answering a hundred peers that send a line
        each. So the caller sends the reply to one portion, and lets others have their turn, before
        it asks for the next. A read of up to 32 KiB whose reply is at most twice as long is one
        portion.

        @param data: the read, or what is left of it; not empty.
        @param prefix: as for `received`.
        @return: from 1 to C{len(data)}. The reply to a portion with two or more newlines is at
            most 64 KiB longer than what was pending.
        """

    def received(self, data: bytes, prefix: bytes) -> bytes:
        """Take one read, or the next portion of one.

        @param data: the bytes, not empty.
        @param prefix: what goes in front of each message that these bytes complete, not empty.
        @return: the reply that is due, or C{b""}.
        """

    def ended(self) -> bytes:
        """Treat what is pending as a message: the sender paused or closed.

        @return: its reply, with the prefix of the last read, or C{b""} if nothing is pending.
        """


class ChunkFraming:
    """A message is what one read brings, as in a blocking C{recv} loop."""

    __slots__ = ("messages",)

    ends_at_pause = False
    waiting = False

    def __init__(self) -> None:
        self.messages = 0

    def portion(self, data: bytes, prefix: bytes) -> int:
        """See `Framing.portion`: the whole read, for its reply has one prefix."""
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

    All work is done by a few C calls per read, however many lines the read holds: no Python loop
    runs once per line or once per byte. C{bytes.find}, C{in}, C{partition} and C{replace} search
    with memchr(3), which compares many bytes at once.
    """

    # Slots save memory: there may be ten thousand connections.
    __slots__ = ("_begun", "_pending", "_prefix", "messages", "waiting")

    ends_at_pause = False

    # The stream is at one of three places:
    #
    #   waiting  _pending   _begun
    #   False    empty      False    the start of a line
    #   True     not empty  False    within a line; what has come of it is pending
    #   True     empty      True     within a line that reached MAX_PENDING: the reply has begun,
    #                                and the rest of the line is passed on as it comes

    def __init__(self) -> None:
        self.messages = 0
        self.waiting = False
        self._pending = b""
        self._prefix = b""  # of the last read that added to _pending
        self._begun = False

    def portion(self, data: bytes, prefix: bytes) -> int:
        """See `Framing.portion`."""
        first = data.find(b"\n")
        last = data.rfind(b"\n")
        if first == last:
            return len(data)  # no newline, or only one: the reply is hardly longer than the read
        # Halve until the reply fits. It need not be the largest portion that does.
        size = len(data)
        limit = min(max(2 * size, MIN_PORTION), MAX_PENDING)
        while size + data.count(b"\n", 0, size) * len(prefix) > limit:
            size //= 2
        if size == len(data):
            return size
        # To LineFraming it does not matter where a portion ends. But AutoFraming takes a read
        # without a newline for a message, and part of a line must not look like one:
        #
        # - The portion ends at a newline, so that it cuts no line in two. If the first line
        #   alone is too long, it is that line.
        # - It leaves at least one newline to the next portion. Otherwise the unfinished line
        #   after the last newline could be a portion of its own. `a\nb\nc` may be cut into
        #   `a\n` and `b\nc`, but not into `a\nb\n` and `c`.
        end = max(first + 1, min(size, last))
        return data.rfind(b"\n", 0, end) + 1

    def received(self, data: bytes, prefix: bytes) -> bytes:
        """See `Framing.received`."""
        if self.waiting:
            return self._continued(data, prefix)
        # The most frequent read comes first: one whole line. One search finds that its only
        # newline is its last byte.
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
        """Answer the lines of a read that has a newline; hold what comes after the last."""
        end = data.rfind(b"\n") + 1
        lines = self._pending + data[:end]
        # All of these lines were completed by the same read, so they get the same prefix, and
        # one call can insert it everywhere: after each newline, where the next line starts.
        #
        #     lines     a \n           b \n
        #     stamped   a \n <prefix>  b \n <prefix>
        #     reply     <prefix> a \n  <prefix> b \n
        #
        # That is one prefix too many at the end and one too few at the start.
        stamped = lines.replace(b"\n", b"\n" + prefix)
        reply = prefix + stamped[: -len(prefix)]
        # Counted by how much longer the text became: that saves another search.
        self.messages += (len(stamped) - len(lines)) // len(prefix)
        self._pending = b""
        self.waiting = False
        return reply if end == len(data) else reply + self._hold(data[end:], prefix)

    def _piece(self, data: bytes, prefix: bytes) -> bytes:
        """Take a read without a newline, with nothing pending."""
        return self._hold(data, prefix)

    def _continued(self, data: bytes, prefix: bytes) -> bytes:
        """Take a read that continues a line."""
        answered = b""
        if self._begun:
            # Up to the newline the bytes belong to a line that has its prefix already.
            line, newline, data = data.partition(b"\n")
            answered = line + newline
            self._begun = self.waiting = not newline
            if not data:
                return answered
            # Not self.received(data): AutoFraming would take data without a newline for a read
            # that came alone, but it is the start of the next line.
        # Only the new bytes are searched. Those pending have no newline, and searching them at
        # each read would take quadratic time for a line that comes byte by byte.
        reply = self._lines(data, prefix) if b"\n" in data else self._hold(data, prefix)
        return answered + reply

    def _hold(self, data: bytes, prefix: bytes) -> bytes:
        self._pending += data  # a copy, but of at most MAX_PENDING bytes
        self._prefix = prefix
        self.waiting = True
        return self._begin() if len(self._pending) >= MAX_PENDING else b""

    def _begin(self) -> bytes:
        """Start the reply to what is pending; what follows goes out as it comes."""
        reply = self._prefix + self._pending
        self._pending = b""
        self._begun = True
        self.messages += 1
        return reply


class AutoFraming(LineFraming):
    """As `LineFraming`, but a message may also come without a newline.

    It is answered at once if it came alone: nothing is pending, the read has no newline, and it
    is shorter than `FULL_READ`, so that it was not cut by the reader's buffer. Otherwise the
    sender's pause ends it (`Framing.ends_at_pause`).
    """

    __slots__ = ()

    ends_at_pause = True

    def _piece(self, data: bytes, prefix: bytes) -> bytes:
        """See `LineFraming._piece`."""
        if len(data) >= FULL_READ:
            return self._hold(data, prefix)
        self.messages += 1
        return prefix + data


FRAMINGS: dict[str, type[ChunkFraming] | type[LineFraming]] = {
    "auto": AutoFraming,
    "line": LineFraming,
    "chunk": ChunkFraming,
}
"""The framings by the names that `--framing` takes."""
