"""`xfer check`: every fault of one or more recipes, without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xfer.compile.compiler import examine
from xfer.errors import EXIT_USAGE, Fault
from xfer.recipe.loader import read
from xfer.report.terminal import download_line


@click.command("check")
@click.argument("files", nargs=-1, required=True, metavar="FILE... [KEY=VALUE]...")
@click.option("--shallow", is_flag=True, help="Only what needs no model and no data: for editors and pre-commit.")
@click.option("--no-data", is_flag=True, help="Don't look whether data and weight files are there.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of faults as JSON on stdout.")
def command(files: tuple[str, ...], shallow: bool, no_data: bool, as_json: bool) -> int:
    """Check FILEs (with overrides, if any) and report all faults at once.

    What a recipe needs and this machine has not is named on stderr, with where it will be downloaded from; it is no fault, and nothing
    is downloaded.
    """
    recipes = [name for name in files if "=" not in name or Path(name).exists()]
    overrides = [name for name in files if name not in recipes]
    if not recipes:
        raise click.UsageError("give at least one recipe file")
    faults: list[Fault] = []
    for name in recipes:
        found = examine(read(name, overrides), depth="shallow" if shallow else "model", data=not (no_data or shallow))
        faults += found.faults
        for download in found.downloads:
            click.echo(f"{name}: {download_line(download)}", err=True)
    if as_json:
        click.echo(json.dumps([fault.as_dict() for fault in faults], indent=1))
    else:
        for fault in faults:
            click.echo(str(fault), err=True)
        if not faults:
            click.echo(f"{len(recipes)} recipe{'s' if len(recipes) > 1 else ''} checked, no fault", err=True)
    return EXIT_USAGE if faults else 0
