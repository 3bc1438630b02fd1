"""What server endpoints are given in place of the reactor.

`ReactorAdapter` passes everything on to the reactor, except that the ports it opens use the
connections of `stream`, `tls` and `proxy`. Knows endpoints and ports; no message and no stamp.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.endpoints import StandardIOEndpoint as TwistedStandardIOEndpoint
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    quoteStringArgument,
    serverFromString,
)
from twisted.internet.error import CannotListenError, UnsupportedAddressFamily
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import DatagramProtocol

from timestamp_echo.transports import arrivals
from timestamp_echo.transports.arrivals import LINUX
from timestamp_echo.transports.epoll import HAS_EPOLL, EpollGroup
from timestamp_echo.transports.port import StreamPort, UNIXStreamPort
from timestamp_echo.transports.proxy import ProxiedFactory
from timestamp_echo.transports.stdio import StandardIOEndpoint
from timestamp_echo.transports.stream import (
    StreamTransport,
    TimedStreamTransport,
    UNIXStreamTransport,
)
from timestamp_echo.transports.udp import DatagramPort

if TYPE_CHECKING:
    from timestamp_echo.transports.certificates import ServerCertificates

MAX_UNSENT = 2**16
"""Bytes of replies that may be unsent, by default, before a connection is read no further."""

BACKLOG = 4096
"""Connections that may wait to be accepted: the kernel's own limit (net.core.somaxconn). If an
endpoint asks for any number but Twisted's default, it gets that."""

_TWISTED_BACKLOG = 50  # a burst overruns it, and a client that is dropped retries a second later

_PROXIED_KINDS = ("tcp", "tcp6", "ssl", "tls", "unix", "systemd")
"""Endpoints that open their ports by the methods below, which see to the PROXY header."""

_SOCKET_ARGUMENTS = {"port", "interface", "backlog"}
"""Arguments of `ssl:` and `tls:` that a socket from systemd has settled already. The port is the
first positional argument of `ssl:`, and the second of `tls:`."""

# A part of an endpoint's description, between colons: a value, or a name, `=` and a value. A
# backslash escapes the character after it.
_ARGUMENT = re.compile(r"(?:^|:)(?:((?:[^:=\\]|\\.)+)=)?((?:[^:\\]|\\.)*)", re.DOTALL)


