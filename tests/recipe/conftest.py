"""Recipes as text, written into an empty working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xfer.recipe.loader import Reading, read

BASE = """source: {model: torchvision/resnet18}
target:
  dataset: folder
  path: data/flowers
transfer: {type: feature}
"""
FULL = (Path(__file__).parent / "full.yaml").read_text()


@pytest.fixture
def base() -> str:
    """The least that is a recipe; five lines."""
    return BASE


@pytest.fixture
def full() -> str:
    """A recipe that uses every section of the language."""
    return FULL


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reading]:
    """Writes `r.yaml` (and other files, by name) and reads it."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(text: str, *overrides: str, **others: str) -> Reading:
        Path("r.yaml").write_text(text)
        for name, content in others.items():
            file = Path(name.replace("__", "/") + ".yaml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return read("r.yaml", overrides)

    return write_and_read
