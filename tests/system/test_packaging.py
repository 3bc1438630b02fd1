"""What gets installed: built and installed as anyone would, and looked at from elsewhere."""

from __future__ import annotations

import os
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
    *("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in"),
    *("README.rst", "NEWS.rst", "LICENSE"),
)
SECONDS = 180.0


def run(*command: str | Path, folder: Path) -> str:
    """Run a command to its end; what it wrote. It sees nothing of this environment."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = run_command(
        command, cwd=folder, env=kept, stdout=PIPE, stderr=STDOUT, timeout=SECONDS, check=False
    )
    output = done.stdout.decode()
    if done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{output}")
    return output


class PackagingTests(SynchronousTestCase):
    """Wheel, sdist and editable install, each in a fresh environment."""

    def setUp(self) -> None:
        """A copy of the project as it would be cloned, and an empty folder elsewhere."""
        if not (ROOT / "setup.cfg").exists():
            self.skipTest("these tests need the project's own folder")
        here = Path(self.mktemp()).absolute()
        self.elsewhere = here / "elsewhere"
        self.elsewhere.mkdir(parents=True)
        self.project = here / "project"
        for folder in ("timestamp_echo", "twisted", "tests"):
            unversioned = shutil.ignore_patterns("__pycache__", "dropin.cache")
            shutil.copytree(ROOT / folder, self.project / folder, ignore=unversioned)
        for file in FILES:
            shutil.copy(ROOT / file, self.project)
        self.environment = here / "environment"

    def build(self) -> tuple[Path, Path]:
        """The sdist, and the wheel that is built from it."""
        run(sys.executable, "-m", "build", "--no-isolation", folder=self.project)
        (sdist,) = self.project.glob("dist/*.tar.gz")
        (wheel,) = self.project.glob("dist/*.whl")
        return sdist, wheel

    def install(self, *what: str | Path) -> None:
        """Install this, and what it needs, into a fresh environment."""
        venv.create(self.environment)
        self.pip("install", "--quiet", *what)

    def pip(self, *arguments: str | Path) -> None:
        """Run pip for the fresh environment, which has none of its own: that takes a while."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
        run(*pip, self.environment / "bin" / "python", *arguments, folder=self.elsewhere)

    def there(self, program: str, *arguments: str | Path) -> str:
        """Run a program of the fresh environment, from the empty folder."""
        return run(self.environment / "bin" / program, *arguments, folder=self.elsewhere)

    def assert_whole(self) -> None:
        """The plugin, the client and the types are there; uninstalling takes just them."""
        self.assertRegex(self.there("twistd", "--help"), r"\n +tsecho +Timestamp echo: ")
        self.assertIn("--framing", self.there("twistd", "-n", "tsecho", "--help"))
        version = f"tsecho {timestamp_echo.__version__}\n"
        self.assertEqual(self.there("tsecho", "--version"), version)
        self.assertEqual(self.there("python", "-m", "timestamp_echo", "--version"), version)
        self.pip("uninstall", "--quiet", "--yes", "tsecho")
        self.assertNotIn("tsecho", self.there("twistd", "--help"))
        self.there("python", "-c", "import twisted.internet.reactor, twisted.plugins")

    def test_wheel(self) -> None:
        """A wheel has the package and the plugin, and nothing else."""
        _, wheel = self.build()
        with zipfile.ZipFile(wheel) as archive:
            files = {name for name in archive.namelist() if ".dist-info/" not in name}
        sources = {
            str(path.relative_to(ROOT))
            for pattern in (
                "timestamp_echo/**/*.py",
                "timestamp_echo/py.typed",
                "twisted/plugins/*.py",
            )
            for path in ROOT.glob(pattern)
        }
        self.assertEqual(files, sources)
        self.install(wheel)
        self.assert_whole()

    def test_sdist(self) -> None:
        """An sdist has the tests too, and installs."""
        sdist, _ = self.build()
        unpacked = self.elsewhere / "unpacked"
        shutil.unpack_archive(sdist, unpacked)
        (root,) = unpacked.iterdir()
        for path in ROOT.glob("tests/*.py"):
            self.assertTrue((root / path.relative_to(ROOT)).exists(), path)
        for name in FILES:
            self.assertTrue((root / name).exists(), name)
        self.install(sdist)
        self.assert_whole()

    def test_editable(self) -> None:
        """An editable install is found by Twisted's search for plugins as well."""
        self.install("--editable", self.project)
        self.assert_whole()
