"""Tests of the files in `deploy/`: they agree with the program, and with each other.

What needs a program to check it, such as promtool, is in `tests/system/test_deploy.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from timestamp_echo import __version__, tap
from timestamp_echo.server.connections import IDLE_TIMEOUT
from timestamp_echo.server.protocol import TimestampEchoFactory
from timestamp_echo.server.service import ABORT_TIMEOUT, DRAIN_TIMEOUT
from timestamp_echo.status.metrics import Metrics
from timestamp_echo.transports.udp import RECEIVE_BUFFER

DEPLOY = Path(__file__).parent.parent / "deploy"

SOCKETS = ("tsecho.socket", "tsecho-udp.socket", "tsecho-unix.socket")
SERVICES = ("tsecho.service", "tsecho@.service")


def text(path: str) -> str:
    """The text of a file, without its comments, and with its continued lines joined."""
    return re.sub(r"(?m)^ *#.*\n", "", (DEPLOY / path).read_text()).replace("\\\n", "")


def comments(path: str) -> str:
    """The comments of a file."""
    return "".join(re.findall(r"(?m)^# ?(.*\n)", (DEPLOY / path).read_text())).replace("\\\n", "")


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit of systemd's, each with all its values."""
    settings: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*)$", text(f"systemd/{name}")):
        settings.setdefault(key, []).append(value)
    return settings


class SystemdTests(SynchronousTestCase):
    """The units of systemd."""

    def test_sockets(self) -> None:
        """A service listens on each socket, by the name that its unit gives it, and on no other."""
        names = {value for name in SOCKETS for value in unit(name)["FileDescriptorName"]}
        self.assertEqual(len(names), len(SOCKETS))
        for service in SERVICES:
            settings = unit(service)
            self.assertEqual(settings["Sockets"], [" ".join(SOCKETS)])
            used = re.findall(r"--listen systemd:domain=\w+:name=(\w+)", settings["ExecStart"][0])
            self.assertEqual(set(used), names)
        for socket in SOCKETS[1:]:  # the first one's service has its name
            self.assertEqual(unit(socket)["Service"], [SERVICES[0]])

    def test_processes(self) -> None:
        """One of several processes has the settings of a single one, with a status of its own."""
        single, several = map(unit, SERVICES)
        self.assertEqual(several.pop("Conflicts"), [SERVICES[0]])
        self.assertEqual(
            several.pop("Description"), [f"{single.pop('Description')[0]}, process %i"]
        )
        (command,) = several.pop("ExecStart")
        self.assertEqual(single.pop("ExecStart"), [command.replace(":808%i:", ":8080:")])
        self.assertEqual(single, several)

    def test_values(self) -> None:
        """The units agree with the program's own constants, and leave TLS what it needs."""
        for service in SERVICES:
            settings = unit(service)
            self.assertGreater(int(settings["TimeoutStopSec"][0]), DRAIN_TIMEOUT + ABORT_TIMEOUT)
            self.assertEqual(settings["NonBlocking"], ["yes"])
            self.assertNotIn("MemoryDenyWriteExecute", settings)
        self.assertEqual(unit(SOCKETS[1])["ReceiveBuffer"], [f"{RECEIVE_BUFFER >> 20}M"])


class OptionsTests(SynchronousTestCase):
    """The command lines in all files."""

    def accept(self, command: str) -> None:
        """Check that the program accepts what follows its name in a command line.

        The endpoints that need something of the host's are replaced.
        """
        _, found, options = command.partition(" tsecho ")
        self.assertTrue(found, command)
        options = re.sub(r"systemd:\S+|tls:\S+", "tcp:0", options)
        tap.Options().parseOptions(shlex.split(options))

    def test_systemd(self) -> None:
        """Those of the services."""
        for service in SERVICES:
            (command,) = unit(service)["ExecStart"]
            self.accept(command.replace("%i", "1"))

    def test_haproxy(self) -> None:
        """That of the servers behind HAProxy. They are ready for longer than it takes to notice."""
        (command,) = re.findall(r"twistd -n tsecho .*", comments("haproxy/haproxy.cfg"))
        self.accept(command)
        (delay,) = re.findall(r"--stop-delay (\d+)", command)
        (interval,) = re.findall(r"inter (\d+)s fall 1 ", text("haproxy/haproxy.cfg"))
        (timeout,) = re.findall(r"timeout check (\d+)s", text("haproxy/haproxy.cfg"))
        self.assertGreater(int(delay), int(interval) + int(timeout))

    def test_container(self) -> None:
        """Those of the container, and of Kubernetes in their place."""
        (entry,) = re.findall(r"(?m)^ENTRYPOINT (.*)$", text("container/Containerfile"))
        (command,) = re.findall(r"(?m)^CMD (.*)$", text("container/Containerfile"))
        start = " ".join(json.loads(entry))
        self.accept(f"{start} {' '.join(json.loads(command))}")
        (arguments,) = re.findall(r"(?m)^ +args:\n((?: +- .*\n)+)", text("kubernetes/tsecho.yaml"))
        self.accept(f"{start} {arguments.replace(' - ', ' ')}")


