"""Twisted's own tests, run over the transports of this package.

    python -m tests.system.upstream [--without-epoll] [MODULE ...]

For the whole process, the reactors' methods that open a port are replaced by those of
`ReactorAdapter`, and by `DatagramPort`; then Twisted's tests run as they are. They need PyHamcrest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from twisted.internet.posixbase import PosixReactorBase
from twisted.trial.reporter import Reporter
from twisted.trial.runner import TestLoader, TestSuite, TrialRunner

from timestamp_echo.transports import reactor as adapters
from timestamp_echo.transports.reactor import ReactorAdapter
from timestamp_echo.transports.udp import DatagramBatch, DatagramPort

MODULES = (
    # The transports and ports themselves, most of them under each reactor.
    "twisted.internet.test.test_core",
    "twisted.internet.test.test_endpoints",
    "twisted.internet.test.test_fdset",
    "twisted.internet.test.test_socket",
    "twisted.internet.test.test_tcp",
    "twisted.internet.test.test_threads",
    "twisted.internet.test.test_time",
    "twisted.internet.test.test_tls",
    "twisted.internet.test.test_udp",
    "twisted.internet.test.test_unix",
    "twisted.test.test_internet",
    "twisted.test.test_ssl",
    "twisted.test.test_sslverify",
    "twisted.test.test_tcp",
    "twisted.test.test_tcp_internals",
    "twisted.test.test_udp",
    "twisted.test.test_unix",
    # Protocols that use them.
    "twisted.mail.test.test_smtp",
    "twisted.names.test.test_names",
    "twisted.protocols.haproxy.test",
    "twisted.protocols.test.test_tls",
    "twisted.spread.test.test_pb",
    "twisted.test.test_amp",
    "twisted.test.test_ftp",
    "twisted.test.test_policies",
    "twisted.web.test.test_distrib",
    "twisted.web.test.test_xmlrpc",
    "twisted.words.test.test_service",
)

DIFFERENCES = {
    "while the file table is full, connections wait in the queue": (
        "TCPPortTestsBuilder.test_closePeerOnEMFILE",
        "TCPFDPortTestsBuilder.test_closePeerOnEMFILE",
        "TLSPortTestsBuilder.test_closePeerOnEMFILE",
        "UNIXPortTestsBuilder.test_closePeerOnEMFILE",
        "UNIXFDPortTestsBuilder.test_closePeerOnEMFILE",
    ),
    "all connections have one logging context": (
        "TCP4ClientTestsBuilder.test_logPrefix",
        "TCP6ClientTestsBuilder.test_logPrefix",
        "SSLClientTestsMixin.test_logPrefix",
        "StartTLSClientTestsMixin.test_logPrefix",
        "UNIXTestsBuilder.test_logPrefix",
    ),
    "to the reactor, all connections are one reader": (
        "TCPConnectionTestsBuilder.test_resumeProducing",
    ),
    "connections have no session number": (
        "ListeningTests.test_serverRepr",
        "TCPTransportTestsBuilder.test_serverAddressTCP4",
        "TCPTransportTestsBuilder.test_serverAddressTCP6",
    ),
    "Nagle's algorithm is off from the start": ("LoopbackTests.test_tcpNoDelay",),
    "the TypeError says which item is not bytes": (
        "TCPTransportTestsBuilder.test_writeSequenceWithUnicodeRaisesException",
    ),
    "the CannotListenError says what was expected": (
        "AdoptStreamPortErrorsTestsBuilder.test_invalidDescriptor",
    ),
    "an inherited socket's path is not in the log of Twisted": (
        "UNIXFDPortTestsBuilder.test_startedListeningLogMessage",
    ),
}
"""Why a difference is meant, and the tests of it, under every reactor. They are skipped."""

_REASONS = {test: reason for reason, tests in DIFFERENCES.items() for test in tests}

TIMEOUT = 30  # seconds for a test; Twisted's default is 120


def _replacement(name: str) -> Callable[..., Any]:
    def listen(self: Any, *args: Any, **named: Any) -> Any:
        return getattr(ReactorAdapter(self, False), name)(*args, **named)

    return listen


def _listen_udp(
    self: Any, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
) -> DatagramPort:
    """Open a `DatagramPort` for a protocol that knows no batches."""

    def datagrams_received(batch: DatagramBatch) -> None:
        for slot in range(batch.count):
            protocol.datagramReceived(batch.message(slot), batch.source(slot))

    if hasattr(protocol, "datagramReceived"):
        protocol.datagramsReceived = datagrams_received
    opened = DatagramPort(port, protocol, interface, maxPacketSize, self)
    opened.listen(False)
    return opened


def _tests(suite: Any) -> Iterator[Any]:
    for test in suite:
        yield from _tests(test) if isinstance(test, TestSuite) else (test,)


def _skip_differences(suite: TestSuite, whole: bool) -> None:
    """Skip the tests of `DIFFERENCES`.

    @param whole: whether these are all modules, so that each of the tests must be there.
    """
    missing = set(_REASONS)
    for test in _tests(suite):
        builder = type(test).__name__.partition("_")[0]  # what follows is the reactor's name
        name = f"{builder}.{getattr(test, '_testMethodName', '')}"
        if name in _REASONS:
            test.skip = _REASONS[name]
            missing.discard(name)
    if whole and missing:
        raise SystemExit(f"Twisted has no tests {', '.join(sorted(missing))} any more")


def main(arguments: list[str]) -> bool:
    """Run the tests.

    @return: whether any failed.
    """
    if "--without-epoll" in arguments:
        arguments.remove("--without-epoll")
        adapters.HAS_EPOLL = False  # type: ignore[attr-defined]
    base: Any = PosixReactorBase
    for name in ("listenTCP", "listenUNIX", "adoptStreamPort"):
        setattr(base, name, _replacement(name))
    base.listenUDP = _listen_udp
    for name in arguments or MODULES:
        import_module(name).timeout = TIMEOUT  # type: ignore[attr-defined]
    suite = TestLoader().loadByNames(arguments or [*MODULES], recurse=True)
    _skip_differences(suite, whole=not arguments)
    result = TrialRunner(Reporter).run(suite)
    return not result.wasSuccessful()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
