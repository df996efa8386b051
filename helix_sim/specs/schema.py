"""The JSON schema of each kind of file, for editors that complete and check YAML while it is written."""

from __future__ import annotations

from typing import Any

from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.specs.load import KINDS, shipped, shipped_families
from helix_sim.specs.quantities import answer_schema
from helix_sim.specs.sweep import Families
from helix_sim.specs.values import Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"

FILES: dict[str, type[Record]] = {**KINDS, "families": Families}
"""The record that a file of each kind holds."""

NAMES = {"model": "model", "machine": "machine", "timing": "timing"}
"""Keys of a sweep that name a file of another kind."""


def json_schema(kind: str) -> dict[str, Any]:
    """What a file of this kind may hold: keys, types, limits, defaults, descriptions with units.

    `answer` is what --json prints.

    It knows each field for itself; what must hold between fields (a multiple of the KV heads, a family that a group
    names) `helix-sim check` says.

    >>> json_schema("machine")["properties"]["hbm_bandwidth_GBps"]["$ref"]
    '#/$defs/Positive'
    """
    if kind == "answer":
        return {"$schema": DIALECT, **answer_schema()}
    if kind not in FILES:
        raise SpecError([f"there is no kind of file named {said(kind)}; known: {', '.join(FILES)}, answer"])
    schema = {"$schema": DIALECT, **_with_limits(FILES[kind].model_json_schema()), "title": f"helix-sim {kind}"}
    if kind == "sweep":
        _offer_names(schema["properties"])
    if kind == "timing":
        _let_extend(schema)
    return schema


LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Limits of a number that is checked by a function first: pydantic leaves them under its own names."""


def _with_limits(schema: Any) -> Any:
    """The schema with every limit under the name that JSON schema has for it."""
    if isinstance(schema, list):
        return [_with_limits(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {LIMITS.get(key, key) if isinstance(each, int | float) else key: each for key, each in schema.items()}
    return {key: _with_limits(each) for key, each in renamed.items()}


def _let_extend(schema: dict[str, Any]) -> None:
    """A timing that extends another holds only what differs, down to one constant of a group."""
    whole, own = schema["required"], ["kind", "name", "description"]
    schema["required"] = own
    schema["anyOf"] = [{"required": ["extends"]}, {"required": [key for key in whole if key not in own]}]
    for key in whole:
        group = schema["$defs"].get(schema["properties"][key].get("$ref", "").rpartition("/")[2], {})
        if "value" not in group.get("properties", {}):  # a quantity keeps both its value and its source
            group.pop("required", None)


def _offer_names(properties: dict[str, Any]) -> None:
    """What an editor may offer in a sweep: shipped names, and families by name as well as by definition."""
    for key, named in NAMES.items():
        properties[key]["examples"] = shipped(named)
    defined = properties["families"]
    listed = {"type": "array", "minItems": 1, "items": {"enum": sorted(shipped_families())}}
    about = {key: defined.pop(key) for key in ("title", "description")}
    properties["families"] = {**about, "anyOf": [listed, defined]}
