from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

import xfer.data.decode
from xfer.data.decode import Box, Unreadable, canvas, decode
from xfer.plan.preprocess import Preprocess

SAME = Preprocess(resize=8, crop=8)  # an 8 x 8 image passes untouched
SIZES = [
    (250, 250),
    (500, 333),
    (333, 500),
    (256, 256),
    (257, 256),
    (100, 300),
    (1, 1),
    (7, 3),
    (1000, 37),
    (31, 1000),
    (224, 224),
    (639, 480),
]


def opened(raw):
    """The pixels of an 8 x 8 image as the network gets them."""
    return decode(raw, SAME)


def tiff(pixels, bits, *, order="<", colours=1, samples=1, planes=1, zero_is_white=False):
    """An uncompressed TIFF of 8 x 8 pixels of a kind that Pillow does not write."""
    photometric = 2 if colours == 3 else 0 if zero_is_white else 1
    plane = len(pixels) // colours if planes == 2 else len(pixels)
    starts = [8 + plane * number for number in range(len(pixels) // plane)]
    tags = [
        *[(256, [8]), (257, [8]), (258, [bits] * colours), (259, [1]), (262, [photometric]), (273, starts), (277, [colours]), (278, [8])],
        *[(279, [plane] * len(starts)), (284, [planes]), (339, [samples] * colours)],
    ]
    beyond = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag, values in tags:
        packed = struct.pack(f"{order}{len(values)}H", *values)
        where = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", beyond + len(rest))
        rest += packed if len(packed) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + rest


class TestLikeTorchvision:
    """Bit for bit what the weights' own transforms see."""

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
    @pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (64, 64), (33, 32), (30, 41), (5, 224), (224, 5)])
    def test_sizes(self, draw, interpolation, resize, crop):
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms._presets import ImageClassification

        theirs = ImageClassification(
            crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation), mean=(0, 0, 0), std=(1, 1, 1)
        )
        ours = Preprocess(resize=resize, crop=crop, interpolation=interpolation)
        for number, (width, height) in enumerate(SIZES):
            pixels = draw(width, height, seed=number)
            expected = (theirs(Image.fromarray(pixels)) * 255).round().byte().permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(decode(pixels, ours), expected, err_msg=f"{width}x{height}")

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
    def test_grey_is_what_rgb_would_be(self, draw, interpolation):
        ours = Preprocess(resize=60, crop=50, interpolation=interpolation)
        for width, height in SIZES:
            grey = draw(width, height, grey=True)
            np.testing.assert_array_equal(decode(grey, ours), decode(np.stack([grey] * 3, axis=2), ours))

    def test_a_jpeg_file(self, draw, encoded):
        from torchvision.models import ResNet18_Weights

        raw = encoded(draw(301, 217), "JPEG", quality=80)
        weights = ResNet18_Weights.DEFAULT.transforms()
        mean, std = np.array(weights.mean, np.float32), np.array(weights.std, np.float32)
        theirs = weights(Image.open(io.BytesIO(raw)).convert("RGB")).permute(1, 2, 0).numpy()
        ours = (decode(raw, Preprocess(resize=256, crop=224)).astype(np.float32) / 255 - mean) / std
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    def test_stretch(self, draw):
        pixels = draw(90, 40)
        ours = decode(pixels, Preprocess(resize=99, crop=32, stretch=True, interpolation="bicubic"))
        np.testing.assert_array_equal(ours, np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)))

    def test_an_extremely_long_image_takes_no_memory_and_is_equal_to_rounding(self, draw, monkeypatch):
        ours = Preprocess(resize=64, crop=56)
        for width, height in [(1, 700), (900, 2), (3, 500)]:
            pixels = draw(width, height)
            whole = decode(pixels, ours)
            monkeypatch.setattr(xfer.data.decode, "MAX_RESIZED_PIXELS", 1000)
            assert np.abs(decode(pixels, ours).astype(int) - whole.astype(int)).max() <= 1
            monkeypatch.undo()

    def test_a_strip_that_would_need_gigabytes(self):
        pixels = np.full((60_000, 1, 3), 200, np.uint8)
        assert (decode(pixels, Preprocess(resize=256, crop=224)) == 200).all()


