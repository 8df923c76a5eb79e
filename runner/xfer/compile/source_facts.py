"""The source's side of compiling: which weights are meant, what the model looks like, how its images are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xfer import plugins
from xfer.compile.collector import Collector
from xfer.compile.model_facts import ModelFacts, Question, UnknownModelError, answer
from xfer.compile.names import Names
from xfer.data.locations import locate, missing
from xfer.errors import UsageError, WeightsError
from xfer.plan.model_map import ModelMap
from xfer.plan.plan import DownloadPlan, WeightsPlan
from xfer.plan.preprocess import Preprocess
from xfer.recipe.schema import Recipe, Weights
from xfer.sources.fetching import present
from xfer.sources.preprocessing import override

FLOAT32_BYTES = 4
FILE_ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".npz", ".pkl", ".h5", ".keras", ".ckpt")


@dataclass(frozen=True)
class WeightsChoice:
    """What `source.weights` means before the provider was asked."""

    kind: Literal["none", "tag", "file", "bundle"]
    location: str
    path: str  # where in the recipe a fault is placed
    match: Literal["name", "order"] = "name"
    part: str | None = None
    provider: str | None = None

    def plan(self, facts: ModelFacts, collector: Collector, *, look: bool) -> WeightsPlan | None:
        """The place of the file; with `look`, a file that is not there is a fault (a provider's own is downloaded instead)."""
        if self.kind == "none":
            return WeightsPlan(kind="none", location="none", provider=self.provider)
        if self.kind == "bundle":
            return WeightsPlan(kind="bundle", location=self.location)
        if self.kind == "tag":
            return WeightsPlan(
                kind="tag",
                location=facts.tag or self.location,
                file=facts.file,
                url=facts.url,
                provider=self.provider,
                digest=facts.digest,
            )
        try:
            place = locate(self.location)
            if look and place.url is None and not place.file.is_file():
                raise UsageError(missing(place.file) if not place.file.exists() else f"{place.file} is a folder, not a file of weights")
        except UsageError as error:
            collector.add_error(self.path, error)
            return None
        return WeightsPlan(
            kind="file",
            location=self.location,
            file=str(place.file),
            url=place.url,
            match=self.match,
            part=self.part,
            provider=self.provider,
            pretrained=facts.pretrained,
        )

    def state(self) -> tuple[str, str | None, str] | None:
        """(file, part, what changes when the file does) of a file that is there."""
        if self.kind != "file":
            return None
        try:
            file = locate(self.location).file
            found = file.stat()
        except (UsageError, OSError):
            return None  # said by `plan`
        return str(file), self.part, f"{found.st_size} {found.st_mtime_ns}"


def absent_weights(weights: WeightsPlan, *, model: ModelMap) -> list[DownloadPlan]:
    """What will be downloaded for the source: nothing, or one file. A provider's own holds the model's tensors, in float32."""
    if weights.url is None or weights.file is None or present(weights) is not None:
        return []
    tensors = [tensor for group in model.groups for tensor in group.tensors] + list(model.classifier)
    size = sum(tensor.size for tensor in tensors) * FLOAT32_BYTES if weights.kind == "tag" else None
    what = f"the weights {weights.location} of {model.model}" if weights.kind == "tag" else "the source's weights"
    return [DownloadPlan(what=what, url=weights.url, file=weights.file, bytes=size)]


def choose_weights(recipe: Recipe, names: Names, collector: Collector) -> WeightsChoice | None:
    """Tag, file or nothing, from how it is written."""
    written = recipe.source.weights
    if names.bundle is not None:
        if "weights" in recipe.source.model_fields_set and written != "DEFAULT":
            collector.add("source.weights", "a bundle brings its own weights; leave source.weights out")
        return WeightsChoice("bundle", recipe.source.model, "source.weights")
    provider = names.source.provider if names.source else None
    if isinstance(written, Weights):
        return WeightsChoice("file", written.path, "source.weights.path", written.match, written.part, provider)
    if written is None or written == "none":
        return WeightsChoice("none", "none", "source.weights", provider=provider)
    if "/" in written or written.startswith(("~", ".")) or Path(written).suffix.lower() in FILE_ENDINGS:
        return WeightsChoice("file", written, "source.weights", provider=provider)
    return WeightsChoice("tag", written, "source.weights", provider=provider)


def ask(
    recipe: Recipe, names: Names, weights: WeightsChoice | None, *, cache: Path, in_process: bool, collector: Collector
) -> ModelFacts | None:
    """The model's facts; an unknown model or tag is a fault with the nearest name."""
    if names.source is None or weights is None:
        return None
    tag = weights.location if weights.kind == "tag" else None
    if names.bundle is not None and names.bundle.weights.pretrained:
        tag = "DEFAULT"
    plugin = plugins.load(names.source.target)
    if getattr(plugin, "needs_trust", None) and not recipe.source.trust:
        collector.add("source.trust", plugin.needs_trust)
        return None
    try:
        stamp = plugin().stamp(names.source.name) if getattr(plugin, "named_by_path", False) else None
    except UsageError as error:
        collector.add_error("source.model", error)
        return None
    question = Question(
        target=names.source.target,
        model=recipe.source.model,
        name=names.source.name,
        library=names.source.library,
        tag=tag,
        image_size=recipe.target.image_size or recipe.source.preprocess.crop or (names.bundle.preprocess.crop if names.bundle else None),
        stamp=stamp,
        weights=weights.state() if hasattr(plugin, "is_for_own") else None,
        local=names.local_sources,
    )
    try:
        return answer(question, cache=cache, in_process=in_process)
    except UnknownModelError as error:
        collector.add("source.model", error.message, candidates=[error.hint or ""], wanted=error.hint)
    except WeightsError as error:
        collector.add_error(error.path, error)
    except UsageError as error:
        path = "target.image_size" if recipe.target.image_size else "source.model"
        collector.add_error(path, error)
    return None


def preprocessing(recipe: Recipe, names: Names, facts: ModelFacts) -> Preprocess:
    """What the weights' metadata says, or what the bundle's run used, with the recipe's overrides; raises UsageError."""
    base = names.bundle.preprocess if names.bundle is not None else facts.preprocess
    changes = {key: value for key, value in recipe.source.preprocess.model_dump().items() if value is not None}
    return override(base, changes, image_size=recipe.target.image_size)
