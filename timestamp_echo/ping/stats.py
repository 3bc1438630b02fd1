"""Results of `tsecho ping`: of each probe, and of all probes together.

Knows no connection, and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from timestamp_echo.ping.estimate import Estimate, Offset
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.stamps import SECOND

LATE = SECOND // 100
"""Nanoseconds after its due time from which a probe counts as sent late."""


PHASES = {"lookup": "name lookup", "connect": "connect", "tls": "TLS", "reply": "reply"}
"""The phases of a probe that has a connection of its own, in order, and what people call them."""


@dataclass
class Phases:
    """How a probe that has a connection of its own spent its time."""

    durations: dict[str, int]
    """Nanoseconds of each phase that is over."""

    current: str
    """The phase under way."""


@dataclass
class Probe:
    """One probe and its result. All times are nanoseconds of a clock that is never stepped."""

    number: int
    due: int
    """When it should have been sent."""

    sent: int
    """When it was sent."""

    received: int = 0
    """When its reply arrived."""

    own_delay: int = 0
    """Time from the reply's arrival until this program read it; not part of the round trip."""

    reply: Reply | None = None
    lost: str = ""
    """Why there is no reply."""
    phases: Phases | None = None
    """Where the time went, if it has a connection of its own."""
    aimed: bool = False
    """Whether it was due at the moment that `Estimate.aim` chose."""

    @property
    def rtt(self) -> int:
        """Round-trip time: from sending to the reply's arrival."""
        return self.received - self.sent

    @property
    def durations(self) -> dict[str, int]:
        """Nanoseconds of each phase, the reply included if there is one; empty without phases."""
        if self.phases is None:
            return {}
        known = self.phases.durations
        return known | ({"reply": self.received - self.written} if self.received else {})

    @property
    def written(self) -> int:
        """When it was written: if it has a connection of its own, when that was ready."""
        return self.sent + (sum(self.phases.durations.values()) if self.phases else 0)

    @property
    def late(self) -> bool:
        """Whether it was sent late."""
        return self.sent - self.due > LATE

    @property
    def rtt_from_due(self) -> int:
        """Round-trip time from the due time, so that it includes what delayed the sending."""
        return self.received - self.due


@dataclass
class Stats:
    """Results of all probes so far."""

    sent: int = 0
    lost: int = 0
    late_replies: int = 0
    """Replies that arrived after their probe had been counted as lost."""
    duplicates: int = 0
    reordered: int = 0
    """Replies that arrived after the reply to a later probe."""
    altered: int = 0
    """Replies whose message differs from the one that was sent."""
    unstamped: int = 0
    """Replies without a stamp that can be parsed."""
    zoneless: bool = False
    """Whether the stamps name no zone."""
    sent_late: int = 0
    """Probes sent later than they were due."""
    reconnects: int = 0
    own_clock_step: int = 0
    """Nanoseconds by which this host's clock was set forward during the run."""
    duration: float = 0.0
    """Seconds."""
    rtt: RoundTrips = field(default_factory=RoundTrips)
    rtt_from_due: RoundTrips = field(default_factory=RoundTrips)
    own_delay: RoundTrips = field(default_factory=RoundTrips)
    phases: dict[str, RoundTrips] = field(default_factory=dict)
    """How long each phase took, of the probes that were answered."""
    clock: Estimate = field(default_factory=Estimate)

    @property
    def offset(self) -> Offset | None:
        """How far the server's clock is ahead of this host's clock as it is set now."""
        offset = self.clock.offset
        return offset and offset._replace(nanoseconds=offset.nanoseconds - self.own_clock_step)

    @property
    def received(self) -> int:
        """Probes that were answered in time."""
        return self.rtt.count

    @property
    def in_flight(self) -> int:
        """Probes that are neither answered nor lost yet."""
        return self.sent - self.received - self.lost


@dataclass
class Host:
    """One of several servers that are asked at the same time."""

    name: str
    stats: Stats
    error: str = ""
    """Why it could not be reached; empty otherwise."""
