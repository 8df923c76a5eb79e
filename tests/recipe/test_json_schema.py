from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from xfer.recipe.json_schema import write_schema
from xfer.recipe.schema import Recipe

HERE = Path(__file__).parent
RECIPES = sorted((HERE.parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(json.dumps(write_schema())))


def errors(validator: Draft202012Validator, text: str) -> list[Any]:
    return list(validator.iter_errors(yaml.safe_load(text)))


def test_it_is_a_schema(validator: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("file", [*RECIPES, HERE / "full.yaml"], ids=lambda file: file.stem)
def test_whole_recipes_pass(validator: Draft202012Validator, file: Path) -> None:
    text = (
        file.read_text()
        .replace("1e-2", "0.01")
        .replace("1e-3", "0.001")
        .replace("3e-3", "0.003")
        .replace("e-4", ".0e-4")
        .replace("e-1", ".0e-1")
    )
    assert errors(validator, text.replace("1e-5", "1.0e-5")) == []


def test_parents_are_completed_elsewhere(validator: Draft202012Validator, base: str) -> None:
    assert errors(validator, "extends: base.yaml\nsource: {weights: {match: order}}\nfreeze: [{train: head}]\n") == []
    assert errors(validator, "source: {weights: {match: order}}\n")
    assert errors(validator, "extends: base.yaml\nfreeze: [{epochs: 3}]\n")
    assert errors(validator, "extends: [base.yaml]\n" + base)


def test_interpolation_and_empty_sections_pass(validator: Draft202012Validator, base: str) -> None:
    more = "optimizer: {lr: '${head.dropout}', name: '${transfer.type}'}\nruntime:\nhead: {hidden: ['${target.image_size}']}\n"
    assert errors(validator, base + more) == []
    assert errors(validator, base + "optimizer: {lr: '0.1'}\n")


@pytest.mark.parametrize(
    "name",
    [
        "misspelt_key",
        "misspelt_section",
        "key_of_another_section",
        "nothing_required",
        "model_missing",
        "wrong_types",
        "out_of_range",
        "unknown_choices",
        "yaml_booleans",
        "freeze_as_text",
        "phases_as_text",
        "freeze_empty",
        "freeze_policy_misspelt",
        "weights_shapes",
        "workers_as_list",
        "domains",
        "section_as_text",
        "a_list",
    ],
)
def test_broken_recipes_fail(validator: Draft202012Validator, name: str) -> None:
    assert errors(validator, (HERE / "broken" / f"{name}.yaml").read_text())


def test_every_key_of_the_recipe_is_there(validator: Draft202012Validator) -> None:
    assert set(validator.schema["$defs"]["Recipe"]["properties"]) == {*Recipe.model_fields, "extends"}
