"""A host of its own for a test, as root: with an empty folder for tsecho, and with systemd.

It shares the kernel, the programs and /tmp with this host. Its mounts, processes, network and
control groups are its own (namespaces(7), unshare(1), nsenter(1)), and end with the test.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from pathlib import Path
from unittest import SkipTest

from tests.system.running import PATIENCE, Case, Status, needs, run
from tests.system.test_notify import Manager

INSTALLED = Path("/opt/tsecho")
"""An empty folder at the start, whatever is there on this host."""

LOG = "run/tsecho.log"
"""What the services of systemd write, from the root of the host."""

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

_BOOT = f"""
set -e
mkdir "$GROUP"
echo $$ >"$GROUP/cgroup.procs"
exec unshare --cgroup --mount --pid --fork --kill-child --net --uts --ipc --mount-proc sh -ec '
    units=/lib/systemd/system
    for folder in /run $units $units-generators /etc/systemd/system; do
        mount -t tmpfs tmpfs $folder
    done
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for name in sysinit basic sockets network multi-user shutdown; do
        printf "[Unit]\\nDefaultDependencies=no\\n" >$units/$name.target
    done
    mkdir $units/service.d
    printf "[Service]\\nStandardOutput=append:/{LOG}\\n" >$units/service.d/log.conf
    exec env -i container=tsecho NOTIFY_SOCKET="$NOTIFY_SOCKET" PATH="$PATH" \\
        /lib/systemd/systemd --unit=multi-user.target
'
"""
"""Starts systemd in namespaces of its own, with no units but the usual targets."""


class Host:
    """The host, which exists until the end of the test.

    @param case: the test.
    @raise SkipTest: this is not root, or the system does not allow it.
    """

    def __init__(self, case: Case) -> None:
        if os.getuid() != 0:
            raise SkipTest("only root can make namespaces")
        self._case = case
        self._root = Path("/nowhere")  # until systemd runs
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

    def boot(self) -> None:
        """Start systemd, and wait until it is up. From then on `run` runs beside it.

        @raise SkipTest: there is no systemd, or the system does not allow it to run.
        """
        needs("systemctl")
        group = _groups() / f"tsecho-{os.getpid()}"
        manager = Manager(self._case)
        self._case.addCleanup(_remove_groups, group)
        process = subprocess.Popen(
            [*self.inside(), "sh", "-c", _BOOT],
            env=os.environ | {"GROUP": str(group), "NOTIFY_SOCKET": manager.address},
            stdin=subprocess.DEVNULL,
        )
        self._case.addCleanup(process.wait, PATIENCE)
        self._case.addCleanup(process.kill)
        while "READY=1" not in manager.next():
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self._root = Path(f"/proc/{children[0]}/root")
        self._namespaces = [needs("nsenter"), f"--target={children[0]}", "--all"]

    @property
    def log(self) -> str:
        """What the services of systemd have written so far."""
        file = self._root / LOG
        return file.read_text() if file.exists() else ""

    def write(self, path: str, text: str) -> None:
        """Write a file of systemd's host."""
        file = self._root / path.lstrip("/")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


def _groups() -> Path:
    """Where the control groups of version 2 are."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(folder, os.W_OK):
            return Path(folder)
    raise SkipTest("there are no control groups (cgroups(7), version 2)")


def _remove_groups(group: Path) -> None:
    """Remove control groups once their processes have ended, which are being killed."""
    if not group.exists():
        return
    with (group / "cgroup.events").open() as events:
        while "populated 1" in events.read() and select.select([], [], [events], PATIENCE)[2]:
            events.seek(0)
    for folder, _, _ in os.walk(group, topdown=False):
        Path(folder).rmdir()
