"""What has become of the probes of `tsecho ping`, one by one and all together.

Knows no connection, and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from timestamp_echo.ping.estimate import Estimate, Offset
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.roundtrips import RoundTrips
from timestamp_echo.stamps import SECOND

LATE = SECOND // 100
"""Nanoseconds after it was due from which on a probe is said to have left late."""


@dataclass
class Probe:
    """One probe, and what became of it. All times are of a clock that never steps."""

    number: int
    due: int
    """When it was to leave, in nanoseconds."""

    sent: int
    """When it left."""

    received: int = 0
    """When its reply came."""

    delay: int = 0
    """Nanoseconds between the reply's arrival and our reading it: no part of the round trip."""

    reply: Reply | None = None
    lost: str = ""
    """Why there is no reply."""

    @property
    def round_trip(self) -> int:
        """Nanoseconds from its leaving to the reply."""
        return self.received - self.sent

    @property
    def late(self) -> bool:
        """Whether it left late."""
        return self.sent - self.due > LATE

    @property
    def from_due(self) -> int:
        """Nanoseconds from when it was due, so that what held it up counts."""
        return self.received - self.due


@dataclass
class Outcome:
    """What has become of the probes so far."""

    sent: int = 0
    lost: int = 0
    late: int = 0
    """Replies that came after their probe had been counted as lost."""
    duplicates: int = 0
    reordered: int = 0
    """Replies that came after one to a later probe."""
    altered: int = 0
    """Replies whose message was not as it was sent."""
    unstamped: int = 0
    """Replies without a stamp that can be read."""
    zoneless: bool = False
    """Whether the stamps do not say what their zone is."""
    left_late: int = 0
    """Probes that left later than they were due, for too many were under way."""
    reconnects: int = 0
    stepped: int = 0
    """Nanoseconds that this host's clock was set forward while it ran."""
    seconds: float = 0.0
    """How long it took."""
    trips: RoundTrips = field(default_factory=RoundTrips)
    from_due: RoundTrips = field(default_factory=RoundTrips)
    delays: RoundTrips = field(default_factory=RoundTrips)
    clock: Estimate = field(default_factory=Estimate)

    @property
    def offset(self) -> Offset | None:
        """How far the server's clock is ahead of this host's, as it is set now."""
        found = self.clock.offset
        return found and found._replace(nanoseconds=found.nanoseconds - self.stepped)

    @property
    def received(self) -> int:
        """Probes that were answered in time."""
        return self.trips.count

    @property
    def under_way(self) -> int:
        """Probes of which nothing is known yet."""
        return self.sent - self.received - self.lost
