"""Canvases as rows of the store, and views of whole batches of them."""

from __future__ import annotations

import numpy as np
import pytest

from xfer.data.augment import augmented, uniforms_of
from xfer.data.canvas import augment_rows, canvas_row, canvas_side, pack, unpack
from xfer.data.decode import Box, Unreadable, canvas

POLICIES = ("standard", "trivial", "randaugment")


def uniforms_for(rows):
    return uniforms_of(np.asarray(rows), seed=1, phase=0, epoch=3)


@pytest.fixture
def canvases(draw):
    """Ten canvases for a network that takes 32 px, of frames of all kinds of shapes."""
    sizes = [(40 + 13 * number, 120 - 9 * number) for number in range(10)]
    return np.stack([canvas_row(draw(*size, seed=number), crop=32, interpolation="bilinear") for number, size in enumerate(sizes)])


@pytest.mark.parametrize(("crop", "side"), [(224, 336), (299, 448), (32, 48), (8, 12), (7, 10), (6, 10), (2, 4), (1, 4)])
def test_sides_are_even_and_half_as_large_again(crop, side):
    assert canvas_side(crop) == side


@pytest.mark.parametrize("box", [Box(0, 0, 12, 12), Box(0, 4, 12, 3), Box(5, 0, 1, 12), Box(1, 2, 259, 65535)])
def test_what_is_packed_is_unpacked(draw, box):
    pixels = draw(12, 12)
    row = pack(pixels, box)
    assert (row.shape, row.dtype) == ((13, 12, 3), np.uint8)
    found, found_box = unpack(row)
    np.testing.assert_array_equal(found, pixels)
    assert found.base is row
    assert found_box == box
    assert all(type(number) is int for number in found_box)


def test_the_box_is_eight_little_endian_bytes(draw):
    row = pack(draw(12, 12), Box(1, 2, 259, 65535))
    assert row[12].reshape(-1).tolist() == [1, 0, 2, 0, 3, 1, 255, 255, *[0] * 28]


def test_a_row_of_a_memory_map_is_unpacked_where_it_lies(draw, tmp_path):
    row = pack(draw(12, 12), Box(0, 3, 12, 6))
    np.save(tmp_path / "rows.npy", np.stack([row, row]))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    pixels, box = unpack(mapped[1])
    assert np.shares_memory(pixels, mapped)
    assert box == Box(0, 3, 12, 6)


def test_what_cannot_be_packed():
    for shape, dtype in (((4, 5, 3), np.uint8), ((4, 4), np.uint8), ((4, 4, 3), np.float32), ((2, 2, 3), np.uint8)):
        wrong = np.zeros(shape, dtype)
        with pytest.raises(ValueError, match="expected") as error:
            pack(wrong, Box(0, 0, 1, 1))
        assert str(error.value) == f"expected uint8 pixels [S, S, 3] with S at least 3, not {wrong.dtype} {list(wrong.shape)}"
    with pytest.raises(OverflowError):
        pack(np.zeros((4, 4, 3), np.uint8), Box(0, 0, 65536, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_row_is_the_canvas_of_the_image(draw, encoded, interpolation):
    raw = encoded(draw(400, 100))
    row = canvas_row(raw, crop=224, interpolation=interpolation)
    assert row.shape == (337, 336, 3)
    pixels, box = unpack(row)
    expected, expected_box = canvas(raw, 336, interpolation=interpolation)
    np.testing.assert_array_equal(pixels, expected)
    assert box == expected_box == Box(0, 126, 336, 84)


def test_a_bad_image_has_no_row():
    with pytest.raises(Unreadable, match="not an image"):
        canvas_row(b"text", crop=32, interpolation="bilinear")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_view_depends_on_its_own_row_alone(canvases, policy):
    uniforms = uniforms_for(range(10))
    settings = {"policy": policy, "side": 32, "interpolation": "bicubic"}
    together = augment_rows(canvases, uniforms, **settings)
    assert (together.shape, together.dtype, together.flags.writeable) == ((10, 32, 32, 3), np.uint8, True)
    for number in range(10):
        np.testing.assert_array_equal(together[number], augmented(*unpack(canvases[number]), uniforms[number], **settings))
    order = [7, 2, 2, 9]
    np.testing.assert_array_equal(augment_rows(canvases[order], uniforms_for(order), **settings), together[order])


def test_a_wide_frame_shows_no_padding(encoded):
    raw = encoded(np.full((100, 400, 3), 200, np.uint8))
    canvases = np.repeat(canvas_row(raw, crop=32, interpolation="bicubic")[None], 200, axis=0)
    views = augment_rows(canvases, uniforms_for(range(200)), policy="standard", side=32, interpolation="bicubic")
    assert (views == 200).all()


def test_scale_reaches_the_crop(canvases):
    settings = {"policy": "standard", "side": 32, "interpolation": "bilinear", "scale": (0.7, 0.9)}
    uniforms = uniforms_for(range(10))
    views = augment_rows(canvases, uniforms, **settings)
    for number in range(10):
        np.testing.assert_array_equal(views[number], augmented(*unpack(canvases[number]), uniforms[number], **settings))
    assert not np.array_equal(views, augment_rows(canvases, uniforms, **{**settings, "scale": (0.08, 1.0)}))


def test_canvases_are_only_read(canvases):
    canvases.flags.writeable = False
    augment_rows(canvases, uniforms_for(range(10)), policy="trivial", side=32, interpolation="bilinear")


def test_no_rows_and_rows_that_do_not_match(canvases):
    settings = {"policy": "standard", "side": 32, "interpolation": "bilinear"}
    assert augment_rows(canvases[:0], uniforms_for([]), **settings).shape == (0, 32, 32, 3)
    with pytest.raises(ValueError, match="expected uniforms") as error:
        augment_rows(canvases, uniforms_for(range(9)), **settings)
    assert str(error.value) == "expected uniforms for 10 images, not for 9"


def test_an_unknown_policy_is_said(canvases):
    with pytest.raises(ValueError, match="no augmentation policy is called 'mixup'"):
        augment_rows(canvases, uniforms_for(range(10)), policy="mixup", side=32, interpolation="bilinear")
