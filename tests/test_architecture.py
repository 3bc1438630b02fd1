"""Tests of the architecture: who may import whom, what is pure, and that each module has tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo

ROOT = "timestamp_echo"
PACKAGE = Path(timestamp_echo.__file__).parent
TESTS = Path(__file__).parent

COMMON = {"stamps", "framing", "addresses"}

PURE = COMMON | {
    *(f"ping.{name}" for name in ("bounds", "compare", "estimate", "probe", "stats")),
    *(f"ping.{name}" for name in ("roundtrips", "text", "table", "json", "prometheus")),
    "client.replies",
}
"""Modules that do no I/O and read no clock: they can be tested, and reused, by themselves."""

LAYERS: dict[str, set[str]] = {
    **{module: set() for module in COMMON},
    "clocks": COMMON,
    "transports": {"addresses"},  # no message and no stamp
    "server": COMMON | {"transports"},
    "client": COMMON | {"__init__", "clocks", "transports.arrivals"},
    "ping": COMMON | {"clocks", "transports.arrivals", "client"},
    "status": COMMON | {"server", "__init__"},
    "tap": COMMON | {"transports", "server", "status", "clocks", "__init__"},
    "__main__": {"client", "ping", "__init__"},
    "__init__": COMMON | {"transports", "server"},
}
"""What each package, or module outside of one, may import besides itself."""

PURE_LIBRARY = {
    *("__future__", "abc", "array", "bisect", "calendar", "collections", "dataclasses"),
    *("datetime", "enum", "functools", "heapq", "ipaddress", "itertools", "json", "math"),
    *("operator", "re", "statistics", "string", "textwrap", "time", "typing"),
}
"""What a pure module may import of the standard library. No part of it does I/O."""

IMPURE = {
    *("open", "input", "print", "__import__"),
    *(f"time.{name}" for name in ("time", "time_ns", "sleep", "monotonic", "monotonic_ns")),
    *(f"time.{name}" for name in ("perf_counter", "perf_counter_ns")),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
}
"""What it may not use, although it is at hand: I/O among the built-ins, clocks in the library."""

COMPOSING = {
    *("__init__", "__main__", "client.arguments", "client.command"),
    *("ping.arguments", "ping.command"),
}
"""Modules that only put others together: the tests of the commands, in `tests/system`, run them."""

Modules = dict[str, ast.Module]
"""Modules by their names within the package: `server.log`, `server.__init__`."""


def parsed() -> Modules:
    """All modules of the package."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }


