"""Importing is free: a framework is imported inside the function that needs it, in torch's own backend at the top."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "tensorflow", "keras", "ray", "optuna", "matplotlib", "sklearn", "pandas", "scipy", "pyarrow"}
AT_THE_TOP = {"runner/xfer/backends/torch/": {"torch"}, "runner/xfer/backends/tensorflow/": {"tensorflow", "keras"}}


def test_no_heavy_import_at_the_top_of_a_file(sources, modules):
    wrong = []
    for source in sources:
        allowed = set().union(*(names for folder, names in AT_THE_TOP.items() if source.shown.startswith(folder)))
        for imported in source.imports(modules):
            library = imported.module.partition(".")[0]
            if library in HEAVY - allowed and not imported.in_function and not imported.for_types_only:
                wrong.append(f"{source.shown}:{imported.line} imports {imported.module}")
    assert wrong == []


def test_one_backend_never_imports_the_other_framework(sources, modules):
    other = {"torch": {"tensorflow", "keras"}, "tensorflow": {"torch", "torchvision", "timm"}}
    wrong = [
        f"{source.shown}:{imported.line} imports {imported.module}"
        for source in sources
        for backend, names in other.items()
        if source.module.startswith(f"xfer.backends.{backend}")
        for imported in source.imports(modules)
        if imported.module.partition(".")[0] in names
    ]
    assert wrong == []


def loaded_by(code: str) -> set[str]:
    """The heavy libraries in a fresh process after `code`."""
    report = f"\nimport json, sys\nprint(json.dumps(sorted(set(sys.modules) & {HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import xfer",
        "import xfer; assert xfer.__version__",
        "import xfer.cli.main",
        "import xfer.errors, xfer.plugins, xfer.recipe.schema, xfer.plan.plan",
        "from xfer import plugins; [plugins.registered(group) for group in plugins.GROUPS]",
        "import xfer.cli.main\nassert xfer.cli.main.run(['--help']) == 0",
        "import xfer.cli.main\nassert xfer.cli.main.run(['check', '--shallow', 'recipes/quickstart.yaml']) == 0",
        "import xfer.cli.main\nassert xfer.cli.main.run(['check', '--shallow', 'recipes/cifar_mobilenet.yaml']) == 0",
    ],
)
def test_importing_loads_no_framework(code, repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert loaded_by(code) == set()


def test_every_verb_is_a_file_that_loads_no_framework():
    code = (
        "import importlib, xfer.cli.main as main\n"
        "import click\n"
        "for verb in main.VERBS:\n"
        "    assert isinstance(importlib.import_module(f'xfer.cli.{verb}_command').command, click.Command), verb\n"
    )
    assert loaded_by(code) == set()
