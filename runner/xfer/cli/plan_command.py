"""`xfer plan`: what a recipe will do, before anything is paid for."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from xfer.compile.compiler import compile_plan
from xfer.recipe.loader import read
from xfer.report.terminal import show_plan


@click.command("plan")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the Plan itself as JSON.")
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what RECIPE will do, without training."""
    plan = compile_plan(read(recipe, overrides))
    if as_json:
        click.echo(plan.model_dump_json(indent=1))
    else:
        Console(highlight=False).print(show_plan(plan))
