"""Names in a recipe become plugins: source, dataset, method; local plugin files are loaded first."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

from xfer import plugins
from xfer.compile.collector import Collector
from xfer.compile.options import bind
from xfer.data.locations import local_path
from xfer.errors import UsageError
from xfer.plan.plan import SourcePlan
from xfer.recipe.loader import Reading
from xfer.recipe.schema import Recipe
from xfer.sources.model_paths import refuse_another
from xfer.sources.run import bundle_plugins, model_before, open_bundle_source

DEFAULT_METHOD = {"feature": "probe", "model": "finetune", "knowledge": "distill", "domain": "dann"}
TARGET_KEYS = ("dataset", "splits", "image_size", "batch_size", "augment", "max_bad")


@dataclass(frozen=True)
class SourceName:
    """The provider plugin, and the model's name within it."""

    provider: str
    name: str
    target: str
    backend: Literal["torch", "tensorflow"]
    library: str


@dataclass
class Names:
    """What the recipe's names mean. None where the name was faulty."""

    source: SourceName | None = None
    dataset_target: str | None = None
    dataset_options: dict[str, Any] = field(default_factory=dict)
    dataset_faulty: bool = False
    method: str = ""
    method_target: str = ""
    method_class: Any = None
    method_options: dict[str, Any] = field(default_factory=dict)
    local_sources: dict[str, str] = field(default_factory=dict)
    bundle: SourcePlan | None = None  # where the source is an earlier run's model


class LaterMethod:
    """Stands for a method whose work has not landed: its recipes are checked as far as they can be, and refused when run."""

    trains_source = True
    freezes_head = False
    default_policy = "head"


def resolve(reading: Reading, recipe: Recipe, collector: Collector) -> Names:
    """All names at once; each that is unknown becomes a fault with the nearest one."""
    names = Names()
    _local(reading, recipe, names, collector)
    _source(recipe, names, collector)
    _dataset(recipe, names, collector)
    _method(recipe, names, collector)
    return names


def _local(reading: Reading, recipe: Recipe, names: Names, collector: Collector) -> None:
    for index, written in enumerate(recipe.plugins):
        file = (reading.files[0].parent / written).absolute()
        try:
            source = file.read_text(encoding="utf-8-sig")
            names.local_sources[f"{plugins.load_local(source, stem=file.stem)}"] = source
        except OSError as error:
            collector.add(f"plugins[{index}]", f"can't read {file}: {(error.strerror or str(error)).lower()}")
        except UnicodeDecodeError as error:
            collector.add(f"plugins[{index}]", f"can't read {file}: it is not UTF-8 text (byte {error.start})")
        except UsageError as error:
            collector.add(f"plugins[{index}]", error.message)


def _source(recipe: Recipe, names: Names, collector: Collector) -> None:
    model = recipe.source.model
    provider, name = provider_and_name(model)
    known = plugins.registered("sources")
    if not name:
        collector.add(
            "source.model",
            f"'{model}' must be provider/name, e.g. torchvision/resnet18, or run:path/to/bundle; providers: {', '.join(known)}",
        )
        return
    if provider not in known:
        text = f"no provider is called '{provider}'; there are {', '.join(known)}"
        collector.add("source.model", text, candidates=known, wanted=provider)
        return
    try:
        target = known[provider].target
        if provider == "run":
            names.bundle = open_bundle_source(name)
            names.local_sources = {**bundle_plugins(name), **names.local_sources}  # the recipe's own come last: they win
            for module, text in names.local_sources.items():
                plugins.load_local(text, stem=plugins.stem(module))
            refuse_another(names.bundle, model_before(name), bundle=local_path(name))
            name, target = names.bundle.name, names.bundle.target
        plugin = plugins.load(target)()
        if names.bundle is None and getattr(plugin, "named_by_path", False):
            name = plugin.located(name)
        names.source = SourceName(plugin.provider, name, target, plugin.backend, plugin.library())
    except UsageError as error:
        collector.add_error("source.model", error)


def provider_and_name(model: str) -> tuple[str, str]:
    """The two parts of how a model is named, the second empty where it is missing.

    >>> provider_and_name("timm/resnet18"), provider_and_name("file:pkg://dogs/breeds.h5"), provider_and_name("resnet18")
    (('timm', 'resnet18'), ('file', 'pkg://dogs/breeds.h5'), ('resnet18', ''))
    """
    separator = "/" if "/" in model and (":" not in model or model.index("/") < model.index(":")) else ":"
    provider, _, name = model.partition(separator)
    return provider, name


def _dataset(recipe: Recipe, names: Names, collector: Collector) -> None:
    provider = recipe.target.dataset.partition("/")[0]
    known = plugins.registered("datasets")
    if provider not in known:
        text = f"no dataset is called '{provider}'; there are {', '.join(known)}"
        collector.add("target.dataset", text, candidates=known, wanted=provider)
        return
    names.dataset_target = known[provider].target
    before = len(collector.faults)
    function = plugins.load(names.dataset_target)
    names.dataset_options = bind(
        function, recipe.target.options, at="target", owner=f"dataset {provider}", collector=collector, own=TARGET_KEYS
    )
    names.dataset_faulty = len(collector.faults) > before


def _method(recipe: Recipe, names: Names, collector: Collector) -> None:
    type_ = recipe.transfer.type
    known = {name: plugin for name, plugin in plugins.registered("methods").items() if plugins.load(plugin.target).type == type_}
    names.method, names.method_class = recipe.transfer.method or DEFAULT_METHOD[type_], LaterMethod
    if names.method in known:
        names.method_target = known[names.method].target
        names.method_class = plugins.load(names.method_target)
        parameters = names.method_class if inspect.isclass(names.method_class) else type(names.method_class)
        names.method_options = bind(
            parameters,
            recipe.transfer.options,
            at="transfer",
            owner=f"method {names.method}",
            collector=collector,
            own=("type", "method", "at", "student"),
        )
    elif known:
        text = f"no {type_} method is called '{names.method}'; there are {', '.join(known)}"
        collector.add("transfer.method", text, candidates=known, wanted=names.method)
