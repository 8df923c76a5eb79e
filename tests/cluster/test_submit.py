"""A head node with dashboard and token, and `xfer submit` against it, as a person would: from a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("ray", reason="the cluster extra is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "of-this-test-0123456789abcdef0123456789abcdef"
START_SECONDS, END_SECONDS = 240, 30
Submit = Callable[..., subprocess.CompletedProcess[str]]

PARENT = """\
name: dots
source: {model: torchvision/squeezenet1_1, weights: none, preprocess: {resize: 32, crop: 32}}
target: {dataset: arrays, path: DATA, image_size: 32, splits: {val: 0.2, test: 0.2}}
transfer: {type: feature}
runtime: {precision: float32, device: cpu}
plugins: [../plugins/brief.py]
"""
RECIPE = "extends: ../base.yaml\nfreeze: {policy: brief}\n"
PLUGIN = '''\
"""A freeze policy: the head, as short as can be."""


def brief(groups, stages, rate, *, epochs=1):
    return [{"train": "head", "epochs": epochs}]


xfer_plugins = {"freezes": {"brief": brief}}
'''


@dataclass
class Head:
    """A cluster of one node, and what a client's environment needs."""

    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    client: dict[str, str] = field(repr=False)

    def xfer(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of xfer's beside the cluster."""
        command = [sys.executable, "-m", "xfer.cli", *arguments, "--address", self.address]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd, env={**self.client, **environment}, timeout=600
        )

    def get(self, path: str) -> str:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def head(free_ports: Callable[[int], list[int]]) -> Iterator[Head]:
    """Started with the command that its own machine would start it with; ended by its process id."""
    folder = Path(tempfile.mkdtemp(prefix="x", dir="/tmp" if os.access("/tmp", os.W_OK) else None))  # sockets want short paths
    (folder / "token").write_text(TOKEN)
    foreign = ("RAY_", "XFER_", "PYTHONPATH")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own |= {"PATH": f"{Path(sys.executable).parent}:{own['PATH']}", "XFER_CACHE": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "0"}
    (port,) = free_ports(1)
    ports = [f"--{name}=0" for name in ("port", "dashboard-agent-listen-port", "metrics-export-port", "min-worker-port", "max-worker-port")]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats", *ports]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder / 'ray'}", "--num-cpus=2", "--num-gpus=0"]
    command += ["--object-store-memory=100000000"]
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env={**own, "XFER_RUNS": str(folder / "runs")}, start_new_session=True
    )
    started = Head(f"http://127.0.0.1:{port}", folder, process, own)
    try:
        await_answer(started)
        yield started
    finally:
        end(process)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """The head and all that it started; on a busy machine some of them take their time, and are not waited for."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=END_SECONDS)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)
    process.wait(END_SECONDS)


def await_answer(head: Head) -> None:
    until = time.monotonic() + START_SECONDS
    while not has_answered(head):
        said = (head.folder / "head.log").read_text(errors="replace")
        assert head.process.poll() is None, said
        assert time.monotonic() < until, said
        time.sleep(0.2)


def has_answered(head: Head) -> bool:
    try:
        return bool(head.get("/api/version"))
    except OSError:
        return False


@pytest.fixture
def project(tmp_path: Path, head: Head) -> Path:
    """A recipe with a parent and a plugin, on random dots; their file lies where the cluster reaches it."""
    data = head.folder / "dots.npz"
    if not data.exists():
        draw = np.random.default_rng(0)
        labels = np.arange(60) % 3
        images = draw.integers(0, 60, (60, 32, 32, 3)) + 60 * labels[:, None, None, None]
        np.savez(data, images=images.astype(np.uint8), labels=labels)
    for folder in ("recipes/deep", "plugins"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "recipes" / "base.yaml").write_text(PARENT.replace("DATA", str(data)))
    (tmp_path / "recipes" / "deep" / "dots.yaml").write_text(RECIPE)
    (tmp_path / "plugins" / "brief.py").write_text(PLUGIN)
    return tmp_path


DOTS = "recipes/deep/dots.yaml"


def told(text: str, begin: str) -> str:
    """What stands after those words, in the first line that begins with them."""
    return next(line for line in text.splitlines() if line.startswith(begin)).removeprefix(begin)


def package_of_weights(folder: Path) -> Path:
    """A package of that name that holds `w.npz`; returns the folder to be found in."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    np.savez(folder / "w.npz", weight=np.zeros(3))
    return folder.parent


