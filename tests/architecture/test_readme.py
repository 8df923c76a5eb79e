"""What the README shows works: its plugin in a recipe beside it, its quickstart recipe, its list of commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from xfer.cli.main import VERBS, run


@pytest.fixture(scope="module")
def readme(repository) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(readme, tmp_path) -> Path:
    """The recipe of "Add a plugin" with its plugin beside it, and pictures as the plugin wants them."""
    part = readme.partition("\n## Add a plugin\n")[2].partition("\n## ")[0]
    (plugin,) = blocks(part, "python")
    (recipe,) = blocks(part, "yaml")
    (tmp_path / "named.py").write_text(plugin)
    (tmp_path / "mine.yaml").write_text(recipe)
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        pixels = random.integers(0, 128, (32, 32, 3)) + 128 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{('cat', 'dog')[index % 2]}_{index:03}.png")
    return tmp_path / "mine.yaml"


SMALL = ["source.model=torchvision/squeezenet1_1", "source.weights=none", "target.image_size=32"]


def test_the_plugin_works_in_a_recipe_beside_it(example, monkeypatch):
    monkeypatch.chdir(example.parent)
    assert run(["run", "mine.yaml", *SMALL, "--out", "bundle", "--quiet"]) == 0
    plan = json.loads((example.parent / "bundle" / "plan.json").read_text())
    assert plan["data"]["classes"] == ["cat", "dog"]
    assert plan["data"]["images"] == 20


def test_a_misspelt_option_of_the_plugin_is_a_fault_with_its_line(example, monkeypatch, capsys):
    monkeypatch.chdir(example.parent)
    example.write_text(example.read_text().replace("ending: .png", "endign: .png"))
    assert run(["check", "--no-data", "mine.yaml", *SMALL]) == 2
    line = next(number for number, text in enumerate(example.read_text().splitlines(), 1) if "endign" in text)
    shown = capsys.readouterr().err
    assert shown.startswith(f"mine.yaml:{line}:")
    assert "target.endign: unknown key" in shown
    assert "did you mean 'ending'?" in shown


def test_the_plugin_works_as_an_installed_one(example, monkeypatch):
    """The entry point that the README shows, in a distribution on the path, takes the place of `plugins:`."""
    root = example.parent / "site"
    information = root / "my_package-0.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text("[xfer.datasets]\nnamed = my_package.named:named\n")
    package = root / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "named.py").write_text((example.parent / "named.py").read_text())
    example.write_text("\n".join(line for line in example.read_text().splitlines() if not line.startswith("plugins:")))
    monkeypatch.setenv("PYTHONPATH", str(root))
    command = [sys.executable, "-m", "xfer.cli", "run", "mine.yaml", *SMALL, "--out", "bundle", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=example.parent)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).samefile(example.parent / "bundle")
    plan = json.loads((example.parent / "bundle" / "plan.json").read_text())
    assert plan["data"]["target"] == "my_package.named:named"


def test_the_recipe_explained_is_the_recipe_that_is_shipped(readme, repository):
    part = readme.partition("\n## A recipe, line by line\n")[2].partition("\n## ")[0]
    (explained,) = blocks(part, "yaml")
    assert yaml.safe_load(explained) == yaml.safe_load((repository / "recipes" / "quickstart.yaml").read_text())


def test_the_recipe_for_your_own_images_passes_the_check(readme, tmp_path, monkeypatch, capsys):
    part = readme.partition("\n## Your own images\n")[2].partition("\n## ")[0]
    (recipe,) = blocks(part, "yaml")
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    assert run(["check", "--no-data", "mine.yaml", *SMALL]) == 0, capsys.readouterr().err


def test_every_command_is_listed_and_no_other(readme):
    part = readme.partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`xfer ([a-z]+)", part)) == set(VERBS)


def test_every_picture_and_link_is_there(readme, repository):
    places = re.findall(r"\]\(([^)#]+)\)", readme)
    assert [place for place in places if not (repository / place).is_file()] == []
