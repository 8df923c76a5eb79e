"""`xfer fetch`: all downloads of a recipe, ahead of time."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xfer.cli.conventions import json_option
from xfer.compile.compiler import compile_plan
from xfer.engine.downloads import fetch
from xfer.recipe.loader import read


@click.command("fetch")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Download what RECIPE needs, images and weights, so that `xfer run` needs no network."""
    plan = compile_plan(read(recipe, overrides))
    files = fetch(plan, say=lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps({"files": [str(file) for file in files]}, indent=1))
        return
    for file in files:
        click.echo(str(file))
    if not files:
        click.echo("nothing to fetch: the source's weights are drawn at random")
