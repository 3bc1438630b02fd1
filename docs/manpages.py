"""The manual pages in `man/`, which Sphinx makes of pages of the reference.

`python docs/manpages.py [FOLDER]` writes them, there or into another folder. The packages install
them where man(1) looks. They have no date, so that they change with the reference only.
"""

from __future__ import annotations

import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent


def main(folder: Path) -> None:
    """Write the manual pages into a folder, and make it if there is none."""
    with tempfile.TemporaryDirectory() as build:
        output = Path(build, "man")
        app = Sphinx(
            *(DOCS, DOCS, output, Path(build, "doctrees"), "man"),
            confoverrides={"extensions": []},  # those are for HTML
            # A warning is an error where the pages are built as HTML.
            status=None,
            warning=None,
        )
        app.connect("doctree-resolved", adapt)
        app.build()
        folder.mkdir(exist_ok=True)
        for path in output.glob("*.[1-9]"):
            (folder / path.name).write_text(finished(path.read_text()))


def adapt(app: Sphinx, page: Any, name: str) -> None:
    """Make a page of the reference a manual page.

    @param app: builds it.
    @param page: the root of its tree, a `nodes.document`.
    @param name: its name in the documentation.
    """
    manuals = {
        app.env.titles[source].astext(): f"{manual}({section})"
        for source, manual, _, _, section in app.config.man_pages
    }
    for reference in list(page.findall(nodes.reference)):
        if reference.get("internal"):  # there is nothing to follow
            text, kinds = reference.astext(), reference[0].get("classes", [])
            if text in manuals:
                reference.replace_self(nodes.strong("", manuals[text]))
            elif "doc" in kinds:
                reference.replace_self(named(reference, text))
            else:
                reference.replace_self(nodes.Text(text))
    # What stands before the first section is the description, which man(7) has after the synopsis.
    whole = next(iter(page.findall(nodes.section)))
    first = whole.first_child_matching_class(nodes.section)
    description = nodes.section("", nodes.title("", "Description"), *whole[1:first])
    whole[:] = [whole[0], whole[first], description, *whole[first + 1 :]]


def named(reference: nodes.reference, title: str) -> nodes.Text:
    """The words for a page of the documentation that is no manual page.

    @param reference: leads there; it may begin a sentence.
    @param title: of the page.
    """
    before = reference.parent.astext().partition(title)[0].rstrip()
    article = "the" if before and not before.endswith(".") else "The"
    return nodes.Text(f'{article} page "{title}" of the documentation')


def finished(page: str) -> str:
    """A manual page as it is installed.

    @param page: as Sphinx writes it.
    """
    writers = f"Sphinx {version('sphinx')} and docutils {version('docutils')}"
    _, macros, page = page.partition(".nr ")
    page, _, _ = page.partition(".SH Author\n")
    # No date; and no word is divided, nor a line stretched: it may be a command.
    page = re.sub(r'(?m)^(\.TH "\S+" "\d") "[^"]*" (.*)$', r'\1 "" \2\n.ad l', page)
    return f'.\\" Written by docs/manpages.py, with {writers}.\n.nr HY 0\n{macros}{page}'


if __name__ == "__main__":
    main(Path(*sys.argv[1:]) if sys.argv[1:] else DOCS.parent / "man")
