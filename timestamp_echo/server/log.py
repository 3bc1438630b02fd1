"""What the log says about connections: one line when each opens, one line when it ends.

Knows addresses and counts; never sees a message. A flood of connections must not become a flood
of lines: beyond `USUAL` or `FLOOD`, which apply to each kind of line by itself, they are only
counted.
"""

from __future__ import annotations

import os
from math import inf
from typing import NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger

from timestamp_echo.addresses import host_port, unmapped


class Pace(NamedTuple):
    """How many lines may be written in how many seconds."""

    lines: int
    seconds: float


USUAL = Pace(10, 1.0)
"""The normal pace. If an interval has more lines, the rest are only counted, and `FLOOD` begins."""

FLOOD = Pace(5, 10.0)
"""The pace until an interval has no more lines than this. A 20 s flood of connections that open and
end writes fewer than 50 lines; a day of it, at 150 bytes a line, 8 MB for each kind."""


def format_address(address: IAddress | None) -> str:
    """An address for the log, in printable ASCII whatever the peer chose.

    A peer can choose the path that its UNIX socket is bound to, and any text in the header of the
    PROXY protocol (CWE-117).
    """
    if isinstance(address, (IPv4Address, IPv6Address)):
        text = host_port(unmapped(address.host), address.port)
    elif isinstance(address, UNIXAddress):
        text = "unix:" + (address.name or b"").decode("utf-8", "surrogateescape")
    else:  # of all endpoints, only those of `stdio:` have an address without a text
        text = "stdio" if type(address).__name__ == "PipeAddress" else str(address)
    return escape(text)


def escape(text: str) -> str:
    """Return printable ASCII unchanged, and other text as in a Python string literal."""
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


def describe(error: BaseException | None) -> str:
    """What an error says, as one line of plain text."""
    if isinstance(error, CannotListenError):
        error = error.socketError
    if isinstance(error, ConnectionAborted):
        return "aborted by the server"
    if isinstance(error, ConnectionLost):
        return "connection lost"
    if isinstance(error, OSError) and error.strerror:
        # Of a symlink(2)'s two names, the first is its target: a process id, in Twisted's locks.
        name = error.filename2 or error.filename
        return f"{os.fsdecode(name)}: {error.strerror}" if name else error.strerror
    match getattr(error, "args", ()):
        # OpenSSL's error queue (library, function, reason), or an error that left it empty.
        case ([*_, (_, _, str(text))],) | (int(), str(text)) if text:
            return text
        case ([],) | ([*_, (_, _, "")],):
            return "OpenSSL gave no reason"
    return " ".join(str(error).split()) or type(error).__name__


class ConnectionLog:
    """The log lines about one service's connections.

    Ask `may_write` before writing each: in a storm of connections few lines are written, and the
    text of the others need not be worked out.

    @param clock: counts the seconds.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # By kind: the number of lines in the current interval, its pace, when it ends, and, once it
        # has too many lines, the timer that will log how many more there were.
        self._counts = {"opened": 0, "refused": 0, "ended": 0}
        self._paces = dict.fromkeys(self._counts, USUAL)
        self._ends = dict.fromkeys(self._counts, -inf)
        self._calls: dict[str, IDelayedCall] = {}

    def may_write(self, kind: str) -> bool:
        """Count a line of this kind: "opened", "refused" or "ended".

        @return: whether it may be written.
        """
        count = self._counts[kind] = self._counts[kind] + 1
        if count > self._paces[kind].lines + 1:
            return False
        now = self._clock.seconds()
        if now >= self._ends[kind]:
            if count > 1:  # a whole interval without a flood has passed
                self._paces[kind] = USUAL
            count = self._counts[kind] = 1
            self._ends[kind] = now + self._paces[kind].seconds
        if count <= self._paces[kind].lines:
            return True
        self._calls[kind] = self._clock.callLater(self._ends[kind] - now, self._end_interval, kind)
        return False

    def flush(self) -> None:
        """Write the counts of omitted lines now, and leave no timer."""
        for kind, call in list(self._calls.items()):
            call.cancel()
            self._end_interval(kind)

    def opened(self, peer: IAddress | None) -> None:
        """A connection was made."""
        self._log.info("connection from {peer} opened", peer=format_address(peer))

    def refused(self, peer: IAddress | None, why: str) -> None:
        """A connection was refused.

        @param why: the reason.
        """
        self._log.info("connection from {peer} refused: {why}", peer=format_address(peer), why=why)

    def ended(
        self,
        peer: IAddress | None,
        why: str,
        *,
        seconds: float,
        messages: int,
        received: int,
        sent: int,
    ) -> None:
        """A connection is over.

        @param why: the reason.
        @param seconds: how long it lasted.
        @param messages: how many were answered.
        @param received: bytes.
        @param sent: bytes of replies.
        """
        self._log.info(
            "connection from {peer} ended after {seconds:.3f} s: {messages} message{s},"
            " {received} bytes in, {sent} bytes out; {why}",
            peer=format_address(peer),
            seconds=seconds,
            messages=messages,
            s="" if messages == 1 else "s",
            received=received,
            sent=sent,
            why=why,
        )

    def _end_interval(self, kind: str) -> None:
        del self._calls[kind]
        lines, seconds = self._paces[kind]
        more = self._counts[kind] - lines
        left = max(self._ends[kind] - self._clock.seconds(), 0.0)  # cut off by `flush`
        self._log.info(
            "{more} more connection{s} {kind} within {seconds:.3g} s",
            more=more,
            s="" if more == 1 else "s",
            kind=kind,
            seconds=seconds - left,
        )
        self._counts[kind], self._ends[kind] = 0, -inf
        self._paces[kind] = FLOOD
