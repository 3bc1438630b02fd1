"""Sends probes on a schedule, and matches replies to them.

Knows a path to the server, but not how it is opened, nor how results are presented.
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

from timestamp_echo.client import errors
from timestamp_echo.clocks import Clocks
from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.probe import Probes, Reply
from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.ping.stats import Probe, Stats
from timestamp_echo.ping.text import format_offset
from timestamp_echo.ping.transport import Path, ProbeListener
from timestamp_echo.stamps import SECOND

RECONNECT_DELAY = 1.0
"""Seconds between the end of a connection and the next attempt."""

TIMER_SLACK = SECOND // 500
"""Nanoseconds by which a timer fires before its probe is due; the rest is slept. The reactor's
timers have the resolution of epoll_wait(2): a millisecond."""

MAX_UNMATCHED = 1024
"""Bytes that are kept of what a server sends instead of replies."""

REMEMBERED_REPLIES = 2**14
"""Numbers of recent replies that are kept in order to recognise duplicates."""


@dataclass(frozen=True)
class Plan:
    """Which probes to send."""

    size: int = 64
    """Bytes of a probe."""

    interval: int = SECOND
    """Nanoseconds between the due times of probes; 0: send one as soon as another is answered."""

    count: int = 0
    """Number of probes; 0 for no limit."""

    timeout: float = 1.0
    """Seconds after which a probe counts as lost."""

    in_flight: int = 1
    """Maximum number of probes in flight: another one that is due is sent late."""

    exact: bool = False
    """Whether to send each probe exactly when it is due, and aim none; see `Estimate.aim`."""


class ProbeObserver(Protocol):
    """Is notified of results."""

    def answered(self, probe: Probe, stats: Stats) -> None:
        """A probe was answered."""

    def lost(self, probe: Probe, stats: Stats) -> None:
        """A probe was lost."""

    def event(self, message: str) -> None:
        """Anything else: a lost connection, a duplicate, a clock that was set."""


class Pinger:
    """Sends probes as planned, until all are done. It is the `ProbeListener` of its paths.

    @param plan: how many probes, how large, how often.
    @param probes: their messages.
    @param connect: opens a path.
    @param clock: for timers.
    @param clocks: for times.
    @param observers: are notified of results, in this order.
    """

    def __init__(
        self,
        plan: Plan,
        probes: Probes,
        connect: Callable[[ProbeListener], Deferred[Path]],
        clock: IReactorTime,
        clocks: Clocks,
        observers: Sequence[ProbeObserver],
    ) -> None:
        self.stats = Stats()
        self._plan = plan
        self._probes = probes
        self._connect = connect
        self._clock = clock
        self._observers = observers
        self._clocks = clocks
        self._path: Path | None = None
        self._done: Deferred[None] = Deferred()
        self._started = clocks.monotonic()
        self._due: int | None = None
        self._due_aimed = False
        self._in_flight: dict[int, tuple[Probe, IDelayedCall]] = {}
        self._replied: deque[int] = deque(maxlen=REMEMBERED_REPLIES)
        self._highest = 0
        self._unmatched = b""  # the beginning of what came since the last reply
        self._refusal = b""  # the last line reported that is not a reply
        self.connecting = False
        """Whether a connection attempt is in progress; it cannot always be cancelled."""
        self._timers: dict[str, IDelayedCall] = {}

    def start(self) -> Deferred[None]:
        """Connect, and send probes.

        @return: fires when the plan is completed. Fails with the reason if the first connection
            cannot be made.
        """
        self._open_path().addCallback(self._begin).addErrback(self._finish)
        return self._done

    def stop(self) -> None:
        """Stop now. Probes in flight count as neither answered nor lost."""
        self._finish(None)

    def current_stats(self) -> Stats:
        """The statistics until now."""
        self._check_own_clock()
        self.stats.duration = (self._clocks.monotonic() - self._started) / SECOND
        return self.stats

    def _finish(self, result: Failure | None) -> None:
        if self._done.called:
            return
        self.current_stats()
        if self._done.called:  # by an observer that was just notified
            return
        for timer in [*self._timers.values(), *(timer for _, timer in self._in_flight.values())]:
            if timer.active():
                timer.cancel()
        self._done.callback(result)
        if self._path is not None:
            self._path.close()

    def _open_path(self) -> Deferred[Path]:
        self.connecting = True
        return self._connect(self).addBoth(self._connect_done)

    def _connect_done(self, result: Path | Failure) -> Path | Failure:
        self.connecting = False
        return result

    def _begin(self, path: Path) -> None:
        self._started = self._clocks.monotonic()
        self._use(path)

    def _use(self, path: Path) -> None:
        if self._done.called:
            path.close()
            return
        self._path = path
        self._send_due()

    def _send_due(self) -> None:
        """Send the probes that are due, and schedule a call for those that will be."""
        while not self._done.called and self._may_send():
            if not self._send_next():
                return

    def _send_next(self) -> bool:
        """Send the next probe, or schedule a call for when it is due.

        @return: whether another one may be sent at once.
        """
        due = self._next_due()
        wait = due - self._clocks.monotonic()
        # Sleeping is more precise than a timer, but blocks: not while replies may arrive.
        if wait > TIMER_SLACK or (wait > 0 and self._in_flight):
            self._schedule("next", max(wait - TIMER_SLACK, 0) / SECOND, self._send_due)
            return False
        if wait > 0:
            self._clocks.sleep(wait)
        self._send(due)
        if wait <= 0 and self._writable:
            return True
        self._schedule("next", 0, self._send_due)  # first read what has arrived meanwhile
        return False

    def _may_send(self) -> bool:
        plan, sent = self._plan, self.stats.sent
        if plan.count and sent >= plan.count:
            if not self._in_flight:
                self.stop()
            return False
        # A schedule continues without a path, and its probes are lost; a flood waits.
        if not (self._writable or plan.interval):
            return False
        return len(self._in_flight) < plan.in_flight

    @property
    def _writable(self) -> bool:
        return self._path is not None and not self._path.full

    def _next_due(self) -> int:
        """When the next probe is due; does not change until it is sent."""
        if self._due is None:
            now = self._clocks.monotonic()
            due = self._started + self.stats.sent * self._plan.interval
            aimed = self._aimed(due) if due > now and not self._plan.exact else None
            self._due_aimed = aimed is not None
            self._due = due if aimed is None else aimed
            if not self._plan.interval:
                self._due = now
        return self._due

    def _aimed(self, due: int) -> int | None:
        """When to send a probe to learn most from a stamp of whole seconds; None if any will do.

        @param due: when it is due.
        """
        at = self._clocks.initial_wall_time(due)
        moment = self.stats.clock.aim(at, at + self._plan.interval)
        return None if moment is None else due + moment - at

    def _send(self, due: int) -> None:
        self._due = None
        self.stats.sent += 1
        now = self._clocks.monotonic()
        probe = Probe(self.stats.sent, due, now, aimed=self._due_aimed)
        self.stats.sent_late += probe.late
        if self._path is None or self._path.full:
            self._lose(probe, "send buffer full" if self._path else "no connection")
            return
        self._await_reply(probe, self._plan.timeout, self._time_out)
        self._path.write(self._probes.message(probe.number))

    def _await_reply(self, probe: Probe, seconds: float, call: Callable[[Probe], None]) -> None:
        self._in_flight[probe.number] = probe, self._clock.callLater(seconds, call, probe)

    def replied(self, data: bytes) -> None:
        """See `PathListener.replied`."""
        own_delay = self._own_delay()
        # Read this clock last: a pause in between makes a reply seem later, never earlier.
        now = self._clocks.monotonic()
        replies = self._probes.replies(data)
        self._unmatched = b"" if replies else (self._unmatched + data)[:MAX_UNMATCHED]
        if replies:
            self._notify_other()
        for reply in replies:
            if not self._done.called:
                self._match(reply, now, own_delay)
        self._send_due()

    def _own_delay(self) -> int:
        """Nanoseconds since the kernel received the data just read; 0 if unknown."""
        was_set = self._check_own_clock()
        return self._clocks.age(self._path.arrival) if self._path and not was_set else 0

    def _match(self, reply: Reply, now: int, own_delay: int) -> None:
        if reply.number not in self._in_flight:
            self._unexpected(reply.number)
            return
        probe, timer = self._in_flight.pop(reply.number)
        timer.cancel()
        if now - own_delay < probe.sent:  # this host's clock was set, by too little to notice
            own_delay = 0
        probe.received, probe.own_delay, probe.reply = now - own_delay, own_delay, reply
        self._release(probe)
        self._record(probe, reply)
        for observer in self._observers:
            observer.answered(probe, self.stats)

    def _unexpected(self, number: int) -> None:
        """A reply to a probe that is not in flight."""
        if number in self._replied:
            self.stats.duplicates += 1
            self._notify(f"seq={number}: duplicate reply")
        elif number <= self.stats.sent:
            self._replied.append(number)
            self.stats.late_replies += 1
            self._notify(f"seq={number}: late reply")

    def _record(self, probe: Probe, reply: Reply) -> None:
        stats = self.stats
        stats.reordered += probe.number < self._highest
        self._highest = max(probe.number, self._highest)
        self._replied.append(probe.number)
        stats.altered += reply.altered
        stats.rtt.add(probe.rtt)
        stats.rtt_from_due.add(probe.rtt_from_due)
        stats.own_delay.add(probe.own_delay)
        for phase, duration in probe.durations.items():
            stats.phases.setdefault(phase, RoundTrips()).add(duration)
        self._record_stamp(probe, reply)

    def _record_stamp(self, probe: Probe, reply: Reply) -> None:
        moment = reply.moment
        if moment is None:
            self.stats.unstamped += 1
            return
        self.stats.zoneless = not moment.zoned
        clock, wall_time = self.stats.clock, self._clocks.initial_wall_time
        known = set(clock.steps)
        sample = Sample(wall_time(probe.written), wall_time(probe.received), moment)
        clock.add(sample, aimed=probe.aimed)
        for step in clock.steps:
            if step not in known:
                size = format_offset(step.nanoseconds, step.bound)
                self._notify(f"seq={probe.number}: server's clock was set by {size}")

    def _check_own_clock(self) -> bool:
        """Report whether this host's clock was set, lest it be taken for a step of the server's."""
        step = self._clocks.step()
        if step:
            self.stats.own_clock_step += step
            self._notify(f"this host's clock was set by {step / SECOND:+.6f} s")
        return step != 0

    def _time_out(self, probe: Probe) -> None:
        # The reactor runs timers before it reads sockets. Read first what has arrived by now.
        self._await_reply(probe, 0, self._give_up)

    def _give_up(self, probe: Probe) -> None:
        del self._in_flight[probe.number]
        self._release(probe)
        self._notify_refusal()
        self._lose(probe, f"no reply within {self._plan.timeout:g} s")
        self._send_due()

    def _release(self, probe: Probe) -> None:
        """Tell the path that no reply to a probe is awaited any more."""
        message = self._probes.message(probe.number)
        probe.phases = self._path.release(message) if self._path else None

    def failed(self, data: bytes, why: str) -> None:
        """See `ProbeListener.failed`."""
        probe, timer = self._in_flight.pop(self._probes.number(data))
        timer.cancel()
        self._release(probe)
        self._notify_refusal()
        self._lose(probe, why)
        self._send_due()

    def _lose(self, probe: Probe, why: str) -> None:
        probe.lost = why
        self.stats.lost += 1
        for observer in self._observers:
            observer.lost(probe, self.stats)

    def _notify(self, message: str) -> None:
        for observer in self._observers:
            observer.event(message)

    def answered(self) -> None:
        """See `PathListener.answered`; not needed, because replies are numbered."""

    def writable(self) -> None:
        """See `PathListener.writable`."""
        self._send_due()

    def over(self, why: str) -> None:
        """See `PathListener.over`. Probes in flight are lost; reconnect after a delay."""
        path, self._path = self._path, None
        if self._done.called or path is None:
            return
        if path.refused and not self.stats.received:
            self._finish(Failure(ConnectionRefusedError(errno.ECONNREFUSED)))
            return
        self._probes.reset()
        lost, self._in_flight = self._in_flight, {}
        for _, timer in lost.values():
            timer.cancel()
        self._schedule("connect", RECONNECT_DELAY, self._reconnect)
        self._notify_refusal()
        self._notify(f"connection lost: {why}")
        for probe, _ in lost.values():
            self._lose(probe, "connection lost")
        self._send_due()

    def _notify_other(self) -> None:
        """Report a line that came besides replies, if it is the first: each may have one."""
        line, self._probes.other_line = self._probes.other_line, b""
        if line and not self._refusal:
            self._refusal = line
            self._notify(errors.no_reply(line))

    def _notify_refusal(self) -> None:
        """Report the line that a server sent instead of replies, unless it repeats the last one."""
        line, newline, _ = self._unmatched.partition(b"\n")
        self._unmatched = b""
        whole = newline or line.startswith(errors.TLS_ALERT)
        if whole and line != self._refusal:
            self._refusal = line
            self._notify(errors.no_reply(line))

    def _reconnect(self) -> None:
        self._open_path().addCallbacks(self._reconnected, self._reconnect_failed).addErrback(
            self._finish
        )

    def _reconnected(self, path: Path) -> None:
        if not self._done.called:
            self.stats.reconnects += 1
            self._notify("reconnected")
        self._use(path)

    def _reconnect_failed(self, reason: Failure) -> None:
        if not self._done.called:
            self._schedule("connect", RECONNECT_DELAY, self._reconnect)

    def _schedule(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Start a timer; one of the same name is cancelled."""
        old = self._timers.get(name)
        if old is not None and old.active():
            old.cancel()
        self._timers[name] = self._clock.callLater(seconds, call)
