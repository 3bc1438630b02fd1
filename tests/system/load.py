"""Clients that ask without pause, and account for every request.

    python -m tests.system.load HOST PORT TLS_PORT

Each sends a line and waits for its reply before it sends the next. Most of them make a new
connection after every ten; a few keep theirs for as long as the server does. When standard input
ends they finish, and a `Report` is written as JSON.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
from dataclasses import asdict, dataclass, field

REQUESTS = 10
"""How many a connection has, if it is not kept."""

SHORT, LONG = 3, 1
"""How many clients there are over TCP, and as many over TLS: with new connections, and with one."""

TIMEOUT = 15.0
"""Seconds for a connection, and for a reply: what takes longer is lost."""


@dataclass
class Report:
    """What became of all requests of one kind of client."""

    replies: int = 0
    ports: list[int] = field(default_factory=list)
    """The clients' own ports, one a connection, in order."""

    unanswered: list[tuple[int, str]] = field(default_factory=list)
    """The port, and what came in place of a reply: "" where the server has closed its side in
    order, or else the error or the text."""


class Client(threading.Thread):
    """One client.

    @param server: its host and port.
    @param tls: whether it speaks TLS.
    @param kept: whether it keeps its connection.
    @param report: of this kind of client.
    @param ended: whether it is to finish.
    """

    def __init__(
        self,
        server: tuple[str, int],
        *,
        tls: bool,
        kept: bool,
        report: Report,
        ended: threading.Event,
    ) -> None:
        super().__init__()
        self._server = server
        self._context = ssl.create_default_context() if tls else None
        if self._context is not None:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE
        self._kept = kept
        self._report = report
        self._ended = ended

    def run(self) -> None:
        """Make connections until the end."""
        while not self._ended.is_set():
            port, failure = 0, None
            try:
                with socket.create_connection(self._server, TIMEOUT) as sock:
                    port = sock.getsockname()[1]
                    self._report.ports.append(port)
                    failure = self._use(sock)
            except OSError as error:
                failure = str(error)
            if failure is not None:
                self._report.unanswered.append((port, failure))

    def _use(self, sock: socket.socket) -> str | None:
        if self._context is None:
            return self._ask(sock)
        with self._context.wrap_socket(sock) as secured:
            return self._ask(secured)

    def _ask(self, sock: socket.socket) -> str | None:
        """Use a connection; return what came in place of a reply, if anything did."""
        replies = sock.makefile("rb")
        number = 0
        while not self._ended.is_set() and (self._kept or number < REQUESTS):
            request = b"%d\n" % number
            sock.sendall(request)
            reply = replies.readline()
            if not re.fullmatch(rb"\[[^]]+\] " + request, reply):
                return reply.decode(errors="replace")
            self._report.replies += 1
            number += 1
        return None


def main(host: str, port: int, tls_port: int) -> None:
    """Ask until the end of standard input."""
    ended = threading.Event()
    reports = {
        f"{transport} {length}": Report()
        for transport in ("tcp", "tls")
        for length in ("short", "long")
    }
    clients = [
        Client((host, where), tls=tls, kept=kept, report=reports[kind], ended=ended)
        for kind, where, tls, kept, count in (
            ("tcp short", port, False, False, SHORT),
            ("tcp long", port, False, True, LONG),
            ("tls short", tls_port, True, False, SHORT),
            ("tls long", tls_port, True, True, LONG),
        )
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
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
