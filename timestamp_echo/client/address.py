"""SERVER on the command line: from its text to an endpoint, or to a host and port for datagrams.

Knows names and ports; opens no connection.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    clientFromString,
    wrapClientTLS,
)
from twisted.internet.error import getConnectError
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IHostnameResolver,
    IHostResolution,
    IReactorCore,
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
    IReactorUNIX,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.tcp import Client
from zope.interface import implementer

from timestamp_echo.addresses import host_port
from timestamp_echo.client.errors import openssl_reason, quoted
from timestamp_echo.client.tls import Trust, connection_creator

PORT = 3000
"""The default port."""

_MAX_UNIX_PATH = 107
"""Bytes of a UNIX socket's path: 108 with its NUL (unix(7))."""

_MAX_PORT = 65535
"""Ports have 16 bits."""

_EXPECTED = (
    "SERVER: expected host, host:port, [::1]:port, unix:/path, udp:host:port, tls:host:port"
    " or a Twisted client endpoint"
)
_HOST_PORT = re.compile(
    r"(?:\[(?P<v6>[^]]+)\]|(?P<host>[^:/\s\[\]?=@\udc80-\udcff]+))(?::(?P<port>\d{1,9}))?", re.ASCII
)
_HOST_PORT_ARGUMENTS = re.compile(rf"(?P<address>{_HOST_PORT.pattern})(?::\w+=.*)?", re.ASCII)
_HOST_AND_WORD = re.compile(r"(?P<host>[^:\[\]]+):(?P<port>[^:]*)")
# The system takes both for addresses: 3000 for 0.0.11.184 (inet_aton(3)), and ::1:3000 for one of a
# range that is not in use (RFC 4291, section 2.5.5.1).
_LONE_PORT = re.compile(r"(?:::1:)?(\d{1,9})", re.ASCII)
_URL = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<server>[^/]+)(?:/.*)?")
_KINDS = ("udp", "tls", "unix", "tcp", "ssl")
_PREFIXES = {"https": "tls:", "ssl": "tls:", "tls": "tls:", "udp": "udp:"}
"""SERVER's prefix for each URL scheme, and for the kind `ssl`, which SERVER does not have."""


class IClientReactor(
    IReactorCore,
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
    IReactorUNIX,
):
    """What the client uses of a reactor: all of Twisted's reactors on POSIX provide it.

    mypy has no intersection types. This interface is one; nothing but a cast provides it.
    """


class Family(NamedTuple):
    """An address family, to which an option restricts SERVER."""

    option: str
    name: str
    number: int
    """As in getaddrinfo(3)."""
    address: type[IPv4Address] | type[IPv6Address]
    """As in `IHostnameResolver`."""


IPV4 = Family("-4", "IPv4", socket.AF_INET, IPv4Address)
IPV6 = Family("-6", "IPv6", socket.AF_INET6, IPv6Address)


