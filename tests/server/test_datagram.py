"""Tests for `timestamp_echo.server.datagram`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import logged
from timestamp_echo.server.datagram import (
    _BUCKETS,
    LOG_INTERVAL,
    RateLimit,
    TimestampDatagram,
    refusal,
)
from timestamp_echo.stamps import SECOND, Stamp

HOST = "192.0.2.1"
PEER = (HOST, 5000)
STAMP = b"[Thu Jan  1 00:00:01 1970] "


class RefusalTests(SynchronousTestCase):
    """`refusal`: which datagrams get no answer."""

    def test_answered(self) -> None:
        """What people send is answered, from any host and any port of a client's."""
        for datagram in (b"", b"hello", b"[x]", b"] ", b" [a] b", b"[tag]:x"):
            for host in (HOST, "127.0.0.1", "2001:db8::1", "fe80::1", "::ffff:192.0.2.1"):
                self.assertEqual(refusal(datagram, host, 1024, {3000}), "")

    def test_ports(self) -> None:
        """Ports where other services are, and those where this one is."""
        for port in (0, 7, 19, 53, 123, 1023):
            self.assertEqual(refusal(b"x", HOST, port, set()), "from a port under 1024")
        self.assertEqual(
            refusal(b"x", HOST, 3000, {3000, 4000}), "from one of this service's own ports"
        )

    def test_not_one_host(self) -> None:
        """Addresses that are not one host's."""
        for host in (
            "255.255.255.255",
            "0.0.0.0",
            "224.0.0.1",
            "ff02::1",
            "::",
            "::ffff:224.0.0.1",
        ):
            self.assertEqual(refusal(b"x", host, 5000, set()), "not from a single host")

    @given(
        st.sampled_from(["ctime", "iso", "unix", "%H:%M", "%A the %d of %B, %Y, %f %%"]),
        st.binary(),
        st.integers(0, 2**32 * SECOND),
    )
    def test_no_reply_is_answered(self, style: str, message: bytes, moment: int) -> None:
        """No reply, in any style of stamp, to any message, is ever answered."""
        reply = Stamp(style, utc=True).prefix(moment) + message
        self.assertEqual(refusal(reply, HOST, 5000, set()), "like a reply")


class RateTests(SynchronousTestCase):
    """`RateLimit`."""

    def test_limit(self) -> None:
        """So many a second, and in the next second as many again, also after a step back."""
        rate = RateLimit(3)
        for moment in (SECOND, 2 * SECOND, 100 * SECOND, 50 * SECOND):
            self.assertEqual(
                [rate.allows(HOST, moment) for _ in range(4)], [True, True, True, False]
            )

    def test_sources_apart(self) -> None:
        """One source's flood does not use up another's share."""
        rate = RateLimit(10)
        others = [f"198.51.{i}.1" for i in range(100)]
        for _ in range(1000):
            rate.allows(HOST, 0)
        self.assertGreater(sum(rate.allows(other, 0) for other in others), 90)

    def test_bounded(self) -> None:
        """However many sources are forged, the memory for them is the same."""
        rate = RateLimit(10)
        for i in range(100_000):
            rate.allows(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 0)
        self.assertEqual(len(rate._counts), _BUCKETS)


class Port:
    """As much of a UDP port as is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self._error = error

    def getHost(self) -> IPv4Address:
        """See `IUDPTransport`."""
        return IPv4Address("UDP", "127.0.0.1", 3000)

    def write(self, datagram: bytes, addr: Any) -> None:
        """Send, or fail to."""
        if self._error is not None:
            raise self._error
        self.sent.append((datagram, addr))


class FakeBatch:
    """A batch, as far as it is looked at, of which each third can't be sent."""

    def __init__(self, messages: Sequence[bytes], port: int, arrivals: Sequence[int] = ()) -> None:
        self.count = len(messages)
        self.first_bytes = b"".join(message[:1] or b"[" for message in messages)
        self.timed = bool(arrivals)
        self._messages, self._port, self._arrivals = messages, port, arrivals
        self.replies: list[bytes] = []
        self.dropped: list[int] = []

    def source(self, slot: int) -> tuple[str, int]:
        """See `DatagramBatch`."""
        return HOST, self._port

    def message(self, slot: int) -> bytes:
        """See `DatagramBatch`."""
        return self._messages[slot]

    def arrival(self, slot: int) -> int:
        """See `DatagramBatch`."""
        return self._arrivals[slot]

    def reply(self, slot: int, prefix: bytes) -> None:
        """See `DatagramBatch`."""
        self.replies.append(prefix + self._messages[slot])

    def drop(self, slot: int) -> None:
        """See `DatagramBatch`."""
        self.dropped.append(slot)

    def send(self) -> int:
        """See `DatagramBatch`."""
        return len(self.replies) // 3


