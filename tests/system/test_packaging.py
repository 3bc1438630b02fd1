"""Tests of the packages: the files of the sdist, and installs in fresh environments."""

from __future__ import annotations

import os
import re
import shutil
import sys
import venv
import zipfile
from pathlib import Path
from subprocess import PIPE, STDOUT
from subprocess import run as run_command

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo

ROOT = Path(timestamp_echo.__file__).parent.parent
FILES = (
    *("setup.cfg", "setup.py", "pyproject.toml", "tox.ini", "MANIFEST.in", "LICENSE"),
    *("README.rst", "NEWS.rst", "CONTRIBUTING.rst", "SECURITY.rst"),
)
FOLDERS = (
    *("timestamp_echo", "twisted", "tests", "benchmarks", "docs", "man", "completions"),
    "deploy",
)
DATA = {
    "share/bash-completion/completions/tsecho",
    "share/zsh/site-functions/_tsecho",
    "share/fish/vendor_completions.d/tsecho.fish",
    "share/man/man1/tsecho.1",
    "share/man/man1/tsecho-ping.1",
    "share/man/man7/tsecho-server.7",
}
UNVERSIONED = shutil.ignore_patterns("__pycache__", "*dropin.cache*", "_build")
TIMEOUT = 600.0
"""Seconds that a command may take. pip downloads and builds, perhaps on a busy machine."""


def run(*command: str | Path, folder: Path) -> str:
    """Run a command without this environment's variables, and return its output.

    @raise AssertionError: it ended with another status than 0.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = run_command(
        command, cwd=folder, env=kept, stdout=PIPE, stderr=STDOUT, timeout=TIMEOUT, check=False
    )
    output = done.stdout.decode()
    if done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{output}")
    return output


class PackagingTests(SynchronousTestCase):
    """Build and install a copy of the project, and use it from another folder."""

    def setUp(self) -> None:
        """Copy the project, as a clone has it, and make an empty folder."""
        if not (ROOT / "setup.cfg").exists():
            self.skipTest("not run from the project's source tree")
        here = Path(self.mktemp()).absolute()
        self.elsewhere = here / "elsewhere"
        self.elsewhere.mkdir(parents=True)
        self.project = here / "project"
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, self.project / folder, ignore=UNVERSIONED)
        for file in FILES:
            shutil.copy(ROOT / file, self.project)
        self.copied = [path for path in self.project.rglob("*") if path.is_file()]
        self.environment = here / "environment"

    def install(self, *what: str | Path) -> None:
        """Install a package and its dependencies into a fresh environment."""
        venv.create(self.environment)
        self.pip("install", "--quiet", "--no-compile", *what)

    def pip(self, *arguments: str | Path) -> None:
        """Run this environment's pip for the fresh one: installing another would take seconds."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
        run(*pip, self.environment / "bin" / "python", *arguments, folder=self.elsewhere)

    def run_installed(self, program: str, *arguments: str | Path) -> str:
        """Run a program of the fresh environment, from the empty folder."""
        return run(self.environment / "bin" / program, *arguments, folder=self.elsewhere)

    def assert_works(self) -> None:
        """The plugin and the client run; uninstalling removes them, and leaves Twisted whole."""
        self.assertRegex(self.run_installed("twistd", "--help"), r"\n +tsecho +Timestamp echo: ")
        self.assertIn("--framing", self.run_installed("twistd", "-n", "tsecho", "--help"))
        version = f"tsecho {timestamp_echo.__version__}\n"
        self.assertEqual(self.run_installed("tsecho", "--version"), version)
        self.assertEqual(self.run_installed("python", "-m", "timestamp_echo", "--version"), version)
        self.assertIn('"$defs"', self.run_installed("tsecho", "ping", "--json-schema"))
        self.pip("uninstall", "--quiet", "--yes", "tsecho")
        self.assertNotIn("tsecho", self.run_installed("twistd", "--help"))
        self.run_installed("python", "-c", "import twisted.internet.reactor, twisted.plugins")

    def test_sdist_and_wheel(self) -> None:
        """The sdist has every file of the project; the wheel, built from it, installs."""
        run(sys.executable, "-m", "build", "--no-isolation", folder=self.project)
        (sdist,) = self.project.glob("dist/*.tar.gz")
        (wheel,) = self.project.glob("dist/*.whl")
        self.check_sdist(sdist)
        self.check_wheel(wheel)
        self.install(wheel)
        for path in DATA:
            self.assertTrue((self.environment / path).is_file(), path)
        self.assert_works()

    def check_sdist(self, sdist: Path) -> None:
        """An sdist contains every file of the project."""
        unpacked = self.project.parent / "unpacked"
        shutil.unpack_archive(sdist, unpacked)
        (root,) = unpacked.iterdir()
        copied = {path.relative_to(self.project) for path in self.copied}
        self.assertGreater(len(copied), 100)
        self.assertEqual({path for path in copied if not (root / path).is_file()}, set())

    def check_wheel(self, wheel: Path) -> None:
        """A wheel contains the package, the plugin, completions and man pages, and nothing else.

        Its description names files of the sdist instead of linking to them.
        """
        with zipfile.ZipFile(wheel) as archive:
            files = {name for name in archive.namelist() if ".dist-info/" not in name}
            info = f"tsecho-{timestamp_echo.__version__}.dist-info/METADATA"
            description = archive.read(info).decode()
        self.assertIn("\nRunning the tests\n", description)
        self.assertNotRegex(description, r"image::|<[\w/-]+\.rst>")
        named = {Path(path) for path in re.findall(r"\(``([\w./-]+)``\)", description)}
        self.assertGreater(len(named), 10)
        self.assertLessEqual(named, {path.relative_to(self.project) for path in self.copied})
        data = f"tsecho-{timestamp_echo.__version__}.data/data/"
        sources = {
            str(path.relative_to(ROOT))
            for pattern in (
                "timestamp_echo/**/*.py",
                "timestamp_echo/py.typed",
                "timestamp_echo/ping/schema.json",
                "timestamp_echo/status/page.*",
                "twisted/plugins/*.py",
            )
            for path in ROOT.glob(pattern)
        }
        self.assertEqual(files, sources | {data + path for path in DATA})

    def test_editable(self) -> None:
        """Twisted's plugin search finds an editable install too."""
        self.install("--editable", self.project)
        self.assert_works()
