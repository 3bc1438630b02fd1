"""Tests of the shell completions: that they are up to date, and what the shells make of them."""

from __future__ import annotations

from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.completion import FILES, FOLDER, script
from tests.system.running import Screen, needs, run


class CompletionTests(SynchronousTestCase):
    """The scripts in `completions/`, in real shells."""

    def setUp(self) -> None:
        """Only a source tree has the scripts."""
        if not FOLDER.exists():
            raise SkipTest("not run from the project's source tree")

    def test_up_to_date(self) -> None:
        """They are what shtab makes of the parsers; `python -m tests.completion` writes them."""
        for shell, path in FILES.items():
            self.assertEqual((FOLDER / path).read_text(), script(shell), path)

    def assert_completes(self, prepare: str, *shell: str) -> None:
        """Complete a command, options and the name of a file, and see what the shell then runs.

        @param prepare: a command that makes the script known to the shell.
        @param shell: the command that starts it.
        """
        path = Path(self.mktemp())
        path.with_suffix(".pem").touch()
        screen = Screen(self, *shell)
        screen.type(f"tsecho() {{ echo \"<$*>\"; }}; {prepare}; echo re''ady\n")
        screen.see(r"(?s)[\r\n]ready\r.*")
        screen.type(f"tsecho pi\ta --cou\t3 --ins\t--ca {path}\t\n")
        screen.see(rf"(?s)<ping a --count 3 --insecure --ca {path}\.pem ?>.*")

    def test_bash(self) -> None:
        """Bash needs nothing but the script."""
        script = FOLDER / FILES["bash"]
        self.assert_completes(f"source {script}", needs("bash"), "--norc", "--noprofile", "-i")

    def test_zsh(self) -> None:
        """Zsh finds the script by its name, in a folder of its search path."""
        folder = (FOLDER / FILES["zsh"]).parent
        self.assert_completes(
            f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D",
            *(needs("zsh"), "-f", "-i"),
        )

    def test_fish(self) -> None:
        """Fish lists what may follow, with the help of each option."""
        source = f"source {FOLDER / FILES['fish']}; complete --do-complete"
        for line, words in (
            ("tsecho pi", "ping\tmeasure round trips, and how wrong the server's clock is\n"),
            ("tsecho ping --cou", "--count\tstop after N probes (default: no limit)\n"),
            ("tsecho --ins", "--insecure\taccept any certificate of a tls: server"),
            ("tsecho help p", "ping\t"),
        ):
            done = run([needs("fish"), "--no-config", "--command", f"{source} '{line}'"])
            self.assertTrue(done.stdout.decode().startswith(words), done)