class ReactorAdapter:
    """What a server endpoint is given in place of the reactor.

    @param reactor: the real one.
    @param kernel_times: whether TCP connections are to know the kernel's arrival times, which
        stamps of whole seconds do not need.
    @param max_unsent: bytes of replies that a connection may have unsent before it is read no
        further.
    @param client_ca: a file of CA certificates in PEM: clients of `ssl:` endpoints must present a
        certificate issued by one of them.
    @param may_proxy: whether a PROXY header from this address is read.
    """

    reuse_port = False
    """Whether other processes may open the same TCP and UDP ports, and share what comes there
    (SO_REUSEPORT, socket(7))."""

    def __init__(
        self,
        reactor: Any,  # IReactorTCP, IReactorUNIX, IReactorSocket, IReactorFDSet and IReactorTime
        kernel_times: bool,
        max_unsent: int = MAX_UNSENT,
        client_ca: str | None = None,
        may_proxy: Callable[[IAddress | None], bool] = lambda address: True,
    ) -> None:
        self._reactor = reactor
        self._timed = kernel_times and LINUX
        self._max_unsent = max_unsent
        self._client_ca = client_ca
        self._may_proxy = may_proxy
        self._group = EpollGroup(reactor) if HAS_EPOLL else reactor
        self._proxied = False
        self._plain = False  # whether connections are Twisted's own
        self._replaced_port: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def endpoint(self, description: str) -> IStreamServerEndpoint:
        """Make an endpoint of its description, as `serverFromString` does.

        The layers are put together here. `haproxy:` is always the outermost: proxies send its
        header in front of the TLS handshake (Twisted's `haproxy:ssl:` expects it inside,
        twisted#9041). TLS comes next.

        @raise ValueError: the description is wrong; Twisted's parsers raise other errors as well.
        @raise OSError: a file or folder of certificates cannot be read, or is of no use.
        """
        inner = description.removeprefix("haproxy:")
        adapter = self if inner == description else self._changed(_proxied=True)
        kind = inner.partition(":")[0]
        if adapter._proxied and kind not in _PROXIED_KINDS:
            raise ValueError(f"expected one of {', '.join(_PROXIED_KINDS)} after haproxy:")
        if kind in {"ssl", "tls"}:
            return adapter._tls_endpoint(inner)
        endpoint: IStreamServerEndpoint = serverFromString(adapter, inner)
        if isinstance(endpoint, TwistedStandardIOEndpoint):
            return StandardIOEndpoint(self._reactor)
        return endpoint

    def _tls_endpoint(self, description: str) -> IStreamServerEndpoint:
        from timestamp_echo.transports.tls import HalfCloseTLSEndpoint

        kind, positional, named = _arguments(description)
        name = named.pop("systemd", None)
        if name is not None:
            if _SOCKET_ARGUMENTS & named.keys() or len(positional) > (kind == "tls"):
                raise ValueError("expected systemd= without port=, interface= and backlog=")
            named["port"] = "0"
        make = self._ssl if kind == "ssl" else self._tls
        endpoint, certificates = make(*positional, **named)
        if name is not None and self._replaced_port is None:
            endpoint = self._adopted(name)
        return HalfCloseTLSEndpoint(endpoint, certificates, self._reactor)

    def _ssl(  # noqa: PLR0913, PLR0917  # these are the arguments of Twisted's `ssl:`
        self,
        port: str,
        privateKey: str = "server.pem",
        certKey: str | None = None,
        sslmethod: str | None = None,
        interface: str = "",
        backlog: str = "50",
        extraCertChain: str | None = None,
        dhParameters: str | None = None,
    ) -> tuple[IStreamServerEndpoint, ServerCertificates]:
        from OpenSSL import SSL

        from timestamp_echo.transports.certificates import from_files

        endpoint = TCP4ServerEndpoint(self, int(port), int(backlog), interface)
        files = (privateKey, certKey or privateKey, extraCertChain, dhParameters)
        options = {} if sslmethod is None else {"method": getattr(SSL, sslmethod)}
        return endpoint, from_files(*files, self._client_ca, **options)

    def _tls(
        self, path: str, port: str = "443", backlog: str = "50", interface: str = "::"
    ) -> tuple[IStreamServerEndpoint, ServerCertificates]:
        from timestamp_echo.transports.certificates import from_folder

        endpoint = TCP6ServerEndpoint(self, int(port), int(backlog), interface)
        return endpoint, from_folder(path)

    def _adopted(self, name: str) -> IStreamServerEndpoint:
        """The endpoint of a socket that systemd passed under this name, of any family.

        @raise LookupError: there is none.
        """
        endpoint = serverFromString(self, f"systemd:domain=INET:name={quoteStringArgument(name)}")
        # Anything but a socket is refused by `adoptStreamPort`.
        with suppress(OSError), _borrowed(endpoint.fileno) as sock:
            endpoint.addressFamily = sock.family
        adopted: IStreamServerEndpoint = endpoint
        return adopted

    def replacing(self, port: IListeningPort) -> ReactorAdapter:
        """An adapter that does not open ports, but gives an open one a new factory.

        An endpoint that is made with it, from the same description, reads its certificates again.
        Connections accepted from then on use them; the others are not touched.
        """
        return self._changed(_replaced_port=port)

    def plain(self) -> ReactorAdapter:
        """An adapter that opens ports as this one does, but for Twisted's own connections."""
        return self._changed(_plain=True, reuse_port=False)

    def _changed(self, **attributes: object) -> ReactorAdapter:
        """A copy of this adapter with these attributes changed."""
        other = ReactorAdapter.__new__(ReactorAdapter)
        other.__dict__.update(self.__dict__, **attributes)
        return other

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorTCP.listenTCP`."""
        outermost = self._outermost(factory)
        if self._replaced_port is not None:
            self._replaced_port.factory = outermost
            replaced: IListeningPort = self._replaced_port
            return replaced
        opened = StreamPort(port, outermost, _backlog(backlog), interface, self._reactor)
        opened.reuse_port = self.reuse_port
        return self._opened(opened, factory)

    def listenSSL(
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: Any,
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """See `IReactorSSL.listenSSL`."""
        if self._plain:
            from twisted.protocols.tls import TLSMemoryBIOFactory

            plain = TLSMemoryBIOFactory(contextFactory, False, factory)
            return self.listenTCP(port, plain, backlog, interface)
        from timestamp_echo.transports.certificates import require_client_certificate
        from timestamp_echo.transports.tls import HalfCloseTLSFactory

        if self._client_ca is not None:
            require_client_certificate(contextFactory, self._client_ca)
        secured = HalfCloseTLSFactory(contextFactory, factory, self._reactor)
        return self.listenTCP(port, secured, backlog, interface)

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        """See `IReactorUNIX.listenUNIX`. If it fails, it leaves no lock behind."""
        port = UNIXStreamPort(
            os.fsencode(address),
            self._outermost(factory),
            *(_backlog(backlog), mode, self._reactor, wantPID),
        )
        try:
            return self._opened(port, factory)
        except CannotListenError as error:
            lock = port.lockFile
            if lock is None:
                raise
            if not lock.locked:
                raise CannotListenError(None, address, OSError(_held(address + ".lock"))) from error
            lock.unlock()
            raise

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> IListeningPort:
        """See `IReactorSocket.adoptStreamPort`.

        @raise CannotListenError: it is not a listening socket of this family.
        """
        outermost = self._outermost(factory)
        port: StreamPort
        if addressFamily not in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}:
            raise UnsupportedAddressFamily("expected domain=INET, INET6 or UNIX")
        _check_kind(fileDescriptor, addressFamily, socket.SOCK_STREAM)
        if addressFamily == socket.AF_UNIX:
            port = UNIXStreamPort._fromListeningDescriptor(self._reactor, fileDescriptor, outermost)
        else:
            port = StreamPort._fromListeningDescriptor(
                *(self._reactor, fileDescriptor, addressFamily, outermost)
            )
        port.inherited = True
        return self._opened(port, factory)

    def listen_udp(
        self, port: int, protocol: DatagramProtocol, interface: str, max_size: int
    ) -> DatagramPort:
        """As `IReactorUDP.listenUDP`, but for a protocol that takes batches (`DatagramPort`).

        @raise CannotListenError: the port cannot be opened.
        """
        opened = DatagramPort(port, protocol, interface, max_size, self._reactor)
        opened.reuse_port = self.reuse_port
        opened.listen(self._timed)
        return opened

    def adopt_udp(
        self, fd: int, family: int, protocol: DatagramProtocol, max_size: int
    ) -> DatagramPort:
        """As `IReactorSocket.adoptDatagramPort`, but for a protocol that takes batches.

        @raise CannotListenError: it is not a bound UDP socket of this family.
        """
        if family not in {socket.AF_INET, socket.AF_INET6}:
            raise UnsupportedAddressFamily("expected a datagram socket with domain=INET or INET6")
        _check_kind(fd, family, socket.SOCK_DGRAM)
        port: DatagramPort = DatagramPort._fromListeningDescriptor(
            self._reactor, fd, family, protocol, max_size
        )
        port.inherited = True
        # An option set on a socket holds for all processes that share it, now and later. So arrival
        # times are always enabled, whatever stamps each of them writes.
        port.listen(timed=True)
        return port

    def _outermost(self, factory: IProtocolFactory) -> IProtocolFactory:
        return ProxiedFactory(factory, self._may_proxy) if self._proxied else factory

    def _opened(self, port: StreamPort, factory: IProtocolFactory) -> IListeningPort:
        """Begin to listen on a port whose connections are in the group, unless they are plain."""
        if self._plain:
            port.startListening()
            return port
        port._type = getattr(factory, "port_type", port._type)
        kind: type[StreamTransport] = StreamTransport
        if isinstance(port, UNIXStreamPort):
            kind = UNIXStreamTransport
        elif self._timed:
            kind = TimedStreamTransport
        transport: Any = partial(kind, group=self._group, max_unsent=self._max_unsent)
        port.transport = transport
        if isinstance(self._group, EpollGroup):
            port.group = self._group
        port.startListening()
        if kind is TimedStreamTransport:
            arrivals.enable(port.socket)
        listening: IListeningPort = port
        return listening


def _arguments(description: str) -> tuple[str, list[str], dict[str, str]]:
    """Split an endpoint's description as `serverFromString` does.

    @return: the kind of endpoint, its values without a name, and those with one.
    """
    parts = [
        (name, re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL))
        for name, value in _ARGUMENT.findall(description)
    ]
    kind, *positional = [value for name, value in parts if not name]
    return kind, positional, {name: value for name, value in parts if name}


def _backlog(asked_for: int) -> int:
    return BACKLOG if asked_for == _TWISTED_BACKLOG else asked_for


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket object for a file descriptor, which stays open.

    @raise OSError: it is no socket.
    """
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def is_datagram_socket(fd: int) -> bool:
    """Whether a file descriptor is a socket for datagrams."""
    with suppress(OSError), _borrowed(fd) as sock:
        return sock.type == socket.SOCK_DGRAM
    return False


def _check_kind(fd: int, family: int, kind: int) -> None:
    """Check that a file descriptor is a listening stream socket, or a bound datagram socket.

    @raise CannotListenError: it is not.
    """
    if given := _wrong_kind(fd, family, kind):
        name = "listening stream" if kind == socket.SOCK_STREAM else "bound datagram"
        expected = f"expected a {name} socket with domain={_domain(family)}"
        raise CannotListenError(None, fd, OSError(f"{expected}, got {given}"))


def _wrong_kind(fd: int, family: int, kind: int) -> str:
    """What a file descriptor is, in place of such a socket; empty if it is one."""
    with suppress(OSError), _borrowed(fd) as sock:
        if sock.type != kind:
            return f"one of type {sock.type.name.removeprefix('SOCK_')}"
        if sock.family != family:
            return f"one with domain={_domain(sock.family)}"
        if kind == socket.SOCK_DGRAM:
            return "" if sock.getsockname()[1] else "one without a port"
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return "" if listens else "one that does not listen"
    return "no socket"


def _domain(family: int) -> str:
    """An address family in the words of `systemd:`, such as INET6."""
    return socket.AddressFamily(family).name.removeprefix("AF_")


def _held(lock: str) -> str:
    """Who holds a lock of Twisted's, a symbolic link to a process id."""
    try:
        return f"{lock} is held by process {os.readlink(lock)}"
    except OSError:  # it has just been removed
        return f"{lock} was held by another process"
