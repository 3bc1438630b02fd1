"""Tests for `timestamp_echo.ping.scheduler`, with a fake clock and a fake path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import IterationClock
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import transport
from timestamp_echo.ping.probe import Probes
from timestamp_echo.ping.scheduler import (
    MAX_UNMATCHED,
    RECONNECT_DELAY,
    Pinger,
    Plan,
    ProbeObserver,
)
from timestamp_echo.ping.stats import Phases, Probe, Stats
from timestamp_echo.stamps import SECOND, Stamp

MILLI = SECOND // 1000
NOW = 1_795_356_480  # the wall clock when the monotonic clock is 0, in seconds


class FakePath:
    """A path that records what was sent, and when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent: list[tuple[int, bytes]] = []
        self.arrival = 0
        self.refused = self.full = self.closed = False
        self.released: list[bytes] = []
        self.phases: Phases | None = None
        self.fails: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        """See `Path`."""
        self.sent.append((milliseconds(self._clock), data))
        if self.fails is not None:
            self.fails()

    def release(self, data: bytes) -> Phases | None:
        """See `Path`."""
        self.released.append(data)
        return self.phases

    def close(self) -> None:
        """See `Path`."""
        self.closed = True


class FakeObserver:
    """An observer that records its notifications."""

    def __init__(self) -> None:
        self.rtts: list[int] = []
        self.losses: list[str] = []
        self.events: list[str] = []

    def answered(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver`."""
        self.rtts.append(probe.rtt // MILLI)

    def lost(self, probe: Probe, stats: Stats) -> None:
        """See `ProbeObserver`."""
        self.losses.append(f"{probe.number}: {probe.lost}")

    def event(self, message: str) -> None:
        """See `ProbeObserver`."""
        self.events.append(message)


def milliseconds(clock: Clock) -> int:
    """The time of a clock."""
    return round(clock.seconds() * 1000)


class PingerTests(SynchronousTestCase):
    """`Pinger`."""

    def setUp(self) -> None:
        """A host whose two clocks are driven by one fake clock."""
        self.clock = IterationClock()
        self.set_forward = 0
        self.slept: list[float] = []
        self.clocks = Clocks(self.wall, self.monotonic, self.sleep)
        self.observer = FakeObserver()
        self.paths: list[FakePath] = []
        self.connecting: list[Deferred[transport.Path]] = []
        self.probes = Probes("0123456789ab", 64)

    def monotonic(self) -> int:
        """Nanoseconds of the monotonic clock."""
        return round(self.clock.seconds() * SECOND)

    def wall(self) -> int:
        """Nanoseconds since the epoch."""
        return self.monotonic() + NOW * SECOND + self.set_forward

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.slept.append(seconds)
        self.clock.rightNow += seconds

    def connect(self, listener: transport.PathListener) -> Deferred[transport.Path]:
        """See `Pinger`."""
        self.connecting.append(Deferred())
        return self.connecting[-1]

    def open_path(self) -> FakePath:
        """Open the path that was requested last."""
        self.paths.append(FakePath(self.clock))
        self.connecting[-1].callback(self.paths[-1])
        return self.paths[-1]

    def pinger(self, plan: Plan) -> Pinger:
        """A pinger that has started to connect."""
        pinger = Pinger(
            *(plan, Probes("0123456789ab", 64), self.connect),
            *(self.clock, self.clocks, [self.observer]),
        )
        self.done = pinger.start()
        return pinger

    def connected_pinger(self, plan: Plan) -> tuple[Pinger, FakePath]:
        """A pinger that is connected."""
        pinger = self.pinger(plan)
        return pinger, self.open_path()

    def advance(self, milliseconds: int) -> None:
        """Advance the clock, in steps of a millisecond."""
        start = round(self.clock.seconds() * 1000)
        for step in range(start + 1, start + milliseconds + 1):
            now = step / 1000 + 1e-6  # beyond rounding errors of what is due then
            self.clock.advance(max(0.0, now - self.clock.seconds()))

    def reply(self, pinger: Pinger, *numbers: int, stamp: str = "") -> None:
        """Deliver the replies to these probes in one read."""
        prefix = f"[{stamp}] ".encode() if stamp else b""
        pinger.replied(b"".join(prefix + self.probes.message(number) for number in numbers))

    def times(self, path: FakePath) -> list[int]:
        """When the probes were sent, in milliseconds."""
        return [when for when, _ in path.sent]

    def test_interfaces(self) -> None:
        """The fakes provide the protocols they stand for, and a pinger is a `PathListener`."""
        path: transport.Path = FakePath(self.clock)
        observer: ProbeObserver = self.observer
        pinger = self.pinger(Plan())
        listener: transport.PathListener = pinger
        listener.answered()
        self.assertEqual((path.refused, observer, listener), (False, self.observer, pinger))

    def test_schedule(self) -> None:
        """One probe is sent per second; the run ends after the last reply."""
        pinger, path = self.connected_pinger(Plan(count=3))
        for number in (1, 2, 3):
            self.advance(10)
            self.reply(pinger, number)
            self.advance(990)
        self.assertEqual(self.times(path), [0, 1000, 2000])
        self.assertEqual(
            [data for _, data in path.sent], [self.probes.message(n) for n in (1, 2, 3)]
        )
        self.assertIsNone(self.successResultOf(self.done))
        self.assertTrue(path.closed)
        self.assertEqual(self.observer.rtts, [10, 10, 10])
        stats = pinger.stats
        self.assertEqual((stats.sent, stats.received, stats.lost), (3, 3, 0))
        self.assertEqual((stats.sent_late, round(stats.duration, 3)), (0, 2.01))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_exact(self) -> None:
        """A timer is too coarse: the rest of the time until a probe is due is slept."""
        pinger, path = self.connected_pinger(Plan(count=2))
        self.reply(pinger, 1)
        self.clock.advance(0.9985)
        self.assertEqual([round(seconds, 5) for seconds in self.slept], [0.0015])
        self.assertEqual(self.times(path), [0, 1000])

    def test_late(self) -> None:
        """A probe delayed by a slow one also has a round trip from when it was due."""
        pinger, path = self.connected_pinger(Plan(count=4, timeout=9))
        self.advance(2500)
        self.reply(pinger, 1)
        self.advance(10)
        self.reply(pinger, 2)
        self.advance(10)
        self.reply(pinger, 3)
        self.advance(480)
        self.reply(pinger, 4)
        self.assertEqual(self.times(path), [0, 2500, 2510, 3000])
        self.assertEqual(self.observer.rtts, [2500, 10, 10, 0])
        self.assertEqual(pinger.stats.sent_late, 2)
        self.assertEqual(pinger.stats.rtt_from_due.mean // MILLI, (2500 + 1510 + 520) // 4)
        self.successResultOf(self.done)

    def test_in_flight(self) -> None:
        """At most `in_flight` probes are in flight; another one waits."""
        pinger, path = self.connected_pinger(Plan(interval=100 * MILLI, in_flight=2))
        self.advance(250)
        self.assertEqual(self.times(path), [0, 100])
        self.assertEqual(pinger.stats.in_flight, 2)
        self.reply(pinger, 2)
        self.assertEqual(self.times(path), [0, 100, 250])
        pinger.stop()

    def test_flood(self) -> None:
        """A flood always has `in_flight` probes in flight, and none is ever late."""
        pinger, path = self.connected_pinger(Plan(interval=0, in_flight=3, count=6))
        self.assertEqual(len(path.sent), 3)
        self.advance(50)
        self.reply(pinger, 1, 3)
        self.assertEqual(self.times(path), [0, 0, 0, 50, 50])
        self.reply(pinger, 2, 4, 5)
        self.reply(pinger, 6)
        self.assertEqual((pinger.stats.received, pinger.stats.sent_late), (6, 0))
        self.successResultOf(self.done)

    def test_timeout(self) -> None:
        """A probe is lost after the timeout, even if a reply arrives later."""
        pinger, path = self.connected_pinger(Plan(timeout=0.5, count=2))
        self.advance(700)
        self.reply(pinger, 1)
        self.advance(801)
        self.successResultOf(self.done)
        self.assertEqual(self.times(path), [0, 1000])
        self.assertEqual(
            self.observer.losses, ["1: no reply within 0.5 s", "2: no reply within 0.5 s"]
        )
        self.assertEqual(self.observer.events, ["seq=1: late reply"])
        stats = pinger.stats
        self.assertEqual((stats.lost, stats.received, stats.late_replies), (2, 0, 1))

    def test_datagrams(self) -> None:
        """Reordered, duplicate and altered replies; foreign ones, and one to a probe never sent."""
        pinger, _ = self.connected_pinger(Plan(interval=0, in_flight=4))
        self.reply(pinger, 2)
        self.reply(pinger, 1)
        self.reply(pinger, 3, 3)
        pinger.replied(self.probes.message(4).replace(b".\n", b",\n"))
        pinger.replied(Probes("ba9876543210", 64).message(5))
        self.reply(pinger, 99)
        stats = pinger.stats
        self.assertEqual(
            (
                stats.received,
                stats.reordered,
                stats.duplicates,
                stats.altered,
                stats.late_replies,
            ),
            (4, 1, 1, 1, 0),
        )
        duplicate, foreign = self.observer.events
        self.assertEqual(duplicate, "seq=3: duplicate reply")
        self.assertRegex(foreign, "the server sent 'ba9876543210 5 [.]+', which is not a reply")
        pinger.stop()

    def test_refused_in_words(self) -> None:
        """A line instead of replies is reported when the connection ends, and once if repeated."""
        pinger, _ = self.connected_pinger(Plan(timeout=9))
        lost = "connection lost: closed"
        for read, events in (
            ([b"tsecho: fu", b"ll\r\n", b"more\n" * 999], ["tsecho: full"]),
            ([b"tsecho: full\r\n"], []),
            ([b"other\x1b\n"], ["other\\x1b"]),
            ([b"x\n", self.probes.message(1)], []),
            ([b"[x] ", self.probes.message(1)[:20]], []),
            ([], []),
        ):
            for data in read:
                pinger.replied(data)
                self.assertLessEqual(len(pinger._unmatched), MAX_UNMATCHED)
            pinger.over("closed")
            expected = [f"the server sent '{line}', which is not a reply" for line in events]
            found = [event for event in self.observer.events if "seq" not in event]
            self.assertEqual(found, [*expected, lost])
            self.advance(round(RECONNECT_DELAY * 1000))
            self.open_path()
            self.observer.events.clear()
        pinger.stop()

    def test_line_besides_replies(self) -> None:
        """A line that comes besides replies, such as a proxy's header, is reported once."""
        pinger, _ = self.connected_pinger(Plan(in_flight=3))
        pinger.replied(b"[x] PROXY TCP4 \r\n")
        self.assertEqual(self.observer.events, [])
        for number in (1, 2, 3):
            self.reply(pinger, number)
            pinger.replied(b"more %d\n" % number)
            self.advance(1000)
        expected = ["the server sent '[x] PROXY TCP4 ', which is not a reply"]
        self.assertEqual(self.observer.events, expected)
        pinger.stop()

    def test_no_reply_in_words(self) -> None:
        """A server may also stay connected, or have no connection: a timeout reports its line."""
        pinger, _ = self.connected_pinger(Plan(timeout=1))
        pinger.replied(b"500 unknown command\r\n")
        self.advance(1100)
        expected = ["the server sent '500 unknown command', which is not a reply"]
        self.assertEqual(self.observer.events, expected)
        self.assertEqual(self.observer.losses, ["1: no reply within 1 s"])
        pinger.stop()

    def test_server_of_tls(self) -> None:
        """A server of TLS sends an alert, which has no newline."""
        pinger, _ = self.connected_pinger(Plan())
        pinger.replied(b"\x15\x03\x01\0\x02\x02\x46")
        pinger.over("closed")
        self.assertIn("the server speaks TLS on this port; use tls:host:port", self.observer.events)
        pinger.stop()

    def test_phases(self) -> None:
        """The path says where the time went until the probe was written; the rest is the reply's.

        The stamp was made after that, so the offset is known better than by the whole round trip.
        """
        pinger, path = self.connected_pinger(Plan(count=1))
        path.phases = Phases({"connect": 20 * MILLI, "tls": 30 * MILLI}, "reply")
        self.advance(60)
        stamp = f"{NOW}.055000000"
        self.reply(pinger, 1, stamp=stamp)
        self.assertEqual(path.released, [self.probes.message(1)])
        figures = {name: times.mean // MILLI for name, times in pinger.stats.phases.items()}
        self.assertEqual(figures, {"connect": 20, "tls": 30, "reply": 10})
        self.assertEqual(self.observer.rtts, [60])
        offset = pinger.stats.offset
        assert offset
        self.assertEqual(round(offset.bound / MILLI), 5)

    def test_failed(self) -> None:
        """A probe whose connection fails is lost at once, and so is one that takes too long."""
        pinger, path = self.connected_pinger(Plan(count=3, timeout=5, in_flight=2))
        path.phases = Phases({}, "connect")
        self.advance(1000)
        pinger.replied(b"tsecho: full\r\n")
        pinger.failed(self.probes.message(2), "Connection refused")
        self.assertEqual(self.observer.losses, ["2: Connection refused"])
        expected = ["the server sent 'tsecho: full', which is not a reply"]
        self.assertEqual(self.observer.events, expected)
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        self.advance(4500)
        self.assertEqual(self.observer.losses, ["2: Connection refused", "1: no reply within 5 s"])
        self.assertEqual(path.released, [self.probes.message(2), self.probes.message(1)])
        pinger.failed(self.probes.message(3), "closed")
        self.assertIsNone(self.successResultOf(self.done))
        self.assertEqual(pinger.stats.phases, {})

    def test_lost_connection(self) -> None:
        """Probes in flight are lost, and so are those due until the connection is back."""
        pinger, first = self.connected_pinger(Plan(timeout=5, interval=200 * MILLI, in_flight=2))
        self.advance(300)
        pinger.replied(self.probes.message(1)[:20])  # a partial reply is discarded
        pinger.over("the server closed the connection")
        self.assertEqual(
            self.observer.losses,
            ["1: connection lost", "2: connection lost"],
        )
        self.advance(250)
        self.assertEqual(self.observer.losses[2:], ["3: no connection"])
        self.assertEqual(len(self.connecting), 1)
        self.advance(round(RECONNECT_DELAY * 1000) - 250)
        self.connecting[-1].errback(Failure(ConnectError()))
        self.advance(round(RECONNECT_DELAY * 1000))
        second = self.open_path()
        self.reply(pinger, 1)  # it stays lost
        self.advance(100)
        self.assertEqual(self.times(second), [2400])
        self.reply(pinger, 13)
        stats = pinger.stats
        self.assertEqual((stats.lost, stats.received, stats.reconnects), (12, 1, 1))
        self.assertIn("reconnected", self.observer.events)
        self.assertEqual(len(first.sent), 2)
        pinger.stop()

    def test_flood_without_connection(self) -> None:
        """A flood waits for the connection."""
        pinger, _ = self.connected_pinger(Plan(interval=0))
        pinger.over("lost")
        self.advance(900)
        self.assertEqual(pinger.stats.sent, 1)
        self.advance(100)
        self.assertEqual(len(self.open_path().sent), 1)
        pinger.stop()

    def test_quick_schedule(self) -> None:
        """A schedule finer than the timers does not starve the reactor."""
        turns = self.clock
        pinger, path = self.connected_pinger(Plan(interval=MILLI, in_flight=3))
        for _ in range(5):
            turns.advance(0)  # no sleep, because a reply may arrive
        self.assertEqual(self.times(path), [0])
        self.advance(2)
        self.assertEqual((self.times(path), self.slept), ([0, 1, 2], []))
        self.reply(pinger, 1, 2, 3)
        pinger.over("lost")
        sent = pinger.stats.sent
        for _ in range(10):
            turns.advance(0)
        self.assertEqual(pinger.stats.sent, sent + 10)
        turns.advance(RECONNECT_DELAY)
        self.assertEqual(len(self.connecting), 2)
        pinger.stop()

    def test_arrived_at_timeout(self) -> None:
        """A reply that has arrived by the timeout is read before the probe counts as lost."""
        turns = self.clock
        pinger, _ = self.connected_pinger(Plan(count=1))
        turns.advance(1.0)
        self.reply(pinger, 1)
        turns.advance(0)
        self.assertEqual((pinger.stats.received, pinger.stats.lost), (1, 0))

    def test_stopped_by_observer(self) -> None:
        """An observer may stop the run, with more replies in the same read, or in flight."""
        pinger, _ = self.connected_pinger(Plan(interval=0, in_flight=3))
        self.patch(self.observer, "answered", lambda probe, stats: pinger.stop())
        self.reply(pinger, 1, 2)
        self.assertEqual((pinger.stats.received, self.observer.events), (1, []))
        for name in ("event", "lost"):
            pinger, _ = self.connected_pinger(Plan(interval=0, in_flight=3))
            self.patch(self.observer, name, lambda *_, pinger=pinger: pinger.stop())
            pinger.over("lost")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_by_last_event(self) -> None:
        """An observer may also stop the run while it is ending."""
        pinger, _ = self.connected_pinger(Plan())
        self.patch(self.observer, "event", lambda message: pinger.stop())
        self.set_forward = SECOND
        pinger.stop()
        self.successResultOf(self.done)

    def test_full(self) -> None:
        """While the send buffer is full, probes that are due are lost, and a flood waits."""
        pinger, path = self.connected_pinger(Plan(interval=100 * MILLI, in_flight=9))
        path.full = True
        self.advance(101)
        self.assertEqual(self.observer.losses, ["2: send buffer full"])
        path.full = False
        self.advance(100)
        self.assertEqual(len(path.sent), 2)
        pinger.stop()
        pinger, path = self.connected_pinger(Plan(interval=0, in_flight=9))
        sent = pinger.stats.sent
        path.full = True
        self.reply(pinger, 1)
        self.assertEqual(pinger.stats.sent, sent)
        path.full = False
        pinger.writable()
        self.assertEqual(pinger.stats.sent, sent + 1)
        pinger.stop()

    def test_lost_while_writing(self) -> None:
        """The path may be closed from within `write`: a datagram could not be sent."""
        pinger = self.pinger(Plan())
        path = FakePath(self.clock)
        path.fails = lambda: pinger.over("Network is unreachable")
        self.connecting[-1].callback(path)
        self.assertEqual(self.observer.events, ["connection lost: Network is unreachable"])
        self.assertEqual(self.observer.losses, ["1: connection lost"])
        pinger.over("once more")
        self.assertEqual(len(self.observer.events), 1)
        pinger.stop()

    def test_refused(self) -> None:
        """A refusal before any reply ends the run."""
        pinger, path = self.connected_pinger(Plan())
        path.refused = True
        pinger.over("connection refused")
        self.failureResultOf(self.done, ConnectionRefusedError)

    def test_refused_later(self) -> None:
        """A refusal after a reply does not: the server may come back."""
        pinger, path = self.connected_pinger(Plan())
        self.reply(pinger, 1)
        path.refused = True
        pinger.over("connection refused")
        self.assertNoResult(self.done)
        pinger.stop()

    def test_no_connection(self) -> None:
        """If the first connection fails, the run fails with its reason."""
        self.pinger(Plan())
        self.connecting[-1].errback(Failure(ConnectError()))
        self.failureResultOf(self.done, ConnectError)

    def test_stopped(self) -> None:
        """Probes in flight at the stop are neither lost nor answered."""
        pinger, path = self.connected_pinger(Plan())
        self.advance(300)
        pinger.stop()
        pinger.stop()
        pinger.over("closed")
        self.reply(pinger, 1)
        self.successResultOf(self.done)
        self.assertTrue(path.closed)
        self.assertEqual(round(pinger.current_stats().duration, 3), 0.3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_while_connecting(self) -> None:
        """After a stop, a path that opens is closed, and a failure is ignored."""
        pinger = self.pinger(Plan())
        pinger.stop()
        self.assertEqual(pinger.current_stats().duration, 0)
        self.assertTrue(self.open_path().closed)
        self.pinger(Plan()).stop()
        self.connecting[-1].errback(Failure(ConnectError()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_while_connecting_again(self) -> None:
        """The same while reconnecting."""
        for succeeds in (True, False):
            pinger, _ = self.connected_pinger(Plan())
            pinger.over("lost")
            self.advance(1000)
            pinger.stop()
            if succeeds:
                self.assertTrue(self.open_path().closed)
            else:
                self.connecting[-1].errback(Failure(ConnectError()))
            self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNotIn("reconnected", self.observer.events)

    def test_own_delay(self) -> None:
        """The time between arrival in the kernel and reading is not part of the round trip."""
        pinger, path = self.connected_pinger(Plan())
        self.advance(30)
        path.arrival = self.wall() - 20 * MILLI
        self.reply(pinger, 1)
        self.assertEqual(self.observer.rtts, [10])
        self.assertEqual(pinger.stats.own_delay.max, 20 * MILLI)
        pinger.stop()

    def test_set_while_it_waited(self) -> None:
        """An arrival time before the probe was sent is ignored: the clock was set."""
        pinger, path = self.connected_pinger(Plan())
        self.advance(30)
        path.arrival = self.wall() - 31 * MILLI
        self.reply(pinger, 1)
        self.assertEqual(self.observer.rtts, [30])
        self.assertEqual(pinger.stats.own_delay.max, 0)
        pinger.stop()

    def run_against(self, plan: Plan, style: str, ahead: int) -> Stats:
        """Answer all probes of a plan after 2 ms, by a clock that is `ahead` nanoseconds ahead."""
        stamp = Stamp(style, utc=True)
        pinger, path = self.connected_pinger(replace(plan, timeout=9.0))
        for number in range(1, plan.count + 1):
            while len(path.sent) < number:
                self.advance(1)
            self.advance(1)
            text = stamp.prefix(self.wall() + ahead)[1:-2].decode()
            self.advance(1)
            self.reply(pinger, number, stamp=text)
        self.assertEqual(plan.count, pinger.stats.received)
        self.sent_times = self.times(path)
        return pinger.stats

    def test_clock_of_whole_seconds(self) -> None:
        """Probes are aimed at the change of the server's second, within their schedule."""
        ahead = 2345 * MILLI
        stats = self.run_against(Plan(count=14), "ctime", ahead)
        assert stats.offset is not None
        self.assertLess(stats.offset.bound, 3 * MILLI)
        self.assertLess(abs(stats.offset.nanoseconds - ahead), stats.offset.bound)
        self.assertTrue(stats.zoneless)
        for number, moment in enumerate(self.sent_times):
            self.assertLess(moment - 1000 * number, 1000)
            self.assertGreaterEqual(moment, 1000 * number)

    def test_taking_turns(self) -> None:
        """Once the bound is narrow, some probes are sent well before the change, and well after."""
        self.run_against(Plan(count=20), "ctime", 0)
        phases = [(moment + 500) % 1000 for moment in self.sent_times[13:]]
        self.assertGreater(max(phases) - min(phases), 5)

    def test_no_room_to_aim(self) -> None:
        """A probe is not aimed if the next one would be due before; one or two a second are."""
        stats = self.run_against(Plan(count=200, interval=100 * MILLI), "ctime", 0)
        delays = [moment - 100 * number for number, moment in enumerate(self.sent_times)]
        self.assertLess(max(delays), 100)
        self.assertGreater(delays.count(0), 150)
        assert stats.offset is not None
        self.assertLess(stats.offset.bound, 3 * MILLI)

    def test_never_aimed(self) -> None:
        """In an exact schedule no probe is moved, and the bound is that of one probe."""
        stats = self.run_against(Plan(count=14, exact=True), "ctime", 2345 * MILLI)
        self.assertEqual(self.sent_times, [1000 * number for number in range(14)])
        assert stats.offset is not None
        self.assertGreater(stats.offset.bound, 500 * MILLI)

    def test_clock_of_nanoseconds(self) -> None:
        """With fine stamps the schedule is exact, and the bound is half the round trip."""
        stats = self.run_against(Plan(count=3), "unix", -7 * SECOND)
        assert stats.offset is not None
        self.assertEqual(self.sent_times, [0, 1000, 2000])
        self.assertLess(abs(stats.offset.nanoseconds + 7 * SECOND), stats.offset.bound)
        self.assertLess(stats.offset.bound, 2 * MILLI)
        self.assertFalse(stats.zoneless)

    def test_no_stamp(self) -> None:
        """A plain echo gives no offset."""
        pinger, _ = self.connected_pinger(Plan())
        self.reply(pinger, 1)
        self.assertEqual((pinger.stats.unstamped, pinger.stats.offset), (1, None))
        pinger.stop()

    def test_own_clock_set(self) -> None:
        """A step of this host's clock changes the offset, and is no step of the server's."""
        pinger, _ = self.connected_pinger(Plan())
        for number in (1, 2):
            stamp = Stamp("unix").prefix(self.monotonic() + NOW * SECOND)[1:-2].decode()
            self.reply(pinger, number, stamp=stamp)
            self.set_forward = 3 * SECOND
            self.advance(1000)
        self.assertEqual(self.observer.events, ["this host's clock was set by +3.000000 s"])
        offset = pinger.stats.offset
        assert offset is not None
        self.assertEqual(round(offset.nanoseconds / SECOND), -3)
        self.assertEqual(list(pinger.stats.clock.steps), [])
        pinger.stop()

    def test_own_clock_set_before_reading(self) -> None:
        """If this host's clock was set between arrival and reading, no delay is subtracted."""
        pinger, path = self.connected_pinger(Plan())
        self.advance(100)
        path.arrival = self.wall()
        self.set_forward = 50 * MILLI
        self.reply(pinger, 1)
        self.assertEqual(self.observer.rtts, [100])
        pinger.stop()

    def test_server_clock_set(self) -> None:
        """A step of the server's clock is reported with the reply that reveals it, each time."""
        pinger, _ = self.connected_pinger(Plan())
        for number, ahead in ((1, 0), (2, 0), (3, 5 * SECOND), (4, 5 * SECOND), (5, 0)):
            stamp = Stamp("unix").prefix(self.wall() + ahead)[1:-2].decode()
            self.reply(pinger, number, stamp=stamp)
            self.advance(1000)
        first, second = self.observer.events
        self.assertIn("seq=5: server's clock was set by -", second)
        self.assertRegex(first, r"^seq=3: server's clock was set by \+(5.0000|4.9999)\d\d ± 0")
        pinger.stop()
