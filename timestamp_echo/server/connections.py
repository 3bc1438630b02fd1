"""The open connections of one service, their limits and their idle timeout.

Knows only what `Connection` lists of a connection, and its peer's address; no message.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger

from timestamp_echo.addresses import parse_ip, peer_key
from timestamp_echo.server.closing import LINGER_TIMEOUT

RESERVED_FILES = 64
"""Open files that the connection limit leaves for ports, logs, the reactor's own files, and refused
connections while they are being closed."""

IDLE_TIMEOUT = 3600.0
"""Seconds without a complete exchange after which a connection is closed, by default."""

_CHECKS = 10  # per idle timeout, which is thus accurate to a tenth

_ENDED = _CHECKS + 1  # checks since the last progress: the first may come right after it


class Connection(Protocol):
    """What the registry needs of a connection.

    The attributes belong to the registry. They are kept in the connection to save memory: a
    separate record would take some 100 bytes more for each.
    """

    peer_key: bytes
    """The key under which its peer is counted; empty if its peer is unknown, or not counted."""

    progress_seen: int
    """`progress` at the last check."""

    idle_checks: int
    """Checks since its last progress, with the one that found it."""

    @property
    def progress(self) -> int:
        """Differs from `progress_seen` if a message was answered since, or the peer got replies.

        Bytes of an incomplete message do not count as progress.
        """

    def end(self, why: str) -> None:
        """Answer what is pending, then close.

        @param why: the reason, for the log.
        """

    def drain(self) -> None:
        """Answer everything that has arrived by now, then close. A second call changes nothing."""

    def abort(self) -> None:
        """Close at once, and drop what is unsent."""


def file_limit() -> int:
    """Raise the soft limit of open files to the hard one (getrlimit(2)).

    @return: the limit that then holds.
    """
    soft, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (ValueError, OSError):  # an infinite hard limit, beyond the kernel's own
        limit = soft
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def address_key(address: IAddress | None) -> bytes:
    """The key under which a peer is counted, see `peer_key`; empty if it has no IP address."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return peer_key(address.host)
    return b""


