"""Labels as people store them (numbers, words) to classes and indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xfer.data.dataset import listed
from xfer.errors import DataError
from xfer.plugins import nearest


def indexed(parts: Sequence[tuple[str, np.ndarray]], classes: Sequence[str] | None, *, path: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and int64 indices for labels in one or more parts (the splits), laid end to end.

    Each part is its place, for messages, and labels [n] or [n, 1]: whole numbers or text. Whole numbers index into
    `classes` where that is given; without it each distinct value is a class, sorted by value (text by its characters).
    Raises DataError.
    """
    flat = [(place, _flat(place, labels, path)) for place, labels in parts]
    kinds = {labels.dtype.kind for _, labels in flat}
    if len(kinds) > 1:
        raise DataError(f"{flat[0][0]} and {flat[1][0]}: one holds numbers and the other text", path=path)
    names = _checked(classes)
    joined = np.concatenate([labels for _, labels in flat])
    if names is None:
        values, index = np.unique(joined, return_inverse=True)
        return tuple(str(value) for value in values.tolist()), index.astype(np.int64).reshape(-1)
    if kinds == {"i"}:
        for place, labels in flat:
            outside = labels[(labels < 0) | (labels >= len(names))]
            if len(outside):
                raise DataError(
                    f"{place}: label {outside[0]} is not an index into the {len(names)} classes (0 to {len(names) - 1})", path=path
                )
        return names, joined
    position = {name: number for number, name in enumerate(names)}
    for place, labels in flat:
        unknown = sorted(set(np.unique(labels).tolist()) - set(names))
        if unknown:
            guess = nearest(unknown[0], names)
            raise DataError(
                f"{place}: {listed(unknown)} is not among the classes",
                path=path,
                hint=f"did you mean '{guess}'?" if guess else "add it to `classes`, or leave `classes` out to take what the labels say",
            )
    return names, np.array([position[label] for label in joined.tolist()], dtype=np.int64)


def _checked(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str) or not all(isinstance(name, str | int) and not isinstance(name, bool) for name in classes):
        raise DataError(f"classes: expected a list of names, not {classes!r}", path="target.classes")
    names = tuple(str(name) for name in classes)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"classes: {listed(doubled)} is there twice", path="target.classes")
    return names


def _flat(place: str, labels: np.ndarray, path: str) -> np.ndarray:
    """Labels as int64 [n] or text [n]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise DataError(
            f"{place}: {labels.shape[1]} numbers for each image; one label each is expected, of shape [n]",
            path=path,
            hint="from one-hot rows, save labels.argmax(axis=1)",
        )
    if labels.ndim != 1:
        raise DataError(f"{place}: labels of shape {list(labels.shape)}; [n] or [n, 1] is expected", path=path)
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64)
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "backslashreplace")
    raise DataError(
        f"{place}: labels of type {labels.dtype}; whole numbers or text are expected",
        path=path,
        hint="save labels.astype(int)" if labels.dtype.kind == "f" else None,
    )
