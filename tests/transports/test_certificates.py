"""Tests for `timestamp_echo.transports.certificates`, by handshakes in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Connection
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.fakes import TCPTransport, logged
from tests.system.certificates import Pair, alternatives, issued
from tests.transports.test_tls import Client
from timestamp_echo.transports.certificates import (
    BadFile,
    ServerCertificates,
    from_files,
    from_folder,
    require_client_certificate,
)
from timestamp_echo.transports.tls import HalfCloseTLSFactory

GROUP = b"""-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
"""The group ffdhe2048 (RFC 7919)."""

TOO_SHORT = b"""-----BEGIN DH PARAMETERS-----
MEYCQQCED4q/53YHgkVEqC8D6MqgbKFqHAhbPGSn3PlTPDs1ZqNOYar1Zo8mRSp5
m4CgB/4lx15hCq1w2JHMm3BlKXUfAgEC
-----END DH PARAMETERS-----
"""
"""A group of 512 bits."""


def connection(
    certificates: ServerCertificates,
    prepare: Callable[[Connection], object] = lambda tls: None,
    factory: Any = None,
) -> Connection:
    """Shake hands, and return the client's connection."""
    inner: Any = factory or Factory.forProtocol(Protocol)
    server = HalfCloseTLSFactory(certificates, inner, Clock()).buildProtocol(None)
    return Client(server, TCPTransport(), prepare)._tls


def shown(certificates: ServerCertificates, name: bytes | None = None) -> list[str]:
    """The common names in the chain that a client gets who asks for this name, if it asks."""

    def prepare(tls: Connection) -> None:
        if name is not None:
            tls.set_tlsext_host_name(name)

    chain = connection(certificates, prepare).get_peer_cert_chain(as_cryptography=True)
    return [str(link.subject.rfc4514_string()).removeprefix("CN=") for link in chain or []]


def authority(name: str, issuer: Pair | None = None, left: float = 1) -> Pair:
    """A certificate without DNS names."""
    return issued(name, issuer, names=alternatives(), left=left)


class FilesCase(SynchronousTestCase):
    """A folder for files."""

    def setUp(self) -> None:
        """Make the folder."""
        self.folder = os.path.join(os.path.abspath(self.mktemp()), "certificates")
        os.makedirs(self.folder)

    def write(self, name: str, *contents: bytes) -> str:
        """Write a file in the folder, and return its path."""
        path = Path(self.folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(contents))
        return str(path)

    def assert_refused(self, path: str, why: str, load: Callable[[], object]) -> None:
        """Loading fails, by an error that has these attributes."""
        error = self.assertRaises(OSError, load)
        self.assertEqual((error.filename, error.strerror), (path, why))


