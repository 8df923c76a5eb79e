"""How a recipe and the command line become the job's command, and what is looked at before it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from xfer.cli.conventions import in_the_recipe
from xfer.cluster.preflight import Found, Wanted
from xfer.cluster.submission import Submission, command, submission, take
from xfer.errors import RecipeError, UsageError
from xfer.recipe.loader import read

RECIPE = """\
name: flowers
source: {model: file:/mnt/models/pets.keras}
target: {dataset: folder, path: /mnt/data, image_size: 32}
transfer: {type: feature}
"""


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)

    def of(*overrides: str, recipe: str = RECIPE, **options: object) -> Submission:
        Path("r.yaml").write_text(recipe)
        return submission(read("r.yaml", overrides + in_the_recipe(**options)))

    return of


def options(found: Submission) -> str:
    return " ".join(found.options(runs="/root/xfer/runs", run_id="1"))


def test_one_worker_needs_no_ray_and_leaves_its_bundle_outside_the_job_s_folder(sent):
    assert options(sent()) == "--out /root/xfer/runs/flowers/1"
    assert options(sent(workers=1, gpus_per_worker=1.0)) == "--out /root/xfer/runs/flowers/1"
    assert options(sent("cluster.storage=/mnt/xfer")) == "--out /mnt/xfer/runs/flowers/1"
    assert options(sent(storage="/mnt/xfer/")) == "--out /mnt/xfer/runs/flowers/1"


def test_a_bundle_is_brought_to_a_url_from_where_the_job_runs(sent):
    assert options(sent(storage="s3://b/xfer")) == "--address auto --out /root/xfer/runs/flowers/1"  # the recipe says the rest


def test_several_workers_join_the_job_s_cluster(sent):
    here = "--out /root/xfer/runs/flowers/1"
    assert options(sent(workers=4)) == f"--address auto {here}"
    assert options(sent("cluster.workers=4", storage="/mnt")) == "--address auto --out /mnt/runs/flowers/1"


def test_the_command_line_overrules_the_recipe(sent):
    found = sent("cluster.workers=4", "cluster.storage=/mnt/a", workers=2, storage="/mnt/b", gpus_per_worker=0.0)
    assert (found.workers, found.storage, found.gpus_per_worker) == ((2, 2), "/mnt/b", 0.0)
    assert options(sent("cluster.address=head:6379", workers=1)) == "--address auto --out /root/xfer/runs/flowers/1"


def test_what_no_cluster_can_do_is_said_before_anything_leaves(sent):
    with pytest.raises(RecipeError) as caught:
        sent(workers=64, recipe=RECIPE.replace("file:/mnt/models/pets.keras", "torchvision/squeezenet1_1"))
    expected = "command line: cluster.workers=64: 64 workers can't share batches of 32 images (target.batch_size)"
    assert caught.value.message.splitlines() == [expected]


def test_what_the_preflight_is_asked(sent):
    assert sent().wanted("r.yaml", ()) == Wanted("r.yaml", backend="tensorflow")
    elastic = sent("cluster.workers={min: 1, max: 8}", "cluster.gpus_per_worker=2.0", storage="/mnt")
    assert elastic.wanted("r.yaml", ("a=b",)) == Wanted("r.yaml", ("a=b",), 1, True, 2.0, "/mnt", "tensorflow")
    assert sent("runtime.device=cpu").wanted("r.yaml", ()).gpus_per_worker == 0.0


def test_what_the_job_takes():
    assert take(Found("/runs", 8, 1), is_spread=False) == (8, 1)
    assert take(Found("/runs", 8, 1), is_spread=True) == (0, 0)


def test_the_command_is_quoted_and_takes_the_shell_s_place():
    found = command(["--out", "/mnt/my runs/1"], "re cipes/r.yaml", ("head.hidden=[1, 2]", "name='$HOME; rm x'"))
    assert found == (
        "cd files && exec python3 -P -m xfer.cli run --out '/mnt/my runs/1' 're cipes/r.yaml' 'head.hidden=[1, 2]' "
        """'name='"'"'$HOME; rm x'"'"''"""
    )


def test_all_faults_of_the_recipe_come_before_anything_leaves(sent):
    with pytest.raises(RecipeError) as caught:
        sent("optimizer.lrr=1", recipe=RECIPE + "sead: 1\n")
    assert caught.value.message.splitlines() == [
        "r.yaml:5:1: sead: unknown key; did you mean 'seed'?",
        "command line: optimizer.lrr=1: unknown key; did you mean 'lr'?",
    ]


def test_a_source_that_only_the_cluster_has_is_looked_for_there(sent):
    assert sent().backend == "tensorflow"
    assert sent(recipe=RECIPE.replace("file:/mnt/models/pets.keras", "run:/mnt/xfer/runs/pets/1")).backend is None


def test_what_can_be_told_of_the_model_from_here_is_told_from_here(sent):
    with pytest.raises(RecipeError) as caught:
        sent("freeze=[{train: layer5}]", recipe=RECIPE.replace("file:/mnt/models/pets.keras", "torchvision/squeezenet1_1"))
    assert "no group matches 'layer5'" in caught.value.message


def test_storage_that_every_node_would_take_for_another_place(sent):
    with pytest.raises(UsageError) as caught:
        sent(storage="shared/xfer")
    assert caught.value.message == "cluster.storage: 'shared/xfer' must be an absolute path that every node has, or a URL"
    with pytest.raises(UsageError) as caught:
        sent(storage="s3://key:hunter2@bucket/xfer")
    assert caught.value.message == "cluster.storage: the address holds a password, and a job's command is printed and kept"
    assert caught.value.hint == "leave it out: storage libraries find credentials in the environment or in their own settings"
