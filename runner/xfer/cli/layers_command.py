"""`xfer layers`: what a model's groups, stages and cuts are called."""

from __future__ import annotations

import difflib

import click
from rich.console import Console
from rich.table import Table

from xfer import plugins
from xfer.errors import UsageError
from xfer.plan.model_map import POOLED, Cut, ModelMap


@click.command("layers")
@click.argument("model")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="N", help="Side of the images in pixels; by default the native one.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole map as JSON: groups with their tensors, cuts, and what is left out.")
def command(model: str, image_size: int | None, as_json: bool) -> None:
    """Show the groups, stages and cuts of MODEL (torchvision/NAME, timm/NAME)."""
    found = model_map(model, image_size)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(table(found))
    console.print(summary(found), markup=False)


def model_map(model: str, image_size: int | None) -> ModelMap:
    """The map of `provider/name`; raises UsageError for what there isn't."""
    provider, slash, name = model.partition("/")
    if not slash or not name:
        raise UsageError(f"'{model}' is no model: write PROVIDER/NAME, as in torchvision/resnet18")
    source = plugins.load(plugins.find("sources", provider).target)()
    names = source.models()
    if name not in names and name.partition(".")[0] not in names:  # timm's names may carry a tag of weights
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        raise UsageError(
            f"{provider} has no model '{name}'" + (f"; did you mean {' or '.join(near)}?" if near else ""),
            hint="xfer list models shows all of them",
        )
    backend = plugins.load(plugins.find("backends", source.backend).target)()
    size = image_size or source.input_size(name)
    described = backend.describe(source, model=model, name=name, pretrained=True, image_size=size)
    assert isinstance(described, ModelMap)
    return described


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
