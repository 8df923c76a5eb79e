from __future__ import annotations

import errno
import importlib.util
import os
import pickle

import numpy as np
import pytest

from xfer.data.datasets.folder import folder
from xfer.data.decode import decode
from xfer.data.listing import ENDINGS, is_folder
from xfer.errors import DataError
from xfer.plan.preprocess import Preprocess

READ = " ".join(ENDINGS)


def test_class_folders(class_folders):
    root = class_folders("dog/b.jpg", "dog/a.png", "cat/deep/er/z.PNG", "cat/y.JPEG", "ant/1.tif")
    dataset = folder(None, path=str(root))
    assert dataset.classes == ("ant", "cat", "dog")
    assert dataset.keys == ("ant/1.tif", "cat/deep/er/z.PNG", "cat/y.JPEG", "dog/a.png", "dog/b.jpg")
    assert dataset.labels.tolist() == [0, 1, 1, 2, 2]
    assert set(dataset.splits) == {""}
    assert dataset.notes == ()
    assert dataset.read(4) == (root / "dog/b.jpg").read_bytes()
    status = (root / "dog/b.jpg").stat()
    assert dataset.stamp is not None
    assert dataset.stamp(4) == (str(root / "dog/b.jpg"), status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_in_any_case(class_folders, ending):
    root = class_folders("a/1.png", "b/2.png")
    (root / "a" / f"x{ending}").touch()
    (root / "a" / f"y{ending.upper()}").touch()
    assert folder(None, path=str(root)).keys[:3] == ("a/1.png", f"a/x{ending}", f"a/y{ending.upper()}")


def test_order_is_by_bytes_not_by_locale_or_folder(class_folders):
    root = class_folders("a/é.png", "a/z.png", "a/Z.png", "a/b/1.png", "a/b-1.png", "a b/1.png", "B/1.png")
    assert folder(None, path=str(root)).keys == ("B/1.png", "a b/1.png", "a/Z.png", "a/b-1.png", "a/b/1.png", "a/z.png", "a/é.png")


def test_hidden_entries_and_leftovers_are_ignored(class_folders):
    root = class_folders("a/1.png", "b/2.png", "a/.3.png", ".git/4.png", "__MACOSX/a/5.png", "b/.cache/6.png", "a/@eaDir/7.png")
    for name in ("a/Thumbs.db", "a/.DS_Store", "notes.txt", "b/labels.csv"):
        (root / name).write_text("x")
    dataset = folder(None, path=str(root))
    assert dataset.keys == ("a/1.png", "b/2.png")
    assert dataset.notes == ()


def test_images_that_are_not_read_are_counted(class_folders):
    root = class_folders("a/1.png", "b/2.png")
    for name in ("a/1.gif", "a/2.HEIC", "b/3.gif"):
        (root / name).touch()
    assert folder(None, path=str(root)).notes == ("left out, because of their endings: 2 .gif, 1 .heic",)


def test_links_are_followed_without_loops(class_folders, tmp_path):
    root = class_folders("a/1.png", "b/2.png")
    elsewhere = class_folders("x/3.png", "4.png", root="elsewhere")
    (root / "a" / "linked").symlink_to(elsewhere)
    (root / "b" / "file.png").symlink_to(elsewhere / "4.png")
    (root / "c").symlink_to(elsewhere / "x")
    (root / "a" / "up").symlink_to(root / "a")
    (elsewhere / "back").symlink_to(root / "a")
    dataset = folder(None, path=str(root))
    assert dataset.keys == ("a/1.png", "a/linked/4.png", "a/linked/x/3.png", "b/2.png", "b/file.png", "c/3.png")
    assert dataset.classes == ("a", "b", "c")


def test_a_link_that_leads_back_above_its_class_brings_no_images_of_another_class(class_folders):
    root = class_folders("a/1.png", "a/deep/2.png", "b/3.png")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "deep" / "top").symlink_to(root.parent)
    dataset = folder(None, path=str(root))
    assert dataset.keys == ("a/1.png", "a/deep/2.png", "b/3.png")


