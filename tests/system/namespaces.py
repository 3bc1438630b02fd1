"""Two hosts connected by a veth pair: network namespaces, which need root."""

from __future__ import annotations

import os

from tests.system.running import Case, needs, run

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""The addresses of the two hosts."""


class Machines:
    """The two hosts, which exist until the end of the test.

    @raise OSError: they cannot be made: this is not root, or the system does not allow it.
    """

    def __init__(self, case: Case) -> None:
        self._ip = needs("ip")
        if os.getuid() != 0:
            raise OSError("only root can make network namespaces")
        self.near, self.far = (f"tsecho-{os.getpid()}-{end}" for end in ("near", "far"))
        for name in (self.near, self.far):
            self.do("netns", "add", name)
            case.addCleanup(run, [self._ip, "netns", "delete", name])
        self.do(
            *("link", "add", "eth0", "netns", self.near, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.far),
        )
        for name, address in ((self.near, NEAR), (self.far, FAR)):
            self.do("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            self.do("-n", name, "link", "set", "eth0", "up")

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
