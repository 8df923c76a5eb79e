"""The portable graph as data: its files, its names, its words for what can't be written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from xfer.backends.graph_writer import Writer
from xfer.backends.portable_folder import PortableFolder
from xfer.errors import UsageError, WeightsError
from xfer.plan import portable as graph
from xfer.plan.portable import (
    GRAPH_FILE,
    NO_SIDES,
    TENSORS_FILE,
    Names,
    NotPortableError,
    Pair,
    Portable,
    Sides,
    read,
    read_tensors,
    write,
)
from xfer.plan.preprocess import Preprocess


def small() -> tuple[Portable, dict[str, np.ndarray]]:
    """A convolution, an activation, a pooling that ceil_mode enlarges, and an average."""
    writer = Writer("own/small")
    x = writer.images(7)
    weights = {"weight": np.arange(4 * 3 * 3 * 3).reshape(4, 3, 3, 3), "bias": None}
    x = writer.add(graph.Conv, "stem.conv", x, (4, 7, 7), weights=weights, stride=(1, 1), padding=((1, 1), (1, 1)))
    x = writer.activation("stem.relu", x, "relu")
    x = writer.pool("pool", x, "max", (4, 4, 4), window=(2, 2), stride=(2, 2), padding=NO_SIDES, counts_padding=False)
    preprocess = Preprocess(resize=8, crop=7)
    portable = writer.finish(x, averaged=(1, 2), backend="torch", input_size=7, image_size=7, preprocess=preprocess)
    return portable, writer.tensors


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    portable, tensors = small()
    write(tmp_path / "network", portable, tensors)
    assert sorted(path.name for path in (tmp_path / "network").iterdir()) == [GRAPH_FILE, TENSORS_FILE]
    assert read(tmp_path / "network") == portable
    found = read_tensors(tmp_path / "network")
    assert list(found) == ["stem.conv.weight"]
    assert found["stem.conv.weight"].dtype == np.float32
    np.testing.assert_array_equal(found["stem.conv.weight"], tensors["stem.conv.weight"])


def test_the_graph_is_plain_json() -> None:
    portable, _ = small()
    operations = json.loads(portable.model_dump_json())["operations"]
    assert [(o["name"], o["kind"], o["inputs"]) for o in operations] == [
        ("stem.conv", "conv", ["images"]),
        ("stem.relu", "activation", ["stem.conv"]),
        ("pool", "pool", ["stem.relu"]),
        ("pooled_features", "reduce", ["pool"]),
    ]
    assert operations[2]["padding"] == [[0, 1], [0, 1]]  # the fourth window hangs over
    assert (portable.features, portable.width) == ("pooled_features", 4)


def test_an_operation_that_nobody_knows_is_refused() -> None:
    portable, _ = small()
    document = json.loads(portable.model_dump_json())
    document["operations"][1]["kind"] = "fold"
    with pytest.raises(ValidationError, match="union_tag_invalid"):
        Portable.model_validate(document)


def test_names_that_torch_has_already_get_another() -> None:
    names = Names()
    wanted = ("train", "block.items", "images", "a..b", "network_classifier")
    assert [names.free(name) for name in wanted] == ["train_", "block.items_", "images_", "a._.b", "network_classifier_"]


def test_what_has_no_portable_form_is_told_with_its_place() -> None:
    writer = Writer("torchvision/vit_b_16")
    error = writer.refuse("encoder.layers.0.self_attention", "MultiheadAttention")
    assert isinstance(error, NotPortableError)
    assert isinstance(error, UsageError)
    assert error.message == (
        "both backends can't hold torchvision/vit_b_16: MultiheadAttention at 'encoder.layers.0.self_attention' is not portable"
    )
    assert error.hint == "xfer parity knows convolutions, dense layers, normalisations, poolings, activations and what joins them"
    assert writer.refuse("a", "b", "why").message == "both backends can't hold torchvision/vit_b_16: b at 'a' is not portable: why"


@pytest.mark.parametrize(
    ("window", "padding", "row"),
    [((3, 3), ((1, 1), (1, 1)), (3, 4, 4)), ((4, 3), ((1, 1), (0, 0)), (3, 3, 3))],
    ids=["both sides", "one side is padded, the other one gets more"],
)
def test_an_average_that_counts_its_padding_and_not_what_ceil_mode_adds(window: Pair, padding: Sides, row: tuple[int, ...]) -> None:
    writer = Writer("own/small")
    with pytest.raises(NotPortableError, match="^both backends can't hold own/small: an average at 'pool' is not portable: it counts its "):
        writer.pool("pool", writer.images(6), "average", row, window=window, stride=(2, 2), padding=padding, counts_padding=True)


@pytest.mark.parametrize(("size", "wanted", "kind"), [(7, 7, None), (7, 1, "reduce"), (8, 4, "pool"), (7, 3, "adaptive_average")])
def test_an_adaptive_average_takes_its_simplest_form(size: int, wanted: int, kind: str | None) -> None:
    writer = Writer("own/small")
    found = writer.adaptive_average("pool", writer.images(size), (wanted, wanted))
    assert found.row == (3, wanted, wanted)
    assert [operation.kind for operation in writer.operations] == ([kind] if kind else [])


def test_a_folder_as_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portable, tensors = small()
    write(tmp_path / "network", portable, tensors)
    monkeypatch.chdir(tmp_path)
    source = PortableFolder()
    name = source.located("network")
    assert name == str(tmp_path / "network")
    assert source.tag(name, "DEFAULT").file == str(tmp_path / "network" / TENSORS_FILE)
    assert (source.tags(name), source.input_size(name), source.preprocess(name, None).crop) == (["portable"], 7, 7)
    before = source.stamp(name)
    write(tmp_path / "network", portable, {key: value + 1 for key, value in tensors.items()})
    assert source.stamp(name) != before
    message = "^a portable network brings its own weights, so there is no tag 'IMAGENET'; leave source.weights out$"
    with pytest.raises(WeightsError, match=message):
        source.tag(name, "IMAGENET")
    with pytest.raises(UsageError, match=f"^{tmp_path} holds no portable network: no such file or directory$"):
        source.stamp(str(tmp_path))
