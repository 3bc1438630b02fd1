"""What a connection needs of its transport that Twisted's own leave out.

The kernel's arrival time of each read, a limit of unsent bytes, half-close through TLS and
the PROXY protocol, and no lock left behind. Endpoints
get there through `ReactorAdapter`, which stands in for the reactor; all else stays Twisted's.
Knows no message and no stamp.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.protocols.policies import WrappingFactory
from twisted.python.lockfile import FilesystemLock

from timestamp_echo.transports import arrivals, proxy
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.epoll import (
    BATCHED,
    Batch,
    Connection,
    TimedConnection,
    UNIXConnection,
)

try:
    from timestamp_echo.transports import tls
except ImportError:  # pragma: no cover  # without the extra `tls` no endpoint speaks TLS
    HALF_CLOSES = [proxy.with_half_close]
else:
    HALF_CLOSES = [proxy.with_half_close, tls.with_half_close]


MAX_UNSENT = 2**16
"""Bytes of replies that may be unsent, by default, before a connection is read no further."""

BACKLOG = 4096
"""Connections that may wait to be accepted (the kernel's own limit, net.core.somaxconn, is as
much), unless an endpoint asks for another number than Twisted's default."""

_DEFAULT_BACKLOG = 50  # a storm overruns it, and who is dropped tries again a second later


def _holder(lock: str) -> int:
    """Whose lock this is, by its process id, or 0: Twisted's are symbolic links to it."""
    try:
        return int(os.readlink(lock))
    except (OSError, ValueError):
        return 0


def _with_half_close(factory: Any) -> Any:
    """Let connections half-close through all layers: TLS, PROXY, or one in the other.

    Proxies send the PROXY header in front of the TLS handshake, but Twisted's `haproxy:ssl:`
    expects it inside (twisted#9041): these two change places.
    """
    for with_half_close in HALF_CLOSES:
        factory = with_half_close(factory)
    if isinstance(factory, WrappingFactory):
        inner = factory.wrappedFactory = _with_half_close(factory.wrappedFactory)
        if isinstance(inner, proxy.ProxiedFactory):
            factory.wrappedFactory, inner.wrappedFactory = inner.wrappedFactory, factory
            return inner
    return factory


def _queue(backlog: int) -> int:
    """How many may wait, if an endpoint asks for so many."""
    return BACKLOG if backlog == _DEFAULT_BACKLOG else backlog


class ReactorAdapter:
    """What a server endpoint sees in place of the reactor.

    @param reactor: the real one.
    @param kernel_times: whether TCP connections are to know arrival times, which a stamp of
        whole seconds does without.
    @param max_unsent: bytes of replies that a connection may have unsent before it is read no
        further.
    @param client_ca: a file of certificates in PEM, for the `listenSSL` of a service whose
        clients must show one of theirs.
    """

    def __init__(
        self,
        reactor: Any,
        kernel_times: bool,
        max_unsent: int = MAX_UNSENT,
        client_ca: str | None = None,
    ) -> None:
        self._client_ca = client_ca
        self._reactor = reactor
        self._timed = kernel_times and LINUX
        self._max_unsent = max_unsent
        self._watcher = Batch(reactor) if BATCHED else reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorTCP.listenTCP`."""
        mended = _with_half_close(factory)
        return self._tcp(self._reactor.listenTCP(port, mended, _queue(backlog), interface))

    def listenSSL(
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: Any,
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """See `IReactorSSL.listenSSL`."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        if self._client_ca is not None:
            tls.ask_clients(contextFactory, self._client_ca)
        wrapping = TLSMemoryBIOFactory(contextFactory, False, factory, self._reactor)
        return self.listenTCP(port, wrapping, backlog, interface)

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        """See `IReactorUNIX.listenUNIX`. If it fails, its lock does not stay behind."""
        lock = address + ".lock"
        held = _holder(lock) == os.getpid()  # by an earlier listener of this process
        try:
            mended = _with_half_close(factory)
            port = self._reactor.listenUNIX(address, mended, _queue(backlog), mode, wantPID)
        except CannotListenError:
            if not held and _holder(lock) == os.getpid():
                FilesystemLock(lock).unlock()
            raise
        return self._with(port, UNIXConnection)

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> IListeningPort:
        """See `IReactorSocket.adoptStreamPort`."""
        mended = _with_half_close(factory)
        port = self._reactor.adoptStreamPort(fileDescriptor, addressFamily, mended)
        if addressFamily == socket.AF_UNIX:
            return self._with(port, UNIXConnection)
        return self._tcp(port)

    def renewing(self, port: Any) -> Any:
        """What an endpoint sees when it is not to listen, but to read its certificates again.

        Connections that this port accepts from then on have them.
        """
        return _Renewing(self, port)

    def _tcp(self, port: Any) -> IListeningPort:
        if not self._timed:
            return self._with(port, Connection)
        arrivals.ask(port.socket)
        return self._with(port, TimedConnection)

    def _with(self, port: Any, kind: type[Connection]) -> IListeningPort:
        """Let the port make its connections of this kind."""
        port.transport = partial(kind, watcher=self._watcher, max_unsent=self._max_unsent)
        listening: IListeningPort = port
        return listening


class _Renewing(ReactorAdapter):
    """In place of listening, gives a port that is open already its factory made anew."""

    def __init__(self, streams: ReactorAdapter, port: Any) -> None:
        super().__init__(streams, False, client_ca=streams._client_ca)
        self._port = port

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorTCP.listenTCP`."""
        self._port.factory = _with_half_close(factory)
        listening: IListeningPort = self._port
        return listening
