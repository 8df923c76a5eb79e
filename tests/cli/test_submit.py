"""`xfer submit`, `jobs`, `logs` and `stop` as commands, as far as no cluster is needed; with one: tests/cluster/test_submit.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from xfer.cli.jobs_command import table
from xfer.cli.main import run
from xfer.cluster.jobs import Job

RECIPE = """\
source: {model: torchvision/squeezenet1_1, weights: none}
target: {dataset: sklearn/digits, image_size: 32}
transfer: {type: feature}
plugins: [mine.py]
"""
CLUSTER = ["--address", "http://127.0.0.1:9"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text("xfer_plugins = {}\n")
    return tmp_path


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]):
    """What is said on stderr by a command that ends with 2 and prints nothing."""

    def of(*arguments: str) -> str:
        assert run(list(arguments)) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err

    return of


def test_every_verb_asks_where_the_cluster_is(refusal):
    for arguments in (["submit", "r.yaml"], ["jobs"], ["logs", "raysubmit_1"], ["stop", "raysubmit_1"]):
        assert refusal(*arguments) == "error: say where the cluster's dashboard is: --address http://HEAD:8265\n"


def test_plain_http_to_another_machine_needs_leave(refusal):
    assert refusal("submit", "r.yaml", "--address", "http://192.0.2.7:8265").startswith(
        "error: http://192.0.2.7:8265 is plain http to another machine, without a token: whoever reaches that port runs code there\n"
    )


def test_an_unreachable_head_takes_one_sentence(refusal, project):
    (project / "r.yaml").write_text(RECIPE.replace("torchvision/squeezenet1_1, weights: none", "run:/mnt/xfer/runs/pets/1"))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        sentence = (
            f"error: the cluster can't be reached at {address}: connection refused\n"
            "  is its head up, and is the dashboard's port (8265) open or forwarded to here?\n"
        )
        assert refusal("submit", "r.yaml", "--address", address) == sentence
        assert refusal("jobs", "--address", address) == sentence


def test_a_too_large_package_is_refused_before_anything_else(refusal, project):
    with (project / "mine.py").open("ab") as file:
        file.truncate(51_000_000)
    assert refusal("submit", "r.yaml", *CLUSTER) == (
        "error: what the job would take along has 51.0 MB, more than the 50.0 MB that it may have: mine.py alone has 51.0 MB\n"
        "  a job takes recipes and plugins along; data and weights belong on storage that the cluster reaches\n"
    )


def test_faults_of_the_recipe_come_as_from_check(refusal, project):
    (project / "r.yaml").write_text(RECIPE.replace("plugins: [mine.py]", "sead: 1"))
    assert refusal("submit", "r.yaml", "optimizer.lrr=1", *CLUSTER) == (
        "r.yaml:4:1: sead: unknown key; did you mean 'seed'?\ncommand line: optimizer.lrr=1: unknown key; did you mean 'lr'?\n"
    )


def test_a_recipe_that_is_not_there(refusal, project):
    assert refusal("submit", "absent.yaml", *CLUSTER) == f"absent.yaml: no such file: {project / 'absent.yaml'}\n"


def test_options_of_the_manifest_mean_nothing_without_it(refusal):
    for option in (["--output", "job.yaml"], ["--image", "xfer:1"], ["--namespace", "teams"]):
        assert refusal("submit", "r.yaml", *CLUSTER, *option) == (
            "error: --output, --image and --namespace are the manifest's, and need --kuberay beside them\n"
        )
    assert refusal("submit", "r.yaml", "--kuberay", "--no-wait") == (
        "error: --kuberay submits nothing, so --no-wait and --json mean nothing beside it\n"
    )


def test_a_manifest_is_written_for_no_cluster(refusal, monkeypatch, capsys):
    for option in (["--address", "http://127.0.0.1:8265"], ["--allow-http"]):
        assert refusal("submit", "r.yaml", "--kuberay", *option) == (
            "error: --kuberay speaks to no cluster, so --address and --allow-http mean nothing beside it\n"
        )
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")  # which is for other commands
    assert run(["submit", "r.yaml", "--kuberay", "--storage", "s3://bucket/xfer"]) == 0
    assert "kind: RayJob" in capsys.readouterr().out


def test_the_list_of_jobs():
    ours = Job("raysubmit_1", "FAILED", 1, "recipes/r.yaml", "r", "cd files", "10.0.0.5", 1_000_000.0, 1_003_725.0, None)
    other = Job("raysubmit_2", "PENDING", None, None, None, "python train.py", None, None, None, None)
    cells = [list(column.cells) for column in table([ours, other], now=1_010_000.0).columns]
    assert [column[0] for column in cells][:5] == ["raysubmit_1", "failed", "1", "recipes/r.yaml", "10.0.0.5"]
    assert [column[0] for column in cells][6] == "1:02:05"
    assert [column[1] for column in cells] == ["raysubmit_2", "pending", "", "python train.py", "", "", ""]
