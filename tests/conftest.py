"""Shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from xfer import plugins

# Benchmarks run as scripts, a process for each; their tests lie beside them.
collect_ignore_glob = ["benchmarks/[!t]*.py"]


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What no test says otherwise for: cache and bundles lie in a folder of this session, not in the home of whoever runs the tests."""
    before = {name: os.environ.get(name) for name in ("XFER_CACHE", "XFER_RUNS")}
    os.environ["XFER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XFER_RUNS"] = str(tmp_path_factory.mktemp("runs"))
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """`xfer run` handles SIGINT and SIGTERM; the next test, and the person at the keyboard, get theirs back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local plugin files that one test loads are unknown to the next."""
    monkeypatch.setattr(plugins, "_local", {group: {} for group in plugins.GROUPS})
