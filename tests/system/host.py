"""A host of its own for a test, as root: with an empty folder for tsecho.

It shares everything else with this host: only the mounts are its own (mount_namespaces(7)).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from unittest import SkipTest

from tests.system.running import Case, Status, needs, run

INSTALLED = Path("/opt/tsecho")
"""An empty folder at the start, whatever is there on this host."""

_HOLD = f"""
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/opt,upperdir=$1/upper,workdir=$1/work" overlay /opt
mkdir -p {INSTALLED}
mount -t tmpfs tmpfs {INSTALLED}
echo ready
exec cat
"""
"""Leaves the rest of /opt readable, and nothing on this host behind."""


class Host:
    """The host, which exists until the end of the test.

    @param case: the test.
    @raise SkipTest: this is not root, or the system does not allow it.
    """

    def __init__(self, case: Case) -> None:
        if os.getuid() != 0:
            raise SkipTest("only root can make namespaces")
        folder = tempfile.mkdtemp()  # the paths of an overlay have no commas or colons
        case.addCleanup(os.rmdir, folder)
        private = [needs("unshare"), "--mount", "--propagation", "private"]
        holder = subprocess.Popen(
            [*private, "sh", "-c", _HOLD, "sh", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        case.addCleanup(holder.communicate)
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            raise SkipTest("the system does not allow mounts")
        self._namespaces = [needs("nsenter"), f"--target={holder.pid}", "--mount"]

    def inside(self, folder: str | Path = "/") -> list[str]:
        """The prefix of a command that makes it run in this host, in a folder."""
        return [*self._namespaces, f"--wd={folder}"]

    def run(self, *command: str | Path, folder: str | Path = "/", stdin: bytes = b"") -> Status:
        """Run a command in this host, without this environment's variables for Python."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return run([*self.inside(folder), *command], env=kept, input=stdin, timeout=300)
