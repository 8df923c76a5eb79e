"""A disk without room: one clear error, whichever library writes."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError

from xfer.engine.bundle import Bundle
from xfer.engine.files import room_for, write_atomic
from xfer.errors import DiskFullError
from xfer.plan.plan import Plan

HINT = "make room (`xfer cache prune --max-size …` clears the feature store), then "
OF_SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.fixture(autouse=True)
def three_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))


def nothing_left(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def nothing_left_for_tensors(*_: object) -> None:
    raise SafetensorError(OF_SAFETENSORS)


@pytest.mark.parametrize("write", [nothing_left, nothing_left_for_tensors])
def test_a_full_disk_is_told_alike_whoever_writes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "a.json").write_text("before")
    with pytest.raises(DiskFullError) as error:
        write_atomic(tmp_path / "a.json", write)
    assert error.value.message == f"no room left on the disk while writing {tmp_path}/a.json (3 MB free)"
    assert error.value.hint == f"{HINT}go on with `xfer run --resume`"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "before"


def test_no_room_for_even_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkstemp", nothing_left)
    with pytest.raises(DiskFullError, match="no room left on the disk while writing"):
        write_atomic(tmp_path / "a.json", lambda path: path.write_text("words"))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), SafetensorError("I/O error: (os error 5)"), SafetensorError("no header")])
def test_other_faults_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found, room_for(tmp_path / "a"):
        raise error
    assert found.value is error


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr("xfer.engine.bundle.read_plan", lambda folder: SimpleNamespace(runtime=SimpleNamespace(keep=2)))
    (tmp_path / "checkpoints").mkdir()
    return Bundle(tmp_path)


def test_a_line_that_does_not_fit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", nothing_left)
    with pytest.raises(DiskFullError, match="while writing .*/metrics.jsonl "):
        bundle.append_metrics({"phase_index": 0})
    with pytest.raises(DiskFullError, match="while writing .*/ledger.jsonl "):
        bundle.ledger("a test", images=1)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.checkpoint({"a": np.ones(2, np.float32)}, {"epoch": 1})
    with monkeypatch.context() as disk:
        disk.setattr("xfer.engine.bundle.save_file", nothing_left_for_tensors)
        with pytest.raises(DiskFullError, match="while writing .*/state.safetensors "):
            bundle.checkpoint({"a": np.zeros(2, np.float32)}, {"epoch": 2})
    assert bundle.latest()[1] == {"epoch": 1}
    bundle.checkpoint({"a": np.zeros(2, np.float32)}, {"epoch": 2})  # once there is room
    assert bundle.latest()[1] == {"epoch": 2}


def test_a_bundle_that_could_not_be_made_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plan = tmp_path / "b", Plan.model_construct()
    with monkeypatch.context() as disk:
        disk.setattr("xfer.engine.files._fill", nothing_left)
        with pytest.raises(DiskFullError) as error:
            Bundle.create(folder, plan, recipe="a: 1\n", resolved="a: 1\n")
    assert error.value.hint == f"{HINT}start the run again"
    assert not folder.exists()
