"""Raw content to uint8 RGB pixels, exactly as torchvision's `weights.transforms()` sees an image after conversion to RGB.

What a person sees in a viewer is what the network gets: EXIF orientation applied, transparency over white, 16-bit and
palette images scaled, the first frame of animations. Colour profiles are ignored, as every training set's loader does.
Where a file doesn't say how bright its numbers are, and would come out black, it is unreadable and says why.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin

from xfer.data.dataset import RawImage
from xfer.plan.preprocess import Preprocess

DECODING = 2  # part of the feature store's key: raise it when the same content comes to give other pixels
MAX_PIXELS = 2**31 // 12  # twice Pillow's own limit for a warning: half a gigabyte of RGB
# A step that enlarges beyond this many pixels before it crops (a 1 x 10,000 px strip) resizes the crop's part only.
MAX_RESIZED_PIXELS = 2**26
NEARLY_BLACK = 16  # of 255: the brightest that 12-bit numbers get which are taken for 16-bit ones; so for arrays of numbers

# Formats by content, whatever the ending says (training sets are full of PNG files called .jpg). None runs a program.
_PLUGINS = (JpegImagePlugin, PngImagePlugin, WebPImagePlugin, BmpImagePlugin, TiffImagePlugin, PpmImagePlugin, GifImagePlugin)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
# Pillow lets these out when a file is damaged, depending on the format and the place. MemoryError is not among them: that is ours.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLES = 258, 262, 284, 339  # TIFF 6.0, sections 8 and 19
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2  # what they may say
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class Unreadable(ValueError):
    """The image can't be used; the message is the reason, in words for people."""


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


def decode(raw: RawImage, preprocess: Preprocess) -> np.ndarray:
    """Pixels uint8 [crop, crop, 3] in RGB order: resized and cropped, not normalised.

    Raises Unreadable for content that is no usable image, ValueError for an array of a wrong shape or type.
    """
    image = _opened(raw)
    filter_ = _INTERPOLATION[preprocess.interpolation]
    side = preprocess.crop
    if preprocess.stretch:
        if image.size != (side, side):
            image = image.resize((side, side), filter_)
        return _pixels(image)
    return _pixels(_resized_and_cropped(image, preprocess.resize, side, filter_))


def canvas(raw: RawImage, side: int, *, interpolation: str = "bilinear") -> tuple[np.ndarray, Box]:
    """The whole frame on a square: the longer side resized to `side`, centred, zeros around; and the box that the frame takes.

    Returns uint8 [side, side, 3] and the box. Raises as `decode` does.
    """
    image = _opened(raw)
    longest = max(image.size)
    width, height = (max(1, round(extent * side / longest)) for extent in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), _INTERPOLATION[interpolation])
    box = Box((side - width) // 2, (side - height) // 2, width, height)
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[box.top : box.top + height, box.left : box.left + width] = _pixels(image)
    return pixels, box


@lru_cache(maxsize=1)
def quieten() -> None:
    """Pillow's warnings about odd metadata and big images are ours to judge: the program that decodes calls this once."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", module=r"xfer\.data\.decode")


def _opened(raw: RawImage) -> Image.Image:
    """An image in mode L or RGB, upright. Grey stays grey until the pixels are read: every step treats channels alike."""
    if isinstance(raw, np.ndarray):
        return _from_array(raw)
    if not raw:
        raise Unreadable("empty file")
    try:
        image = _identified(raw)
        _check_size(image)
        _check_samples(image)
        image.load()
        return _upright(_flat(image), image)
    except Unreadable:
        raise
    except _DAMAGE as error:
        raise Unreadable(_reason(error)) from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"expected uint8 pixels [H, W], [H, W, 1] or [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    if 0 in pixels.shape:
        raise Unreadable("an image without pixels")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _identified(raw: bytes) -> Image.Image:
    """The opened file, not loaded. Not `Image.open`, which prints a warning for big images and tries every format there is."""
    prefix = raw[:16]
    failure: BaseException | None = None
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        accepted = accepts(prefix) if accepts else True
        if isinstance(accepted, str) or not accepted:
            continue
        try:
            return factory(BytesIO(raw), "")
        except Image.DecompressionBombError:
            raise
        except _DAMAGE as error:  # a plugin's way to say "not mine", or a header that makes no sense
            failure = error
    if failure is not None:
        if str(failure) == "unknown pixel mode":
            raise Unreadable("a TIFF with pixels of a kind that is not read; save it with 8 bits for each colour") from failure
        raise Unreadable("damaged file: its header can't be read") from failure
    raise Unreadable("not an image")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"too large: {width} x {height} pixels, the limit is {MAX_PIXELS:,} pixels")
    if not width * height:
        raise Unreadable("an image without pixels")


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """What a TIFF file says of its pixels; of another file nothing."""
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _check_samples(image: Image.Image) -> None:
    """Refuses what Pillow would read as other pixels than they are."""
    tags = _tags(image)
    bits = tags.get(_BITS, (1,))
    if tags.get(_PLANES) == _SEPARATE and len(bits) > 1 and max(bits) > 8:
        raise Unreadable(f"a TIFF of {max(bits)} bits with each colour in a plane of its own; save it with the colours of a pixel together")
    if bits[0] == 8 and _SIGNED in tags.get(_SAMPLES, ()):
        raise Unreadable("signed 8-bit pixels; save them as 0..255")


def _upright(flat: Image.Image, image: Image.Image) -> Image.Image:
    """`flat` with the EXIF orientation of the file. Broken EXIF data is no reason to lose the image."""
    try:
        method = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        method = None
    return flat if method is None else flat.transpose(method)


def _flat(image: Image.Image) -> Image.Image:
    """Any colour mode to L or RGB."""
    if image.mode.startswith(("I", "F")):
        return _narrowed(image)
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _narrowed(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits to 8 bits. Whole numbers have the range of the file's depth, those of 32 bits are 16-bit; floats are
    0..1 or 0..255. What would come out (nearly) black is of another range, and which one only the owner knows."""
    values = np.asarray(image)
    tags = _tags(image)
    signed = tags.get(_SAMPLES, (1,))[0] == _SIGNED
    if values.dtype == np.int32 and tags and not signed:
        values = values.view(np.uint32)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unreadable("floating-point pixels that are not finite")
    if values.dtype.kind == "f":
        kind, known, white = "floating-point", "0..1 and 0..255 are", 1.0 if high <= 1 else 255.0
    else:
        depth = min(tags.get(_BITS, (16,))[0], 16)
        white = 2 ** (depth - 1 if signed and depth == tags[_BITS][0] else depth) - 1
        kind, known = "whole-number", f"0..{white} is"
    if low < 0 or high > white:
        raise Unreadable(f"{kind} pixels from {low:.10g} to {high:.10g}; {known} understood")
    if white != 1 and 0 < high * (255 / white) <= NEARLY_BLACK:
        raise Unreadable(f"{kind} pixels from {low:.10g} to {high:.10g}, nearly black where {white:g} is white; scale them to 0..{white:g}")
    grey = np.rint(values * np.float32(255 / white)).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)


