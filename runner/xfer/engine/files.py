"""Atomic writes: a reader sees the old file or the new one, whatever kills the writer."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xfer.data.store_faults import NO_ROOM
from xfer.errors import DiskFullError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary file beside `path`, which is then renamed; raises DiskFullError where there is no room."""
    with room_for(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Whatever is written to `path` inside, by whichever library, raises DiskFullError where there is no room for it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(path) from error
        raise
    except SafetensorError as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # its words are all that is left of the system's error
        if told is not None and int(told[1]) in NO_ROOM:
            raise no_room(path) from error
        raise


def no_room(path: Path) -> DiskFullError:
    """The error for a full disk, with what is free and what to do."""
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        f"no room left on the disk while writing {path} ({free / 1e6:.0f} MB free)",
        hint="make room (`xfer cache prune --max-size …` clears the feature store), then go on with `xfer run --resume`",
    )


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: _fill(temporary, text))


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
