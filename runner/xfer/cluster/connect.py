"""A connection to Ray, quiet."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from xfer.errors import MissingExtraError, UsageError

LISTENER = "ray_listen_error_messages"
QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def ray_installed() -> None:
    """Raises MissingExtraError where Ray is not installed."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("a run over several workers needs Ray, which is not installed", hint="pip install 'xfer-runner[cluster]'")


class WithoutRay:
    """A text stream as it was, but for what Ray's listener thread writes to it, which goes to a file: stdout is for our own results."""

    def __init__(self, stream: TextIO, file: Path) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        if threading.current_thread().name != LISTENER:
            return self._stream.write(text)
        with self._file.open("a", encoding="utf-8") as file:
            return file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def connected(address: str | None, *, words: Path) -> Iterator[str]:
    """Within it this process speaks with the Ray at `address` (None: one of its own on this machine, which ends with it; 'auto': the one
    that this machine is part of); yields the folder of its logs on this machine. What Ray would print goes to the file `words`. Raises
    UsageError where none answers."""
    with redirect_stdout(WithoutRay(sys.stdout, words)), _connected(address) as logs:  # type: ignore[type-var]
        yield logs


@contextmanager
def _connected(address: str | None) -> Iterator[str]:
    ray_installed()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # a Ray of its own, on the loopback: no token is left in the home folder
    import ray

    if ray.is_initialized():  # someone else's: a test's, or a program's that uses xfer as a library
        yield _logs()
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            namespace="xfer",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"cluster.address: no Ray answers at '{address}': {str(error).splitlines()[0]}",
            hint="is its head up (ray start --head), and the address host:port of its GCS, or 'auto' on one of its nodes? "
            "A cluster with tokens needs RAY_AUTH_MODE=token here",
        ) from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():  # Ray puts its own in their place, which end the process where ours save and stop
            signal.signal(number, handler)
    try:
        yield _logs()
    finally:
        ray.shutdown()


def _logs() -> str:
    from ray._private import worker

    node = worker._global_node
    return str(node.get_logs_dir_path()) if node is not None else "the cluster's nodes, /tmp/ray/session_latest/logs"
