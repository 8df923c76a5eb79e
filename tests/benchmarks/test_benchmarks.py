"""The benchmarks' own parts measure what they say, and the whole of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def process(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import process as module

    return module


@pytest.fixture
def material(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import material as module

    return module


def test_a_peak_of_memory_is_seen(process):
    """100 MB that are touched and given back again, in a child of the process that is watched."""
    allocate = "import time; block = bytearray(b'x') * 100_000_000; time.sleep(0.4); del block; time.sleep(0.2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {allocate!r}], check=True)"
    done = process.run([sys.executable, "-c", parent], watch_memory=True)
    if done.rss_anon_bytes is None:
        pytest.skip("this system does not tell a process's anonymous memory")
    assert 100e6 < done.rss_anon_bytes < 160e6


def test_time_is_that_of_the_whole_process(process):
    assert 0.5 < process.run([sys.executable, "-c", "import time; time.sleep(0.5)"]).seconds < 5


def test_a_failed_process_is_not_timed(process):
    with pytest.raises(process.FailedProcessError, match=r"exit code 3 from: .*\nout\nerr\n"):
        process.run([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])


def test_photographs_in_turn_of_their_classes(material, tmp_path):
    chosen = list(material.textile(40))
    assert len({file for _, file in chosen}) == 40
    assert {name: sum(1 for each, _ in chosen if each == name) for name in ("global", "local", "nominal")} == {
        "global": 10,
        "local": 10,
        "nominal": 20,
    }
    root = material.image_folder(tmp_path, 40)
    assert {split: len(list((root / split).rglob("*.jpg"))) for split in ("train", "val")} == {"train": 40, "val": 4}


def test_crops_are_each_another(material, tmp_path):
    import numpy as np

    root = material.arrays(tmp_path, 2100, 16)
    images, labels = np.load(root / "images.npy"), np.load(root / "labels.npy")
    assert images.shape == (2100, 16, 16, 3)
    assert labels.shape == (2100,)
    assert len(np.unique(images.reshape(2100, -1), axis=0)) > 2050
    assert set(labels.tolist()) == {0, 1, 2}


@pytest.mark.slow
def test_all_of_them_on_a_few_images(tmp_path):
    command = [sys.executable, str(HERE / "run.py"), "--images", "60", "--only", "resnet18", "--repeats", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["probe"]["resnet18"]["seconds"]) == {
        "classic",
        "careful",
        "careful, allocator tuned",
        "xfer float32",
        "xfer bfloat16",
    }
    assert found["extraction"]["resnet18 float32"]["ratio"] > 0
    assert found["memory"]["ratio"] > 0
    assert set(found["startup"]) == {"python -c pass", "xfer --help", "xfer check --shallow", "xfer check, model seen before"}
