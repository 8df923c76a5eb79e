"""What one worker of a pool computes, without a Ray: the files and figures of a local run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xfer.cluster.extractor import Assignment, Extractor
from xfer.cluster.storage import Storage
from xfer.cluster.wanted import Wanted, wanted
from xfer.engine.bundle import Bundle
from xfer.engine.from_anywhere import from_anywhere
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.errors import InterruptedRun, UsageError
from xfer.plan.plan import Plan

VIEWS = "target.augment={policy: standard, views: 2}"
TUNED = ("transfer={type: model}", "freeze=[{train: head, epochs: 1}, {train: last 1 stages, epochs: 1}]")


def extractor(plan: Plan, *, storage: Storage | None = None, mark: str | None = None) -> Extractor:
    made = Extractor(Assignment(from_anywhere(plan).model_dump_json(), storage, mark, os.environ.get("XFER_CACHE"), None))
    made.start()
    return made


def fill(made: Extractor, plan: Plan) -> dict[str, int]:
    """Rows computed by title, in the order of `wanted`, as the pool does it."""
    bad: dict[int, str] = {}
    computed = {}
    for each in wanted(plan):
        made.open(each, made.contents(), bad)
        computed[each.title] = made.compute([shard for shard, _ in made.absent()])
        bad.update(made.bad())
    return computed


@pytest.fixture
def run_plan(tmp_path: Path) -> Callable[[Plan], dict]:
    def run(plan: Plan) -> dict:
        bundle = Bundle.create(tmp_path / "bundle", plan, recipe="", resolved="")
        return Run(bundle, reporter=Silent(), stop=lambda: False).execute()

    return run


@pytest.mark.parametrize(
    ("overrides", "titles"),
    [
        ((), ["pooled"]),
        ((VIEWS,), ["pooled", "pooled, standard view 0 on 96", "pooled, standard view 1 on 96"]),
        ((*TUNED, "target.augment=standard"), ["pooled", "canvases of 96", "features.7"]),
    ],
)
def test_a_run_finds_all_that_it_needs(make_plan, run_plan, overrides, titles):
    """Whatever of a plan can be computed before it trains is in the store then: the run itself computes nothing."""
    plan = make_plan(*overrides)
    assert [each.title for each in wanted(plan)] == titles
    assert fill(extractor(plan), plan)["pooled"] == 98
    result = run_plan(plan)
    assert result["status"] == "finished"
    assert result["data"]["computed"] == 0
    assert result["data"]["quarantined"] == 2


def test_what_earlier_phases_train_is_not_among_it(make_plan):
    plan = make_plan("transfer={type: model}", "freeze=[{train: all, epochs: 1}, {train: head, epochs: 1}]", "runtime.cache_budget=1MB")
    assert plan.phases[1].input.after_phase == 0
    assert [each.title for each in wanted(plan)] == ["pooled"]
    assert plan.phases[0].input.mode == "streamed"


def test_rows_of_a_place_that_is_asked_for_twice(make_plan):
    """Validation alone by one phase, all by another: all."""
    plan = make_plan(*TUNED, "target.augment=standard")
    rows = {each.title: each.rows for each in wanted(plan)}
    assert rows == {"pooled": "all", "canvases of 96": "train", "features.7": "evaluated"}
    made = extractor(plan)
    chosen = {each.title: each.choose(made.target) for each in wanted(plan)}
    assert len(chosen["pooled"]) == 100
    evaluated = chosen["features.7"]
    assert sorted({*chosen["canvases of 96"].tolist(), *evaluated.tolist()}) == list(range(100))


def test_shards_one_by_one_give_the_same_bytes(make_plan, tmp_path):
    """In any order, each alone: its rows stand in other batches than in a run from the first to the last."""
    plan = make_plan()
    whole = extractor(plan)
    fill(whole, plan)
    other = extractor(plan.model_copy(update={"runtime": plan.runtime.model_copy(update={"cache": str(tmp_path / "other")})}))
    other.open(Wanted(plan.baseline), other.contents(), {})
    absent = other.absent()
    assert absent == [(shard, 10) for shard in range(10)]
    order = np.random.default_rng(0).permutation(10).tolist()
    assert sum(other.compute([shard]) for shard in order) == 98
    for name in [*(f"{shard:05d}.npy" for shard in range(10)), "bad.json"]:
        files = [made.inputs.store.folder / name for made in (whole, other)]
        assert files[0] != files[1]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_it_is_heard_of_and_stops(make_plan):
    made = extractor(make_plan())
    made.open(Wanted(made.plan.baseline), made.contents(), {})
    heard = []
    whole = made.network.compute

    def compute(*arguments, **options):
        heard.append(made.heard())
        if len(heard) == 5:
            thread = threading.Thread(target=made.stop)
            thread.start()
            thread.join()
        return whole(*arguments, **options)

    made.network.compute = compute  # type: ignore[method-assign]
    with pytest.raises(InterruptedRun):
        made.compute(list(range(10)))
    assert heard[1] - heard[0] == 8
    assert len(heard) <= 6
    assert made.heard() == 0
    left = sum(rows for _, rows in made.absent())
    assert 50 <= left <= 70  # what was computed is kept


def test_a_storage_that_is_another_place_on_this_node(make_plan, tmp_path):
    """A mount that is missing here: an empty folder of this node's own has the same name."""
    mark = Storage.of(str(tmp_path / "shared")).leave_mark()
    here = Storage.of(str(tmp_path / "not mounted"))
    with pytest.raises(UsageError) as caught:
        extractor(make_plan(), storage=here, mark=mark)
    assert caught.value.message == f"cluster.storage: {here} is another place here: what was written on the head is not in it"
    assert caught.value.hint == "it must be one place for all nodes: a folder of a shared filesystem that is mounted on each, or a URL"


def test_with_a_storage_it_gives_what_its_node_has(make_plan, tmp_path):
    plan = make_plan()
    fill(extractor(plan), plan)
    storage = Storage.of(f"file://{tmp_path}/shared")
    made = extractor(plan, storage=storage, mark=storage.leave_mark())
    spec = made.open(Wanted(plan.baseline), made.contents(), {})
    assert made.absent() == []
    assert len(storage.inside("store", spec.digest).sizes()) == 10 + 1 + 2  # shards, manifest, bad rows of two shards
    assert set(made.bad().values()) == {"not an image"}