class FromFolderTests(FilesCase):
    """`from_folder`: the certificates of a `tls:` endpoint."""

    def load(self) -> ServerCertificates:
        """Read the folder."""
        return from_folder(self.folder)

    def test_names(self) -> None:
        """A client gets the certificate for the name it asks for, in any case, or for a wildcard.

        One that names none, or an unknown server, gets that of the first file; nothing is logged.
        """
        for file, host in (("b", "b.example"), ("a", "a.example"), ("c", "*.C.example")):
            pair = issued(host)
            self.write(f"{file}.pem", pair.key, pair.certificate)
        events = logged(self)
        certificates = self.load()
        verifyObject(IOpenSSLServerConnectionCreator, certificates)
        for name, host in (
            (b"a.example", "a.example"),
            (b"b.example", "b.example"),
            (b"B.Example", "b.example"),
            (b"x.c.example", "*.C.example"),
            (b"y.x.c.example", "a.example"),
            (b"c.example", "a.example"),
            (b"unknown.example", "a.example"),
            (b"\xfc\n", "a.example"),
            (None, "a.example"),
        ):
            self.assertEqual(shown(certificates, name), [host], name)
        self.assertEqual(events, [])

    def test_any_order(self) -> None:
        """Keys, certificates and chains may be in any order and any file, and in folders within."""
        root = authority("root")
        middle = authority("middle", root)
        first, second = issued("first.example", middle), issued("second.example", middle)
        self.write("1.pem", b"text\n", second.certificate, first.key)
        self.write("within/2.pem", root.certificate, middle.certificate)
        linked = self.write("../linked/3.pem", b"text\r\n", second.key, first.certificate)
        os.symlink(os.path.dirname(linked), f"{self.folder}/link")
        self.write("other.txt", b"not read")
        self.assertEqual(shown(self.load()), ["second.example", "middle", "root"])
        self.assertEqual(shown(self.load(), b"first.example"), ["first.example", "middle", "root"])

    def test_same_files_twice(self) -> None:
        """A link to a folder, as those of Kubernetes, and a file with its chain do no harm."""
        issuer = issued("authority.example")
        pair = issued("a.example", issuer)
        self.write("..1/key.pem", pair.key)
        self.write("..1/cert.pem", pair.certificate)
        self.write("..1/fullchain.pem", pair.certificate, issuer.certificate)
        self.write("..1/chain.pem", issuer.certificate)
        os.symlink("..1", f"{self.folder}/..data")
        self.assertEqual(shown(self.load()), ["a.example", "authority.example"])

    def test_circle(self) -> None:
        """Authorities that certify each other do not make a chain without end."""
        left, right = authority("left"), authority("right")
        pair = issued("a.example", left)
        circle = [
            issued("left", right, names=alternatives(), key=left.private_key),
            issued("right", left, names=alternatives(), key=right.private_key),
        ]
        self.write("a.pem", pair.key, *(each.certificate for each in (pair, *circle)))
        self.assertEqual(shown(self.load()), ["a.example", "left", "right"])

    def test_same_issuer(self) -> None:
        """Of issuers with the same name, the chain has the one that signed, the latest if several.

        An authority may be issued anew, with another key or with the same.
        """
        old, new = authority("authority"), authority("authority")
        renewed = issued("authority", names=alternatives(), age=0.5, key=old.private_key)
        for number, issuer in enumerate((old, new)):
            pair = issued(f"{number}.example", issuer)
            self.write(f"{number}.pem", pair.key, pair.certificate)
        for first in (0, 1):
            authorities = [renewed, old, new, renewed][first : first + 3]
            self.write("z.pem", *(each.certificate for each in authorities))
            certificates = self.load()
            for name, issuer in ((b"0.example", renewed), (b"1.example", new)):

                def prepare(tls: Connection, name: bytes = name) -> None:
                    tls.set_tlsext_host_name(name)

                tls = connection(certificates, prepare)
                chain = tls.get_peer_cert_chain(as_cryptography=True)
                assert chain is not None
                self.assertEqual(chain[1:], [issuer.parsed])

    def test_unsupported_names(self) -> None:
        """Names of a kind that cannot be read do not hide which file has them."""
        general = b"\x30\x04\xa3\x02\x30\x00"  # one name of the type x400Address
        odd = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, general)
        pair = issued("a.example", names=odd)
        path = self.write("a.pem", pair.key, pair.certificate)
        self.assert_refused(path, "a certificate in it cannot be read", self.load)

    def test_renewed(self) -> None:
        """Of several certificates for one name the latest is used, whatever the files' order."""
        pairs = [
            issued("a.example", names=alternatives("a.example", f"{hours}.example"), age=hours)
            for hours in (2, 1, 3)
        ]
        for file, pair in zip("abc", pairs, strict=True):
            self.write(f"{file}.pem", pair.key, pair.certificate)
        certificates = self.load()
        for name, expected in ((b"a.example", 1), (None, 1), (b"3.example", 2)):

            def prepare(tls: Connection, name: bytes | None = name) -> None:
                if name is not None:
                    tls.set_tlsext_host_name(name)

            got = connection(certificates, prepare).get_peer_certificate(as_cryptography=True)
            self.assertEqual(got, pairs[expected].parsed)

    def test_expiry(self) -> None:
        """The first that expires counts, of those that clients get, with their chains.

        One that was replaced does not, nor does an authority that has signed none of them.
        """
        soon, later, unused = (authority(str(left), left=left) for left in (2, 5, 0.1))
        old = issued("a.example", later, age=2, left=1)
        new = issued("a.example", soon, left=4)
        other = issued("b.example", later, left=3)
        for file, pair in (("a", old), ("b", new), ("c", other)):
            self.write(f"{file}.pem", pair.key, pair.certificate)
        path = self.write("z.pem", *(each.certificate for each in (soon, later, unused)))
        self.assertEqual(self.load().expiry, soon.parsed.not_valid_after_utc.timestamp())
        os.remove(path)
        self.assertEqual(self.load().expiry, other.parsed.not_valid_after_utc.timestamp())
        os.remove(os.path.join(self.folder, "b.pem"))
        self.assertEqual(self.load().expiry, old.parsed.not_valid_after_utc.timestamp())

    def test_without_names(self) -> None:
        """A certificate without DNS names serves those who name no server, if it is the first."""
        pair, other = authority("1"), issued("b.example")
        self.write("a.pem", pair.key, pair.certificate)
        self.write("b.pem", other.key, other.certificate)
        self.assertEqual(shown(self.load()), ["1"])
        self.assertEqual(shown(self.load(), b"b.example"), ["b.example"])

    def test_no_alternative_names(self) -> None:
        """So does one without any alternative names."""
        other = x509.BasicConstraints(ca=True, path_length=None)
        pair = issued("localhost", names=other)
        self.write("a.pem", pair.key, pair.certificate)
        self.assertEqual(shown(self.load()), ["localhost"])

    def test_no_folder(self) -> None:
        """A folder that is missing, or a file, is an error."""
        os.rmdir(self.folder)
        self.assert_refused(self.folder, "No such file or directory", self.load)
        Path(self.folder).touch()
        self.assert_refused(self.folder, "Not a directory", self.load)

    def test_empty(self) -> None:
        """So is one without certificates for servers."""
        why = "expected files *.pem with certificates and their private keys"
        self.assert_refused(self.folder, why, self.load)
        self.write("readme.txt", b"the certificates are elsewhere")
        self.assert_refused(self.folder, why, self.load)
        self.write("authority.pem", authority("authority").certificate)
        self.assert_refused(self.folder, why, self.load)

    def test_bad_file(self) -> None:
        """Beside a good pair, each kind of bad file is an error that names it."""
        good, bad = issued("good.example"), issued("bad.example")
        self.write("good.pem", good.key, good.certificate)
        weak = issued("bad.example", key=rsa.generate_private_key(65537, 1024))
        junk = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"junk")
        password = serialization.BestAvailableEncryption(b"secret")
        for contents, why in (
            ([], "expected a certificate or a private key in PEM"),
            ([b"garbage\0\xff"], "expected a certificate or a private key in PEM"),
            ([bad.key], f"its private key fits no certificate in {self.folder}"),
            ([bad.certificate], f"no private key in {self.folder} fits its certificate"),
            (
                [issued("good.example").certificate],  # one that has been replaced
                f"no private key in {self.folder} fits its certificate",
            ),
            (
                [issued("other").key, bad.certificate],
                f"its private key fits no certificate in {self.folder}",
            ),
            ([bad.key, bad.certificate[:-40]], "a certificate in it cannot be read"),
            (
                [bad.key, issued("bad.example", names=junk).certificate],
                "a certificate in it cannot be read",
            ),
            ([bad.key[:-40], bad.certificate], "a private key in it cannot be read"),
            (
                [bad.encrypted(password), bad.certificate],
                "a private key in it has a password",
            ),
            (
                [weak.key, weak.certificate],
                "OpenSSL does not accept the certificate: ee key too small",
            ),
        ):
            path = self.write("bad.pem", *contents)
            self.assert_refused(path, why, self.load)
            self.assertRaises(BadFile, self.load)

    def test_unreadable(self) -> None:
        """So is a file that cannot be read."""
        path = f"{self.folder}/a.pem"
        os.symlink("missing", path)
        self.assert_refused(path, "No such file or directory", self.load)
        os.remove(path)
        os.symlink("a.pem", path)
        self.assert_refused(path, "Too many levels of symbolic links", self.load)

    def test_folder_within_itself(self) -> None:
        """A folder that contains itself is read once."""
        pair = issued("a.example")
        self.write("within/a.pem", pair.key, pair.certificate)
        for link in ("1", "2"):
            path = f"{self.folder}/within/{link}"
            os.symlink(".", path)
            # Whatever walks the tree afterwards and follows links would never come to an end.
            self.addCleanup(os.remove, path)
        self.assertEqual(shown(self.load()), ["a.example"])