def imported(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The full names that a module's code imports: of modules, and of what it takes from them."""
    package = f"{ROOT}.{module}".rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


@cache
def all_imported(module: str, tree: ast.Module) -> tuple[str, ...]:
    """The same of a whole module, wherever in its code it imports."""
    return tuple(imported(module, ast.walk(tree)))


def ours(module: str, modules: Modules) -> Iterator[str]:
    """The modules of this package that a module imports."""
    for full in all_imported(module, modules[module]):
        root, *path = full.split(".")
        if root != ROOT:
            continue
        if not path:  # `import timestamp_echo`: all public names are attributes of it
            yield from timestamp_echo._MODULES.values()
        path = timestamp_echo._MODULES.get(".".join(path), ".".join(path)).split(".")
        # A module, or a package, or a name in one of both.
        for end in (path, [*path, "__init__"], path[:-1], [*path[:-1], "__init__"]):
            if ".".join(filter(None, end)) in modules:
                yield ".".join(filter(None, end))
                break
        else:
            yield full


def layer(module: str) -> str:
    """The package that a module is in; or itself, if it is in none."""
    return module.split(".", maxsplit=1)[0]


def forbidden_imports(modules: Modules) -> list[str]:
    """Each import from a layer that is not below."""
    return [
        f"{module} imports {other}"
        for module in modules
        for other in ours(module, modules)
        if not {other, layer(other)} & {layer(module), *LAYERS[layer(module)]}
    ]


def impurities(modules: Modules) -> list[str]:
    """Each import or name with which a pure module could do I/O or read a clock."""
    found = []
    for module in sorted(PURE & set(modules)):
        for name in all_imported(module, modules[module]):
            if layer(name) not in PURE_LIBRARY | {ROOT} or name in IMPURE:
                found.append(f"{module} imports {name}")
        found += [f"{module} imports {o}" for o in ours(module, modules) if o not in PURE]
        for node in ast.walk(modules[module]):
            if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in IMPURE:
                found.append(f"{module} uses {ast.unparse(node)}")
    return found


def cycle(modules: Modules) -> list[str]:
    """Modules of which each imports the next, by any way, and the last the first; or none."""
    graph = {module: set(ours(module, modules)) for module in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The parts of a module that run when it is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from run_at_import(node)


def global_reactors(modules: Modules) -> list[str]:
    """Each import of the global reactor outside of a function."""
    return [
        module
        for module, tree in modules.items()
        for name in imported(module, run_at_import(tree))
        if f"{name}.".startswith("twisted.internet.reactor.")
    ]


def has_tests(module: str) -> bool:
    """Whether there is a test module for it: one that imports it, or one of processes."""
    *packages, name = module.split(".")
    if (TESTS / "system" / f"test_{name}.py").exists():
        return True
    mirrored = TESTS.joinpath(*packages, f"test_{name}.py")
    if not mirrored.exists():
        return False
    names = all_imported(name, ast.parse(mirrored.read_text()))
    return any(f"{other}.".startswith(f"{ROOT}.{module}.") for other in names)


MODULES = parsed()


class ArchitectureTests(SynchronousTestCase):
    """The modules of `timestamp_echo`."""

    def test_layers(self) -> None:
        """A package imports only from those below it; server and client never meet."""
        self.assertEqual(forbidden_imports(MODULES), [])

    def test_pure(self) -> None:
        """A pure module does no I/O and reads no clock, and imports none that does."""
        self.assertLessEqual(PURE, set(MODULES))
        self.assertEqual(impurities(MODULES), [])

    def test_no_cycle(self) -> None:
        """No module imports, by any way, one that imports it."""
        self.assertEqual(cycle(MODULES), [])

    def test_reactor_is_a_parameter(self) -> None:
        """No module imports the global reactor when it is imported itself."""
        self.assertEqual(global_reactors(MODULES), [])

    def test_each_module_has_tests(self) -> None:
        """The tests mirror the package; those that need real sockets are in `tests/system`."""
        for module in MODULES:
            if module not in COMPOSING and not module.endswith("__init__"):
                self.assertTrue(has_tests(module), module)

    def test_each_module_says_what_it_is_for(self) -> None:
        """Each module has a docstring."""
        for module, tree in MODULES.items():
            self.assertTrue(ast.get_docstring(tree), module)


class RuleTests(SynchronousTestCase):
    """The rules find what breaks them."""

    def planted(self, module: str, code: str) -> Modules:
        """The modules of the package with this code added to one of them."""
        tree = ast.parse(ast.unparse(MODULES[module]) + "\n" + code)
        return {**MODULES, module: tree}

    def test_forbidden_imports(self) -> None:
        """However it is written, an import across or up the layers is found."""
        for module, code, other in (
            ("server.log", "import timestamp_echo.client.errors", "client.errors"),
            ("server.log", "from timestamp_echo import client", "client.__init__"),
            ("server.log", "from timestamp_echo.client import errors", "client.errors"),
            ("server.log", "from timestamp_echo.client.errors import x", "client.errors"),
            ("server.log", "from ..client.errors import x", "client.errors"),
            ("server.log", "def f():\n from ..client import errors", "client.errors"),
            ("client.errors", "from timestamp_echo import TimestampEcho", "server.protocol"),
            ("client.errors", "import timestamp_echo as t", "server.protocol"),
            ("client.errors", "from timestamp_echo.ping import stats", "ping.stats"),
            ("transports.udp", "from timestamp_echo import stamps", "stamps"),
            ("stamps", "from timestamp_echo.framing import MAX_PENDING", "framing"),
            ("server.log", "from timestamp_echo.tap import makeService", "tap"),
        ):
            found = forbidden_imports(self.planted(module, code))
            self.assertIn(f"{module} imports {other}", found, code)

    def test_allowed_imports(self) -> None:
        """An import down the layers is not."""
        code = "from timestamp_echo import __version__, Stamp, clocks"
        self.assertEqual(forbidden_imports(self.planted("client.errors", code)), [])

    def test_impurities(self) -> None:
        """A pure module that could do I/O or read a clock is found."""
        for module, code, what in (
            ("stamps", "def f():\n import socket as s", "imports socket"),
            ("framing", "from twisted.internet import error", "imports twisted.internet.error"),
            ("ping.stats", "from timestamp_echo.clocks import x", "imports clocks"),
            ("ping.stats", "from . import plot", "imports ping.plot"),
            ("stamps", "from time import time_ns", "imports time.time_ns"),
            ("stamps", "def f(now=time.time_ns): pass", "uses time.time_ns"),
            ("stamps", "def f():\n return datetime.now()", "uses datetime.now"),
            ("addresses", "x = lambda: open('/etc/hosts')", "uses open"),
        ):
            self.assertEqual(impurities(self.planted(module, code)), [f"{module} {what}"])

    def test_cycle(self) -> None:
        """Modules that import each other are found, by whatever way."""
        code = "def f():\n from timestamp_echo.ping import scheduler"
        self.assertIn("ping.scheduler", cycle(self.planted("ping.text", code)))

    def test_global_reactors(self) -> None:
        """The global reactor is found wherever it is imported at once, and only there."""
        for code in (
            "from twisted.internet import reactor",
            "from twisted.internet import error, reactor as r",
            "import twisted.internet.reactor",
            "try:\n from twisted.internet.reactor import callLater\nfinally: pass",
            "class A:\n from twisted.internet import reactor",
        ):
            self.assertEqual(global_reactors(self.planted("server.log", code)), ["server.log"])
        code = "def f():\n from twisted.internet import reactor"
        self.assertEqual(global_reactors(self.planted("server.log", code)), [])

    def test_missing_tests(self) -> None:
        """A module without a test module is found."""
        self.assertFalse(has_tests("server.no_such_module"))
        self.assertFalse(has_tests("client.stamps"))


class PrivateTwistedNamesTests(SynchronousTestCase):
    """The private names of Twisted, as `docs/explanation/architecture.rst` lists them."""

    def test_each_listed_and_used_once(self) -> None:
        """Each is used in one module, the one that the page names.

        Private names in camelCase are Twisted's: this package's own are in snake_case.
        """
        page = TESTS.parent / "docs" / "explanation" / "architecture.rst"
        listed = set(re.findall(r"^``(_\w+)`` +``([\w.]+)``", page.read_text(), re.MULTILINE))
        used = {
            (name, module)
            for module, tree in MODULES.items()
            for node in ast.walk(tree)
            for name in (getattr(node, field, None) for field in ("attr", "id", "name"))
            if isinstance(name, str) and (re.match("_[a-z]+[A-Z]", name) or name in dict(listed))
        }
        self.assertEqual(used, listed)
        self.assertEqual(len(dict(listed)), len(listed))
