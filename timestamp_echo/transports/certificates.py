"""The certificates of `ssl:` and `tls:` endpoints, read from PEM files (RFC 7468).

Everything is read and checked at once, and an error names the file. Twisted's loaders do not name
it, and find many errors only when a client connects. Needs the extra `tls`. Knows files and
OpenSSL's contexts; no connection below and no message inside.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import (
    Certificate,
    DNSName,
    DuplicateExtension,
    ExtensionNotFound,
    SubjectAlternativeName,
    UnsupportedGeneralNameType,
    load_pem_x509_certificate,
    load_pem_x509_certificates,
)
from OpenSSL.crypto import X509
from OpenSSL.SSL import NO_OVERLAPPING_PROTOCOLS, Connection, Context, Error
from twisted.internet import ssl
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolNegotiationFactory
from twisted.internet.ssl import CertificateOptions, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

_BLOCKS = re.compile(rb"^(?=-----BEGIN )", re.MULTILINE)  # text may come before the first
_CERTIFICATE = re.compile(rb"-----BEGIN (X509 )?CERTIFICATE-----")
_UNREADABLE = (ValueError, UnsupportedAlgorithm, UnsupportedGeneralNameType, DuplicateExtension)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


class BadFile(OSError):
    """A file, or a folder, does not hold what it should.

    @param path: which one.
    @param why: what was expected, or what is wrong.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(errno.EINVAL, why, path)


class _Certificate(NamedTuple):
    path: str
    parsed: Certificate
    public_key: bytes
    names: list[bytes]


class _Key(NamedTuple):
    path: str
    parsed: Any  # OpenSSL takes some of cryptography's types only
    public_key: bytes


@implementer(IOpenSSLServerConnectionCreator)
class ServerCertificates:
    """Makes the server's side of TLS connections.

    @param default: for clients that name no server, or one that is not in `named`. Neither is
        logged: a client could write any number of lines, with any text. The client notices when it
        checks the names in the certificate (RFC 6066, section 3, allows this).
    @param named: by a server's name in lower case, or by `*.` and a name without its first label.
    @param shown: all certificates that clients may get.
    """

    def __init__(
        self, default: Context, named: dict[bytes, Context], shown: Collection[Certificate]
    ) -> None:
        self.expiry = min(each.not_valid_after_utc for each in shown).timestamp()
        """When the first of the certificates expires, in seconds since the epoch."""
        self._default = default
        self._named = named
        default.set_tlsext_servername_callback(self._choose)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return Connection(self._default, None)

    def _choose(self, connection: Connection) -> None:
        name = (connection.get_servername() or b"").lower()
        wildcard = b"*." + name.partition(b".")[2]
        context = self._named.get(name) or self._named.get(wildcard)
        if context is not None:
            connection.set_context(context)


def from_files(
    key_file: str,
    certificate_file: str,
    chain_file: str | None = None,
    dh_file: str | None = None,
    client_ca: str | None = None,
    **options: Any,
) -> ServerCertificates:
    """One certificate for all clients, as `ssl:` has it.

    @param chain_file: intermediate certificates, up to an authority that clients know.
    @param dh_file: parameters for cipher suites with DHE.
    @param client_ca: see `require_client_certificate`.
    @param options: further arguments of `CertificateOptions`.
    @raise OSError: a file cannot be read, or (`BadFile`) holds something else.
    """
    _, keys = _read(key_file)
    certificates, _ = _read(certificate_file)
    chain = _read(chain_file)[0] if chain_file is not None else []
    if not keys:
        raise BadFile(key_file, "expected a private key in PEM")
    if not certificates:
        raise BadFile(certificate_file, "expected a certificate in PEM")
    if chain_file is not None and not chain:
        raise BadFile(chain_file, "expected certificates in PEM")
    if certificates[0].public_key != keys[0].public_key:
        raise BadFile(certificate_file, f"expected the certificate of the key in {key_file}")
    context = _context(certificates[0], keys[0], chain, client_ca, **options)
    if dh_file is not None:
        _load_dh(context, dh_file)
    shown = [each.parsed for each in (certificates[0], *chain)]
    return ServerCertificates(context, {}, shown)


def from_folder(folder: str) -> ServerCertificates:
    """A certificate for each server's name, as `tls:` has them.

    The files are those whose names end in `.pem`, in the folder and in those within it. They hold
    certificates and private keys, in any order: keys are matched to certificates, and certificates
    to those of their issuers, in whichever file they are. If several certificates are for the same
    name, the latest is used.

    @raise OSError: a file cannot be read, or (`BadFile`) holds something else.
    """
    certificates, keys = _read_folder(folder)
    keyed = [certificate for certificate in certificates if certificate.public_key in keys]
    others = [certificate for certificate in certificates if certificate.public_key not in keys]
    for public_key in keys.keys() - {certificate.public_key for certificate in keyed}:
        raise BadFile(keys[public_key].path, f"its private key fits no certificate in {folder}")
    chains = [list(_issuers(certificate, others)) for certificate in keyed]
    used = {issuer.parsed for chain in chains for issuer in chain}
    for other in others:
        if other.names and other.parsed not in used:
            raise BadFile(other.path, f"no private key in {folder} fits its certificate")
    if not keyed:
        raise BadFile(folder, "expected files *.pem with certificates and their private keys")
    made = [
        (certificate, chain, _context(certificate, keys[certificate.public_key], chain))
        for certificate, chain in zip(keyed, chains, strict=True)
    ]
    first, _, default = made[0]
    made.sort(key=lambda each: each[0].parsed.not_valid_before_utc)
    named = {name: context for certificate, _, context in made for name in certificate.names}
    default = next((named[name] for name in first.names), default)
    shown = [
        each.parsed
        for certificate, chain, context in made
        if context in {default, *named.values()}
        for each in (certificate, *chain)
    ]
    return ServerCertificates(default, named, shown)


