"""Tests of the house itself: which room may know which, and that each has its tests."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import timestamp_echo

HOUSE = Path(timestamp_echo.__file__).parent

MAY_IMPORT = {
    "__init__": "",
    "stamps": "",
    "framing": "",
    "journal": "",
    "tls": "proxy",
    "proxy": "",
    "limits": "",
    "arrivals": "",
    "batch": "arrivals",
    "transport": "arrivals batch tls proxy",
    "mmsg": "arrivals",
    "datagram": "stamps limits mmsg",
    "parting": "",
    "protocol": "stamps framing journal limits parting proxy",
    "service": "journal limits",
    "tap": "__init__ stamps framing limits protocol mmsg datagram transport service",
    "__main__": "client.command",
    "client.__init__": "",
    "client.report": "",
    "client.address": "",
    "client.session": "client.address",
    "client.datagram": "client.address client.session",
    "client.stdio": "client.session",
    "client.bounds": "stamps",
    "client.estimate": "stamps client.bounds",
    "client.probe": "stamps",
    "client.roundtrips": "",
    "client.clocks": "arrivals stamps",
    "client.outcome": "stamps client.estimate client.probe client.roundtrips",
    "client.path": "arrivals client.datagram client.session",
    "client.ping": "stamps client.bounds client.clocks client.outcome client.path client.probe"
    " client.telling",
    "client.telling": "stamps client.estimate client.outcome client.roundtrips",
    "client.record": "client.outcome client.roundtrips",
    "client.show": "client.clocks client.outcome client.record client.telling",
    "client.plot": "stamps client.outcome",
    "client.arguments": "client.address client.report",
    "client.ping_command": "stamps client.address client.arguments client.clocks client.path"
    " client.ping client.plot client.probe client.report client.show",
    "client.command": "__init__ client.address client.session client.datagram client.stdio"
    " client.report client.arguments client.ping_command",
}
"""Each room, with the rooms of this house that it may know: none of them is above it."""

PURE = {
    "stamps",
    "framing",
    "client.bounds",
    "client.estimate",
    "client.probe",
    "client.roundtrips",
    "client.outcome",
    "client.telling",
    "client.record",
}
"""Rooms that know but the standard library and each other, and no socket and no reactor."""


def modules() -> dict[str, ast.Module]:
    """The rooms by their names, parsed."""
    return {
        ".".join(path.relative_to(HOUSE).with_suffix("").parts): ast.parse(path.read_text())
        for path in HOUSE.rglob("*.py")
    }


def imported(tree: ast.AST) -> set[str]:
    """All modules that the code imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            parts = {f"{module}.{alias.name}" for alias in node.names}
            ours = {part for part in parts if part.removeprefix("timestamp_echo.") in MAY_IMPORT}
            names |= ours or {module}
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def at_module_level(tree: ast.Module) -> set[str]:
    """The names that the module has when it has been imported."""
    return {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


class HouseTests(SynchronousTestCase):
    """The imports of `timestamp_echo`."""

    def test_every_room_known(self) -> None:
        """A new room has to say what it may know."""
        self.assertEqual(set(modules()), set(MAY_IMPORT))

    def test_imports(self) -> None:
        """No room imports more of the house than it may."""
        for room, tree in modules().items():
            ours = {
                name.removeprefix("timestamp_echo").removeprefix(".") or "__init__"
                for name in imported(tree)
                if name.split(".")[0] == "timestamp_echo"
            }
            self.assertLessEqual(ours, set(MAY_IMPORT[room].split()), room)

    def test_no_circles(self) -> None:
        """None is above another that is above it."""
        below: set[str] = set()
        rooms = dict(MAY_IMPORT)
        while rooms:
            lowest = {room for room, known in rooms.items() if set(known.split()) <= below}
            self.assertTrue(lowest, rooms)
            below |= lowest
            rooms = {room: known for room, known in rooms.items() if room not in lowest}

    def test_pure(self) -> None:
        """The lowest rooms know no Twisted and no socket."""
        trees = modules()
        for room in PURE:
            others = imported(trees[room]) - {f"timestamp_echo.{pure}" for pure in PURE}
            names = {name.split(".")[0] for name in others}
            self.assertLessEqual(names, sys.stdlib_module_names - {"socket", "select", "asyncio"})

    def test_reactor_is_a_parameter(self) -> None:
        """No room takes the global reactor when it is imported."""
        for room, tree in modules().items():
            self.assertNotIn("reactor", at_module_level(tree), room)

    def test_every_room_has_tests(self) -> None:
        """Each room has a module of tests."""
        tests = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
        by_processes = {
            "__init__",
            "__main__",
            "client.__init__",
            "client.command",
            "client.arguments",
        }
        for room in set(MAY_IMPORT) - by_processes:
            self.assertIn("test_" + room.replace(".", "_"), tests)

    def test_docstrings(self) -> None:
        """Each room says what it is for."""
        for room, tree in modules().items():
            self.assertTrue(ast.get_docstring(tree), room)
