"""The page of a bundle: what it says, that it needs nothing else, and that no file name can run as code."""

from __future__ import annotations

import json
import re

import pytest

from xfer.errors import BundleError
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


def test_a_cut_line_of_metrics_is_passed_over(make_bundle):
    bundle = make_bundle()
    with (bundle / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "head", "epo')
    assert render(bundle).exists()


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError):
        render(tmp_path)
