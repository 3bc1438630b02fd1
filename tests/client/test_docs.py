"""Tests of the reference pages: that they have every option and member, and none that is not."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo
from timestamp_echo.client import command as client
from timestamp_echo.client.address import PORT
from timestamp_echo.client.arguments import DEFAULT_SERVER
from timestamp_echo.ping import arguments as ping

REFERENCE = Path(timestamp_echo.__file__).parent.parent / "docs" / "reference"

Names = frozenset[str]
"""What an option is called on the command line."""

UNITS = {"ns": "ns", "s": "s", "ppb": "ppb"}
"""The unit that the end of a name stands for."""

OBJECTS = {
    "probe, answered": "answered",
    "probe, lost": "lost",
    "event": "event",
    "summary and progress": "summary",
    "unreachable": "unreachable",
    "fleet": "fleet",
    "offset": "offset",
    "statistics": "figures",
}
"""The headings of the page about JSON, and the definitions of the schema that they describe."""


def read(name: str) -> str:
    """The text of a page.

    @raise SkipTest: the project's source tree is not there.
    """
    try:
        return (REFERENCE / name).read_text()
    except FileNotFoundError:
        raise SkipTest("not run from the project's source tree") from None


def sections(page: str) -> dict[str, str]:
    """The text under each heading that is underlined with hyphens."""
    _, *parts = re.split(r"(?m)^(.+)\n-{3,}\n", page)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def described(page: str) -> dict[Names, tuple[str, str]]:
    """The options of a page: what their value is called, and their default; empty for none."""
    found = {}
    for signature, body in re.findall(r"(?m)^\.\. option:: (.+)\n((?:\n|   .*\n)*)", page):
        names, values = set(), set()
        for name in signature.split(", "):
            option, _, value = name.partition(" ")
            names.add(option)
            values.add(value)
        (value,) = values  # each name is followed by the same
        default = re.search(r"(?m)^   Default: (.*)\.$", body)
        found[frozenset(names)] = (value, default[1] if default else "")
    return found


def parsed(parser: ArgumentParser) -> Iterator[tuple[Names, str, str, object]]:
    """The options of a parser.

    @return: the names of each, what its value is called, the default that its help states, and the
        one that it has; empty for none.
    """
    for action in parser._actions:
        value = str(action.metavar or "")
        if not action.option_strings:
            names = frozenset({value})
            value = "..." if action.nargs == "*" else ""
        else:
            names = frozenset(action.option_strings)
        stated = re.search(r"\(default: ?(.*)\)", action.help or "")
        number = action.default if isinstance(action.default, float | int) else 0
        yield names, value, stated[1] if stated else "", number


def members(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The members of an object that a schema describes: how each is reached, and its type."""
    for alternative in schema.get("anyOf", schema.get("oneOf", [schema])):
        for name, member in alternative.get("properties", {}).items():
            yield path + name, kind(member)
            yield from members(member, f"{path}{name}.")
            yield from members(member.get("items", {}), f"{path}{name}[].")


def kind(schema: Any) -> str:
    """The type of what a schema describes, in words."""
    if "$ref" in schema:  # all that are referred to may be null
        return "object or null"
    if "enum" in schema:
        return "string"
    if types := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(sorted((one["type"] for one in types), key="null".__eq__))
    if isinstance(schema["type"], list):
        return " or ".join(schema["type"])
    inner = schema.get("items", {})
    if schema["type"] == "array" and "properties" not in inner:
        return f"array of {plural(inner)}"
    return str(schema["type"])


def plural(schema: Any) -> str:
    """The type of a list's elements, in words."""
    if schema["type"] == "array":
        return f"arrays of {plural(schema['items'])}"
    return f"{schema['type']}s"


def values(schema: Any) -> Iterator[str]:
    """The values that members of an object may have, where a schema lists them."""
    if isinstance(schema, dict):
        yield from schema.get("enum", [])
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            yield from values(inner)


def unit(path: str, default: str) -> str:
    """The unit of a member: its name, or that of an object which it is in, ends with it."""
    for name in reversed(re.split(r"\W+", path)):
        head, _, end = name.rpartition("_")
        if head and end in UNITS:
            return UNITS[end]
    return default


class OptionTests(SynchronousTestCase):
    """`client.rst` and `ping.rst`: the options of both commands."""

    def assert_same(self, page: str, parser: ArgumentParser) -> None:
        """The page has the options of the parser, with their values and defaults, and no other."""
        options = described(read(page))
        self.assertEqual(set(options), {names for names, *_ in parsed(parser)})
        for names, value, stated, number in parsed(parser):
            self.assertEqual(options[names][0], value, names)
            default = options[names][1]
            self.assertEqual(bool(default), bool(stated), (names, default, stated))
            if number and stated:
                self.assertEqual((default, stated), (f"{number:g}",) * 2, names)

    def test_client(self) -> None:
        """Those of `tsecho`."""
        self.assert_same("client.rst", client._parser())

    def test_ping(self) -> None:
        """Those of `tsecho ping`."""
        self.assert_same("ping.rst", ping.new_parser())

    def test_default_server(self) -> None:
        """SERVER is the one that is used if there is none, with its port."""
        for page in ("client.rst", "ping.rst"):
            default = described(read(page))[frozenset({"SERVER"})][1]
            self.assertEqual(default, f"{DEFAULT_SERVER}:{PORT}")


class JSONTests(SynchronousTestCase):
    """`json.rst`: the members of each object that `tsecho ping --json` writes."""

    def setUp(self) -> None:
        """Read the page, and the schema."""
        self.sections = sections(read("json.rst"))
        self.schema = json.loads(files("timestamp_echo.ping").joinpath("schema.json").read_text())

    def test_objects(self) -> None:
        """Each definition of the schema has its section, and the section its name."""
        self.assertEqual(set(OBJECTS.values()), set(self.schema["$defs"]))
        self.assertLessEqual(set(OBJECTS), set(self.sections))

    def test_members(self) -> None:
        """Each member is in the table of its object, with its type and unit, and none else."""
        for heading, name in OBJECTS.items():
            rows = re.findall(
                r"   \* - ``(.+)``\n     - (.+)\n     - (.+)\n", self.sections[heading]
            )
            default = "ns" if name == "figures" else "\\-"
            expected = [
                (path, words, unit(path, default))
                for path, words in members(self.schema["$defs"][name])
            ]
            self.assertEqual(sorted(rows), sorted(expected), heading)

    def test_values(self) -> None:
        """A member that has one of a few values is described with all of them."""
        for heading, name in OBJECTS.items():
            for value in values(self.schema["$defs"][name]):
                self.assertIn(f"``{value}``", self.sections[heading])


class APITests(SynchronousTestCase):
    """`api.rst`: the public names."""

    def test_names(self) -> None:
        """Each is in the table, with a link to pydoctor's page, and none else."""
        page = read("api.rst")
        linked = set(re.findall(r"(?m)^   \* - (?:`(\w+)`_|``__version__``)$", page))
        names = set(timestamp_echo.__all__)
        self.assertEqual({name or "__version__" for name in linked}, names)
        targets = dict(re.findall(r"(?m)^\.\. _(\w+): \.\./api/timestamp_echo\.(.+)$", page))
        self.assertEqual(
            targets,
            {
                name: f"{name}.html" if name[0].isupper() else f"html#{name}"
                for name in names - {"__version__"}
            },
        )
