"""What travels with a job: recipe, parents and plugins where they lie to each other, and nothing that is large or secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from xfer.cluster.pack import Package, gather, write
from xfer.errors import UsageError
from xfer.recipe.loader import read

RECIPE = """\
source: {model: torchvision/squeezenet1_1, weights: none}
target: {dataset: folder, path: data}
transfer: {type: feature}
"""


def package(recipe: str, *overrides: str, forbidden: str | None = None) -> Package:
    reading = read(recipe, overrides)
    assert reading.faults == ()
    return gather(reading, forbidden=forbidden)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with parents and plugins in several folders, and much beside them that must stay."""
    project = tmp_path / "project"
    for folder in ("recipes/flowers", "plugins", ".git", ".venv", "data"):
        (project / folder).mkdir(parents=True)
    (project / "recipes" / "base.yaml").write_text(RECIPE + "plugins: [../plugins/mine.py]\n")
    (project / "recipes" / "flowers" / "r.yaml").write_text("extends: ../base.yaml\n")
    (project / "plugins" / "mine.py").write_text("xfer_plugins = {}\n")
    for other in (".git/config", ".venv/pyvenv.cfg", "data/a.png", ".env", "plugins/other.py"):
        (project / other).write_text("RAY_AUTH_TOKEN=secret")
    monkeypatch.chdir(project)
    return project


def test_recipe_parents_and_plugins_travel_and_nothing_else(project, tmp_path):
    found = package("recipes/flowers/r.yaml")
    assert found.recipe == "recipes/flowers/r.yaml"
    assert set(found.files) == {"recipes/flowers/r.yaml", "recipes/base.yaml", "plugins/mine.py"}
    write(found, tmp_path / "package", beside={"script.py": "pass\n"})
    laid = {path.relative_to(tmp_path / "package").as_posix() for path in (tmp_path / "package").rglob("*") if path.is_file()}
    assert laid == {"script.py", "files/recipes/flowers/r.yaml", "files/recipes/base.yaml", "files/plugins/mine.py"}


def test_the_job_reads_what_was_read_here(project, tmp_path, monkeypatch):
    here = read("recipes/flowers/r.yaml", ["seed=3"])
    write(package("recipes/flowers/r.yaml"), tmp_path / "package", beside={})
    (project / "plugins" / "mine.py").unlink()
    monkeypatch.chdir(tmp_path / "package" / "files")
    there = read("recipes/flowers/r.yaml", ["seed=3"])
    assert (there.faults, there.resolved) == ((), here.resolved)
    assert Path(there.files[0].parent, there.recipe.plugins[0]).is_file()


def test_from_another_folder_names_begin_where_the_files_do(project, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert set(package("../project/recipes/flowers/r.yaml").files) == {"recipes/flowers/r.yaml", "recipes/base.yaml", "plugins/mine.py"}
    assert package(str(project / "recipes" / "base.yaml")).recipe == "recipes/base.yaml"


def test_absolute_names_mean_the_same_there_and_stay(project, tmp_path):
    (project / "recipes" / "flowers" / "r.yaml").write_text(f"extends: {project}/recipes/base.yaml\n")
    assert set(package("recipes/flowers/r.yaml").files) == {"recipes/flowers/r.yaml"}
    (project / "recipes" / "flowers" / "r.yaml").write_text(f"extends: ../base.yaml\nplugins: [{project}/plugins/mine.py]\n")
    assert set(package("recipes/flowers/r.yaml").files) == {"recipes/flowers/r.yaml", "recipes/base.yaml"}


def test_a_plugin_that_an_absolute_parent_lists_stays_and_one_of_the_command_line_travels(project):
    (project / "recipes" / "flowers" / "r.yaml").write_text(f"extends: {project}/recipes/base.yaml\n")
    found = package("recipes/flowers/r.yaml", "plugins=[../../plugins/other.py]")
    assert set(found.files) == {"recipes/flowers/r.yaml", "plugins/other.py"}


def test_too_large(project):
    (project / "plugins" / "mine.py").write_text("#" * 60_000_000)
    with pytest.raises(UsageError) as caught:
        package("recipes/flowers/r.yaml")
    assert caught.value.message == (
        "what the job would take along has 60.0 MB, more than the 50.0 MB that it may have: plugins/mine.py alone has 60.0 MB"
    )
    assert caught.value.hint == "a job takes recipes and plugins along; data and weights belong on storage that the cluster reaches"


@pytest.mark.parametrize("source", ["torchvision/squeezenet1_1", "run:/mnt/pets/1"])  # the latter is checked on the cluster only
def test_secrets_of_the_command_line_do_not_travel(project, source):
    (project / "r.yaml").write_text(RECIPE.replace("torchvision/squeezenet1_1, weights: none", source))
    overrides = {"cluster-token": "the cluster's token", "https://me:hunter2@host/x": "an address with a password"}
    for value, what in overrides.items():
        with pytest.raises(UsageError) as caught:
            package("r.yaml", f"target.path={value}", forbidden="cluster-token")
        assert caught.value.message == (
            f"target.path on the command line holds {what}, and a job's command can be read by whoever reaches the cluster"
        )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("TOKEN = 'cluster-token'", "the cluster's token"),
        ("KEY = '''-----BEGIN OPENSSH PRIVATE KEY-----'''", "a private key"),
        ("URL = 'https://me:hunter2@host/x.pth'", "an address with a password"),
        ("URL = 's3://bucket/x?X-Amz-Signature=abc'", "an address with a signed query"),
    ],
)
def test_secrets_do_not_travel(project, text, what):
    (project / "plugins" / "mine.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        package("recipes/flowers/r.yaml", forbidden="cluster-token")
    assert caught.value.message == f"plugins/mine.py holds {what}, and a job's files can be read by whoever reaches the cluster"
    assert caught.value.hint == "take it out; on the cluster, libraries read their secrets from their own settings"
