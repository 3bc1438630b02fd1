"""A session over datagrams: each line is a datagram, and so is each reply.

Knows a UDP port, and the `SessionListener` that gets the replies; not where the lines come from.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from math import inf
from typing import Any, TypeAlias, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorUDP
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.threads import deferToThread
from typing_extensions import Self  # Twisted needs it too

from timestamp_echo.client import errors
from timestamp_echo.client.address import DatagramServer, IClientReactor
from timestamp_echo.client.replies import STAMP
from timestamp_echo.client.session import SessionListener
from timestamp_echo.framing import MAX_DATAGRAM

REPLY_TIMEOUT = 1.0
"""Seconds after which a reply counts as lost: the first timeout of RFC 6298, section 2."""

MAX_LINES, WINDOW = 1000, 1.1
"""At most `MAX_LINES` lines are sent in any `WINDOW` seconds. By default `twistd tsecho` answers
1,000 in 1.01 s; the margin allows for lines that take longer than others to arrive."""

REMEMBERED_LINES = 10 * MAX_LINES
"""Lines whose replies may still come late or twice: all of at least the last 11 s."""

AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
"""An entry of `socket.getaddrinfo`: family, type, protocol, canonical name, address."""


class DatagramPath(DatagramProtocol):
    """A UDP port that is connected (connect(2)) to one server.

    @param reactor: opens the port.
    """

    # IUDPTransport; `Any`, because that one's `write` has no default for the address.
    transport: Any

    noisy = False

    def __init__(self, reactor: IReactorUDP) -> None:
        self._reactor = reactor
        self._addresses: deque[AddressInfo] = deque()
        self._port: Any = None  # a `udp.Port`, whose `connect` and `socket` IListeningPort lacks
        self._stopping = False

    def connect(self, server: DatagramServer) -> Deferred[Self]:
        """Look the host up, in a thread, and open a port to its first address.

        @return: fires with this object; fails with an `OSError` if the name is unknown or no
            address can be reached.
        """
        # A Python without IPv6 returns such addresses as bytes; it has no port for them either.
        found = cast(
            "Deferred[list[AddressInfo]]",
            deferToThread(
                socket.getaddrinfo, server.host, server.port, server.family, socket.SOCK_DGRAM
            ),
        )
        return found.addCallback(self._open)

    def _open(self, found: list[AddressInfo]) -> Self:
        self._addresses.extend(filter(_has_route, found))
        if not self._addresses:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        self._open_next()
        return self

    def _open_next(self) -> None:
        """Open a port to the next address; it receives datagrams from this address only."""
        family, _, _, _, address = self._addresses.popleft()
        local = "::" if family == socket.AF_INET6 else "0.0.0.0"
        self._stopping = False
        self._port = self._reactor.listenUDP(0, self, local, MAX_DATAGRAM)
        if any(address[3:]):  # a link-local address, with its zone (RFC 4007)
            # Twisted connects without the zone, but a socket keeps the zone of an earlier connect.
            self._port.socket.connect(address)
        self._port.connect(*address[:2])

    def connectionRefused(self) -> None:
        """See `ConnectedDatagramProtocol`: the server's port is closed (ICMP port unreachable).

        Twisted's port calls this when a read fails with ECONNREFUSED. But the epoll reactor takes
        the socket's error condition for a disconnect, and closes the port without reading
        (twisted#6287). So this closes the port too, and `stopProtocol` handles both cases.
        """
        self._stop()

    def _stop(self) -> None:
        """Close the port, once: each of several datagrams in a row may be refused."""
        if not self._stopping and self.transport is not None:
            self._stopping = True
            self.transport.stopListening()


class DatagramSession(DatagramPath):
    """A session over datagrams: one line at a time, until its reply comes or times out.

    A datagram may be lost, and UDP has no flow control: nothing but a reply shows that the server
    can take another one. So no line is sent before the previous one is answered or given up, and
    lines are sent no faster than a server answers them by default.

    @param listener: gets the replies.
    @param reactor: opens the port, and times the replies.
    @param timeout: seconds after which a reply counts as lost.
    """

    def __init__(
        self,
        listener: SessionListener,
        reactor: IClientReactor,
        timeout: float = REPLY_TIMEOUT,
    ) -> None:
        super().__init__(reactor)
        self._reply_timeout = timeout
        self._listener = listener
        self._clock = reactor
        self._queue: deque[bytes] = deque()
        self._partial = b""
        self._paused = False
        self._in_flight: bytes | None = None
        self._earlier: deque[int] = deque(maxlen=REMEMBERED_LINES)  # hashes: lines may be long
        self._timeout: IDelayedCall | None = None
        self._sent_at = deque([-inf] * MAX_LINES, MAX_LINES)  # when the last lines were sent
        self._resting = False  # until `MAX_LINES` per `WINDOW` allows another line
        self._finished = False
        self._ended = False
        self._producer: IPushProducer | None = None
        self.sent = self.missing = 0
        self.refused = False

    def write(self, data: bytes) -> None:
        """See `Session.write`."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._queue.extend(line + b"\n" for line in lines)
        if len(self._partial) > MAX_DATAGRAM:  # do not buffer a line without an end
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

    def register_producer(self, producer: IPushProducer) -> None:
        """See `Session.register_producer`."""
        self._producer = producer

    def pauseProducing(self) -> None:
        """See `Session.pauseProducing`: send nothing that would be replied to."""
        self._paused = True

    def resumeProducing(self) -> None:
        """See `Session.resumeProducing`."""
        self._paused = False
        self._send_next()

    def stopProducing(self) -> None:
        """See `Session.stopProducing`."""

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Accept the reply to the line in flight; ignore one that comes late or twice."""
        if self._ended:  # it came with the one that ended the session
            return
        messages = _messages(datagram)
        if self._in_flight in messages:
            self._listener.replied(datagram)
            self.missing -= 1
            self._line_done()
        elif not any(hash(message) in self._earlier for message in messages):
            self._end(errors.no_reply(datagram))

    def stopProtocol(self) -> None:
        """The port was closed; unless this side did it, the server's host refused a datagram."""
        if self._ended:
            return
        if self._can_retry():
            self._open_next()
            self.transport.write(self._in_flight)
            return
        self.refused = True
        self._end("Connection refused")

    def _can_retry(self) -> bool:
        """Whether the first line may go to another address instead.

        A name may have several, as localhost has ::1 and 127.0.0.1, and the server may listen on
        one of them only. Once a reply has come, the address is right.
        """
        return bool(self._addresses) and self._in_flight is not None and self.sent == self.missing

    def _send_next(self) -> None:
        if self._in_flight is not None or self._paused or self._resting or self._ended:
            return
        if not self._queue:
            self._all_done()
            return
        rest = self._sent_at[0] + WINDOW - self._clock.seconds()
        if rest > 0:
            self._resting = True
            self._timeout = self._clock.callLater(rest, self._rested)
        else:
            self._send(self._queue.popleft())

    def _rested(self) -> None:
        self._resting = False
        self._send_next()

    def _send(self, line: bytes) -> None:
        if self._producer is not None:
            self._producer.pauseProducing()
        self._in_flight = line
        self._sent_at.append(self._clock.seconds())
        self.sent += 1
        self.missing += 1
        self._timeout = self._clock.callLater(self._reply_timeout, self._line_done)
        try:
            self.transport.write(line)
        except Exception as error:  # an OSError, or Twisted's MessageLengthError
            self._end(f"a datagram of {len(line)} bytes could not be sent: {error}")

    def _line_done(self) -> None:
        """The line in flight is answered, or its time is over."""
        self._earlier.append(hash(self._in_flight))
        self._in_flight = None
        self._cancel_timeout()
        self._send_next()

    def _all_done(self) -> None:
        """No line is in flight, and none is queued."""
        if self._finished:
            self._end("no reply came in time" if self.missing else "")
        elif not self._partial:
            self._listener.answered()
        if self._producer is not None:
            self._producer.resumeProducing()

    def _cancel_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()

    def _end(self, why: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._cancel_timeout()
        self._producer = None
        self.sent += len(self._queue)  # what waited for its turn is missing, too
        self.missing += len(self._queue)
        self._stop()
        self._listener.over(why)


def _has_route(entry: AddressInfo) -> bool:
    """Whether this host has a route, and a socket, for an address."""
    family, _, _, _, address = entry
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: connect(2) on UDP only looks up the route
    except OSError:
        return False
    return True


def _messages(datagram: bytes) -> list[bytes]:
    """The messages that a datagram may reply to: all of it, or what follows its one stamp."""
    stamp = STAMP.match(datagram)
    return [datagram, datagram[stamp.end() :]] if stamp else [datagram]
