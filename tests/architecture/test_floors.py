"""Imports point down: a file imports only from the floors above its own in this list, and nothing imports in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter

FLOORS = [
    "errors",
    "plugins",
    "ops",
    "recipe",
    "plan",
    "data",
    "sources",
    "freezes",
    "methods",
    "backends",
    "compile",
    "engine",
    "sweep",
    "cluster",
    "report",
    "cli",
]
# The recipe is what a person wrote, the plan what was decided: only the compiler knows both.
STRANGERS = {("recipe", "plan"), ("plan", "recipe")}


def own(module: str) -> bool:
    return module == "xfer" or module.startswith("xfer.")


def test_every_file_has_a_floor(sources):
    assert [source.shown for source in sources if source.floor and source.floor not in FLOORS] == []


def test_a_file_imports_only_from_above(sources, modules):
    wrong = []
    for source in sources:
        for imported in source.imports(modules):
            if not own(imported.module) or not source.floor:
                continue
            floor = imported.module.split(".")[1] if "." in imported.module else ""
            down = not floor or floor not in FLOORS or FLOORS.index(floor) > FLOORS.index(source.floor)
            if down or (source.floor, floor) in STRANGERS:
                wrong.append(f"{source.shown}:{imported.line} imports {imported.module}")
    assert wrong == []


def test_an_imported_module_of_ours_exists(sources, modules):
    wrong = [
        f"{source.shown}:{imported.line} imports {imported.module}"
        for source in sources
        for imported in source.imports(modules)
        if own(imported.module) and imported.module not in modules
    ]
    assert wrong == []


def test_no_import_of_ours_hides_in_a_function(sources, modules):
    wrong = [
        f"{source.shown}:{imported.line} imports {imported.module} in a function"
        for source in sources
        for imported in source.imports(modules)
        if own(imported.module) and (imported.in_function or imported.for_types_only)
    ]
    assert wrong == []


def test_no_circle(sources, modules):
    graph = {source.module: {i.module for i in source.imports(modules) if own(i.module)} - {source.module} for source in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise AssertionError(f"modules import each other in a circle: {circle}") from None


def test_modules_are_named_at_run_time_in_two_places_only(sources):
    """`import_module("xfer…")` would be a way round the floors; only the verbs and the plugins are found by name."""
    allowed = {"runner/xfer/plugins.py", "runner/xfer/cli/main.py"}
    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"import_module", "__import__"}:
                asked = ast.unparse(node.args[0]) if node.args else ""
                if source.shown not in allowed and "xfer" in asked:
                    wrong.append(f"{source.shown}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []
