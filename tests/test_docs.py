"""The reference pages of `docs/` say what the code does: options, limits, metrics, styles.

That the pages' commands work, `tests/system/test_docs.py` tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.test_architecture import MODULES, ROOT, layer
from timestamp_echo import stamps
from timestamp_echo.framing import FRAMINGS
from timestamp_echo.server.closing import MAX_REFUSALS, refusal
from timestamp_echo.server.connections import RESERVED_FILES, Connections
from timestamp_echo.server.protocol import TimestampEcho, TimestampEchoFactory
from timestamp_echo.status.metrics import LAG_BUCKETS, PREFIX, Metrics
from timestamp_echo.status.page import add_page
from timestamp_echo.status.site import StatusSite
from timestamp_echo.tap import Options
from timestamp_echo.transports.reactor import _PROXIED_KINDS

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"

UNITS = {"KiB": 2**10, "MiB": 2**20, "ms": 0.001}
"""What a number in a table is multiplied with; others are seconds, bytes, or counts."""

NO_LIMITS = {"stamps.SECOND", "transports.arrivals.ANCILLARY_SIZE", "status.metrics.LAG_BUCKETS"}
"""Constants of the server that limit nothing."""


PEER = IPv4Address("TCP", "192.0.2.1", 50000)


def page(name: str) -> str:
    """The text of a page of the reference."""
    return (REFERENCE / f"{name}.rst").read_text()


def sections(text: str) -> dict[str, str]:
    """The parts of a page by their headings, without quotes and those within them."""
    parts = re.split(r"(?m)^(?:``)?(\S.*?)(?:``)?\n(?:={3,}|-{3,}|~{3,})\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> Iterator[list[str]]:
    """The rows of all `list-table`s, without their headers: the text of each cell."""
    for table in re.findall(r"(?m)^\.\. list-table::\n((?:[ ].*\n|\n)+)", text):
        for row in re.split(r"(?m)^ +\* - ", table)[2:]:
            yield [" ".join(cell.split()) for cell in re.split(r"(?m)^ +- ", row)]


def quoted(text: str) -> list[str]:
    """What is in literal quotes."""
    return re.findall(r"``(.+?)``", text)


def numbers(text: str) -> list[float]:
    """The numbers in a text, each in its unit."""
    found = re.findall(r"(\d+(?:\.\d+)?) ?(\w*)", text)
    return [float(number) * UNITS.get(unit, 1) for number, unit in found]


def is_limit(value: Any) -> bool:
    """Whether a constant is a number or several."""
    if isinstance(value, tuple):
        return all(map(is_limit, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def constant(name: str) -> Any:
    """The value of a constant, which is named as in `server.closing.LINGER_TIMEOUT`."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"{ROOT}.{module}"), attribute)


def limits() -> set[str]:
    """The public numbers of the server's modules."""
    return {
        f"{module}.{target.id}"
        for module, tree in MODULES.items()
        if layer(module) in {"framing", "stamps", "server", "transports", "status"}
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and re.match("[A-Z]", target.id) and target.id.isupper()
        if is_limit(constant(f"{module}.{target.id}"))
    }


