"""Tests for `timestamp_echo.client.errors`."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import Mock, patch

from OpenSSL.SSL import Error
from twisted.internet.error import (
    ConnectError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo.client.errors import (
    MAX_QUOTED,
    connect_error,
    no_reply,
    openssl_reason,
    print_error,
    printable,
    quoted,
    reason,
    session_error,
)


class VerificationError(Exception):
    """Has the name of service_identity's."""


class MessageTests(SynchronousTestCase):
    """The messages on standard error."""

    def test_unreachable(self) -> None:
        """A failed connection: the server and the reason, in one line."""
        hint = " (--ca FILE trusts another authority, --insecure skips the verification)"
        for error, message in (
            (DNSLookupError("x"), "no address found for this name"),
            (TimeoutError(), "no answer in time"),
            (ConnectionDone(), "the server closed the connection"),
            (ConnectionLost(), "the connection was lost"),
            (ConnectionRefusedError(111, "x"), "Connection refused"),
            (ConnectError("text"), "An error occurred while connecting: text."),
            (
                ConnectError(string="strange\nthings"),
                "An error occurred while connecting: strange things.",
            ),
            (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
            (ValueError(), "ValueError"),
            (
                Error([("SSL routines", "", "wrong version number")]),
                "the server does not speak TLS on this port",
            ),
            (Error([("SSL routines", "", "no cipher match")]), "no cipher match"),
            (OSError("no\nnumber"), "no number"),
            (
                Error([("SSL routines", "", "certificate verify failed")]),
                "certificate verify failed" + hint,
            ),
            (VerificationError("errors"), "the certificate is for another name" + hint),
        ):
            self.assertEqual(connect_error("host:1", error), f"cannot connect to host:1: {message}")

    def test_full(self) -> None:
        """If it cannot be written, nothing fails, and Python does not try again at its end."""
        with patch("sys.stderr", Mock(write=Mock(side_effect=OSError))):
            print_error("x")
            self.assertIsNone(sys.stderr)
            print_error("x")

    def test_no_reply(self) -> None:
        """What a server sent: its first line, printable and not too long."""
        for text, shown in (
            (b"full\r\nmore\n", "full"),
            (b"\xff\x1b[2J \xe4\xbd\xa0 it's", "\\xff\\x1b[2J 你 it's"),
            (b"x" * MAX_QUOTED, "x" * MAX_QUOTED),
            (b"x" * (MAX_QUOTED + 1), "x" * MAX_QUOTED + "..."),
        ):
            self.assertEqual(no_reply(text), f"the server sent '{shown}', which is not a reply")

    def test_server_of_tls(self) -> None:
        """Its alert for plain text is not shown as text."""
        self.assertEqual(
            no_reply(b"\x15\x03\x01\0\x02\x02\x46"),
            "the server speaks TLS on this port; use tls:host:port",
        )

    def test_alerts(self) -> None:
        """The server's alerts, whatever version of TLS OpenSSL names, and however."""
        for alert, message in (
            (
                "tlsv13 alert certificate required",
                "the server asks for a client certificate (--cert FILE)",
            ),
            (
                "tls alert handshake failure",
                "the server refuses the TLS handshake;"
                " does it ask for a client certificate (--cert FILE)?",
            ),
            (
                "tlsv1 alert unknown ca",
                "the server does not know the authority of the client certificate",
            ),
            ("tlsv1 alert internal error", "tlsv1 alert internal error"),
        ):
            self.assertEqual(reason(Error([("SSL routines", "", alert)])), message)

    def test_openssl_reason(self) -> None:
        """Of several errors in OpenSSL's queue the last is the reason; others have none."""
        queue = [("asn1 encoding routines", "", "too long"), ("PEM routines", "", "ASN1 lib")]
        self.assertEqual(openssl_reason(Error(queue)), "ASN1 lib")
        for error in (Error(), Error([]), ValueError("x"), None):
            self.assertEqual(openssl_reason(error), "")

    def test_session_error(self) -> None:
        """A session that failed: how many lines have no reply, if any, and the reason."""
        self.assertEqual(
            session_error("host:1", "why", 2, 5), "2 of 5 lines were not answered by host:1: why"
        )
        self.assertEqual(session_error("host:1", "why", 0, 5), "host:1: why")

    def test_printable(self) -> None:
        """Text in any script passes; controls and bytes that are not UTF-8 become escapes."""
        self.assertEqual(printable("hé 你 👋 a\\b'c"), "hé 你 👋 a\\b'c")
        self.assertEqual(printable("a\nb\x1b[\u202e"), "a\\nb\\x1b[\\u202e")
        self.assertEqual(printable(b"\x80\xff".decode(errors="surrogateescape")), "\\x80\\xff")
        self.assertEqual(printable("\ud800"), "\\ud800")
        for char in "\u061c\u200b\u200e\u200f\ufeff\U000e0041":  # invisible
            self.assertEqual(printable(char), ascii(char)[1:-1])

    def test_quoted(self) -> None:
        """A value is shown as it was typed, unlike by `repr`."""
        self.assertEqual(quoted("it's a\\b\n"), "'it's a\\b\\n'")

    def test_say(self) -> None:
        """A message is one line, which starts with the command's name."""
        with redirect_stderr(StringIO()) as stderr:
            print_error("a\nb")
            print_error("c", "tsecho ping")
        self.assertEqual(stderr.getvalue(), "tsecho: a\\nb\ntsecho ping: c\n")

    def test_no_stderr(self) -> None:
        """With standard error closed, nothing is printed elsewhere."""
        with redirect_stdout(StringIO()) as stdout, patch("sys.stderr", None):
            print_error("a")
        self.assertEqual(stdout.getvalue(), "")