class FromFilesTests(FilesCase):
    """`from_files`: the certificate of an `ssl:` endpoint."""

    def test_chain(self) -> None:
        """All clients get the certificate and its chain, whatever server they name."""
        issuer = authority("authority")
        pair = issued("a.example", issuer)
        certificates = from_files(
            self.write("key.pem", pair.key),
            self.write("certificate.pem", pair.certificate),
            self.write("chain.pem", issuer.certificate),
        )
        for name in (None, b"a.example", b"unknown.example", b"\xfc"):
            self.assertEqual(shown(certificates, name), ["a.example", "authority"])

    def test_one_file(self) -> None:
        """The certificate may be in the file of its key; what else is in it is skipped."""
        pair = issued("a.example")
        path = self.write("both.pem", pair.key, pair.certificate, issued("other").certificate)
        self.assertEqual(shown(from_files(path, path)), ["a.example"])

    def test_dh_parameters(self) -> None:
        """Diffie-Hellman parameters are checked: garbage, and too short ones, name their file."""
        pair = issued("a.example")
        both = self.write("both.pem", pair.key, pair.certificate)
        parameters = Path(self.folder, "dh.pem")
        for text, reason in ((TOO_SHORT, "dh key too small"), (b"garbage", "no start line")):
            parameters.write_bytes(text)
            error = self.assertRaises(BadFile, from_files, both, both, None, str(parameters))
            self.assertEqual(error.filename, str(parameters))
            self.assertRegex(
                error.strerror,
                f"^OpenSSL does not accept the Diffie-Hellman parameters: .*{reason}",
            )
        parameters.unlink()
        self.assert_refused(
            str(parameters),
            "No such file or directory",
            partial(from_files, both, both, None, str(parameters)),
        )
        parameters.write_bytes(GROUP)
        self.assertEqual(shown(from_files(both, both, None, str(parameters))), ["a.example"])

    def test_bad_file(self) -> None:
        """Each file that is not what it should be is named."""
        pair = issued("a.example")
        key = self.write("key.pem", pair.key)
        certificate = self.write("certificate.pem", pair.certificate)
        other = self.write("other.pem", issued("a.example").certificate)
        garbage = self.write("garbage.pem", b"garbage")
        missing = f"{self.folder}/missing.pem"
        for files, path, why in (
            ((missing, certificate), missing, "No such file or directory"),
            ((garbage, certificate), garbage, "expected a private key in PEM"),
            ((key, garbage), garbage, "expected a certificate in PEM"),
            ((key, other), other, f"expected the certificate of the key in {key}"),
            ((key, certificate, key), key, "expected certificates in PEM"),
        ):
            self.assert_refused(path, why, partial(from_files, *files))

    def test_client_certificates(self) -> None:
        """Clients must show a certificate if authorities are given."""
        pair = issued("a.example")
        both = self.write("both.pem", pair.key, pair.certificate)
        for authorities in (None, both):
            certificates = from_files(both, both, client_ca=authorities)
            context = certificates._default
            self.assertEqual(bool(context.get_verify_mode() & VERIFY_PEER), bool(authorities))


