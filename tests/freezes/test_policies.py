"""What phases each policy makes, option by option, and what a recipe is told where they can't be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from xfer.compile.compiler import check, compile_plan
from xfer.errors import RecipeError
from xfer.freezes.all import everything
from xfer.freezes.gradual import gradual
from xfer.freezes.head import head
from xfer.freezes.last import last
from xfer.freezes.lp_ft import lp_ft
from xfer.recipe.loader import read

RATE = 1e-3
GROUPS = ["stem", "block.0", "block.1", "norm"]
STAGES = {"stage0": ("stem",), "stage1": ("block.0",), "stage2": ("block.1", "norm")}
TOLD = {"layer_decay": 0.5, "norm": "frozen"}  # what every policy that trains the source hands on
UNTOLD = {"layer_decay": None, "norm": "train"}

GOOD = """\
source:
  model: torchvision/resnet18
  weights: none
target:
  dataset: folder
  path: data
transfer:
  type: model
freeze: {policy: head}
optimizer: {lr: 0.02}
"""
RESNET = "torchvision/resnet18 has conv1, bn1, layer1, layer2, layer3, layer4, stage0, stage1, stage2, stage3, stage4, head"
RESNET_STAGES = "torchvision/resnet18 has 5 stages: stage0, stage1, stage2, stage3, stage4"


def of(policy, **options):
    return policy(GROUPS, STAGES, RATE, **options)


def lengths(phases):
    return [phase["epochs"] for phase in phases]


# one policy after the other


def test_head():
    assert of(head) == [{"train": "head", "epochs": 10}]
    assert of(head, epochs=3) == [{"train": "head", "epochs": 3}]


def test_all():
    assert of(everything) == [{"train": "all", "epochs": 10, **UNTOLD}]
    assert of(everything, epochs=3, **TOLD) == [{"train": "all", "epochs": 3, **TOLD}]


def test_last():
    assert of(last) == [{"train": ["last 1 stages", "head"], "epochs": 10, **UNTOLD}]
    assert of(last, stages=3, epochs=2, **TOLD) == [{"train": ["last 3 stages", "head"], "epochs": 2, **TOLD}]


def test_lp_ft():
    assert of(lp_ft) == [{"train": "head", "epochs": 10}, {"train": "all", "epochs": 10, "lr": pytest.approx(RATE / 10), **UNTOLD}]
    told = of(lp_ft, probe_epochs=4, epochs=2, lr=0.5, **TOLD)
    assert told == [{"train": "head", "epochs": 4}, {"train": "all", "epochs": 2, "lr": 0.5, **TOLD}]


def test_gradual_takes_one_stage_more_at_a_time_the_deepest_first():
    trains = ["head", ["stage2", "head"], ["stage1", "stage2", "head"], ["stage0", "stage1", "stage2", "head"]]
    assert of(gradual) == [{"train": train, "epochs": 1, **UNTOLD} for train in trains]
    assert of(gradual, every=3, **TOLD) == [{"train": train, "epochs": 3, **TOLD} for train in trains]


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [
        (2, 8, [2, 2, 2, 2]),
        (2, 7, [2, 2, 2, 1]),  # the last one is cut short
        (2, 11, [2, 2, 2, 5]),  # what is left goes to the whole network
        (2, 4, [2, 2]),  # stage0 and stage1 stay frozen
        (2, 3, [2, 1]),
        (2, 2, [2]),
        (2, 1, [1]),
        (5, 3, [3]),  # `every` longer than all of it
        (1, 1, [1]),
        (1, 100, [1, 1, 1, 97]),
    ],
)
def test_gradual_fills_the_epochs_that_it_is_given(every, epochs, expected):
    phases = of(gradual, every=every, epochs=epochs)
    assert lengths(phases) == expected
    assert [phase["train"] for phase in phases] == [phase["train"] for phase in of(gradual)][: len(expected)]


@pytest.mark.parametrize("every", range(1, 7))
def test_gradual_never_loses_an_epoch(every):
    for epochs in range(1, 20):
        found = lengths(of(gradual, every=every, epochs=epochs))
        assert sum(found) == epochs
        assert len(found) == min(len(STAGES) + 1, -(-epochs // every))
        assert found[:-1] == [every] * (len(found) - 1)


def test_gradual_in_a_network_of_one_stage():
    assert [(p["train"], p["epochs"]) for p in gradual(["all"], {"stage0": ("all",)}, RATE, every=2, epochs=9)] == [
        ("head", 2),
        (["stage0", "head"], 7),
    ]


@pytest.mark.parametrize("rate", [1e-4, 0.3])
def test_only_lp_ft_looks_at_the_rate(rate):
    assert lp_ft(GROUPS, STAGES, rate)[1]["lr"] == pytest.approx(rate / 10)
    for policy in (head, everything, last, gradual):
        assert policy(GROUPS, STAGES, rate) == of(policy)


# through a recipe


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(np.full((8, 8, 3), 20 * index + label, np.uint8)).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path


def reading(place, policy, *overrides):
    (place / "r.yaml").write_text(GOOD.replace("{policy: head}", policy))
    return read("r.yaml", overrides)


def planned(place, policy, *overrides):
    return compile_plan(reading(place, policy, *overrides)).phases


def test_each_stage_becomes_its_groups(place):
    phases = planned(place, "{policy: gradual, every: 2, epochs: 5}")
    assert [(phase.train, phase.epochs) for phase in phases] == [
        (("head",), 2),
        (("layer4.0", "layer4.1", "head"), 2),
        (("layer3.0", "layer3.1", "layer4.0", "layer4.1", "head"), 1),
    ]
    assert [phase.input.cut for phase in phases] == ["pooled", "layer3.1", "layer2.1"]


def test_gradual_to_the_end_trains_everything(place):
    phases = planned(place, "{policy: gradual}")
    assert len(phases) == 6
    assert phases[-1].train == planned(place, "{policy: all}")[0].train
    assert all(set(before.train) < set(after.train) for before, after in pairwise(phases))


def test_last_stages_are_counted_from_the_head(place):
    (phase,) = planned(place, "{policy: last, stages: 2, epochs: 4}")
    assert phase.train == ("layer3.0", "layer3.1", "layer4.0", "layer4.1", "head")
    assert (phase.epochs, phase.input.cut) == (4, "layer2.1")


def test_lp_ft_fine_tunes_at_a_tenth_of_the_recipes_rate(place):
    probe, tuning = planned(place, "{policy: lp_ft}")
    assert probe.learning_rates == {"head": 0.02}
    assert tuning.learning_rates == pytest.approx(dict.fromkeys(tuning.train, 0.002))
    assert planned(place, "{policy: lp_ft}", "optimizer.lr=0.5")[1].learning_rates["head"] == pytest.approx(0.05)
    assert planned(place, "{policy: lp_ft, lr: 0.3}")[1].learning_rates["head"] == 0.3
    assert [phase.epochs for phase in planned(place, "{policy: lp_ft, probe_epochs: 3, epochs: 7}")] == [3, 7]


def test_a_model_transfer_without_a_schedule_follows_lp_ft(place):
    (place / "r.yaml").write_text(GOOD.replace("freeze: {policy: head}\n", ""))
    assert compile_plan(read("r.yaml")).phases == planned(place, "{policy: lp_ft}")


def test_norm_and_layer_decay_reach_the_plan(place):
    trained, frozen = (planned(place, f"{{policy: last, stages: 2, norm: {norm}, layer_decay: 0.5}}")[0] for norm in ("train", "frozen"))
    assert trained.learning_rates == frozen.learning_rates
    assert trained.learning_rates == {
        "layer3.0": 0.02 / 16, "layer3.1": 0.02 / 8, "layer4.0": 0.02 / 4, "layer4.1": 0.02 / 2, "head": 0.02,
    }  # fmt: skip
    moved = set(trained.trainable) - set(frozen.trainable)
    assert "layer3.0.bn1.weight" in moved
    assert all(".bn" in name or ".downsample.1." in name for name in moved)
    assert "layer4.0.bn1.running_mean" in frozen.frozen
    assert "layer4.0.bn1.running_mean" not in trained.frozen


NO_PHASE = "r.yaml:9:1: freeze: policy gradual makes no phase with {}, so nothing would train"
CANT_BE = "r.yaml:9:1: freeze: policy {} made a phase that can't be: {}"
FAULTS = {
    "{policy: last, stages: 6}": f"r.yaml:9:1: freeze: 'last 6 stages': {RESNET_STAGES}",
    "{policy: last, stages: 0}": f"r.yaml:9:1: freeze: 'last 0 stages': {RESNET_STAGES}",
    "{policy: last, stages: -1}": f"r.yaml:9:1: freeze: no group matches 'last -1 stages'; {RESNET}",
    "{policy: last, stages: two}": "r.yaml:9:24: freeze.stages: must be a whole number, not 'two'",
    "{policy: last, stages: [1]}": "r.yaml:9:24: freeze.stages: must be a whole number, not [1]",
    "{policy: gradual, every: 2.5}": "r.yaml:9:27: freeze.every: must be a whole number, not 2.5",
    "{policy: gradual, epochs: many}": "r.yaml:9:27: freeze.epochs: must be a whole number or null, not 'many'",
    "{policy: gradual, norm: froze}": "r.yaml:9:27: freeze.norm: must be one of train, frozen, not 'froze'",
    "{policy: gradual, stages: 1}": "r.yaml:9:27: freeze.stages: unknown key; policy gradual takes every, epochs, layer_decay, norm",
    "{policy: gradual, evry: 1}": "r.yaml:9:27: freeze.evry: unknown key; policy gradual takes every, epochs, layer_decay, norm; "
    "did you mean 'every'?",
    "{policy: gradual, epochs: 0}": NO_PHASE.format("epochs: 0"),
    "{policy: gradual, epochs: -3}": NO_PHASE.format("epochs: -3"),
    "{policy: gradual, every: 0}": NO_PHASE.format("every: 0"),
    "{policy: gradual, every: -1, epochs: 3}": NO_PHASE.format("every: -1, epochs: 3"),
    "{policy: head, epochs: null}": "r.yaml:9:24: freeze.epochs: must be a whole number, not None",
    "{policy: head, norm: frozen}": "r.yaml:9:24: freeze.norm: unknown key; policy head takes epochs",
    "{policy: head, epochs: 0}": "r.yaml:9:24: freeze.epochs: must be at least 1, not 0",
    "{policy: all, epochs: 0}": "r.yaml:9:23: freeze.epochs: must be at least 1, not 0",
    "{policy: last, epochs: -2}": "r.yaml:9:24: freeze.epochs: must be at least 1, not -2",
    "{policy: gradual, every: 2000000000}": "r.yaml:9:27: freeze.every: must be at most 1000000000, not 2000000000",
    "{policy: lp_ft, probe_epochs: 0}": "r.yaml:9:25: freeze.probe_epochs: must be at least 1, not 0",
    "{policy: lp_ft, epochs: 0}": "r.yaml:9:25: freeze.epochs: must be at least 1, not 0",
    "{policy: lp_ft, epochs: 0, probe_epochs: 0}": CANT_BE.format("lp_ft", "epochs: must be at least 1, not 0"),
    "{policy: lp_ft, lr: 0}": "r.yaml:9:25: freeze.lr: must be above 0, not 0.0",
    "{policy: lp_ft, lr: fast}": "r.yaml:9:25: freeze.lr: must be a number or null, not 'fast'",
    "{policy: all, layer_decay: 2}": "r.yaml:9:23: freeze.layer_decay: must be above 0 and at most 1, not 2.0",
    "{policy: all, layer_decay: much}": "r.yaml:9:23: freeze.layer_decay: must be a number or null, not 'much'",
}


@pytest.mark.parametrize("policy", FAULTS)
def test_each_fault_in_full(place, policy):
    assert [str(fault) for fault in check(reading(place, policy))] == [FAULTS[policy]]
    with pytest.raises(RecipeError) as caught:
        compile_plan(reading(place, policy))
    assert caught.value.message == FAULTS[policy]


def test_a_policy_made_phase_trains_no_source_in_a_feature_transfer(place):
    text = "r.yaml:9:1: freeze: a feature transfer keeps the source frozen, and this trains layer4.0, layer4.1; "
    found = check(reading(place, "{policy: last}", "transfer.type=feature"))
    assert [str(fault) for fault in found] == [text + "write 'head', or transfer.type: model"]


def test_options_are_looked_at_without_the_model(place):
    policy = "{policy: last, stages: two}"
    assert [str(fault) for fault in check(reading(place, policy), depth="shallow")] == [FAULTS[policy]]
    assert check(reading(place, "{policy: last, stages: 6}"), depth="shallow") == ()


def test_a_policy_in_a_file_beside_the_recipe(place):
    """It is told the groups, the stages and the rate, and what it makes is checked as a built-in one's is."""
    (place / "mine.py").write_text(MINE)
    (phase,) = planned(place, "{policy: outer, epochs: 4}", "plugins=[./mine.py]")
    assert phase.train == ("conv1", "layer4.0", "layer4.1", "head")
    assert (phase.epochs, phase.learning_rates["conv1"]) == (4, 0.01)
    found = check(reading(place, "{policy: outer, last: stage9}", "plugins=[./mine.py]"))
    assert [str(fault) for fault in found] == [f"r.yaml:9:1: freeze: no group matches 'stage9'; {RESNET}; did you mean 'stage4'?"]


MINE = '''
def outer(groups, stages, rate, *, epochs: int = 1, last: str | None = None):
    """The first group, the last stage and the head, at half the rate."""
    return [{"train": [groups[0], last or list(stages)[-1], "head"], "epochs": epochs, "lr": rate / 2}]

xfer_plugins = {"freezes": {"outer": outer}}
'''
