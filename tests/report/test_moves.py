"""What is said of a phase's effect on the source is what its record says, and 'frozen' is said only where it was proven."""

from __future__ import annotations

import json

import pytest

from xfer.plan.model_map import Group, Tensor
from xfer.report import bundle_files, moves
from xfer.report.moves import furthest

AFTER_FIRST = {"layer4.0": 0.0, "layer4.1": 0.0}
AFTER_SECOND = {"layer4.0": 0.00187, "layer4.1": 0.2479}


def recorded(bundle, *changes):
    result = json.loads((bundle / "result.json").read_text())
    for phase, change in zip(result["phases"], changes, strict=False):
        phase |= change
    (bundle / "result.json").write_text(json.dumps(result))
    return bundle_files.read(bundle)


def texts(table):
    return [(name, [(cell["kind"], cell["text"]) for cell in row]) for name, row in table["rows"]]


def test_frozen_neighbours_are_one_row_and_moved_ones_a_row_each(make_bundle):
    table = moves.table(recorded(make_bundle(), {"distance": AFTER_FIRST}, {"distance": AFTER_SECOND}))
    assert texts(table) == [
        ("conv1 … layer3.1", [("frozen", "frozen"), ("frozen", "frozen")]),
        ("layer4.0", [("frozen", "frozen"), ("moved", "0.19 %")]),
        ("layer4.1", [("frozen", "frozen"), ("moved", "25 %")]),
    ]
    assert table["phases"] == ["head", "fine-tune"]
    assert table["kinds"] == {"frozen", "moved"}
    assert not table["by_stage"]
    assert [row[1]["depth"] for _, row in table["rows"]] == [0.0, pytest.approx(0.293, abs=0.001), 1.0]


def test_without_a_proof_nothing_is_called_frozen(make_bundle):
    files = recorded(make_bundle(), {"distance": AFTER_FIRST, "frozen_changed": 1}, {"distance": AFTER_SECOND, "frozen_changed": None})
    assert dict(texts(moves.table(files))) == {
        **{name: [("unknown", "–")] * 2 for name in ("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1")},
        "layer4.0": [("moved", "0 %"), ("moved", "0.19 %")],
        "layer4.1": [("moved", "0 %"), ("moved", "25 %")],
    }


def test_what_an_earlier_phase_moved_is_kept_not_frozen(make_bundle, make_plan, two_phases):
    bundle = make_bundle()
    first, second = two_phases[1].model_copy(update={"index": 0}), two_phases[0].model_copy(update={"index": 1})
    make_plan(phases=(first, second)).write(bundle / "plan.json")
    files = recorded(bundle, {"train": ["layer4.0", "layer4.1"], "distance": AFTER_SECOND}, {"train": ["head"], "distance": AFTER_SECOND})
    table = moves.table(files)
    assert texts(table)[-1] == ("layer4.1", [("moved", "25 %"), ("kept", "25 %")])
    assert table["kinds"] == {"frozen", "moved", "kept"}


def test_many_groups_are_shown_by_stage_each_by_the_one_that_moved_most(make_bundle, make_plan, two_phases, model_map):
    bundle = make_bundle()
    groups = tuple(
        Group(name=f"b{place}", stage=f"stage{place // 10}", tensors=(Tensor(name=f"b{place}.w", shape=(2,), kind="parameter"),))
        for place in range(40)
    )
    names = [group.name for group in groups]
    phases = (
        two_phases[0].model_copy(update={"frozen": tuple(f"{name}.w" for name in names)}),
        two_phases[1].model_copy(update={"train": (*names[30:], "head"), "frozen": tuple(f"{name}.w" for name in names[:30])}),
    )
    cuts = tuple(cut.model_copy(update={"groups_before": min(cut.groups_before, 40)}) for cut in model_map.cuts)
    make_plan(model=model_map.model_copy(update={"groups": groups, "cuts": cuts}), phases=phases).write(bundle / "plan.json")
    distances = {name: 0.01 * place for place, name in enumerate(names[30:], 1)}
    files = recorded(bundle, {"distance": dict.fromkeys(names[30:], 0.0)}, {"train": [*names[30:], "head"], "distance": distances})
    assert len(texts(moves.table(files))) == 11  # the frozen ones are one row: few enough to show each of the others
    whole = phases[1].model_copy(update={"train": (*names, "head"), "frozen": ()})
    make_plan(model=model_map.model_copy(update={"groups": groups, "cuts": cuts}), phases=(phases[0], whole)).write(bundle / "plan.json")
    distances = {name: 0.001 * (place + 1) for place, name in enumerate(names)}
    table = moves.table(recorded(bundle, {"distance": dict.fromkeys(names, 0.0)}, {"train": [*names, "head"], "distance": distances}))
    assert table["by_stage"]
    assert texts(table) == [
        ("b0 … b9", [("frozen", "frozen"), ("moved", "1.0 %")]),
        ("b10 … b19", [("frozen", "frozen"), ("moved", "2.0 %")]),
        ("b20 … b29", [("frozen", "frozen"), ("moved", "3.0 %")]),
        ("b30 … b39", [("frozen", "frozen"), ("moved", "4.0 %")]),
    ]


def test_a_diverged_group_has_a_dash_and_no_colour(make_bundle):
    table = moves.table(recorded(make_bundle(), {"distance": AFTER_FIRST}, {"distance": {"layer4.0": float("nan"), "layer4.1": 0.5}}))
    assert [(row[1]["text"], row[1]["depth"]) for _, row in table["rows"]] == [("frozen", 0.0), ("–", 0.0), ("50 %", 1.0)]


def test_no_table_where_no_phase_trained_the_source(make_bundle):
    bundle = make_bundle()
    assert moves.table(bundle_files.read(bundle)) is None
    assert moves.table(recorded(bundle, {"distance": AFTER_FIRST}, {"train": ["head"], "distance": AFTER_FIRST})) is None
    (bundle / "plan.json").unlink()
    assert moves.table(recorded(bundle, {}, {"train": ["layer4.1"], "distance": AFTER_SECOND})) is None


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"train": ["a", "b", "head"], "distance": {"a": 0.1, "b": 0.3, "c": 0.9}}, ("b", 0.3)),
        ({"train": ["a", "b"], "distance": {"a": 0.1, "b": float("inf")}}, ("b", float("inf"))),
        ({"train": ["head"], "distance": {"a": 0.1}}, None),
        ({"train": ["a"], "distance": None}, None),
        ({}, None),
    ],
)
def test_the_furthest_of_those_that_trained(record, found):
    assert furthest(record) == found
