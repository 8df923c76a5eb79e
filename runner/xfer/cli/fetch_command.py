"""`xfer fetch`: all downloads of a recipe, ahead of time."""

from __future__ import annotations

from pathlib import Path

import click

from xfer.compile.compiler import compile_plan
from xfer.engine.downloads import fetch
from xfer.recipe.loader import read


@click.command("fetch")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Download what RECIPE needs, images and weights, so that `xfer run` needs no network."""
    plan = compile_plan(read(recipe, overrides))
    files = fetch(plan, say=lambda text: click.echo(text, err=True))
    for file in files:
        click.echo(str(file))
    if not files:
        click.echo("nothing to fetch: the source's weights are drawn at random")
