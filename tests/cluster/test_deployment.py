"""The files in `cluster/` that a team deploys: valid by the schemas of what reads them, closed to strangers, and of one release."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from xfer.cli.main import VERBS, cli, run
from xfer.cluster.kuberay import CLAIM, RAY_VERSION

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
LAUNCHERS = ("aws.yaml", "gcp.yaml")
MANIFESTS = {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}
BASE = "python:${PYTHON}-slim-bookworm"
LOOPBACK = "--dashboard-host=127.0.0.1"


def pinned(package: str) -> str:
    """The release of constraints.txt."""
    (found,) = re.findall(rf"^{re.escape(package)}==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    return found


def misspelt(document: dict[str, Any], *path: Any) -> dict[str, Any]:
    """A copy in which the last key of the path lost its last letter."""
    changed = copy.deepcopy(document)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1][:-1]] = place.pop(path[-1])
    return changed


def faults(validator: Any, document: dict[str, Any]) -> list[str]:
    """In the validator's words; those of a whole document would be pages."""
    return [error.message for error in validator.iter_errors(document)]


def refuses(found: list[str], key: str) -> bool:
    """Whether a key without its last letter is refused, as unknown or for the one that is missing."""
    return bool(found) and all(f"'{key[:-1]}' was unexpected" in text or f"'{key}' is a required property" in text for text in found)


def bash_takes(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), text


# The launcher files


@pytest.fixture(scope="module")
def launcher_schema() -> Any:
    import ray

    return jsonschema.Draft7Validator(json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / request.param).read_text())


def test_launcher_files_are_what_ray_up_takes(launcher, launcher_schema):
    from ray.autoscaler._private.util import prepare_config, validate_config

    assert faults(launcher_schema, launcher) == []
    validate_config(prepare_config(copy.deepcopy(launcher)))  # with the provider's defaults, as `ray up` does


@pytest.mark.parametrize("path", [("idle_timeout_minutes",), ("available_node_types", "gpu_spot", "max_workers"), ("auth", "ssh_user")])
def test_a_misspelling_in_a_launcher_file_is_refused(launcher, launcher_schema, path):
    assert refuses(faults(launcher_schema, misspelt(launcher, *path)), path[-1])


