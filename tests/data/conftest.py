from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xfer.data.dataset import Dataset

Draw = Callable[..., np.ndarray]


@pytest.fixture
def draw() -> Draw:
    """A smooth random picture, uint8 [height, width, 3] (or [height, width])."""

    def picture(width: int, height: int, *, seed: int = 0, grey: bool = False) -> np.ndarray:
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (5, 7) if grey else (5, 7, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))

    return picture


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """The bytes of an image file."""

    def encode(image: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def class_folders(tmp_path: Path, draw: Draw) -> Callable[..., Path]:
    """Writes small images at the given relative paths and returns the folder."""

    def write(*paths: str, root: str = "images") -> Path:
        folder = tmp_path / root
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if path.endswith("/"):
                file.mkdir(exist_ok=True)
            else:
                pixels = Image.fromarray(draw(12, 10, seed=number))
                pixels.save(file, {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(file.suffix[1:].lower(), "PNG"))
        return folder

    return write


@pytest.fixture
def in_memory() -> Callable[..., Dataset]:
    """A dataset whose rows are the given raw images."""

    def make(raws: list[Any], *, labels: list[int] | None = None) -> Dataset:
        n = len(raws)

        def read(row: int) -> Any:
            if isinstance(raws[row], BaseException):
                raise raws[row]
            return raws[row]

        return Dataset(
            classes=("a", "b"),
            keys=tuple(str(row) for row in range(n)),
            labels=np.array(labels or [row % 2 for row in range(n)], np.int64),
            splits=np.full(n, "", "<U5"),
            read=read,
        )

    return make
