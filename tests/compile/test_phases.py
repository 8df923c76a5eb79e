"""What a schedule is lowered to, and faults of it that only the model shows."""

from __future__ import annotations

import numpy as np
import pytest

from xfer.compile.compiler import check, compile_plan
from xfer.recipe.loader import read

RECIPE = """\
source: {model: %(model)s, weights: none}
target: {dataset: arrays, path: images.npz, image_size: 64%(target)s}
transfer: {type: model%(transfer)s}
freeze: %(freeze)s
optimizer: {lr: 1.0e-2%(optimizer)s}
runtime: {precision: float32}
"""
BATCH_NORM, NO_NORM = "torchvision/resnet18", "torchvision/squeezenet1_1"


@pytest.fixture
def reading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(20) % 2
    np.savez("images.npz", images=np.zeros((20, 8, 8, 3), np.uint8), labels=labels)

    def of(freeze, *, model=BATCH_NORM, target="", transfer="", optimizer=""):
        parts = {"freeze": freeze, "model": model, "target": target, "transfer": transfer, "optimizer": optimizer}
        (tmp_path / "r.yaml").write_text(RECIPE % parts)
        return read("r.yaml")

    return of


@pytest.fixture
def faults(reading):
    return lambda *freeze, **parts: [f"{fault.path}: {fault.message}" for fault in check(reading(*freeze, **parts))]


# a head on an earlier level: what lies behind it is not computed, so nothing there can train

AT_STAGE1 = ", at: stage1"
GROUPS = ["conv1", "bn1", "layer1.0", "layer1.1"]


def test_selectors_end_at_the_head(reading):
    freeze = "[{train: all, layer_decay: 0.5}, {train: [last stage, head]}, {train: '*1.*'}]"
    plan = compile_plan(reading(freeze, transfer=AT_STAGE1))
    assert plan.head.at == "layer1.1"
    assert [phase.train for phase in plan.phases] == [(*GROUPS, "head"), ("layer1.0", "layer1.1", "head"), ("layer1.0", "layer1.1")]
    assert plan.phases[0].learning_rates == pytest.approx({name: 0.01 / 2 ** (4 - n) for n, name in enumerate([*GROUPS, "head"])})
    assert plan.never_trained[0] == "layer2.0"
    assert "layer4.1.conv1.weight" in plan.phases[0].frozen


def test_policies_end_at_the_head(reading):
    plan = compile_plan(reading("{policy: gradual}", transfer=AT_STAGE1))
    assert [phase.train for phase in plan.phases] == [("head",), (*GROUPS[2:], "head"), (*GROUPS, "head")]


def test_a_group_behind_the_head_is_refused(faults):
    has = "up to the head on layer1.1, torchvision/resnet18 has"
    listed = f"{has} conv1, bn1, layer1, stage0, stage1, head"
    assert faults("[{train: [layer4.0, last 3 stages, 'layer3*', head]}]", transfer=AT_STAGE1) == [
        f"freeze[0].train[0]: no group matches 'layer4.0'; {listed}",
        f"freeze[0].train[1]: 'last 3 stages': {has} 2 stages: stage0, stage1",
        f"freeze[0].train[2]: no group matches 'layer3*'; {listed}",
    ]


def test_statistics_that_nothing_has_are_not_estimated(faults):
    """The same where the network has some, in groups that don't train."""
    expected = ["freeze[0].reestimate_norm: has nothing to estimate: nothing that trains has batch normalisation; leave it out"]
    assert faults("[{train: all, reestimate_norm: true}]", model=NO_NORM) == expected
    assert faults("[{train: [conv1, head], reestimate_norm: true}]") == expected
    assert faults("[{train: [bn1, head], reestimate_norm: true}]") == []


@pytest.mark.parametrize("phases", ["[{train: head}, {train: all}]", "{policy: head}"])
def test_a_plateau_of_all_phases_needs_validation(phases, faults):
    """Else nothing ever lowers the rate."""
    expected = ["optimizer.schedule: needs a validation split to watch, and there is none; set target.splits.val above 0"]
    parts = {"target": ", splits: {val: 0}", "optimizer": ", schedule: plateau"}
    assert faults(phases, **parts) == expected
    assert faults("[{train: head, schedule: constant}]", **parts) == []


def test_batches_of_one_image_where_normalisation_learns(faults):
    told = (
        "target.batch_size: batch normalisation learns in %s, and a batch of one image has no variance to learn from; "
        "set it to 2 or more, or norm: frozen for the phase"
    )
    alone = {"target": ", batch_size: 1"}
    assert faults("[{train: head}, {train: [layer4, head]}, {train: all}]", **alone) == [told % "freeze[1]"]
    assert faults("{policy: all}", **alone) == [told % "freeze"]
    assert faults("[{train: head}, {train: all, norm: frozen}]", **alone) == []
    assert faults("{policy: all}", model=NO_NORM, **alone) == []


@pytest.mark.parametrize(
    ("freeze", "optimizer", "fault"),
    [
        (
            "[{train: head, epochs: 3, warmup_epochs: 3.5}]",
            "",
            "freeze[0].warmup_epochs: a warm-up of 3.5 epochs would not end: freeze[0] has 3 epochs",
        ),
        (
            "[{train: head}, {train: all, epochs: 1}]",
            ", warmup_epochs: 2",
            "optimizer.warmup_epochs: a warm-up of 2 epochs would not end: freeze[1] has 1 epoch",
        ),
        (
            "[{train: head, until: {max_epochs: 4}}]",
            ", warmup_epochs: 5",
            "optimizer.warmup_epochs: a warm-up of 5 epochs would not end: freeze[0] has 4 epochs",
        ),
        (
            "{policy: gradual, every: 2}",
            ", warmup_epochs: 3",
            "optimizer.warmup_epochs: a warm-up of 3 epochs would not end: a phase has 2",
        ),
    ],
)
def test_a_warm_up_ends_within_its_phase(faults, freeze, optimizer, fault):
    assert faults(freeze, optimizer=optimizer) == [fault]


def test_a_warm_up_as_long_as_its_phase(faults):
    assert (
        faults("[{train: head, epochs: 3, warmup_epochs: 3}, {train: all, epochs: 1, warmup_epochs: 0.5}]", optimizer=", warmup_epochs: 5")
        == []
    )
