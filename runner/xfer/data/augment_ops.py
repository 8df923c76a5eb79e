"""The fourteen pixel operations of TrivialAugment and RandAugment, on square or other RGB images, with Pillow alone.

Each takes an image and a strength and returns a new image of the same size. They are those of torchvision's automatic
augmentation with its defaults, pixel by pixel: nearest neighbour, black where the image doesn't reach.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float], Image.Image]

_BLACK = (0, 0, 0)


def _identity(image: Image.Image, strength: float) -> Image.Image:
    return image


def _shear_x(image: Image.Image, strength: float) -> Image.Image:
    """Each row moves by `strength` times its distance from the top: to the left where that is positive."""
    return _affine(image, (1.0, strength, 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, strength, 1.0, 0.0))


def _translate_x(image: Image.Image, strength: float) -> Image.Image:
    """To the right by `strength` pixels, cut to whole ones."""
    return _affine(image, (1.0, 0.0, -float(int(strength)), 0.0, 1.0, 0.0))


def _translate_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(strength))))


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """`matrix` (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_BLACK)


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    """Against the clock by `strength` degrees, about the middle."""
    return image.rotate(strength, Image.Resampling.NEAREST, fillcolor=_BLACK)


def _brightness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.0 + strength)


def _color(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1.0 + strength)


def _contrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1.0 + strength)


def _sharpness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1.0 + strength)


def _posterize(image: Image.Image, strength: float) -> Image.Image:
    """`strength` is the number of bits that stay, 1 to 8."""
    return ImageOps.posterize(image, int(strength))


def _solarize(image: Image.Image, strength: float) -> Image.Image:
    """Values of `strength` (0 to 255) and more are inverted."""
    # A table of our own: Pillow's `solarize` says that it takes whole numbers, and the ranges give halves.
    return image.point([value if value < strength else 255 - value for value in range(256)] * 3)


def _autocontrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.equalize(image)


# The order is torchvision's, so that a number drawn for one of them means the same there.
OPERATIONS: dict[str, Operation] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
