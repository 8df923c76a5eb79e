"""`xfer cache`: look at the feature store, or clear it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click
from rich.table import Table

from xfer.cli.conventions import json_option, print_table
from xfer.data.cache import Removal, StoreEntry, cache_entries, prune, remove
from xfer.data.store_faults import size_text
from xfer.errors import StoreError, UsageError
from xfer.recipe.quantities import parse_bytes, parse_seconds

Amount = TypeVar("Amount", int, float)
SHOWN_DIGITS = 12  # of the key; `rm` takes as few as tell it from the others

cache_option = click.option(
    "--cache",
    "root",
    type=click.Path(path_type=Path),
    default="~/.cache/xfer",
    envvar="XFER_CACHE",
    show_default=True,
    show_envvar=True,
    help="The cache folder.",
)


@click.group("cache")
def command() -> None:
    """Look at the feature store, or clear it."""


@command.command("ls")
@cache_option
@json_option
def list_stores(root: Path, as_json: bool) -> None:
    """List the stores, the one used last first."""
    root = root.expanduser().absolute()
    entries = cache_entries(root)
    if as_json:
        click.echo(json.dumps({"cache": str(root), "stores": [entry.as_dict() for entry in entries]}, indent=1))
    elif entries:
        print_table(table(entries, time.time()))
        click.echo(f"{counted(len(entries))}, {size_text(sum(entry.bytes for entry in entries))} in {root}", err=True)
    else:
        click.echo(f"no store in {root}", err=True)


@command.command("rm")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@cache_option
@json_option
def remove_stores(keys: tuple[str, ...], root: Path, as_json: bool) -> None:
    """Remove the stores whose keys begin with KEY."""
    outcome = remove(root.expanduser().absolute(), keys)
    tell(outcome, as_json)
    if outcome.in_use:
        raise StoreError(f"in use by a live process, left alone: {', '.join(entry.digest for entry in outcome.in_use)}")


@command.command("prune")
@click.option("--older-than", metavar="AGE", help="Remove what was not used for so long: 12h, 30d.")
@click.option("--max-size", metavar="SIZE", help="Remove, oldest first, until no more than this is left: 20GB.")
@cache_option
@json_option
def prune_stores(older_than: str | None, max_size: str | None, root: Path, as_json: bool) -> None:
    """Remove old stores; never one that a live process uses."""
    if older_than is None and max_size is None:
        raise UsageError("say what to remove: --older-than AGE, --max-size SIZE, or both")
    outcome = prune(
        root.expanduser().absolute(),
        older_than_seconds=quantity("--older-than", older_than, parse_seconds),
        max_bytes=quantity("--max-size", max_size, parse_bytes),
    )
    tell(outcome, as_json)


def quantity(option: str, text: str | None, parse: Callable[[str], Amount]) -> Amount | None:
    """What the option's text means; raises UsageError."""
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error


def tell(outcome: Removal, as_json: bool) -> None:
    """What was removed, and what was left because it is in use."""
    if as_json:
        removed, in_use = ([entry.digest for entry in entries] for entries in (outcome.removed, outcome.in_use))
        click.echo(json.dumps({"removed": removed, "in_use": in_use, "bytes": outcome.bytes}, indent=1))
        return
    for entry in outcome.removed:
        click.echo(f"removed {entry.digest} ({entry.label('model')}, {entry.label('cut')}, {size_text(entry.bytes)})")
    for entry in outcome.in_use:
        click.echo(f"left {entry.digest}: in use", err=True)
    click.echo(f"{counted(len(outcome.removed))} removed, {size_text(outcome.bytes)} freed", err=True)


def counted(n_stores: int) -> str:
    return "1 store" if n_stores == 1 else f"{n_stores} stores"


def table(entries: Sequence[StoreEntry], now: float) -> Table:
    """One line a store."""
    found = Table(box=None, pad_edge=False)
    for name in ("key", "model", "cut", "rows", "size", "last used", "state"):
        found.add_column(name, justify="right" if name in ("rows", "size") else "left", no_wrap=True)
    for entry in entries:
        rows = f"{entry.present}/{entry.rows}" if entry.spec else "?"
        found.add_row(
            entry.digest[:SHOWN_DIGITS],
            entry.label("model"),
            entry.label("cut"),
            rows,
            size_text(entry.bytes),
            age_text(now - entry.last_used),
            state(entry),
        )
    return found


def state(entry: StoreEntry) -> str:
    """'complete', 'partial' or 'damaged', and what else is worth knowing."""
    words = ["damaged" if entry.spec is None else "complete" if entry.complete else "partial"]
    if entry.bad:
        words.append(f"{entry.bad} bad")
    if entry.in_use:
        words.append("in use")
    return ", ".join(words)


def age_text(seconds: float) -> str:
    """How long ago, in the largest unit that fits.

    >>> age_text(5), age_text(7300), age_text(400000)
    ('just now', '2 h ago', '4 d ago')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"
