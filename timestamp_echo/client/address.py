"""SERVER on the command line: from its text to an endpoint, or to a host and port for datagrams.

Knows names and ports; opens no connection.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches

from twisted.internet.abstract import isIPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    UNIXClientEndpoint,
    clientFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
    IReactorUNIX,
    IStreamClientEndpoint,
)

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
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?", re.ASCII)
_HOST_AND_WORD = re.compile(r"(?P<host>[^:\[\]]+):(?P<port>[^:]*)")
_URL = re.compile(r"[A-Za-z]+://(?P<server>[^/]+)/?")
_KINDS = ("udp", "tls", "unix", "tcp", "ssl")


class IClientReactor(
    IReactorCore, IReactorFDSet, IReactorTCP, IReactorTime, IReactorUDP, IReactorUNIX
):
    """What the client uses of a reactor: all of Twisted's reactors on POSIX provide it.

    mypy has no intersection types. This interface is one; nothing but a cast provides it.
    """


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


def server_from(text: str, trust: Trust, reactor: IClientReactor) -> StreamServer | DatagramServer:
    """Parse SERVER.

    @param text: SERVER, as on the command line.
    @param trust: the options for TLS.
    @param reactor: makes the connection.
    @raise ValueError: the message names the argument or option, what was expected and what was
        given.
    """
    kind, _, rest = text.partition(":")
    if kind == "tls" and (address := _host_and_port(rest)):
        return _tls_server(*address, trust, reactor)
    _check_no_trust(text, trust)
    if kind == "udp":
        return _udp_server(text, rest)
    if kind == "unix" and not rest.startswith("path="):
        return _unix_server(text, rest, reactor)
    if address := _host_and_port(text):
        return StreamServer(host_port(*address), HostnameEndpoint(reactor, *address))
    return StreamServer(text, _endpoint(text, reactor))


def _host_and_port(text: str) -> tuple[str, int] | None:
    """Parse `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.

    @return: None for anything else.
    @raise ValueError: the port is out of range.
    """
    if isIPv6Address(text):
        return text, PORT
    match = _HOST_PORT.fullmatch(text)
    if match is None or (match["v6"] and not isIPv6Address(match["v6"])):
        return None
    return match["v6"] or match["host"], _port(match["port"], text) if match["port"] else PORT


def _port(digits: str, text: str) -> int:
    port = int(digits)
    if not 0 < port <= _MAX_PORT:  # 0 is reserved (RFC 6335, section 6)
        raise ValueError(
            f"SERVER: expected a port from 1 to {_MAX_PORT}, not {port} in {quoted(text)}"
        )
    return port


def _check_no_trust(text: str, trust: Trust) -> None:
    """Refuse the options for TLS with a server that is reached without.

    @raise ValueError: one of them is given.
    """
    if trust != Trust():
        meant = f"; did you mean {quoted(f'tls:{text}')}?" if _host_and_port(text) else ""
        raise ValueError(
            f"--ca, --cert, --key and --insecure are for tls:host:port, not {quoted(text)}{meant}"
        )


def _udp_server(text: str, rest: str) -> DatagramServer:
    if not (address := _host_and_port(rest)):
        raise ValueError(f"SERVER: expected udp:host:port, not {quoted(text)}")
    return DatagramServer(f"udp:{host_port(*address)}", *address)


def _unix_server(text: str, path: str, reactor: IClientReactor) -> StreamServer:
    if not 0 < len(os.fsencode(path)) <= _MAX_UNIX_PATH:
        raise ValueError(
            f"SERVER: expected unix:/path with a path of 1 to {_MAX_UNIX_PATH} bytes,"
            f" not {quoted(text)}"
        )
    return StreamServer(text, UNIXClientEndpoint(reactor, path))


def _endpoint(text: str, reactor: IClientReactor) -> IStreamClientEndpoint:
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, text)
    except Exception as error:  # any: each kind of endpoint has its own, such as a TypeError
        raise ValueError(_not_a_server(text) + _cause(error)) from error
    return endpoint


def _not_a_server(text: str) -> str:
    """Say what was expected, what was given, and, where it is obvious, what was meant."""
    if meant := _meant(text):
        return f"{_EXPECTED}, not {quoted(text)}; did you mean {quoted(meant)}?"
    match = _HOST_AND_WORD.fullmatch(text)
    if match and match["host"] not in _KINDS:
        expected = f"SERVER: expected a port from 1 to {_MAX_PORT}, not {quoted(match['port'])}"
        return f"{expected} in {quoted(text)}"
    return f"{_EXPECTED}, not {quoted(text)}"


def _meant(text: str) -> str:
    """The SERVER that a URL, `tcp:[v6]:port` or a misspelt kind probably means; empty if none."""
    if (url := _URL.fullmatch(text)) and _host_and_port(url["server"]):
        return url["server"]
    kind, colon, rest = text.partition(":")
    if kind == "tcp" and (address := _host_and_port(rest)):
        return host_port(*address)
    similar = get_close_matches(kind, _KINDS, n=1)
    return f"{similar[0]}:{rest}" if colon and similar and kind not in _KINDS else ""


def _cause(error: Exception) -> str:
    """Say why a certificate or key that an endpoint names cannot be read; empty otherwise."""
    if isinstance(error, OSError) and error.filename:
        return f" ({error.filename}: {error.strerror})"
    reason = openssl_reason(error)
    return f" (certificate or key: {reason})" if reason else ""


def _tls_server(host: str, port: int, trust: Trust, reactor: IClientReactor) -> StreamServer:
    creator = connection_creator(host, trust)
    plain = HostnameEndpoint(reactor, host, port)
    return StreamServer(f"tls:{host_port(host, port)}", wrapClientTLS(creator, plain, reactor))
