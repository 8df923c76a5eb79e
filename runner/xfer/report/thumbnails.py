"""Small pictures of images that the report speaks of, as far as their files are still there."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from xfer.data.dataset import Dataset, RawImage
from xfer.data.decode import Unreadable, decode
from xfer.data.locations import locate
from xfer.errors import UsageError
from xfer.plan.plan import Plan
from xfer.plan.preprocess import Preprocess

SIDE = 144  # pixels


def thumbnails(keys: Sequence[str], *, plan: Plan | None, dataset: Dataset | None) -> dict[str, str]:
    """A `data:` address for each of the dataset's keys whose image can be read, cropped as the network sees it.

    With the dataset at hand it is asked; without, a file of that name is looked for where the plan says the data lie.
    """
    places = {key: row for row, key in enumerate(dataset.keys)} if dataset else {}
    root = _root(plan)
    found = {}
    for key in keys:
        raw = _raw(key, dataset, places, root)
        address = _address(raw, plan) if raw is not None else None
        if address:
            found[key] = address
    return found


def _root(plan: Plan | None) -> Path | None:
    location = (plan.data.options.get("root") or plan.data.options.get("path")) if plan else None
    if not isinstance(location, str):
        return None
    try:
        path = locate(location).file  # never fetched: a report makes no connection
    except UsageError:
        return None
    return path if path.is_dir() else path.parent


def _raw(key: str, dataset: Dataset | None, places: dict[str, int], root: Path | None) -> RawImage | None:
    try:
        if dataset is not None and key in places:
            return dataset.read(places[key])
        # A key leads out of the dataset only in a bundle that someone tampered with.
        if root is not None and not PurePosixPath(key).is_absolute() and ".." not in PurePosixPath(key).parts and (root / key).is_file():
            return (root / key).read_bytes()
    except (OSError, ValueError):
        return None
    return None


def _address(raw: RawImage, plan: Plan | None) -> str | None:
    from PIL import Image

    seen = plan.source.preprocess if plan else Preprocess(resize=SIDE, crop=SIDE)
    small = Preprocess(resize=max(SIDE, round(seen.resize * SIDE / seen.crop)), crop=SIDE, stretch=seen.stretch)
    try:
        pixels = decode(raw, small)
    except Unreadable:
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
