"""Random augmentation of an image: a pure function of its canvas and of numbers drawn beforehand, with NumPy and Pillow alone.

Three policies. 'standard' is the random resized crop of Szegedy et al. 2015 ("Going deeper with convolutions", section 6)
with a horizontal flip. 'trivial' adds TrivialAugmentWide (Müller and Hutter 2021, algorithm 1): one operation of one strength,
both uniform. 'randaugment' adds RandAugment (Cubuk et al. 2020, section 3): two operations of strength 9 of 31. Lists and ranges
are those of torchvision's transforms of these names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from xfer.data.augment_ops import OPERATIONS
from xfer.data.decode import Box
from xfer.data.order import keyed_uniform

Policy = Literal["standard", "trivial", "randaugment"]

SCALE = (0.08, 1.0)  # of the frame's area, where nothing else is asked for
RATIO = (3 / 4, 4 / 3)  # width over height
N_TRIES = 10
N_BINS = 31
RANDAUGMENT_BIN = 9
RANDAUGMENT_OPERATIONS = 2

# What each number decides. Places are fixed: a number means the same however many tries fail and whatever the policy.
_TRIES = 0  # two a try: area and ratio
_TOP = _TRIES + 2 * N_TRIES
_LEFT = _TOP + 1
_FLIP = _LEFT + 1
_OPERATIONS = _FLIP + 1  # 'trivial': operation, sign, strength; 'randaugment': operation and sign, twice
N_UNIFORMS = _OPERATIONS + max(3, 2 * RANDAUGMENT_OPERATIONS)

# The head's dropout draws for the same rows in the same epoch; the seed with this flipped in gives numbers apart from its.
_SALT = int.from_bytes(b"augment!", "big")


class Range(NamedTuple):
    """What an operation's strength is, from the bin (0 to 30) and the image's side in pixels; `signed`: or its negative, as likely."""

    strength: Callable[[int, int], float]
    signed: bool


def _up_to(high: float) -> Range:
    return Range(lambda bin_, side: high * bin_ / (N_BINS - 1), signed=True)


def _ranges(*, shear: float, translate: Range, rotate: float, enhance: float, bits: int) -> dict[str, Range]:
    """Every operation's range, in the order of OPERATIONS; posterising takes up to `bits` bits away."""
    nothing = Range(lambda bin_, side: 0.0, signed=False)
    found = {
        "Identity": nothing,
        **dict.fromkeys(("ShearX", "ShearY"), _up_to(shear)),
        **dict.fromkeys(("TranslateX", "TranslateY"), translate),
        "Rotate": _up_to(rotate),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), _up_to(enhance)),
        "Posterize": Range(lambda bin_, side: 8 - round(bits * bin_ / (N_BINS - 1)), signed=False),
        "Solarize": Range(lambda bin_, side: 255 * (N_BINS - 1 - bin_) / (N_BINS - 1), signed=False),
        "AutoContrast": nothing,
        "Equalize": nothing,
    }
    return {name: found[name] for name in OPERATIONS}


_TRIVIAL = _ranges(shear=0.99, translate=_up_to(32.0), rotate=135.0, enhance=0.99, bits=6)
_RANDAUGMENT = _ranges(
    shear=0.3,
    translate=Range(lambda bin_, side: 150 / 331 * side * bin_ / (N_BINS - 1), signed=True),
    rotate=30.0,
    enhance=0.9,
    bits=4,
)
RANGES: dict[str, dict[str, Range]] = {"trivial": _TRIVIAL, "randaugment": _RANDAUGMENT}


