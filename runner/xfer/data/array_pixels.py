"""Arrays of images to uint8: which shapes are understood, and what their numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xfer.data.decode import NEARLY_BLACK
from xfer.errors import DataError

CHUNK = 1 << 24  # numbers looked at together


@dataclass(frozen=True)
class Scaled:
    """Makes uint8 pixels of one image's numbers: times `factor`, rounded."""

    factor: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.factor == 1 and image.dtype.kind in "iu":
            return image.astype(np.uint8)
        pixels: np.ndarray = np.rint(image.astype(np.float32) * np.float32(self.factor)).astype(np.uint8)
        return pixels


def pixel_rule(parts: Sequence[tuple[str, np.ndarray]], *, path: str = "target.path") -> Scaled | None:
    """How to make uint8 of the images in all parts (the splits) alike; None where they are uint8 already.

    Each part is its place, for messages, and an array [n, H, W], [n, H, W, 1] or [n, H, W, 3]. Booleans are black and
    white. Floating-point numbers are 0..1 if none is above 1, else 0..255; whole numbers are 0..255. Anything beyond, and
    what would come out nearly black, is refused with a DataError rather than guessed.
    """
    for place, images in parts:
        _check_shape(place, images, path)
    types = {images.dtype for _, images in parts}
    if types == {np.dtype(np.uint8)}:
        return None
    if types == {np.dtype(bool)}:
        return Scaled(255.0)
    ranges = [(place, images, *_range(place, images, path)) for place, images in parts]
    for place, images, low, high in ranges:
        if low < 0 or high > 255:
            known = "0..1 and 0..255 are" if images.dtype.kind == "f" else "0..255 is"
            raise DataError(
                f"{place}: values from {low:g} to {high:g}; {known} understood",
                path=path,
                hint="undo the normalisation, scale to 0..255 and save as uint8",
            )
    kinds = {images.dtype.kind == "f" for _, images in parts}
    brightest = max(high for *_, high in ranges)
    if (0 if kinds == {False} else 1) < brightest <= NEARLY_BLACK:
        raise DataError(
            f"{parts[0][0]}: no value is above {brightest:g}, nearly black where 255 is white",
            path=path,
            hint=f"if {brightest:g} is white, save (images * (255 / {brightest:g})).astype('uint8')",
        )
    if len(kinds) > 1:
        raise DataError(
            f"{parts[0][0]} is of type {parts[0][1].dtype} and {parts[1][0]} of type {parts[1][1].dtype}",
            path=path,
            hint="save both as uint8",
        )
    return Scaled(255.0 if kinds == {True} and brightest <= 1 else 1.0)


def _check_shape(place: str, images: np.ndarray, path: str) -> None:
    shape = images.shape
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if fits and 0 not in shape[1:]:
        return
    hint = None
    if len(shape) == 4 and shape[1] in (1, 3):
        hint = "the channels come first here: save images.transpose(0, 2, 3, 1)"
    elif len(shape) == 2:
        side = round(shape[1] ** 0.5)
        hint = (
            f"if these are {side} x {side} px images laid flat, save images.reshape(-1, {side}, {side})"
            if side * side == shape[1]
            else None
        )
    raise DataError(
        f"{place}: images of shape {list(shape)}; [n, height, width], with 1 or 3 channels last or none, is expected", path=path, hint=hint
    )


def _range(place: str, images: np.ndarray, path: str) -> tuple[float, float]:
    """The smallest and largest number, read piece by piece: the array may be larger than memory."""
    if images.dtype.kind not in "iuf":
        raise DataError(f"{place}: images of type {images.dtype}; uint8 is expected", path=path)
    rows = max(1, CHUNK // max(1, int(np.prod(images.shape[1:]))))
    low, high = np.inf, -np.inf
    for start in range(0, len(images), rows):
        piece = images[start : start + rows]
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(f"{place}: there are values that are not finite", path=path)
    return (low, high) if len(images) else (0.0, 0.0)
