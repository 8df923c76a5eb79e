"""`xfer list`: what a recipe may name, and what there is on this machine."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xfer import plugins
from xfer.errors import XferError

KINDS = ("models", "datasets", "methods", "freezes", "sources", "backends", "recipes", "runs")
Entry = dict[str, Any]


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", required=False, metavar="[FILTER]")
@click.option("--json", "as_json", is_flag=True, help="Print a list as JSON on stdout.")
def command(kind: str, pattern: str | None, as_json: bool) -> None:
    """List KIND; FILTER is part of a name, or a glob such as 'torchvision/resnet*'."""
    entries = [entry for entry in find(kind) if pattern is None or matches(str(entry["name"]), pattern)]
    if as_json:
        click.echo(json.dumps(entries, indent=1))
        return
    width = max((len(str(entry["name"])) for entry in entries), default=0)
    for entry in entries:
        rest = "  ".join(str(value) for key, value in entry.items() if key != "name" and value is not None)
        click.echo(f"{entry['name']:<{width}}  {rest}".rstrip())
    if not entries:
        click.echo(f"no {kind} here" + (f" match '{pattern}'" if pattern else ""), err=True)


def matches(name: str, pattern: str) -> bool:
    """A glob, or a part of the name.

    >>> matches("torchvision/resnet18", "resnet"), matches("torchvision/resnet18", "*net50")
    (True, False)
    """
    return fnmatch.fnmatch(name, pattern) if any(character in pattern for character in "*?[") else pattern in name


def find(kind: str) -> list[Entry]:
    """What there is of a kind, each with its `name`."""
    finders: dict[str, Callable[[], list[Entry]]] = {"models": _models, "recipes": _recipes, "runs": _runs}
    return finders[kind]() if kind in finders else _plugins(kind)


def _plugins(kind: str) -> list[Entry]:
    return [{"name": plugin.name, "target": plugin.target, "from": plugin.distribution} for plugin in plugins.registered(kind).values()]


def _models() -> list[Entry]:
    found: list[Entry] = []
    for provider, plugin in plugins.registered("sources").items():
        try:
            found += [{"name": f"{provider}/{name}"} for name in plugins.load(plugin.target)().models()]
        except XferError as error:
            click.echo(f"{provider}: {error.message}" + (f"; {error.hint}" if error.hint else ""), err=True)
    return found


def _recipes() -> list[Entry]:
    """Recipes below recipes/, with the first sentence of their opening comment."""
    found = []
    for path in sorted(Path("recipes").rglob("*.yaml")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        opening = " ".join(line.lstrip("# ").strip() for line in lines[:3] if line.startswith("#"))
        found.append({"name": path.as_posix(), "about": opening.removeprefix("What it does: ").split(". ")[0]})
    return found


def _runs() -> list[Entry]:
    """Bundles below runs/ (or $XFER_RUNS), newest first."""
    found = []
    for path in sorted(Path(os.environ.get("XFER_RUNS", "runs")).glob("*/*/result.json"), key=lambda path: path.parent.name, reverse=True):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            result = None
        if not isinstance(result, dict):
            found.append({"name": path.parent.as_posix(), "status": "unreadable result.json", "test_accuracy": None})
            continue
        accuracy = result.get("metrics", {}).get("test", {}).get("accuracy")
        shown = None if accuracy is None else round(accuracy, 4)
        found.append({"name": path.parent.as_posix(), "status": result.get("status"), "test_accuracy": shown})
    return found
