from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xfer.recipe.loader import Reading

Read = Callable[..., Reading]
PHASES = "freeze:\n  - {train: head, epochs: 2}\n  - {train: all}\n"


def at(reading: Reading, *keys: str | int) -> Any:
    assert [str(fault) for fault in reading.faults] == []
    value: Any = reading.resolved
    for key in keys:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("optimizer.lr=3e-4", ("optimizer", "lr"), 3e-4),
        ("optimizer.lr = 3e-4 ", ("optimizer", "lr"), 3e-4),
        ("freeze.0.epochs=5", ("freeze", 0, "epochs"), 5),
        ("freeze[1].epochs=5", ("freeze", 1, "epochs"), 5),
        ("freeze.1.until.patience=3", ("freeze", 1, "until", "patience"), 3),
        ("freeze={policy: gradual, every: 2}", ("freeze", "every"), 2),
        ("freeze=null", ("freeze",), None),
        ("head.hidden=[1024, 512]", ("head", "hidden"), [1024, 512]),
        ("head={dropout: 0.5}", ("head", "dropout"), 0.5),
        ("source.weights=none", ("source", "weights"), "none"),
        ("source.weights.path=a.pth", ("source", "weights", "path"), "a.pth"),
        ("target.augment.views=4", ("target", "augment", "views"), 4),
        ("cluster.workers={min: 1, max: 4}", ("cluster", "workers", "max"), 4),
        ("transfer.student.model=timm/resnet10t", ("transfer", "student", "model"), "timm/resnet10t"),
        ("target.root=data", ("target", "root"), "data"),
        ("target.columns.label=kind", ("target", "columns", "label"), "kind"),
        ("target.path=*.jpg", ("target", "path"), "*.jpg"),
        ("target.path=a: b # c", ("target", "path"), "a: b # c"),
        ("target.path='5'", ("target", "path"), "5"),
        ("target.path=''", ("target", "path"), ""),
        ("target.path=x=y", ("target", "path"), "x=y"),
        ("name=123", ("name",), "123"),
        ("name=no", ("name",), "no"),
        ("runtime.checkpoint=100", ("runtime", "checkpoint"), 100),
        ("sweep.samples=4", ("sweep", "samples"), 4),
        ("sweep.space[head.dropout]={uniform: [0, 0.5]}", ("sweep", "space", "head.dropout", "uniform"), [0, 0.5]),
    ],
)
def test_values(reading: Read, base: str, override: str, keys: tuple[str | int, ...], value: object) -> None:
    found = at(reading(base + PHASES, override), *keys)
    assert found == value
    assert type(found) is type(value)


def test_the_last_of_several_wins(reading: Read, base: str) -> None:
    found = reading(base, "seed=-1", "seed=2", "head.dropout=2", "head={hidden: [3]}")
    assert (at(found, "seed"), at(found, "head", "hidden"), at(found, "head", "dropout")) == (2, [3], 0.0)


def test_an_override_heals_what_was_wrong(reading: Read, base: str) -> None:
    found = reading(base + "seed: -1\noptimizer: {lr: .inf}\n" + PHASES.replace("2", "0"), "seed=1", "freeze.0.epochs=1")
    assert [str(fault) for fault in found.faults] == ["r.yaml:7:13: optimizer.lr: must be a finite number, not .inf"]


def test_of_a_required_key_that_the_file_leaves_out(reading: Read) -> None:
    found = reading("target: {dataset: folder}\n", "source.model=timm/vit_tiny_patch16_224", "transfer.type=feature")
    assert at(found, "source", "model") == "timm/vit_tiny_patch16_224"


def test_until_in_place_of_epochs(reading: Read, base: str) -> None:
    found = reading(base + PHASES, "freeze.0.until.patience=3")
    assert [str(fault) for fault in found.faults] == [
        "r.yaml:7:19: freeze[0].epochs: stands beside 'until', and only one of them can say how long the phase is; "
        "for a limit write until.max_epochs"
    ]
    found = reading(base + PHASES, "freeze.0.until.patience=3", "freeze.0.epochs=null")
    assert at(found, "freeze", 0, "epochs") is None


def test_data_holds_only_what_was_said(reading: Read, base: str) -> None:
    found = reading(base, "head.dropout=0.5", "sweep.samples=3")
    assert found.data["head"] == {"dropout": 0.5}
    assert found.data["sweep"] == {"samples": 3}
    assert "optimizer" not in found.data


def test_a_bad_option_is_blamed_on_its_override(reading: Read, base: str) -> None:
    found = reading(base, "target.batchsize=3")
    assert at(found, "target", "batchsize") == 3
    fault = found.fault("target.batchsize", "unknown key", "batch_size")
    assert str(fault) == "command line: target.batchsize=3: unknown key; did you mean 'batch_size'?"


def test_tags_and_code_in_a_value_are_text_or_faults(reading: Read, base: str) -> None:
    assert at(reading(base, "target.path=!!python/object/apply:os.getcwd []"), "target", "path") == "!!python/object/apply:os.getcwd []"
    found = reading(base, "target.path=[!!python/object/apply:os.getcwd []]", "name=${oc.env:HOME}")
    assert [str(fault) for fault in found.faults] == [
        "command line: target.path=[!!python/object/apply:os.getcwd []]: the tag !!python/object/apply:os.getcwd is not allowed; "
        "a recipe holds plain values only",
        "command line: name=${oc.env:HOME}: '${oc.env:…}' is not allowed: an interpolation names another key, such as ${target.path}; "
        "it would copy a value from outside, perhaps a secret, into the bundle",
    ]
