"""Datagrams: each is a message, and its reply goes back to where it came from.

Knows a stamp and a port; no connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.error import MessageLengthError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from timestamp_echo.stamps import Stamp


class TimestampDatagram(DatagramProtocol):
    """The server's side of one UDP port.

    @param stamp: the writer of stamps.
    @param now: the wall clock, in nanoseconds since the epoch.
    """

    noisy = False  # the service says what it listens on
    transport: Any  # IUDPTransport, which may know the arrival time

    _log = Logger()

    def __init__(self, stamp: Stamp, now: Callable[[], int] = time.time_ns) -> None:
        self._stamp = stamp
        self._now = now
        self.answered = 0
        self.unanswered = 0

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer one datagram.

        What the sending raises is counted, for a peer can cause it at will: a reply too
        long for a datagram (65,507 bytes over IPv4), source port 0, no route back.
        """
        arrival = getattr(self.transport, "arrival", 0) or self._now()
        try:
            self.transport.write(self._stamp.prefix(arrival) + datagram, addr)
        except (OSError, MessageLengthError):
            self.unanswered += 1
        else:
            self.answered += 1

    def stopProtocol(self) -> None:
        """The port is closed: say what became of the datagrams."""
        self._log.info(
            "datagrams: {answered} answered, {unanswered} could not be",
            answered=self.answered,
            unanswered=self.unanswered,
        )
