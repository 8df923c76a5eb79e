"""One rank of a team, as a launcher starts it, but without Ray: `python one_rank.py BUNDLE RANK SIZE PORT [NTH STOP-FILE]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from xfer import plugins
from xfer.cluster.shared_store import opener
from xfer.engine.bundle import Bundle, Follower
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.plan.plan import Plan


def main(folder: Path, rank: int, size: int, ports: list[int]) -> None:
    plan = Plan.read(folder / "plan.json")
    if plan.backend == "torch":
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    else:
        workers = [f"127.0.0.1:{port}" for port in ports]
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
    backend = plugins.load(plugins.find("backends", plan.backend).target)()
    team = backend.join(rank, size, device="cpu", threads=1)
    bundle = Follower(folder, plan) if rank else Bundle(folder)
    Run(bundle, reporter=Silent(), stop=lambda: False, team=team, backend=backend, open_store=opener(None, rank=rank, size=size)).execute()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [int(port) for port in sys.argv[4].split(",")])
