"""`xfer schema`: the recipe's JSON Schema, for editors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from xfer.errors import UsageError
from xfer.recipe.json_schema import write_schema


@click.command("schema")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there instead of to stdout.")
def command(output: Path | None) -> None:
    """Write the recipe's JSON Schema, for editors.

    With the YAML language server, put this line on top of a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    text = json.dumps(write_schema(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UsageError(f"can't write {output.absolute()}: {(error.strerror or str(error)).lower()}") from error
    click.echo(str(output))