class TestColour:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
    def test_jpeg(self, draw, encoded, mode):
        image = Image.fromarray(draw(8, 8)).convert(mode)
        raw = encoded(image, "JPEG", quality=100, subsampling=0)
        np.testing.assert_allclose(opened(raw).astype(int), np.asarray(image.convert("RGB")).astype(int), atol=12)

    @pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
    def test_lossless_formats(self, encoded, form):
        pixels = (np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4).repeat(3, axis=2)
        np.testing.assert_array_equal(opened(encoded(pixels, form, **({"lossless": True} if form == "WEBP" else {}))), pixels)

    @pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
    def test_alpha_lies_over_white(self, encoded, form):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[:, :, 0] = 200
        pixels[:, 2:, 3] = 255
        pixels[:, :2, 3] = 0
        pixels[:, 2:4, 3] = 51
        out = opened(encoded(pixels, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})))
        assert out[0, 0].tolist() == [255, 255, 255]
        assert out[0, 2].tolist() == [244, 204, 204]
        assert out[0, 7].tolist() == [200, 0, 0]

    def test_grey_with_alpha(self, encoded):
        image = Image.fromarray(np.full((8, 8), 100, np.uint8)).convert("LA")
        image.putalpha(Image.fromarray(np.full((8, 8), 0, np.uint8)))
        assert (opened(encoded(image)) == 255).all()

    def test_palette(self, draw, encoded):
        image = Image.fromarray(draw(8, 8)).quantize(16)
        np.testing.assert_array_equal(opened(encoded(image)), np.asarray(image.convert("RGB")))

    def test_palette_with_a_transparent_entry(self, encoded):
        image = Image.fromarray(np.eye(8, dtype=np.uint8))
        image.putpalette([10, 20, 30, 200, 100, 50])
        out = opened(encoded(image, transparency=0))
        assert out[0, 0].tolist() == [200, 100, 50]
        assert out[0, 1].tolist() == [255, 255, 255]

    def test_palette_with_alpha_per_entry(self, encoded):
        image = Image.fromarray(np.eye(8, dtype=np.uint8))
        image.putpalette([10, 20, 30, 200, 100, 50])
        assert opened(encoded(image, transparency=bytes([255, 0])))[0, 0].tolist() == [255, 255, 255]
        assert opened(encoded(image, transparency=bytes([255, 0])))[0, 1].tolist() == [10, 20, 30]

    def test_a_transparent_colour_of_grey_and_rgb(self, encoded):
        grey = np.where(np.eye(8) > 0, 70, 90).astype(np.uint8)
        assert opened(encoded(grey, transparency=70))[0, :2].tolist() == [[255] * 3, [90] * 3]
        colour = np.stack([grey] * 3, axis=2)
        assert opened(encoded(colour, transparency=(70, 70, 70)))[0, :2].tolist() == [[255] * 3, [90] * 3]

    def test_one_bit(self, encoded):
        image = Image.fromarray(np.eye(8) > 0)
        assert image.mode == "1"
        for form in ("PNG", "TIFF", "BMP", "PPM"):
            np.testing.assert_array_equal(opened(encoded(image, form))[:, :, 0], np.eye(8, dtype=np.uint8) * 255)

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
    def test_16_bit_grey(self, encoded, form):
        values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
        np.testing.assert_array_equal(opened(encoded(values, form))[:, :, 1], np.rint(values / 257).astype(np.uint8))

    def test_16_bit_big_endian_tiff(self):
        values = np.linspace(0, 65535, 64).reshape(8, 8).astype(">u2")
        np.testing.assert_array_equal(opened(tiff(values.tobytes(), 16, order=">"))[:, :, 0], np.rint(values / 257).astype(np.uint8))

    @pytest.mark.parametrize(("kind", "bits", "sample", "top"), [("<u2", 16, 1, 65535), ("<i2", 16, 2, 32767), ("<i4", 32, 2, 65535)])
    def test_whole_numbers_have_the_range_of_their_depth(self, kind, bits, sample, top):
        values = np.linspace(0, top, 64).astype(kind)
        out = opened(tiff(values.tobytes(), bits, samples=sample))
        np.testing.assert_array_equal(out[:, :, 2].ravel(), np.rint(values * (255 / top)).astype(np.uint8))

    def test_12_bit_tiff(self):
        values = np.linspace(0, 4095, 64).astype(np.uint16)
        packed = np.packbits((values[:, None] >> np.arange(11, -1, -1)) & 1)
        np.testing.assert_array_equal(opened(tiff(packed.tobytes(), 12))[:, :, 0].ravel(), np.rint(values * (255 / 4095)).astype(np.uint8))

    @pytest.mark.parametrize(("kind", "bits", "sample", "top"), [("u1", 8, 1, 255), ("<u2", 16, 1, 65535), ("<f4", 32, 3, 1)])
    def test_a_tiff_whose_zero_is_white(self, kind, bits, sample, top):
        values = np.linspace(0, top, 64).astype(kind)
        out = opened(tiff(values.tobytes(), bits, samples=sample, zero_is_white=True))
        np.testing.assert_array_equal(out[:, :, 0].ravel(), 255 - np.rint(values * (255 / top)).astype(np.uint8))

    def test_a_transparent_grey_of_16_bits(self, encoded):
        values = np.full((8, 8), 30_000, np.uint16)
        values[0, 0] = 5
        out = opened(encoded(values, transparency=5))[:, :, 0]
        assert out[0, :2].tolist() == [255, round(30_000 / 257)]

    def test_16_bit_rgb_png(self):
        values = np.linspace(0, 65535, 192).reshape(8, 8, 3).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        raw = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        )
        np.testing.assert_allclose(opened(raw).astype(float), values / 257.0, atol=1)

    @pytest.mark.parametrize("top", [1.0, 255.0])
    def test_floating_point_tiff(self, encoded, top):
        values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
        np.testing.assert_array_equal(opened(encoded(values, "TIFF"))[:, :, 0], np.rint(values * (255 / top)).astype(np.uint8))

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (np.full((8, 8), 300, np.float32), "floating-point pixels from 300 to 300; 0..1 and 0..255 are understood"),
            (np.full((8, 8), -0.5, np.float32), "floating-point pixels from -0.5 to -0.5; 0..1 and 0..255 are understood"),
            (np.full((8, 8), np.nan, np.float32), "floating-point pixels that are not finite"),
            (np.full((8, 8), 70000, np.int32), "whole-number pixels from 70000 to 70000; 0..65535 is understood"),
            (
                np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16),
                "whole-number pixels from 0 to 4095, nearly black where 65535 is white; scale them to 0..65535",
            ),
            (
                np.arange(64, dtype=np.int32).reshape(8, 8) * 4,
                "whole-number pixels from 0 to 252, nearly black where 65535 is white; scale them to 0..65535",
            ),
            (
                np.linspace(0, 1.25, 64).reshape(8, 8).astype(np.float32),
                "floating-point pixels from 0 to 1.25, nearly black where 255 is white; scale them to 0..255",
            ),
        ],
    )
    def test_values_without_a_known_range(self, encoded, values, reason):
        with pytest.raises(Unreadable) as error:
            opened(encoded(values, "TIFF"))
        assert str(error.value) == reason

    @pytest.mark.parametrize("values", [np.zeros((8, 8), np.uint16), np.zeros((8, 8), np.float32), np.full((8, 8), 0.01, np.float32)])
    def test_what_is_dark_on_any_scale_is_an_image(self, encoded, values):
        assert opened(encoded(values, "TIFF")).max() <= 3

    @pytest.mark.parametrize(
        ("raw", "bits", "options", "reason"),
        [
            (
                bytes(384),
                16,
                {"colours": 3, "planes": 2},
                "a TIFF of 16 bits with each colour in a plane of its own; save it with the colours of a pixel together",
            ),
            (bytes(64), 8, {"samples": 2}, "signed 8-bit pixels; save them as 0..255"),
            (
                bytes(768),
                32,
                {"colours": 3, "samples": 3},
                "a TIFF with pixels of a kind that is not read; save it with 8 bits for each colour",
            ),
        ],
    )
    def test_pixels_of_a_kind_that_is_not_read(self, raw, bits, options, reason):
        with pytest.raises(Unreadable) as error:
            opened(tiff(raw, bits, **options))
        assert str(error.value) == reason

    def test_lab(self, draw, encoded):
        image = Image.fromarray(draw(8, 8)).convert("RGB")
        lab = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
        assert np.abs(opened(encoded(lab, "TIFF")).astype(int) - draw(8, 8)).max() < 20

    def test_a_colour_profile_changes_nothing(self, draw, encoded):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
        np.testing.assert_array_equal(opened(encoded(draw(8, 8), icc_profile=profile)), draw(8, 8))


