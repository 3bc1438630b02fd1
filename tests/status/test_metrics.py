"""Tests for `timestamp_echo.status.metrics`."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from timestamp_echo.server.datagram import LABELS, TimestampDatagram
from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory
from timestamp_echo.stamps import Stamp
from timestamp_echo.status.metrics import LAG_BUCKETS, LAG_INTERVAL, PREFIX, Metrics, ReactorLag
from timestamp_echo.transports.certificates import from_files
from timestamp_echo.transports.tls import HalfCloseTLSFactory

NAMES = {
    *("connections", "connections_total", "connections_refused_total"),
    *("connections_closed_total", "messages_total", "received_bytes_total", "sent_bytes_total"),
    *("datagrams_total", "datagrams_unanswered_total", "accept_pauses_total"),
    "certificate_expiry_timestamp_seconds",
}


class Port:
    """A port with this factory, which has paused so often."""

    def __init__(self, pauses: int = 0, factory: object = None) -> None:
        self.pauses = pauses
        self.factory = factory


class MetricsTests(SynchronousTestCase):
    """`Metrics`: the figures of a service, and how Prometheus gets them."""

    def setUp(self) -> None:
        """Make a service without a reactor."""
        self.clock = Clock()
        self.factory = TimestampEchoFactory(clock=self.clock)
        self.datagrams: list[TimestampDatagram] = []
        self.ports: list[tuple[str, Any]] = []
        self.metrics = Metrics(self.factory, self.datagrams, lambda: self.ports, self.clock)

    def samples(self) -> dict[str, float]:
        """What Prometheus reads, by names with labels."""
        return {
            sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): (
                sample.value
            )
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
        }

    def test_names(self) -> None:
        """The figures are those of the design, and can be written as JSON."""
        figures = self.metrics.figures()
        self.assertEqual(set(figures), NAMES)
        self.assertEqual(json.loads(json.dumps(figures)), figures)

    def test_same(self) -> None:
        """Each figure is a metric of the same name and value, a label's value by label's value."""
        self.factory.counts.add("unix", 1, 2, 3)
        self.factory.counts.count_closed("idle for 3 s")
        self.ports.append(("tcp:1", Port(pauses=7)))
        samples = self.samples()
        for name, figure in self.metrics.figures().items():
            if isinstance(figure, dict):
                found = {
                    re.split("[=}]", key)[1]: value
                    for key, value in samples.items()
                    if key.startswith(f"{PREFIX}{name}{{")
                }
                self.assertEqual(found, figure)
            else:
                self.assertEqual(samples[PREFIX + name], figure)

    def test_connections(self) -> None:
        """Open connections count with those that have ended; the sum never goes back."""
        echo = self.factory.buildProtocol(None)
        assert isinstance(echo, TimestampEcho)
        transport = StringTransport()
        transport.kind = "tcp"  # type: ignore[attr-defined]
        echo.makeConnection(transport)
        echo.dataReceived(b"one\ntwo\nthree\n")
        sent = len(transport.value())
        self.factory.counts.add("tcp", 10, 100, 1000)
        self.factory.counts.count_closed("closed by the peer")
        figures: Any = self.metrics.figures()
        self.assertEqual((figures["connections"], figures["connections_total"]), (1, 2))
        self.assertEqual(figures["messages_total"]["tcp"], 13)
        self.assertEqual(figures["received_bytes_total"], 114)
        self.assertEqual(figures["sent_bytes_total"], 1000 + sent)
        self.assertEqual(self.metrics.figures(), figures)
        echo.connectionLost()
        after: Any = self.metrics.figures()
        self.assertEqual((after["connections"], after["connections_total"]), (0, 2))
        for name in ("messages_total", "received_bytes_total", "sent_bytes_total"):
            self.assertEqual(after[name], figures[name])

    def test_datagrams(self) -> None:
        """Those answered are messages; those that the service never received are not datagrams."""
        for received, unanswered in ((10, {"like a reply": 2}), (5, {})):
            datagram = TimestampDatagram(Stamp(), self.clock)
            datagram.received = received
            datagram.unanswered = Counter(
                {**unanswered, "lost in a full receive buffer": 3, "left unread at the stop": 4}
            )
            self.datagrams.append(datagram)
        figures: Any = self.metrics.figures()
        self.assertEqual(figures["datagrams_total"], 15)
        self.assertEqual(figures["messages_total"]["udp"], 13)
        unanswered = figures["datagrams_unanswered_total"]
        self.assertEqual((unanswered["reply"], unanswered["overflow"]), (2, 6))
        self.assertEqual((unanswered["left"], unanswered["rate"]), (8, 0))
        self.assertEqual(len(unanswered), len(LABELS))

    def test_ports(self) -> None:
        """Pauses of all ports add up; those of other transports have none."""
        self.ports += [("tcp:1", Port(2)), ("tcp:2", Port(3)), ("udp:1", object())]
        self.assertEqual(self.metrics.figures()["accept_pauses_total"], 5)

    def test_certificates(self) -> None:
        """The expiry of each TLS port, behind the PROXY protocol as well, and after a reload."""
        files = self_signed(self.mktemp())
        certificates = from_files(files.key, files.certificate)
        tls = HalfCloseTLSFactory(certificates, self.factory, self.clock)
        foreign = CertificateOptions()
        self.ports += [
            ("ssl:1", Port(factory=tls)),
            ("haproxy:ssl:2", Port(factory=WrappingFactory(tls))),
            ("tcp:3", Port(factory=self.factory)),
            ("ssl:4", Port(factory=HalfCloseTLSFactory(foreign, self.factory, self.clock))),
        ]
        name = "certificate_expiry_timestamp_seconds"
        expected = {"ssl:1": certificates.expiry, "haproxy:ssl:2": certificates.expiry}
        self.assertEqual(self.metrics.figures()[name], expected)
        certificates.expiry += 1000
        self.assertEqual(
            self.metrics.figures()[name], {key: value + 1000 for key, value in expected.items()}
        )

    def test_text(self) -> None:
        """Prometheus gets the version, the process's own figures and the lag as well."""
        text = self.metrics.text().decode()
        self.assertRegex(text, r'(?m)^tsecho_build_info{python=".*",twisted=".*",version=".*"} 1')
        self.assertIn("\nprocess_cpu_seconds_total ", text)
        self.assertIn('tsecho_reactor_lag_seconds_bucket{le="0.0001"} 0.0\n', text)
        self.assertIn("\ntsecho_reactor_lag_seconds_sum 0.0\n", text)


