"""Notifications to systemd, read from a socket as systemd reads them."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from unittest import SkipTest

from twisted.internet.task import Clock
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import logged
from tests.system.certificates import self_signed
from tests.system.running import PATIENCE, STAMP, Case, Service, fill
from timestamp_echo.server.notify import Notifier

_UCRED = struct.Struct("3i")  # the sender's process, user and group (unix(7))


class Manager:
    """The socket of a service manager.

    @param case: the test, at whose end it is closed.
    @param abstract: whether it has an abstract name (unix(7)), in place of a file.
    """

    def __init__(self, case: Case, abstract: bool = False) -> None:
        if sys.platform != "linux":
            raise SkipTest("systemd runs on Linux only")
        if abstract:
            self.address = f"@tsecho-{os.getpid()}-{id(self)}"
        else:  # `mktemp` may be too long for a UNIX address
            folder = tempfile.mkdtemp()
            case.addCleanup(shutil.rmtree, folder)
            self.address = f"{folder}/notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self._socket.close)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.address.replace("@", "\0"))
        self._socket.settimeout(PATIENCE)

    def received(self) -> tuple[int, str]:
        """Wait for the next notification, and return the sender's process id and the text."""
        text, [(_, kind, credentials)], _, _ = self._socket.recvmsg(
            4096, socket.CMSG_SPACE(_UCRED.size)
        )
        assert kind == socket.SCM_CREDENTIALS
        return _UCRED.unpack(credentials)[0], text.decode()

    def next(self) -> str:
        """The same without the process id, and without the watchdog's messages."""
        while (text := self.received()[1]) == "WATCHDOG=1":
            pass
        return text

    def pending(self, seconds: float = 0) -> list[str]:
        """The texts of those that have come, and of those that follow within this time."""
        texts = []
        while select.select([self._socket], [], [], seconds)[0]:
            texts.append(self.received()[1])
        return texts


class NotifierTests(SynchronousTestCase):
    """`Notifier`, with a clock in memory."""

    def setUp(self) -> None:
        """Make a clock, and record the log."""
        self.clock = Clock()
        self.events = logged(self)

    def notifier(self, address: str, **watchdog: str) -> Notifier:
        """Make a notifier, with these variables of the watchdog."""
        notifier = Notifier({"NOTIFY_SOCKET": address, **watchdog}, self.clock)
        self.addCleanup(self.close, notifier)
        return notifier

    def close(self, notifier: Notifier) -> None:
        """Close its socket, which otherwise stays open until the process ends."""
        if notifier._socket is not None:
            notifier._socket.close()

    def test_states(self) -> None:
        """Each state has its line; a reload its time by the clock that systemd compares."""
        for abstract in (False, True):
            manager = Manager(self, abstract)
            notifier = self.notifier(manager.address)
            notifier.notify("READY")
            self.assertEqual(manager.received(), (os.getpid(), "READY=1"))
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            notifier.notify("RELOADING")
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            state, _, moment = manager.next().partition("\nMONOTONIC_USEC=")
            self.assertEqual(state, "RELOADING=1")
            self.assertTrue(before <= int(moment) <= after)
            notifier.notify("STOPPING")
            self.assertEqual(manager.next(), "STOPPING=1")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.events, [])

    def test_watchdog(self) -> None:
        """From the first READY on, the watchdog gets a message at half of its timeout."""
        manager = Manager(self)
        own = str(os.getpid())
        for pid in ({}, {"WATCHDOG_PID": own}):
            notifier = self.notifier(manager.address, WATCHDOG_USEC="3000000", **pid)
            notifier.notify("STOPPING")
            self.assertEqual(self.clock.getDelayedCalls(), [])
            for _ in range(2):
                notifier.notify("READY")
            self.assertEqual(manager.pending(), ["STOPPING=1", "READY=1", "READY=1"])
            for seconds, count in ((1.4, 0), (0.1, 1), (1.4, 0), (0.1, 1), (9, 1), (1.5, 1)):
                self.clock.advance(seconds)
                self.assertEqual(manager.pending(), ["WATCHDOG=1"] * count)
            notifier._watchdog.stop()

    def test_no_watchdog(self) -> None:
        """Without a timeout, with a senseless one, or with another process's, there is no timer."""
        manager = Manager(self)
        for variables in (
            {},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": ""},
            {"WATCHDOG_USEC": "-1"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getppid())},
        ):
            self.notifier(manager.address, **variables).notify("READY")
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cannot_send(self) -> None:
        """What cannot be sent is lost. The log has one line, until one could be sent again."""
        manager = Manager(self)
        notifier = self.notifier(f"{manager.address}\n")
        for _ in range(3):
            notifier.notify("READY")
        (event,) = self.events
        self.assertEqual(
            formatEvent(event),
            f"cannot notify systemd at {manager.address}\\n: No such file or directory",
        )
        full = self.notifier(manager.address)
        while len(self.events) == 1:  # nobody reads it: it fills
            full.notify("READY")
        self.assertIn("Resource temporarily unavailable", formatEvent(self.events[1]))
        full.notify("READY")
        self.assertEqual(len(self.events), 2)
        manager.pending()
        full.notify("STOPPING")
        self.assertEqual(manager.pending(), ["STOPPING=1"])
        while len(self.events) == 2:
            full.notify("READY")

    def test_no_socket(self) -> None:
        """Where no UNIX socket may be made (RestrictAddressFamilies=), the service goes on."""
        notifier = self.notifier("/nonexistent")
        self.patch(socket, "socket", self.refuse)
        notifier.notify("READY")
        self.assertIn("Address family not supported", formatEvent(self.events[0]))

    def refuse(self, *arguments: object) -> None:
        """Take the place of `socket.socket`."""
        raise OSError(97, "Address family not supported by protocol")


