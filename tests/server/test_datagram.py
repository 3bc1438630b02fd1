"""Tests for `timestamp_echo.server.datagram`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import logged
from timestamp_echo.server import datagram
from timestamp_echo.server.datagram import (
    LABELS,
    NOT_RECEIVED,
    RateLimit,
    TimestampDatagram,
    refusal,
)
from timestamp_echo.stamps import SECOND, Stamp

HOST = "192.0.2.1"
PEER = (HOST, 5000)
STAMP = b"[Thu Jan  1 00:00:01 1970] "


class RefusalTests(SynchronousTestCase):
    """`refusal`: which datagrams are not answered."""

    def test_answered(self) -> None:
        """Ordinary text is answered, from any host and any unprivileged port, with brackets too."""
        for message in (b"", b"hello", b"[x]", b"] ", b" [a] b", b"[tag]:x"):
            for host in (HOST, "127.0.0.1", "2001:db8::1", "fe80::1", "::ffff:192.0.2.1"):
                self.assertEqual(refusal(message, host, 1024, {3000}), "")

    def test_ports(self) -> None:
        """The ports of other services, and this service's own, are not answered: replies loop."""
        for port in (0, 7, 19, 53, 123, 1023):
            self.assertEqual(refusal(b"x", HOST, port, set()), "from a port under 1024")
        self.assertEqual(
            refusal(b"x", HOST, 3000, {3000, 4000}), "from one of this service's own ports"
        )

    def test_not_unicast(self) -> None:
        """A source that is a broadcast, multicast or unspecified address is not answered."""
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
        """A reply, in any style of stamp and to any message, is never answered."""
        reply = Stamp(style, utc=True).prefix(moment) + message
        self.assertEqual(refusal(reply, HOST, 5000, set()), "like a reply")


class RateLimitTests(SynchronousTestCase):
    """`RateLimit`: how many datagrams of a source are answered."""

    def admitted(self, rate: RateLimit, moments: Iterable[float]) -> list[float]:
        """The moments at which a datagram is answered."""
        return [moment for moment in moments if rate.allows(HOST, moment)]

    def test_limit(self) -> None:
        """What is over the limit is not answered, and takes nothing of the limit."""
        rate = RateLimit(3)
        self.assertEqual(self.admitted(rate, [1.0, 1.1, 1.2, 1.3, 1.9]), [1.0, 1.1, 1.2])
        self.assertEqual(self.admitted(rate, [2.05, 2.06, 2.15, 2.25]), [2.05, 2.15, 2.25])

    def test_default(self) -> None:
        """The default is 1000 a second."""
        self.assertEqual(len(self.admitted(RateLimit(), [5.0] * 1100)), 1000)

    def test_across_seconds(self) -> None:
        """A burst at the end of a second and one at the beginning of the next count together."""
        rate = RateLimit(100)
        for second in (0, 2, 4):
            burst = [second + 0.9] * 100 + [second + 1.1] * 100
            self.assertEqual(len(self.admitted(rate, burst)), 100)

    @given(st.integers(1, 5), st.lists(st.floats(0, 0.4), min_size=1, max_size=100))
    def test_any_window(self, limit: int, pauses: list[float]) -> None:
        """No window of a second, wherever it begins, has more answers than the limit."""
        moments = list(accumulate(pauses))
        answered = self.admitted(RateLimit(limit), moments)
        for first, after in zip(answered, answered[limit:], strict=False):
            self.assertGreaterEqual(after - first, 1)
        # Nor is one refused that has fewer before it, but for those that are just a second old.
        for moment in set(moments).difference(answered):
            before = [each for each in answered if moment - 1.01 - 1e-9 <= each <= moment]
            self.assertGreaterEqual(len(before), limit)

    def test_steady(self) -> None:
        """A source that always sends too much gets its limit, but for 1 %."""
        rate = RateLimit(1000)
        answered = self.admitted(rate, (i / 3000 for i in range(30_000)))
        self.assertGreaterEqual(len(answered), 9900)

    def test_after_pause(self) -> None:
        """After a pause of any length the whole limit is there again, and no more."""
        rate = RateLimit(3)
        for moment in (1.0, 2.5, 100.0, 1e6):
            self.assertEqual(len(self.admitted(rate, [moment] * 5)), 3)

    def test_source(self) -> None:
        """An IPv4 /24 and an IPv6 /64 count as one source, another network as another."""
        rate = RateLimit(1)
        for first, same, other in (
            ("192.0.2.1", "192.0.2.255", "192.0.3.1"),
            ("2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"),
        ):
            answered = [rate.allows(host, 0) for host in (first, same, other)]
            self.assertEqual(answered, [True, False, True])

    def test_sources_are_independent(self) -> None:
        """A source over its limit does not use up the share of others, but for rare collisions."""
        rate = RateLimit(10)
        others = [f"198.51.{i}.1" for i in range(100)]
        for _ in range(1000):
            rate.allows(HOST, 0)
        self.assertGreater(sum(rate.allows(other, 0) for other in others), 90)

    def test_memory(self) -> None:
        """Any number of forged sources takes the same memory, some 128 KiB."""
        rate = RateLimit(10)
        for i in range(100_000):
            rate.allows(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 0)
        self.assertEqual(len(rate._counts), 2**14)
        self.assertEqual(rate._counts.itemsize, 8)
        self.assertEqual(rate._slice.itemsize, 2)
        self.assertLessEqual(len(rate._slice), 391 * 10)  # those that were answered
        for i in range(1000):
            rate.allows(HOST, i / 200)
        self.assertLessEqual(len(rate._slices), 202)
        for cached in (datagram._bucket, datagram._is_unicast):
            self.assertEqual(cached.cache_parameters()["maxsize"], 2**12)


