"""Before a recipe is queued on a cluster: a tiny job looks around there, and what does not fit is said at once, all of it."""

from __future__ import annotations

import json
import math
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from xfer.cluster.jobs import PREFLIGHT, Jobs
from xfer.cluster.pack import Package, write
from xfer.cluster.probe import MARK, NODE_SECONDS, XFER, versions
from xfer.cluster.seats import room
from xfer.errors import RecipeError, XferError

SCRIPT = "xfer_probe.py"
FRAMEWORKS = {"torch": ("torch", "torchvision", "timm"), "tensorflow": ("tensorflow", "keras")}
LIMIT_SECONDS = 2.0 * NODE_SECONDS + 120  # the job's own node looks first, then all others at once; each may take that long
RELATIVE = "data and weights don't travel with a job: name them by an absolute path that its nodes have, a URL, or pkg://package/file"


@dataclass(frozen=True)
class Wanted:
    """What a run asks of a cluster: `workers` are the fewest that will do, `is_spread` says that they run beside the job rather than in
    it, `gpus_per_worker` is None where every worker takes one if there are any, and `startup_seconds` is what the cluster has to grow."""

    recipe: str
    overrides: tuple[str, ...] = ()
    workers: int = 1
    is_spread: bool = False
    gpus_per_worker: float | None = None
    storage: str | None = None
    backend: str | None = None
    startup_seconds: float = 0.0


@dataclass(frozen=True)
class Found:
    """What a cluster has for it: a folder for bundles, and what one worker takes where it runs alone (0 GPUs where there are none)."""

    runs: str
    cpus: float
    gpus: float


def preflight(jobs: Jobs, package: Package, wanted: Wanted, *, warn: Callable[[str], None]) -> Found:
    """Raises RecipeError with a line for each thing that does not fit; what may be no harm goes to `warn`."""
    here = local_versions(wanted)
    report = _ask(jobs, package, wanted, xfer=here[XFER])
    problems, warnings = judge(report, wanted, here=here)
    for text in warnings:
        warn(text)
    if problems:
        raise RecipeError("\n".join(problems))
    return take_share(report, wanted)


def local_versions(wanted: Wanted) -> dict[str, str]:
    """The releases here that the cluster's are compared with. A recipe can be submitted from where its framework is not installed."""
    own = versions(_packages(wanted))
    return {"python": own["python"], **{name: release for name, release in own["packages"].items() if release is not None}}


def _packages(wanted: Wanted) -> list[str]:
    return ["ray", XFER, *FRAMEWORKS.get(wanted.backend or "", ())]


