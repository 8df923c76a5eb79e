"""`xfer eval`: a bundle's model against labels."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xfer.cli.progress import Terminal
from xfer.engine.bundle import Bundle
from xfer.engine.evaluate import evaluate


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["val", "test"]), default="test", show_default=True, help="Which split of the bundle's own data."
)
@click.option("--data", help="A folder of class folders to evaluate on instead.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON on stdout.")
def command(bundle: Path, split: str, data: str | None, quiet: bool, as_json: bool) -> None:
    """Evaluate BUNDLE's model; opening test labels is recorded in the bundle's ledger."""
    if data is not None:
        split = "test"
    found = evaluate(Bundle(bundle.absolute()), data=data, split=split, reporter=Terminal(quiet=quiet or as_json))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"{found['images']} images of {found['data'] or 'the ' + split + ' split'}, {found['quarantined']} quarantined")
    for name in ("accuracy", "macro_f1", "ece", "loss"):
        low, high = found["metrics"]["interval"][name]
        click.echo(f"  {name:<9} {found['metrics'][name]:.4f}  95 % interval {low:.4f} to {high:.4f}")
