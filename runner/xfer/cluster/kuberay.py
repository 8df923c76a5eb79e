"""A recipe as a manifest for KubeRay v1.7.0: a ConfigMap that holds recipe and plugins, and a RayJob that makes a cluster for them, runs
them there and takes the cluster away again.

The token of that cluster is made by KubeRay and stays in the Kubernetes cluster (`authOptions`). The job's command stands in a script of
the ConfigMap: KubeRay's submitter pastes an entrypoint into a shell line of its own, where quotes and '&&' would be lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from xfer.cluster.jobs import RECIPE, RUN, STOPS_WITHIN
from xfer.cluster.pack import FILES, Package, gather
from xfer.cluster.storage_drivers import folder_of
from xfer.cluster.submission import Submission, command
from xfer.data.store_faults import size_text
from xfer.errors import UsageError
from xfer.recipe.loader import Reading

RAY_VERSION = "2.60.0"  # that of constraints.txt, which the image is built with; tokens need 2.52
CONFIG_BYTES = 1_000_000  # Kubernetes takes 1 MiB for a ConfigMap
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
MOUNT = "/opt/xfer/job"
CLAIM = "xfer-storage"
HEAD = {"cpu": "2", "memory": "8Gi"}
WORKER = {"cpu": "4", "memory": "16Gi"}
KEPT_SECONDS = 3600  # pods and their logs after the end
PODS_RUNS = "/tmp/xfer/runs"  # a bundle on its way to an object store; the pod's own disk
LABELS = {"app.kubernetes.io/name": "xfer"}  # who may speak to the head, where a network policy asks
USER = 1000  # that of cluster/Dockerfile
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
ON_GPUS = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}
SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a person can read the recipe in the manifest; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def gather_for_config_map(reading: Reading) -> Package:
    """The package of a recipe; raises UsageError where it is too large."""
    package = gather(reading)
    if package.bytes > CONFIG_BYTES:
        raise UsageError(
            f"recipe and plugins have {size_text(package.bytes)}, more than the {size_text(CONFIG_BYTES)} that a ConfigMap holds"
        )
    return package


def manifest(
    sent: Submission, package: Package, overrides: tuple[str, ...], *, run_id: str, image: str | None = None, namespace: str | None = None
) -> str:
    """Both documents as YAML. Raises UsageError where the bundle would be lost with the pods."""
    if sent.storage is None:
        raise UsageError(
            "a RayJob's pods are deleted at its end, and the bundle with them, for cluster.storage is not set",
            hint=f"--storage /mnt/xfer mounts the volume claim '{CLAIM}' there; --storage s3://bucket/xfer needs no volume",
        )
    if namespace is not None and not NAMESPACE.fullmatch(namespace):
        raise UsageError(f"--namespace {namespace}: must be small letters, digits and '-', at most 63, with a letter or digit at both ends")
    name = job_name(sent.name, run_id)
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": LABELS}
    script = f"# What the job runs.\ncd {MOUNT}\n{command(sent.options(runs=PODS_RUNS, run_id=run_id), package.recipe, overrides)}\n"
    keys = {f"file-{index}": file for index, file in enumerate(package.files)}
    texts = {key: package.files[file].read_text(encoding="utf-8-sig") for key, file in keys.items()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"job.sh": script, **texts}}
    items = [{"key": "job.sh", "path": "job.sh"}, *({"key": key, "path": f"{FILES}/{file}"} for key, file in keys.items())]
    volumes: list[dict[str, Any]] = [{"name": "job", "configMap": {"name": name, "items": items}}]
    mounts: list[dict[str, Any]] = [{"name": "job", "mountPath": MOUNT, "readOnly": True}]
    if (folder := folder_of(sent.storage)) is not None:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": CLAIM}})
        mounts.append({"name": "storage", "mountPath": _mount_path(folder)})
    pod = _Pod(image or f"xfer-runner:{version('xfer-runner')}", volumes, mounts)
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": _job(sent, package, pod)}
    documents = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200) for each in (config, job)]
    return _header(sent, pod.image, name, namespace) + "---\n".join(documents)


def _mount_path(folder: Path) -> str:
    """Where the volume goes; raises UsageError for what Kubernetes, or the job's own volume, has no room for."""
    if ":" in str(folder) or folder == Path("/") or folder.is_relative_to(MOUNT) or Path(MOUNT).is_relative_to(folder):
        raise UsageError(f"cluster.storage: no volume can be mounted at {folder}: take a folder of its own, such as /mnt/xfer")
    return str(folder)


