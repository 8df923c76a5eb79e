from __future__ import annotations

import numpy as np
import pytest

from xfer.data.datasets.arrays import arrays
from xfer.data.decode import decode
from xfer.plan.preprocess import Preprocess

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def saved(tmp_path):
    """Writes a .npz file and returns its path."""

    def save(packed=False, **content):
        file = tmp_path / "set.npz"
        (np.savez_compressed if packed else np.savez)(file, **content)
        return str(file)

    return save


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels(saved, packed):
    dataset = arrays(None, path=saved(packed, images=IMAGES, labels=LABELS))
    assert dataset.classes == ("0", "1", "2")
    assert dataset.keys == ("0", "1", "2", "3", "4", "5")
    assert dataset.labels.tolist() == LABELS.tolist()
    assert set(dataset.splits) == {""}
    for row in range(6):
        np.testing.assert_array_equal(dataset.read(row), IMAGES[row])


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("{}_images", "{}_labels")])
def test_splits_by_name(saved, names):
    content = {}
    for split, part in [("train", slice(0, 3)), ("test", slice(3, 6))]:
        content[names[0].format(split)] = IMAGES[part]
        content[names[1].format(split)] = LABELS[part, None]
    dataset = arrays(None, path=saved(**content))
    assert dataset.keys == ("train/0", "train/1", "train/2", "test/0", "test/1", "test/2")
    assert dataset.splits.tolist() == ["train"] * 3 + ["test"] * 3
    np.testing.assert_array_equal(dataset.read(4), IMAGES[4])


def test_splits_by_an_array(saved):
    splits = np.array(["train", "val", "test", "train", "", "test"])
    assert arrays(None, path=saved(images=IMAGES, labels=LABELS, splits=splits)).splits.tolist() == splits.tolist()


def test_arrays_that_are_not_read_are_noted(saved):
    half = {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])}
    assert arrays(None, path=saved(**half, splits=np.full(6, "train"))).notes == ()
    assert arrays(None, path=saved(**half, split=np.full(6, "test"))).notes == ("left out, because of their names: 'split'",)
    whole = {"x_train": IMAGES, "y_train": LABELS, "x_valid": IMAGES, "splits": LABELS}
    assert arrays(None, path=saved(**whole)).notes == ("left out, because of their names: 'x_valid', 'splits'",)


def test_a_folder_of_files(tmp_path):
    for name, content in [("x_train", IMAGES), ("y_train", LABELS), ("x_val", IMAGES[:3]), ("y_val", LABELS[:3])]:
        np.save(tmp_path / f"{name}.npy", content)
    dataset = arrays(None, path=str(tmp_path))
    assert dataset.splits.tolist() == ["train"] * 6 + ["val"] * 3


def test_two_files(tmp_path):
    np.save(tmp_path / "pictures.npy", IMAGES)
    np.save(tmp_path / "answers.npy", LABELS)
    dataset = arrays(None, path=str(tmp_path / "pictures.npy"), labels=str(tmp_path / "answers.npy"))
    assert len(dataset) == 6


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_lies_in_the_file_as_it_is_is_memory_mapped(saved, tmp_path, order):
    images = np.asarray(IMAGES, order=order)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", LABELS)
    for path in (saved(labels=LABELS, images=images), str(tmp_path)):
        dataset = arrays(None, path=path)
        assert all(isinstance(array, np.memmap) for array in dataset.read.arrays)
        np.testing.assert_array_equal([dataset.read(row) for row in range(6)], IMAGES)
        pixels = decode(dataset.read(0), Preprocess(resize=4, crop=4))
        assert pixels.shape == (4, 4, 3)


