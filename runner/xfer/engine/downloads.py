"""What a recipe needs from elsewhere is downloaded before anything else; a run is then compiled from the files themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xfer.compile.compiler import compile_plan
from xfer.compile.data_facts import open_dataset
from xfer.data.announced import Say
from xfer.data.dataset import Dataset
from xfer.errors import AbsentDataError, UsageError
from xfer.plan.plan import DataPlan, Plan
from xfer.recipe.loader import Reading
from xfer.sources.fetching import download


def ready_plan(reading: Reading, *, say: Say) -> Plan:
    """The Plan of a recipe with all that it needs on this machine: `say` is told before each download begins.

    Raises RecipeError for a recipe with faults, before anything is downloaded, and what `fetch` raises.
    """
    plan = compile_plan(reading)
    if not plan.downloads:
        return plan
    fetch(plan, say=say)
    # What the provider announced was good for a look only: the plan of a run is made from the images themselves.
    return compile_plan(reading) if plan.data.listing is None else plan.model_copy(update={"downloads": ()})


def fetch(plan: Plan, *, say: Say) -> list[Path]:
    """Download what the plan says is missing; returns the files, those of the weights too where they were there already.

    Raises UsageError that names each file to fetch by hand and where to put it, DiskFullError when there is no room.
    """
    files = [Path(each.file) for each in plan.downloads if each.file != plan.source.weights.file]
    found: list[Path | None] = []
    steps: list[Callable[[], object]] = [lambda: found.append(download(plan.source.weights, say=say))]
    if plan.data.listing is None:
        steps.insert(0, lambda: fetch_dataset(plan.data, say=say))
    problems = []
    for step in steps:
        try:
            step()
        except UsageError as error:
            problems.append(error)
    if problems:
        raise _together(problems)
    return files + [file for file in found if file is not None]


def fetch_dataset(data: DataPlan, *, say: Say) -> Dataset:
    """The dataset of a plan, downloaded first where it is not there; raises DataError."""
    try:
        return open_dataset(data.target, data.dataset, data.options)
    except AbsentDataError as absent:
        absent.announced.fetch(say)
    return open_dataset(data.target, data.dataset, data.options)


def _together(problems: list[UsageError]) -> UsageError:
    """One error that says all of them, each with its next step below it."""
    if len(problems) == 1:
        return problems[0]
    first, last = problems
    return UsageError(f"{first.message}\n  {first.hint}\nerror: {last.message}", hint=last.hint)
