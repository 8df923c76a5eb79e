"""`xfer layers`: what a model's groups, stages and cuts are called."""

from __future__ import annotations

import difflib
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from xfer import plugins
from xfer.backends.backend import backend_named
from xfer.compile.names import provider_and_name
from xfer.errors import UsageError
from xfer.plan.model_map import POOLED, Cut, ModelMap
from xfer.sources.source import Source


@click.command("layers")
@click.argument("model")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="N", help="Side of the images in pixels; by default the native one.")
@click.option("--trust", is_flag=True, help="Load a SavedModel, which is a program, as 'trust: true' does in a recipe.")
@click.option("--plugin", "files", multiple=True, type=click.Path(path_type=Path), help="As in a recipe's plugins; may be given again.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole map as JSON: groups with their tensors, cuts, and what is left out.")
def command(model: str, image_size: int | None, trust: bool, files: tuple[Path, ...], as_json: bool) -> None:
    """Show the groups, stages and cuts of MODEL (torchvision/NAME, timm/NAME, keras/NAME, file:PATH, savedmodel:PATH)."""
    for file in files:
        _load(file)
    found = model_map(model, image_size, trust=trust)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(table(found))
    console.print(summary(found), markup=False)


def model_map(model: str, image_size: int | None, *, trust: bool = False) -> ModelMap:
    """The map of `provider/name`, or of a file; raises UsageError for what there isn't."""
    provider, name = provider_and_name(model)
    if not name:
        raise UsageError(f"'{model}' is no model: write PROVIDER/NAME, as in torchvision/resnet18")
    source = plugins.load(plugins.find("sources", provider).target)()
    if getattr(source, "needs_trust", None) and not trust:
        raise UsageError(f"{model} is not loaded: a SavedModel is a program, which may read and write files", hint="add --trust")
    if getattr(source, "named_by_path", False):
        name = source.located(name)
        source.stamp(name)  # says what is there instead
    else:
        _known(source, provider, name)
    backend = backend_named(source.backend)
    size = image_size or source.input_size(name)
    described = backend.describe(source, model=model, name=name, pretrained=True, image_size=size)
    assert isinstance(described, ModelMap)
    return described


def _load(file: Path) -> None:
    try:
        plugins.load_local(file.read_text(encoding="utf-8-sig"), stem=file.stem)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(f"--plugin {file}: can't be read: {reason}") from error


def _known(source: Source, provider: str, name: str) -> None:
    names = source.models()
    if name not in names and name.partition(".")[0] not in names:  # timm's names may carry a tag of weights
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        raise UsageError(
            f"{provider} has no model '{name}'" + (f"; did you mean {' or '.join(near)}?" if near else ""),
            hint="xfer list models shows all of them",
        )


def table(found: ModelMap) -> Table:
    """One line a group: stage, name, parameters, and the shape of the cut behind it (none where several tensors pass)."""
    cuts = {cut.groups_before: cut for cut in found.cuts}
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("stage")
    shown.add_column("group", overflow="fold")
    shown.add_column("parameters", justify="right")
    shown.add_column("cut after it", no_wrap=True)
    shown.add_row("", "", "", _cut(cuts[0]))
    stage = None
    for number, group in enumerate(found.groups, start=1):
        shown.add_row(group.stage if group.stage != stage else "", group.name, f"{group.n_parameters:,}", _cut(cuts.get(number)))
        stage = group.stage
    return shown


def summary(found: ModelMap) -> str:
    """Totals and what a person should know, one thing a line."""
    left_out = sum(tensor.size for tensor in found.classifier if tensor.kind == "parameter")
    lines = [
        f"{found.model} ({found.library}) at {found.image_size} pixels: {len(found.groups)} groups, {len(found.stages)} stages, "
        f"{len(found.cuts)} cuts, {found.n_parameters:,} parameters",
        f"left out, because the head is new: {left_out:,} parameters of the model's own classifier" if left_out else "",
        f"note: {found.note}" if found.note else "",
    ]
    return "\n".join(line for line in lines if line)


def _cut(cut: Cut | None) -> str:
    if cut is None:
        return "-"
    shape = " x ".join(str(n) for n in cut.shape)
    return f"{shape}  {cut.name if cut.name in ('pixels', POOLED) else cut.layout}"
