"""Broken recipes, each with the whole text that a person reads. `broken/NAME.yaml` holds one (lines `#$ key=value` are overrides),
`broken/messages.txt` what is said about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xfer.errors import RecipeError
from xfer.recipe.loader import load, read

BROKEN = Path(__file__).parent / "broken"
MESSAGES = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", (BROKEN / "messages.txt").read_text(), flags=re.M | re.S))


def test_each_broken_recipe_has_its_messages() -> None:
    assert sorted(MESSAGES) == sorted(file.stem for file in BROKEN.glob("*.yaml"))
    assert len(MESSAGES) >= 75


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_messages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    file = Path(f"{name}.yaml")
    overrides = [line[3:] for line in file.read_text().splitlines() if line.startswith("#$ ")]
    with pytest.raises(RecipeError) as caught:
        load(file, overrides)
    assert caught.value.message == MESSAGES[name].strip().replace("{here}", str(BROKEN))
    assert caught.value.exit_code == 2
    assert all(reading_fault.as_dict()["message"] for reading_fault in read(file, overrides).faults)
