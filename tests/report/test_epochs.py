"""The epochs of all phases stand on one axis, with the ones that were kept, and each group's rate beside them."""

from __future__ import annotations

import json

import pytest

from xfer.report import bundle_files, epochs


def with_rates(bundle, rates):
    """The bundle with these rates in its training records, `rates[phase][epoch]`."""
    lines = [json.loads(line) for line in (bundle / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["split"] == "train":
            line["lr"] = rates(line["phase_index"], line["epoch"])
        else:
            line.pop("lr")
    (bundle / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return bundle_files.read(bundle)


def with_best(bundle, *best):
    result = json.loads((bundle / "result.json").read_text())
    for phase, epoch in zip(result["phases"], best, strict=False):
        phase["best_epoch"] = epoch
    (bundle / "result.json").write_text(json.dumps(result))
    return bundle_files.read(bundle)


def test_curves_have_every_epoch_of_both_splits(make_bundle):
    figures = epochs.curve_figures(bundle_files.read(make_bundle()))
    assert [(figure["title"], figure["legend"]) for figure in figures] == [
        ("Loss", [("train", "train"), ("val", "val")]),
        ("Accuracy", [("train", "train"), ("val", "val")]),
    ]
    for figure in figures:
        assert figure["figure"].count("<circle") == 2 * 14
        assert figure["figure"].count("epoch 14:") == 2
        assert "fine-tune" in figure["figure"]


def test_epochs_of_a_diverged_run_are_left_out_of_the_curve(make_bundle):
    bundle = make_bundle()
    records = [
        {"phase": "head", "phase_index": 0, "epoch": epoch, "split": "train", "loss": loss, "accuracy": None}
        for epoch, loss in enumerate([1.0, float("nan"), float("inf")])
    ]
    (bundle / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (figure,) = epochs.curve_figures(bundle_files.read(bundle))
    assert figure["legend"] == [("train", "train")]
    assert figure["figure"].count("<circle") == 1


def test_no_records_no_curves(make_bundle):
    bundle = make_bundle()
    (bundle / "metrics.jsonl").write_text("")
    assert epochs.curve_figures(bundle_files.read(bundle)) == []


@pytest.mark.parametrize(
    ("best", "told"), [((None, 4), ["fine-tune, 12"]), ((8, 1), ["head, 8", "fine-tune, 9"]), ((None, None), []), ((), [])]
)
def test_best_epochs_are_counted_over_all_phases(make_bundle, best, told):
    files = with_best(make_bundle(), *best)
    assert epochs.keeps_best(files) == bool(told)
    for figure in epochs.curve_figures(files):
        for phase, epoch in (text.split(", ") for text in told):
            assert f"phase {phase} kept the weights of epoch {epoch}<" in figure["figure"]
        assert figure["figure"].count("kept the weights") == len(told)


def test_a_best_epoch_that_has_no_record_is_passed_over(make_bundle):
    assert not epochs.keeps_best(with_best(make_bundle(), None, 40))


def test_groups_with_the_same_rates_are_one_line(make_bundle):
    def rates(phase, epoch):
        return {"layer4.0": 1e-4, "layer4.1": 1e-4, "head": 1e-3} if phase else {"head": 1e-2}

    found = epochs.rate_figure(with_rates(make_bundle(), rates))
    assert found["legend"] == [("layer4.0 … layer4.1", 0.35), ("head", 1.0)]
    assert "layer4.0 … layer4.1, phase fine-tune: 0.0001<" in found["figure"]
    assert "head, phase head: 0.01<" in found["figure"]


def test_many_different_rates_have_no_legend(make_bundle, model_map):
    def rates(phase, epoch):
        return {group.name: 1e-4 * 2**place for place, group in enumerate(model_map.groups)} | {"head": 1.0, "method.critic": 2.0}

    found = epochs.rate_figure(with_rates(make_bundle(), rates))
    assert found["legend"] == []
    assert "conv1, epochs 1 to 8: 0.0001<" in found["figure"]
    assert (
        found["figure"].index("layer4.1, epochs 1 ")
        < found["figure"].index("head, epochs 1 ")
        < found["figure"].index("method.critic, epochs 1 ")
    )


def test_one_rate_alone_or_no_plan_is_no_figure(make_bundle):
    bundle = make_bundle()
    assert epochs.rate_figure(bundle_files.read(bundle)) is None
    assert epochs.rate_figure(with_rates(bundle, lambda phase, epoch: None)) is None
    (bundle / "plan.json").unlink()
    assert epochs.rate_figure(bundle_files.read(bundle)) is None
