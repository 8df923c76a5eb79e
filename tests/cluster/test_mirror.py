"""A bundle at a URL: what is fetched from there is always a whole, whenever the writer ended."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest

from xfer.cluster.mirror import Mirror
from xfer.cluster.storage import Storage
from xfer.errors import StoreError


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage.of(request.getfixturevalue("s3").bucket("/runs/1"))
    place = f"file://{tmp_path}/remote" if request.param == "file" else f"memory://bucket-{uuid.uuid4().hex}"
    return Storage.of(f"{place}/runs/1")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """As `Bundle.create` leaves it, and one checkpoint."""
    folder = tmp_path / "bundle"
    for name in ("checkpoints", "model"):
        (folder / name).mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / ".lock").write_text("")
    checkpoint(folder, 1)
    return folder


def checkpoint(folder: Path, number: int) -> None:
    place = folder / "checkpoints" / f"{number:06d}"
    place.mkdir()
    (place / "state.safetensors").write_bytes(bytes([number]) * 1000)
    (place / "progress.json").write_text(f'{{"step": {number}}}')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"epoch": {number}}}\n')


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_another_node_goes_on(storage, bundle, tmp_path):
    mirror = Mirror(bundle, storage)
    assert mirror.push() == 4
    assert mirror.push() == 0
    checkpoint(bundle, 2)
    shutil.rmtree(bundle / "checkpoints" / "000001")
    assert mirror.push() == 3  # two of the checkpoint, and metrics.jsonl
    assert storage.inside("checkpoints", "000001").sizes() == {}
    other = tmp_path / "other"
    going = Mirror(other, storage)
    assert going.fetch()
    assert content(other) == content(bundle)
    assert (other / "model").is_dir()  # empty folders too
    assert not (other / ".lock").exists()
    # It goes on, without putting again what it fetched.
    assert going.push() == 0
    checkpoint(other, 3)
    assert going.push() == 3
    third = tmp_path / "third"
    assert Mirror(third, storage).fetch()
    assert content(third) == content(other)


def test_nothing_is_there(storage, tmp_path):
    assert not Mirror(tmp_path / "other", storage).fetch()
    assert not (tmp_path / "other").exists()


def test_what_is_here_and_later_is_no_older_whole_s_to_replace(storage, bundle):
    """Killed between a checkpoint and its push, and started again on the same node: metrics and checkpoint stay together."""
    Mirror(bundle, storage).push()
    checkpoint(bundle, 2)
    before = content(bundle)
    again = Mirror(bundle, storage)
    assert not again.fetch()
    assert content(bundle) == before
    assert again.push() == 6
    assert Mirror(bundle, storage).fetch()  # as late as what is here


def test_the_driver_s_files_are_its_own(storage, bundle, tmp_path, monkeypatch):
    """What it writes while others push and fetch is neither replaced by theirs nor lost to those who look at the copy."""
    driver, worker = tmp_path / "driver", Mirror(bundle, storage)
    (bundle / "ray.log").write_text("of another run")
    Mirror(driver, storage).add_drivers()
    assert storage.sizes() == {}  # a run that was refused leaves nothing there
    worker.push()
    assert "ray.log" not in storage.sizes()
    driver.mkdir()
    for name in ("ray.log", "report.html"):
        (driver / name).write_text(f"the driver's {name}")
    Mirror(driver, storage).fetch()
    Mirror(driver, storage).add_drivers()
    written = []
    with monkeypatch.context() as patch:  # a list that says it already is no second time written: a worker's may come in between
        patch.setattr(Storage, "write", lambda self, name, content: written.append(name))
        Mirror(driver, storage).add_drivers()
    assert written == []
    assert storage.read("report.html") == b"the driver's report.html"
    assert json.loads(storage.read(".mirror.json") or b"")["files"]["ray.log"] == len("the driver's ray.log")
    assert Mirror(driver, storage).fetch()
    assert (driver / "ray.log").read_text() == "the driver's ray.log"
    assert Mirror(tmp_path / "other", storage).fetch()
    assert not (tmp_path / "other" / "report.html").exists()
    checkpoint(bundle, 2)
    worker.push()
    assert storage.read("ray.log") == b"the driver's ray.log"


@pytest.mark.parametrize("puts", range(5))
def test_a_push_that_is_cut_off_leaves_the_whole_before_it(storage, bundle, tmp_path, monkeypatch, puts):
    """Killed after any number of files: the checkpoint before is what another node finds."""
    mirror = Mirror(bundle, storage)
    mirror.push()
    before = content(bundle)
    checkpoint(bundle, 2)
    shutil.rmtree(bundle / "checkpoints" / "000001")
    left = [puts]

    def count(put):
        def counted(self: Storage, *arguments: object) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            put(self, *arguments)

        return counted

    monkeypatch.setattr(Storage, "put", count(Storage.put))
    monkeypatch.setattr(Storage, "write", count(Storage.write))
    if puts < 4:  # two files of the checkpoint, metrics.jsonl, the list
        with pytest.raises(KeyboardInterrupt):
            mirror.push()
    else:
        mirror.push()
    other = tmp_path / "other"
    assert Mirror(other, storage).fetch()
    found = content(other)
    metrics = found.pop("metrics.jsonl")
    assert metrics.startswith(before.pop("metrics.jsonl"))  # lines of what came after the checkpoint are dropped by a resume
    expected = content(bundle)
    expected.pop("metrics.jsonl")
    assert found == (before if puts < 4 else expected)


def test_a_checkpoint_that_is_not_whole_is_said(storage, bundle, tmp_path):
    Mirror(bundle, storage).push()
    storage.write("checkpoints/000001/state.safetensors", b"half")
    with pytest.raises(StoreError) as caught:
        Mirror(tmp_path / "other", storage).fetch()
    assert caught.value.message == f"{storage}: checkpoints/000001/state.safetensors is not whole: 4 of 1000 bytes"
    assert caught.value.hint == "was something removed there? start a new run with the recipe"


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"../x": 1}, "folders": []}', '{"files": {}, "folders": ["/etc/x"]}'])
def test_a_list_that_cannot_be_trusted(storage, tmp_path, text):
    storage.write(".mirror.json", text.encode())
    with pytest.raises(StoreError) as caught:
        Mirror(tmp_path / "other", storage).fetch()
    assert caught.value.message == f"{storage}: .mirror.json can't be understood"
    assert caught.value.hint == "it was written by another version of xfer, or damaged"
    assert not (tmp_path / "x").exists()


def test_the_list_names_what_is_there(storage, bundle):
    Mirror(bundle, storage).push()
    found = json.loads(storage.read(".mirror.json") or b"")
    assert found["format"] == 1
    assert found["folders"] == ["checkpoints", "model", "checkpoints/000001"]
    assert found["files"]["checkpoints/000001/state.safetensors"] == 1000
