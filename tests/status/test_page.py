"""Tests for `timestamp_echo.status.page`; `tests/system/test_page.py` has those in a browser."""

from __future__ import annotations

import json
import re
import socket
from html.parser import HTMLParser
from typing import Any, cast
from urllib.parse import quote_plus

from tests.fakes import TCPTransport, logged
from tests.status.test_site import GET, SiteCase
from timestamp_echo.framing import FRAMINGS
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.stamps import Stamp
from timestamp_echo.status.page import INTERVAL, MAX_READERS, Figures, add_page
from timestamp_echo.status.site import HEADERS, MAX_BODY, MAX_CONNECTIONS, Channel

NOW = 1795357680 * 10**9 + 5

STAMP = b"[Sun Nov 22 14:28:00 2026] "

FIGURES: Figures = {
    "connections": 3,
    "connections_total": 12345,
    "connections_refused_total": {"total": 1, "per_peer": 2},
    "messages_total": {"tcp": 1000000, "udp": 1},
    "received_bytes_total": 7,
    "sent_bytes_total": 8,
    "datagrams_total": 9,
    "datagrams_unanswered_total": {"rate": 4, "group": 6},
    "certificate_expiry_timestamp_seconds": {"ssl:3001": 5},
}


class Page(HTMLParser):
    """What a page shows of each figure, and what it loads."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.figures: dict[str, str] = {}
        self.loaded: list[str] = []
        self.figure = self.cell = ""
        self.feed(body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        found = {name: value or "" for name, value in attrs}
        if tag == "tr":
            self.figure = found.get("data-figure", "")
        self.loaded += [found[name] for name in ("src", "href", "action") if name in found]
        self.cell = tag

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if self.cell == "td" and self.figure:
            self.figures[self.figure] = data

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        self.cell = ""


class PageCase(SiteCase):
    """A site with the page."""

    framing = "auto"

    def setUp(self) -> None:
        """Add the page."""
        super().setUp()
        self.figures = dict(FIGURES)
        factory = TimestampEchoFactory(
            Stamp(utc=True), FRAMINGS[self.framing], self.clock, lambda: NOW
        )
        add_page(self.site.resource, lambda: self.figures, factory, self.clock)


class PageTests(PageCase):
    """`add_page`: the page, and what it loads."""

    def test_without_scripts(self) -> None:
        """The page itself has all figures, added up over their labels, and says of when."""
        status, headers, body = self.get(b"/")
        self.assertEqual(status, b"200 OK")
        self.assertEqual(headers[b"Content-Type"], b"text/html; charset=utf-8")
        self.assertIn(b"As of 14:28:00 UTC.", body)
        expected = {
            "connections": "3",
            "connections_total": "12,345",
            "connections_refused_total": "3",
            "messages_total": "1,000,001",
            "received_bytes_total": "7",
            "sent_bytes_total": "8",
            "datagrams_total": "9",
            "datagrams_unanswered_total": "10",
        }
        self.assertEqual(Page(body).figures, expected)
        self.figures["connections"] = 4
        self.assertEqual(Page(self.get(b"/")[2]).figures["connections"], "4")

    def test_name_of_the_host(self) -> None:
        """The host's name, which may be any text, is shown as it is."""
        self.patch(socket, "gethostname", lambda: "<b>&")
        self.assertIn(b"<title>tsecho on &lt;b&gt;&amp;</title>", self.get(b"/")[2])

    def test_nothing_from_elsewhere(self) -> None:
        """What the page loads is here, by relative names, so that it may lie below a path."""
        loaded = Page(self.get(b"/")[2]).loaded
        icon, *names = loaded
        self.assertTrue(icon.startswith("data:"))
        self.assertEqual(names, ["page.css", "page.js", "echo"])
        for name, kind in (("page.css", b"text/css"), ("page.js", b"text/javascript")):
            status, headers, body = self.get(f"/{name}".encode())
            self.assertEqual(status, b"200 OK")
            self.assertEqual(headers[b"Content-Type"], kind + b"; charset=utf-8")
            self.assertNotRegex(body, rb"://|@import|url\(|innerHTML")

    def test_headers(self) -> None:
        """All responses keep others from embedding, reading and guessing them."""
        paths = (b"/", b"/page.css", b"/page.js", b"/time", b"/events")
        posted = self.request(b"POST /echo HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        answers = [self.request(GET % path) for path in paths] + [posted]
        answers += [self.request(b"HEAD %s HTTP/1.1\r\n\r\n" % path) for path in paths]
        for answer in answers:
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 OK\r\n"))
            for name, value in HEADERS.items():
                self.assertIn(f"\r\n{name}: {value}\r\n".encode(), answer)
            self.assertNotIn(b"Access-Control", answer)
        self.assertIn("default-src 'self'", HEADERS["Content-Security-Policy"])

    def test_time(self) -> None:
        """/time is the wall clock, in nanoseconds."""
        self.assertEqual(self.get(b"/time")[2], b"%d\n" % NOW)

    def test_silent(self) -> None:
        """Nothing is written to the log, not even of HEAD."""
        events = logged(self)
        for path in (b"/", b"/page.css", b"/time", b"/events", b"/metrics", b"/x"):
            self.request(GET % path)
            head = self.request(b"HEAD %s HTTP/1.1\r\n\r\n" % path)
            self.assertTrue(head.endswith(b"\r\n\r\n"))
        self.assertEqual(events, [])


class EchoTests(PageCase):
    """`Echo`: the echo box."""

    def post(self, body: bytes) -> bytes:
        """What the echo answers to a form."""
        head = b"POST /echo HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        answer = self.request(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return answer.partition(b"\r\n\r\n")[2]

    def test_message(self) -> None:
        """A message comes back behind the stamp of the service, as UTF-8, whatever its framing."""
        for framing in FRAMINGS:
            self.framing = framing
            self.setUp()
            for text in ("hello", "", "你好", "a&b=c+d%", "<b>", "x" * 900, "字" * 900):
                reply = self.post(b"message=" + quote_plus(text).encode())
                self.assertEqual(reply, STAMP + text.encode() + b"\n", text)
        self.assertEqual(self.post(b"message=%ff%00"), STAMP + b"\xff\x00\n")

    def test_no_message(self) -> None:
        """A form without a message is an empty one; the first of several counts."""
        self.assertEqual(self.post(b""), STAMP + b"\n")
        self.assertEqual(self.post(b"message=a&message=b"), STAMP + b"a\n")

    def test_input_fits(self) -> None:
        """The longest text that the page lets anyone type fits into a request."""
        (length,) = re.findall(rb'maxlength="(\d+)"', self.get(b"/")[2])
        self.assertLessEqual(len("message=") + int(length) * len(quote_plus("字")), MAX_BODY)

    def test_too_large(self) -> None:
        """A larger body is refused."""
        answer = self.request(b"POST /echo HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1))
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "))

    def test_only_posted(self) -> None:
        """A message is not taken from an address, which browsers keep and servers log."""
        status, headers, body = self.get(b"/echo?message=x")
        self.assertEqual((status, body), (b"405 Method Not Allowed", b"expected POST\n"))
        self.assertEqual(headers[b"Allow"], b"POST")


class EventTests(PageCase):
    """`Events`: the live figures."""

    def read(self) -> tuple[Channel, TCPTransport]:
        """Begin to read the events."""
        channel, transport = self.connect()
        channel.dataReceived(GET % b"/events")
        return channel, transport

    def read_all(self) -> list[tuple[Channel, TCPTransport]]:
        """As many readers as there may be."""
        return [self.read() for _ in range(MAX_READERS)]

    def events(self, transport: TCPTransport) -> list[dict[str, float]]:
        """The events that have come since the last call."""
        found = [json.loads(each) for each in re.findall(rb"data: (.*)\n\n", transport.value())]
        transport.clear()
        return found

    def test_format(self) -> None:
        """The first event comes at once, in a stream that nobody on the way keeps."""
        _, transport = self.read()
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertIn(b"\r\nContent-Type: text/event-stream\r\n", head)
        self.assertIn(b"\r\nX-Accel-Buffering: no\r\n", head)
        self.assertIn(b"\r\nCache-Control: no-store\r\n", head)
        self.assertIn(b"\r\nretry: 1000\n", body)
        (event,) = self.events(transport)
        self.assertEqual(event["connections"], 3)
        self.assertEqual(event["datagrams_unanswered_total"], 10)
        self.assertNotIn("certificate_expiry_timestamp_seconds", event)

    def test_every_second(self) -> None:
        """All readers get the figures of the moment every second, which are asked for once."""
        transports = [transport for _, transport in self.read_all()]
        for transport in transports:
            transport.clear()
        for second in range(1, 4):
            self.figures["connections"] = second
            self.clock.advance(INTERVAL / 2)
            self.assertEqual([transport.value() for transport in transports], [b""] * MAX_READERS)
            self.clock.advance(INTERVAL / 2)
            for transport in transports:
                (event,) = self.events(transport)
                self.assertEqual(event["connections"], second)

    def test_one_timer(self) -> None:
        """All readers have one timer; it is gone with the last of them, and comes with the next."""

        def timers() -> int:
            return sum(call.getTime() <= INTERVAL for call in self.clock.getDelayedCalls())

        for _ in range(2):
            self.clock.rightNow = 0.0
            self.assertEqual(timers(), 0)
            readers = self.read_all()
            self.assertEqual(timers(), 1)
            for channel, _ in readers[1:]:
                channel.connectionLost()
            self.assertEqual(timers(), 1)
            readers[0][0].connectionLost()
            self.assertEqual(timers(), 0)

    def test_head(self) -> None:
        """HEAD is no reader."""
        for _ in range(2 * MAX_READERS):
            self.request(b"HEAD /events HTTP/1.1\r\n\r\n")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_many(self) -> None:
        """There is a limit of readers; scrapes and health checks always find a connection."""
        self.assertLessEqual(2 * MAX_READERS, MAX_CONNECTIONS - 4)
        readers = self.read_all()
        status, _, body = self.get(b"/events")
        self.assertEqual(status, b"503 Service Unavailable")
        self.assertEqual(body, b"too many readers: the limit is %d\n" % MAX_READERS)
        readers[2][0].connectionLost()
        self.assertEqual(self.get(b"/events")[0], b"200 OK")

    def test_not_read(self) -> None:
        """A reader that does not read is dropped when its buffer is full; the others stay."""
        readers = self.read_all()
        slow, others = readers[0], readers[1:]
        self.clock.advance(INTERVAL)
        self.assertFalse(slow[1].aborted)
        cast(Any, slow[1].producer).pauseProducing()  # as its transport does, at 64 KiB
        self.assertTrue(slow[1].aborted)
        slow[0].connectionLost()
        for _, transport in others:
            transport.clear()
        self.clock.advance(INTERVAL)
        for _, transport in others:
            self.assertEqual(len(self.events(transport)), 1)
            producer: Any = transport.producer
            producer.resumeProducing()
            producer.stopProducing()
            self.assertFalse(transport.aborted)

    def test_figures_fail(self) -> None:
        """An error in the figures is in the log once; the next reader starts the timer again."""
        _, transport = self.read()
        figures, self.figures = self.figures, None  # type: ignore[assignment]
        self.clock.advance(INTERVAL)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        self.figures = figures
        self.read()
        transport.clear()
        self.clock.advance(INTERVAL)
        self.assertEqual(len(self.events(transport)), 1)
