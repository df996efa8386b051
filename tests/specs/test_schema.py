"""JSON schemas for editors: they take every shipped file, and refuse what a field alone shows to be wrong."""

import json
from pathlib import Path

import pytest
import yaml

from helix_sim.core.errors import SpecError
from helix_sim.specs.load import CALIBRATIONS, FOLDERS, data_folder
from helix_sim.specs.schema import DIALECT, FILES, json_schema

jsonschema = pytest.importorskip("jsonschema", reason="the extra `test` is not installed")

SHIPPED = sorted(path for folder in (*FOLDERS.values(), CALIBRATIONS) for path in data_folder(folder).glob("*.yaml"))
BROKEN = Path(__file__).parent / "broken"
SEEN = ["bad-format", "bad-source", "bare-number", "exponent", "list-for-a-number", "missing-source", "negative"]
SEEN += ["share-above-one", "text-for-a-number", "unknown-family", "unknown-hardware-key", "unknown-key", "zero"]
"""Broken files in which one field alone is wrong."""


def content_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", FILES)
def test_every_schema_is_a_schema_of_its_dialect(kind):
    schema = json.loads(json.dumps(json_schema(kind)))
    assert schema["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_taken(path):
    content = content_of(path)
    jsonschema.validate(content, json_schema(content["kind"]))


@pytest.mark.parametrize("name", SEEN)
def test_what_a_field_alone_shows_to_be_wrong_is_refused(name):
    content = content_of(BROKEN / f"{name}.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json_schema(content["kind"]))


def test_a_size_may_be_written_with_its_prefix():
    sweep = content_of(data_folder("sweeps") / "paper-deepseek-r1.yaml")
    for context in (4096, "128K", "1Mi", "0.5M"):
        jsonschema.validate({**sweep, "contexts": [context]}, json_schema("sweep"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**sweep, "contexts": ["many"]}, json_schema("sweep"))


def test_families_are_names_or_definitions():
    sweep = content_of(data_folder("sweeps") / "paper-deepseek-r1.yaml")
    own = {"mine": {"title": "Mine", "tpa": "free"}}
    jsonschema.validate({**sweep, "families": own, "groups": {}}, json_schema("sweep"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**sweep, "families": ["helixx"]}, json_schema("sweep"))


def test_a_timing_says_every_constant_or_whom_it_extends():
    paper = content_of(data_folder("hardware_profiles/timings") / "paper.yaml")
    short = {key: paper[key] for key in ("kind", "name", "description", "all_reduce_overlap")}
    jsonschema.validate({**short, "extends": "paper"}, json_schema("timing"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(short, json_schema("timing"))


def test_a_kind_that_is_none_is_one_sentence():
    with pytest.raises(SpecError, match="there is no kind of file named 'modle'; known: model, machine"):
        json_schema("modle")
