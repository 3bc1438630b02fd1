"""Tests for `timestamp_echo.client.errors`."""

from OpenSSL.SSL import Error
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.client.errors import lost, unreachable


class VerificationError(Exception):
    """Called as service_identity's is."""


class ReportTests(SynchronousTestCase):
    """The one line on standard error."""

    def test_unreachable(self) -> None:
        """What was tried, and why it failed, in words and in one line."""
        hint = " (--ca FILE names another authority, --insecure goes without one)"
        for error, words in (
            (DNSLookupError("x"), "name not found"),
            (TimeoutError(), "no answer in time"),
            (ConnectionRefusedError(111, "x"), "Connection refused"),
            (
                ConnectError(string="strange\nthings"),
                "An error occurred while connecting: strange things.",
            ),
            (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
            (ValueError(), "ValueError"),
            (Error([("SSL routines", "", "wrong version number")]), "wrong version number"),
            (
                Error([("SSL routines", "", "certificate verify failed")]),
                "certificate verify failed" + hint,
            ),
            (VerificationError("errors"), "the certificate is for another name" + hint),
        ):
            self.assertEqual(unreachable("host:1", error), f"cannot connect to host:1: {words}")

    def test_lost(self) -> None:
        """How many replies are missing, or that only the connection is."""
        self.assertEqual(
            lost("host:1", "why", 2, 5), "2 of 5 lines were not answered by host:1: why"
        )
        self.assertEqual(lost("host:1", "why", 0, 5), "host:1: why")
