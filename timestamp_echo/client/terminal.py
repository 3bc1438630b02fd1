"""A terminal on which lines are edited, by GNU readline.

Readline is used through its functions for event loops ("Alternate Interface" in its manual): the
reactor says when there is a key to read. `input` would need a thread of its own, where it could
neither be ended when the connection is lost nor be told to draw the line again after `fg`. Python
has no names for these functions, so they are called through ctypes, in the library that its module
`readline` is linked with.

Knows a terminal, the history and a session; not which server that is.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import termios
from collections import deque
from contextlib import suppress
from ctypes import CDLL, CFUNCTYPE, c_char_p, c_int, c_void_p, string_at
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from timestamp_echo.client.history import History, history_file
from timestamp_echo.client.session import Session
from timestamp_echo.client.stdio import PROMPT, TerminalEscaper, greeting

SETTINGS = (
    "set enable-bracketed-paste on",
    "tab: self-insert",
    "set convert-meta off",
)
"""For readline (readline(3)): pasted text is part of the line, even newlines and tabs, and so is
every byte above 127, which in the C locale would be a key with Meta."""

_Handler = CFUNCTYPE(None, c_void_p)  # rl_vcpfunc_t: gets a line, or NULL


def edited_terminal() -> EditedTerminal | None:
    """The terminal on standard input and output.

    @return: None if lines cannot be edited on it: it is dumb, or there is no GNU readline.
    """
    library = None if os.environ.get("TERM", "") in ("", "dumb") else _gnu_readline()
    if library is None:
        return None
    history = History(history_file(os.environ))
    return EditedTerminal(Readline(library), history, sys.stdout.buffer)


def _gnu_readline() -> CDLL | None:
    """The library of Python's module `readline`; None if it is missing, or not GNU's."""
    with suppress(ImportError, AttributeError, OSError):
        import readline

        # Not every Python has the module as a file of its own, and it may be linked with libedit,
        # which has not all of the functions. This is the newest of those used here (readline 7.0).
        library = CDLL(readline.__file__)
        library.rl_clear_visible_line.argtypes = []
        return library
    return None


class Readline:
    """Edits one line at a time on the terminal, which is standard input and output.

    While no line is edited, the terminal neither echoes nor collects lines: what is typed ahead is
    kept as it is, and shown when the next line is edited. In canonical mode (termios(3)) it would
    be shown twice, and no line could have more than 4,095 bytes.

    @param library: the library, a parameter because a Python may lack it.
    """

    def __init__(self, library: Any) -> None:
        import readline

        self.line: bytes | None = None
        """The line that was entered last, without its newline; None for Ctrl-D."""
        self.ends_line = c_int.in_dll(library, "rl_readline_version").value >= 0x801
        """Whether the cursor is at the start of a line after Ctrl-D."""
        self._library = library
        self._editing = False
        self._saved = termios.tcgetattr(0)
        self._handler = _Handler(self._entered)  # kept: the library has only its address
        library.rl_free.argtypes = [c_void_p]
        library.rl_callback_handler_install.argtypes = [c_char_p, _Handler]
        for name in ("rl_catch_signals", "rl_catch_sigwinch"):
            c_int.in_dll(library, name).value = 0  # `EditedTerminal.start` handles them
        for setting in SETTINGS:
            readline.parse_and_bind(setting)

    def remember(self, line: bytes) -> None:
        """Add a line to those that the arrow keys and Ctrl-R find."""
        self._library.add_history(c_char_p(line))

    def ask(self) -> None:
        """Write the prompt and let a line be edited."""
        self._editing = True
        self._set_mode(echo=True)  # readline echoes only where the terminal did
        self._library.rl_reset_screen_size()
        self._library.rl_callback_handler_install(PROMPT, self._handler)

    def read(self) -> bool:
        """Read a key, or all of what is pasted; return whether a line was entered."""
        self._library.rl_callback_read_char()
        if not self._editing:
            self._set_mode(echo=False)
        return not self._editing

    def _entered(self, line: int | None) -> None:
        self._editing = False
        self.line = None if line is None else string_at(line)
        self._library.rl_free(line)
        self._library.rl_callback_handler_remove()

    def hide(self) -> None:
        """Clear the prompt and the line, which may have several rows."""
        self._library.rl_clear_visible_line()
        self._library.fflush(None)

    def show(self) -> None:
        """Show them again, where the cursor is."""
        self._library.rl_on_new_line()
        self._library.rl_forced_update_display()

    def resize(self) -> None:
        """Adapt to the size of the window."""
        if self._editing:
            self._library.rl_resize_terminal()

    def suspend(self) -> None:
        """Stop the process, as Ctrl-Z does: the shell gets the terminal as it was."""
        self.restore()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self.resume()

    def resume(self) -> None:
        """Take the terminal, and draw the line again: others have used it meanwhile."""
        self._library.rl_deprep_terminal()
        self._set_mode(echo=self._editing)
        if self._editing:
            self._library.rl_reset_screen_size()
            self._library.rl_prep_terminal(1)
            self._library.rl_on_new_line()
            self.hide()
            self.show()

    def restore(self) -> None:
        """Leave the terminal as it was, unless it is gone, or the shell has it back already.

        A process in the background that touches its terminal is stopped (SIGTTOU): `kill` would
        never end it.
        """
        with suppress(OSError, termios.error):
            if os.tcgetpgrp(0) == os.getpgrp():
                self._library.rl_deprep_terminal()
                set_terminal(self._saved)

    def _set_mode(self, echo: bool) -> None:
        mode = [*self._saved[:6], [*self._saved[6]]]
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[3] |= termios.ECHO if echo else 0
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        set_terminal(mode)


def set_terminal(mode: list[Any]) -> None:
    """Set the mode of the terminal, which is a list as for `tcsetattr`.

    In the background this stops the process; after `fg` the call fails with EINTR, and Python does
    not retry it.
    """
    while True:
        try:
            termios.tcsetattr(0, termios.TCSANOW, mode)
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise
        else:
            return


@implementer(IReadDescriptor)
class EditedTerminal:
    """A prompt, a line, its reply, over and over; an empty line or Ctrl-D ends it.

    No line is edited while a reply is awaited.

    @param editor: edits the lines.
    @param history: keeps them.
    @param output: standard output. Writing to it blocks, so that replies which come faster than
        the terminal takes them wait in the kernel's buffers.
    """

    session: Session

    input_failed = False  # see `Pipe`; a terminal that is gone counts as end of input

    _reactor: Any  # an `IReactorFDSet` and `IReactorFromThreads`

    def __init__(self, editor: Readline, history: History, output: BinaryIO) -> None:
        self.ended: Deferred[str] = Deferred()
        """Fires with the reason for the end; with an empty one if all went well."""
        self._editor = editor
        self._history = history
        self._output = output
        self._escaper = TerminalEscaper()
        self._lines: deque[bytes] = deque()  # of a paste, that are still to be sent
        self._editing = self._waiting = False
        self._at_start = True  # of a line, on standard output

    def start(self, server: str, reactor: IReactorFDSet) -> None:
        """Greet, and prompt for the first line.

        @param server: the server's name.
        @param reactor: the reactor.
        """
        self._reactor = reactor
        os.set_blocking(1, True)  # the previous program may have left it non-blocking
        for number, act in (
            (signal.SIGTSTP, self._editor.suspend),
            (signal.SIGCONT, self._editor.resume),
            (signal.SIGWINCH, self._editor.resize),
        ):
            # Without job control, a shell starts its children with the signal ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_, act=act: self._reactor.callFromThread(act))
        for line in self._history.lines:
            self._editor.remember(line)
        self._write(greeting(server))
        self._next()

    def restore(self) -> None:
        """Leave the terminal as it was."""
        self._editor.restore()

    def fileno(self) -> int:
        """See `IFileDescriptor.fileno`: standard input."""
        return 0

    def logPrefix(self) -> str:
        """See `ILoggingContext.logPrefix`."""
        return "terminal"

    def doRead(self) -> None:
        """See `IReadDescriptor.doRead`: a key was pressed."""
        if self._editor.read():
            self._stop_editing()
            self._entered(self._editor.line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IFileDescriptor.connectionLost`: the terminal is gone."""
        self._stop_editing()
        self.session.finish()

    def _stop_editing(self) -> None:
        self._editing = False
        self._reactor.removeReader(self)

    def _entered(self, text: bytes | None) -> None:
        """Send what was entered: a line, or several if they were pasted; None for Ctrl-D."""
        self._at_start = text is not None or self._editor.ends_line
        if text is None or not text.strip(b"\n"):
            self._start_line()
            self.session.finish()
        else:
            self._lines.extend(text.removesuffix(b"\n").split(b"\n"))
            self._next()

    def _next(self) -> None:
        """Send the next line, or prompt for it."""
        if self._lines:
            self._waiting = True
            self._send(self._lines.popleft())
        else:
            self._start_line()
            self._editing = True
            self._editor.ask()
            self._reactor.addReader(self)

    def _send(self, line: bytes) -> None:
        if self._history.add(line):
            self._editor.remember(line)
        self.session.write(line + b"\n")

    def replied(self, data: bytes) -> None:
        """See `SessionListener.replied`. What comes unasked is shown above the prompt."""
        if self._editing:
            self._editor.hide()
        self._write(self._escaper.escape(data))
        if self._editing:
            self._start_line()
            self._editor.show()

    def answered(self) -> None:
        """See `SessionListener.answered`: go on with the next line."""
        if self._waiting:
            self._waiting = False
            self._next()

    def over(self, why: str) -> None:
        """See `SessionListener.over`: an error, or the shell's prompt, comes next."""
        if self._editing:
            self._stop_editing()
            self._editor.hide()
        self._write(self._escaper.flush())
        self._start_line()
        self.restore()
        self.ended.callback(why)

    def _write(self, data: bytes) -> None:
        if data:
            self._at_start = data.endswith(b"\n")
            with suppress(OSError):  # the terminal is gone; `connectionLost` tells the session
                self._output.write(data)
                self._output.flush()

    def _start_line(self) -> None:
        if not self._at_start:
            self._write(b"\n")
