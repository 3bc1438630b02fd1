"""Datagrams: each is a message, and its reply goes back to its source, or is not sent.

Knows a stamp and a port; no connection. The source of a datagram is easily forged. So a reply may
reach somebody who never asked, and two services that answer each other may do so without end
(CVE-2024-2169, VU#417980). Which datagrams get no answer is decided here.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IUDPTransport
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from timestamp_echo.addresses import network_key, parse_ip
from timestamp_echo.stamps import SECOND, Stamp
from timestamp_echo.transports.udp import DatagramBatch

UDP_RATE = 1000
"""Datagrams a second that are answered per source, by default."""

LOG_INTERVAL = 10.0
"""Seconds over which unanswered datagrams are counted before the log has a line about them."""

_PRIVILEGED = 1024  # below this are the services that a forged datagram would set on this one

_BUCKETS = 2**14

_BRACKET = ord("[")

_NOT_SENT = "impossible to send"
# A peer can cause this at will: a reply that does not fit into a datagram (65,507 bytes over
# IPv4), the broadcast address of a local network, or an address without a route back.

_CACHED_SOURCES = 2**12  # whose addresses are not parsed again


def refusal(datagram: bytes, host: str, port: int, own_ports: set[int]) -> str:
    """Why a datagram must not be answered; empty if it may be.

    @param host: the source's IP address.
    @param port: the source's port.
    @param own_ports: the UDP ports that this service listens on.
    """
    if port < _PRIVILEGED:
        return "from a port under 1024"
    if port in own_ports:
        return "from one of this service's own ports"
    if not _is_unicast(host):
        return "not from a single host"
    if datagram and datagram[0] == _BRACKET and b"] " in datagram:
        # It looks like a reply, in any style of stamp: no reply is ever answered.
        return "like a reply"
    return ""


@lru_cache(_CACHED_SOURCES)
def _is_unicast(host: str) -> bool:
    address = parse_ip(host)
    return not (address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255")


@lru_cache(_CACHED_SOURCES)
def _bucket(host: str) -> int:
    return hash(network_key(host)) % _BUCKETS


class RateLimit:
    """A limit of answers per second for each source: an IPv4 /24, an IPv6 /64.

    It takes the same memory however many sources there are, or are forged: they share `_BUCKETS`
    counters, by a hash that cannot be foretold from outside (PYTHONHASHSEED). Whoever wants to
    use up another source's share has to use up nearly all counters.

    @param limit: answers per second.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begin = self._end = 0  # of the current second, in nanoseconds
        self._counts = array("L", [0])

    def allows(self, host: str, moment: int) -> bool:
        """Count a datagram of this source, and decide whether it may be answered.

        @param moment: when it arrived, in nanoseconds.
        """
        if not self._begin <= moment < self._end:
            self._begin, self._end = moment, moment + SECOND
            self._counts = array("L", bytes(_BUCKETS * self._counts.itemsize))
        bucket = _bucket(host)
        self._counts[bucket] += 1
        return self._counts[bucket] <= self._limit


class TimestampDatagram(DatagramProtocol):
    """The server's side of one UDP port.

    @param stamp: writes the stamps.
    @param clock: for the log.
    @param now: the wall clock, in nanoseconds since the epoch.
    @param rate: how many datagrams per second are answered per source.
    @param own_ports: where all UDP ports of the service add themselves.
    """

    transport: IUDPTransport

    noisy = False  # the service itself logs what it listens on
    _log = Logger()
    _log_call: IDelayedCall | None = None

    def __init__(
        self,
        stamp: Stamp,
        clock: IReactorTime,
        now: Callable[[], int] = time.time_ns,
        rate: int = UDP_RATE,
        own_ports: set[int] | None = None,
    ) -> None:
        self._stamp = stamp
        self._clock = clock
        self._now = now
        self._rate = RateLimit(rate)
        self._own_ports: set[int] = set() if own_ports is None else own_ports
        self._unanswered: Counter[str] = Counter()

    def startProtocol(self) -> None:
        """The port is open."""
        self._own_ports.add(self.transport.getHost().port)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Answer one datagram, or count why not."""
        moment = self._now()
        if self._may_answer(datagram, addr, moment):
            try:
                self.transport.write(self._stamp.prefix(moment) + datagram, addr)
            except (OSError, MessageLengthError):
                self._count(_NOT_SENT)

    def datagramsReceived(self, batch: DatagramBatch) -> None:
        """The same for the datagrams of a batch."""
        now = moment = self._now()
        prefix = b"" if batch.timed else self._stamp.prefix(now)
        for slot in range(batch.count):
            if batch.timed:
                moment = batch.arrival(slot) or now
                prefix = self._stamp.prefix(moment)
            # Only what begins with a bracket might be a reply: no need to copy the others.
            bracket = batch.first_bytes[slot] == _BRACKET
            datagram = batch.message(slot) if bracket else b""
            if self._may_answer(datagram, batch.source(slot), moment):
                batch.reply(slot, prefix)
            else:
                batch.drop(slot)
        for _ in range(batch.send()):
            self._count(_NOT_SENT)

    def _may_answer(self, datagram: bytes, addr: tuple[str, int], moment: int) -> bool:
        host, port = addr
        why = refusal(datagram, host, port, self._own_ports)
        if not why and not self._rate.allows(host, moment):
            why = "over the rate limit"
        if why:
            self._count(why)
        return not why

    def stopProtocol(self) -> None:
        """The port is closed: log what has been counted so far."""
        if self._log_call is not None:
            self._log_call.cancel()
            self._write_log()

    def _count(self, why: str) -> None:
        self._unanswered[why] += 1
        if self._log_call is None:
            self._log_call = self._clock.callLater(LOG_INTERVAL, self._write_log)

    def _write_log(self) -> None:
        self._log_call = None
        counts = ", ".join(f"{count} {why}" for why, count in self._unanswered.most_common())
        self._unanswered.clear()
        self._log.info("datagrams not answered: {counts}", counts=counts)
