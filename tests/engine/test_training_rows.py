"""The batches of an epoch: a last image alone joins the batch before it where batch normalisation learns, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from xfer.compile.compiler import compile_plan
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.recipe.loader import read

SIDE = 8
PLUGIN = '''
"""Three convolutions with batch normalisation, down to one position: there one image has no variance."""

from xfer.methods.method import Method
from xfer.plan.preprocess import Preprocess

WIDTHS = (8, 8, 6)


class Shrinking:
    provider = "shrinking"

    def library(self):
        return f"shrinking {self.backend} 1"

    def models(self):
        return ["small"]

    def tags(self, name):
        return []

    def preprocess(self, name, tag):
        return Preprocess(resize=8, crop=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    def adapt(self, name, tensors, *, image_size=None):
        return tensors

    def input_size(self, name):
        return 8


class OnTorch(Shrinking):
    backend = "torch"

    def build(self, name, *, pretrained, image_size=None):
        from torch import nn

        def block(n_in, n_out):
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())

        blocks = [block(n_in, n_out) for n_in, n_out in zip((3, *WIDTHS), WIDTHS)]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(WIDTHS[-1], 4))


class OnKeras(Shrinking):
    backend = "tensorflow"

    def build(self, name, *, pretrained, image_size=None):
        import keras

        x = entry = keras.Input((8, 8, 3))
        for number, width in enumerate(WIDTHS):
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name=f"conv_{number}")(x)
            x = keras.layers.ReLU(name=f"relu_{number}")(keras.layers.BatchNormalization(name=f"norm_{number}")(x))
        return keras.Model(entry, keras.layers.GlobalAveragePooling2D()(x))


class Rewrites(Method):
    """Batch normalisation everywhere takes the target's statistics."""

    type = "model"
    rewrites_statistics = True


