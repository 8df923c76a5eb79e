"""The recipe's word on preprocessing, put over what the weights' own metadata says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xfer.errors import UsageError
from xfer.plan.preprocess import Preprocess

N_CHANNELS = 3
# What the network wants its values to be: scale, mean and std.
RANGES: dict[str, tuple[float, float, float]] = {"0..1": (255.0, 0.0, 1.0), "0..255": (1.0, 0.0, 1.0), "-1..1": (255.0, 0.5, 0.5)}
PLACE = "source.preprocess"


def override(base: Preprocess, changes: Mapping[str, Any], image_size: int | None = None) -> Preprocess:
    """`base` for another image size, with the recipe's `changes` (absent or None: as it was) put over it.

    `image_size` is the side that the network sees: it sets `crop` and scales `resize` in proportion. `range` says what the
    network wants; mean and std beside it are in its units, and without them the values are only brought into the range.
    `channels` turned round turns the mean and std that were there too. One number for mean or std stands for all channels.
    Raises UsageError for what contradicts itself.
    """
    wanted = {key: value for key, value in changes.items() if value is not None}
    fields: dict[str, Any] = {key: wanted[key] for key in ("resize", "crop", "interpolation", "channels") if key in wanted}
    if image_size is not None:
        if wanted.get("crop", image_size) != image_size:
            raise UsageError(f"{PLACE}.crop is {wanted['crop']} but target.image_size is {image_size}; both are the side the network sees")
        fields["crop"] = image_size
        fields.setdefault("resize", max(image_size, round(base.resize * image_size / base.crop)))
    mean, std = base.mean, base.std
    if wanted.get("channels", base.channels) != base.channels:
        mean, std = mean[::-1], std[::-1]
    if "range" in wanted:
        scale, middle, spread = RANGES[wanted["range"]]
        fields["scale"], mean, std = scale, (middle,) * N_CHANNELS, (spread,) * N_CHANNELS
    mean, std = _channels(wanted.get("mean", mean), "mean"), _channels(wanted.get("std", std), "std")
    changed = base.model_copy(update={**fields, "mean": mean, "std": std})
    _check(changed, wanted)
    return changed


def _channels(values: Any, key: str) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) == 1:
        numbers *= N_CHANNELS
    if len(numbers) != N_CHANNELS:
        raise UsageError(f"{PLACE}.{key} has {len(numbers)} numbers; give one, or one for each of the {N_CHANNELS} channels")
    return numbers


def _check(changed: Preprocess, wanted: Mapping[str, Any]) -> None:
    if changed.resize < changed.crop:
        raise UsageError(
            f"{PLACE}: images are resized to {changed.resize} pixels, less than the {changed.crop} that are cut out; "
            f"set {'crop' if 'resize' in wanted else 'resize'} too, or target.image_size, which moves both"
        )
    if min(changed.std) <= 0:
        raise UsageError(f"{PLACE}.std must be above 0")
    if changed.scale != 1 and max(abs(value) for value in changed.mean) > 2:
        raise UsageError(f"{PLACE}.mean is {list(changed.mean)}, which is in 0..255: set 'range: 0..255' beside it")
