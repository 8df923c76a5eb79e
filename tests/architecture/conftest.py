"""The package's files as syntax trees, for the tests that look at how it is built."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "runner" / "xfer"


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and whether a function holds it."""

    module: str
    line: int
    in_function: bool
    for_types_only: bool


@dataclass(frozen=True)
class SourceFile:
    """One file of the package. `module` is its dotted name, `floor` the part right below `xfer`."""

    path: Path
    module: str
    text: str
    tree: ast.Module

    @property
    def floor(self) -> str:
        return self.module.split(".")[1] if "." in self.module else ""

    @property
    def shown(self) -> str:
        return self.path.relative_to(PACKAGE.parents[1]).as_posix()

    def imports(self, modules: set[str]) -> list[Import]:
        """Everything that it imports. `from xfer.data import store` is `xfer.data.store` where that is one of `modules`."""
        found: list[Import] = []

        def add(node: ast.AST, in_function: bool, for_types: bool) -> None:
            if isinstance(node, ast.Import):
                found.extend(Import(alias.name, node.lineno, in_function, for_types) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self.absolute(node)
                names = {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names}
                found.extend(Import(name, node.lineno, in_function, for_types) for name in sorted(names))
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            for child in ast.iter_child_nodes(node):
                add(child, inside, typing_only)

        add(self.tree, False, False)
        return found

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a `from … import` names, dots resolved."""
        if not node.level:
            return node.module or ""
        parts = self.module.split(".")
        package = parts if self.path.name == "__init__.py" else parts[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)


def dotted(path: Path) -> str:
    parts = ["xfer", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="session")
def sources() -> list[SourceFile]:
    """Every Python file of the package, sorted by path."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no Python file under {PACKAGE}"
    texts = [(path, path.read_text(encoding="utf-8")) for path in files]
    return [SourceFile(path, dotted(path), text, ast.parse(text, str(path))) for path, text in texts]


@pytest.fixture(scope="session")
def modules(sources: list[SourceFile]) -> set[str]:
    return {source.module for source in sources}


@pytest.fixture(scope="session")
def repository() -> Path:
    return PACKAGE.parents[1]
