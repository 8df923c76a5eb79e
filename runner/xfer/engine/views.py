"""Ways of looking at an image beside the clean one: the whole frame on a canvas, and augmented views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xfer.data.augment import uniforms_of
from xfer.data.canvas import augment_rows, canvas_row
from xfer.data.dataset import RawImage
from xfer.plan.plan import AugmentPlan, Plan


@dataclass(frozen=True)
class View:
    """`make` turns raw content and its row number into uint8 of `shape`; `key` goes into the store's key."""

    key: str
    make: Callable[[RawImage, int], np.ndarray]
    shape: tuple[int, ...]


def canvas_view(plan: Plan, augment: AugmentPlan) -> View:
    """Packed canvas rows: uint8 [side + 1, side, 3]."""
    preprocess = plan.source.preprocess

    def make(raw: RawImage, row: int) -> np.ndarray:
        return canvas_row(raw, crop=preprocess.crop, interpolation=preprocess.interpolation)

    return View(f"canvas {augment.canvas}", make, (augment.canvas + 1, augment.canvas, 3))


def fixed_view(plan: Plan, augment: AugmentPlan, number: int) -> View:
    """Augmented view `number` of each image: the same in every phase and every run with this seed."""
    low, high = augment.scale
    key = f"{augment.policy} scale {low:g} {high:g} canvas {augment.canvas} seed {plan.seed} view {number}"
    return View(key, _maker(plan, augment, phase=0, epoch=number), _pixels(plan))


def random_view(plan: Plan, augment: AugmentPlan, *, phase: int, epoch: int) -> View:
    """What one epoch sees of each image."""
    return View(f"{augment.policy} phase {phase} epoch {epoch}", _maker(plan, augment, phase=phase, epoch=epoch), _pixels(plan))


def _pixels(plan: Plan) -> tuple[int, ...]:
    return (plan.source.preprocess.crop, plan.source.preprocess.crop, 3)


def _maker(plan: Plan, augment: AugmentPlan, *, phase: int, epoch: int) -> Callable[[RawImage, int], np.ndarray]:
    preprocess = plan.source.preprocess

    def make(raw: RawImage, row: int) -> np.ndarray:
        canvas = canvas_row(raw, crop=preprocess.crop, interpolation=preprocess.interpolation)
        made: np.ndarray = augmented_rows(plan, augment, canvas[None], np.array([row]), phase=phase, epoch=epoch)[0]
        return made

    return make


def augmented_rows(plan: Plan, augment: AugmentPlan, canvases: np.ndarray, rows: np.ndarray, *, phase: int, epoch: int) -> np.ndarray:
    """uint8 [k, crop, crop, 3] from packed canvases uint8 [k, side + 1, side, 3], by the numbers of (seed, phase, epoch, row)."""
    preprocess = plan.source.preprocess
    uniforms = uniforms_of(rows, seed=plan.seed, phase=phase, epoch=epoch)
    return augment_rows(
        canvases,
        uniforms,
        policy=augment.policy,
        side=preprocess.crop,
        interpolation=preprocess.interpolation,
        scale=augment.scale,
    )
