"""YAML from bytes to nodes: what is read as a number or a boolean, and syntax faults in the words of a person."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from xfer.errors import Fault

MAX_BYTES = 1_000_000
MAX_DEPTH = 40

TAG = "tag:yaml.org,2002:"
_FRIENDLY = {
    "mapping values are not allowed here": "a ':' is not allowed here; a value that holds ': ' needs quotes",
    "could not find expected ':'": "a key without ':' after it",
    "found unexpected end of stream": "a quote is opened and never closed",
    "found character '\\t' that cannot start any token": "a tab; indent with spaces",
    "but found another document": "a second document begins here; a recipe is one",
}
_AT_CONTEXT = ("could not find expected ':'", "found unexpected end of stream")  # PyYAML's mark is where it gave up, further down


class Loader(yaml.SafeLoader):
    """Composes nodes with our own reading of plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


Loader.add_implicit_resolver(
    TAG + "bool", re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"), list("yYnNtTfFoO")
)
Loader.add_implicit_resolver(TAG + "int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    TAG + "float",
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
Loader.add_implicit_resolver(TAG + "null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver(TAG + "merge", re.compile(r"<<$"), ["<"])


def read_text(path: Path, name: str) -> tuple[str | None, Fault | None]:
    """The text of a recipe file, or the fault that says why there is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None, Fault(name, None, None, "", f"no such file: {path.absolute()}")
    except IsADirectoryError:
        return None, Fault(name, None, None, "", f"a folder, not a recipe: {path.absolute()}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return None, Fault(name, None, None, "", f"can't be read: {(reason or str(error)).lower()}")
    if len(content) > MAX_BYTES:
        return None, Fault(name, None, None, "", f"larger than {MAX_BYTES:,} bytes: not a recipe")
    try:
        return content.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        return None, Fault(name, line, column, "", f"not UTF-8 text: byte 0x{content[error.start]:02x}; save the file as UTF-8")


def plain_tag(text: str) -> str:
    """The tag that YAML gives a plain scalar."""
    resolve: Any = Loader("").resolve
    return str(resolve(yaml.ScalarNode, text, (True, False)))


def compose(text: str, say: Callable[[int, int, str], None]) -> yaml.Node | None:
    """The node tree, or None after `say(line, column, message)`."""
    try:
        loader = Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        say(
            before.count("\n") + 1,
            error.position - (before.rfind("\n") + 1) + 1,
            f"not valid YAML: the character {chr(error.character)!r} is not allowed",
        )
    except yaml.MarkedYAMLError as error:
        mark = (error.context_mark if error.problem in _AT_CONTEXT else None) or error.problem_mark or error.context_mark
        say(mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, f"not valid YAML: {_friendly(error)}")
    except RecursionError:
        say(1, 1, f"nested deeper than {MAX_DEPTH} levels")
    return None


def _friendly(error: yaml.MarkedYAMLError) -> str:
    problem, context = error.problem or "can't be parsed", error.context or ""
    found = re.search(r"found '?(?:undefined alias '|character ')?([^ ']+)'", problem)
    if problem in _FRIENDLY:
        return _FRIENDLY[problem]
    if problem.startswith("found undefined alias") and found:
        return f"'*{found[1]}' names no '&{found[1]}' above it; a value that begins with '*' needs quotes"
    if context.startswith(("while scanning an alias", "while scanning an anchor")):
        return f"a value that begins with '{'*' if 'alias' in context else '&'}' needs quotes"
    if "cannot start any token" in problem and found:
        return f"a value that begins with '{found[1]}' needs quotes"
    if problem == "expected <block end>, but found ':'":
        return "a key is missing before ':'"
    if problem.startswith("expected <block end>"):
        return "the indentation does not fit the lines above"
    if "<stream end>" in problem:
        return "a '[' or '{' is opened and never closed"
    if "flow sequence" in context or "flow mapping" in context:
        opened = "[" if "sequence" in context else "{"
        line = error.context_mark.line + 1 if error.context_mark else 1
        return f"the '{opened}' opened on line {line} is not closed, or a comma is missing"
    if problem.startswith("expected the node content") and found:
        return f"a value is expected before '{found[1]}'; one that begins with it needs quotes"
    return problem
