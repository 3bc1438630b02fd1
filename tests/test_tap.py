"""Tests for `timestamp_echo.tap` and the plugin."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import IService, IServiceMaker
from twisted.plugin import IPlugin, getPlugins
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.system.certificates import self_signed
from timestamp_echo import __version__, tap
from timestamp_echo.framing import AutoFraming, ChunkFraming, LineFraming
from timestamp_echo.server.connections import RESERVED_FILES
from timestamp_echo.server.service import EchoService
from timestamp_echo.transports.udp import DatagramPort


class OptionsTests(SynchronousTestCase):
    """`Options`: each option, and what each bad value gets."""

    def parsed(self, *arguments: str) -> tap.Options:
        """The options that these arguments are."""
        options = tap.Options()
        options.parseOptions(list(arguments))
        return options

    def refused(self, *arguments: str) -> str:
        """The one line that says why these arguments are refused."""
        error = self.assertRaises(SystemExit, self.parsed, *arguments)
        line = str(error)
        self.assertNotIn("\n", line)
        self.assertTrue(line.startswith("tsecho: "), line)
        return line.removeprefix("tsecho: ")

    def listeners(self, *arguments: str) -> list[str]:
        """The descriptions of what is listened on."""
        return [listener.description for listener in self.parsed(*arguments).listeners]

    def test_defaults(self) -> None:
        """Port 3000, ctime in the local zone, auto."""
        options = self.parsed()
        self.assertEqual([li.description for li in options.listeners], ["tcp:3000"])
        self.assertFalse(options.factory.stamp.subsecond)
        self.assertIs(options.factory.framing, AutoFraming)
        self.assertEqual((options["stamp"], options["utc"]), ("ctime", 0))

    def test_listen(self) -> None:
        """--listen, and -l, may be given several times, with every kind of endpoint."""
        tls = f"ssl:3001:{self_signed(self.mktemp()).endpoint}"
        given = [
            "tcp:0",
            "tcp6:3000",
            "tcp:interface=127.0.0.1:3000",
            tls,
            "unix:/run/tsecho",
            "haproxy:tcp:3002",
            "udp:3000",
            "udp:3000:interface=127.0.0.1",
            "udp:3000:interface=::1",
            "udp:3000:interface=\\:\\:1",
        ]
        arguments = [word for text in given for word in ("--listen", text)]
        self.assertEqual(self.listeners(*arguments, "-l", "tcp:1"), [*given, "tcp:1"])

    def test_stamp(self) -> None:
        """--stamp, -s and --utc."""
        for arguments in (["--stamp", "unix"], ["-s", "unix"], ["-s", "unix", "--utc"]):
            stamp = self.parsed(*arguments).factory.stamp
            self.assertEqual(stamp.prefix(1), b"[0.000000001] ")
        stamp = self.parsed("--utc", "--stamp=%H").factory.stamp
        self.assertEqual(stamp.prefix(0), b"[00] ")

    def test_connections(self) -> None:
        """--max-connections, --max-per-peer and --idle-timeout, and what they take."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        options = self.parsed()
        connections = options.connections
        self.assertGreaterEqual(connections._max_total, soft - RESERVED_FILES)
        self.assertEqual((connections._max_per_peer, connections._idle_timeout), (0, 3600))
        connections = self.parsed(
            *("--max-connections", "5", "--max-per-peer", "3", "--idle-timeout", "0")
        ).connections
        self.assertEqual(
            (connections._max_total, connections._max_per_peer, connections._idle_timeout),
            (5, 3, 0),
        )
        for option, text, least in (
            ("--max-connections", "0", 1),
            ("--max-per-peer", "x", 0),
            ("--idle-timeout", "-1", 0),
            ("--drain-timeout", "soon", 0),
            ("--max-unsent", "0", 1),
        ):
            self.assertEqual(
                self.refused(option, text),
                f"{option}: expected a whole number from {least} to 999999999, not {text!r}",
            )

    def test_many_files(self) -> None:
        """However many files there may be, as in some containers, the default is a number."""
        for files, total in ((1073741816, 1073741752), (sys.maxsize, sys.maxsize - 64), (10, 1)):
            self.patch(tap, "file_limit", lambda files=files: files)
            self.assertEqual(self.parsed().connections._max_total, total)

    def test_client_ca(self) -> None:
        """--client-ca is for ssl: endpoints; never is there a TLS one that does not ask."""
        files = self_signed(self.mktemp())
        ssl = ["--listen", f"ssl:0:{files.endpoint}"]
        ask = ["--client-ca", files.certificate]
        self.parsed(*ask, *ssl)
        self.parsed(*ask, "-l", f"haproxy:ssl:0:{files.endpoint}", "-l", "tcp:0")
        folder = os.path.dirname(files.key)
        for listen, given in (
            ([], "none"),
            (["-l", "tcp:0"], "none"),
            ([*ssl, "-l", f"tls:{folder}:port=0"], "one of tls:"),
        ):
            line = self.refused(*ask, *listen)
            self.assertEqual(line, f"--client-ca: expected ssl: as the only TLS, not {given}")

    def test_udp_rate(self) -> None:
        """--udp-rate, and what it takes."""
        self.parsed("--udp-rate", "1")
        for text in ("0", "-1", "x", "1.5", "", "1e3"):
            words = self.refused("--udp-rate", text)
            self.assertEqual(
                words, f"--udp-rate: expected a whole number from 1 to 999999999, not {text!r}"
            )

    def test_framing(self) -> None:
        """--framing."""
        for name, framing in (
            ("auto", AutoFraming),
            ("line", LineFraming),
            ("chunk", ChunkFraming),
        ):
            self.assertIs(self.parsed("--framing", name).factory.framing, framing)

    def test_port_out_of_range(self) -> None:
        """A port that there is not."""
        for text in (
            "tcp:70000",
            "tcp:-1",
            "tcp6:65536",
            "udp:65536",
            "tcp:port=70000",
            "tcp:interface=127.0.0.1:port=70000",
            "haproxy:tcp:70000",
            "ssl:70000",
        ):
            words = self.refused("--listen", text)
            self.assertIn("--listen: expected a port from 0 to 65535, not ", words)
            self.assertIn(text, words)

    def test_no_endpoint(self) -> None:
        """Something that is no endpoint, or not a whole one."""
        for text in (
            "bogus:1",
            "",
            "tcp",
            "tcp:x",
            "tcp:1:nonsense=2",
            "tcp:1\\",
            "systemd:domain=INET:index=9",
            "systemd:domain=INET:name=x",
        ):
            words = self.refused("--listen", text)
            self.assertIn("--listen: expected an endpoint such as tcp:3000", words)
            self.assertIn(f"not '{text}': ", words)

    def test_no_datagram_listener(self) -> None:
        """Something that begins like a datagram listener."""
        for text in ("udp:", "udp:x", "udp:1:x"):
            self.assertIn("expected udp:PORT[:interface=ADDRESS]", self.refused("-l", text))
        self.assertIn(
            "expected an IPv4 or IPv6 address, not 'localhost'",
            self.refused("-l", "udp:1:interface=localhost"),
        )

    def test_unreadable_certificate(self) -> None:
        """A certificate that is not there, or is none."""
        self.assertIn(
            ": /nonexistent: No such file or directory",
            self.refused("-l", "ssl:1:privateKey=/nonexistent"),
        )
        path = os.path.abspath(self.mktemp())
        Path(path).write_text("no certificate")
        self.assertIn("--listen: expected", self.refused("-l", f"ssl:1:privateKey={path}"))

    def test_unknown_stamp(self) -> None:
        """A stamp that is none."""
        self.assertIn("--stamp: expected ctime, iso, unix", self.refused("--stamp", "rfc822"))
        self.assertIn("--stamp: expected a strftime directive", self.refused("-s", "%Q"))
        self.assertIn("--stamp: expected a strftime pattern", self.refused("-s", "%H\n"))

    def test_unknown_framing(self) -> None:
        """A framing that is none."""
        self.assertEqual(
            self.refused("--framing", "word"), "--framing: expected auto, line, chunk, not 'word'"
        )

    def test_version(self) -> None:
        """--version is tsecho's, not Twisted's."""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            self.assertRaises(SystemExit, self.parsed, "--version")
        self.assertEqual(output.getvalue(), f"tsecho {__version__}\n")

    def test_unknown_option(self) -> None:
        """An option that does not exist, and an argument, of which there is none."""
        self.assertEqual(self.refused("--nonsense"), "option --nonsense not recognized")
        self.assertEqual(self.refused("nonsense"), "expected options only, not 'nonsense'")

    def test_meant(self) -> None:
        """Where it is obvious which endpoint was meant, the error names it."""
        for text, meant in (
            ("127.0.0.1:3001", "tcp:3001:interface=127.0.0.1"),
            ("[::1]:3001", "tcp6:3001:interface=\\:\\:1"),
            ("3001", "tcp:3001"),
            ("/run/tsecho", "unix:/run/tsecho"),
        ):
            self.assertEqual(
                self.refused("-l", text),
                f"--listen: expected an endpoint such as tcp:3000, not '{text}':"
                f" did you mean {meant}?",
            )
            if not text.startswith("/"):
                self.parsed("-l", meant)

    def test_readable(self) -> None:
        """A value is shown as it was given; with escapes only where it would not be readable."""
        self.assertIn("not 'tcp\\x'", self.refused("-l", "tcp\\x"))
        self.assertIn("not 'x\\ny'", self.refused("-l", "x\ny"))

    def test_endpoint_errors(self) -> None:
        """Of whatever an endpoint's parser raises, one line is shown."""
        for text, error in (
            ("systemd:domain=INET:index=0", "systemd passed no such socket"),
            ("systemd:index=0", "domain= is missing"),
            ("tcp", "port= is missing"),
            ("tcp:1:nonsense=2", "unknown argument nonsense="),
            ("tcp:1:2:3:4:5", "too many values"),
            ("tcp:x", "expected a number, not 'x'"),
            ("bogus:1", "Unknown endpoint type: 'bogus'"),
        ):
            self.assertIn(f"not '{text}': {error}", self.refused("-l", text))
        self.assertIn(": expected haproxy: once", self.refused("-l", "haproxy:haproxy:tcp:1"))


