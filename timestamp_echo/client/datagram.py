"""One talk with a server, over datagrams: each line is one, and so is its reply.

Knows a port, and the `User` that the replies are for; not where lines come from.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.threads import deferToThread
from typing_extensions import Self  # Twisted needs it too

from timestamp_echo.client.address import DatagramServer
from timestamp_echo.client.session import User

REPLY_TIMEOUT = 1.0
"""Seconds after which the reply to a datagram counts as lost: RFC 6298's first timeout."""

DATAGRAM = 65536
"""Bytes that hold any datagram whole; a line that is longer is none."""


class DatagramPath(DatagramProtocol):
    """The way to one server, and back.

    @param reactor: opens the port.
    """

    transport: Any  # IUDPTransport

    noisy = False

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._addresses: deque[tuple[Any, ...]] = deque()
        self._port: Any = None
        self._stopping = False

    def connect(self, server: DatagramServer) -> Deferred[Self]:
        """Find the address; datagrams to and from it alone will pass.

        @return: fires with this object, or an `OSError` if the name is not known.
        """
        found: Deferred[Any] = deferToThread(
            socket.getaddrinfo, server.host, server.port, 0, socket.SOCK_DGRAM
        )
        return found.addCallback(self._open)

    def _open(self, found: list[tuple[Any, ...]]) -> Self:
        self._addresses.extend(filter(_has_route, found))
        if not self._addresses:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        self._open_next()
        return self

    def _open_next(self) -> None:
        family, _, _, _, (host, port, *_) = self._addresses.popleft()
        local = "::" if family == socket.AF_INET6 else "0.0.0.0"
        self._stopping = False
        self._port = self._reactor.listenUDP(0, self, local, DATAGRAM)
        self._port.connect(host, port)

    def connectionRefused(self) -> None:
        """The host answered that nobody listens there (ICMP port unreachable): close the port.

        Where the reactor watches by epoll, it takes that for the port's end by itself
        (twisted#6287), so `stopProtocol` is where either is dealt with.
        """
        self._stop()

    def _stop(self) -> None:
        """Close the port, once: each of several datagrams in a row may be refused."""
        if not self._stopping and self.transport is not None:
            self._stopping = True
            self.transport.stopListening()


class DatagramSession(DatagramPath):
    """A session over datagrams: each line is one, and waits for its reply or for a second.

    A datagram may be lost on the way, and nothing but the reply tells how much the server
    can take, so one at a time is under way.

    @param user: whom it serves.
    @param reactor: the reactor; of a Clock its time alone is used.
    """

    def __init__(self, user: User, reactor: Any) -> None:
        super().__init__(reactor)
        self._user = user
        self._queue: deque[bytes] = deque()
        self._partial = b""
        self._held = False
        self._awaited: bytes | None = None
        self._timeout: IDelayedCall | None = None
        self._finished = False
        self._over = False
        self._producer: IPushProducer | None = None
        self.sent = self.missing = 0
        self.refused = False

    def write(self, data: bytes) -> None:
        """See `Session.write`."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._queue.extend(line + b"\n" for line in lines)
        if len(self._partial) > DATAGRAM:
            self._queue.append(self._partial)
            self._end("a line of more than 65,507 bytes does not fit into a datagram")
        self._send_next()

    def finish(self) -> None:
        """See `Session.finish`."""
        self._finished = True
        if self._partial:
            self._queue.append(self._partial)
        self._send_next()

    def abort(self) -> None:
        """See `Session.abort`."""
        self._end("")

    def feed_from(self, producer: IPushProducer) -> None:
        """See `Session.feed_from`."""
        self._producer = producer

    def pauseProducing(self) -> None:
        """See `Session.pauseProducing`: nothing is sent that would be replied to."""
        self._held = True

    def resumeProducing(self) -> None:
        """See `Session.resumeProducing`."""
        self._held = False
        self._send_next()

    def stopProducing(self) -> None:
        """See `Session.stopProducing`."""

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Take the reply to the line that waits for it; one that comes too late is none."""
        if self._awaited is not None and _is_reply(datagram, self._awaited):
            self._user.replied(datagram)
            self.missing -= 1
            self._done_waiting()

    def stopProtocol(self) -> None:
        """The port is closed, and if it was not this side that did it, nobody listens there."""
        if self._over:
            return
        if self._addresses and self._awaited is not None and self.sent == self.missing:
            # The name has another address, as localhost has ::1 and 127.0.0.1.
            self._open_next()
            self.transport.write(self._awaited)
            return
        self.refused = True
        self._end("Connection refused")

    def _send_next(self) -> None:
        if self._awaited is not None or self._held or self._over:
            return
        if not self._queue:
            self._all_sent()
            return
        if self._producer is not None:
            self._producer.pauseProducing()
        self._awaited = self._queue.popleft()
        self.sent += 1
        self.missing += 1
        self._timeout = self._reactor.callLater(REPLY_TIMEOUT, self._done_waiting)
        try:
            self.transport.write(self._awaited)
        except Exception as error:  # OSError, or Twisted's MessageLengthError
            self._end(f"a datagram of {len(self._awaited)} bytes could not be sent: {error}")

    def _done_waiting(self) -> None:
        self._awaited = None
        self._cancel_timeout()
        self._send_next()

    def _all_sent(self) -> None:
        if self._finished:
            self._end("no reply came in time" if self.missing else "")
        elif not self._partial:
            self._user.answered()
        if self._producer is not None:
            self._producer.resumeProducing()

    def _cancel_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        self._cancel_timeout()
        self._producer = None
        self.sent += len(self._queue)
        self.missing += len(self._queue)
        self._stop()
        self._user.over(why)


def _has_route(found: tuple[Any, ...]) -> bool:
    """Whether datagrams can leave for this address, one of `socket.getaddrinfo`'s."""
    family, _, _, _, address = found
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: connect(2) only looks for the way
    except OSError:
        return False
    return True


def _is_reply(datagram: bytes, message: bytes) -> bool:
    """Whether this is the message, behind one stamp or, from a plain echo, none."""
    stamp = datagram.removesuffix(message)
    if not datagram.endswith(message):
        return False
    return not stamp or (stamp[:1] == b"[" and stamp.find(b"] ") == len(stamp) - 2)