def without_token(*texts: str) -> None:
    assert all(TOKEN not in text for text in texts)


def test_a_recipe_runs_to_its_end(head, project):
    done = head.xfer("submit", DOTS, "head.hidden=[8, 4]", "name=dots and more", cwd=project)
    assert done.returncode == 0, done.stderr
    job = told(done.stderr, "job: ")
    assert "phase 1: head: 36 images" in done.stderr
    assert "Running entrypoint" not in done.stderr
    assert "INFO" not in done.stderr
    host, _, folder = done.stdout.strip().partition(":")
    assert done.stdout.count("\n") == 1
    bundle = Path(folder)
    assert bundle.parent == head.folder / "runs" / "dots and more"
    assert json.loads((bundle / "result.json").read_text())["status"] == "finished"
    assert json.loads((bundle / "plan.json").read_text())["head"]["hidden"] == [8, 4]

    (found,) = json.loads(head.xfer("jobs", "--json", cwd=project).stdout)["jobs"]  # the preflight's are left out
    assert (found["job"], found["exit_code"], found["recipe"], found["host"]) == (job, 0, DOTS, host)
    full = head.xfer("logs", job, "--follow", cwd=project)
    assert full.returncode == 0
    assert f"Running entrypoint for job {job}" in full.stdout  # a log is shown as it is
    ended = head.xfer("stop", job, cwd=project)
    assert (ended.returncode, ended.stderr) == (0, f"{job} had ended already: succeeded\n")
    without_token(done.stderr, full.stdout, head.get("/api/jobs/"))


@pytest.mark.slow
def test_a_failing_recipe_says_why(head, project):
    diverges = ["optimizer={name: sgd, lr: 1e9, weight_decay: 1.0}", "freeze.epochs=20"]
    done = head.xfer("submit", DOTS, *diverges, cwd=project)
    assert (done.returncode, done.stdout) == (1, "")
    *_, reason, next_step, bundle, log = done.stderr.splitlines()
    assert re.fullmatch(r"error: phase '1: head', epoch \d+: the loss is not a finite number any more", reason)
    assert next_step == "  lower the learning rate (now 1e+09), or set optimizer.clip_norm; then start a new run"
    assert bundle.startswith("what there is of the bundle: ")
    job = told(done.stderr, "job: ")
    assert log == f"its full log: xfer logs {job} --address {head.address}"

    queued = head.xfer("submit", DOTS, *diverges, "--no-wait", cwd=project)
    assert queued.returncode == 0, queued.stderr
    second = queued.stdout.strip()
    where = f"{second} --address {head.address}"
    assert queued.stderr.endswith(f"follow it: xfer logs {where} --follow\nstop it:   xfer stop {where}\n")
    followed = head.xfer("logs", second, "--follow", cwd=project)
    assert followed.returncode == 1
    assert f"{reason.rpartition(', ')[0]}, " in followed.stdout


def test_what_the_cluster_lacks_is_said_before_anything_is_queued(head, project):
    """A package that is only here holds the weights, and the data lie beside the recipe: both at once."""
    site = package_of_weights(project / "site" / "only_here")
    before = json.loads(head.xfer("jobs", "--json", cwd=project).stdout)
    overrides = ["source.weights=pkg://only_here/w.npz", "target.path=dots.npz", "cluster.gpus_per_worker=2.0"]
    done = head.xfer("submit", DOTS, *overrides, cwd=project, PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"looking around at {head.address}",
        "cluster: command line: target.path=dots.npz: path: no file or folder the job's folder/dots.npz",
        "cluster: command line: source.weights=pkg://only_here/w.npz: pkg://only_here/w.npz: no package 'only_here' is installed here; "
        "install the one that holds it: pip install only_here",
        "  data and weights don't travel with a job: name them by an absolute path that its nodes have, a URL, or pkg://package/file",
        "cluster: the run asks for 1 worker of 1 CPU and 2 GPUs, and there is room for 0: 1 node with 2 CPUs and 0 GPUs",
    ]
    assert json.loads(head.xfer("jobs", "--json", cwd=project).stdout) == before


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, "")
    without_token(done.stderr)
    return done.stderr