class TestFrames:
    @pytest.mark.parametrize("form", ["WEBP", "TIFF", "GIF", "PNG"])
    def test_the_first_frame(self, encoded, form):
        frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 200)]
        raw = encoded(frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
        assert (opened(raw) == 40).all()

    def test_a_multi_picture_jpeg(self, encoded):
        frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 200)]
        raw = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
        assert np.abs(opened(raw).astype(int) - 40).max() <= 2


class TestOrientation:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif(self, draw, encoded, form, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
        raw = encoded(draw(48, 24), form, exif=exif, **options)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
        assert upright.size == ((48, 24) if orientation < 5 else (24, 48))
        kept = Preprocess(resize=24, crop=48)
        np.testing.assert_array_equal(decode(raw, kept), decode(np.asarray(upright), kept))
        reference = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
        rotated = {
            5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a, -1),
            7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
            8: lambda a: np.rot90(a),
        }
        expected = decode(np.ascontiguousarray((reference | rotated)[orientation](draw(48, 24))), kept)
        assert np.abs(decode(raw, kept).astype(int) - expected).max() <= (8 if form == "JPEG" else 0)

    def test_with_a_transparent_palette(self, encoded):
        exif = Image.Exif()
        exif[0x0112] = 2
        image = Image.fromarray(np.tri(8, dtype=np.uint8))
        image.putpalette([10, 20, 30, 200, 100, 50])
        out = opened(encoded(image, transparency=0, exif=exif))
        assert out[0, 0].tolist() == [255, 255, 255]
        assert out[0, 7].tolist() == [200, 100, 50]

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0rubbish", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]
    )
    def test_broken_exif_loses_no_image(self, draw, encoded, exif):
        np.testing.assert_array_equal(opened(encoded(draw(8, 8), exif=exif)), draw(8, 8))

    def test_an_orientation_that_does_not_exist(self, draw, encoded):
        exif = Image.Exif()
        exif[0x0112] = 77
        np.testing.assert_array_equal(opened(encoded(draw(8, 8), exif=exif)), draw(8, 8))


