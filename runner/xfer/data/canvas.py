"""Canvases as rows of the feature store: random augmentation starts from them, epoch after epoch, without decoding again.

A canvas is the whole frame on a square half as large again as the network's input. The store knows arrays of one shape only, so the
box that the frame takes travels as one more line below the pixels.
"""

from __future__ import annotations

import numpy as np

from xfer.data.augment import SCALE, augmented
from xfer.data.dataset import RawImage
from xfer.data.decode import Box, canvas

_BOX_TYPE = np.dtype("<u2")  # left, top, width, height
_BOX_BYTES = 4 * _BOX_TYPE.itemsize
_LEAST_SIDE = 4  # of an even side, the first whose extra line has room for the box


def canvas_side(crop: int) -> int:
    """The side of the canvas in pixels for a network that takes [crop, crop]: half as much again, and even.

    >>> canvas_side(224), canvas_side(299), canvas_side(1)
    (336, 448, 4)
    """
    side = round(1.5 * crop)
    return max(_LEAST_SIDE, side + side % 2)


def canvas_row(raw: RawImage, *, crop: int, interpolation: str) -> np.ndarray:
    """A raw image as a row of the store, uint8 [S + 1, S, 3] with S = canvas_side(crop). Raises as `decode` does."""
    return pack(*canvas(raw, canvas_side(crop), interpolation=interpolation))


def pack(pixels: np.ndarray, box: Box) -> np.ndarray:
    """uint8 [S + 1, S, 3]: `pixels` uint8 [S, S, 3], then a line with the box in its first eight bytes and zeros.

    Raises ValueError for pixels of another shape or type or less than 3 wide, OverflowError for a box beyond 65,535.
    """
    side = len(pixels)
    if pixels.shape != (side, side, 3) or pixels.dtype != np.uint8 or 3 * side < _BOX_BYTES:
        raise ValueError(f"expected uint8 pixels [S, S, 3] with S at least 3, not {pixels.dtype} {list(pixels.shape)}")
    row = np.zeros((side + 1, side, 3), np.uint8)
    row[:side] = pixels
    row[side].reshape(-1)[:_BOX_BYTES] = np.array(box, _BOX_TYPE).view(np.uint8)
    return row


def unpack(row: np.ndarray) -> tuple[np.ndarray, Box]:
    """The pixels, a view of the row uint8 [S, S, 3], and the box: what `pack` was given."""
    return row[:-1], Box(*np.frombuffer(row[-1].tobytes()[:_BOX_BYTES], _BOX_TYPE).tolist())


def augment_rows(
    canvases: np.ndarray,
    uniforms: np.ndarray,
    *,
    policy: str,
    side: int,
    interpolation: str,
    scale: tuple[float, float] = SCALE,
) -> np.ndarray:
    """Random views of a batch, uint8 [k, side, side, 3], new and writable.

    `canvases` are rows of the store, uint8 [k, S + 1, S, 3]; `uniforms` float32 [k, N_UNIFORMS], as `uniforms_of` draws them. Each
    view is what `augmented` makes of its own canvas and numbers. Raises as `augmented` does, ValueError where the two have not as many
    rows.
    """
    if len(canvases) != len(uniforms):
        raise ValueError(f"expected uniforms for {len(canvases)} images, not for {len(uniforms)}")
    views = np.empty((len(canvases), side, side, 3), np.uint8)
    for number, row in enumerate(canvases):
        pixels, box = unpack(row)
        views[number] = augmented(pixels, box, uniforms[number], policy=policy, side=side, interpolation=interpolation, scale=scale)
    return views
