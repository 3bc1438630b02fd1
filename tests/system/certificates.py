"""Certificates for localhost and other names, made anew for each test that wants some."""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


class Files(NamedTuple):
    """Where the two PEM files are."""

    key: str
    certificate: str

    @property
    def endpoint(self) -> str:
        """What an `ssl:` endpoint needs of them."""
        return f"privateKey={self.key}:certKey={self.certificate}"


PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Pair(NamedTuple):
    """A private key and its certificate."""

    private_key: PrivateKey
    parsed: x509.Certificate

    @property
    def key(self) -> bytes:
        """The private key in PEM."""
        return self.encrypted(serialization.NoEncryption())

    def encrypted(self, how: serialization.KeySerializationEncryption) -> bytes:
        """The private key in PEM, encrypted like this."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how
        )

    @property
    def certificate(self) -> bytes:
        """The certificate in PEM."""
        return self.parsed.public_bytes(serialization.Encoding.PEM)


def alternatives(*names: str) -> x509.ExtensionType:
    """The extension with these DNS names, and 127.0.0.1."""
    return x509.SubjectAlternativeName(
        [*map(x509.DNSName, names), x509.IPAddress(ip_address("127.0.0.1"))]
    )


def issued(
    host: str,
    issuer: Pair | None = None,
    *,
    names: x509.ExtensionType | None = None,
    age: float = 1,
    left: float = 1,
    key: PrivateKey | None = None,
) -> Pair:
    """Make a certificate for this host.

    @param issuer: who signs it; None for itself.
    @param names: an extension in place of that with the host's name.
    @param age: how long it has been valid, in hours.
    @param left: how long it will be, in hours.
    @param key: its private key, if not a new one.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(
            issuer.parsed.subject if issuer else name,
            name,
            key.public_key(),
            x509.random_serial_number(),
        )
        .not_valid_before(now - datetime.timedelta(hours=age))
        .not_valid_after(now + datetime.timedelta(hours=left))
        .add_extension(names or alternatives(host), critical=False)
        .sign(issuer.private_key if issuer else key, hashes.SHA256())
    )
    return Pair(key, certificate)


def self_signed(folder: str, host: str = "localhost", left: float = 1) -> Files:
    """Make a key and a certificate for this name and 127.0.0.1, in a new folder.

    @param left: how long it will be valid, in hours.
    """
    pair = issued(host, left=left)
    place = Path(folder).absolute()
    place.mkdir(parents=True)
    files = Files(str(place / "key.pem"), str(place / "certificate.pem"))
    Path(files.key).write_bytes(pair.key)
    Path(files.certificate).write_bytes(pair.certificate)
    return files
