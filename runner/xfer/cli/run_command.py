"""`xfer run`: a recipe, or a bundle to go on with, to the end."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click
import yaml

from xfer.cli.conventions import in_the_recipe, run_id, runs_folder
from xfer.cli.progress import Terminal
from xfer.cluster.connect import ray_installed
from xfer.cluster.launch import bundle_place, run_on_cluster
from xfer.cluster.mirror import Mirror
from xfer.cluster.storage import Storage
from xfer.compile.data_facts import open_dataset
from xfer.data.announced import Say
from xfer.data.dataset import Dataset
from xfer.engine.bundle import Bundle
from xfer.engine.downloads import ready_plan
from xfer.engine.files import write_json
from xfer.engine.from_anywhere import from_anywhere
from xfer.engine.runner import Run
from xfer.errors import UsageError, XferError
from xfer.recipe.loader import read
from xfer.report.page import render
from xfer.report.terminal import show_result

MIRRORED = "mirrored.json"  # where a bundle on an object store lies; in its copy on the driver's machine


class StopFlag:
    """SIGINT or SIGTERM once: finish the step, save, exit 130. A second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        click.echo("stopping after this step; once more ends it at once", err=True)

    def __call__(self) -> bool:
        return self.asked


@click.command("run")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume", "bundle_folder", type=click.Path(path_type=Path), help="Go on with a bundle that was interrupted.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder (default: runs/<name>/<id>, or under $XFER_RUNS).")
@click.option("--workers", type=click.IntRange(min=1), help="So many workers on a Ray cluster, or on this machine (cluster.workers).")
@click.option("--address", help="The Ray cluster: host:port, or auto on one of its nodes (cluster.address).")
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="GPUs of each worker (cluster.gpus_per_worker).")
@click.option("--storage", help="A folder or URL that every node sees, for bundle and features (cluster.storage).")
@click.option("--quiet", is_flag=True, help="No progress, only warnings and the result's path.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json's content on stdout.")
def command(
    recipe: Path | None,
    overrides: tuple[str, ...],
    bundle_folder: Path | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    **spread: object,
) -> None:
    """Run RECIPE with overrides, or go on with a bundle."""
    terminal = Terminal(quiet=quiet)
    overrides += in_the_recipe(**spread)
    if bundle_folder:
        bundle, mirrored = _resumed(bundle_folder, recipe, out, overrides)
    else:
        given = [name for name, said in spread.items() if said is not None]
        bundle, mirrored = _new(recipe, overrides, out, say=terminal.note, given=given)
    stop = StopFlag()  # only now: a download ends at once
    click.echo(f"bundle: {bundle.folder}", err=True)
    if mirrored is not None:
        click.echo(f"mirrored: {mirrored}", err=True)
    dataset: Dataset | None = None
    try:
        if bundle.plan.cluster is None:
            going = Run(bundle, reporter=terminal, stop=stop)
            try:
                result = going.execute()
            finally:
                target = getattr(going, "target", None)  # a run that ended before it opened its data has none
                dataset = target.dataset if target else None
        else:
            result = run_on_cluster(bundle, mirrored=mirrored, reporter=terminal, stop=stop)
            dataset = open_dataset(bundle.plan.data.target, bundle.plan.data.dataset, bundle.plan.data.options)
    finally:
        terminal.done()
        if (bundle.folder / "result.json").exists():
            render(bundle.folder, dataset=dataset)
        if mirrored is not None:
            _add_to(mirrored, bundle.folder, warn=terminal.warn)
    if not quiet and not as_json:
        terminal.console.print(show_result(result))
        click.echo(f"report: {bundle.folder / 'report.html'}", err=True)
    click.echo(json.dumps({**result, "bundle": str(bundle.folder)}, indent=1) if as_json else str(bundle.folder))


def _add_to(mirrored: Storage, folder: Path, *, warn: Say) -> None:
    """The report and what else is made here, for the bundle's copy; a run does not fail for want of it."""
    try:
        Mirror(folder, mirrored).add_drivers()
    except XferError as error:
        warn(error.message)


def _new(
    recipe: Path | None, overrides: tuple[str, ...], out: Path | None, *, say: Say, given: list[str]
) -> tuple[Bundle, Storage | None]:
    if recipe is None:
        raise UsageError("give a recipe to run, or --resume with a bundle", hint="e.g. xfer run recipes/quickstart.yaml")
    reading = read(recipe, overrides)
    plan = from_anywhere(ready_plan(reading, say=say))
    if plan.cluster is not None:
        ray_installed()
    elif idle := [f"--{name.replace('_', '-')}" for name in ("gpus_per_worker", "storage") if name in given]:
        raise UsageError(
            f"{' and '.join(idle)}: nothing for a run in one process, and this is one",
            hint="say --workers 2 or more, or --address, beside it; here --out is the bundle's folder, and runtime.cache the features'",
        )
    folder, mirrored = bundle_place(plan, run_id(), out=out, runs=runs_folder())
    resolved = yaml.safe_dump(reading.resolved, sort_keys=False, allow_unicode=True)
    bundle = Bundle.create(folder.absolute(), plan, recipe=reading.text, resolved=resolved)
    if mirrored is not None:
        write_json(bundle.folder / MIRRORED, asdict(mirrored))
    return bundle, mirrored


def _resumed(folder: Path, recipe: Path | None, out: Path | None, overrides: tuple[str, ...]) -> tuple[Bundle, Storage | None]:
    if recipe is not None or out is not None or overrides:
        raise UsageError("--resume goes on with a bundle's own recipe; a recipe, overrides or --out beside it have no meaning")
    bundle = Bundle(folder.absolute())
    noted = bundle.folder / MIRRORED
    return bundle, Storage(**json.loads(noted.read_text())) if noted.exists() else None
