"""A bundle that something happened to: said in words, with the next step."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xfer.engine.bundle import Bundle
from xfer.errors import BundleError
from xfer.plan.plan import SourcePlan
from xfer.sources.model_paths import content, kept


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr("xfer.engine.bundle.read_plan", lambda folder: SimpleNamespace(runtime=SimpleNamespace(keep=2)))
    (tmp_path / "checkpoints").mkdir()
    return Bundle(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.safetensors", b"\x10"),
        ("state.safetensors", b""),
        ("state.safetensors", None),
        ("progress.json", b"{"),
        ("progress.json", b"7"),
    ],
)
def test_a_damaged_checkpoint_can_be_deleted(bundle: Bundle, name: str, content: bytes | None) -> None:
    for epoch in (1, 2):
        bundle.checkpoint({"a": np.full(3, epoch, np.float32)}, {"epoch": epoch})
    newest = bundle.folder / "checkpoints" / "000002"
    (newest / name).unlink()
    if content is not None:
        (newest / name).write_bytes(content)
    with pytest.raises(BundleError) as error:
        bundle.latest()
    assert error.value.message == f"the checkpoint {newest} is damaged, so the run can't go on from it"
    assert error.value.hint == "delete that folder: the run goes on from the checkpoint before it, or from its start, to the same numbers"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert bundle.latest()[1] == {"epoch": 1}


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x00"])
def test_damaged_notes(bundle: Bundle, content: str) -> None:
    for path, read in ((bundle.folder / "lock.json", bundle.lock), (bundle.folder / "checkpoints" / "baselines.json", bundle.baselines)):
        path.write_text(content)
        with pytest.raises(BundleError) as error:
            read()
        assert error.value.message == f"{path} is damaged, so the run can't go on"
        assert error.value.hint == "start a new run with the recipe"
        path.unlink()
    assert (bundle.lock(), bundle.baselines()) == ({}, None)


def test_a_model_that_is_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    """Kept whole, whatever an earlier copy was cut off at; a provider's model is kept nowhere."""
    (tmp_path / "model").mkdir()
    model = tmp_path / "elsewhere" / "saved"
    for name in ("saved_model.pb", "variables/variables.index"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    for part in (".source.tmp", "source"):
        (tmp_path / "model" / part / "saved").mkdir(parents=True)
        (tmp_path / "model" / part / "saved" / "half").touch()
    bundle.keep_model(model)
    copy = tmp_path / "model" / "source" / "saved"
    assert content(copy) == content(model)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["source"]
    source = SourcePlan.model_construct(name=str(model))
    assert kept(source, tmp_path).name == str(copy)
    shutil.rmtree(copy.parent)
    bundle.keep_model(None)
    assert not copy.parent.exists()
    assert kept(source, tmp_path) == source
