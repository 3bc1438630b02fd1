"""Tests for `timestamp_echo.server.log`, and of the page that explains all lines."""

import ast
import re
from pathlib import Path

from OpenSSL.SSL import Error, SysCallError
from twisted.internet._posixstdio import PipeAddress
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import logged
from timestamp_echo.server.log import (
    FLOOD,
    USUAL,
    ConnectionLog,
    describe,
    format_address,
)

ROOT = Path(__file__).parents[2]

WRITERS = {"info", "warn", "error", "failure", "failuresHandled"}
"""The methods of `Logger` with which the service writes."""


def formats() -> set[str]:
    """The lines that the service can write, with the names of their values in capitals."""
    found = set()
    folders = (".", "server", "transports", "status")
    for path in (
        file for name in folders for file in (ROOT / "timestamp_echo" / name).glob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in WRITERS and "_log" in ast.unparse(node.func.value):
                plural = ast.literal_eval(node.args[0]).replace("{s}", "s")
                found.add(re.sub(r"{(\w+)[^}]*}", lambda match: match[1].upper(), plural))
    return found


def peer_at(host: str) -> IPv4Address:
    """Port 5 of this host."""
    return IPv4Address("TCP", host, 5)


class FormatAddressTests(SynchronousTestCase):
    """`format_address`: an address in the log."""

    def test_ipv4(self) -> None:
        """An IPv4 address is host:port."""
        self.assertEqual(format_address(IPv4Address("TCP", "192.0.2.1", 3000)), "192.0.2.1:3000")

    def test_ipv6(self) -> None:
        """An IPv6 address is [host]:port."""
        self.assertEqual(
            format_address(IPv6Address("TCP", "2001:db8::1", 3000)), "[2001:db8::1]:3000"
        )

    def test_unix(self) -> None:
        """A UNIX socket is shown by its path, which may be empty."""
        self.assertEqual(format_address(UNIXAddress("/run/tsecho")), "unix:/run/tsecho")
        self.assertEqual(format_address(UNIXAddress(None)), "unix:")

    def test_escaped(self) -> None:
        """Text that a peer can choose is escaped to printable ASCII (CWE-117)."""
        for address in (
            IPv4Address("TCP", "1\n2\x1b[31m\u2028", 3000),
            UNIXAddress(b"/tmp/\n\x1b[31m\xff\xe2\x80\xa8"),
            HostnameAddress(b"a\nb\x1b", 1),
        ):
            text = format_address(address)
            self.assertTrue(text.isascii() and text.isprintable(), text)

    def test_stdio(self) -> None:
        """An address without a textual form is not shown as a Python object."""
        self.assertEqual(format_address(PipeAddress()), "stdio")

    def test_no_address(self) -> None:
        """An unknown address does not raise."""
        self.assertEqual(format_address(None), "None")


class DescribeTests(SynchronousTestCase):
    """`describe`: an error in the log."""

    def test_openssl(self) -> None:
        """Errors of OpenSSL's are its words, never the tuples around them."""
        for error, text in (
            (Error([("SSL routines", "", "no shared cipher")]), "no shared cipher"),
            (Error([("x", "", "unknown"), ("SSL routines", "", "too small")]), "too small"),
            (SysCallError(-1, "Unexpected EOF"), "Unexpected EOF"),
            (Error([]), "OpenSSL gave no reason"),
            (Error([("system library", "", "")]), "OpenSSL gave no reason"),
        ):
            self.assertEqual(describe(error), text)


class ConnectionLogTests(SynchronousTestCase):
    """`ConnectionLog`."""

    def setUp(self) -> None:
        """Make a log, and record its events."""
        self.clock = Clock()
        self.log = ConnectionLog(self.clock)
        self.events = logged(self)

    def lines(self) -> list[str]:
        """The lines logged since the last call."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    def open(self, peer: str) -> None:
        """Log a new connection from this host, if there may be a line."""
        if self.log.may_write("opened"):
            self.log.opened(peer_at(peer))

    def refuse(self, peer: str) -> None:
        """Log a refused connection from this host, if there may be a line."""
        if self.log.may_write("refused"):
            self.log.refused(peer_at(peer), "too many")

    def end(self, peer: str) -> None:
        """Log the end of a connection from this host, if there may be a line."""
        if self.log.may_write("ended"):
            self.log.ended(peer_at(peer), "lost", seconds=1.5, messages=2, received=30, sent=84)

    def test_opened(self) -> None:
        """The line of a new connection names the peer."""
        self.open("192.0.2.1")
        self.assertEqual(self.lines(), ["connection from 192.0.2.1:5 opened"])

    def test_ended(self) -> None:
        """The line at the end has the peer, the duration, the counts and the reason."""
        self.end("192.0.2.1")
        self.assertEqual(
            self.lines(),
            [
                "connection from 192.0.2.1:5 ended after 1.500 s: 2 messages,"
                " 30 bytes in, 84 bytes out; lost"
            ],
        )

    def test_refused(self) -> None:
        """The line of a refusal has the peer and the reason; there are at most ten a second."""
        self.refuse("192.0.2.1")
        for _ in range(USUAL.lines):
            self.refuse("192.0.2.1")
        lines = self.lines()
        self.assertEqual(lines[0], "connection from 192.0.2.1:5 refused: too many")
        self.assertEqual(len(lines), USUAL.lines)

    def test_structured(self) -> None:
        """An observer of the log gets the numbers without parsing the line."""
        self.end("192.0.2.1")
        (event,) = self.events
        self.assertEqual(
            [event[key] for key in ("peer", "seconds", "messages", "received", "sent", "why")],
            ["192.0.2.1:5", 1.5, 2, 30, 84, "lost"],
        )

    def test_flood(self) -> None:
        """Of many connections in a second ten have a line; one more line counts the rest."""
        for number in range(1000):
            self.open(str(number))
        self.assertEqual(len(self.lines()), USUAL.lines)
        self.clock.advance(1)
        self.assertEqual(
            self.lines(),
            [f"{1000 - USUAL.lines} more connections opened within 1 s"],
        )

    def test_one_more(self) -> None:
        """The same holds for ends, and one connection is in the singular."""
        for number in range(USUAL.lines + 1):
            self.end(str(number))
        self.assertEqual(len(self.lines()), USUAL.lines)
        self.clock.advance(1)
        self.assertEqual(self.lines(), ["1 more connection ended within 1 s"])

    def test_kinds_are_counted_apart(self) -> None:
        """Many new connections do not suppress the line of an end."""
        for number in range(1000):
            self.open(str(number))
        self.lines()
        self.end("1")
        self.assertEqual(len(self.lines()), 1)

    def test_flood_lasts(self) -> None:
        """While a flood lasts, ten seconds have five lines of a kind; then all is as before."""
        self.flood()
        self.clock.advance(1)
        self.lines()
        for _ in range(2):
            self.flood()
            self.assertEqual(len(self.lines()), FLOOD.lines)
            self.clock.advance(FLOOD.seconds - 1)
            self.flood()
            self.assertEqual(self.lines(), [])
            self.clock.advance(1)
            more = 2 * 1000 - FLOOD.lines
            self.assertEqual(self.lines(), [f"{more} more connections opened within 10 s"])
        self.open("1")
        self.clock.advance(FLOOD.seconds)
        self.open("1")
        self.clock.advance(1)
        self.assertEqual(len(self.lines()), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.flood()
        self.clock.advance(1)
        self.assertIn(f"{1000 - USUAL.lines} more connections opened within 1 s", self.lines())

    def flood(self) -> None:
        """Log a thousand new connections."""
        for number in range(1000):
            self.open(str(number))

    def test_no_timer(self) -> None:
        """There is a timer only while there is something to be written later."""
        for _ in range(3):
            for number in range(USUAL.lines):
                self.open(str(number))
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.clock.advance(1)
        self.assertEqual(len(self.lines()), 3 * USUAL.lines)

    def test_flush(self) -> None:
        """What would be written later can be written now, with the time that has passed."""
        self.flood()
        self.open("1")
        self.end("1")
        self.clock.advance(0.125)
        self.lines()
        self.log.flush()
        more = 1000 + 1 - USUAL.lines
        self.assertEqual(self.lines(), [f"{more} more connections opened within 0.125 s"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.log.flush()
        self.assertEqual(self.lines(), [])
        self.flood()
        self.assertEqual(len(self.lines()), FLOOD.lines)
        self.clock.advance(FLOOD.seconds - 0.1)
        self.assertEqual(self.lines(), [])

    def test_late(self) -> None:
        """A timer that is late does not make the interval longer."""
        self.flood()
        self.lines()
        self.clock.advance(1.25)
        self.assertEqual(self.lines(), [f"{1000 - USUAL.lines} more connections opened within 1 s"])

    def test_next_second(self) -> None:
        """Each second has ten lines; if there are no more events, no line counts them."""
        for _ in range(2):
            for number in range(USUAL.lines):
                self.open(str(number))
            self.assertEqual(len(self.lines()), USUAL.lines)
            self.clock.advance(1)
            self.assertEqual(self.lines(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class PageTests(SynchronousTestCase):
    """`docs/reference/log.rst`."""

    def test_each_line_explained(self) -> None:
        """The page has the lines that the service can write: all of them, and no others."""
        page = (ROOT / "docs" / "reference" / "log.rst").read_text()
        self.assertEqual(set(re.findall(r"(?m)^``([^`]+)``[,.]?$", page)), formats())
