"""Listening, reloading and stopping: the service that twistd runs.

Knows ports, their addresses, and that there are connections; no message.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python import log
from twisted.python.failure import Failure

from timestamp_echo.server.closing import cancel
from timestamp_echo.server.connections import Connections
from timestamp_echo.server.log import describe, escape, format_address
from timestamp_echo.transports.port import StreamPort

DRAIN_TIMEOUT = 20.0
"""Seconds that a stop may take, by default: less than the 30 that orchestrators give."""

ABORT_TIMEOUT = 2.0
"""Seconds that ports and connections have to close when forced. Then the stop ends without them:
a third party's port may never report that it is closed."""


class CannotListen(SystemExit, Exception):
    """A listener could not be opened, so the service does not start.

    It is an `Exception`, so that twistd tells its parent process and removes its pidfile; and a
    `SystemExit`, so that Python then ends with this one line and status 1, without a traceback.
    """


class Listener(NamedTuple):
    """One `--listen`, or `--status`."""

    description: str
    """As it was given."""

    listen: Callable[[], Deferred[Any]]
    """Opens the port; fires, possibly much later, with an `IListeningPort`, or from `stdio:` with
    the connection."""

    reload: Callable[[IListeningPort], Deferred[Any]] | None = None
    """Reloads the certificates of this port while it is open; None if it has none."""


