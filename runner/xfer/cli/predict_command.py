"""`xfer predict`: labels and probabilities for files or whole folders."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xfer.cli.progress import Terminal
from xfer.data.listing import ENDINGS, images_under
from xfer.engine.bundle import Bundle
from xfer.engine.evaluate import Prediction, predict_files
from xfer.errors import UsageError


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILES-OR-FOLDERS...")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print predictions and quarantined files as JSON on stdout.")
def command(bundle: Path, paths: tuple[Path, ...], precision: str, quiet: bool, as_json: bool) -> None:
    """Classify FILES-OR-FOLDERS with BUNDLE's model."""
    opened = Bundle(bundle.absolute())
    files = list_files(paths)
    found = list(predict_files(opened, files, precision=precision, reporter=Terminal(quiet=quiet or as_json)))
    classes = opened.plan.data.classes
    if as_json:
        click.echo(json.dumps(as_document(found, classes), indent=1))
        return
    for prediction in found:
        if prediction.probabilities is None:
            click.echo(f"{prediction.path}: can't be read: {prediction.reason}", err=True)
        else:
            click.echo(f"{prediction.path}\t{prediction.label}\t{prediction.probabilities.max():.4f}")


def as_document(found: list[Prediction], classes: tuple[str, ...]) -> dict[str, list]:
    """The form of DESIGN: predictions and quarantined."""
    return {
        "predictions": [
            {"path": p.path, "label": p.label, "probabilities": dict(zip(classes, p.probabilities.tolist(), strict=True))}
            for p in found
            if p.probabilities is not None
        ],
        "quarantined": [{"path": p.path, "reason": p.reason} for p in found if p.probabilities is None],
    }


def list_files(paths: tuple[Path, ...]) -> list[Path]:
    """Files as given; folders searched recursively for images, hidden entries left out, in order of name."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [path / name for name in images_under(path).images]
            if not inside:
                raise UsageError(f"no image in {path.absolute()}", hint=f"endings looked for: {' '.join(ENDINGS)}")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise UsageError(f"no such file: {path.absolute()}")
    return files
