"""The files in `deploy/`, checked by the programs that they are for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.host import INSTALLED, Host
from tests.system.running import BIN, PATIENCE, Log, needs, run
from tests.system.test_packaging import UNVERSIONED
from tests.test_deploy import DEPLOY, SERVICES, comments, text, unit

KUBERNETES = ("1.30", "1.34")
"""The first version of Kubernetes that has `preStop.sleep`, and the first in which it is stable."""

OVERRIDE = "/etc/systemd/system/tsecho.service.d/tls.conf"

COMMANDS = ("python3 ", "/opt/tsecho/bin/", "cp ", "systemctl ")
"""How the commands begin that a comment says to run."""


class ToolTests(SynchronousTestCase):
    """Each program finds its file free of errors."""

    def assert_clean(self, *command: str | Path, folder: str | Path | None = None) -> str:
        """Check that a command succeeds; return its standard output."""
        done = run([needs(str(command[0])), *command[1:]], cwd=folder)
        # systemd also reads, and judges, the units of other packages on this host.
        errors = re.sub(r"(?m)^(/usr)?/lib/systemd/system/.*\n", "", done.stderr.decode())
        self.assertEqual((done.returncode, errors), (0, ""), done.stdout.decode())
        return done.stdout.decode()

    def units(self) -> Path:
        """A copy of systemd's units, which start this environment's `twistd`."""
        folder = Path(self.mktemp()).absolute()
        shutil.copytree(DEPLOY / "systemd", folder)
        for service in SERVICES:
            file = folder / service
            file.write_text(file.read_text().replace("/opt/tsecho/bin", str(BIN)))
        return folder

    def test_systemd(self) -> None:
        """The units verify without a word, and the services expose little."""
        folder = self.units()
        units = [f"./{path.name.replace('@', '@1')}" for path in sorted(folder.iterdir())]
        output = self.assert_clean("systemd-analyze", "verify", "--man=no", *units, folder=folder)
        self.assertEqual(output, "")
        for service in SERVICES:
            security = ("security", "--offline=true", "--no-pager", f"./{service}")
            output = self.assert_clean("systemd-analyze", *security, folder=folder)
            (level,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d)", output)
            self.assertLessEqual(float(level), 1.5)

    def test_haproxy(self) -> None:
        """HAProxy accepts its configuration, without a warning."""
        output = self.assert_clean("haproxy", "-c", "-f", DEPLOY / "haproxy" / "haproxy.cfg")
        self.assertEqual(output, "Configuration file is valid\n")

    def test_kubernetes(self) -> None:
        """The manifest follows the schemas of Kubernetes, with no unknown field."""
        if not (BIN / "kubernetes-validate").exists():
            raise SkipTest("kubernetes-validate is not installed")
        for version in KUBERNETES:
            done = run(
                [
                    *(sys.executable, BIN / "kubernetes-validate", "--strict"),
                    *("--kubernetes-version", version, DEPLOY / "kubernetes" / "tsecho.yaml"),
                ]
            )
            output = done.stdout.decode()
            self.assertEqual(done.returncode, 0, output)
            kinds = re.findall(
                rf"passed for resource (\w+)/tsecho against version {version}", output
            )
            expected = ["deployment", "service", "poddisruptionbudget", "networkpolicy"]
            self.assertEqual(kinds, expected, output)

    def test_prometheus(self) -> None:
        """Prometheus accepts its configuration and the alerts, which fire when they should."""
        folder = DEPLOY / "prometheus"
        self.assert_clean("promtool", "check", "config", folder / "prometheus.yml")
        self.assert_clean("promtool", "test", "rules", folder / "alerts_test.yml")


ASK_TLS = """
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["http/1.1"])
with context.wrap_socket(socket.create_connection(("localhost", 3001), 10)) as sock:
    sock.sendall(b"hello\\n")
    print(sock.makefile("rb").readline())
