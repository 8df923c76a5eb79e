"""Manifests for KubeRay: valid by its own schema, with everything that the job needs in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from xfer.cli.main import run
from xfer.cluster.kuberay import RAY_VERSION

SCHEMA = "kuberay-rayjob.schema.json"
RECIPE = """\
name: Flowers ResNet_18  # with a comment
source: {model: run:/mnt/xfer/runs/pets/1}  # which only the cluster has
target: {dataset: folder, path: /mnt/data/flowers, image_size: 32}
transfer: {type: feature}
plugins: [plugins/mine.py]
"""
PLUGIN = 'TEXT = """\nein \\"Zitat\\" und ein Umlaut: ä\n"""\nxfer_plugins = {}\n'


@pytest.fixture(scope="module")
def schema(repository) -> dict[str, Any]:
    folder = Path(os.environ.get("XFER_SCHEMAS", repository.parent / "shared" / "schemas"))
    if not (folder / SCHEMA).is_file():
        pytest.skip(f"no {SCHEMA} in {folder}; XFER_SCHEMAS names another folder")
    return json.loads((folder / SCHEMA).read_text())


@pytest.fixture(scope="module")
def repository() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture
def manifest(tmp_path, monkeypatch, capsys):
    """The two documents of `xfer submit r.yaml --kuberay …`, and the text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(PLUGIN)

    def written(*arguments: str) -> tuple[dict[str, Any], dict[str, Any], str]:
        assert run(["submit", "r.yaml", "--kuberay", *arguments]) == 0
        text = capsys.readouterr().out
        config, job = yaml.safe_load_all(text)
        return config, job, text

    return written


@pytest.mark.parametrize(
    "arguments",
    [
        ["--storage", "/mnt/xfer"],
        ["--storage", "s3://bucket/xfer", "--workers", "4", "--namespace", "teams"],
        ["--storage", "/mnt/xfer", "cluster.workers={min: 1, max: 8}", "--gpus-per-worker", "0.5"],
        ["--storage", "/mnt/xfer", "--gpus-per-worker", "0"],
    ],
)
def test_it_is_valid(manifest, schema, arguments):
    config, job, _ = manifest(*arguments)
    jsonschema.Draft202012Validator(schema).validate(job)
    assert (config["apiVersion"], config["kind"], job["kind"]) == ("v1", "ConfigMap", "RayJob")
    assert config["metadata"]["name"] == job["metadata"]["name"]
    assert re.fullmatch(r"flowers-resnet-18-\d{8}-\d{6}-[0-9a-f]{4}", job["metadata"]["name"])
    assert len(job["metadata"]["name"]) <= 47


def test_the_schema_refuses_what_is_misspelt(manifest, schema):
    _, job, _ = manifest("--storage", "/mnt/xfer")
    job["spec"]["rayClusterSpec"]["authOption"] = job["spec"]["rayClusterSpec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(job)


def laid_out(config: dict[str, Any], job: dict[str, Any], folder: Path) -> None:
    """The ConfigMap as Kubernetes mounts it."""
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [each for each in head["volumes"] if "configMap" in each]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    for item in volume["configMap"]["items"]:
        file = folder / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(config["data"][item["key"]])


def test_its_script_runs_the_recipe_with_its_overrides_as_they_were_written(manifest, tmp_path):
    value = "head.hidden=[1, 2]", "seed=3"
    config, job, text = manifest(*value, "--storage", "/mnt/xfer")
    laid_out(config, job, tmp_path / "mounted")
    assert (tmp_path / "mounted" / "files" / "r.yaml").read_text() == RECIPE
    assert (tmp_path / "mounted" / "files" / "plugins" / "mine.py").read_text() == PLUGIN
    assert "  # with a comment\n" in text  # as a block, which a person can read
    # The script itself, with a python3 that says what it is asked and ends with an exit code of its own.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text('#!/bin/sh\npwd; for each; do echo "$each"; done; exit 2\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    script = (tmp_path / "mounted" / "job.sh").read_text().replace("/opt/xfer/job", str(tmp_path / "mounted"))
    assert job["spec"]["entrypoint"] == "sh /opt/xfer/job/job.sh"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=False, env={"PATH": f"{tmp_path / 'bin'}:/bin:/usr/bin"}
    )
    assert done.returncode == 2, done.stderr
    where, *asked = done.stdout.splitlines()
    assert where == str(tmp_path / "mounted" / "files")
    out = f"/mnt/xfer/runs/Flowers ResNet_18/{job['metadata']['name'].removeprefix('flowers-resnet-18-')}"
    assert asked == ["-P", "-m", "xfer.cli", "run", "--out", out, "r.yaml", *value, "cluster.storage=/mnt/xfer"]


