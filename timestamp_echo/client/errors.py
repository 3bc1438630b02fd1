"""What the client says in the end: a line on standard error, and the exit status."""

from __future__ import annotations

import os
import sys

from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError

ANSWERED = 0
"""Exit status: every line was answered."""

MISSING = 1
"""Exit status: the connection was lost, or replies are missing."""

UNREACHABLE = 2
"""Exit status: usage, name not found, connection refused."""


def say(words: str) -> None:
    """Say something on standard error."""
    if sys.stderr is not None:  # it may be closed; print would then take standard output
        print(f"tsecho: {words}", file=sys.stderr)


def unreachable(name: str, error: BaseException | None) -> str:
    """Why there is no talking to this server."""
    return f"cannot connect to {name}: {_reason(error)}"


def lost(name: str, why: str, missing: int, sent: int) -> str:
    """What became of the lines that were sent, and why it ended."""
    if missing:
        return f"{missing} of {sent} lines were not answered by {name}: {why}"
    return f"{name}: {why}"


def _reason(error: BaseException | None) -> str:
    """The cause of a failed connection, in one line."""
    if isinstance(error, DNSLookupError):
        return "name not found"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectError) and isinstance(error.osError, int):
        return os.strerror(error.osError)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = _openssl_reason(error) or " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ == "VerificationError":  # service_identity's
        words = "the certificate is for another name"
    if "certificate" in words:
        words += " (--ca FILE names another authority, --insecure goes without one)"
    return words


def _openssl_reason(error: BaseException | None) -> str:
    """The last reason in an `OpenSSL.SSL.Error`.

    Its argument is OpenSSL's queue of errors: triples of library, function and reason.
    """
    match getattr(error, "args", ()):
        case ([*_, (_, _, str(reason))],):
            return reason
    return ""
