from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from xfer.data.cifar import CIFAR10, CIFAR100, find_cifar, read_cifar
from xfer.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(seed, n=4, *, key="labels", n_classes=10):
    rng = np.random.default_rng(seed)
    return {
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        key: rng.integers(0, n_classes, n).tolist(),
        "filenames": ["x.png"] * n,
    }


def contents(dump):
    files = {f"data_batch_{number}": batch(number) for number in range(1, 6)}
    files["test_batch"] = batch(6, n=3)
    files["batches.meta"] = {"label_names": NAMES, "num_vis": 3072}
    return {name: dump(value) for name, value in files.items()}


def python_2(value):
    """As Python 2's pickler wrote the published archive: protocol 2, text and array bytes alike as strings."""
    out = bytearray(b"\x80\x02")

    def text(raw):
        out.extend(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)

    def integer(number):
        out.extend(b"J" + struct.pack("<i", number))

    def item(value):
        if isinstance(value, str):
            text(value.encode())
        elif isinstance(value, int):
            integer(value)
        elif isinstance(value, list):
            out.extend(b"](")
            for each in value:
                item(each)
            out.extend(b"e")
        elif isinstance(value, dict):
            out.extend(b"}(")
            for key, each in value.items():
                item(key)
                item(each)
            out.extend(b"u")
        else:
            out.extend(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t")
            text(b"b")
            out.extend(b"tR(K\x01(")
            for extent in value.shape:
                integer(extent)
            out.extend(b"tcnumpy\ndtype\n(")
            text(b"u1")
            out.extend(b"K\x00K\x01tR(K\x03")
            text(b"|")
            out.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
            text(value.tobytes())
            out.extend(b"tb")

    item(value)
    return bytes(out + b".")


DUMPS = {
    "python 2": python_2,
    "protocol 2": lambda value: pickle.dumps(value, protocol=2),
    "protocol 5": lambda value: pickle.dumps(value, protocol=5),
    "byte keys": lambda value: pickle.dumps({key.encode(): item for key, item in value.items()}, protocol=2),
}


def unpacked(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(file, files, *, mode="w:gz"):
    with tarfile.open(file, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize("dump", DUMPS)
@pytest.mark.parametrize("as_archive", [False, True])
def test_cifar10(tmp_path, dump, as_archive):
    files = contents(DUMPS[dump])
    if as_archive:
        packed(tmp_path / CIFAR10.archive, files)
    else:
        unpacked(tmp_path / CIFAR10.folder, files)
    place = find_cifar(tmp_path, CIFAR10)
    assert place == tmp_path / (CIFAR10.archive if as_archive else CIFAR10.folder)
    found = read_cifar(place, CIFAR10)
    assert found.classes == tuple(NAMES)
    expected = np.concatenate([batch(number)["data"] for number in range(1, 6)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(found.train[0], expected.transpose(0, 2, 3, 1))
    assert found.train[1].tolist() == sum((batch(number)["labels"] for number in range(1, 6)), [])
    assert found.test[0].shape == (3, 32, 32, 3)


def test_it_reads_what_torchvision_reads(tmp_path):
    from torchvision.datasets import CIFAR10 as THEIRS

    unpacked(tmp_path / CIFAR10.folder, contents(python_2))
    theirs = object.__new__(THEIRS)
    with open(tmp_path / CIFAR10.folder / "data_batch_3", "rb") as file:
        entry = pickle.load(file, encoding="latin1")
    theirs_pixels = entry["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    found = read_cifar(tmp_path / CIFAR10.folder, CIFAR10)
    np.testing.assert_array_equal(found.train[0][8:12], theirs_pixels)
    assert theirs.base_folder == CIFAR10.folder
    assert theirs.filename == CIFAR10.archive
    assert {name for name, _ in theirs.train_list} == set(CIFAR10.train)


@pytest.mark.parametrize(("variant", "n_classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100(tmp_path, variant, n_classes):
    both = {"fine": 100, "coarse": 20}
    files = {}
    for seed, name in enumerate(("train", "test")):
        files[name] = batch(seed, key="fine_labels", n_classes=100) | {"coarse_labels": [19, 0, 3, 4]}
    files["meta"] = {f"{kind}_label_names": [f"{kind} {number}" for number in range(n)] for kind, n in both.items()}
    folder = unpacked(tmp_path / "anywhere", {name: python_2(value) for name, value in files.items()})
    assert find_cifar(folder, CIFAR100) == folder
    found = read_cifar(folder, CIFAR100, variant=variant)
    assert len(found.classes) == n_classes
    assert found.test[1].tolist() == files["test"][f"{variant}_labels"]


def test_where_it_may_lie(tmp_path):
    assert find_cifar(tmp_path, CIFAR10) is None
    archive = packed(tmp_path / "renamed.tar", contents(python_2), mode="w")
    assert find_cifar(archive, CIFAR10) == archive
    assert len(read_cifar(archive, CIFAR10).train[1]) == 20
    (tmp_path / CIFAR10.folder).mkdir()
    assert find_cifar(tmp_path, CIFAR10) is None


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


class TestRefusals:
    def refused(self, place, edition=CIFAR10):
        with pytest.raises(DataError) as error:
            read_cifar(place, edition)
        assert error.value.path == "target.path"
        return error.value.message, error.value.hint

    def changed(self, tmp_path, name, value):
        files = contents(python_2)
        files[name] = value
        return unpacked(tmp_path / "c", {key: item for key, item in files.items() if item is not None})

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (pickle.dumps({"data": Evil()}), "posix.system"),
            (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
            (b"cnumpy\nload\n.", "numpy.load"),
            (b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.", "numpy.core.multiarray._reconstruct.__globals__"),
        ],
    )
    def test_code(self, tmp_path, value, name):
        place = self.changed(tmp_path, "data_batch_2", value)
        assert self.refused(place) == (f"{place}: data_batch_2 asks for {name}, which no CIFAR archive needs: refused", None)

    def test_a_missing_batch(self, tmp_path):
        place = self.changed(tmp_path, "data_batch_4", None)
        assert self.refused(place) == (f"{place}: data_batch_4 can't be read: no such file or directory", "unpack the archive again")

    def test_a_damaged_batch(self, tmp_path):
        for damage in (b"", b"\x80\x02}q", python_2(batch(1))[:-2000], b"rubbish"):
            place = self.changed(tmp_path, "data_batch_1", damage)
            text, hint = self.refused(place)
            assert text.startswith(f"{place}: data_batch_1 is damaged: ")
            assert hint == "unpack the archive again"

    def test_other_content(self, tmp_path):
        place = self.changed(tmp_path, "data_batch_1", python_2([1, 2]))
        assert self.refused(place)[0] == f"{place}: data_batch_1 does not hold a table of names and values"
        place = self.changed(tmp_path, "data_batch_1", pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}))
        assert self.refused(place)[0] == f"{place}: data_batch_1 does not hold 'data' of [n, 3072] bytes and 'labels'"
        for labels in ([1, 2, 3], [1, 2, 3, 10], [1, 2, 3, "4"]):
            place = self.changed(tmp_path, "data_batch_1", python_2(batch(1) | {"labels": labels}))
            assert self.refused(place)[0] == f"{place}: data_batch_1 has 4 images, but not as many labels from 0 to 9"
        place = self.changed(tmp_path, "batches.meta", python_2({"names": NAMES}))
        assert self.refused(place)[0] == f"{place}: batches.meta has no 'label_names'"

    def test_half_an_archive(self, tmp_path):
        archive = packed(tmp_path / "a.tar.gz", contents(python_2))
        raw = archive.read_bytes()
        archive.write_bytes(raw[: len(raw) // 2])
        text, hint = self.refused(archive)
        assert text.startswith(f"{archive}: the archive is damaged or not a tar file: ")
        assert hint == "get it again; half a download looks like this"

    def test_another_archive(self, tmp_path):
        archive = packed(tmp_path / "a.tar.gz", {"data_batch_1.bin": b"x"})
        assert self.refused(archive) == (f"{archive}: there is no batches.meta in it", "is it the 'python version' archive?")
        archive.write_bytes(b"no archive at all")
        assert self.refused(archive)[0].startswith(f"{archive}: the archive is damaged or not a tar file: ")
