"""Shared by all tests."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.abc import MetaPathFinder
from typing import Any

import pytest

from xfer import plugins

# Benchmarks run as scripts, a process for each; their tests lie beside them.
collect_ignore_glob = ["benchmarks/[!t]*.py"]


class TorchvisionFirst(MetaPathFinder):
    """The tests of both frameworks share a process, which crashes if torchvision is imported after TensorFlow: it comes before."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "tensorflow" and self in sys.meta_path:
            sys.meta_path.remove(self)
            if importlib.util.find_spec("torchvision") is not None:
                importlib.import_module("torchvision")


sys.meta_path.insert(0, TorchvisionFirst())


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


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Ports for programs that take some seconds to bind them: below those that systems give out by themselves, which others (each Ray
    asks for dozens) may be given meanwhile."""

    def find(count: int) -> list[int]:
        found: set[int] = set()
        while len(found) < count:
            port = random.SystemRandom().randrange(12000, 20000)
            with socket.socket() as tried, suppress(OSError):
                tried.bind(("127.0.0.1", port))
                found.add(port)
        return sorted(found)

    return find


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
