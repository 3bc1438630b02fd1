"""Results of `tsecho ping`, for the tests of the modules that present them."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

from timestamp_echo.ping.bounds import Sample
from timestamp_echo.ping.probe import Reply
from timestamp_echo.ping.stats import Probe, Stats
from timestamp_echo.stamps import SECOND, Moment

EPOCH = 1795357656 * SECOND
"""This host's clock at the start of a run, in nanoseconds."""

MILLISECOND = SECOND // 1000

SCHEMA: dict[str, Any] = json.loads(
    files("timestamp_echo.ping").joinpath("schema.json").read_text("utf-8")
)
"""The JSON Schema of the output of `tsecho ping --json`."""

STAMP = "1795357656.000000000"


def answered(number: int, rtt: int = MILLISECOND, late: int = 0) -> Probe:
    """A probe that was due a second after the previous one, and its reply."""
    due = number * SECOND
    sent = due + late
    return Probe(number, due, sent, sent + rtt, 2000, Reply(number, STAMP, False))


def lost(number: int) -> Probe:
    """A probe without a reply."""
    return Probe(number, number * SECOND, number * SECOND, lost="no reply within 1 s")


def stats_of(*rtts: int, lost: int = 0, duration: float = 1.0) -> Stats:
    """Statistics of probes with these round trips, and of `lost` ones."""
    stats = Stats(sent=len(rtts) + lost, lost=lost, duration=duration)
    for rtt in rtts:
        stats.rtt.add(rtt)
        stats.rtt_from_due.add(rtt)
        stats.own_delay.add(0)
    return stats


def add_stamps(stats: Stats, *stamps: tuple[int, int], rtt: int = 0, zone: bool = True) -> None:
    """Add samples, one per second.

    @param stamps: offset of the server's clock and resolution of its stamp, in nanoseconds.
    """
    stats.zoneless = not zone
    for number, (ahead, resolution) in enumerate(stamps):
        sent = EPOCH + number * SECOND
        moment = (sent + rtt // 2 + ahead) // resolution * resolution
        stats.clock.add(Sample(sent, sent + rtt, Moment(moment, resolution, zone)))


def validated(line: str | bytes) -> dict[str, Any]:
    """The object in a line of `tsecho ping --json`; it has all members of the schema, and no more.

    @raise ValidationError: it is not valid.
    """
    record: dict[str, Any] = json.loads(line)
    _STRICT.validate(record)
    return record


def _closed(schema: Any) -> Any:
    """A schema in which objects have no members that it does not know."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    return closed | {"additionalProperties": False} if "required" in schema else closed


_STRICT = Draft202012Validator(_closed(SCHEMA))
