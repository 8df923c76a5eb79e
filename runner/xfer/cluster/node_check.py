"""`python -m xfer.cluster.node_check`: what xfer sees of a recipe on the node that it runs on; JSON in, JSON out.

A request has `recipe` and `overrides` as in `xfer check`, `storage` or None, `is_shared` where several nodes need it, and the `mark` that
another node left there. The answer: `faults`, `downloads`, `storage` (what is wrong with it), and the `mark` that this node left.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from xfer.cluster.storage import Storage
from xfer.compile.compiler import examine
from xfer.errors import UsageError
from xfer.recipe.loader import read

JOB_FOLDER = "the job's folder"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The whole of it for one node."""
    found: dict[str, Any] = {"storage": None, "mark": None}
    storage = request["storage"]
    try:
        if request.get("remove_mark"):
            Storage.of(storage).remove_mark(request["remove_mark"])
            return found
        if storage is not None:
            found["mark"] = _try(Storage.of(storage), request)
    except UsageError as error:
        found["storage"] = error.message
    checked = examine(read(request["recipe"], request["overrides"]))
    here = str(Path.cwd())
    texts = [str(fault) for fault in checked.faults]
    found["is_relative"] = any(here in text for text in texts)
    found["faults"] = [text.replace(here, JOB_FOLDER) for text in texts]
    found["downloads"] = [f"{each.what}, from {each.url}" for each in checked.downloads]
    return found


def _try(storage: Storage, request: dict[str, Any]) -> str | None:
    """Write and read there; where several nodes need it, look for the mark of the first of them, or be that one. Raises UsageError."""
    storage.probe()
    if not request["is_shared"]:
        return None
    if request["mark"] is None:
        return storage.leave_mark()
    if not storage.sees(request["mark"]):
        raise UsageError(f"cluster.storage: {storage} is another place on this node: what the head wrote there is not to be seen")
    return None


if __name__ == "__main__":
    print("\n" + json.dumps(answer(json.load(sys.stdin))), flush=True)
