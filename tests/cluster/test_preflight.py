"""What is said of a cluster that a recipe does not fit on. Reports are those that the probe makes; test_submit.py has it make them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xfer.cluster import probe
from xfer.cluster.node_check import answer
from xfer.cluster.preflight import LIMIT_SECONDS, RELATIVE, Found, Wanted, judge, local_versions, take_share

HERE = {"python": "3.11.9", "ray": "2.60.0", "xfer-runner": "0.1.0", "torch": "2.14.1"}


def test_a_slow_node_is_named_before_the_whole_is_given_up():
    assert LIMIT_SECONDS > 2 * probe.NODE_SECONDS + 60


def node(
    address: str = "10.0.0.1", *, cpus: float = 8, gpus: float = 0, free: tuple[float, float] | None = None, **more: Any
) -> dict[str, Any]:
    packages = {"ray": "2.60.0", "xfer-runner": "0.1.0", "torch": "2.14.1", "timm": None, **more.pop("packages", {})}
    check = {"faults": [], "downloads": [], "storage": None, "mark": None, "is_relative": False, **more.pop("check", {})}
    total = {"CPU": cpus, "GPU": gpus}
    left = total if free is None else {"CPU": free[0], "GPU": free[1]}
    known = {"python": "3.11.2", "executable": "/usr/bin/python3", "error": None, "used": True}
    return {**known, "id": address, "address": address, "total": total, "free": left, "packages": packages, "check": check, **more}


def report(*nodes: dict[str, Any], error: str | None = None) -> dict[str, Any]:
    return {"nodes": list(nodes), "error": error, "runs": "/root/xfer/runs"}


def said(
    found: dict[str, Any], *, workers: int = 1, gpus: float | None = None, storage: str | None = "/mnt", **more: Any
) -> tuple[list[str], list[str]]:
    wanted = Wanted("r.yaml", workers=workers, is_spread=workers > 1, gpus_per_worker=gpus, storage=storage, backend="torch", **more)
    return judge(found, wanted, here=HERE)


def test_a_cluster_that_fits():
    assert said(report(node(), node("10.0.0.2"))) == ([], [])


def test_all_problems_come_at_once_and_what_holds_everywhere_is_said_once():
    fault = "r.yaml:2:10: source.model: torch is not installed; pip install 'xfer-runner[torch]'"
    absent = "r.yaml:3:10: target.path: no file or folder /mnt/flowers"
    one = node(check={"faults": [fault], "storage": "cluster.storage: /mnt: it can't be written: permission denied"})
    two = node("10.0.0.2", check={"faults": [fault, absent]})
    assert said(report(one, two), workers=32) == (
        [
            f"cluster: {fault}",
            "cluster, node 10.0.0.1: cluster.storage: /mnt: it can't be written: permission denied",
            f"cluster, node 10.0.0.2: {absent}",
            "cluster: the run asks for 32 workers of 1 CPU, and there is room for 16: 2 nodes with 16 CPUs and 0 GPUs",
        ],
        [],
    )


def test_a_relative_path_gets_its_next_step():
    fault = "r.yaml:3:10: target.path: no file or folder the job's folder/data"
    assert said(report(node(check={"faults": [fault], "is_relative": True})))[0] == [f"cluster: {fault}", f"  {RELATIVE}"]
    assert RELATIVE == (
        "data and weights don't travel with a job: name them by an absolute path that its nodes have, a URL, or pkg://package/file"
    )


def test_no_ray_for_jobs():
    found = report(error="/usr/bin/python3, the python3 that jobs find there, has no ray")
    assert said(found)[0] == [
        "cluster: /usr/bin/python3, the python3 that jobs find there, has no ray; start Ray there from an environment that has xfer"
    ]


def test_xfer_is_missing_or_another():
    missing = node(packages={"xfer-runner": None}, check={}, python="3.10.1")
    assert said(report(missing))[0] == [
        "cluster: xfer is not installed (/usr/bin/python3, Python 3.10.1); it needs Python 3.11 or later and pip install xfer-runner==0.1.0"
    ]
    assert said(report(node(), node("10.0.0.2", packages={"xfer-runner": "0.0.9"})))[0] == [
        "cluster, node 10.0.0.2: xfer 0.0.9 is there and 0.1.0 here (/usr/bin/python3, Python 3.11.2); install the same on both"
    ]


def test_other_versions_are_only_warned_of():
    other = node(packages={"torch": "2.6.0", "ray": "2.55.0"}, python="3.12.1")
    assert said(report(other)) == (
        [],
        [
            "cluster: Python 3.12.1 is there and 3.11.9 here",
            "cluster: ray 2.55.0 is there and 2.60.0 here",
            "cluster: torch 2.6.0 is there and 2.14.1 here",
        ],
    )


def test_a_node_that_does_not_answer():
    silent = {**node("10.0.0.2"), "error": "no answer within 180 seconds", "check": None}
    assert said(report(node(), silent))[0] == ["cluster, node 10.0.0.2: no answer within 180 seconds"]


def test_many_nodes_are_counted():
    bad = [node(f"10.0.0.{number}", check={"faults": ["r.yaml: x"]}) for number in range(5)]
    assert said(report(node("10.0.1.1"), *bad))[0] == ["cluster, nodes 10.0.0.0, 10.0.0.1, 10.0.0.2 and 2 more: r.yaml: x"]


def test_downloads_are_told():
    found = report(node(check={"downloads": ["the weights, from https://data.example/w.pth"]}))
    assert said(found) == ([], ["cluster: will be downloaded: the weights, from https://data.example/w.pth"])


def test_workers_on_several_nodes_need_storage():
    sentence = (
        "cluster: cluster.storage: it is not set, and workers on several nodes need one place for features and bundle; "
        "give --storage a folder that every node sees, or a URL"
    )
    assert said(report(node(), node("10.0.0.2")), workers=2, storage=None)[0] == [sentence]
    assert said(report(node()), workers=2, storage=None)[0] == []
    assert said(report(node(), node("10.0.0.2")), storage=None)[0] == []


class TestResources:
    def test_no_worker_straddles_two_nodes(self):
        found = report(node(gpus=3), node("10.0.0.2", gpus=3))
        assert said(found, workers=2, gpus=2) == ([], [])
        assert said(found, workers=3, gpus=2)[0] == [
            "cluster: the run asks for 3 workers of 1 CPU and 2 GPUs, and there is room for 2: 2 nodes with 16 CPUs and 6 GPUs"
        ]

    def test_a_worker_takes_a_gpu_where_there_are_any(self):
        assert said(report(node(gpus=1)), workers=2)[0] == [
            "cluster: the run asks for 2 workers of 1 CPU and 1 GPU, and there is room for 1: 1 node with 8 CPUs and 1 GPUs"
        ]
        assert said(report(node(gpus=1)), workers=2, gpus=0.5) == ([], [])
        assert said(report(node(gpus=1)), workers=2, gpus=0) == ([], [])

    def test_what_others_use_is_waited_for(self):
        assert said(report(node(gpus=2, free=(8, 0)))) == (
            [],
            ["cluster: the run waits for others to end: it asks for 1 worker of 1 CPU and 1 GPU, and 8 CPUs and 0 GPUs are free now"],
        )

    def test_a_cluster_that_has_time_to_grow_may_be_small_now(self):
        head = node(cpus=0)
        assert said(report(head), workers=4, gpus=1, startup_seconds=60) == (
            [],
            ["cluster: 1 node with 0 CPUs and 0 GPUs are up; it has to grow for 4 workers of 1 CPU and 1 GPU"],
        )
        assert len(said(report(head), workers=4, gpus=1)[0]) == 1

    @pytest.mark.parametrize(
        ("nodes", "gpus", "takes"),
        [
            ([node(cpus=8)], None, (8, 0)),
            ([node(cpus=8, free=(3.5, 0))], None, (3, 0)),
            ([node(cpus=8, free=(0, 0))], None, (8, 0)),
            ([node(cpus=2), node("10.0.0.2", cpus=64)], None, (64, 0)),
            ([node(cpus=64), node("10.0.0.2", cpus=32, gpus=8)], None, (4, 1)),
            ([node(cpus=64), node("10.0.0.2", cpus=32, gpus=8, free=(2, 8))], None, (2, 1)),
            ([node(cpus=32, gpus=8)], 0.0, (32, 0)),
            ([node(cpus=32, gpus=8)], 4.0, (16, 4)),
            ([node(cpus=0)], None, (1, 0)),
        ],
    )
    def test_one_worker_takes_its_share_of_a_node(self, nodes, gpus, takes):
        assert take_share(report(*nodes), Wanted("r.yaml", gpus_per_worker=gpus)) == Found("/root/xfer/runs", *takes)


class TestTheProbe:
    def test_it_needs_nothing_but_python_and_ray(self):
        tree = ast.parse(Path(probe.__file__).read_text())
        imported = {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
        imported |= {each.module or "" for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
        roots = {name.partition(".")[0] for name in imported} - {"ray", "__future__"}
        assert roots <= sys.stdlib_module_names

    def test_where_there_is_no_ray_it_says_so(self, tmp_path):
        (tmp_path / "request.json").write_text(json.dumps({"packages": ["ray", "xfer-runner"]}))
        done = subprocess.run(
            [sys.executable, "-I", "-S", probe.__file__, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={"HOME": "/home/me"},
        )
        found = json.loads(done.stdout.splitlines()[-1].removeprefix(probe.MARK))
        assert found["error"] == f"{sys.executable}, the python3 that jobs find there, has no ray"
        assert found["nodes"][0]["packages"] == {"ray": None, "xfer-runner": None}
        assert found["runs"] == "/home/me/xfer/runs"

    def test_a_check_that_fails_is_told_by_its_last_line(self, tmp_path):
        (tmp_path / "files").mkdir()
        own = probe.versions([probe.XFER])
        request = {"xfer": own["packages"][probe.XFER], "storage": None}  # no recipe
        assert probe.checked(request, str(tmp_path), own, mark=None) == {"error": "the check of the recipe failed: KeyError: 'recipe'"}

    def test_another_xfer_is_not_asked(self, tmp_path):
        assert probe.checked({"xfer": "0.0.9"}, str(tmp_path), probe.versions([probe.XFER]), mark=None) == {}


RECIPE = """\
source: {model: torchvision/squeezenet1_1, weights: none}
target: {dataset: arrays, path: data.npz, image_size: 32}
transfer: {type: feature}
"""


class TestTheCheckOfANode:
    @pytest.fixture
    def request_(self, tmp_path, monkeypatch) -> dict[str, Any]:
        (tmp_path / "job").mkdir()
        monkeypatch.chdir(tmp_path / "job")
        Path("r.yaml").write_text(RECIPE)
        return {"recipe": "r.yaml", "overrides": ["seed=1"], "storage": None, "is_shared": False, "mark": None}

    def test_data_that_stayed_at_home(self, request_):
        found = answer(request_)
        assert found["faults"] == ["r.yaml:2:27: target.path: path: no file or folder the job's folder/data.npz"]
        assert found["is_relative"] is True

    def test_all_is_there(self, request_, tmp_path):
        images = np.zeros((12, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 2)
        request_.update(overrides=[f"target.path={tmp_path / 'data.npz'}"], storage=str(tmp_path / "storage"))
        assert answer(request_) == {"storage": None, "mark": None, "faults": [], "is_relative": False, "downloads": []}

    def test_nodes_must_see_the_same_storage(self, request_, tmp_path):
        here, there = tmp_path / "here", tmp_path / "there"
        request_.update(storage=str(here), is_shared=True, recipe="absent.yaml")
        mark = answer(request_)["mark"]
        assert answer({**request_, "mark": mark})["storage"] is None
        assert answer({**request_, "mark": mark, "storage": str(there)})["storage"] == (
            f"cluster.storage: {there} is another place on this node: what the head wrote there is not to be seen"
        )
        answer({**request_, "remove_mark": mark})
        assert list(here.iterdir()) == []

    def test_storage_that_can_t_be_written(self, request_, tmp_path):
        (tmp_path / "file").touch()
        request_.update(storage=str(tmp_path / "file" / "storage"))
        assert answer(request_)["storage"].startswith(f"cluster.storage: {tmp_path}/file/storage: ")


def test_what_is_compared_is_what_is_installed_here():
    assert set(local_versions(Wanted("r.yaml", backend="torch"))) == {"python", "ray", "xfer-runner", "torch", "torchvision", "timm"}
    assert set(local_versions(Wanted("r.yaml", backend=None))) == {"python", "ray", "xfer-runner"}
