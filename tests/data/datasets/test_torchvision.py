from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import json
import pickle
import socket
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets as theirs

from xfer.data.announced import Download
from xfer.data.datasets.torchvision import ELSEWHERE, NAMES, torchvision
from xfer.data.torchvision_arrays import ARRAY_SETS
from xfer.data.torchvision_files import FILE_SETS, as_path
from xfer.errors import AbsentDataError, DataError, MissingExtraError


@pytest.fixture
def picture(draw):
    """Writes a small image file whose bytes differ by seed."""

    def write(file, seed=0):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(16, 12, seed=seed)).save(file, {"ppm": "PPM", "png": "PNG"}.get(file.suffix[1:], "JPEG"))

    return write


def idx(values):
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist(folder, *, prefix=("train", "t10k"), labels=(range(10), range(10)), packed=False):
    folder.mkdir(parents=True)
    for number, (name, own) in enumerate(zip(prefix, labels, strict=True)):
        own = np.array(own, np.uint8)
        images = np.random.default_rng(number).integers(0, 256, (len(own), 28, 28), dtype=np.uint8)
        for file, values in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", own)):
            (folder / f"{file}{'.gz' if packed else ''}").write_bytes(gzip.compress(idx(values)) if packed else idx(values))


class TestArrays:
    def test_cifar10_archive(self, tmp_path):
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
            rng = np.random.default_rng(0)
            files = {
                name: {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
                for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
            }
            for name, content in {**files, "batches.meta": {"label_names": list("abcdefghij")}}.items():
                raw = pickle.dumps(content, protocol=2)
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        for path in (tmp_path, tmp_path / "cifar-10-python.tar.gz"):
            dataset = torchvision("CIFAR10", path=str(path))
            assert len(dataset) == 60
            assert dataset.classes == tuple("abcdefghij")
            assert dataset.keys[49:51] == ("train/49", "test/0")
            assert dataset.splits.tolist() == ["train"] * 50 + ["test"] * 10
            np.testing.assert_array_equal(dataset.read(59), files["test_batch"]["data"][9].reshape(3, 32, 32).transpose(1, 2, 0))

    @pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_mnist_and_relatives(self, tmp_path, name, packed):
        mnist(tmp_path / name / "raw", packed=packed)
        for path in (tmp_path, tmp_path / name, tmp_path / name / "raw"):
            dataset = torchvision(name, path=str(path))
            assert len(dataset.classes) == 10
            assert dataset.splits.tolist() == ["train"] * 10 + ["test"] * 10
        if not packed:
            known = getattr(theirs, name)(str(tmp_path), train=False)
            for row in range(10):
                image, label = known[row]
                np.testing.assert_array_equal(dataset.read(10 + row), np.asarray(image))
                assert dataset.labels[10 + row] == label
            if name != "MNIST":
                assert dataset.classes == tuple(known.classes)

    def test_emnist(self, tmp_path):
        prefix = ("emnist-letters-train", "emnist-letters-test")
        mnist(tmp_path / "EMNIST" / "raw", prefix=prefix, labels=(range(1, 27), range(1, 27)))
        dataset = torchvision("EMNIST", path=str(tmp_path), variant="letters")
        known = theirs.EMNIST(str(tmp_path), split="letters", train=False)
        assert [dataset.classes[label] for label in dataset.labels[26:]] == [known.classes[known[row][1]] for row in range(26)]
        np.testing.assert_array_equal(dataset.read(30), np.asarray(known[4][0]))

    @pytest.mark.parametrize("variant", theirs.EMNIST.splits)
    def test_emnist_class_names(self, tmp_path, variant):
        names = [name for name in theirs.EMNIST.classes_split_dict[variant] if name != "N/A"]
        labels = np.arange(len(names)) + (variant == "letters")
        mnist(tmp_path / "raw", prefix=(f"emnist-{variant}-train", f"emnist-{variant}-test"), labels=(labels, labels))
        assert torchvision("EMNIST", path=str(tmp_path), variant=variant).classes == tuple(names)

    def test_svhn(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
        for split in ("train", "test"):
            scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.arange(1, 11)[:, None]})
        dataset = torchvision("SVHN", path=str(tmp_path))
        assert dataset.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
        np.testing.assert_array_equal(dataset.read(12), images[:, :, :, 2])

    def test_stl10(self, tmp_path):
        folder = tmp_path / "stl10_binary"
        folder.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
        for split in ("train", "test"):
            (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
            (folder / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
        (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
        for path in (tmp_path, folder):
            dataset = torchvision("STL10", path=str(path))
            assert dataset.classes == tuple("abcdefghij")
            np.testing.assert_array_equal(dataset.read(13), images[3])

    def test_usps(self, tmp_path):
        values = np.random.default_rng(0).uniform(-1, 1, (10, 256)).astype(np.float32)
        lines = "\n".join(
            f"{label + 1} " + " ".join(f"{at + 1}:{value}" for at, value in enumerate(row)) for label, row in enumerate(values)
        )
        for name in ("usps.bz2", "usps.t.bz2"):
            (tmp_path / name).write_bytes(bz2.compress(lines.encode()))
        dataset = torchvision("USPS", path=str(tmp_path))
        known = theirs.USPS(str(tmp_path), train=False)
        for row in range(10):
            assert np.abs(dataset.read(10 + row).astype(int) - np.asarray(known[row][0])).max() <= 1
            assert dataset.labels[10 + row] == known[row][1]


class TestFiles:
    """Small data sets in the true layout; the rows are the files' own bytes, in an order that no machine changes."""

    def check(self, dataset, root, expected):
        assert (
            dict(
                zip(
                    dataset.keys,
                    zip(dataset.splits.tolist(), [dataset.classes[label] for label in dataset.labels], strict=True),
                    strict=True,
                )
            )
            == expected
        )
        assert list(dataset.keys) == sorted(expected)
        for row, key in enumerate(dataset.keys):
            assert dataset.read(row) == (root / key).read_bytes()
            assert dataset.stamp(row)[0] == str(root / key)
        assert pickle.loads(pickle.dumps(dataset)).read(0) == dataset.read(0)

    def test_flowers102(self, tmp_path, picture):
        root = tmp_path / "flowers-102"
        labels = np.tile(np.arange(1, 103, dtype=np.uint8), 3)
        (root / "jpg").mkdir(parents=True)
        scipy.io.savemat(root / "imagelabels.mat", {"labels": labels[None]})
        ids = {"trnid": np.arange(1, 103), "valid": np.arange(103, 205), "tstid": np.arange(205, 307)}
        scipy.io.savemat(root / "setid.mat", {name: values[None].astype(np.uint16) for name, values in ids.items()})
        expected = {}
        for number in range(1, 307):
            (root / f"jpg/image_{number:05d}.jpg").write_bytes(b"image %d" % number)
            split = ("train", "val", "test")[(number - 1) // 102]
            expected[f"flowers-102/jpg/image_{number:05d}.jpg"] = (split, theirs.Flowers102.classes[labels[number - 1] - 1])
        for path in (tmp_path, root):
            self.check(torchvision("Flowers102", path=str(path)), tmp_path, expected)

    def test_eurosat(self, tmp_path, picture):
        for number, name in enumerate(("River/b.jpg", "River/a.jpg", "Forest/c.jpg")):
            picture(tmp_path / "eurosat/2750" / name, number)
        for path in (tmp_path, tmp_path / "eurosat"):
            self.check(
                torchvision("EuroSAT", path=str(path)),
                tmp_path,
                {
                    "eurosat/2750/Forest/c.jpg": ("", "Forest"),
                    "eurosat/2750/River/a.jpg": ("", "River"),
                    "eurosat/2750/River/b.jpg": ("", "River"),
                },
            )

    def test_food101(self, tmp_path, picture):
        root = tmp_path / "food-101"
        (root / "meta").mkdir(parents=True)
        for split, names in (("train", ["1", "2"]), ("test", ["3"])):
            (root / f"meta/{split}.json").write_text(json.dumps({food: [f"{food}/{name}" for name in names] for food in ("soup", "cake")}))
        expected = {}
        for seed, (food, name) in enumerate((food, name) for food in ("soup", "cake") for name in "123"):
            picture(root / f"images/{food}/{name}.jpg", seed)
            expected[f"food-101/images/{food}/{name}.jpg"] = ("test" if name == "3" else "train", food)
        self.check(torchvision("Food101", path=str(tmp_path)), tmp_path, expected)

    def test_dtd(self, tmp_path, picture):
        root = tmp_path / "dtd/dtd"
        (root / "labels").mkdir(parents=True)
        expected = {}
        for number, split in enumerate(("train", "val", "test")):
            names = [f"{texture}/{texture}_{number}.jpg" for texture in ("dotted", "banded")]
            (root / f"labels/{split}2.txt").write_text("\n".join(names))
            for name in names:
                picture(root / "images" / name, number)
                expected[f"dtd/dtd/images/{name}"] = (split, name.split("/")[0])
        self.check(torchvision("DTD", path=str(tmp_path), variant=2), tmp_path, expected)

    def test_oxford_pets(self, tmp_path, picture):
        root = tmp_path / "oxford-iiit-pet"
        (root / "annotations").mkdir(parents=True)
        expected = {}
        for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
            lines = []
            for pet, label in (("Abyssinian", 1), ("pug", 2)):
                for number in numbers:
                    picture(root / f"images/{pet}_{number}.jpg", number)
                    lines.append(f"{pet}_{number} {label} 1 1")
                    expected[f"oxford-iiit-pet/images/{pet}_{number}.jpg"] = ("train" if split == "trainval" else "test", pet.title())
            (root / f"annotations/{split}.txt").write_text("\n".join(lines))
        self.check(torchvision("OxfordIIITPet", path=str(tmp_path)), tmp_path, expected)

    def test_gtsrb(self, tmp_path, picture):
        root = tmp_path / "gtsrb"
        expected = {}
        for label in (0, 1):
            picture(root / f"GTSRB/Training/{label:05d}/x.ppm", label)
            picture(root / f"GTSRB/Final_Test/Images/{label}.ppm", label + 2)
            expected[f"gtsrb/GTSRB/Training/{label:05d}/x.ppm"] = ("train", str(label))
            expected[f"gtsrb/GTSRB/Final_Test/Images/{label}.ppm"] = ("test", str(label))
        (root / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;0\n1.ppm;1\n")
        self.check(torchvision("GTSRB", path=str(tmp_path)), tmp_path, expected)

    def test_caltech(self, tmp_path, picture):
        expected = {}
        for name in ("BACKGROUND_Google", "crab", "ant"):
            for number in (1, 2):
                picture(tmp_path / f"caltech101/101_ObjectCategories/{name}/image_{number:04d}.jpg", number)
                if name != "BACKGROUND_Google":
                    expected[f"caltech101/101_ObjectCategories/{name}/image_{number:04d}.jpg"] = ("", name)
        self.check(torchvision("Caltech101", path=str(tmp_path)), tmp_path, expected)
        expected = {}
        for place, name in ((1, "001.ak47"), (2, "002.flag")):
            picture(tmp_path / f"caltech256/256_ObjectCategories/{name}/{place:03d}_0001.jpg", place)
            expected[f"caltech256/256_ObjectCategories/{name}/{place:03d}_0001.jpg"] = ("", name)
        self.check(torchvision("Caltech256", path=str(tmp_path)), tmp_path, expected)

    @pytest.mark.parametrize(("variant", "folder"), [(None, "imagenette2"), ("160px", "imagenette2-160")])
    def test_imagenette(self, tmp_path, picture, variant, folder):
        expected = {}
        for split in ("train", "val"):
            for wnid, name in (("n01440764", "tench"), ("n02102040", "English springer")):
                picture(tmp_path / folder / split / wnid / f"{split}.jpeg")
                expected[f"{folder}/{split}/{wnid}/{split}.jpeg"] = (split, name)
        self.check(torchvision("Imagenette", path=str(tmp_path), variant=variant), tmp_path, expected)

    def test_aircraft(self, tmp_path, picture):
        root = tmp_path / "fgvc-aircraft-2013b/data"
        root.mkdir(parents=True)
        (root / "families.txt").write_text("A320\nBoeing 737\n")
        expected = {}
        for number, split in enumerate(("train", "val", "test")):
            lines = [f"{number}1 A320", f"{number}2 Boeing 737"]
            (root / f"images_family_{split}.txt").write_text("\n".join(lines))
            for line in lines:
                name, family = line.split(" ", 1)
                picture(root / f"images/{name}.jpg", int(name))
                expected[f"fgvc-aircraft-2013b/data/images/{name}.jpg"] = (split, family)
        self.check(torchvision("FGVCAircraft", path=str(tmp_path), variant="family"), tmp_path, expected)

    def test_country_and_sentiment(self, tmp_path, picture):
        expected = {}
        for folder, split in (("train", "train"), ("valid", "val"), ("test", "test")):
            for number, name in enumerate(("AD", "ZW")):
                picture(tmp_path / f"country211/{folder}/{name}/x.jpg", number)
                expected[f"country211/{folder}/{name}/x.jpg"] = (split, name)
        self.check(torchvision("Country211", path=str(tmp_path)), tmp_path, expected)
        expected = {}
        for folder, split in (("train", "train"), ("valid", "val"), ("test", "test")):
            for number, name in enumerate(("negative", "positive")):
                picture(tmp_path / f"rendered-sst2/{folder}/{name}/x.png", number)
                expected[f"rendered-sst2/{folder}/{name}/x.png"] = (split, name)
        self.check(torchvision("RenderedSST2", path=str(tmp_path)), tmp_path, expected)

    def test_sun397(self, tmp_path, picture):
        root = tmp_path / "SUN397"
        for number, name in enumerate(("a/abbey", "b/bar/indoor")):
            picture(root / name / "sun_x.jpg", number)
        (root / "ClassName.txt").write_text("/a/abbey\n/b/bar/indoor\n")
        self.check(
            torchvision("SUN397", path=str(tmp_path)),
            tmp_path,
            {"SUN397/a/abbey/sun_x.jpg": ("", "abbey"), "SUN397/b/bar/indoor/sun_x.jpg": ("", "bar/indoor")},
        )

    def test_cars(self, tmp_path, picture):
        root = tmp_path / "stanford_cars"
        (root / "devkit").mkdir(parents=True)
        expected = {}
        kind = [("fname", object), ("class", object)]
        for split, file in (("train", root / "devkit/cars_train_annos.mat"), ("test", root / "cars_test_annos_withlabels.mat")):
            for number in (1, 2):
                picture(root / f"cars_{split}/{number}.jpg", number)
                expected[f"stanford_cars/cars_{split}/{number}.jpg"] = (split, ["Audi", "Jeep"][number - 1])
            scipy.io.savemat(file, {"annotations": np.array([("1.jpg", 1), ("2.jpg", 2)], dtype=kind)})
        scipy.io.savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "Jeep"], dtype=object)})
        self.check(torchvision("StanfordCars", path=str(tmp_path)), tmp_path, expected)


class TestRefusals:
    def test_every_name_is_torchvisions(self):
        assert all(hasattr(theirs, name) for name in [*NAMES, *ELSEWHERE])

    def test_no_name(self, refusal):
        assert refusal(torchvision, None) == (
            "target.dataset",
            "'torchvision': which data set?",
            f"write torchvision/NAME; there are {', '.join(NAMES)}",
        )

    @pytest.mark.parametrize(
        ("name", "guess"),
        [("cifar10", "CIFAR10"), ("Flowers", "Flowers102"), ("OxfordPet", "OxfordIIITPet"), ("fashionmnist", "FashionMNIST")],
    )
    def test_another_name(self, refusal, name, guess):
        assert refusal(torchvision, name) == (
            "target.dataset",
            f"'torchvision/{name}': no image classification data set that we read has that name; there are {', '.join(NAMES)}",
            f"did you mean 'torchvision/{guess}'?",
        )

    def test_generic_ones(self, refusal):
        assert refusal(torchvision, "ImageFolder") == (
            "target.dataset",
            "'torchvision/ImageFolder': it is not read from torchvision",
            "use `dataset: folder` with its path",
        )
        assert refusal(torchvision, "FakeData")[2] == "it is noise; use `dataset: sklearn/digits` to try something out"

    @pytest.mark.parametrize(
        ("name", "needs"),
        [
            ("CIFAR10", "cifar-10-batches-py/ or cifar-10-python.tar.gz"),
            ("CIFAR100", "cifar-100-python/ or cifar-100-python.tar.gz"),
            (
                "MNIST",
                "MNIST/raw/ with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
                "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (.gz or not)",
            ),
            ("SVHN", "train_32x32.mat and test_32x32.mat"),
            ("STL10", "stl10_binary/ with train_X.bin, train_y.bin, test_X.bin and test_y.bin"),
            ("USPS", "usps.bz2 and usps.t.bz2"),
            ("Flowers102", "flowers-102/ with jpg/, imagelabels.mat and setid.mat"),
            ("Imagenette", "imagenette2/ with train/ and val/"),
        ],
    )
    def test_absent(self, refusal, tmp_path, name, needs):
        assert refusal(torchvision, name, path=str(tmp_path / "none")) == (
            "target.path",
            f"torchvision/{name}: it is not in {tmp_path}/none; looked for {needs}",
            "put it there, or set `download: true`",
        )

    @pytest.mark.parametrize("name", FILE_SETS)
    def test_half_there(self, refusal, tmp_path, name):
        folder = FILE_SETS[name].folder
        (tmp_path / folder).mkdir()
        place, text, hint = refusal(torchvision, name, path=str(tmp_path))
        assert place == "target.path"
        assert text.startswith(f"torchvision/{name}: {tmp_path} does not hold it as torchvision expects (")
        assert hint == f"needed are {folder}/ with {FILE_SETS[name].holds}"

    def test_what_can_not_be_downloaded(self, refusal, tmp_path):
        for download in (False, True):
            assert refusal(torchvision, "StanfordCars", path=str(tmp_path), download=download) == (
                "target.path",
                f"torchvision/StanfordCars: it is not in {tmp_path}; looked for stanford_cars/ with devkit/, cars_train/, cars_test/ and "
                "cars_test_annos_withlabels.mat",
                "put it there; it can't be downloaded any more",
            )

    def test_the_default_path(self, refusal, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert f"it is not in {tmp_path}/data;" in refusal(torchvision, "CIFAR10")[1]

    def test_variants(self, refusal, tmp_path):
        assert refusal(torchvision, "EMNIST", path=str(tmp_path)) == (
            "target.dataset",
            "torchvision/EMNIST: which variant?",
            "add `variant:` and one of byclass, bymerge, balanced, letters, digits, mnist",
        )
        assert refusal(torchvision, "CIFAR100", path=str(tmp_path), variant="corse")[:2] == (
            "target.variant",
            "torchvision/CIFAR100: no variant is called 'corse'; there are fine, coarse",
        )
        assert refusal(torchvision, "SVHN", path=str(tmp_path), variant="extra")[1] == (
            "torchvision/SVHN: no variant is called 'extra'; it has no variants"
        )

    def test_files_that_do_not_fit(self, refusal, tmp_path):
        mnist(tmp_path / "MNIST/raw", labels=(range(9), range(10)))
        folder = tmp_path / "MNIST/raw"
        (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(8, dtype=np.uint8)))
        assert refusal(torchvision, "MNIST", path=str(tmp_path))[1] == (
            f"{folder}/train-images-idx3-ubyte holds 9 images and {folder}/train-labels-idx1-ubyte 8 labels"
        )
        (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(2, 11, dtype=np.uint8)))
        assert refusal(torchvision, "MNIST", path=str(tmp_path))[1] == (
            f"{folder}/train-labels-idx1-ubyte: labels from 2 to 10, but there are 10 classes"
        )


