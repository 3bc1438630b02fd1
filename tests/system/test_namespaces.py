"""Datagrams between machines: two network namespaces with a wire between them, as root."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.namespaces import FAR, NEAR, Machines
from tests.system.running import BIN, PATIENCE, Service, run
from tests.system.wire import Frame

README = Path(__file__).parent.parent.parent / "README.rst"

PLAIN_ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", int(sys.argv[1])))
    print("ready", flush=True)
    while True:
        data, peer = sock.recvfrom(2000)
        sock.sendto(data, peer)
"""


ASK = """
import socket, sys
(family, kind, _, _, address), *_ = socket.getaddrinfo(*sys.argv[1:], type=socket.SOCK_DGRAM)
with socket.socket(family, kind) as sock:
    sock.settimeout(5)
    sock.connect(address)
    sock.send(b"hello")
    print(sock.recv(2000).decode())
"""


class NamespaceTests(SynchronousTestCase):
    """Two machines on a wire of their own."""

    def setUp(self) -> None:
        """The two machines."""
        try:
            self.machines = machines = Machines(self)
        except OSError as error:
            self.skipTest(str(error))
        self.near, self.far, self.inside = machines.near, machines.far, machines.inside

    def service(self, name: str, port: int) -> Service:
        """A service for datagrams in this namespace."""
        return Service(self, "-l", f"udp:{port}", prefix=self.inside(name))

    def plain_echo(self, name: str, port: int) -> None:
        """An echo without a guard, as RFC 862 has it."""
        process = subprocess.Popen(
            [*self.inside(name), sys.executable, "-c", PLAIN_ECHO, str(port)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), b"ready\n")

    def passed(self, source_port: int, port: int, *sizes: int) -> list[Frame]:
        """The frames that pass after datagrams of these sizes from the near to the far end."""
        done = run(
            [
                *(*self.inside(self.near), sys.executable, "-m", "tests.system.wire"),
                *(NEAR, str(source_port), FAR, str(port), *map(str, sizes)),
            ],
            cwd=README.parent,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return [Frame(*frame) for frame in json.loads(done.stdout)]

    def test_link_local(self) -> None:
        """A client that has no other address than its wire's is answered."""
        for name, address in ((self.near, "fe80::1"), (self.far, "fe80::2")):
            command = f"-n {name} address add {address}/64 dev eth0 nodad"
            self.machines.do(*command.split())
        there = Service(self, "-l", r"udp:3000:interface=\:\:", prefix=self.inside(self.far))
        done = run([*self.inside(self.near), sys.executable, "-c", ASK, "fe80::2%eth0", "3000"])
        self.assertIn(b"] hello", done.stdout, done.stderr)
        there.stop()

    def test_two_services(self) -> None:
        """One forged datagram does not set two services on each other (CVE-2024-2169)."""
        self.service(self.near, 3000)
        self.service(self.far, 3000)
        self.service(self.far, 4000)
        # The far one answers, for it can't know who asks; the near one does not answer that.
        frames = self.passed(3000, 4000, 10)
        self.assertEqual([frame.source for frame in frames], [f"{NEAR}:3000", f"{FAR}:4000"])
        # From a port of its own it does not even answer.
        frames = self.passed(3000, 3000, 10)
        self.assertEqual([frame.source for frame in frames], [f"{NEAR}:3000"])

    def test_plain_echoes(self) -> None:
        """Two that have no guard do go on, so that the test above can fail."""
        self.plain_echo(self.near, 3000)
        self.plain_echo(self.far, 4000)
        self.assertGreaterEqual(len(self.passed(3000, 4000, 10)), 1000)

    def test_plain_echo_and_service(self) -> None:
        """An echo without a guard sends each reply back once, and no more."""
        self.plain_echo(self.near, 3000)
        self.service(self.far, 4000)
        sources = [frame.source for frame in self.passed(3000, 4000, 10)]
        self.assertEqual(sources, [f"{NEAR}:3000", f"{FAR}:4000", f"{NEAR}:3000"])

    def test_amplification(self) -> None:
        """What a reply takes on the wire is as the README says, size by size."""
        rows = re.findall(r"^(\d+) +(\d+) +(\d+) +(\d\.\d\d)$", README.read_text(), re.MULTILINE)
        self.assertGreater(len(rows), 5)
        self.service(self.far, 4000)
        frames = self.passed(5000, 4000, *(int(size) for size, *_ in rows))
        for size, request, reply, ratio in rows:
            asked = frames.pop(0)
            answered = 0
            while frames and frames[0].source.startswith(FAR):
                answered += frames.pop(0).size
            self.assertEqual(asked.source, f"{NEAR}:5000")
            self.assertEqual((size, asked.size, answered), (size, int(request), int(reply)))
            self.assertEqual(ratio, f"{answered / asked.size:.2f}")
        self.assertEqual(frames, [])

    def test_ping(self) -> None:
        """`tsecho ping` measures the way from one machine to the other."""
        self.service(self.far, 4000)
        ping = f"{BIN}/tsecho ping -c 5 -i 0.02 --json udp:{FAR}:4000"
        done = run([*self.inside(self.near), *ping.split()])
        summary = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual((done.returncode, done.stderr, summary["received"]), (0, b"", 5))
        self.assertLessEqual(abs(summary["offset"]["by"]), summary["offset"]["bound"])
