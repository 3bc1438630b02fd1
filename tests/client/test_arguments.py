"""Tests for `timestamp_echo.client.arguments`."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from contextlib import redirect_stderr
from io import StringIO
from typing import cast

from twisted.internet.interfaces import IReactorTime
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.client.address import IPV4, IPV6, FamilyResolver, StreamServer
from timestamp_echo.client.arguments import (
    CommandParser,
    add_server,
    chosen_server,
    parse_seconds,
)


def _number(text: str) -> int:
    if not text.isdigit():
        raise ArgumentTypeError(f"expected a number, not '{text}'")
    return int(text)


class CommandParserTests(SynchronousTestCase):
    """`CommandParser`: the errors of a command line."""

    def setUp(self) -> None:
        """Create a parser with options of each kind."""
        self.parser = CommandParser(prog="tsecho ping")
        add_server(self.parser)
        pace = self.parser.add_mutually_exclusive_group()
        pace.add_argument("-i", type=_number)
        pace.add_argument("-f", action="store_true")
        self.parser.add_argument("--plot")
        self.parser.add_argument("--places")

    def error(self, *arguments: str) -> str:
        """Parse arguments that are wrong.

        @return: the message, without the name of the command.
        """
        with redirect_stderr(StringIO()) as stderr, self.assertRaises(SystemExit) as exited:
            self.parser.parse_args(arguments)
        self.assertEqual(exited.exception.code, 2)
        line, newline, rest = stderr.getvalue().partition("\n")
        self.assertTrue(line.startswith("tsecho ping: "), line)
        self.assertEqual((newline, rest), ("\n", ""))
        return line.removeprefix("tsecho ping: ")

    def test_errors(self) -> None:
        """Each error names the option, what was expected, and what was given."""
        for arguments, message in (
            (["--ca"], "--ca: expected a value, got none"),
            (["--insecure=yes"], "--insecure: expected no value, got 'yes'"),
            (["-i", "x"], "-i: expected a number, not 'x'"),
            (["-i", "x\ny"], "-i: expected a number, not 'x\\ny'"),
            (["-f", "-i", "1"], "-i: cannot be combined with -f"),
            (["--pl=a"], "ambiguous option --pl=a: it may be any of --plot, --places"),
            (["a", "b", "c"], "SERVER: expected one, got 'a' and 'b' and 'c'"),
            (["a", "7"], "SERVER: expected one, got 'a' and '7'; did you mean a:7?"),
            (
                ["a", "ping"],
                "expected the command first, as in tsecho ping ...; for a server of that name,"
                " write ping:3000",
            ),
            (["--inscure", "a"], "unknown option '--inscure'; did you mean --insecure?"),
            (["--jsn=1"], "unknown option '--jsn'; see tsecho ping --help"),
            (["-4", "-6"], "-6/--ipv6: cannot be combined with -4/--ipv4"),
            (["-5", "localhost"], "unknown option '-5'; see tsecho ping --help"),
            (["a", "b\n\x1b"], "SERVER: expected one, got 'a' and 'b\\n\\x1b'"),
        ):
            self.assertEqual(self.error(*arguments), message)

    def test_other_error(self) -> None:
        """A message that is not known is printed as it is, in one line."""
        with redirect_stderr(StringIO()) as stderr:
            self.assertRaises(SystemExit, self.parser.error, "strange\nthings")
        self.assertEqual(stderr.getvalue(), "tsecho ping: strange\\nthings\n")

    def test_right(self) -> None:
        """Arguments without an error are parsed as by `ArgumentParser`."""
        given = Namespace()
        self.assertIs(self.parser.parse_args(["-i", "3", "host"], given), given)
        self.assertEqual((given.server, given.i), ("host", 3))
        self.assertEqual(self.parser.parse_args([]).server, "localhost")
        for option in ("-4", "--ipv4"):
            given = self.parser.parse_args([option, "host"])
            self.assertEqual((given.server, given.family), ("host", IPV4))

    def test_several(self) -> None:
        """A command may have several SERVERs, with options between them."""
        self.parser = CommandParser(prog="tsecho ping")
        add_server(self.parser, several=True)
        self.assertEqual(self.parser.parse_args([]).server, [])
        arguments = self.parser.parse_args(["a", "--insecure", "b", "c"])
        self.assertEqual((arguments.server, arguments.insecure), (["a", "b", "c"], True))
        self.assertEqual(
            self.error("a", "--insecur", "b", "--jsn"),
            "unknown option '--jsn'; see tsecho ping --help",
        )


class ChosenServerTests(SynchronousTestCase):
    """`chosen_server`: SERVER and the options for TLS."""

    def setUp(self) -> None:
        """Capture standard error."""
        self.stderr = StringIO()

    def chosen(self, *arguments: str) -> str:
        """Choose a server.

        @return: its name.
        """
        parser = CommandParser(prog="tsecho")
        add_server(parser)
        reactor = cast(IReactorTime, MemoryReactorClock())
        with redirect_stderr(self.stderr):
            server = chosen_server(parser, parser.parse_args(arguments), reactor)
        assert isinstance(server, StreamServer)
        return server.name

    def test_server(self) -> None:
        """The server that was named, by default localhost."""
        self.assertEqual(self.chosen(), "localhost:3000")
        self.assertEqual(self.chosen("host:7"), "host:7")
        self.assertEqual(self.stderr.getvalue(), "")

    def test_insecure(self) -> None:
        """A connection that is not verified comes with a warning."""
        self.assertEqual(self.chosen("--insecure", "tls:host:7"), "tls:host:7")
        self.assertEqual(
            self.stderr.getvalue(),
            "tsecho: warning: --insecure: the server's certificate is not verified\n",
        )

    def test_family(self) -> None:
        """-4 and -6 restrict what the reactor's resolver finds."""
        for option, family in (("-4", IPV4), ("--ipv6", IPV6), (None, None)):
            reactor = MemoryReactorClock()
            before = reactor.nameResolver
            parser = CommandParser(prog="tsecho")
            add_server(parser)
            arguments = parser.parse_args([option] if option else [])
            chosen_server(parser, arguments, cast(IReactorTime, reactor))
            resolver = reactor.nameResolver
            if family:
                assert isinstance(resolver, FamilyResolver)
                self.assertEqual((resolver._resolver, resolver._family), (before, family))
            else:
                self.assertIs(resolver, before)

    def test_wrong(self) -> None:
        """A SERVER that cannot be parsed is an error of the command line."""
        self.assertEqual(self.assertRaises(SystemExit, self.chosen, "host:0").code, 2)
        self.assertEqual(
            self.stderr.getvalue(),
            "tsecho: SERVER: expected a port from 1 to 65535, not 0 in 'host:0'\n",
        )

    def test_key_alone(self) -> None:
        """A key without its certificate is an error."""
        self.assertEqual(self.assertRaises(SystemExit, self.chosen, "--key", "x").code, 2)
        self.assertEqual(
            self.stderr.getvalue(),
            "tsecho: --key: expected --cert FILE too, the certificate of the key\n",
        )


class ParseSecondsTests(SynchronousTestCase):
    """`parse_seconds`."""

    def test_seconds(self) -> None:
        """A number from a minimum up; anything else is refused, also what is one in Python only."""
        for text, value in (("0.5", 0.5), ("1e6", 1e6), (" 7 ", 7)):
            self.assertEqual(parse_seconds(0.5, text), value)
        for text in ("0.4", "-1", "1000001", "x", "", "nan", "inf", "1_0"):
            error = self.assertRaises(ArgumentTypeError, parse_seconds, 0.5, text)
            self.assertEqual(str(error), f"expected seconds from 0.5 to 1000000, not {text!r}")
