"""Whole processes, timed from outside: seconds by the wall clock and the peak of their anonymous memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_SECONDS = 0.02


class FailedProcessError(Exception):
    """A process of a benchmark ended with an error: there is nothing to time."""


@dataclass(frozen=True)
class Done:
    """`rss_anon_bytes` is the peak over the process and its children together; None where the system does not tell."""

    seconds: float
    stdout: str
    rss_anon_bytes: int | None = None

    @property
    def last_line(self) -> str:
        return self.stdout.rstrip().splitlines()[-1]


def run(command: list[str], *, watch_memory: bool = False, environment: dict[str, str] | None = None) -> Done:
    """Run to the end; raises FailedProcessError with what it said on stderr."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, env=os.environ | (environment or {}))
        peak = 0
        if watch_memory:
            while process.poll() is None:
                peak = max(peak, rss_anon(process.pid))
                time.sleep(POLL_SECONDS)
        process.wait()
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise FailedProcessError(f"exit code {process.returncode} from: {' '.join(command)}\n{out.read()}{err.read()}")
        return Done(seconds, out.read(), peak if watch_memory and peak else None)


def rss_anon(pid: int) -> int:
    """Bytes of anonymous memory of a process and its children now; 0 where it has ended or the system has no /proc."""
    total = 0
    try:
        processes = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return 0
    for each in processes:
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def median(values: list[float]) -> float:
    return statistics.median(values)


def python(script: str, *arguments: str) -> list[str]:
    """The command that runs one of the scripts beside this file."""
    return [sys.executable, str(Path(__file__).with_name(script)), *arguments]


def xfer(*arguments: str) -> list[str]:
    """The installed command, beside the interpreter that runs this."""
    return [str(Path(sys.executable).with_name("xfer")), *arguments]
