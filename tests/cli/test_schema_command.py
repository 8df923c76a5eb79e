from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from xfer.cli.main import run
from xfer.recipe.json_schema import write_schema


def test_stdout_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == write_schema()
    assert err == ""
    Draft202012Validator.check_schema(json.loads(out))


def test_output_writes_the_file_and_prints_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.schema.json"
    file.write_text("old")
    assert run(["schema", "--output", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert json.loads(file.read_text()) == write_schema()
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "absent" / "recipe.schema.json"
    assert run(["schema", "--output", str(file)]) == 2
    assert capsys.readouterr().err == f"error: can't write {file}: no such file or directory\n"