class DatagramListenerTests(TestCase):
    """`udp:` listeners, on real sockets."""

    async def opened(self, *arguments: str) -> Any:
        """The port that these arguments open."""
        options = tap.Options()
        options.parseOptions(["-l", "udp:0:interface=127.0.0.1", *arguments])
        (listener,) = options.listeners
        port = await listener.listen()
        self.addCleanup(port.stopListening)
        return port

    async def test_whole(self) -> None:
        """A port takes the largest datagram whole, where Twisted's own would cut it."""
        for arguments in ([], ["--stamp", "unix"]):
            port = await self.opened(*arguments)
            self.assertGreaterEqual(port.maxPacketSize, 65507)
            self.assertEqual(port.getHost().host, "127.0.0.1")

    async def test_port(self) -> None:
        """A port knows at which address it was asked, and arrival times if the stamp has them."""
        plain, timed = await self.opened(), await self.opened("--stamp", "iso")
        self.assertIsInstance(plain, DatagramPort)
        self.assertEqual((plain._timed, timed._timed), (False, True))


class MakeServiceTests(SynchronousTestCase):
    """`makeService`, and the plugin that leads to it."""

    def test_service(self) -> None:
        """The options make a service that can be started."""
        options = tap.Options()
        options.parseOptions([])
        service = tap.makeService(options)
        verifyObject(IService, service)
        self.assertIsInstance(service, EchoService)

    def test_plugin(self) -> None:
        """Twisted finds the plugin, and through it this module."""
        (maker,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "tsecho"]
        verifyObject(IServiceMaker, maker)
        verifyObject(IPlugin, maker)
        self.assertIs(maker.options, tap.Options)
        self.assertIs(maker.makeService, tap.makeService)
