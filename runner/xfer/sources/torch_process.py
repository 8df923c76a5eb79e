"""A torch file's tensors for a process that must not hold torch: a child reads them, and hands them over as safetensors."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from xfer.errors import MissingExtraError, WeightsError, XferError
from xfer.sources.safetensors import read_safetensors
from xfer.sources.weights import read_tensors

ORDER = "order"  # the names in the file's order, which safetensors do not keep


def read(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a torch file by name, in the file's order; raises WeightsError, and MissingExtraError without torch."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(
            f"{file} is torch's, which only torch can read, and torch is not installed",
            hint="pip install 'xfer-runner[torch]', or convert the file to .safetensors where torch is",
        )
    with tempfile.TemporaryDirectory(prefix="xfer-") as folder:
        handed = Path(folder) / "tensors.safetensors"
        done = subprocess.run(
            [sys.executable, "-m", "xfer.sources.torch_process", str(file), str(handed)], capture_output=True, text=True, check=False
        )
        lines = done.stdout.strip().splitlines()
        reply = json.loads(lines[-1]) if lines else {}
        if "error" in reply:
            raise WeightsError(reply["error"], hint=reply["hint"])
        if ORDER not in reply:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise XferError(f"the process that reads {file} with torch ended without an answer: {last[0]}")
        found = read_safetensors(handed)
        return {name: found[str(index)] for index, name in enumerate(reply[ORDER])}


def _child(file: Path, handed: Path) -> None:
    from safetensors.torch import save_file

    try:
        tensors = read_tensors(file)
    except XferError as error:
        sys.stdout.write(json.dumps({"error": error.message, "hint": error.hint}) + "\n")
        return
    save_file({str(index): tensor.clone().contiguous() for index, tensor in enumerate(tensors.values())}, handed)
    sys.stdout.write(json.dumps({ORDER: list(tensors)}) + "\n")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