class TestValues:
    @pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 3)])
    def test_shapes(self, saved, shape):
        images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        dataset = arrays(None, path=saved(images=images, labels=LABELS))
        assert decode(dataset.read(2), Preprocess(resize=4, crop=4)).shape == (4, 4, 3)

    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
    def test_fractions(self, saved, kind):
        dataset = arrays(None, path=saved(images=(IMAGES / 255).astype(kind), labels=LABELS))
        np.testing.assert_allclose(dataset.read(3), IMAGES[3], atol=0 if kind != np.float16 else 1)
        assert dataset.read(3).dtype == np.uint8

    @pytest.mark.parametrize("kind", [np.float32, np.int64, np.int16, np.uint16])
    def test_bytes_in_another_type(self, saved, kind):
        dataset = arrays(None, path=saved(images=IMAGES.astype(kind), labels=LABELS))
        np.testing.assert_array_equal(dataset.read(3), IMAGES[3])
        assert dataset.read(3).dtype == np.uint8

    def test_fractions_are_rounded(self, saved):
        images = np.full((6, 2, 2), 100.6, np.float32)
        assert (arrays(None, path=saved(images=images, labels=LABELS)).read(0) == 101).all()

    def test_one_rule_for_all_splits(self, saved):
        dataset = arrays(
            None,
            path=saved(x_train=IMAGES.astype(np.float32), y_train=LABELS, x_test=np.ones((3, 5, 4, 3), np.float32), y_test=LABELS[:3]),
        )
        assert (dataset.read(6) == 1).all()

    def test_booleans(self, saved):
        dataset = arrays(None, path=saved(images=IMAGES[..., 0] > 127, labels=LABELS))
        np.testing.assert_array_equal(dataset.read(1), np.where(IMAGES[1, ..., 0] > 127, 255, 0))


class TestLabels:
    def test_text(self, saved):
        dataset = arrays(None, path=saved(images=IMAGES, labels=np.array(["owl", "cat", "cat", "dog", "owl", "cat"])))
        assert dataset.classes == ("cat", "dog", "owl")
        assert dataset.labels.tolist() == [2, 0, 0, 1, 2, 0]

    def test_bytes(self, saved):
        assert arrays(None, path=saved(images=IMAGES, labels=np.array([b"b", b"a"] * 3))).classes == ("a", "b")

    def test_numbers_with_gaps_sort_by_value(self, saved):
        dataset = arrays(None, path=saved(images=IMAGES, labels=np.array([10, 9, -1, 10, 9, -1])))
        assert dataset.classes == ("-1", "9", "10")
        assert dataset.labels.tolist() == [2, 1, 0, 2, 1, 0]

    def test_named_classes(self, saved):
        path = saved(images=IMAGES, labels=LABELS)
        assert arrays(None, path=path, classes=["x", "y", "z"]).classes == ("x", "y", "z")
        path = saved(images=IMAGES, labels=LABELS, classes=np.array(["u", "v", "w"]))
        assert arrays(None, path=path).classes == ("u", "v", "w")

    def test_named_classes_order_text(self, saved):
        dataset = arrays(None, path=saved(images=IMAGES, labels=np.array(["b", "a"] * 3)), classes=["b", "a"])
        assert dataset.labels.tolist() == [0, 1] * 3


