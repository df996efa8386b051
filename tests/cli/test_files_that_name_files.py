"""Files that name other files: paths start beside the file that says them, and what is named is part of the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.cli.options import draft_lengths
from helix_sim.core.errors import SpecError
from helix_sim.search.sweep import run_sweep
from helix_sim.specs.load import data_folder

DRAFT = {
    "kind": "draft",
    "name": "by-mine",
    "method": "external",
    "target": "llama-3.1-70b",
    "source": "an example",
    "model": "./mine.yaml",
    "acceptance": {"probabilities": [0.7], "source": "assumed: an example"},
}
DRAFTED = ["llama-3.1-70b", "gb200-nvl72", "--tpa", "4", "--context", "8K", "--draft-tokens", "2"]
COMPARISON = {
    "kind": "comparison",
    "models": ["./mine.yaml"],
    "machines": ["./box.yaml", "h200-hgx"],
    "contexts": ["8K"],
    "ttl_ms": [50],
    "timings": ["./own.yaml"],
    "families": ["tp"],
    "gpus": [1, 2],
    "usd_per_gpu_hour": {"./box.yaml": 3},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that name each other, while the process stands in another."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir(), elsewhere.mkdir()
    for name, shipped in (("mine", "model_specs/llama-3.1-8b"), ("box", "hardware_profiles/h100-hgx"),
                          ("own", "hardware_profiles/timings/paper")):  # fmt: skip
        (own / f"{name}.yaml").write_text((data_folder(".") / f"{shipped}.yaml").read_text())
    (own / "draft.yaml").write_text(yaml.safe_dump(DRAFT))
    (own / "comparison.yaml").write_text(yaml.safe_dump(COMPARISON))
    monkeypatch.chdir(elsewhere)
    return own


def answer(*words: str) -> dict[str, Any]:
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.exception or found.output
    return json.loads(found.stdout)  # type: ignore[no-any-return]


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_drafts_model_lies_beside_the_draft(folder: Path) -> None:
    assert answer("explain", *DRAFTED, "--draft", str(folder / "draft.yaml"))["inputs"]["draft"]["digest"]


@pytest.mark.parametrize("verb", ["explain", "capacity", "sensitivity"])
def test_an_answer_knows_when_the_model_that_drafts_has_changed(verb: str, folder: Path, tmp_path: Path) -> None:
    record = answer("explain", *DRAFTED, "--draft", str(folder / "draft.yaml"))
    (tmp_path / "answer.json").write_text(json.dumps(record))
    assert answer(verb, str(tmp_path / "answer.json"))
    change(folder / "mine.yaml", "repeat: 32", "repeat: 31")
    found = CliRunner().invoke(app, [verb, str(tmp_path / "answer.json")])
    assert isinstance(found.exception, SpecError)
    assert "has changed since" in str(found.exception)


def test_a_sweeps_draft_lies_beside_the_sweep_when_parts_of_it_are_changed(folder: Path) -> None:
    content = yaml.safe_load((data_folder("sweeps") / "paper-llama-3.1-405b.yaml").read_text())
    content |= {"model": "llama-3.1-70b", "draft": "./draft.yaml", "draft_tokens": [0, 1], "gpus": [4]}
    content |= {"families": ["tp"], "groups": {}, "batch": {"dense_to": 2, "growth": 2, "to": 2}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    found = run_sweep(folder / "sweep.yaml", contexts="8K")
    assert found.plan.setting.drafter is not None


def test_a_comparisons_files_lie_beside_it(folder: Path) -> None:
    rows = answer("compare", str(folder / "comparison.yaml"))["rows"]
    assert [row["machine"] for row in rows] == ["h100-hgx", "h200-hgx"]
    assert rows[0]["usd_per_million_tokens"] is not None


def test_files_that_options_add_to_a_comparison_start_where_the_process_stands(folder: Path) -> None:
    (Path("other.yaml")).write_text((folder / "box.yaml").read_text().replace("name: h100-hgx", "name: other"))
    words = ["compare", str(folder / "comparison.yaml"), "--machine", "./other.yaml"]
    change(folder / "comparison.yaml", "usd_per_gpu_hour:\n  ./box.yaml: 3\n", "")
    (row,) = answer(*words, "--usd-per-gpu-hour", "./other.yaml=6")["rows"]
    (half,) = answer(*words, "--usd-per-gpu-hour", "3")["rows"]
    assert row["machine"] == "other"
    assert row["usd_per_million_tokens"] == pytest.approx(2 * half["usd_per_million_tokens"], rel=1e-12)


@pytest.mark.parametrize("content", ["machines: 3", "machines: [{}, [1]]", "usd_per_gpu_hour: [1]", "machines: x"])
def test_a_price_option_beside_nonsense_in_the_file_is_a_sentence(content: str, folder: Path) -> None:
    (folder / "comparison.yaml").write_text(f"kind: comparison\n{content}\n")
    found = CliRunner().invoke(app, ["compare", str(folder / "comparison.yaml"), "--usd-per-gpu-hour", "3"])
    assert isinstance(found.exception, SpecError)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--draft", "llama-3.1-8b-eagle3", "--draft-tokens", "65"], "--draft-tokens: 65 is not a whole number from 0"),
        (["--draft-tokens", "x"], "--draft-tokens: 'x' is no number of drafts; write a whole number from 0 to 64, or"),
        (["--draft-tokens", "3..1"], "'3..1' is no number of drafts"),
        (["--draft-tokens", "0..999999999"], "'0..999999999' is no number of drafts"),
        (["--draft-tokens", "2"], "--draft-tokens says how many drafts, and --draft"),
        (["--total-gpus", "1T"], "--total-gpus: 1,000,000,000,000 is more than 100,000"),
        (["--racks", "1G"], "is more than 100,000"),
    ],
)
def test_a_search_refuses_in_a_sentence_what_no_sweep_could_say(options: list[str], sentence: str) -> None:
    of_8B = ["recommend", "llama-3.1-8b", "h100-hgx", "--ttl-ms", "50", "--gpus", "1", "--family", "tp"]
    found = CliRunner().invoke(app, [*of_8B, *options])
    assert isinstance(found.exception, SpecError), found.output
    assert sentence in str(found.exception)


@pytest.mark.parametrize("inputs", [5, [], "draft", {"sweep": 1}])
def test_a_folder_whose_inputs_are_none_is_a_sentence(inputs: Any, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"inputs": inputs}))
    found = CliRunner().invoke(app, ["explain", f"{tmp_path}:0"])
    assert isinstance(found.exception, SpecError)


def test_machines_that_share_a_name_are_told_apart_in_a_comparison(folder: Path) -> None:
    change(folder / "box.yaml", "memory_GB: {value: 85", "memory_GB: {value: 40")
    both = ["--machine", str(folder / "box.yaml"), "--machine", "h100-hgx"]
    words = ["compare", "--model", "llama-3.1-8b", *both, "--context", "8K", "--ttl-ms", "50", "--family", "tp"]
    rows = answer(*words, "--timing", "paper", "--out", str(folder / "out"))["rows"]
    assert [row["machine"] for row in rows] == [str(folder / "box.yaml"), "h100-hgx"]
    assert rows[0]["users"] < rows[1]["users"]


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("2", (2,)), ("0,1,3", (0, 1, 3)), ("0..3", (0, 1, 2, 3)), ("4, 0..1", (4, 0, 1)), ("1,1", (1,))],
)
def test_draft_lengths_are_a_number_a_list_or_a_range(text: str, lengths: tuple[int, ...]) -> None:
    assert draft_lengths(text) == lengths


@pytest.mark.parametrize("text", ["0..8", "0,1"])
def test_a_layout_has_one_draft_length_and_a_list_is_no_thousands(text: str) -> None:
    words = ["explain", "llama-3.1-8b", "h100-hgx", "--draft", "llama-3.1-8b-eagle3", "--draft-tokens", text]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, SpecError), found.output
    assert f"a layout has one number of drafts, not {text!r}; recommend --draft tries several" in str(found.exception)
