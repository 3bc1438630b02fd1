"""Standard input and output: a session's lines come from here, and its replies go here.

`Pipe` and `Terminal` are protocols for Twisted's `StandardIO`: what they receive is standard input,
what they write is standard output. `StandardIO` makes both non-blocking; `restore` undoes that.
A terminal on which lines can be edited has a module of its own, `terminal`.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections import deque
from os import fstat
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer, IReactorFDSet
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client.errors import printable
from timestamp_echo.client.session import Session

if TYPE_CHECKING:  # mypy takes the public name for that of Windows
    from twisted.internet._posixstdio import StandardIO
else:
    from twisted.internet.stdio import StandardIO

PROMPT = b"> "


def greeting(server: str) -> bytes:
    """What a terminal shows first: where the lines go, and how to leave.

    @param server: the server's name.
    """
    line = f"Lines go to {printable(server)}. An empty line or Ctrl-D ends."
    return line.encode() + b"\n"


_CONTROLS = "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029"
"""C0 and C1 controls, except newline and tab, and the line and paragraph separators. A carriage
return passes in front of a newline only: alone, it would overwrite the line."""

_INVISIBLE = (
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
"""Invisible format characters (category Cf): bidirectional controls, which can make a line look
like another one (UAX #9), and those that can hide text in a line, such as tags.

Two of them pass, because emoji, Persian and the scripts of India need them: the zero width joiner
and non-joiner. So do variation selectors, which are not format characters.
"""

_UNSAFE = re.compile(_CONTROLS + _INVISIBLE)


class TerminalEscaper:
    r"""Escapes what could do harm on a terminal, wherever the replies are split.

    UTF-8 passes. Control characters, and bytes that are not UTF-8, become escapes such as `\x1b`.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._return = ""  # a carriage return at the end of a piece, which a newline may follow

    def escape(self, data: bytes) -> bytes:
        """Escape the next bytes of the replies."""
        text = self._return + self._decoder.decode(data)
        self._return = "\r" if text.endswith("\r") else ""
        return _escaped(text.removesuffix("\r"))

    def flush(self) -> bytes:
        """Escape what was held back at the end: an unfinished character, a carriage return."""
        return _escaped(self._return + self._decoder.decode(b"", final=True))


def _escaped(text: str) -> bytes:
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text).encode()


class _StandardIO(StandardIO):
    """Twisted's standard input and output, which also tells whether reading failed."""

    def childConnectionLost(self, fd: str, reason: Failure) -> None:
        """See `StandardIO`: its reader, or writer, has ended."""
        if fd == "read" and not reason.check(ConnectionDone):
            cast(Pipe, self.protocol).input_failed = True
        super().childConnectionLost(fd, reason)


