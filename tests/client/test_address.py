"""Tests for `timestamp_echo.client.address`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import patch

from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.system.certificates import self_signed
from timestamp_echo.client import address
from timestamp_echo.client.address import DatagramServer, StreamServer, Trust, server_from


class ServerTests(SynchronousTestCase):
    """`server_from`: each form that SERVER may have."""

    def server(self, text: str, **trust: object) -> StreamServer | DatagramServer:
        """The server that this text stands for."""
        return server_from(text, Trust(**trust), MemoryReactorClock())  # type: ignore[arg-type]

    def stream(self, text: str, **trust: object) -> StreamServer:
        """The same, which is reached by a connection."""
        server = self.server(text, **trust)
        assert isinstance(server, StreamServer)
        return server

    def refused(self, text: str, **trust: object) -> str:
        """Why it stands for none."""
        return str(self.assertRaises(ValueError, self.server, text, **trust))

    def test_hosts(self) -> None:
        """Host and port, either of them IPv6; 3000 where there is no port."""
        for text, name in (
            ("example.com", "example.com:3000"),
            ("example.com:7", "example.com:7"),
            ("192.0.2.1:7", "192.0.2.1:7"),
            ("[::1]:7", "[::1]:7"),
            ("[::1]", "[::1]:3000"),
            ("::1", "[::1]:3000"),
        ):
            server = self.stream(text)
            self.assertEqual(server.name, name)
            self.assertIsInstance(server.endpoint, HostnameEndpoint)

    def test_unix(self) -> None:
        """A path may have colons in it."""
        server = self.stream("unix:/run/a:b")
        self.assertEqual(server.name, "unix:/run/a:b")
        assert isinstance(server.endpoint, UNIXClientEndpoint)
        self.assertEqual(server.endpoint._path, "/run/a:b")

    def test_udp(self) -> None:
        """Datagrams."""
        self.assertEqual(
            self.server("udp:example.com:7"), DatagramServer("udp:example.com:7", "example.com", 7)
        )
        self.assertEqual(self.server("udp:::1"), DatagramServer("udp:[::1]:3000", "::1", 3000))

    def test_endpoints(self) -> None:
        """Anything else that Twisted knows."""
        server = self.stream("tcp:example.com:7:timeout=3")
        self.assertIsInstance(server.endpoint, TCP4ClientEndpoint)
        self.assertEqual(server.name, "tcp:example.com:7:timeout=3")
        self.assertIsInstance(
            self.stream("unix:path=/run/a:timeout=3").endpoint, UNIXClientEndpoint
        )
        self.stream("tls:example.com:7:timeout=3")

    def test_tls(self) -> None:
        """TLS, by the system's authorities, those of a file, or none."""
        files = self_signed(self.mktemp())
        for trust in ({}, {"ca": files.certificate}, {"insecure": True}):
            self.assertEqual(self.stream("tls:localhost:7", **trust).name, "tls:localhost:7")

    def test_authorities(self) -> None:
        """All certificates of the file are read."""
        one, two = (Path(self_signed(self.mktemp()).certificate) for _ in range(2))
        both = Path(self.mktemp())
        both.write_text(f"first\n{one.read_text()}\nsecond\n{two.read_text()}")
        self.assertEqual(len(address._certificates(str(both))), 2)

    def test_unverified(self) -> None:
        """Without verification the host is still named, if it is a name (SNI)."""
        for host, name in (("localhost", b"localhost"), ("127.0.0.1", None), ("::1", None)):
            creator = address._unverified(host, Trust(insecure=True))
            verifyObject(IOpenSSLClientConnectionCreator, creator)
            connection = creator.clientConnectionForTLS(None)
            self.assertEqual(connection.get_servername(), name)

    def test_port_out_of_range(self) -> None:
        """A port that nobody can listen on."""
        for text in ("example.com:70000", "example.com:0", "udp:example.com:65536"):
            self.assertIn("expected a port from 1 to 65535, not", self.refused(text))

    def test_no_server(self) -> None:
        """What is no server."""
        for text in ("bogus:x:y", "[example.com]:7", "", "tcp:a:b:c:d"):
            words = self.refused(text)
            self.assertIn("expected host, host:port", words)
            self.assertIn(f"not {text!r} (", words)
            self.assertNotIn("\n", words)
        self.assertIn("expected udp:host:port, not 'udp:'", self.refused("udp:"))
        for text in ("unix:", "unix:/" + "x" * 107, "unix:/" + "é" * 54):
            self.assertIn("expected unix:/path with a path of 1 to 107", self.refused(text))
        self.stream("unix:/" + "x" * 106)

    def test_trust_without_tls(self) -> None:
        """An option for TLS where there is none."""
        for trust in ({"ca": "x"}, {"insecure": True}):
            self.assertIn("--ca and --insecure are for tls:", self.refused("localhost", **trust))

    def test_no_authorities(self) -> None:
        """A file that isn't there, holds no certificate, or a broken one."""
        self.assertIn("No such file", self.refused("tls:localhost:7", ca="/nonexistent"))
        path = os.path.abspath(self.mktemp())
        Path(path).write_text("nothing")
        self.assertIn("found none in", self.refused("tls:localhost:7", ca=path))
        Path(path).write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----")
        self.assertIn("can't be read", self.refused("tls:localhost:7", ca=path))

    def test_extra_not_installed(self) -> None:
        """Without pyOpenSSL the way to get it is said."""
        with patch.dict(sys.modules, {"OpenSSL": None}):
            self.assertIn("needs the extra 'tls'", self.refused("tls:localhost:7"))
