"""Tests for `timestamp_echo.client.tls`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from OpenSSL.SSL import Connection
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import trustRootFromCertificates
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.system.certificates import issued, self_signed
from timestamp_echo.client import tls
from timestamp_echo.client.tls import Trust, connection_creator


def connection(host: str, trust: Trust) -> Connection:
    """A connection to a host, not yet connected."""
    creator = connection_creator(host, trust)
    verifyObject(IOpenSSLClientConnectionCreator, creator)
    return creator.clientConnectionForTLS(cast(Any, None))


class TLSTestCase(SynchronousTestCase):
    """Can write PEM files, and fail to use them."""

    def file(self, *parts: bytes) -> str:
        """Write a PEM file of these parts, and return its path."""
        path = Path(os.path.abspath(self.mktemp()))
        path.write_bytes(b"text\n".join(parts))
        return str(path)

    def error(self, trust: Trust) -> str:
        """The message for options that are refused."""
        return str(self.assertRaises(ValueError, connection_creator, "localhost", trust))


class TrustTests(TLSTestCase):
    """Which certificates of a server are accepted."""

    def test_trust(self) -> None:
        """The options decide what verifies the certificate."""
        for trust, verified, ca in (
            (Trust(), True, None),
            (Trust(ca="file"), True, "file"),
            (Trust(insecure=True), False, None),
        ):
            with (
                patch.object(tls, "_verified") as by_authority,
                patch.object(tls, "_unverified") as by_nothing,
            ):
                connection_creator("localhost", trust)
            if verified:
                by_authority.assert_called_once_with("localhost", ca, {})
            self.assertEqual((by_authority.called, by_nothing.called), (verified, not verified))

    def test_authorities(self) -> None:
        """Every certificate of the file is read."""
        both = self.file(*(issued(name).certificate for name in ("one", "two")))
        self.assertEqual(len(tls._certificates("--ca", both)), 2)

    def test_trust_root(self) -> None:
        """The certificates of the file are the trust root, in place of the system's."""
        files = self_signed(self.mktemp())
        with patch("twisted.internet.ssl.optionsForClientTLS") as options:
            tls._verified("localhost", files.certificate, {})
            tls._verified("localhost", None, {})
        given, system = (call.kwargs["trustRoot"] for call in options.call_args_list)
        self.assertIsInstance(given, type(trustRootFromCertificates([])))
        self.assertIsNone(system)

    def test_unverified(self) -> None:
        """Without verification the server's name is still sent, but not an address (SNI)."""
        for host, name in (("localhost", b"localhost"), ("127.0.0.1", None), ("::1", None)):
            self.assertEqual(connection(host, Trust(insecure=True)).get_servername(), name)

    def test_no_authorities(self) -> None:
        """A file that is missing, has no certificate, or has a damaged one, is refused."""
        self.assertEqual(
            self.error(Trust(ca="/nonexistent")), "--ca: /nonexistent: No such file or directory"
        )
        path = self.file(b"nothing")
        self.assertEqual(
            self.error(Trust(ca=path)),
            f"--ca: expected certificates in PEM format, found none in {path}",
        )
        path = self.file(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----")
        self.assertEqual(
            self.error(Trust(ca=path)), f"--ca: {path}: damaged certificate (bad base64 decode)"
        )

    def test_extra_not_installed(self) -> None:
        """Without pyOpenSSL the message names the package and the extra."""
        with patch.dict(sys.modules, {"OpenSSL": None}):
            self.assertEqual(
                self.error(Trust()),
                "tls: needs the package pyOpenSSL (the extra 'tls' of tsecho), which is not"
                " installed",
            )


class IdentityTests(TLSTestCase):
    """The client's own certificate."""

    def setUp(self) -> None:
        """Make a certificate, and that of its issuer."""
        self.issuer = issued("issuer")
        self.alice = issued("alice", self.issuer)

    def test_used(self) -> None:
        """The first certificate of the file is the client's, the others are its issuers'."""
        chain = (self.alice.certificate, self.issuer.certificate)
        one, key = self.file(*chain, self.alice.key), self.file(self.alice.key)
        for trust in (Trust(cert=one), Trust(cert=self.file(*chain), key=key)):
            identity = tls._identity(cast(str, trust.cert), trust.key)
            self.assertEqual(identity["extraCertChain"], [self.issuer.parsed])
            sent = connection("localhost", replace(trust, insecure=True)).get_certificate()
            assert sent is not None
            self.assertEqual(sent.to_cryptography(), self.alice.parsed)

    def test_wrong(self) -> None:
        """A file without a usable key, or with that of another certificate, is refused."""
        cert, nothing = self.file(self.alice.certificate), self.file(b"nothing")
        locked = self.file(self.alice.encrypted(BestAvailableEncryption(b"secret")))
        other = self.file(issued("bob").key)
        expected = "expected a private key without a password in PEM format, found none in"
        for trust, message in (
            (Trust(cert=cert), f"--cert: {expected} {cert}"),
            (Trust(cert=cert, key=nothing), f"--key: {expected} {nothing}"),
            (Trust(cert=cert, key=locked), f"--key: {expected} {locked}"),
            (Trust(cert=cert, key="/none"), "--key: /none: No such file or directory"),
            (Trust(cert="/none", key=other), "--cert: /none: No such file or directory"),
            (
                Trust(cert=nothing, key=other),
                f"--cert: expected certificates in PEM format, found none in {nothing}",
            ),
            (
                Trust(cert=cert, key=other),
                f"--cert: expected a certificate for the key in {other}; the first one in {cert}"
                " is for another",
            ),
        ):
            self.assertEqual(self.error(trust), message)
