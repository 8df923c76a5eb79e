from __future__ import annotations

import ast
import gzip
import importlib.util
import io
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from xfer.data.cifar import CIFAR10, CIFAR100
from xfer.data.datasets.keras import NO_IMAGES, keras
from xfer.data.keras_files import KERAS_SETS, datasets_folder
from xfer.errors import AbsentDataError

TORONTO = "https://www.cs.toronto.edu/~kriz"
GOOGLE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keras's own folder of data sets, which is not there yet."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "datasets"


def batches(edition, n=10):
    """The files of a CIFAR archive by name, `n` images in each batch."""
    keys = {"labels": 10} if edition is CIFAR10 else {"fine_labels": 100, "coarse_labels": 20}
    rng = np.random.default_rng(0)
    n = max(n, *keys.values())
    files = {
        name: {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), **{key: [row % k for row in range(n)] for key, k in keys.items()}}
        for name in (*edition.train, *edition.test)
    }
    names = {words: [f"{kind} {number}" for number in range(keys[labels])] for kind, (labels, words) in edition.labels.items()}
    return {**files, edition.meta: names}


def unpacked(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def packed(file, edition, files):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            raw = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"{edition.folder}/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


def idx(values):
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def fashion(folder, *, is_packed=True):
    folder.mkdir(parents=True)
    for split, n in (("train", 20), ("t10k", 10)):
        for kind, values in (("images-idx3", np.full((n, 28, 28), n, np.uint8)), ("labels-idx1", np.arange(n, dtype=np.uint8) % 10)):
            name = f"{split}-{kind}-ubyte"
            (folder / (f"{name}.gz" if is_packed else name)).write_bytes(gzip.compress(idx(values)) if is_packed else idx(values))


def mnist(file, **changes):
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, n in (("train", 20), ("test", 10)):
        arrays[f"x_{split}"] = np.full((n, 28, 28), n, np.uint8)
        arrays[f"y_{split}"] = np.arange(n, dtype=np.uint8) % 10
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(file, **arrays)


class TestWhereItLies:
    @pytest.mark.parametrize("edition", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
    @pytest.mark.parametrize(
        "place",
        [
            "{folder}-target/{folder}/",  # Keras 3.6 and later
            "{folder}-target_archive",
            "{folder}/",  # before it
            "{folder}.tar.gz",
            "{archive}",  # downloaded by hand
        ],
    )
    def test_cifar(self, home, edition, place):
        files = batches(edition)
        at = home / place.format(folder=edition.folder, archive=edition.archive)
        if place.endswith("/"):
            unpacked(at, files)
        else:
            packed(at, edition, files)
        name = "cifar10" if edition is CIFAR10 else "cifar100"
        dataset = keras(name)
        n = len(files[edition.test[0]]["data"])
        assert len(dataset) == n * len(files) - n
        assert dataset.splits.tolist() == ["train"] * (len(dataset) - n) + ["test"] * n
        expected = files[edition.test[0]]["data"][3].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(dataset.read(len(dataset) - n + 3), expected)
        assert dataset.keys[-1] == f"test/{n - 1}"
        assert dataset.classes[3].endswith(" 3")

    def test_classes_of_both_kinds(self, home):
        packed(home / "cifar-100-python-target_archive", CIFAR100, batches(CIFAR100))
        assert len(keras("cifar100").classes) == len(keras("cifar100", variant="fine").classes) == 100
        assert keras("cifar100", variant="coarse").classes[:2] == ("coarse 0", "coarse 1")

    def test_a_folder_that_was_not_unpacked_to_the_end_gives_way_to_the_archive(self, home):
        files = batches(CIFAR10)
        packed(home / "cifar-10-batches-py-target_archive", CIFAR10, files)
        unpacked(home / "cifar-10-batches-py-target/cifar-10-batches-py", {"batches.meta": files["batches.meta"]})
        assert len(keras("cifar10")) == 60
        (home / "cifar-10-batches-py-target_archive").unlink()
        with pytest.raises(Exception, match="data_batch_1 can't be read: no such file or directory$"):
            keras("cifar10")

    def test_a_path_of_ones_own(self, tmp_path):
        files = batches(CIFAR10)
        packed(tmp_path / "mine/renamed.tgz", CIFAR10, files)
        unpacked(tmp_path / "mine/there", files)
        shutil.copy(tmp_path / "mine/renamed.tgz", tmp_path / "mine/cifar-10-python.tar.gz")
        for path in ("mine/renamed.tgz", "mine/there", "mine"):
            assert len(keras("cifar10", path=str(tmp_path / path))) == 60

    def test_mnist(self, home, tmp_path):
        mnist(home / "mnist.npz")
        mnist(tmp_path / "mine/other.npz")
        for options in ({}, {"path": str(home)}, {"path": str(tmp_path / "mine/other.npz")}):
            dataset = keras("mnist", **options)
            assert dataset.splits.tolist() == ["train"] * 20 + ["test"] * 10
            assert dataset.read(25).shape == (28, 28)
            assert dataset.read(25).max() == 10
            assert dataset.labels.tolist() == [*range(10), *range(10), *range(10)]

    @pytest.mark.parametrize("is_packed", [True, False])
    def test_fashion_mnist(self, home, is_packed):
        fashion(home / "fashion-mnist", is_packed=is_packed)
        for options in ({}, {"path": str(home / "fashion-mnist")}):
            dataset = keras("fashion_mnist", **options)
            assert len(dataset) == 30
            assert dataset.classes[9] == "Ankle boot"

    def test_the_default_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("KERAS_HOME", "~/elsewhere")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert datasets_folder() == tmp_path / "elsewhere/datasets"
        monkeypatch.delenv("KERAS_HOME")
        assert datasets_folder() == tmp_path / ".keras/datasets"
        monkeypatch.setenv("HOME", str(tmp_path / "none"))
        assert datasets_folder() == Path("/tmp/.keras/datasets")


class TestAnnounced:
    def absent(self, name, **options):
        with pytest.raises(AbsentDataError) as caught:
            keras(name, **options)
        return caught.value

    def test_cifar10(self, home):
        error = self.absent("cifar10")
        file = home / "cifar-10-batches-py-target_archive"
        assert (error.path, error.message, error.hint) == (
            "target.dataset",
            f"keras/cifar10: it is not in {home}; looked for cifar-10-batches-py-target/cifar-10-batches-py/, "
            "cifar-10-batches-py-target_archive, cifar-10-batches-py/ or cifar-10-python.tar.gz",
            f"`xfer fetch RECIPE` downloads it, or fetch {TORONTO}/cifar-10-python.tar.gz elsewhere and put it at {file}",
        )
        announced = error.announced
        assert announced.classes[0] == "airplane"
        assert announced.counts == {"train": (5000,) * 10, "test": (1000,) * 10}
        assert [(download.url, download.file, download.bytes) for download in announced.downloads] == [
            (f"{TORONTO}/cifar-10-python.tar.gz", str(file), 170_498_071)
        ]
        assert not home.exists()

    @pytest.mark.parametrize(("variant", "n"), [(None, 100), ("coarse", 20)])
    def test_cifar100(self, variant, n):
        announced = self.absent("cifar100", variant=variant).announced
        assert len(announced.classes) == n
        assert {split: sum(counts) for split, counts in announced.counts.items()} == {"train": 50_000, "test": 10_000}

    def test_only_what_is_missing(self, home):
        fashion(home / "fashion-mnist")
        (home / "fashion-mnist/t10k-labels-idx1-ubyte.gz").unlink()
        announced = self.absent("fashion_mnist").announced
        assert [download.url for download in announced.downloads] == [f"{GOOGLE}/t10k-labels-idx1-ubyte.gz"]

    @pytest.mark.parametrize("name", KERAS_SETS)
    def test_its_rows_can_be_counted(self, name):
        rows = self.absent(name).announced.rows()
        assert rows.splits.tolist().count("train") in (50_000, 60_000)
        assert rows.splits.tolist().count("test") == 10_000

    def test_it_is_downloaded_to_where_it_is_looked_for(self, home, tmp_path, monkeypatch):
        mnist(tmp_path / "server/mnist.npz")
        content = (tmp_path / "server/mnist.npz").read_bytes()

        def copy_in(url, file, *, check):
            assert url == f"{GOOGLE}/mnist.npz"
            file.parent.mkdir(parents=True)
            file.write_bytes(content)

        monkeypatch.setattr("xfer.data.announced.copy_in", copy_in)
        said = []
        pickle.loads(pickle.dumps(self.absent("mnist"))).announced.fetch(said.append)
        assert said == [f"downloading {GOOGLE}/mnist.npz to {home}/mnist.npz"]
        assert len(keras("mnist")) == 30


class TestRefusals:
    def test_names(self, refusal):
        there = "cifar10, cifar100, fashion_mnist, mnist"
        assert refusal(keras, None) == ("target.dataset", "'keras': which data set?", f"write keras/NAME; there are {there}")
        for name, guess in (("CIFAR10", "cifar10"), ("fashion-mnist", "fashion_mnist"), ("minst", "mnist")):
            assert refusal(keras, name) == (
                "target.dataset",
                f"'keras/{name}': Keras has no image data set of that name; there are {there}",
                f"did you mean 'keras/{guess}'?",
            )
        assert refusal(keras, "imdb") == ("target.dataset", f"'keras/imdb': it holds no images; there are {there}", None)

    def test_variants(self, refusal):
        assert refusal(keras, "cifar100", variant="corse") == (
            "target.variant",
            "keras/cifar100: no variant is called 'corse'; there are fine, coarse",
            None,
        )
        assert refusal(keras, "mnist", variant="fine")[1] == "keras/mnist: no variant is called 'fine'; it has no variants"

    def test_a_path_without_it(self, refusal, tmp_path):
        assert refusal(keras, "mnist", path=str(tmp_path)) == (
            "target.path",
            f"keras/mnist: it is not in {tmp_path}; looked for mnist.npz",
            "put it there, or leave `path` out to have it from Keras's own folder ($KERAS_HOME)",
        )
        assert refusal(keras, "mnist", path=str(tmp_path / "none"))[1] == f"path: no file or folder {tmp_path / 'none'}"

    def test_no_download_wanted(self, refusal, home):
        assert refusal(keras, "mnist", download=False) == (
            "target.dataset",
            f"keras/mnist: it is not in {home}; looked for mnist.npz",
            f"fetch {GOOGLE}/mnist.npz elsewhere and put it at {home}/mnist.npz, or leave `download: false` out",
        )

    def test_other_arrays(self, refusal, home):
        file = home / "mnist.npz"
        mnist(file, y_test=None)
        assert refusal(keras, "mnist")[1:] == (f"{file}: there is no 'y_test'", "the arrays in it: x_train, y_train, x_test")
        mnist(file, x_test=np.zeros((10, 28, 28)))
        assert refusal(keras, "mnist")[1] == (
            f"{file}: x_test is float64 [10, 28, 28] and y_test is uint8 [10]; bytes [n, height, width] and whole numbers [n] are expected"
        )
        mnist(file, y_test=np.arange(9, dtype=np.uint8))
        assert refusal(keras, "mnist")[1] == f"{file} holds 10 images and {file} 9 labels"
        mnist(file, y_test=np.arange(1, 11, dtype=np.uint8))
        assert refusal(keras, "mnist")[1] == f"{file}: labels from 1 to 10, but there are 10 classes"
        mnist(file, y_train=np.array([{}] * 20, dtype=object))
        assert (
            refusal(keras, "mnist")[1] == f"{file}: y_train: it holds Python objects, which can run code when they are read and are refused"
        )


class TestAgainstKeras:
    """Keras's own source, which is read and not imported."""

    @pytest.fixture(scope="class")
    def source(self):
        found = importlib.util.find_spec("keras")
        if found is None:
            pytest.skip("keras is not installed")
        return Path(found.origin).parent / "src" / "datasets"

    def test_every_data_set_is_known(self, source):
        names = {file.stem for file in source.glob("*.py") if f"keras.datasets.{file.stem}.load_data" in file.read_text()}
        assert names == {*KERAS_SETS, *NO_IMAGES}

    @pytest.mark.parametrize("name", KERAS_SETS)
    def test_addresses_and_digests(self, source, name):
        texts = {node.value for node in ast.walk(ast.parse((source / f"{name}.py").read_text())) if isinstance(node, ast.Constant)}
        words = " ".join(text for text in texts if isinstance(text, str))
        for download in KERAS_SETS[name].downloads:
            assert download.url.rpartition("/")[2] in words
            assert download.url.rpartition("/")[0] in words
            assert download.sha256 is None or download.sha256 in texts
            assert Path(download.file).parts[0].removesuffix("_archive") in words
        hashed = any(isinstance(text, str) and len(text) == 64 for text in texts)
        assert hashed == (KERAS_SETS[name].downloads[0].sha256 is not None)
