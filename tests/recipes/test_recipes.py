"""Every recipe that is shipped passes the check, and its opening comment tells a person what they need to know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from xfer.cli.main import run

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for ending in ("*.yaml", "*.yml") for path in (REPOSITORY / "recipes").rglob(ending))
COUNT = 9


def names() -> list[str]:
    return [path.relative_to(REPOSITORY).as_posix() for path in RECIPES]


def opening(recipe: str) -> list[str]:
    """The lines of the comment that it opens with, without the marks, continued lines joined."""
    lines: list[str] = []
    for line in (REPOSITORY / recipe).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if text.startswith("  ") and lines:
            lines[-1] += " " + text.strip()
        else:
            lines.append(text)
    return lines


def test_count():
    assert len(RECIPES) == COUNT, f"recipes/ holds {names()}"


@pytest.mark.parametrize("recipe", names())
def test_it_passes_the_check(recipe, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    code = run(["check", "--no-data", recipe])
    assert (code, *capsys.readouterr()) == (0, "", "1 recipe checked, no fault\n")


@pytest.mark.parametrize("recipe", names())
def test_it_opens_with_what_a_person_needs_to_know(recipe):
    lines = opening(recipe)
    starts = [line.partition(":")[0] for line in lines]
    assert starts[:4] == ["What it does", "What must be there", "Command", "Override"]
    assert starts[4] in {"measured", "not run here"}
    assert len(starts) == 5
    assert lines[2] == f"Command: xfer run {recipe}"
    assert re.fullmatch(rf"Override: xfer run {re.escape(recipe)}( \S+=\S+)+", lines[3])


@pytest.mark.parametrize("recipe", names())
def test_its_override_is_one_that_works(recipe, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    overrides = opening(recipe)[3].split()[4:]
    code = run(["check", "--no-data", recipe, *overrides])
    assert (code, *capsys.readouterr()) == (0, "", "1 recipe checked, no fault\n")


@pytest.mark.parametrize("recipe", names())
def test_it_names_no_place_of_one_machine(recipe):
    text = (REPOSITORY / recipe).read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w:/.])/(?:home|root|work|tmp|Users)/", text)
    assert yaml.safe_load(text)["transfer"]["type"]