def require_client_certificate(options: CertificateOptions, authorities: str) -> None:
    """Accept only clients that show a certificate of one of these authorities.

    @param authorities: a file of certificates in PEM.
    @raise OSError: it cannot be read, or (`BadFile`) holds no certificate.
    """
    try:
        certificates = load_pem_x509_certificates(Path(authorities).read_bytes())
    except ValueError as error:
        raise BadFile(authorities, "expected certificates in PEM") from error
    options.verify = options.requireCertificate = True
    options.trustRoot = trustRootFromCertificates(
        [ssl.Certificate(X509.from_cryptography(certificate)) for certificate in certificates]
    )


def _read_folder(folder: str) -> tuple[list[_Certificate], dict[bytes, _Key]]:
    """All certificates, in the order of their files, and all private keys by their public ones."""
    certificates: list[_Certificate] = []
    keys: dict[bytes, _Key] = {}
    for path in _pem_files(folder):
        in_file, keys_in_file = _read(path)
        if not (in_file or keys_in_file):
            raise BadFile(path, "expected a certificate or a private key in PEM")
        certificates += in_file
        keys.update((key.public_key, key) for key in keys_in_file)
    return certificates, keys


def _pem_files(folder: str) -> list[str]:
    found: list[str] = []
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        if os.path.realpath(where) in seen:  # a link made a circle
            folders.clear()
            continue
        seen.add(os.path.realpath(where))
        found += (os.path.join(where, name) for name in files if name.endswith(".pem"))
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def _read(path: str) -> tuple[list[_Certificate], list[_Key]]:
    """The certificates and the private keys in a file; what else it holds is skipped."""
    blocks = _BLOCKS.split(Path(path).read_bytes())
    return (
        [_certificate(path, block) for block in blocks if _CERTIFICATE.match(block)],
        [_key(path, block) for block in blocks if _PRIVATE_KEY.match(block)],
    )


def _certificate(path: str, block: bytes) -> _Certificate:
    try:
        parsed = load_pem_x509_certificate(block)
        return _Certificate(path, parsed, _encoded(parsed.public_key()), _names(parsed))
    except _UNREADABLE as error:
        raise BadFile(path, "a certificate in it cannot be read") from error


def _names(certificate: Certificate) -> list[bytes]:
    """The names of the servers that it is for, in lower case; some with a wildcard."""
    try:
        extension = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
    except ExtensionNotFound:
        return []
    return [name.lower().encode() for name in extension.value.get_values_for_type(DNSName)]


def _key(path: str, block: bytes) -> _Key:
    try:
        parsed = load_pem_private_key(block, None)
        return _Key(path, parsed, _encoded(parsed.public_key()))
    except TypeError as error:
        raise BadFile(path, "a private key in it has a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadFile(path, "a private key in it cannot be read") from error


def _encoded(public_key: PublicKeyTypes) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _issuers(certificate: _Certificate, others: Iterable[_Certificate]) -> Iterator[_Certificate]:
    """The certificates of its issuer, of the issuer's issuer, and so on, as far as available."""
    left = list(others)
    while certificate.parsed.issuer != certificate.parsed.subject:
        issuers = [other for other in left if _is_issuer(other, certificate)]
        if not issuers:
            return
        # Of several, such as an old one and its renewal with the same key, the latest.
        certificate = max(issuers, key=lambda issuer: issuer.parsed.not_valid_before_utc)
        left.remove(certificate)  # once each: there may be a circle
        yield certificate


def _is_issuer(issuer: _Certificate, certificate: _Certificate) -> bool:
    """Whether a certificate was signed with this issuer's key: a matching name proves nothing."""
    try:
        certificate.parsed.verify_directly_issued_by(issuer.parsed)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _context(
    certificate: _Certificate,
    key: _Key,
    chain: Iterable[_Certificate],
    client_ca: str | None = None,
    **options: Any,
) -> Context:
    # pyOpenSSL takes cryptography's objects, and prefers them; Twisted's annotations do not say so.
    pair: Any = {"certificate": certificate.parsed, "privateKey": key.parsed}
    links: Any = [issuer.parsed for issuer in chain]
    made = CertificateOptions(**pair, extraCertChain=links, **options)
    if client_ca is not None:
        require_client_certificate(made, client_ca)
    with _accepted("certificate", certificate.path):
        context = made.getContext()
    context.set_alpn_select_callback(_select_protocol)
    return context


def _load_dh(context: Context, path: str) -> None:
    Path(path).read_bytes()  # its errors name the file
    with _accepted("Diffie-Hellman parameters", path):
        context.load_tmp_dh(path)


@contextmanager
def _accepted(what: str, path: str) -> Iterator[None]:
    """Name the file that OpenSSL does not accept, and the reasons: a key that is too short, say."""
    try:
        yield
    except Error as error:
        reasons = ", ".join(reason for *_, reason in error.args[0])
        raise BadFile(path, f"OpenSSL does not accept the {what}: {reasons}") from error


def _select_protocol(connection: Connection, offered: Sequence[bytes]) -> Any:
    """Choose among the protocols that a client offers (ALPN, RFC 7301).

    If none matches, Twisted 26.10 ends the connection. The echo has no protocol to name, and
    serves all clients. (The RFC requires an alert only from servers that have some.)
    """
    inner = connection.get_app_data().factory.wrappedFactory
    negotiating = IProtocolNegotiationFactory(inner, None)
    ours = negotiating.acceptableProtocols() if negotiating is not None else []
    return next((name for name in ours if name in offered), NO_OVERLAPPING_PROTOCOLS)
