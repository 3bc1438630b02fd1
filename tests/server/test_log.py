"""Tests for `timestamp_echo.server.log`."""

from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import logged
from timestamp_echo.server.log import LINES_PER_SECOND, ConnectionLog, GetPeer, format_address


def peer_at(host: str) -> GetPeer:
    """A connection's peer, at this host's port 5."""
    return lambda: IPv4Address("TCP", host, 5)


class WrittenTests(SynchronousTestCase):
    """`format_address`: an address in the log."""

    def test_ipv4(self) -> None:
        """Host and port."""
        self.assertEqual(format_address(IPv4Address("TCP", "192.0.2.1", 3000)), "192.0.2.1:3000")

    def test_ipv6(self) -> None:
        """An IPv6 host is in brackets."""
        self.assertEqual(
            format_address(IPv6Address("TCP", "2001:db8::1", 3000)), "[2001:db8::1]:3000"
        )

    def test_unix(self) -> None:
        """The path of a UNIX socket, if it has one."""
        self.assertEqual(format_address(UNIXAddress("/run/tsecho")), "unix:/run/tsecho")
        self.assertEqual(format_address(UNIXAddress(None)), "unix:")

    def test_chosen_by_peer(self) -> None:
        """What a peer can choose reaches the log as printable ASCII alone (CWE-117)."""
        for address in (
            IPv4Address("TCP", "1\n2\x1b[31m\u2028", 3000),
            UNIXAddress(b"/tmp/\n\x1b[31m\xff\xe2\x80\xa8"),
            HostnameAddress(b"a\nb\x1b", 1),
        ):
            text = format_address(address)
            self.assertTrue(text.isascii() and text.isprintable(), text)

    def test_no_address(self) -> None:
        """A transport without a peer does no harm."""
        self.assertEqual(format_address(None), "None")


class ConnectionLogTests(SynchronousTestCase):
    """`ConnectionLog`."""

    def setUp(self) -> None:
        """A log, a clock, and what is logged."""
        self.clock = Clock()
        self.log = ConnectionLog(self.clock)
        self.events = logged(self)

    def lines(self) -> list[str]:
        """What was logged since the last call."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    def end(self, peer: str) -> None:
        """A connection ends."""
        self.log.ended(peer_at(peer), "lost", seconds=1.5, messages=2, received=30, sent=84)

    def test_opened(self) -> None:
        """An opening has its peer."""
        self.log.opened(peer_at("192.0.2.1"))
        self.assertEqual(self.lines(), ["connection from 192.0.2.1:5 opened"])

    def test_ended(self) -> None:
        """An end has the peer, how long, how much, and why."""
        self.end("192.0.2.1")
        self.assertEqual(
            self.lines(),
            [
                "connection from 192.0.2.1:5 ended after 1.500 s: 2 messages,"
                " 30 bytes in, 84 bytes out; lost"
            ],
        )

    def test_refused(self) -> None:
        """A refusal has the peer and the reason."""
        self.log.refused(peer_at("192.0.2.1"), "too many")
        for _ in range(LINES_PER_SECOND):
            self.log.refused(peer_at("192.0.2.1"), "too many")
        lines = self.lines()
        self.assertEqual(lines[0], "connection from 192.0.2.1:5 refused: too many")
        self.assertEqual(len(lines), LINES_PER_SECOND)

    def test_structured(self) -> None:
        """The numbers can be read from the event without parsing its text."""
        self.end("192.0.2.1")
        (event,) = self.events
        self.assertEqual(
            [event[key] for key in ("peer", "seconds", "messages", "received", "sent", "why")],
            ["192.0.2.1:5", 1.5, 2, 30, 84, "lost"],
        )

    def test_flood(self) -> None:
        """Of a flood ten lines are format_address, then one that counts the rest."""
        for number in range(1000):
            self.log.opened(peer_at(str(number)))
        self.assertEqual(len(self.lines()), LINES_PER_SECOND)
        self.clock.advance(1)
        self.assertEqual(
            self.lines(),
            [f"{1000 - LINES_PER_SECOND} more connections opened within the same second"],
        )

    def test_flood_of_ends(self) -> None:
        """So are ends."""
        for number in range(LINES_PER_SECOND + 1):
            self.end(str(number))
        self.assertEqual(len(self.lines()), LINES_PER_SECOND)
        self.clock.advance(1)
        self.assertEqual(self.lines(), ["1 more connection ended within the same second"])

    def test_each_kind_by_itself(self) -> None:
        """A flood of openings does not hide an end."""
        for number in range(1000):
            self.log.opened(peer_at(str(number)))
        self.lines()
        self.end("1")
        self.assertEqual(len(self.lines()), 1)

    def test_peer_not_asked(self) -> None:
        """For a line that is not format_address nobody is asked for an address."""
        asked: list[int] = []

        def peer() -> None:
            asked.append(1)

        for _ in range(1000):
            self.log.opened(peer)
        self.assertEqual(len(asked), LINES_PER_SECOND)

    def test_next_second(self) -> None:
        """A new second has lines again, and without a flood nothing is counted."""
        for _ in range(2):
            for number in range(LINES_PER_SECOND):
                self.log.opened(peer_at(str(number)))
            self.assertEqual(len(self.lines()), LINES_PER_SECOND)
            self.clock.advance(1)
            self.assertEqual(self.lines(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
