"""A recipe on its way to a cluster: what is checked here first, what it asks for, and the command that the job is."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import shlex
from dataclasses import dataclass
from pathlib import Path

from xfer import plugins
from xfer.cluster.pack import FILES
from xfer.cluster.preflight import Found, Wanted
from xfer.cluster.storage import Storage
from xfer.cluster.storage_drivers import scheme_of
from xfer.compile.cluster import gpus_per_worker, startup_seconds, workers
from xfer.compile.compiler import Depth, check
from xfer.compile.names import provider_and_name
from xfer.compile.secrets import secret_of
from xfer.data.locations import locate
from xfer.errors import Fault, RecipeError, UsageError
from xfer.recipe.loader import Reading

PYTHON = ("python3", "-P", "-m", "xfer.cli")  # as the preflight found it: a job's PATH need not hold the command `xfer` of that Python


@dataclass(frozen=True)
class Submission:
    """A recipe with what it asks for; `workers` as (fewest, most), `gpus_per_worker` None where the cluster decides."""

    name: str
    backend: str | None
    workers: tuple[int, int]
    gpus_per_worker: float | None
    storage: str | None
    has_address: bool
    startup_seconds: float = 0.0

    @property
    def is_spread(self) -> bool:
        """True if workers run beside the job, by Ray; else the one worker runs in it. A bundle is brought to a URL by the former only."""
        return self.workers != (1, 1) or self.has_address or is_url(self.storage)

    def wanted(self, recipe: str, overrides: tuple[str, ...]) -> Wanted:
        """What the preflight looks for."""
        asked = (self.workers[0], self.is_spread, self.gpus_per_worker, self.storage, self.backend, self.startup_seconds)
        return Wanted(recipe, overrides, *asked)

    def options(self, *, runs: str, run_id: str) -> list[str]:
        """What `xfer run` gets beside recipe and overrides. A bundle lies in the storage where that is a folder, else in `runs`, a folder
        of the node that the job runs on (and is brought to the storage from there); never in the job's own, which the cluster clears."""
        found = ["--address", "auto"] if self.is_spread else []
        place = runs if self.storage is None or is_url(self.storage) else posixpath.join(self.storage, "runs")
        return [*found, "--out", posixpath.join(place, self.name, run_id)]


def is_url(location: str | None) -> bool:
    return location is not None and scheme_of(location) is not None


def submission(reading: Reading) -> Submission:
    """What a recipe asks of a cluster. Raises RecipeError with all faults that can be told from here, UsageError for a storage that no
    node can mean, or to which nothing writes."""
    backend, depth = _look_from_here(reading)
    faults: tuple[Fault, ...] = reading.faults if depth is None else check(reading, depth=depth, data=False)
    if faults:
        raise RecipeError(faults=faults)
    recipe = reading.recipe
    assert recipe is not None
    return Submission(
        name=recipe.name or reading.files[0].stem,
        backend=backend,
        workers=workers(recipe),
        gpus_per_worker=gpus_per_worker(recipe),
        storage=_storage(recipe.cluster.storage),
        has_address=recipe.cluster.address is not None,
        startup_seconds=startup_seconds(recipe),
    )


def command(options: list[str], recipe: str, overrides: tuple[str, ...]) -> str:
    """The job's shell command. It takes the shell's place, so that its exit code is the job's and a stop reaches it."""
    return f"cd {FILES} && exec {shlex.join([*PYTHON, 'run', *options, recipe, *overrides])}"


def take(found: Found, *, is_spread: bool) -> tuple[float, float]:
    """CPUs and GPUs of the job itself: what the one worker needs, which runs in it; none where workers run beside it."""
    return (0.0, 0.0) if is_spread else (found.cpus, found.gpus)


def address_of(bundle: str, *, host: str | None, storage: str | None) -> str:
    """A bundle's address for someone elsewhere: host:path where it lies on one node.

    >>> address_of("/mnt/x/flowers/1", host="10.0.0.5", storage="/mnt/x"), address_of("/root/xfer/runs/1", host="10.0.0.5", storage=None)
    ('/mnt/x/flowers/1', '10.0.0.5:/root/xfer/runs/1')
    """
    is_shared = is_url(bundle) or (storage is not None and Path(bundle).is_relative_to(storage))
    return bundle if is_shared or host is None else f"{host}:{bundle}"


def _look_from_here(reading: Reading) -> tuple[str | None, Depth | None]:
    """The recipe's backend, and how deep it can be checked from here: not at all below the recipe's own words where its source lies on the
    cluster, not the model where its framework is not installed. The preflight checks all of it there."""
    if reading.recipe is None:
        return None, None
    provider, name = provider_and_name(reading.recipe.source.model)
    known = plugins.registered("sources")
    if provider not in known:
        return None, "shallow"
    plugin = plugins.load(known[provider].target)
    if provider == "run" or getattr(plugin, "named_by_path", False):
        try:
            is_here = locate(name).file.exists()
        except UsageError:
            is_here = False
        return (None if provider == "run" else plugin.backend), ("model" if is_here else None)
    is_installed = importlib.util.find_spec(plugin.backend) is not None
    return plugin.backend, "model" if is_installed else "shallow"


def _storage(location: str | None) -> str | None:
    if location is None:
        return None
    if not is_url(location) and not os.path.isabs(location):
        raise UsageError(f"cluster.storage: '{location}' must be an absolute path that every node has, or a URL")
    if (kind := secret_of(location)) is not None:
        raise UsageError(
            f"cluster.storage: the address holds a {kind}, and a job's command is printed and kept",
            hint="leave it out: storage libraries find credentials in the environment or in their own settings",
        )
    Storage.of(location)
    return location
