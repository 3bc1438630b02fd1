"""What the log says of connections: one line at the opening of each, one at its end.

Knows addresses and counts; never sees a message. A flood of connections must not become a
flood of lines, so of each kind at most `LINES_A_SECOND` are written; the rest are counted.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger

from timestamp_echo.addresses import host_port, unmapped

LINES_A_SECOND = 10
"""Enough to follow by eye; at 150 bytes a line, 130 MB a day at the very most."""


def written(address: IAddress | None) -> str:
    """An address as the log gives it: printable ASCII, whatever the peer chose.

    A peer can choose much: the path that its UNIX socket is bound to, and through
    `haproxy:` any text at all (CWE-117).
    """
    if isinstance(address, (IPv4Address, IPv6Address)):
        text = host_port(unmapped(address.host), address.port)
    elif isinstance(address, UNIXAddress):
        text = "unix:" + (address.name or b"").decode("utf-8", "surrogateescape")
    else:
        text = str(address)
    return escaped(text)


def escaped(text: str) -> str:
    """The text in printable ASCII: anything else as in a Python string literal."""
    return ascii(text)[1:-1]


Peer = Callable[[], "IAddress | None"]
"""Tells a connection's peer. It is asked only for a line that is written."""


class Journal:
    """The lines of one service's connections.

    @param clock: counts the seconds.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._lines = {"opened": 0, "refused": 0, "ended": 0}

    def opened(self, peer: Peer) -> None:
        """A connection was made."""
        if self._may_write("opened"):
            self._log.info("connection from {peer} opened", peer=written(peer()))

    def refused(self, peer: Peer, why: str) -> None:
        """A connection was one too many.

        @param why: in words.
        """
        if self._may_write("refused"):
            self._log.info("connection from {peer} refused: {why}", peer=written(peer()), why=why)

    def ended(
        self, peer: Peer, why: str, *, seconds: float, messages: int, into: int, out: int
    ) -> None:
        """A connection is over.

        @param why: how it ended, in words.
        @param seconds: how long it lasted.
        @param messages: how many were answered.
        @param into: bytes that came in.
        @param out: bytes of replies.
        """
        if self._may_write("ended"):
            self._log.info(
                "connection from {peer} ended after {seconds:.3f} s: {messages} messages,"
                " {into} bytes in, {out} bytes out; {why}",
                peer=written(peer()),
                seconds=seconds,
                messages=messages,
                into=into,
                out=out,
                why=why,
            )

    def _may_write(self, kind: str) -> bool:
        if not self._lines[kind]:
            self._clock.callLater(1, self._second_over, kind)
        self._lines[kind] += 1
        return self._lines[kind] <= LINES_A_SECOND

    def _second_over(self, kind: str) -> None:
        rest = self._lines[kind] - LINES_A_SECOND
        self._lines[kind] = 0
        if rest > 0:
            self._log.info("{rest} more connections {kind} in that second", rest=rest, kind=kind)
