"""How long a person waits for an answer: the help, a shallow check, and the check of a model seen before, beside Python's own start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from process import median, run, xfer
from table import show

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml")
REPEATS = 5


def bench(work: Path) -> dict[str, Any]:
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "xfer --help": xfer("--help"),
        "xfer check --shallow": xfer("check", "--shallow", RECIPE),
        "xfer check, model seen before": xfer("check", RECIPE),
    }
    run(commands["xfer check, model seen before"])
    seconds = {name: median([run(command).seconds for _ in range(REPEATS)]) for name, command in commands.items()}
    rows = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    show(f"Start-up, medians of {REPEATS}", ["command", "seconds"], rows)
    return seconds
