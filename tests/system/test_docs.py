"""Every command in the README and in docs/ works as it is written there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.system.namespaces import Namespaces
from tests.system.pages import PAGES, ROOT, Block, Command, Page
from tests.system.running import BIN, PATIENCE, Log


class Shell:
    """Runs commands as a reader of a page does, on a host of the page's own.

    @param case: the test, at whose end everything is stopped.
    @param page: whose commands they are.
    """

    def __init__(self, case: SynchronousTestCase, page: Page) -> None:
        hosts = Namespaces(case)
        name = hosts.add(page.name.replace("_", "-"))
        hosts.do("-n", name, "link", "set", "lo", "up")
        self._inside = hosts.inside(name)
        self._folder = Path(case.mktemp())
        self._folder.mkdir()
        self._folder = self._folder.resolve()
        (self._folder / ".venv").symlink_to(BIN.parent)
        # As in a clone: the pages name files of the source tree.
        for name in ("deploy", "benchmarks", "tests"):
            (self._folder / name).symlink_to(ROOT / name)
        self._environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self._folder),
            "COLUMNS": "80",
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
        }
        for variable in ("TSECHO_REACTOR", "TZ"):
            self._environment.pop(variable, None)
        self._running: list[tuple[subprocess.Popen[bytes], Log]] = []
        case.addCleanup(self.stop)

    def write(self, block: Block) -> None:
        """Write a file that the page shows."""
        path = self._folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)

    def run(self, command: Command, status: int) -> str:
        """Run a command to its end.

        @return: what is wrong with its status or output; empty if nothing is.
        """
        process = self._start(command.text, subprocess.PIPE)
        try:
            output = process.communicate(command.typed.encode(), PATIENCE)[0].decode()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"does not end; so far:\n{process.communicate()[0].decode()}"
        if process.returncode != status:
            return f"ends with status {process.returncode}:\n{output}"
        if command.output and not command.matches(output):
            return f"writes:\n{output}\nand not:\n{command.output}"
        return ""

    def run_in_background(self, command: Command, ready: str) -> None:
        """Start a command, and wait until its output has the text that says that it is ready."""
        process = self._start(command.text, subprocess.DEVNULL)
        assert process.stdout is not None
        log = Log(process.stdout)
        self._running.append((process, log))
        log.wait_for(re.escape(ready), max(command.output.count(ready), 1) if ready else 0)

    def _start(self, command: str, stdin: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # Whoever runs the tests may ignore SIGINT, as a shell does for what it runs behind `&`.
            ["env", "--default-signal=INT", *self._inside, "bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Stop what runs in the background, as Ctrl-C does."""
        running, self._running = self._running, []
        for process, _ in running:
            os.killpg(process.pid, signal.SIGINT)
        for process, log in running:
            wrong = self._not_stopped(process, log)
            log.finish()
            assert process.stdout is not None
            process.stdout.close()
            if wrong:
                raise AssertionError(wrong)

    def _not_stopped(self, process: subprocess.Popen[bytes], log: Log) -> str:
        # A reactor that has only just been started may swallow the first KeyboardInterrupt.
        for patience in (PATIENCE / 4, PATIENCE):
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
            else:
                return ""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{process.args!r} does not stop:\n{log.text}"


class DocumentationTests(SynchronousTestCase):
    """A reader who does what a page says sees what the page shows."""

    def check(self, path: Path) -> None:
        """Do what a page says."""
        page = Page(path)
        blocks = [block for block in page.blocks if not block.skip]
        for program in page.needs:
            if shutil.which(program) is None:
                raise SkipTest(f"{program} is not installed")
        try:
            shell = Shell(self, page)
        except OSError as error:
            raise SkipTest(f"there is no host for it: {error}") from error
        for block in blocks:
            if block.language == "stop":
                shell.stop()
            if block.file:
                shell.write(block)
            for command in block.commands:
                last = command is block.commands[-1]
                where = f"{path}:{block.line}: $ {command.text}\n"
                if (last and block.ready is not None) or re.match(
                    r"(\S*/)?twistd -n", command.text
                ):
                    shell.run_in_background(command, block.ready or "listening on")
                else:
                    wrong = shell.run(command, block.status if last else 0)
                    if wrong:
                        self.fail(where + wrong)

    def test_counts(self) -> None:
        """Most commands are run."""
        run = sum(page.count(skipped=False) for page in RUNNABLE)
        skipped = sum(Page(path).count(skipped=True) for path in PAGES)
        print(f"{run} commands of {len(RUNNABLE)} pages are run, {skipped} are not")
        self.assertGreater(run, 3 * skipped)


def _test(path: Path) -> object:
    def test(self: DocumentationTests) -> None:
        self.check(path)

    test.__doc__ = f"The commands of {path.name}."
    return test


RUNNABLE = [page for page in map(Page, PAGES) if page.count(skipped=False)]

for _page in RUNNABLE:
    setattr(DocumentationTests, f"test_{_page.name}", _test(_page.path))
