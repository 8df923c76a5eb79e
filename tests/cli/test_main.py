"""The command itself, as a terminal meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_terminal_that_has_not_every_sign(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text("# What it does: Blüten … unterscheiden.\n", encoding="utf-8")
    command = [sys.executable, "-m", "xfer.cli", "list", "recipes"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode("latin-1")) == (0, "")
    assert done.stdout.decode("latin-1") == "recipes/r.yaml  Blüten \\u2026 unterscheiden.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
@pytest.mark.parametrize("arguments", [["list", "datasets"], ["list", "datasets", "--json"], ["schema"], ["--help"], ["doctor"]])
def test_output_that_can_not_be_written(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "xfer.cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: standard output can't be written: no space left on device\n")
