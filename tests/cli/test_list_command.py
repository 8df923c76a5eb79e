"""`xfer list` and `xfer doctor` tell what is there."""

from __future__ import annotations

import json

import pytest

from xfer.cli.main import run


def test_methods_as_json(capsys):
    assert run(["list", "methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "finetune", "target": "xfer.methods.finetune:FineTune", "from": "xfer-runner"},
        {"name": "l2sp", "target": "xfer.methods.l2sp:L2SP", "from": "xfer-runner"},
        {"name": "probe", "target": "xfer.methods.probe:Probe", "from": "xfer-runner"},
    ]


def test_models_are_filtered(capsys):
    assert run(["list", "models", "torchvision/resnet1*"]) == 0
    assert capsys.readouterr().out.split() == ["torchvision/resnet101", "torchvision/resnet152", "torchvision/resnet18"]


def test_nothing_matches(capsys):
    assert run(["list", "freezes", "zzz"]) == 0
    assert capsys.readouterr() == ("", "no freezes here match 'zzz'\n")


def test_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XFER_RUNS", str(tmp_path))
    folder = tmp_path / "flowers" / "20260101-000000-ab12"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "finished", "metrics": {"test": {"accuracy": 0.91237}}}))
    assert run(["list", "runs"]) == 0
    assert capsys.readouterr().out == f"{folder}  finished  0.9124\n"


def test_an_unknown_kind(capsys):
    assert run(["list", "modles"]) == 2
    assert "'modles' is not one of" in capsys.readouterr().err


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "cache"))
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "hardware", "cache"}
    assert found["versions"]["torch"]
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert found["cache"]["holds"] == "0.0 MB in 0 files"


@pytest.mark.parametrize("section", ["versions", "hardware", "cache"])
def test_doctor_for_people(capsys, section):
    assert run(["doctor"]) == 0
    assert section in capsys.readouterr().out.splitlines()


def test_a_run_whose_result_is_damaged_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XFER_RUNS", str(tmp_path))
    for name, content in (("a", "{"), ("b", "[]")):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        (tmp_path / "flowers" / name / "result.json").write_text(content)
    assert run(["list", "runs"]) == 0
    folder = tmp_path / "flowers"
    assert capsys.readouterr().out == f"{folder}/b  unreadable result.json\n{folder}/a  unreadable result.json\n"


def test_doctor_counts_a_cache_that_has_broken_links(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XFER_CACHE", str(tmp_path))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "shard.npy").write_bytes(bytes(2_000_000))
    (tmp_path / "store" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["holds"].startswith("2.0 MB in ")