xfer_plugins = {"sources": {"torch": OnTorch, "keras": OnKeras}, "methods": {"rewrites": Rewrites}}
'''
ALL = {"train": "all", "epochs": 2}
FROZEN = {**ALL, "norm": "frozen"}
HEAD = {"train": "head", "epochs": 2}
LAST = {"train": ["last stage", "head"], "epochs": 2}
REESTIMATED = {**ALL, "reestimate_norm": True}
AUGMENTED = {"target": {"augment": "standard"}}
STREAMED = {"runtime": {"cache_budget": "1B"}}


class Killed(BaseException):
    """The end of a life."""


class Listener(Silent):
    """Keeps how many images each step of a phase had; kills the run after `left` of them."""

    def __init__(self, left: float = float("inf")) -> None:
        self.sizes: list[int] = []
        self.left, self.training = left, False

    def start(self, name: str, total: int) -> None:
        self.training = name.startswith("phase")

    def advance(self, n: int) -> None:
        if self.training and n:
            self.sizes.append(n)
            self.left -= 1
            if self.left < 0:
                raise Killed


class Bench:
    """Runs over so many training images, in a folder of its own."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend, self.n_runs = folder, backend, 0
        (folder / "shrinking.py").write_text(PLUGIN)

    def begin(self, n_images: int, batch: int, phase: dict[str, Any], **sections: dict[str, Any]) -> Path:
        random, arrays = np.random.default_rng(0), {}
        for split, n in (("train", n_images), ("val", 6)):
            arrays[f"x_{split}"] = random.integers(0, 255, (n, SIDE, SIDE, 3), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(n) % 3
        np.savez(self.folder / f"{n_images}.npz", **arrays)
        recipe: dict[str, Any] = {
            "source": {"model": f"{self.backend}/small", "weights": "none"},
            "target": {"dataset": "arrays", "path": str(self.folder / f"{n_images}.npz"), "image_size": SIDE, "batch_size": batch,
                       "splits": {"test": 0}},
            "transfer": {"type": "model"},
            "freeze": [phase],
            "optimizer": {"name": "sgd", "lr": 0.01},
            "runtime": {"cache": str(self.folder / "cache"), "precision": "float32", "device": "cpu", "checkpoint": 1},
            "plugins": ["./shrinking.py"],
        }  # fmt: skip
        for name, section in sections.items():
            recipe[name] = {**recipe[name], **section}
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        reading, self.n_runs = read(file), self.n_runs + 1
        bundle = self.folder / f"bundle {self.n_runs}"
        Bundle.create(bundle, compile_plan(reading), recipe=reading.text, resolved=reading.text)
        return bundle

    def live(self, bundle: Path, listener: Listener) -> None:
        opened = Bundle(bundle)
        try:
            Run(opened, reporter=listener, stop=lambda: False).execute()
        finally:
            opened._held.close()

    def run(self, *arguments: Any, **sections: dict[str, Any]) -> tuple[list[int], dict[str, np.ndarray]]:
        """The sizes of the batches, and the exported tensors."""
        bundle, listener = self.begin(*arguments, **sections), Listener()
        self.live(bundle, listener)
        return listener.sizes, load_file(bundle / "model" / "weights.safetensors")


@pytest.fixture(params=["torch", pytest.param("keras", marks=pytest.mark.slow)])
def bench(request, tmp_path) -> Bench:
    return Bench(tmp_path, request.param)


def bits(tensors: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("n_images", "batch", "expected"),
    [(33, 32, [33]), (17, 8, [8, 9]), (18, 8, [8, 8, 2]), (16, 8, [8, 8]), (7, 3, [3, 4]), (6, 8, [6])],
)
def test_a_last_image_alone_joins_the_batch_before_it(bench, n_images, batch, expected):
    sizes, tensors = bench.run(n_images, batch, ALL)
    assert sizes == expected * 2
    assert {int(value) for name, value in tensors.items() if name.endswith("num_batches_tracked")} <= {len(sizes)}


@pytest.mark.parametrize("phase", [ALL, REESTIMATED, LAST], ids=["all", "reestimated", "last stage"])
def test_it_is_the_run_with_a_batch_that_is_one_larger(bench, phase):
    """33 images in a batch of 32, and in one of 33."""
    (one, joined), (two, larger) = bench.run(33, 32, phase), bench.run(33, 33, phase)
    assert one == two == [33, 33]
    assert bits(joined) == bits(larger)


@pytest.mark.parametrize("phase", [FROZEN, HEAD], ids=["frozen", "head"])
def test_where_nothing_learns_from_batches_they_are_as_ever(bench, phase):
    sizes, _ = bench.run(33, 32, phase)
    assert sizes == [32, 1, 32, 1]


@pytest.mark.parametrize("phase", [FROZEN, HEAD], ids=["frozen", "head"])
def test_a_method_that_rewrites_statistics_learns_from_all_batches(bench, phase):
    sizes, _ = bench.run(17, 8, phase, transfer={"type": "model", "method": "rewrites"})
    assert sizes == [8, 9] * 2


@pytest.mark.parametrize("sections", [{}, AUGMENTED, {"target": {"augment": {"policy": "standard", "views": 2}}}],
                         ids=["clean", "random", "views"])  # fmt: skip
def test_stored_and_streamed_are_put_into_the_same_batches(bench, sections):
    (one, stored), (two, streamed) = bench.run(17, 8, ALL, **sections), bench.run(17, 8, ALL, **sections, **STREAMED)
    assert one == two == [8, 9] * 2
    assert bits(stored) == bits(streamed)


@pytest.mark.parametrize("sections", [{}, AUGMENTED], ids=["clean", "random"])
def test_a_run_that_is_killed_inside_an_epoch_goes_on_with_the_same_batches(bench, sections):
    whole = bench.begin(17, 4, ALL, **sections)
    bench.live(whole, undisturbed := Listener())
    assert undisturbed.sizes == [4, 4, 4, 5] * 2
    killed, lives = bench.begin(17, 4, ALL, **sections), 0
    while lives < 20:
        try:
            bench.live(killed, listener := Listener(left=2))
        except Killed:
            lives += 1
        else:
            break
    assert lives > 2
    assert listener.sizes[-1] == 5
    found, expected = (bits(load_file(bundle / "model" / "weights.safetensors")) for bundle in (killed, whole))
    assert found == expected


def test_a_schedule_counts_the_batches_that_there_are(bench):
    """Cosine over two epochs of one batch: the second has half the rate. Were 33 images two batches, it would have another."""
    bundle = bench.begin(33, 32, {**ALL, "schedule": "cosine"})
    bench.live(bundle, Listener())
    lines = [json.loads(line) for line in (bundle / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"]["head"] for line in lines if line["split"] == "train"] == pytest.approx([0.01, 0.005])
