"""`xfer fetch`: all downloads of a recipe, ahead of time."""

from __future__ import annotations

from pathlib import Path

import click

from xfer.compile.compiler import compile_plan
from xfer.recipe.loader import read
from xfer.sources.fetching import download


@click.command("fetch")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Download what RECIPE needs, so that `xfer run` needs no network."""
    plan = compile_plan(read(recipe, overrides))
    file = download(plan.source.weights, say=lambda text: click.echo(text, err=True))
    click.echo(str(file) if file else "nothing to fetch: the source's weights are drawn at random")