class ReactorLagTests(SynchronousTestCase):
    """`ReactorLag`: how late the reactor's timers are."""

    def test_lag(self) -> None:
        """Each measurement is in the buckets from its lag on; a new one follows."""
        clock = Clock()
        lag = ReactorLag(clock)
        lag.start()
        for late in (0, 0.0001, 0.004, 0.3, 7):
            clock.advance(LAG_INTERVAL + late)
        self.assertEqual(
            lag.buckets(),
            {
                **dict.fromkeys(("0.0001", "0.0002", "0.0005", "0.001", "0.002"), 2),
                **dict.fromkeys(("0.005", "0.01", "0.02", "0.05", "0.1", "0.2"), 3),
                "0.5": 4,
                "+Inf": 5,
            },
        )
        self.assertAlmostEqual(lag.sum, 7.3041)
        self.assertEqual((LAG_BUCKETS[0], LAG_BUCKETS[-1]), (0.0001, 0.5))

    def test_bound(self) -> None:
        """A lag that is exactly the bound of a bucket is in it, as `le` says."""
        clock = Clock()
        lag = ReactorLag(clock)
        lag.start()
        clock.advance(LAG_INTERVAL + 0.5)
        self.assertEqual((lag.buckets()["0.2"], lag.buckets()["0.5"]), (0, 1))

    def test_early(self) -> None:
        """A timer is never too early, whatever the clock's resolution makes of it."""
        clock = Clock()
        lag = ReactorLag(clock)
        lag.start()
        lag._due += 1e-7
        clock.advance(LAG_INTERVAL)
        self.assertEqual((lag.sum, lag.buckets()["0.0001"]), (0, 1))

    def test_stop(self) -> None:
        """Once stopped, no timer is left; it may be stopped twice, and started again."""
        clock = Clock()
        lag = ReactorLag(clock)
        lag.stop()
        lag.start()
        lag.stop()
        lag.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
        lag.start()
        clock.advance(LAG_INTERVAL)
        self.assertEqual(lag.buckets()["+Inf"], 1)
