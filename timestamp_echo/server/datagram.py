"""Datagrams: each is a message, and its reply goes back to its source, or is not sent.

Knows a stamp and a port; no connection. The source of a datagram is easily forged. So a reply may
reach a host that sent nothing, and two services may answer each other without end (CVE-2024-2169,
VU#417980). This module decides which datagrams are not answered.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from math import inf

from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from timestamp_echo.addresses import network_key, parse_ip
from timestamp_echo.stamps import Stamp
from timestamp_echo.transports.udp import DatagramBatch, DatagramPort

UDP_RATE = 1000
"""Datagrams a second that are answered per source, by default."""

LOG_INTERVAL = 10.0
"""Seconds over which unanswered datagrams are counted for one line in the log."""

_PRIVILEGED = 1024  # below are services that a forged datagram could set up in a loop with this one

_BUCKETS = 2**14

_WINDOW = 1.0  # seconds over which the answers to a source are limited

_SLICE = 0.005  # seconds; the answers in a slice leave the window together, up to two slices late

_BRACKET = ord("[")

_NOT_SENT = "impossible to send"
# A peer can cause this at will: by a datagram whose reply is too long (over 65,507 bytes in IPv4),
# by a source that is a local broadcast address or has no route, or by an IPv4 broadcast to an IPv6
# port, whose reply would leave from the broadcast address.

_TO_GROUP = "to a broadcast or multicast address"
# One datagram from a forged source would have each host of a network answer that source.

_OVERFLOWED = "lost in a full receive buffer"

_LEFT = "left unread at the stop"

_PRIVILEGED_PORT = "from a port under 1024"

_OWN_PORT = "from one of this service's own ports"

_NOT_UNICAST = "not from a single host"

_LIKE_REPLY = "like a reply"

_OVER_RATE = "over the rate limit"

LABELS = {
    _PRIVILEGED_PORT: "privileged_port",
    _OWN_PORT: "own_port",
    _NOT_UNICAST: "source",
    _LIKE_REPLY: "reply",
    _OVER_RATE: "rate",
    _NOT_SENT: "not_sent",
    _TO_GROUP: "group",
    _OVERFLOWED: "overflow",
    _LEFT: "left",
}
"""Why datagrams are not answered, and the label for that in `--status`."""

NOT_RECEIVED = {_OVERFLOWED, _LEFT}
"""The reasons for datagrams that do not count as received."""

_CACHED_SOURCES = 2**12  # the results of parsing this many addresses are kept


def refusal(datagram: bytes, host: str, port: int, own_ports: set[int]) -> str:
    """Why a datagram must not be answered; empty if it may be.

    @param host: the source's IP address.
    @param port: the source's port.
    @param own_ports: the UDP ports that this service listens on.
    """
    if port < _PRIVILEGED:
        return _PRIVILEGED_PORT
    if port in own_ports:
        return _OWN_PORT
    if not _is_unicast(host):
        return _NOT_UNICAST
    if datagram and datagram[0] == _BRACKET and b"] " in datagram:
        # It looks like a reply, in any style of stamp: no reply is ever answered.
        return _LIKE_REPLY
    return ""


@lru_cache(_CACHED_SOURCES)
def _is_unicast(host: str) -> bool:
    address = parse_ip(host)
    return not (address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255")


@lru_cache(_CACHED_SOURCES)
def _bucket(host: str) -> int:
    return hash(network_key(host)) % _BUCKETS


class RateLimit:
    """A limit of answers for each source, an IPv4 /24 or an IPv6 /64, in any window of a second.

    Memory does not grow with the number of sources, forged or not: they share `_BUCKETS` counters,
    by a hash that an attacker cannot predict (PYTHONHASHSEED). To use up the limit of one
    particular source, an attacker has to use up nearly all counters. In addition, each answer of
    the last second takes two bytes.

    @param limit: answers per second.
    """

    def __init__(self, limit: int = UDP_RATE) -> None:
        self._limit = limit
        self._counts = array("L", bytes(_BUCKETS * array("L").itemsize))  # in the window
        self._slices: deque[tuple[float, array[int]]] = deque()  # each with its end, oldest first
        self._slice = array("H")  # the buckets of the answers in the newest one
        self._end = -inf  # of the newest one

    def allows(self, host: str, moment: float) -> bool:
        """Decide whether a datagram of this source may be answered, and count it if so.

        @param moment: the time by a monotonic clock, in seconds.
        """
        if moment >= self._end:
            self._begin_slice(moment)
        bucket = _bucket(host)
        counts = self._counts
        if counts[bucket] >= self._limit:
            return False
        counts[bucket] += 1
        self._slice.append(bucket)
        return True

    def _begin_slice(self, moment: float) -> None:
        counts = self._counts
        while self._slices and self._slices[0][0] + _WINDOW <= moment:
            for bucket in self._slices.popleft()[1]:
                counts[bucket] -= 1
        self._end, self._slice = moment + _SLICE, array("H")
        self._slices.append((self._end, self._slice))


class TimestampDatagram(DatagramProtocol):
    """The server's side of one UDP port.

    @param stamp: writes the stamps.
    @param clock: a monotonic clock, for the rate limit and the log.
    @param now: the wall clock, in nanoseconds since the epoch.
    @param rate: the limit on answers, which all UDP ports of the service share.
    @param own_ports: the port numbers of the service, to which each UDP port adds its own.
    """

    transport: DatagramPort

    noisy = False  # the service itself logs what it listens on
    _log = Logger()

    received = 0
    """How many datagrams there were, answered or not."""

    unanswered: Counter[str]
    """How many were not answered, by the reason."""

    def __init__(
        self,
        stamp: Stamp,
        clock: IReactorTime,
        now: Callable[[], int] = time.time_ns,
        rate: RateLimit | None = None,
        own_ports: set[int] | None = None,
    ) -> None:
        self._stamp = stamp
        self._clock = clock
        self._now = now
        self._rate = RateLimit() if rate is None else rate
        self._own_ports: set[int] = set() if own_ports is None else own_ports
        self.unanswered = Counter()
        self._logged: Counter[str] = Counter()  # those that the log has

    def startProtocol(self) -> None:
        """The port is open."""
        self._port = self.transport  # which is None by the time of `stopProtocol`
        self._own_ports.add(self._port.getHost().port)
        self._log_call = self._clock.callLater(LOG_INTERVAL, self._log_regularly)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Answer one datagram, or count why not."""
        self.received += 1
        if self.transport.to_group:
            self.unanswered[_TO_GROUP] += 1
        elif self._may_answer(datagram, addr, self._clock.seconds()):
            try:
                self.transport.write(self._stamp.prefix(self._now()) + datagram, addr)
            except (OSError, MessageLengthError):
                self.unanswered[_NOT_SENT] += 1

    def datagramsReceived(self, batch: DatagramBatch) -> None:
        """The same for the datagrams of a batch."""
        self.received += batch.count
        now = moment = self._now()
        seconds = self._clock.seconds()
        timed, groups, first_bytes = batch.timed, batch.groups, batch.first_bytes
        prefix = b"" if timed else self._stamp.prefix(now)
        for slot in range(batch.count):
            try:
                if groups and slot in groups:
                    self.unanswered[_TO_GROUP] += 1
                    batch.drop(slot)
                    continue
                if timed:
                    moment = batch.arrival(slot) or now
                    prefix = self._stamp.prefix(moment)
                # Only what begins with a bracket might be a reply: no need to copy the others.
                bracket = first_bytes[slot] == _BRACKET
                datagram = batch.message(slot) if bracket else b""
                if self._may_answer(datagram, batch.source(slot), seconds):
                    batch.reply(slot, prefix)
                else:
                    batch.drop(slot)
            except Exception:
                # One failure must not keep the others from being answered.
                self._log.failure("a datagram could not be answered")
                batch.drop(slot)
        if failed := batch.send():
            self.unanswered[_NOT_SENT] += failed

    def _may_answer(self, datagram: bytes, addr: tuple[str, int], moment: float) -> bool:
        host, port = addr
        why = refusal(datagram, host, port, self._own_ports)
        if not why and not self._rate.allows(host, moment):
            why = _OVER_RATE
        if why:
            self.unanswered[why] += 1
        return not why

    def stopProtocol(self) -> None:
        """The port is closed: log what has been counted so far."""
        self._log_call.cancel()
        self.unanswered[_LEFT] += self._port.unread
        self._write_log()

    def _log_regularly(self) -> None:
        self._log_call = self._clock.callLater(LOG_INTERVAL, self._log_regularly)
        self._write_log()

    def _write_log(self) -> None:
        self.unanswered[_OVERFLOWED] += self._port.overflows()
        unanswered = (self.unanswered - self._logged).most_common()  # only those that occurred
        self._logged = self.unanswered.copy()
        if unanswered:
            counts = ", ".join(f"{count} {why}" for why, count in unanswered)
            self._log.info("datagrams not answered: {counts}", counts=counts)