def _ask(jobs: Jobs, package: Package, wanted: Wanted, *, xfer: str) -> dict[str, Any]:
    """The probe's report; `xfer` is the release here. Raises XferError where the job that looks around does not get to its end."""
    is_shared = wanted.is_spread and wanted.storage is not None
    request = {**asdict(wanted), "is_shared": is_shared, "xfer": xfer, "packages": _packages(wanted)}
    script = files("xfer.cluster").joinpath("probe.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        write(package, Path(folder), beside={SCRIPT: script, "request.json": json.dumps(request)})
        job = jobs.submit(shlex.join(["python3", SCRIPT, "."]), folder=Path(folder), metadata={PREFLIGHT: wanted.recipe})
    ended = None
    try:
        ended = jobs.wait(job, seconds=LIMIT_SECONDS)
        log = jobs.log(job) if ended.host else ""
    finally:
        if ended is None or not ended.has_ended:
            jobs.stop(job)
    reports = [line.removeprefix(MARK) for line in log.splitlines() if line.startswith(MARK)]
    if reports:
        return dict(json.loads(reports[-1]))
    if not ended.has_ended:
        raise XferError(f"the job that looks around on the cluster did not end within {LIMIT_SECONDS:.0f} seconds; {job} was stopped")
    last = next((line for line in reversed(log.splitlines()) if line.strip()), ended.reason)
    raise XferError(f"the job that looks around on the cluster failed: {last}")


def judge(report: dict[str, Any], wanted: Wanted, *, here: dict[str, str]) -> tuple[list[str], list[str]]:
    """What does not fit, and what may be no harm; one sentence each."""
    if report["error"]:
        return [f"cluster: {report['error']}; start Ray there from an environment that has xfer"], []
    nodes = report["nodes"]
    used = [node for node in nodes if node["used"]]
    by_node = _By(used)
    warnings = _By(used)
    for node in used:
        if node.get("error"):
            by_node.add(node, node["error"])
        elif node["packages"].get(XFER) != here[XFER]:
            by_node.add(node, _xfer_differs(node, here[XFER]))
        for name, theirs, ours in _other_versions(node, here):
            warnings.add(node, f"{name} {theirs} is there and {ours} here")
        check = node.get("check") or {}
        for fault in [*check.get("faults", ()), *filter(None, [check.get("storage")])]:
            by_node.add(node, fault)
        for download in check.get("downloads", ()):
            warnings.add(node, f"will be downloaded: {download}")
    problems = by_node.lines()
    if any((node.get("check") or {}).get("is_relative") for node in used):
        problems.append(f"  {RELATIVE}")
    if wanted.is_spread and wanted.storage is None and len(nodes) > 1:
        problems.append(
            "cluster: cluster.storage: it is not set, and workers on several nodes need one place for features and bundle; "
            "give --storage a folder that every node sees, or a URL"
        )
    short, busy = _resources(report, wanted)
    return problems + short, warnings.lines() + busy


class _By:
    """Sentences and the nodes that they hold for; what holds for all of them is said once."""

    def __init__(self, nodes: Sequence[dict[str, Any]]) -> None:
        self.n_nodes = len(nodes)
        self.found: dict[str, list[str]] = {}

    def add(self, node: dict[str, Any], text: str) -> None:
        self.found.setdefault(text, []).append(node["address"])

    def lines(self) -> list[str]:
        return [
            f"cluster: {text}" if len(nodes) == self.n_nodes else f"cluster, {_some(nodes)}: {text}" for text, nodes in self.found.items()
        ]


def _some(nodes: Sequence[str]) -> str:
    named = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
    return f"{'node' if len(nodes) == 1 else 'nodes'} {named}"


def _other_versions(node: dict[str, Any], here: dict[str, str]) -> list[tuple[str, str, str]]:
    """(name, there, here) of what may make a difference and need not: jobs run where they are, nothing of ours is unpickled there."""
    found = []
    python = node.get("python")
    if python is not None and python.split(".")[:2] != here["python"].split(".")[:2]:
        found.append(("Python", python, here["python"]))
    theirs = node.get("packages", {})
    found += [(name, theirs[name], ours) for name, ours in here.items() if name != XFER and theirs.get(name) not in (None, ours)]
    return found


def _xfer_differs(node: dict[str, Any], ours: str) -> str:
    theirs, python = node["packages"].get(XFER), f"{node['executable']}, Python {node['python']}"
    if theirs is None:
        return f"xfer is not installed ({python}); it needs Python 3.11 or later and pip install {XFER}=={ours}"
    return f"xfer {theirs} is there and {ours} here ({python}); install the same on both"


def _resources(report: dict[str, Any], wanted: Wanted) -> tuple[list[str], list[str]]:
    """Whether the nodes hold the workers: what is there, and what was asked."""
    nodes, gpus = report["nodes"], _gpus(report["nodes"], wanted)
    there_is = sum(_slots(node["total"], gpus) for node in nodes)
    now = sum(_slots(node["free"], gpus) for node in nodes)
    each = "1 CPU" + (f" and {gpus:g} GPU{'' if gpus <= 1 else 's'}" if gpus else "")
    asked = f"{wanted.workers} worker{'s' if wanted.workers > 1 else ''} of {each}"
    there = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} with {_sum(nodes, 'total')}"
    if there_is < wanted.workers:
        if wanted.startup_seconds:
            return [], [f"cluster: {there} are up; it has to grow for {asked}"]
        return [f"cluster: the run asks for {asked}, and there is room for {there_is}: {there}"], []
    if now < wanted.workers:
        return [], [f"cluster: the run waits for others to end: it asks for {asked}, and {_sum(nodes, 'free')} are free now"]
    return [], []


def _gpus(nodes: Sequence[dict[str, Any]], wanted: Wanted) -> float:
    """GPUs of a worker: where the recipe leaves it open, one if any node has one."""
    if wanted.gpus_per_worker is not None:
        return wanted.gpus_per_worker
    return 1.0 if any(node["total"]["GPU"] >= 1 for node in nodes) else 0.0


def _slots(resources: dict[str, float], gpus: float) -> int:
    """Workers that a node with these resources holds: none straddles two nodes."""
    return room(resources["CPU"], resources["GPU"], 1.0, gpus)


def _sum(nodes: Sequence[dict[str, Any]], key: str) -> str:
    cpus, gpus = (sum(node[key][resource] for node in nodes) for resource in ("CPU", "GPU"))
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def take_share(report: dict[str, Any], wanted: Wanted) -> Found:
    """One worker alone takes its share of a node: all of the CPUs that are free where it needs no GPU, as many as go with its GPUs where
    it does. Ray sets the number of threads by that."""
    gpus = _gpus(report["nodes"], wanted)
    fitting = [node for node in report["nodes"] if _slots(node["total"], gpus)]
    best = max(fitting, key=lambda node: (_slots(node["free"], gpus) > 0, node["free"]["CPU"]), default=None)
    cpus = 1.0
    if best is not None:
        share = best["total"]["CPU"] * (min(1.0, gpus / best["total"]["GPU"]) if gpus else 1.0)
        free = best["free"]["CPU"]
        cpus = max(1.0, math.floor(min(share, free) if free >= 1 else share))
    return Found(report["runs"], cpus, gpus)