class EchoService(Service):
    """All listeners of one tsecho.

    @param listeners: what to listen on.
    @param connections: those that are open.
    @param reactor: the reactor that they use.
    @param drain_timeout: seconds that a stop may take.
    @param report: is called when the ports are open, with an empty text, or when one could not be
        opened, with the error.
    @param stop_delay: seconds for which a stop leaves everything open, while `ready` is false.
    """

    status: Listener | None = None
    """`--status`, if there is one: it is opened first, and closed last."""

    ready = False
    """Whether everything is open, and no stop has begun."""

    _log = Logger()

    def __init__(
        self,
        listeners: Sequence[Listener],
        connections: Connections,
        reactor: Any,  # IReactorCore, IReactorTime, IReactorFromThreads, and `iterate`
        drain_timeout: float = DRAIN_TIMEOUT,
        report: Callable[[str], None] = lambda error: None,
        stop_delay: float = 0,
    ) -> None:
        self._listeners = listeners
        self._connections = connections
        self._drain_timeout = drain_timeout
        self._stop_delay = stop_delay
        self._reactor = reactor
        self._report = report
        # Is called with READY, RELOADING and STOPPING (sd_notify(3)).
        self.notify: Callable[[str], None] = lambda state: None
        self._openings: list[Deferred[Any]] = []  # of the listeners; they may take long
        self._ports: list[tuple[Listener, IListeningPort]] = []
        self._status_ports: list[tuple[Listener, IListeningPort]] = []
        self._listening = False  # whether ports are to be open
        self._error = ""  # why one could not be opened
        self._closing: list[tuple[Listener, IListeningPort]] = []
        self._stopped: Deferred[None] = Deferred()
        self._timeout: IDelayedCall | None = None  # of a stop
        self._delay: IDelayedCall | None = None  # until a stop closes the ports
        self._stopping = False

    def privilegedStartService(self) -> None:
        """Open all ports, while the process still has root privileges, if it had them.

        @raise CannotListen: one could not be opened. Those opened before it are closed again.
        """
        super().privilegedStartService()
        self._set_signal_handlers()  # from the first "listening on" in the log
        self._listening, self._openings, self._error = True, [], ""
        for listener in filter(None, [self.status, *self._listeners]):
            self._open(listener)
            if self._error:
                self._close_again()
                raise CannotListen(self._error)
        DeferredList(self._openings).addCallback(self._all_opened)

    def startService(self) -> None:
        """Open all ports, unless that was done with privileges."""
        super().startService()
        if not self._listening:
            self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Close all ports, answer everything that has arrived, and end all connections.

        At the drain timeout, or at a second signal, the rest ends by force.
        """
        super().stopService()
        self.notify("STOPPING")
        self._stopped = Deferred()
        if self.ready and self._stop_delay:
            self._log.info("the ports close in {delay:g} s", delay=self._stop_delay)
            self._delay = self._reactor.callLater(self._stop_delay, self._begin_stop)
        else:
            self._begin_stop()
        self.ready = False
        return self._stopped

    def _begin_stop(self) -> None:
        self._listening = False
        self._timeout = self._reactor.callLater(self._drain_timeout, self._abort)
        for opening in self._openings:
            # Without a canceller, this would not end the opening, but only hide its port.
            if opening._canceller is not None:
                opening.cancel()
        # Before it closes, a port accepts the connections in its queue. Open connections are
        # drained meanwhile: if the file table is full, the queued ones need their descriptors.
        self._closing, self._ports = self._ports, []
        closed = DeferredList([self._close(*each) for each in self._closing])
        self._connections.drain()
        closed.addCallback(lambda _: self._connections.all_closed())
        closed.addCallback(self._end_stop)

    @property
    def ports(self) -> list[tuple[str, IListeningPort]]:
        """The ports, including those that are being closed, with their descriptions."""
        return [(listener.description, port) for listener, port in (*self._closing, *self._ports)]

    def _open(self, listener: Listener) -> None:
        # Twisted itself logs "... starting on 3000"; with an empty format, that writes no line.
        opening: Deferred[Any] = log.callWithContext(
            {"log_format": ""}, maybeDeferred, listener.listen
        )
        self._openings.append(opening)
        opening.addCallback(self._opened, listener)
        opening.addErrback(self._not_opened, listener)

    def _opened(self, port: Any, listener: Listener) -> None:
        if not self._listening:  # the stop has come first
            self._close(listener, port)
            self._connections.drain()
            return
        # `stdio:` opens no port, but one of the connections, which closes with the others.
        if IListeningPort.providedBy(port):
            ports = self._status_ports if listener is self.status else self._ports
            ports.append((listener, port))
        where = _listening_on(listener.description, port.getHost())
        what = "status" if listener is self.status else "listening"
        self._log.info("{what} on {where}", what=what, where=where)

    def _not_opened(self, failure: Failure, listener: Listener) -> None:
        if not self._listening:  # cancelled by the stop, or of no interest any more
            return
        where, why = escape(listener.description), escape(describe(failure.value))
        self._error = f"tsecho: cannot listen on {where}: {why}"
        self._report(self._error)
        if self._reactor.running:
            self._log.error("{error}", error=self._error)
            # It is too late to raise `CannotListen`, and twistd itself always ends with status 0.
            atexit.register(os._exit, 1)
            self._stop()

    def _all_opened(self, _: object) -> None:
        if self._error or not self._listening:
            return
        self.ready = True
        self._report("")
        self.notify("READY")
        if self._connections and not self._ports:
            # The end of `stdio:` is the end of the service, unless it listens on a port as well.
            self._connections.all_closed().addCallback(lambda _: self._stop())

    def _close_again(self) -> None:
        stopped = self.stopService()
        # Ports close in the reactor's next iterations, but it is not running yet.
        while not stopped.called:
            self._reactor.iterate(0.01)

    def _close(self, listener: Listener, port: IListeningPort) -> Deferred[Any]:
        return maybeDeferred(port.stopListening).addErrback(self._not_closed, listener)

    def _not_closed(self, failure: Failure, listener: Listener) -> None:
        where = escape(listener.description)
        self._log.failure("cannot close {where}:", failure, where=where)

    def _abort(self) -> None:
        if self._delay is not None and self._delay.active():  # a second signal
            self._delay.cancel()
            self._begin_stop()
        for _, port in self._closing:
            with self._log.failuresHandled("while closing a port by force:"):
                if isinstance(port, StreamPort):
                    port.loseConnection()
        for connection in self._connections:
            with self._log.failuresHandled("while aborting a connection:"):
                connection.abort()
        cancel(self._timeout)
        self._timeout = self._reactor.callLater(ABORT_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        self._log.error("some ports or connections could not be closed; stopping anyway")
        self._end_stop()

    def _end_stop(self, _: object = None) -> None:
        ports, self._status_ports = self._status_ports, []
        closed = DeferredList([self._close(*each) for each in ports])
        closed.addCallback(self._fire_stopped)

    def _fire_stopped(self, _: object) -> None:
        cancel(self._timeout)
        if not self._stopped.called:
            self._stopped.callback(None)

    def _stop(self) -> None:
        """Stop the reactor, unless that has begun."""
        if self._listening and not self._stopping:
            self._stopping = True
            self._reactor.callWhenRunning(self._reactor.stop)

    def _set_signal_handlers(self) -> None:
        # In place of the handlers that the reactor would set when it starts: at a second signal,
        # those log an error and have twistd end by it, whereas a clean stop has status 0.
        self._reactor.sigInt = self._reactor.sigTerm = self._stop_signal
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_signal)
        signal.signal(signal.SIGHUP, self._reload_signal)

    def _stop_signal(self, number: int, frame: FrameType | None) -> None:
        self._log.info("{name} received", name=signal.Signals(number).name)
        self._reactor.callFromThread(self._abort if self._stopping else self._reactor.stop)
        self._stopping = True

    def _reload_signal(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        """Read all certificates again; open connections stay as they are."""
        reloads = [
            (listener.description, listener.reload, port)
            for listener, port in self._ports
            if listener.reload is not None
        ]
        if self.ready:
            self.notify("RELOADING")
        if not reloads:
            self._log.info("SIGHUP received: there are no certificates to reload")
        ends = [
            maybeDeferred(reload, port).addCallbacks(
                self._reloaded,
                self._not_reloaded,
                callbackArgs=(description,),
                errbackArgs=(description,),
            )
            for description, reload, port in reloads
        ]
        DeferredList(ends).addCallback(self._reload_ended)

    def _reload_ended(self, _: object) -> None:
        if self.ready:
            self.notify("READY")

    def _reloaded(self, _: object, description: str) -> None:
        self._log.info("certificates of {where} reloaded", where=escape(description))

    def _not_reloaded(self, failure: Failure, description: str) -> None:
        self._log.error(
            "certificates of {where} not reloaded, the old ones stay in use: {why}",
            where=escape(description),
            why=escape(describe(failure.value)),
        )


def _listening_on(description: str, address: IAddress) -> str:
    """An address in the syntax of `--listen`, with the actual port where 0 was given."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return format_address(address)
    # `systemd:` may be TCP or UDP, and both may have the same port number.
    kind = "udp" if address.type == "UDP" else description.split(":", maxsplit=1)[0]
    if kind == "haproxy":
        kind = ":".join(description.split(":")[:2])
    where = f"{kind}:{address.port}"
    if address.host == "0.0.0.0" or (address.host == "::" and kind.endswith(("tcp6", "tls"))):
        return where  # this kind listens on all addresses by default
    return f"{where}:interface={quoteStringArgument(address.host)}"
