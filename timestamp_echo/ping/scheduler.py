"""Probes on a schedule: each leaves when it is due, and what comes back is told.

Knows a path to the server; not how it is opened, and not how what it finds is shown.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from timestamp_echo.clocks import Clocks
from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.probe import Probes, Reply
from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.ping.text import apart
from timestamp_echo.ping.transport import Path, Traveller
from timestamp_echo.stamps import SECOND

PAUSE = 1.0
"""Seconds between the end of a connection and the next try."""

EARLY = SECOND // 500
"""Nanoseconds before a probe is due that its timer fires; the rest is slept away. A reactor's
timers are as coarse as the milliseconds of epoll_wait(2)."""

REMEMBERED = 2**14
"""Numbers of the last replies, by which a duplicate is known."""


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    size: int = 64
    """Bytes of a probe."""

    interval: int = SECOND
    """Nanoseconds from one probe's due time to the next; 0: as soon as another is answered."""

    count: int = 0
    """Probes; 0 has no end."""

    deadline: float = 0.0
    """Seconds after which it ends in any case; 0 is never."""

    timeout: float = 1.0
    """Seconds after which a probe counts as lost."""

    in_flight: int = 1
    """Probes that may be under way at a time: one that is due then leaves late."""


class Witness(Protocol):
    """Who is told what happens."""

    def answered(self, probe: Probe, outcome: Outcome) -> None:
        """The reply came."""

    def lost(self, probe: Probe, outcome: Outcome) -> None:
        """There will be no reply."""

    def happened(self, words: str) -> None:
        """Something else came to pass."""


