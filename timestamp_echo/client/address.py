"""Which server is meant: from the text on the command line to an endpoint.

Knows names, ports and certificates; opens nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    UNIXClientEndpoint,
    clientFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import IStreamClientEndpoint

from timestamp_echo.addresses import host_port

PORT = 3000
"""The server's port where none is named: the lab's."""

_LONGEST_PATH = 107
"""Bytes of a UNIX socket's path: 108 with its NUL (unix(7))."""

_EXPECTED = (
    "expected host, host:port, [::1]:port, unix:/path, udp:host:port, tls:host:port"
    " or a Twisted client endpoint"
)
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?", re.ASCII)


@dataclass(frozen=True)
class Trust:
    """Whose certificates a client believes."""

    ca: str | None = None
    """A PEM file of authorities; the system's if it is None."""

    insecure: bool = False
    """Believe any certificate."""


@dataclass(frozen=True)
class StreamServer:
    """A server that is reached by a connection."""

    name: str
    endpoint: IStreamClientEndpoint


@dataclass(frozen=True)
class DatagramServer:
    """A server that is reached by datagrams."""

    name: str
    host: str
    port: int


def server_from(text: str, trust: Trust, reactor: Any) -> StreamServer | DatagramServer:
    """Read what stands for SERVER on the command line.

    @raise ValueError: says what was expected and what came.
    """
    kind, _, rest = text.partition(":")
    if kind == "tls" and (place := _host_and_port(rest)):
        return _tls_server(*place, trust, reactor)
    if trust != Trust():
        raise ValueError(f"--ca and --insecure are for tls:host:port, not {text!r}")
    if kind == "udp":
        if not (place := _host_and_port(rest)):
            raise ValueError(f"expected udp:host:port, not {text!r}")
        return DatagramServer(f"udp:{host_port(*place)}", *place)
    if kind == "unix" and not rest.startswith("path="):
        if not 0 < len(os.fsencode(rest)) <= _LONGEST_PATH:
            raise ValueError(
                f"expected unix:/path with a path of 1 to {_LONGEST_PATH} bytes, not {text!r}"
            )
        return StreamServer(text, UNIXClientEndpoint(reactor, rest))
    if place := _host_and_port(text):
        return StreamServer(host_port(*place), HostnameEndpoint(reactor, *place))
    return StreamServer(text, _endpoint(text, reactor))


def _host_and_port(text: str) -> tuple[str, int] | None:
    """`host`, `host:port`, `[v6]:port` or a bare IPv6 address; None for anything else.

    @raise ValueError: the port is too high.
    """
    if isIPv6Address(text):
        return text, PORT
    match = _HOST_PORT.fullmatch(text)
    if match is None or (match["v6"] and not isIPv6Address(match["v6"])):
        return None
    port = int(match["port"] or PORT)
    if not 0 < port <= 65535:  # the field is 16 bits
        raise ValueError(f"expected a port from 1 to 65535, not {port} in {text!r}")
    return match["v6"] or match["host"], port


def _endpoint(text: str, reactor: Any) -> IStreamClientEndpoint:
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, text)
    except Exception as error:  # each kind of endpoint has its own ways to refuse
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{_EXPECTED}, not {text!r} ({reason})") from error
    return endpoint


def _tls_server(host: str, port: int, trust: Trust, reactor: Any) -> StreamServer:
    try:
        import OpenSSL  # noqa: F401  # asks only whether it is there
    except ImportError as error:
        raise ValueError("tls: needs the extra 'tls': pip install 'tsecho[tls]'") from error
    creator: Callable[[str, Trust], Any] = _unverified if trust.insecure else _verified
    plain = HostnameEndpoint(reactor, host, port)
    return StreamServer(
        f"tls:{host_port(host, port)}", wrapClientTLS(creator(host, trust), plain, reactor)
    )


def _verified(host: str, trust: Trust) -> Any:
    from twisted.internet.ssl import optionsForClientTLS, trustRootFromCertificates

    authorities = trust.ca and trustRootFromCertificates(_certificates(trust.ca))
    return optionsForClientTLS(host, trustRoot=authorities or None)


def _certificates(path: str) -> list[Any]:
    """All certificates of a PEM file.

    @raise ValueError: the file can't be read, or holds none.
    """
    from twisted.internet.ssl import Certificate

    try:
        pem = Path(path).read_text("ascii", "replace")
        found = re.findall("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.S)
        certificates = [Certificate.loadPEM(text) for text in found]
    except OSError as error:
        raise ValueError(f"--ca: {path}: {error.strerror}") from error
    except Exception as error:  # cryptography and pyOpenSSL each have their own
        raise ValueError(f"--ca: {path}: a certificate in it can't be read: {error}") from error
    if not certificates:
        raise ValueError(f"--ca: expected certificates in PEM, found none in {path}")
    return certificates


def _unverified(host: str, trust: Trust) -> Any:
    from OpenSSL import SSL
    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
    from twisted.internet.ssl import CertificateOptions
    from zope.interface import implementer

    @implementer(IOpenSSLClientConnectionCreator)
    class Unverified:
        """Checks no certificate, but still names the host (SNI, RFC 6066, section 3)."""

        def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
            connection = SSL.Connection(CertificateOptions().getContext(), None)
            if not (isIPAddress(host) or isIPv6Address(host)):
                connection.set_tlsext_host_name(host.encode("idna"))
            return connection

    return Unverified()
