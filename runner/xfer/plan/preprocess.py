"""How an image becomes the network's input: what the weights' own metadata says, overridden by the recipe."""

from __future__ import annotations

from typing import Literal

from xfer.plan.model_map import Frozen


class Preprocess(Frozen):
    """Resize the shorter side to `resize` pixels (`stretch`: both sides to the crop), cut the central `crop` x `crop`, then
    (x / `scale` - `mean`) / `std` per channel, channels ordered as `channels` says.

    `scale` is 255 for mean and std given in 0..1, 1 for 0..255. The recipe's `range` sets what the network wants:
    '0..1' (scale 255), '0..255' (scale 1), '-1..1' (scale 255, mean 0.5, std 0.5).
    """

    resize: int
    crop: int
    stretch: bool = False
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0
    channels: Literal["rgb", "bgr"] = "rgb"

    @property
    def values(self) -> str:
        """What the network's input lies between, for people.

        >>> Preprocess(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3).values
        '-1..1'
        >>> Preprocess(resize=8, crop=8).values
        '0..1, less mean 0.485, 0.456, 0.406, by deviation 0.229, 0.224, 0.225'
        """
        ends = [{(value / self.scale - m) / s for m, s in zip(self.mean, self.std, strict=True)} for value in (0, 255)]
        if all(len(end) == 1 for end in ends):
            return "..".join(f"{end.pop():g}" for end in ends)
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"0..{255 / self.scale:g}, less mean {mean}, by deviation {std}"
