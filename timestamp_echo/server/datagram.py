"""Datagrams: each is a message, its reply goes back to where it came from, or to nobody.

Knows a stamp and a port; no connection. A datagram's source is easily forged, so that a
reply may hit somebody who never asked, and two services set on each other may answer for
ever (CVE-2024-2169, VU#417980). Which datagrams get no answer is decided here.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from timestamp_echo.addresses import network_key, parse_ip
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.udp import Datagrams

RATE = 1000
"""Datagrams a second that are answered per source, by default."""

LOG_INTERVAL = 10.0
"""Seconds for which datagrams without an answer are counted before the log has a line."""

_PRIVILEGED = 1024  # below are the services that a forged datagram would set on us

_BUCKETS = 2**14

_BRACKET = ord("[")

_UNSENT = "impossible to send"
# A peer can cause it at will: a reply too long for a datagram (65,507 bytes over IPv4), the
# broadcast address of a network of ours, no route back.

_SOURCES = 2**12  # whose addresses need not be read again


def refusal(datagram: bytes, host: str, port: int, own_ports: set[int]) -> str:
    """Why this datagram must not be answered, in words; nothing if it may be.

    @param host: the source's IP address.
    @param port: the source's port.
    @param own_ports: the UDP ports that this service listens on.
    """
    if port < _PRIVILEGED:
        return "from a port under 1024"
    if port in own_ports:
        return "from a port of our own"
    if not _is_unicast(host):
        return "not from one host"
    if datagram and datagram[0] == _BRACKET and b"] " in datagram:
        # A reply in any style of stamp, so that no reply is ever answered.
        return "like a reply"
    return ""


@lru_cache(_SOURCES)
def _is_unicast(host: str) -> bool:
    address = parse_ip(host)
    return not (address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255")


@lru_cache(_SOURCES)
def _bucket(host: str) -> int:
    return hash(network_key(host)) % _BUCKETS


class Rate:
    """At most so many answers a second for each source.

    The memory for it is the same however many sources there are, or are forged: sources share
    `_BUCKETS` counters, by a hash that nobody outside can foretell. To use up another's
    share one has to use up about as many counters as there are.

    @param limit: answers a second.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since = self._until = 0
        self._counts = array("L", [0])

    def allows(self, host: str, moment: int) -> bool:
        """Count a datagram of this source; whether it may be answered.

        @param moment: when it came, in nanoseconds.
        """
        if not self._since <= moment < self._until:
            self._since, self._until = moment, moment + SECOND
            self._counts = array("L", bytes(_BUCKETS * self._counts.itemsize))
        bucket = _bucket(host)
        self._counts[bucket] += 1
        return self._counts[bucket] <= self._limit


class TimestampDatagram(DatagramProtocol):
    """The server's side of one UDP port.

    @param stamp: the writer of stamps.
    @param clock: for the rate and the log.
    @param now: the wall clock, in nanoseconds since the epoch.
    @param rate: how many datagrams a second are answered per source.
    @param own_ports: where all ports of the service put themselves down.
    """

    transport: Any  # IUDPTransport

    noisy = False  # the service says what it listens on
    _log = Logger()
    _line: IDelayedCall | None = None

    def __init__(
        self,
        stamp: Stamp,
        clock: IReactorTime,
        now: Callable[[], int] = time.time_ns,
        rate: int = RATE,
        own_ports: set[int] | None = None,
    ) -> None:
        self._stamp = stamp
        self._clock = clock
        self._now = now
        self._rate = Rate(rate)
        self._own_ports: set[int] = set() if own_ports is None else own_ports
        self._unanswered: Counter[str] = Counter()

    def startProtocol(self) -> None:
        """The port is open."""
        self._own_ports.add(self.transport.getHost().port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer one datagram, or count why not."""
        moment = self._now()
        if self._answers(datagram, addr, moment):
            try:
                self.transport.write(self._stamp.prefix(moment) + datagram, addr)
            except (OSError, MessageLengthError):
                self._count(_UNSENT)

    def datagramsReceived(self, datagrams: Datagrams) -> None:
        """The same for those of a batch."""
        now = moment = self._now()
        prefix = b"" if datagrams.timed else self._stamp.prefix(now)
        for place in range(datagrams.count):
            if datagrams.timed:
                moment = datagrams.arrival(place) or now
                prefix = self._stamp.prefix(moment)
            # Nearly all need not be looked at any further than that.
            bracket = datagrams.firsts[place] == _BRACKET
            datagram = datagrams.message(place) if bracket else b""
            if self._answers(datagram, datagrams.source(place), moment):
                datagrams.reply(place, prefix)
            else:
                datagrams.drop(place)
        for _ in range(datagrams.send()):
            self._count(_UNSENT)

    def _answers(self, datagram: bytes, addr: Any, moment: int) -> bool:
        host, port = addr
        why = refusal(datagram, host, port, self._own_ports)
        if not why and not self._rate.allows(host, moment):
            why = "over the rate"
        if why:
            self._count(why)
        return not why

    def stopProtocol(self) -> None:
        """The port is closed: say what has not been said."""
        if self._line is not None:
            self._line.cancel()
            self._say()

    def _count(self, why: str) -> None:
        self._unanswered[why] += 1
        if self._line is None:
            self._line = self._clock.callLater(LOG_INTERVAL, self._say)

    def _say(self) -> None:
        self._line = None
        counts = ", ".join(f"{count} {why}" for why, count in self._unanswered.most_common())
        self._unanswered.clear()
        self._log.info("datagrams not answered: {counts}", counts=counts)
