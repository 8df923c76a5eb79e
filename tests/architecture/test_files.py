"""What a file may look like: its size, its name, and what it may catch."""

from __future__ import annotations

import ast

MOST_LINES_A_FILE = 400
MOST_LINES_A_FUNCTION = 60
SAYS_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


def test_no_file_is_long(sources):
    sizes = {source.shown: len(source.text.splitlines()) for source in sources}
    assert {name: lines for name, lines in sizes.items() if lines > MOST_LINES_A_FILE} == {}


def test_no_function_is_long(sources):
    long = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                lines = (node.end_lineno or first) - first + 1
                if lines > MOST_LINES_A_FUNCTION:
                    long[f"{source.shown}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_every_name_says_something(sources):
    wrong = [source.shown for source in sources if SAYS_NOTHING & set("_".join(source.module.split(".")).lower().split("_"))]
    assert wrong == []


def test_package_files_below_the_top_are_empty(sources):
    packages = [source for source in sources if source.path.name == "__init__.py"]
    assert len(packages) > 1
    assert [source.shown for source in packages if source.floor and source.text.strip()] == []


def test_every_folder_is_a_package(sources):
    folders = {source.path.parent for source in sources}
    assert [folder.as_posix() for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_nothing_catches_everything(sources):
    """`except Exception` and a bare `except` hide faults; BaseException may be caught to clean up, if it is raised again."""
    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = set() if node.type is None else {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if node.type is None or "Exception" in caught or ("BaseException" in caught and not raises_again):
                wrong.append(f"{source.shown}:{node.lineno}")
    assert wrong == []


def test_annotations_are_not_evaluated(sources):
    wrong = [s.shown for s in sources if s.text.strip() and "from __future__ import annotations" not in s.text]
    assert wrong == []