class TimestampDatagramTests(SynchronousTestCase):
    """`TimestampDatagram`."""

    def setUp(self) -> None:
        """A clock, and what is logged."""
        self.clock = Clock()
        self.events = logged(self)

    def echo(self, port: Port, style: str = "ctime", **options: Any) -> TimestampDatagram:
        """The protocol on this port, at the epoch's first second."""
        echo = TimestampDatagram(Stamp(style, utc=True), self.clock, lambda: SECOND, **options)
        echo.transport = port  # type: ignore[assignment]  # as much of one as is needed
        echo.startProtocol()
        return echo

    def lines(self) -> list[str]:
        """What was logged."""
        return [formatEvent(event) for event in self.events]

    def test_reply(self) -> None:
        """A datagram is a message, newlines and all, and goes back to where it came from."""
        port = Port()
        self.echo(port).datagramReceived(b"a\nb\xff\0", PEER)
        self.assertEqual(port.sent, [(STAMP + b"a\nb\xff\0", PEER)])

    def test_empty(self) -> None:
        """So is an empty one."""
        port = Port()
        self.echo(port).datagramReceived(b"", PEER)
        self.assertEqual(port.sent, [(STAMP, PEER)])

    def test_link_local(self) -> None:
        """A link-local source keeps its scope."""
        port = Port()
        self.echo(port).datagramReceived(b"a", ("fe80::1%lo", 5000))
        self.assertEqual(port.sent, [(STAMP + b"a", ("fe80::1%lo", 5000))])

    def batch(
        self,
        messages: Sequence[bytes],
        port: int = 5000,
        arrivals: Sequence[int] = (),
        rate: int = 9,
    ) -> FakeBatch:
        """A batch with these messages, when it has been answered."""
        batch: Any = FakeBatch(messages, port, arrivals)
        style = "unix" if arrivals else "ctime"
        self.echo(Port(), style, rate=rate).datagramsReceived(batch)
        self.clock.advance(LOG_INTERVAL)
        answered: FakeBatch = batch
        return answered

    def test_batch(self) -> None:
        """Each datagram of a batch is answered as if it had come alone, or not."""
        batch = self.batch([b"", b"[x", STAMP + b"x", b"\n", b"a", b"b"], rate=4)
        self.assertEqual(batch.replies, [STAMP, STAMP + b"[x", STAMP + b"\n", STAMP + b"a"])
        self.assertEqual(batch.dropped, [2, 5])
        self.assertEqual(
            self.lines(),
            ["datagrams not answered: 1 like a reply, 1 over the rate limit, 1 impossible to send"],
        )
        self.assertEqual(self.batch([b"x"], 7).replies, [])

    def test_kernel_times(self) -> None:
        """The stamps are the datagrams' arrival times, where the kernel knows them."""
        batch = self.batch([b"a", b"b"], arrivals=[5 * SECOND + 1, 0])
        self.assertEqual(batch.replies, [b"[5.000000001] a", b"[1.000000000] b"])

    def test_could_not_be_sent(self) -> None:
        """What the sending raises is counted, and never a traceback."""
        for error in (MessageLengthError("too long"), OSError(22, "Invalid argument")):
            self.echo(Port(error)).datagramReceived(b"a", PEER)
            self.clock.advance(LOG_INTERVAL)
        self.assertEqual(self.lines(), ["datagrams not answered: 1 impossible to send"] * 2)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_not_answered(self) -> None:
        """What must not be answered is not, and the log has a line in ten seconds."""
        port = Port()
        echo = self.echo(port, rate=2)
        echo.datagramReceived(STAMP + b"x", PEER)
        echo.datagramReceived(b"x", (HOST, 7))
        echo.datagramReceived(b"x", (HOST, 3000))  # the port's own number
        for _ in range(5):
            echo.datagramReceived(b"x", PEER)
        self.assertEqual(len(port.sent), 2)
        self.clock.advance(LOG_INTERVAL - 0.1)
        self.assertEqual(self.lines(), [])
        self.clock.advance(0.1)
        self.assertEqual(
            self.lines(),
            [
                "datagrams not answered: 3 over the rate limit, 1 like a reply,"
                " 1 from a port under 1024, 1 from one of this service's own ports"
            ],
        )
        self.clock.advance(10 * LOG_INTERVAL)
        self.assertEqual(len(self.lines()), 1)

    def test_set_on_each_other(self) -> None:
        """Two services that are set on each other exchange no more than the first reply."""
        one, other = Port(), Port()
        echoes = [self.echo(one, "iso"), self.echo(other, "%H:%M")]
        echoes[0].datagramReceived(b"forged", PEER)
        echoes[1].datagramReceived(one.sent[0][0], PEER)
        self.assertEqual((len(one.sent), len(other.sent)), (1, 0))

    def test_counted_in_the_end(self) -> None:
        """When the port is closed the log has what it did not have yet."""
        echo = self.echo(Port())
        echo.stopProtocol()
        echo = self.echo(Port())
        echo.datagramReceived(STAMP, PEER)
        echo.stopProtocol()
        self.assertEqual(self.lines(), ["datagrams not answered: 1 like a reply"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