def _resized_and_cropped(image: Image.Image, resize: int, crop: int, filter_: Image.Resampling) -> Image.Image:
    """The shorter side resized, the centre cut out; zeros where the image is smaller than the crop."""
    width, height = image.size
    shorter, longer = min(width, height), max(width, height)
    new_longer = int(resize * longer / shorter)
    size = (resize, new_longer) if width <= height else (new_longer, resize)
    left, top = (_offset(extent, crop) for extent in size)
    if size == image.size:
        pass
    elif size[0] * size[1] <= MAX_RESIZED_PIXELS:
        image = image.resize(size, filter_)
    else:
        return _part_resized(image, size, crop, filter_)
    if image.size == (crop, crop):
        return image
    return image.crop((left, top, left + crop, top + crop))


def _part_resized(image: Image.Image, size: tuple[int, int], crop: int, filter_: Image.Resampling) -> Image.Image:
    """As resize and crop, without ever holding the whole of an extremely long image; equal to rounding."""
    shown = tuple(min(extent, crop) for extent in size)
    start = tuple(max(0, _offset(extent, crop)) for extent in size)
    scale = tuple(old / new for old, new in zip(image.size, size, strict=True))
    box = (start[0] * scale[0], start[1] * scale[1], (start[0] + shown[0]) * scale[0], (start[1] + shown[1]) * scale[1])
    part = image.resize((shown[0], shown[1]), filter_, box=box)
    left, top = (min(0, _offset(extent, crop)) for extent in size)
    return part.crop((left, top, left + crop, top + crop))


def _offset(extent: int, crop: int) -> int:
    """Where the crop starts, negative where zeros are put before: the rounding of torchvision's center_crop."""
    return -((crop - extent) // 2) if extent < crop else int(round((extent - crop) / 2.0))


def _pixels(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return np.repeat(values[:, :, None], 3, axis=2) if values.ndim == 2 else values


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: the limit is {MAX_PIXELS:,} pixels"
    text = str(error).lower()
    if "truncated" in text or isinstance(error, EOFError):
        return "truncated file"
    if text and isinstance(error, OSError):
        return f"damaged file: {text.splitlines()[0].rstrip('.')}"
    return "damaged file: its content makes no sense"  # Python's words for it would help no one