class AgreementTests(SynchronousTestCase):
    """What is in two files, or in a file and in the program, is the same."""

    def test_timeouts(self) -> None:
        """HAProxy keeps connections longer than the service; Kubernetes kills after the drain."""
        for side in ("client", "server"):
            (minutes,) = re.findall(rf"timeout {side} (\d+)m", text("haproxy/haproxy.cfg"))
            self.assertGreater(60 * int(minutes), 1.1 * IDLE_TIMEOUT)
        manifest = text("kubernetes/tsecho.yaml")
        (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest)
        (pause,) = re.findall(r"sleep: {seconds: (\d+)}", manifest)
        (drain,) = re.findall(r"--drain-timeout=(\d+)", manifest)
        self.assertGreater(int(grace), int(pause) + int(drain) + ABORT_TIMEOUT)

    def test_image(self) -> None:
        """The image has this version and a user by number, in both files; there is no shell."""
        container, manifest = text("container/Containerfile"), text("kubernetes/tsecho.yaml")
        self.assertIn(f'image.version="{__version__}"', container)
        self.assertIn(f"image: tsecho:{__version__}\n", manifest)
        self.assertIn(f"-t tsecho:{__version__} ", comments("container/Containerfile"))
        (user,) = re.findall(r"(?m)^USER (\d+):\d+$", container)
        self.assertIn(f"runAsUser: {user}\n", manifest)
        for command in re.findall(r"(?m)^(?:RUN|CMD|ENTRYPOINT) (.*)$", container):
            self.assertIsInstance(json.loads(command), list)

    def test_install(self) -> None:
        """The service is installed by the steps of the image, which a test carries out."""
        steps = re.findall(r"(?m)^RUN (.*)$", text("container/Containerfile"))
        commands = re.findall(r"(?m)^    (\S.*)$", comments("systemd/tsecho.service"))
        ignored = {"--quiet", "--no-cache-dir", ">/dev/null"}
        for step, command in zip(steps, commands[: len(steps)], strict=True):
            words = [word for word in shlex.split(command) if word not in ignored]
            words[0] = words[0].replace("python3", "python")
            self.assertEqual([word for word in json.loads(step) if word not in ignored], words)

    def test_metrics(self) -> None:
        """The alerts, their tests and the dashboard use no metric that is not exported."""
        metrics = Metrics(TimestampEchoFactory(), [], list, Clock())
        exported = set(re.findall(r"(?m)^# TYPE (\w+)", metrics.text().decode()))
        for file in ("alerts.yml", "alerts_test.yml", "dashboard.json"):
            used = re.findall(
                r"\b((?:tsecho|process)_\w+?)(?:_bucket)?\b", text(f"prometheus/{file}")
            )
            self.assertGreater(len(set(used)), 4)
            self.assertEqual(set(used) - exported, set(), file)

    def test_dashboard(self) -> None:
        """The dashboard's panels have numbers of their own, and do not overlap."""
        panels = json.loads(text("prometheus/dashboard.json"))["panels"]
        places = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in panels
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        ]
        self.assertEqual(len(places), len(set(places)))
        self.assertLess(max(x for x, _ in places), 24)
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))

    def test_alerts(self) -> None:
        """Each alert has a test in which it fires."""
        alerts = re.findall(r"- alert: (\w+)", text("prometheus/alerts.yml"))
        self.assertGreater(len(alerts), 5)
        tests = text("prometheus/alerts_test.yml")
        for alert in alerts:
            self.assertRegex(tests, rf"alertname: {alert}\n.*\n +exp_alerts:\n")
