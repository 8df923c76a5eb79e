"""A run's plan means the same in every working directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from xfer.compile.compiler import compile_plan
from xfer.engine.from_anywhere import from_anywhere
from xfer.recipe.loader import read


def test_paths_of_the_data_are_made_absolute(workplace, tmp_path, monkeypatch):
    plan = compile_plan(read(workplace.recipe))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("")
    (tmp_path / "train").write_text("")
    options = {
        "path": "images",  # not there: what is said of it names the place that was meant
        "root": "~/pictures",
        "image_root": ".",
        "list": "lists/a.csv",
        "split": "train",  # a word, though a file is called so
        "url": "s3://bucket/images",
        "packed": "pkg://package/images",
        "limit": 5,
        "absolute": "/data/images",
    }
    made = from_anywhere(plan.model_copy(update={"data": plan.data.model_copy(update={"options": options})}))
    assert made.data.options == {
        **options,
        "path": str(tmp_path / "images"),
        "root": str(Path.home() / "pictures"),
        "image_root": str(tmp_path),
        "list": str(tmp_path / "lists" / "a.csv"),
    }


def test_a_run_goes_on_in_another_working_directory(workplace, read_result):
    """What it is told to type holds wherever it is typed, and so does what is done with the bundle."""
    bundle = workplace.run("target.path=data", "runtime.cache=cache")
    (bundle / "result.json").write_text(json.dumps({**read_result(bundle), "status": "interrupted"}))
    shutil.rmtree(bundle / "checkpoints")
    (bundle / "checkpoints").mkdir()
    elsewhere = workplace.folder / "elsewhere"
    elsewhere.mkdir()
    before = read_result(bundle)["metrics"]
    out, _ = workplace.xfer("run", "--resume", str(bundle), cwd=elsewhere)
    assert out == f"{bundle}\n"
    assert read_result(bundle)["status"] == "finished"
    assert read_result(bundle)["metrics"] == before
    workplace.xfer("eval", str(bundle), cwd=elsewhere)
    assert list(elsewhere.iterdir()) == []
