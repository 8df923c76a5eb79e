from __future__ import annotations

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from xfer.data.datasets.table import table


@pytest.fixture
def written(tmp_path, class_folders):
    """Four images and a table beside them; returns the table's path."""

    def write(text, name="list.csv"):
        class_folders("a.png", "b.png", "sub/c.png", "d.png")
        file = tmp_path / "images" / name
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


ROWS = "image,label\nb.png,dog\na.png,cat\nsub/c.png,dog\nd.png,cat\n"


def test_csv(written, tmp_path):
    dataset = table(None, path=written(ROWS))
    assert dataset.classes == ("cat", "dog")
    assert dataset.keys == ("b.png", "a.png", "sub/c.png", "d.png")
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    assert set(dataset.splits) == {""}
    assert dataset.read(2) == (tmp_path / "images/sub/c.png").read_bytes()
    assert dataset.stamp(2)[0] == str(tmp_path / "images/sub/c.png")


def test_what_spreadsheets_write(written):
    text = '\ufeffimage,label,split\r\n"a.png","two, or more",train\r\nb.png, one ,VALID\r\nsub/c.png,one,\r\nd.png,"two, or more",Test\r\n'
    dataset = table(None, path=written(text))
    assert dataset.classes == ("one", "two, or more")
    assert dataset.splits.tolist() == ["train", "val", "", "test"]


def test_tabs_and_other_columns(written):
    dataset = table(
        None,
        path=written("id\tfile\tkind\tpart\n1\ta.png\tx\ttrain\n2\tb.png\ty\ttest\n", "list.tsv"),
        image="file",
        label="kind",
        split="part",
    )
    assert dataset.classes == ("x", "y")
    assert dataset.splits.tolist() == ["train", "test"]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_what_stands_for_a_comma(written, sign):
    """Spreadsheets write it where a comma is the decimal sign; a first line with a comma is one of commas."""
    dataset = table(None, path=written("\ufeff" + ROWS.replace(",", sign)))
    assert (dataset.keys, dataset.classes) == (("b.png", "a.png", "sub/c.png", "d.png"), ("cat", "dog"))
    assert table(None, path=written(f"image,label\na.png,x{sign}\nb.png,y\n")).classes == (f"x{sign}".strip(), "y")


def test_columns_without_a_name_are_passed_over(written):
    dataset = table(None, path=written(",image,label,,\n0,a.png,x,,\n1,b.png,y,,\n"))
    assert (dataset.keys, dataset.classes) == (("a.png", "b.png"), ("x", "y"))


def test_numbers_sort_by_value(written):
    dataset = table(None, path=written("image,label\na.png,10\nb.png,9\nsub/c.png,10\nd.png,9\n"))
    assert dataset.classes == ("9", "10")
    assert table(None, path=written("image,label\na.png,010\nb.png,9\n")).classes == ("010", "9")
    assert table(None, path=written("image,label\na.png,99999999999999999999\nb.png,9\n")).classes == ("9", "99999999999999999999")


def test_root_and_absolute_paths(written, tmp_path, class_folders):
    written(ROWS)
    moved = class_folders("1.png", "2.png", root="other")
    (tmp_path / "images/far.csv").write_text(f"image,label\n1.png,a\n{moved}/2.png,b\n")
    dataset = table(None, path=str(tmp_path / "images/far.csv"), root=str(moved))
    assert [dataset.read(row) for row in (0, 1)] == [(moved / name).read_bytes() for name in ("1.png", "2.png")]


def test_classes(written):
    dataset = table(None, path=written(ROWS), classes=["dog", "cat"])
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    numbers = written("image,label\na.png,1\nb.png,0\n")
    assert table(None, path=numbers, classes=["1", "0"]).labels.tolist() == [0, 1]
    assert table(None, path=numbers, classes=["cat", "dog"]).labels.tolist() == [1, 0]


def test_parquet(written, tmp_path):
    written(ROWS)
    file = tmp_path / "images/list.parquet"
    parquet.write_table(
        pyarrow.table(
            {
                "image": ["a.png", "b.png", "d.png"],
                "label": np.array([3, 10, 3]),
                "split": pyarrow.array(["train", "train", None]).dictionary_encode(),
                "score": [0.5, 0.5, 0.5],
            }
        ),
        file,
    )
    dataset = table(None, path=str(file))
    assert dataset.classes == ("3", "10")
    assert dataset.splits.tolist() == ["train", "train", ""]


def test_an_empty_split_column_of_parquet(written, tmp_path):
    """A data frame whose splits are all missing keeps them as floating-point numbers."""
    written(ROWS)
    file = tmp_path / "images/list.parquet"
    content = {"image": ["a.png", "b.png"], "label": ["x", "y"], "split": pyarrow.nulls(2, pyarrow.float64())}
    parquet.write_table(pyarrow.table(content), file)
    assert set(table(None, path=str(file)).splits) == {""}


def test_parquet_of_views(written, tmp_path):
    """As newer writers keep text."""
    written(ROWS)
    file = tmp_path / "images/list.parquet"
    views = {"image": ["a.png", "b.png"], "label": ["x", "y"]}
    parquet.write_table(pyarrow.table({name: pyarrow.array(cells, pyarrow.string_view()) for name, cells in views.items()}), file)
    assert table(None, path=str(file)).classes == ("x", "y")