@implementer(IHalfCloseableProtocol)
class Pipe(Protocol):
    """Standard input that is no terminal: lines are sent as fast as the server takes them.

    @param terminal: whether standard output is a terminal. If not, it gets the replies byte for
        byte.
    """

    session: Session
    transport: StandardIO  # its type, unlike ITransport, has the methods of a producer

    input_failed = False
    """Whether standard input could not be read. To the session that is its end, like any other."""

    _why = ""

    def __init__(self, terminal: bool = False) -> None:
        self.ended: Deferred[str] = Deferred()
        """Fires with the reason for the end; with an empty one if all went well."""
        self._escaper = TerminalEscaper() if terminal else None
        self._at_start = True  # of a line, on standard output
        self._blocking: list[bool] = []

    def start(self, server: str, reactor: IReactorFDSet) -> None:
        """Connect it to standard input and output.

        @param server: the server's name.
        @param reactor: the reactor.
        """
        self._blocking = [os.get_blocking(fd) for fd in (0, 1)]
        _StandardIO(self, reactor=reactor)

    def restore(self) -> None:
        """Make standard input and output as blocking as before.

        Non-blocking is a flag of the open file (O_NONBLOCK, fcntl(2)), not of the process. The
        shell, and every other program on the terminal, has the same open file, and would get EAGAIN
        for a read.
        """
        for fd, was_blocking in enumerate(self._blocking):
            os.set_blocking(fd, was_blocking)

    def connectionMade(self) -> None:
        """Make standard input and output, and the session, each other's producer and consumer.

        So a slow server pauses the reading of input, and a slow reader of output pauses the
        receiving of replies: nothing is buffered without a bound.
        """
        # It declares IProducer only, but has all methods of a push producer.
        self.session.register_producer(cast(IPushProducer, self.transport))
        self.transport.registerProducer(self.session, True)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`: standard input."""
        self.session.write(data)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`: standard input has ended; replies still come."""
        self.session.finish()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`: standard output failed (`| head`, or a full disk)."""
        self.session.abort()
        self._end(_output_error())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`: the rest of the output is written, or it failed."""
        self._end("" if reason.check(ConnectionDone) else _output_error())

    def replied(self, data: bytes) -> None:
        """See `SessionListener.replied`."""
        if self._escaper:
            self._show(self._escaper.escape(data))
        else:
            self.transport.write(data)

    def answered(self) -> None:
        """See `SessionListener.answered`."""

    def over(self, why: str) -> None:
        """See `SessionListener.over`: end as soon as the replies are written."""
        if self.transport is not None and not self.ended.called:
            self._why = why
            if self._escaper:
                self._show(self._escaper.flush())
                self._start_line()
            # A registered producer would be asked for more before the output closes.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _show(self, data: bytes) -> None:
        """Write to a terminal."""
        if data:
            self._at_start = data.endswith(b"\n")
            self.transport.write(data)

    def _start_line(self) -> None:
        """End an unfinished line on the terminal: an error, or the shell's prompt, comes next."""
        if not self._at_start:
            self._show(b"\n")

    def _end(self, why: str) -> None:
        if not self.ended.called:
            self.ended.callback(why or self._why)


class Terminal(Pipe):
    """Standard input that is a plain terminal: a prompt, a line, its reply; an empty line ends it.

    The terminal edits and echoes the lines itself (canonical mode, termios(3)): this reads whole
    lines, and Ctrl-D at the start of a line is the end of input. While a reply is awaited, standard
    input is not read: what the user types meanwhile stays in the terminal's queue.

    @param terminal: whether standard output is a terminal, too. If not, it gets no greeting and no
        prompt.
    """

    def __init__(self, terminal: bool) -> None:
        super().__init__(terminal)
        self._lines: deque[bytes] = deque()
        self._partial = b""
        self._waiting = False  # for the reply to a line
        self._input_ended = False
        self._finished = False
        self._greeting = b""

    def start(self, server: str, reactor: IReactorFDSet) -> None:
        """See `Pipe.start`."""
        if self._escaper:
            self._greeting = greeting(server)
        super().start(server, reactor)

    def connectionMade(self) -> None:
        """See `Pipe.connectionMade`; and greet and prompt."""
        super().connectionMade()
        self._show(self._greeting)
        self._prompt()

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`: a line, or several that were typed ahead or pasted."""
        self._at_start = data.endswith(b"\n")  # the terminal has echoed it
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._lines.extend(line + b"\n" for line in lines)
        self._next()

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`: Ctrl-D, or two in a line (the first sends its start)."""
        self._input_ended = True
        if self._escaper:
            self._start_line()  # so that the shell's prompt starts a line
        if self._partial:
            self._lines.append(self._partial)
        self._next()

    def answered(self) -> None:
        """See `SessionListener.answered`: prompt for the next line."""
        if self._waiting:
            self._waiting = False
            self.transport.resumeProducing()
            self._prompt()
            self._next()

    def _prompt(self) -> None:
        if self._escaper and not self._input_ended:
            self._show(PROMPT)

    def _next(self) -> None:
        """Send the next line, or finish, unless a reply is still awaited."""
        if self._waiting or self._finished:
            return
        if self._lines and self._lines[0] != b"\n":
            self._send(self._lines.popleft())
        elif self._lines or self._input_ended:  # an empty line, or Ctrl-D
            self._finish()

    def _send(self, line: bytes) -> None:
        self.session.write(line)
        if line.endswith(b"\n"):
            self._waiting = True
            self.transport.pauseProducing()
        else:  # Ctrl-D within a line: the last; its reply is whole when the server closes
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        self.session.finish()


def _output_error() -> str:
    """Why standard output failed. A pipe or socket without a reader is no error: `| head`."""
    mode = fstat(1).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return ""
    return "standard output could not be written"
