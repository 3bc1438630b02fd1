"""A path that opens a connection for each probe, and knows where the time goes until the reply.

The phases are those that can be told apart from here: the name lookup, the connection (TCP or
UNIX), the TLS handshake, and the reply. Nothing answers a PROXY header, so the time that a server
takes for it is part of the next phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    INegotiated,
    IReactorPluggableNameResolver,
    IReactorTime,
    IReactorUDP,
    IResolutionReceiver,
)
from twisted.python.failure import Failure
from typing_extensions import Self  # Twisted needs it too
from zope.interface import implementer

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, StreamServer
from timestamp_echo.client.datagram import AddressInfo
from timestamp_echo.ping.stats import Phases
from timestamp_echo.ping.transport import ProbeListener, StreamPath, UDPPath

MAX_REPLY = 2**18
"""Bytes that are kept of a reply without an end: more than the longest reply has."""


class ConnectPath:
    """A path that opens a connection for each probe; with UDP, a port.

    @param listener: receives data and events.
    @param server: where to connect.
    @param reactor: the `LookupTimer` with which `server` was made.
    @param now: reads the monotonic clock, in nanoseconds.
    @param send_proxy: see `StreamPath`.
    """

    refused = full = False

    def __init__(
        self,
        listener: ProbeListener,
        server: StreamServer | DatagramServer,
        reactor: Any,  # a `LookupTimer`, which provides what the reactor does
        now: Callable[[], int],
        *,
        send_proxy: bool,
    ) -> None:
        self.listener = listener
        self.server = server
        self.reactor = reactor
        self.now = now
        self.send_proxy = send_proxy
        self.arrival = 0
        self._attempts: dict[bytes, _Attempt] = {}

    def write(self, data: bytes) -> None:
        """See `Path.write`: connect, then send these bytes, which are one probe."""
        self._attempts[data] = _Attempt(self, data)
        self._attempts[data].start()

    def release(self, data: bytes) -> Phases:
        """See `Path.release`: close the connection of this probe."""
        return self._attempts.pop(data).end()

    def close(self) -> None:
        """See `Path.close`."""
        while self._attempts:
            self._attempts.popitem()[1].end()


class _Attempt:
    """One connection and its probe. It is the `PathListener` of its path."""

    def __init__(self, owner: ConnectPath, data: bytes) -> None:
        self._owner = owner
        self._data = data
        self._phases = Phases({}, "connect")
        self._since = owner.now()
        self._path: StreamPath | UDPPath
        self._connecting: Deferred[Any]  # fires with this path
        self._partial = b""
        self._over = False

    def start(self) -> None:
        """Connect."""
        owner = self._owner
        if isinstance(owner.server, DatagramServer):
            self.lookup_began()
            port = _Port(self, owner.reactor, self._looked_up)
            self._path, self._connecting = port, port.connect(owner.server)
        else:
            path = _Connection(self, owner.reactor, owner.send_proxy, self._connected)
            owner.reactor.attempt = self
            self._path, self._connecting = path, path.connect(owner.server)
        self._connecting.addCallbacks(self._ready, self._failed)

    def lookup_began(self) -> None:
        """The endpoint looks a name up."""
        self._phases.current = "lookup"

    def looked_up(self) -> None:
        """The name's addresses are known."""
        self._next("connect")

    def _looked_up(self) -> None:
        self._next("reply")  # a datagram needs no connection

    def _connected(self) -> None:
        encrypted = INegotiated.providedBy(self._path.transport)
        self._next("tls" if encrypted else "reply")

    def _next(self, phase: str) -> None:
        now = self._owner.now()
        self._phases.durations[self._phases.current] = now - self._since
        self._phases.current, self._since = phase, now

    def _ready(self, path: StreamPath | UDPPath) -> None:
        if self._phases.current == "tls":
            self._next("reply")
        path.write(self._data)

    def _failed(self, failure: Failure) -> None:
        self.over(errors.reason(failure.value))

    def end(self) -> Phases:
        """Close the connection, in whatever phase it is."""
        self._over = True
        self._connecting.cancel()
        if self._path.transport is not None:
            self._path.close()
        return self._phases

    def replied(self, data: bytes) -> None:
        """See `PathListener.replied`. Lines are passed on whole: another attempt's may follow."""
        lines, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._partial = (self._partial + data)[-MAX_REPLY:]
        elif not self._over:
            whole, self._partial = self._partial + lines + newline, rest[-MAX_REPLY:]
            self._owner.arrival = self._path.arrival
            self._owner.listener.replied(whole)

    def answered(self) -> None:
        """See `PathListener.answered`."""

    def writable(self) -> None:
        """See `PathListener.writable`."""

    def over(self, why: str) -> None:
        """See `PathListener.over`: the probe is lost, unless this side has closed."""
        if not self._over:
            self._owner.listener.failed(self._data, why)


class _Connection(StreamPath):
    """A connection that says when it is made; with TLS, the handshake is still to come."""

    def __init__(
        self, attempt: _Attempt, clock: IReactorTime, send_proxy: bool, made: Callable[[], None]
    ) -> None:
        super().__init__(attempt, clock, send_proxy=send_proxy)
        self._made = made

    def connectionMade(self) -> None:
        """See `StreamPath.connectionMade`."""
        self._made()
        super().connectionMade()


class _Port(UDPPath):
    """A UDP port that says when the name's addresses are known."""

    def __init__(self, attempt: _Attempt, reactor: IReactorUDP, found: Callable[[], None]) -> None:
        super().__init__(attempt, reactor)
        self._found = found

    def _open(self, found: list[AddressInfo]) -> Self:
        self._found()
        return super()._open(found)


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class LookupTimer:
    """Stands in for the reactor in endpoints, to learn when a name lookup is complete.

    An endpoint calls the resolver within its `connect`, so a lookup belongs to the latest
    `attempt`.

    @param reactor: does everything else.
    """

    def __init__(self, reactor: Any) -> None:  # provides many interfaces, see `command.Run`
        self._reactor = reactor
        self.attempt: _Attempt
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:  # whatever the reactor has
        return getattr(self._reactor, name)

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, *arguments: Any, **options: Any
    ) -> IHostResolution:
        """See `IHostnameResolver.resolveHostName`; the arguments are only passed on."""
        self.attempt.lookup_began()
        receiver = _Receiver(resolutionReceiver, self.attempt.looked_up)
        resolver: IHostnameResolver = self._reactor.nameResolver
        return resolver.resolveHostName(receiver, *arguments, **options)


@implementer(IResolutionReceiver)
class _Receiver:
    """Passes the addresses on, and says when they are complete, if there are any."""

    def __init__(self, receiver: IResolutionReceiver, complete: Callable[[], None]) -> None:
        self._inner = receiver
        self._complete = complete
        self._any = False
        self.resolutionBegan = receiver.resolutionBegan

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver.addressResolved`."""
        self._any = True
        self._inner.addressResolved(address)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver.resolutionComplete`."""
        if self._any:
            self._complete()
        self._inner.resolutionComplete()
