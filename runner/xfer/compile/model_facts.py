"""What the compiler asks about a model: its map, its preprocessing, its weights' place. Cached by model and library version.

`xfer check` imports no framework: a child process makes the facts the first time, and the cache answers after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from xfer import plugins
from xfer.backends.backend import backend_named
from xfer.errors import UsageError, WeightsError, XferError
from xfer.plan.model_map import Frozen, ModelMap
from xfer.plan.preprocess import Preprocess

FACTS_FORMAT = 5  # rises when groups, stages, cuts or notes are derived differently


class ModelFacts(Frozen):
    """A model as the provider and the backend describe it. `tag` and its place are None where the weights are not the provider's;
    `pretrained` says that it is the network which the provider builds for its own."""

    map: ModelMap
    preprocess: Preprocess
    tag: str | None = None
    url: str | None = None
    file: str | None = None
    digest: str | None = None
    pretrained: bool = False


class Question(Frozen):
    """What is asked: `target` is the source plugin, `image_size` None for the weights' own. `stamp` tells one state of a model's file
    from another; `weights` are a file's path, its part and its state, where they may decide how the network is built; `local` is the
    text of the recipe's plugin files by their modules."""

    target: str
    model: str
    name: str
    library: str
    tag: str | None
    image_size: int | None
    stamp: str | None = None
    weights: tuple[str, str | None, str] | None = None
    local: dict[str, str] = {}


class UnknownModelError(UsageError):
    """The provider has no such model; `hint` is the nearest name."""


def answer(question: Question, *, cache: Path, in_process: bool) -> ModelFacts:
    """The facts, from the cache, from this process or from a child; raises UnknownModelError, WeightsError or UsageError."""
    file = cache / "models" / f"{_key(question)}.json"
    try:
        return ModelFacts.model_validate_json(file.read_text())
    except (OSError, ValueError):
        facts = make(question) if in_process else _in_child(question)
    _keep(file, facts)
    return facts


def make(question: Question) -> ModelFacts:
    """The facts, computed here: imports the framework."""
    for module, text in question.local.items():
        plugins.load_local(text, stem=plugins.stem(module))
    source = plugins.load(question.target)()
    if not getattr(source, "named_by_path", False):
        models = source.models()
        if question.name.partition(".")[0] not in models:  # timm's names may carry a weights tag: resnet18.a1_in1k
            raise UnknownModelError(f"{source.provider} has no model '{question.name}'", hint=plugins.nearest(question.name, models))
    tag = source.tag(question.name, question.tag, image_size=question.image_size) if question.tag else None
    preprocess = source.preprocess(question.name, tag.name if tag else None)
    pretrained = tag is not None
    if question.weights is not None:
        file, part, _ = question.weights
        pretrained = source.is_for_own(question.name, Path(file), part)
    size = question.image_size or preprocess.crop
    backend = backend_named(source.backend)
    model_map = backend.describe(source, model=question.model, name=question.name, pretrained=pretrained, image_size=size)
    found = ModelFacts(map=model_map, preprocess=preprocess, pretrained=pretrained)
    if tag is None:
        return found
    return found.model_copy(update={"tag": tag.name, "url": tag.url, "file": tag.file, "digest": tag.digest})


def _key(question: Question) -> str:
    places = {name: os.environ.get(name) for name in ("TORCH_HOME", "HF_HOME", "KERAS_HOME", "HOME")}
    text = json.dumps([FACTS_FORMAT, question.model_dump(), places], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _keep(file: Path, facts: ModelFacts) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            temporary.write(facts.model_dump_json())
        os.replace(temporary.name, file)
    except OSError:
        return  # a cache that can't be written only costs time; `run` reports it where it matters


def _in_child(question: Question) -> ModelFacts:
    command = [sys.executable, "-m", "xfer.compile.model_facts"]
    written = question.model_dump_json()  # not an argument: Linux takes 128 KiB of one, and plugins may be longer
    done = subprocess.run(command, input=written, capture_output=True, text=True, encoding="utf-8", check=False)
    lines = done.stdout.strip().splitlines()
    if not lines:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise XferError(f"the process that describes {question.model} ended without an answer: {last[0]}")
    reply: dict[str, Any] = json.loads(lines[-1])
    if "error" in reply:
        if reply["kind"] == "WeightsError":
            raise WeightsError(reply["error"], path=reply["path"], hint=reply["hint"])
        raise (UnknownModelError if reply["kind"] == "UnknownModelError" else UsageError)(reply["error"], hint=reply["hint"])
    return ModelFacts.model_validate(reply)


def _child(written: str) -> None:
    try:
        sys.stdout.write(make(Question.model_validate_json(written)).model_dump_json() + "\n")
    except XferError as error:
        reply = {"error": error.message, "kind": type(error).__name__, "hint": error.hint, "path": getattr(error, "path", None)}
        sys.stdout.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    _child(sys.stdin.buffer.read().decode("utf-8"))
