"""Tests for `timestamp_echo.client.address`."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock, patch

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.tcp import Client
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.system.certificates import self_signed
from timestamp_echo.client import address
from timestamp_echo.client.address import (
    IPV4,
    IPV6,
    DatagramServer,
    ExplainingReactor,
    Family,
    FamilyResolver,
    IClientReactor,
    StreamServer,
    server_from,
)
from timestamp_echo.client.errors import reason
from timestamp_echo.client.tls import Trust


class ServerTests(SynchronousTestCase):
    """`server_from`: each form of SERVER."""

    def server(
        self, text: str, family: Family | None = None, **trust: Any
    ) -> StreamServer | DatagramServer:
        """Parse SERVER, with these options."""
        reactor = cast(IClientReactor, MemoryReactorClock())
        return server_from(text, Trust(**trust), reactor, family)

    def stream(self, text: str, **trust: Any) -> StreamServer:
        """Parse SERVER, which is one for stream connections."""
        server = self.server(text, **trust)
        assert isinstance(server, StreamServer)
        return server

    def error(self, text: str, family: Family | None = None, **trust: Any) -> str:
        """The message for a SERVER that is refused."""
        return str(self.assertRaises(ValueError, self.server, text, family, **trust))

    def test_hosts(self) -> None:
        """A host with or without port, by name or by address; the default port is 3000."""
        for text, name in (
            ("example.com", "example.com:3000"),
            ("example.com:7", "example.com:7"),
            ("192.0.2.1:7", "192.0.2.1:7"),
            ("[::1]:7", "[::1]:7"),
            ("[::1]", "[::1]:3000"),
            ("::1", "[::1]:3000"),
            ("example.com:1", "example.com:1"),
            ("example.com:65535", "example.com:65535"),
        ):
            server = self.stream(text)
            self.assertEqual(server.name, name)
            self.assertIsInstance(server.endpoint, HostnameEndpoint)

    def test_unix(self) -> None:
        """A path may contain colons."""
        server = self.stream("unix:/run/a:b")
        self.assertEqual(server.name, "unix:/run/a:b")
        assert isinstance(server.endpoint, UNIXClientEndpoint)
        self.assertEqual(server.endpoint._path, "/run/a:b")

    def test_udp(self) -> None:
        """A server for datagrams."""
        self.assertEqual(
            self.server("udp:example.com:7"), DatagramServer("udp:example.com:7", "example.com", 7)
        )
        self.assertEqual(self.server("udp:::1"), DatagramServer("udp:[::1]:3000", "::1", 3000))

    def test_endpoints(self) -> None:
        """Any other client endpoint of Twisted."""
        server = self.stream("tcp:example.com:7:timeout=3")
        self.assertIsInstance(server.endpoint, TCP4ClientEndpoint)
        self.assertEqual(server.name, "tcp:example.com:7:timeout=3")
        self.assertIsInstance(
            self.stream("unix:path=/run/a:timeout=3").endpoint, UNIXClientEndpoint
        )
        self.stream("tls:example.com:7:timeout=3")

    def test_tls(self) -> None:
        """TLS, with the authorities of the system or of a file, or without verification."""
        files = self_signed(self.mktemp())
        for trust in ({}, {"ca": files.certificate}, {"insecure": True}):
            self.assertEqual(self.stream("tls:localhost:7", **trust).name, "tls:localhost:7")

    def test_port(self) -> None:
        """A port out of range, or that is no number, is refused."""
        for text, port in (
            ("example.com:70000", "70000"),
            ("example.com:0", "0"),
            ("udp:example.com:65536", "65536"),
            ("tls:example.com:x", "'x'"),
            ("localhost:http", "'http'"),
            ("localhost:", "''"),
        ):
            self.assertRegex(
                self.error(text), f"^SERVER: expected a port from 1 to 65535, not {port} in '.*'$"
            )

    def test_no_server(self) -> None:
        """Any other text: the message says what was expected and what was given."""
        for text in (
            "bogus:x:y",
            "[example.com]:7",
            "",
            "tcp:a:b:c:d",
            "tcp:a:b",
            "a\\b:c:d",
            "localhost 3000",
        ):
            message = self.error(text)
            self.assertIn("SERVER: expected host, host:port", message)
            self.assertTrue(message.endswith(f", not '{text}'"), message)
        self.assertIn("not 'a\\nb:c:d'", self.error("a\nb:c:d"))
        self.assertIn("SERVER: expected udp:host:port, not 'udp:'", self.error("udp:"))

    def test_zones(self) -> None:
        """A link-local address needs its interface, which its name or its number tells."""
        number, name = socket.if_nameindex()[0]
        for zone in (name, number):
            for text in (f"fe80::1%{zone}", f"[fe80::1%{zone}]:3000"):
                server = self.stream(text)
                self.assertEqual(server.name, f"[fe80::1%{zone}]:3000")
                self.assertIsInstance(server.endpoint, TCP6ClientEndpoint)
                with patch.object(address, "connection_creator") as creator:
                    self.assertEqual(self.server(f"tls:{text}").name, f"tls:{server.name}")
                self.assertEqual(creator.call_args.args[0], "fe80::1")
                udp = DatagramServer(f"udp:{server.name}", f"fe80::1%{zone}", 3000)
                self.assertEqual(self.server(f"udp:{text}"), udp)
        for text in ("fe80::1", "[fe80::1]:7", "udp:fe80::1", "tls:[fe80::1]"):
            self.assertEqual(
                self.error(text),
                "SERVER: expected a link-local address with its interface, as in fe80::1%eth0,"
                " not 'fe80::1'",
            )

    def test_no_such_zone(self) -> None:
        """A zone that is no interface of this host; a port may have been taken for a part of it."""
        for text, rest in (
            ("fe80::1%none", "'none' in 'fe80::1%none'"),
            ("[fe80::1%none]:7", "'none' in 'fe80::1%none'"),
            ("::1%", "'' in '::1%'"),
            ("::1%lo:7", "'lo:7' in '::1%lo:7'; did you mean '[::1%lo]:7'?"),
        ):
            self.assertEqual(
                self.error(text), f"SERVER: expected a network interface of this host, not {rest}"
            )

    def test_family(self) -> None:
        """-4 and -6 accept names, and addresses of their family."""
        for family, host in ((IPV4, "192.0.2.1"), (IPV6, "[2001:db8::1]"), (IPV6, "::1")):
            for text in (host, f"tls:{host}", "name", "name:7", "tls:name"):
                self.assertIsInstance(self.server(text, family), StreamServer)
        for family, number in ((IPV4, socket.AF_INET), (IPV6, socket.AF_INET6)):
            server = self.server("udp:name:7", family)
            self.assertEqual(server, DatagramServer("udp:name:7", "name", 7, number))

    def test_other_family(self) -> None:
        """An address of the other family is refused, as is a SERVER without a host."""
        for family, name, texts in (
            (IPV4, "-4: expected a SERVER with a name or an IPv4 address", ("::1", "tls:[::1]:7")),
            (IPV6, "-6: expected a SERVER with a name or an IPv6 address", ("127.0.0.1:7",)),
            (IPV6, "-6: expected a SERVER with a name or an IPv6 address", ("udp:127.0.0.1",)),
        ):
            for text in (*texts, "unix:/run/a", "unix:7", "tcp:name:7:timeout=3"):
                self.assertEqual(self.error(text, family), f"{name}, not '{text}'")

    def test_unix_path(self) -> None:
        """The path of a UNIX socket has 1 to 107 bytes."""
        for text in ("unix:", "unix:/" + "x" * 107, "unix:/" + "é" * 54):
            self.assertIn("expected unix:/path with a path of 1 to 107", self.error(text))
        self.stream("unix:/" + "x" * 106)

    def test_meant(self) -> None:
        """Where it is obvious what was meant, the message asks."""
        for text, meant in (
            ("http://localhost:3000/", "localhost:3000"),
            ("http://localhost:3000/x", "localhost:3000"),
            ("https://[::1]:7", "tls:[::1]:7"),
            ("tls://localhost:7", "tls:localhost:7"),
            ("UDP://localhost:7", "udp:localhost:7"),
            ("tcp://localhost:7", "localhost:7"),
            ("3000", "localhost:3000"),
            ("udp:3000", "udp:localhost:3000"),
            ("tls:3000", "tls:localhost:3000"),
            ("tcp:3000", "localhost:3000"),
            ("ssl:3001", "tls:localhost:3001"),
            ("::1:3000", "[::1]:3000"),
            ("udp:::1:3000", "udp:[::1]:3000"),
            ("2001:db8::1:30000", "[2001:db8::1]:30000"),
            ("upd:localhost:7", "udp:localhost:7"),
            ("tcp6:localhost:7", "localhost:7"),
            ("unx:/run/socket", "unix:/run/socket"),
            ("uds:/run/socket", "unix:/run/socket"),
            ("tcp:localhost", "localhost"),
            ("tcp:[::1]:7", "[::1]:7"),
            ("ssl:localhost:7", "tls:localhost:7"),
            ("ssl:localhost:7:privateKey=x:certKey=y", "tls:localhost:7"),
            ("TLS:localhost:7", "tls:localhost:7"),
            ("UDP:localhost:7", "udp:localhost:7"),
        ):
            self.assertTrue(
                self.error(text).endswith(f", not '{text}'; did you mean '{meant}'?"),
                self.error(text),
            )
            self.server(meant)
        for text in ("http://a:b:c", "tcp:a:b", "udp", "tcp"):
            self.assertEqual(address._meant(text), "")

    def test_not_meant(self) -> None:
        """What would be refused as well is not suggested."""
        for text in (
            "tcp:host=localhost",
            "0",
            "1:2:3:4:5:6:7:8:300000",
            "fe80::1%none:3000",
            "http://localhost?x",
            "http://user@localhost:1/",
            "http://",
            "localhost:" + "9" * 5000,
        ):
            self.assertNotIn("did you mean", self.error(text))

    def test_no_host(self) -> None:
        """What cannot be the name of a host is refused, not looked up."""
        for text in ("tls:a..b", f"tls:{'a' * 300}", "\udcff", "udp:\udcff", "a=b", "a?b"):
            self.assertRegex(self.error(text), r"^SERVER: expected .*, not '")

    def test_trust_without_tls(self) -> None:
        """The options for TLS are refused with any other server."""
        for trust in ({"ca": "x"}, {"cert": "x"}, {"key": "x"}, {"insecure": True}):
            self.assertEqual(
                self.error("localhost", **trust),
                "--ca, --cert, --key and --insecure are for tls:host:port, not 'localhost';"
                " did you mean 'tls:localhost'?",
            )
            self.assertTrue(self.error("unix:/a", **trust).endswith("not 'unix:/a'"))

    def test_client_certificate(self) -> None:
        """A certificate in an endpoint that cannot be read: the file and the reason."""
        path = Path(os.path.abspath(self.mktemp()))
        path.write_text("nothing")
        for file, cause in (
            ("/nonexistent", "/nonexistent: No such file or directory"),
            (str(path), "certificate or key: no start line"),
        ):
            text = f"tls:localhost:7:certificate={file}:privateKey={file}"
            self.assertTrue(self.error(text).endswith(f"not '{text}' ({cause})"), self.error(text))


class ExplainingReactorTests(SynchronousTestCase):
    """`ExplainingReactor`: why a connection failed."""

    def failed(self, number: int, connected: int = 0, fd: int = 3) -> object:
        """What a client fails with, whose socket has this error, if it has one."""
        errors: list[object] = []
        client = Mock(spec=Client, connected=connected, failIfNotConnected=errors.append)
        client.socket = Mock(getsockopt=Mock(return_value=number))
        client.fileno.return_value = fd
        below = Mock(connectTCP=Mock(return_value=Mock(transport=client)))
        reactor = ExplainingReactor(below)
        self.assertIs(reactor.connectTCP("host", 7, timeout=1), below.connectTCP.return_value)
        below.connectTCP.assert_called_once_with("host", 7, timeout=1)
        client.failIfNotConnected("closed")
        return errors[0]

    def test_reason(self) -> None:
        """An error that the socket still has is the reason; otherwise what Twisted says is."""
        error = self.failed(errno.EHOSTUNREACH)
        self.assertIsInstance(error, ConnectError)
        self.assertEqual(reason(error), os.strerror(errno.EHOSTUNREACH))
        self.assertEqual(self.failed(0), "closed")

    def test_no_socket(self) -> None:
        """Without a socket, or with one that is connected, there is nothing to ask."""
        self.assertEqual(self.failed(errno.EHOSTUNREACH, fd=-1), "closed")
        self.assertEqual(self.failed(errno.EPIPE, connected=1), "closed")

    def test_other_transport(self) -> None:
        """A transport of another kind is left alone."""
        connector = Mock()
        fail = connector.transport.failIfNotConnected
        ExplainingReactor(Mock(connectTCP=Mock(return_value=connector))).connectTCP("host", 7)
        self.assertIs(connector.transport.failIfNotConnected, fail)


class FamilyResolverTests(SynchronousTestCase):
    """`FamilyResolver`: names in one family."""

    def test_resolver(self) -> None:
        """It asks another resolver, for this family."""
        for family, kind in ((IPV4, IPv4Address), (IPV6, IPv6Address)):
            below, receiver = Mock(), Mock()
            resolver = FamilyResolver(below, family)
            verifyObject(IHostnameResolver, resolver)
            found = resolver.resolveHostName(receiver, "name", 7, [IPv4Address, IPv6Address], "UDP")
            self.assertIs(found, below.resolveHostName.return_value)
            below.resolveHostName.assert_called_once_with(receiver, "name", 7, [kind], "UDP")
