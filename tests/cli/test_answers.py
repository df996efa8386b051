"""Answers for programs: one schema for every verb, the same key for the same thing, older answers read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import helix_sim as hs
from helix_sim.cli import app
from helix_sim.core.errors import SpecError
from helix_sim.paper.beyond import Gain
from helix_sim.search.layout_source import pick
from helix_sim.specs.precision import Precision
from helix_sim.specs.quantities import ANSWER_VERSION, columns_of_files, quantities
from helix_sim.specs.schema import json_schema

HERE = ["llama-3.1-8b", "h100-hgx"]
LAYOUT = [*HERE, "--tpa", "2", "--batch", "4", "--context", "64K", "--timing", "h100-trtllm"]
SWEEP = """
kind: sweep
name: small
description: a small search
model: llama-3.1-8b
machine: h100-hgx
timing: h100-trtllm
precision: {weights: fp8, kv: fp8, math: fp8}
contexts: [64K]
gpus: {from: 1, to: 4}
batch: {dense_to: 4, growth: 1.5, to: 16}
chunks: [1]
families: [tp, helix]
groups: {every: [tp, helix]}
"""
VERBS = {
    "explain": ["explain", *LAYOUT],
    "explain a draft": ["explain", *HERE, "--tpa", "2", "--context", "8K", "--draft", "llama-3.1-8b-eagle3",
                        "--draft-tokens", "3", "--usd-per-gpu-hour", "3"],
    "capacity": ["capacity", *LAYOUT],
    "export": ["export", *LAYOUT, "--to", "vllm"],
    "trace": ["trace", *LAYOUT, "--out", "{folder}/step.json"],
    "sensitivity of a layout": ["sensitivity", *LAYOUT],
    "sensitivity of a frontier": ["sensitivity", "{folder}/small.yaml", "--frontier"],
    "what if": ["sensitivity", "{folder}/small.yaml", "--set", "hbm_bandwidth=2x"],
    "recommend": ["recommend", *HERE, "--ttl-ms", "10", "--context", "64K", "--timing", "h100-trtllm", "--total-gpus",
                  "22", "--confidence", "0.8"],
    "recommend nothing": ["recommend", *HERE, "--ttl-ms", "1", "--context", "64K", "--gpus", "1", "--family", "tp"],
    "compare": ["compare", "--model", HERE[0], "--machine", HERE[1], "--context", "64K", "--ttl-ms", "10", "--family",
                "tp"],
    "sweep": ["sweep", "{folder}/small.yaml", "--usd-per-gpu-hour", "3", "--out", "{folder}/out"],
    "models": ["models"],
    "machines": ["machines"],
    "check": ["check", "{folder}/small.yaml"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("answers")
    (found / "small.yaml").write_text(SWEEP)
    return found


def answer(name: str, folder: Path) -> dict[str, Any]:
    """What a verb prints with --json."""
    words = [word.format(folder=folder) for word in VERBS[name]]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.stdout.startswith("{"), (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def strangers(content: Any, at: str = "") -> list[str]:
    """Keys of an answer that the table of keys lacks, or that hold something else than it says."""
    known = quantities()
    types = {"integer": int, "number": (int, float), "text": str, "yes or no": bool, "list": list, "mapping": dict,
             "object": dict, "rows": list, "any": object}  # fmt: skip
    found = []
    for key, value in content.items():
        if key not in known:
            found.append(f"{at}{key} is no key")
            continue
        kind = known[key].type
        if value is not None and (not isinstance(value, types[kind]) or (kind == "integer" and value is True)):  # type: ignore[arg-type]
            found.append(f"{at}{key} is {type(value).__name__}, not {kind}")
        elif kind == "object" and value:
            found += strangers(value, f"{at}{key}.")
        elif kind == "rows":
            found += [each for row in value or () for each in strangers(row, f"{at}{key}.")]
    return sorted(set(found))


@pytest.mark.parametrize("name", VERBS)
def test_every_answer_is_by_the_schema(name: str, folder: Path) -> None:
    found = answer(name, folder)
    assert strangers(found) == []
    assert list(found)[:3] == ["helix_sim", "answer_version", "verb"]
    assert found["answer_version"] == ANSWER_VERSION
    assert found["verb"] == VERBS[name][0]
    jsonschema = pytest.importorskip("jsonschema", reason="an independent reader of JSON schema")
    jsonschema.validate(found, json_schema("answer"))


def test_the_schema_refuses_what_no_verb_writes(folder: Path) -> None:
    found = answer("explain", folder)
    assert strangers(found | {"gpu_count": 2}) == ["gpu_count is no key"]
    assert strangers(found | {"gpus": 2.5}) == ["gpus is float, not integer"]
    assert strangers(found | {"ops": [{"binds": 1}]}) == ["ops.binds is int, not text"]
    jsonschema = pytest.importorskip("jsonschema", reason="an independent reader of JSON schema")
    for wrong in ({"gpu_count": 2}, {"gpus": 2.5}, {"ops": [{"binds": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(found | wrong, json_schema("answer"))


def test_every_column_that_is_written_has_a_unit_and_a_meaning(folder: Path) -> None:
    answer("sweep", folder)
    answer("compare", folder)
    words = [word.format(folder=folder) for word in VERBS["compare"]]
    assert CliRunner().invoke(app, [*words, "--out", str(folder / "slides")]).exit_code == 0
    sweep = [word.format(folder=folder) for word in VERBS["sweep"][:-1]]
    assert CliRunner().invoke(app, [*sweep, str(folder / "all"), "--points", "all"]).exit_code == 0
    tables = ["out/frontier.csv", "slides/comparison.csv", "slides/frontiers.csv", "all/points.csv"]
    columns = {column for table in tables for column in pd.read_csv(folder / table).columns}
    assert {"usd_per_million_tokens", "helix_gain", "id"} <= columns
    assert columns <= quantities().keys()


def test_what_verbs_say_of_a_layout_is_the_same(folder: Path) -> None:
    explained, room, limits, timeline = (
        answer(name, folder) for name in ("explain", "capacity", "sensitivity of a layout", "trace")
    )
    for other in (limits, timeline):
        same = explained.keys() & other.keys() - {"verb"}
        assert {"layout", "context", "memory_bytes", "gpus", "users", "ttl_s"} <= same
        assert {key: explained[key] for key in same} == {key: other[key] for key in same}
    assert room["layout"] == explained["layout"] | {"batch": 1}
    assert room["memory_bytes"].keys() == explained["memory_bytes"].keys()


def test_json_is_the_same_flag_in_every_verb() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flags = {
        verb: next((each for each in command.params if "--json" in each.opts), None)
        for verb, command in commands.items()
    }
    assert {verb for verb, flag in flags.items() if flag is None} == {"explore", "schema"} & set(flags)
    assert len({(flag.help, flag.is_flag) for flag in flags.values() if flag}) == 1


def test_a_verdict_that_is_written_as_before_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["regress", "--json", "verdict.json"])
    assert isinstance(result.exception, SpecError)
    assert "--json-file verdict.json" in result.exception.problems[0]


def test_an_answer_of_the_first_version_is_read_and_of_a_later_one_refused(folder: Path) -> None:
    found = answer("explain", folder)
    old = {key: value for key, value in found.items() if key not in ("answer_version", "verb", "memory_bytes")}
    (folder / "old.json").write_text(json.dumps(old))
    assert float(pick(folder / "old.json").step.ttl_s) == found["ttl_s"]
    (folder / "new.json").write_text(json.dumps(found | {"answer_version": 3}))
    with pytest.raises(SpecError, match="answer_version is 3, and this release reads 1 and 2"):
        pick(folder / "new.json")


def test_every_column_of_the_files_of_reproduce_and_validate_has_a_unit_and_a_meaning(folder: Path) -> None:
    out = folder / "files"
    for figure in ("fig1", "fig3", "fig5"):
        hs.reproduce(figure, out, hs.load_timing("paper"))
    hs.reproduce("variants", out, hs.load_timing("paper"), draws=1)
    serving = "system,framework,dp,ep,isl,osl,concurrency,tpot_s,speculation\n" + "".join(
        f"gb200,trtllm,8,8,99,99,64,0.01,{speculation}\n" for speculation in ("none", "mtp")
    )
    (folder / "servings.csv").write_text(serving)
    hs.validate_measurements(folder / "servings.csv", out)
    files = {path.name: set(pd.read_csv(path, nrows=1).columns) for path in out.glob("*.csv")}
    nothing = {"without": None, "fastest": None, "sharded": None, "faster": None}
    files["beyond.csv"] = set(Gain(model="m", context=1, family="helix", budget_ms=1.0, **nothing).record())  # type: ignore[arg-type]
    files["beyond.csv"] -= {"with", "without"}
    assert {"fig1.csv", "fig5.csv", "variants.csv", "measurements.csv", "pairs.csv"} <= files.keys()
    everywhere = quantities().keys() | Precision.model_fields.keys()
    for name, columns in files.items():
        assert columns - everywhere <= columns_of_files()[name].keys(), name
    for name in ("fig1.csv", "fig3.csv", "fig5.csv", "variants.csv", "beyond.csv"):
        assert columns_of_files()[name].keys() <= files[name], f"{name} no longer has a column of its own"
