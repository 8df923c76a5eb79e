"""`table`: a CSV or Parquet file that lists images and labels."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfer.data.class_names import indexed
from xfer.data.dataset import UNASSIGNED, Dataset, FileReader, check_usable, listed
from xfer.data.listing import printable
from xfer.data.places import existing, no_name
from xfer.errors import DataError
from xfer.plugins import nearest

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "": UNASSIGNED,
}
LOOKED_AT = 200  # images looked for before the root is said to be wrong


@dataclass(frozen=True)
class _Table:
    """Rows as text; `number(row)` is what a person counts in that file."""

    file: Path
    columns: dict[str, list[str]]
    first: int
    word: str  # 'line' or 'row'
    unread: tuple[str, ...] = ()  # columns of other types

    def place(self, row: int) -> str:
        return f"{self.file}: {self.word} {row + self.first}"


def table(
    name: str | None,
    *,
    path: str,
    root: str | None = None,
    image: str = "image",
    label: str = "label",
    split: str = "split",
    classes: list[str] | None = None,
) -> Dataset:
    """Images and labels listed in a .csv, .tsv or .parquet file with a header.

    `image`, `label` and `split` name the columns; the split column may be absent, and its cells empty. Images are paths
    relative to `root`, by default the table's own folder. Rows keep the table's order. Classes are the distinct labels,
    sorted (by value if all are whole numbers), unless `classes` lists them. Raises DataError.
    """
    no_name("table", name)
    rows = _read(existing(path))
    folder = existing(root, option="root") if root is not None else rows.file.parent
    images = _column(rows, image, option="image")
    labels = _column(rows, label, option="label")
    if split != "split" or any(name.lower() == split for name in (*rows.columns, *rows.unread)):
        _column(rows, split, option="split")  # passed over for its type or its capitals, it would leave test images in train
    splits = rows.columns.get(split) or [""] * len(images)
    _check_cells(rows, {image: images, label: labels})
    paths = [os.path.normpath(os.path.join(folder, cell)) for cell in images]
    _check_doubles(rows, paths)
    _check_root(rows, paths, folder)
    names, index = indexed([(f"{rows.file}: {label}", _values(labels, classes))], classes, path="target.label")
    reader = FileReader(tuple(paths))
    dataset = Dataset(
        classes=names,
        keys=tuple(printable(cell.replace(os.sep, "/")) for cell in images),
        labels=index,
        splits=np.array([_split(rows, row, cell) for row, cell in enumerate(splits)], dtype="<U5"),
        read=reader,
        stamp=reader.stamp,
    )
    return check_usable(dataset, place=str(rows.file))


def _read(file: Path) -> _Table:
    ending = file.suffix.lower()
    if file.is_dir() or ending not in (".csv", ".tsv", ".parquet"):
        raise DataError(f"path: {file} is not a .csv, .tsv or .parquet file", path="target.path")
    table = _read_parquet(file) if ending == ".parquet" else _read_text(file, "\t" if ending == ".tsv" else None)
    if not any(table.columns.values()):
        raise DataError(f"{file}: there is no row below the header", path="target.path")
    return table


def _read_text(file: Path, delimiter: str | None) -> _Table:
    """A delimiter of None is a comma, or what stands in its place in a first line without one: spreadsheets write semicolons where a
    comma is the decimal sign."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = delimiter or next((sign for sign in ",;\t" if sign in first), ",")
            lines = csv.reader(stream, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(file, header)
            columns: list[list[str]] = [[] for _ in header]
            for line in lines:
                if len(line) != len(header):
                    if not line:
                        raise DataError(f"{file}: line {lines.line_num} is empty", path="target.path", hint="take it out")
                    raise DataError(f"{file}: line {lines.line_num} has {len(line)} cells, the header {len(header)}", path="target.path")
                for column, cell in zip(columns, line, strict=True):
                    column.append(cell.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: it is not text in UTF-8", path="target.path", hint="save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{file}: line {lines.line_num}: {error}", path="target.path") from error
    return _Table(file, {name: column for name, column in zip(header, columns, strict=True) if name}, first=2, word="line")


def _check_header(file: Path, names: list[str]) -> None:
    """Two columns of one name can't be told apart; those without a name, which spreadsheets leave at the end, are passed over."""
    doubled = next((name for name in names if name and names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{file}: two columns are called '{doubled}'", path="target.path", hint="rename one of them, or take it out")


def _read_parquet(file: Path) -> _Table:
    import pyarrow
    from pyarrow import parquet

    try:
        content = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: it can't be read as Parquet: {str(error).splitlines()[0]}", path="target.path") from error
    columns = {}
    for name in content.column_names:
        kind = content.schema.field(name).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if (
            pyarrow.types.is_string(kind)
            or pyarrow.types.is_large_string(kind)
            or pyarrow.types.is_string_view(kind)
            or pyarrow.types.is_integer(kind)
            or pyarrow.types.is_boolean(kind)
            or content.column(name).null_count == len(content)
        ):
            columns[name] = ["" if value is None else str(value) for value in content.column(name).to_pylist()]
    unread = tuple(name for name in content.column_names if name not in columns)
    return _Table(file, columns, first=0, word="row", unread=unread)


def _column(table: _Table, name: str, *, option: str) -> list[str]:
    if name in table.columns:
        return table.columns[name]
    guess = nearest(name, table.columns)
    raise DataError(
        f"{table.file}: no column of text or whole numbers is called '{name}'; there is {listed(list(table.columns))}",
        path=f"target.{option}",
        hint=f"did you mean `{option}: {guess}`?" if guess else f"name it with `{option}: <column>`",
    )


def _check_cells(table: _Table, columns: dict[str, list[str]]) -> None:
    for name, cells in columns.items():
        empty = next((row for row, cell in enumerate(cells) if not cell), None)
        if empty is not None:
            raise DataError(
                f"{table.place(empty)}: the column '{name}' is empty", path="target.path", hint="fill it in, or take the row out"
            )
        broken = next((row for row, cell in enumerate(cells) if "\0" in cell), None)
        if broken is not None:
            raise DataError(f"{table.place(broken)}: there is a NUL character in the column '{name}'", path="target.path")


def _check_doubles(table: _Table, paths: list[str]) -> None:
    seen: dict[str, int] = {}
    for row, path in enumerate(paths):
        if path in seen:
            raise DataError(
                f"{table.place(row)}: the image {path} is in {table.word} {seen[path] + table.first} already",
                path="target.path",
                hint="list each image once",
            )
        seen[path] = row


def _check_root(table: _Table, paths: list[str], folder: Path) -> None:
    """A few missing images are quarantined when they are read; if none is there, the root is wrong."""
    if not any(os.path.exists(path) for path in paths[:LOOKED_AT]):
        raise DataError(
            f"{table.place(0)}: there is no {paths[0]}, nor any of the first {min(LOOKED_AT, len(paths))} images",
            path="target.root",
            hint=f"images are relative to {folder}; set `root:` to the folder that they are relative to",
        )


def _split(table: _Table, row: int, cell: str) -> str:
    found = SPLIT_WORDS.get(cell.lower())
    if found is None:
        raise DataError(
            f"{table.place(row)}: the split '{cell}' is none of train, val and test",
            path="target.split",
            hint="leave it empty to have it assigned",
        )
    return found


def _values(labels: list[str], classes: list[str] | None) -> np.ndarray:
    """Labels as numbers where all are whole numbers, so that 10 comes after 9; as text otherwise, or where `classes` lists them."""
    listed_as_text = classes is not None and set(labels) <= {str(name) for name in classes}
    if not listed_as_text and all(len(label) < 19 and label.isascii() and label.removeprefix("-").isdigit() for label in labels):
        numbers = [int(label) for label in labels]
        if [str(number) for number in numbers] == labels:  # '010' is a name
            return np.array(numbers, dtype=np.int64)
    return np.array(labels, dtype=str)
