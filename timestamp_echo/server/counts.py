"""What a service has counted since its start: plain integers, which `--status` shows.

Messages are not counted here one by one: each connection counts its own, and adds its totals when
it ends. Knows neither connections nor metrics.
"""

from __future__ import annotations

TRANSPORTS = ("tcp", "unix", "tls", "stdio", "other")
"""The kinds of transport, with or without the PROXY protocol; `other` is a plugin's."""

REFUSED = {
    "too many connections from your address": "per_peer",
    "too many connections": "total",
    "not in a --proxy-from network": "proxy_from",
}
"""The labels of refusals, by how the reason begins."""

CLOSED = {
    "closed by the peer": "peer",
    "connection lost": "lost",
    "idle for": "idle",
    "the service is stopping": "stopping",
    "aborted by the server": "aborted",
    "no TLS handshake": "handshake",
    "no PROXY header": "proxy",
    "no valid PROXY header": "proxy",
    "too many connections": "refused",
}
"""The labels of ended connections, by how the reason begins."""

NO_DATA = "no_data"
"""The label of a connection whose peer ended it without a byte: a health check, for example."""

OTHER = "other"
"""The label of any other reason: an error of TLS's, for example."""


class Counts:
    """The counts of one service."""

    def __init__(self) -> None:
        self.refused = dict.fromkeys((*REFUSED.values(), OTHER), 0)
        self.closed = dict.fromkeys((*CLOSED.values(), NO_DATA, OTHER), 0)
        self.messages = dict.fromkeys(TRANSPORTS, 0)
        self.received = 0
        self.sent = 0

    def add(self, transport: str, messages: int, received: int, sent: int) -> None:
        """Add the messages and bytes of a connection.

        @param transport: one of `TRANSPORTS`.
        """
        self.messages[transport] += messages
        self.received += received
        self.sent += sent

    def count_refused(self, why: str) -> None:
        """A connection was refused.

        @param why: the reason.
        """
        self.refused[_label(REFUSED, why)] += 1

    def count_closed(self, why: str, *, silent: bool = False) -> None:
        """A connection that was not refused is over.

        @param why: the reason.
        @param silent: whether nothing had come, and nothing went wrong.
        """
        label = CLOSED.get(why) or _label(CLOSED, why)
        if silent and label in {"peer", "lost", OTHER}:
            label = NO_DATA
        self.closed[label] += 1


def _label(labels: dict[str, str], why: str) -> str:
    return next((label for beginning, label in labels.items() if why.startswith(beginning)), OTHER)
