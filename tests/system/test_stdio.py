"""Tests for `timestamp_echo.transports.stdio`, on real pipes."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyClass

from tests.fakes import Recorder
from tests.system.running import PATIENCE
from timestamp_echo.transports import stdio
from timestamp_echo.transports.reactor import ReactorAdapter
from timestamp_echo.transports.stdio import (
    MAX_UNREAD,
    StandardIOEndpoint,
    StandardIOTransport,
)


class Waiting(Recorder):
    """Tells when its output is closed, and when all is over."""

    def __init__(self) -> None:
        super().__init__()
        self.half_closed: Deferred[None] = Deferred()
        self.over: Deferred[None] = Deferred()

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        super().readConnectionLost()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        self.half_closed.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        super().connectionLost(reason)
        self.over.callback(None)


class StandardIOTransportTests(TestCase):
    """`StandardIOTransport`, between two pipes."""

    timeout = PATIENCE

    def setUp(self) -> None:
        """Connect a protocol to the pipes, of which the test has the other ends."""
        stdin, self.input = os.pipe()
        self.output, stdout = os.pipe()
        self.protocol = Waiting()
        self.transport: Any = StandardIOTransport(self.protocol, stdin, stdout)
        self.addCleanup(self.transport.abortConnection)
        for fd in (stdin, stdout):
            self.addCleanup(os.close, fd)

    def close(self, *fds: int) -> None:
        """Close these ends of the pipes."""
        for fd in fds:
            os.close(fd)

    def test_abort(self) -> None:
        """An abort ends the connection at once, and only once."""
        self.addCleanup(self.close, self.input, self.output)
        self.transport.abortConnection()
        self.transport.abortConnection()
        self.assertEqual(self.protocol.ends, [ConnectionAborted])

    async def test_half_close(self) -> None:
        """Once this side has closed its output, it can close the rest as well."""
        self.addCleanup(self.close, self.input, self.output)
        self.transport.write(b"last")
        self.transport.loseWriteConnection()
        await self.protocol.half_closed
        self.assertEqual(os.read(self.output, 100), b"last")
        self.assertEqual(self.protocol.ends, [])
        self.transport.loseConnection()
        self.assertEqual(self.protocol.ends, [ConnectionDone])

    async def test_end_of_input(self) -> None:
        """At the end of the input what is unsent is still sent."""
        self.addCleanup(self.close, self.output)
        self.transport.write(b"last")
        self.close(self.input)
        await self.protocol.over
        self.assertEqual(os.read(self.output, 100), b"last")
        self.assertEqual(self.protocol.ends, ["half", ConnectionDone])

    async def test_end_of_input_after_half_close(self) -> None:
        """So does the end of the input, once the output is closed."""
        self.addCleanup(self.close, self.output)
        self.transport.loseWriteConnection()
        await self.protocol.half_closed
        self.close(self.input)
        await self.protocol.over
        self.assertEqual(self.protocol.ends, ["half", ConnectionDone])

    async def test_unread(self) -> None:
        """It knows what waits, and reads all that a pipe holds at once."""
        self.addCleanup(self.close, self.input, self.output)
        self.assertEqual(self.transport.unread(), 0)
        self.assertIsNone(self.transport.doRead())
        os.write(self.input, b"x" * 2**16)
        self.assertEqual(self.transport.unread(), 2**16)
        self.protocol.act = self.transport.abortConnection
        await self.protocol.over
        self.assertEqual([len(data) for data in self.protocol.reads], [2**16])
        self.assertEqual(self.transport.unread(), 0)

    def test_file(self) -> None:
        """Of an ordinary file much is unread, but there is a limit; a device may not say."""
        self.addCleanup(self.close, self.input, self.output)
        self.transport.abortConnection()
        path = self.mktemp()
        with open(path, "wb") as file:
            file.truncate(2 * MAX_UNREAD)
        for name, unread in ((path, MAX_UNREAD), (os.devnull, 0)):
            with open(name, "rb") as file, open(os.devnull, "wb") as output:
                reactor: Any = MemoryReactor()
                transport = StandardIOTransport(
                    Recorder(), file.fileno(), output.fileno(), reactor=reactor
                )
                self.assertEqual(transport.unread(), unread)

    def test_errors(self) -> None:
        """An error in a read is a lost connection."""
        self.addCleanup(self.close, self.input, self.output)
        self.patch(os, "read", lambda *_: os.close(-1))
        self.assertIs(self.transport.doRead(), CONNECTION_LOST)
        self.transport.abortConnection()

    def test_read_at_the_end(self) -> None:
        """A file, unlike a pipe, shows its end by a read that gets nothing."""
        self.addCleanup(self.close, self.output)
        self.close(self.input)
        self.assertIs(self.transport.doRead(), CONNECTION_DONE)
        self.transport.abortConnection()

    def test_ended_at_once(self) -> None:
        """The protocol may end it as soon as it is made."""
        self.addCleanup(self.close, self.input, self.output)
        self.transport.abortConnection()
        stdin, stdout = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
        self.addCleanup(self.close, stdin, stdout)
        reactor: Any = MemoryReactor()
        self.patch(Recorder, "connectionMade", lambda echo: echo.transport.abortConnection())
        recorder = Recorder()
        StandardIOTransport(recorder, stdin, stdout, reactor=reactor)
        self.assertEqual(recorder.ends, [ConnectionAborted])

    async def test_reader_gone(self) -> None:
        """When nobody reads the output any more, the connection is lost."""
        self.addCleanup(self.close, self.input)
        self.close(self.output)
        self.transport.write(b"x")
        await self.protocol.over
        self.assertEqual(self.protocol.ends, [ConnectionLost])


class StandardIOEndpointTests(TestCase):
    """`StandardIOEndpoint`, which takes the place of Twisted's."""

    def test_endpoint(self) -> None:
        """`stdio:` makes one; the colon may be left out. It connects as soon as it listens."""
        verifyClass(IStreamServerEndpoint, StandardIOEndpoint)
        made: list[object] = []

        def connect(protocol: Protocol, reactor: object) -> Protocol:
            made.append((type(protocol), reactor))
            return protocol

        self.patch(stdio, "StandardIOTransport", connect)
        memory = MemoryReactor()
        for description in ("stdio:", "stdio"):
            endpoint = ReactorAdapter(memory, False).endpoint(description)
            self.successResultOf(endpoint.listen(Factory.forProtocol(Recorder)))
        self.assertEqual(made, [(Recorder, memory)] * 2)
