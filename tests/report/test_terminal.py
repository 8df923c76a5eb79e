"""What `xfer plan` and the end of `xfer run` print."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from xfer.plan.model_map import Tensor
from xfer.plan.plan import AugmentPlan, MethodPlan, WeightsPlan
from xfer.report.terminal import show_plan, show_result, weights


def printed(renderable, width):
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_says_what_will_happen(make_plan, two_phases, width):
    text = printed(show_plan(make_plan(phases=two_phases)), width)
    flat = " ".join(text.split())
    for part in (
        "trains head: 2,565 of",
        "layer4.0 … layer4.1, head: 4,721,157 of",
        "length 8 epochs",
        "until val.accuracy has not improved for 3 epochs, at most 20; the best weights are restored",
        "layer4.0: 2.5e-05, layer4.1: 5e-05, head: 0.0001",
        "layer3.1 256x14x14, streamed: 368 MB would pass the budget of 100 MB",
        "IMAGENET1K_V1, will be downloaded from torchvision: https://models.example/resnet18.pth to /cache/hub/checkpoints/resnet18.pth",
        "on cpu in bfloat16",
    ):
        assert part in flat.replace("checkpoints/ ", "checkpoints/"), (part, text)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_a_plan_lists_few_classes_and_sums_many(make_plan):
    few = printed(show_plan(make_plan()), 100)
    assert "sunflower" in few
    plan = make_plan()
    classes = tuple(f"class{index:02d}" for index in range(30))
    counts = {"train": dict.fromkeys(classes, 10), "test": dict.fromkeys(classes, 2)}
    data = plan.data.model_copy(update={"classes": classes, "counts": counts})
    many = printed(show_plan(plan.model_copy(update={"data": data})), 100)
    assert "18 more classes    180    36" in many
    assert "all                300    60" in many


def test_a_result(make_bundle):
    result = json.loads((make_bundle() / "result.json").read_text())
    result["data"]["computed"] = 12
    text = printed(show_result(result), 100)
    assert "3,668 images of 5 classes, 2 quarantined" in text
    assert "phase fine-tune: 7 frozen tensors, 0 changed" in text
    assert f"{result['metrics']['test']['accuracy']:.3f}" in text
    assert "4 min 19 s in all: features 35.6 s (12 images computed now), training 3 min 33 s" in text


def test_weights_that_are_none():
    assert weights(WeightsPlan(kind="none", location="none")) == "none: drawn at random from the seed"


def test_names_are_plain_text(make_plan):
    plan = make_plan(name="[/x] :smile:")
    classes = ("[/b]", "[red]rose[/red]", "long " * 40)
    data = plan.data.model_copy(update={"classes": classes, "counts": {"train": dict.fromkeys(classes, 5), "test": {"[/b]": 2}}})
    text = printed(show_plan(plan.model_copy(update={"data": data})), 80)
    for part in ("[/x] :smile:, seed 0", "[/b]", "[red]rose[/red]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_plan_says_all_that_the_optimizer_does(make_plan, two_phases):
    optimizer = two_phases[0].optimizer.model_copy(
        update={"warmup_epochs": 0.5, "label_smoothing": 0.1, "class_weights": "balanced", "schedule": "cosine"}
    )
    plan = make_plan(phases=(two_phases[0].model_copy(update={"optimizer": optimizer, "epochs": 1}),))
    flat = " ".join(printed(show_plan(plan), 200).split())
    assert (
        "optimizer sgd, momentum 0.9, weight decay 0, cosine schedule, warm-up of 0.5 epochs, labels smoothed by 0.1, "
        "classes weighted evenly, batch 32" in flat
    )
    assert "length 1 epoch optimizer" in flat


def test_a_plan_says_what_fine_tuning_adds(make_plan, two_phases):
    own = Tensor(name="method.critic.weight", shape=(4, 512), kind="parameter")
    method = MethodPlan(
        type="model", name="l2sp", target="a:b", options={"alpha": 0.1}, taps={"last": "pooled"}, tensors=(own,), teacher=True
    )
    augment = AugmentPlan(policy="trivial", views=4, scale=(0.5, 1.0), canvas=256, mode="stored", bytes=2_000_000, reason="it fits")
    second = two_phases[1].model_copy(update={"reestimate_norm": True, "augment": augment, "trainable": two_phases[0].trainable})
    flat = " ".join(printed(show_plan(make_plan(phases=(two_phases[0], second), method=method)), 200).split())
    for part in (
        "transfer model, method l2sp, alpha 0.1 own groups method.critic with 2,048 parameters looks at last (the end of pooled) 512 "
        "teacher a copy of the network that keeps the source's weights head",
        "its state carried over from phase 1 for head learning rate",
        "statistics estimated anew from the training images when the phase ends augment trivial, crops of 50 to 100 % of the frame: "
        "4 views of each training image in turn, stored, 2 MB starts from layer3.1 256x14x14, streamed:",
    ):
        assert part in flat, (part, flat)
    assert flat.count("its state") == flat.count("statistics estimated") == flat.count("augment ") == 1
    assert flat.count("store 3.8 MB for 3,670 rows of bfloat16") == 1


def test_a_plan_has_no_rows_for_what_is_not_used(make_plan):
    text = printed(show_plan(make_plan(never_trained=())), 120)
    labels = {line[:14].strip() for line in text.splitlines()}
    assert not labels & {"own groups", "looks at", "teacher", "never trained", "its state", "statistics", "augment"}


def test_a_plan_says_what_the_dataset_leaves_out(make_plan):
    plan = make_plan()
    data = plan.data.model_copy(update={"notes": ("left out, because of their endings: 2 .gif",)})
    text = printed(show_plan(plan.model_copy(update={"data": data})), 120)
    assert "of the data    left out, because of their endings: 2 .gif " in text
    assert "of the data" not in printed(show_plan(plan), 120)


def test_a_plan_says_what_is_to_be_known_of_the_model(make_plan):
    plan = make_plan()
    model = plan.model.model_copy(update={"note": "it has no classifying layer: its output is taken as the features"})
    text = printed(show_plan(plan.model_copy(update={"model": model})), 120)
    assert "of the model   it has no classifying layer: its output is taken as the features " in text
    assert "of the model" not in printed(show_plan(plan), 120)


def test_a_result_says_what_each_phase_did_to_the_source(make_bundle):
    result = json.loads((make_bundle() / "result.json").read_text())
    result["data"]["computed"] = 0
    result["phases"][1] |= {"distance": {"layer4.0": 0.02, "layer4.1": 0.0305}, "best_epoch": 4}
    lines = [line.rstrip() for line in printed(show_result(result), 120).splitlines()]
    assert lines[-2:] == [
        "phase head: 9 frozen tensors, 0 changed",
        "phase fine-tune: 7 frozen tensors, 0 changed; source moved by up to 3.0 % (layer4.1); best epoch 4 of 6",
    ]