@pytest.mark.filterwarnings("ignore")
class TestUnreadable:
    def reason(self, raw):
        with pytest.raises(Unreadable) as error:
            decode(raw, SAME)
        return str(error.value)

    def test_empty(self):
        assert self.reason(b"") == "empty file"

    @pytest.mark.parametrize("raw", [b"this is a text that was renamed", b"\0" * 500, b"%PDF-1.4", b"x", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
    def test_no_image(self, raw):
        assert self.reason(raw) == "not an image"

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "GIF"])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_truncated(self, draw, encoded, form, share):
        raw = encoded(draw(90, 70), form)
        assert self.reason(raw[: int(len(raw) * share)]) == "truncated file"

    @pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}])
    def test_a_truncated_tiff(self, draw, encoded, options, capfd):
        raw = encoded(draw(90, 70), "TIFF", **options)
        for share in (0.3, 0.6, 0.9):
            assert self.reason(raw[: int(len(raw) * share)])
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
    def test_a_truncated_webp(self, draw, encoded, share):
        raw = encoded(draw(90, 70), "WEBP")
        assert self.reason(raw[: int(len(raw) * share)])

    def test_one_missing_byte_of_pixels(self, draw, encoded):
        raw = encoded(draw(90, 70), "PPM")
        assert self.reason(raw[:-1]) == "truncated file"

    def test_a_header_and_rubbish(self):
        assert self.reason(b"II*\0rubbish") == "damaged file: its header can't be read"

    def test_content_that_makes_no_sense(self):
        assert self.reason(b"P2 2 2 255\n1 2 x 4") == "damaged file: its content makes no sense"
        assert self.reason(b"P6 x 2 255\n") == "damaged file: its header can't be read"

    def test_pixels_that_do_not_decode(self, draw, encoded):
        raw = bytearray(encoded(draw(30, 30), "JPEG"))
        raw[raw.index(b"\xff\xc4") + 4] = 0xFF  # a Huffman table with an impossible count
        assert self.reason(bytes(raw)) == "damaged file: broken data stream when reading image file"

    def test_a_bomb_is_refused_before_it_is_decoded(self, recwarn):
        raw = b"P6 60000 60000 255\n" + b"\0" * 100
        assert self.reason(raw) == "too large: 60000 x 60000 pixels, the limit is 178,956,970 pixels"
        assert not recwarn.list

    def test_no_warning_below_the_limit(self, recwarn):
        assert self.reason(b"P6 12000 12000 255\n" + b"\0" * 100) == "truncated file"
        assert not recwarn.list

    def test_arrays(self):
        assert self.reason(np.zeros((0, 5, 3), np.uint8)) == "an image without pixels"
        for wrong in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros(4, np.uint8)):
            with pytest.raises(ValueError, match=r"expected uint8 pixels \[H, W\], \[H, W, 1\] or \[H, W, 3\], not ") as error:
                decode(wrong, SAME)
            assert not isinstance(error.value, Unreadable)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damage_anywhere_is_either_unreadable_or_an_image(self, draw, encoded, data):
        form = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "LZW", "P"]))
        picture = draw(20, 16)
        if form == "LZW":
            raw = bytearray(encoded(picture, "TIFF", compression="tiff_lzw"))
        elif form == "P":
            raw = bytearray(encoded(Image.fromarray(picture).quantize(8), "PNG", transparency=0))
        else:
            raw = bytearray(encoded(picture, form))
        for _ in range(data.draw(st.integers(1, 6))):
            raw[data.draw(st.integers(0, min(len(raw) - 1, data.draw(st.sampled_from([40, 200, 10_000])))))] = data.draw(
                st.integers(0, 255)
            )
        end = data.draw(st.integers(0, len(raw)))
        raw = raw[: end if data.draw(st.booleans()) else len(raw)]
        with contextlib.suppress(Unreadable):  # anything else is a mistake of ours
            assert decode(bytes(raw), SAME).shape == (8, 8, 3)


class TestCanvas:
    @pytest.mark.parametrize(
        ("width", "height", "box"),
        [
            (40, 20, Box(0, 16, 64, 32)),
            (20, 40, Box(16, 0, 32, 64)),
            (64, 64, Box(0, 0, 64, 64)),
            (500, 1, Box(0, 31, 64, 1)),
            (1, 1, Box(0, 0, 64, 64)),
            (90, 61, Box(0, 10, 64, 43)),
        ],
    )
    def test_the_whole_frame(self, draw, width, height, box):
        pixels = draw(width, height)
        out, found = canvas(pixels, 64)
        assert found == box
        inside = np.asarray(Image.fromarray(pixels).resize((box.width, box.height), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(out[box.top : box.top + box.height, box.left : box.left + box.width], inside)
        out[box.top : box.top + box.height, box.left : box.left + box.width] = 0
        assert not out.any()

    def test_grey(self, draw):
        assert canvas(draw(30, 20, grey=True), 16)[0].shape == (16, 16, 3)
