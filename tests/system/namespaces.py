"""Two machines on a wire of their own: network namespaces, as root."""

from __future__ import annotations

import os

from tests.system.running import Case, needs, run

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""Their addresses."""


class Machines:
    """The two machines, until the case is over.

    @raise OSError: there are none to be had: only root can make them, and not everywhere.
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
        """Run `ip`, which is to succeed."""
        done = run([self._ip, *command])
        if done.returncode:
            raise OSError(done.stderr.decode())

    def inside(self, name: str) -> list[str]:
        """The beginning of a command that runs in this namespace."""
        return [self._ip, "netns", "exec", name]