class ServiceTests(SynchronousTestCase):
    """`twistd -n tsecho`, started as by systemd with Type=notify-reload and WatchdogSec=."""

    def service(self, manager: Manager, *options: str) -> Service:
        """Start a service with a watchdog of 0.2 s."""
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
        return Service(self, *options, environment=environment)

    def test_states(self) -> None:
        """Every state is notified, by the process itself, from the start to the stop."""
        manager = Manager(self)
        files = self_signed(self.mktemp())
        service = self.service(
            manager,
            *("-l", f"ssl:0:interface=127.0.0.1:{files.endpoint}"),
            *("-l", "udp:0:interface=127.0.0.1"),
        )
        self.assertEqual(manager.received(), (service.process.pid, "READY=1"))
        self.assertEqual(manager.received(), (service.process.pid, "WATCHDOG=1"))
        for reloaded in ("reloaded", "not reloaded"):
            before = time.monotonic_ns() // 1000
            service.process.send_signal(signal.SIGHUP)
            state, _, moment = manager.next().partition("\nMONOTONIC_USEC=")
            self.assertEqual(state, "RELOADING=1")
            self.assertLessEqual(before, int(moment))
            self.assertEqual(manager.next(), "READY=1")
            service.log.wait_for(f"certificates of ssl:.* {reloaded}")
            Path(files.key).write_text("no key")
        service.process.terminate()
        self.assertEqual(manager.next(), "STOPPING=1")
        self.assertEqual(service.wait(), 0)
        self.assertNotIn("Traceback", service.log.text)
        self.assertLessEqual(set(manager.pending()), {"WATCHDOG=1"})

    def test_watchdog(self) -> None:
        """The watchdog hears from a service that is busy or stopping, but not if it hangs."""
        manager = Manager(self, abstract=True)
        service = self.service(manager, "-l", "tcp:0:interface=127.0.0.1")
        self.assertEqual(manager.next(), "READY=1")
        with service.connect() as sock:
            heard = 0
            while heard < 3:  # the connections have the reactor sleep with them
                sock.sendall(b"hello\n")
                self.assertRegex(sock.recv(100), STAMP + b"hello\n")
                heard += len(manager.pending())
        os.kill(service.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, service.process.pid, os.WSTOPPED)
        manager.pending()
        self.assertEqual(manager.pending(0.5), [])
        os.kill(service.process.pid, signal.SIGCONT)
        self.assertEqual(manager.received()[1], "WATCHDOG=1")
        with service.connect() as sock:
            fill(sock, b"x" * 1023 + b"\n")  # it is not read, so the stop takes long
            service.process.terminate()
            self.assertEqual(manager.next(), "STOPPING=1")
            self.assertEqual(manager.received()[1], "WATCHDOG=1")
            self.assertEqual(service.stop(), 0)

    def test_cannot_notify(self) -> None:
        """A service whose notifications go nowhere serves, with one line in the log."""
        service = Service(
            self,
            *("-l", "tcp:0:interface=127.0.0.1"),
            environment={"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "2000"},
        )
        with service.connect() as sock:
            sock.sendall(b"hello\n")
            self.assertRegex(sock.recv(100), STAMP + b"hello\n")
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for("SIGHUP received")
        self.assertEqual(service.stop(), 0)
        self.assertEqual(service.log.text.count("cannot notify systemd"), 1)
