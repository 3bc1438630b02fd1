"""What the peers in Python share: ctime stamps, and the search for the start of a line."""

from __future__ import annotations

import time


class Stamper:
    """Puts a stamp in front of every line of one connection, however the reads cut the lines."""

    _second = 0
    _stamp = b""

    def __init__(self) -> None:
        self._begun = False

    def stamped(self, data: bytes) -> bytes:
        """The reply to a read."""
        stamp = now()
        reply = data.replace(b"\n", b"\n" + stamp)
        if not self._begun:
            reply = stamp + reply
        self._begun = not data.endswith(b"\n")
        return reply if self._begun else reply[: -len(stamp)]


def now() -> bytes:
    """The stamp of the current time, formatted once a second."""
    second = int(time.time())
    if second != Stamper._second:
        Stamper._second = second
        Stamper._stamp = f"[{time.ctime(second)}] ".encode()
    return Stamper._stamp
