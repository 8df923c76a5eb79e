"""Recipe + model facts + data facts -> Plan. Everything that decides runs here, before anything is paid for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from xfer.backends.backend import backend_named
from xfer.compile import data_facts
from xfer.compile.availability import unavailable
from xfer.compile.cluster import check_cluster, plan_cluster
from xfer.compile.collector import Collector
from xfer.compile.inputs import decide
from xfer.compile.method_facts import place_cut, plan_method
from xfer.compile.model_facts import ModelFacts
from xfer.compile.names import Names, resolve
from xfer.compile.phases import (
    Context,
    Written,
    as_far_as_the_head,
    check_batch,
    check_norm,
    check_schedule,
    check_until,
    check_warmup,
    lower_train,
    phase_plan,
    written_phases,
)
from xfer.compile.secrets import refuse
from xfer.compile.source_facts import absent_weights, ask, choose_weights, preprocessing
from xfer.errors import DataError, Fault, UsageError
from xfer.plan.model_map import ModelMap
from xfer.plan.plan import DataPlan, DownloadPlan, HeadPlan, MethodPlan, Plan, RuntimePlan, SourcePlan
from xfer.plan.preprocess import Preprocess
from xfer.recipe.loader import Reading
from xfer.recipe.quantities import parse_bytes
from xfer.recipe.schema import Recipe

DEFAULT_CACHE = "~/.cache/xfer"
EXTRACTION_BATCH = {"cpu": 32, "cuda": 256}
Depth = Literal["shallow", "model"]


@dataclass(frozen=True)
class Checked:
    """What a recipe's check found: its faults, sorted by place, and what is not on this machine and will be downloaded."""

    faults: tuple[Fault, ...]
    downloads: tuple[DownloadPlan, ...]


def examine(reading: Reading, *, depth: Depth = "model", data: bool = True) -> Checked:
    """All there is to say of a recipe without running it; imports no framework and downloads nothing."""
    collector = Collector(reading)
    _compile(reading, collector, depth=depth, data=data, in_process=False)
    return Checked(collector.sorted(), tuple(collector.downloads))


def check(reading: Reading, *, depth: Depth = "model", data: bool = True) -> tuple[Fault, ...]:
    """All faults of a recipe, sorted by place."""
    return examine(reading, depth=depth, data=data).faults


def compile_plan(reading: Reading) -> Plan:
    """The Plan of a recipe that has no fault; raises RecipeError with all that were found."""
    collector = Collector(reading)
    plan = _compile(reading, collector, depth="model", data=True, in_process=True)
    if reading.recipe is not None:
        for path, message in unavailable(reading.recipe):
            collector.add(path, message)
    collector.stop_if_any()
    assert plan is not None
    return plan


def cache_folder(reading: Reading) -> Path:
    """`runtime.cache`; where the recipe leaves it out, $XFER_CACHE or ~/.cache/xfer."""
    written = (reading.recipe.runtime.cache if reading.recipe else None) or DEFAULT_CACHE
    if written == DEFAULT_CACHE:
        written = os.environ.get("XFER_CACHE", DEFAULT_CACHE)
    return Path(written).expanduser().absolute()


def _compile(reading: Reading, collector: Collector, *, depth: Depth, data: bool, in_process: bool) -> Plan | None:
    recipe = reading.recipe
    if recipe is None:
        return None
    has_secret = refuse(reading.data, collector)
    names = resolve(reading, recipe, collector)
    if depth == "shallow":
        written_phases(recipe, method=names.method_class, model=None, collector=collector)
        return None
    weights = choose_weights(recipe, names, collector)
    facts = ask(recipe, names, weights, cache=cache_folder(reading), in_process=in_process, collector=collector)
    found = _data(recipe, names, collector) if data and not has_secret else None
    if facts is None:
        written_phases(recipe, method=names.method_class, model=None, collector=collector)
        return None
    head = _head(recipe, facts.map, found, collector)
    below = as_far_as_the_head(facts.map, head)
    written = written_phases(recipe, method=names.method_class, model=below, collector=collector)
    trains = [(phase, lower_train(phase, below, collector)) for phase in written]
    for phase, train in trains:
        has_validation = found is None or "val" in found.counts
        check_until(phase, schedule=recipe.optimizer.schedule, has_validation=has_validation, collector=collector)
        check_warmup(phase, warmup_epochs=recipe.optimizer.warmup_epochs, collector=collector)
        check_norm(phase, train, facts.map, collector)
    method = plan_method(recipe, names, facts.map, head, collector)
    check_batch(recipe, trains, facts.map, method, collector)
    check_cluster(recipe, backend=names.source.backend if names.source else None, collector=collector)
    check_schedule(trains, method=names.method_class, type_=recipe.transfer.type, collector=collector)
    weights_plan = weights.plan(facts, collector, look=data) if weights else None
    if names.bundle is not None:
        weights_plan = names.bundle.weights
    if data and weights_plan is not None:
        collector.downloads += [*(found.downloads if found else ()), *absent_weights(weights_plan, model=facts.map)]
    prepared = _preprocess(recipe, names, facts, collector)
    if collector.faults or not in_process or found is None or weights_plan is None or prepared is None:
        return None
    assert names.source is not None
    source = SourcePlan(
        model=recipe.source.model,
        name=names.source.name,
        target=names.source.target,
        backend=names.source.backend,
        weights=weights_plan,
        preprocess=prepared,
        trust=recipe.source.trust,
    )
    return _plan(reading, recipe, names, facts, found, head, method, trains, source, collector)