class TestRefusals:
    def refused(self, refusal, path, **options):
        place, text, hint = refusal(arrays, None, path=path, **options)
        assert place == options.get("place", "target.path")
        return text.replace(path, "FILE"), hint

    def test_a_name(self, refusal):
        assert refusal(arrays, "x", path=".")[:2] == ("target.dataset", "'arrays/x': arrays takes no name after a slash")

    def test_objects(self, refusal, saved, tmp_path):
        hint = "save plain arrays: images of one size as uint8, labels with labels.astype(int) or labels.astype(str)"
        text = "it holds Python objects, which can run code when they are read and are refused"
        for packed in (False, True):
            path = saved(packed, images=IMAGES, labels=np.array(["a", 1] * 3, dtype=object))
            assert self.refused(refusal, path) == (f"FILE: labels: {text}", hint)
        np.save(tmp_path / "images.npy", np.array([IMAGES[0], IMAGES[1]], dtype=object))
        np.save(tmp_path / "labels.npy", LABELS)
        assert self.refused(refusal, str(tmp_path)) == (f"FILE/images.npy: {text}", hint)

    def test_other_names(self, refusal, saved):
        assert self.refused(refusal, saved(data=IMAGES, target=LABELS)) == (
            "FILE: no arrays called 'images' and 'labels', or 'x_train' and 'y_train'; there are 'data', 'target'",
            "save them under those names: numpy.savez(file, images=…, labels=…)",
        )

    def test_an_empty_folder(self, refusal, tmp_path):
        assert self.refused(refusal, str(tmp_path))[0].endswith("; there is no array in it")

    def test_labels_missing(self, refusal, saved):
        assert self.refused(refusal, saved(images=IMAGES)) == (
            "FILE: there is 'images' but no 'labels'",
            "the arrays in it: images",
        )
        assert self.refused(refusal, saved(x_train=IMAGES, y_train=LABELS, x_test=IMAGES)) == (
            "FILE: there is 'x_test' but no 'y_test'",
            "the arrays in it: x_train, y_train, x_test",
        )

    def test_no_training_images(self, refusal, saved):
        assert self.refused(refusal, saved(x_test=IMAGES, y_test=LABELS)) == (
            "FILE: there is no 'x_train'",
            "the arrays in it: x_test, y_test",
        )

    def test_counts(self, refusal, saved):
        assert self.refused(refusal, saved(images=IMAGES, labels=LABELS[:4]))[0] == "FILE: images has 6 rows and FILE: labels has 4"

    @pytest.mark.parametrize(
        ("images", "text", "hint"),
        [
            (
                IMAGES.transpose(0, 3, 1, 2),
                "[6, 3, 5, 4]",
                "the channels come first here: save images.transpose(0, 2, 3, 1)",
            ),
            (IMAGES.reshape(6, -1), "[6, 60]", None),
            (
                np.zeros((6, 784), np.uint8),
                "[6, 784]",
                "if these are 28 x 28 px images laid flat, save images.reshape(-1, 28, 28)",
            ),
            (np.zeros((6, 5, 4, 4), np.uint8), "[6, 5, 4, 4]", None),
            (np.zeros((6, 0, 4), np.uint8), "[6, 0, 4]", None),
        ],
    )
    def test_shapes(self, refusal, saved, images, text, hint):
        assert self.refused(refusal, saved(images=images, labels=LABELS)) == (
            f"FILE: images: images of shape {text}; [n, height, width], with 1 or 3 channels last or none, is expected",
            hint,
        )

    @pytest.mark.parametrize(
        ("images", "text"),
        [
            (IMAGES.astype(np.float32) - 128, "values from -128 to 127; 0..1 and 0..255 are understood"),
            (np.full((6, 5, 4), 256, np.uint16), "values from 256 to 256; 0..255 is understood"),
        ],
    )
    def test_values(self, refusal, saved, images, text):
        assert self.refused(refusal, saved(images=images, labels=LABELS)) == (
            f"FILE: images: {text}",
            "undo the normalisation, scale to 0..255 and save as uint8",
        )

    @pytest.mark.parametrize(("top", "kind"), [(16, np.float64), (1.5, np.float32), (1, np.int64)])
    def test_nearly_black(self, refusal, saved, top, kind):
        images = np.linspace(0, top, 120).reshape(6, 5, 4).astype(kind)
        assert self.refused(refusal, saved(images=images, labels=LABELS)) == (
            f"FILE: images: no value is above {top}, nearly black where 255 is white",
            f"if {top} is white, save (images * (255 / {top})).astype('uint8')",
        )

    def test_not_finite(self, refusal, saved):
        images = IMAGES.astype(np.float32)
        images[3, 2, 1, 0] = np.nan
        assert self.refused(refusal, saved(images=images, labels=LABELS))[0] == "FILE: images: there are values that are not finite"

    def test_types(self, refusal, saved):
        images = np.zeros((6, 5, 4), np.complex64)
        assert self.refused(refusal, saved(images=images, labels=LABELS))[0] == "FILE: images: images of type complex64; uint8 is expected"
        path = saved(x_train=IMAGES, y_train=LABELS, x_test=IMAGES / 255, y_test=LABELS)
        assert self.refused(refusal, path) == ("FILE: x_train is of type uint8 and FILE: x_test of type float64", "save both as uint8")

    @pytest.mark.parametrize(
        ("labels", "text", "hint"),
        [
            (
                np.eye(3)[LABELS],
                "3 numbers for each image; one label each is expected, of shape [n]",
                "from one-hot rows, save labels.argmax(axis=1)",
            ),
            (LABELS.astype(float), "labels of type float64; whole numbers or text are expected", "save labels.astype(int)"),
            (np.zeros((6, 2, 2), int), "labels of shape [6, 2, 2]; [n] or [n, 1] is expected", None),
        ],
    )
    def test_labels(self, refusal, saved, labels, text, hint):
        assert self.refused(refusal, saved(images=IMAGES, labels=labels)) == (f"FILE: labels: {text}", hint)

    def test_labels_of_two_kinds(self, refusal, saved):
        path = saved(x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS.astype(str))
        assert self.refused(refusal, path)[0] == "FILE: y_train and FILE: y_test: one holds numbers and the other text"

    def test_classes(self, refusal, saved):
        path = saved(images=IMAGES, labels=LABELS)
        assert self.refused(refusal, path, classes=["a", "b"])[0] == "FILE: labels: label 2 is not an index into the 2 classes (0 to 1)"
        assert self.refused(refusal, path, classes=["a", "b", "c", "d"])[0] == "FILE: no image is labelled 'd'"
        assert refusal(arrays, None, path=path, classes=["a", "b", "a"])[:2] == ("target.classes", "classes: 'a' is there twice")
        assert refusal(arrays, None, path=path, classes="abc")[:2] == ("target.classes", "classes: expected a list of names, not 'abc'")
        path = saved(images=IMAGES, labels=np.array(["cat", "dog", "dgo"] * 2))
        assert self.refused(refusal, path, classes=["cat", "dog"]) == (
            "FILE: labels: 'dgo' is not among the classes",
            "did you mean 'dog'?",
        )

    def test_split_words(self, refusal, saved):
        assert self.refused(refusal, saved(images=IMAGES, labels=LABELS, splits=np.array(["train", "dev"] * 3))) == (
            "FILE: splits holds 'dev'",
            "expected one of 'train', 'val', 'test' or '' for each image",
        )
        assert self.refused(refusal, saved(images=IMAGES, labels=LABELS, splits=np.array(["train"])))[0] == (
            "FILE: splits has 1 rows, and images 6"
        )

    def test_one_class_and_none(self, refusal, saved):
        assert self.refused(refusal, saved(images=IMAGES, labels=LABELS * 0))[0] == (
            "FILE: there is only 1 class ('0'); a classifier needs at least two"
        )
        assert self.refused(refusal, saved(images=IMAGES[:0], labels=LABELS[:0]))[0] == "FILE: there is no image in it"

    def test_files(self, refusal, saved, tmp_path):
        np.save(tmp_path / "images.npy", IMAGES)
        file = str(tmp_path / "images.npy")
        assert self.refused(refusal, file) == (
            "path: FILE holds images only",
            "add `labels: <file>.npy`, or give the folder that holds both",
        )
        place, text, _ = refusal(arrays, None, path=file, labels=str(tmp_path / "none.npy"))
        assert (place, text) == ("target.labels", f"labels: no file or folder {tmp_path}/none.npy")
        assert refusal(arrays, None, path=saved(images=IMAGES, labels=LABELS), labels=file)[:2] == (
            "target.labels",
            "labels: only beside a `path` that is a .npy file",
        )
        (tmp_path / "set.mat").touch()
        assert self.refused(refusal, str(tmp_path / "set.mat"))[0] == (
            "path: FILE is neither a .npz file, a .npy file nor a folder of .npy files"
        )

    @pytest.mark.parametrize("packed", [False, True])
    def test_damage(self, refusal, saved, tmp_path, packed):
        path = saved(packed, images=IMAGES, labels=LABELS)
        raw = (tmp_path / "set.npz").read_bytes()
        (tmp_path / "set.npz").write_bytes(raw[: len(raw) // 2])
        assert self.refused(refusal, path)[0] == "FILE: the file is damaged or not in numpy's format: File is not a zip file"
        (tmp_path / "set.npz").write_bytes(raw.replace(b"\x93NUMPY", b"\x93RUMPY"))
        if not packed:
            assert self.refused(refusal, path)[0].startswith("FILE: images: the file is damaged or not in numpy's format: the magic string")

    def test_a_truncated_file(self, refusal, tmp_path):
        np.save(tmp_path / "images.npy", IMAGES)
        np.save(tmp_path / "labels.npy", LABELS)
        raw = (tmp_path / "images.npy").read_bytes()
        for end in (0, 5, 100, len(raw) - 1):
            (tmp_path / "images.npy").write_bytes(raw[:end])
            text, _ = self.refused(refusal, str(tmp_path))
            assert text.startswith("FILE/images.npy: the file is damaged or not in numpy's format: ")
