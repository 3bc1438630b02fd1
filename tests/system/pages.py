"""The pages of the documentation, parsed into what a test can run.

Only `code-block`s are run. A `console` block has commands after `$ ` and their output, an `sh`
block only commands, and a block with a caption is a file. Python that is not a file is a program.

A comment before a block adds to it:

`.. test: background [TEXT]`: its last command keeps running; it is ready once it has written TEXT.
`.. test: status N`: the exit status of its last command.
`.. test: file NAME`: it is this file, where a caption is not possible.
`.. test: skip REASON`: it is not run; the text around it tells the reader why.

Other comments stand alone:

`.. test: needs PROGRAM ...`: the page cannot be run without these.
`.. test: stop`: end what runs in the background.
`.. test: also COMMAND`: run this in place of a command that cannot be run as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent

PAGES = [
    *(ROOT / name for name in ("README.rst", "CONTRIBUTING.rst")),
    *sorted(path for path in (ROOT / "docs").rglob("*.rst") if "_build" not in path.parts),
]

_STAMPS = (
    r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(?:[+-]\d\d:\d\d|Z)",
    r"\d{10}\.\d{9}",
)
"""Of the styles ctime, iso and unix."""

_VARYING = {r"\.\.\.": r"[\s\S]*?"} | {stamp: stamp for stamp in _STAMPS}
"""Placeholders in the output that a page shows, and patterns for what each stands for."""

_SENT_LATE = r"(?m)^\d+ sent late; .*\n"
"""A line of ping's summary, there only if the host was busy; a page need not show it."""


class Command(NamedTuple):
    """A command, and what the page shows below it."""

    text: str
    typed: str
    """What the user types, when it asks for lines."""

    output: str
    """Empty: it is not shown."""

    def matches(self, output: str) -> bool:
        """Whether this is the output that the page shows; any stamp matches any of its style."""
        pieces = re.split("(" + "|".join(_VARYING) + ")", self.output)
        # Every second piece is one that varies.
        pieces[::2] = map(re.escape, pieces[::2])
        pieces[1::2] = (
            next(pattern for shown, pattern in _VARYING.items() if re.fullmatch(shown, piece))
            for piece in pieces[1::2]
        )
        usual = re.sub(_SENT_LATE, "", _stripped(output))
        return re.fullmatch("".join(pieces), usual) is not None


@dataclass
class Block:
    """A block of a page, or a comment that stands alone.

    @ivar line: its number in the page.
    @ivar language: of the code; "stop" for that comment.
    """

    line: int
    language: str
    text: str = ""
    file: str = ""
    skip: str = ""
    status: int = 0
    ready: str | None = None
    """What the last command writes when it is ready, if it goes on."""

    commands: list[Command] = field(default_factory=list)


class Page:
    """A page.

    @ivar name: its path in the documentation, as an identifier.
    @ivar needs: programs without which it cannot be run.
    @ivar blocks: in order.
    @raise ValueError: it cannot be understood; the text says where.
    """

    def __init__(self, path: Path) -> None:
        relative = path.relative_to(ROOT / "docs" if "docs" in path.parts else ROOT)
        self.name = re.sub(r"\W", "_", str(relative.with_suffix("")).lower())
        self.path = path
        self.needs: list[str] = []
        self.blocks: list[Block] = []
        self._lines = path.read_text().expandtabs().split("\n")
        self._notes: dict[str, str] = {}
        for number, line in enumerate(self._lines):
            self._read(number, line)

    def count(self, *, skipped: bool) -> int:
        """How many commands it has that are run, or that are not."""
        return sum(len(block.commands) for block in self.blocks if bool(block.skip) == skipped)

    def _read(self, number: int, line: str) -> None:
        if note := re.fullmatch(r"\s*\.\. test: (\w+) ?(.*)", line):
            kind, value = note.groups()
            if kind == "needs":
                self.needs += value.split()
            elif kind == "stop":
                self.blocks.append(Block(number + 1, "stop"))
            elif kind == "also":
                self.blocks.append(Block(number + 1, "sh", commands=[Command(value, "", "")]))
            elif kind in {"background", "status", "file", "skip"}:
                self._notes[kind] = value
            else:
                raise ValueError(f"{self.path}:{number + 1}: no such note: {kind}")
        elif directive := re.fullmatch(r"( *)\.\. (?:code-block|code|sourcecode):: ?(\w*)", line):
            self.blocks.append(self._block(number, len(directive[1]), directive[2]))
            self._notes = {}
        elif line.endswith("::") and not line.lstrip().startswith(".."):
            content = "\n".join(self._content(number, len(line) - len(line.lstrip())))
            if re.search(r"(?m)^ *\$ ", content):
                raise ValueError(f"{self.path}:{number + 1}: commands in a block that is not run")

    def _content(self, number: int, indent: int) -> Iterator[str]:
        for line in self._lines[number + 1 :]:
            if line.strip() and not line.startswith(" " * (indent + 1)):
                return
            yield line

    def _block(self, number: int, indent: int, language: str) -> Block:
        block = Block(number + 1, language, skip=self._notes.get("skip", ""))
        block.file = self._notes.get("file", "")
        lines = list(self._content(number, indent))
        while lines and (option := re.fullmatch(r" +:([\w-]+): ?(.*)", lines[0])):
            if option[1] == "caption":
                block.file = option[2]
            del lines[0]
        width = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        block.text = "\n".join(line[width:] for line in lines).strip("\n") + "\n"
        if language in {"console", "sh"}:
            read = self._commands if language == "console" else _lines
            block.commands = list(read(block))
        elif language == "python" and not block.file:
            block.file = f"example-{block.line}.py"
            block.commands = [Command(f"python {block.file}", "", "")]
        elif re.search(r"(?m)^\$ ", block.text):
            raise ValueError(f"{self.path}:{number + 1}: commands in a block that is not run")
        block.status = int(self._notes.get("status", "0"))
        block.ready = self._notes.get("background")
        return block

    def _commands(self, block: Block) -> Iterator[Command]:
        if not block.text.startswith("$ "):
            raise ValueError(f"{self.path}:{block.line}: a console begins with a command")
        for part in re.split(r"(?m)^\$ ", block.text)[1:]:
            match = re.match(r"((?:.*\\\n)*.*)\n", part)
            assert match is not None
            command, shown = match[1], part[match.end() :]
            typed: list[str] = []
            if re.search(r"(?:^|\| )(?:\S*/)?tsecho\b(?! ping)[^|]*$", command):
                typed = re.findall(r"(?m)^> ?(.*)$", shown)
                while typed and not typed[-1]:  # ends the session on a terminal
                    typed.pop()
                shown = re.sub(r"(?m)^(?:>|Lines go to ).*\n?", "", shown)  # not in a pipe
            yield Command(command, "".join(f"{line}\n" for line in typed), _stripped(shown))


def _lines(block: Block) -> Iterator[Command]:
    """The commands of a block that has nothing else."""
    for text in re.findall(r"(?m)^((?:.*\\\n)*.+)$", block.text):
        yield Command(text, "", "")


def _stripped(text: str) -> str:
    """A text without spaces at the ends of its lines, and without empty lines around it."""
    return re.sub(r"(?m)[ \r]+$", "", text.expandtabs()).strip("\n")
