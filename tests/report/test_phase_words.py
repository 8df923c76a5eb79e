"""Every sentence about a phase and its method, in full."""

from __future__ import annotations

import pytest

from xfer.plan.model_map import Tensor
from xfer.plan.plan import AugmentPlan, ClusterPlan, MethodPlan, OptimizerPlan, UntilPlan
from xfer.report import phase_words

OWN = (
    Tensor(name="method.critic.0.weight", shape=(64, 512), kind="parameter"),
    Tensor(name="method.critic.0.bias", shape=(64,), kind="parameter"),
    Tensor(name="method.scale", shape=(), kind="parameter"),
)


def method(**changes):
    return MethodPlan(**({"type": "model", "name": "l2sp", "target": "a:b", "options": {}} | changes))


def until(**changes):
    return UntilPlan(**({"metric": "val.accuracy", "mode": "max", "patience": 3, "min_delta": 0.0, "max_epochs": 20} | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 1}, "1 epoch"),
        ({"epochs": 1200}, "1,200 epochs"),
        (
            {"until": until()},
            "until val.accuracy has not improved for 3 epochs, at most 20; the best weights are restored",
        ),
        (
            {"until": until(metric="val.loss", mode="min", patience=1, min_delta=0.01)},
            "until val.loss has not improved by 0.01 for 1 epoch, at most 20; the best weights are restored",
        ),
        ({"until": until(patience=18)}, "until val.accuracy has not improved for 18 epochs, at most 20; the best weights are restored"),
        ({"until": until(patience=19)}, "20 epochs; the weights of the one with the highest val.accuracy are restored"),
        (
            {"until": until(metric="val.loss", mode="min", patience=8, max_epochs=8)},
            "8 epochs; the weights of the one with the lowest val.loss are restored",
        ),
        (
            {"until": until(patience=20, min_delta=0.5)},
            "until val.accuracy has not improved by 0.5 for 20 epochs, at most 20; the best weights are restored",
        ),
    ],
)
def test_length(two_phases, changes, text):
    assert phase_words.length(two_phases[0].model_copy(update=changes)) == text


def test_normalisation(two_phases):
    head, second = two_phases
    assert phase_words.normalisation(head, method()) == "frozen: statistics are used as stored and left alone"
    own = head.model_copy(update={"train": ("head", "method.critic", "method.scale")})
    assert phase_words.normalisation(own, method(tensors=OWN)) == "frozen: statistics are used as stored and left alone"
    assert phase_words.normalisation(second, method()) == "frozen in all groups"
    trained = second.model_copy(update={"norm": "train"})
    assert phase_words.normalisation(trained, method()) == "trained in the groups that train, frozen elsewhere"
    rewrites = method(rewrites_statistics=True)
    assert phase_words.normalisation(head, rewrites) == "statistics follow the batches in all groups, as the method asks"


def test_statistics(two_phases):
    assert phase_words.reestimated(two_phases[0]) == ""
    again = two_phases[0].model_copy(update={"reestimate_norm": True})
    assert phase_words.reestimated(again) == "estimated anew from the training images when the phase ends"


def test_an_optimizer_with_everything_switched_on():
    chosen = OptimizerPlan(
        name="adamw", lr=1e-3, momentum=0.9, weight_decay=0.05, schedule="one_cycle", warmup_epochs=0.5, clip_norm=1.0, label_smoothing=0.1,
        class_weights="balanced", average=0.999, norm_momentum=0.1,
    )  # fmt: skip
    assert phase_words.optimizer(chosen) == (
        "adamw, weight decay 0.05, one-cycle schedule, warm-up of 0.5 epochs, gradients clipped at norm 1, labels smoothed by 0.1, "
        "classes weighted evenly, averaged weights, decay 0.999, norm momentum 0.1"
    )
    bare = OptimizerPlan(name="adam", lr=1e-3, momentum=0.9, weight_decay=0.0, schedule="constant", warmup_epochs=1)
    assert phase_words.optimizer(bare) == "adam, weight decay 0, constant schedule, warm-up of 1 epoch"


@pytest.fixture
def pair(make_plan, two_phases):
    """A plan whose second phase trains the head's tensors, the method's and those of the last two groups."""

    def make(*, own=(), **changes):
        own_names, own_groups = tuple(tensor.name for tensor in own), tuple(dict.fromkeys(f"method.{t.name.split('.')[1]}" for t in own))
        head, tuned = two_phases
        head = head.model_copy(update={"train": ("head", *own_groups), "trainable": (*head.trainable, *own_names)})
        trained = ("layer4.0.weight", "layer4.1.weight", *head.trainable)
        tuned = tuned.model_copy(update={"train": ("layer4.0", "layer4.1", "head", *own_groups), "trainable": trained} | changes)
        return make_plan(phases=(head, tuned), method=method(tensors=own))

    return make


def test_the_state_of_the_first_optimizer_has_no_words(pair):
    plan = pair()
    assert phase_words.optimizer_state(plan, plan.phases[0]) == ""


