"""Every plugin that pyproject.toml declares is installed, loads, and is counted: a new one has to be written down here."""

from __future__ import annotations

import inspect
import tomllib

import pytest

from xfer import plugins

COUNTS = {"sources": 6, "datasets": 6, "methods": 3, "freezes": 5, "backends": 2}
OURS = "xfer-runner"


@pytest.fixture(scope="module")
def declared(repository) -> dict[str, dict[str, str]]:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return {group.removeprefix("xfer."): points for group, points in project["entry-points"].items()}


def built_in() -> list[plugins.Plugin]:
    return [plugin for group in plugins.GROUPS for plugin in plugins.registered(group).values() if plugin.distribution == OURS]


def test_counts_per_group(declared):
    assert {group: len(points) for group, points in declared.items()} == COUNTS
    assert set(plugins.GROUPS) == set(COUNTS)


def test_what_is_declared_is_installed(declared):
    installed = {group: {plugin.name: plugin.target for plugin in built_in() if plugin.group == group} for group in plugins.GROUPS}
    assert installed == declared, "pyproject.toml changed since xfer was installed: run `make test`, or pip install --editable . again"


@pytest.mark.parametrize("plugin", built_in(), ids=lambda plugin: f"{plugin.group}-{plugin.name}")
def test_each_loads_and_says_what_it_is_for(plugin):
    found = plugins.load(plugin.target)
    assert callable(found)
    assert inspect.getdoc(found)


@pytest.mark.parametrize("plugin", built_in(), ids=lambda plugin: f"{plugin.group}-{plugin.name}")
def test_each_lies_on_the_floor_of_its_group(plugin):
    folders = {"sources": "sources", "datasets": "data.datasets", "methods": "methods", "freezes": "freezes", "backends": "backends"}
    assert plugin.target.startswith(f"xfer.{folders[plugin.group]}.")


def test_no_plugin_imports_another(sources, modules):
    """A backend is a folder of files that belong together; every other plugin is one file that stands for itself."""
    homes = {plugin.target.partition(":")[0] for plugin in built_in() if plugin.group != "backends"}
    wrong = [
        f"{source.shown}:{imported.line} imports {imported.module}"
        for source in sources
        if source.module in homes
        for imported in source.imports(modules)
        if imported.module in homes - {source.module}
    ]
    assert wrong == []


def test_no_backend_imports_another(sources, modules):
    names = [plugin.target.split(".")[2] for plugin in built_in() if plugin.group == "backends"]
    wrong = [
        f"{source.shown}:{imported.line} imports {imported.module}"
        for source in sources
        for name in names
        if source.module.startswith(f"xfer.backends.{name}.")
        for imported in source.imports(modules)
        for other in names
        if other != name and imported.module.startswith(f"xfer.backends.{other}")
    ]
    assert wrong == []


def test_nothing_above_a_plugin_imports_it(sources, modules):
    """The rest of xfer reaches a plugin through its name, so that a user's own is worth as much as a built-in one."""
    allowed = {("xfer.compile.names", "xfer.sources.run")}  # `run:` is a form of its own in the recipe: it stands for another source
    homes = {plugin.target.partition(":")[0] for plugin in built_in()}
    wrong = [
        f"{source.shown}:{imported.line} imports {imported.module}"
        for source in sources
        for imported in source.imports(modules)
        if imported.module in homes - {source.module} and source.module not in homes
        and (source.module, imported.module) not in allowed
    ]
    assert wrong == []
