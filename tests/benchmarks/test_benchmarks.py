"""The benchmarks' own parts measure what they say, and the whole of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def process(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import process as module

    return module


@pytest.fixture
def material(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import material as module

    return module


@pytest.fixture
def cold_run(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import cold_run as module

    return module


def test_a_peak_of_memory_is_seen(process):
    """100 MB that are touched and given back again, in a child of the process that is watched."""
    allocate = "import time; block = bytearray(b'x') * 100_000_000; time.sleep(2); del block; time.sleep(0.2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {allocate!r}], check=True)"
    done = process.run([sys.executable, "-c", parent], watch_memory=True)
    if done.rss_anon_bytes is None:
        pytest.skip("this system does not tell a process's anonymous memory")
    assert 100e6 < done.rss_anon_bytes < 160e6


def test_time_is_that_of_the_whole_process(process):
    assert 0.5 < process.run([sys.executable, "-c", "import time; time.sleep(0.5)"]).seconds < 60


def test_a_failed_process_is_not_timed(process):
    with pytest.raises(process.FailedProcessError, match=r"exit code 3 from: .*\nout\nerr\n"):
        process.run([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])


def test_photographs_in_turn_of_their_classes(material, tmp_path):
    chosen = list(material.textile(40))
    assert len({file for _, file in chosen}) == 40
    assert {name: sum(1 for each, _ in chosen if each == name) for name in ("global", "local", "nominal")} == {
        "global": 10,
        "local": 10,
        "nominal": 20,
    }
    root = material.image_folder(tmp_path, 40)
    assert {split: len(list((root / split).rglob("*.jpg"))) for split in ("train", "val")} == {"train": 40, "val": 4}


def test_crops_are_each_another(material, tmp_path):
    import numpy as np

    root = material.arrays(tmp_path, 2100, 16)
    images, labels = np.load(root / "images.npy"), np.load(root / "labels.npy")
    assert images.shape == (2100, 16, 16, 3)
    assert labels.shape == (2100,)
    assert len(np.unique(images.reshape(2100, -1), axis=0)) > 2050
    assert set(labels.tolist()) == {0, 1, 2}


@pytest.fixture
def measured_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import measured_loop as module

    return module


def loop(measured_loop, *, trainable_parameters: int = 10, seconds: tuple[float, ...] = (8.0, 2.0, 4.0)):
    done = measured_loop.Done(
        20.0,
        "epoch 1: loss 0.9\n"
        + json.dumps({"images": 40, "seconds": seconds, "losses": [0.9] * len(seconds), "trainable_parameters": trainable_parameters}),
    )
    return measured_loop.Loop.plain(done)


def test_the_rate_is_over_all_epochs_and_the_later_one_leaves_out_the_first(measured_loop):
    made = loop(measured_loop)
    assert made.rate == pytest.approx(120 / 14)
    assert made.rates == pytest.approx([5, 20, 10])
    assert (made.later_rate, made.later_seconds, made.process_seconds) == (15, 3, 20)


def test_other_work_is_not_compared(measured_loop):
    measured_loop.same_work({"plain": loop(measured_loop), "xfer": loop(measured_loop)})
    with pytest.raises(SystemExit) as stopped:
        measured_loop.same_work({"plain": loop(measured_loop), "xfer": loop(measured_loop, trainable_parameters=11)})
    assert str(stopped.value) == "what is compared is not the same work: plain: 10 parameters, 3 epochs; xfer: 11 parameters, 3 epochs"
    with pytest.raises(SystemExit, match=r"; xfer: 10 parameters, 2 epochs$"):
        measured_loop.same_work({"plain": loop(measured_loop), "xfer": loop(measured_loop, seconds=(8.0, 2.0))})


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "tf_efficientnet_lite0"])
def test_the_plain_loops_train_what_they_say(material, process, measured_loop, tmp_path, model):
    """All of the network and a head for three classes; or only the parameters of its last stage, counted by their names."""
    import timm
    import torchvision

    classes = 3
    root = material.image_folder(tmp_path, 8)
    weights = material.resnet18_weights(tmp_path) if model == "resnet18" else material.lite0_weights(tmp_path)
    network = torchvision.models.resnet18(num_classes=classes) if model == "resnet18" else timm.create_model(model, num_classes=classes)
    last = ("layer4.", "fc.") if model == "resnet18" else ("blocks.5.", "blocks.6.", "conv_head.", "bn2.", "classifier.")
    counts = {"plain_finetune.py": 0, "plain_last_stage.py": 0}
    for name, parameter in network.named_parameters():
        counts["plain_finetune.py"] += parameter.numel()
        counts["plain_last_stage.py"] += parameter.numel() if name.startswith(last) else 0
    for script, count in counts.items():
        made = measured_loop.Loop.plain(process.run(process.python(script, model, str(weights), str(root / "train"), "3")))
        assert made.trainable_parameters == count
        assert len(made.seconds) == len(made.losses) == 3
        assert sum(made.seconds) < made.process_seconds
        assert made.losses[2] < made.losses[0]


@pytest.fixture
def keras_material(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import keras_material as module

    return module


@pytest.fixture
def bench_keras(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import bench_keras as module

    return module


def test_small_images_in_the_archive_of_cifar(keras_material, monkeypatch, tmp_path):
    """Read by xfer; of each photograph several patches, each another; the ten classes of like number; the same whenever they are made."""
    import numpy as np

    from xfer.data.cifar import CIFAR10, read_cifar

    few = list(keras_material.textile(100))
    monkeypatch.setattr(keras_material, "textile", lambda n_images: few)
    folder = tmp_path / CIFAR10.folder
    keras_material.write_archive(folder, 310, n_test=31)
    found = read_cifar(folder, CIFAR10)
    images, labels = found.train
    assert (images.shape, found.test[0].shape) == ((310, 32, 32, 3), (31, 32, 32, 3))
    assert found.classes == tuple(keras_material.CLASSES)
    assert len(np.unique(images.reshape(310, -1), axis=0)) == 310
    assert np.bincount(labels).tolist() == [31] * 10
    assert set(found.test[1].tolist()) == set(range(10))
    assert images.std(axis=(1, 2, 3)).mean() > 5  # not flat
    again, labels_again = keras_material.patches(341)
    assert np.array_equal(again[:310], images)
    assert np.array_equal(labels_again[:310], labels)


def test_the_weights_are_as_keras_publishes_them(keras_material, tmp_path):
    """A group for each of the layers with weights, in the network's order, its tensors by the names of old and in their order."""
    import h5py

    keras_material.write_weights(tmp_path / "models" / "no_top.h5")
    with h5py.File(tmp_path / "models" / "no_top.h5") as file:
        layers = [name.decode() for name in file.attrs["layer_names"]]
        tensors = {layer: [name.decode() for name in file[layer].attrs["weight_names"]] for layer in layers}
        shapes = {name: file[layer][name].shape for layer, names in tensors.items() for name in names}
    assert (len(layers), len(shapes), layers[0], layers[-1]) == (104, 260, "Conv1", "Conv_1_bn")
    norm = [f"bn_Conv1/{name}:0" for name in ("gamma", "beta", "moving_mean", "moving_variance")]
    assert tensors["bn_Conv1"] == norm
    assert shapes["block_3_depthwise/depthwise_kernel:0"] == (3, 3, 144, 1)
    assert shapes["Conv_1/kernel:0"] == (1, 1, 320, 1280)