def test_a_wrong_token_and_none(head, project):
    wrong = refusal(head.xfer("submit", DOTS, cwd=project, RAY_AUTH_TOKEN="of-another-cluster"))
    assert wrong == (
        f"error: the cluster at {head.address} refuses the token of RAY_AUTH_TOKEN\n"
        "  it must be the one that the head was started with: 'ray get-auth-token' there prints it\n"
    )
    none = refusal(head.xfer("jobs", cwd=project, RAY_AUTH_MODE="disabled"))
    assert none == (
        f"error: the cluster at {head.address} asks for a token, and none was given\n"
        "  set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token\n"
    )


def test_the_address_is_the_one_that_was_given(head, project):
    """RAY_ADDRESS would overrule it in Ray's own client. A job that is not there is named beside those that are."""
    shown = refusal(head.xfer("logs", "raysubmit_absent", cwd=project, RAY_ADDRESS="http://127.0.0.1:9"))
    assert shown.startswith(f"error: no job 'raysubmit_absent' at {head.address}")
    assert shown.endswith("\n  'xfer jobs' lists those there are\n")


def test_a_token_in_the_package_is_refused(head, project):
    (project / "plugins" / "brief.py").write_text(PLUGIN + f"# {TOKEN}\n")
    shown = refusal(head.xfer("submit", DOTS, cwd=project))
    assert shown.startswith(
        "error: plugins/brief.py holds the cluster's token, and a job's files can be read by whoever reaches the cluster\n"
    )


@pytest.mark.slow
def test_the_quickstart_runs_on_shared_storage(head, tmp_path):
    storage = head.folder / "storage"
    done = head.xfer("submit", "recipes/quickstart.yaml", "--storage", str(storage), "--json", cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["status"], found["exit_code"]) == ("SUCCEEDED", 0)
    bundle = Path(found["bundle"])  # no host before it: every node has it
    assert bundle.parent == storage / "runs" / "quickstart"
    result = json.loads((bundle / "result.json").read_text())
    assert result["metrics"]["test"]["accuracy"] > 0.7


@pytest.mark.slow
def test_two_workers_beside_the_job(head, project):
    storage = head.folder / "objects"
    done = head.xfer("submit", DOTS, "--workers", "2", "--storage", f"file://{storage}", cwd=project)
    assert done.returncode == 0, done.stderr
    address = done.stdout.strip()
    assert address.startswith(f"file://{storage}/runs/dots/")
    assert json.loads((Path(address.removeprefix("file://")) / "result.json").read_text())["status"] == "finished"
    without_token(done.stderr)


LONG = ["freeze.epochs=100000", "head.hidden=[64]", "runtime.checkpoint=1s"]


def running(head: Head, project: Path) -> str:
    """A job whose run has begun to train."""
    job = head.xfer("submit", DOTS, *LONG, "--no-wait", cwd=project).stdout.strip()
    until = time.monotonic() + 120
    while "  epoch " not in head.xfer("logs", job, cwd=project).stdout:
        assert time.monotonic() < until
        time.sleep(0.5)
    return job


@pytest.mark.slow
def test_a_stopped_job_saves_and_can_be_gone_on_with(head, project):
    job = running(head, project)
    stopped = head.xfer("stop", job, cwd=project)
    assert (stopped.returncode, stopped.stderr) == (0, f"stopping {job} after its step\n{job} is stopped\n")
    bundle = Path(told(head.xfer("logs", job, cwd=project).stdout, "bundle: "))
    assert json.loads((bundle / "result.json").read_text())["status"] == "interrupted"
    assert list((bundle / "checkpoints").iterdir())
    assert head.xfer("logs", job, "--follow", cwd=project).returncode == 130


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so do its children: not those of this test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_the_job_alone(head, project):
    command = [sys.executable, "-m", "xfer.cli", "submit", DOTS, *LONG, "--address", head.address]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project, env=head.client)
    seen = []
    for line in watching.stderr:
        seen.append(line)
        if "  epoch " in line:
            break
    watching.send_signal(signal.SIGINT)
    shown = "".join(seen) + watching.communicate(timeout=60)[1]
    assert watching.returncode == 130
    job = told(shown, "job: ")
    where = f"{job} --address {head.address}"
    assert shown.endswith(f"\n{job} goes on\nfollow it: xfer logs {where} --follow\nstop it:   xfer stop {where}\n")
    found = {each["job"]: each["status"] for each in json.loads(head.xfer("jobs", "--json", cwd=project).stdout)["jobs"]}
    assert found[job] == "RUNNING"
    assert head.xfer("stop", job, cwd=project).returncode == 0


