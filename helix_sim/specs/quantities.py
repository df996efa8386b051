"""Every key of an answer and every column of a table by its one name: type, unit, meaning; the JSON schema of them."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from helix_sim.core.errors import SpecError
from helix_sim.core.text import said
from helix_sim.specs.load import parse, parse_yaml
from helix_sim.specs.values import Record

ANSWER_VERSION = 2
"""Version of the keys of answers. 1, which says no version, had other names for some of them."""

Type = Literal["integer", "number", "text", "yes or no", "any", "list", "object", "rows", "mapping"]


class Key(Record):
    """A key of an answer, or a column of a table."""

    type: Type = Field(description="what stands there [name]")
    unit: str = Field(description="the unit of a number, or what the text or the list holds [text]")
    meaning: str = Field(description="what it is [text]")


class Quantities(Record):
    """The file of all of them."""

    kind: Literal["quantities"] = Field(description="what this file describes [name]")
    quantities: Annotated[dict[str, Key], Field(min_length=1)] = Field(description="keys and columns by name [mapping]")
    of_files: dict[str, dict[str, Key]] = Field(
        description="columns of one file alone, by the file's name, or by names with a comma between [mapping]"
    )


@functools.cache
def _read() -> Quantities:
    path = importlib.resources.files("helix_sim.specs").joinpath("quantities.yaml")
    return parse(Quantities, parse_yaml(path.read_bytes(), "quantities.yaml"), "quantities.yaml")


def quantities() -> dict[str, Key]:
    """Keys and columns by name, in the order of their file."""
    return _read().quantities


def columns_of_files() -> dict[str, dict[str, Key]]:
    """Columns of one file alone by name, by the file's name; the others of its columns are among `quantities`."""
    found: dict[str, dict[str, Key]] = {}
    for names, keys in _read().of_files.items():
        for name in names.split(", "):
            found.setdefault(name, {}).update(keys)
    return found


def units_of(columns: Iterable[Any]) -> dict[str, str]:
    """Units of the columns that hold numbers, by name.

    >>> units_of(["machine", "ttl_ms"])
    {'ttl_ms': 'ms'}
    """
    known = quantities()
    return {name: known[name].unit for name in columns if known[name].type in ("integer", "number")}


def answer(verb: str, content: Any) -> dict[str, Any]:
    """What a verb found as its answer: with the versions and the verb in front; a list as `rows`."""
    from helix_sim.core.version import __version__

    found = {"rows": content} if isinstance(content, list) else dict(content)
    return {"helix_sim": __version__, "answer_version": ANSWER_VERSION, "verb": verb} | found


def require_readable(content: dict[str, Any], shown: str) -> None:
    """SpecError where an answer is of a version that this release does not know; one without a version is read."""
    version = content.get("answer_version", 1)
    if version not in (1, ANSWER_VERSION):
        raise SpecError([f"{shown}: answer_version is {said(version)}, and this release reads 1 and {ANSWER_VERSION}"])


TYPES: dict[str, list[str]] = {
    "integer": ["integer", "null"],
    "number": ["number", "null"],
    "text": ["string", "null"],
    "yes or no": ["boolean", "null"],
    "list": ["array", "null"],
    "mapping": ["object", "null"],
}
"""JSON's types of a quantity's; null is what is not known."""


def answer_schema() -> dict[str, Any]:
    """The JSON schema of every answer: each key has one type, unit and meaning wherever it stands.

    >>> answer_schema()["$defs"]["record"]["properties"]["gpus"]["type"]
    ['integer', 'null']
    """
    record = {"$ref": "#/$defs/record"}
    shapes: dict[str, Any] = {
        **{name: {"type": types} for name, types in TYPES.items()},
        "any": {},
        "object": {"anyOf": [record, {"type": "null"}]},
        "rows": {"type": ["array", "null"], "items": record},
    }
    properties = {
        name: {**shapes[each.type], "description": f"{each.meaning} [{each.unit}]"}
        for name, each in quantities().items()
    }
    return {
        "title": "helix-sim answer",
        "allOf": [record],
        "required": ["helix_sim", "answer_version", "verb"],
        "$defs": {"record": {"type": "object", "properties": properties, "additionalProperties": False}},
    }
