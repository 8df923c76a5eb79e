"""Pictures of files that are there, and of nothing else."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from xfer.data.dataset import Dataset
from xfer.report.thumbnails import SIDE, thumbnails


def at(plan, **options):
    return plan.model_copy(update={"data": plan.data.model_copy(update={"options": options})})


def opened(address):
    head, _, content = address.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_files_are_found_below_the_path(tmp_path, make_plan):
    (tmp_path / "a b").mkdir()
    Image.new("RGB", (400, 200), (200, 10, 10)).save(tmp_path / "a b" / "é <1>.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = thumbnails(["a b/é <1>.png", "broken.jpg", "absent.jpg"], plan=at(make_plan(), path=str(tmp_path)), dataset=None)
    assert list(found) == ["a b/é <1>.png"]
    picture = opened(found["a b/é <1>.png"])
    assert picture.size == (SIDE, SIDE)
    red, green, blue = picture.getpixel((70, 70))
    assert red > 180
    assert max(green, blue) < 40


def test_beside_a_table_or_below_its_root(tmp_path, make_plan):
    (tmp_path / "pictures").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "pictures" / "x.png")
    (tmp_path / "table.csv").write_text("image,label\n")
    assert thumbnails(["pictures/x.png"], plan=at(make_plan(), path=str(tmp_path / "table.csv")), dataset=None)
    assert thumbnails(["x.png"], plan=at(make_plan(), path="elsewhere.csv", root=str(tmp_path / "pictures")), dataset=None)


@pytest.mark.parametrize("key", ["../secret.png", "inside/../../secret.png", "{outside}/secret.png"])
def test_a_name_that_leads_out_of_the_data_is_not_followed(tmp_path, make_plan, key):
    (tmp_path / "data" / "inside").mkdir(parents=True)
    Image.new("L", (20, 20)).save(tmp_path / "secret.png")
    key = key.format(outside=tmp_path)
    assert thumbnails([key], plan=at(make_plan(), path=str(tmp_path / "data")), dataset=None) == {}


@pytest.mark.parametrize(
    "options", [{}, {"path": "https://data.invalid/flowers"}, {"path": "pkg://no_such_package/x"}, {"path": "/no/such"}]
)
def test_data_that_are_not_here(make_plan, options):
    assert thumbnails(["a.jpg"], plan=at(make_plan(), **options), dataset=None) == {}
    assert thumbnails(["a.jpg"], plan=None, dataset=None) == {}


def test_an_open_dataset_is_asked(make_plan):
    def read(row):
        if row == 1:
            raise FileNotFoundError("gone")
        return np.full((8, 8), 250, np.uint8)

    dataset = Dataset(("a",), ("test/0", "test/1"), np.zeros(2, np.int64), np.array(["test", "test"]), read)
    found = thumbnails(["test/0", "test/1"], plan=make_plan(), dataset=dataset)
    assert list(found) == ["test/0"]
    assert min(opened(found["test/0"]).getpixel((5, 5))) > 240