class TestDownloads:
    """Nothing is downloaded before someone asks for it."""

    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        def never(*arguments, **options):
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket, "create_connection", never)

    def absent(self, name, root, **options):
        with pytest.raises(AbsentDataError) as caught:
            torchvision(name, path=str(root), download=True, **options)
        return caught.value

    def test_it_is_announced(self, tmp_path):
        error = self.absent("CIFAR10", tmp_path)
        assert (error.path, error.message, error.hint) == (
            "target.path",
            f"torchvision/CIFAR10: it is not in {tmp_path}; looked for cifar-10-batches-py/ or cifar-10-python.tar.gz",
            "`xfer fetch RECIPE` downloads it",
        )
        announced = error.announced
        assert announced.classes[:2] == ("airplane", "automobile")
        assert announced.counts == {"train": (5000,) * 10, "test": (1000,) * 10}
        url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
        assert announced.downloads == (Download(url, f"{tmp_path}/cifar-10-python.tar.gz", 170_498_071),)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "StanfordCars"])
    def test_each_is_announced_for_each_variant(self, name, tmp_path):
        variants = (FILE_SETS[name].variants if name in FILE_SETS else ARRAY_SETS[name].variants) or (None,)
        for variant in variants:
            announced = self.absent(name, tmp_path, variant=variant).announced
            rows = announced.rows()
            assert len(rows) > 1000
            assert len(set(rows.labels.tolist())) == len(announced.classes) > 1
            assert all(Path(download.file).is_relative_to(tmp_path) for download in announced.downloads)
        assert list(tmp_path.iterdir()) == []

    def test_without_torchvision_it_is_a_fault(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError) as caught:
            torchvision("CIFAR10", path=str(tmp_path), download=True)
        assert (caught.value.message, caught.value.hint) == (
            "torchvision/CIFAR10: torchvision is needed to download it, and it is not installed",
            "pip install 'xfer-runner[torch]'",
        )

    def test_a_download_that_fails(self, tmp_path, monkeypatch, capsys):
        def unreachable(*arguments, **options):
            print("something about a download")
            raise OSError("no route to host")

        monkeypatch.setattr(theirs, "CIFAR10", unreachable)
        said = []
        with pytest.raises(DataError) as caught:
            self.absent("CIFAR10", tmp_path).announced.fetch(said.append)
        url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
        assert said == [f"downloading {url} to {tmp_path}"]
        assert (caught.value.path, caught.value.message, caught.value.hint) == (
            "target.path",
            "the images of torchvision/CIFAR10 are not on this machine and can't be downloaded: OSError: no route to host",
            f"fetch {url} elsewhere, so that there is in {tmp_path}: cifar-10-batches-py/ or cifar-10-python.tar.gz",
        )
        assert capsys.readouterr() == ("", "something about a download\n")

    def test_a_download_that_works(self, tmp_path, monkeypatch):
        def download(root, *, train, download):
            assert train
            assert download
            mnist(tmp_path / "new" / "MNIST" / "raw")

        monkeypatch.setattr(theirs, "MNIST", download)
        self.absent("MNIST", tmp_path / "new").announced.fetch(lambda text: None)
        assert len(torchvision("MNIST", path=str(tmp_path / "new"), download=True)) == 20

    def test_files_are_downloaded_split_by_split(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(theirs, "Imagenette", lambda root, **options: asked.append((root, options)))
        error = self.absent("Imagenette", tmp_path, variant="160px")
        pickle.loads(pickle.dumps(error)).announced.fetch(lambda text: None)
        options = {"size": "160px", "loader": as_path, "download": True}
        assert asked == [(str(tmp_path), {"split": split, **options}) for split in ("train", "val")]
