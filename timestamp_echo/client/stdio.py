"""The two users of a session: a person at a terminal, and a pipe.

Both are protocols for Twisted's `StandardIO`: what they receive is standard input, what
they write is standard output.
"""

from __future__ import annotations

import codecs
import re
import stat
from collections import deque
from os import fstat
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client.session import Session

PROMPT = b"> "

# C0 and C1 but newline and tab; separators, embeddings and overrides of direction, which can
# make a line look like another. A carriage return passes where it belongs to the newline.
_HARMFUL = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Display:
    """Makes replies harmless for a terminal, however they are cut.

    UTF-8 passes. Control characters and bytes that are no UTF-8 are shown as escapes.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._return = ""

    def shown(self, data: bytes) -> bytes:
        """What to write for the next bytes of the replies."""
        text = self._return + self._decoder.decode(data)
        self._return = "\r" if text.endswith("\r") else ""
        return self._escaped(text.removesuffix("\r"))

    def rest(self) -> bytes:
        """What to write at the end of the replies: what was held, for it might have gone on."""
        return self._escaped(self._return + self._decoder.decode(b"", final=True))

    def _escaped(self, text: str) -> bytes:
        return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text).encode()


@implementer(IHalfCloseableProtocol)
class Pipe(Protocol):
    """A pipe: each line is sent as fast as the server takes it, each reply written as it is.

    @param terminal: whether standard output is a terminal.
    """

    session: Session
    transport: Any  # a StandardIO

    _why = ""

    def __init__(self, terminal: bool = False) -> None:
        self.ended: Deferred[str] = Deferred()
        """Fires with how it ended, in words; with nothing if all went well."""
        self._display = Display() if terminal else None

    def connectionMade(self) -> None:
        """Standard input and output are there: tie them to the session."""
        self.session.feed_from(self.transport)
        self.transport.registerProducer(self.session, True)

    def dataReceived(self, data: bytes) -> None:
        """Standard input has something."""
        self.session.write(data)

    def readConnectionLost(self) -> None:
        """Standard input has ended."""
        self.session.finish()

    def writeConnectionLost(self) -> None:
        """Nobody reads standard output any more, as behind `| head`; or it is full."""
        self.session.abort()
        self._end(_loss())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Standard output is written out; or, after the server closed, it could not be."""
        self._end("" if reason.check(ConnectionDone) else _loss())

    def replied(self, data: bytes) -> None:
        """See `User.replied`."""
        self.transport.write(self._display.shown(data) if self._display else data)

    def answered(self) -> None:
        """See `User.answered`."""

    def over(self, why: str) -> None:
        """See `User.over`: end as soon as the replies are written out."""
        if self.transport is not None and not self.ended.called:
            self._why = why
            if self._display:
                self.transport.write(self._display.rest())
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _end(self, why: str) -> None:
        if not self.ended.called:
            self.ended.callback(why or self._why)


class Terminal(Pipe):
    """A person: a prompt, a line, its reply; an empty line or Ctrl-D ends it.

    @param terminal: whether standard output is a terminal, too; if not, it gets no prompt.
    """

    def __init__(self, terminal: bool) -> None:
        super().__init__(terminal)
        self._lines: deque[bytes] = deque()
        self._typed = b""
        self._waiting = False
        self._ended = False  # there is no more to come from the person
        self._done = False

    def connectionMade(self) -> None:
        """Standard input and output are there."""
        super().connectionMade()
        self._prompt()

    def dataReceived(self, data: bytes) -> None:
        """The person typed something, perhaps ahead of the reply."""
        *lines, self._typed = (self._typed + data).split(b"\n")
        self._lines.extend(line + b"\n" for line in lines)
        self._next()

    def readConnectionLost(self) -> None:
        """Ctrl-D, perhaps twice and within a line."""
        self._ended = True
        if self._display:
            self.transport.write(b"\n")
        if self._typed:
            self._lines.append(self._typed)
        self._next()

    def answered(self) -> None:
        """See `User.answered`: ask for the next line."""
        if self._waiting:
            self._waiting = False
            self.transport.resumeProducing()
            self._prompt()
            self._next()

    def _prompt(self) -> None:
        if self._display and not self._ended:
            self.transport.write(PROMPT)

    def _next(self) -> None:
        if self._waiting or self._done:
            return
        if self._lines and self._lines[0] != b"\n":
            line = self._lines.popleft()
            self.session.write(line)
            self._waiting = line.endswith(b"\n")
            if self._waiting:
                self.transport.pauseProducing()  # what is typed ahead is the terminal's to keep
                return
        if self._lines or self._ended:  # an empty line, or Ctrl-D
            self._done = True
            self.session.finish()


def _loss() -> str:
    """What the loss of standard output means: of a pipe, nothing."""
    mode = fstat(1).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return ""
    return "standard output could not be written"
