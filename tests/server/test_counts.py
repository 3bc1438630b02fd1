"""Tests for `timestamp_echo.server.counts`."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import TCPTransport, TLSTransport
from timestamp_echo.framing import LineFraming
from timestamp_echo.server.closing import LAST_BYTES_DELAY
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.counts import TRANSPORTS, Counts
from timestamp_echo.server.protocol import (
    FIRST_MESSAGE,
    HANDSHAKE_TIMEOUT,
    TimestampEcho,
    TimestampEchoFactory,
)
from timestamp_echo.transports.stdio import StandardIOTransport
from timestamp_echo.transports.stream import StreamTransport, UNIXStreamTransport
from timestamp_echo.transports.tls import HalfCloseTLS


class CountsTests(SynchronousTestCase):
    """`Counts`, as the connections of a service keep them."""

    def setUp(self) -> None:
        """Make a service without a reactor."""
        self.clock = Clock()
        self.connections = Connections(self.clock, idle_timeout=20)
        self.factory = TimestampEchoFactory(
            framing=LineFraming, clock=self.clock, connections=self.connections
        )

    def connect(self, transport: StringTransport | None = None) -> TimestampEcho:
        """Make a connection."""
        echo = self.factory.buildProtocol(None)
        assert isinstance(echo, TimestampEcho)
        echo.makeConnection(transport or TCPTransport())
        return echo

    def closed(self, echo: TimestampEcho, error: Exception | None = None) -> str:
        """Lose the connection, and return the label of the reason."""
        before = dict(self.factory.counts.closed)
        echo.connectionLost(Failure(error or ConnectionDone()))
        after = self.factory.counts.closed
        self.assertEqual(sum(after.values()), sum(before.values()) + 1)
        self.assertEqual(after.keys(), before.keys())
        (label,) = (name for name, count in after.items() if count != before[name])
        return label

    def test_peer(self) -> None:
        """A connection that its peer closes or resets; without a byte it was a health check."""
        for data, error, label in (
            (b"a\n", None, "peer"),
            (b"a\n", ConnectionLost(), "lost"),
            (b"", None, "no_data"),
            (b"", ConnectionLost(), "no_data"),
        ):
            echo = self.connect()
            if data:
                echo.dataReceived(data)
            if error is None:
                echo.readConnectionLost()
            self.assertEqual(self.closed(echo, error), label)

    def test_this_side(self) -> None:
        """A connection that this side ends, with or without a byte."""
        self.assertEqual(self.closed(self.connect(), ConnectionAborted()), "aborted")
        idle = self.connect()
        self.clock.pump([2] * 12)
        self.assertEqual(self.closed(idle), "idle")
        stopping = self.connect()
        self.clock.advance(FIRST_MESSAGE)
        stopping.drain()
        self.clock.pump([0, LAST_BYTES_DELAY])
        self.assertEqual(self.closed(stopping), "stopping")

    def test_handshake(self) -> None:
        """A TLS handshake, or a PROXY header, that does not come, or that is none."""
        echo = self.connect(TLSTransport())
        self.clock.advance(HANDSHAKE_TIMEOUT)
        self.assertEqual(self.closed(echo, ConnectionAborted()), "handshake")
        echo = self.connect()
        echo._limit_handshake("PROXY header")
        self.clock.advance(HANDSHAKE_TIMEOUT)
        self.assertEqual(self.closed(echo, ConnectionAborted()), "proxy")
        echo = self.connect()
        echo.proxy_header_invalid()
        self.assertEqual(self.closed(echo), "proxy")

    def test_other(self) -> None:
        """Any other error, such as one of TLS's; whatever it says, it adds no label."""
        self.assertEqual(self.closed(self.connect(), ValueError("idle or not")), "other")

    def test_refused(self) -> None:
        """A refused connection is not among the others; the label says which limit it was."""
        self.connections._max_total = 1
        self.connect()
        refusal = self.factory.buildProtocol(None)
        assert refusal is not None
        refusal.makeConnection(TCPTransport())
        refusal.connectionLost(Failure(ConnectionDone()))
        counts = self.factory.counts
        self.assertEqual(counts.refused, {"per_peer": 0, "total": 1, "proxy_from": 0, "other": 0})
        self.assertEqual(sum(counts.closed.values()), 0)

    def test_refused_behind_proxy(self) -> None:
        """A client that a PROXY header names may be over its limit: it was accepted, then refused.

        So it counts as one that has ended as well.
        """
        first, second = self.connect(), self.connect()
        self.connections._max_per_peer = 1
        first.proxy_header_received()
        second.proxy_header_received()
        self.assertEqual(
            self.factory.counts.refused, {"per_peer": 1, "total": 0, "proxy_from": 0, "other": 0}
        )
        self.assertEqual(self.closed(second), "refused")

    def test_unknown_refusal(self) -> None:
        """A reason without a label of its own adds none."""
        counts = Counts()
        counts.count_refused("no such reason")
        self.assertEqual(counts.refused, {"per_peer": 0, "total": 0, "proxy_from": 0, "other": 1})

    def test_kinds(self) -> None:
        """Each kind of connection has a label of its own."""
        classes = (StreamTransport, UNIXStreamTransport, HalfCloseTLS, StandardIOTransport)
        self.assertEqual(tuple(each.kind for each in classes), TRANSPORTS[:-1])

    def test_sums(self) -> None:
        """When a connection ends, its messages and bytes are added to those of its transport."""
        sizes: list[int] = []
        for kind in ("tcp", "tls", "tls", None):
            transport = TCPTransport()
            if kind is not None:
                transport.kind = kind  # type: ignore[attr-defined]
            echo = self.connect(transport)
            echo.dataReceived(b"a\nb\nc")
            self.assertEqual(self.factory.counts.received, 5 * len(sizes))
            echo.readConnectionLost()
            sizes.append(len(transport.value()))
            self.closed(echo)
        counts = self.factory.counts
        self.assertEqual(counts.messages, {"tcp": 3, "unix": 0, "tls": 6, "stdio": 0, "other": 3})
        self.assertEqual((counts.received, counts.sent), (20, sum(sizes)))