def _plan(
    reading: Reading,
    recipe: Recipe,
    names: Names,
    facts: ModelFacts,
    found: data_facts.DataFacts,
    head: HeadPlan,
    method: MethodPlan,
    trains: list[tuple[Written, tuple[str, ...]]],
    source: SourcePlan,
    collector: Collector,
) -> Plan | None:
    runtime = _runtime(reading, recipe, source.backend, collector)
    if runtime is None:
        return None
    context = Context(found.images, runtime.precision, runtime.cache_budget, psutil.virtual_memory().total, method, source.preprocess.crop)
    phases = tuple(
        phase_plan(written, index=index, recipe=recipe, model=facts.map, head=head, train=train, context=context)
        for index, (written, train) in enumerate(trains)
    )
    trained = {group for phase in phases for group in phase.train}
    target = recipe.target
    return Plan(
        name=recipe.name or reading.files[0].stem,
        seed=recipe.seed,
        backend=source.backend,
        source=source,
        model=facts.map,
        data=DataPlan(
            dataset=target.dataset,
            target=names.dataset_target or "",
            options=names.dataset_options,
            classes=found.classes,
            images=found.images,
            counts=found.counts,
            listing=found.listing,
            notes=found.notes,
            val=target.splits.val,
            test=target.splits.test,
            split_seed=target.splits.seed,
            max_bad=target.max_bad,
            batch_size=target.batch_size,
        ),
        method=method,
        head=head,
        phases=phases,
        baseline=decide(
            facts.map, head, frozenset(), images=found.images, precision=runtime.precision, budget=runtime.cache_budget, changed_by={}
        ),
        runtime=runtime,
        cluster=plan_cluster(recipe),
        never_trained=tuple(group.name for group in facts.map.groups if group.name not in trained),
        total_parameters=facts.map.n_parameters + sum(tensor.size for tensor in (*head.tensors, *method.tensors)),
        downloads=tuple(collector.downloads),
        plugins=names.local_sources,
    )


def _preprocess(recipe: Recipe, names: Names, facts: ModelFacts, collector: Collector) -> Preprocess | None:
    try:
        return preprocessing(recipe, names, facts)
    except UsageError as error:
        path, _, text = error.message.partition(": ")
        collector.add(path if text and " " not in path else "source.preprocess", text if text and " " not in path else error.message)
        return None


def _data(recipe: Recipe, names: Names, collector: Collector) -> data_facts.DataFacts | None:
    if names.dataset_target is None or names.dataset_faulty:
        return None
    try:
        return data_facts.look(names.dataset_target, recipe.target, names.dataset_options)
    except DataError as error:
        collector.add_error(error.path, error)
    except UsageError as error:
        collector.add_error("target.path" if "path" in names.dataset_options else "target.dataset", error)
    return None


def _head(recipe: Recipe, model: ModelMap, found: data_facts.DataFacts | None, collector: Collector) -> HeadPlan:
    cut = place_cut(recipe.transfer.at, model, collector, path="transfer.at", what="head")
    width = {"chw": 0, "hwc": -1, "tokens": -1}.get(cut.layout)
    inputs = cut.values if width is None else cut.shape[width]
    outputs = len(found.classes) if found else 2
    return HeadPlan(
        at=cut.name, layout=cut.layout, inputs=inputs, hidden=tuple(recipe.head.hidden), dropout=recipe.head.dropout, outputs=outputs
    )


def _runtime(reading: Reading, recipe: Recipe, backend_name: str, collector: Collector) -> RuntimePlan | None:
    backend = backend_named(backend_name)
    try:
        device = backend.device(recipe.runtime.device)
    except UsageError as error:
        collector.add("runtime.device", error.message.removeprefix("runtime.device: "))
        return None
    kind = device.name.partition(":")[0]
    precision = recipe.runtime.precision
    if precision == "auto":
        precision = "bfloat16" if device.fast_bfloat16 else "float32"
    if precision == "float16" and kind == "cpu":
        collector.add("runtime.precision", "float16 needs a GPU, and this runs on the CPU; use bfloat16, float32 or auto")
        return None
    checkpoint, batch = recipe.runtime.checkpoint, recipe.runtime.extraction_batch
    return RuntimePlan(
        device=device.name,
        precision=precision,
        cache=str(cache_folder(reading)),
        cache_budget=parse_bytes(recipe.runtime.cache_budget),
        checkpoint=str(checkpoint),
        keep=recipe.runtime.keep,
        extraction_batch=EXTRACTION_BATCH.get(kind, 32) if batch == "auto" else batch,
    )
