"""Rules of the schema that a type can't say, in the words that a person reads.

They raise ValueError with the whole message, or `broken` where a rule over several keys has one key to blame.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Discriminator
from pydantic_core import PydanticCustomError

from xfer.plugins import nearest
from xfer.recipe.quantities import parse_bytes, parse_seconds
from xfer.recipe.words import shown

LARGEST = 1_000_000_000  # of counts: more is a slip of the hand
METRICS = ("accuracy", "macro_f1", "ece", "loss")
DISTRIBUTIONS = ("uniform", "loguniform", "integer", "loginteger", "choice", "grid")
LIST, MAPPING, SCALAR = "<list>", "<mapping>", "<scalar>"  # branches of a union, as they show up in pydantic's locations

# Which branch of a union a value is meant for.
MAPPING_OR_SCALAR = Discriminator(lambda value: MAPPING if isinstance(value, dict | BaseModel) else SCALAR)
LIST_OR_SCALAR = Discriminator(lambda value: LIST if isinstance(value, list) else SCALAR)
LIST_OR_MAPPING = Discriminator(lambda value: LIST if isinstance(value, list) else MAPPING)


def broken(key: str, message: str) -> PydanticCustomError:
    """A rule over several keys is broken; the fault is placed at `key`."""
    return PydanticCustomError("rule", "{message}", {"key": key, "message": message})


def sane(value: Any) -> Any:
    if value > LARGEST:
        raise ValueError(f"must be at most {LARGEST}, not {value}")
    return value


def matching(pattern: str, words: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {words}, not '{value}'")
        return value

    return check


def per_channel(values: list[float]) -> list[float]:
    if len(values) not in (1, 3):
        raise ValueError(f"must have 1 or 3 numbers, one for each channel, not {len(values)}")
    return values


def low_high(values: list[float]) -> list[float]:
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"must be [low, high] with low at most high, not {values}")
    return values


def size(value: Any) -> Any:
    parse_bytes(value)
    return value


def interval(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"must be at least 1 step, not {value}")
    elif isinstance(value, str):
        parse_seconds(value)
    else:
        raise ValueError(f"must be a duration such as '5min' or a whole number of steps, not {shown(value)}")
    return value


def duration(value: Any) -> Any:
    parse_seconds(value)
    return value


def n_gpus(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise ValueError(f"must be 'auto' or a number of at least 0, not {shown(value)}")
    return value


def metric(value: str) -> str:
    """What may choose: validation metrics and label-free scores, never the test split."""
    split, _, name = value.partition(".")
    if split == "test":
        raise ValueError(f"'{value}' is of the test split, which may not choose anything; use 'val.{name or 'accuracy'}'")
    if split == "score" and name:
        return value
    if split != "val" or name not in METRICS:
        guess = nearest(value if split == "val" else f"val.{value}", [f"val.{metric}" for metric in METRICS])
        known = ", ".join(f"val.{metric}" for metric in METRICS)
        raise ValueError(f"'{value}' is not one of {known}, score.*" + (f"; did you mean '{guess}'?" if guess else ""))
    return value


def phases_in_a_list(value: Any) -> Any:
    if isinstance(value, dict) and "policy" not in value and {"train", "epochs", "until"} & set(value):
        raise ValueError("a phase stands in a list: put '- ' before its first key")
    if value is not None and not isinstance(value, list | dict | BaseModel):
        policy = value if isinstance(value, str) else "gradual"
        raise ValueError(f"must be a list of phases or a policy such as {{policy: {policy}}}, not {shown(value)}")
    return value
