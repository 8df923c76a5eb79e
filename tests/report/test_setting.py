"""What the page says was run: facts in full, and nothing of what was not used."""

from __future__ import annotations

import json

import pytest

from xfer.plan.model_map import Tensor
from xfer.plan.plan import AugmentPlan, MethodPlan
from xfer.report import bundle_files, setting

ADDED = ("of the model", "of the data", "augmentation", "own groups", "looks at", "teacher", "averaged weights")


def augment(**changes):
    values = {"policy": "standard", "views": None, "scale": (0.08, 1.0), "canvas": 336, "mode": "stored", "bytes": 1_000_000, "reason": ""}
    return AugmentPlan(**(values | changes))


@pytest.fixture
def facts_of(make_bundle):
    """The facts of a bundle whose plan is changed by a function."""

    def facts(change):
        bundle = make_bundle()
        files = bundle_files.read(bundle)
        change(files.plan).write(bundle / "plan.json")
        return dict(setting.facts(bundle_files.read(bundle)))

    return facts


def with_phases(plan, *changes):
    phases = tuple(phase.model_copy(update=change) for phase, change in zip(plan.phases, changes, strict=True))
    return plan.model_copy(update={"phases": phases})


def test_what_is_to_be_known_of_model_and_data_is_told(facts_of):
    notes = {"model": {"note": "no graph"}, "data": {"notes": ("2 .gif left out", "1 folder left out")}}
    facts = facts_of(lambda plan: plan.model_copy(update={key: getattr(plan, key).model_copy(update=note) for key, note in notes.items()}))
    assert (facts["of the model"], facts["of the data"]) == ("no graph", "2 .gif left out; 1 folder left out")


def test_what_is_not_used_is_not_told(facts_of):
    facts = facts_of(lambda plan: plan)
    assert not set(ADDED) & set(facts)
    assert facts["method"] == "probe"
    assert facts["new head"] == "512 → 5 on pooled"


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        (augment(), "standard, a new random view of each training image in every epoch"),
        (augment(views=1), "standard, 1 fixed random view of each training image, taken in turn"),
        (
            augment(policy="trivial", views=4, scale=(0.5, 1.0)),
            "trivial, crops of 50 to 100 % of the frame, 4 fixed random views of each training image, taken in turn",
        ),
    ],
)
def test_augmentation(facts_of, chosen, text):
    assert facts_of(lambda plan: with_phases(plan, {"augment": chosen}, {"augment": chosen}))["augmentation"] == text


@pytest.mark.parametrize(
    ("decays", "text"),
    [
        ((0.99, 0.99), "a moving average with decay 0.99 is what is validated and kept"),
        ((None, 0.999), "a moving average with decay 0.999 in phase 2 is what is validated and kept"),
        ((0.9, 0.99), "a moving average with decay 0.9, 0.99 is what is validated and kept"),
    ],
)
def test_averaged_weights(facts_of, decays, text):
    def averaged(plan):
        optimizers = [phase.optimizer.model_copy(update={"average": decay}) for phase, decay in zip(plan.phases, decays, strict=True)]
        return with_phases(plan, *({"optimizer": optimizer} for optimizer in optimizers))

    assert facts_of(averaged)["averaged weights"] == text


def test_a_method_with_all_that_it_brings(facts_of):
    critic = Tensor(name="method.critic.weight", shape=(4, 512), kind="parameter")
    method = MethodPlan(
        type="model", name="hints", target="a:b", options={"weight": 0.5}, taps={"last": "pooled"}, tensors=(critic,), teacher=True
    )
    facts = facts_of(lambda plan: plan.model_copy(update={"method": method}))
    assert facts["method"] == "hints, weight 0.5"
    assert facts["own groups"] == "method.critic with 2,048 parameters"
    assert facts["looks at"] == "last (the end of pooled) 512"
    assert facts["teacher"] == "a copy of the network that keeps the source's weights"


def test_a_phase_says_what_it_kept_and_how_far_it_went(make_bundle):
    bundle = make_bundle()
    result = json.loads((bundle / "result.json").read_text())
    result["phases"][1] |= {"best_epoch": 4, "distance": {"layer4.0": 0.0126, "layer4.1": 0.217}}
    (bundle / "result.json").write_text(json.dumps(result))
    head, tuned = setting.phases(bundle_files.read(bundle))
    assert (head["best_epoch"], head["moved"], head["state"], head["augment"]) == (None, "", "", "")
    assert (tuned["best_epoch"], tuned["moved"]) == (4, "by up to 22 %, at layer4.1")
    assert tuned["state"] == "carried over from phase 1 for head"
    assert (head["input"], head["reason"]) == ("pooled 512, stored", "3.8 MB for 3,670 rows of bfloat16")
    assert (tuned["input"], tuned["reason"]) == ("layer3.1 256x14x14, streamed", "368 MB would pass the budget of 100 MB")
