"""Tests for `timestamp_echo.ping.scheduler`: on a clock, and a path in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import Turns
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping import transport
from timestamp_echo.ping.probe import Probes
from timestamp_echo.ping.scheduler import PAUSE, Pinger, Plan, Witness
from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.stamps import SECOND, Stamp

MILLI = SECOND // 1000
NOW = 1_795_356_480  # the wall's clock when the steady one says 0, in seconds


class FakePath:
    """A path that remembers what was sent, and when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent: list[tuple[int, bytes]] = []
        self.arrival = 0
        self.refused = self.full = self.closed = False
        self.fails: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        """See `Path`."""
        self.sent.append((milliseconds(self._clock), data))
        if self.fails is not None:
            self.fails()

    def close(self) -> None:
        """See `Path`."""
        self.closed = True


class FakeWitness:
    """A witness that remembers what it was told."""

    def __init__(self) -> None:
        self.trips: list[int] = []
        self.losses: list[str] = []
        self.words: list[str] = []

    def answered(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness`."""
        self.trips.append(probe.round_trip // MILLI)

    def lost(self, probe: Probe, outcome: Outcome) -> None:
        """See `Witness`."""
        self.losses.append(f"{probe.number}: {probe.lost}")

    def happened(self, words: str) -> None:
        """See `Witness`."""
        self.words.append(words)


def milliseconds(clock: Clock) -> int:
    """What the clock says."""
    return round(clock.seconds() * 1000)


class PingerTests(SynchronousTestCase):
    """`Pinger`."""

    def setUp(self) -> None:
        """A host whose two clocks are one, and which has slept for nobody yet."""
        self.clock = Turns()
        self.set_forward = 0
        self.slept: list[float] = []
        self.clocks = Clocks(self.wall, self.steady, self.sleep)
        self.witness = FakeWitness()
        self.paths: list[FakePath] = []
        self.connecting: list[Deferred[transport.Path]] = []
        self.probes = Probes("0123456789ab", 64)

    def steady(self) -> int:
        """Nanoseconds of the clock that is never set."""
        return round(self.clock.seconds() * SECOND)

    def wall(self) -> int:
        """Nanoseconds since the epoch."""
        return self.steady() + NOW * SECOND + self.set_forward

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.clock.rightNow += seconds

    def connect(self, traveller: transport.Traveller) -> Deferred[transport.Path]:
        """See `Pinger`."""
        self.connecting.append(Deferred())
        return self.connecting[-1]

    def connected(self) -> FakePath:
        """The path that was asked for last is open."""
        self.paths.append(FakePath(self.clock))
        self.connecting[-1].callback(self.paths[-1])
        return self.paths[-1]

    def pinger(self, plan: Plan) -> Pinger:
        """A pinger that has begun to connect."""
        pinger = Pinger(
            *(plan, Probes("0123456789ab", 64), self.connect),
            *(self.clock, self.clocks, [self.witness]),
        )
        self.ended = pinger.start()
        return pinger

    def begun(self, plan: Plan) -> tuple[Pinger, FakePath]:
        """A pinger that is connected."""
        pinger = self.pinger(plan)
        return pinger, self.connected()

    def pass_by(self, milliseconds: int) -> None:
        """Let time pass, in steps of a millisecond."""
        start = round(self.clock.seconds() * 1000)
        for step in range(start + 1, start + milliseconds + 1):
            now = step / 1000 + 1e-6  # past all that is due then, however it was rounded
            self.clock.advance(max(0.0, now - self.clock.seconds()))

    def reply(self, pinger: Pinger, *numbers: int, stamp: str = "") -> None:
        """The replies to these probes come, in one read."""
        prefix = f"[{stamp}] ".encode() if stamp else b""
        pinger.replied(b"".join(prefix + self.probes.text(number) for number in numbers))

    def sent(self, way: FakePath) -> list[int]:
        """When the probes left, in milliseconds."""
        return [when for when, _ in way.sent]

    def test_interfaces(self) -> None:
        """What stands in for others here is what it says, and a pinger is a traveller."""
        way: transport.Path = FakePath(self.clock)
        witness: Witness = self.witness
        pinger = self.pinger(Plan())
        traveller: transport.Traveller = pinger
        traveller.answered()
        self.assertEqual((way.refused, witness, traveller), (False, self.witness, pinger))

    def test_schedule(self) -> None:
        """Each probe leaves a second after the one before; after the last reply it ends."""
        pinger, way = self.begun(Plan(count=3))
        for number in (1, 2, 3):
            self.pass_by(10)
            self.reply(pinger, number)
            self.pass_by(990)
        self.assertEqual(self.sent(way), [0, 1000, 2000])
        self.assertEqual([data for _, data in way.sent], [self.probes.text(n) for n in (1, 2, 3)])
        self.assertIsNone(self.successResultOf(self.ended))
        self.assertTrue(way.closed)
        self.assertEqual(self.witness.trips, [10, 10, 10])
        outcome = pinger.outcome
        self.assertEqual((outcome.sent, outcome.received, outcome.lost), (3, 3, 0))
        self.assertEqual((outcome.left_late, round(outcome.seconds, 3)), (0, 2.01))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_exact(self) -> None:
        """A timer is too coarse: what is left before a probe is due is slept away."""
        pinger, way = self.begun(Plan(count=2))
        self.reply(pinger, 1)
        self.clock.advance(0.9985)
        self.assertEqual([round(seconds, 5) for seconds in self.slept], [0.0015])
        self.assertEqual(self.sent(way), [0, 1000])

    def test_late(self) -> None:
        """A probe that a slow one held up counts from when it was due, too."""
        pinger, way = self.begun(Plan(count=4, timeout=9))
        self.pass_by(2500)
        self.reply(pinger, 1)
        self.pass_by(10)
        self.reply(pinger, 2)
        self.pass_by(10)
        self.reply(pinger, 3)
        self.pass_by(480)
        self.reply(pinger, 4)
        self.assertEqual(self.sent(way), [0, 2500, 2510, 3000])
        self.assertEqual(self.witness.trips, [2500, 10, 10, 0])
        self.assertEqual(pinger.outcome.left_late, 2)
        self.assertEqual(pinger.outcome.from_due.mean // MILLI, (2500 + 1510 + 520) // 4)
        self.successResultOf(self.ended)

    def test_in_flight(self) -> None:
        """So many may be under way; one more waits."""
        pinger, way = self.begun(Plan(interval=100 * MILLI, in_flight=2))
        self.pass_by(250)
        self.assertEqual(self.sent(way), [0, 100])
        self.assertEqual(pinger.outcome.under_way, 2)
        self.reply(pinger, 2)
        self.assertEqual(self.sent(way), [0, 100, 250])
        pinger.stop()

    def test_flood(self) -> None:
        """Without an interval as many as may be are under way, and none is ever late."""
        pinger, way = self.begun(Plan(interval=0, in_flight=3, count=6))
        self.assertEqual(len(way.sent), 3)
        self.pass_by(50)
        self.reply(pinger, 1, 3)
        self.assertEqual(self.sent(way), [0, 0, 0, 50, 50])
        self.reply(pinger, 2, 4, 5)
        self.reply(pinger, 6)
        self.assertEqual((pinger.outcome.received, pinger.outcome.left_late), (6, 0))
        self.successResultOf(self.ended)

    def test_timeout(self) -> None:
        """A reply that is not there in time is lost, also if it comes after all."""
        pinger, way = self.begun(Plan(timeout=0.5, count=2))
        self.pass_by(700)
        self.reply(pinger, 1)
        self.pass_by(801)
        self.successResultOf(self.ended)
        self.assertEqual(self.sent(way), [0, 1000])
        self.assertEqual(
            self.witness.losses, ["1: no reply within 0.5 s", "2: no reply within 0.5 s"]
        )
        self.assertEqual(self.witness.words, ["seq=1: the reply came too late"])
        outcome = pinger.outcome
        self.assertEqual((outcome.lost, outcome.received, outcome.late), (2, 0, 1))

    def test_datagrams(self) -> None:
        """Replies out of order, twice, altered, to another's probes, and to none that was sent."""
        pinger, _ = self.begun(Plan(interval=0, in_flight=4))
        self.reply(pinger, 2)
        self.reply(pinger, 1)
        self.reply(pinger, 3, 3)
        pinger.replied(self.probes.text(4).replace(b".\n", b",\n"))
        pinger.replied(Probes("ba9876543210", 64).text(5))
        self.reply(pinger, 99)
        outcome = pinger.outcome
        self.assertEqual(
            (
                outcome.received,
                outcome.reordered,
                outcome.duplicates,
                outcome.altered,
                outcome.late,
            ),
            (4, 1, 1, 1, 0),
        )
        self.assertEqual(self.witness.words, ["seq=3: another reply"])
        pinger.stop()

    def test_lost_connection(self) -> None:
        """What is under way is lost; so is what is due until it is connected again."""
        pinger, first = self.begun(Plan(timeout=5, interval=200 * MILLI, in_flight=2))
        self.pass_by(300)
        pinger.replied(self.probes.text(1)[:20])  # a piece of a reply is not gone on with
        pinger.over("the server closed the connection")
        self.assertEqual(
            self.witness.losses,
            ["1: the connection was lost", "2: the connection was lost"],
        )
        self.pass_by(250)
        self.assertEqual(self.witness.losses[2:], ["3: no connection"])
        self.assertEqual(len(self.connecting), 1)
        self.pass_by(round(PAUSE * 1000) - 250)
        self.connecting[-1].errback(Failure(ConnectError()))
        self.pass_by(round(PAUSE * 1000))
        second = self.connected()
        self.reply(pinger, 1)  # it was lost, and stays so
        self.pass_by(100)
        self.assertEqual(self.sent(second), [2400])
        self.reply(pinger, 13)
        outcome = pinger.outcome
        self.assertEqual((outcome.lost, outcome.received, outcome.reconnects), (12, 1, 1))
        self.assertIn("connected again", self.witness.words)
        self.assertEqual(len(first.sent), 2)
        pinger.stop()

    def test_flood_without_connection(self) -> None:
        """A flood waits for the connection."""
        pinger, _ = self.begun(Plan(interval=0))
        pinger.over("lost")
        self.pass_by(900)
        self.assertEqual(pinger.outcome.sent, 1)
        self.pass_by(100)
        self.assertEqual(len(self.connected().sent), 1)
        pinger.stop()

    def test_quick_schedule(self) -> None:
        """A schedule that is quicker than timers are lets the reactor have its turns."""
        turns = self.clock
        pinger, way = self.begun(Plan(interval=MILLI, in_flight=3))
        for _ in range(5):
            turns.advance(0)  # no sleep, for a reply may come meanwhile
        self.assertEqual(self.sent(way), [0])
        self.pass_by(2)
        self.assertEqual((self.sent(way), self.slept), ([0, 1, 2], []))
        self.reply(pinger, 1, 2, 3)
        pinger.over("lost")
        sent = pinger.outcome.sent
        for _ in range(10):
            turns.advance(0)
        self.assertEqual(pinger.outcome.sent, sent + 10)
        turns.advance(PAUSE)
        self.assertEqual(len(self.connecting), 2)
        pinger.stop()

    def test_arrived_at_timeout(self) -> None:
        """What has arrived when the timeout is over is read before it is lost."""
        turns = self.clock
        pinger, _ = self.begun(Plan(count=1))
        turns.advance(1.0)
        self.reply(pinger, 1)
        turns.advance(0)
        self.assertEqual((pinger.outcome.received, pinger.outcome.lost), (1, 0))

    def test_stopped_by_witness(self) -> None:
        """Whoever is told may end it, whatever else came in the same read, or was under way."""
        pinger, _ = self.begun(Plan(interval=0, in_flight=3))
        self.patch(self.witness, "answered", lambda probe, outcome: pinger.stop())
        self.reply(pinger, 1, 2)
        self.assertEqual((pinger.outcome.received, self.witness.words), (1, []))
        for name in ("happened", "lost"):
            pinger, _ = self.begun(Plan(interval=0, in_flight=3))
            self.patch(self.witness, name, lambda *_, pinger=pinger: pinger.stop())
            pinger.over("lost")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_by_its_last_word(self) -> None:
        """So it may when it ends."""
        pinger, _ = self.begun(Plan())
        self.patch(self.witness, "happened", lambda words: pinger.stop())
        self.set_forward = SECOND
        pinger.stop()
        self.successResultOf(self.ended)

    def test_full(self) -> None:
        """While the connection takes no more, what is due is lost, and a flood waits."""
        pinger, way = self.begun(Plan(interval=100 * MILLI, in_flight=9))
        way.full = True
        self.pass_by(101)
        self.assertEqual(self.witness.losses, ["2: the connection takes no more"])
        way.full = False
        self.pass_by(100)
        self.assertEqual(len(way.sent), 2)
        pinger.stop()
        pinger, way = self.begun(Plan(interval=0, in_flight=9))
        sent = pinger.outcome.sent
        way.full = True
        self.reply(pinger, 1)
        self.assertEqual(pinger.outcome.sent, sent)
        way.full = False
        pinger.room()
        self.assertEqual(pinger.outcome.sent, sent + 1)
        pinger.stop()

    def test_lost_while_writing(self) -> None:
        """A datagram that can't be sent ends the path from within."""
        pinger = self.pinger(Plan())
        way = FakePath(self.clock)
        way.fails = lambda: pinger.over("Network is unreachable")
        self.connecting[-1].callback(way)
        self.assertEqual(self.witness.words, ["the connection is lost: Network is unreachable"])
        self.assertEqual(self.witness.losses, ["1: the connection was lost"])
        pinger.over("once more")
        self.assertEqual(len(self.witness.words), 1)
        pinger.stop()

    def test_refused(self) -> None:
        """Where nobody ever answered and the host says that nobody listens, it ends."""
        pinger, way = self.begun(Plan())
        way.refused = True
        pinger.over("connection refused")
        self.failureResultOf(self.ended, ConnectionRefusedError)

    def test_refused_later(self) -> None:
        """Where somebody has answered, he may come back."""
        pinger, way = self.begun(Plan())
        self.reply(pinger, 1)
        way.refused = True
        pinger.over("connection refused")
        self.assertNoResult(self.ended)
        pinger.stop()

    def test_no_connection(self) -> None:
        """Without a first connection there is nothing to say but why."""
        self.pinger(Plan())
        self.connecting[-1].errback(Failure(ConnectError()))
        self.failureResultOf(self.ended, ConnectError)

    def test_stopped(self) -> None:
        """Stopped, it tells how many were under way, which are neither lost nor answered."""
        pinger, way = self.begun(Plan())
        self.pass_by(300)
        pinger.stop()
        pinger.stop()
        pinger.over("closed")
        self.reply(pinger, 1)
        self.successResultOf(self.ended)
        self.assertTrue(way.closed)
        self.assertEqual(round(pinger.look().seconds, 3), 0.3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_while_connecting(self) -> None:
        """A path that comes too late is closed, and a failure is nobody's."""
        pinger = self.pinger(Plan())
        pinger.stop()
        self.assertEqual(pinger.look().seconds, 0)
        self.assertTrue(self.connected().closed)
        self.pinger(Plan()).stop()
        self.connecting[-1].errback(Failure(ConnectError()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_while_connecting_again(self) -> None:
        """The same, later."""
        for succeeds in (True, False):
            pinger, _ = self.begun(Plan())
            pinger.over("lost")
            self.pass_by(1000)
            pinger.stop()
            if succeeds:
                self.assertTrue(self.connected().closed)
            else:
                self.connecting[-1].errback(Failure(ConnectError()))
            self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNotIn("connected again", self.witness.words)

    def test_deadline(self) -> None:
        """It ends in time, whatever is under way."""
        pinger, _ = self.begun(Plan(deadline=1.5, timeout=9))
        self.pass_by(1500)
        self.successResultOf(self.ended)
        self.assertEqual(pinger.outcome.under_way, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadline_while_connecting(self) -> None:
        """The time that connecting takes counts; it may go on."""
        pinger = self.pinger(Plan(deadline=1.5))
        self.pass_by(1500)
        self.successResultOf(self.ended)
        self.assertTrue(pinger.connecting)
        self.connected()
        self.assertFalse(pinger.connecting)

    def test_own_delay(self) -> None:
        """What passed between the kernel's reading and ours is no part of the round trip."""
        pinger, way = self.begun(Plan())
        self.pass_by(30)
        way.arrival = self.wall() - 20 * MILLI
        self.reply(pinger, 1)
        self.assertEqual(self.witness.trips, [10])
        self.assertEqual(pinger.outcome.delays.most, 20 * MILLI)
        pinger.stop()

    def test_set_while_it_waited(self) -> None:
        """An arrival by a clock that was set since the probe left is not believed."""
        pinger, way = self.begun(Plan())
        self.pass_by(30)
        way.arrival = self.wall() - 31 * MILLI
        self.reply(pinger, 1)
        self.assertEqual(self.witness.trips, [30])
        self.assertEqual(pinger.outcome.delays.most, 0)
        pinger.stop()

    def served(self, plan: Plan, style: str, ahead: int) -> Outcome:
        """Have all probes of a plan answered, after 2 ms, by a clock that is so far ahead."""
        stamp = Stamp(style, utc=True)
        pinger, way = self.begun(replace(plan, timeout=9.0))
        for number in range(1, plan.count + 1):
            while len(way.sent) < number:
                self.pass_by(1)
            self.pass_by(1)
            text = stamp.prefix(self.wall() + ahead)[1:-2].decode()
            self.pass_by(1)
            self.reply(pinger, number, stamp=text)
        self.assertEqual(plan.count, pinger.outcome.received)
        self.left = self.sent(way)
        return pinger.outcome

    def test_clock_of_whole_seconds(self) -> None:
        """The probes are aimed at the change of the server's second, within their schedule."""
        ahead = 2345 * MILLI
        outcome = self.served(Plan(count=14), "ctime", ahead)
        assert outcome.offset is not None
        self.assertLess(outcome.offset.bound, 3 * MILLI)
        self.assertLess(abs(outcome.offset.nanoseconds - ahead), outcome.offset.bound)
        self.assertTrue(outcome.zoneless)
        for number, moment in enumerate(self.left):
            self.assertLess(moment - 1000 * number, 1000)
            self.assertGreaterEqual(moment, 1000 * number)

    def test_no_room_to_aim(self) -> None:
        """Where the next would be due before, a probe is not aimed."""
        self.served(Plan(count=20, interval=100 * MILLI), "ctime", 0)
        for number, moment in enumerate(self.left):
            self.assertLess(moment - 100 * number, 100)

    def test_clock_of_nanoseconds(self) -> None:
        """The schedule is kept; the bound is half the round trip, and what its zone is, is said."""
        outcome = self.served(Plan(count=3), "unix", -7 * SECOND)
        assert outcome.offset is not None
        self.assertEqual(self.left, [0, 1000, 2000])
        self.assertLess(abs(outcome.offset.nanoseconds + 7 * SECOND), outcome.offset.bound)
        self.assertLess(outcome.offset.bound, 2 * MILLI)
        self.assertFalse(outcome.zoneless)

    def test_no_stamp(self) -> None:
        """A plain echo has no clock."""
        pinger, _ = self.begun(Plan())
        self.reply(pinger, 1)
        self.assertEqual((pinger.outcome.unstamped, pinger.outcome.offset), (1, None))
        pinger.stop()

    def test_own_clock_set(self) -> None:
        """Our own clock is set: the server's is then as much less ahead, and has not moved."""
        pinger, _ = self.begun(Plan())
        for number in (1, 2):
            stamp = Stamp("unix").prefix(self.steady() + NOW * SECOND)[1:-2].decode()
            self.reply(pinger, number, stamp=stamp)
            self.set_forward = 3 * SECOND
            self.pass_by(1000)
        self.assertEqual(self.witness.words, ["this host's clock was set by +3.000000 s"])
        offset = pinger.outcome.offset
        assert offset is not None
        self.assertEqual(round(offset.nanoseconds / SECOND), -3)
        self.assertEqual(list(pinger.outcome.clock.steps), [])
        pinger.stop()

    def test_own_clock_set_before_reading(self) -> None:
        """A clock that was set between arrival and reading tells no delay."""
        pinger, way = self.begun(Plan())
        self.pass_by(100)
        way.arrival = self.wall()
        self.set_forward = 50 * MILLI
        self.reply(pinger, 1)
        self.assertEqual(self.witness.trips, [100])
        pinger.stop()

    def test_server_clock_set(self) -> None:
        """The server's clock is set: that is told when a reply shows it, each time."""
        pinger, _ = self.begun(Plan())
        for number, ahead in ((1, 0), (2, 0), (3, 5 * SECOND), (4, 5 * SECOND), (5, 0)):
            stamp = Stamp("unix").prefix(self.wall() + ahead)[1:-2].decode()
            self.reply(pinger, number, stamp=stamp)
            self.pass_by(1000)
        words, again = self.witness.words
        self.assertIn("seq=5: the server's clock was set by -", again)
        self.assertRegex(
            words, r"^seq=3: the server's clock was set by \+(5.0000|4.9999)\d\d s ± 0"
        )
        pinger.stop()