def test_a_few_missing_images_are_left_to_quarantine(written):
    dataset = table(None, path=written(ROWS + "gone.png,cat\n"))
    with pytest.raises(FileNotFoundError):
        dataset.read(4)


class TestRefusals:
    def refused(self, refusal, path, **options):
        place, text, hint = refusal(table, None, path=path, **options)
        return place, text.replace(path, "FILE"), hint

    def test_a_name(self, refusal):
        assert refusal(table, "x", path=".")[1] == "'table/x': table takes no name after a slash"

    def test_other_files(self, refusal, written, tmp_path):
        path = written(ROWS, "list.xlsx")
        assert self.refused(refusal, path) == ("target.path", "path: FILE is not a .csv, .tsv or .parquet file", None)
        assert self.refused(refusal, str(tmp_path))[1] == "path: FILE is not a .csv, .tsv or .parquet file"

    def test_a_missing_column(self, refusal, written):
        assert self.refused(refusal, written("image,lable\na.png,x\n")) == (
            "target.label",
            "FILE: no column of text or whole numbers is called 'label'; there is 'image', 'lable'",
            "did you mean `label: lable`?",
        )
        assert self.refused(refusal, written("picture,label\na.png,x\n")) == (
            "target.image",
            "FILE: no column of text or whole numbers is called 'image'; there is 'picture', 'label'",
            "name it with `image: <column>`",
        )
        assert self.refused(refusal, written(ROWS), split="part")[0] == "target.split"

    def test_two_columns_of_one_name(self, refusal, written):
        assert self.refused(refusal, written("image,label, label\na.png,x,y\nb.png,y,x\n")) == (
            "target.path",
            "FILE: two columns are called 'label'",
            "rename one of them, or take it out",
        )

    def test_no_rows(self, refusal, written):
        for text in ("image,label\n", ""):
            assert self.refused(refusal, written(text))[1] == "FILE: there is no row below the header"

    def test_empty_cells(self, refusal, written):
        assert self.refused(refusal, written("image,label\na.png,x\nb.png,\n")) == (
            "target.path",
            "FILE: line 3: the column 'label' is empty",
            "fill it in, or take the row out",
        )

    def test_a_nul_character(self, refusal, written):
        text = self.refused(refusal, written("image,label\na.png,x\nb\0.png,y\n"))[1]
        assert text == "FILE: line 3: there is a NUL character in the column 'image'"

    def test_a_split_column_is_not_passed_over(self, refusal, written, tmp_path):
        assert self.refused(refusal, written("image,label,Split\na.png,x,test\n")) == (
            "target.split",
            "FILE: no column of text or whole numbers is called 'split'; there is 'image', 'label', 'Split'",
            "did you mean `split: Split`?",
        )
        file = str(tmp_path / "images/list.parquet")
        parquet.write_table(pyarrow.table({"image": ["a.png"], "label": ["x"], "split": [b"test"]}), file)
        assert self.refused(refusal, file)[:2] == (
            "target.split",
            "FILE: no column of text or whole numbers is called 'split'; there is 'image', 'label'",
        )

    def test_lines(self, refusal, written):
        assert self.refused(refusal, written("image,label\na.png,x,y\n"))[1] == "FILE: line 2 has 3 cells, the header 2"
        assert self.refused(refusal, written("image,label\n\na.png,x\n"))[1:] == ("FILE: line 2 is empty", "take it out")
        assert self.refused(refusal, written('image,label\n"a.png,x\n'))[1] == "FILE: line 2: unexpected end of data"

    def test_not_utf_8(self, refusal, written, tmp_path):
        path = written(ROWS)
        (tmp_path / "images/list.csv").write_bytes("image,label\na.png,café\n".encode("latin1"))
        assert self.refused(refusal, path)[1:] == ("FILE: it is not text in UTF-8", "save it as UTF-8")

    def test_not_parquet(self, refusal, written):
        assert self.refused(refusal, written(ROWS, "list.parquet"))[1].startswith("FILE: it can't be read as Parquet: ")

    def test_an_image_twice(self, refusal, written, tmp_path):
        assert self.refused(refusal, written("image,label\na.png,x\nb.png,y\nsub/../a.png,y\n")) == (
            "target.path",
            f"FILE: line 4: the image {tmp_path}/images/a.png is in line 2 already",
            "list each image once",
        )

    def test_a_wrong_root(self, refusal, written, tmp_path):
        assert self.refused(refusal, written("image,label\nx/a.png,x\nx/b.png,y\n")) == (
            "target.root",
            f"FILE: line 2: there is no {tmp_path}/images/x/a.png, nor any of the first 2 images",
            f"images are relative to {tmp_path}/images; set `root:` to the folder that they are relative to",
        )

    def test_a_split_of_another_name(self, refusal, written):
        assert self.refused(refusal, written("image,label,split\na.png,x,train\nb.png,y,dev\n")) == (
            "target.split",
            "FILE: line 3: the split 'dev' is none of train, val and test",
            "leave it empty to have it assigned",
        )

    def test_one_class(self, refusal, written):
        assert self.refused(refusal, written("image,label\na.png,x\nb.png,x\n"))[1] == (
            "FILE: there is only 1 class ('x'); a classifier needs at least two"
        )

    def test_a_label_outside_the_classes(self, refusal, written):
        assert self.refused(refusal, written(ROWS), classes=["cat", "dgo"]) == (
            "target.label",
            "FILE: label: 'dog' is not among the classes",
            "did you mean 'dgo'?",
        )