def test_a_shrunken_run_says_so(bench_keras):
    assert bench_keras.fewer(10_000) == []
    assert bench_keras.fewer(500) == ["shrunk: 500 images, and the targets were set for 10000: starting up weighs more here"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["plain_keras.py", "plain_keras_careful.py", "plain_keras_finetune.py"])
@pytest.mark.parametrize("side", [32, 96])
def test_the_keras_scripts_train_what_they_say(keras_material, process, measured_loop, tmp_path, script, side):
    """The head alone, or all of MobileNetV2 too: 2,223,872 parameters without its classifier and without statistics."""
    home = keras_material.keras_home(tmp_path, 64)
    command = process.python(script, str(keras_material.archive(home)), str(side), "2")
    made = measured_loop.Loop.plain(process.run(command, environment={"KERAS_HOME": str(home)}))
    head = 1280 * 1024 + 1024 + 1024 * 10 + 10
    assert made.trainable_parameters == head + (2_223_872 if script == "plain_keras_finetune.py" else 0)
    assert len(made.seconds) == len(made.losses) == 2
    assert sum(made.seconds) < made.process_seconds
    assert made.losses[1] < made.losses[0]


def test_a_recipe_can_be_changed_without_changing_the_next(cold_run, tmp_path, monkeypatch):
    monkeypatch.setitem(cold_run.MODELS["resnet18"], "weights", lambda work: "none")
    for _ in range(2):
        recipe = cold_run.fine_tuning(tmp_path, "resnet18", {}, train="head", epochs=1)
        assert recipe["source"]["preprocess"]["crop"] == 224
        recipe["source"]["preprocess"] |= {"crop": 64}


@pytest.mark.slow
def test_all_of_them_on_a_few_images(tmp_path):
    command = [sys.executable, str(HERE / "run.py"), "--images", "60", "--only", "resnet18", "--repeats", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["probe"]["resnet18"]["seconds"]) == {
        "classic",
        "careful",
        "careful, allocator tuned",
        "xfer float32",
        "xfer bfloat16",
    }
    assert found["extraction"]["resnet18 float32"]["ratio"] > 0
    assert found["memory"]["ratio"] > 0
    full = found["finetune-all"]["resnet18"]
    assert set(full["loops"]) == {
        "plain float32",
        "xfer float32",
        "plain bfloat16",
        "xfer bfloat16",
        "plain float32, allocator tuned",
    }
    assert all(ratio > 0 for precision in ("float32", "bfloat16") for ratio in full[precision]["ratios"].values())
    last = found["finetune-last"]["resnet18"]
    assert set(last["later_epochs_ratios"]) == {"careful", "careful, allocator tuned"}
    assert (last["input"]["mode"], last["input"]["shape"]) == ("stored", [256, 14, 14])
    assert set(found["finetune-memory"]["store_bytes"].values()) == {19 * 64 * 56 * 56 * 4, 78 * 64 * 56 * 56 * 4}
    assert set(found["startup"]) == {"python -c pass", "xfer --help", "xfer check --shallow", "xfer check, model seen before"}
    frozen = found["keras-probe"]["32"]
    assert set(frozen["seconds"]) == {"classic", "careful", "xfer"}
    assert frozen["against_xfer"]["classic"] > 0
    assert set(found["keras-finetune"]["ratios"]) == {"all_epochs", "later_epochs", "process"}
    assert all(found["keras-extraction"][side]["ratio"] > 0 for side in ("32", "96"))
    assert "shrunk: 60 images, and the targets were set for 10000" in done.stdout
