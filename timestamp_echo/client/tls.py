"""TLS for the client: which certificates of a server it accepts, and its own.

Knows PEM files, and OpenSSL, which may be missing; opens no connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from timestamp_echo.client.errors import not_installed, openssl_reason, quoted

if TYPE_CHECKING:  # the extra `tls` may be missing
    from OpenSSL import SSL
    from twisted.internet.ssl import Certificate, KeyPair


@dataclass(frozen=True)
class Trust:
    """Which certificates of a server the client accepts, and its own."""

    ca: str | None = None
    """The path of a PEM file of certificate authorities; None for the system's."""

    insecure: bool = False
    """Accept any certificate of the server."""

    cert: str | None = None
    """The path of a PEM file with the client's own certificate, and those of its issuers; None for
    a client without one."""

    key: str | None = None
    """The path of a PEM file with its private key; None if that is in the file `cert`."""


def connection_creator(host: str, trust: Trust) -> IOpenSSLClientConnectionCreator:
    """Prepare TLS connections to a host.

    @param host: the name or address that its certificate must be for.
    @param trust: the options for TLS.
    @raise ValueError: a file cannot be used, or pyOpenSSL is missing; the message names the option.
    """
    try:
        import OpenSSL  # noqa: F401  # only to know whether it is installed
    except ImportError as error:
        raise ValueError(f"tls: {not_installed('pyOpenSSL', 'tls')}") from error
    identity = {} if trust.cert is None else _identity(trust.cert, trust.key)
    if trust.insecure:
        return _unverified(host, identity)
    return _verified(host, trust.ca, identity)


def _verified(
    host: str, ca: str | None, identity: dict[str, Any]
) -> IOpenSSLClientConnectionCreator:
    from twisted.internet.ssl import optionsForClientTLS, trustRootFromCertificates

    # Without a trust root, Twisted uses those of the system.
    return optionsForClientTLS(
        host,
        trustRoot=None if ca is None else trustRootFromCertificates(_certificates("--ca", ca)),
        extraCertificateOptions=identity,
    )


def _unverified(host: str, identity: dict[str, Any]) -> IOpenSSLClientConnectionCreator:
    from OpenSSL import SSL
    from twisted.internet.ssl import CertificateOptions

    options = CertificateOptions(**identity)

    @implementer(IOpenSSLClientConnectionCreator)
    class Unverified:
        """Verifies no certificate, but still sends the server's name (SNI, RFC 6066, section 3)."""

        def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
            connection = SSL.Connection(options.getContext(), None)
            if not (isIPAddress(host) or isIPv6Address(host)):  # SNI has names, not addresses
                connection.set_tlsext_host_name(host.encode("idna"))
            return connection

    return Unverified()


def _identity(cert: str, key: str | None) -> dict[str, Any]:
    """Read the client's own certificate and key, as arguments of Twisted's `CertificateOptions`.

    @raise ValueError: a file cannot be used, or they do not belong together.
    """
    first, *issuers = _certificates("--cert", cert)
    pair = _key_pair("--cert", cert) if key is None else _key_pair("--key", key)
    if not pair.matches(first.getPublicKey()):
        raise ValueError(
            f"--cert: expected a certificate for the key in {key or cert}; the first one in {cert}"
            " is for another"
        )
    return {
        "privateKey": pair.original.to_cryptography_key(),  # OpenSSL's types are deprecated
        "certificate": first.original.to_cryptography(),
        "extraCertChain": [issuer.original.to_cryptography() for issuer in issuers],
    }


def _key_pair(option: str, path: str) -> KeyPair:
    from OpenSSL.crypto import FILETYPE_PEM, load_privatekey
    from twisted.internet.ssl import KeyPair

    pem = _read(option, path)
    try:
        # An empty password: without any, OpenSSL would ask for one at the terminal.
        return KeyPair(load_privatekey(FILETYPE_PEM, pem, b""))
    except Exception as error:  # as in `_certificate`
        raise ValueError(
            f"{option}: expected a private key without a password in PEM format, found none in"
            f" {path}"
        ) from error


def _certificates(option: str, path: str) -> list[Certificate]:
    """Read all certificates of a PEM file; what is between them is comment (RFC 7468, section 2).

    @raise ValueError: the file cannot be read, or has no certificate, or a damaged one.
    """
    blocks = re.findall(
        b"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", _read(option, path), re.S
    )
    if not blocks:
        raise ValueError(f"{option}: expected certificates in PEM format, found none in {path}")
    return [_certificate(block, option, path) for block in blocks]


def _certificate(pem: bytes, option: str, path: str) -> Certificate:
    from twisted.internet.ssl import Certificate

    try:
        return Certificate.loadPEM(pem)
    except Exception as error:  # cryptography and pyOpenSSL have several, and no common base
        detail = openssl_reason(error) or "not X.509"
        raise ValueError(f"{option}: {path}: damaged certificate ({detail})") from error


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{option}: {path or quoted('')}: {error.strerror}") from error