def test_one_worker_runs_in_the_job_and_takes_a_pod(manifest):
    _, job, text = manifest("--storage", "/mnt/xfer", "--image", "registry.example/xfer:1")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert (spec["entrypointNumCpus"], spec["entrypointNumGpus"]) == (4, 1)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 1)
    for pod in (cluster["headGroupSpec"]["template"], group["template"], spec["submitterPodTemplate"]):
        assert pod["metadata"]["labels"] == {"app.kubernetes.io/name": "xfer"}  # that of cluster/kuberay/shared.yaml
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        assert pod["spec"]["containers"][0]["image"] == "registry.example/xfer:1"
    for pod in (cluster["headGroupSpec"]["template"], group["template"]):
        (container,) = pod["spec"]["containers"]
        assert {"name": "storage", "persistentVolumeClaim": {"claimName": "xfer-storage"}} in pod["spec"]["volumes"]
        assert {"name": "storage", "mountPath": "/mnt/xfer"} in container["volumeMounts"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (0, True)
    assert "# Submit it:  kubectl apply --server-side -f THIS_FILE\n" in text  # a plain apply keeps a second copy, of 256 KiB at most
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    assert "# It needs a PersistentVolumeClaim 'xfer-storage' that all pods may mount (ReadWriteMany): the bundle goes there.\n" in text
    assert "# The recipe leaves gpus_per_worker open: one GPU a worker. For none, write --gpus-per-worker 0.\n" in text


def test_several_workers_run_beside_the_job(manifest):
    config, job, text = manifest("--storage", "s3://bucket/xfer", "--workers", "4", "--gpus-per-worker", "2", "--namespace", "teams")
    assert "entrypointNumGpus" not in job["spec"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 4
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    assert "persistentVolumeClaim" not in text
    script = config["data"]["job.sh"]
    assert "run --address auto --out '/tmp/xfer/runs/Flowers ResNet_18/" in script
    assert script.endswith(" r.yaml cluster.workers=4 cluster.gpus_per_worker=2.0 cluster.storage=s3://bucket/xfer\n")
    assert {each["metadata"]["namespace"] for each in (config, job)} == {"teams"}
    assert f"# Stop it:    kubectl delete rayjob,configmap --namespace teams {job['metadata']['name']}\n" in text


def test_an_elastic_run_lets_the_cluster_grow(manifest):
    config, job, _ = manifest("--storage", "/mnt/xfer", "cluster.workers={min: 2, max: 8}", "--gpus-per-worker", "0.5")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "run --address auto --out '/mnt/xfer/runs/" in config["data"]["job.sh"]


def test_no_gpu(manifest):
    for arguments in (["--gpus-per-worker", "0"], ["runtime.device=cpu"]):
        _, job, text = manifest("--storage", "/mnt/xfer", *arguments)
        assert "nvidia.com/gpu" not in text
        assert "entrypointNumGpus" not in job["spec"]


def test_output_is_a_file(manifest, tmp_path, capsys):
    assert run(["submit", "r.yaml", "--kuberay", "--storage", "/mnt/xfer", "--output", "job.yaml"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{tmp_path / 'job.yaml'}\n", "submit it: kubectl apply --server-side -f job.yaml\n")
    assert len(list(yaml.safe_load_all((tmp_path / "job.yaml").read_text()))) == 2
    assert run(["submit", "r.yaml", "--kuberay", "--storage", "/mnt/xfer", "--output", "absent/job.yaml"]) == 2
    assert capsys.readouterr().err == f"error: --output: {tmp_path / 'absent' / 'job.yaml'} can't be written: no such file or directory\n"


def test_without_storage_the_bundle_would_be_lost(manifest, capsys):
    assert run(["submit", "r.yaml", "--kuberay"]) == 2
    assert capsys.readouterr().err == (
        "error: a RayJob's pods are deleted at its end, and the bundle with them, for cluster.storage is not set\n"
        "  --storage /mnt/xfer mounts the volume claim 'xfer-storage' there; --storage s3://bucket/xfer needs no volume\n"
    )


def test_a_folder_that_is_written_as_a_url_is_a_volume_too(manifest):
    """The bundle is brought to that folder, which without the volume would be the pod's own."""
    config, job, text = manifest("--storage", "file:///mnt/my%20xfer")
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert {"name": "storage", "mountPath": "/mnt/my xfer"} in pod["containers"][0]["volumeMounts"]
        assert {"name": "storage", "persistentVolumeClaim": {"claimName": "xfer-storage"}} in pod["volumes"]
    assert "# It needs a PersistentVolumeClaim 'xfer-storage'" in text
    assert config["data"]["job.sh"].endswith(" r.yaml cluster.storage=file:///mnt/my%20xfer\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--storage", "https://host/xfer"], "cluster.storage: https://host/xfer: nothing here writes to 'https://'"),
        (
            ["--storage", "/"],
            "cluster.storage: no volume can be mounted at /: take a folder of its own, such as /mnt/xfer",
        ),
        (
            ["--storage", "/mnt/a:b"],
            "cluster.storage: no volume can be mounted at /mnt/a:b: take a folder of its own, such as /mnt/xfer",
        ),
        (
            ["--storage", "/opt/xfer/job/files"],
            "cluster.storage: no volume can be mounted at /opt/xfer/job/files: take a folder of its own, such as /mnt/xfer",
        ),
        (
            ["--storage", "/mnt/xfer", "--namespace", "My_Team"],
            "--namespace My_Team: must be small letters, digits and '-', at most 63, with a letter or digit at both ends",
        ),
    ],
)
def test_what_kubernetes_would_refuse(manifest, capsys, arguments, error):
    assert run(["submit", "r.yaml", "--kuberay", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {error}"


def test_too_much_for_a_config_map(manifest, tmp_path, capsys):
    (tmp_path / "plugins" / "mine.py").write_text("xfer_plugins = {}\n" + "#" * 1_500_000)
    assert run(["submit", "r.yaml", "--kuberay", "--storage", "/mnt/xfer"]) == 2
    assert capsys.readouterr().err == "error: recipe and plugins have 1.5 MB, more than the 1.0 MB that a ConfigMap holds\n"


def test_the_ray_of_the_manifest_is_the_pinned_one(repository):
    assert f"ray=={RAY_VERSION}" in (repository / "constraints.txt").read_text().splitlines()
