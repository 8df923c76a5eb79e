"""`cluster/slurm.sh`, the real script with a real Ray, on one machine: Slurm's variables are set by hand, and `srun` and `scontrol` are
small programs that stand in for Slurm's own and run here what they are given."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"
TOOLS = {
    "scontrol": """#!/usr/bin/env bash
if [[ $1 == show ]]; then tr ',' '\\n' <<<"$3"; else echo "$@" >>"$SAID"; fi
""",
    "srun": """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
  if [[ $1 == --nodelist=* ]]; then export SLURMD_NODENAME=${1#*=}; fi
  shift
done
exec "$@"
""",
}
# In place of xfer: what it sees of the cluster, as JSON.
LOOK = """
import json, os, stat, sys, urllib.error, urllib.request
import psutil, ray

port = int(os.environ["RAY_ADDRESS"].rpartition(":")[2]) + 1
token = os.environ["RAY_AUTH_TOKEN_PATH"]

def status(**headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=100).status
    except urllib.error.HTTPError as error:
        return error.code

ray.init(address="auto", log_to_driver=False)
found = {
    "arguments": sys.argv[1:],
    "nodes": sum(node["Alive"] for node in ray.nodes()),
    "cpus": ray.cluster_resources()["CPU"],
    "store": ray.cluster_resources()["object_store_memory"],
    "mode": oct(stat.S_IMODE(os.stat(token).st_mode)),
    "length": len(open(token).read()),
    "other_token": "RAY_AUTH_TOKEN" in os.environ,
    "dashboard": sorted({each.laddr.ip for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port}),
    "without": status(),
    "with": status(Authorization=f"Bearer {open(token).read()}"),
}
with open(os.environ["SAID"], "w") as file:
    json.dump(found, file)
sys.exit(7)
"""
# In place of xfer: begins a bundle, saves when it is asked to stop, and can be resumed.
WORK = """
import os, signal, sys, time

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
bundle = sys.argv[sys.argv.index("--resume" if "--resume" in sys.argv else "--out") + 1]
with open(os.environ["SAID"], "a") as file:
    file.write(f"{sys.argv[1]} {sys.argv[2]}\\n")
if "--resume" in sys.argv:
    sys.exit(0)
os.makedirs(bundle)
open(os.path.join(bundle, "plan.json"), "w").close()
while not asked:
    time.sleep(0.1)
time.sleep(1)
sys.exit(130 if len(asked) == 1 else 1)
"""


def free_job() -> int:
    """The number of a job whose three ports nobody listens at."""
    for _ in range(100):
        job = random.randrange(1, 10**7)
        port = 20000 + job % 4000 * 3
        try:
            for each in range(port, port + 3):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", each))
        except OSError:
            continue
        return job
    raise AssertionError("no three ports in a row are free")


@pytest.fixture
def job(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script as Slurm would, in `tmp_path`; what is left of it is ended after the test."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "r.yaml").touch()
    temporary = tempfile.mkdtemp(prefix="x", dir="/tmp")  # Ray's sockets need a short path
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM", "XFER_"))}
    environment = {
        **kept,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{kept['PATH']}",
        "HOME": str(tmp_path),
        "SAID": str(tmp_path / "said"),
        "XFER_TEMP": temporary,
        "XFER_JOIN_SECONDS": "300",
        "XFER_HEAD_IP": "127.0.0.1",
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_JOB_NODELIST": "n1",
        "SLURMD_NODENAME": "n1",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_MEM_PER_NODE": "400",
        "RAY_AUTH_TOKEN": "of-another-cluster",
        "RAY_ADDRESS": "127.0.0.1:1",
    }
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, program: str = "", **variables: str | None) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(program)
        given = {**environment, "XFER_COMMAND": f"{sys.executable} {tmp_path / 'program.py'}", **variables}
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env={name: value for name, value in given.items() if value is not None},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(temporary, ignore_errors=True)


def ended(process: subprocess.Popen[str], *, seconds: float = 600) -> tuple[int, str]:
    """Exit code and what it said."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def until(is_so: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 600) -> None:
    """Waits while the script runs."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)


def command_line(process: psutil.Process) -> list[str]:
    """Nothing for a process that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def left_behind(folder: Path) -> list[str]:
    """Processes that know the job's folder by name, Ray's, with the path of the token in their environment; after some seconds, in
    which those end that see that their parents have."""
    deadline = time.monotonic() + 100
    while (found := knowing(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def knowing(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_AUTH_TOKEN_PATH", "").startswith(str(folder)):
                found.append(" ".join(command_line(process)))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_shellcheck_finds_nothing():
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_slurm_reads_is_above_the_first_command():
    lines = SCRIPT.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--open-mode=append"} < set(options)
    assert any(option.startswith("--signal=B:USR1@") for option in options)
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(index for index, line in enumerate(lines) if line.startswith("#SBATCH ")) < first


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ((), {}, "give a recipe: sbatch cluster/slurm.sh RECIPE [KEY=VALUE...]"),
        (("r.yaml",), {"SLURM_JOB_ID": None}, "this is no Slurm job; submit it: sbatch cluster/slurm.sh r.yaml"),
        (("other.yaml",), {}, "no recipe other.yaml in {folder}"),
        (
            ("r.yaml",),
            {"RAY_COMMAND": "no-ray-here"},
            "there is no no-ray-here on PATH; activate the environment of xfer-runner[cluster] before sbatch",
        ),
        (
            ("r.yaml",),
            {"SLURM_GPUS_ON_NODE": "a100:2"},
            "SLURM_GPUS_ON_NODE=a100:2 is no number; say how many processes train: XFER_WORKERS",
        ),
    ],
)
def test_what_can_be_told_at_once_is_told_before_anything_starts(job, tmp_path, arguments, variables, said):
    assert ended(job(*arguments, **variables)) == (2, f"slurm.sh: {said.format(folder=tmp_path)}\n")
    assert not (tmp_path / "xfer-jobs").exists()


def test_a_node_on_which_ray_ends_is_named(job, tmp_path):
    process = job("r.yaml", RAY_COMMAND="false", SLURM_JOB_ID="17")
    log = tmp_path / "xfer-jobs" / "17" / "ray-n1.log"
    assert ended(process) == (1, f"slurm.sh: Ray ended on n1 before all nodes had joined; see {log}\n")
    assert log.is_file()
    assert not (log.parent / "auth_token").exists()


def test_a_folder_of_somebody_else_is_not_used(job, tmp_path):
    """A link in a place that all users may write to, in the name that the script would use."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "xfer-ray-18-n1").symlink_to(tmp_path / "theirs")
    code, _ = ended(job("r.yaml", SLURM_JOB_ID="18", XFER_TEMP=str(tmp_path / "temporary")))
    assert code == 1
    log = (tmp_path / "xfer-jobs" / "18" / "ray-n1.log").read_text()
    assert log == f"{tmp_path}/temporary/xfer-ray-18-n1 can't be made, or belongs to somebody else; set XFER_TEMP\n"
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_recipe_runs_on_all_nodes_behind_a_token_and_nothing_is_left(job, tmp_path):
    number = str(free_job())
    process = job("r.yaml", "optimizer.lr=1", program=LOOK, SLURM_JOB_NODELIST="n1,n2", SLURM_GPUS_ON_NODE="0", SLURM_JOB_ID=number)
    code, said = ended(process)
    folder = tmp_path / "xfer-jobs" / number
    assert said.splitlines()[0] == f"slurm.sh: all 2 nodes have joined; Ray's output: {folder}"
    assert code == 7  # the program's
    found: dict[str, Any] = json.loads((tmp_path / "said").read_text())
    place = ["--out", f"{tmp_path}/runs/slurm-{number}", "--address", "auto", "--storage", f"{tmp_path}/xfer-jobs/storage"]
    assert found.pop("arguments") == ["run", "r.yaml", "optimizer.lr=1", *place, "--workers", "2"]
    assert found == {
        "nodes": 2,
        "cpus": 2.0,
        "store": pytest.approx(2 * 0.3 * 400 * 2**20, rel=0.01),
        "mode": "0o600",
        "length": 64,
        "other_token": False,
        "dashboard": ["127.0.0.1"],
        "without": 401,
        "with": 200,
    }
    assert sorted(file.name for file in folder.iterdir()) == ["ray-n1.log", "ray-n2.log"]  # no token
    assert folder.stat().st_mode & 0o777 == 0o700
    assert left_behind(tmp_path) == []
    assert not (tmp_path / ".ray").exists()


@pytest.mark.slow
def test_a_warning_saves_and_queues_the_job_again_which_goes_on(job, tmp_path):
    number = str(free_job())
    first = job("r.yaml", program=WORK, SLURM_JOB_ID=number)
    bundle = tmp_path / "runs" / f"slurm-{number}"
    until(lambda: (bundle / "plan.json").exists(), first)
    first.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    first.send_signal(signal.SIGTERM)  # as Slurm may a moment later; it reaches xfer from Slurm itself, not from the script
    code, said = ended(first)
    assert code == 130  # the program was asked once
    assert said.splitlines()[-1] == f"slurm.sh: queueing job {number} again"
    assert (tmp_path / "said").read_text() == f"run r.yaml\nrequeue {number}\n"
    second = job("r.yaml", program=WORK, SLURM_JOB_ID=number, SLURM_RESTART_COUNT="1")
    code, said = ended(second)
    assert code == 0
    assert said.splitlines()[-1] == f"slurm.sh: going on with {bundle}"
    assert (tmp_path / "said").read_text() == f"run r.yaml\nrequeue {number}\nrun --resume\n"
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_a_job_that_was_restarted_often_enough_is_left_alone(job, tmp_path):
    number = str(free_job())
    process = job("r.yaml", program=WORK, SLURM_JOB_ID=number, SLURM_RESTART_COUNT="20")
    bundle = tmp_path / "runs" / f"slurm-{number}"
    until(lambda: (bundle / "plan.json").exists(), process)
    process.send_signal(signal.SIGUSR1)
    code, said = ended(process)
    assert code == 130
    assert said.splitlines()[-1] == f"slurm.sh: restarted 20 times already; go on by hand with XFER_BUNDLE={bundle}"
    assert (tmp_path / "said").read_text() == "run r.yaml\n"


@pytest.mark.slow
def test_a_node_on_which_ray_ends_later_begins_anew(job, tmp_path):
    number = str(free_job())
    process = job("r.yaml", program=WORK, SLURM_JOB_ID=number, SLURM_JOB_NODELIST="n1,n2")
    until(lambda: (tmp_path / "runs" / f"slurm-{number}" / "plan.json").exists(), process)
    log = tmp_path / "xfer-jobs" / number / "ray-n2.log"
    until(lambda: log.exists() and "Ray runtime started" in log.read_text(), process)  # the job may begin before
    (ray,) = (
        each for each in psutil.process_iter() if {"start", "--block"} < set(words := command_line(each)) and f"-{number}-n2" in str(words)
    )
    ray.kill()
    until(lambda: log.read_text().count("Ray runtime started") == 2, process)
    process.send_signal(signal.SIGUSR1)
    code, said = ended(process)
    assert code == 130
    assert said.splitlines()[1:] == [
        "slurm.sh: Ray has ended on n2; starting it again",
        "slurm.sh: got USR1",
        f"slurm.sh: queueing job {number} again",
    ]
    assert left_behind(tmp_path) == []