@contextmanager
def second_node(head: Head, **environment: str) -> Iterator[None]:
    """A node that joins the head's cluster, with an environment of its own."""
    until = time.monotonic() + START_SECONDS
    while not (gcs := re.findall(r"ray start --address='([\d.:]+)'", (head.folder / "head.log").read_text())):
        assert time.monotonic() < until
        time.sleep(0.2)
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={gcs[0]}", "--block", "--disable-usage-stats"]
    # In a folder of its own, as on a machine of its own: nodes that share one unpack each job's package over that of the other.
    command += ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", f"--temp-dir={head.folder / 'node'}"]
    command += [f"--{name}=0" for name in ("dashboard-agent-listen-port", "metrics-export-port", "min-worker-port", "max-worker-port")]
    with (head.folder / "node.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**head.client, **environment}, start_new_session=True
        )
    try:
        while head.get("/nodes?view=summary").count('"state": "ALIVE"') < 2:
            assert process.poll() is None, (head.folder / "node.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.5)
        yield
    finally:
        end(process)


@pytest.mark.slow
def test_each_node_looks_at_itself(head, project):
    """Of two nodes one has the package of the weights; both see the same storage."""
    site = package_of_weights(project / "site" / "on_one_node")
    storage = head.folder / "shared"
    with second_node(head, PYTHONPATH=str(site)):
        overrides = ["source.weights=pkg://on_one_node/w.npz", "cluster.workers=4"]
        without = head.xfer("submit", DOTS, *overrides, cwd=project, PYTHONPATH=str(site))
        done = head.xfer("submit", DOTS, *overrides, "--storage", str(storage), cwd=project, PYTHONPATH=str(site))
    *_, absent, room = done.stderr.splitlines()
    assert done.returncode == 2
    assert re.fullmatch(
        r"cluster, node [\d.]+: command line: source\.weights=pkg://on_one_node/w\.npz: .*: no package 'on_one_node' is installed here; "
        r"install the one that holds it: pip install on_one_node",
        absent,
    )
    assert room == "cluster: the run asks for 4 workers of 1 CPU, and there is room for 3: 2 nodes with 3 CPUs and 0 GPUs"
    assert list(storage.iterdir()) == []
    assert "cluster: cluster.storage: it is not set, and workers on several nodes need one place" in without.stderr


class Cutting(threading.Thread):
    """Between a client and the head; cuts every connection once, when it has passed on `after` for the first time."""

    def __init__(self, port: int, *, after: bytes) -> None:
        super().__init__(daemon=True)
        self.port, self.after, self.n_cuts = port, after, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.carry, args=(source, sink), daemon=True).start()

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if self.after in data and self.n_cuts == 0:
                    self.n_cuts += 1
                    break
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_log_goes_on_where_the_connection_broke(head, project):
    job = head.xfer("submit", DOTS, "freeze.epochs=300", "--no-wait", cwd=project).stdout.strip()
    between = Cutting(int(head.address.rpartition(":")[2]), after=b"  epoch   1/300")
    between.start()
    command = [sys.executable, "-m", "xfer.cli", "logs", job, "--follow", "--address", between.address]
    followed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=project, env=head.client, timeout=300)
    between.listening.close()
    assert between.n_cuts == 1
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout == head.xfer("logs", job, cwd=project).stdout
    assert followed.stdout.count("  epoch 300/300") == 1


@pytest.mark.slow
def test_a_job_that_is_killed(head, project):
    job = running(head, project)
    bundle = told(head.xfer("logs", job, cwd=project).stdout, "bundle: ")
    found = subprocess.run(["pgrep", "--full", f"xfer.cli run --out {bundle}"], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(found[0]), signal.SIGKILL)
    assert head.xfer("logs", job, "--follow", cwd=project).returncode == 1
    killed = {each["job"]: each for each in json.loads(head.xfer("jobs", "--json", cwd=project).stdout)["jobs"]}[job]
    assert killed["exit_code"] in (-9, 137)
