"""Tests for `timestamp_echo.tap` and the plugin."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.application.service import IService, IServiceMaker
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import _SystemdParser
from twisted.internet.error import CannotListenError
from twisted.logger import formatEvent
from twisted.plugin import IPlugin, getPlugins
from twisted.python.systemd import ListenFDs
from twisted.scripts._twistd_unix import ServerOptions
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.fakes import logged
from tests.system.certificates import self_signed
from tests.system.running import PATIENCE
from timestamp_echo import __version__, tap
from timestamp_echo.clocks import monotonic_ns
from timestamp_echo.framing import AutoFraming, ChunkFraming, LineFraming
from timestamp_echo.server.connections import RESERVED_FILES
from timestamp_echo.server.service import EchoService
from timestamp_echo.stamps import SECOND
from timestamp_echo.transports.reactor import ReactorAdapter
from timestamp_echo.transports.udp import DatagramPort

UDP = "udp:0:interface=127.0.0.1"


class OptionsTests(SynchronousTestCase):
    """`Options`: each option, and the error for each bad value."""

    def parsed(self, *arguments: str) -> tap.Options:
        """Parse these arguments."""
        options = tap.Options()
        options.parseOptions(list(arguments))
        return options

    def test_clock(self) -> None:
        """All timers of the service follow the monotonic clock, from the start."""
        from twisted.internet import reactor

        self.patch(reactor, "seconds", time.time)
        self.parsed()
        self.assertLessEqual(reactor.seconds(), monotonic_ns() / SECOND)

    def refused(self, *arguments: str) -> str:
        """Parse these invalid arguments, and return the error, which is one line."""
        error = self.assertRaises(SystemExit, self.parsed, *arguments)
        line = str(error)
        self.assertNotIn("\n", line)
        self.assertTrue(line.startswith("tsecho: "), line)
        return line.removeprefix("tsecho: ")

    def listeners(self, *arguments: str) -> list[str]:
        """The descriptions of the listeners for these arguments."""
        return [listener.description for listener in self.parsed(*arguments).listeners]

    def test_defaults(self) -> None:
        """The defaults are port 3000, ctime in the local zone, and auto framing."""
        options = self.parsed()
        self.assertEqual([li.description for li in options.listeners], ["tcp:3000"])
        self.assertFalse(options.factory.stamp.subsecond)
        self.assertIs(options.factory.framing, AutoFraming)
        self.assertEqual((options["stamp"], options["utc"]), ("ctime", 0))

    def test_listen(self) -> None:
        """--listen and -l take every kind of endpoint, and can be repeated."""
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
        """--stamp, -s and --utc set the style and the zone of stamps."""
        for arguments in (["--stamp", "unix"], ["-s", "unix"], ["-s", "unix", "--utc"]):
            stamp = self.parsed(*arguments).factory.stamp
            self.assertEqual(stamp.prefix(1), b"[0.000000001] ")
        stamp = self.parsed("--utc", "--stamp=%H").factory.stamp
        self.assertEqual(stamp.prefix(0), b"[00] ")

    def test_connections(self) -> None:
        """The options for connections take whole numbers in their range."""
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
        for option, text, minimum in (
            ("--max-connections", "0", 1),
            ("--max-per-peer", "x", 0),
            ("--idle-timeout", "-1", 0),
            ("--drain-timeout", "soon", 0),
            ("--stop-delay", "-1", 0),
            ("--max-unsent", "0", 1),
        ):
            self.assertEqual(
                self.refused(option, text),
                f"{option}: expected a whole number from {minimum} to 999999999, not {text!r}",
            )

    def test_many_files(self) -> None:
        """By default 64 files are left for other things; one connection is always allowed."""
        for files, total in ((1073741816, 1073741752), (sys.maxsize, sys.maxsize - 64), (10, 1)):
            self.patch(tap, "file_limit", lambda files=files: files)
            self.assertEqual(self.parsed().connections._max_total, total)

    def test_few_files(self) -> None:
        """A limit of open files that leaves few connections is no surprise: the log has it."""
        for files, lines in ((10, 1), (127, 1), (128, 0)):
            events = logged(self)
            self.patch(tap, "file_limit", lambda files=files: files)
            self.parsed("--max-connections", "5")
            self.assertEqual(events, [])
            self.parsed()
            self.assertEqual(len(events), lines)
        self.patch(tap, "file_limit", lambda: 100)
        events = logged(self)
        self.parsed()
        self.assertEqual(
            formatEvent(events[0]),
            "the limit of open files (ulimit -Hn) is 100, so the limit of connections is 36",
        )

    def test_reuse_port(self) -> None:
        """One line warns where connections of TCP ports are reset when a process ends."""
        files = self_signed(self.mktemp())
        folder = os.path.dirname(files.key)
        setting = Path(self.mktemp())
        self.patch(tap, "_MIGRATION", setting)
        self.patch(_SystemdParser, "_sddaemon", ListenFDs([0], ["x"]))
        line = (
            "--reuse-port: connections not yet accepted when a process ends are reset"
            " (net.ipv4.tcp_migrate_req is 0)"
        )
        for value, listen, lines in (
            (None, ["tcp:0"], []),  # another system, or before Linux 5.14
            ("1", ["tcp:0"], []),
            ("0", [], [line]),
            ("0", ["tcp:0", "udp:0", "tcp6:0"], [line]),
            ("0", [f"haproxy:ssl:0:{files.endpoint}"], [line]),
            ("0", ["udp:0", f"tls:{folder}:port=0"], [line]),
            ("0", ["udp:0", "unix:/run/tsecho", f"tls:{folder}:systemd=x"], []),
        ):
            if value is not None:
                setting.write_text(f"{value}\n")
            arguments = [word for text in listen for word in ("-l", text)]
            events = logged(self)
            self.parsed("--reuse-port", *arguments)
            self.assertEqual(list(map(formatEvent, events)), lines)
            self.parsed(*arguments)
            self.assertEqual(len(events), len(lines))

    def test_client_ca(self) -> None:
        """--client-ca needs ssl:, and excludes tls:, which cannot ask for certificates."""
        files = self_signed(self.mktemp())
        ssl = ["--listen", f"ssl:0:{files.endpoint}"]
        option = ["--client-ca", files.certificate]
        self.parsed(*option, *ssl)
        self.parsed(*option, "-l", f"haproxy:ssl:0:{files.endpoint}", "-l", "tcp:0")
        folder = os.path.dirname(files.key)
        for listen, given in (
            ([], "no TLS endpoint"),
            (["-l", "tcp:0"], "no TLS endpoint"),
            ([*ssl, "-l", f"tls:{folder}:port=0"], "tls:, which cannot"),
        ):
            self.assertEqual(
                self.refused(*option, *listen),
                f"--client-ca: expected an ssl: endpoint to ask for certificates, got {given}",
            )

    def test_proxy_from(self) -> None:
        """--proxy-from takes networks, and needs an endpoint that reads PROXY headers."""
        haproxy = ["-l", "haproxy:tcp:0"]
        anywhere = self.parsed(*haproxy).factory
        networks = ["--proxy-from", "192.0.2.0/24", "--proxy-from", "2001:db8::1"]
        some = self.parsed(*networks, "-l", "tcp:0", *haproxy).factory
        for host, allowed in (("192.0.2.9", True), ("192.0.3.1", False)):
            address = IPv4Address("TCP", host, 1)
            self.assertEqual(some.may_proxy(address), allowed)
            self.assertTrue(anywhere.may_proxy(address))
        self.assertTrue(some.may_proxy(IPv6Address("TCP", "2001:db8::1", 1)))
        for listen in ([], ["-l", "tcp:0"]):
            self.assertEqual(
                self.refused("--proxy-from", "10.0.0.0/8", *listen),
                "--proxy-from: expected a haproxy: endpoint to read PROXY headers, got none",
            )
        for text, hint in (
            ("10.1.0.0/8", ": did you mean 10.0.0.0/8?"),
            ("2001:db8::1/64", ": did you mean 2001:db8::/64?"),
            ("10.0.0.0/33", ""),
            ("example.org", ""),
            ("", ""),
        ):
            self.assertEqual(
                self.refused("--proxy-from", text, *haproxy),
                f"--proxy-from: expected a network such as 10.0.0.0/8, not '{text}'{hint}",
            )

    def test_udp_rate(self) -> None:
        """--udp-rate takes whole numbers from 1."""
        self.parsed("--udp-rate", "1")
        for text in ("0", "-1", "x", "1.5", "", "1e3"):
            line = self.refused("--udp-rate", text)
            self.assertEqual(
                line, f"--udp-rate: expected a whole number from 1 to 999999999, not {text!r}"
            )

    def test_status(self) -> None:
        """--status takes Twisted's stream endpoints; without it nothing is prepared."""
        self.assertIsNone(self.parsed().status)
        for text in ("tcp:0:interface=127.0.0.1", "unix:/run/status", "tcp6:0"):
            options = self.parsed("--status", text)
            status = tap.makeService(options).status  # type: ignore[attr-defined]
            self.assertEqual((status.description, status.reload), (text, None))
        for text, why in (
            ("udp:1", "expected an endpoint such as tcp:3000, not 'udp:1': Unknown endpoint type"),
            ("9100", "expected an endpoint such as tcp:3000, not '9100': did you mean tcp:9100?"),
            ("tcp:70000", "expected a port from 0 to 65535, not 70000 in 'tcp:70000'"),
            ("", "expected an endpoint such as tcp:3000, not ''"),
            *(
                (
                    text,
                    f"expected an endpoint such as tcp:3000, not '{text}':"
                    " expected one of tcp, tcp6, ssl, tls, unix, systemd",
                )
                for text in ("haproxy:tcp:1", "stdio:", "stdio")
            ),
        ):
            self.assertIn(f"--status: {why}", self.refused("--status", text))

    def test_tls_not_installed(self) -> None:
        """Without the extra, the error says which one is missing; a plugin may miss another."""
        text = "ssl:0:privateKey=key.pem"
        missing = ModuleNotFoundError("No module named 'OpenSSL'", name="OpenSSL")
        with patch.object(ReactorAdapter, "endpoint", side_effect=missing):
            self.assertEqual(
                self.refused("--listen", text),
                f"--listen: '{text}' needs the package pyOpenSSL (the extra 'tls' of tsecho),"
                " which is not installed",
            )
        with patch.object(ReactorAdapter, "endpoint", side_effect=ModuleNotFoundError(name="x")):
            self.assertIn("expected an endpoint", self.refused("--listen", text))

    def test_status_not_installed(self) -> None:
        """Without the extra, the error says which one is missing."""
        loaded = [name for name in sys.modules if name.startswith("timestamp_echo.status.")]
        hidden = dict.fromkeys([*loaded, "prometheus_client"])
        with patch.dict(sys.modules, hidden):
            self.assertEqual(
                self.refused("--status", "tcp:0"),
                "--status: needs the package prometheus-client (the extra 'status' of tsecho),"
                " which is not installed",
            )

    def test_framing(self) -> None:
        """--framing selects the framing of each connection."""
        for name, framing in (
            ("auto", AutoFraming),
            ("line", LineFraming),
            ("chunk", ChunkFraming),
        ):
            self.assertIs(self.parsed("--framing", name).factory.framing, framing)

    def test_port_out_of_range(self) -> None:
        """A port out of range is an error, in every kind of endpoint."""
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
            line = self.refused("--listen", text)
            self.assertIn("--listen: expected a port from 0 to 65535, not ", line)
            self.assertIn(text, line)

    def test_invalid_endpoint(self) -> None:
        """An unknown or incomplete endpoint is an error that shows it."""
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
            line = self.refused("--listen", text)
            self.assertIn("--listen: expected an endpoint such as tcp:3000", line)
            self.assertIn(f"not '{text}': ", line)

    def test_invalid_udp(self) -> None:
        """The port and the address of udp: are checked."""
        for text in ("udp:", "udp:x", "udp:1:x"):
            self.assertIn("expected udp:PORT[:interface=ADDRESS]", self.refused("-l", text))
        self.assertIn(
            "expected an IPv4 or IPv6 address, not 'localhost'",
            self.refused("-l", "udp:1:interface=localhost"),
        )

    def test_unreadable_certificate(self) -> None:
        """A missing or invalid file or folder of certificates is an error that names it."""
        path = os.path.abspath(self.mktemp())
        for file, why in (
            ("/nonexistent", "No such file or directory"),
            (f"{path}\n", "expected a private key in PEM"),
        ):
            if file != "/nonexistent":
                Path(file).write_text("no certificate")
            line = self.refused("-l", f"ssl:1:privateKey={file}")
            given = file.replace("\n", "\\n")
            self.assertEqual(
                line,
                f"--listen: cannot load the certificates of 'ssl:1:privateKey={given}':"
                f" {given}: {why}",
            )
        os.mkdir(path)
        for listen in (f"tls:{path}", f"haproxy:tls:{path}:port=0"):
            self.assertEqual(
                self.refused("-l", listen),
                f"--listen: cannot load the certificates of '{listen}':"
                f" {path}: expected files *.pem with certificates and their private keys",
            )

    def test_invalid_tls(self) -> None:
        """The arguments of ssl: and tls: are checked as those of other endpoints."""
        for listen, why in (
            ("ssl", "port= is missing"),
            ("tls", "path= is missing"),
            ("ssl:x", "expected a number, not 'x'"),
            ("tls:/:port=x", "expected a number, not 'x'"),
            ("tls:/:1:2:3:4", "too many values"),
            ("ssl:1:nonsense=2", "unknown argument nonsense="),
            ("ssl:1:sslmethod=FOO", "unknown sslmethod=FOO"),
            ("ssl:1:x.pem:port=1", "port= is given twice"),
        ):
            self.assertIn(f"not '{listen}': {why}", self.refused("-l", listen))

    def test_unknown_stamp(self) -> None:
        """An unknown stamp is an error."""
        self.assertIn("--stamp: expected ctime, iso, unix", self.refused("--stamp", "rfc822"))
        self.assertIn("--stamp: expected a strftime directive", self.refused("-s", "%Q"))
        self.assertIn("--stamp: expected a strftime pattern", self.refused("-s", "%H\n"))

    def test_unknown_framing(self) -> None:
        """An unknown framing is an error that lists the framings."""
        self.assertEqual(
            self.refused("--framing", "word"), "--framing: expected auto, line, chunk, not 'word'"
        )

    def test_version(self) -> None:
        """--version prints tsecho's version, not Twisted's."""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            self.assertRaises(SystemExit, self.parsed, "--version")
        self.assertEqual(output.getvalue(), f"tsecho {__version__}\n")

    def test_unknown_option(self) -> None:
        """An unknown option, and any argument that is not an option, is an error."""
        for option, hint in (
            ("--nonsense", "see twistd tsecho --help"),
            ("--lisen", "did you mean --listen?"),
            ("--idel-timeout=5", "did you mean --idle-timeout?"),
            ("--Utc", "did you mean --utc?"),
            ("-x", "see twistd tsecho --help"),
        ):
            name = option.partition("=")[0]
            self.assertEqual(self.refused(option), f"unknown option '{name}'; {hint}")
        self.assertEqual(self.refused("--stamp"), "option --stamp requires argument")
        self.assertEqual(self.refused("nonsense"), "expected options only, not 'nonsense'")

    def test_suggestion(self) -> None:
        """Where it is obvious which endpoint was meant, the error suggests it."""
        for text, meant in (
            ("192.0.2.1:3001", "tcp:3001:interface=192.0.2.1"),
            ("[::1]:3001", "tcp6:3001:interface=\\:\\:1"),
            ("LocalHost:3001", "tcp:3001:interface=127.0.0.1"),
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

    def test_nothing_meant(self) -> None:
        """A port out of range is not suggested; nor is there a guess for any other name."""
        for text in ("99999", "127.0.0.1:99999", "localhost:99999", "example.org:3000"):
            self.assertNotIn("did you mean", self.refused("-l", text))
        self.assertIn("expected one of tcp", self.refused("-l", "haproxy:stdio:"))

    def test_readable(self) -> None:
        """An error shows a value as it was given, with escapes only if it is not printable."""
        self.assertIn("not 'tcp\\x'", self.refused("-l", "tcp\\x"))
        self.assertIn("not 'x\\ny'", self.refused("-l", "x\ny"))

    def test_endpoint_errors(self) -> None:
        """Any error of an endpoint's parser becomes plain words on one line."""
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
        self.assertIn(": expected one of tcp, tcp6", self.refused("-l", "haproxy:haproxy:tcp:1"))


class ListenerTests(TestCase):
    """Listeners, on real sockets."""

    async def opened(self, description: str, *arguments: str) -> Any:
        """Open the port of this listener."""
        options = tap.Options()
        options.parseOptions(["-l", description, *arguments])
        (listener,) = options.listeners
        port = await listener.listen()
        self.addCleanup(port.stopListening)
        return port

    async def test_max_unsent(self) -> None:
        """--max-unsent is the limit of each connection, 64 KiB by default."""
        for arguments, max_unsent in (([], 65536), (["--max-unsent", "5"], 5)):
            port = await self.opened("tcp:0:interface=127.0.0.1", *arguments)
            self.assertEqual(port.transport.keywords["max_unsent"], max_unsent)

    async def test_whole(self) -> None:
        """The largest datagram is received whole; Twisted's own ports truncate at 8192 bytes."""
        for arguments in ([], ["--stamp", "unix"]):
            port = await self.opened(UDP, *arguments)
            self.assertGreaterEqual(port.maxPacketSize, 65507)
            self.assertEqual(port.getHost().host, "127.0.0.1")

    async def test_port(self) -> None:
        """A port has arrival times if the stamp needs them."""
        plain, timed = await self.opened(UDP), await self.opened(UDP, "--stamp", "iso")
        self.assertIsInstance(plain, DatagramPort)
        self.assertEqual((plain._timed, timed._timed), (False, True))

    async def test_reuse_port(self) -> None:
        """With --reuse-port, TCP and UDP ports can be opened again; without it they cannot."""
        for kind in ("tcp", "udp"):
            port = await self.opened(f"{kind}:0:interface=127.0.0.1", "--reuse-port")
            again = f"{kind}:{port.getHost().port}:interface=127.0.0.1"
            await self.opened(again, "--reuse-port")
            with self.assertRaises(CannotListenError):
                await self.opened(again)

    def passed(self, sock: socket.socket) -> int:
        """Pass a socket by the name `x`, as systemd does; return its file descriptor."""
        fd = os.dup(sock.fileno())
        self.patch(_SystemdParser, "_sddaemon", ListenFDs([fd], ["x"]))
        return fd

    async def test_datagrams_from_systemd(self) -> None:
        """A datagram socket behind `systemd:` is answered like that of `udp:`."""
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            fd = self.passed(sock)
            port = await self.opened("systemd:domain=INET:name=x")
            self.assertIsInstance(port, DatagramPort)
            self.assertTrue(port.inherited)
            self.assertGreaterEqual(port.maxPacketSize, 65507)
            self.assertFalse(os.get_blocking(port.fileno()))
            self.assertRaises(OSError, os.fstat, fd)  # the port has a duplicate
            self.assertEqual(port.protocol._own_ports, {sock.getsockname()[1]})
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.settimeout(PATIENCE)
                client.connect(sock.getsockname())
                client.send(b"hello")
                port.doRead()
                self.assertRegex(client.recv(100), rb"\] hello$")

    async def test_wrong_datagrams_from_systemd(self) -> None:
        """One that is not bound, or of another family, is refused; behind `haproxy:` any is."""
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            self.passed(sock)
            for description, error in (
                ("systemd:domain=INET:name=x", "expected a bound datagram .*, got one without a"),
                ("systemd:domain=INET6:name=x", "domain=INET6, got one with domain=INET$"),
                ("haproxy:systemd:domain=INET:name=x", "expected a listening stream .* DGRAM"),
            ):
                with self.assertRaises(CannotListenError) as raised:
                    await self.opened(description)
                self.assertRegex(str(raised.exception.socketError), error)


class MakeServiceTests(SynchronousTestCase):
    """`makeService`, and the plugin for twistd."""

    def test_service(self) -> None:
        """The options make an `EchoService`."""
        options = tap.Options()
        options.parseOptions([])
        service = tap.makeService(options)
        verifyObject(IService, service)
        self.assertIsInstance(service, EchoService)

    def test_notify(self) -> None:
        """Notifications are sent where $NOTIFY_SOCKET is set; elsewhere nothing is imported."""
        options = tap.Options()
        options.parseOptions([])
        module = "timestamp_echo.server.notify"
        for value, imported in (("/nonexistent", True), ("", False), (None, False)):
            environment = {} if value is None else {"NOTIFY_SOCKET": value}
            with patch.dict(sys.modules), patch.dict(os.environ, environment):
                sys.modules.pop(module, None)
                service: Any = tap.makeService(options)
                self.assertEqual(module in sys.modules, imported)
                events = logged(self)
                service.notify("READY")
                self.assertEqual(len(events), imported)

    def test_reported_once(self) -> None:
        """A daemon's start is reported once, whatever is started again later."""
        hooks: list[object] = []
        self.patch(os, "register_at_fork", lambda **hook: hooks.append(hook))
        options = tap.Options()
        options.parseOptions([])
        options.parent = ServerOptions()
        report: Any = tap.makeService(options)
        for error in ("", "", "an error that comes too late"):
            report._report(error)
        self.assertEqual(len(hooks), 1)

    def test_plugin(self) -> None:
        """Twisted finds the plugin, which refers to this module."""
        (maker,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "tsecho"]
        set_to: dict[int, object] = {}
        self.patch(signal, "signal", set_to.__setitem__)
        self.patch(signal, "getsignal", {signal.SIGINT: signal.default_int_handler}.get)
        verifyObject(IServiceMaker, maker)
        verifyObject(IPlugin, maker)
        self.assertIs(maker.options, tap.Options)
        self.assertIs(maker.makeService, tap.makeService)
        self.assertEqual(set_to, {signal.SIGINT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_IGN})

    def test_interrupts_ignored(self) -> None:
        """Where SIGINT is ignored, as in a shell's background, the plugin leaves it so."""
        (maker,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "tsecho"]
        set_to: dict[int, object] = {}
        self.patch(signal, "signal", set_to.__setitem__)
        self.patch(signal, "getsignal", {signal.SIGINT: signal.SIG_IGN}.get)
        self.assertIs(maker.options, tap.Options)
        self.assertEqual(set_to, {signal.SIGHUP: signal.SIG_IGN})
