"""The page of a bundle: what it says, that it needs nothing else, and that no file name can run as code."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from xfer.errors import BundleError, DiskFullError
from xfer.plan.plan import Plan
from xfer.report import moves
from xfer.report.page import render


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))


def test_it_says_the_numbers_of_the_result(make_bundle):
    bundle = make_bundle()
    text = text_of(render(bundle))
    result = json.loads((bundle / "result.json").read_text())
    for value in (result["metrics"]["test"]["accuracy"], *result["metrics"]["test"]["interval"]["accuracy"], result["baseline"]["probe"]):
        assert f"{value:.3f}" in text
    assert "torchvision/resnet18" in text
    assert "rose/0907.jpg" in text
    assert "truncated: the file ends before the image does" in text


def test_it_needs_nothing_else(make_bundle):
    html = render(make_bundle()).read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_pictures_of_mistakes_where_the_files_are_found(make_bundle):
    assert render(make_bundle()).read_text().count("data:image/") > 3


def test_without_pictures_the_names_stay(make_bundle):
    html = render(make_bundle(images=False)).read_text()
    assert "data:image/" not in html
    assert ".jpg" in html


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_unfinished_runs_show_what_there_is(make_bundle, status):
    bundle = make_bundle()
    for name in ("predictions.parquet", "metrics.jsonl", "quarantine.csv"):
        (bundle / name).unlink()
    error = "no room left on the disk" if status == "failed" else None
    (bundle / "result.json").write_text(json.dumps({"status": status, "error": error}))
    text = text_of(render(bundle))
    assert status in text
    assert ("no room left on the disk" in text) == (status == "failed")


@pytest.fixture
def fine_tuned(make_bundle):
    """A bundle with the distances and rates that a run records."""
    bundle = make_bundle()
    result = json.loads((bundle / "result.json").read_text())
    result["phases"][0] |= {"distance": {"layer4.0": 0.0, "layer4.1": 0.0}}
    result["phases"][1] |= {"best_epoch": 4, "distance": {"layer4.0": 0.0126, "layer4.1": 0.217}}
    (bundle / "result.json").write_text(json.dumps(result))
    records = [json.loads(line) for line in (bundle / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["lr"] = {"layer4.0": 1e-5, "head": 1e-4} if record["phase_index"] else {"head": 1e-3}
    (bundle / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    return bundle


def test_fine_tuning_shows_what_each_phase_changed(fine_tuned):
    text = text_of(render(fine_tuned))
    for part in (
        "What each phase changed Learning rate , logarithmic layer4.0 head",
        "Distance from the source after each phase: ‖w − source‖ / ‖source‖ of a group's parameters",
        "group head fine-tune conv1 … layer3.1 frozen frozen layer4.0 frozen 1.3 % layer4.1 frozen 22 % "
        "frozen: equal to the source to the bit.",
        "A ring marks the epoch whose weights were kept for what came after.",
        "kept the weights of epoch 4 of 6 source moved by up to 22 %, at layer4.1 frozen ✓ 7 tensors, none changed by a bit",
        "took 8 epochs, 0.43 s, 52,310 images/s frozen ✓ 9 tensors, none changed by a bit",
    ):
        assert part in text, part
    assert text.count("Learning rate") == 1


def test_a_probe_changes_nothing_of_the_source(fine_tuned):
    result = json.loads((fine_tuned / "result.json").read_text())
    result["phases"] = result["phases"][:1]
    (fine_tuned / "result.json").write_text(json.dumps(result))
    text = text_of(render(fine_tuned))
    assert "What each phase changed" not in text
    assert "A ring marks" not in text
    assert text.count("Learning rate") == 1  # beside the curves


def test_a_phase_that_freezes_nothing_says_so(fine_tuned):
    result = json.loads((fine_tuned / "result.json").read_text())
    result["phases"][1] |= {"frozen_tensors": 0, "epochs": 1}
    (fine_tuned / "result.json").write_text(json.dumps(result))
    text = text_of(render(fine_tuned))
    assert "frozen nothing: every tensor trains" in text
    assert "took 1 epoch, 3 min 33 s, 74.2 images/s" in text


def test_the_table_explains_what_it_shows(fine_tuned, monkeypatch):
    monkeypatch.setattr(moves, "MOST_ROWS", 2)
    plan, result = Plan.read(fine_tuned / "plan.json"), json.loads((fine_tuned / "result.json").read_text())
    plan.model_copy(update={"phases": plan.phases[::-1]}).write(fine_tuned / "plan.json")
    result["phases"].reverse()
    result["phases"][1]["distance"] = result["phases"][0]["distance"]
    (fine_tuned / "result.json").write_text(json.dumps(result))
    text = text_of(render(fine_tuned))
    assert "after each phase: ‖w − source‖ / ‖source‖ of each stage's group that lies furthest stage fine-tune head conv1" in text
    assert "layer3.1 … layer4.0 1.3 % 1.3 % layer4.1 22 % 22 % frozen: equal to the source to the bit. Grey: frozen in this phase" in text
    assert "Grey: frozen in this phase, as an earlier one left it. Where it is right" in text
    result["phases"][0]["frozen_changed"] = None
    (fine_tuned / "result.json").write_text(json.dumps(result))
    assert "–: not recorded. Where it is right" in text_of(render(fine_tuned))


def test_a_frozen_tensor_that_changed_is_an_alarm(fine_tuned):
    result = json.loads((fine_tuned / "result.json").read_text())
    result["phases"][1]["frozen_changed"] = 2
    (fine_tuned / "result.json").write_text(json.dumps(result))
    assert "frozen ✗ 2 of 7 tensors changed" in text_of(render(fine_tuned))


def test_a_cut_line_of_metrics_is_passed_over(make_bundle):
    bundle = make_bundle()
    with (bundle / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "head", "epo')
    assert render(bundle).exists()


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError):
        render(tmp_path)


def test_a_disk_without_room(make_bundle, monkeypatch):
    bundle = make_bundle()

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFullError, match=r"no room left on the disk while writing .*/report\.html \("):
        render(bundle)
    assert not list(bundle.glob(".report*"))
