"""Hosts of their own for a test: network namespaces (ip-netns(8)), which need root."""

from __future__ import annotations

import os

from tests.system.running import Case, needs, run

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""The addresses of two hosts."""

HUB = "10.77.0.1"
"""The address of a host in the middle of others."""


class Namespaces:
    """Hosts that exist until the end of the test.

    @raise OSError: they cannot be made, because that needs root or the system forbids it.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._ip = needs("ip")
        if os.getuid() != 0:
            raise OSError("only root can make network namespaces")

    def add(self, end: str) -> str:
        """Make a host; return the name of its namespace, which ends with `end`."""
        name = f"tsecho-{os.getpid()}-{end}"
        self.do("netns", "add", name)
        self._case.addCleanup(run, [self._ip, "netns", "delete", name])
        return name

    def up(self, name: str, interface: str, address: str) -> None:
        """Give an interface of a host an address, and switch it on."""
        self.do("-n", name, "address", "add", f"{address}/24", "dev", interface)
        self.do("-n", name, "link", "set", interface, "up")

    def do(self, *command: str) -> None:
        """Run `ip` with these arguments.

        @raise OSError: it failed; the text is what it wrote.
        """
        done = run([self._ip, *command])
        if done.returncode:
            raise OSError(done.stderr.decode())

    def inside(self, name: str) -> list[str]:
        """The prefix of a command that makes it run in this namespace."""
        return [self._ip, "netns", "exec", name]


class Machines(Namespaces):
    """Two hosts, near and far, connected by a veth pair."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.near, self.far = self.add("near"), self.add("far")
        self.do(
            *("link", "add", "eth0", "netns", self.near, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.far),
        )
        self.up(self.near, "eth0", NEAR)
        self.up(self.far, "eth0", FAR)


class Star(Namespaces):
    """A host in the middle, with the address `HUB`, and others around it.

    @param addresses: those of the others, by name.
    """

    def __init__(self, case: Case, addresses: dict[str, str]) -> None:
        super().__init__(case)
        self.hub = self.add("hub")
        self.do("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        self.up(self.hub, "bridge", HUB)
        self.hosts = {end: self.add(end) for end in addresses}
        for end, name in self.hosts.items():
            self.do(
                *("link", "add", "eth0", "netns", name, "type", "veth"),
                *("peer", "name", end, "netns", self.hub),
            )
            self.do("-n", self.hub, "link", "set", "dev", end, "master", "bridge", "up")
            self.up(name, "eth0", addresses[end])
