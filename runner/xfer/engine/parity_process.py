"""One side of a comparison between the backends, in a process of its own: compiled, its network handed over or taken over, its bundle
made, and its first images looked at. What it says and its answer are lines of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from safetensors.numpy import save_file

from xfer import plugins
from xfer.backends.backend import Network, backend_named
from xfer.compile.compiler import compile_plan
from xfer.data.pipeline import decoded
from xfer.engine.bundle import Bundle, read_plan
from xfer.engine.downloads import ready_plan
from xfer.engine.inputs import decode_threads
from xfer.engine.target import Target
from xfer.errors import RecipeError, UsageError, XferError
from xfer.plan.model_map import HEAD, PIXELS, POOLED, Frozen
from xfer.plan.plan import PhasePlan, Plan
from xfer.plan.portable import write
from xfer.recipe.loader import Reading, read
from xfer.recipe.schema import Source

N_IMAGES = 64  # training images whose input and features are compared
NETWORK, LOOKED = "network", "looked"  # folders beside the two bundles
FLOAT32 = "runtime.precision=float32"
PROVIDER = "portable"
SOURCES = {name: f"xfer.backends.{name}.portable_source:PortableSource" for name in ("torch", "tensorflow")}
_EXPORTS = {name: f"xfer.backends.{name}.portable_export" for name in SOURCES}
BY_NAME = "name what trains by head, all, a stage or 'last N stages': groups are each backend's own"


class Request(Frozen):
    """What is asked of the process. `own` is the backend whose network it is, None in the process that finds that out."""

    recipe: str
    overrides: tuple[str, ...]
    folder: str
    own: Literal["torch", "tensorflow"] | None = None


def other_of(backend: str) -> str:
    return "tensorflow" if backend == "torch" else "torch"


def prepare_own(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """The recipe as it is: its bundle, and its network written down for the other backend."""
    folder, reading = Path(request.folder), _read(request)
    plan = compile_plan(reading)
    if plan.head.at != POOLED:
        raise UsageError(
            f"transfer.at: the head is put on {plan.head.at}, and xfer parity compares heads on pooled features only so far",
            hint="leave transfer.at out",
        )
    if plan.downloads:
        plan = ready_plan(reading, say=say)
    network = _network(plan)
    portable, tensors = plugins.load(f"{_EXPORTS[plan.backend]}:export")(network)
    write(folder / NETWORK, portable, tensors)
    _finish(plan, reading, network, folder)
    return {"backend": plan.backend, "operations": len(portable.operations)}


def prepare_other(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """The recipe on the network that was written down."""
    assert request.own is not None
    folder, backend = Path(request.folder), other_of(request.own)
    plugins.provide("sources", PROVIDER, SOURCES[backend])
    reading = _moved(_read(request), folder / NETWORK)
    try:
        plan = ready_plan(reading, say=say)
    except RecipeError as error:
        raise RecipeError(faults=error.faults, hint=BY_NAME) from error
    must_be_alike(read_plan(folder / request.own), plan)
    _finish(plan, reading, _network(plan), folder)
    return {"backend": plan.backend}


def _read(request: Request) -> Reading:
    return read(request.recipe, [*request.overrides, FLOAT32])


def _moved(reading: Reading, network: Path) -> Reading:
    """The same recipe with the network in that folder as its source."""
    assert reading.recipe is not None
    source = Source(model=f"{PROVIDER}:{network.absolute()}")
    recipe = reading.recipe.model_copy(update={"source": source})
    return replace(reading, recipe=recipe, resolved=recipe.model_dump())


def _network(plan: Plan) -> Network:
    backend = backend_named(plan.backend)
    return backend.build(plan)


def _finish(plan: Plan, reading: Reading, network: Network, folder: Path) -> None:
    resolved = yaml.safe_dump(reading.resolved, sort_keys=False, allow_unicode=True)
    Bundle.create(folder / plan.backend, plan, recipe=reading.text, resolved=resolved)
    _look(plan, network, folder / LOOKED)


def must_be_alike(own: Plan, other: Plan) -> None:
    """Raises UsageError where the phases don't mean the same in both: another number of parameters at some learning rate."""
    if len(own.phases) != len(other.phases):
        raise UsageError(
            f"the recipe makes {len(own.phases)} phases on {own.backend} and {len(other.phases)} on {other.backend}, "
            "where the network has other stages, so they can't be compared",
            hint=BY_NAME,
        )
    for one, two in zip(own.phases, other.phases, strict=True):
        if one.trainable_parameters != two.trainable_parameters:
            raise UsageError(
                f"phase '{one.name}' trains {one.trainable_parameters:,} parameters on {own.backend} and {two.trainable_parameters:,} on "
                f"{other.backend}, where the network has other groups, so they can't be compared",
                hint=BY_NAME,
            )
        if _rates(own, one) != _rates(other, two):
            raise UsageError(
                f"phase '{one.name}' has other learning rates on {own.backend} than on {other.backend}: layer_decay counts groups, and "
                "each backend has its own, so they can't be compared",
                hint="leave layer_decay out",
            )


def _rates(plan: Plan, phase: PhasePlan) -> Counter[float]:
    """How many parameters train at each learning rate, those of the head left out: they are the same."""
    found: Counter[float] = Counter()
    trainable = set(phase.trainable)
    for group in plan.model.groups:
        size = sum(tensor.size for tensor in group.parameters if tensor.name in trainable)
        if group.name != HEAD and size:
            found[round(phase.learning_rates[group.name], 15)] += size
    return found


def _look(plan: Plan, network: Network, folder: Path) -> None:
    """What the first training images look like to the network, and what it makes of them, into a file of the backend's name."""
    target = Target.open(plan.data)
    rows, batch = target.rows("train")[:N_IMAGES], plan.runtime.extraction_batch
    entered = plugins.load(f"{_EXPORTS[plan.backend]}:network_input")
    inputs, features, seen = [], [], []
    for part in decoded(target.dataset, rows, plan.source.preprocess, threads=decode_threads(), batch=batch):
        if not len(part.rows):
            continue
        padded = np.concatenate([part.pixels, np.repeat(part.pixels[-1:], batch - len(part.rows), axis=0)])
        seen += part.rows.tolist()
        inputs.append(entered(network, part.pixels))
        features.append(network.compute(padded, start=PIXELS, end=POOLED, pooled=False)[: len(part.rows)])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"input": np.concatenate(inputs), "features": np.concatenate(features)}, folder / f"{plan.backend}.safetensors")
    digests = network.digests([tensor.name for tensor in plan.head.tensors])
    told = {"keys": [target.dataset.keys[row] for row in seen], "head": digests}
    (folder / f"{plan.backend}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def main(argument: str) -> None:
    """Runs one side and prints lines of JSON: {"say": …} while it goes on, then the answer, or the error."""
    request = Request.model_validate_json(argument)
    prepare = prepare_own if request.own is None else prepare_other
    try:
        answer = prepare(request, lambda text: _print({"say": text}))
    except RecipeError as error:
        answer = {"error": error.message, "faults": [fault.as_dict() for fault in error.faults], "hint": error.hint}
    except XferError as error:
        answer = {"error": error.message, "usage": isinstance(error, UsageError), "hint": error.hint}
    _print(answer)


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
