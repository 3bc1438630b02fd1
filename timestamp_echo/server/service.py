"""Listening, reloading and stopping: the service that twistd runs.

Knows ports, their addresses, and that there are connections; no message.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python import log
from twisted.python.failure import Failure

from timestamp_echo.server.connections import Connections
from timestamp_echo.server.log import describe, escape, format_address
from timestamp_echo.transports.port import StreamPort

DRAIN_TIMEOUT = 20.0
"""Seconds that a stop may take, by default: less than the 30 that orchestrators give."""


class CannotListen(SystemExit, Exception):
    """A listener could not be opened, so the service does not start.

    It is an `Exception`, so that twistd tells its parent process and removes its pidfile; and a
    `SystemExit`, so that Python then ends with this one line and status 1, without a traceback.
    """


class Listener(NamedTuple):
    """One `--listen`."""

    description: str
    """As it was given."""

    listen: Callable[[], Deferred[Any]]
    """Opens the port; fires with an `IListeningPort`, or from `stdio:` with something else."""

    reload: Callable[[IListeningPort], Deferred[Any]] | None = None
    """Reads the certificates again for this port, which is open; None if it has none."""


class EchoService(Service):
    """All listeners of one tsecho.

    @param listeners: what to listen on.
    @param connections: those that are open.
    @param reactor: the reactor that they use.
    @param drain_timeout: seconds that a stop may take.
    @param report: is called when the ports are open, with an empty text, or when one could not be
        opened, with the error.
    """

    _log = Logger()

    def __init__(
        self,
        listeners: Sequence[Listener],
        connections: Connections,
        reactor: Any,  # IReactorCore, IReactorTime, IReactorFromThreads, and `iterate`
        drain_timeout: float = DRAIN_TIMEOUT,
        report: Callable[[str], None] = lambda error: None,
    ) -> None:
        self._listeners = listeners
        self._connections = connections
        self._drain_timeout = drain_timeout
        self._reactor = reactor
        self._report = report
        self._ports: list[IListeningPort] = []
        self._closing: list[IListeningPort] = []
        self._stopping = False

    def privilegedStartService(self) -> None:
        """Open all ports, while the process still has root privileges, if it had them.

        @raise CannotListen: one could not be opened. Those opened before it are closed again.
        """
        super().privilegedStartService()
        for listener in self._listeners:
            self._open(listener)
        self._report("")

    def startService(self) -> None:
        """Open all ports, unless that was done with privileges."""
        super().startService()
        self._reactor.callWhenRunning(self._set_signal_handlers)
        if not self._ports:
            self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Close all ports, answer everything that has arrived, and end all connections.

        At the drain timeout, or at a second signal, the rest ends by force.
        """
        super().stopService()
        timeout = self._reactor.callLater(self._drain_timeout, self._abort)
        # A port accepts what waits in its queue before it closes. Meanwhile the connections that
        # exist are drained: where the file table is full, the others need their files. What
        # `stdio:` opens is no port, and closes with its process.
        self._closing = [port for port in self._ports if IListeningPort.providedBy(port)]
        self._ports = []
        closed = DeferredList([maybeDeferred(port.stopListening) for port in self._closing])
        self._drain()
        closed.addCallback(self._drain_accepted)
        closed.addCallback(lambda _: timeout.active() and timeout.cancel())
        return closed

    def _open(self, listener: Listener) -> None:
        failures: list[Failure] = []
        # Twisted logs "... starting on 3000" from within; an event without a format has no line.
        opening: Deferred[Any] = log.callWithContext({"log_format": ""}, listener.listen)
        opening.addCallbacks(self._opened, failures.append, callbackArgs=(listener.description,))
        if failures:
            self._close_again()
            where, why = escape(listener.description), escape(describe(failures[0].value))
            error = f"tsecho: cannot listen on {where}: {why}"
            self._report(error)
            raise CannotListen(error)

    def _opened(self, port: IListeningPort, description: str) -> None:
        self._ports.append(port)
        self._log.info("listening on {where}", where=_listening_on(description, port.getHost()))

    def _close_again(self) -> None:
        stopped = self.stopService()
        # Ports close in the reactor's next iterations, but it is not running yet.
        while not stopped.called:
            self._reactor.iterate(0)

    def _drain(self) -> None:
        for connection in self._connections:
            connection.drain()

    def _drain_accepted(self, _: object) -> Deferred[None]:
        """All ports are closed: drain the connections that they accepted at the end, too."""
        self._drain()
        return self._connections.all_closed()

    def _abort(self) -> None:
        for port in self._closing:
            if isinstance(port, StreamPort):
                port.loseConnection()
        for connection in self._connections:
            connection.abort()

    def _set_signal_handlers(self) -> None:
        # In place of the reactor's own: those log an error at a second signal, and have twistd
        # end by the signal, where a stop that went well has status 0.
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
        if not any(listener.reload for listener in self._listeners):
            self._log.info("SIGHUP received: there are no certificates to reload")
        for listener, port in zip(self._listeners, self._ports, strict=False):  # stopped: no ports
            if listener.reload is not None:
                maybeDeferred(listener.reload, port).addCallbacks(
                    self._reloaded,
                    self._not_reloaded,
                    callbackArgs=(listener.description,),
                    errbackArgs=(listener.description,),
                )

    def _reloaded(self, _: object, description: str) -> None:
        self._log.info("certificates of {where} reloaded", where=escape(description))

    def _not_reloaded(self, failure: Failure, description: str) -> None:
        self._log.error(
            "certificates of {where} not reloaded, the old ones stay in use: {why}",
            where=escape(description),
            why=escape(describe(failure.value)),
        )


def _listening_on(description: str, address: IAddress) -> str:
    """An address in the words of `--listen`, with the port that was taken for port 0."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return format_address(address)
    kind = description.split(":", maxsplit=1)[0]
    if kind == "haproxy":
        kind = ":".join(description.split(":")[:2])
    where = f"{kind}:{address.port}"
    if address.host == "0.0.0.0" or (address.host == "::" and kind.endswith(("tcp6", "tls"))):
        return where  # all addresses are the default of this kind
    return f"{where}:interface={quoteStringArgument(address.host)}"