def test_the_state_that_is_carried_over(pair):
    plan = pair(optimizer_state="carry")
    assert phase_words.optimizer_state(plan, plan.phases[1]) == "carried over from phase 1 for head"
    plan = pair(own=OWN, optimizer_state="carry")
    assert phase_words.optimizer_state(plan, plan.phases[1]) == "carried over from phase 1 for head, method.critic, method.scale"


def test_the_state_that_is_fresh(pair, two_phases):
    plan = pair(optimizer_state="reset")
    assert phase_words.optimizer_state(plan, plan.phases[1]) == "fresh, for head too: as optimizer_state: reset asks"
    other = two_phases[1].optimizer.model_copy(update={"name": "adamw"})
    plan = pair(optimizer_state="reset", optimizer=other)
    assert phase_words.optimizer_state(plan, plan.phases[1]) == "fresh, for head too: adamw can't go on from sgd's"


def test_no_words_where_there_is_no_state_to_carry(pair, two_phases):
    plan = pair(optimizer=two_phases[1].optimizer.model_copy(update={"momentum": 0.0}))
    assert phase_words.optimizer_state(plan, plan.phases[1]) == ""
    plan = pair(trainable=("layer4.0.weight", "layer4.1.weight"), train=("layer4.0", "layer4.1"))
    assert phase_words.optimizer_state(plan, plan.phases[1]) == ""


def test_where_a_phase_starts(two_phases):
    place = two_phases[1].input
    assert phase_words.start(place) == "layer3.1 256x14x14"
    assert phase_words.start(place.model_copy(update={"after_phase": 1})) == "layer3.1 256x14x14 after phase 2"


@pytest.mark.parametrize(
    ("cluster", "text"),
    [
        (None, ""),
        (
            ClusterPlan(workers=(2, 2), gpus_per_worker=0.5),
            "2 workers, 0.5 GPU each, on a Ray of its own on this machine; no storage in common: one node only; up to 3 failures",
        ),
        (
            ClusterPlan(workers=(1, 8), gpus_per_worker=1.0, address="auto", storage="/mnt/xfer", max_failures=5, startup_seconds=1800.0),
            "1 to 8 workers, 1 GPU each, on the Ray at auto, which has 30 min to grow; storage /mnt/xfer; up to 5 failures",
        ),
    ],
)
def test_how_a_run_is_spread(pair, cluster, text):
    assert phase_words.cluster(pair().model_copy(update={"cluster": cluster})) == text


def augment(**changes):
    values = {"policy": "trivial", "views": None, "scale": (0.08, 1.0), "canvas": 292, "mode": "stored", "bytes": 512_000_000, "reason": ""}
    return AugmentPlan(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "trivial: drawn anew in each epoch from canvases of 292 px, stored, 512 MB"),
        (
            {"mode": "streamed", "reason": "512 MB would pass the budget of 100 MB", "scale": (0.5, 1.0)},
            "trivial, crops of 50 to 100 % of the frame: drawn anew in each epoch from canvases of 292 px, "
            "streamed: 512 MB would pass the budget of 100 MB",
        ),
        ({"policy": "standard", "views": 1}, "standard: 1 view of each training image in turn, stored, 512 MB"),
        (
            {"policy": "randaugment", "views": 4, "scale": (0.125, 0.125)},
            "randaugment, crops of 12.5 % of the frame: 4 views of each training image in turn, stored, 512 MB",
        ),
        (
            {"scale": (0.08, 0.9)},
            "trivial, crops of 8 to 90 % of the frame: drawn anew in each epoch from canvases of 292 px, stored, 512 MB",
        ),
    ],
)
def test_augmentation(changes, text):
    assert phase_words.augmentation(augment(**changes)) == text


def test_what_the_store_takes(make_plan, two_phases):
    head, second = two_phases
    plan = make_plan(phases=two_phases)
    assert phase_words.stored(plan, head) == "3.8 MB for 3,670 rows of bfloat16"
    assert phase_words.stored(plan, second) == ""
    rows = second.input.model_copy(update={"mode": "stored", "bytes": 367_000_000})
    drawn = second.model_copy(update={"input": rows, "augment": augment()})
    assert phase_words.stored(plan, drawn) == "110 MB for 1,102 rows of bfloat16, of val and test"
    assert phase_words.stored(plan, drawn.model_copy(update={"augment": augment(views=2)})) == "367 MB for 3,670 rows of bfloat16"
    assert phase_words.stored(plan, head.model_copy(update={"augment": augment()})) == "3.8 MB for 3,670 rows of bfloat16"
    assert phase_words.augmentation(None) == ""


def test_a_method(model_map):
    assert phase_words.method(method()) == "l2sp"
    assert phase_words.method(method(options={"alpha": 0.1, "target": "starting_point"})) == "l2sp, alpha 0.1, target starting_point"
    assert phase_words.own_groups(method()) == phase_words.taps(method(), model_map) == phase_words.teacher(method()) == ""
    assert phase_words.own_groups(method(tensors=OWN)) == "method.critic with 32.8 k parameters, method.scale with 1 parameter"
    taps = {"layer3.1": "layer3.1", "last": "pooled"}
    assert phase_words.taps(method(taps=taps), model_map) == "layer3.1 256x14x14, last (the end of pooled) 512"
    assert phase_words.teacher(method(teacher=True)) == "a copy of the network that keeps the source's weights"
