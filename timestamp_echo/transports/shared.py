"""Sockets that several processes have: one of them is woken for each event, in turn.

Several services may inherit one socket (systemd.service(5), `Sockets=`). By default the kernel then
wakes all of them for each connection, and the quickest one takes it: measured with four processes,
800 connections were spread 118, 71, 27 and 584. With EPOLLEXCLUSIVE (epoll_ctl(2)) it wakes only
one, but always the first in its queue. So each process goes to the end of the queue when it has
taken something, as nginx does (`ngx_reorder_accept_events`): 200 each. Knows a reactor and a file
descriptor; no message.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IDelayedCall

from timestamp_echo.transports.epoll import watch_exclusively

LOOK_INTERVAL = 0.5
"""Seconds after which a process checks a shared socket without being woken. The process that was
woken for it may be about to end, may have been killed, or may hang."""


class SharedSocket(FileDescriptor):
    """A port whose socket other processes may have, too: a base class before one of Twisted's."""

    reactor: Any  # IReactorFDSet and IReactorTime

    inherited = False
    """Whether the socket, with all that is queued in it, outlives this process."""

    _look_call: IDelayedCall | None = None  # while this process is in the kernel's queue

    def startReading(self) -> None:
        """See `FileDescriptor.startReading`."""
        super().startReading()
        if self.inherited and self._look_call is None:
            self._look()

    def stopReading(self) -> None:
        """See `FileDescriptor.stopReading`."""
        super().stopReading()
        if self._look_call is not None:
            self._look_call.cancel()
            self._look_call = None

    def end_turn(self) -> None:
        """Something was taken from the socket: give another process the next turn."""
        if self._look_call is not None:
            watch_exclusively(self.reactor, self.fileno())

    def _look(self) -> None:
        # Watching it anew also reports what is already in the socket.
        if watch_exclusively(self.reactor, self.fileno()):
            self._look_call = self.reactor.callLater(LOOK_INTERVAL, self._look)
