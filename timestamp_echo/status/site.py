"""The status over HTTP: `/metrics`, `/livez` and `/readyz`; `page` adds the page.

It is meant for this host or a private network: there is no login, and nothing here changes
anything. Whatever clients do takes bounded resources, and writes nothing to the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import NOT_ALLOWED, NOT_FOUND, SERVICE_UNAVAILABLE, HTTPChannel, Request
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site

from timestamp_echo.status.metrics import Metrics

MAX_CONNECTIONS = 20
"""Connections that may be open at once. One more replaces the one whose last request, or opening,
was the longest ago: a client that opens many must not keep a health check out."""

MAX_REPLACED = 4
"""Replaced connections that may be closing at once. Together with those that are open, and refused
connections that linger, they fit into the files that the service's own limit leaves free
(`connections.RESERVED_FILES`)."""

MAX_BODY = 2**13
"""Bytes of a request's body at most; of its line and headers, Twisted takes 16 KiB."""

REQUEST_TIMEOUT = 30.0
"""Seconds for a request, from the end of the previous one. Prometheus asks every 15 s or so, and
keeps its connection."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of all responses: nothing is loaded from other hosts, sent to them, or cached."""

_BAD = b"HTTP/1.1 400 Bad Request\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\n\r\n"


class Plain(Resource):
    """A short text.

    @param render: writes it; it may set the status of the response.
    @param content_type: the media type.
    @param method: the only one allowed; HEAD too, if it is GET.
    """

    def __init__(
        self,
        render: Callable[[Request], bytes | int],
        content_type: str = "text/plain; charset=utf-8",
        method: str = "GET",
    ) -> None:
        super().__init__()
        self._render = render
        self._content_type = content_type
        self._methods = ["GET", "HEAD"] if method == "GET" else [method]

    def getChild(self, path: bytes, request: Request) -> IResource:
        """See `IResource.getChildWithDefault`: any path that was not added."""
        return Plain(_not_found)

    def render(self, request: Request) -> bytes | int:
        """See `IResource.render`."""
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        if request.method in {method.encode() for method in self._methods}:
            request.setHeader("Content-Type", self._content_type)
            body = self._render(request)
        else:
            request.setResponseCode(NOT_ALLOWED)
            request.setHeader("Allow", ", ".join(self._methods))
            request.setHeader("Content-Type", "text/plain; charset=utf-8")
            body = f"expected {' or '.join(self._methods)}\n".encode()
        # Twisted would write to the log that it drops the body.
        return b"" if request.method == b"HEAD" else body


def _not_found(request: Request) -> bytes:
    request.setResponseCode(NOT_FOUND)
    return b"not found\n"


class Channel(HTTPChannel):
    """A connection whose requests are bounded in size and time."""

    factory: StatusSite
    transport: Any  # an `ITCPTransport`, or that of a UNIX socket

    _answered = False  # whether a request in this read was

    def connectionMade(self) -> None:
        """See `IProtocol.connectionMade`."""
        self.factory.channels.append(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`."""
        self.factory.channels.remove(self)
        super().connectionLost(reason)

    def resetTimeout(self) -> None:
        """See `TimeoutMixin`. Receiving bytes does not extend the time for a request."""

    def timeoutConnection(self) -> None:
        """See `TimeoutMixin`. Twisted would write two lines to the log, and wait for 15 s more."""
        self.transport.abortConnection()

    def loseConnection(self) -> None:
        """See `ITransport.loseConnection`. A client that reads no response gets no more time."""
        self.setTimeout(REQUEST_TIMEOUT)
        super().loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self._answered = False
        try:
            super().dataReceived(data)
        except ValueError:  # Twisted's parser: a Content-Length of more digits than Python takes
            self._refuse(_BAD)

    def requestDone(self, request: Request) -> None:
        """See `HTTPChannel`. Whoever does not wait for responses (pipelining) is disconnected.

        A single read may hold thousands of requests. Twisted would answer all of them at once.
        """
        if self._answered:
            self.persistent = 0
        self._answered = True
        self.factory.channels.remove(self)
        self.factory.channels.append(self)
        super().requestDone(request)

    def allHeadersReceived(self) -> None:
        """See `HTTPChannel`. A body whose size is not known in advance is too large as well."""
        if self.length is None or self.length > MAX_BODY:
            self._refuse(_TOO_LARGE)
        else:
            super().allHeadersReceived()

    def _refuse(self, response: bytes) -> None:
        self.write(response)
        self.loseConnection()


class StatusSite(Site):
    """The site; it writes no access log."""

    protocol = Channel  # type: ignore[assignment]  # without Twisted's wrapper, which is for HTTP/2

    noisy = False  # the service itself logs what it listens on

    def __init__(self, metrics: Metrics, ready: Callable[[], bool], reactor: IReactorTime) -> None:
        root = Plain(_not_found)
        super().__init__(root, timeout=REQUEST_TIMEOUT, reactor=reactor)
        self.channels: list[Channel] = []  # the longest idle first
        self.lag = metrics.lag
        root.putChild(b"metrics", Plain(lambda _: metrics.text(), CONTENT_TYPE_PLAIN_0_0_4))
        root.putChild(b"livez", Plain(lambda _: b"ok\n"))

        def readyz(request: Request) -> bytes:
            if ready():
                return b"ok\n"
            request.setResponseCode(SERVICE_UNAVAILABLE)
            return b"not ready\n"

        root.putChild(b"readyz", Plain(readyz))

    def startFactory(self) -> None:
        """See `IProtocolFactory.doStart`. Twisted would open a log here."""
        self.lag.start()

    def stopFactory(self) -> None:
        """See `IProtocolFactory.doStop`."""
        self.lag.stop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """See `IProtocolFactory.buildProtocol`. Over the limit, the longest idle is closed.

        If `MAX_REPLACED` are closing already, the new connection is closed instead.
        """
        replaced = len(self.channels) - MAX_CONNECTIONS
        if replaced >= MAX_REPLACED:
            return None
        if replaced >= 0:
            self.channels[replaced].transport.abortConnection()
        return super().buildProtocol(addr)
