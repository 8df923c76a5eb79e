"""An installation with one framework: recipes of the other name the extra, and its own run without a thought of what is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TORCH = ("torch", "torchvision", "timm")
TENSORFLOW = ("tensorflow", "keras")

# Nothing of what is absent can be imported, found or asked for its version, in this process and in those that it starts.
ABSENCE = """
import importlib.machinery, importlib.metadata, importlib.util, sys

ABSENT = {absent!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def version(name, real=importlib.metadata.version):
    if name in ABSENT:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

def find_spec(name, package=None, real=importlib.util.find_spec):
    return None if name.partition(".")[0] in ABSENT else real(name, package)

sys.meta_path.insert(0, Blocker())
importlib.metadata.version = version
importlib.util.find_spec = find_spec
"""

RECIPE = """
source: {{model: {model}, weights: none}}
target: {{dataset: sklearn/digits, image_size: 32, splits: {{val: 0.1, test: 0.2}}}}
transfer: {{type: feature}}
freeze:
  - {{train: head, epochs: 1}}
runtime: {{cache: cache, precision: float32, device: cpu}}
"""


@pytest.fixture
def xfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command where some packages are absent; the recipe `r.yaml` has the given model."""

    def run(*arguments: str, absent: tuple[str, ...], model: str = "torchvision/squeezenet1_1") -> subprocess.CompletedProcess[str]:
        (tmp_path / "r.yaml").write_text(RECIPE.format(model=model))
        (tmp_path / "net.keras").touch()
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(ABSENCE.format(absent=absent))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        command = [sys.executable, "-m", "xfer.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.mark.parametrize(
    ("model", "absent", "missing", "extra"),
    [
        ("torchvision/squeezenet1_1", TORCH, "torchvision", "torch"),
        ("timm/resnet18", TORCH, "timm", "torch"),
        ("keras/MobileNetV2", TENSORFLOW, "tensorflow", "tensorflow"),
        ("keras/MobileNetV2", ("keras",), "keras", "tensorflow"),
        ("file:net.keras", TENSORFLOW, "tensorflow", "tensorflow"),
    ],
)
def test_a_recipe_of_the_other_framework_names_the_extra(xfer, model, absent, missing, extra):
    done = xfer("check", "r.yaml", absent=absent, model=model)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"r.yaml:2:10: source.model: {missing} is not installed; pip install 'xfer-runner[{extra}]'\n",
    )


@pytest.mark.parametrize(("absent", "extra"), [(TORCH, "torch"), (TENSORFLOW, "tensorflow")])
def test_models_of_the_other_framework_are_still_listed(xfer, absent, extra):
    done = xfer("list", "models", "*18" if extra == "tensorflow" else "*MobileNetV2", absent=absent)
    assert done.returncode == 0
    assert ("torchvision/resnet18" if extra == "tensorflow" else "keras/MobileNetV2") in done.stdout.split()
    assert f"is not installed; pip install 'xfer-runner[{extra}]'" in done.stderr


def test_doctor_says_what_is_not_installed(xfer):
    for absent in (TORCH, TENSORFLOW):
        done = xfer("doctor", absent=absent)
        assert done.returncode == 0
        rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split(maxsplit=1)) == 2)
        assert {name for name in (*TORCH, *TENSORFLOW) if rows[name] == "not installed"} == set(absent)


@pytest.mark.parametrize(
    ("model", "absent"), [("torchvision/squeezenet1_1", TENSORFLOW), pytest.param("keras/MobileNetV2", TORCH, marks=pytest.mark.slow)]
)
def test_a_recipe_of_its_own_runs(xfer, model, absent, tmp_path):
    done = xfer("run", "r.yaml", "--out", "bundle", "--quiet", absent=absent, model=model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'bundle'}\n"
    assert (tmp_path / "bundle" / "report.html").exists()
