"""The recipe's JSON Schema, for editors that complete and check while one writes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from xfer.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PARTIAL = "Partial"  # suffix of the sections of a recipe that extends another: what is missing may be in the parent


def write_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) for a recipe as it is written: with `extends`, with `${…}` in place of any single value.

    A recipe that extends another may leave out what its parent has. Rules over several keys are left to `xfer check`.
    """
    schema = Recipe.model_json_schema()
    sections: dict[str, Any] = schema.pop("$defs")
    sections["Recipe"] = {key: value for key, value in schema.items() if key != "description"}
    sections["Recipe"]["properties"]["extends"] = {
        "type": "string",
        "minLength": 1,
        "description": "Another recipe, relative to this one; this one is merged on top of it.",
    }
    whole = {name: _prepared(section) for name, section in sections.items()}
    partial = {name + PARTIAL: _loosened(section) for name, section in whole.items()}
    return {
        "$schema": DIALECT,
        "title": "xfer recipe",
        "description": schema["description"],
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/$defs/Recipe{PARTIAL}"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": {**whole, **partial, "Interpolation": {"type": "string", "pattern": r"^[^$]*\$\{[A-Za-z_][\w.\[\]-]*\}"}},
    }


def _prepared(node: Any) -> Any:
    """Without generated titles; sections may be left empty; and a number, a choice or a boolean may be an interpolation."""
    if isinstance(node, list):
        return [_prepared(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _prepared(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    if isinstance(node.get("properties"), dict):
        node["properties"] = {name: _property(value) for name, value in node["properties"].items()}
    if node.get("type") in ("integer", "number", "boolean") or ("enum" in node or "const" in node):
        outer = {key: node.pop(key) for key in ("default", "examples", "description") if key in node}
        return {"anyOf": [node, {"$ref": "#/$defs/Interpolation"}], **outer}
    return node


def _property(node: Any) -> Any:
    """A section of which all keys are commented out reads as null, and means the defaults."""
    return {"anyOf": [node, {"type": "null"}]} if isinstance(node, dict) and set(node) == {"$ref"} else node


def _loosened(section: Any) -> Any:
    """Nothing is required, except inside lists, which replace the parent's."""

    def walk(node: Any, *, in_list: bool) -> Any:
        if isinstance(node, list):
            return [walk(item, in_list=in_list) for item in node]
        if not isinstance(node, dict):
            return node
        result = {}
        for key, value in node.items():
            if key == "required" and isinstance(value, list) and not in_list:
                continue
            if key == "$ref" and not in_list and not value.endswith("Interpolation"):
                value = value + PARTIAL
            result[key] = walk(value, in_list=in_list or key == "items")
        return result

    return walk(deepcopy(section), in_list=False)
