"""`run:path/to/bundle`: the model that an earlier run left, as the source of a new one.

The new run's source is the bundle's own provider and model, with the bundle's tensors as weights; the head that the run
trained is left behind.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xfer import plugins
from xfer.data.locations import local_path
from xfer.errors import BundleError, UsageError, WeightsError
from xfer.plan.plan import FORMAT, Plan, SourcePlan, WeightsPlan
from xfer.plan.preprocess import Preprocess
from xfer.sources.model_paths import kept
from xfer.sources.source import Source, Tag

PREFIX = "run:"
PLAN_FILE = "plan.json"
RESULT_FILE = "result.json"
LOCK_FILE = "lock.json"
WEIGHTS_FILE = "model/weights.safetensors"
TAG = "bundle"


def open_bundle_source(path: str) -> SourcePlan:
    """The source that a finished bundle is: its run's model, provider and preprocessing, with weights of kind 'bundle'.

    `path` is what follows `run:`. Raises BundleError for a folder that is no bundle, or one whose run did not finish.
    """
    folder, plan = _open(path)
    source = kept(plan.source, folder)
    weights = WeightsPlan(
        kind="bundle",
        location=f"{PREFIX}{path.removeprefix(PREFIX)}",
        file=str(folder / WEIGHTS_FILE),
        provider=source.weights.provider,
        pretrained=source.weights.pretrained or source.weights.kind == "tag",
    )
    return source.model_copy(update={"weights": weights})


def bundle_plugins(path: str) -> dict[str, str]:
    """The text of the plugin files that the bundle's run had, by their modules: its provider, or layers of its model, may be in them."""
    return dict(_open(path)[1].plugins)


def model_before(path: str) -> str | None:
    """What `model_paths.model_content` was when the bundle's run began; None where the run didn't write it."""
    try:
        return json.loads((local_path(path.removeprefix(PREFIX)) / LOCK_FILE).read_text()).get("model")  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        raise BundleError(f"{local_path(path.removeprefix(PREFIX)) / LOCK_FILE} is damaged: it is not JSON") from None


def _open(path: str) -> tuple[Path, Plan]:
    path = path.removeprefix(PREFIX)
    try:
        folder = local_path(path)
    except UsageError as error:
        raise BundleError(f"{PREFIX}{path}: {error.message}") from None
    if not (folder / PLAN_FILE).is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {PLAN_FILE}; a bundle is a folder that 'xfer run' made, runs/NAME/ID")
    status = _status(folder)
    if status != "finished":
        raise BundleError(
            f"the run in {folder} has not finished (its status is '{status}'), so its model can't be a source yet",
            hint=f"finish it first: xfer run --resume {folder}",
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise BundleError(f"the bundle {folder} has no {WEIGHTS_FILE}: its model was taken out; put the file back, or run it again")
    return folder, _plan(folder)


def _plan(folder: Path) -> Plan:
    file = folder / PLAN_FILE
    try:
        written = json.loads(file.read_text())
        if isinstance(written, dict) and written.get("format", FORMAT) > FORMAT:
            raise BundleError(f"the bundle {folder} was made by a newer xfer (plan format {written['format']}, this one reads {FORMAT})")
        return Plan.model_validate(written)
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror or error}") from None
    except (ValueError, TypeError, ValidationError):
        raise BundleError(f"{file} is damaged: it is not a plan that xfer wrote") from None


def _status(folder: Path) -> str:
    try:
        result = json.loads((folder / RESULT_FILE).read_text())
    except FileNotFoundError:
        return "unknown"
    except (OSError, ValueError):
        raise BundleError(f"{folder / RESULT_FILE} is damaged: it is not JSON") from None
    return str(result.get("status", "unknown")) if isinstance(result, dict) else "unknown"


class RunSource:
    """`run:PATH`: answers what the bundle's own provider answers for the bundle's model."""

    backend = "torch"  # of most bundles; a recipe that names one is compiled for the backend of the bundle's own provider
    provider = "run"

    def library(self) -> str:
        """xfer's own name and version; the bundle's provider has its own."""
        return f"xfer-runner {version('xfer-runner')}"

    def models(self) -> list[str]:
        """None: bundles are named by their paths."""
        return []

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network as the bundle's run built it; `pretrained` follows from the bundle."""
        source = open_bundle_source(name)
        return _provider(source).build(source.name, pretrained=source.weights.pretrained)

    def tags(self, name: str) -> list[str]:
        """The bundle's own weights."""
        return [TAG]

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """The bundle's weights; raises WeightsError for any other tag."""
        if tag not in ("DEFAULT", TAG):
            raise WeightsError(f"{PREFIX}{name} brings its own weights, so there is no tag '{tag}'; leave source.weights out")
        return Tag(TAG, None, open_bundle_source(name).weights.file)

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """What the bundle's run used."""
        return open_bundle_source(name).preprocess

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """A bundle's names are the network's own."""
        return tensors

    def input_size(self, name: str) -> int:
        """The native side of the bundle's model in pixels."""
        source = open_bundle_source(name)
        return _provider(source).input_size(source.name)


def _provider(source: SourcePlan) -> Source:
    provider: Source = plugins.load(source.target)()
    return provider
