"""A self-signed certificate for localhost, made anew for each test that wants one."""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Files(NamedTuple):
    """Where the two PEM files are."""

    key: str
    certificate: str

    @property
    def endpoint(self) -> str:
        """What an `ssl:` endpoint needs of them."""
        return f"privateKey={self.key}:certKey={self.certificate}"


def self_signed(folder: str, host: str = "localhost") -> Files:
    """Make a key and a certificate for this name and 127.0.0.1, in a new folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName(
        [x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    place = Path(folder).absolute()
    place.mkdir(parents=True)
    files = Files(str(place / "key.pem"), str(place / "certificate.pem"))
    Path(files.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    Path(files.certificate).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return files
