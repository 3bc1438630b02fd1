"""Reports the state of the service to systemd, by the protocol of sd_notify(3).

Knows a datagram socket and a clock; neither ports nor connections. It is imported only where
systemd, or another supervisor, asks for notifications.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from timestamp_echo.server.log import describe, escape


class Notifier:
    """Sends notifications to `$NOTIFY_SOCKET`.

    One that cannot be sent is lost, and the log says so: the service goes on, and never waits.

    @param environment: has NOTIFY_SOCKET, a path or, with an @ in front, an abstract name; and,
        where a watchdog is wanted, WATCHDOG_USEC and WATCHDOG_PID (sd_watchdog_enabled(3)).
    @param clock: the reactor. If it hangs, the watchdog gets no messages, as intended.
    """

    _log = Logger()

    def __init__(self, environment: Mapping[str, str], clock: IReactorTime) -> None:
        self._environment = environment
        self._address = os.fsencode(environment["NOTIFY_SOCKET"])
        if self._address.startswith(b"@"):
            self._address = b"\0" + self._address[1:]
        self._watchdog = LoopingCall(self._send, "WATCHDOG=1")
        self._watchdog.clock = clock
        # Kept open, so that the watchdog is fed even while the file table is full.
        self._socket: socket.socket | None = None
        self._failed = False  # and logged

    def notify(self, state: str) -> None:
        """Send a state.

        @param state: READY (the first one starts the watchdog's timer), RELOADING, or STOPPING.
        """
        message = f"{state}=1"
        if state == "RELOADING":
            # CLOCK_MONOTONIC, by which systemd tells this reload from an earlier one.
            message += f"\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
        self._send(message)
        interval = self._interval()
        if state == "READY" and interval and not self._watchdog.running:
            self._watchdog.start(interval, now=False)

    def _interval(self) -> float:
        """Seconds between messages to the watchdog, half of its timeout; 0 if there is none."""
        timeout = self._environment.get("WATCHDOG_USEC", "")
        own = str(os.getpid())  # now that twistd has forked, if it does
        if not timeout.isdecimal() or self._environment.get("WATCHDOG_PID", own) != own:
            return 0
        return int(timeout) / 2e6

    def _send(self, message: str) -> None:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(message.encode(), self._address)
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._log.error(
                    "cannot notify systemd at {where}: {why}",
                    where=escape(self._environment["NOTIFY_SOCKET"]),
                    why=escape(describe(error)),
                )
            self._failed = True
