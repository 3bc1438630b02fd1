"""What `tsecho ping` may have found, for the tests of the rooms that tell it."""

from __future__ import annotations

from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.stats import Outcome, Probe
from timestamp_echo.stamps import SECOND, Moment

EPOCH = 1795357656 * SECOND
"""This host's clock when a run starts, in nanoseconds."""

MILLISECOND = SECOND // 1000

STAMP = "1795357656.000000000"


def answered(number: int, trip: int = MILLISECOND, late: int = 0) -> Probe:
    """A probe that left a second after the one before, and its reply."""
    due = number * SECOND
    sent = due + late
    return Probe(number, due, sent, sent + trip, 2000, Reply(number, STAMP, False))


def lost(number: int) -> Probe:
    """A probe without a reply."""
    return Probe(number, number * SECOND, number * SECOND, lost="no reply within 1 s")


def outcome_of(*trips: int, lost: int = 0, seconds: float = 1.0) -> Outcome:
    """What has become of probes that took so long, and of so many that were lost."""
    outcome = Outcome(sent=len(trips) + lost, lost=lost, seconds=seconds)
    for trip in trips:
        outcome.trips.add(trip)
        outcome.from_due.add(trip)
        outcome.delays.add(0)
    return outcome


def stamped(outcome: Outcome, *moments: tuple[int, int], trip: int = 0, zone: bool = True) -> None:
    """Stamps, a second from each other, by a clock that is so far ahead.

    @param moments: how far ahead, and of which resolution, in nanoseconds.
    """
    outcome.zoneless = not zone
    for number, (ahead, resolution) in enumerate(moments):
        sent = EPOCH + number * SECOND
        moment = (sent + trip // 2 + ahead) // resolution * resolution
        outcome.clock.add(Sample(sent, sent + trip, Moment(moment, resolution, zone)))