def test_a_link_back_above_is_known_however_the_folder_is_named(class_folders):
    root = class_folders("a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root)
    (root.parent / "alias").symlink_to(root)
    assert folder(None, path=str(root.parent / "alias")).keys == ("a/1.png", "b/2.png")


class Barred:
    """A link into a folder that we may not search; root, who may run the tests, may search any."""

    def __init__(self, name: str) -> None:
        self.name, self.path = name, f"/data/{name}"

    def is_dir(self) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", self.path)


def test_a_link_that_leads_where_we_may_not_look():
    """It may be a class, which must not be missing without a word; an image is quarantined."""
    assert not is_folder(Barred("1.jpg"))
    with pytest.raises(DataError, match=r"^/data/cat: the link can't be followed: permission denied$"):
        is_folder(Barred("cat"))


def test_a_class_on_a_disk_that_is_not_there(class_folders, tmp_path):
    root = class_folders("a/1.png", "b/2.png")
    (root / "notes.txt").symlink_to(tmp_path / "gone")
    folder(None, path=str(root))
    (root / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"/c: the link can't be followed: no such file or directory$"):
        folder(None, path=str(root))


def test_a_link_to_itself_is_no_folder(class_folders):
    root = class_folders("a/1.png", "b/2.png")
    for link in ("c", "a/itself", "b/itself.jpg"):
        (root / link).symlink_to(root / link)
    dataset = folder(None, path=str(root))
    assert (dataset.keys, dataset.classes) == (("a/1.png", "b/2.png", "b/itself.jpg"), ("a", "b"))
    with pytest.raises(OSError, match="symbolic links"):
        dataset.read(2)


def test_a_link_that_leads_nowhere_is_a_row_that_cannot_be_read(class_folders):
    root = class_folders("a/1.png", "b/2.png")
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "a" / "gone").symlink_to(root / "nowhere")
    dataset = folder(None, path=str(root))
    assert dataset.keys == ("a/1.png", "a/gone.jpg", "b/2.png")
    with pytest.raises(FileNotFoundError):
        dataset.read(1)


def test_a_pipe_is_no_image(class_folders):
    root = class_folders("a/1.png", "b/2.png")
    os.mkfifo(root / "a" / "pipe.jpg")
    assert folder(None, path=str(root)).keys == ("a/1.png", "b/2.png")


def test_a_folder_named_like_an_image(class_folders):
    root = class_folders("a/odd.jpg/1.png", "b.png/2.png")
    assert folder(None, path=str(root)).keys == ("a/odd.jpg/1.png", "b.png/2.png")


def test_names_that_are_not_unicode(class_folders):
    root = class_folders("a/1.png", "b/2.png")
    os.rename(root / "a/1.png", os.path.join(root, "a", os.fsdecode(b"caf\xe9.png")))
    dataset = folder(None, path=str(root))
    assert dataset.keys == ("a/caf\\xe9.png", "b/2.png")
    assert dataset.read(0)


def test_it_survives_pickling(class_folders):
    dataset = pickle.loads(pickle.dumps(folder(None, path=str(class_folders("a/1.png", "b/2.png")))))
    assert dataset.read(1)[:4] == b"\x89PNG"
    assert dataset.stamp(1)[1] == len(dataset.read(1))


