"""Who may connect, how many, and how long without a word.

Knows of a connection what it can be asked and told, and its peer's address; no message.
"""

from __future__ import annotations

import resource
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime

from timestamp_echo.addresses import peer_key

RESERVE = 64
"""Files that are not for connections: ports, logs, the reactor's own, and connections that are
just being told that there are too many."""

IDLE = 3600.0
"""Seconds without a complete exchange after which a connection is closed, by default."""

_SWEEPS = 10  # looks at all connections within the idle time: it is kept to a tenth


class Limited(ABC):
    """A connection as its limits see it. What they note of it stands in it: there are many."""

    source = b""
    """What it counts as, where peers are counted."""

    since = 0.0
    """When it was made, in seconds."""

    active = 0.0
    """When it was made, or last found to have answered something, in seconds."""

    counted = 0
    """Messages that it had answered by then."""

    idle = False
    """Whether it was told to end."""

    @property
    @abstractmethod
    def messages(self) -> int:
        """How many messages have been answered."""

    @abstractmethod
    def end(self, why: str) -> None:
        """Answer what is pending and close in order."""

    @abstractmethod
    def drain(self) -> None:
        """Answer all that has arrived by now, then end."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once, whatever is unsent."""


def file_limit() -> int:
    """Raise the soft limit of open files to the hard one; what it is then (getrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # a hard limit that is none, beyond what the kernel has
        return soft
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def source(address: IAddress | None) -> bytes:
    """What counts as one peer: an IPv4 address, an IPv6 /64; nothing for any other address."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return b""
    return peer_key(address.host)


class Limits:
    """The connections of one service, within their limits.

    All are looked at together, so that none needs a timer of its own, nor the path of a
    message a note of the time.

    @param clock: counts the seconds.
    @param total: how many there may be; 0 is no limit.
    @param per_peer: how many one peer may have; 0 is no limit.
    @param idle: seconds without a complete exchange after which one is closed; 0 is never.
    """

    def __init__(
        self, clock: IReactorTime, total: int = 0, per_peer: int = 0, idle: float = IDLE
    ) -> None:
        self._clock = clock
        self._total = total
        self._per_peer = per_peer
        self._idle = idle
        self._connections: set[Limited] = set()
        self._peers: Counter[bytes] = Counter()
        self._sweep: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []

    def refusal(self, address: IAddress | None) -> str:
        """Why one more connection of this peer is refused, in words; nothing if it is not."""
        if self._total and len(self._connections) >= self._total:
            return f"{self._total} connections are open, and no more may be"
        return self._crowded(source(address)) if self._per_peer else ""

    def named(self, connection: Limited, address: IAddress) -> str:
        """The peer of a connection that was entered for nobody is known.

        @return: why it is refused, in words; nothing if it is not.
        """
        peer = source(address) if self._per_peer else b""
        why = self._crowded(peer)
        if not why:
            self._forget(connection.source)
            connection.source = peer
            self._peers[peer] += 1
        return why

    def _crowded(self, peer: bytes) -> str:
        if self._per_peer and peer and self._peers[peer] >= self._per_peer:
            return f"{self._per_peer} connections from your address are open, and no more may be"
        return ""

    def enter(self, connection: Limited, peer: Callable[[], IAddress | None]) -> None:
        """A connection is made.

        @param peer: tells by whom, or nothing if that is not known yet. It is asked only where
            peers are counted.
        """
        if self._per_peer:
            connection.source = source(peer())
        self._peers[connection.source] += 1
        connection.since = connection.active = self._clock.seconds()
        self._connections.add(connection)
        if self._idle and self._sweep is None:
            self._sweep = self._clock.callLater(self._idle / _SWEEPS, self._look)

    def leave(self, connection: Limited) -> None:
        """A connection is over."""
        self._connections.remove(connection)
        self._forget(connection.source)
        if not self._connections and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._tell()

    def __len__(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    def __iter__(self) -> Iterator[Limited]:
        """All connections that there are now."""
        return iter(list(self._connections))

    def all_left(self) -> Deferred[None]:
        """Fire when there is no connection any more."""
        left: Deferred[None] = Deferred()
        self._waiting.append(left)
        self._tell()
        return left

    def _forget(self, peer: bytes) -> None:
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]  # or whoever has been here would be remembered for ever

    def _tell(self) -> None:
        if not self._connections:
            waiting, self._waiting = self._waiting, []
            for left in waiting:
                left.callback(None)

    def _look(self) -> None:
        self._sweep = self._clock.callLater(self._idle / _SWEEPS, self._look)
        now = self._clock.seconds()
        for connection in self:
            if connection.idle:
                connection.abort()  # it had its time to close
            elif connection.messages != connection.counted:
                connection.counted = connection.messages
                connection.active = now
            elif now - connection.active >= self._idle:
                connection.idle = True
                connection.end(f"idle for {self._idle:g} s")