class ProtocolNegotiationTests(FilesCase):
    """ALPN (RFC 7301): which protocols clients offer."""

    def selected(self, *offered: bytes, factory: Any = None) -> list[bytes]:
        """What is chosen, for every certificate, of what a client offers."""
        for host in ("a.example", "b.example"):
            pair = issued(host)
            self.write(f"{host}.pem", pair.key, pair.certificate)
        path = f"{self.folder}/a.example.pem"
        chosen = []
        for certificates in (from_folder(self.folder), from_files(path, path)):
            for name in (b"a.example", b"b.example"):

                def prepare(tls: Connection, name: bytes = name) -> None:
                    tls.set_tlsext_host_name(name)
                    tls.set_alpn_protos(list(offered))

                tls = connection(certificates, prepare, factory)
                chosen.append(tls.get_alpn_proto_negotiated())
        return chosen

    def test_any(self) -> None:
        """A protocol that names none serves every client, and nothing is chosen."""
        for offered in ([b"h2"], [b"h2", b"http/1.1"], [b"foo", b"bar"]):
            self.assertEqual(self.selected(*offered), [b""] * 4)

    def test_some(self) -> None:
        """Of those that a protocol names, the first that is offered is chosen."""

        @implementer(IProtocolNegotiationFactory)
        class Negotiating(Factory):
            """Names two protocols."""

            protocol = Protocol

            def acceptableProtocols(self) -> list[bytes]:
                """See `IProtocolNegotiationFactory`."""
                return [b"h2", b"http/1.1"]

        for offered, chosen in (
            ([b"http/1.1", b"h2"], b"h2"),
            ([b"foo", b"http/1.1"], b"http/1.1"),
            ([b"foo"], b""),
        ):
            self.assertEqual(self.selected(*offered, factory=Negotiating()), [chosen] * 4)


class RequireClientCertificateTests(FilesCase):
    """`require_client_certificate`: TLS for clients with certificates only."""

    def test_required(self) -> None:
        """The handshake fails without a certificate."""
        options = CertificateOptions()
        path = self.write("authority.pem", issued("authority").certificate)
        require_client_certificate(options, path)
        mode = options.getContext().get_verify_mode()
        self.assertTrue(mode & VERIFY_PEER and mode & VERIFY_FAIL_IF_NO_PEER_CERT)

    def test_no_certificates(self) -> None:
        """A file without certificates is an error that names it; so is a missing file."""
        path = self.write("key.pem", issued("authority").key)
        for file, why in (
            (path, "expected certificates in PEM"),
            (f"{path}.missing", "No such file or directory"),
        ):
            require = partial(require_client_certificate, CertificateOptions(), file)
            self.assert_refused(file, why, require)
