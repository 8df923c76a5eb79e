"""The TensorFlow backend: describes, builds and loads Keras networks."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from xfer import plugins
from xfer.backends.backend import Device, installed
from xfer.sources import keras_library

keras = keras_library.keras()  # before anything below imports it: with TensorFlow beneath it, and quiet

from xfer.backends.tensorflow import hardware  # noqa: E402
from xfer.backends.tensorflow.describe import describe  # noqa: E402
from xfer.backends.tensorflow.graph import flatten, named_variables  # noqa: E402
from xfer.backends.tensorflow.network import WEIGHTS_FILE, TensorflowNetwork  # noqa: E402
from xfer.backends.tensorflow.team import DeviceTeam, join  # noqa: E402
from xfer.plan.model_map import ModelMap  # noqa: E402
from xfer.plan.plan import Plan  # noqa: E402
from xfer.sources.keras_weights import put  # noqa: E402
from xfer.sources.source import Source  # noqa: E402

LIBRARIES = ("tensorflow", "keras", "numpy", "pillow")


class TensorflowBackend:
    """Implements `xfer.backends.backend.Backend`."""

    name = "tensorflow"

    def __init__(self) -> None:
        self.team: DeviceTeam | None = None

    def versions(self) -> dict[str, str]:
        return installed(LIBRARIES)

    def join(self, rank: int, size: int, *, device: str = "auto", threads: int | None = None) -> DeviceTeam:
        """Make this process one of those that train together; waits for the others. Before anything else is computed in it, with TF_CONFIG
        set. Networks that are built afterwards belong to the team. Each needs a GPU of its own, or none."""
        self.team = join(rank, size, device=device, threads=threads)
        return self.team

    def device(self, wanted: str) -> Device:
        return hardware.find(wanted)

    def is_memory_full(self, error: BaseException) -> bool:
        return hardware.is_memory_full(error)

    def describe(self, source: Source, *, model: str, name: str, pretrained: bool, image_size: int) -> ModelMap:
        network = source.build(name, pretrained=pretrained, image_size=image_size)
        return describe(network, model=model, library=source.library(), input_size=source.input_size(name), image_size=image_size)

    def build(self, plan: Plan, *, threads: int | None = None) -> TensorflowNetwork:
        source = plugins.load(plan.source.target)()
        base, flat = self._bare(plan, source, threads=threads)
        weights = plan.source.weights
        inside = getattr(source, "brings_weights", False) and weights.kind == "tag"
        if weights.kind != "none" and not inside:
            put(base, named_variables(flat), plan.source, model_map=plan.model)
        return TensorflowNetwork(plan, flat, self.device(plan.runtime.device), team=self.team)

    def load(self, plan: Plan, folder: Path) -> TensorflowNetwork:
        _, flat = self._bare(plan, plugins.load(plan.source.target)(), threads=None)
        network = TensorflowNetwork(plan, flat, self.device(plan.runtime.device), team=self.team)
        saved = load_file(folder / WEIGHTS_FILE)
        network.load_tensors({name: value for name, value in saved.items() if name in network.named})
        return network

    def _bare(self, plan: Plan, source: Any, *, threads: int | None) -> tuple[Any, Any]:
        """The network as its provider builds it, and the same flattened for the plan's image size."""
        hardware.prepare(threads)
        pretrained = plan.source.weights.kind == "tag" or plan.source.weights.pretrained
        with seeded(plan.seed):
            base = source.build(plan.source.name, pretrained=pretrained, image_size=plan.model.image_size)
        return base, flatten(base, image_size=plan.model.image_size)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it Keras draws initial weights from the seed; Python's and NumPy's own generators are as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
