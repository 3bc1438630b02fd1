"""From the command line to the service: the only place that composes.

`twistd tsecho` calls `Options`, then `makeService`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.python import usage

from timestamp_echo import __version__
from timestamp_echo.framing import FRAMINGS
from timestamp_echo.server.connections import IDLE, RESERVE, Limits, file_limit
from timestamp_echo.server.datagram import RATE, TimestampDatagram
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.server.service import DRAIN, EchoService, Listener, reason
from timestamp_echo.stamps import Stamp
from timestamp_echo.transports.reactor import MAX_UNSENT, ReactorAdapter
from timestamp_echo.transports.udp import DatagramPort

DATAGRAM = 65536
"""Bytes that hold any datagram whole (RFC 768); Twisted's own default cuts at 8192."""

_UDP = re.compile(r"udp:(?P<port>\d+)(?::interface=(?P<interface>.+))?", re.ASCII)

_TLS = re.compile(r"(haproxy:)?(ssl|tls):")

# Where the endpoints of Twisted that have a port have it. What this passes over they check.
_PORT = re.compile(r"(?:(?:haproxy:)?(?:tcp6?|ssl|udp):|.*:port=)(?P<port>-?\d+)(?::|$)", re.ASCII)


class Options(usage.Options):
    """The service's command line."""

    synopsis = "[options]"
    longdesc = (
        "A timestamp echo: every message comes back with the moment it arrived in front"
        " of it, as in '[Sun Nov 22 14:08:00 2026] hello'."
    )
    optParameters: ClassVar = [
        ["stamp", "s", "ctime", "ctime, iso, unix, or a strftime pattern (with %f)."],
        ["framing", None, "auto", "Where a message ends: auto, line or chunk."],
        ["max-connections", None, None, "More are told so and closed. [default: the file limit]"],
        ["max-per-peer", None, 0, "The same per IPv4 address or IPv6 /64; 0 is no limit."],
        ["max-unsent", None, MAX_UNSENT, "Bytes of unsent replies; then it is not read further."],
        ["idle-timeout", None, int(IDLE), "Seconds without an exchange; 0 is for ever."],
        ["drain-timeout", None, int(DRAIN), "Seconds that a stop may take."],
        ["client-ca", None, None, "Clients of ssl: must show a certificate of this PEM file's."],
        ["udp-rate", None, RATE, "Datagrams a second answered per source (/24, /64)."],
    ]
    optFlags: ClassVar = [["utc", None, "Stamps in UTC instead of the local zone."]]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, description: str) -> None:
        """Listen on a Twisted server endpoint or udp:PORT[:interface=ADDRESS]; repeatable.

        The default is tcp:3000.
        """
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_version(self) -> None:
        """Display tsecho's version and exit."""
        print(f"tsecho {__version__}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """Check all values, and make of them what `makeService` needs.

        @raise usage.UsageError: says what was expected and what came.
        """
        from twisted.internet import reactor

        if self["framing"] not in FRAMINGS:
            raise usage.UsageError(
                f"--framing: expected {', '.join(FRAMINGS)}, not {self['framing']!r}"
            )
        try:
            stamp = Stamp(self["stamp"], bool(self["utc"]))
        except ValueError as error:
            raise usage.UsageError(f"--stamp: {error}") from error
        rate = _number("--udp-rate", self["udp-rate"], 1)
        streams = ReactorAdapter(
            reactor,
            stamp.subsecond,
            _number("--max-unsent", self["max-unsent"], 1),
            self._client_ca(),
        )
        self.drain = _number("--drain-timeout", self["drain-timeout"], 0)
        self.reactor = reactor
        self.factory = TimestampEchoFactory(
            stamp, FRAMINGS[self["framing"]], reactor, limits=self._limits(reactor)
        )
        own_ports: set[int] = set()

        def datagrams() -> TimestampDatagram:
            return TimestampDatagram(stamp, reactor, rate=rate, own_ports=own_ports)

        self.listeners = [
            _listener(description, self.factory, datagrams, streams)
            for description in self["listen"] or ["tcp:3000"]
        ]

    def _client_ca(self) -> str | None:
        """The file of authorities, if all TLS listeners can ask for their certificates."""
        authorities: str | None = self["client-ca"]
        kinds = [match[2] for match in map(_TLS.match, self["listen"]) if match]
        if authorities is not None and set(kinds) != {"ssl"}:
            raise usage.UsageError(
                f"--client-ca: expected TLS endpoints that are all ssl:, not {kinds}"
            )
        return authorities

    def _limits(self, clock: Any) -> Limits:
        given = self["max-connections"]
        return Limits(
            clock,
            max(file_limit() - RESERVE, 1)
            if given is None
            else _number("--max-connections", given, 1),
            _number("--max-per-peer", self["max-per-peer"], 0),
            _number("--idle-timeout", self["idle-timeout"], 0),
        )


def makeService(options: Options) -> IService:
    """The service that these options describe."""
    service: IService = EchoService(
        options.listeners, options.factory.limits, options.reactor, options.drain
    )
    return service


def _number(option: str, text: str | int, least: int) -> int:
    """A whole number of at least so much."""
    if not re.fullmatch(r"\d{1,9}", str(text), re.ASCII) or int(text) < least:
        raise usage.UsageError(
            f"{option}: expected a whole number of at least {least}, not {text!r}"
        )
    return int(text)


def _listener(
    description: str,
    factory: TimestampEchoFactory,
    datagrams: Callable[[], TimestampDatagram],
    streams: ReactorAdapter,
) -> Listener:
    port = _PORT.match(description)
    if port is not None and not 0 <= int(port["port"]) <= 65535:
        raise usage.UsageError(
            f"--listen: expected a port from 0 to 65535, not {port['port']} in {description!r}"
        )
    if description.startswith("udp:"):
        return _datagram_listener(description, datagrams(), factory.stamp.subsecond, streams)
    return _stream_listener(description, factory, streams)


def _stream_listener(description: str, factory: TimestampEchoFactory, streams: Any) -> Listener:
    try:
        endpoint = serverFromString(streams, description)
    except Exception as error:  # each kind of endpoint has its own ways to refuse
        raise usage.UsageError(
            "--listen: expected an endpoint such as tcp:3000, tcp6:3000, unix:/run/tsecho,"
            f" ssl:3001:privateKey=key.pem:certKey=cert.pem or udp:3000, not {description!r}"
            f" ({_reason(error)})"
        ) from error

    def renew(port: IListeningPort) -> Deferred[Any]:
        renewing = serverFromString(streams.renewing(port), description)
        again: Deferred[Any] = renewing.listen(factory)
        return again

    return Listener(
        description,
        lambda: endpoint.listen(factory),
        renew if _TLS.match(description) else None,
    )


def _datagram_listener(
    description: str, protocol: TimestampDatagram, timed: bool, reactor: Any
) -> Listener:
    match = _UDP.fullmatch(description)
    if match is None:
        raise usage.UsageError(
            f"--listen: expected udp:PORT[:interface=ADDRESS], not {description!r}"
        )
    # In Twisted's descriptions a colon within a value has a backslash before it.
    interface = (match["interface"] or "").replace("\\:", ":")
    if interface and not (isIPAddress(interface) or isIPv6Address(interface)):
        raise usage.UsageError(
            f"--listen: expected an IPv4 or IPv6 address, not {interface!r} in {description!r}"
        )

    def listen() -> Deferred[Any]:
        port = DatagramPort(int(match["port"]), protocol, interface, DATAGRAM, reactor)
        return execute(port.listen, timed).addCallback(lambda _: port)

    return Listener(description, listen)


def _reason(error: Exception) -> str:
    """What an endpoint's parser raised, in one line."""
    if isinstance(error, LookupError):  # of the endpoints, systemd's alone looks something up
        return "systemd passed no such socket"
    return reason(error)