class Pinger:
    """Sends probes by a plan, until it is carried out.

    @param plan: how many, how large, how often.
    @param probes: their text.
    @param connect: opens a path.
    @param clock: calls back later.
    @param clocks: tell when.
    @param witnesses: are told.
    """

    def __init__(
        self,
        plan: Plan,
        probes: Probes,
        connect: Callable[[Traveller], Deferred[Path]],
        clock: IReactorTime,
        clocks: Clocks,
        witnesses: Sequence[Witness],
    ) -> None:
        self.outcome = Outcome()
        self._plan = plan
        self._probes = probes
        self._connect = connect
        self._clock = clock
        self._witnesses = witnesses
        self._clocks = clocks
        self._path: Path | None = None
        self._ended: Deferred[None] = Deferred()
        self._began = clocks.steady()
        self._due: int | None = None
        self._under_way: dict[int, tuple[Probe, IDelayedCall]] = {}
        self._heard: deque[int] = deque(maxlen=REMEMBERED)
        self._highest = 0
        self.connecting = False
        """Whether a connection is being made; that can't be called off at any moment."""
        self._timers: dict[str, IDelayedCall] = {}

    def start(self) -> Deferred[None]:
        """Connect, and begin.

        @return: fires when the plan is carried out; with what was in the way, if there is no
            connection to be had at first.
        """
        if self._plan.deadline:
            self._wake("deadline", self._plan.deadline, self.stop)
        self._try().addCallback(self._begin).addErrback(self._end)
        return self._ended

    def stop(self) -> None:
        """End now: what is under way is neither answered nor lost."""
        self._end(None)

    def _end(self, result: Failure | None) -> None:
        if self._ended.called:
            return
        self.look()
        if self._ended.called:
            return
        for timer in [*self._timers.values(), *(timer for _, timer in self._under_way.values())]:
            if timer.active():
                timer.cancel()
        self._ended.callback(result)
        if self._path is not None:
            self._path.close()

    def _try(self) -> Deferred[Path]:
        self.connecting = True
        return self._connect(self).addBoth(self._tried)

    def _tried(self, result: Path | Failure) -> Path | Failure:
        self.connecting = False
        return result

    def look(self) -> Outcome:
        """What has become of it until now."""
        self._look_at_clock()
        self.outcome.seconds = (self._clocks.steady() - self._began) / SECOND
        return self.outcome

    def _begin(self, path: Path) -> None:
        self._began = self._clocks.steady()
        self._travel(path)

    def _travel(self, path: Path) -> None:
        if self._ended.called:
            path.close()
            return
        self._path = path
        self._go_on()

    def _go_on(self) -> None:
        """Send what is due; be called again for what will be."""
        while not self._ended.called and self._may_send():
            due = self._next_due()
            wait = due - self._clocks.steady()
            if wait > EARLY or (wait > 0 and self._under_way):  # no sleep while replies may come
                self._wake("next", max(wait - EARLY, 0) / SECOND, self._go_on)
                return
            if wait > 0:
                self._clocks.sleep(wait)
            self._send(due)
            if wait > 0 or not self._open:
                self._wake("next", 0, self._go_on)  # what has come meanwhile is read first
                return

    def _may_send(self) -> bool:
        plan, sent = self._plan, self.outcome.sent
        if plan.count and sent >= plan.count:
            if not self._under_way:
                self.stop()
            return False
        if not (self._open or plan.interval):
            return False
        return len(self._under_way) < plan.in_flight

    @property
    def _open(self) -> bool:
        """Whether a probe can leave: one that can't is not kept for later."""
        return self._path is not None and not self._path.full

    def _next_due(self) -> int:
        """When the next probe is due: fixed once it has been asked for."""
        if self._due is None:
            now = self._clocks.steady()
            due = self._began + self.outcome.sent * self._plan.interval
            self._due = self._aimed(due) if due > now else due
            if not self._plan.interval:
                self._due = now
        return self._due

    def _aimed(self, due: int) -> int:
        """The moment that tells most of a clock of whole seconds, if the schedule has room."""
        at = self._clocks.unset(due)
        later = self.outcome.clock.aim(at) - at
        return due + later if later < self._plan.interval else due

    def _send(self, due: int) -> None:
        self._due = None
        self.outcome.sent += 1
        probe = Probe(self.outcome.sent, due, self._clocks.steady())
        self.outcome.left_late += probe.late
        if self._path is None or self._path.full:
            self._lose(probe, "the connection takes no more" if self._path else "no connection")
            return
        self._await_reply(probe, self._plan.timeout, self._time_out)
        self._path.write(self._probes.text(probe.number))

    def _await_reply(self, probe: Probe, seconds: float, call: Callable[[Probe], None]) -> None:
        self._under_way[probe.number] = probe, self._clock.callLater(seconds, call, probe)

    def replied(self, data: bytes) -> None:
        """See `Traveller.replied`."""
        delay = self._delay()
        now = self._clocks.steady()  # after that: a pause between makes the reply late, not early
        for reply in self._probes.replies(data):
            if not self._ended.called:
                self._take(reply, now, delay)
        self._go_on()

    def _delay(self) -> int:
        """Nanoseconds since the kernel got what has just been read; 0 if that can't be told."""
        was_set = self._look_at_clock()
        return self._clocks.since(self._path.arrival) if self._path and not was_set else 0

    def _take(self, reply: Reply, now: int, delay: int) -> None:
        outcome, number = self.outcome, reply.number
        if number not in self._under_way:
            self._take_again(number)
            return
        probe, timer = self._under_way.pop(number)
        timer.cancel()
        if now - delay < probe.sent:  # the arrival is told by a clock that was set a little
            delay = 0
        probe.received, probe.delay, probe.reply = now - delay, delay, reply
        outcome.reordered += number < self._highest
        self._highest = max(number, self._highest)
        self._heard.append(number)
        outcome.altered += reply.altered
        outcome.trips.add(probe.round_trip)
        outcome.from_due.add(probe.from_due)
        outcome.delays.add(delay)
        self._read_clock(probe, reply)
        for witness in self._witnesses:
            witness.answered(probe, outcome)

    def _take_again(self, number: int) -> None:
        if number in self._heard:
            self.outcome.duplicates += 1
            self._tell(f"seq={number}: another reply")
        elif number <= self.outcome.sent:
            self._heard.append(number)
            self.outcome.late += 1
            self._tell(f"seq={number}: the reply came too late")

    def _read_clock(self, probe: Probe, reply: Reply) -> None:
        moment = reply.moment
        if moment is None:
            self.outcome.unstamped += 1
            return
        self.outcome.zoneless = not moment.zoned
        clock, unset = self.outcome.clock, self._clocks.unset
        noticed = set(clock.steps)
        clock.add(Sample(unset(probe.sent), unset(probe.received), moment))
        for step in clock.steps:
            if step not in noticed:
                by = apart(step.nanoseconds, step.bound)
                self._tell(f"seq={probe.number}: the server's clock was set by {by}")

    def _look_at_clock(self) -> bool:
        """Tell if this host's own clock was set, which is no fault of the server's."""
        moved = self._clocks.set_by()
        if moved:
            self.outcome.stepped += moved
            self._tell(f"this host's clock was set by {moved / SECOND:+.6f} s")
        return moved != 0

    def _time_out(self, probe: Probe) -> None:
        # A reactor's timers come before its reads: what has arrived by now is read first.
        self._await_reply(probe, 0, self._give_up)

    def _give_up(self, probe: Probe) -> None:
        del self._under_way[probe.number]
        self._lose(probe, f"no reply within {self._plan.timeout:g} s")
        self._go_on()

    def _lose(self, probe: Probe, why: str) -> None:
        probe.lost = why
        self.outcome.lost += 1
        for witness in self._witnesses:
            witness.lost(probe, self.outcome)

    def _tell(self, words: str) -> None:
        for witness in self._witnesses:
            witness.happened(words)

    def answered(self) -> None:
        """See `Traveller.answered`: each reply is known by its number."""

    def room(self) -> None:
        """See `Traveller.room`."""
        self._go_on()

    def over(self, why: str) -> None:
        """See `Traveller.over`: what was under way is lost; connect again in a while."""
        path, self._path = self._path, None
        if self._ended.called or path is None:
            return
        if path.refused and not self.outcome.received:
            self._end(Failure(ConnectionRefusedError(errno.ECONNREFUSED)))
            return
        self._probes.forget()
        lost, self._under_way = self._under_way, {}
        for _, timer in lost.values():
            timer.cancel()
        self._wake("connect", PAUSE, self._connect_again)
        self._tell(f"the connection is lost: {why}")
        for probe, _ in lost.values():
            self._lose(probe, "the connection was lost")
        self._go_on()

    def _connect_again(self) -> None:
        self._try().addCallbacks(self._connected, self._still_lost).addErrback(self._end)

    def _connected(self, path: Path) -> None:
        if not self._ended.called:
            self.outcome.reconnects += 1
            self._tell("connected again")
        self._travel(path)

    def _still_lost(self, reason: Failure) -> None:
        if not self._ended.called:
            self._wake("connect", PAUSE, self._connect_again)

    def _wake(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        old = self._timers.get(name)
        if old is not None and old.active():
            old.cancel()
        self._timers[name] = self._clock.callLater(seconds, call)
