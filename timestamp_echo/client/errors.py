"""The messages that the client prints on standard error, and its exit statuses."""

from __future__ import annotations

import os
import sys
from functools import singledispatch

from twisted.internet.error import (
    ConnectError,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
    TimeoutError,
)

ANSWERED = 0
"""Exit status: every line was answered, and nothing else came."""

MISSING = 1
"""Exit status: the connection was lost, replies are missing, or something else came."""

UNREACHABLE = 2
"""Exit status: wrong usage, or no connection (name not found, connection refused)."""

MAX_QUOTED = 200
"""Maximum number of characters that are shown of what a server sent."""

TLS_ALERT = b"\x15\x03"
"""How an alert of TLS begins (RFC 8446, section 5.1), with which many refuse plain text."""

_NO_TLS = "the server does not speak TLS on this port"
_TLS_REASONS = {
    # What OpenSSL finds where it expects the server's first record.
    "wrong version number": _NO_TLS,
    "record layer failure": _NO_TLS,
    "packet length too long": _NO_TLS,
    "unexpected message": _NO_TLS,  # a plain echo returns the client's own record
    # The server's alerts (RFC 8446, section 6.2).
    "alert certificate required": "the server asks for a client certificate (--cert FILE)",
    # TLS 1.2 servers send this instead, but so does one that has no cipher in common.
    "alert handshake failure": "the server refuses the TLS handshake;"
    " does it ask for a client certificate (--cert FILE)?",
    "alert protocol version": "the server supports no version of TLS that this client accepts",
    "alert unknown ca": "the server does not know the authority of the client certificate",
}
"""OpenSSL's reasons, without the version of TLS in front of an alert, and what they mean."""

_OTHER_NAME = "the certificate is for another name"
_NOT_VERIFIED = (_OTHER_NAME, "certificate verify failed")  # the second is OpenSSL's
_TRUST_HINT = "(--ca FILE trusts another authority, --insecure skips the verification)"


def print_error(message: str, prog: str = "tsecho") -> None:
    """Print one line on standard error.

    @param message: the text; control characters in it are escaped, so that it stays one line.
    @param prog: the command that prints it, the first word of the line.
    """
    if sys.stderr is not None:  # None if fd 2 is closed; print would then use standard output
        try:
            print(f"{prog}: {printable(message)}", file=sys.stderr)
        except OSError:  # a full disk
            sys.stderr = None  # or Python tries again at its end, and makes the exit status 120


def printable(text: str) -> str:
    r"""Escape what a terminal would not show as it is, such as `\n`, `\x1b` or `\u202e`."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def quoted(text: str) -> str:
    """Show a value that the user typed: in single quotes, and printable.

    It is not `repr`, which doubles backslashes and changes the quotes.
    """
    return f"'{printable(text)}'"


def first_line(text: bytes) -> str:
    """Show the first line of what a server sent: quoted, and cut if it is long."""
    line = text.partition(b"\n")[0].removesuffix(b"\r").decode(errors="surrogateescape")
    return quoted(line if len(line) <= MAX_QUOTED else f"{line[:MAX_QUOTED]}...")


def no_reply(text: bytes) -> str:
    """Say what a server sent that is no reply."""
    if text.startswith(TLS_ALERT):
        return "the server speaks TLS on this port; use tls:host:port"
    return f"the server sent {first_line(text)}, which is not a reply"


def connect_error(name: str, error: BaseException | None) -> str:
    """Say that there is no connection to a server, and why."""
    return f"cannot connect to {name}: {reason(error)}"


def session_error(name: str, why: str, missing: int, sent: int) -> str:
    """Say why a session ended, and how many of its lines have no reply.

    @param name: the server.
    @param why: the reason.
    @param missing: lines without a reply.
    @param sent: all lines.
    """
    if missing:
        return f"{missing} of {sent} lines were not answered by {name}: {why}"
    return f"{name}: {why}"


def not_installed(package: str, extra: str) -> str:
    """Say that a package is missing, and by which extra it comes.

    It does not say how to install it: tsecho may come from pip, pipx, a distribution or a clone.
    """
    return f"needs the package {package} (the extra '{extra}' of tsecho), which is not installed"


def openssl_reason(error: object) -> str:
    """The last reason in an error of pyOpenSSL's; empty if it is none.

    The argument of `OpenSSL.SSL.Error` and `OpenSSL.crypto.Error` is OpenSSL's error queue, oldest
    first: triples of library, function and reason. The last one was set by the outermost call.
    """
    match getattr(error, "args", ()):
        case ([*_, (_, _, str(text))],):
            return text
    return ""


@singledispatch
def reason(error: object) -> str:
    """Why a connection failed or was lost, as text in one line.

    The error's type selects the function, and this one is the fallback. pyOpenSSL's and
    service_identity's types cannot have their own, because the extra may be missing.
    """
    text = openssl_reason(error) or _one_line(error)
    text = _TLS_REASONS.get(text[max(0, text.find("alert ")) :], text)
    if type(error).__name__ == "VerificationError":  # service_identity's
        text = _OTHER_NAME
    return f"{text} {_TRUST_HINT}" if text in _NOT_VERIFIED else text


@reason.register
def _(error: DNSLookupError) -> str:
    return "no address found for this name"  # or none of the family that -4 or -6 asks for


@reason.register
def _(error: ConnectionDone) -> str:
    return "the server closed the connection"


@reason.register
def _(error: ConnectionLost) -> str:
    return "the connection was lost"


@reason.register
def _(error: TimeoutError) -> str:
    return "no answer in time"


@reason.register
def _(error: ConnectError) -> str:
    # Some kinds of endpoint put a text where the error number belongs.
    known = isinstance(error.osError, int)
    return os.strerror(error.osError) if known else _one_line(error)


@reason.register
def _(error: OSError) -> str:
    return error.strerror or _one_line(error)


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _escaped(char: str) -> str:
    # Python decodes bytes of the command line that are not UTF-8 to these surrogates (PEP 383).
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return ascii(char)[1:-1]
