"""Datagrams between two hosts: network namespaces connected by a veth pair, as root."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.certificates import self_signed
from tests.system.namespaces import FAR, NEAR, Machines
from tests.system.running import BIN, PATIENCE, Service, run
from tests.system.wire import Frame

ROOT = Path(__file__).parent.parent.parent

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


BROADCAST = "10.77.0.255"

SHOUT = """
import socket, sys
port, *hosts = sys.argv[1:]
socks = {}
for host in hosts:
    (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    if family not in socks:
        socks[family] = socket.socket(family, kind)
        socks[family].settimeout(5)
        socks[family].setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        socks[family].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    socks[family].sendto(host.encode(), address)
for sock in socks.values():
    print(sock.recv(2000).decode())
"""
"""Sends to each host its name, and prints the first reply to each family."""


class NamespaceTests(SynchronousTestCase):
    """Two hosts, near and far."""

    def setUp(self) -> None:
        """Make the two hosts."""
        try:
            self.machines = machines = Machines(self)
        except OSError as error:
            self.skipTest(str(error))
        self.near, self.far, self.inside = machines.near, machines.far, machines.inside

    def service(self, name: str, port: int) -> Service:
        """Start a service for datagrams in a namespace."""
        return Service(self, "-l", f"udp:{port}", prefix=self.inside(name))

    def test_rejected(self) -> None:
        """What a router on the way rejects is reported with the router's reason."""
        add = ("route", "add")
        self.machines.do("-n", self.near, *add, "10.78.0.0/24", "via", FAR)
        self.machines.do("-n", self.far, *add, "unreachable", "10.78.0.0/24")
        run([*self.inside(self.far), "sysctl", "-qw", "net.ipv4.ip_forward=1"])
        for arguments in (["10.78.0.1"], ["ping", "-c1", "10.78.0.2"]):
            done = run([*self.inside(self.near), BIN / "tsecho", *arguments])
            expected = f"tsecho: cannot connect to {arguments[-1]}:3000: No route to host\n"
            self.assertEqual((done.returncode, done.stderr.decode()), (2, expected))
        connect = ["ping", "--connect", "-c1", "10.78.0.3"]
        done = run([*self.inside(self.near), BIN / "tsecho", *connect])
        self.assertIn(b"seq=1 lost in connect: No route to host\n", done.stdout)

    def plain_echo(self, name: str, port: int) -> None:
        """Start an echo that answers every datagram, as in RFC 862."""
        process = subprocess.Popen(
            [*self.inside(name), sys.executable, "-c", PLAIN_ECHO, str(port)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), b"ready\n")

    def frames(self, source_port: int, port: int, *sizes: int, to: str = FAR) -> list[Frame]:
        """Send datagrams of these sizes from near to far; return all frames on the wire."""
        done = run(
            [
                *(*self.inside(self.near), sys.executable, "-m", "tests.system.wire"),
                *(NEAR, str(source_port), to, str(port), *map(str, sizes)),
            ],
            cwd=ROOT,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return [Frame(*frame) for frame in json.loads(done.stdout)]

    def test_link_local(self) -> None:
        """A client with nothing but a link-local address is answered; so is `tsecho`."""
        for name, address in ((self.near, "fe80::1"), (self.far, "fe80::2")):
            command = f"-n {name} address add {address}/64 dev eth0 nodad"
            self.machines.do(*command.split())
        files = self_signed(self.mktemp())
        there = Service(
            self,
            *("-l", r"udp:3000:interface=\:\:", "-l", r"tcp:3000:interface=\:\:"),
            *("-l", rf"ssl:3001:interface=\:\::{files.endpoint}"),
            prefix=self.inside(self.far),
        )
        done = run([*self.inside(self.near), sys.executable, "-c", ASK, "fe80::2%eth0", "3000"])
        self.assertIn(b"] hello", done.stdout, done.stderr)
        client = [*self.inside(self.near), str(BIN / "tsecho")]
        for server in (
            *(["fe80::2%eth0"], ["[fe80::2%eth0]:3000"], ["udp:fe80::2%eth0"]),
            ["tls:[fe80::2%eth0]:3001", "--insecure"],
        ):
            done = run([*client, *server], input=b"hello\n")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(b"] hello", done.stdout)
            done = run([*client, "ping", "-c", "1", *server])
            self.assertEqual(done.returncode, 0, done.stderr)
        there.stop()

    def shout(self, port: str, *hosts: str) -> str:
        """Send from near to each of these hosts; the last one of each family has to answer.

        @return: the first replies.
        """
        done = run([*self.inside(self.near), sys.executable, "-c", SHOUT, port, *hosts])
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.decode()

    def test_groups(self) -> None:
        """Datagrams to broadcast and multicast addresses are not answered, and are counted."""
        for name, address in ((self.near, "fe80::1"), (self.far, "fe80::2")):
            command = f"-n {name} address add {address}/64 dev eth0 nodad"
            self.machines.do(*command.split())
        groups = (BROADCAST, "255.255.255.255", "224.0.0.1")
        for self.without_recvmmsg in (False, True):
            service = Service(
                self,
                *("-l", "udp:4000", "-l", f"udp:4001:interface={BROADCAST}"),
                *("-l", r"udp:4002:interface=\:\:", "-l", f"udp:4003:interface={FAR}"),
                prefix=self.inside(self.far),
            )
            self.assertRegex(self.shout("4000", *groups, FAR), rf"\] {FAR}$")
            self.assertRegex(self.shout("4003", *groups, FAR), rf"\] {FAR}$")
            replies = self.shout("4002", *groups, FAR, "ff02::1%eth0", "fe80::2%eth0")
            self.assertRegex(replies, rf"\] {FAR}\n.*\] fe80::2%eth0$")
            (frame,) = self.frames(5000, 4001, 10, to=BROADCAST)
            self.assertEqual(frame.source, f"{NEAR}:5000")
            service.stop()
            # In a batch an IPv6 port takes an IPv4 broadcast for any other datagram, but then
            # cannot send from that address. It does not get IPv4 multicast.
            text = "3 to a broadcast or multicast address"
            if not self.without_recvmmsg:
                text = "2 impossible to send, 1 to a broadcast or multicast address"
            self.assertEqual(
                re.findall("not answered: (.+)", service.log.text),
                [f"{count} to a broadcast or multicast address" for count in (3, 1)] + [text],
            )

    def test_two_services(self) -> None:
        """A forged datagram does not start a loop between two services (CVE-2024-2169)."""
        self.service(self.near, 3000)
        self.service(self.far, 3000)
        self.service(self.far, 4000)
        # The far service cannot know that the source is forged, and answers. The near service does
        # not answer what looks like a reply.
        frames = self.frames(3000, 4000, 10)
        self.assertEqual([frame.source for frame in frames], [f"{NEAR}:3000", f"{FAR}:4000"])
        # The far service does not answer a port on which it listens itself.
        frames = self.frames(3000, 3000, 10)
        self.assertEqual([frame.source for frame in frames], [f"{NEAR}:3000"])

    def test_plain_echoes(self) -> None:
        """Two plain echoes do loop: so the test of two services can fail."""
        self.plain_echo(self.near, 3000)
        self.plain_echo(self.far, 4000)
        self.assertGreaterEqual(len(self.frames(3000, 4000, 10)), 1000)

    def test_plain_echo_and_service(self) -> None:
        """A service and a plain echo do not loop: the reply comes back once."""
        self.plain_echo(self.near, 3000)
        self.service(self.far, 4000)
        sources = [frame.source for frame in self.frames(3000, 4000, 10)]
        self.assertEqual(sources, [f"{NEAR}:3000", f"{FAR}:4000", f"{NEAR}:3000"])

    def test_amplification(self) -> None:
        """The sizes of requests and replies on the wire are those in the documentation."""
        page = (ROOT / "docs" / "explanation" / "udp.rst").read_text()
        rows = re.findall(r"^(\d+) +(\d+) +(\d+) +(\d\.\d\d)$", page, re.MULTILINE)
        self.assertGreater(len(rows), 5)
        self.service(self.far, 4000)
        frames = self.frames(5000, 4000, *(int(size) for size, *_ in rows))
        for size, request, reply, ratio in rows:
            sent = frames.pop(0)
            received = 0
            while frames and frames[0].source.startswith(FAR):
                received += frames.pop(0).size
            self.assertEqual(sent.source, f"{NEAR}:5000")
            self.assertEqual((size, sent.size, received), (size, int(request), int(reply)))
            self.assertEqual(ratio, f"{received / sent.size:.2f}")
        self.assertEqual(frames, [])

    def test_ping(self) -> None:
        """`tsecho ping` measures the path between the hosts."""
        self.service(self.far, 4000)
        ping = f"{BIN}/tsecho ping -c 5 -i 0.02 --json udp:{FAR}:4000"
        done = run([*self.inside(self.near), *ping.split()])
        summary = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual((done.returncode, done.stderr, summary["received"]), (0, b"", 5))
        self.assertLessEqual(abs(summary["offset"]["offset_ns"]), summary["offset"]["bound_ns"])
