"""Listening and stopping: the service that twistd runs.

Knows ports, their addresses, and that there are connections; no message.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from timestamp_echo.server.connections import Limits
from timestamp_echo.server.log import escaped, written

DRAIN = 20.0
"""Seconds that a stop may take, by default: less than the 30 that orchestrators give."""


A_TURN = 128
"""Connections that are served, at least, in one turn of the reactor."""


class CannotListen(SystemExit, Exception):
    """A listener could not be opened, so that the service does not start.

    An `Exception`, so that twistd tells its parent and removes its pidfile; a `SystemExit`
    too, so that Python then ends with this one line and status 1, not with a traceback.
    """


class Listener(NamedTuple):
    """One `--listen`."""

    description: str
    """As it was given."""

    listen: Callable[[], Deferred[Any]]
    """Opens the port; fires with an `IListeningPort`."""

    renew: Callable[[IListeningPort], Deferred[Any]] | None = None
    """Reads the certificates again for this port, which is open; None if it has none."""


class EchoService(Service):
    """All listeners of one tsecho.

    @param listeners: what to listen on.
    @param connections: those that are open.
    @param reactor: the reactor that they use.
    @param drain: seconds that a stop may take.
    """

    _log = Logger()

    def __init__(
        self,
        listeners: Sequence[Listener],
        connections: Limits,
        reactor: Any,
        drain: float = DRAIN,
    ) -> None:
        self._listeners = listeners
        self._connections = connections
        self._drain_timeout = drain
        self._reactor = reactor
        self._ports: list[IListeningPort] = []
        self._signalled = False

    def privilegedStartService(self) -> None:
        """Open all ports, while the process may still have the right to.

        @raise CannotListen: one could not be opened. Those before it are closed again.
        """
        super().privilegedStartService()
        for listener in self._listeners:
            failures: list[Failure] = []
            listener.listen().addCallbacks(
                self._listening, failures.append, callbackArgs=(listener.description,)
            )
            if failures:
                self._undo()
                raise CannotListen(_explained(listener.description, failures[0].value))

    def startService(self) -> None:
        """Open all ports, unless that was done with privileges."""
        super().startService()
        self._reactor.callWhenRunning(self._watch_signals)
        if not self._ports:
            self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Close all ports; answer all that has arrived; end all connections in order."""
        super().stopService()
        ports, self._ports = self._ports, []
        # What `stdio:` opens is no port, and closes with its process.
        stopping = [port.stopListening() for port in ports if IListeningPort.providedBy(port)]
        return DeferredList([d for d in stopping if d is not None] + [self._drain()])

    def _listening(self, port: IListeningPort, description: str) -> None:
        self._ports.append(port)
        self._log.info("listening on {where}", where=_where(description, port.getHost()))

    def _drain(self) -> Deferred[None]:
        """End all connections; what is left at the timeout, or at a second signal, by force."""
        self._drain_in(len(self._connections) // A_TURN)
        left = self._connections.all_left()
        if not left.called:
            timeout = self._reactor.callLater(self._drain_timeout, self._abort)
            left.addCallback(lambda _: timeout.active() and timeout.cancel())
        return left

    def _drain_in(self, turns: int) -> None:
        # By then each connection has had its turn, and what had come before has been read.
        if turns:
            self._reactor.callLater(0, self._drain_in, turns - 1)
        else:
            for connection in self._connections:
                connection.drain()

    def _watch_signals(self) -> None:
        # In place of the reactor's own handlers: those log an error at a second signal, and
        # have twistd end by the signal, where a stop that went well is status 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if any(listener.renew is not None for listener in self._listeners):
            signal.signal(signal.SIGHUP, self._hang_up)

    def _stop(self, number: int, frame: object) -> None:
        self._log.info("{name} received", name=signal.Signals(number).name)
        self._reactor.callFromThread(self._abort if self._signalled else self._reactor.stop)
        self._signalled = True

    def _hang_up(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._renew)

    def _renew(self) -> None:
        """Read all certificates again; who is connected stays so."""
        for listener, port in zip(self._listeners, self._ports, strict=False):  # stopped: none
            if listener.renew is not None:
                maybeDeferred(listener.renew, port).addCallbacks(
                    self._renewed,
                    self._not_renewed,
                    callbackArgs=(listener.description,),
                    errbackArgs=(listener.description,),
                )

    def _renewed(self, _: object, description: str) -> None:
        self._log.info("certificates of {where} read again", where=escaped(description))

    def _not_renewed(self, failure: Failure, description: str) -> None:
        self._log.error(
            "certificates of {where} stay as they were: {why}",
            where=escaped(description),
            why=escaped(reason(failure.value)),
        )

    def _abort(self) -> None:
        for connection in self._connections:
            connection.abort()

    def _undo(self) -> None:
        self.stopService()
        # Ports are closed in the reactor's next turn, but it is not running yet.
        self._reactor.iterate(0)


def _where(description: str, address: IAddress) -> str:
    """An address in the words of `--listen`, so that port 0 shows which one it took."""
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return written(address)
    kind = description.split(":", maxsplit=1)[0]
    if kind == "haproxy":
        kind = ":".join(description.split(":")[:2])
    where = f"{kind}:{address.port}"
    if address.host == "0.0.0.0" or (address.host == "::" and kind.endswith(("tcp6", "tls"))):
        return where  # all addresses, as this kind does if it is not told otherwise
    return f"{where}:interface={quoteStringArgument(address.host)}"


def _explained(description: str, error: BaseException | None) -> str:
    # The reason first: of a daemon's words twistd passes on 100 bytes.
    return f"tsecho: {reason(error)}: cannot listen on {escaped(description)}"


def reason(error: BaseException | None) -> str:
    """What an error says, in one line."""
    cause = error.socketError if isinstance(error, CannotListenError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
    return " ".join(str(cause).split()) or type(cause).__name__
