"""Getting weights to where the Plan looks for them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from xfer.errors import DiskFullError, WeightsError
from xfer.plan.plan import WeightsPlan
from xfer.sources import fetching
from xfer.sources.fetching import download, present

CONTENT = b"the weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def wanted(server: Any, tmp_path: Path) -> WeightsPlan:
    """A provider's weights on the local server, their digest in the name."""
    name = f"net-{DIGEST[:8]}.pth"
    (server.root / name).write_bytes(CONTENT)
    file = tmp_path / "torch/hub/checkpoints" / name
    return WeightsPlan(kind="tag", location="IMAGENET1K_V1", file=str(file), url=f"{server.url}/{name}", provider="torchvision")


def test_a_download_happens_once(server: Any, wanted: WeightsPlan) -> None:
    said: list[str] = []
    assert present(wanted) is None
    file = download(wanted, say=said.append)
    assert file == Path(str(wanted.file))
    assert file.read_bytes() == CONTENT
    assert said == [f"downloading {wanted.url} to {wanted.file}"]
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    assert present(wanted) == file
    assert download(wanted, say=said.append) == file
    assert len(server.asked) == len(said) == 1


def test_a_file_that_lies_there_is_never_checked(server: Any, wanted: WeightsPlan) -> None:
    file = Path(str(wanted.file))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the user's own")
    assert download(wanted) == file
    assert server.asked == []


def test_nothing_to_fetch(tmp_path: Path) -> None:
    assert download(WeightsPlan(kind="none", location="none")) is None
    (tmp_path / "a.pth").write_bytes(b"x")
    assert download(WeightsPlan(kind="file", location="a.pth", file=str(tmp_path / "a.pth"))) == tmp_path / "a.pth"
    with pytest.raises(WeightsError) as error:
        download(WeightsPlan(kind="file", location="b.pth", file=str(tmp_path / "b.pth")))
    assert error.value.message == f"no file or folder {tmp_path}/b.pth; did you mean 'a.pth'?"


def test_without_the_file_there_the_error_says_what_to_put_where(server: Any, wanted: WeightsPlan) -> None:
    gone = wanted.model_copy(update={"url": f"{server.url}/gone.pth"})
    with pytest.raises(WeightsError) as error:
        download(gone)
    assert error.value.message == (
        "the weights IMAGENET1K_V1 are not on this machine and can't be downloaded: "
        f"cannot copy {server.url}/gone.pth: the server answers 404 File not found"
    )
    assert error.value.hint == f"fetch {server.url}/gone.pth elsewhere and put it at {wanted.file}"
    assert not Path(str(wanted.file)).exists()


def test_a_download_that_is_cut_off(server: Any, wanted: WeightsPlan) -> None:
    server.short = 4
    with pytest.raises(WeightsError) as error:
        download(wanted)
    assert error.value.message.endswith(f"cannot copy {wanted.url}: the connection ended after 4 of {len(CONTENT)} bytes")
    assert list(Path(str(wanted.file)).parent.iterdir()) == []


def test_what_was_downloaded_must_have_the_digest_in_its_name(server: Any, wanted: WeightsPlan) -> None:
    other = hashlib.sha256(b"a login page").hexdigest()[:8]
    (server.root / Path(str(wanted.file)).name).write_bytes(b"a login page")
    with pytest.raises(WeightsError) as error:
        download(wanted)
    assert error.value.message == (
        f"what was downloaded from {wanted.url} is not the file of that name: its SHA-256 begins with {other}, not {DIGEST[:8]}; "
        "it was deleted"
    )
    assert error.value.hint == f"something between here and the server changed it; fetch it another way and put it at {wanted.file}"
    assert list(Path(str(wanted.file)).parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["MD5", "SHA-256"])
def test_what_was_downloaded_must_have_the_digest_that_its_provider_tells(server: Any, tmp_path: Path, kind: str) -> None:
    told = (hashlib.md5 if kind == "MD5" else hashlib.sha256)(CONTENT).hexdigest()
    (server.root / "net.h5").write_bytes(CONTENT)
    file, url = tmp_path / "models/net.h5", f"{server.url}/net.h5"
    plan = WeightsPlan(kind="tag", location="imagenet", file=str(file), url=url, digest=told)
    assert download(plan) == file
    file.unlink()
    other = told[::-1]
    with pytest.raises(WeightsError) as error:
        download(plan.model_copy(update={"digest": other}))
    assert error.value.message == (
        f"what was downloaded from {url} is not the file of that name: its {kind} begins with {told}, not {other}; it was deleted"
    )
    assert not file.exists()


def test_a_location_of_ones_own_has_no_digest_to_check(server: Any, tmp_path: Path) -> None:
    (server.root / "mine-20240101.pth").write_bytes(CONTENT)
    url = f"{server.url}/mine-20240101.pth"
    assert download(WeightsPlan(kind="file", location=url, file=str(tmp_path / "c/mine.pth"), url=url)) == tmp_path / "c/mine.pth"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", None])
@pytest.mark.parametrize("can_link", [True, False])
def test_the_hubs_cache_is_used(
    server: Any, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, can_link: bool
) -> None:
    hub = {"HF_HUB_CACHE": tmp_path / "x", "HF_HOME": tmp_path / "x/hub", "XDG_CACHE_HOME": tmp_path / "x/huggingface/hub"}.get(
        variable or "", own_home / ".cache/huggingface/hub"
    )
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "x"))
    repository = hub / "models--timm--net.in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc123")
    (repository / "blobs").mkdir()
    (repository / "blobs/b").write_bytes(CONTENT)
    (repository / "snapshots/abc123").mkdir(parents=True)
    (repository / "snapshots/abc123/model.safetensors").symlink_to(repository / "blobs/b")
    if not can_link:

        def refuse(*arguments: Any) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
    weights = WeightsPlan(
        kind="tag",
        location="in1k",
        file=str(tmp_path / "t/net.safetensors"),
        url=f"{server.url}/timm/net.in1k/resolve/main/model.safetensors",
    )
    assert present(weights) == repository / "snapshots/abc123/model.safetensors"
    assert download(weights) == tmp_path / "t/net.safetensors"
    assert (tmp_path / "t/net.safetensors").read_bytes() == CONTENT
    assert not (tmp_path / "t/net.safetensors").is_symlink()
    assert server.asked == []
    assert [entry.name for entry in (tmp_path / "t").iterdir()] == ["net.safetensors"]


def test_a_full_disk_is_told_apart(wanted: WeightsPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(url: str, file: Path, **_: Any) -> None:
        raise DiskFullError(f"no room left in {file.parent} for {url}")

    monkeypatch.setattr(fetching, "copy_in", full)
    with pytest.raises(DiskFullError):
        download(wanted)