def augmented(
    pixels: np.ndarray, box: Box, uniforms: np.ndarray, *, policy: str, side: int, interpolation: str, scale: tuple[float, float] = SCALE
) -> np.ndarray:
    """A random view of an image, uint8 [side, side, 3].

    `pixels` is uint8 [S, S, 3] and `box` the part of it that is image: nothing else of it is ever read. `uniforms`, float32
    [N_UNIFORMS] in [0, 1), decide everything. `interpolation` is a name that a Preprocess may have, `scale` the smallest and the
    largest share of the box's area that a crop shows. The result may be read-only. Raises ValueError for an unknown policy or
    another number of uniforms.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"no augmentation policy is called '{policy}'; there are {', '.join(get_args(Policy))}")
    if uniforms.shape != (N_UNIFORMS,):
        raise ValueError(f"expected {N_UNIFORMS} uniforms for an image, not an array of shape {list(uniforms.shape)}")
    part = random_crop(box, uniforms, scale=scale)
    # Cut out first: Pillow's resize(box=…) reaches as far as its filter does, over the box's edge into the padding.
    cut = pixels[part.top : part.top + part.height, part.left : part.left + part.width]
    image = Image.fromarray(np.ascontiguousarray(cut)).resize((side, side), Image.Resampling[interpolation.upper()])
    if uniforms[_FLIP] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, strength in drawn_operations(uniforms, policy=policy, side=side):
        image = OPERATIONS[name](image, strength)
    return np.asarray(image)


def uniforms_of(rows: np.ndarray, *, seed: int, phase: int, epoch: int) -> np.ndarray:
    """float32 [k, N_UNIFORMS] in [0, 1): what `augmented` needs for the images `rows` (int64 [k]) in this epoch.

    A row's numbers depend on its own row number alone, not on its batch. Raises ValueError for a seed, phase or epoch out of range.
    """
    return keyed_uniform(seed ^ _SALT, phase, epoch, rows, N_UNIFORMS)


def random_crop(box: Box, uniforms: np.ndarray, *, scale: tuple[float, float] = SCALE) -> Box:
    """The part of `box` that is shown, in the canvas's pixels: torchvision's RandomResizedCrop, ten tries and its central fallback.

    Which try is taken doesn't depend on where the crop will lie, so one pair of numbers for the place serves them all.
    """
    draws = uniforms.tolist()
    width, height = _tried(box, draws[_TRIES:_TOP], scale) or (0, 0)
    if width:
        left, top = int(draws[_LEFT] * (box.width - width + 1)), int(draws[_TOP] * (box.height - height + 1))
    else:
        width, height = _fallback(box)
        left, top = (box.width - width) // 2, (box.height - height) // 2
    return Box(box.left + left, box.top + top, width, height)


def _tried(box: Box, draws: list[float], scale: tuple[float, float]) -> tuple[int, int] | None:
    """Width and height of the first of the tries that fits, None if none does. `draws` are area and ratio by turns."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area_draw, ratio_draw in zip(draws[::2], draws[1::2], strict=True):
        area = box.width * box.height * (scale[0] + area_draw * (scale[1] - scale[0]))
        ratio = math.exp(low + ratio_draw * (high - low))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= box.width and 0 < height <= box.height:
            return width, height
    return None


def _fallback(box: Box) -> tuple[int, int]:
    """As much of the frame as the ratios allow."""
    ratio = box.width / box.height
    if ratio < RATIO[0]:
        return box.width, round(box.width / RATIO[0])
    if ratio > RATIO[1]:
        return round(box.height * RATIO[1]), box.height
    return box.width, box.height


def drawn_operations(uniforms: np.ndarray, *, policy: str, side: int) -> list[tuple[str, float]]:
    """The operations that follow crop and flip, each with its strength: none for 'standard', one for 'trivial', two for 'randaugment'."""
    draws = uniforms[_OPERATIONS:].tolist()
    if policy == "trivial":
        return [_drawn(_TRIVIAL, draws[0], draws[1], int(draws[2] * N_BINS), side)]
    if policy == "randaugment":
        pairs = zip(draws[0 : 2 * RANDAUGMENT_OPERATIONS : 2], draws[1 : 2 * RANDAUGMENT_OPERATIONS : 2], strict=True)
        return [_drawn(_RANDAUGMENT, which, sign, RANDAUGMENT_BIN, side) for which, sign in pairs]
    return []


def _drawn(ranges: dict[str, Range], which: float, sign: float, bin_: int, side: int) -> tuple[str, float]:
    name = tuple(ranges)[int(which * len(ranges))]
    strength = ranges[name].strength(bin_, side)
    return name, -strength if ranges[name].signed and sign < 0.5 else strength