@implementer(IHostnameResolver)
class FamilyResolver:
    """Finds the addresses of one family only.

    @param resolver: finds them.
    @param family: the family.
    """

    def __init__(self, resolver: IHostnameResolver, family: Family) -> None:
        self._resolver = resolver
        self._family = family

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `IHostnameResolver.resolveHostName`."""
        types = [self._family.address]
        return self._resolver.resolveHostName(
            resolutionReceiver, hostName, portNumber, types, transportSemantics
        )


class ExplainingReactor:
    """Stands in for the reactor in endpoints, so that a failed connection has the kernel's reason.

    When a router rejects the connection, epoll may report an error and nothing to read. Twisted
    then takes it for a closed connection, and closes the socket without asking for the error.

    @param reactor: does everything else.
    """

    def __init__(self, reactor: IClientReactor) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:  # whatever the reactor has
        return getattr(self._reactor, name)

    def connectTCP(self, *arguments: Any, **options: Any) -> IConnector:
        """See `IReactorTCP.connectTCP`; the arguments are only passed on."""
        connector = self._reactor.connectTCP(*arguments, **options)
        client = getattr(connector, "transport", None)
        if isinstance(client, Client):
            client.failIfNotConnected = partial(  # type: ignore[method-assign]  # for this object
                _fail, client, client.failIfNotConnected
            )
        return connector


def _fail(client: Client, fail: Callable[[Any], None], error: Any) -> None:
    """As `Client.failIfNotConnected`, but with the error that the kernel still has, if any."""
    number = 0
    if not client.connected and client.fileno() != -1:
        number = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    fail(getConnectError((number, os.strerror(number))) if number else error)


@dataclass(frozen=True)
class StreamServer:
    """A server for stream connections: TCP, TLS or UNIX."""

    name: str
    endpoint: IStreamClientEndpoint


@dataclass(frozen=True)
class DatagramServer:
    """A server for UDP datagrams."""

    name: str
    host: str
    port: int
    family: int = socket.AF_UNSPEC
    """The address family to look up, as in getaddrinfo(3)."""


def server_from(
    text: str, trust: Trust, reactor: IClientReactor, family: Family | None = None
) -> StreamServer | DatagramServer:
    """Parse SERVER.

    @param text: SERVER, as on the command line.
    @param trust: the options for TLS.
    @param reactor: makes the connection; its resolver must find addresses of `family` only.
    @param family: the only address family to use; None for both.
    @raise ValueError: the message names the argument or option, what was expected and what was
        given.
    """
    kind, _, rest = text.partition(":")
    if _is_mistaken(text):
        raise ValueError(_not_a_server(text))
    if family:
        _check_family(text, family)
    if kind == "tls" and (address := _host_and_port(rest, "tls:")):
        return _tls_server(*address, trust, reactor)
    _check_no_trust(text, trust)
    if kind == "udp":
        return _udp_server(text, rest, family.number if family else socket.AF_UNSPEC)
    if kind == "unix" and not rest.startswith("path="):
        return _unix_server(text, rest, reactor)
    if address := _host_and_port(text):
        return StreamServer(host_port(*address), _tcp(*address, reactor))
    return StreamServer(text, _endpoint(text, reactor))


def _is_mistaken(text: str) -> bool:
    """Whether a text would parse as a server, but clearly not as the one that was meant."""
    kind, _, rest = text.partition(":")
    if kind == "tcp" and _LONE_PORT.fullmatch(rest):
        return True
    # Twisted's ssl: verifies no certificate. A kind in capitals would be taken for a host.
    return (
        kind == "ssl"
        or (kind not in _KINDS and kind.lower() in _KINDS)
        or bool(_URL.fullmatch(text))
    )


def _host_and_port(text: str, kind: str = "") -> tuple[str, int] | None:
    """Parse `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.

    @param kind: what precedes it in SERVER, such as `udp:`.
    @return: None for anything else.
    @raise ValueError: it is a port alone, or the port or the zone is invalid.
    """
    if port := _LONE_PORT.fullmatch(text):
        host = "[::1]" if text.startswith(":") else "localhost"
        meant = quoted(f"{kind}{host}:{port[1]}")
        hint = f"; did you mean {meant}?" if 0 < int(port[1]) <= _MAX_PORT else ""
        raise ValueError(f"SERVER: expected {kind}host:port, not {quoted(kind + text)}{hint}")
    if isIPv6Address(text):
        _check_zone(text)
        return text, PORT
    match = _HOST_PORT.fullmatch(text)
    if match is None or (match["v6"] and not isIPv6Address(match["v6"])):
        return None
    if match["v6"]:
        _check_zone(match["v6"])
    return match["v6"] or match["host"], _port(match["port"], text) if match["port"] else PORT


def _check_zone(address: str) -> None:
    """Check that a link-local IPv6 address has a zone, and that a zone is an interface (RFC 4007).

    @raise ValueError: the zone is missing, or no interface of this host.
    """
    ip, percent, zone = address.partition("%")
    interfaces = [str(part) for pair in socket.if_nameindex() for part in pair]
    if percent and zone not in interfaces:
        name, colon, port = zone.rpartition(":")
        known = colon and name in interfaces
        meant = f"; did you mean {quoted(f'[{ip}%{name}]:{port}')}?" if known else ""
        raise ValueError(
            f"SERVER: expected a network interface of this host, not {quoted(zone)}"
            f" in {quoted(address)}{meant}"
        )
    if ip_address(ip).is_link_local and not percent:
        raise ValueError(
            f"SERVER: expected a link-local address with its interface, as in {ip}%eth0,"
            f" not {quoted(address)}"
        )


def _check_family(text: str, family: Family) -> None:
    """Refuse a SERVER that is no host, or an address of the other family.

    @raise ValueError: it is refused.
    """
    kind, _, rest = text.partition(":")
    address = _host_and_port(rest, f"{kind}:") if kind in ("tls", "udp") else _host_and_port(text)
    other = isIPAddress if family is IPV6 else isIPv6Address
    if address is None or other(address[0]) or kind == "unix":
        raise ValueError(
            f"{family.option}: expected a SERVER with a name or an {family.name} address,"
            f" not {quoted(text)}"
        )


def _tcp(host: str, port: int, reactor: IClientReactor) -> IStreamClientEndpoint:
    explaining: Any = ExplainingReactor(reactor)
    if "%" in host:  # HostnameEndpoint would lose the zone
        return TCP6ClientEndpoint(explaining, host, port)
    return HostnameEndpoint(explaining, host, port)


def _port(digits: str, text: str) -> int:
    port = int(digits)
    if not 0 < port <= _MAX_PORT:  # 0 is reserved (RFC 6335, section 6)
        raise ValueError(
            f"SERVER: expected a port from 1 to {_MAX_PORT}, not {port} in {quoted(text)}"
        )
    return port


def _check_no_trust(text: str, trust: Trust) -> None:
    """Refuse the options for TLS with a server that is reached without TLS.

    @raise ValueError: such an option is given.
    """
    if trust != Trust():
        meant = f"; did you mean {quoted(f'tls:{text}')}?" if _host_and_port(text) else ""
        raise ValueError(
            f"--ca, --cert, --key and --insecure are for tls:host:port, not {quoted(text)}{meant}"
        )


def _udp_server(text: str, rest: str, family: int) -> DatagramServer:
    if not (address := _host_and_port(rest, "udp:")):
        raise ValueError(f"SERVER: expected udp:host:port, not {quoted(text)}")
    return DatagramServer(f"udp:{host_port(*address)}", *address, family)


def _unix_server(text: str, path: str, reactor: IClientReactor) -> StreamServer:
    if not 0 < len(os.fsencode(path)) <= _MAX_UNIX_PATH:
        raise ValueError(
            f"SERVER: expected unix:/path with a path of 1 to {_MAX_UNIX_PATH} bytes,"
            f" not {quoted(text)}"
        )
    return StreamServer(text, UNIXClientEndpoint(reactor, path))


def _endpoint(text: str, reactor: IClientReactor) -> IStreamClientEndpoint:
    try:
        endpoint: IStreamClientEndpoint = clientFromString(ExplainingReactor(reactor), text)
    except Exception as error:  # any: each kind of endpoint has its own, such as a TypeError
        raise ValueError(_not_a_server(text) + _cause(error)) from error
    return endpoint


def _not_a_server(text: str) -> str:
    """Say what was expected, what was given, and, where it is obvious, what was meant."""
    if (meant := _meant(text)) and _is_server(meant):
        return f"{_EXPECTED}, not {quoted(text)}; did you mean {quoted(meant)}?"
    match = _HOST_AND_WORD.fullmatch(text.removeprefix("tls:"))
    if match and match["host"].lower() not in _KINDS and not match["port"].startswith("/"):
        expected = f"SERVER: expected a port from 1 to {_MAX_PORT}, not {quoted(match['port'])}"
        return f"{expected} in {quoted(text)}"
    return f"{_EXPECTED}, not {quoted(text)}"


def _is_server(text: str) -> bool:
    """Whether a suggestion would be taken for a server."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return bool(rest)
    try:
        return bool(_host_and_port(rest if kind in ("tls", "udp") else text))
    except ValueError:
        return False


def _meant(text: str) -> str:
    """The SERVER that a text probably means, such as a URL or a misspelt kind; empty if none."""
    if (url := _URL.fullmatch(text)) and _host_and_port(url["server"]):
        return _PREFIXES.get(url["scheme"].lower(), "") + url["server"]
    host, _, word = text.rpartition(":")
    if isIPv6Address(host):  # the port has too many digits for a group of an address
        return f"[{host}]:{word}"
    given, colon, rest = text.partition(":")
    kind = next(iter(get_close_matches(given.lower(), _KINDS, n=1)), "") if colon else ""
    if kind in ("tcp", "ssl"):
        port, address = _LONE_PORT.fullmatch(rest), _HOST_PORT_ARGUMENTS.fullmatch(rest)
        host = f"localhost:{port[1]}" if port else address["address"] if address else ""
        return _PREFIXES.get(kind, "") + host
    if kind and rest.startswith("/"):
        kind = "unix"
    return f"{kind}:{rest}" if kind and kind != given else ""


def _cause(error: Exception) -> str:
    """Say why a certificate or key that an endpoint names cannot be read; empty otherwise."""
    if isinstance(error, OSError) and error.filename:
        return f" ({error.filename}: {error.strerror})"
    reason = openssl_reason(error)
    return f" (certificate or key: {reason})" if reason else ""


def _tls_server(host: str, port: int, trust: Trust, reactor: IClientReactor) -> StreamServer:
    try:
        creator = connection_creator(host.partition("%")[0], trust)  # no certificate has a zone
    except UnicodeError as error:  # an empty label, or one that is too long
        raise ValueError(f"SERVER: expected a host name, not {quoted(host)}") from error
    endpoint = wrapClientTLS(creator, _tcp(host, port, reactor), reactor)
    return StreamServer(f"tls:{host_port(host, port)}", endpoint)
