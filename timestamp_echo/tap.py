"""From the command line to the service: the only place that puts the server together.

`twistd tsecho` calls `Options`, then `makeService`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.internet import fdesc
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python import usage

from timestamp_echo import __version__
from timestamp_echo.addresses import parse_network
from timestamp_echo.clocks import use_monotonic_clock
from timestamp_echo.framing import FRAMINGS, MAX_DATAGRAM
from timestamp_echo.server.connections import (
    IDLE_TIMEOUT,
    RESERVED_FILES,
    Connections,
    file_limit,
)
from timestamp_echo.server.datagram import UDP_RATE, RateLimit, TimestampDatagram
from timestamp_echo.server.log import describe, escape
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.server.service import DRAIN_TIMEOUT, EchoService, Listener
from timestamp_echo.stamps import Stamp
from timestamp_echo.transports.reactor import MAX_UNSENT, ReactorAdapter, is_datagram_socket
from timestamp_echo.transports.udp import DatagramPort

_log = Logger()

_UDP = re.compile(r"udp:(?P<port>\d+)(?::interface=(?P<interface>.+))?", re.ASCII)

_TLS = re.compile(r"(?:haproxy:)?(?P<kind>ssl|tls):")

# Endpoints that open a TCP port themselves, rather than taking one from systemd.
_OPENS_TCP = re.compile(r"(?:haproxy:)?(?:tcp6?|ssl|tls):(?!.*:systemd=)", re.DOTALL)

_MIGRATION = Path("/proc/sys/net/ipv4/tcp_migrate_req")
"""Whether connections queued for a process that ends are passed on to others that share its port
(Linux 5.14, Documentation/networking/ip-sysctl.rst). Without the file they never are."""

# Where Twisted's endpoints have their port. Anything else is left to their parsers to check.
_PORT = re.compile(r"(?:(?:haproxy:)?(?:tcp6?|ssl|udp):|.*:port=)(?P<port>-?\d+)(?::|$)", re.ASCII)

_PARSER_ERRORS = (
    (r"missing .* argument: '(\w+)'", r"\1= is missing"),
    (r"unexpected keyword argument '(\w+)'", r"unknown argument \1="),
    (r"got multiple values for argument '(\w+)'", r"\1= is given twice"),
    (r"takes .* positional arguments? but", r"too many values"),
    (r"module 'socket' has no attribute 'AF_(.*)'", r"expected domain=INET, INET6 or UNIX, not \1"),
    (r"module 'OpenSSL.SSL' has no attribute '(.*)'", r"unknown sslmethod=\1"),
    (r"invalid literal for int\(\) with base \d+: (.+)", r"expected a number, not \1"),
)
"""Python's errors about a call with wrong arguments, and what they mean in a description."""

_HOST_PORT = re.compile(
    r"(?:(?P<host>[\d.]+|localhost)|\[(?P<v6>[\da-f:]+)\]):(?P<port>\d+)", re.I | re.A
)