def test_home_and_working_directory(class_folders, monkeypatch, tmp_path):
    class_folders("a/1.png", "b/2.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folder(None, path="~/images").keys == folder(None, path="images").keys == ("a/1.png", "b/2.png")


class TestSplits:
    def test_train_val_test(self, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "test/a/5.png", "test/b/deep/6.png")
        dataset = folder(None, path=str(root))
        assert dataset.classes == ("a", "b")
        assert dict(zip(dataset.keys, dataset.splits, strict=True)) == {
            "train/a/1.png": "train",
            "train/b/2.png": "train",
            "val/a/3.png": "val",
            "val/b/4.png": "val",
            "test/a/5.png": "test",
            "test/b/deep/6.png": "test",
        }
        assert list(dataset.keys) == sorted(dataset.keys)
        assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1]

    @pytest.mark.parametrize(("name", "split"), [("valid", "val"), ("Validation", "val"), ("VAL", "val"), ("testing", "test")])
    def test_other_words(self, class_folders, name, split):
        root = class_folders("Training/a/1.png", "Training/b/2.png", f"{name}/a/3.png", f"{name}/b/4.png")
        assert sorted(folder(None, path=str(root)).splits) == sorted(["train", "train", split, split])

    def test_only_train(self, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png")
        dataset = folder(None, path=str(root))
        assert dataset.classes == ("a", "b")
        assert set(dataset.splits) == {"train"}

    def test_folders_without_images_beside_them_do_not_matter(self, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "annotations/")
        assert folder(None, path=str(root)).classes == ("a", "b")

    def test_a_class_called_train(self, class_folders):
        root = class_folders("plane/1.png", "train/2.png", "ship/3.png")
        dataset = folder(None, path=str(root))
        assert dataset.classes == ("plane", "ship", "train")
        assert set(dataset.splits) == {""}


class TestRefusals:
    def test_nothing_there(self, refusal, tmp_path):
        place, text, hint = refusal(folder, None, path=str(tmp_path / "flowers"))
        assert (place, text) == ("target.path", f"path: no file or folder {tmp_path}/flowers")

    def test_a_relative_path_that_is_not_there(self, refusal, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "flowers").mkdir()
        place, text, hint = refusal(folder, None, path="flowesr")
        assert text == f"path: no file or folder {tmp_path}/flowesr; did you mean 'flowers'?"

    @pytest.mark.parametrize("path", [None, 3, "", ["a"]])
    def test_no_path(self, refusal, path):
        assert refusal(folder, None, path=path) == ("target.path", f"path: expected a path, not {path!r}", None)

    def test_a_name_after_a_slash(self, refusal):
        assert refusal(folder, "flowers", path=".") == (
            "target.dataset",
            "'folder/flowers': folder takes no name after a slash",
            "write `dataset: folder` and `path: …`",
        )

    @pytest.mark.parametrize(
        ("file", "next_step"),
        [("flowers.zip", "unpack it and give the folder"), ("a.jpg", "give the folder that holds the class folders")],
    )
    def test_a_file(self, refusal, tmp_path, file, next_step):
        (tmp_path / file).touch()
        assert refusal(folder, None, path=str(tmp_path / file)) == (
            "target.path",
            f"path: {tmp_path}/{file} is a file, not a folder",
            next_step,
        )

    def test_no_class_folders(self, refusal, tmp_path):
        assert refusal(folder, None, path=str(tmp_path)) == (
            "target.path",
            f"{tmp_path}: there are no class folders in it",
            "expected one folder per class, with its images in it",
        )

    def test_images_directly_in_it(self, refusal, class_folders):
        root = class_folders("1.png", "2.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: 2 images directly in it (first '1.png'), and no class folders",
            "put each class into a folder of its own, or use `dataset: table` with a file that lists image and label",
        )

    def test_images_beside_the_class_folders(self, refusal, class_folders):
        root = class_folders("a/1.png", "b/2.png", "stray.jpg")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: 1 image beside the class folders (first 'stray.jpg'): of which class?",
            "move them into a class folder, or elsewhere",
        )

    def test_no_image_at_all(self, refusal, class_folders):
        root = class_folders("a/", "b/")
        (root / "a/1.gif").touch()
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: there is no image in its 2 class folders; endings read are {READ} (there are 1 .gif)",
            None,
        )

    def test_a_single_class(self, refusal, class_folders):
        root = class_folders("a/1.png", "a/2.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: there is only 1 class ('a'); a classifier needs at least two",
            "add images of another class",
        )

    def test_empty_class_folders(self, refusal, class_folders):
        root = class_folders("a/1.png", "a/2.png", "a/3.png", "b/", "c/4.png", "d/deeper/")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: no image in class folder 'b', 'd'; endings read are {READ}",
            "add images to it, or remove the folder",
        )

    def test_an_empty_class_folder_with_images_of_another_format(self, refusal, class_folders):
        root = class_folders("a/1.png", "a/2.png", "b/")
        (root / "b/1.heic").touch()
        assert (
            refusal(folder, None, path=str(root))[1] == f"{root}: no image in class folder 'b'; endings read are {READ} (there are 1 .heic)"
        )

    def test_fewer_images_than_classes(self, refusal, class_folders):
        root = class_folders("a/1.png", "b/2.png", "c/", "d/")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: 2 images in 4 class folders; every class needs at least one",
            "add images, or remove the folders that are no classes",
        )

    def test_a_class_without_test_images(self, refusal, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "train/c/3.png", "test/a/4.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}/test: no folder for class 'b', 'c', which train/ has",
            "add images of it to test/, or take it out of train/",
        )

    def test_a_class_without_training_images(self, refusal, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png", "test/c/5.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}/train: no folder for class 'c', which test/ has",
            "add images of it to train/, or take it out of test/",
        )

    def test_an_empty_class_folder_in_a_split(self, refusal, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/")
        assert refusal(folder, None, path=str(root))[1] == f"{root}/test: no image in class folder 'b'; endings read are {READ}"

    def test_flat_training_images(self, refusal, class_folders):
        root = class_folders("train/cat.1.png", "train/dog.1.png", "test/1.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}/train: the images lie directly in it, not in class folders",
            "put each class into a folder of its own, or use `dataset: table` with a file that lists image and label",
        )

    def test_flat_test_images(self, refusal, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "test/3.png", "test/4.png")
        assert refusal(folder, None, path=str(root))[1] == f"{root}/test: 2 images directly in it (first '3.png'), and no class folders"

    def test_no_training_folder(self, refusal, class_folders):
        root = class_folders("val/a/1.png", "test/a/2.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: there is 'test', 'val' but no train folder",
            f"put the training images into {root}/train/<class>/",
        )

    def test_an_empty_training_folder(self, refusal, class_folders):
        root = class_folders("train/", "test/a/2.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}/train: there is no image in it; endings read are {READ}",
            None,
        )

    def test_split_folders_beside_others(self, refusal, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "unlabelled/3.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: beside train/, which holds class folders, there is 'unlabelled': is train/ a split or a class?",
            "move what is no split elsewhere, or the images of each class directly into its folder",
        )

    def test_one_split_twice(self, refusal, class_folders):
        root = class_folders("train/a/1.png", "train/b/2.png", "val/a/3.png", "valid/a/4.png")
        assert refusal(folder, None, path=str(root)) == (
            "target.path",
            f"{root}: 'val', 'valid' are the same split",
            "merge them into one folder",
        )

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_may_not_be_read(self, refusal, class_folders):
        root = class_folders("a/1.png", "b/2.png")
        (root / "b").chmod(0)
        place, text, _ = refusal(folder, None, path=str(root))
        (root / "b").chmod(0o755)
        assert text == f"{root}/b: the folder can't be read: permission denied"


def test_the_textile_images():
    """Real images, from a package that is found without importing it."""
    if importlib.util.find_spec("conformal_clip_data") is None:
        pytest.skip("the package conformal_clip_data is not installed")
    dataset = folder(None, path="pkg://conformal_clip_data/data/textile_images/simulated")
    assert dataset.classes == ("global", "local", "nominal")
    assert np.bincount(dataset.labels).tolist() == [500, 500, 1000]
    pixels = decode(dataset.read(700), Preprocess(resize=256, crop=224))
    assert pixels.shape == (224, 224, 3)
    assert 20 < pixels.mean() < 235
