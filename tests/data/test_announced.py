from __future__ import annotations

import gzip
import hashlib
import pickle

import pytest

from xfer.data.announced import Announced, Download, Fetch
from xfer.errors import AbsentDataError, DataError, DiskFullError

CONTENT = b"pictures"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that stands for the other end, behind file:// addresses."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    (folder / "b.gz").write_bytes(gzip.compress(CONTENT))
    return folder


def test_rows_can_be_counted_and_not_read():
    announced = Announced(("cat", "dog"), {"train": (3, 2), "test": (1, 1)}, (), Fetch("x", ()))
    rows = announced.rows()
    assert rows.splits.tolist() == ["train"] * 5 + ["test"] * 2
    assert rows.labels.tolist() == [0, 0, 0, 1, 1, 0, 1]
    with pytest.raises(OSError, match="^row 4 is announced only: its file is not there yet$"):
        rows.read(4)


def test_files_are_downloaded_and_told(elsewhere, tmp_path):
    downloads = (
        Download(f"file://{elsewhere}/a.bin", str(tmp_path / "new/a"), sha256=DIGEST),
        Download(f"file://{elsewhere}/b.gz", str(tmp_path / "new/b.gz")),
    )
    said = []
    pickle.loads(pickle.dumps(Fetch("the images of x/y", downloads)))(said.append)
    assert (tmp_path / "new/a").read_bytes() == CONTENT
    assert gzip.decompress((tmp_path / "new/b.gz").read_bytes()) == CONTENT
    assert said == [f"downloading {download.url} to {download.file}" for download in downloads]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "b.gz"]


def refused(*downloads):
    with pytest.raises(DataError) as caught:
        Fetch("the images of x/y", downloads)(lambda text: None)
    assert caught.value.path == "target.dataset"
    return caught.value.message, caught.value.hint


def test_what_cannot_be_had_is_named_with_its_place_and_so_is_what_comes_after_it(elsewhere, tmp_path):
    downloads = [Download(f"file://{elsewhere}/{name}", str(tmp_path / "new" / name)) for name in ("a.bin", "gone", "b.gz")]
    assert refused(*downloads) == (
        f"the images of x/y are not on this machine and can't be downloaded: cannot copy file://{elsewhere}/gone: there is nothing",
        f"fetch file://{elsewhere}/gone elsewhere and put it at {tmp_path}/new/gone\n"
        f"  fetch file://{elsewhere}/b.gz elsewhere and put it at {tmp_path}/new/b.gz",
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_another_content_is_not_kept(elsewhere, tmp_path):
    file = tmp_path / "new/a"
    assert refused(Download(f"file://{elsewhere}/a.bin", str(file), sha256="0" * 64)) == (
        f"what was downloaded from file://{elsewhere}/a.bin is not the file of that name: its SHA-256 begins with {DIGEST[:8]}, "
        "not 00000000; it was not kept",
        f"something between here and the server changed it; fetch it another way and put it at {file}",
    )
    assert list(file.parent.iterdir()) == []


def test_half_a_packed_file_is_not_kept(elsewhere, tmp_path):
    (elsewhere / "b.gz").write_bytes((elsewhere / "b.gz").read_bytes()[:-3])
    text, _ = refused(Download(f"file://{elsewhere}/b.gz", str(tmp_path / "new/b.gz")))
    assert text == (
        f"what was downloaded from file://{elsewhere}/b.gz is not the file of that name: it can't be unpacked "
        "(Compressed file ended before the end-of-stream marker was reached); it was not kept"
    )
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_told_apart(elsewhere, tmp_path, monkeypatch):
    def full(url, file, *, check):
        raise DiskFullError("no room")

    monkeypatch.setattr("xfer.data.announced.copy_in", full)
    with pytest.raises(DiskFullError):
        Fetch("x", (Download(f"file://{elsewhere}/a.bin", str(tmp_path / "a")),))(lambda text: None)


def test_the_error_takes_it_to_another_process():
    error = AbsentDataError("not there", announced=Announced(("a",), {"": (1,)}, (), Fetch("x", ())), path="target.dataset")
    again = pickle.loads(pickle.dumps(error))
    assert again.announced == error.announced
    assert again.path == "target.dataset"
