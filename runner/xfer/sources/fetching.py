"""Getting weights to where the Plan looks for them. Nothing but `download` reaches for a network."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from xfer.data.locations import copy_in, missing, shown
from xfer.errors import UsageError, WeightsError
from xfer.plan.plan import WeightsPlan

# torch's habit: the first digits of a file's SHA-256 stand before its ending.
NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.[^./]+$")
MD5_DIGITS = 32
HUB_URL = re.compile(r"^/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)$")


def present(weights: WeightsPlan) -> Path | None:
    """The file where the weights lie already, or None: the Plan's own place, or the model hub's cache for a hub's URL."""
    if weights.file is not None and Path(weights.file).is_file():
        return Path(weights.file)
    return _in_hub_cache(weights.url) if weights.url else None


def download(weights: WeightsPlan, *, say: Callable[[str], None] | None = None) -> Path | None:
    """The weights' file, fetched if it is not there; None where none is needed. `say` is told before a download begins.

    Raises WeightsError that names what to fetch by hand and where to put it, DiskFullError when there is no room.
    """
    if weights.kind == "none" or weights.file is None:
        return None
    file = Path(weights.file)
    if file.is_file():
        return file
    if weights.url is None:
        raise WeightsError(missing(file))
    cached = _in_hub_cache(weights.url)
    if cached is not None:
        _keep(cached, file)
        return file
    if say is not None:
        say(f"downloading {shown(weights.url)} to {file}")
    try:
        copy_in(weights.url, file, check=lambda copied: _verify(copied, weights))
    except WeightsError:
        raise
    except UsageError as error:
        raise WeightsError(
            f"the weights {weights.location} are not on this machine and can't be downloaded: {error.message}",
            hint=f"fetch {shown(weights.url)} elsewhere and put it at {file}",
        ) from None
    return file


def _verify(copied: Path, weights: WeightsPlan) -> None:
    """A provider's own weights must have the digest that it tells, or that stands in the name. Only what was just downloaded is
    looked at: a file that lay there already may be the user's own."""
    assert weights.url is not None
    named = NAMED_DIGEST.search(urlsplit(weights.url).path)
    wanted = weights.digest or (named[1] if named else None)
    if weights.kind != "tag" or wanted is None:
        return
    kind = "MD5" if weights.digest is not None and len(wanted) == MD5_DIGITS else "SHA-256"
    with copied.open("rb") as stream:
        found = hashlib.file_digest(stream, hashlib.md5 if kind == "MD5" else hashlib.sha256).hexdigest()
    if not found.startswith(wanted):
        raise WeightsError(
            f"what was downloaded from {shown(weights.url)} is not the file of that name: its {kind} begins with "
            f"{found[: len(wanted)]}, not {wanted}; it was deleted",
            hint=f"something between here and the server changed it; fetch it another way and put it at {weights.file}",
        )


def _in_hub_cache(url: str) -> Path | None:
    found = HUB_URL.match(urlsplit(url).path)
    if found is None:
        return None
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    repository = cache / f"models--{found['repository'].replace('/', '--')}"
    try:
        revision = (repository / "refs" / found["revision"]).read_text().strip()
    except OSError:
        revision = found["revision"]
    file = repository / "snapshots" / revision / found["name"]
    return file if file.is_file() else None


def _keep(cached: Path, file: Path) -> None:
    """Give a file of the hub's cache the Plan's name too: as a link where the disk allows, else as a copy."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=file.parent))
    try:
        try:
            os.link(cached.resolve(), folder / file.name)
        except OSError:
            shutil.copyfile(cached, folder / file.name)
        os.replace(folder / file.name, file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