def test_launcher_files_ask_for_the_token_and_keep_the_dashboard_to_the_head(launcher):
    assert launcher["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token" in launcher["initialization_commands"]
    starts = [command for part in ("head", "worker") for command in launcher[f"{part}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert [LOOPBACK in command for command in starts] == [True, False]
    assert "0.0.0.0" not in json.dumps(launcher)


def test_launcher_files_have_spot_gpus_that_end_when_idle(launcher):
    head, workers = launcher["available_node_types"][launcher["head_node_type"]], launcher["available_node_types"]["gpu_spot"]
    market = workers["node_config"].get("InstanceMarketOptions", workers["node_config"].get("scheduling"))
    assert market.get("MarketType", market.get("provisioningModel")).lower() == "spot"
    assert not {"InstanceMarketOptions", "scheduling"} & set(head["node_config"])
    assert head["resources"] == {"CPU": 0}
    assert workers["max_workers"] <= launcher["max_workers"]
    assert 0 < launcher["idle_timeout_minutes"] <= 30
    assert launcher["provider"]["cache_stopped_nodes"] is False


def test_commands_of_launcher_files_are_good_shell(launcher):
    parts = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    commands = [command for part in parts for command in launcher[f"{part}_commands"]]
    assert len(commands) > 8
    for command in commands:
        bash_takes(command)


def test_setup_installs_what_lies_in_dist(launcher, tmp_path):
    """The commands are run with a pip that only shows what it is given."""
    (tmp_path / "xfer" / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "xfer" / "dist").mkdir()
    wheel = tmp_path / "xfer" / "dist" / "xfer_runner-0.1.0-py3-none-any.whl"
    wheel.touch()
    pip = tmp_path / "xfer" / "venv" / "bin" / "pip"
    pip.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    first, second = (command for command in launcher["setup_commands"] if "xfer_runner" in command)

    def given(command: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    assert f"{wheel}[torch,cluster]" in given(first)
    assert given(first)[2:4] == ["--constraint", str(tmp_path / "xfer" / "dist" / "constraints.txt")]
    assert given(second) == ["install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]


# The manifests


@functools.cache
def validator(kind: str) -> Any:
    """Skips where the schemas are not."""
    file = Path(os.environ.get("XFER_SCHEMAS", REPOSITORY.parent / "shared" / "schemas")) / f"kuberay-{kind.lower()}.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {file.parent}; XFER_SCHEMAS names another folder")
    return jsonschema.Draft202012Validator(json.loads(file.read_text()))


@pytest.fixture(params=MANIFESTS)
def manifest(request) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay" / request.param).read_text()))
    (found,) = (each for each in documents if each["kind"] == MANIFESTS[request.param])
    return found


def cluster_of(manifest: dict[str, Any]) -> tuple[Any, ...]:
    """Where the cluster's specification lies, as a path."""
    return ("spec",) if manifest["kind"] == "RayCluster" else ("spec", "rayClusterSpec")


def specification(manifest: dict[str, Any]) -> dict[str, Any]:
    return functools.reduce(lambda place, key: place[key], cluster_of(manifest), manifest)


def groups(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in specification(manifest)["workerGroupSpecs"]}


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Head and workers."""
    return [specification(manifest)["headGroupSpec"]["template"], *(group["template"] for group in groups(manifest).values())]


def test_manifests_are_what_kuberay_takes(manifest):
    assert faults(validator(manifest["kind"]), manifest) == []


@pytest.mark.parametrize(
    "path",
    [
        ("enableInTreeAutoscaling",),
        ("authOptions", "secretName"),
        ("workerGroupSpecs", -1, "maxReplicas"),
        ("workerGroupSpecs", -1, "template", "spec", "tolerations"),
        ("headGroupSpec", "template", "spec", "containers", 0, "volumeMounts", 0, "mountPath"),
    ],
)
def test_a_misspelling_in_a_manifest_is_refused(manifest, path):
    assert refuses(faults(validator(manifest["kind"]), misspelt(manifest, *cluster_of(manifest), *path)), path[-1])


def test_manifests_ask_for_a_token_that_they_do_not_hold(manifest):
    assert specification(manifest)["authOptions"] == {"mode": "token", "secretName": "xfer-ray-token"}
    assert specification(manifest)["headGroupSpec"]["serviceType"] == "ClusterIP"
    for file in (CLUSTER / "kuberay").iterdir():
        assert [each["kind"] for each in yaml.safe_load_all(file.read_text()) if each["kind"] == "Secret"] == []


def test_manifests_have_groups_that_grow_and_a_head_without_work(manifest):
    cluster = specification(manifest)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert {"gpu", "gpu-spot"} <= set(groups(manifest))
    for group in groups(manifest).values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert any("spot" in label for label in groups(manifest)["gpu-spot"]["template"]["spec"]["nodeSelector"])
    assert any("spot" in toleration["key"] for toleration in groups(manifest)["gpu-spot"]["template"]["spec"]["tolerations"])


def test_pods_take_what_they_say_and_no_rights(manifest):
    for pod in pods(manifest):
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["fsGroup"] == pod["spec"]["securityContext"]["runAsUser"] == 1000
        assert pod["metadata"]["labels"] == {"app.kubernetes.io/name": "xfer"}  # or the NetworkPolicy would not hold for it
        assert pod["spec"]["restartPolicy"] == "Never"
    assert all(group["template"]["spec"]["automountServiceAccountToken"] is False for group in groups(manifest).values())


def test_all_pods_share_the_volume_that_outlives_them(manifest):
    shared = {each["kind"]: each for each in yaml.safe_load_all((CLUSTER / "kuberay" / "shared.yaml").read_text())}
    assert shared["PersistentVolumeClaim"]["metadata"]["name"] == CLAIM
    assert shared["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(manifest):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == CLAIM
        assert mounts["storage"] == "/mnt/xfer"
    assert shared["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress"]
    assert shared["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "xfer"}}


def test_the_recipe_of_the_rayjob_is_good_and_lies_in_the_volume(tmp_path, capsys):
    config, job = yaml.safe_load_all((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(config["data"]["recipe.yaml"])
    assert run(["check", "--shallow", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().err
    assert yaml.safe_load(config["data"]["recipe.yaml"])["cluster"]["storage"].startswith("/mnt/xfer/")
    assert job["spec"]["entrypoint"] == "sh /opt/xfer/job/job.sh"
    assert config["metadata"]["name"] in json.dumps(pods(job)[0]["spec"]["volumes"])
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


@pytest.mark.parametrize("is_there", [False, True])
def test_the_script_of_the_rayjob_begins_once_and_then_goes_on(tmp_path, is_there):
    config, _ = yaml.safe_load_all((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    script = config["data"]["job.sh"].replace("/mnt/xfer", str(tmp_path))
    (tmp_path / "xfer").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "xfer").chmod(0o755)
    bundle = tmp_path / "runs" / "digits"
    if is_there:
        bundle.mkdir(parents=True)
        (bundle / "plan.json").touch()
    done = subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    begun = f"run /opt/xfer/job/recipe.yaml --address auto --out {bundle}\n"
    assert done.stdout == (f"run --resume {bundle}\n" if is_there else begun)


# The image


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, what follows it), without comments and with continued lines joined."""
    kept = "".join(f"{line}\n" for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [tuple(line.split(maxsplit=1)) for line in kept.replace("\\\n", "").splitlines()]  # type: ignore[misc]


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    return instructions((CLUSTER / "Dockerfile").read_text())


def test_the_image_is_slim_and_runs_as_a_user(dockerfile):
    assert [text for name, text in dockerfile if name == "FROM"] == [f"{BASE} AS wheel", BASE]
    assert {name for name, _ in dockerfile} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "CMD"}
    assert ("ARG", "PYTHON=3.11") in dockerfile
    assert [text for name, text in dockerfile if name == "USER"] == ["1000:1000"]
    environment = dict(pair.split("=", 1) for name, text in dockerfile if name == "ENV" for pair in text.split())
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment  # `all` would show a pod the GPUs of others


def test_the_image_holds_no_secret(dockerfile):
    named = [word for name, text in dockerfile if name in ("ARG", "ENV") for word in text.split()]
    assert [word for word in named if re.search("TOKEN|PASSWORD|SECRET|KEY", word, re.IGNORECASE)] == ["RAY_AUTH_MODE=token"]


def test_what_the_image_copies_is_there_and_sent_to_the_builder(dockerfile):
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split("\n")
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copies = [shlex.split(text) for name, text in dockerfile if name == "COPY"]
    sources = {source for words in copies if not words[0].startswith("--from=") for source in words[:-1]}
    assert sources == sent == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "runner"}
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


@pytest.mark.parametrize("extra", ["torch", "tensorflow"])
def test_the_image_installs_one_framework_and_ray(dockerfile, tmp_path, extra):
    """The command of the Dockerfile, run here as the builder would."""
    (text,) = (text for name, text in dockerfile if name == "RUN" and "tomllib" in text)
    command = text.replace("/requirements.txt", "requirements.txt").replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    subprocess.run(["sh", "-c", command], env={**os.environ, "EXTRA": extra}, check=True, cwd=tmp_path)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == [*project["dependencies"], *optional[extra], *optional["cluster"]]


def test_commands_of_the_image_are_good_shell(dockerfile):
    for name, text in dockerfile:
        if name == "RUN":
            bash_takes(text)


# One release everywhere


def test_all_files_mean_the_pinned_ray():
    assert pinned("ray") == RAY_VERSION == version("ray")
    for file in MANIFESTS:
        text = (CLUSTER / "kuberay" / file).read_text()
        assert set(re.findall(r"rayVersion: (\S+)", text)) == {RAY_VERSION}
        assert set(re.findall(r"xfer-runner:(\S+)", text)) == {version("xfer-runner")}
    for file in LAUNCHERS:
        assert f"of Ray {RAY_VERSION}." in (CLUSTER / file).read_text()
    assert f"Ray {RAY_VERSION}" in " ".join((CLUSTER / "README.md").read_text().split())


# The README


def commands(text: str) -> Iterator[list[str]]:
    """Each `xfer …` of the README's blocks, as words."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language:
            continue
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("xfer "):
                yield shlex.split(line, comments=True)[1:]


def test_commands_of_the_readme_are_commands_of_xfer():
    found = list(commands((CLUSTER / "README.md").read_text()))
    assert {words[0] for words in found} >= {"run", "submit", "jobs", "logs", "stop"}
    with click.Context(cli) as context:
        for verb, *words in found:
            assert verb in VERBS
            command = cli.get_command(context, verb)
            assert command is not None
            command.make_context(verb, words)  # raises for an option or a value that the command does not take


def test_the_recipe_of_the_readme_is_good(tmp_path, capsys):
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```$", (CLUSTER / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(recipe)
    assert run(["check", "--shallow", str(tmp_path / "mine.yaml")]) == 0, capsys.readouterr().err


def test_links_of_the_readme_lead_somewhere():
    text = (CLUSTER / "README.md").read_text()
    places = re.findall(r"\]\(([^)]+)\)", text)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert len(places) > 10
    assert [place for place in places if place.startswith("#") and place[1:] not in anchors] == []
    assert [place for place in places if not place.startswith("#") and not (CLUSTER / place).exists()] == []
