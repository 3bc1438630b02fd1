"""Asks several servers at the same time, each by a `Pinger` of its own.

Knows when they start and that all are done, but not how results are presented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from timestamp_echo.client import errors
from timestamp_echo.ping.scheduler import Pinger
from timestamp_echo.ping.stats import Host
from timestamp_echo.stamps import SECOND


class Fleet:
    """Several servers, or one.

    @param names: of the servers.
    @param pingers: for each of them.
    @param interval: nanoseconds between two probes to the same server. The starts of the servers
        are spread over it, so that probes to many of them do not come in bursts.
    @param deadline: seconds after which all are stopped, in whatever state they are; 0 for never.
    @param clock: for timers.
    @param unreachable: is called with each that cannot be reached.
    """

    def __init__(
        self,
        names: Sequence[str],
        pingers: Sequence[Pinger],
        interval: int,
        deadline: float,
        clock: IReactorTime,
        unreachable: Callable[[Host], None],
    ) -> None:
        self.hosts = [Host(name, pinger.stats) for name, pinger in zip(names, pingers, strict=True)]
        """Results until now; the statistics are up to date after `current_hosts`."""
        self._pingers = pingers
        self._spread = interval / SECOND / len(pingers)
        self._deadline = deadline
        self._clock = clock
        self._notify = unreachable
        self._runs: list[Deferred[None]] = []

    def start(self) -> Deferred[None]:
        """Ask all servers.

        @return: fires when all are done, or could not be reached.
        """
        for index, (host, pinger) in enumerate(zip(self.hosts, self._pingers, strict=True)):
            turn: Deferred[None] = deferLater(self._clock, index * self._spread)
            run = turn.addCallback(lambda _, pinger: pinger.start(), pinger)
            self._runs.append(run.addErrback(self._unreachable, host))
        timer = self._clock.callLater(self._deadline, self.stop) if self._deadline else None
        return DeferredList(self._runs).addCallback(lambda _: _cancel(timer))

    def stop(self) -> None:
        """Stop now; servers that were not started are not asked."""
        for pinger, run in zip(self._pingers, self._runs, strict=True):
            pinger.stop()
            run.cancel()  # does nothing unless it still waits to be started

    def current_hosts(self) -> list[Host]:
        """The results until now."""
        for pinger in self._pingers:
            pinger.current_stats()
        return self.hosts

    @property
    def sent(self) -> bool:
        """Whether any probe was sent."""
        return any(host.stats.sent for host in self.hosts)

    @property
    def connecting(self) -> bool:
        """Whether a connection attempt is in progress; see `Pinger.connecting`."""
        return any(pinger.connecting for pinger in self._pingers)

    def _unreachable(self, failure: Failure, host: Host) -> None:
        if not failure.check(CancelledError):
            host.error = errors.reason(failure.value)
            self._notify(host)


def _cancel(timer: IDelayedCall | None) -> None:
    """Cancel a timer, if there is one and it has not fired."""
    if timer is not None and timer.active():
        timer.cancel()
