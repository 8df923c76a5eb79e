"""The Makefile's own words and .ci/run's exit code, in a folder with a PATH of its own."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

TOOLS = ("bash", "sh", "cat", "cksum", "cut", "pwd", "env", "dirname", "mkdir", "touch", "rm", "sed", "expand")
NO_PYTHON = """\
xfer needs Python 3.11 or later with its venv module, and none was found. Install one (on Debian: python3 and python3-venv),
or say where it is: make PYTHON=/path/to/python3
"""


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def checkout(repository, tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements/assets.txt", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder with what a shell needs, and nothing else."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def test_a_python_that_is_too_old_is_said(checkout, tools):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    program(tools / "python3", "#!/bin/sh\nexit 1\n")  # answers as Python 3.9 does when asked whether it is 3.11 or later
    done = subprocess.run([make, "quickstart"], capture_output=True, text=True, check=False, cwd=checkout, env={"PATH": str(tools)})
    assert done.returncode != 0
    assert re.sub(r"^make.*\n", "", done.stderr, flags=re.MULTILINE) == NO_PYTHON
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(("lint", "test", "code", "ran"), [(0, 0, 0, "lint test"), (2, 0, 2, "lint"), (0, 2, 2, "lint test")])
def test_ci_ends_as_its_commands_do(checkout, tools, lint, test, code, ran):
    program(tools / "make", f'#!/bin/sh\necho "$1"\n[ "$1" = lint ] && exit {lint}\n[ "$1" = test ] && exit {test}\nexit 9\n')
    elsewhere = os.sep
    done = subprocess.run([checkout / ".ci" / "run"], capture_output=True, text=True, check=False, cwd=elsewhere, env={"PATH": str(tools)})
    assert (done.returncode, done.stdout.split()) == (code, ran.split())


def test_each_framework_is_installed_once_beside_the_other(checkout, tools):
    """With a pip that only writes down what it is asked for."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    asked = checkout / "asked"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    program(checkout / ".venv" / "bin" / "python", f"#!/bin/sh\nfor last; do :; done\necho \"$2 $last\" >> {asked}\n")
    program(checkout / ".venv" / "bin" / "xfer", f'#!/bin/sh\necho "xfer $*" >> {asked}\n')
    program(tools / "python3", "#!/bin/sh\nexit 0\n")

    def after(target: str) -> list[str]:
        asked.write_text("")
        done = subprocess.run([make, target], capture_output=True, text=True, check=False, cwd=checkout, env={"PATH": str(tools)})
        assert done.returncode == 0, done.stderr
        return asked.read_text().splitlines()

    assets = "pip requirements/assets.txt"
    assert after("quickstart") == ["pip .[torch]", assets, "xfer run recipes/quickstart.yaml"]
    assert after("quickstart-keras") == ["pip .[tensorflow]", "xfer run recipes/textile_mobilenet.yaml"]
    assert after("quickstart") == ["xfer run recipes/quickstart.yaml"]
    assert after("test")[:1] == ["pip .[torch,tensorflow,test]"]
    for target in ("quickstart-keras", "test", "install"):
        assert [line for line in after(target) if line.startswith("pip")] == []
    (checkout / "constraints.txt").write_text("# other releases\n")
    assert after("quickstart-keras")[0] == "pip .[tensorflow]"
    assert after("quickstart")[0] == "pip .[torch]"


def test_the_assets_are_pinned_with_hashes(repository):
    lines = (repository / "requirements" / "assets.txt").read_text().replace("\\\n", " ").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert len(packages) == 4
    assert [line for line in packages if not re.fullmatch(r"[\w-]+==[\d.]+(\s+--hash=sha256:[0-9a-f]{64})+", line)] == []


def test_every_dependency_is_pinned(repository):
    """Of what pyproject.toml installs for a user of either framework and for the tests, constraints.txt names the release."""
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = [requirement for extra in ("torch", "tensorflow", "cluster", "test") for requirement in optional[extra]]
    wanted = [*project["dependencies"], *extras]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in wanted} - {project["name"]}  # an extra that names another
    lines = (repository / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if line and not line.startswith("#")}
    assert names - pinned == set()
