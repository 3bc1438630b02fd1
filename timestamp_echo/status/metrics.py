"""The figures of a service, and the same as Prometheus's metrics.

All of them are plain integers, which the service counts anyway, and which are read on request.
Needs the extra `status`. Knows the service; no HTTP.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Any, NamedTuple, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime

import twisted
from timestamp_echo import __version__
from timestamp_echo.server.datagram import LABELS, NOT_RECEIVED, TimestampDatagram
from timestamp_echo.server.log import escape
from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory, add_counts
from timestamp_echo.status.process import ProcessMetrics

PREFIX = "tsecho_"

LAG_INTERVAL = 1.0
"""Seconds between two measurements of the reactor's lag. Shortly before each, the reactor has to do
its own waiting (`epoll.EpollGroup`): more of them would make messages more expensive."""

LAG_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds. An idle reactor is late by up to 0.001: epoll_wait(2) counts milliseconds."""

Figure = int | float | Mapping[str, int | float]
"""A number; or several, by the value of a label."""


class _Kind(NamedTuple):
    family: Callable[..., Any]
    help: str
    label: str | None = None


_KINDS = {
    "connections": _Kind(GaugeMetricFamily, "Connections that are open."),
    "connections_total": _Kind(
        CounterMetricFamily, "Connections accepted so far, without those refused."
    ),
    "connections_refused_total": _Kind(
        CounterMetricFamily,
        "Connections refused, by the limit or option.",
        "reason",
    ),
    "connections_closed_total": _Kind(
        CounterMetricFamily,
        "Connections that have ended, by the reason; no_data: the peer ended it without a byte.",
        "reason",
    ),
    "messages_total": _Kind(
        CounterMetricFamily, "Messages answered, by the transport.", "transport"
    ),
    "received_bytes_total": _Kind(CounterMetricFamily, "Bytes received through connections."),
    "sent_bytes_total": _Kind(CounterMetricFamily, "Bytes of replies through connections."),
    "datagrams_total": _Kind(CounterMetricFamily, "Datagrams received, answered or not."),
    "datagrams_unanswered_total": _Kind(
        CounterMetricFamily,
        "Datagrams not answered, by the reason; overflow and left: never received.",
        "reason",
    ),
    "accept_pauses_total": _Kind(
        CounterMetricFamily, "How often a port stopped accepting because the file table was full."
    ),
    "certificate_expiry_timestamp_seconds": _Kind(
        GaugeMetricFamily, "When the first certificate of a listener expires.", "listener"
    ),
}


_VERSIONS = {
    "version": __version__,
    "python": platform.python_version(),
    "twisted": twisted.__version__,
}


class ReactorLag:
    """How late a reactor timer fires, measured every `LAG_INTERVAL`.

    @param clock: the reactor.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts = [0] * (len(LAG_BUCKETS) + 1)  # the last one: longer than all
        self._sum = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._due = self._clock.seconds() + LAG_INTERVAL
        self._call = self._clock.callLater(LAG_INTERVAL, self._measure)

    def stop(self) -> None:
        """Stop measuring; what was measured stays."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _measure(self) -> None:
        lag = max(self._clock.seconds() - self._due, 0.0)
        self._counts[bisect_left(LAG_BUCKETS, lag)] += 1
        self._sum += lag
        self.start()

    def buckets(self) -> dict[str, int]:
        """How often the lag was at most this many seconds; `+Inf` counts all measurements."""
        return dict(zip([*map(str, LAG_BUCKETS), "+Inf"], accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        """All lags together, in seconds."""
        return self._sum


class Metrics(Collector):
    """The figures of one service.

    @param factory: builds its connections.
    @param datagrams: the protocols of its UDP ports.
    @param ports: returns its ports, each with its description.
    @param clock: the reactor.
    """

    def __init__(
        self,
        factory: TimestampEchoFactory,
        datagrams: Sequence[TimestampDatagram],
        ports: Callable[[], Iterable[tuple[str, IListeningPort]]],
        clock: IReactorTime,
    ) -> None:
        self._factory = factory
        self._datagrams = datagrams
        self._ports = ports
        self.lag = ReactorLag(clock)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(ProcessMetrics())

    def figures(self) -> dict[str, Figure]:
        """All figures but the reactor's lag, by the names of their metrics without `PREFIX`.

        They can be written as JSON.
        """
        counts, connections = deepcopy(self._factory.counts), self._factory.connections
        add_counts(cast("Iterable[TimestampEcho]", connections), counts)
        unanswered: Counter[str] = Counter()
        for datagram in self._datagrams:
            unanswered.update(datagram.unanswered)
        datagrams = sum(each.received for each in self._datagrams)
        lost = sum(count for why, count in unanswered.items() if why not in NOT_RECEIVED)
        ports = list(self._ports())
        return {
            "connections": len(connections),
            "connections_total": len(connections) + sum(counts.closed.values()),
            "connections_refused_total": counts.refused,
            "connections_closed_total": counts.closed,
            "messages_total": {**counts.messages, "udp": datagrams - lost},
            "received_bytes_total": counts.received,
            "sent_bytes_total": counts.sent,
            "datagrams_total": datagrams,
            "datagrams_unanswered_total": {label: unanswered[why] for why, label in LABELS.items()},
            "accept_pauses_total": sum(getattr(port, "pauses", 0) for _, port in ports),
            "certificate_expiry_timestamp_seconds": {
                escape(name): expiry for name, port in ports if (expiry := _expiry(port))
            },
        }

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        for name, figure in self.figures().items():
            family, text, label = _KINDS[name]
            if label is None:
                yield family(PREFIX + name, text, value=figure)
                continue
            metric = family(PREFIX + name, text, labels=[label])
            assert isinstance(figure, Mapping)
            for value, number in figure.items():
                metric.add_metric([value], number)
            yield metric
        yield HistogramMetricFamily(
            f"{PREFIX}reactor_lag_seconds",
            f"How late a {LAG_INTERVAL:g} s timer fires.",
            buckets=[*self.lag.buckets().items()],
            sum_value=self.lag.sum,
        )
        yield InfoMetricFamily(
            f"{PREFIX}build", "Versions of tsecho, Python and Twisted.", value=_VERSIONS
        )

    def text(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        return generate_latest(self._registry)


def _expiry(port: IListeningPort) -> float | None:
    """When the first certificate of a port expires, in seconds since the epoch; None without TLS.

    The TLS factory may be wrapped in that of the PROXY protocol. A reload replaces the factory.
    """
    factory: Any = getattr(port, "factory", None)
    while factory is not None:
        if hasattr(factory, "certificates"):
            return getattr(factory.certificates, "expiry", None)
        factory = getattr(factory, "wrappedFactory", None)
    return None
