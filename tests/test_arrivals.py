"""Tests for `timestamp_echo.arrivals`; `test_batch` and `test_transport` have it on sockets."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.arrivals import arrival


class ArrivalTests(SynchronousTestCase):
    """The kernel's word in a read's ancillary data."""

    def test_without(self) -> None:
        """Where there is none, or only others, the arrival is not known."""
        self.assertEqual(arrival([]), 0)
        self.assertEqual(arrival([(socket.SOL_SOCKET, 1, b""), (41, 50, b"")]), 0)