def job_name(name: str, run_id: str) -> str:
    """A name that Kubernetes takes, no longer than KubeRay's 47 characters.

    >>> job_name("Flowers ResNet_18!", "20261124-183201-ab12"), job_name("18", "20261124-183201-ab12")
    ('flowers-resnet-18-20261124-183201-ab12', 'xfer-18-20261124-183201-ab12')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"xfer-{plain}".strip("-")
    return f"{plain[: 46 - len(run_id)].strip('-')}-{run_id}"


class _Pod:
    """What all pods of the job have in common."""

    def __init__(self, image: str, volumes: list[dict[str, Any]], mounts: list[dict[str, Any]]) -> None:
        self.image, self.volumes, self.mounts = image, volumes, mounts

    def template(self, name: str, resources: Mapping[str, str], *, on_gpus: bool = False) -> dict[str, Any]:
        container = {
            "name": name,
            "image": self.image,
            "securityContext": SECURITY,
            "resources": {"requests": dict(resources), "limits": dict(resources)},
            "volumeMounts": self.mounts,
        }
        return self._around(container, volumes=self.volumes, **(ON_GPUS if on_gpus else {}))

    def submitter(self) -> dict[str, Any]:
        """The pod that hands the job to the head and shows its log."""
        resources = {"requests": {"cpu": "200m", "memory": "500Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
        return self._around({"name": "ray-job-submitter", "image": self.image, "securityContext": SECURITY, "resources": resources})

    def _around(self, container: dict[str, Any], **more: Any) -> dict[str, Any]:
        spec = {"restartPolicy": "Never", "securityContext": POD_SECURITY, "containers": [container], **more}
        return {"metadata": {"labels": LABELS}, "spec": spec}


def _job(sent: Submission, package: Package, pod: _Pod) -> dict[str, Any]:
    gpus = _gpus(sent)
    fewest, most = (_pods(n_workers, gpus) for n_workers in sent.workers)
    worker = {**WORKER, **({"nvidia.com/gpu": str(math.ceil(gpus))} if gpus else {})}
    group = {
        "groupName": "workers",
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": pod.template("ray-worker", worker, on_gpus=gpus > 0),
    }
    cluster = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        **({"enableInTreeAutoscaling": True, "autoscalerOptions": {"securityContext": SECURITY}} if most > fewest else {}),
        # No worker of a run, and no job that asks for resources, is put beside the head's own processes.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod.template("ray-head", HEAD)},
        "workerGroupSpecs": [group],
    }
    takes = {} if sent.is_spread else {"entrypointNumCpus": float(WORKER["cpu"]), **({"entrypointNumGpus": gpus} if gpus else {})}
    return {
        "entrypoint": f"sh {MOUNT}/job.sh",
        **takes,
        "metadata": {RECIPE: package.recipe, RUN: sent.name},
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": dict(STOPS_WITHIN)}),
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": pod.submitter(),
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "rayClusterSpec": cluster,
    }


def _gpus(sent: Submission) -> float:
    """GPUs of a worker; there is no cluster yet to ask, so 'auto' is one."""
    return 1.0 if sent.gpus_per_worker is None else sent.gpus_per_worker


def _pods(n_workers: int, gpus: float) -> int:
    """Workers that take a part of a GPU share pods, as many as its GPU and its CPUs hold.

    >>> _pods(4, 0.5), _pods(3, 0.6), _pods(8, 0.125), _pods(4, 2.0), _pods(4, 0.0)
    (2, 3, 2, 4, 4)
    """
    return math.ceil(n_workers / min(int(1 / gpus + 1e-9), int(WORKER["cpu"]))) if 0 < gpus < 1 else n_workers


def _header(sent: Submission, image: str, name: str, namespace: str | None) -> str:
    where = f" --namespace {namespace}" if namespace else ""
    lines = [
        f"{sent.name} as a RayJob for KubeRay v1.7.0, written by xfer submit --kuberay.",
        f"Submit it:  kubectl apply --server-side{where} -f THIS_FILE",
        f"Follow it:  kubectl logs{where} --follow --selector=job-name={name}",
        f"Stop it:    kubectl delete rayjob,configmap{where} {name}",
        f"It needs the image {image}, and data and weights where the image's processes find them.",
    ]
    if sent.storage is not None and folder_of(sent.storage) is not None:
        lines.append(f"It needs a PersistentVolumeClaim '{CLAIM}' that all pods may mount (ReadWriteMany): the bundle goes there.")
    if sent.gpus_per_worker is None:
        lines.append("The recipe leaves gpus_per_worker open: one GPU a worker. For none, write --gpus-per-worker 0.")
    return "".join(f"# {line}\n" for line in lines)
