"""How many processes of a pool sit on which node."""

from __future__ import annotations

import pytest

from xfer.cluster.seats import Node, nodes_of, seats
from xfer.errors import UsageError

SMALL, LARGE, HEAD = Node("a", "10.0.0.1", 4, 0), Node("b", "10.0.0.2", 16, 4), Node("c", "10.0.0.3", 0, 0)


def placed(nodes: list[Node], **options: object) -> list[tuple[str, int, float, float, int]]:
    settings = {"actors": None, "cpus_per_actor": None, "gpus_per_actor": 0.0, **options}
    return [(seat.node.id, seat.index, seat.cpus, seat.gpus, seat.threads) for seat in seats(nodes, **settings)]  # type: ignore[arg-type]


def test_on_processors_one_for_each_node_with_all_its_threads():
    assert placed([SMALL, LARGE, HEAD]) == [("a", 0, 1, 0, 4), ("b", 0, 1, 0, 16)]


def test_as_many_as_are_asked_for_in_turn_over_the_nodes():
    assert placed([SMALL, LARGE], cpus_per_actor=2, actors=5) == [
        ("a", 0, 2, 0, 2),
        ("b", 0, 2, 0, 2),
        ("a", 1, 2, 0, 2),
        ("b", 1, 2, 0, 2),
        ("b", 2, 2, 0, 2),
    ]
    assert len(placed([SMALL, LARGE], cpus_per_actor=2)) == 10
    assert placed([SMALL, LARGE], actors=1) == [("a", 0, 1, 0, 4)]


def test_one_for_each_gpu_or_for_a_share_of_one():
    assert placed([SMALL, LARGE], gpus_per_actor=1.0) == [("b", index, 1, 1.0, 4) for index in range(4)]
    assert len(placed([LARGE], gpus_per_actor=0.1)) == 16  # a processor for each
    assert placed([LARGE], gpus_per_actor=2.0, actors=1) == [("b", 0, 1, 2.0, 16)]


@pytest.mark.parametrize(
    ("nodes", "options", "needs", "there"),
    [
        ([SMALL, HEAD], {"gpus_per_actor": 1.0}, "1 CPU and 1 GPU", "1 of 0 CPU, 1 of 4 CPU"),
        ([SMALL, SMALL], {"cpus_per_actor": 8}, "8 CPU", "2 of 4 CPU"),
        ([], {}, "1 CPU", "none"),
    ],
)
def test_nothing_fits(nodes, options, needs, there):
    with pytest.raises(UsageError) as caught:
        placed(nodes, **options)
    assert caught.value.message == f"cluster: no node has what one extraction worker needs, {needs}; there are: {there}"
    assert caught.value.hint == "ask for less with cluster.gpus_per_worker, or give the cluster such a node"


def test_nodes_of_one_address_are_told_apart():
    def found(id_: str, address: str, **resources: float) -> dict[str, object]:
        return {"NodeID": id_, "NodeManagerAddress": address, "Resources": resources}

    one, two = found("a" * 20, "10.0.0.1", CPU=2.0), found("b" * 20, "10.0.0.1", CPU=2.0, GPU=1.0)
    assert nodes_of([one]) == [Node("a" * 20, "10.0.0.1", 2, 0)]
    assert [node.label for node in nodes_of([one, two])] == ["10.0.0.1 (aaaaaaaa)", "10.0.0.1 (bbbbbbbb)"]
    assert nodes_of([two])[0].gpus == 1
