"""Tests for `timestamp_echo.status.site`."""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from tests.fakes import TCPTransport, logged
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.status.metrics import LAG_INTERVAL, Metrics
from timestamp_echo.status.site import (
    MAX_BODY,
    MAX_CONNECTIONS,
    MAX_REPLACED,
    REQUEST_TIMEOUT,
    Channel,
    StatusSite,
)

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"

MALFORMED = 100_000


class SiteCase(SynchronousTestCase):
    """A site without a reactor, for a service that is ready."""

    ready = True

    def setUp(self) -> None:
        """Make the site."""
        self.clock = Clock()
        metrics = Metrics(TimestampEchoFactory(clock=self.clock), [], list, self.clock)
        self.site = StatusSite(metrics, lambda: self.ready, self.clock)

    def connect(self) -> tuple[Channel, TCPTransport]:
        """Make a connection."""
        channel = self.site.buildProtocol(None)
        transport = TCPTransport()
        channel.makeConnection(transport)
        return channel, transport

    def request(self, data: bytes) -> bytes:
        """What is answered to this, on a connection of its own; the reactor is not waited for."""
        channel, transport = self.connect()
        channel.dataReceived(data)
        channel.connectionLost()
        answer: bytes = transport.value()
        return answer

    def get(self, path: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """The status, the headers and the body for a path."""
        head, _, body = self.request(GET % path).partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        headers = {name: value for name, _, value in (each.partition(b": ") for each in lines)}
        return line.removeprefix(b"HTTP/1.1 "), headers, body


class StatusSiteTests(SiteCase):
    """`StatusSite`: what it answers."""

    def test_metrics(self) -> None:
        """/metrics is in Prometheus's text format, and is not cached."""
        status, headers, body = self.get(b"/metrics")
        self.assertEqual(status, b"200 OK")
        self.assertEqual(headers[b"Content-Type"], b"text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(headers[b"Cache-Control"], b"no-store")
        self.assertIn(b"\ntsecho_connections 0.0\n", body)

    def test_alive(self) -> None:
        """/livez is answered as long as anything is."""
        self.ready = False
        status, headers, body = self.get(b"/livez")
        self.assertEqual((status, body), (b"200 OK", b"ok\n"))
        self.assertEqual(headers[b"Content-Type"], b"text/plain; charset=utf-8")

    def test_ready(self) -> None:
        """/readyz says with its status whether the service is ready, each time it is asked."""
        for ready, expected in (
            (True, (b"200 OK", b"ok\n")),
            (False, (b"503 Service Unavailable", b"not ready\n")),
            (True, (b"200 OK", b"ok\n")),
        ):
            self.ready = ready
            status, headers, body = self.get(b"/readyz")
            self.assertEqual((status, body), expected)
            self.assertEqual(headers[b"Cache-Control"], b"no-store")

    def test_others(self) -> None:
        """There is nothing else, and nothing can be changed."""
        for path in (b"/metrics/", b"/metrics/x", b"/x", b"//", b"/%2e%2e/metrics"):
            self.assertEqual(self.get(path)[0], b"404 Not Found", path)
        for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"x"):
            data = self.request(method + b" /readyz HTTP/1.1\r\n\r\n")
            self.assertIn(b" 405 Method Not Allowed\r\n", data)
            self.assertIn(b"\r\nAllow: GET, HEAD\r\n", data)
            self.assertIn(b"\r\nContent-Type: text/plain; charset=utf-8\r\n", data)
        head = self.request(b"HEAD /metrics HTTP/1.1\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertTrue(head.endswith(b"\r\n\r\n"))

    def test_kept_open(self) -> None:
        """A connection is used again, as Prometheus does; each request has its time."""
        channel, transport = self.connect()
        for _ in range(3):
            self.clock.advance(REQUEST_TIMEOUT - 1)
            transport.clear()
            channel.dataReceived(GET % b"/livez")
            self.assertTrue(transport.value().endswith(b"ok\n"))
            self.assertFalse(transport.disconnecting)

    def test_silent(self) -> None:
        """Nothing is written to the log: neither requests, nor timeouts, nor the port."""
        events = logged(self)
        self.site.doStart()
        self.request(GET % b"/metrics")
        self.request(GET % b"/x")
        self.request(b"HEAD /echo HTTP/1.1\r\n\r\n")
        self.connect()
        self.clock.advance(REQUEST_TIMEOUT)
        self.site.doStop()
        self.assertEqual(events, [])

    def test_lag(self) -> None:
        """The reactor's lag is measured while the port is open; the log's timer is not set."""
        self.site.doStart()
        (call,) = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime(), LAG_INTERVAL)
        self.site.doStop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Endless(Resource):
    """Is never answered."""

    def render_GET(self, request: Request) -> int:
        """See `IResource`."""
        return NOT_DONE_YET


class LimitTests(SiteCase):
    """`Channel`: what bounds a client."""

    def test_connections(self) -> None:
        """Over the limit a connection takes the place of the one that has been idle for longest."""
        connections = [self.connect() for _ in range(MAX_CONNECTIONS)]
        connections[0][0].dataReceived(GET % b"/livez")
        for _ in range(MAX_REPLACED):
            self.connect()
        aborted = [transport.aborted for _, transport in connections]
        kept = MAX_CONNECTIONS - MAX_REPLACED - 1
        self.assertEqual(aborted, [False] + [True] * MAX_REPLACED + [False] * kept)

    def test_connections_at_once(self) -> None:
        """While `MAX_REPLACED` connections are closing, a new one is closed at once."""
        channels = [self.connect()[0] for _ in range(MAX_CONNECTIONS + MAX_REPLACED)]
        self.assertIsNone(self.site.buildProtocol(None))
        channels[0].connectionLost()
        self.assertIsNotNone(self.site.buildProtocol(None))

    def test_flood(self) -> None:
        """However many connections are opened and left idle, a health check is answered."""
        idle = [self.connect() for _ in range(MAX_CONNECTIONS + MAX_REPLACED)]
        for _ in range(100):
            for channel, transport in idle:
                if transport.aborted:
                    channel.connectionLost()
            idle = [each for each in idle if not each[1].aborted]
            self.assertTrue(self.request(GET % b"/livez").endswith(b"ok\n"))
            while len(idle) < MAX_CONNECTIONS:
                idle.append(self.connect())

    def test_slow_request(self) -> None:
        """Bytes that trickle in do not prolong the time for a request."""
        channel, transport = self.connect()
        for byte in (GET % b"/livez")[: int(REQUEST_TIMEOUT) - 1]:
            self.clock.advance(1)
            channel.dataReceived(bytes([byte]))
        self.assertFalse(transport.aborted)
        self.clock.advance(1)
        self.assertTrue(transport.aborted)

    def test_response_not_read(self) -> None:
        """A peer that does not read its last response is disconnected by force."""
        for request in (
            b"GET /livez HTTP/1.0\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n",
            b"nonsense\r\n\r\n",
        ):
            channel, transport = self.connect()
            channel.dataReceived(request)
            self.assertTrue(transport.disconnecting)
            self.clock.advance(REQUEST_TIMEOUT - 1)
            self.assertFalse(transport.aborted)
            self.clock.advance(1)
            self.assertTrue(transport.aborted)

    def test_long_response(self) -> None:
        """A response that takes long, such as a stream of events, has no timeout."""
        self.site.resource.putChild(b"endless", Endless())
        channel, transport = self.connect()
        channel.dataReceived(GET % b"/endless")
        self.clock.advance(100 * REQUEST_TIMEOUT)
        self.assertFalse(transport.aborted or transport.disconnecting)
        channel.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pipelining(self) -> None:
        """Many requests in one read get two responses at most, then the connection is closed."""
        channel, transport = self.connect()
        channel.dataReceived(1000 * (GET % b"/livez"))
        self.assertEqual(transport.value().count(b"HTTP/1.1 200 OK"), 2)
        self.assertTrue(transport.disconnecting)

    def test_body(self) -> None:
        """A body over the limit, or of unknown size, is refused before it is received."""
        for header, status in (
            (b"Content-Length: %d" % MAX_BODY, b""),
            (b"Content-Length: %d" % (MAX_BODY + 1), b"HTTP/1.1 413 Content Too Large"),
            (b"Content-Length: " + b"9" * 5000, b"HTTP/1.1 400 Bad Request"),
            (b"Transfer-Encoding: chunked", b"HTTP/1.1 413 Content Too Large"),
        ):
            channel, transport = self.connect()
            channel.dataReceived(b"POST /livez HTTP/1.1\r\n" + header + b"\r\n\r\nx")
            self.assertEqual(transport.value().partition(b"\r\n")[0], status)
            self.assertEqual(transport.disconnecting, bool(status))

    def test_longest_body(self) -> None:
        """A body within the limit is received whole, then refused by what takes none."""
        head = b"POST /livez HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY
        data = self.request(head + b"x" * MAX_BODY)
        self.assertTrue(data.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n"))

    def test_headers(self) -> None:
        """A line or headers without end are cut off."""
        for piece in (b"x" * 1000, b"x: y\r\n" * 100, b" y" * 500):
            channel, transport = self.connect()
            channel.dataReceived(b"GET / HTTP/1.1\r\nx: y")
            for _ in range(100):
                if not transport.disconnecting:
                    channel.dataReceived(piece)
            self.assertTrue(transport.disconnecting, piece[:5])


TEMPLATES = (
    GET % b"/livez",
    GET % b"/readyz?a=b&c;d=%ff",
    b"POST /livez HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 50"
    b'\r\n\r\n--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n',
    b"POST / HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 7\r\n\r\na=b&c=%",
    b"GET /livez HTTP/1.0\r\nCookie: a=b; c\r\nExpect: 100-continue\r\nX: 1\r\n 2\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
)

PIECES = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"%", b"\xff", b"-1", b"/"),
    *(b"HTTP/", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"x" * 9000),
    *(b"Content-Length: -5\r\n", b"Content-Length: 99999999999999999999\r\n", b"Host:"),
)


def malformed(chance: random.Random) -> bytes:
    """A request with a few random changes; or, now and then, random bytes."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(200))
    data = chance.choice(TEMPLATES)
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(data))
        end = start + chance.randrange(8)
        data = data[:start] + chance.choice(PIECES) + data[end:]
    return data


class MalformedTests(SiteCase):
    """Requests as no client should send them."""

    def test_malformed(self) -> None:
        """None of 100,000 does any harm: each gets a short answer or none, and leaves nothing.

        The service goes on, nothing is logged, and no timer is left.
        """
        events = logged(self)
        chance = random.Random(16)
        longest = 0
        for _ in range(MALFORMED):
            channel, transport = self.connect()
            data = malformed(chance)
            cut = chance.randrange(len(data) + 1)
            for piece in (data[:cut], data[cut:]):
                if not transport.disconnecting:
                    channel.dataReceived(piece)
            longest = max(longest, len(transport.value()))
            channel.connectionLost()
        self.assertLess(longest, 2**14)
        self.assertEqual(events, [])
        self.assertEqual((self.site.channels, self.clock.getDelayedCalls()), ([], []))
        self.assertEqual(self.get(b"/readyz")[0], b"200 OK")
