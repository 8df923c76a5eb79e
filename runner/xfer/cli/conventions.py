"""What several commands share: options, where runs go, and tables on a console."""

from __future__ import annotations

import json
import os
import secrets
from datetime import datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 200  # of a table that no terminal shows

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def print_table(table: Table) -> None:
    Console(highlight=False, width=None if Console().is_terminal else PIPE_WIDTH).print(table)


def runs_folder() -> Path:
    """Where bundles go that nobody names a place for."""
    return Path(os.environ.get("XFER_RUNS", "runs"))


def run_id() -> str:
    """Sortable by time, unique among runs that start in the same second."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def in_the_recipe(**spread: object) -> tuple[str, ...]:
    """Overrides that say what options said of the recipe's `cluster:`; None says nothing. An override's value is YAML, to which the
    bracket before an IPv6 address would mean a list.

    >>> in_the_recipe(workers=2, storage=None, address="[::1]:6379")
    ('cluster.workers=2', 'cluster.address="[::1]:6379"')
    """
    said = {name: json.dumps(value) if str(value).startswith("[") else value for name, value in spread.items()}
    return tuple(f"cluster.{name}={value}" for name, value in said.items() if value is not None)
