"""Small real networks and a local web server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xfer.plan.model_map import Group, ModelMap, Tensor
from xfer.plan.plan import SourcePlan, WeightsPlan
from xfer.plan.preprocess import Preprocess


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("TORCH_HOME", "KERAS_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def mapped() -> Callable[..., ModelMap]:
    """A ModelMap of a network: one group, and the classifier under `head`."""

    def make(network: nn.Module, head: str, model: str = "test/network") -> ModelMap:
        parameters = {name for name, _ in network.named_parameters()}
        tensors = [
            Tensor(name=name, shape=tuple(tensor.shape), kind="parameter" if name in parameters else "buffer")
            for name, tensor in network.state_dict().items()
        ]
        body = tuple(tensor for tensor in tensors if not tensor.name.startswith(head))
        return ModelMap(
            model=model, backend="torch", library="test 1", input_size=32, image_size=32, cuts=(),
            groups=(Group(name="body", stage="stage0", tensors=body, norm=tuple(t.name for t in body if "running_" in t.name)),),
            classifier=tuple(tensor for tensor in tensors if tensor.name.startswith(head)),
        )  # fmt: skip

    return make


class Small(nn.Module):
    """Convolution, normalisation, linear layers and a classifier of 5 classes."""

    def __init__(self, n_classes: int = 5, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.square = nn.Linear(width, width)
        self.wide = nn.Linear(width, 7)
        self.fc = nn.Linear(7, n_classes)


@pytest.fixture
def small() -> Callable[..., Small]:
    torch.manual_seed(0)
    return Small


@pytest.fixture
def keras_mapped() -> Callable[..., ModelMap]:
    """A ModelMap of a Keras network: one group, and the classifier under `head`."""
    from xfer.backends.tensorflow.graph import named_tensors

    def make(network: Any, head: str | None = None, model: str = "test/network") -> ModelMap:
        tensors = [(Tensor(name=tensor.name, shape=tensor.shape, kind=tensor.kind), tensor.norm) for tensor in named_tensors(network)]
        body = [(tensor, norm) for tensor, norm in tensors if head is None or not tensor.name.startswith(f"{head}/")]
        group = Group(name="body", stage="stage0", tensors=tuple(t for t, _ in body), norm=tuple(t.name for t, norm in body if norm))
        return ModelMap(
            model=model, backend="tensorflow", library="test 1", input_size=8, image_size=8, cuts=(), groups=(group,),
            classifier=tuple(tensor for tensor, _ in tensors if head is not None and tensor.name.startswith(f"{head}/")),
        )  # fmt: skip

    return make


@pytest.fixture
def put_in(keras_mapped: Callable[..., ModelMap]) -> Callable[..., None]:
    """Puts a weight file into a Keras network, as the backend does."""
    from xfer.backends.tensorflow.graph import named_variables
    from xfer.sources.keras_weights import put

    def make(network: Any, file: Path, *, head: str | None = None, kind: str = "file", **weights: Any) -> None:
        plan = SourcePlan(
            model="test/network", name="network", target="x:y", backend="tensorflow", preprocess=Preprocess(resize=8, crop=8),
            weights=WeightsPlan(kind=kind, location=str(file), file=str(file), **weights),
        )  # fmt: skip
        put(network, named_variables(network), plan, model_map=keras_mapped(network, head))

    return make


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Serves `root` on 127.0.0.1; `short` cuts each body off after that many bytes."""
    root = tmp_path / "served"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def do_GET(self) -> None:  # noqa: N802
            serving.asked.append(self.path)
            if serving.short is None:
                super().do_GET()
                return
            content = (root / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: serving.short])

        def log_message(self, *arguments: Any) -> None:
            return

    serving: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.root, serving.asked, serving.short = root, [], None
    serving.url = f"http://127.0.0.1:{serving.server_address[1]}"
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()