class ServerReferenceTests(SynchronousTestCase):
    """The pages about the server."""

    def options(self) -> dict[str, tuple[str, str]]:
        """Each long option of the page: its short one, or nothing, and what the page says."""
        parts = re.split(r"(?m)^\.\. option:: (.*)\n", sections(page("server"))["Options"])
        found = {}
        for names, text in zip(parts[1::2], parts[2::2], strict=True):
            *short, long = names.split(", ")
            found[long.removeprefix("--")] = ("".join(short), text)
        return found

    def test_options(self) -> None:
        """Every option is there, with its short name, and takes a value or not; and no other."""
        options = Options()
        listed = [name.partition(" ")[0] + ("=" if " " in name else "") for name in self.options()]
        self.assertEqual(sorted(listed), sorted(options.longOpt))
        shorts = {short.split()[0][1:] for short, _ in self.options().values() if short}
        self.assertEqual(shorts, set(options.shortOpt.replace(":", "")))

    def test_defaults(self) -> None:
        """The default of each option that takes a value is stated, and is the code's."""
        options = Options()
        for names, (_, text) in self.options().items():
            name, _, value = names.partition(" ")
            stated = re.search(r"(?m)^   Default: (.*)", text)
            self.assertEqual(bool(stated), bool(value), name)
            if stated is None:
                continue
            literal = re.fullmatch("``(.*)``", stated[1])
            default = {"listen": "tcp:3000", "proxy-from": None}.get(name, options.get(name))
            if default is None:
                self.assertIsNone(literal, name)
            else:
                self.assertEqual(literal and literal[1], str(default), name)
        self.assertIn(f"less {RESERVED_FILES},", self.options()["max-connections N"][1])

    def test_ranges(self) -> None:
        """The least and the greatest value of each number are the ones that are accepted."""
        for names, (_, text) in self.options().items():
            if stated := re.search(r"from (\d+) to (\d+)", text):
                option = f"--{names.partition(' ')[0]}"
                low, high = map(int, stated.groups())
                for value in (low, high):
                    Options().parseOptions([option, str(value)])
                for value in (low - 1, high + 1):
                    self.assertRaises(SystemExit, Options().parseOptions, [option, str(value)])

    def test_endpoints(self) -> None:
        """Each kind of endpoint has a section, and `haproxy` names those that it takes."""
        found = sections(page("endpoints"))
        kinds = {*_PROXIED_KINDS, "udp", "haproxy", "stdio"}
        self.assertEqual(set(found), kinds | {"Endpoints", "Other kinds", "See also"})
        taken = re.search("ENDPOINT is one of the kinds (.*)", found["haproxy"])
        self.assertEqual(taken and quoted(taken[1]), list(_PROXIED_KINDS))

    def test_framings(self) -> None:
        """Each rule has a section."""
        self.assertLessEqual(set(FRAMINGS), set(sections(page("framing"))))
        self.assertLessEqual(set(FRAMINGS), set(quoted(self.options()["framing RULE"][1])))

    def test_stamps(self) -> None:
        """Each style is described, and every directive of a pattern that is accepted."""
        found = sections(page("stamps"))
        styles = set(re.findall(r"(?m)^``(\w+)``$", found["Syntax"]))
        self.assertEqual(styles, set(stamps.STYLES))
        directives = set(re.findall(r"(%:?[\w%])", found["Patterns"].partition("Other dir")[0]))
        self.assertEqual(directives, {f"%{each}" for each in stamps._DIRECTIVES} | {"%:z"})
        self.assertIn(f"at most {stamps.MAX_STAMP} bytes", found["Syntax"])

    def test_limits(self) -> None:
        """Each limit has the value that the page says, and the page has all of the server's."""
        listed = {quoted(name)[0]: value for name, value, *_ in rows(page("limits"))}
        for name, value in listed.items():
            is_tuple = isinstance(constant(name), tuple)
            expected = constant(name) if is_tuple else (constant(name),)
            self.assertEqual(len(numbers(value)), len(expected), name)
            for stated, actual in zip(numbers(value), expected, strict=True):
                self.assertAlmostEqual(stated, actual, places=9, msg=name)
        self.assertEqual(limits() - NO_LIMITS - set(listed), set())

    def test_refusals(self) -> None:
        """The lines that refused clients get are those of the page."""
        lines = set()
        for connections in (Connections(Clock(), 1), Connections(Clock(), max_per_peer=1)):
            connections.add(TimestampEcho(), lambda: PEER)
            lines.add(refusal(connections.refusal(PEER)))
        found = sections(page("protocol"))["Refusals"]
        listed = {line for line in quoted(found) if line.startswith("tsecho: ")}
        self.assertEqual({f"{line[:-1]}1\n".encode() for line in listed}, lines)
        self.assertIn(f"beyond {MAX_REFUSALS} at a time", found)


class MetricsReferenceTests(SynchronousTestCase):
    """The page about `--status`."""

    def setUp(self) -> None:
        """Make the metrics of a service."""
        factory = TimestampEchoFactory(clock=Clock())
        self.metrics = Metrics(factory, [], list, Clock())
        self.rows = list(rows(page("metrics")))

    def test_metrics(self) -> None:
        """Every metric is there with its type, and no other."""
        text = self.metrics.text().decode()
        listed = {
            (quoted(name)[0], kind)
            for name, kind, *_ in self.rows
            if quoted(name)[0].startswith((PREFIX, "process_"))
        }
        self.assertEqual(listed, set(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text)))

    def test_labels(self) -> None:
        """The values of each label are listed, and no other."""
        found = sections(page("metrics"))
        for name, figure in self.metrics.figures().items():
            if isinstance(figure, dict) and figure:
                section = found[PREFIX + name]
                label, *values = re.findall(r"(?m)^``(\w+)`` ", section)
                self.assertEqual(sorted(values), sorted(figure), name)
                row = next(row for row in self.rows if quoted(row[0]) == [PREFIX + name])
                self.assertEqual(quoted(row[2]), [label])

    def test_buckets(self) -> None:
        """The buckets of the reactor's lag are stated."""
        name = f"{PREFIX}reactor_lag_seconds"
        row = next(row for row in self.rows if quoted(row[0]) == [name])
        stated = re.search(r"The buckets are (.*?) and \+Inf", row[3])
        self.assertEqual(stated and numbers(stated[1]), list(LAG_BUCKETS))

    def test_paths(self) -> None:
        """Every path of the site is there, with its method, and no other."""
        factory = TimestampEchoFactory(clock=Clock())
        site = StatusSite(self.metrics, lambda: True, Clock())
        add_page(site.resource, self.metrics.figures, factory, Clock())
        children: dict[bytes, Any] = site.resource.children
        actual = {("/" + name.decode(), child._methods[0]) for name, child in children.items()}
        listed = {
            (path, method)
            for paths, method, *_ in self.rows
            for path in quoted(paths)
            if path.startswith("/")
        }
        self.assertEqual(listed, actual)