class Port:
    """A UDP port that records what is sent, or raises."""

    to_group = False
    unread = 0
    lost = 0

    def __init__(self, error: Exception | None = None, number: int = 3000) -> None:
        self._number = number
        self.sent: list[tuple[bytes, Any]] = []
        self._error = error

    def getHost(self) -> IPv4Address:
        """See `IUDPTransport`."""
        return IPv4Address("UDP", "127.0.0.1", self._number)

    def write(self, datagram: bytes, addr: Any) -> None:
        """See `IUDPTransport`."""
        if self._error is not None:
            raise self._error
        self.sent.append((datagram, addr))

    def overflows(self) -> int:
        """See `DatagramPort`."""
        lost, self.lost = self.lost, 0
        return lost


class FakeBatch:
    """A `DatagramBatch` in memory; a third of its replies cannot be sent."""

    groups: Sequence[int] = ()

    def __init__(self, messages: Sequence[bytes], port: int, arrivals: Sequence[int] = ()) -> None:
        self.count = len(messages)
        self.first_bytes = b"".join(message[:1] or b"[" for message in messages)
        self.timed = bool(arrivals)
        self._messages, self._port, self._arrivals = messages, port, arrivals
        self.copied: list[int] = []
        self.replies: list[bytes] = []
        self.dropped: list[int] = []

    def source(self, slot: int) -> tuple[str, int]:
        """See `DatagramBatch`."""
        return HOST, self._port

    def message(self, slot: int) -> bytes:
        """See `DatagramBatch`."""
        self.copied.append(slot)
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
    """`TimestampDatagram`: the answers, and the log of what is not answered."""

    def setUp(self) -> None:
        """Make a clock, and record the log."""
        self.clock = Clock()
        self.events = logged(self)

    def echo(self, port: Port, style: str = "ctime", **options: Any) -> TimestampDatagram:
        """Start the protocol on this port, one second after the epoch."""
        stamp = Stamp(style, utc=True)
        echo = TimestampDatagram(stamp, self.clock, lambda: SECOND, **options)
        echo.transport = port  # type: ignore[assignment]  # as much of one as is needed
        echo.startProtocol()
        return echo

    def lines(self) -> list[str]:
        """The lines logged so far."""
        return [formatEvent(event) for event in self.events]

    def test_reply(self) -> None:
        """A datagram is one message, with any bytes, and its reply goes to its source."""
        port = Port()
        self.echo(port).datagramReceived(b"a\nb\xff\0", PEER)
        self.assertEqual(port.sent, [(STAMP + b"a\nb\xff\0", PEER)])

    def test_empty(self) -> None:
        """An empty datagram is a message, too."""
        port = Port()
        self.echo(port).datagramReceived(b"", PEER)
        self.assertEqual(port.sent, [(STAMP, PEER)])

    def test_link_local(self) -> None:
        """The reply to a link-local address is sent through the interface of its scope."""
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
        """Answer a batch of these messages, and let the log interval pass."""
        batch: Any = FakeBatch(messages, port, arrivals)
        style = "unix" if arrivals else "ctime"
        self.echo(Port(), style, rate=RateLimit(rate)).datagramsReceived(batch)
        self.clock.advance(10)
        answered: FakeBatch = batch
        return answered

    def test_batch(self) -> None:
        """The same datagrams are answered in a batch as one by one."""
        batch = self.batch([b"", b"[x", STAMP + b"x", b"\n", b"a", b"b"], rate=4)
        self.assertEqual(batch.replies, [STAMP, STAMP + b"[x", STAMP + b"\n", STAMP + b"a"])
        self.assertEqual(batch.dropped, [2, 5])
        self.assertEqual(
            self.lines(),
            ["datagrams not answered: 1 like a reply, 1 over the rate limit, 1 impossible to send"],
        )
        self.assertEqual(self.batch([b"x"], 7).replies, [])

    def test_kernel_times(self) -> None:
        """Stamps are the kernel's arrival times; the current time where it gives none."""
        batch = self.batch([b"a", b"b"], arrivals=[5 * SECOND + 1, 0])
        self.assertEqual(batch.replies, [b"[5.000000001] a", b"[1.000000000] b"])

    def test_copies(self) -> None:
        """Only messages that may be replies, because they begin with a bracket, are copied."""
        self.assertEqual(self.batch([b"a", b"[x", b"Z", b"~"]).copied, [1])

    def test_not_noisy(self) -> None:
        """Twisted does not log its own line about the port, which would be the second."""
        self.assertFalse(TimestampDatagram.noisy)

    def test_prefix_of_the_moment(self) -> None:
        """Without arrival times all replies of a batch have the stamp of the current time."""
        self.assertEqual(self.batch([b"a", b"b"]).replies, [STAMP + b"a", STAMP + b"b"])

    def test_cannot_send(self) -> None:
        """Replies that cannot be sent are counted; no traceback is logged."""
        for error in (MessageLengthError("too long"), OSError(22, "Invalid argument")):
            self.echo(Port(error)).datagramReceived(b"a", PEER)
            self.clock.advance(10)
        self.assertEqual(self.lines(), ["datagrams not answered: 1 impossible to send"] * 2)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_not_answered(self) -> None:
        """Unanswered datagrams are counted by reason, and logged after ten seconds."""
        port = Port()
        echo = self.echo(port, rate=RateLimit(2))
        echo.datagramReceived(STAMP + b"x", PEER)
        echo.datagramReceived(b"x", (HOST, 7))
        echo.datagramReceived(b"x", (HOST, 3000))  # the port's own number
        for _ in range(5):
            echo.datagramReceived(b"x", PEER)
        self.assertEqual(len(port.sent), 2)
        self.clock.advance(9.9)
        self.assertEqual(self.lines(), [])
        self.clock.advance(0.1)
        self.assertEqual(
            self.lines(),
            [
                "datagrams not answered: 3 over the rate limit, 1 like a reply,"
                " 1 from a port under 1024, 1 from one of this service's own ports"
            ],
        )
        self.clock.advance(100)
        self.assertEqual(len(self.lines()), 1)

    def test_counts_start_anew(self) -> None:
        """A line counts only what came after the line before it."""
        echo = self.echo(Port())
        for host, port in ((HOST, 7), (HOST, 7), (HOST, 3000)):
            echo.datagramReceived(b"x", (host, port))
            self.clock.advance(10)
        self.assertEqual(
            self.lines(),
            [
                "datagrams not answered: 1 from a port under 1024",
                "datagrams not answered: 1 from a port under 1024",
                "datagrams not answered: 1 from one of this service's own ports",
            ],
        )

    def test_counts(self) -> None:
        """The counts themselves go on from the start of the port to its end, and beyond."""
        port = Port()
        echo = self.echo(port)
        for _ in range(3):
            echo.datagramReceived(b"x", (HOST, 7))
            self.clock.advance(10)
        batch: Any = FakeBatch([b"a", STAMP, b"b"], 5000)
        echo.datagramsReceived(batch)
        port.lost, port.unread = 5, 6
        echo.stopProtocol()
        self.assertEqual(echo.received, 6)
        counts = {LABELS[why]: count for why, count in echo.unanswered.items()}
        expected = {"privileged_port": 3, "reply": 1, "overflow": 5, "left": 6}
        self.assertEqual(counts, expected)
        self.assertEqual(sum(echo.unanswered[why] for why in NOT_RECEIVED), 11)

    def test_labels(self) -> None:
        """Each reason has a label of its own."""
        self.assertEqual(len(set(LABELS.values())), len(LABELS))

    def test_default_rate(self) -> None:
        """By default 1000 datagrams a second are answered per source."""
        port = Port()
        echo = self.echo(port)
        for _ in range(1001):
            echo.datagramReceived(b"x", PEER)
        self.assertEqual(len(port.sent), 1000)

    def test_common_rate(self) -> None:
        """The ports of one service have one limit in common, batched or not."""
        rate = RateLimit(4)
        port = Port()
        first, second = self.echo(port, rate=rate), self.echo(Port(number=4000), rate=rate)
        batch: Any = FakeBatch([b"a", b"b", b"c"], 5000)
        second.datagramsReceived(batch)
        for _ in range(3):
            first.datagramReceived(b"x", PEER)
        self.assertEqual((len(batch.replies), len(port.sent)), (3, 1))
        self.clock.advance(1.01)
        first.datagramReceived(b"x", PEER)
        self.assertEqual(len(port.sent), 2)

    def test_rate_and_wall_clock(self) -> None:
        """The limit does not follow the wall clock, whichever way it is set."""
        times = iter([SECOND, 7200 * SECOND, SECOND, SECOND])
        port = Port()
        echo = TimestampDatagram(Stamp(), self.clock, lambda: next(times), RateLimit(1))
        echo.transport = port  # type: ignore[assignment]  # as much of one as is needed
        echo.startProtocol()
        for _ in range(2):
            echo.datagramReceived(b"x", PEER)
        batch: Any = FakeBatch([b"x"], 5000)
        echo.datagramsReceived(batch)
        self.assertEqual((len(port.sent), batch.replies), (1, []))
        self.clock.advance(1.01)
        echo.datagramsReceived(batch)
        self.assertEqual(len(batch.replies), 1)

    def test_group(self) -> None:
        """What was sent to a broadcast or multicast address is counted, and not answered."""
        port = Port()
        echo = self.echo(port)
        port.to_group = True
        echo.datagramReceived(b"x", PEER)
        port.to_group = False
        echo.datagramReceived(b"y", PEER)
        self.assertEqual(port.sent, [(STAMP + b"y", PEER)])
        batch: Any = FakeBatch([b"a", b"b", b"c", b"d"], 5000)
        batch.groups = [1, 3]
        echo.datagramsReceived(batch)
        self.assertEqual((batch.replies, batch.dropped), ([STAMP + b"a", STAMP + b"c"], [1, 3]))
        self.clock.advance(10)
        self.assertEqual(
            self.lines(), ["datagrams not answered: 3 to a broadcast or multicast address"]
        )

    def test_failure(self) -> None:
        """A datagram whose answer raises is logged, and the others of its batch are answered."""
        echo = self.echo(Port())
        batch: Any = FakeBatch([b"a", b"b", b"c"], 5000)
        sources = iter([PEER, ("no address", 5000), PEER])
        self.patch(batch, "source", lambda slot: next(sources))
        echo.datagramsReceived(batch)
        self.assertEqual((batch.replies, batch.dropped), ([STAMP + b"a", STAMP + b"c"], [1]))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_lost(self) -> None:
        """What the kernel dropped, and what a stop left unread, is counted as well."""
        port = Port()
        echo = self.echo(port)
        port.lost = 3
        self.clock.advance(10)
        port.lost, port.unread = 2, 5
        echo.stopProtocol()
        self.assertEqual(
            self.lines(),
            [
                "datagrams not answered: 3 lost in a full receive buffer",
                "datagrams not answered: 5 left unread at the stop,"
                " 2 lost in a full receive buffer",
            ],
        )

    def test_own_ports(self) -> None:
        """The ports of one service know each other, and do not answer each other."""
        own_ports: set[int] = set()
        port = Port()
        echo = self.echo(port, own_ports=own_ports)
        self.echo(Port(number=4000), own_ports=own_ports)
        self.assertEqual(own_ports, {3000, 4000})
        echo.datagramReceived(b"x", (HOST, 4000))
        self.assertEqual(port.sent, [])

    def test_two_services(self) -> None:
        """A forged datagram makes two services exchange one reply, and no more."""
        first, second = Port(), Port()
        echoes = [self.echo(first, "iso"), self.echo(second, "%H:%M")]
        echoes[0].datagramReceived(b"forged", PEER)
        echoes[1].datagramReceived(first.sent[0][0], PEER)
        self.assertEqual((len(first.sent), len(second.sent)), (1, 0))

    def test_log_at_close(self) -> None:
        """When the port is closed, the counts so far are logged at once."""
        echo = self.echo(Port())
        echo.stopProtocol()
        echo = self.echo(Port())
        echo.datagramReceived(STAMP, PEER)
        echo.stopProtocol()
        self.assertEqual(self.lines(), ["datagrams not answered: 1 like a reply"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