class Connections:
    """The open connections of one service.

    One timer checks all of them, so that none has a timer of its own, and answering a message
    does not have to note the time.

    @param clock: counts the seconds.
    @param max_total: how many may be open; 0 is no limit.
    @param max_per_peer: how many of one peer may be open; 0 is no limit.
    @param idle_timeout: seconds without a complete exchange after which one is closed; 0 is
        never.
    @param proxies: the networks from which PROXY headers are read; if empty, from anywhere.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        max_total: int = 0,
        max_per_peer: int = 0,
        idle_timeout: float = IDLE_TIMEOUT,
        proxies: Collection[IPv4Network | IPv6Network] = (),
    ) -> None:
        self._clock = clock
        self._max_total = max_total
        self._max_per_peer = max_per_peer
        self._idle_timeout = idle_timeout
        self._proxies = proxies
        # A connection that was ended gets at least as long as its lingering close takes.
        self._max_checks = _ENDED
        if idle_timeout:
            self._max_checks += int(_CHECKS * LINGER_TIMEOUT / idle_timeout)
        # In the order they were made, which is mostly that of their addresses in memory: iterating
        # over ten thousand takes a third less time than in the order of a set.
        self._connections: dict[Connection, None] = {}
        self._started = self._draining = False
        self._peers: Counter[bytes] = Counter()
        self._check_call: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []

    def start(self) -> None:
        """Connections will be made.

        From now on the timer also runs while there are none. Otherwise a client that reconnects
        again and again would have it set and cancelled each time.
        """
        self._started, self._draining = True, False

    def stop(self) -> None:
        """No more connections will be made; those that are open stay."""
        self._started = False
        if not self._connections:
            self._stop_checking()

    def refusal(self, address: IAddress | None) -> str:
        """Why another connection from this address is refused; empty if it is not."""
        if self._max_total and len(self._connections) >= self._max_total:
            return f"too many connections: the limit is {self._max_total}"
        return self._peer_refusal(address_key(address)) if self._max_per_peer else ""

    def proxy_refusal(self, address: IAddress | None) -> str:
        """Why no PROXY header is read from this address; empty if one is.

        Access to a UNIX socket is controlled by the mode of its file.
        """
        if not (self._proxies and isinstance(address, (IPv4Address, IPv6Address))):
            return ""
        ip = parse_ip(address.host)
        allowed = any(ip in network for network in self._proxies)
        return "" if allowed else "not in a --proxy-from network"

    def set_peer(self, connection: Connection, address: IAddress) -> str:
        """Set the peer of a connection, which was unknown when the connection was added.

        @return: why the connection is refused; empty if it is not.
        """
        key = address_key(address) if self._max_per_peer else b""
        why = self._peer_refusal(key)
        if not why:
            self._uncount(connection)
            self._count(connection, key)
        return why

    def _peer_refusal(self, key: bytes) -> str:
        if key and self._peers[key] >= self._max_per_peer:
            return f"too many connections from your address: the limit is {self._max_per_peer}"
        return ""

    def add(self, connection: Connection, get_peer: Callable[[], IAddress | None]) -> None:
        """A connection was made.

        @param get_peer: returns its peer; None if that is not known yet. It is called only where
            peers are counted.
        """
        if self._max_per_peer:
            self._count(connection, address_key(get_peer()))
        self._connections[connection] = None
        if self._draining:
            connection.drain()
        if self._idle_timeout and self._check_call is None:
            self._schedule_check()

    def drain(self) -> None:
        """Drain all connections, and from now on each new one at once.

        While the file table is full, the next can be accepted only after another has ended.
        """
        self._draining = True
        for connection in self:
            with self._log.failuresHandled("while draining a connection:"):
                connection.drain()

    def remove(self, connection: Connection) -> None:
        """A connection is over."""
        del self._connections[connection]
        self._uncount(connection)
        if self._connections:
            return
        if not self._started:
            self._stop_checking()
        self._fire_if_empty()

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        """All open connections; they may be closed while the iteration goes on."""
        return iter(list(self._connections))

    def all_closed(self) -> Deferred[None]:
        """Return a Deferred that fires when no connection is open."""
        closed: Deferred[None] = Deferred()
        self._waiting.append(closed)
        self._fire_if_empty()
        return closed

    def _count(self, connection: Connection, key: bytes) -> None:
        connection.peer_key = key
        if key:
            self._peers[key] += 1

    def _uncount(self, connection: Connection) -> None:
        key = connection.peer_key
        if key:
            self._peers[key] -= 1
            if not self._peers[key]:
                del self._peers[key]  # the counter would keep every peer ever connected

    def _fire_if_empty(self) -> None:
        if not self._connections:
            waiting, self._waiting = self._waiting, []
            for closed in waiting:
                closed.callback(None)

    def _schedule_check(self) -> None:
        self._check_call = self._clock.callLater(self._idle_timeout / _CHECKS, self._check)

    def _stop_checking(self) -> None:
        if self._check_call is not None:
            self._check_call.cancel()
            self._check_call = None

    def _check(self) -> None:
        """Close the connections that made no progress for the idle timeout."""
        self._check_call = None
        if self._connections:
            self._schedule_check()
        for connection in self:
            self._check_one(connection)

    def _check_one(self, connection: Connection) -> None:
        with self._log.failuresHandled("while checking whether a connection is idle:"):
            progress = connection.progress
            ended = connection.idle_checks >= _ENDED
            if progress != connection.progress_seen:
                connection.progress_seen = progress
                connection.idle_checks = _ENDED if ended else 1
                return
            connection.idle_checks += 1
            if connection.idle_checks == _ENDED:
                connection.end(f"idle for {self._idle_timeout:g} s")
            elif connection.idle_checks > self._max_checks:
                connection.abort()  # its peer does not receive what is still to be sent
