"""What `xfer plan` and the end of `xfer run` print."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from xfer.plan.plan import WeightsPlan
from xfer.report.terminal import length, show_plan, show_result, weights


def printed(renderable, width):
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_says_what_will_happen(make_plan, two_phases, width):
    text = printed(show_plan(make_plan(phases=two_phases), {}), width)
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
    few = printed(show_plan(make_plan(), {}), 100)
    assert "sunflower" in few
    plan = make_plan()
    classes = tuple(f"class{index:02d}" for index in range(30))
    counts = {"train": dict.fromkeys(classes, 10), "test": dict.fromkeys(classes, 2)}
    data = plan.data.model_copy(update={"classes": classes, "counts": counts})
    many = printed(show_plan(plan.model_copy(update={"data": data}), {}), 100)
    assert "18 more classes    180    36" in many
    assert "all                300    60" in many


def test_rows_that_are_there_are_told(make_plan):
    assert "3,000 of 3,670 rows are there" in " ".join(printed(show_plan(make_plan(), {"pooled": 3000}), 120).split())


def test_a_result(make_bundle):
    result = json.loads((make_bundle() / "result.json").read_text())
    result["data"]["computed"] = 12
    text = printed(show_result(result), 100)
    assert "3,668 images of 5 classes, 2 quarantined" in text
    assert "phase fine-tune: 7 frozen tensors, 0 changed" in text
    assert f"{result['metrics']['test']['accuracy']:.3f}" in text
    assert "4 min 19 s in all: features 35.6 s (12 images computed now), training 3 min 33 s" in text


def test_lengths(two_phases):
    assert [length(phase) for phase in two_phases][0] == "8 epochs"


def test_weights_that_are_none():
    assert weights(WeightsPlan(kind="none", location="none")) == "none: drawn at random from the seed"


def test_names_are_plain_text(make_plan):
    plan = make_plan(name="[/x] :smile:")
    classes = ("[/b]", "[red]rose[/red]", "long " * 40)
    data = plan.data.model_copy(update={"classes": classes, "counts": {"train": dict.fromkeys(classes, 5), "test": {"[/b]": 2}}})
    text = printed(show_plan(plan.model_copy(update={"data": data}), {}), 80)
    for part in ("[/x] :smile:, seed 0", "[/b]", "[red]rose[/red]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_plan_says_all_that_the_optimizer_does(make_plan, two_phases):
    optimizer = two_phases[0].optimizer.model_copy(
        update={"warmup_epochs": 0.5, "label_smoothing": 0.1, "class_weights": "balanced", "schedule": "cosine"}
    )
    plan = make_plan(phases=(two_phases[0].model_copy(update={"optimizer": optimizer, "epochs": 1}),))
    flat = " ".join(printed(show_plan(plan, {}), 200).split())
    assert (
        "optimizer sgd, momentum 0.9, weight decay 0, cosine schedule, warm-up of 0.5 epochs, labels smoothed by 0.1, "
        "classes weighted evenly, batch 32" in flat
    )
    assert "length 1 epoch optimizer" in flat
