"""`xfer parity`: the same recipe on PyTorch and TensorFlow, and where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xfer.cli.conventions import json_option, run_id, runs_folder
from xfer.cli.progress import Terminal
from xfer.engine.parity import LOSS, POINTS, Check, Document, run
from xfer.errors import EXIT_DONE, EXIT_FAILED, RecipeError
from xfer.recipe.loader import read

TUNED = (
    "The source was trained too: from the first step on the smallest differences grow, so losses and metrics are reported and not judged."
)
STYLES = {"within": "green", "differs": "red", "reported": "dim"}


@click.command("parity")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of both runs (default: runs/<name>/parity-<id>).")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> int:
    """Run RECIPE on both backends with the same weights, data, order and head, and say where they differ.

    Both runs compute in float32 and are ordinary runs, with bundles of their own. Exit code 0 where all that is judged lies within its
    tolerance, 1 where something doesn't.
    """
    reading = read(recipe, overrides)
    if reading.recipe is None:
        raise RecipeError(faults=reading.faults)  # others are found together with what the compiler has to say
    name = reading.recipe.name or reading.files[0].stem
    folder = (out or runs_folder() / name / f"parity-{run_id()}").absolute()
    document = run(recipe, overrides, folder, say=Terminal(quiet=False).note)
    if as_json:
        click.echo(json.dumps(document.as_dict(), indent=1))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(table(document))
        console.print(summary(document), markup=False)
    return EXIT_DONE if document.within else EXIT_FAILED


def table(document: Document) -> Table:
    """One line a check."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("", no_wrap=True)
    for title in ("torch", "tensorflow", "difference", "allowed"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for check in document.checks:
        verdict = Text(check.verdict, style=STYLES[check.verdict])
        shown.add_row(check.what, number(check.torch), number(check.tensorflow), f"{check.difference:.2g}", allowed(check), verdict)
    return shown


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def allowed(check: Check) -> str:
    return "" if check.tolerance is None else f"{check.tolerance:g}"


def summary(document: Document) -> str:
    """Where the differences are largest, what was compared and by which measure, and where the two runs lie."""
    lines = [
        *(f"{check.what}: {check.where}" for check in document.checks if check.where),
        "",
        f"{document.network}: both backends had the same weights, images, order and head, and computed in float32. Input and features are "
        f"those of the first {document.images} training images: their difference is the largest of any number, over the largest number "
        f"where that is above 1. Losses may differ by {LOSS:g}, metrics by {100 * POINTS:g} points.",
        *([TUNED] if document.fine_tuned else []),
        *(f"{backend}: {folder}" for backend, folder in document.bundles.items()),
        "everything judged is within its tolerance" if document.within else "NOT everything judged is within its tolerance",
    ]
    return "\n".join(lines)
