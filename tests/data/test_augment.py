"""Random augmentation against torchvision: operations pixel by pixel, random crops by their distribution, and what may depend on what."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as reference

from xfer.data.augment import N_UNIFORMS, RANGES, augmented, drawn_operations, random_crop, uniforms_of
from xfer.data.augment_ops import OPERATIONS
from xfer.data.decode import Box
from xfer.data.order import keyed_uniform

FRAME = Box(0, 0, 200, 150)
POLICIES = ("standard", "trivial", "randaugment")
SPACES = {"trivial": v2.TrivialAugmentWide._AUGMENTATION_SPACE, "randaugment": v2.RandAugment._AUGMENTATION_SPACE}


def draws(n, *, seed=0):
    return uniforms_of(np.arange(n), seed=seed, phase=0, epoch=0)


def affine(image, *, translate=(0, 0), shear=(0.0, 0.0), center=None):
    return reference.affine(image, angle=0.0, translate=list(translate), scale=1.0, shear=[*shear], center=center)


def shear_of(strength):
    return math.degrees(math.atan(strength))


# As torchvision's automatic augmentation calls its own functions.
REFERENCES = {
    "Identity": lambda image, strength: image,
    "ShearX": lambda image, strength: affine(image, shear=(shear_of(strength), 0.0), center=[0, 0]),
    "ShearY": lambda image, strength: affine(image, shear=(0.0, shear_of(strength)), center=[0, 0]),
    "TranslateX": lambda image, strength: affine(image, translate=(int(strength), 0)),
    "TranslateY": lambda image, strength: affine(image, translate=(0, int(strength))),
    "Rotate": lambda image, strength: reference.rotate(image, angle=strength),
    "Brightness": lambda image, strength: reference.adjust_brightness(image, 1.0 + strength),
    "Color": lambda image, strength: reference.adjust_saturation(image, 1.0 + strength),
    "Contrast": lambda image, strength: reference.adjust_contrast(image, 1.0 + strength),
    "Sharpness": lambda image, strength: reference.adjust_sharpness(image, 1.0 + strength),
    "Posterize": lambda image, strength: reference.posterize(image, int(strength)),
    "Solarize": lambda image, strength: reference.solarize(image, strength),
    "AutoContrast": lambda image, strength: reference.autocontrast(image),
    "Equalize": lambda image, strength: reference.equalize(image),
}


class TestOperations:
    @pytest.mark.parametrize("policy", SPACES)
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_every_strength_is_torchvisions_pixel_by_pixel(self, draw, name, policy):
        """On a dim picture, so that stretching its contrast does something."""
        image = Image.fromarray(draw(64, 64) // 2 + 20)
        strength_at, signed = RANGES[policy][name]
        changed = 0
        for bin_ in range(31):
            strength = strength_at(bin_, 64)
            for signed_strength in (strength, -strength) if signed else (strength,):
                out = OPERATIONS[name](image, signed_strength)
                assert out.size == image.size
                assert out.mode == "RGB"
                np.testing.assert_array_equal(out, REFERENCES[name](image, signed_strength), f"{name} {signed_strength}")
                changed += not np.array_equal(out, image)
        assert changed or name == "Identity"

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_odd_and_flat_images(self, draw, name):
        for pixels in (draw(37, 53), np.full((5, 5, 3), 77, np.uint8), np.zeros((1, 1, 3), np.uint8)):
            image = Image.fromarray(pixels)
            for strength in (3.0, 7.0) if name == "Posterize" else (0.37, 0.9):
                np.testing.assert_array_equal(OPERATIONS[name](image, strength), REFERENCES[name](image, strength))

    def test_the_lists_are_torchvisions(self):
        for policy, space in SPACES.items():
            assert list(OPERATIONS) == list(space) == list(RANGES[policy])

    @pytest.mark.parametrize("side", [32, 224])
    @pytest.mark.parametrize("policy", SPACES)
    def test_the_ranges_are_torchvisions(self, policy, side):
        """To a rounding of its float32. Whole pixels and bits are cut from strengths, so they are compared as they are used;
        one differs: half of 32 pixels are 16 here, and the 15.999999 of a float32 is cut to 15 there."""
        for name, (theirs_at, signed) in SPACES[policy].items():
            theirs = theirs_at(31, side, side)
            ours = np.array([RANGES[policy][name].strength(bin_, side) for bin_ in range(31)])
            assert RANGES[policy][name].signed is signed
            if theirs is None:
                assert not ours.any()
                continue
            np.testing.assert_allclose(ours, theirs * (255 if name == "Solarize" else 1), rtol=1e-6, atol=1e-6)
            if name == "Posterize" or name.startswith("Translate"):
                differ = np.flatnonzero(ours.astype(int) != theirs.numpy().astype(int))
                assert set(differ.tolist()) <= ({15} if policy == "trivial" and name != "Posterize" else set())


class TestCrop:
    @pytest.mark.parametrize("frame", [FRAME, Box(0, 0, 90, 320)])
    def test_it_is_distributed_as_torchvisions(self, frame):
        """Kolmogorov-Smirnov on area, ratio and place. The tall frame is the harder one: tries fail there, and some crops fall back."""
        n = 8000
        ours = np.array([random_crop(frame, uniforms) for uniforms in draws(n)], float)
        torch.manual_seed(0)
        image = Image.new("RGB", (frame.width, frame.height))
        parameters = [v2.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
        theirs = np.array(parameters, float)[:, [1, 0, 3, 2]]
        for crops in (ours, theirs):
            assert (crops[:, 2] >= 1).all()
            assert (crops[:, :2] >= 0).all()
            assert (crops[:, :2] + crops[:, 2:] <= [frame.width, frame.height]).all()
        for measure in (lambda c: c[:, 2] * c[:, 3], lambda c: c[:, 2] / c[:, 3], lambda c: c[:, 0], lambda c: c[:, 1]):
            assert ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001
        quarters = [np.quantile(crops[:, 2] * crops[:, 3], [0.25, 0.5, 0.75]) for crops in (ours, theirs)]
        assert np.abs(quarters[0] / quarters[1] - 1).max() < 0.08  # four deviations of the lowest

    def test_scale_bounds_the_share_that_is_shown(self):
        """A square frame, so that ten tries always find a crop of half of its area or less."""
        box = Box(2, 3, 400, 400)
        shares = [crop.width * crop.height / 160_000 for crop in (random_crop(box, u, scale=(0.3, 0.5)) for u in draws(1000))]
        assert 0.298 < min(shares) < 0.31
        assert 0.49 < max(shares) < 0.502

    @pytest.mark.parametrize("size", [(300, 20), (20, 300), (301, 7), (1, 50), (50, 1)])
    def test_the_fallback_is_torchvisions(self, size):
        """Frames so thin that no try fits: all but a sliver of the area would have to be left out."""
        box = Box(3, 5, *size)
        uniforms = np.full(N_UNIFORMS, 0.999, np.float32)
        torch.manual_seed(0)
        top, left, height, width = v2.RandomResizedCrop.get_params(Image.new("RGB", size), [0.999, 1.0], [3 / 4, 4 / 3])
        assert random_crop(box, uniforms) == Box(3 + left, 5 + top, width, height)

    def test_the_fallback_of_a_frame_that_every_try_should_fit(self):
        """Ten tries of the whole area at ratio 4/3 fit no square; the square is shown whole."""
        uniforms = np.full(N_UNIFORMS, 1 - 2.0**-24, np.float32)
        assert random_crop(Box(0, 0, 100, 100), uniforms) == Box(0, 0, 100, 100)

    def test_a_failed_try_moves_nothing(self):
        uniforms = np.full(N_UNIFORMS, 1 - 2.0**-24, np.float32)
        uniforms[4:6] = 0.25, 0.5  # the third try: ratio 1
        crop = random_crop(Box(10, 20, 100, 100), uniforms)
        side = round(100 * math.sqrt(0.08 + 0.25 * 0.92))
        assert crop == Box(10 + 100 - side, 20 + 100 - side, side, side)
        first = np.roll(uniforms[:20], -4)
        assert random_crop(Box(10, 20, 100, 100), np.concatenate([first, uniforms[20:]])) == crop

    def test_every_place_is_reached(self):
        """A crop of 3 in a frame of 4 by 4 lies left and right, above and below."""
        found = {random_crop(Box(0, 0, 4, 4), uniforms) for uniforms in draws(500)}
        assert {Box(left, top, 3, 3) for left in (0, 1) for top in (0, 1)} <= found


class TestViews:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
    def test_crop_resize_and_flip_are_torchvisions(self, draw, interpolation):
        pixels, box = draw(90, 90), Box(5, 20, 80, 50)
        frame = Image.fromarray(pixels[20:70, 5:85])
        mode = InterpolationMode(interpolation)
        for uniforms in draws(20):
            crop = random_crop(box, uniforms)
            expected = reference.resized_crop(frame, crop.top - 20, crop.left - 5, crop.height, crop.width, [32, 32], mode)
            expected = reference.horizontal_flip(expected) if uniforms[22] < 0.5 else expected
            out = augmented(pixels, box, uniforms, policy="standard", side=32, interpolation=interpolation)
            assert (out.shape, out.dtype) == ((32, 32, 3), np.uint8)
            np.testing.assert_array_equal(out, expected)

    @pytest.mark.parametrize("policy", ["trivial", "randaugment"])
    def test_operations_follow_on_the_standard_view(self, draw, policy):
        pixels, box = draw(60, 60), Box(0, 0, 60, 60)
        n_changed = 0
        for uniforms in draws(60):
            standard = augmented(pixels, box, uniforms, policy="standard", side=40, interpolation="bilinear")
            expected = Image.fromarray(standard)
            for name, strength in drawn_operations(uniforms, policy=policy, side=40):
                expected = REFERENCES[name](expected, strength)
            out = augmented(pixels, box, uniforms, policy=policy, side=40, interpolation="bilinear")
            np.testing.assert_array_equal(out, expected)
            n_changed += not np.array_equal(out, standard)
        assert n_changed > 40

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming", "box", "nearest"])
    def test_padding_never_shows(self, interpolation):
        """A frame of 400 x 100 px on its canvas: the crop is cut out before it is resized, so that no filter reaches over its edge."""
        pixels = np.zeros((96, 96, 3), np.uint8)
        box = Box(0, 36, 96, 24)
        pixels[36:60] = 200
        for uniforms in draws(150):
            assert (augmented(pixels, box, uniforms, policy="standard", side=16, interpolation=interpolation) == 200).all()

    def test_half_of_the_views_are_flipped(self):
        pixels = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, axis=0).repeat(3, axis=2)
        views = [augmented(pixels, Box(0, 0, 64, 64), u, policy="standard", side=8, interpolation="bilinear") for u in draws(1000)]
        n_flipped = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views)
        assert 450 < n_flipped < 550

    @pytest.mark.parametrize("policy", POLICIES)
    def test_the_same_numbers_give_the_same_view(self, draw, policy):
        pixels, box = draw(40, 40), Box(0, 4, 40, 32)
        before = pixels.copy()
        first, second, other = (
            augmented(pixels, box, draws(2)[row], policy=policy, side=24, interpolation="bilinear") for row in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)
        np.testing.assert_array_equal(pixels, before)

    def test_frames_of_a_pixel(self):
        pixels = np.full((8, 8, 3), 9, np.uint8)
        for box in (Box(3, 3, 1, 1), Box(0, 3, 8, 1), Box(3, 0, 1, 8)):
            for uniforms in draws(20):
                assert (augmented(pixels, box, uniforms, policy="standard", side=4, interpolation="bilinear") == 9).all()

    def test_what_makes_no_sense(self):
        pixels, box = np.zeros((8, 8, 3), np.uint8), Box(0, 0, 8, 8)
        with pytest.raises(ValueError, match="no augmentation policy is called 'none'; there are standard, trivial, randaugment") as error:
            augmented(pixels, box, draws(1)[0], policy="none", side=4, interpolation="bilinear")
        assert str(error.value) == "no augmentation policy is called 'none'; there are standard, trivial, randaugment"
        with pytest.raises(ValueError, match="uniforms") as error:
            augmented(pixels, box, draws(1), policy="standard", side=4, interpolation="bilinear")
        assert str(error.value) == "expected 27 uniforms for an image, not an array of shape [1, 27]"


class TestDraws:
    def test_numbers_belong_to_the_row_and_not_to_the_batch(self):
        rows = np.array([900, 4, 77])
        together = uniforms_of(rows, seed=3, phase=1, epoch=5)
        assert (together.shape, together.dtype) == ((3, N_UNIFORMS), np.float32)
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(uniforms_of(np.array([row]), seed=3, phase=1, epoch=5)[0], together[place])
        for other in ({"seed": 4}, {"phase": 2}, {"epoch": 6}):
            assert not np.isin(uniforms_of(rows, **{"seed": 3, "phase": 1, "epoch": 5, **other}), together).any()
        assert uniforms_of(np.empty(0, np.int64), seed=0, phase=0, epoch=0).shape == (0, N_UNIFORMS)

    def test_they_are_not_what_dropout_draws(self):
        rows = np.arange(50)
        dropout = keyed_uniform(3, 1, 5, rows, 512)
        # 24 bits: a few of 1,350 numbers are among 25,600 others by chance.
        assert np.isin(uniforms_of(rows, seed=3, phase=1, epoch=5), dropout).sum() < 12

    def test_seeds_at_both_ends(self):
        for seed in (0, 2**64 - 1):
            assert uniforms_of(np.arange(2), seed=seed, phase=0, epoch=0).shape == (2, N_UNIFORMS)

    def test_what_is_drawn_is_pinned(self):
        """Resuming with a newer version must show the same views."""
        uniforms = uniforms_of(np.array([5]), seed=7, phase=1, epoch=2)[0]
        assert random_crop(FRAME, uniforms) == Box(74, 38, 86, 70)
        assert drawn_operations(uniforms, policy="trivial", side=224) == [("Solarize", 136.0)]
        assert drawn_operations(uniforms, policy="randaugment", side=224) == [("Solarize", 178.5), ("Brightness", pytest.approx(0.27))]

    def test_operations_and_strengths_are_uniform(self):
        n = 14 * 31 * 60
        drawn = [drawn_operations(uniforms, policy="trivial", side=224) for uniforms in draws(n)]
        assert {len(found) for found in drawn} == {1}
        names = [name for ((name, _),) in drawn]
        assert chisquare([names.count(name) for name in OPERATIONS]).pvalue > 0.001
        turns = np.array([strength for ((name, strength),) in drawn if name == "Rotate"])
        assert chisquare(np.bincount(np.rint(np.abs(turns) / 4.5).astype(int), minlength=31)).pvalue > 0.001
        assert np.abs((turns[turns != 0] < 0).mean() - 0.5) < 0.04

    def test_randaugment_draws_two_operations_independently(self):
        drawn = [drawn_operations(uniforms, policy="randaugment", side=331) for uniforms in draws(14 * 14 * 60)]
        place = {name: number for number, name in enumerate(OPERATIONS)}
        assert {len(found) for found in drawn} == {2}
        assert chisquare(np.bincount([14 * place[a] + place[b] for (a, _), (b, _) in drawn], minlength=196)).pvalue > 0.001
        strengths = {name: {round(s, 6) for found in drawn for n, s in found if n == name} for name in OPERATIONS}
        assert strengths["Rotate"] == {9.0, -9.0}
        assert strengths["TranslateX"] == {45.0, -45.0}
        assert strengths["Posterize"] == {7}
        assert strengths["Solarize"] == {178.5}
        assert strengths["ShearY"] == {0.09, -0.09}
        assert strengths["Identity"] == strengths["Equalize"] == {0.0}

    def test_standard_draws_no_operation(self):
        assert drawn_operations(draws(1)[0], policy="standard", side=224) == []
