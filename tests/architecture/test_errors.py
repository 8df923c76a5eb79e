"""Every exception stands in the tree of errors.py's docstring, below its parent, and crosses processes."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from xfer import errors

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, BaseException) and value.__module__ == errors.__name__
]
FAULT = errors.Fault("r.yaml", 14, 3, "freeze[0].trian", "unknown key", "train")
SAMPLES = {
    str: "a word",
    Any: ("anything", 1),
    str | None: "a word",
    tuple[str, ...]: ("conv1.weight", "bn1.running_mean"),
    tuple[errors.Fault, ...]: (FAULT, FAULT),
}


def tree() -> dict[str, str | None]:
    """Class name -> the name of its parent in the docstring's drawing."""
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"^(?P<branch>[ │├└─]+)(?P<name>[A-Z]\w+)\s+\S", line)
        if drawn is None:
            continue
        depth = len(drawn["branch"])
        path = [(d, name) for d, name in path if d < depth]
        parents[drawn["name"]] = path[-1][1] if path else None
        path.append((depth, drawn["name"]))
    return parents


def filled(kind: type[Exception]) -> Exception:
    """One with a value for each of its keywords."""
    parameters = inspect.signature(kind.__init__, eval_str=True).parameters
    keywords = {name: SAMPLES[p.annotation] for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return kind("what happened", **keywords)


def test_the_tree_is_drawn_in_full():
    drawn = tree()
    assert drawn.pop("XferError") is None
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in CLASSES if kind is not errors.XferError}


def test_there_are_as_many_as_we_think():
    assert len(CLASSES) == 14


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_pickles_twice(kind):
    error = filled(kind)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert type(again) is kind
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert again.exit_code == kind.exit_code


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_one_positional_argument_and_the_rest_has_defaults(kind):
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    assert [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD] == ["message"]
    assert [p.name for p in parameters[1:] if p.default is inspect.Parameter.empty] == []


def test_exit_codes():
    codes = {kind.__name__: kind.exit_code for kind in CLASSES}
    usage = {kind.__name__ for kind in CLASSES if issubclass(kind, errors.UsageError)}
    assert {name for name, code in codes.items() if code == 2} == usage
    assert codes["InterruptedRun"] == 130
    assert {name for name, code in codes.items() if code == 1} == set(codes) - usage - {"InterruptedRun"}
