"""The flagship recipe as a person runs it: with CIFAR-10 and the weights in Keras's folders, and with nothing there and no network.

Both files are made in the true formats: the archive of real images (scikit-learn's handwritten digits, ten classes, enlarged to 32 px),
fewer than CIFAR-10 has; the weights, drawn at random, as Keras's own writer of its older HDF5 files puts them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = "recipes/cifar_mobilenet.yaml"
ARCHIVE = "cifar-10-batches-py-target_archive"
WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
WEIGHTS_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{WEIGHTS}"
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ROWS = 200  # of each batch
SMALL = ("freeze.0.epochs=2", "runtime.precision=float32", "runtime.device=cpu")

WRITE_WEIGHTS = """
import sys, h5py, keras
from keras.src.legacy.saving import legacy_h5_format
build = lambda: keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
keras.utils.set_random_seed(0)
network = build()
with h5py.File(sys.argv[1], "w") as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, network)
again = build()
again.load_weights(sys.argv[1])
assert all((a == b).all() for a, b in zip(network.get_weights(), again.get_weights(), strict=True))
"""


def write_archive(file: Path) -> None:
    """Python 2's names and protocol, as in the published archive."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = [
        Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC) for image in digits.images
    ]
    rows = np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1).reshape(-1) for image in grey])
    files: dict[str, dict[bytes, object]] = {"batches.meta": {b"num_cases_per_batch": ROWS, b"label_names": [n.encode() for n in NAMES]}}
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        part = slice(number * ROWS, (number + 1) * ROWS)
        files[name] = {b"batch_label": name.encode(), b"labels": digits.target[part].tolist(), b"data": rows[part]}
    file.parent.mkdir(parents=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            raw = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


def python(*arguments: str, home: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own, whose Keras lives in `home` and whose network answers nobody."""
    silent = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    own = {"KERAS_HOME": str(home), "XFER_CACHE": str(cache), "COLUMNS": "300", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **silent, **own}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xfer")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Keras's home with both files."""
    home = tmp_path_factory.mktemp("full")
    write_archive(home / "datasets" / ARCHIVE)
    (home / "models").mkdir()
    written = python("-c", WRITE_WEIGHTS, str(home / "models" / WEIGHTS), home=home, cache=cache)
    assert written.returncode == 0, written.stderr
    return home


def said(text: str) -> list[str]:
    """Lines of ours on stderr: TensorFlow adds its own where it looks for a GPU."""
    ours = ("downloading ", "error: ", "  fetch ", RECIPE, "1 recipe", "bundle: ")
    return [line for line in text.splitlines() if line.startswith(ours)]


def test_it_runs_to_the_end(full: Path, cache: Path, tmp_path: Path) -> None:
    done = python("-m", "xfer.cli", "run", RECIPE, *SMALL, "--out", str(tmp_path / "bundle"), home=full, cache=cache)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'bundle'}\n"
    assert said(done.stderr) == [f"bundle: {tmp_path / 'bundle'}"]
    result = json.loads((tmp_path / "bundle/result.json").read_text())
    assert result["status"] == "finished"
    assert result["backend"] == "tensorflow"
    assert result["data"] == {"images": 6 * ROWS, "classes": 10, "quarantined": 0, "computed": 6 * ROWS}
    assert result["phases"][0]["frozen_changed"] == 0
    assert result["phases"][0]["input"]["cut"] == "pooled"
    assert result["metrics"]["test"]["accuracy"] > result["baseline"]["majority"]
    predictions = pyarrow.parquet.read_table(tmp_path / "bundle/predictions.parquet")
    assert len(predictions) == ROWS
    assert set(predictions["label"].to_pylist()) == set(NAMES)
    assert (tmp_path / "bundle/report.html").stat().st_size > 10_000
    assert not [path for path in (full / "datasets").iterdir() if path.name != ARCHIVE]


@pytest.mark.slow
def test_with_both_there_nothing_is_to_be_downloaded(full: Path, cache: Path) -> None:
    checked = python("-m", "xfer.cli", "check", RECIPE, home=full, cache=cache)
    assert (checked.returncode, checked.stdout, said(checked.stderr)) == (0, "", ["1 recipe checked, no fault"])
    planned = python("-m", "xfer.cli", "plan", RECIPE, home=full, cache=cache)
    assert planned.returncode == 0, planned.stderr
    lines = [" ".join(line.split()) for line in planned.stdout.splitlines()]
    assert f"weights imagenet, read from {full / 'models' / WEIGHTS}" in lines
    assert not [line for line in lines if line.startswith("will be downloaded")]
    assert "head on pooled: hidden 1024, 1280 inputs, 10 classes, dropout 0" in lines


@pytest.mark.slow
def test_without_them_check_and_plan_say_where_they_come_from(cache: Path, tmp_path: Path) -> None:
    images, weights = tmp_path / "datasets" / ARCHIVE, tmp_path / "models" / WEIGHTS
    checked = python("-m", "xfer.cli", "check", RECIPE, home=tmp_path, cache=cache)
    assert (checked.returncode, checked.stdout, said(checked.stderr)) == (
        0,
        "",
        [
            f"{RECIPE}: will be downloaded: the images of keras/cifar10, about 170 MB, from www.cs.toronto.edu: {CIFAR_URL} to {images}",
            f"{RECIPE}: will be downloaded: the weights imagenet of keras/MobileNetV2, about 9 MB, from storage.googleapis.com: "
            f"{WEIGHTS_URL} to {weights}",
            "1 recipe checked, no fault",
        ],
    )
    planned = python("-m", "xfer.cli", "plan", RECIPE, home=tmp_path, cache=cache)
    assert planned.returncode == 0, planned.stderr
    lines = [" ".join(line.split()) for line in planned.stdout.splitlines()]
    assert lines[:8] == [
        "will be downloaded the images of keras/cifar10, about 170 MB",
        f"from www.cs.toronto.edu: {CIFAR_URL}",
        f"to {images}",
        "",
        "will be downloaded the weights imagenet of keras/MobileNetV2, about 9 MB",
        f"from storage.googleapis.com: {WEIGHTS_URL}",
        f"to {weights}",
        "",
    ]
    assert "all 10, as announced 45,000 5,000 10,000" in lines
    assert not images.parent.exists()
    assert not weights.parent.exists()


@pytest.mark.slow
def test_without_them_and_without_a_network_a_run_says_what_to_put_where(cache: Path, tmp_path: Path) -> None:
    images, weights = tmp_path / "home/datasets" / ARCHIVE, tmp_path / "home/models" / WEIGHTS
    done = python("-m", "xfer.cli", "run", RECIPE, *SMALL, "--out", str(tmp_path / "bundle"), home=tmp_path / "home", cache=cache)
    assert (done.returncode, done.stdout) == (2, "")
    assert said(done.stderr) == [
        f"downloading {CIFAR_URL} to {images}",
        f"downloading {WEIGHTS_URL} to {weights}",
        "error: the images of keras/cifar10 are not on this machine and can't be downloaded: "
        f"cannot copy {CIFAR_URL}: no connection (Connection refused)",
        f"  fetch {CIFAR_URL} elsewhere and put it at {images}",
        "error: the weights imagenet are not on this machine and can't be downloaded: "
        f"cannot copy {WEIGHTS_URL}: no connection (Connection refused)",
        f"  fetch {WEIGHTS_URL} elsewhere and put it at {weights}",
    ]
    assert not (tmp_path / "bundle").exists()
