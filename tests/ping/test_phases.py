"""Tests for `timestamp_echo.ping.phases`, over the loopback interface and with fakes."""

from __future__ import annotations

import socket
from itertools import count
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint, serverFromString
from twisted.internet.interfaces import (
    IHostnameResolver,
    IReactorPluggableNameResolver,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.tcp import BaseClient
from twisted.internet.testing import MemoryReactorClock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.system.certificates import self_signed
from tests.system.running import PATIENCE
from timestamp_echo.client.address import DatagramServer, StreamServer, server_from
from timestamp_echo.client.tls import Trust
from timestamp_echo.ping import transport
from timestamp_echo.ping.phases import MAX_REPLY, ConnectPath, LookupTimer
from timestamp_echo.ping.stats import Phases
from timestamp_echo.transports.arrivals import LINUX

HERE = "127.0.0.1"


class Silent(Protocol):
    """A server that never answers."""

    transport: Any  # an ITCPTransport

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`."""
        self.lost.callback(None)


class Echoing(Silent):
    """A server that answers."""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self.transport.write(data)


class Closing(Silent):
    """A server that closes instead of answering."""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self.transport.loseConnection()


class Pieces(Silent):
    """A server whose replies come in two pieces."""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self.transport.write(b"[x] ")
        reactor.callLater(0.01, self.transport.write, data)


class Prompting(Silent):
    """A server that writes a prompt behind its replies, as a shell does."""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self.transport.write(data + b"> ")


class Server(Factory):
    """Makes the protocols of a server, and keeps them."""

    def __init__(self, kind: type[Silent]) -> None:
        self.kind = kind
        self.connections: list[Silent] = []

    def buildProtocol(self, addr: object) -> Silent:
        """See `IProtocolFactory.buildProtocol`."""
        self.connections.append(self.kind())
        return self.connections[-1]


class Listener:
    """A `ProbeListener` that records its calls."""

    def __init__(self) -> None:
        self.happened: Deferred[None] = Deferred()
        self.replies: list[bytes] = []
        self.failures: list[tuple[bytes, str]] = []

    def replied(self, data: bytes) -> None:
        """See `PathListener`."""
        self.replies.append(data)
        self.happened.callback(None)

    def failed(self, data: bytes, why: str) -> None:
        """See `ProbeListener`."""
        self.failures.append((data, why))
        self.happened.callback(None)

    def answered(self) -> None:
        """See `PathListener`."""

    def writable(self) -> None:
        """See `PathListener`."""

    def over(self, why: str) -> None:
        """See `PathListener`."""


class PathTests(TestCase):
    """`ConnectPath`, over the loopback interface."""

    timeout = PATIENCE

    def setUp(self) -> None:
        """Nothing is connected."""
        self.listener = Listener()
        self.timer = LookupTimer(reactor)

    def path(self, server: StreamServer | DatagramServer, *, proxy: bool = False) -> ConnectPath:
        """A path to this server, with a clock that advances by one each time it is read."""
        clock = count(1000)
        path = ConnectPath(self.listener, server, self.timer, lambda: next(clock), send_proxy=proxy)
        typed: transport.Path = path
        self.addCleanup(typed.close)  # before `closed` waits: cleanups run in reverse order
        return path

    def named(self, text: str, trust: Trust | None = None) -> StreamServer | DatagramServer:
        """The server of this name."""
        return server_from(text, trust or Trust(), cast(Any, self.timer))

    async def listen(
        self, kind: type[Silent] = Echoing, endpoint: IStreamServerEndpoint | None = None
    ) -> Any:
        """Listen, and return the port."""
        self.server = Server(kind)
        port = await (endpoint or TCP4ServerEndpoint(reactor, 0, interface=HERE)).listen(
            self.server
        )
        self.addCleanup(port.stopListening)
        self.addCleanup(self.closed)
        return port

    async def closed(self) -> None:
        """Wait until both ends of all connections are closed."""
        for connection in self.server.connections:
            await connection.lost
        while any(isinstance(reader, BaseClient) for reader in reactor.getReaders()):
            await deferLater(reactor, 0.001)

    async def answered(self, path: ConnectPath) -> Phases:
        """Send a probe, wait for the reply, and return the phases."""
        path.write(b"probe\n")
        await self.listener.happened
        self.assertEqual((self.listener.replies, self.listener.failures), ([b"probe\n"], []))
        return path.release(b"probe\n")

    async def test_tcp(self) -> None:
        """A name is looked up, then there is a connection."""
        port = (await self.listen()).getHost().port
        path = self.path(self.named(f"localhost:{port}"))
        self.assertEqual(await self.answered(path), Phases({"lookup": 1, "connect": 1}, "reply"))

    async def test_unix(self) -> None:
        """A UNIX socket has no name to look up."""
        name = self.mktemp()[-100:].rpartition("/")[2]
        await self.listen(endpoint=UNIXServerEndpoint(reactor, name))
        path = self.path(self.named(f"unix:{name}"))
        self.assertEqual(await self.answered(path), Phases({"connect": 1}, "reply"))

    async def test_tls(self) -> None:
        """With TLS there is a handshake as well."""
        files = self_signed(self.mktemp())
        endpoint = serverFromString(reactor, f"ssl:0:interface={HERE}:{files.endpoint}")
        port = (await self.listen(endpoint=endpoint)).getHost().port
        path = self.path(self.named(f"tls:localhost:{port}", Trust(files.certificate)))
        expected = Phases({"lookup": 1, "connect": 1, "tls": 1}, "reply")
        self.assertEqual(await self.answered(path), expected)

    async def test_datagrams(self) -> None:
        """A datagram needs a port, and no connection, also if it goes to a second address."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind((HERE, 0))
        found = [
            (socket.AF_INET, socket.SOCK_DGRAM, 0, "", (HERE, port))
            for port in (1, sock.getsockname()[1])
        ]
        self.patch(socket, "getaddrinfo", lambda *_: found)
        path = self.path(self.named("udp:host"))
        sources = []
        for _ in range(2):
            path.write(b"probe\n")
            data, source = await self.received(sock)
            sources.append(source)
            sock.sendto(data, source)
            await self.listener.happened
            self.listener.happened = Deferred()
            self.assertEqual(path.release(b"probe\n"), Phases({"lookup": 1}, "reply"))
        self.assertNotEqual(*sources)  # a new socket, a new port

    def received(self, sock: socket.socket) -> Deferred[Any]:
        """Receive a datagram without blocking the reactor."""
        sock.settimeout(20)
        return deferToThread(sock.recvfrom, 1000)

    async def test_pieces(self) -> None:
        """A reply is passed on when its line is complete, with the connection's arrival time."""
        port = (await self.listen(Pieces)).getHost().port
        path = self.path(self.named(f"{HERE}:{port}"))
        path.write(b"probe\n")
        await self.listener.happened
        self.assertEqual(self.listener.replies, [b"[x] probe\n"])
        if LINUX:
            self.assertGreaterEqual(path.arrival, 0)

    async def test_prompt(self) -> None:
        """What follows the reply's line does not keep it from being passed on."""
        port = (await self.listen(Prompting)).getHost().port
        path = self.path(self.named(f"{HERE}:{port}"))
        self.assertEqual(await self.answered(path), Phases({"lookup": 1, "connect": 1}, "reply"))

    async def test_no_route(self) -> None:
        """A datagram that no route takes is lost behind the lookup."""
        path = self.path(self.named("udp:255.255.255.255:7"))
        path.write(b"probe\n")
        await self.listener.happened
        self.assertEqual(path.release(b"probe\n"), Phases({"lookup": 1}, "reply"))

    async def test_closed(self) -> None:
        """A connection that ends without a reply has failed in that phase."""
        port = (await self.listen(Closing)).getHost().port
        path = self.path(self.named(f"{HERE}:{port}"))
        path.write(b"probe\n")
        await self.listener.happened
        self.assertEqual(
            self.listener.failures,
            [
                (
                    b"probe\n",
                    "the server closed the connection (if it speaks TLS, use tls:host:port)",
                )
            ],
        )
        self.assertEqual(path.release(b"probe\n").current, "reply")

    async def test_refused(self) -> None:
        """A refused connection, one without a handshake, and an unknown name."""
        plain = (await self.listen(Closing)).getHost().port
        with socket.create_server((HERE, 0)) as free:
            closed = free.getsockname()[1]
        for text, phase in (
            (f"{HERE}:{closed}", "connect"),
            (f"tls:{HERE}:{plain}", "tls"),
            ("host.invalid", "lookup"),
            (f"udp:{HERE}:{closed}", "reply"),
            ("udp:host.invalid", "lookup"),
            ("unix:/nowhere", "connect"),
        ):
            path = self.path(self.named(text))
            self.listener.happened = Deferred()
            path.write(b"probe\n")
            await self.listener.happened
            self.assertEqual(path.release(b"probe\n").current, phase, text)
        self.assertEqual(len(self.listener.failures), 6)

    async def test_given_up(self) -> None:
        """A connection that is given up is closed, whatever its phase, and reports nothing."""
        plain = (await self.listen(Silent)).getHost().port
        for text, phase in (
            (f"{HERE}:{plain}", "reply"),
            (f"tls:{HERE}:{plain}", "tls"),
            ("localhost:1", "lookup"),
            ("udp:localhost:1", "lookup"),
        ):
            path = self.path(self.named(text))
            path.write(b"probe\n")
            while path._attempts[b"probe\n"]._phases.current != phase:
                await deferLater(reactor, 0.001)
            self.assertEqual(path.release(b"probe\n").current, phase)
        await self.closed()
        self.assertEqual((self.listener.replies, self.listener.failures), ([], []))

    async def test_several(self) -> None:
        """Each probe in flight has a connection of its own; closing the path closes all."""
        port = (await self.listen(Silent)).getHost().port
        path = self.path(self.named(f"{HERE}:{port}"))
        path.write(b"1\n")
        path.write(b"2\n")
        while len(self.server.connections) < 2:
            await deferLater(reactor, 0.001)
        path.close()
        await self.closed()

    async def test_proxy(self) -> None:
        """The PROXY header comes first, and names this end of the connection."""
        port = (await self.listen()).getHost().port
        path = self.path(self.named(f"{HERE}:{port}"), proxy=True)
        path.write(b"probe\n")
        await self.listener.happened
        peer = self.server.connections[0].transport.getPeer()
        header = f"PROXY TCP4 {HERE} {HERE} {peer.port} {port}\r\n".encode()
        self.assertEqual(self.listener.replies[0][: len(header)], header)


class LookupTimerTests(SynchronousTestCase):
    """`LookupTimer`."""

    def test_interfaces(self) -> None:
        """It stands for a reactor whose names are resolved by it."""
        timer = LookupTimer(MemoryReactorClock())
        verifyObject(IReactorPluggableNameResolver, timer)
        verifyObject(IHostnameResolver, timer)
        self.assertIs(timer.nameResolver, timer)
        self.assertEqual(timer.seconds(), 0)


class ReplyTests(SynchronousTestCase):
    """What a server without replies may send."""

    def test_endless(self) -> None:
        """Of a line without an end only a part is kept."""
        timer = LookupTimer(MemoryReactorClock())
        server = server_from("unix:/x", Trust(), cast(Any, timer))
        path = ConnectPath(Listener(), server, timer, lambda: 0, send_proxy=False)
        path.write(b"probe\n")
        attempt = path._attempts[b"probe\n"]
        for _ in range(5):
            attempt.replied(b"x" * (MAX_REPLY // 3))
        self.assertEqual(len(attempt._partial), MAX_REPLY)
        attempt.writable()
        attempt.answered()

    def test_given_up(self) -> None:
        """A reply that comes after the probe was given up is not passed on."""
        timer, listener = LookupTimer(MemoryReactorClock()), Listener()
        server = server_from("unix:/x", Trust(), cast(Any, timer))
        path = ConnectPath(listener, server, timer, lambda: 0, send_proxy=False)
        path.write(b"probe\n")
        attempt = path._attempts[b"probe\n"]
        path.release(b"probe\n")
        attempt.replied(b"probe\n")
        self.assertEqual(listener.replies, [])
