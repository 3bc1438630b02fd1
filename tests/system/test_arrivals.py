"""Tests for `timestamp_echo.transports.arrivals`."""

from __future__ import annotations

import socket
import time

from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.transports.arrivals import LINUX, TimedSocket, from_ancillary


class ArrivalTests(SynchronousTestCase):
    """The kernel's word in a read's ancillary data."""

    def test_without(self) -> None:
        """Where there is none, or only others, the arrival is not known."""
        self.assertEqual(from_ancillary([]), 0)
        self.assertEqual(from_ancillary([(socket.SOL_SOCKET, 1, b""), (41, 50, b"")]), 0)


class TimedSocketTests(SynchronousTestCase):
    """`TimedSocket`, over loopback."""

    if not LINUX:
        skip = "the kernel's arrival time is Linux's"

    def test_datagrams(self) -> None:
        """It reads as its socket does, and knows when what it read arrived."""
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            plain.bind(("127.0.0.1", 0))
            timed = TimedSocket(plain)
            sender.bind(("127.0.0.1", 0))
            _, port = sender.getsockname()
            arrivals = []
            for _ in range(200):  # the kernel begins a moment after it is first asked
                before = time.time_ns()
                sender.sendto(b"a", timed.getsockname())
                self.assertEqual(timed.recvfrom(10), (b"a", ("127.0.0.1", port)))
                sender.sendto(b"b", timed.getsockname())
                self.assertEqual(timed.recv(10), b"b")
                if timed.arrival:
                    arrivals.append(before <= timed.arrival <= time.time_ns())
            self.assertTrue(arrivals and all(arrivals))