class Options(usage.Options):
    """The service's command line."""

    synopsis = "[options]"
    longdesc = (
        "A timestamp echo: every message comes back with its arrival time in front of it,"
        " as in '[Sun Nov 22 14:08:00 2026] hello'."
    )
    optParameters: ClassVar = [
        [
            "stamp",
            "s",
            "ctime",
            "Write stamps as ctime, iso, unix, or a strftime pattern (%f: microseconds).",
        ],
        ["framing", None, "auto", "Decide where a message ends: auto, line or chunk."],
        [
            "max-connections",
            None,
            None,
            "Refuse connections beyond this. [default: file limit - 64]",
        ],
        ["max-per-peer", None, 0, "Refuse connections beyond N from one IPv4 address or IPv6 /64."],
        ["max-unsent", None, MAX_UNSENT, "Stop reading a connection with more unsent bytes."],
        [
            "idle-timeout",
            None,
            int(IDLE_TIMEOUT),
            "Close a connection that is idle for this long; 0: never.",
        ],
        ["drain-timeout", None, int(DRAIN_TIMEOUT), "Stop within this many seconds."],
        ["stop-delay", None, 0, "On a stop, keep serving this long while /readyz fails."],
        [
            "client-ca",
            None,
            None,
            "Require client certificates by a CA in this PEM file (ssl: only).",
        ],
        [
            "udp-rate",
            None,
            UDP_RATE,
            "Answer at most this many datagrams/s per IPv4 /24 or IPv6 /64.",
        ],
        [
            "status",
            None,
            None,
            "Serve metrics and health checks over HTTP on this Twisted server endpoint.",
        ],
    ]
    optFlags: ClassVar = [
        ["utc", None, "Write stamps in UTC, not in the local time zone."],
        ["reuse-port", None, "Share TCP and UDP ports with other processes of this user."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"], self["proxy-from"] = [], []

    def opt_listen(self, description: str) -> None:
        """Listen on a Twisted server endpoint or udp:PORT[:interface=ADDRESS]; repeatable.

        [default: tcp:3000]
        """
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_proxy_from(self, network: str) -> None:
        """Read PROXY headers only from this network; repeatable.

        [default: from anywhere]
        """
        self["proxy-from"].append(network)

    def opt_version(self) -> None:
        """Print tsecho's version and exit."""
        print(f"tsecho {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *arguments: str) -> None:
        """There are only options."""
        if arguments:
            raise usage.UsageError(f"expected options only, not {_quoted(arguments[0])}")

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse and check the command line.

        @raise SystemExit: it is wrong; the message is one line that says what was expected and
            what was given. Before a `UsageError`, twistd would print its whole usage.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"tsecho: {self._reworded(str(error))}") from None

    def _reworded(self, error: str) -> str:
        """An error, with a suggestion if it is about an option that does not exist."""
        unknown = re.fullmatch(r"option (-\S*) not recognized", error)
        if unknown is None:
            return error
        options = [f"--{name.rstrip('=')}" for name in self.longOpt]
        similar = get_close_matches(unknown[1], options, n=1, cutoff=0.7)
        hint = f"did you mean {similar[0]}?" if similar else "see twistd tsecho --help"
        return f"unknown option {_quoted(unknown[1])}; {hint}"

    def postOptions(self) -> None:
        """Check all values, and make what `makeService` needs from them.

        @raise usage.UsageError: a value is wrong.
        """
        from twisted.internet import reactor

        use_monotonic_clock(reactor)  # before anything below notes the time
        if self["framing"] not in FRAMINGS:
            raise usage.UsageError(
                f"--framing: expected {', '.join(FRAMINGS)}, not {_quoted(self['framing'])}"
            )
        try:
            stamp = Stamp(self["stamp"], bool(self["utc"]))
        except ValueError as error:
            raise usage.UsageError(f"--stamp: {error}") from error
        rate = RateLimit(self._number("udp-rate", 1))
        self.drain_timeout = self._number("drain-timeout", 0)
        self.stop_delay = self._number("stop-delay", 0)
        self.reactor = reactor
        self.connections = self._connections(reactor)
        factory = TimestampEchoFactory(
            stamp, FRAMINGS[self["framing"]], reactor, connections=self.connections
        )
        descriptions = self["listen"] or ["tcp:3000"]
        adapter = ReactorAdapter(
            reactor,
            stamp.subsecond,
            self._number("max-unsent", 1),
            self._client_ca(),
            factory.may_proxy,
        )
        if self["reuse-port"]:
            adapter.reuse_port = True
            _warn_of_resets(descriptions)
        own_ports: set[int] = set()
        self.datagrams: list[TimestampDatagram] = []

        def datagram_protocol() -> TimestampDatagram:
            protocol = TimestampDatagram(stamp, reactor, rate=rate, own_ports=own_ports)
            self.datagrams.append(protocol)
            return protocol

        self.factory = factory
        self.status = self._status(adapter)
        self.listeners = [
            _listener(description, factory, datagram_protocol, adapter)
            for description in descriptions
        ]

    def _client_ca(self) -> str | None:
        """The file of authorities; all TLS listeners must be able to ask for certificates."""
        authorities: str | None = self["client-ca"]
        kinds = {match["kind"] for match in map(_TLS.match, self["listen"]) if match}
        if authorities is not None and kinds != {"ssl"}:
            expected = "expected an ssl: endpoint to ask for certificates"
            given = "tls:, which cannot" if kinds else "no TLS endpoint"
            raise usage.UsageError(f"--client-ca: {expected}, got {given}")
        return authorities

    def _status(self, adapter: ReactorAdapter) -> Callable[[EchoService], Listener] | None:
        """Prepare to open the endpoint of `--status`; None if there is none."""
        description: str | None = self["status"]
        if description is None:
            return None
        try:
            from timestamp_echo.status.metrics import Metrics
            from timestamp_echo.status.page import add_page
            from timestamp_echo.status.site import StatusSite
        except ImportError as error:
            raise usage.UsageError(
                "--status: needs the package prometheus-client (the extra 'status' of tsecho),"
                " which is not installed"
            ) from error
        _check_port("--status", description)
        try:
            if description.partition(":")[0] in {"haproxy", "stdio"}:
                raise ValueError("expected one of tcp, tcp6, ssl, tls, unix, systemd")
            endpoint = serverFromString(adapter.plain(), description)
        except Exception as error:  # each kind of endpoint refuses in its own way
            raise _not_an_endpoint("--status", description, error) from error

        def listener(service: EchoService) -> Listener:
            metrics = Metrics(self.factory, self.datagrams, lambda: service.ports, self.reactor)
            site = StatusSite(metrics, lambda: service.ready, self.reactor)
            add_page(site.resource, metrics.figures, self.factory, self.reactor)
            return Listener(description, lambda: endpoint.listen(site))

        return listener

    def _proxies(self) -> list[IPv4Network | IPv6Network]:
        """The networks of proxies; at least one listener must read PROXY headers."""
        haproxy = any(description.startswith("haproxy:") for description in self["listen"])
        if self["proxy-from"] and not haproxy:
            raise usage.UsageError(
                "--proxy-from: expected a haproxy: endpoint to read PROXY headers, got none"
            )
        return [_network(text) for text in self["proxy-from"]]

    def _connections(self, clock: IReactorTime) -> Connections:
        total = (
            _default_total()
            if self["max-connections"] is None
            else self._number("max-connections", 1)
        )
        return Connections(
            clock,
            total,
            self._number("max-per-peer", 0),
            self._number("idle-timeout", 0),
            self._proxies(),
        )

    def _number(self, option: str, minimum: int) -> int:
        """The value of an option that is a whole number."""
        text = str(self[option])
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < minimum:
            raise usage.UsageError(
                f"--{option}: expected a whole number from {minimum} to 999999999,"
                f" not {_quoted(text)}"
            )
        return int(text)


def _warn_of_resets(descriptions: Iterable[str]) -> None:
    """Warn if the kernel resets connections that other processes could accept."""
    with suppress(OSError):  # another system, or a kernel that is older
        if any(map(_OPENS_TCP.match, descriptions)) and int(_MIGRATION.read_text()) == 0:
            _log.warn(
                "--reuse-port: connections not yet accepted when a process ends are reset"
                " (net.ipv4.tcp_migrate_req is 0)"
            )


def _default_total() -> int:
    """How many connections there may be, by the limit of open files."""
    files = file_limit()
    total = max(files - RESERVED_FILES, 1)
    if total < RESERVED_FILES:
        _log.warn(
            "the limit of open files (ulimit -Hn) is {files},"
            " so the limit of connections is {total}",
            files=files,
            total=total,
        )
    return total


def makeService(options: Options) -> IService:
    """The service that these options describe."""
    daemonizes = options.parent is not None and not options.parent.get("nodaemon", True)
    service = EchoService(
        options.listeners,
        options.connections,
        options.reactor,
        options.drain_timeout,
        _report_to_shell() if daemonizes else lambda error: None,
        options.stop_delay,
    )
    if options.status is not None:
        service.status = options.status(service)
    if os.environ.get("NOTIFY_SOCKET"):
        from timestamp_echo.server.notify import Notifier

        service.notify = Notifier(os.environ, options.reactor).notify
    return service


def _listener(
    description: str,
    factory: TimestampEchoFactory,
    datagram_protocol: Callable[[], TimestampDatagram],
    adapter: ReactorAdapter,
) -> Listener:
    _check_port("--listen", description)
    if description.startswith("udp:"):
        return _datagram_listener(description, datagram_protocol(), adapter)
    endpoint = _endpoint(description, adapter)
    if description.startswith("systemd:") and is_datagram_socket(endpoint.fileno):
        return _adopted_datagram_listener(description, endpoint, datagram_protocol(), adapter)

    def reload(port: IListeningPort) -> Deferred[Any]:
        again: Deferred[Any] = adapter.replacing(port).endpoint(description).listen(factory)
        return again

    return Listener(
        description,
        lambda: endpoint.listen(factory),
        reload if _TLS.match(description) else None,
    )


def _endpoint(description: str, adapter: ReactorAdapter) -> Any:
    try:
        return adapter.endpoint(description)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "OpenSSL":
            raise _not_an_endpoint("--listen", description, error) from error
        raise usage.UsageError(
            f"--listen: {_quoted(description)} needs the package pyOpenSSL"
            " (the extra 'tls' of tsecho), which is not installed"
        ) from error
    except OSError as error:  # of all endpoints, only ssl: and tls: read files
        raise usage.UsageError(
            f"--listen: cannot load the certificates of {_quoted(description)}:"
            f" {escape(describe(error))}"
        ) from error
    except Exception as error:  # each kind of endpoint refuses in its own way
        raise _not_an_endpoint("--listen", description, error) from error


def _datagram_listener(
    description: str, protocol: TimestampDatagram, adapter: ReactorAdapter
) -> Listener:
    match = _UDP.fullmatch(description)
    if match is None:
        raise usage.UsageError(
            f"--listen: expected udp:PORT[:interface=ADDRESS], not {_quoted(description)}"
        )
    # In Twisted's descriptions a colon within a value has a backslash before it.
    interface = (match["interface"] or "").replace("\\:", ":")
    if interface and not (isIPAddress(interface) or isIPv6Address(interface)):
        raise usage.UsageError(
            f"--listen: expected an IPv4 or IPv6 address, not {_quoted(interface)}"
            f" in {_quoted(description)}"
        )

    port = int(match["port"])
    return Listener(
        description, lambda: execute(adapter.listen_udp, port, protocol, interface, MAX_DATAGRAM)
    )


def _adopted_datagram_listener(
    description: str, endpoint: Any, protocol: TimestampDatagram, adapter: ReactorAdapter
) -> Listener:
    """The same for a datagram socket from systemd, which Twisted takes for a listening one."""

    def adopt() -> DatagramPort:
        fd = endpoint.fileno
        fdesc.setNonBlocking(fd)
        port = adapter.adopt_udp(fd, endpoint.addressFamily, protocol, MAX_DATAGRAM)
        os.close(fd)  # the port has a duplicate
        return port

    return Listener(description, lambda: execute(adopt))


def _check_port(option: str, description: str) -> None:
    port = _PORT.match(description)
    if port is not None and not 0 <= int(port["port"]) <= 65535:
        raise usage.UsageError(
            f"{option}: expected a port from 0 to 65535, not {port['port']}"
            f" in {_quoted(description)}"
        )


def _not_an_endpoint(option: str, description: str, error: Exception) -> usage.UsageError:
    return usage.UsageError(
        f"{option}: expected an endpoint such as tcp:3000, not {_quoted(description)}:"
        f" {_endpoint_error(description, error)}"
    )


def _endpoint_error(description: str, error: Exception) -> str:
    """What an invalid description was probably meant to be, or else what its parser raised."""
    if meant := _meant(description):
        return f"did you mean {meant}?"
    if isinstance(error, LookupError):  # of all endpoints, only systemd: looks something up
        return "systemd passed no such socket"
    text = describe(error)
    # The parsers are Python functions, whose arguments are those of the endpoint.
    for pattern, meaning in _PARSER_ERRORS:
        if match := re.search(pattern, text):
            return match.expand(meaning)
    return text


def _meant(description: str) -> str:
    """The endpoint meant by a bare port, an address and port, or a path; empty if there is none."""
    if description.isascii() and description.isdigit() and int(description) <= 65535:
        return f"tcp:{description}"
    if description.startswith("/"):
        return f"unix:{quoteStringArgument(description)}"
    match = _HOST_PORT.fullmatch(description)
    if match is None or int(match["port"]) > 65535:
        return ""
    if match["v6"]:
        return f"tcp6:{match['port']}:interface={quoteStringArgument(match['v6'])}"
    host = "127.0.0.1" if match["host"].lower() == "localhost" else match["host"]
    return f"tcp:{match['port']}:interface={host}"


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return parse_network(text)
    except ValueError as error:
        expected = "--proxy-from: expected a network such as 10.0.0.0/8"
        with suppress(ValueError):
            hint = f": did you mean {ip_network(text, strict=False)}?"
            raise usage.UsageError(f"{expected}, not {_quoted(text)}{hint}") from error
        raise usage.UsageError(f"{expected}, not {_quoted(text)}") from error


def _quoted(text: str) -> str:
    """A value from the command line, on one line and readable."""
    return f"'{text}'" if text.isprintable() else ascii(text)


def _report_to_shell() -> Callable[[str], None]:
    """Prepare, before twistd forks, to report whether the daemon has started.

    The shell waits for twistd's parent process. By itself, that prints a failure of the daemon as
    a class name and at most 100 bytes of a repr. Instead, right after the fork the parent reads
    from a pipe until the daemon closes it. If an error came through, the parent prints it and
    exits; otherwise it continues as usual.

    @return: to be called in the daemon, with the error or with an empty text.
    """
    parent = os.getpid()
    read_end, write_end = os.pipe()
    # `EchoService` escapes what is not ASCII, so that any locale's encoding will do.
    receiver, sender = os.fdopen(read_end), os.fdopen(write_end, "w")

    def wait_for_report() -> None:
        if os.getpid() != parent:  # the daemon, or twistd's process between the two
            return
        sender.close()
        with receiver:
            error = receiver.read()
        if error:
            os.write(2, f"{error}\n".encode())  # by now sys.stderr is the log
            os._exit(1)

    def report(error: str) -> None:
        if sender.closed:
            return
        if error:
            # The pipe stays open until the process ends: by then its pidfile is removed as well.
            sender.write(error)
            sender.flush()
        else:
            receiver.close()
            sender.close()

    os.register_at_fork(after_in_parent=wait_for_report)
    return report
