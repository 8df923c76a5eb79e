"""Runs on a cluster before a recipe is queued there, and says what it finds as one line of JSON.

Its text travels with the job, because xfer itself may be missing there: it imports the standard library and ray only, and runs on
Pythons that xfer does not support. What only xfer can tell of a node (is the recipe good there, are data, weights and storage
reached) it asks of `xfer.cluster.node_check`, in a process of the node's own Python.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "xfer-preflight: "  # the line that holds the report begins so
XFER = "xfer-runner"
NODE_SECONDS = 180  # a node imports the recipe's framework for the first time


def main(folder: str) -> None:
    """Look around with the request that lies in `folder`, beside the recipe's files, and print the report."""
    folder = os.path.abspath(folder)  # Ray may go elsewhere when it connects
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)
    report: dict[str, Any] = {"nodes": [], "error": None}
    report["runs"] = os.environ.get("XFER_RUNS") or os.path.join(os.path.expanduser("~"), "xfer", "runs")
    own = versions(request["packages"])
    try:
        import ray

        ray.init(address="auto", log_to_driver=False, configure_logging=False)
    except ImportError:
        report.update(nodes=[own], error=f"{own['executable']}, the python3 that jobs find there, has no ray")
    except (RuntimeError, ConnectionError, ValueError) as error:
        report.update(nodes=[own], error=" ".join(str(error).split()))
    else:
        report["nodes"] = look(ray, request, folder, own)
    print("\n" + MARK + json.dumps(report), flush=True)


def versions(packages: list[str]) -> dict[str, Any]:
    """The Python that runs this, and the releases of the packages; None where one is missing."""
    found: dict[str, Any] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {"python": platform.python_version(), "executable": sys.executable, "packages": found, "check": None, "error": None}


def look(ray: Any, request: dict[str, Any], folder: str, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Every living node: where it is, what it has and has free; of those that the run may use also versions and check."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    here = ray.get_runtime_context().get_node_id()
    nodes = []
    for each in ray.nodes():
        if each["Alive"]:
            resources = [counted(each["Resources"]), counted(free.get(each["NodeID"], {}))]
            nodes.append({"id": each["NodeID"], "address": each["NodeManagerAddress"], "total": resources[0], "free": resources[1]})
    gpus = request["gpus_per_worker"]
    if gpus is None:
        gpus = 1 if any(node["total"]["GPU"] >= 1 for node in nodes) else 0
    used = [node for node in nodes if node["total"]["CPU"] >= 1 and node["total"]["GPU"] >= gpus]
    for node in nodes:
        node["used"] = node in used or (node["id"] == here and (request["is_spread"] or not used))
    mark = None
    for node in nodes:
        if node["id"] == here and node["used"]:
            node.update(own, **checked(request, folder, own, mark=None))
            mark = (node["check"] or {}).get("mark")
    others = [node for node in nodes if node["used"] and node["id"] != here]
    ask(ray, request, others, mark)
    if mark:
        checked({**request, "remove_mark": mark}, folder, own, mark=None)
    return nodes


def counted(resources: dict[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}


def ask(ray: Any, request: dict[str, Any], nodes: list[dict[str, Any]], mark: str | None) -> None:
    """The other nodes look at themselves, all at once, in a task that is bound to each."""
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(look_at_yourself)
    asked = []
    for node in nodes:
        bound = task.options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["id"], soft=False))
        asked.append(bound.remote(request, mark))
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=NODE_SECONDS) if asked else ([], [])
    for node, reference in zip(nodes, asked):  # noqa: B905 - strict= came with Python 3.10
        if reference not in ready:
            node["error"] = f"no answer within {NODE_SECONDS} seconds"
            continue
        try:
            node.update(ray.get(reference))
        except RayError as error:
            node["error"] = str(error).strip().splitlines()[-1]


def look_at_yourself(request: dict[str, Any], mark: str | None) -> dict[str, Any]:
    """As a Ray task, whose working directory is the job's package."""
    own = versions(request["packages"])
    return {**own, **checked(request, os.getcwd(), own, mark=mark)}


def checked(request: dict[str, Any], folder: str, own: dict[str, Any], mark: str | None) -> dict[str, Any]:
    """What xfer says of this node; nothing where it is not the xfer that asked."""
    if own["packages"].get(XFER) != request["xfer"]:
        return {}
    text = json.dumps({**request, "mark": mark})
    command = [sys.executable, "-P", "-m", "xfer.cluster.node_check"]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, cwd=Path(folder) / "files", timeout=NODE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"the check of the recipe did not end: {error}"}
    try:
        return {"check": json.loads(done.stdout.splitlines()[-1])}
    except (IndexError, ValueError):
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"error": f"the check of the recipe failed: {last}"}


if __name__ == "__main__":
    main(sys.argv[1])
