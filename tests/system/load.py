"""Clients that ask without pause, and account for every request.

    python -m tests.system.load KIND=ADDRESS ...

KIND is tcp, tls, ssl (the same), unix or udp; ADDRESS is HOST:PORT or a path. For each there are a
few "short" clients, which open a new connection for every few lines and send these together, and a
"long" one, which keeps its connection for as long as the server does, and waits for each reply.
When standard input ends they finish, and a `Report` of each kind of client is written as JSON.
"""

from __future__ import annotations

import json
import re
import select
import socket
import ssl
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

REQUESTS = 10
"""How many requests a "short" client sends on each connection."""

SHORT, LONG = 3, 1
"""How many "short" and "long" clients there are for each address."""

TIMEOUT = 15.0
"""Seconds for a connection, and for a reply: what takes longer is lost."""


@dataclass
class Report:
    """What became of all requests of one kind of client."""

    replies: int = 0
    ports: list[int] = field(default_factory=list)
    """The clients' own ports, one a connection, in order; none of UNIX sockets."""

    not_sent: int = 0
    """How many requests a UNIX socket did not take (EPIPE), as the server had closed meanwhile."""

    unanswered: list[tuple[int, float, str]] = field(default_factory=list)
    """The port, the time of the request on the monotonic clock, and what came in place of a reply:
    "" if the server closed its side cleanly, otherwise the error or the text."""


class Client(threading.Thread):
    """One client.

    @param kind: how it connects.
    @param address: of the server.
    @param kept: whether it keeps its connection.
    @param report: of this kind of client.
    @param ended: is set when it is to finish.
    """

    def __init__(
        self, kind: str, address: str, *, kept: bool, report: Report, ended: threading.Event
    ) -> None:
        super().__init__()
        self._kind = kind
        self._address = address
        self._kept = kept
        # The order of datagrams is not kept.
        self._at_once = 1 if kept or kind == "udp" else REQUESTS
        self._report = report
        self._ended = ended
        self._port = 0
        self._sent = 0.0
        self._context: ssl.SSLContext | None = None
        if kind in {"tls", "ssl"}:
            self._context = ssl.create_default_context()
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def run(self) -> None:
        """Make connections until the end."""
        while not self._ended.is_set():
            failure = None
            self._port, self._sent = 0, time.monotonic()
            try:
                with self._connect() as sock:
                    failure = self._ask(sock)
            except OSError as error:
                failure = str(error)
            if failure is not None:
                self._report.unanswered.append((self._port, self._sent, failure))

    def _connect(self) -> socket.socket:
        if self._kind == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(TIMEOUT)
            sock.connect(self._address)
            return sock
        host, _, port = self._address.rpartition(":")
        if self._kind == "udp":
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(TIMEOUT)
            sock.connect((host, int(port)))
        else:
            sock = socket.create_connection((host, int(port)), TIMEOUT)
        self._port = sock.getsockname()[1]
        self._report.ports.append(self._port)
        if self._context is not None:
            # An end without a close_notify is an error.
            return self._context.wrap_socket(sock, suppress_ragged_eofs=False)
        return sock

    def _ask(self, sock: socket.socket) -> str | None:
        """Use a connection; return what came in place of a reply, if anything did."""
        replies = sock.makefile("rb")
        number = 0
        while not self._ended.is_set() and (self._kept or number < REQUESTS):
            if number and select.select([sock], [], [], 0)[0]:
                return None  # the server has closed, and nothing is unanswered
            requests = [b"%d\n" % (number + i) for i in range(self._at_once)]
            self._sent = time.monotonic()
            try:
                sock.sendall(b"".join(requests))
            except BrokenPipeError:
                if self._kind == "unix" and self._at_once == 1:
                    self._report.not_sent += 1
                    return None
                raise
            for request in requests:
                reply = replies.readline()
                if not re.fullmatch(rb"\[[^]]+\] " + request, reply):
                    return reply.decode(errors="replace")
                self._report.replies += 1
            number += self._at_once
        return None


def main(addresses: dict[str, str]) -> None:
    """Ask until the end of standard input.

    @param addresses: by kind.
    """
    ended = threading.Event()
    reports: dict[str, Report] = {}
    clients = []
    for kind, address in addresses.items():
        for length, count in (("short", SHORT), ("long", LONG)):
            report = reports[f"{kind} {length}"] = Report()
            clients += [
                Client(kind, address, kept=length == "long", report=report, ended=ended)
                for _ in range(count)
            ]
    for client in clients:
        client.start()
    sys.stdin.read()
    ended.set()
    for client in clients:
        client.join()
    json.dump({kind: asdict(report) for kind, report in reports.items()}, sys.stdout)


if __name__ == "__main__":
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
