"""Tests of the architecture: who may import whom, what is pure, and that each module has tests."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo

PACKAGE = Path(timestamp_echo.__file__).parent
TESTS = Path(__file__).parent

PURE = {
    *("stamps", "framing", "addresses"),
    *(f"ping.{name}" for name in ("bounds", "estimate", "probe", "roundtrips", "stats")),
    *(f"ping.{name}" for name in ("text", "json")),
}
"""Modules that import the standard library and each other alone: no Twisted, no socket."""

LAYERS: dict[str, set[str]] = {
    "transports": set(),
    "server": {"transports"},
    "client": {"__init__", "clocks", "transports.arrivals"},
    "ping": {"clocks", "transports.arrivals", "client"},
    "clocks": set(),
    "tap": {"transports", "server", "clocks", "__init__"},
    "__main__": {"client", "ping", "__init__"},
    "__init__": {"transports", "server"},
}
"""What each package, or module outside of one, may import besides itself and what is pure."""

COMPOSING = {"__init__", "__main__", "client.arguments", "client.command", "ping.command"}
"""Modules that only put others together: the tests of the commands, in `tests/system`, run them."""


def parsed() -> dict[str, ast.Module]:
    """All modules by their names within the package: `server.log`, `server.__init__`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }


MODULES = parsed()


def imported(tree: ast.AST) -> set[str]:
    """The full names of all modules that the code imports, wherever it does so."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                names.add(full if full.removeprefix("timestamp_echo.") in MODULES else module)
    return names


def ours(tree: ast.AST) -> Iterator[str]:
    """The modules of this package that the code imports."""
    for name in imported(tree):
        if name.split(".")[0] == "timestamp_echo":
            short = name.removeprefix("timestamp_echo").removeprefix(".")
            yield short if short in MODULES else f"{short}.__init__".removeprefix(".")


def layer(module: str) -> str:
    """The package that a module is in; or itself, if it is in none."""
    return module.split(".", maxsplit=1)[0]


class ArchitectureTests(SynchronousTestCase):
    """The imports of `timestamp_echo`."""

    def test_layers(self) -> None:
        """A package imports only those below it; server and client never meet."""
        for module, tree in MODULES.items():
            if module in PURE:
                continue
            allowed = {layer(module), *LAYERS[layer(module)]} | PURE
            for other in ours(tree):
                self.assertTrue({other, layer(other)} & allowed, f"{module} imports {other}")

    def test_pure(self) -> None:
        """A pure module imports other pure ones and the standard library, but no I/O of it."""
        io = {"socket", "select", "asyncio", "subprocess", "ctypes"}
        allowed = (sys.stdlib_module_names - io) | {f"timestamp_echo.{pure}" for pure in PURE}
        for module in PURE:
            self.assertLessEqual(imported(MODULES[module]), allowed, module)

    def test_no_cycle(self) -> None:
        """No module imports, by any way, one that imports it."""
        graph = {module: set(ours(tree)) for module, tree in MODULES.items()}
        self.assertEqual(len([*TopologicalSorter(graph).static_order()]), len(MODULES))

    def test_reactor_is_a_parameter(self) -> None:
        """No module imports the global reactor when it is imported itself."""
        for module, tree in MODULES.items():
            for node in tree.body:
                if isinstance(node, ast.ImportFrom):
                    self.assertNotIn("reactor", {alias.name for alias in node.names}, module)

    def test_each_module_has_tests(self) -> None:
        """The tests mirror the package; those that need real sockets are in `tests/system`."""
        for module in MODULES:
            if module in COMPOSING or module.endswith("__init__"):
                continue
            *packages, name = module.split(".")
            mirrored = TESTS.joinpath(*packages, f"test_{name}.py")
            system = TESTS / "system" / f"test_{name}.py"
            self.assertTrue(mirrored.exists() or system.exists(), module)

    def test_each_module_says_what_it_is_for(self) -> None:
        """Each module has a docstring."""
        for module, tree in MODULES.items():
            self.assertTrue(ast.get_docstring(tree), module)


class PrivateTwistedNamesTests(SynchronousTestCase):
    """The private names of Twisted, as `docs/architecture.rst` lists them."""

    def test_each_listed_and_used_once(self) -> None:
        """Each is used in one module, the one that the page names.

        Private names in camelCase are Twisted's: this package's own are in snake_case.
        """
        page = TESTS.parent / "docs" / "architecture.rst"
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
