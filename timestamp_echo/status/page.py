"""The page at `/`: live figures, an echo box, and how wrong the clock of the reader's browser is.

Knows HTTP, the echo and some figures; not where these come from.

A page of another site can make a browser send any of these requests, but no request changes
anything, and the browser does not let that page read the responses. If the page's own host name
points to this address (DNS rebinding), it can: the figures, this host's name and its time.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.http import SERVICE_UNAVAILABLE, Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from timestamp_echo import __version__
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.stamps import SECOND
from timestamp_echo.status.site import Plain

INTERVAL = 1.0
"""Seconds between two events."""

MAX_READERS = 8
"""Readers of the live figures at once. Each page has one more connection; that leaves four of the
site's for other clients, which must not wait for people."""

Figures = Mapping[str, float | Mapping[str, float]]
"""Numbers by their names; some have one number for each value of a label."""


def add_page(
    root: Resource,
    figures: Callable[[], Figures],
    factory: TimestampEchoFactory,
    clock: IReactorTime,
) -> None:
    """Add the page, and what it loads, to a site.

    @param root: the site's root.
    @param figures: returns the figures as they are now.
    @param factory: builds the service's connections; its stamp and framing answer the echo box.
    @param clock: counts the seconds between two events.
    """

    def totals() -> dict[str, float]:
        return _totals(figures())

    template, style, script = map(_file, ("page.html", "page.css", "page.js"))
    page = Template(template.decode())

    def filled(request: Request) -> bytes:
        return _filled(page, totals(), factory.now())

    def echo(request: Request) -> bytes:
        # A field of a form, so that it works without scripts as well.
        message: bytes = request.args.get(b"message", [b""])[0]
        return factory.framing().received(message + b"\n", factory.prefix(factory.now()))

    root.putChild(b"", Plain(filled, "text/html; charset=utf-8"))
    root.putChild(b"page.css", Plain(lambda _: style, "text/css; charset=utf-8"))
    root.putChild(b"page.js", Plain(lambda _: script, "text/javascript; charset=utf-8"))
    root.putChild(b"time", Plain(lambda _: b"%d\n" % factory.now()))
    root.putChild(b"echo", Plain(echo, method="POST"))
    root.putChild(b"events", Plain(Events(totals, clock).begin))


class Events:
    """`/events`: the figures every second, as Server-Sent Events (HTML Standard, section 9.2).

    All readers have one timer, which runs only while there are any.

    @param figures: returns what to send.
    @param clock: counts the seconds.
    """

    _log = Logger()

    def __init__(self, figures: Callable[[], Mapping[str, float]], clock: IReactorTime) -> None:
        self._figures = figures
        self._readers: set[Request] = set()
        self._timer = LoopingCall(self._send)
        self._timer.clock = clock

    def begin(self, request: Request) -> bytes | int:
        """Answer a request with a stream, which its client ends."""
        if len(self._readers) >= MAX_READERS:
            request.setResponseCode(SERVICE_UNAVAILABLE)
            return b"too many readers: the limit is %d\n" % MAX_READERS
        request.setHeader("Content-Type", "text/event-stream")
        if request.method == b"HEAD":
            return b""
        request.setHeader("X-Accel-Buffering", "no")  # nginx would wait for a full buffer
        event = self._event()
        request.registerProducer(_Reader(request), True)
        request.notifyFinish().addBoth(lambda _: self._remove(request))
        self._readers.add(request)
        request.write(b"retry: 1000\n" + event)
        if not self._timer.running:
            self._timer.start(INTERVAL, now=False).addErrback(
                lambda failure: self._log.failure("live figures stopped:", failure)
            )
        return NOT_DONE_YET

    def _event(self) -> bytes:
        return b"data: %s\n\n" % json.dumps(self._figures()).encode()

    def _send(self) -> None:
        event = self._event()
        for request in list(self._readers):
            request.write(event)

    def _remove(self, request: Request) -> None:
        self._readers.discard(request)
        if not self._readers and self._timer.running:
            self._timer.stop()


@implementer(IPushProducer)
class _Reader:
    """A reader of the events, as the producer of its connection.

    Twisted buffers writes to a connection without bound, but asks the producer to pause once
    64 KiB are unsent. By then the reader has read nothing for minutes.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def pauseProducing(self) -> None:
        """See `IPushProducer`: drop the reader. Its browser may come again."""
        transport: Any = self._request.transport
        transport.abortConnection()

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""

    def stopProducing(self) -> None:
        """See `IPushProducer`: the connection is lost."""


def _file(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _totals(figures: Figures) -> dict[str, float]:
    """What can be added up, over all labels."""
    return {
        name: sum(figure.values()) if isinstance(figure, Mapping) else figure
        for name, figure in figures.items()
        if name == "connections" or name.endswith("_total")
    }


def _filled(page: Template, totals: Mapping[str, float], now: int) -> bytes:
    return page.substitute(
        {name: f"{total:,}" for name, total in totals.items()},
        host=escape(socket.gethostname()),
        version=__version__,
        time=time.strftime("%H:%M:%S UTC", time.gmtime(now // SECOND)),
    ).encode()