"""
"""A client that offers protocols, as curl does."""


class InstalledTests(SynchronousTestCase):
    """The image and the units, on a host where tsecho is installed as their comments say."""

    def setUp(self) -> None:
        """Make the host, and install tsecho with the steps of the image."""
        if not Path("/usr/bin/python3").exists():  # others may be in a home, which is not visible
            raise SkipTest("there is no /usr/bin/python3")
        self.host = Host(self)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        container = text("container/Containerfile")
        for copied in re.findall(r"(?m)^COPY (?!--)(.*) \S+$", container):
            for name in copied.split():
                self.copy(name)
        for step in re.findall(r"(?m)^RUN (.*)$", container):
            command = json.loads(step)
            if command[0] == "python":
                command[0] = "/usr/bin/python3"
            self.do(*command)

    def copy(self, name: str) -> None:
        """Copy a file or a folder of the project, as it is in a clone."""
        source = DEPLOY.parent / name
        if source.is_dir():
            shutil.copytree(source, self.folder / name, ignore=UNVERSIONED)
        else:
            shutil.copy(source, self.folder)

    def do(self, *command: str | Path, stdin: bytes = b"") -> str:
        """Run a command on the host, which must succeed; return its standard output."""
        done = self.host.run(*command, folder=self.folder, stdin=stdin)
        output = (done.stdout + done.stderr).decode()
        self.assertEqual(done.returncode, 0, output + self.host.log if done.returncode else "")
        return done.stdout.decode()

    def assert_echo(self, *servers: str) -> None:
        """Each of these servers of the host answers, also when it is asked for its state."""
        for server in servers:
            reply = self.do(INSTALLED / "bin" / "tsecho", server, stdin=b"hello\n")
            self.assertRegex(reply, r"\] hello\n$")

    def assert_ready(self, *ports: int) -> None:
        """The services with these status ports are ready."""
        for port in ports:
            address = f"http://localhost:{port}/readyz"
            self.do(needs("curl"), "--silent", "--show-error", "--fail", address)

    def test_installed(self) -> None:
        """The image's command and the units, on one host: it takes long to install one."""
        self.check_image()
        self.check_units()

    def check_image(self) -> None:
        """The image's command answers, as its user and with no rights, and writes no cache."""
        image = text("container/Containerfile")
        command = [
            argument
            for name in ("ENTRYPOINT", "CMD")
            for arguments in re.findall(rf"(?m)^{name} (.*)$", image)
            for argument in json.loads(arguments)
        ]
        ((user, group),) = re.findall(r"(?m)^USER (\d+):(\d+)$", image)
        rights = f"--reuid={user} --regid={group} --clear-groups --bounding-set=-all"
        start = f'ip link set lo up && exec setpriv {rights} --no-new-privs "$@"'
        process = subprocess.Popen(
            [*self.host.inside(), "unshare", "--net", "sh", "-c", start, "sh", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.terminate)
        log = Log(process.stdout)
        log.wait_for("listening on udp:3000")
        for server in ("localhost:3000", "udp:localhost:3000"):
            network = [needs("nsenter"), f"--target={process.pid}", "--net"]
            done = run([*network, str(BIN / "tsecho"), server], input=b"hello\n")
            self.assertIn(b"] hello", done.stdout, done.stderr)
        process.terminate()
        self.assertNotIn("plugin cache", log.finish())

    def check_units(self) -> None:
        """The units serve in their sandbox: one process, TLS, and several processes."""
        self.copy("deploy")
        self.host.boot()
        commands = re.findall(r"(?m)^    (\S.*)$", comments("systemd/tsecho.service"))
        _, _, cache, *install = [each for each in commands if each.startswith(COMMANDS)]
        self.do("sh", "-c", cache)
        for command in install:
            self.do("bash", "-c", command)
        self.assert_echo("localhost:3000", "udp:localhost:3000", "unix:/run/tsecho.sock")
        self.assert_ready(8080)
        self.do("systemctl", "reload", "tsecho.service")
        self.do("systemctl", "restart", "tsecho.service")
        self.assert_echo("localhost:3000")
        self.several()
        self.tls()
        self.assertNotIn("plugin cache", self.host.log)
        self.assertNotIn("Traceback", self.host.log)

    def several(self) -> None:
        """Replace the one process by four, restart them, and return to the one."""
        enable, restart = re.findall(r"(?m)^    (\S.*)$", comments("systemd/tsecho@.service"))
        self.do("bash", "-c", enable)
        self.assert_ready(8081, 8082, 8083, 8084)
        state = self.host.run("systemctl", "is-active", "tsecho.service").stdout
        self.assertEqual(state, b"inactive\n")
        self.do("bash", "-c", restart)
        self.assert_echo("localhost:3000", "udp:localhost:3000", "unix:/run/tsecho.sock")
        self.do("bash", "-c", "systemctl stop tsecho@{1..4}.service")
        self.do("systemctl", "start", "tsecho.service")

    def tls(self) -> None:
        """TLS works under these restrictions, and would not with MemoryDenyWriteExecute=."""
        self_signed(str(self.folder / "tls"))
        self.do("install", "-d", "-m", "755", "/run/tls")
        self.do("sh", "-c", "install -m 644 tls/*.pem /run/tls")
        (command,) = unit("tsecho.service")["ExecStart"]
        override = f"[Service]\nExecStart=\nExecStart={command} --listen tls:/run/tls:port=3001\n"
        self.host.write(OVERRIDE, override)
        self.do("systemctl", "daemon-reload")
        self.do("systemctl", "restart", "tsecho.service")
        self.assert_echo("localhost:3000")
        self.assertRegex(self.do("/usr/bin/python3", "-c", ASK_TLS), r"\] hello")
        self.host.write(OVERRIDE, f"{override}MemoryDenyWriteExecute=yes\n")
        self.do("systemctl", "daemon-reload")
        self.assertNotEqual(self.host.run("systemctl", "restart", "tsecho.service").returncode, 0)
        self.assertIn("Cannot allocate write+execute memory", self.host.log)
